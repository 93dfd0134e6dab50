"""What goes back to the client: the upstream's own bytes put right, or an answer of our own.

Nothing is re-encoded: ID, two flags, the question's letter case and aged TTLs are patched in place, so unknown types,
signatures and compression stay as they are. Only addresses that must be withheld cost a rebuild (`withhold`).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from egressd.wire.answer import Answer
from egressd.wire.query import Question, opt_record
from egressd.wire.tables import AD, CD, EXTRA_TEXT, HEADER, MAX_MESSAGE, OPCODE, QR, RA, RCODE, RD, SERVFAIL, TC
from egressd.wire.withhold import rebuild

__all__ = ["denial", "header_error", "reply"]

_EDE: Final = 15
"""EDNS option code of an Extended DNS Error (RFC 8914 section 2)."""
_START: Final = Struct(">HH")
_TTL: Final = Struct(">I")
_COUNT: Final = Struct(">H")
_OPTION: Final = Struct(">HHH")


def reply(
    answer: Answer,
    question: Question,
    ident: int,
    *,
    udp: bool,
    withheld: frozenset[bytes] = frozenset(),
    age: int = 0,
    floor: int = 0,
) -> bytes:
    """The answer as this client gets it. `answer` was read for a question with the same key; never raises.

    TTLs are lowered by `age` seconds, to `floor` at least (for stale answers, RFC 8767 section 4). OPT is left out for
    a client that sent none, where it is the last record. `withheld` addresses are taken out of every section, and AD
    goes with them: these are no longer the data that were validated. What does not fit becomes a truncated header,
    question and OPT (RFC 6891 section 7), so that TCP follows.
    """
    if answer.truncated:
        return _truncated(answer, question, ident)
    data = answer.data if age <= 0 else _aged(answer, age, floor)
    raw = question.raw
    flags = _flags(answer, question)
    if withheld:
        out = _START.pack(ident, flags & ~AD) + rebuild(data, question, withheld)[4:]
    else:
        if data[12 : 12 + len(raw)] != raw:  # it was asked for another, who spells it otherwise
            data = data[:12] + raw + data[12 + len(raw) :]
        if answer.opt and not question.edns and answer.opt[1] == len(data):
            additional = _COUNT.pack(int.from_bytes(data[10:12]) - 1)
            out = _START.pack(ident, flags) + data[4:10] + additional + data[12 : answer.opt[0]]
        else:
            out = _START.pack(ident, flags) + data[4:]
    if len(out) > (question.udp_size if udp else MAX_MESSAGE):
        return _truncated(answer, question, ident)
    return out


def _flags(answer: Answer, question: Question) -> int:
    """The upstream's flags, but RA is set and RD and CD are the client's own."""
    flags = answer.data[2] << 8 | answer.data[3]
    flags = flags & ~(RD | CD) | RA
    if question.recursion_desired:
        flags |= RD
    if question.checking_disabled:
        flags |= CD
    if answer.rcode > 15 and not question.edns:  # its upper bits are in OPT, which this client does not read
        flags = flags & ~RCODE | SERVFAIL
    return flags


def _aged(answer: Answer, age: int, floor: int) -> bytes:
    """The message with every TTL lowered by `age` seconds, but not below `floor`."""
    data = bytearray(answer.data)
    for offset in answer.ttl_offsets:
        (ttl,) = _TTL.unpack_from(data, offset)
        _TTL.pack_into(data, offset, max(ttl - age, floor) if age < ttl <= 0x7FFFFFFF else floor)
    return bytes(data)


def _truncated(answer: Answer, question: Question, ident: int) -> bytes:
    flags = _flags(answer, question) | TC
    if not question.edns:
        return HEADER.pack(ident, flags, 1, 0, 0, 0) + question.raw
    opt = opt_record(answer.rcode, dnssec_ok=question.dnssec_ok)
    return HEADER.pack(ident, flags, 1, 0, 0, 1) + question.raw + opt


def denial(question: Question, ident: int, rcode: int, ede: int | None = None, text: str = "") -> bytes:
    """An answer of our own without records; `ede` and `text` say why to a client that sent EDNS (RFC 8914).

    The text is cut to 200 octets of UTF-8 at a whole character, so that the longest answer fits 512 octets.
    """
    flags = QR | RA | rcode & RCODE
    if question.recursion_desired:
        flags |= RD
    if question.checking_disabled:
        flags |= CD
    if not question.edns:
        return HEADER.pack(ident, flags, 1, 0, 0, 0) + question.raw
    options = b""
    if ede is not None:
        extra = text.encode("utf-8", "replace")[:EXTRA_TEXT].decode("utf-8", "ignore").encode()
        options = _OPTION.pack(_EDE, 2 + len(extra), ede) + extra
    opt = opt_record(rcode, dnssec_ok=question.dnssec_ok, options=options)
    return HEADER.pack(ident, flags, 1, 0, 0, 1) + question.raw + opt


def header_error(data: bytes, rcode: int) -> bytes:
    """The answer to a query whose question could not be read: its ID, opcode and RD, no question; 12 octets.

    BADVERS (RFC 6891 section 6.1.3) needs an OPT record, which makes it 23. `data` has at least 12 octets.
    """
    ident, flags = _START.unpack_from(data)
    flags = QR | RA | flags & (OPCODE | RD) | rcode & RCODE
    if rcode > RCODE:
        return HEADER.pack(ident, flags, 0, 0, 0, 1) + opt_record(rcode)
    return HEADER.pack(ident, flags, 0, 0, 0, 0)
