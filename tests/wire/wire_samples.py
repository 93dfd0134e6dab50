"""DNS messages made by hand, octet by octet: nothing here uses the code under test.

A record is `record(owner, type, ttl, data)` with a wire name (`wire("api.example.com")`) or a pointer (`pointer(12)`)
as owner; `response(...)` puts records behind a question.
"""

from __future__ import annotations

import struct
from ipaddress import ip_address
from typing import Final

from egressd.wire import Question, read_query

A: Final = 1
CNAME: Final = 5
SOA: Final = 6
MX: Final = 15
TXT: Final = 16
AAAA: Final = 28
OPT: Final = 41
HTTPS: Final = 65
IDENT: Final = 0x1234
AT_QUESTION: Final = b"\xc0\x0c"


def wire(name: str) -> bytes:
    """A plain name on the wire, uncompressed."""
    labels = [label.encode() for label in name.split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def pointer(offset: int) -> bytes:
    """A compression pointer."""
    return struct.pack(">H", 0xC000 | offset)


def packed(address: str) -> bytes:
    """An address as DNS carries it."""
    return ip_address(address).packed


def record(owner: bytes, rtype: int, ttl: int, data: bytes, rclass: int = 1) -> bytes:
    """One resource record."""
    return owner + struct.pack(">HHIH", rtype, rclass, ttl, len(data)) + data


def opt(size: int = 1232, ttl: int = 0, data: bytes = b"") -> bytes:
    """An OPT record: `ttl` holds extended rcode, version and flags."""
    return record(b"\0", OPT, ttl, data, size)


def question(name: str = "api.example.com", qtype: int = A, qclass: int = 1) -> bytes:
    """A question section."""
    return wire(name) + struct.pack(">HH", qtype, qclass)


def header(flags: int, *counts: int) -> bytes:
    """A header with our usual ID and the four counts."""
    return struct.pack(">HHHHHH", IDENT, flags, *counts)


def query(
    *additional: bytes, name: str = "api.example.com", qtype: int = A, qclass: int = 1, flags: int = 0x0100
) -> bytes:
    """A query as a stub resolver sends it."""
    return header(flags, 1, 0, 0, len(additional)) + question(name, qtype, qclass) + b"".join(additional)


def asked(
    name: str = "api.example.com", qtype: int = A, *, edns: bool = True, qclass: int = 1, size: int = 1232
) -> Question:
    """The `Question` of such a query."""
    return read_query(query(*((opt(size),) if edns else ()), name=name, qtype=qtype, qclass=qclass))


def response(
    *answers: bytes,
    authority: tuple[bytes, ...] = (),
    additional: tuple[bytes, ...] = (),
    name: str = "api.example.com",
    qtype: int = A,
    qclass: int = 1,
    flags: int = 0x8180,
) -> bytes:
    """A response whose question stands at offset 12."""
    head = header(flags, 1, len(answers), len(authority), len(additional))
    return head + question(name, qtype, qclass) + b"".join(answers + authority + additional)


def service(priority: int, target: bytes, *parameters: tuple[int, bytes]) -> bytes:
    """The data of an SVCB or HTTPS record."""
    body = b"".join(struct.pack(">HH", key, len(value)) + value for key, value in parameters)
    return struct.pack(">H", priority) + target + body


def soa(minimum: int) -> bytes:
    """The data of an SOA record."""
    return wire("ns.example.com") + wire("admin.example.com") + struct.pack(">IIIII", 1, 2, 3, 4, minimum)
