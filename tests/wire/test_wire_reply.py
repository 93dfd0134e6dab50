"""Replies: the upstream's own bytes put right, addresses withheld, answers of our own; dnspython reads them back."""

from __future__ import annotations

import dns.edns
import dns.flags
import dns.message
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_samples import (
    AAAA,
    AT_QUESTION,
    CNAME,
    HTTPS,
    IDENT,
    MX,
    OPT,
    SOA,
    TXT,
    A,
    asked,
    header,
    opt,
    packed,
    pointer,
    query,
    question,
    record,
    response,
    service,
    soa,
    wire,
)

from egressd.wire import Answer, Question, denial, header_error, read_answer, read_query, reply

ONE, TWO, SIX = packed("192.0.2.1"), packed("192.0.2.2"), packed("2001:db8::6")
PLAIN = response(record(AT_QUESTION, A, 60, ONE), record(AT_QUESTION, A, 60, TWO), additional=(opt(),))
FIRST = len(response())


def read(data: bytes, asking: Question | None = None) -> Answer:
    """The answer to the usual question."""
    return read_answer(data, asking or asked())


def test_only_the_ident_changes() -> None:
    """Where the question's case and flags agree, all octets but the first two are the upstream's."""
    out = reply(read(PLAIN), asked(), 0xBEEF, udp=True)
    assert out == b"\xbe\xef" + PLAIN[2:]


def test_case_of_the_question() -> None:
    """A client that mixes case (0x20) gets its own case back, from a message read for another client."""
    out = reply(read(PLAIN), asked("aPi.eXAMPLE.com"), IDENT, udp=True)
    assert out == PLAIN[:12] + question("aPi.eXAMPLE.com") + PLAIN[len(response()) :]


FLAGS = {
    "ra is set": (0x8100, 0x0100, 0x8180),
    "rd and cd are the client's": (0x8100, 0x0010, 0x8090),
    "aa and ad stay": (0x85A0, 0x0100, 0x85A0),
    "rcode stays": (0x8183, 0x0100, 0x8183),
}


@pytest.mark.parametrize(("upstream", "client", "given_flags"), FLAGS.values(), ids=FLAGS.keys())
def test_flags(upstream: int, client: int, given_flags: int) -> None:
    """RA is ours, RD and CD are the client's, the rest is the upstream's."""
    out = reply(read(response(flags=upstream)), read_query(query(flags=client)), IDENT, udp=True)
    assert int.from_bytes(out[2:4]) == given_flags


def test_unknown_types_survive() -> None:
    """Records of unknown types, signatures and odd compression come out octet for octet."""
    records = (
        record(AT_QUESTION, 65_280, 60, bytes(range(256))),
        record(pointer(16), 65_281, 60, b"\xc0\x0c\xff"),
        record(AT_QUESTION, 46, 60, b"\0\1\x0d\3" + b"\0" * 14 + wire("example.com") + b"s" * 64),
        record(wire("API.example.com"), TXT, 60, b"\3abc", 3),
    )
    data = response(*records, additional=(opt(4096),))
    assert reply(read(data), asked(), IDENT, udp=True) == data


AGES = [(60, 0, 60), (60, 1, 59), (60, 60, 0), (60, 61, 0), (0, 5, 0), (0x7FFFFFFF, 1, 0x7FFFFFFE), (0x80000001, 1, 0)]


@pytest.mark.parametrize(("ttl", "age", "left"), AGES)
def test_ageing(ttl: int, age: int, left: int) -> None:
    """Every TTL is lowered by the age, to zero at least; OPT's flags in the same place are left alone."""
    data = response(
        record(AT_QUESTION, A, ttl, ONE),
        authority=(record(wire("example.com"), SOA, ttl, soa(60)),),
        additional=(record(AT_QUESTION, A, ttl, TWO), opt(ttl=0x8000)),
    )
    aged = response(
        record(AT_QUESTION, A, left, ONE),
        authority=(record(wire("example.com"), SOA, left, soa(60)),),
        additional=(record(AT_QUESTION, A, left, TWO), opt(ttl=0x8000)),
    )
    assert reply(read(data), asked(), IDENT, udp=False, age=age) == aged


def test_opt_is_dropped_for_a_client_without() -> None:
    """A client without EDNS gets no OPT where it is the last record; elsewhere it must stay."""
    asking = asked(edns=False)
    bare = response(record(AT_QUESTION, A, 60, ONE))
    assert reply(read(response(record(AT_QUESTION, A, 60, ONE), additional=(opt(),))), asking, IDENT, udp=True) == bare
    middle = response(additional=(opt(), record(AT_QUESTION, A, 60, ONE)))
    assert reply(read(middle), asking, IDENT, udp=True) == middle


def test_extended_rcode_without_edns() -> None:
    """An rcode that needs OPT becomes SERVFAIL for a client without EDNS, not the meaning of its lower bits."""
    data = response(additional=(opt(ttl=0x01000000),))
    assert dns.message.from_wire(reply(read(data), asked(edns=False), IDENT, udp=True)).rcode() == 2
    assert dns.message.from_wire(reply(read(data), asked(), IDENT, udp=True)).rcode() == 16


MANY = response(*(record(AT_QUESTION, A, 60, packed(f"198.51.100.{n}")) for n in range(120)), additional=(opt(),))
FITS = {
    "classic client": (asked(edns=False), True, False),
    "edns client": (asked(size=1232), True, False),
    "one octet short": (asked(size=len(MANY) - 1), True, False),
    "exact": (asked(size=len(MANY)), True, True),
    "tcp": (asked(edns=False), False, True),
}


@pytest.mark.parametrize(("asking", "udp", "whole"), FITS.values(), ids=FITS.keys())
def test_fit(asking: Question, udp: bool, whole: bool) -> None:
    """What does not fit the client's UDP size becomes TC, question and OPT; over TCP everything fits."""
    out = reply(read(MANY), asking, 77, udp=udp)
    message = dns.message.from_wire(out)
    assert (message.id, bool(message.flags & dns.flags.TC)) == (77, not whole)
    assert sum(len(rrset) for rrset in message.answer) == (120 if whole else 0)
    assert out[12 : 12 + len(asking.raw)] == asking.raw
    assert (message.edns == 0) == asking.edns


def test_opt_counts_only_where_it_is_sent() -> None:
    """501 octets and OPT are 512: dropping OPT makes the answer fit a classic client."""
    room = 512 - len(response(record(AT_QUESTION, TXT, 60, b"")))
    data = response(record(AT_QUESTION, TXT, 60, b"x" * room), additional=(opt(),))
    out = reply(read(data), asked(edns=False), IDENT, udp=True)
    assert len(out) == 512
    assert not out[2] & 2


@pytest.mark.parametrize("udp", [True, False])
def test_truncated_upstream_answer(udp: bool) -> None:
    """Records of a truncated answer were not read, so none is passed on."""
    data = response(record(AT_QUESTION, A, 60, ONE), flags=0x8380, additional=(opt(),))
    out = reply(read(data), asked(), 5, udp=udp)
    assert dns.message.from_wire(out, raise_on_truncation=False).flags & dns.flags.TC
    assert ONE not in out
    assert len(out) == len(response()) + 11


# -------------------------------------------------------------------------------------------- withholding


def test_withheld_address() -> None:
    """The withheld address is gone, the other stays, AD goes: the data are no longer those validated."""
    data = response(record(AT_QUESTION, A, 60, ONE), record(AT_QUESTION, A, 50, TWO), additional=(opt(),), flags=0x81A0)
    out = reply(read(data), asked("API.example.com"), 3, udp=True, withheld=frozenset((ONE,)), age=10)
    expected = response(record(AT_QUESTION, A, 40, TWO), additional=(opt(),), name="API.example.com")
    assert out == b"\0\3" + expected[2:]


def test_withheld_everything() -> None:
    """A message of which nothing is left is still a message."""
    out = reply(read(PLAIN), asked(), IDENT, udp=True, withheld=frozenset((ONE, TWO)))
    assert out == response(additional=(opt(),))


def test_withheld_without_edns() -> None:
    """OPT is left out wherever it stands for a client that sent none."""
    data = response(record(AT_QUESTION, A, 60, ONE), additional=(opt(), record(AT_QUESTION, A, 60, TWO)))
    out = reply(read(data), asked(edns=False), IDENT, udp=True, withheld=frozenset((ONE,)))
    assert out == response(additional=(record(AT_QUESTION, A, 60, TWO),))


def test_withheld_in_every_section_and_of_any_owner() -> None:
    """Not even an unrelated record shows a withheld address."""
    data = response(
        record(wire("x.example"), A, 60, ONE),
        record(AT_QUESTION, AAAA, 60, SIX),
        authority=(record(wire("y.example"), A, 60, ONE),),
        additional=(record(wire("z.example"), A, 60, ONE),),
    )
    out = reply(read(data), asked(), IDENT, udp=True, withheld=frozenset((ONE,)))
    assert out == response(record(AT_QUESTION, AAAA, 60, SIX))


SERVICES = {
    "one of two": (((1, b"\2h2"), (4, ONE + TWO), (6, SIX)), ((1, b"\2h2"), (4, TWO), (6, SIX))),
    "the only one": (((1, b"\2h2"), (4, ONE), (7, b"/dns{?dns}")), ((1, b"\2h2"), (7, b"/dns{?dns}"))),
    "mandatory": (((0, b"\0\1\0\4"), (1, b"\2h2"), (4, ONE)), ((0, b"\0\1"), (1, b"\2h2"))),
    "alone mandatory": (((0, b"\0\4"), (4, ONE)), ()),
    "still mandatory": (((0, b"\0\4"), (4, ONE + TWO)), ((0, b"\0\4"), (4, TWO))),
}


@pytest.mark.parametrize(("before", "after"), SERVICES.values(), ids=SERVICES.keys())
def test_withheld_hints(before: tuple[tuple[int, bytes], ...], after: tuple[tuple[int, bytes], ...]) -> None:
    """Hints shrink; an emptied hint goes, and is no longer called mandatory."""
    target = wire("svc.example")
    data = response(record(AT_QUESTION, HTTPS, 60, service(1, target, *before)), qtype=HTTPS)
    asking = asked(qtype=HTTPS)
    out = reply(read(data, asking), asking, IDENT, udp=True, withheld=frozenset((ONE,)))
    assert out == response(record(AT_QUESTION, HTTPS, 60, service(1, target, *after)), qtype=HTTPS)
    assert len(dns.message.from_wire(out).answer) == 1


def test_withheld_names_are_decompressed() -> None:
    """Names that pointed into the message are whole after records have moved, in their own letter case."""
    first = record(AT_QUESTION, A, 60, ONE)
    target = FIRST + len(first) + 12
    data = response(
        first,
        record(AT_QUESTION, CNAME, 60, b"\3CDN" + pointer(16)),
        record(pointer(target), A, 60, TWO),
        record(pointer(target), MX, 60, b"\0\5\2mx" + pointer(target)),
        record(pointer(target), 35, 60, b"\0\1\0\2\1u\3sip\0" + b"\1n" + pointer(target)),
        record(pointer(target), 65_280, 60, b"\xc0\x0c"),
        authority=(record(pointer(16), SOA, 60, pointer(target) + b"\5admin" + pointer(16) + b"\0" * 20),),
    )
    out = reply(read(data), asked(), IDENT, udp=True, withheld=frozenset((ONE,)))
    cdn = wire("CDN.example.com")
    assert out == response(
        record(AT_QUESTION, CNAME, 60, cdn),
        record(cdn, A, 60, TWO),
        record(cdn, MX, 60, b"\0\5\2mx" + cdn),
        record(cdn, 35, 60, b"\0\1\0\2\1u\3sip\0" + b"\1n" + cdn),
        record(cdn, 65_280, 60, b"\xc0\x0c"),
        authority=(record(wire("example.com"), SOA, 60, cdn + wire("admin.example.com") + b"\0" * 20),),
    )


def test_withheld_drops_what_cannot_be_moved() -> None:
    """A record whose names are broken leaves with the withheld ones."""
    data = response(
        record(AT_QUESTION, A, 60, ONE),
        record(AT_QUESTION, MX, 60, b"\0"),
        record(AT_QUESTION, 2, 60, pointer(0x3FFF)),
        record(AT_QUESTION, 33, 60, b"\0\1\0\1\0\1\2x"),
    )
    out = reply(read(data), asked(), IDENT, udp=True, withheld=frozenset((ONE,)))
    assert out == response()


def test_withheld_from_a_message_that_outgrows_tcp() -> None:
    """Decompression may push a message over 65,535 octets: then it is truncated rather than broken."""
    owner = wire(".".join(["a" * 63] * 3))
    head = record(owner, 65_280, 60, b"x" * 100)
    rest = b"".join(record(pointer(FIRST), 65_280, 60, b"x" * 100) for _ in range(500))
    data = header(0x8180, 1, 502, 0, 0) + question() + head + rest + record(AT_QUESTION, A, 60, ONE)
    out = reply(read(data), asked(), IDENT, udp=False, withheld=frozenset((ONE,)))
    assert dns.message.from_wire(out).flags & dns.flags.TC
    assert len(out) == len(response()) + 11


def test_withheld_data_that_outgrow_their_record() -> None:
    """Data near 65,535 octets that grow beyond their length field by two names are left out."""
    owner = record(wire(".".join(["a" * 63] * 3)), A, 60, ONE)
    fixed = len(response(owner)) + 12
    data = response(owner, record(AT_QUESTION, 17, 60, pointer(FIRST) * 2 + b"x" * (65_535 - fixed - 4)))
    assert len(data) == 65_535
    out = reply(read(data), asked(), IDENT, udp=False, withheld=frozenset((ONE,)))
    assert out == response()


hidden = st.frozensets(st.sampled_from([ONE, TWO, SIX]))
pieces = st.sampled_from(
    [
        record(AT_QUESTION, A, 60, ONE),
        record(wire("API.example.com"), A, 60, TWO),
        record(AT_QUESTION, AAAA, 60, SIX),
        record(AT_QUESTION, HTTPS, 60, service(1, b"\0", (4, ONE + TWO), (6, SIX))),
        record(AT_QUESTION, MX, 60, b"\0\1\2mx" + pointer(16)),
        record(pointer(16), 2, 60, b"\2ns" + pointer(16)),
        record(AT_QUESTION, TXT, 60, b"\1t"),
        record(AT_QUESTION, 65_280, 60, b"\1\2\3"),
    ]
)


@given(st.lists(pieces, max_size=8), st.lists(pieces, max_size=4), hidden, st.booleans())
def test_withholding_takes_exactly_that(
    answers: list[bytes], additional: list[bytes], withheld: frozenset[bytes], edns: bool
) -> None:
    """What is read from the rebuilt message is what was read before, less the withheld addresses."""
    asking = asked(edns=edns)
    before = read(response(*answers, additional=(*additional, opt())), asking)
    out = reply(before, asking, IDENT, udp=False, withheld=withheld)
    after = read(out, asking)
    assert after.addresses == tuple(address for address in before.addresses if address not in withheld)
    assert not withheld or all(address not in out for address in withheld)
    kept, whole = dns.message.from_wire(out), dns.message.from_wire(before.data)
    assert (kept.edns == 0) == edns
    for section, full in ((kept.answer, whole.answer), (kept.additional, whole.additional)):
        others = [rrset for rrset in full if rrset.rdtype not in (A, AAAA, HTTPS)]
        assert [rrset for rrset in section if rrset.rdtype not in (A, AAAA, HTTPS)] == others


# --------------------------------------------------------------------------------------- answers of our own


def test_denial_with_edns() -> None:
    """A denial echoes the question and says why in an Extended DNS Error."""
    message = dns.message.from_wire(denial(asked("API.example.com"), 42, 3, 17, "no rule allows api.example.com"))
    assert (message.id, message.rcode(), message.flags & 0xFFF0) == (42, 3, 0x8180)
    assert message.question[0].name.labels[0] == b"API"
    (option,) = message.options
    assert isinstance(option, dns.edns.EDEOption)
    assert (option.code, option.text) == (17, "no rule allows api.example.com")
    assert [message.answer, message.authority, message.additional] == [[]] * 3


def test_denial_without_edns() -> None:
    """A client that sent no OPT gets none."""
    out = denial(asked(edns=False), 42, 5, 17, "why")
    assert out == b"\0\x2a\x81\x85" + response()[4:]


def test_denial_without_reason() -> None:
    """Without a code there is an OPT without options; DO, RD and CD are echoed."""
    asking = read_query(query(opt(ttl=0x8000), flags=0x0010))
    message = dns.message.from_wire(denial(asking, 1, 2))
    assert (message.flags & 0xFFF0, message.ednsflags, message.options) == (0x8090, 0x8000, ())


TEXTS = ["", "x" * 500, "é" * 300, "x" + "é" * 300, "€" * 300, "\ud800"]


@pytest.mark.parametrize("text", TEXTS)
def test_denial_text_is_cut(text: str) -> None:
    """The text is at most 200 octets of sound UTF-8, and the longest denial fits 512 octets."""
    asking = asked(".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61]))
    out = denial(asking, 1, 3, 15, text)
    assert len(out) <= 512
    (option,) = dns.message.from_wire(out).options
    assert isinstance(option, dns.edns.EDEOption)
    kept = option.text or ""
    assert len(kept.encode()) <= 200
    assert text.encode("utf-8", "replace").decode().startswith(kept)
    assert len(kept) > 60 or len(kept) == len(text)


HEADERS = {
    "formerr": (query(), 1, b"\x12\x34\x81\x81" + b"\0" * 8),
    "notimp echoes the opcode": (query(flags=0x2900), 4, b"\x12\x34\xa9\x84" + b"\0" * 8),
    "without rd": (query(flags=0), 1, b"\x12\x34\x80\x81" + b"\0" * 8),
    "header alone": (header(0x0100, 9, 9, 9, 9), 1, b"\x12\x34\x81\x81" + b"\0" * 8),
}


@pytest.mark.parametrize(("data", "rcode", "out"), HEADERS.values(), ids=HEADERS.keys())
def test_header_error(data: bytes, rcode: int, out: bytes) -> None:
    """A query that could not be read is answered by twelve octets: its ID, opcode and RD, and the rcode."""
    assert header_error(data, rcode) == out


def test_badvers_carries_opt() -> None:
    """BADVERS does not fit a header: an OPT record of version 0 carries its upper bits."""
    message = dns.message.from_wire(header_error(query(opt(ttl=0x10000)), 16))
    assert (message.rcode(), message.edns, message.payload) == (16, 0, 1232)
    assert OPT == dns.rdatatype.OPT
