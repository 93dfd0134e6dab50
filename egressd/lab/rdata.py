"""How the lab's DNS server writes names and record data (RFC 1035, 2782, 9460): text or bytes in, wire format out.

Only for data that a test or the demo wrote itself; nothing here reads what comes from a network.
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Final

__all__ = ["TYPES", "name_wire", "rdata", "svcb", "type_number"]

TYPES: Final = {
    "A": 1,
    "NS": 2,
    "CNAME": 5,
    "SOA": 6,
    "PTR": 12,
    "MX": 15,
    "TXT": 16,
    "AAAA": 28,
    "SRV": 33,
    "SVCB": 64,
    "HTTPS": 65,
    "ANY": 255,
}

_ESCAPE: Final = re.compile(rb"\\(\d{3})")


def type_number(qtype: str | int) -> int:
    """A record type by its mnemonic, by `TYPE65280` (RFC 3597), or as the number it is."""
    if isinstance(qtype, int):
        return qtype
    return int(qtype[4:]) if qtype.startswith("TYPE") else TYPES[qtype]


def name_wire(name: str) -> bytes:
    """A name without compression; a trailing dot is optional, `\\DDD` stands for any octet."""
    wire = b""
    for label in name.rstrip(".").encode().split(b"."):
        octets = _ESCAPE.sub(lambda escape: bytes((int(escape[1]),)), label)
        wire += bytes((len(octets),)) + octets if octets else b""
    return wire + b"\0"


def svcb(priority: int, target: str, parameters: Mapping[int, bytes] | None = None) -> bytes:
    """Record data of HTTPS and SVCB (RFC 9460 section 2.2); parameter 4 is ipv4hint, 6 ipv6hint, 1 alpn, 5 ech."""
    items = sorted((parameters or {}).items())
    encoded = b"".join(struct.pack("!HH", key, len(value)) + value for key, value in items)
    return struct.pack("!H", priority) + name_wire(target) + encoded


def rdata(qtype: int, value: str | bytes) -> bytes:
    """The record data of `value`: bytes as they are, text as a zone file would have it."""
    return value if isinstance(value, bytes) else _ENCODERS[qtype](value)


def _mx(text: str) -> bytes:
    preference, exchange = text.split()
    return struct.pack("!H", int(preference)) + name_wire(exchange)


def _srv(text: str) -> bytes:
    *numbers, target = text.split()
    return struct.pack("!HHH", *map(int, numbers)) + name_wire(target)


def _soa(text: str) -> bytes:
    primary, mailbox, *numbers = text.split()
    return name_wire(primary) + name_wire(mailbox) + struct.pack("!5I", *map(int, numbers))


def _txt(text: str) -> bytes:
    octets = text.encode()
    pieces = [octets[start : start + 255] for start in range(0, len(octets), 255)] or [b""]
    return b"".join(bytes((len(piece),)) + piece for piece in pieces)


_ENCODERS: Final[dict[int, Callable[[str], bytes]]] = {
    TYPES["A"]: lambda text: socket.inet_pton(socket.AF_INET, text),
    TYPES["AAAA"]: lambda text: socket.inet_pton(socket.AF_INET6, text),
    TYPES["NS"]: name_wire,
    TYPES["CNAME"]: name_wire,
    TYPES["PTR"]: name_wire,
    TYPES["MX"]: _mx,
    TYPES["SRV"]: _srv,
    TYPES["SOA"]: _soa,
    TYPES["TXT"]: _txt,
}
