"""Any bytes give a value or `WireError`: the corpus of messages that hurt, random octets, mutated messages."""

from __future__ import annotations

import re
from pathlib import Path

import dns.message
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wire_samples import (
    AAAA,
    AT_QUESTION,
    CNAME,
    HTTPS,
    MX,
    SOA,
    A,
    asked,
    opt,
    packed,
    query,
    record,
    response,
    service,
    soa,
)

from egressd.errors import WireError
from egressd.wire import header_error, rcode_text, read_answer, read_query, reply, upstream_query

CORPUS = Path(__file__).parent.parent / "corpus" / "wire"
TABLE = dict(re.findall(r"^\| ((?:query|answer)-[\w-]+) \| (\w+) \|", (CORPUS / "README.md").read_text(), re.MULTILINE))
MESSAGES = {path.stem: path.read_bytes() for path in sorted(CORPUS.glob("*.bin"))}
ASKED = asked()


def outcome_of_query(data: bytes) -> str:
    """What `read_query` makes of the bytes, in the corpus' words; a value is used as the program would use it."""
    try:
        asking = read_query(data)
    except WireError as error:
        if error.rcode is None:
            return "silence"
        return rcode_text(dns.message.from_wire(header_error(data, error.rcode), ignore_trailing=False).rcode())
    assert len(asking.name) >= 1
    assert read_query(upstream_query(asking, 7)).key == asking.key
    return "value"


def outcome_of_answer(data: bytes) -> str:
    """What `read_answer` makes of the bytes; from a value every kind of reply is made."""
    try:
        answer = read_answer(data, ASKED)
    except WireError as error:
        return "refused" if error.rcode is None else rcode_text(error.rcode)
    for udp in (True, False):
        out = reply(answer, ASKED, 9, udp=udp, age=30)
        assert len(out) <= (ASKED.udp_size if udp else len(data) + 23)
    bare = reply(answer, ASKED, 9, udp=False, withheld=frozenset(answer.addresses))
    if not answer.truncated:
        again = read_answer(bare, ASKED)
        assert again.truncated or not again.addresses
    return "value"


def test_table_is_complete() -> None:
    """Every file has its row and every row its file."""
    assert set(TABLE) == set(MESSAGES)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_corpus(name: str) -> None:
    """Each message comes to what the table says of it."""
    outcome = outcome_of_query if name.startswith("query") else outcome_of_answer
    assert outcome(MESSAGES[name]) == TABLE[name]


@pytest.mark.parametrize("name", sorted(TABLE))
def test_corpus_given_to_the_other_reader(name: str) -> None:
    """Neither reader is hurt by what was made for the other."""
    assert outcome_of_query(MESSAGES[name])
    assert outcome_of_answer(MESSAGES[name]) in ("value", "refused")


@settings(max_examples=300)
@given(st.binary(max_size=600))
@example(b"\0" * 65_536)
@example(b"\xc0" * 65_535)
def test_random_octets(data: bytes) -> None:
    """Random octets, alone or behind a sound header and question, never escape as anything but `WireError`."""
    assert outcome_of_query(data)
    assert outcome_of_answer(data) == "refused"
    assert outcome_of_query(query()[:12] + data)
    assert outcome_of_query(query(b"", b"") + data)
    for counts in (b"\0\1\0\0\0\0", b"\0\2\0\1\0\2", b"\0\0\0\3\0\1"):
        head = response()
        assert outcome_of_answer(head[:6] + counts + head[12:] + data) in ("value", "refused")


GOOD = (
    query(opt(4096, ttl=0x8000, data=b"\0\x0a\0\x08abcdefgh")),
    response(
        record(AT_QUESTION, CNAME, 300, b"\3cdn" + b"\xc0\x10"),
        record(b"\xc0\x2d", A, 60, packed("192.0.2.1")),
        record(b"\xc0\x2d", AAAA, 60, packed("2001:db8::1")),
        record(b"\xc0\x2d", HTTPS, 60, service(1, b"\0", (0, b"\0\4"), (1, b"\2h2"), (4, packed("192.0.2.1")))),
        record(b"\xc0\x2d", 65_280, 60, b"\xc0\x0c"),
        authority=(record(b"\xc0\x10", SOA, 60, soa(60)), record(b"\xc0\x10", MX, 60, b"\0\1\xc0\x0c")),
        additional=(record(AT_QUESTION, A, 60, packed("192.0.2.2")), opt()),
    ),
    *(data for data in MESSAGES.values() if len(data) < 4096),
)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A known message with a few octets changed, cut out, doubled or put in."""
    data = bytearray(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["set", "set", "cut", "double", "insert", "end"])):
            case "set":
                data[at : at + 1] = draw(
                    st.sampled_from([b"\0", b"\1", b"\xc0", b"\xff"]) | st.binary(min_size=1, max_size=1)
                )
            case "cut":
                del data[at : at + draw(st.integers(1, 20))]
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 20))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=12))
            case _:
                del data[at:]
    return bytes(data)


@settings(max_examples=400)
@given(mutated())
def test_mutated_messages(data: bytes) -> None:
    """What was almost a good message gives a value that can be used, or `WireError`."""
    assert outcome_of_query(data)
    assert outcome_of_answer(data) in ("value", "refused")


@given(at=st.integers(0, 200), octet=st.integers(0, 255))
def test_one_octet_changed(at: int, octet: int) -> None:
    """One changed octet anywhere in a rich answer is survived."""
    data = bytearray(GOOD[1])
    data[at % len(data)] = octet
    assert outcome_of_answer(bytes(data)) in ("value", "refused")


def test_every_prefix() -> None:
    """A message cut anywhere is refused, and only the whole is read."""
    for data, outcome in ((GOOD[0], outcome_of_query), (GOOD[1], outcome_of_answer)):
        assert outcome(data) == "value"
        assert "value" not in {outcome(data[:length]) for length in range(len(data))}
