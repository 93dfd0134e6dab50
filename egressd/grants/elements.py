"""Elements of the kernel's grant sets: what a grant is made of there, and who holds each of them.

Sans-IO; `now` and every end are monotonic seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from egressd.model import ANY_PORT, Ports, PortSpan
from egressd.names import Name

__all__ = [
    "LINGER_S",
    "NOTHING",
    "UNSELECTED_SUBJECT",
    "WIDE_RANGE",
    "Admission",
    "Element",
    "Elements",
    "Grant",
    "GrantView",
    "Key",
    "Permit",
    "expand",
    "milliseconds",
]

UNSELECTED_SUBJECT: Final = 0
"""Subject number of pods that no policy selects: remembered, so that a policy that comes to select them cuts nothing it
sanctions, but never programmed."""

WIDE_RANGE: Final = 16
"""Ports of one span up to which each becomes an element of a hash set; wider spans go to an interval set, where
inserting costs O(n)."""

LINGER_S: Final = 5.0
"""Seconds an expired element is remembered, so that one the kernel may still hold is refreshed, not plainly added."""

ICMP: Final = 1
ICMPV6: Final = 58


class Element(NamedTuple):
    """One set element: what `kernel` programs. `kind` is `port`, `any` or `range`; `span` is None for `any`."""

    subject: int
    kind: str
    address: bytes
    span: PortSpan | None
    lifetime_ms: int
    comment: str
    refresh: bool


class Admission(NamedTuple):
    """What one answer asks of the kernel: elements to write, and elements that a bound pushed out."""

    writes: list[Element]
    gone: list[Element]


NOTHING: Final = Admission([], [])
"""What an answer asks whose grants are alive long enough: the same value for all of them, and nobody's to change."""


class GrantView(NamedTuple):
    """One live grant, for `explain` and the admin API."""

    subject: int
    name: Name
    address: bytes
    ports: Ports
    remaining_s: float


Key = tuple[int, str, bytes, PortSpan | None]
Permit = Callable[[Name, bytes], Ports]
"""What a policy lets a name open of an address today; empty when nothing."""


class _Held:
    """One element: until when the kernel has it, and which names hold it until when.

    Most are held by one name, and there may be a hundred thousand of them, so that one costs no dictionary. Some are
    held by a hundred thousand names (a wildcard that leads to a few addresses, under a flood), so that letting go must
    not look at all of them: as long as somebody holds it to its end, that is when it ends.
    """

    __slots__ = ("_many", "_name", "_until", "last", "programmed")

    def __init__(self, programmed: float, name: Name) -> None:
        self.programmed = programmed
        self.last = 1
        """Holders that hold it to its very end; at 0 all are to be looked at."""
        self._name: Name | None = name
        self._until = programmed
        self._many: dict[Name, float] | None = None
        """All holders, from the first time on that there were two."""

    @property
    def name(self) -> Name | None:
        """A name that holds it; None if there is none."""
        return next(iter(self._many), None) if self._many is not None else self._name

    def program(self, until: float) -> None:
        """The kernel is told another end."""
        self.programmed = until
        self.last = 0

    def keep(self, name: Name, until: float) -> None:
        """`name` holds it until then, whether or not it did before."""
        self.last += (until == self.programmed) - (self._held_until(name) == self.programmed)
        if self._many is not None:
            self._many[name] = until
        elif self._name is None or self._name == name:
            self._name, self._until = name, until
        else:
            self._many = {self._name: self._until, name: until}

    def let_go(self, name: Name) -> None:
        self.last -= self._held_until(name) == self.programmed
        if self._many is not None:
            self._many.pop(name, None)
        elif self._name == name:
            self._name = None

    def ends(self) -> tuple[Name, float]:
        """The name that holds it longest, and until when. There must be one."""
        if self._many is not None:
            return max(self._many.items(), key=lambda item: item[1])
        if self._name is None:
            raise LookupError("nobody holds this element")
        return self._name, self._until

    def shorten(self, until: float) -> None:
        """It ends with those that hold it longest, which is then."""
        self.programmed = until
        ends = self._many.values() if self._many is not None else (self._until,)
        self.last = sum(1 for end in ends if end == until)

    def _held_until(self, name: Name) -> float:
        if self._many is not None:
            return self._many.get(name, -1.0)
        return self._until if self._name == name else -1.0


@dataclass(slots=True)
class Grant:
    """One address under one name of one subject."""

    ports: Ports
    until: float
    due: int = 0
    """The second that it is kept under in `Due`."""
    live: bool = False
    """Whether the last look at the connections found one to it, and no bound has passed it over since (crowd.py)."""


_expansions: dict[tuple[Ports, int], tuple[tuple[str, PortSpan | None], ...]] = {}
_MAX_EXPANSIONS: Final = 4096


def expand(ports: Ports, family_octets: int) -> tuple[tuple[str, PortSpan | None], ...]:
    """The elements (kind, span) that open `ports` of an address of 4 or 16 octets; memoised, since rules are few."""
    key = (ports, family_octets)
    found = _expansions.get(key)
    if found is None:
        if len(_expansions) >= _MAX_EXPANSIONS:
            _expansions.clear()
        found = _expansions[key] = tuple(_expand(ports, family_octets))
    return found


def _expand(ports: Ports, family_octets: int) -> Iterable[tuple[str, PortSpan | None]]:
    if ports == ANY_PORT:
        return [("any", None)]
    out: list[tuple[str, PortSpan | None]] = []
    foreign_icmp = ICMPV6 if family_octets == 4 else ICMP
    for span in ports:
        one_protocol = span.first_protocol == span.last_protocol
        if one_protocol and span.first_protocol == foreign_icmp:
            continue
        if one_protocol and span.last_port - span.first_port < WIDE_RANGE:
            protocol = span.first_protocol
            out += [
                ("port", PortSpan(protocol, protocol, port, port))
                for port in range(span.first_port, span.last_port + 1)
            ]
        else:
            out.append(("range", span))
    return out


class Elements:
    """What the kernel's grant sets hold: one entry an element, counted by the names that hold it."""

    def __init__(self) -> None:
        self.held: dict[Key, _Held] = {}
        self.ranges: Counter[tuple[int, PortSpan]] = Counter()

    def live(self, subject: int, address: bytes, ports: Ports, until: float) -> bool:
        """Whether all elements that open `ports` of `address` live at least until then."""
        held = self.held
        for kind, span in expand(ports, len(address)):
            element = held.get((subject, kind, address, span))
            if element is None or element.programmed < until:
                return False
        return True

    def hold(self, subject: int, name: Name, address: bytes, grant: Grant, enough: float, now: float) -> list[Element]:
        """`name` holds its elements until `grant.until`; those that would not last until `enough` are to be written.

        Elements that last long enough are left alone, and the grant then ends with the first of them.
        """
        writes = []
        held, until = self.held, grant.until
        keys = [(subject, kind, address, span) for kind, span in expand(grant.ports, len(address))]
        elements = [held.get(key) for key in keys]
        for element in elements:
            if element is not None and enough <= element.programmed < until:
                until = element.programmed
        grant.until = until
        lifetime_ms = milliseconds(until - now)
        for key, element in zip(keys, elements, strict=True):
            _, kind, _, span = key
            if element is None:
                held[key] = _Held(until, name)
                if kind == "range" and span is not None:
                    self.ranges[subject, span] += 1
                writes.append(Element(subject, kind, address, span, lifetime_ms, name, False))
                continue
            if element.programmed < enough:
                element.program(until)
                writes.append(Element(subject, kind, address, span, lifetime_ms, name, True))
            element.keep(name, until)
        return writes

    def release(self, subject: int, name: Name, address: bytes, ports: Ports, now: float) -> list[Element]:
        """`name` lets go; the elements that nobody else holds are returned, to leave the kernel.

        A name that only lingers holds nothing that would outlive it.
        """
        gone = []
        for kind, span in expand(ports, len(address)):
            key = (subject, kind, address, span)
            element = self.held.get(key)
            if element is None:
                continue
            element.let_go(name)
            if element.name is not None and (element.programmed <= now or element.last > 0 or element.ends()[1] > now):
                continue
            del self.held[key]
            if kind == "range" and span is not None:
                self.ranges[subject, span] -= 1
                if not self.ranges[subject, span]:
                    del self.ranges[subject, span]
            gone.append(Element(subject, kind, address, span, 0, name, False))
        return gone

    def shorten(self, subject: int, address: bytes, ports: Ports, now: float) -> list[Element]:
        """Elements that outlive the last of the names still holding them, cut to that name's time."""
        writes = []
        for kind, span in expand(ports, len(address)):
            element = self.held.get((subject, kind, address, span))
            if element is None or element.name is None or element.last > 0 or element.programmed <= now:
                continue
            name, until = element.ends()
            if until < element.programmed and until > now:
                element.shorten(until)
                writes.append(Element(subject, kind, address, span, milliseconds(until - now), name, True))
        return writes


def milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
