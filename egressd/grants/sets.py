"""What the kernel's grant sets hold, as the ledger wrote it, and which names hold each element until when.

Sans-IO; `now` and every end are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from egressd.compiled import mypyc_attr
from egressd.grants.elements import Element, Grant, Key, expand, made, milliseconds
from egressd.model import Ports, PortSpan
from egressd.names import Name

__all__ = ["Elements", "GrantSet"]

MAX_WAYS: Final = 256
"""Ports that one subject's grants opened lately: more than its rules have, as long as they are not edited."""


@mypyc_attr(acyclic=True)
class Held:
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


@mypyc_attr(acyclic=True)
class GrantSet:
    """What one grant set of the kernel holds for one span of ports, by address; `kind` and `span` as in `Element`."""

    __slots__ = ("held", "kind", "span")

    def __init__(self, kind: str, span: PortSpan | None) -> None:
        self.kind = kind
        self.span = span
        self.held: dict[bytes, Held] = {}


class _Subject:
    """The grant sets of one subject, by kind and span."""

    __slots__ = ("last", "octets", "ports", "sets", "ways")

    def __init__(self) -> None:
        self.sets: dict[tuple[str, PortSpan | None], GrantSet] = {}
        self.ways: dict[tuple[Ports, int], tuple[GrantSet, ...]] = {}
        """The sets that open some ports of an address of so many octets."""
        self.ports: Ports = ()
        self.octets = 0
        self.last: tuple[GrantSet, ...] = ()
        """What was asked for last, and is next as a rule: ports, octets, sets."""


class Elements:
    """What the kernel's grant sets hold: one entry an element, counted by the names that hold it."""

    def __init__(self) -> None:
        self._subjects: dict[int, _Subject] = {}

    def find(self, key: Key) -> Held | None:
        """The element with this subject, kind, address and span."""
        subject, kind, address, span = key
        its = self._subjects.get(subject)
        found = its.sets.get((kind, span)) if its is not None else None
        return found.held.get(address) if found is not None else None

    def of(self, subject: int) -> Iterator[tuple[GrantSet, bytes, Held]]:
        """Every element of a subject: its set, its address, and who holds it."""
        its = self._subjects.get(subject)
        for each in its.sets.values() if its is not None else ():
            for address, element in each.held.items():
                yield each, address, element

    def opens(self, subject: int, address: bytes, protocol: int, port: int, now: float) -> bool:
        """Whether an element that is alive opens this port of this address; 0 for protocols without."""
        its = self._subjects.get(subject)
        if its is None:
            return False
        for span, each in [(span, each) for (_, span), each in its.sets.items()]:
            if span is None or (
                span.first_protocol <= protocol <= span.last_protocol and span.first_port <= port <= span.last_port
            ):
                element = each.held.get(address)
                if element is not None and element.programmed > now:
                    return True
        return False

    def forget(self, subject: int) -> None:
        """The subject has no grants any more."""
        self._subjects.pop(subject, None)

    def live(self, subject: int, address: bytes, ports: Ports, until: float) -> bool:
        """Whether all elements that open `ports` of `address` live at least until then."""
        for each in self._that_open(subject, ports, len(address)):
            element = each.held.get(address)
            if element is None or element.programmed < until:
                return False
        return True

    def hold(self, grant: Grant, enough: float, now: float) -> list[Element]:
        """The grant's name holds its elements until `grant.until`; those not to last until `enough` are to be written.

        Elements that last long enough are left alone, and the grant then ends with the first of them.
        """
        writes = []
        subject, name, address, until = grant.subject, grant.name, grant.address, grant.until
        sets = self._that_open(subject, grant.ports, len(address))
        for each in sets:
            element = each.held.get(address)
            if element is not None and enough <= element.programmed < until:
                until = element.programmed
        grant.until = until
        lifetime_ms = milliseconds(until - now)
        for each in sets:
            element = each.held.get(address)
            if element is None:
                each.held[address] = Held(until, name)
                writes.append(made(subject, each.kind, address, each.span, lifetime_ms, name, False))
                continue
            if element.programmed < enough:
                element.program(until)
                writes.append(made(subject, each.kind, address, each.span, lifetime_ms, name, True))
            element.keep(name, until)
        return writes

    def release(self, grant: Grant, now: float) -> list[Element]:
        """The grant's name lets go; the elements that nobody else holds are returned, to leave the kernel.

        A name that only lingers holds nothing that would outlive it.
        """
        gone = []
        subject, name, address = grant.subject, grant.name, grant.address
        for each in self._that_open(subject, grant.ports, len(address)):
            element = each.held.get(address)
            if element is None:
                continue
            element.let_go(name)
            if element.name is not None and (element.programmed <= now or element.last > 0 or element.ends()[1] > now):
                continue
            del each.held[address]
            gone.append(made(subject, each.kind, address, each.span, 0, name, False))
        return gone

    def shorten(self, subject: int, address: bytes, ports: Ports, now: float) -> list[Element]:
        """Elements that outlive the last of the names still holding them, cut to that name's time."""
        writes = []
        for each in self._that_open(subject, ports, len(address)):
            element = each.held.get(address)
            if element is None or element.name is None or element.last > 0 or element.programmed <= now:
                continue
            name, until = element.ends()
            if until < element.programmed and until > now:
                element.shorten(until)
                lifetime_ms = milliseconds(until - now)
                writes.append(made(subject, each.kind, address, each.span, lifetime_ms, name, True))
        return writes

    def _that_open(self, subject: int, ports: Ports, octets: int) -> tuple[GrantSet, ...]:
        """The sets that together open these ports of an address of 4 or 16 octets."""
        its = self._subjects.get(subject)
        if its is None:
            its = self._subjects[subject] = _Subject()
        if its.ports is ports and its.octets == octets:
            return its.last
        found = its.ways.get((ports, octets))
        if found is None:
            if len(its.ways) >= MAX_WAYS:
                its.ways.clear()
                its.sets = {place: each for place, each in its.sets.items() if each.held}
            found = its.ways[ports, octets] = tuple([_set(its, *place) for place in expand(ports, octets)])
        its.ports, its.octets, its.last = ports, octets, found
        return found


def _set(its: _Subject, kind: str, span: PortSpan | None) -> GrantSet:
    found = its.sets.get((kind, span))
    if found is None:
        found = its.sets[kind, span] = GrantSet(kind, span)
    return found
