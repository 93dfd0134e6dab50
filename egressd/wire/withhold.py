"""Taking addresses out of an answer: the one place where a message is written anew, record by record.

Records move when others leave, so every name that may be compressed (RFC 1035, and the types RFC 3597 section 4
lists) is written out in full, in its own letter case; only the question's name keeps its pointer. Types that are not
known here are copied: no pointer may occur in them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from egressd.errors import WireError
from egressd.wire.name import read_cased_name
from egressd.wire.query import Question
from egressd.wire.svcb import shrink_hints
from egressd.wire.tables import AAAA, HEADER, HTTPS, IN, MAX_MESSAGE, OPT, RECORD, RECORD_HEAD, SVCB, A

__all__ = ["rebuild"]

_NAME: Final = 0
_STRING: Final = -1
_LAYOUTS: Final[dict[int, tuple[int, ...]]] = {
    2: (_NAME,),  # NS
    3: (_NAME,),  # MD
    4: (_NAME,),  # MF
    5: (_NAME,),  # CNAME
    6: (_NAME, _NAME),  # SOA
    7: (_NAME,),  # MB
    8: (_NAME,),  # MG
    9: (_NAME,),  # MR
    12: (_NAME,),  # PTR
    14: (_NAME, _NAME),  # MINFO
    15: (2, _NAME),  # MX
    17: (_NAME, _NAME),  # RP
    18: (2, _NAME),  # AFSDB
    21: (2, _NAME),  # RT
    24: (18, _NAME),  # SIG
    26: (2, _NAME, _NAME),  # PX
    30: (_NAME,),  # NXT
    33: (6, _NAME),  # SRV
    35: (4, _STRING, _STRING, _STRING, _NAME),  # NAPTR
    36: (2, _NAME),  # KX
    39: (_NAME,),  # DNAME
    46: (18, _NAME),  # RRSIG
}
"""What record data of types with names begin with: so many octets, a name, a character-string; the rest is copied."""
_QUESTION_POINTER: Final = b"\xc0\x0c"


class _Record(NamedTuple):
    owner: bytes
    """Uncompressed, as spelled."""
    rtype: int
    rclass: int
    ttl: int
    body: int
    end: int


def _records(data: bytes, at: int, count: int) -> Iterator[_Record]:
    """The records from offset `at` on; `data` was read by `read_answer`, so owners and lengths are sound."""
    for _ in range(count):
        owner, head = read_cased_name(data, at)
        rtype, rclass, ttl, length = RECORD.unpack_from(data, head - 2)
        at = head + 10 + length
        yield _Record(owner, rtype, rclass, ttl, head + 10, at)


def rebuild(data: bytes, question: Question, withheld: frozenset[bytes]) -> bytes:
    """`data`, a message that `read_answer` accepted, with the client's question and without `withheld` addresses.

    Gone are A and AAAA records of any owner and hints that hold such an address, and records whose data are
    malformed or would outgrow their length field; OPT goes where the client sent none. Never raises. The result may
    be longer than 65,535 octets.
    """
    ident, flags, _, *counts = HEADER.unpack_from(data)
    sections: list[list[bytes]] = [[], [], []]
    ends = counts[0], counts[0] + counts[1]
    for index, record in enumerate(_records(data, 12 + len(question.raw), sum(counts))):
        if record.rtype == OPT and not question.edns:
            continue
        rdata = _rdata(data, record, withheld)
        if rdata is None or len(rdata) > MAX_MESSAGE:
            continue
        owner = _QUESTION_POINTER if record.owner.lower() == question.key[: len(question.raw) - 4] else record.owner
        head = RECORD_HEAD.pack(record.rtype, record.rclass, record.ttl, len(rdata))
        sections[(index >= ends[0]) + (index >= ends[1])].append(owner + head + rdata)
    header = HEADER.pack(ident, flags, 1, *map(len, sections))
    return b"".join((header, question.raw, *sections[0], *sections[1], *sections[2]))


def _rdata(data: bytes, record: _Record, withheld: frozenset[bytes]) -> bytes | None:
    """The record's data as they stand on their own, or None where the record must go."""
    _, rtype, rclass, _, body, end = record
    if rclass == IN and rtype in (A, AAAA):
        return None if data[body:end] in withheld else data[body:end]
    try:
        if rclass == IN and rtype in (SVCB, HTTPS):
            return shrink_hints(data, body, end, withheld)
        return _decompressed(data, _LAYOUTS.get(rtype, ()), body, end)
    except (WireError, IndexError, struct.error):
        return None


def _decompressed(data: bytes, layout: tuple[int, ...], at: int, end: int) -> bytes:
    """Record data with every name written out. Raises `WireError` or `IndexError` where they do not fit the layout."""
    parts = []
    for step in layout:
        if step == _NAME:
            part, after = read_cased_name(data, at)
        else:
            after = at + (step if step > 0 else 1 + data[at])
            part = data[at:after]
        if after > end:
            raise WireError("record data are shorter than their type says")
        parts.append(part)
        at = after
    parts.append(data[at:end])
    return b"".join(parts)
