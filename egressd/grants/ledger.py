"""The ledger of grants: which addresses are open, for which subject, through which name, until when.

Sans-IO: it is told answers, expiries and policy changes and says which elements the kernel must add, refresh or
drop; it never talks to the kernel. What it believes alive is alive: the kernel's own timeout starts after `now` was
read, so an element lives there at least as long as here. `now` is monotonic seconds. policy.md (Grants) is the law.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import islice

from egressd.grants.due import Due
from egressd.grants.elements import (
    LINGER_S,
    NOTHING,
    UNSELECTED_SUBJECT,
    Admission,
    Element,
    Elements,
    Grant,
    GrantView,
    Key,
    Permit,
    milliseconds,
)
from egressd.model import Ports, PortSpan
from egressd.names import Name

__all__ = ["Ledger"]


class Ledger:
    """All grants of the node, bounded by `per_name` and `total` (dns.md, Budgets)."""

    def __init__(
        self, *, minimum_s: float = 60.0, grace_s: float = 30.0, per_name: int = 1024, total: int = 200_000
    ) -> None:
        self.minimum_s = minimum_s
        self.grace_s = grace_s
        self.per_name = per_name
        self.total = total
        self.evicted = 0
        self._names: dict[int, dict[Name, dict[bytes, Grant]]] = {}
        """By subject; there in OrderedDicts, whose oldest entry is found at once, as `_bound` does."""
        self._sizes: Counter[int] = Counter()
        self._elements = Elements()
        self._due = Due()

    def __len__(self) -> int:
        """Grants (subject, name, address), those lingering after their end included."""
        return self._sizes.total()

    # ------------------------------------------------------------------------------------------- answers

    def admit(
        self, subject: int, name: Name, addresses: Sequence[bytes], ports: Ports, ttl_s: float, now: float
    ) -> Admission:
        """Open `ports` of `addresses` for `subject`, because `name` resolved to them with this TTL.

        The grants hold at once in the ledger; call `doubt` with the writes if the kernel refuses them. An element that
        outlives this answer's TTL and half of the grace, and half of the lifetime that a new one would have, needs no
        write, so that a popular name is written every `grace_s / 2` seconds at most.
        """
        lifetime = max(ttl_s, self.minimum_s) + self.grace_s
        enough = now + max(ttl_s + self.grace_s / 2, lifetime / 2)
        admission = NOTHING
        held = self._held(subject, name)
        for address in addresses:
            grant = held.get(address)
            if (
                grant is not None
                and grant.until >= enough
                and (grant.ports is ports or grant.ports == ports)
                and (subject == UNSELECTED_SUBJECT or self._elements.live(subject, address, ports, enough))
            ):
                continue
            if admission is NOTHING:
                admission = Admission([], [])
            self._open(subject, name, address, Grant(ports, now + lifetime), enough, now, admission)
        if len(held) > self.per_name or len(self._due) > self.total:
            admission = self._bound(subject, name, now, admission)
        return admission

    def _held(self, subject: int, name: Name) -> dict[bytes, Grant]:
        """The grants of a name, by address; a place for them where there are none yet."""
        names = self._names.get(subject)
        if names is None:
            names = self._names[subject] = OrderedDict()
        held = names.get(name)
        if held is None:
            held = names[name] = {}
        return held

    def _open(
        self, subject: int, name: Name, address: bytes, grant: Grant, enough: float, now: float, out: Admission
    ) -> None:
        held = self._held(subject, name)
        before = held.pop(address, None)
        held[address] = grant  # inserted last: `held` is in order of renewal, oldest first
        if before is None:
            self._sizes[subject] += 1
            grant.due = self._due.put((subject, name, address), grant.until, now)
        else:
            grant.due = before.due
            if before.ports == grant.ports:
                grant.until = max(grant.until, before.until)
        if before is not None and before.ports != grant.ports and subject != UNSELECTED_SUBJECT:
            out.gone.extend(self._elements.release(subject, name, address, before.ports, now))
        if subject != UNSELECTED_SUBJECT:
            out.writes.extend(self._elements.hold(subject, name, address, grant, enough, now))

    def doubt(self, writes: Iterable[Element]) -> None:
        """The kernel refused these writes: whether the elements are there is unknown until they are written again."""
        for write in writes:
            element = self._elements.held.get(write[:4])
            if element is not None:
                element.programmed = 0.0

    # -------------------------------------------------------------------------------------------- bounds

    def _bound(self, subject: int, name: Name, now: float, asked: Admission) -> Admission:
        """What was asked, less what is too much; each element is said once, as it stands in the end."""
        writes = {write[:4]: write for write in asked.writes}
        gone: list[Element] = []

        def drop(number: int, of: Name, address: bytes) -> None:
            dropped = self._drop(number, of, address, now)
            writes.update((write[:4], write) for write in dropped.writes)
            gone.extend(dropped.gone)

        held = self._names[subject].get(name, {})
        while len(held) > self.per_name:
            drop(subject, name, next(iter(held)))
        while len(self) > self.total:
            heaviest = self._sizes.most_common(1)[0][0]
            oldest = next(iter(self._names[heaviest]))
            drop(heaviest, oldest, next(iter(self._names[heaviest][oldest])))
        left = {element[:4] for element in gone}
        self.evicted += len(gone)
        return Admission([write for key, write in writes.items() if key not in left], [*asked.gone, *gone])

    def _drop(self, subject: int, name: Name, address: bytes, now: float) -> Admission:
        """Forget one grant: elements nobody else holds leave, others end with those who still hold them."""
        names = self._names[subject]
        grant = names[name].pop(address)
        self._due.remove((subject, name, address), grant.due)
        self._sizes[subject] -= 1
        if not names[name]:
            del names[name]
        if not names:
            del self._names[subject], self._sizes[subject]
        if subject == UNSELECTED_SUBJECT:
            return Admission([], [])
        gone = self._elements.release(subject, name, address, grant.ports, now)
        return Admission(self._elements.shorten(subject, address, grant.ports, now), gone)

    def expire(self, now: float, limit: int = 10_000) -> int:
        """Forget what ended more than `LINGER_S` ago, `limit` at most; the kernel drops it by itself."""
        dropped = 0
        while dropped < limit and (entry := self._due.take(now - LINGER_S)) is not None:
            subject, name, address = entry
            grant = self._names[subject][name][address]
            if grant.until + LINGER_S >= now:
                grant.due = self._due.put(entry, grant.until, now)
                continue
            self._drop(subject, name, address, now)
            dropped += 1
        return dropped

    # -------------------------------------------------------------------------------------------- change

    def review(self, subject: int, permit: Permit, now: float) -> Admission:
        """The subject's policies changed: what they permit no more leaves, what they newly permit comes."""
        out = Admission([], [])
        for name, address, grant in self._live(subject, now):
            ports = permit(name, address)
            if ports == grant.ports:
                continue
            if ports:
                self._open(subject, name, address, Grant(ports, grant.until), grant.until, now, out)
                if subject != UNSELECTED_SUBJECT:
                    out.writes.extend(self._elements.shorten(subject, address, grant.ports, now))
                continue
            dropped = self._drop(subject, name, address, now)
            out.gone.extend(dropped.gone)
            out.writes.extend(dropped.writes)
        return self._settled(out, now)

    def _settled(self, change: Admission, now: float) -> Admission:
        """The same change with each element said once, as it stands in the end."""
        touched = {element[:4]: element for element in (*change.gone, *change.writes)}
        before = {element[:4] for element in change.gone} | {write[:4] for write in change.writes if write.refresh}
        out = Admission([], [])
        for key, element in touched.items():
            held = self._elements.held.get(key)
            if held is None:
                out.gone.append(element)
            else:
                lifetime_ms = milliseconds(held.programmed - now)
                out.writes.append(element._replace(lifetime_ms=lifetime_ms, refresh=key in before))
        return out

    def copy(self, source: int, target: int, permit: Permit, now: float) -> list[Element]:
        """Pods moved from one subject to another: the grants that the new policies permit move along."""
        out = Admission([], [])
        for name, address, grant in self._live(source, now):
            ports = permit(name, address)
            known = self._names.get(target, {}).get(name, {}).get(address)
            if ports and (known is None or known.until < grant.until):
                self._open(target, name, address, Grant(ports, grant.until), grant.until, now, out)
        return out.writes

    def forget(self, subject: int) -> None:
        """The subject's instance left the kernel, sets and all."""
        for name, addresses in list(self._names.get(subject, {}).items()):
            for address in list(addresses):
                self._drop(subject, name, address, 0.0)

    def rewrite(self, subject: int, now: float) -> list[Element]:
        """Every live element of the subject, for a kernel that has lost them or never had them."""
        out = []
        for (number, kind, address, span), element in self._elements.held.items():
            if number == subject and element.programmed > now:
                lifetime_ms, name = milliseconds(element.programmed - now), next(iter(element.holders))
                out.append(Element(number, kind, address, span, lifetime_ms, name, False))
        return out

    def restore(self, subject: int, name: Name, address: bytes, ports: Ports, until: float, now: float) -> None:
        """Remember a grant that an earlier run of the daemon gave; the kernel is told by `rewrite`."""
        self._open(subject, name, address, Grant(ports, until), until, now, Admission([], []))

    # ----------------------------------------------------------------------------------------- questions

    def _live(self, subject: int, now: float) -> list[tuple[Name, bytes, Grant]]:
        return [
            (name, address, grant)
            for name, addresses in self._names.get(subject, {}).items()
            for address, grant in addresses.items()
            if grant.until > now
        ]

    def opens(self, subject: int, address: bytes, protocol: int, port: int, now: float) -> bool:
        """Whether a live grant of the subject opens this port of this address. `port` is 0 for protocols without."""
        held = self._elements.held
        keys: list[Key] = [
            (subject, "any", address, None),
            (subject, "port", address, PortSpan(protocol, protocol, port, port)),
        ]
        keys += [
            (subject, "range", address, span)
            for number, span in self._elements.ranges
            if number == subject
            and span.first_protocol <= protocol <= span.last_protocol
            and span.first_port <= port <= span.last_port
        ]
        return any((element := held.get(key)) is not None and element.programmed > now for key in keys)

    def views(self, subject: int, name: Name, now: float) -> list[GrantView]:
        """The live grants that a name has given a subject."""
        held = self._names.get(subject, {}).get(name, {})
        return [
            GrantView(subject, name, address, grant.ports, grant.until - now)
            for address, grant in held.items()
            if grant.until > now
        ]

    def subjects(self) -> list[int]:
        """Subjects that have programmed grants, in order."""
        return sorted(number for number in self._names if number != UNSELECTED_SUBJECT)

    def page(self, start: tuple[int, int], most: int, now: float) -> tuple[list[GrantView], tuple[int, int] | None]:
        """Live grants, some `most` at a time, in an order of their own, and where the next page starts (None: nowhere).

        `start` is (SUBJECT, 0) at first. What comes and goes between two pages may be missed or told twice.
        """
        found: list[GrantView] = []
        seen = 0
        for subject in self.subjects():
            if subject < start[0]:
                continue
            first = start[1] if subject == start[0] else 0
            for index, (name, held) in enumerate(islice(self._names[subject].items(), first, None), first):
                if seen >= most:
                    return found, (subject, index)
                seen += len(held)
                found += self.views(subject, name, now)
        return found, None
