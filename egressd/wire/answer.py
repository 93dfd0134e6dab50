"""Answers: our own bounded reader of what an upstream sent (dns.md, One query, step 5).

`read_answer` promises: any bytes give an `Answer` or `WireError`; anything else is a bug. It walks every record once
and keeps no object per record but the addresses themselves. Addresses count only where their owner is the question's
name or stands on the CNAME chain that starts there; everything else in the message is carried, never believed.
"""

from __future__ import annotations

import struct
from typing import Final

from egressd.compiled import mypyc_attr
from egressd.errors import WireError
from egressd.names import Name
from egressd.wire.name import name_text, read_name
from egressd.wire.query import Question
from egressd.wire.svcb import read_hints
from egressd.wire.tables import (
    AAAA,
    ANY,
    CNAME,
    HEADER,
    HTTPS,
    IN,
    MAX_HOPS,
    MAX_MESSAGE,
    MAX_RECORDS,
    NAME_AT,
    OPCODE,
    OPT,
    QR,
    RECORD,
    SOA,
    SVCB,
    TC,
    A,
)

__all__ = ["Answer", "read_answer"]

_WIDTHS: Final = {A: 4, AAAA: 16}
_GRANTING: Final = frozenset((A, AAAA, SVCB, HTTPS, ANY))
"""Question types whose answers name addresses to connect to; PTR, SRV, TXT, MX grant nothing (dns.md)."""
_HINTED: Final = frozenset((SVCB, HTTPS))
_LARGEST_TTL: Final = 0x7FFFFFFF
"""A TTL with the top bit set counts as zero (RFC 2181 section 8)."""
_QUESTION_POINTER: Final = 0xC00C
"""Pointer to offset 12, the question's name: the usual owner of an answer record."""
_ADDRESS_RECORDS: Final = {A: struct.Struct(">HHHIH4s"), AAAA: struct.Struct(">HHHIH16s")}
"""A record that holds an address and whose owner is a pointer: that, type, class, TTL, length, address."""
_OPT_START: Final = b"\0\0\x29"
"""How OPT begins: the root as its owner, and its type."""


@mypyc_attr(acyclic=True)
class Answer:
    """What one answer says, beside its untouched bytes. Addresses are packed, TTLs are seconds, -1 for none."""

    __slots__ = ("addresses", "cnames", "data", "negative_ttl", "opt", "rcode", "truncated", "ttl", "ttl_offsets")

    def __init__(  # noqa: PLR0917 - as many as it says of the message; by place, as it is made for every one
        self,
        data: bytes,
        rcode: int,
        truncated: bool,
        addresses: tuple[bytes, ...],
        cnames: tuple[Name, ...],
        ttl: int,
        negative_ttl: int,
        ttl_offsets: tuple[int, ...],
        opt: tuple[int, int] | None,
    ) -> None:
        self.data: Final = data
        self.rcode: Final = rcode
        """All twelve bits, the upper eight from OPT."""
        self.truncated: Final = truncated
        """TC was set; then nothing behind the question is read or ever passed on (RFC 2181 section 9)."""
        self.addresses: Final = addresses
        """A, AAAA and hints of the question's name and its chain: each once, as they come."""
        self.cnames: Final = cnames
        """The chain behind the question's name, in order."""
        self.ttl: Final = ttl
        """Smallest TTL of the chain's records in the answer section and of every record that gave an address."""
        self.negative_ttl: Final = negative_ttl
        """How long the absence of data may be believed: the lesser of SOA's TTL and MINIMUM (RFC 2308 section 5)."""
        self.ttl_offsets: Final = ttl_offsets
        """Offset in `data` of every TTL but OPT's."""
        self.opt: Final = opt
        """Offsets in `data` where the OPT record starts and ends."""


@mypyc_attr(acyclic=True)
class _Reading:
    """What one walk over a message gathers; lives no longer than the call."""

    __slots__ = ("aliases", "data", "extended", "grants", "held", "known", "negative_ttl", "offsets", "opt", "question")

    def __init__(self, data: bytes, question: bytes, grants: bool) -> None:
        self.data = data
        self.question = question
        """The question's wire name."""
        self.grants = grants
        self.known = {_QUESTION_POINTER: question}
        """Names already read, by the pointer that leads to them."""
        self.aliases: dict[bytes, tuple[bytes, int]] = {}
        """Target and TTL of each CNAME, by owner."""
        self.held: list[tuple[bytes, int, bytes]] = []
        """Owner, TTL and address of what may count once the chain is known; the address is empty for other records."""
        self.offsets: list[int] = []
        self.negative_ttl = -1
        self.opt: tuple[int, int] | None = None
        self.extended = 0


def read_answer(data: bytes, question: Question, max_records: int = MAX_RECORDS) -> Answer:
    """Read an upstream's reply to exactly `question` (type, class, name without regard to case).

    Raises `WireError` for anything else, and for anything malformed: more than `max_records` records, more than 16
    hops, a chain that loops, octets behind the last record.
    """
    flags, answers, authorities, additional = _pass_gate(data, question)
    if flags & TC:
        return Answer(data, flags & 15, True, (), (), -1, -1, (), None)
    if answers + authorities + additional > max_records:
        raise WireError(f"{answers + authorities + additional} records in one answer; at most {max_records} are read")
    size = len(question.raw)
    if question.qtype in _WIDTHS and question.qclass == IN and answers and not authorities and additional <= 1:
        plain = _read_plain(data, NAME_AT + size, question.qtype, answers, additional)
        if plain is not None:
            return plain
    grants = question.qclass == IN and question.qtype in _GRANTING
    reading = _Reading(data, question.key[: size - 4], grants)
    at = NAME_AT + size
    try:
        if answers:
            at = _read_answers(reading, at, answers, question.qclass)
        if authorities:
            at = _read_authorities(reading, at, authorities)
        if additional:
            at = _read_additional(reading, at, additional)
    except (IndexError, struct.error):
        raise WireError("the answer ends inside a record") from None
    if at != len(data):
        raise WireError("records end before or behind the end of the answer")
    return _conclude(reading, flags & 15)


def _read_plain(data: bytes, at: int, qtype: int, answers: int, additional: int) -> Answer | None:
    """The usual answer, read at once: addresses of the question's own name, and OPT at most. None for any other."""
    step = 12 + _WIDTHS[qtype]
    end, size = at + answers * step, len(data)
    opt: tuple[int, int] | None = None
    rcode = data[3] & 15
    if additional:
        if (
            size < end + 11
            or data[end : end + 3] != _OPT_START
            or (data[end + 9] << 8 | data[end + 10]) + end + 11 != size
        ):
            return None
        opt = end, size
        rcode |= data[end + 5] << 4
    elif end != size:
        return None
    addresses: dict[bytes, None] = {}
    least = _LARGEST_TTL
    for pointer, rtype, rclass, ttl, length, address in _ADDRESS_RECORDS[qtype].iter_unpack(data[at:end]):
        if pointer != _QUESTION_POINTER or rtype != qtype or rclass != IN or length != step - 12:
            return None
        least = min(least, ttl if ttl <= _LARGEST_TTL else 0)
        addresses[address] = None
    return Answer(data, rcode, False, tuple(addresses), (), least, -1, tuple(range(at + 6, end, step)), opt)


def _pass_gate(data: bytes, question: Question) -> tuple[int, int, int, int]:
    """Flags and record counts of what answers this very question."""
    if not HEADER.size <= len(data) <= MAX_MESSAGE:
        raise WireError(f"a message of {len(data)} octets")
    _, flags, questions, answers, authorities, additional = HEADER.unpack_from(data)
    if flags & (QR | OPCODE) != QR:
        raise WireError("not a response to a QUERY")
    raw = question.raw
    if questions != 1:
        raise WireError(f"{questions} questions in an answer")
    if not data.startswith(raw, NAME_AT):
        kind = 8 + len(raw)
        if data[kind : kind + 4] != raw[-4:] or data[NAME_AT:kind].lower() != raw[:-4].lower():
            raise WireError("an answer to another question")
    return flags, answers, authorities, additional


def _read_head(reading: _Reading, at: int) -> tuple[bytes, int, int, int, int, int]:
    """Owner, type, class, TTL as sent, and the bounds of the record data, for the record at offset `at`."""
    data = reading.data
    first = data[at]
    if first >= 192:
        pointer = first << 8 | data[at + 1]
        owner = reading.known.get(pointer)
        if owner is None:
            owner = reading.known[pointer] = read_name(data, at)[0]
        head = at
    elif first:
        owner, head = read_name(data, at)
        head -= 2
    else:
        owner, head = b"\0", at - 1
    rtype, rclass, ttl, length = RECORD.unpack_from(data, head)
    end = head + 12 + length
    if end > len(data):
        raise WireError("a record is longer than its message")
    if rtype != OPT:
        reading.offsets.append(head + 6)
    return owner, rtype, rclass, ttl if ttl <= _LARGEST_TTL else 0, head + 12, end


def _read_answers(reading: _Reading, at: int, count: int, qclass: int) -> int:
    """Walk the answer section: aliases, addresses, and the TTL of all else. Returns the offset behind it."""
    data, held, grants = reading.data, reading.held, reading.grants
    for _ in range(count):
        owner, rtype, rclass, ttl, body, at = _read_head(reading, at)
        if rtype == OPT:
            raise WireError("an OPT record in the answer section")
        if qclass not in (rclass, ANY):
            held.append((owner, ttl, b""))
        elif rtype in _WIDTHS and rclass == IN:
            if at - body != _WIDTHS[rtype]:
                raise WireError(f"an address of {at - body} octets")
            held.append((owner, ttl, data[body:at] if grants else b""))
        elif rtype == CNAME:
            _read_alias(reading, owner, ttl, body, at)
        else:
            held.append((owner, ttl, b""))
            if grants and rtype in _HINTED:
                held.extend((owner, ttl, hint) for hint in read_hints(data, body, at))
    return at


def _read_alias(reading: _Reading, owner: bytes, ttl: int, body: int, end: int) -> None:
    """Take in one CNAME. Two that disagree are an error (RFC 2181 section 10.1): which one would the pod follow?"""
    target, after = read_name(reading.data, body)
    if after != end:
        raise WireError("a CNAME record holds more or less than a name")
    known, least = reading.aliases.get(owner, (target, ttl))
    if known != target:
        raise WireError("two CNAME records of one name disagree")
    reading.aliases[owner] = target, min(ttl, least)
    if after - body == len(target) and body < 0x4000:  # uncompressed: the pointer to it is the only hop
        reading.known[0xC000 | body] = target


def _read_authorities(reading: _Reading, at: int, count: int) -> int:
    """Walk the authority section for the SOA record of a negative answer. Returns the offset behind it."""
    for _ in range(count):
        _, rtype, _, ttl, body, at = _read_head(reading, at)
        if rtype == OPT:
            raise WireError("an OPT record in the authority section")
        if rtype != SOA:
            continue
        if read_name(reading.data, read_name(reading.data, body)[1])[1] != at - 20:
            raise WireError("an SOA record of the wrong length")
        minimum = int.from_bytes(reading.data[at - 4 : at])
        least = min(ttl, minimum if minimum <= _LARGEST_TTL else 0)
        reading.negative_ttl = min(least, reading.negative_ttl) if reading.negative_ttl >= 0 else least
    return at


def _read_additional(reading: _Reading, at: int, count: int) -> int:
    """Walk the additional section: OPT, and addresses of the chain (RFC 9460 section 4.1). Returns its end."""
    data, grants = reading.data, reading.grants
    for _ in range(count):
        start = at
        owner, rtype, rclass, ttl, body, at = _read_head(reading, at)
        if rtype == OPT:
            if reading.opt or owner != b"\0":
                raise WireError("a second OPT record, or one whose owner is not the root")
            reading.opt, reading.extended = (start, at), data[body - 6] << 4
        elif rclass == IN and rtype in _WIDTHS:
            if at - body != _WIDTHS[rtype]:
                raise WireError(f"an address of {at - body} octets")
            if grants:
                reading.held.append((owner, ttl, data[body:at]))
        elif grants and rclass == IN and rtype in _HINTED:
            reading.held.extend((owner, ttl, hint) for hint in read_hints(data, body, at))
    return at


def _follow(name: bytes, aliases: dict[bytes, tuple[bytes, int]]) -> tuple[list[bytes], int]:
    """The names from `name` on, it included, and the smallest TTL of the CNAME records between them."""
    chain, least = [name], -1
    while alias := aliases.get(chain[-1]):
        target, ttl = alias
        if target in chain:
            raise WireError("a CNAME chain loops")
        if len(chain) > MAX_HOPS:
            raise WireError(f"a CNAME chain of more than {MAX_HOPS} hops")
        chain.append(target)
        least = ttl if least < 0 else min(ttl, least)
    return chain, least


def _conclude(reading: _Reading, rcode: int) -> Answer:
    """Keep what is owned by a name on the chain."""
    chain, least = _follow(reading.question, reading.aliases) if reading.aliases else ([reading.question], -1)
    addresses: dict[bytes, None] = {}
    for owner, ttl, address in reading.held:
        if owner in chain:
            if ttl < least or least < 0:
                least = ttl
            if address:
                addresses[address] = None
    rcode |= reading.extended
    cnames = tuple(map(name_text, chain[1:]))
    offsets = tuple(reading.offsets)
    return Answer(
        reading.data, rcode, False, tuple(addresses), cnames, least, reading.negative_ttl, offsets, reading.opt
    )
