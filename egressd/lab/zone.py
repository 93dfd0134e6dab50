"""What the lab's DNS server knows: a script of names, written by a test or the demo at any time, from any thread.

    zone.add("api.example.com", "A", "203.0.113.10", ttl=30)
    zone.add("*.cdn.example", "CNAME", "edge.example.com")
    zone.rotate("s3.example.com", pool, count=8, ttl=5)          # another slice of the pool in every answer
    zone.add("odd.example", 65280, b"any record data")
    zone.behave("slow.example.com", delay_s=0.5, drop=2, forge=("wrong-id", "wrong-port"))

A name that is not there is NXDOMAIN, one without the type asked is NOERROR without records, both with a SOA. Answers
are rendered once and kept until the zone changes.
"""

from __future__ import annotations

import itertools
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from egressd.lab.rdata import TYPES, name_wire, rdata, type_number

__all__ = ["FORGERIES", "Behaviour", "Query", "Sections", "Zone", "address_data", "question_text"]

FORGERIES: Final = ("wrong-id", "wrong-question", "wrong-port", "wrong-address", "garbage")
"""False answers sent before the true one: other ID, other question, from another port or address, random octets."""

MAX_HOPS: Final = 32
"""CNAMEs followed in one answer; more than any resolver accepts, so that tests can exceed what egressd does."""


class Query(NamedTuple):
    """One question as the server saw it. `name` is lower-case text; `case` is the name's letters as sent."""

    time: float
    """Seconds, monotonic clock."""
    name: str
    qtype: int
    transport: str
    source: str
    source_port: int
    server: str
    ident: int
    udp_size: int
    """What the client takes over UDP; 512 without EDNS."""
    edns: bool
    case: bytes
    data: bytes
    """The whole message."""


class Sections(NamedTuple):
    """A rendered answer behind its question: response code, record counts, octets."""

    rcode: int
    answers: int
    authorities: int
    octets: bytes


@dataclass(slots=True)
class Behaviour:
    """How a name misbehaves. `script` gives the messages to send by itself, and everything else is ignored."""

    delay_s: float = 0.0
    drop: int = 0
    """Queries still to be left unanswered; counts down."""
    rcode: int | None = None
    """Answer with this code and no records."""
    truncate: bool = False
    """Every UDP answer is truncated."""
    no_edns: bool = False
    """FORMERR to every query with an OPT record."""
    forge: tuple[str, ...] = ()
    forged: str = "198.51.100.66"
    """The address that forged answers carry."""
    script: Callable[[Query], Sequence[bytes]] | None = None


@dataclass(slots=True)
class _Records:
    ttl: int
    values: tuple[bytes, ...]
    count: int = 0
    """More than 0: rotate, so many per answer."""
    turn: Iterator[int] = field(default_factory=itertools.count)

    def take(self) -> tuple[bytes, ...]:
        if not self.count:
            return self.values
        start = next(self.turn) * self.count
        return tuple(self.values[(start + i) % len(self.values)] for i in range(self.count))


class Zone:
    """Names and what is said of them. Every method may be called while the server runs."""

    def __init__(self) -> None:
        self._names: dict[str, dict[int, _Records]] = {}
        self._behaviours: dict[str, Behaviour] = {}
        self._rendered: dict[tuple[bytes, int], Sections] = {}
        self.negative_ttl = 30
        """Seconds: TTL and minimum of the SOA record in negative answers."""

    def add(self, name: str, qtype: str | int, *values: str | bytes, ttl: int = 30) -> None:
        """Set the records of a name and type, replacing older ones. `*.example.com` matches all deeper names."""
        number = type_number(qtype)
        self._put(name, number, _Records(ttl, tuple(rdata(number, value) for value in values)))

    def rotate(self, name: str, pool: Sequence[str], *, count: int, ttl: int = 5) -> None:
        """Answer with the next `count` addresses of `pool` each time; IPv4 and IPv6 addresses rotate apart."""
        for number, separator in ((TYPES["A"], "."), (TYPES["AAAA"], ":")):
            values = tuple(rdata(number, address) for address in pool if separator in address)
            if values:
                self._put(name, number, _Records(ttl, values, min(count, len(values))))

    def remove(self, name: str) -> None:
        """Forget a name, its records and its behaviour."""
        self._names.pop(_key(name), None)
        self._behaviours.pop(_key(name), None)
        self._rendered = {}

    def behave(
        self,
        name: str,
        *,
        delay_s: float = 0.0,
        drop: int = 0,
        rcode: int | None = None,
        truncate: bool = False,
        no_edns: bool = False,
        forge: tuple[str, ...] = (),
        forged: str = "198.51.100.66",
        script: Callable[[Query], Sequence[bytes]] | None = None,
    ) -> None:
        """Make a name misbehave (`Behaviour`); `*` is every name that has no behaviour of its own."""
        unknown = set(forge) - set(FORGERIES)
        if unknown:
            raise ValueError(f"no such forgery: {', '.join(sorted(unknown))}")
        self._behaviours[_key(name)] = Behaviour(delay_s, drop, rcode, truncate, no_edns, forge, forged, script)

    def behaviour(self, name: str) -> Behaviour | None:
        """How a name misbehaves, or None."""
        found = self._behaviours
        return (found.get(name) or found.get("*")) if found else None

    def sections(self, question: bytes, name: str, qtype: int) -> Sections:
        """The answer to a question (`question`: its wire name) as octets that follow a 12-octet header and it."""
        key = (question.lower(), qtype)
        known = self._rendered.get(key)
        if known is not None:
            return known
        cache = self._rendered
        found, fixed = self._render(question, name, qtype)
        if fixed:
            cache[key] = found
        return found

    # ----------------------------------------------------------------------------------- rendering

    def _put(self, name: str, number: int, records: _Records) -> None:
        self._names[_key(name)] = {**self._names.get(_key(name), {}), number: records}
        self._rendered = {}

    def _find(self, name: str) -> dict[int, _Records] | None:
        found = self._names.get(name)
        while found is None and name:
            name = name.partition(".")[2]
            found = self._names.get(f"*.{name}" if name else "*")
        return found

    def _render(self, question: bytes, name: str, qtype: int) -> tuple[Sections, bool]:
        """Follow CNAMEs from `name`; every owner is a pointer to where the name stands already. True: never changes."""
        octets, answers, fixed = b"", 0, True
        owner, position = 0xC00C, 12 + len(question) + 4
        for _ in range(MAX_HOPS):
            known = self._find(name)
            if known is None:
                return self._negative(3, answers, octets), fixed
            if qtype in known or TYPES["CNAME"] not in known:
                break
            alias = known[TYPES["CNAME"]]
            octets += struct.pack("!HHHIH", owner, TYPES["CNAME"], 1, alias.ttl, len(alias.values[0])) + alias.values[0]
            answers += 1
            owner = 0xC000 | (position + 12)
            position += 12 + len(alias.values[0])
            name, _ = question_text(alias.values[0])
        else:
            return Sections(0, answers, 0, octets), fixed
        if qtype not in known:
            return self._negative(0, answers, octets), fixed
        records = known[qtype]
        values = records.take()
        octets += b"".join(struct.pack("!HHHIH", owner, qtype, 1, records.ttl, len(value)) + value for value in values)
        return Sections(0, answers + len(values), 0, octets), fixed and not records.count

    def _negative(self, rcode: int, answers: int, octets: bytes) -> Sections:
        data = rdata(TYPES["SOA"], f"ns.example. admin.example. 1 3600 600 86400 {self.negative_ttl}")
        soa = name_wire("example") + struct.pack("!HHIH", TYPES["SOA"], 1, self.negative_ttl, len(data)) + data
        return Sections(rcode, answers, 1, octets + soa)


def _key(name: str) -> str:
    return name.lower().rstrip(".") if name != "." else ""


def question_text(wire: bytes, start: int = 0) -> tuple[str, int]:
    """Read a name without pointers: lower-case text and the offset behind it. `IndexError` where the data ends."""
    labels = []
    while length := wire[start]:
        labels.append(wire[start + 1 : start + 1 + length].lower())
        start += 1 + length
    return ".".join(label.decode("latin-1") if label.isalnum() else _escaped(label) for label in labels), start + 1


def _escaped(label: bytes) -> str:
    return "".join(chr(octet) if chr(octet) in _PLAIN else f"\\{octet:03d}" for octet in label)


_PLAIN: Final = "abcdefghijklmnopqrstuvwxyz0123456789-_*"


def address_data(address: str) -> tuple[int, bytes]:
    """Type number and record data of an address."""
    number = TYPES["AAAA"] if ":" in address else TYPES["A"]
    return number, socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
