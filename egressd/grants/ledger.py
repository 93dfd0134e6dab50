"""The ledger of grants: which addresses are open, for which subject, through which name, until when.

Sans-IO: it is told answers, expiries and policy changes and says which elements the kernel must add, refresh or
drop; it never talks to the kernel. What it believes alive is alive: the kernel's own timeout starts after `now` was
read, so an element lives there at least as long as here. `now` is monotonic seconds. policy.md (Grants) is the law.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice

from egressd.grants.crowd import EVICT_MOST, LOOK, NEAR, OVERSHOOT, Crowd, oldest_address, oldest_name
from egressd.grants.due import Due
from egressd.grants.elements import (
    LINGER_S,
    NOTHING,
    UNSELECTED_SUBJECT,
    Admission,
    Element,
    Grant,
    GrantView,
    Permit,
    milliseconds,
)
from egressd.grants.sets import Elements
from egressd.model import Ports
from egressd.names import Name

__all__ = ["Ledger"]


class Ledger:
    """All grants of the node, bounded by `per_name` and `total` (dns.md, Budgets).

    `total` holds at every moment. `per_name` holds after `trim`, which is to be called when `crowded` says so, but for
    grants with a live connection: these stay, up to `overshoot` more, which holds at every moment too. What no policy
    selects (`UNSELECTED_SUBJECT`) opens nothing, so there `per_name` needs no look.
    """

    def __init__(
        self,
        *,
        minimum_s: float = 60.0,
        grace_s: float = 30.0,
        per_name: int = 1024,
        total: int = 200_000,
        overshoot: int = OVERSHOOT,
    ) -> None:
        self.minimum_s = minimum_s
        self.grace_s = grace_s
        self.per_name = per_name
        self.total = total
        self._overshoot = overshoot
        self.evicted = 0
        """Elements that a bound pushed out."""
        self.kept_live = 0
        """Times that a bound passed over a grant because a connection to it was alive."""
        self.generation = 0
        """One more whenever an element may end sooner than was said: as long as it is the same, what was open for a
        while longer is so still."""
        self._names: dict[int, OrderedDict[Name, dict[bytes, Grant]]] = {}
        """By subject; there in OrderedDicts, whose oldest entry is found at once, as `_bound` does. All are in the
        order in which they are to leave (crowd.py)."""
        self._crowded: dict[tuple[int, Name], None] = {}
        """Names of selected subjects that have, or had, more than `per_name`."""
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
            if admission is NOTHING and subject != UNSELECTED_SUBJECT:
                admission = Admission([], [])
            self._open(subject, name, address, ports, now + lifetime, enough, now, admission)
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

    def _of(self, subject: int, name: Name) -> dict[bytes, Grant]:
        """The same without making a place."""
        names = self._names.get(subject)
        return names.get(name, {}) if names is not None else {}

    def _open(
        self,
        subject: int,
        name: Name,
        address: bytes,
        ports: Ports,
        until: float,
        enough: float,
        now: float,
        out: Admission,
    ) -> None:
        """`ports` of the address are open until then, because of this name; `enough` as in `Elements.hold`."""
        held = self._held(subject, name)
        grant = held.get(address)
        if grant is None:
            grant = held[address] = Grant(subject, name, address, ports, until)
            self._due.put(grant, now)
            self._sizes[subject] = self._sizes.get(subject, 0) + 1
            if len(held) > self.per_name and subject != UNSELECTED_SUBJECT:
                self._crowded[subject, name] = None
        else:
            del held[address]
            held[address] = grant  # inserted last: `held` is in order of renewal, oldest first
            self._renew(grant, ports, until, now, out)
        if subject != UNSELECTED_SUBJECT:
            out.writes.extend(self._elements.hold(grant, enough, now))

    def _renew(self, grant: Grant, ports: Ports, until: float, now: float, out: Admission) -> None:
        """The same name led to the same address again; with other ports, if its policies have changed meanwhile."""
        before = grant.ports
        if before is ports or before == ports:
            grant.until = max(until, grant.until)
            return
        if grant.subject != UNSELECTED_SUBJECT:
            self.generation += 1
            out.gone.extend(self._elements.release(grant, now))
            out.writes.extend(self._elements.shorten(grant.subject, grant.address, before, now))
        grant.ports, grant.until = ports, until

    def doubt(self, writes: Iterable[Element]) -> None:
        """The kernel refused these writes: whether the elements are there is unknown until they are written again."""
        self.generation += 1
        for write in writes:
            element = self._elements.find(write[:4])
            if element is not None:
                element.program(0.0)

    # -------------------------------------------------------------------------------------------- bounds

    def _bound(self, subject: int, name: Name, now: float, asked: Admission) -> Admission:
        """What was asked, less what is too much at once; each element is said once, as it stands in the end."""
        most = self.per_name + (self._overshoot if subject != UNSELECTED_SUBJECT else 0)
        held = self._names[subject][name]
        if len(held) <= most and len(self) <= self.total:
            return asked
        out = Admission([], [])
        while len(held) > most:
            address, passed = oldest_address(held)
            self._push_out(subject, name, address, passed, now, out)
        while len(self) > self.total:
            heaviest = self._sizes.most_common(1)[0][0]
            names = self._names[heaviest]
            oldest, passed = oldest_name(names)
            address, more = oldest_address(names[oldest])
            self._push_out(heaviest, oldest, address, passed + more, now, out)
        return self._less(asked, out)

    def _push_out(self, subject: int, name: Name, address: bytes, passed: int, now: float, out: Admission) -> None:
        dropped = self._drop(subject, name, address, now)
        out.writes.extend(dropped.writes)
        out.gone.extend(dropped.gone)
        self.kept_live += passed
        self.evicted += len(dropped.gone)

    @staticmethod
    def _less(asked: Admission, out: Admission) -> Admission:
        """One admission after another, as one."""
        left = {element[:4] for element in out.gone}
        writes = {write[:4]: write for write in (*asked.writes, *out.writes)}
        return Admission([write for key, write in writes.items() if key not in left], [*asked.gone, *out.gone])

    def crowded(self) -> Crowd | None:
        """What `trim` needs to be told about the connections of; None while no bound is passed or near."""
        found: dict[tuple[int, Name], None] = {}
        addresses: dict[int, set[bytes]] = {}
        left = LOOK
        for subject, name in list(islice(self._crowded, LOOK)):
            if len(self._names[subject][name]) <= self.per_name:
                del self._crowded[subject, name]
        for subject, name in (*islice(self._crowded, LOOK), *self._next_to_leave()):
            if left <= 0:
                break
            held = self._names[subject][name]
            found[subject, name] = None
            addresses.setdefault(subject, set()).update(held)
            left -= len(held)
        if not found:
            return None
        return Crowd(tuple(found), {subject: frozenset(them) for subject, them in addresses.items()})

    def _next_to_leave(self) -> list[tuple[int, Name]]:
        """The names that the total bound would take from first, while it is near."""
        if len(self._due) <= self.total - self.total // NEAR:
            return []
        heaviest = self._sizes.most_common(1)[0][0]
        if heaviest == UNSELECTED_SUBJECT:
            return []
        return [(heaviest, name) for name in islice(self._names[heaviest], LOOK)]

    def trim(self, crowd: Crowd, live: Mapping[int, AbstractSet[bytes]], now: float) -> Admission:
        """Push out what a name has too much, oldest first, `EVICT_MOST` at most and none of the `live` addresses.

        `live` are those of `crowd.addresses` to which a pod of the subject has a live connection. An address that came
        since is left alone, as nobody has looked; a grant that stays for its connection counts as just renewed.
        """
        out = Admission([], [])
        left = EVICT_MOST
        for subject, name in crowd.names:
            held = self._of(subject, name)
            excess = len(held) - self.per_name
            asked, alive = crowd.addresses[subject], live.get(subject, frozenset())
            for address in [address for address in held if address in asked]:
                grant = held[address]
                grant.live = address in alive
                if excess <= 0 or left <= 0:
                    continue
                if grant.live:
                    held[address] = held.pop(address)
                    self.kept_live += 1
                else:
                    before = len(out.gone)
                    self._push_out(subject, name, address, 0, now, out)
                    excess, left = excess - 1, left - max(1, len(out.gone) - before)
            if (subject, name) in self._crowded:
                del self._crowded[subject, name]
                if excess > 0:
                    self._crowded[subject, name] = None  # behind the others
        return self._settled(out, now)

    def _drop(self, subject: int, name: Name, address: bytes, now: float) -> Admission:
        """Forget one grant: elements nobody else holds leave, others end with those who still hold them."""
        self.generation += 1
        names = self._names[subject]
        grant = names[name].pop(address)
        self._due.remove(grant)
        self._sizes[subject] -= 1
        if not names[name]:
            del names[name]
            self._crowded.pop((subject, name), None)
        if not names:
            del self._names[subject], self._sizes[subject]
        if subject == UNSELECTED_SUBJECT:
            return Admission([], [])
        gone = self._elements.release(grant, now)
        writes = self._elements.shorten(subject, address, grant.ports, now)
        if subject not in self._names:
            self._elements.forget(subject)
        return Admission(writes, gone)

    def expire(self, now: float, limit: int = 10_000) -> int:
        """Forget what ended more than `LINGER_S` ago, `limit` at most; the kernel drops it by itself."""
        dropped = 0
        while dropped < limit and (grant := self._due.take(now - LINGER_S)) is not None:
            if grant.until + LINGER_S >= now:
                self._due.put(grant, now)
                continue
            self._drop(grant.subject, grant.name, grant.address, now)
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
                before = grant.ports
                self._open(subject, name, address, ports, grant.until, grant.until, now, out)
                if subject != UNSELECTED_SUBJECT:
                    out.writes.extend(self._elements.shorten(subject, address, before, now))
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
            held = self._elements.find(key)
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
            known = self._of(target, name).get(address)
            if ports and (known is None or known.until < grant.until):
                self._open(target, name, address, ports, grant.until, grant.until, now, out)
        return out.writes

    def forget(self, subject: int) -> None:
        """The subject's instance left the kernel, sets and all."""
        for name, addresses in list(self._names.get(subject, {}).items()):
            for address in list(addresses):
                self._drop(subject, name, address, 0.0)

    def rewrite(self, subject: int, now: float) -> list[Element]:
        """Every live element of the subject, for a kernel that has lost them or never had them."""
        out = []
        for its, address, element in self._elements.of(subject):
            if element.programmed > now and (name := element.name) is not None:
                lifetime_ms = milliseconds(element.programmed - now)
                out.append(Element(subject, its.kind, address, its.span, lifetime_ms, name, False))
        return out

    def restore(self, subject: int, name: Name, address: bytes, ports: Ports, until: float, now: float) -> None:
        """Remember a grant that an earlier run of the daemon gave; the kernel is told by `rewrite`."""
        self._open(subject, name, address, ports, until, until, now, Admission([], []))

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
        return self._elements.opens(subject, address, protocol, port, now)

    def views(self, subject: int, name: Name, now: float) -> list[GrantView]:
        """The live grants that a name has given a subject."""
        held = self._of(subject, name)
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
