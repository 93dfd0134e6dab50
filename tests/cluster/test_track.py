"""The rules of reconnecting, without any I/O: what a list, a line and a failure each come to."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressd.cluster.client import ApiError
from egressd.cluster.objects import NAMESPACES, Thing
from egressd.cluster.track import PATIENCE, Track, backoff

Names = dict[str, int]


def thing(name: str, version: int, uid: str = "u", **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "uid": f"{uid}-{name}", "resourceVersion": str(version), "labels": labels}}


def decoded(*things: dict[str, Any]) -> list[Thing]:
    return [NAMESPACES.one.decode(json.dumps(each)) for each in things]


def line(kind: str, each: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": each}).encode()


def told(track: Track[Thing], kind: str, each: dict[str, Any]) -> dict[str, bool]:
    """Names that changed, and whether they are there now."""
    return {name: value is not None for (_, name), value in track.take_line(line(kind, each)).items()}


@pytest.fixture
def track() -> Track[Thing]:
    """After a list of `a` and `b` at version 10."""
    made: Track[Thing] = Track(NAMESPACES)
    changes = made.take_list(decoded(thing("a", 3), thing("b", 4)), "10")
    assert {name for _, name in changes} == {"a", "b"}
    return made


def test_events_are_told_and_move_the_version(track: Track[Thing]) -> None:
    """Each change once; a bookmark moves the version and tells nothing."""
    assert told(track, "MODIFIED", thing("a", 11)) == {"a": True}
    assert told(track, "ADDED", thing("c", 12)) == {"c": True}
    assert told(track, "DELETED", thing("a", 13)) == {"a": False}
    assert told(track, "BOOKMARK", {"metadata": {"resourceVersion": "20"}}) == {}
    assert track.version == "20"


@pytest.mark.parametrize(("kind", "name"), [("ADDED", "a"), ("MODIFIED", "b"), ("DELETED", "c")])
def test_what_is_known_is_not_told_again(track: Track[Thing], kind: str, name: str) -> None:
    """An event that repeats the state, or deletes what never was, is no change."""
    assert told(track, kind, thing(name, {"a": 3, "b": 4, "c": 9}[name])) == {}


def test_a_list_tells_only_what_differs(track: Track[Thing]) -> None:
    """Unchanged objects cause nothing, vanished ones are removed, and one replaced under its name is changed."""
    changes = track.take_list(decoded(thing("a", 3), thing("c", 15)), "20")
    assert {name: value is not None for (_, name), value in changes.items()} == {"b": False, "c": True}
    changes = track.take_list(decoded(thing("a", 3, uid="new"), thing("c", 15)), "30")
    assert [name for _, name in changes] == ["a"]
    assert track.take_list(decoded(thing("a", 3, uid="new"), thing("c", 15)), "40") == {}


@pytest.mark.parametrize(
    ("text", "status"),
    [
        (b'{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired"}}', 410),
        (b'{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd"}}', 500),
        (b'{"type":"ERROR","object":{}}', 500),
        (b'{"type":"ERROR","object":7}', 0),
        (b"no JSON", 0),
        (b"[]", 0),
        (b'{"type":"ADDED"}', 0),
        (b'{"type":"ADDED","object":{"metadata":[]}}', 0),
    ],
)
def test_lines_that_are_no_events(track: Track[Thing], text: bytes, status: int) -> None:
    """All are one error, and the version stays what it was."""
    with pytest.raises(ApiError) as error:
        track.take_line(text)
    assert error.value.status == status
    assert track.version == "10"


@given(st.binary(max_size=200))
def test_any_line_is_a_change_or_an_error(text: bytes) -> None:
    """Nothing else escapes."""
    made: Track[Thing] = Track(NAMESPACES)
    with contextlib.suppress(ApiError):
        assert isinstance(made.take_line(text), dict)


def lost(cause: Exception | None = None) -> ApiError:
    error = ApiError("the connection is lost")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "silent", "relist"),
    [
        (ApiError("gone", 410), False, True),
        (lost(), False, False),
        (lost(TimeoutError()), False, False),
        (lost(TimeoutError()), True, True),
        (ApiError("too many", 429), False, False),
        (ApiError("broken", 500), False, False),
    ],
)
def test_what_follows_a_failure(track: Track[Thing], error: ApiError, silent: bool, relist: bool) -> None:
    """Only a version too old, and a watch that was silent past its bookmarks, mean listing again."""
    assert track.failed(error, silent=silent) is relist
    assert (track.version == "") is relist


def test_a_server_that_keeps_refusing_a_version_is_listed(track: Track[Thing]) -> None:
    """After a few refusals in a row; what is forbidden would be forbidden in a list too."""
    for _ in range(3 * PATIENCE):
        track.failed(ApiError("no", 403), silent=False)
    assert track.version == "10"
    for _ in range(PATIENCE):
        track.failed(ApiError("no", 500), silent=False)
    assert track.version == ""


@given(st.integers(1, 10_000), st.floats(0, 1), st.none() | st.floats(0, 1e6))
def test_waiting_is_bounded(failures: int, chance: float, asked: float | None) -> None:
    """Between 0.2 and 10 s, at least what the server asked for, and never more than 75 s."""
    wait = backoff(failures, chance, asked)
    assert 0.2 <= wait <= 75
    assert asked is None or wait >= min(asked, 60)
    assert asked is not None or wait <= 10


names = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 3))


@given(st.lists(names, max_size=6))
def test_lists_alone_lead_to_the_last_one(lists: list[Names]) -> None:
    """Whatever was listed before, applying the changes gives the last list."""
    made: Track[Thing] = Track(NAMESPACES)
    known: dict[str, object] = {}
    for number, listed in enumerate(lists):
        items = decoded(*(thing(name, version, v=str(version)) for name, version in listed.items()))
        for (_, name), value in made.take_list(items, str(number)).items():
            if value is None:
                del known[name]
            else:
                known[name] = value.labels["v"]
        assert known == {name: str(version) for name, version in listed.items()}
