"""Queries: the gate every one passes first, what it asks, and the fresh query that egressd asks in its place.

`read_query` promises: any bytes give a `Question` or `WireError`; anything else is a bug. The twelve octets of the
header and the size are judged before anything else is parsed (dns.md, One query, step 1).
"""

from __future__ import annotations

import struct
from functools import lru_cache
from struct import Struct
from typing import Final

from dnslib import EDNS0, EDNSOption
from dnslib.label import DNSBuffer

from egressd.compiled import mypyc_attr
from egressd.errors import WireError
from egressd.names import Name
from egressd.wire.name import read_name, spell
from egressd.wire.tables import (
    AD,
    BADVERS,
    CD,
    DO,
    FORMERR,
    HEADER,
    MAX_QUERY,
    NAME_AT,
    NOTIMP,
    OPCODE,
    OPT,
    QR,
    RD,
    RECORD,
    RECORD_HEAD,
    UDP_SIZE,
)

__all__ = ["Question", "loop_option", "opt_record", "read_query", "upstream_query"]

_TYPE_CLASS: Final = Struct(">HH")
_OPTION: Final = Struct(">HH")
_CLASSIC: Final = 512
_FLAG_OCTETS: Final = tuple(bytes((bits,)) for bits in range(8))


@mypyc_attr(acyclic=True)
class Question:
    """What one query asks, and how its answer must look."""

    __slots__ = (
        *("checking_disabled", "dnssec_ok", "edns", "key", "name"),
        *("qclass", "qtype", "raw", "recursion_desired", "udp_size"),
    )

    def __init__(  # noqa: PLR0917 - as many as it says of the message; by place, as it is made for every one
        self,
        name: Name,
        qtype: int,
        qclass: int,
        raw: bytes,
        recursion_desired: bool,
        checking_disabled: bool,
        edns: bool,
        dnssec_ok: bool,
        udp_size: int,
        key: bytes,
    ) -> None:
        self.name: Final = name
        self.qtype: Final = qtype
        self.qclass: Final = qclass
        self.raw: Final = raw
        """The question section as received, letter case included: wire name, type, class."""
        self.recursion_desired: Final = recursion_desired
        self.checking_disabled: Final = checking_disabled
        self.edns: Final = edns
        self.dnssec_ok: Final = dnssec_ok
        self.udp_size: Final = udp_size
        """Octets the client takes over UDP, 512 to 4096."""
        self.key: Final = key
        """Wire name in lower case, type, class, one octet of flags (1 DO, 2 CD, 4 RD): equal keys share an answer."""


def read_query(data: bytes) -> Question:
    """Judge and read a query. Raises `WireError`; its `rcode` says what to answer, None means silence.

    Names in the question are never compressed: nothing precedes them. After the counted records nothing may follow.
    """
    flags, additional = _pass_gate(data)
    try:
        wire, at = read_name(data, NAME_AT)
        qtype, qclass = _TYPE_CLASS.unpack_from(data, at)
        size, extended = _read_additional(data, at + 4, additional)
    except WireError as error:
        raise WireError(error.message, error.rcode or FORMERR) from None
    except (IndexError, struct.error):
        raise WireError("the query ends inside a name or a record", FORMERR) from None
    rd, cd, do = flags & RD != 0, flags & CD != 0, extended & DO != 0
    raw = data[NAME_AT : at + 4]
    key = wire + raw[-4:] + _FLAG_OCTETS[do | cd << 1 | rd << 2]
    accepted = _CLASSIC if size < _CLASSIC else min(size, MAX_QUERY)
    return Question(spell(wire), qtype, qclass, raw, rd, cd, size >= 0, do, accepted, key)


def _pass_gate(data: bytes) -> tuple[int, int]:
    """The flags and the number of additional records of what is worth parsing."""
    if len(data) < HEADER.size:
        raise WireError("shorter than a header")
    _, flags, questions, answers, authorities, additional = HEADER.unpack_from(data)
    if flags & QR:
        raise WireError("a response, not a query")
    if flags & OPCODE:
        raise WireError(f"opcode {flags >> 11 & 15} is not QUERY", NOTIMP)
    if questions != 1 or answers or authorities or additional > 2:
        counts = f"{questions}/{answers}/{authorities}/{additional}"
        raise WireError(f"a query has one question and at most two additional records, not {counts}", FORMERR)
    if len(data) > MAX_QUERY:
        raise WireError(f"a query of {len(data)} octets; at most {MAX_QUERY} are taken", FORMERR)
    return flags, additional


def _read_additional(data: bytes, at: int, count: int) -> tuple[int, int]:
    """The UDP size and the flags of the OPT record, (-1, 0) where there is none (RFC 6891 section 6.1)."""
    size, extended = -1, 0
    for _ in range(count):
        owner, head = (b"\0", at + 1) if data[at] == 0 else read_name(data, at)
        rtype, rclass, ttl, length = RECORD.unpack_from(data, head - 2)
        at = head + 10 + length
        if rtype != OPT:
            continue
        if size >= 0 or owner != b"\0":
            raise WireError("a second OPT record, or one whose owner is not the root")
        if ttl >> 16 & 255:
            raise WireError(f"EDNS version {ttl >> 16 & 255} is not known here", BADVERS)
        if length:
            _check_options(data, at - length, at)
        size, extended = rclass, ttl & 0xFFFF
    if at != len(data):
        raise WireError("records end before or behind the end of the query")
    return size, extended


def _check_options(data: bytes, at: int, end: int) -> None:
    """Walk the options of OPT; their values are not used, and never passed on."""
    while at < end:
        at += 4 + _OPTION.unpack_from(data, at)[1]
    if at != end:
        raise WireError("an EDNS option is longer than its record")


def opt_record(rcode: int = 0, *, dnssec_ok: bool = False, options: bytes = b"") -> bytes:
    """An OPT record of ours: size 1232, version 0, the upper eight bits of `rcode`, `options` ready-made."""
    flags = DO if dnssec_ok else 0
    return b"\0" + RECORD_HEAD.pack(OPT, UDP_SIZE, rcode >> 4 << 24 | flags, len(options)) + options


_LOOP_OPTION: Final = 65_313
"""An option code for local use (RFC 6891 section 9)."""


def loop_option(token: bytes) -> bytes:
    """The EDNS option that we put into our own queries: forwarders pass it on, so that one that comes back is known."""
    return _OPTION.pack(_LOOP_OPTION, len(token)) + token


def _heads(additional: int) -> tuple[bytes, ...]:
    """The header of a query behind its ID, for each octet of flags that a key may end with."""
    flags = [AD | (CD if bits & 2 else 0) | (RD if bits & 4 else 0) for bits in range(8)]
    return tuple(HEADER.pack(0, each, 1, 0, 0, additional)[2:] for each in flags)


_HEADS: Final = _heads(0)
_EDNS_HEADS: Final = _heads(1)


@lru_cache(8)
def _our_opt(dnssec_ok: bool, options: bytes) -> bytes:
    """The OPT record of our own queries, with the loop option if it is given; written by dnslib, once for each form."""
    loop = [EDNSOption(int.from_bytes(options[:2], "big"), options[4:])] if options else []
    buffer = DNSBuffer()
    EDNS0(flags="do" if dnssec_ok else "", udp_len=UDP_SIZE, opts=loop).pack(buffer)
    return bytes(buffer.data)


def upstream_query(question: Question, ident: int, edns: bool = True, options: bytes = b"") -> bytes:
    """A fresh query for the same question: RD, CD and DO as asked, our own `options` and none of the client's.

    AD is always set: it asks to be told whether the answer was validated (RFC 6840 section 5.7), which the client
    learns from the bit in the answer as it would have without egressd.
    """
    bits = question.key[-1]
    if not edns:
        return ident.to_bytes(2) + _HEADS[bits] + question.raw
    return ident.to_bytes(2) + _EDNS_HEADS[bits] + question.raw + _our_opt(question.dnssec_ok, options)
