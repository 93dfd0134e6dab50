"""The kernel as this daemon keeps it: written, watched, mended, cut, and handed on.

What another hand does to table, rules or routes is put right from memory in one transaction (kernel.md, Others'
hands). An error of the kernel is never taken for success: a change it refused is written again with all the rest, a
cut it refused is tried again, and a grant it refused costs the answer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from egressd.agent.preflight import takes_services
from egressd.agent.recovery import restore
from egressd.agent.roster import Moved
from egressd.errors import EgressError, EnvironmentProblem, KernelError
from egressd.kernel import Change, Kernel
from egressd.kernel.bridge import Binder
from egressd.kernel.change import REVOKED_MS
from egressd.kernel.conntrack import Conntrack, Entry
from egressd.kernel.routes import install_routes
from egressd.kernel.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from egressd.agent.roster import Roster
    from egressd.exchange import LastKnown
    from egressd.grants import Element, Ledger
    from egressd.settings import Settings

__all__ = ["Enforcement"]

log = logging.getLogger("egressd.agent")

MEND_PAUSE_S: Final = 0.3
MEND_BURST, MEND_BURST_S = 8, 10.0
"""Repairs follow damage at once; past so many in so many seconds they come at this distance, so that somebody who
breaks things in a loop does not occupy us."""
COMPARE_S: Final = 5.0
REVOKED_S: Final = REVOKED_MS / 1000
COUNTERS: Final = ("change", "heartbeat", "table_mended", "routes_mended", "cut", "failed_cuts")
"""Changes and heartbeats that the kernel refused, repairs, connections cut, attempts to cut that failed."""


class Enforcement:
    """One table, its routes, and the connections of its pods. One thread; `now` is monotonic seconds."""

    def __init__(
        self,
        settings: Settings,
        servers: Sequence[bytes],
        roster: Roster,
        ledger: Ledger,
        known: LastKnown,
        clock: Callable[[], float],
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when there is something for `tick` to do at once."""
        self.counters: dict[str, int] = dict.fromkeys(COUNTERS, 0)
        self.damage = ""
        """Why the table is not what it should be, until it is written anew; else empty."""
        self.kernel = Kernel(settings, owner=settings.firewall.owner)
        self._binder = Binder(self.kernel.bridge, lambda: self.kernel.pods)
        self._conntrack = Conntrack()
        self._settings = settings
        self._servers = servers
        self._roster = roster
        self._ledger = ledger
        self._known = known
        self._clock = clock
        self._wake = wake
        self._watch: Watch | None = None
        self._holding = False
        self._mends: deque[float] = deque(maxlen=MEND_BURST)
        self._routes_damaged = False
        self._routing: asyncio.Future[None] | None = None
        self._compared_at = 0.0
        self._uncut = Moved()
        self._revoked: dict[tuple[bytes, bytes], float] = {}
        self._services_taken = False

    # ------------------------------------------------------------------------------------- begin and end

    def begin(self, loop: asyncio.AbstractEventLoop) -> int:
        """Take over what an earlier run left, and write the whole state; returns how many grants were taken over.

        Sockets must be open: interception begins in the same transaction. Raises `EgressError`.
        """
        now = self._compared_at = self._clock()
        restored = restore(self.kernel, self._roster, self._ledger, self._known, now)
        self._revoked = dict.fromkeys(restored.revoked, now + REVOKED_S)
        install_routes(self._settings, self._servers)
        self._write()
        self._listen(loop)
        return restored.grants

    def release(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let go of the table, which stays and enforces, for a successor or for the next start."""
        if self._holding:
            self._holding = False
            self._stop_watching(loop)
            self._binder.close()
            self.kernel.close()

    def reclaim(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the table back that no successor wanted. Raises `EgressError` if one has it after all."""
        self.kernel.reopen()
        self._write()
        self._listen(loop)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        self.release(loop)
        self.kernel.close()
        self._conntrack.close()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        firewall = self._settings.firewall
        watch = self._watch = Watch(firewall.table, firewall.route_table, self._table_touched, self._routes_touched)
        watch.ignore(self.kernel.port)
        loop.add_reader(watch.rules.fileno(), watch.read_rules)
        loop.add_reader(watch.routing.fileno(), watch.read_routing)
        self._binder.open(loop)
        self._holding = True

    def _stop_watching(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._watch is not None:
            loop.remove_reader(self._watch.rules.fileno())
            loop.remove_reader(self._watch.routing.fileno())
            self._watch.close()
            self._watch = None

    # --------------------------------------------------------------------------------------------- change

    def apply(self, change: Change, now: float) -> None:
        """Make a change; one that the kernel refuses is written with all the rest at the next repair."""
        try:
            self.kernel.apply(change)
        except KernelError as error:
            self.counters["change"] += 1
            log.error("the kernel refused a change: %s; the whole state is written anew", error)
            self._ledger.doubt(change.grants)
            self.damage = self.damage or "a change was refused"
        self._binder.follow()
        for pair in change.revoked:
            self._revoked[pair] = now + REVOKED_S

    def program(self, elements: Sequence[Element]) -> None:
        """Write grants; raises `KernelError`, and then the answer they are for is not given."""
        try:
            self.kernel.program(elements)
        except KernelError as error:
            if error.errno == errno.ENOENT:  # somebody else took a set, or the table
                self.damage = self.damage or "a set of grants is gone"
            raise

    def withdraw(self, elements: Sequence[Element]) -> None:
        """Take grants out that a bound pushed out of the ledger."""
        try:
            self.kernel.apply(Change(gone_grants=list(elements)))
        except KernelError as error:
            log.warning("the kernel kept %d elements that a bound pushed out: %s", len(elements), error)

    def beat(self) -> None:
        """Renew the heartbeat."""
        try:
            self.kernel.heartbeat()
        except KernelError as error:
            self.counters["heartbeat"] += 1
            log.error("heartbeat: %s; the table is written anew", error)
            self.damage = self.damage or "the heartbeat was refused"

    # ------------------------------------------------------------------------------------- others' hands

    def tick(self, loop: asyncio.AbstractEventLoop, now: float) -> bool:
        """What is due: repairs, cuts, the comparison. Returns whether the table was mended.

        Raises `EnvironmentProblem` if another egressd has the table.
        """
        if not self._holding:
            return False
        if now - self._compared_at >= COMPARE_S:
            self._compared_at = now
            self._compare(loop)
        mended = self._mend(now)
        self._mend_routes(loop)
        self._settle_cuts(now)
        return mended

    def _table_touched(self) -> None:
        self.damage = self.damage or "another program changed it"
        self._wake()

    def _too_soon(self, now: float) -> bool:
        mends = self._mends
        busy = len(mends) == MEND_BURST and now - mends[0] < MEND_BURST_S
        return busy and now - mends[-1] < MEND_PAUSE_S

    def _routes_touched(self) -> None:
        self._routes_damaged = True

    def _compare(self, loop: asyncio.AbstractEventLoop) -> None:
        """The second look, for what the watch did not hear of."""
        try:
            if not self.kernel.untouched():
                self.damage = self.damage or self.kernel.difference()
        except EgressError as error:
            self.damage = self.damage or str(error)
        self._routing = self._routing or self._install_routes(loop)
        taken = takes_services()
        if taken and not self._services_taken:
            log.error("kube-proxy switched to IPVS mode: packets to Services are no longer judged; %s", taken.remedy)
        self._services_taken = taken is not None

    def _mend(self, now: float) -> bool:
        """Write everything anew, then end what was opened while the table was not whole."""
        if not self.damage or self._too_soon(now):
            return False
        self._mends.append(now)
        why, self.damage = self.damage, ""
        try:
            if self.kernel.usurped():
                raise EnvironmentProblem(
                    f"another egressd wrote the table inet {self._settings.firewall.table}: this one ends",
                    "run one egressd for a table",
                )
            self._write()
        except KernelError as error:
            log.error("the table could not be mended (%s): %s; trying again", why, error)
            self.damage = why
            return False
        self.counters["table_mended"] += 1
        log.warning("the table inet %s was written anew: %s", self._settings.firewall.table, why)
        self.cut(Moved(cut=set(self._roster.addresses())), now)
        return True

    def _write(self) -> None:
        now = self._clock()
        change = self._roster.whole(now)
        self._revoked = {
            pair: until for pair, until in self._revoked.items() if until > now and pair[0] in self._roster.parties
        }
        change.revoked = sorted(self._revoked)
        if self._watch is not None:
            self._watch.ignore(self.kernel.port)
        self.kernel.install(change, beating=True)
        self._binder.follow()

    def _mend_routes(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: a rule takes milliseconds through the library that knows routes."""
        if not self._routes_damaged or self._routing is not None:
            return
        self._routes_damaged = False
        self.counters["routes_mended"] += 1
        log.warning("another program took away a routing rule or route of ours: putting them back")
        self._routing = self._install_routes(loop)

    def _install_routes(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        done = loop.run_in_executor(None, install_routes, self._settings, self._servers)
        done.add_done_callback(self._routed)
        return done

    def _routed(self, done: asyncio.Future[None]) -> None:
        self._routing = None
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("routes for intercepted queries: %s", error)

    # ------------------------------------------------------------------------------------------- cutting

    def cut(self, moved: Moved, now: float) -> None:
        """End live connections that lost their sanction, within this call or, if the kernel refuses, the next ticks."""
        self._uncut.cut |= moved.cut
        self._uncut.gone |= moved.gone
        self._settle_cuts(now)

    def _settle_cuts(self, now: float) -> None:
        moved = self._uncut
        if not (moved.cut or moved.gone):
            return
        try:
            self._cut(moved, now)
        except KernelError as error:
            self.counters["failed_cuts"] += 1
            log.error("connections that lost their sanction could not all be cut: %s; trying again", error)
        else:
            self._uncut = Moved()

    def _cut(self, moved: Moved, now: float) -> None:
        """Read the entries, shut both directions, delete the entries: in this order nothing comes back in between."""
        unsanctioned: list[Entry] = []
        for address in moved.gone | moved.cut:
            if address in moved.gone or not self._roster.drains(address):
                unsanctioned += [
                    entry
                    for entry in self._conntrack.entries(address)
                    if not self._roster.sanctions(address, entry.destination, entry.protocol, entry.port, now)
                ]
        if not unsanctioned:
            return
        pairs = {(entry.source, entry.destination) for entry in unsanctioned if entry.source in self._roster.parties}
        self.kernel.apply(Change(revoked=sorted(pairs)))
        self._revoked |= dict.fromkeys(pairs, now + REVOKED_S)
        self.counters["cut"] += self._conntrack.delete(unsanctioned)
