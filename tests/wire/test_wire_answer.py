"""Answers: which addresses, chain and TTLs are read out of one, and what is refused; dnspython is the witness."""

from __future__ import annotations

import struct
from ipaddress import ip_address
from itertools import pairwise

import dns.flags
import dns.message
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import (
    AAAA,
    AT_QUESTION,
    CNAME,
    HTTPS,
    MX,
    SOA,
    TXT,
    A,
    asked,
    header,
    opt,
    packed,
    pointer,
    question,
    record,
    response,
    service,
    soa,
    wire,
)

from egressd.errors import WireError
from egressd.wire import MAX_HOPS, MAX_RECORDS, answer, read_answer, read_query
from egressd.wire.name import name_text

ONE, TWO, SIX = packed("192.0.2.1"), packed("192.0.2.2"), packed("2001:db8::6")
FIRST = len(response())
"""Offset of the first record in a response to api.example.com."""


def hop(owner: str, target: str, ttl: int = 300) -> bytes:
    """A CNAME record without compression."""
    return record(wire(owner), CNAME, ttl, wire(target))


def test_one_address() -> None:
    """The usual answer: one address, its TTL, and where it stands."""
    data = response(record(AT_QUESTION, A, 60, ONE), additional=(opt(),))
    answer = read_answer(data, asked())
    assert answer.data is data
    assert (answer.addresses, answer.cnames, answer.ttl, answer.negative_ttl) == ((ONE,), (), 60, -1)
    assert answer.ttl_offsets == (FIRST + 6,)
    assert answer.opt == (len(data) - 11, len(data))
    assert (answer.rcode, answer.truncated) == (0, False)


ADDRESSES = {
    "owner spelled out": ((record(wire("api.example.com"), A, 9, ONE),), (ONE,)),
    "owner in other case": ((record(wire("API.Example.COM"), A, 9, ONE),), (ONE,)),
    "aaaa to an A question": ((record(AT_QUESTION, A, 9, ONE), record(AT_QUESTION, AAAA, 9, SIX)), (ONE, SIX)),
    "once each, in order": (
        (record(AT_QUESTION, A, 9, TWO), record(AT_QUESTION, A, 9, ONE), record(AT_QUESTION, A, 9, TWO)),
        (TWO, ONE),
    ),
    "another owner": ((record(wire("www.example.com"), A, 9, ONE),), ()),
    "a parent": ((record(pointer(16), A, 9, ONE),), ()),
    "another class": ((record(AT_QUESTION, A, 9, ONE, 3),), ()),
    "chain in order": ((hop("api.example.com", "cdn.example"), record(wire("cdn.example"), A, 9, ONE)), (ONE,)),
    "chain backwards": (
        (
            record(wire("b.example"), A, 9, ONE),
            hop("a.example", "b.example"),
            hop("api.example.com", "a.example"),
        ),
        (ONE,),
    ),
    "beside the chain": ((hop("www.example.com", "cdn.example"), record(wire("cdn.example"), A, 9, ONE)), ()),
    "alias and address": ((hop("api.example.com", "cdn.example"), record(AT_QUESTION, A, 9, ONE)), (ONE,)),
    "same alias twice": (
        (hop("api.example.com", "cdn.example"),) * 2 + (record(wire("cdn.example"), A, 9, ONE),),
        (ONE,),
    ),
    "loop beside the chain": ((hop("x.example", "x.example"), record(AT_QUESTION, A, 9, ONE)), (ONE,)),
    "hints": (
        (record(AT_QUESTION, HTTPS, 9, service(1, b"\0", (1, b"\2h2"), (4, ONE + TWO), (6, SIX))),),
        (ONE, TWO, SIX),
    ),
    "hints of another owner": ((record(wire("www.example.com"), HTTPS, 9, service(1, b"\0", (4, ONE))),), ()),
    "hints in alias mode": ((record(AT_QUESTION, HTTPS, 9, service(0, wire("cdn.example"), (4, ONE))),), ()),
    "service target": (
        (record(AT_QUESTION, HTTPS, 9, service(1, wire("s.example"))), record(wire("s.example"), A, 9, ONE)),
        (),
    ),
    "an address as text": ((record(AT_QUESTION, TXT, 9, ONE),), ()),
}


@pytest.mark.parametrize(("records", "addresses"), ADDRESSES.values(), ids=ADDRESSES.keys())
def test_addresses(records: tuple[bytes, ...], addresses: tuple[bytes, ...]) -> None:
    """Only A, AAAA and hints count, and only for the question's name or its chain, in whatever order they come."""
    assert read_answer(response(*records), asked()).addresses == addresses


def test_compressed_chain() -> None:
    """Pointers to a CNAME's own data lead to its target, compressed or not."""
    first = record(AT_QUESTION, CNAME, 300, b"\3cdn" + pointer(16))
    target = FIRST + 12
    second = record(pointer(target), CNAME, 200, wire("edge.example"))
    edge = FIRST + len(first) + 12
    answer = read_answer(response(first, second, record(pointer(edge), A, 100, ONE)), asked())
    assert answer.cnames == ("cdn.example.com", "edge.example")
    assert (answer.addresses, answer.ttl) == ((ONE,), 100)


GRANTING = [(A, True), (AAAA, True), (64, True), (HTTPS, True), (255, True), (TXT, False), (MX, False), (12, False)]


@pytest.mark.parametrize(("qtype", "grants"), GRANTING)
def test_question_types_that_grant(qtype: int, grants: bool) -> None:
    """PTR, SRV, TXT and MX questions grant nothing, whatever their answers carry; their TTL is read all the same."""
    data = response(record(AT_QUESTION, A, 60, ONE), additional=(record(AT_QUESTION, A, 50, TWO),), qtype=qtype)
    answer = read_answer(data, asked(qtype=qtype))
    assert answer.addresses == ((ONE, TWO) if grants else ())
    assert answer.ttl == (50 if grants else 60)


@pytest.mark.parametrize("qclass", [3, 4, 255])
def test_other_classes_grant_nothing(qclass: int) -> None:
    """A question of another class is answered, its chain is followed, and it grants nothing."""
    records = record(AT_QUESTION, CNAME, 9, wire("cdn.example"), 1 if qclass == 255 else qclass)
    data = response(records, record(wire("cdn.example"), A, 9, ONE), qclass=qclass)
    answer = read_answer(data, asked(qclass=qclass))
    assert (answer.addresses, answer.cnames) == ((), ("cdn.example",))


def test_additional_addresses() -> None:
    """Addresses beside an HTTPS answer count for the chain's names, not for a service's target."""
    data = response(
        record(AT_QUESTION, HTTPS, 300, service(1, b"\0")),
        additional=(
            record(AT_QUESTION, A, 40, ONE),
            record(wire("s.example"), A, 5, TWO),
            record(AT_QUESTION, HTTPS, 300, service(1, b"\0", (6, SIX))),
        ),
        qtype=HTTPS,
    )
    answer = read_answer(data, asked(qtype=HTTPS))
    assert (answer.addresses, answer.ttl) == ((ONE, SIX), 40)


TTLS = {
    "smallest address": ((record(AT_QUESTION, A, 60, ONE), record(AT_QUESTION, A, 30, TWO)), 30),
    "smallest alias": ((hop("api.example.com", "cdn.example", 7), record(wire("cdn.example"), A, 60, ONE)), 7),
    "alias alone": ((hop("api.example.com", "cdn.example", 7),), 7),
    "unrelated records": ((record(AT_QUESTION, A, 60, ONE), record(wire("x.example"), A, 1, TWO)), 60),
    "top bit": ((record(AT_QUESTION, A, 0x80000000, ONE),), 0),
    "largest": ((record(AT_QUESTION, A, 0x7FFFFFFF, ONE),), 0x7FFFFFFF),
    "none": ((), -1),
    "other type": ((record(AT_QUESTION, TXT, 11, b"\0"),), 11),
}


@pytest.mark.parametrize(("records", "ttl"), TTLS.values(), ids=TTLS.keys())
def test_ttl(records: tuple[bytes, ...], ttl: int) -> None:
    """The smallest TTL along the chain; one with the top bit set is zero."""
    assert read_answer(response(*records), asked()).ttl == ttl


NEGATIVE = {
    "minimum is less": ((record(wire("example.com"), SOA, 900, soa(60)),), 60),
    "ttl is less": ((record(wire("example.com"), SOA, 30, soa(60)),), 30),
    "top bit": ((record(wire("example.com"), SOA, 900, soa(0xFFFFFFFF)),), 0),
    "two": ((record(wire("example.com"), SOA, 900, soa(60)), record(wire("com"), SOA, 10, soa(60))), 10),
    "zero stays": ((record(wire("example.com"), SOA, 0, soa(60)), record(wire("com"), SOA, 10, soa(60))), 0),
    "no soa": ((record(wire("example.com"), 2, 900, wire("ns.example")),), -1),
}


@pytest.mark.parametrize(("authority", "ttl"), NEGATIVE.values(), ids=NEGATIVE.keys())
def test_negative_ttl(authority: tuple[bytes, ...], ttl: int) -> None:
    """The absence of data holds for SOA's TTL or MINIMUM, whichever is less (RFC 2308)."""
    answer = read_answer(response(authority=authority, flags=0x8183), asked())
    assert (answer.rcode, answer.negative_ttl, answer.ttl) == (3, ttl, -1)


def test_extended_rcode() -> None:
    """The upper bits of the rcode come from OPT."""
    assert read_answer(response(flags=0x8180, additional=(opt(ttl=0x01000000),)), asked()).rcode == 16
    assert read_answer(response(flags=0x8187, additional=(opt(ttl=0x01000000),)), asked()).rcode == 23


def test_truncated_is_not_read() -> None:
    """With TC set only the question counts: the records may be cut anywhere."""
    data = response(record(AT_QUESTION, A, 60, ONE), flags=0x8380)[:-3]
    answer = read_answer(data, asked())
    assert (answer.truncated, answer.addresses, answer.ttl) == (True, (), -1)


def test_letter_case_of_the_question() -> None:
    """An upstream may echo the question in another case."""
    assert read_answer(response(record(AT_QUESTION, A, 60, ONE), name="api.EXAMPLE.com"), asked()).addresses == (ONE,)
    assert read_answer(response(record(AT_QUESTION, A, 60, ONE)), asked("API.example.com")).addresses == (ONE,)


def chain_of(hops: int) -> tuple[bytes, ...]:
    """That many CNAME records from api.example.com on, and an address at the end."""
    chain = ["api.example.com", *(f"h{n}.example" for n in range(hops))]
    return *(hop(*pair) for pair in pairwise(chain)), record(wire(chain[-1]), A, 9, ONE)


def test_longest_chain() -> None:
    """A chain of sixteen hops is followed to its end."""
    answer = read_answer(response(*chain_of(MAX_HOPS)), asked())
    assert (len(answer.cnames), answer.addresses) == (MAX_HOPS, (ONE,))


def test_120_addresses() -> None:
    """An answer of 120 addresses is read whole and in order."""
    addresses = tuple(packed(f"198.51.100.{n}") for n in range(120))
    data = response(*(record(AT_QUESTION, A, 60, address) for address in addresses))
    answer = read_answer(data, asked())
    assert answer.addresses == addresses
    assert len(answer.ttl_offsets) == 120


def test_record_budget() -> None:
    """As many records as the budget says are read, one more is refused; the budget is the caller's."""
    full = response(*(record(AT_QUESTION, A, 60, struct.pack(">I", n)) for n in range(MAX_RECORDS)))
    assert len(read_answer(full, asked()).addresses) == MAX_RECORDS
    with pytest.raises(WireError, match="at most 511"):
        read_answer(full, asked(), MAX_RECORDS - 1)


def named(*offsets_and_labels: bytes) -> bytes:
    """A response whose one record has this owner."""
    return response(b"".join(offsets_and_labels) + struct.pack(">HHIH", A, 1, 60, 4) + ONE)


def staircase(hops: int) -> bytes:
    """A response whose last record's owner is reached over that many pointers, by way of records before it."""
    data, at = b"", FIRST
    owner = AT_QUESTION
    for _ in range(hops - 1):
        step = record(owner, 65_280, 1, b"")
        owner = b"\1a" + pointer(at)
        at += len(step)
        data += step
    return header(0x8180, 1, hops, 0, 0) + question() + data + record(owner, A, 60, ONE)


REFUSED = {
    "nothing": (b"", "0 octets"),
    "too long": (response() + b"\0" * 65_536, "octets"),
    "a query": (header(0x0100, 1, 0, 0, 0) + question(), "not a response"),
    "opcode": (header(0xA980, 1, 0, 0, 0) + question(), "not a response"),
    "no question": (header(0x8181, 0, 0, 0, 0), "0 questions"),
    "two questions": (header(0x8180, 2, 0, 0, 0) + question() * 2, "2 questions"),
    "another name": (response(name="apj.example.com"), "another question"),
    "another type": (response(qtype=AAAA), "another question"),
    "another class": (response(qclass=3), "another question"),
    "a longer name": (response(name="api.example.com.x"), "another question"),
    "question cut": (response()[:-2], "another question"),
    "truncated answer to another question": (response(name="x.example", flags=0x8380), "another question"),
    "count too large": (header(0x8180, 1, 1, 0, 0) + question(), "ends inside"),
    "counts of 65535": (header(0x8180, 1, 65_535, 65_535, 65_535) + question(), "at most 512"),
    "octets behind": (response(record(AT_QUESTION, A, 60, ONE)) + b"\0", "end of the answer"),
    "cut in head": (response(record(AT_QUESTION, A, 60, ONE))[:-6], "ends inside"),
    "cut in data": (response(record(AT_QUESTION, A, 60, ONE))[:-1], "longer than its message"),
    "A of five octets": (response(record(AT_QUESTION, A, 60, ONE + b"\0")), "5 octets"),
    "A of none": (response(record(AT_QUESTION, A, 60, b"")), "0 octets"),
    "AAAA of four octets": (response(record(AT_QUESTION, AAAA, 60, ONE)), "4 octets"),
    "additional A of five": (response(additional=(record(AT_QUESTION, A, 60, ONE + b"\0"),)), "5 octets"),
    "alias too long": (response(record(AT_QUESTION, CNAME, 60, wire("a.example") + b"\0")), "more or less"),
    "alias too short": (response(record(AT_QUESTION, CNAME, 60, b"\1"), opt()), "more or less"),
    "alias to itself": (response(hop("api.example.com", "API.example.com")), "loops"),
    "alias loop": (response(hop("api.example.com", "a.example"), hop("a.example", "api.example.com")), "loops"),
    "late loop": (response(*chain_of(3)[:-1], hop("h2.example", "h0.example")), "loops"),
    "two aliases": (response(hop("api.example.com", "a.example"), hop("api.example.com", "b.example")), "disagree"),
    "seventeen hops": (response(*chain_of(MAX_HOPS + 1)), "more than 16 hops"),
    "opt in answer": (response(opt()), "in the answer section"),
    "opt in authority": (response(authority=(opt(),)), "in the authority section"),
    "opt twice": (response(additional=(opt(), opt())), "second OPT"),
    "opt with a name": (response(additional=(b"\1a" + opt(),)), "second OPT"),
    "soa cut": (response(authority=(record(b"\0", SOA, 60, soa(1)[:-1]),)), "SOA"),
    "soa of names alone": (response(authority=(record(b"\0", SOA, 60, b"\0\0"),)), "SOA"),
    "service cut in target": (response(record(AT_QUESTION, HTTPS, 60, b"\0\1\3ab")), "ends inside"),
    "service of one octet": (response(record(AT_QUESTION, HTTPS, 60, b"\0"), opt()), "target name"),
    "service cut in parameter": (response(record(AT_QUESTION, HTTPS, 60, service(1, b"\0") + b"\0\4\0")), "cut off"),
    "service overrun": (response(record(AT_QUESTION, HTTPS, 60, service(1, b"\0") + b"\0\4\0\4abc")), "longer"),
    "service descending": (
        response(record(AT_QUESTION, HTTPS, 60, service(1, b"\0", (6, SIX), (4, ONE)))),
        "ascending",
    ),
    "service key twice": (response(record(AT_QUESTION, HTTPS, 60, service(1, b"\0", (4, ONE), (4, ONE)))), "ascending"),
    "hint of five": (response(record(AT_QUESTION, HTTPS, 60, service(1, b"\0", (4, ONE + b"\0")))), "hint of 5"),
    "hint of none": (response(record(AT_QUESTION, HTTPS, 60, service(1, b"\0", (4, b"")))), "hint of 0"),
    "ipv6 hint of eight": (response(record(AT_QUESTION, HTTPS, 60, service(1, b"\0", (6, b"\0" * 8)))), "hint of 8"),
    "pointer to itself": (named(pointer(FIRST)), "backwards"),
    "pointer forward": (named(pointer(FIRST + 4)), "backwards"),
    "pointer into header": (named(pointer(11)), "backwards"),
    "pointer into its own labels": (named(b"\1a", pointer(FIRST)), "backwards"),
    "label type": (named(b"\x40\0"), "reserved type 01"),
    "name of 256": (named(wire(".".join("a" * 63 for _ in range(4)))), "255 octets"),
    "name of 256 by pointer": (
        named(b"\x3f" + b"a" * 63, b"\x3f" + b"a" * 63, b"\x3f" + b"a" * 63, b"\x2e" + b"a" * 46, AT_QUESTION),
        "255",
    ),
    "seventeen pointers": (staircase(MAX_HOPS + 1), "compression pointers"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(data: bytes, message: str) -> None:
    """What is malformed, or answers something else, gives `WireError` that says why."""
    with pytest.raises(WireError, match=message) as caught:
        read_answer(data, asked())
    assert caught.value.rcode is None


def test_sixteen_pointers() -> None:
    """An owner may be reached over sixteen pointers."""
    assert len(read_answer(staircase(MAX_HOPS), asked()).ttl_offsets) == MAX_HOPS


def test_name_of_255_octets_by_pointer() -> None:
    """The limit counts the name as it stands uncompressed."""
    owner = (b"\x3f" + b"a" * 63) * 3 + b"\x2d" + b"a" * 45 + AT_QUESTION
    assert read_answer(named(owner), asked()).addresses == ()


def test_root_owner_and_empty_data() -> None:
    """The shortest record, root owner and no data, is read at the very end of a message."""
    data = response(record(b"\0", 65_280, 5, b""), name="", qtype=65_280)
    assert read_answer(data, asked("", 65_280)).ttl == 5


# --------------------------------------------------------------------------------------------- the oracle

hosts = st.lists(
    st.text("abcXYZ-_9", min_size=1, max_size=6).map(str.encode) | st.binary(min_size=1, max_size=6),
    min_size=1,
    max_size=3,
).map(lambda parts: dns.name.Name([*parts, b"example", b""]))
addresses4 = st.integers(0, 40).map(lambda n: str(ip_address(0xC0000200 + n)))
addresses6 = st.integers(0, 40).map(lambda n: str(ip_address((0x20010DB8 << 96) + n)))
ttls = st.one_of(st.integers(0, 4000), st.just(0x7FFFFFFF))
Row = tuple[dns.name.Name, int, str, str]


@st.composite
def hints(draw: st.DrawFn) -> str:
    """HTTPS data in presentation form."""
    text = f"{draw(st.integers(0, 3))} {draw(st.sampled_from(['.', 'svc.example.']))}"
    if text.startswith("0 "):
        return "0 svc.example."
    text += " alpn=h2"
    four, six = draw(st.lists(addresses4, max_size=3)), draw(st.lists(addresses6, max_size=2))
    text += f" ipv4hint={','.join(four)}" if four else ""
    return text + (f" ipv6hint={','.join(six)}" if six else "")


@st.composite
def built(draw: st.DrawFn) -> tuple[bytes, dns.name.Name, dns.rdatatype.RdataType]:
    """A response with compression, its question's name and type: a chain, addresses on and off it, other records."""
    names = draw(st.lists(hosts, min_size=2, max_size=6, unique_by=lambda name: name.canonicalize()))
    hops = draw(st.integers(0, len(names) - 1))
    rows: list[Row] = [
        (names[n], draw(ttls), "CNAME", names[n + 1].to_text()) for n in range(hops) if n + 1 < len(names)
    ]
    kinds = {
        "A": addresses4,
        "AAAA": addresses6,
        "HTTPS": hints(),
        "TXT": st.just('"t"'),
        "TYPE65280": st.just("\\# 2 abcd"),
    }
    extra: list[Row] = []
    for target in (rows, extra):
        for kind in draw(st.lists(st.sampled_from(sorted(kinds)), max_size=6)):
            target.append((draw(st.sampled_from(names)), draw(ttls), kind, draw(kinds[kind])))
    qtype = draw(st.sampled_from(["A", "AAAA", "HTTPS"]))
    message = dns.message.make_response(dns.message.make_query(names[0], qtype))
    for section, entries in ((message.answer, draw(st.permutations(rows))), (message.additional, extra)):
        for owner, ttl, kind, text in entries:
            section.append(dns.rrset.from_text(owner, ttl, "IN", kind, text))
    if draw(st.booleans()):
        message.use_edns(0, 0, 1232)
    return message.to_wire(), names[0], dns.rdatatype.from_text(qtype)


def _given(rdata: dns.rdata.Rdata) -> list[bytes]:
    """The addresses one record names, by dnspython's reading."""
    if rdata.rdtype in (A, AAAA):
        return [packed(rdata.to_text())]
    if rdata.rdtype != HTTPS or getattr(rdata, "priority", 0) == 0:
        return []
    params = getattr(rdata, "params", {})
    return [packed(text) for key in (4, 6) if key in params for text in params[key].addresses]


@settings(max_examples=300)
@given(built())
def test_agrees_with_dnspython(case: tuple[bytes, dns.name.Name, dns.rdatatype.RdataType]) -> None:
    """Addresses in order, chain and TTL of any compressed message are those that dnspython's parser leads to."""
    data, name, qtype = case
    parsed = dns.message.from_wire(data, one_rr_per_rrset=True)
    aliases = {rrset.name.canonicalize(): rrset for rrset in parsed.answer if rrset.rdtype == CNAME}
    chain, seen = [name.canonicalize()], []
    while rrset := aliases.get(chain[-1]):
        seen.append(rrset.ttl)
        chain.append(rrset[0].target.canonicalize())
    addresses: dict[bytes, None] = {}
    for index, rrset in enumerate([*parsed.answer, *parsed.additional]):
        found = _given(rrset[0])
        if rrset.name.canonicalize() in chain:
            addresses.update(dict.fromkeys(found))
            if found or (index < len(parsed.answer) and rrset.rdtype != CNAME):
                seen.append(rrset.ttl)

    asking = read_query(dns.message.make_query(name, qtype).to_wire())
    answer = read_answer(data, asking)
    assert answer.addresses == tuple(addresses)
    assert answer.cnames == tuple(name_text(link.to_wire() or b"") for link in chain[1:])
    assert answer.ttl == min(seen, default=-1)
    assert len(answer.ttl_offsets) == len(parsed.answer) + len(parsed.additional)
    assert (answer.opt is not None) == (parsed.edns == 0)


@st.composite
def nearly_plain(draw: st.DrawFn) -> tuple[bytes, int]:
    """A response whose records are addresses of its question's name, and OPT; perhaps with some octets changed."""
    qtype = draw(st.sampled_from((A, AAAA)))
    addresses = draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    width = 4 if qtype == A else 16
    records = [
        record(AT_QUESTION, qtype, draw(st.sampled_from((0, 5, 300, 1 << 31))), bytes([each]) * width)
        for each in addresses
    ]
    tail = draw(st.sampled_from(([], [opt()], [opt(ttl=1 << 24, data=b"\0\x0a\0\x08" + bytes(8))])))
    data = header(0x8180, 1, len(records), 0, len(tail)) + question(qtype=qtype) + b"".join([*records, *tail])
    changed = bytearray(data)
    for at, octet in draw(st.lists(st.tuples(st.integers(4, len(data) - 1), st.integers(0, 255)), max_size=2)):
        changed[at] = octet
    return bytes(changed[: draw(st.sampled_from((len(data), len(data), len(data) - 1)))]), qtype


@given(nearly_plain())
def test_what_is_read_at_once_is_read_as_ever(case: tuple[bytes, int]) -> None:
    """The short way over a plain answer leads where the long one does, for what it takes and for what it leaves."""
    data, qtype = case
    asked = read_query(header(0x0100, 1, 0, 0, 0) + question(qtype=qtype))

    def outcome() -> object:
        try:
            found = read_answer(data, asked)
        except WireError as error:
            return error.message
        held = found.addresses, found.cnames, found.ttl, found.negative_ttl
        return found.data, found.rcode, found.truncated, found.ttl_offsets, found.opt, held

    quick = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer, "_read_plain", lambda *_: None)
        assert outcome() == quick
