"""Live connections that lost their sanction are ended, in both directions (policy.md, Revocation).

Order matters: the entries are read, both directions are shut in the table, and then the entries are deleted, so that
nothing comes back in between. A cut that the kernel refuses is tried again with the next tick.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from egressd.agent.roster import Moved
from egressd.errors import EgressError
from egressd.kernel import Change
from egressd.kernel.change import REVOKED_MS
from egressd.kernel.conntrack import Conntrack, Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from egressd.agent.roster import Roster
    from egressd.kernel import Kernel
    from egressd.kernel.state import AllowedRange

__all__ = ["Cuts"]

log = logging.getLogger("egressd.agent")

REVOKED_S: Final = REVOKED_MS / 1000
OWED_S: Final = 0.3
"""How long what is owed may wait for more: reading the connection table takes 12 ms, be it empty."""

Pair = tuple[bytes, bytes]
"""Pod and destination."""


class Cuts:
    """What is cut, is still to be cut, and is kept shut. `now` is monotonic seconds. `counters`: cut, failed_cuts."""

    def __init__(self, kernel: Kernel, roster: Roster, counters: dict[str, int]) -> None:
        self.conntrack = Conntrack()
        self._kernel = kernel
        self._roster = roster
        self._counters = counters
        self._uncut = Moved()
        self._due = 0.0
        self._shut: dict[Pair, float] = {}
        self._flows: dict[Pair, set[tuple[int, int]]] = {}
        """What was cut between a pair that is kept shut: protocol and port. An earlier run did not tell."""
        self._lapsed: dict[bytes, tuple[AllowedRange, ...]] = {}

    def take_over(self, shut: Iterable[Pair], lapsed: dict[bytes, tuple[AllowedRange, ...]], now: float) -> None:
        """What an earlier run kept shut, and what it let through that may be let through no more."""
        self._shut = dict.fromkeys(shut, now + REVOKED_S)
        self._lapsed = lapsed

    def close(self) -> None:
        self.conntrack.close()

    def shut(self, now: float) -> list[Pair]:
        """The pairs that are to be kept shut."""
        self._shut = {
            pair: until for pair, until in self._shut.items() if until > now and pair[0] in self._roster.parties
        }
        return sorted(self._shut)

    def keeps_shut(self, pod: bytes, destination: bytes, now: float) -> bool:
        """Whether what lived between the two was cut, not long ago."""
        return self._shut.get((pod, destination), 0.0) > now

    def tick(self, now: float) -> None:
        """What is due: cuts that are owed or that the kernel refused, and once what was edited before the start."""
        if now >= self._due:
            self._settle_cuts(now)
        self._cut_lapsed(now)

    def owe(self, moved: Moved, now: float) -> None:
        """Live connections of these pods may have lost their sanction: the next `cut` ends them, or soon a `tick`."""
        if not (self._uncut.cut or self._uncut.gone):
            self._due = now + OWED_S
        self._uncut.cut |= moved.cut
        self._uncut.gone |= moved.gone

    def cut(self, moved: Moved, now: float) -> None:
        """End live connections that lost their sanction, within this call or, if the kernel refuses, the next ticks."""
        self.owe(moved, now)
        self._settle_cuts(now)
        self._pardon(moved.cut, now)

    def _pardon(self, pods: AbstractSet[bytes], now: float) -> None:
        """Pairs whose every flow that was cut is sanctioned again need not be kept shut: what lives between them now
        is as good as any other, and may drain."""
        for pair in [pair for pair, until in self._shut.items() if until <= now]:
            del self._shut[pair]
        self._flows = {pair: flows for pair, flows in self._flows.items() if pair in self._shut}
        sanctioned = [
            pair
            for pair, flows in self._flows.items()
            if pair[0] in pods and all(self._roster.sanctions(*pair, *flow, now) for flow in flows)
        ]
        if not sanctioned:
            return
        try:
            self._kernel.apply(Change(pardoned=sanctioned))
        except EgressError as error:
            log.warning("flows that are sanctioned again are judged packet by packet a while longer: %s", error)
            return
        for pair in sanctioned:
            del self._shut[pair], self._flows[pair]

    def _settle_cuts(self, now: float) -> None:
        moved = self._uncut
        if not (moved.cut or moved.gone):
            return
        self._due = now
        try:
            self._cut(moved, now)
        except EgressError as error:
            self._counters["failed_cuts"] += 1
            log.error("connections that lost their sanction could not all be cut: %s; trying again", error)
        else:
            self._uncut = Moved()

    def _cut(self, moved: Moved, now: float) -> None:
        """Read the entries, shut both directions, delete the entries: in this order nothing comes back in between."""
        looked_at = moved.gone | {address for address in moved.cut if not self._roster.drains(address)}
        unsanctioned: list[Entry] = [
            entry
            for entry in self.conntrack.entries_of(looked_at)
            if not self._roster.sanctions(entry.source, entry.destination, entry.protocol, entry.port, now)
        ]
        self._end(unsanctioned, now)

    def _cut_lapsed(self, now: float) -> None:
        """Once after a start: end what was edited away while nobody looked, as far as it can be told.

        That is what a deny rule closes, and what went by an address rule or by a live grant that there is no more.
        Other connections went by names whose grants had ended: nobody knows them any more, so they are left alone.
        """
        if not self._lapsed:
            return
        lapsed, self._lapsed = self._lapsed, {}
        roster = self._roster
        pods = {address for address in lapsed if not roster.drains(address)}
        try:
            entries = [
                entry
                for entry in self.conntrack.entries_of(pods)
                if not roster.sanctions(entry.source, entry.destination, entry.protocol, entry.port, now)
            ]
            told = [
                entry
                for entry in entries
                if roster.denies(entry.source, entry.destination, entry.protocol, entry.port)
                or any(known.covers(entry.destination, entry.protocol, entry.port) for known in lapsed[entry.source])
            ]
            self._end(told, now)
        except EgressError as error:
            self._lapsed = lapsed
            self._counters["failed_cuts"] += 1
            log.error("connections of before the start could not all be judged: %s; trying again", error)

    def _end(self, entries: Sequence[Entry], now: float) -> None:
        if not entries:
            return
        pairs = {(entry.source, entry.destination) for entry in entries if entry.source in self._roster.parties}
        self._kernel.apply(Change(revoked=sorted(pairs)))
        self._shut |= dict.fromkeys(pairs, now + REVOKED_S)
        for entry in entries:
            if (pair := (entry.source, entry.destination)) in pairs:
                self._flows.setdefault(pair, set()).add((entry.protocol, entry.port))
        self._counters["cut"] += self.conntrack.delete(entries)
