"""The parts of the admin API without a daemon: followers, the search through files, parameters, hosts, readiness."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import MultiDict

from egressd.admin import audit, trail
from egressd.admin.endpoints import ENDPOINTS
from egressd.admin.facts import FRESH_S, HUNG_S, REASONS, alive, unready
from egressd.admin.feed import MAX_BEHIND, MAX_FOLLOWERS, RECENT, Feed
from egressd.admin.openapi import document
from egressd.admin.parameters import read
from egressd.admin.problem import HttpProblem
from egressd.admin.server import _ours
from egressd.admin.trail import Filter, backwards, latest
from egressd.control.observe import Observe
from egressd.link import Lines, Stats, UpstreamHealth
from egressd.names import parse_pattern
from egressd.settings import Audit, Settings

PARAMETERS = {endpoint.name: endpoint.parameters for endpoint in ENDPOINTS}


# ------------------------------------------------------------------------------------------------------ followers


def test_a_slow_follower_loses_the_oldest() -> None:
    """One who does not read holds a bounded number of octets, and learns how many records are missing."""

    async def play() -> None:
        feed = Feed()
        with feed.follow() as slow, feed.follow() as quick:
            assert slow is not None
            assert quick is not None
            line = b"x" * (MAX_BEHIND // 4)
            for number in range(10):
                feed.put(Lines(line, 3))
                assert (await quick.take(1.0))[1] == 0, number
            data, lost = await slow.take(1.0)
            assert (data, lost) == (line, 18)
            assert feed.dropped == 18
            assert (await slow.take(1.0))[1] == 0
        assert len(feed) == 0

    asyncio.run(play())


def test_followers_are_bounded() -> None:
    """One too many gets nothing; when one leaves there is room again."""
    feed = Feed()
    open_ = [feed.follow() for _ in range(MAX_FOLLOWERS)]
    assert all(each.__enter__() is not None for each in open_)
    with feed.follow() as refused:
        assert refused is None
    open_[0].__exit__(None, None, None)
    with feed.follow() as taken:
        assert taken is not None


def test_what_is_kept_where_there_is_no_file() -> None:
    """The latest lines, within a bound; none of them once there is a file to read them from."""
    feed = Feed()
    line = b"x" * (RECENT // 4)
    for number in range(6):
        feed.put(Lines(b"%d" % number + line, 1))
    assert (len(feed.recent), feed.recent[:1]) == (3 * (len(line) + 1), b"3")
    feed.put(Lines(line, 1), keep=False)
    assert feed.recent == b""


class Reading:
    """The answer to a follower, and his end of the connection, which he closes when he has read enough."""

    def __init__(self, feed: Feed, lines: list[Lines]) -> None:
        self.read = b""
        self.transport = self
        self._feed, self._lines = feed, lines

    async def prepare(self, _request: object) -> None:
        """Nothing to do."""

    async def write(self, data: bytes) -> None:
        self.read += data

    def is_closing(self) -> bool:
        if self._lines:
            self._feed.put(self._lines.pop(0))
        return b"last" in self.read


@pytest.mark.parametrize(("event", "numbers"), [(None, [1, 2, 3, 4, 5]), ("flow", [2, 5])])
def test_from_what_was_written_to_what_comes(
    event: str | None, numbers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line that was told and written at the same moment is read once, and none is left out."""
    lines = [record(number, event="flow" if number in {2, 5} else "dns") + b"\n" for number in range(1, 6)]
    lines[4] = record(5, event="flow", last=True) + b"\n"
    batches = [Lines(line, 1) for line in lines]

    async def play() -> bytes:
        feed = Feed()
        feed.put(batches[0])
        reading = Reading(feed, batches[3:])
        monkeypatch.setattr("aiohttp.web.StreamResponse", lambda **_: reading)
        facts = SimpleNamespace(feed=feed, settings=Settings(node="n1", audit=Audit(file="")))
        with feed.follow() as follower:
            assert follower is not None
            for batch in batches[1:3]:
                feed.put(batch)
            await audit._follow(cast("Any", reading), cast("Any", facts), Filter(event=event), 100, follower)
        return reading.read

    read = asyncio.run(asyncio.wait_for(play(), 20))
    assert [json.loads(line)["number"] for line in read.splitlines()] == numbers


def test_silence_ends() -> None:
    """A follower does not wait for ever."""

    async def play() -> tuple[bytes, int]:
        with Feed().follow() as follower:
            assert follower is not None
            return await follower.take(0.01)

    assert asyncio.run(play()) == (b"", 0)


# ---------------------------------------------------------------------------------------------------------- files


def record(number: int, **fields: Any) -> bytes:
    value = {"time": f"2026-11-22T13:{number // 60:02d}:{number % 60:02d}.000000Z", "event": "dns", "number": number}
    return json.dumps(value | fields).encode()


def found(file: Path, wanted: Filter, limit: int = 1000, keep: int = 3) -> list[int]:
    """Numbers of the records that a search finds, in its order."""
    *_, lines = latest(str(file), keep, wanted, limit)
    assert lines is not None
    return [json.loads(line)["number"] for line in lines]


@given(
    lines=st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b".")), max_size=30),
    chunk=st.integers(1, 64),
    half=st.binary(max_size=10).map(lambda line: line.replace(b"\n", b".")),
)
def test_lines_backwards(lines: list[bytes], chunk: int, half: bytes) -> None:
    """However a file is cut into chunks, its whole lines come out last first; half a line at the end does not."""
    fd = os.memfd_create("lines")
    os.write(fd, b"".join(line + b"\n" for line in lines) + half)
    before, trail.CHUNK = trail.CHUNK, chunk  # type: ignore[misc]  # small, so that every cut is met
    try:
        got = [line for some in backwards(fd) for line in some]
    finally:
        trail.CHUNK = before  # type: ignore[misc]
        os.close(fd)
    assert got == lines[::-1]


def test_search_over_rotated_files(tmp_path: Path) -> None:
    """The latest that match, oldest first, over file borders; a limit and a moment end the search."""
    file = tmp_path / "audit.jsonl"
    for part, numbers in enumerate((range(6, 9), range(3, 6), range(3))):
        name = file if part == 0 else Path(f"{file}.{part}")
        name.write_bytes(b"".join(record(number) + b"\n" for number in numbers))
    assert found(file, Filter()) == list(range(9))
    assert found(file, Filter(), limit=4) == [5, 6, 7, 8]
    since = 1_795_352_400.0  # 2026-11-22T13:00:00Z
    assert found(file, Filter(since=since + 4)) == [4, 5, 6, 7, 8]
    assert found(file, Filter(), keep=1) == [3, 4, 5, 6, 7, 8]
    assert found(tmp_path / "none.jsonl", Filter()) == []


def test_filters(tmp_path: Path) -> None:
    """By pod, name or pattern, verdict and event; what is no record is passed over."""
    file = tmp_path / "audit.jsonl"
    web = {"namespace": "shop", "name": "web-0"}
    lines = [
        record(0, pod=web, query={"name": "api.example.com"}, verdict="allowed"),
        record(1, pod=web, query={"name": "cdn.example"}, verdict="denied"),
        b'{"time": half',
        record(2, pod={**web, "namespace": "other"}, query={"name": "a.cdn.example"}, verdict="denied"),
        record(3, event="flow", pod=web, destination={"ip": "192.0.2.1", "names": ["x.cdn.example"]}, verdict="denied"),
        record(4, event="policy", policy="shop/web", change="updated"),
    ]
    file.write_bytes(b"\n".join(lines) + b"\n")
    assert found(file, Filter(pod=("shop", "web-0"))) == [0, 1, 3]
    assert found(file, Filter(name=parse_pattern("cdn.example"))) == [1]
    assert found(file, Filter(name=parse_pattern("*.cdn.example"))) == [2, 3]
    assert found(file, Filter(verdict="denied", event="dns")) == [1, 2]
    assert found(file, Filter(event="policy")) == [4]


# ----------------------------------------------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("endpoint", "query", "parameter", "says"),
    [
        ("pods", {"limit": "0"}, "limit", "from 1 to 10000"),
        ("pods", {"limit": "1e3"}, "limit", "not a whole number"),
        ("pods", {"limits": "1"}, "limits", "did you mean 'limit'"),
        ("status", {"x": "1"}, "x", "takes no parameter"),
        ("pods", {"namespace": "a/b"}, "namespace", "no namespace"),
        ("grants", {"pod": "web"}, "pod", "NAMESPACE/NAME"),
        ("grants", {"name": "a..b"}, "name", "empty label"),
        ("explain", {"to": "a.example"}, "pod", "missing"),
        ("explain", {"pod": "shop/web", "to": "a:0"}, "to", "ports are 1 to 65535"),
        ("audit", {"verdict": "alowed"}, "verdict", "did you mean 'allowed'"),
        ("audit", {"since": "yesterday"}, "since", "write 90s"),
        ("audit", {"follow": "yes"}, "follow", "none of 0, 1"),
        ("audit", {"name": "a" * 600}, "name", "at most 512"),
    ],
)
def test_wrong_parameters(endpoint: str, query: dict[str, str], parameter: str, says: str) -> None:
    """Each is refused with its name and a sentence that helps."""
    with pytest.raises(HttpProblem) as refused:
        read(MultiDict(query), PARAMETERS[endpoint])
    assert refused.value.status == 400
    assert refused.value.more["parameter"] == parameter
    assert says in refused.value.message


def test_a_parameter_given_twice() -> None:
    """It is not guessed which one was meant."""
    with pytest.raises(HttpProblem, match="more than once"):
        read(MultiDict([("limit", "1"), ("limit", "2")]), PARAMETERS["pods"])


def test_good_parameters() -> None:
    """Values arrive as what they are, with defaults for what is not given."""
    values = read(MultiDict({"name": "*.Example.com", "since": "2026-11-22T13:00:00Z"}), PARAMETERS["audit"])
    assert values["name"] == parse_pattern("*.example.com")
    assert values["since"] == 1_795_352_400.0
    assert (values["limit"], values["follow"], values["pod"]) == (1000, False, None)


@pytest.mark.parametrize(
    ("host", "ours"),
    [
        ("127.0.0.1:9477", True),
        ("127.0.0.1", True),
        ("[::1]:9477", True),
        ("[::1]", True),
        ("localhost:9477", True),
        ("LOCALHOST.", True),
        ("n1:9477", True),
        ("evil.example:9477", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("n1.evil.example:80", False),
    ],
)
def test_hosts(host: str, *, ours: bool) -> None:
    """Addresses, localhost and the node's name are ours; a name that somebody else can point here is not."""
    assert _ours(host, {"n1"}) is ours


# ------------------------------------------------------------------------------------------------------ readiness


def facts(**changes: Any) -> Any:
    """A control side where all is well at second 100, with changes."""
    stats: dict[str, Any] = {
        "serving": True,
        "refused": "",
        "started": 1.0,
        "upstreams": (UpstreamHealth("udp://192.0.2.53:53", True, 0),),
    }
    given = {key: changes.pop(key) for key in list(changes) if key in stats}
    base = {
        "stats": Stats(**(stats | given)),
        "stats_at": 100.0,
        "began": 1.0,
        "synced": True,
        "ailments": (),
        "requests": Counter(),
    }
    return SimpleNamespace(**(base | changes))


def test_a_scrape_and_a_probe_look_at_no_policy() -> None:
    """They come every second; the conditions of a thousand policies would take longer to put together than all else."""
    service = SimpleNamespace(synced=True, ailments=(), facts=("a fact",))  # has nothing else to say
    observe = Observe(cast("Any", service))
    assert (observe.synced, observe.ailments, observe.found) == (True, (), ("a fact",))
    assert unready(observe, 100.0).keys() == {"data-path-away"}


DOWN = (UpstreamHealth("udp://192.0.2.53:53", False, 5), UpstreamHealth("udp://192.0.2.54:53", False, 3))


@pytest.mark.parametrize(
    ("changes", "now", "reasons"),
    [
        ({}, 100.0, set()),
        ({}, 100.0 + FRESH_S, {"data-path-away"}),
        ({"stats": None}, 100.0, {"data-path-away"}),
        ({"synced": False}, 100.0, {"not-synced"}),
        ({"serving": False}, 100.0, {"not-synced"}),
        ({"ailments": ("the API server does not answer",)}, 100.0, {"source-away"}),
        ({"upstreams": DOWN}, 100.0, {"upstreams-failing"}),
        ({"upstreams": (DOWN[0], UpstreamHealth("udp://192.0.2.55:53", True, 0))}, 100.0, set()),
        ({"refused": "EBUSY"}, 100.0, {"kernel-refused"}),
        ({"stats": None, "synced": False, "ailments": ("x",)}, 9.0, {"data-path-away", "not-synced", "source-away"}),
    ],
)
def test_readiness(changes: dict[str, Any], now: float, reasons: set[str]) -> None:
    """Each reason shows alone and with others, and all are of the fixed set."""
    said = unready(facts(**changes), now)
    assert set(said) == reasons <= set(REASONS)
    assert all(said.values())


@pytest.mark.parametrize(
    ("changes", "now", "lives"),
    [
        ({}, 100.0, True),
        ({}, 100.0 + HUNG_S, False),
        ({"stats": None}, 1.0 + HUNG_S / 2, True),
        ({"stats": None}, 1.0 + HUNG_S, False),
    ],
)
def test_liveness(changes: dict[str, Any], now: float, *, lives: bool) -> None:
    """A data path that is silent for half a minute hangs; one that just starts does not."""
    assert alive(facts(**changes), now) is lives


def test_openapi_describes_every_endpoint() -> None:
    """Every path, parameter and type that it refers to is in the document."""
    described = document(ENDPOINTS)
    assert set(described["paths"]) == {endpoint.path for endpoint in ENDPOINTS}
    schemas = described["components"]["schemas"]
    text = json.dumps(described)
    for part in text.split('"#/components/schemas/')[1:]:
        assert part.split('"')[0] in schemas
