"""Queries: what passes the gate, how it is read, what is asked upstream in its place; dnspython is the witness."""

from __future__ import annotations

import re

import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import IDENT, A, asked, header, opt, pointer, query, question, record, wire

from egressd.errors import WireError
from egressd.names import ROOT
from egressd.wire import MAX_QUERY, UDP_SIZE, rcode_text, read_query, type_text, upstream_query

LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
"""255 octets on the wire."""

REFUSED = {
    "nothing": (b"", None),
    "eleven octets": (b"\0" * 11, None),
    "a response": (query(flags=0x8100), None),
    "a response with a strange opcode": (query(flags=0xA900), None),
    "opcode NOTIFY": (query(flags=0x2000), 4),
    "opcode UPDATE": (query(flags=0x2800), 4),
    "opcode before counts": (header(0x2800, 0, 0, 0, 0), 4),
    "no question": (header(0x0100, 0, 0, 0, 0), 1),
    "two questions": (header(0x0100, 2, 0, 0, 0) + question() * 2, 1),
    "an answer": (header(0x0100, 1, 1, 0, 0) + question() + record(wire("a"), A, 1, b"\0" * 4), 1),
    "an authority": (header(0x0100, 1, 0, 1, 0) + question() + record(wire("a"), A, 1, b"\0" * 4), 1),
    "three additional": (query(opt(), *(record(b"\0", 250, 0, b""),) * 2), 1),
    "too long": (query(opt(data=b"\0\x0c\x0f\xf0" + b"\0" * 4080)), 1),
    "header alone": (header(0x0100, 1, 0, 0, 0), 1),
    "ends in name": (query()[:20], 1),
    "ends in class": (query()[:-1], 1),
    "octets behind": (query() + b"\0", 1),
    "octets behind opt": (query(opt()) + b"\0", 1),
    "opt missing": (header(0x0100, 1, 0, 0, 1) + question(), 1),
    "opt cut": (query(opt())[:-1], 1),
    "opt data cut": (query(opt(data=b"\0\x0a\0\x08"))[:-1], 1),
    "opt twice": (query(opt(), opt()), 1),
    "opt with a name": (query(b"\1a" + opt()), 1),
    "option longer than opt": (query(opt(data=b"\0\x0a\0\x08abc")), 1),
    "edns version 1": (query(opt(ttl=0x00010000)), 16),
    "edns version 255": (query(opt(ttl=0x00FF8000)), 16),
    "pointer to itself": (header(0x0100, 1, 0, 0, 0) + pointer(12) + b"\0\1\0\1", 1),
    "pointer into the header": (header(0x0100, 1, 0, 0, 0) + b"\1a" + pointer(4) + b"\0\1\0\1", 1),
    "pointer forward": (header(0x0100, 1, 0, 0, 0) + pointer(18) + b"\0\1\0\1", 1),
    "label type 01": (header(0x0100, 1, 0, 0, 0) + b"\x41a\0\0\1\0\1", 1),
    "label type 10": (header(0x0100, 1, 0, 0, 0) + b"\x81a\0\0\1\0\1", 1),
    "name of 256 octets": (query(name=LONGEST + "d"), 1),
    "name of labels without end": (header(0x0100, 1, 0, 0, 0) + b"\1a" * 1000, 1),
}


@pytest.mark.parametrize(("data", "rcode"), REFUSED.values(), ids=REFUSED.keys())
def test_gate(data: bytes, rcode: int | None) -> None:
    """What no stub resolver sends is refused with the rcode that dns.md names, or met with silence."""
    with pytest.raises(WireError) as caught:
        read_query(data)
    assert caught.value.rcode == rcode


def test_plain_query() -> None:
    """The usual query is read into its fields."""
    asking = read_query(query(name="API.Example.com"))
    assert asking.name == "api.example.com"
    assert (asking.qtype, asking.qclass) == (1, 1)
    assert asking.raw == question("API.Example.com")
    assert asking.key == question("api.example.com") + b"\4"
    assert asking.recursion_desired
    assert [asking.checking_disabled, asking.edns, asking.dnssec_ok] == [False] * 3
    assert asking.udp_size == 512


NAMES = {
    "root": (b"\0", ROOT),
    "underscores": (wire("_dmarc._TCP.example"), "_dmarc._tcp.example"),
    "a dot inside a label": (b"\3a.b\7example\0", "a\\046b.example"),
    "a label of one dot": (b"\1.\1.\0", "\\046.\\046"),
    "star": (wire("*.example"), "\\042.example"),
    "octets": (b"\4\0\xff\\A\0", "\\000\\255\\092a"),
    "longest": (wire(LONGEST), LONGEST),
}


@pytest.mark.parametrize(("name", "text"), NAMES.values(), ids=NAMES.keys())
def test_names(name: bytes, text: str) -> None:
    """Every legal name is spelled canonically, label by label."""
    asking = read_query(header(0x0100, 1, 0, 0, 0) + name + b"\0\1\0\1")
    assert asking.name == text


SIZES = [(0, 512), (511, 512), (512, 512), (1232, 1232), (4096, 4096), (65_535, 4096)]


@pytest.mark.parametrize(("advertised", "taken"), SIZES)
def test_udp_size(advertised: int, taken: int) -> None:
    """The advertised size counts between 512 and 4096, and even 0 is EDNS."""
    asking = read_query(query(opt(advertised, ttl=0x8000, data=b"\0\x0a\0\2ab")))
    assert (asking.udp_size, asking.edns, asking.dnssec_ok) == (taken, True, True)


def test_other_additional_record() -> None:
    """A record beside OPT, such as TSIG, is passed over, on either side of it."""
    extra = record(wire("key.example"), 250, 0, b"x" * 30, 255)
    assert read_query(query(extra, opt(900))).udp_size == 900
    assert read_query(query(opt(900), extra)).udp_size == 900
    assert not read_query(query(extra)).edns


def test_compressed_opt_owner() -> None:
    """An OPT owner that is a pointer to a root octet is the root."""
    root_at = 12 + len(wire("api.example.com")) - 1
    assert read_query(query(pointer(root_at) + opt(900)[1:])).udp_size == 900


def test_size_at_the_limit() -> None:
    """A query of exactly 4096 octets is read."""
    room = MAX_QUERY - len(query(opt(data=b"\0\x0c\0\0")))
    data = query(opt(data=b"\0\x0c" + room.to_bytes(2) + b"\0" * room))
    assert len(data) == MAX_QUERY
    assert read_query(data).edns


def test_key_separates_what_answers_differ_in() -> None:
    """Type, class, DO, CD and RD make keys differ; letter case, options and size do not."""
    base = asked().key
    same = [query(opt(4096, data=b"\0\x0a\0\2ab"), name="aPI.eXample.COM"), query()]
    other = [
        query(opt(ttl=0x8000)),
        query(flags=0x0110),
        query(flags=0),
        query(qtype=28),
        query(qclass=3),
        query(name="api.example.org"),
    ]
    assert {read_query(data).key for data in same} == {base}
    assert len({read_query(data).key for data in other} | {base}) == len(other) + 1


def test_type_octets_keep_their_value_in_the_key() -> None:
    """Type 65 is `A` as an octet, and must not be lowered with the name."""
    assert read_query(query(qtype=65)).key != read_query(query(qtype=97)).key


@given(
    flags=st.sampled_from([0, 0x0100, 0x0010, 0x0110]),
    do=st.booleans(),
    edns=st.booleans(),
    ident=st.integers(0, 65_535),
)
def test_upstream_query(flags: int, do: bool, edns: bool, ident: int) -> None:
    """The query asked upstream carries RD, CD and DO as asked and none of the client's options."""
    client = query(opt(4000, ttl=0x8000 if do else 0, data=b"\0\x0a\0\2ab"), name="API.example.com", flags=flags)
    data = upstream_query(read_query(client), ident, edns)
    sent = dns.message.from_wire(data)
    assert sent.id == ident
    assert sent.flags & 0x0110 == flags
    assert data[12 : 12 + len(question())] == question("API.example.com")
    assert (sent.edns, sent.payload, bool(sent.ednsflags)) == ((0, UDP_SIZE, do) if edns else (-1, 0, False))
    assert not sent.options
    assert read_query(data).name == "api.example.com"


labels = st.one_of(
    st.text("abcXYZ019-_", min_size=1, max_size=8).map(str.encode),
    st.binary(min_size=1, max_size=8),
    st.binary(min_size=63, max_size=63),
)
names = st.lists(labels, max_size=5).filter(lambda parts: sum(map(len, parts)) + len(parts) < 255)


def _labels_of(text: str) -> list[bytes]:
    def octet(match: re.Match[bytes]) -> bytes:
        return bytes((int(match[1]),))

    return [] if text == "." else [re.sub(rb"\\(\d{3})", octet, part.encode()) for part in text.split(".")]


@settings(max_examples=300)
@given(
    parts=names,
    qtype=st.integers(1, 65_535).filter(lambda n: n not in (251, 252)),
    qclass=st.sampled_from([1, 3, 4, 255]),
    edns=st.booleans(),
    payload=st.integers(0, 65_535),
    do=st.booleans(),
    cd=st.booleans(),
    rd=st.booleans(),
)
def test_agrees_with_dnspython(
    parts: list[bytes], qtype: int, qclass: int, edns: bool, payload: int, do: bool, cd: bool, rd: bool
) -> None:
    """Any query dnspython writes is read into the same fields."""
    name = dns.name.Name([*parts, b""])
    message = dns.message.QueryMessage(id=IDENT)
    message.flags = (dns.flags.RD if rd else 0) | (dns.flags.CD if cd else 0)
    kind = dns.rdataclass.RdataClass.make(qclass), dns.rdatatype.RdataType.make(qtype)
    message.find_rrset(message.question, name, *kind, create=True)
    if edns:
        message.use_edns(0, dns.flags.DO if do else 0, payload)
    data = message.to_wire()
    asking = read_query(data)
    assert _labels_of(asking.name) == [part.lower() for part in parts]
    assert asking.key[:-5] == name.canonicalize().to_wire()
    assert asking.raw[:-4] == name.to_wire()
    assert asking.raw[-4:] == asking.key[-5:-1] == qtype.to_bytes(2) + qclass.to_bytes(2)
    assert (asking.qtype, asking.qclass) == (qtype, qclass)
    assert (asking.recursion_desired, asking.checking_disabled) == (rd, cd)
    assert (asking.edns, asking.dnssec_ok) == (edns, edns and do)
    assert asking.udp_size == (min(max(payload, 512), 4096) if edns else 512)


def test_spelling_of_numbers() -> None:
    """Known types and rcodes have their IANA names, others their number."""
    assert [type_text(n) for n in (1, 28, 65, 255, 65_280)] == ["A", "AAAA", "HTTPS", "ANY", "TYPE65280"]
    assert [rcode_text(n) for n in (0, 3, 16, 3841)] == ["NOERROR", "NXDOMAIN", "BADVERS", "RCODE3841"]
