"""The kernel as this daemon keeps it: written, watched, mended, cut, and handed on.

What another hand does to table, rules or routes is put right from memory in one transaction (kernel.md, Others'
hands). An error of the kernel is never taken for success: a change it refused is written again with all the rest, a
cut it refused is tried again, and a grant it refused costs the answer.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from typing import TYPE_CHECKING, Final

from egressd.agent.cuts import Cuts
from egressd.agent.eviction import Eviction
from egressd.agent.preflight import takes_services
from egressd.agent.recovery import restore
from egressd.agent.roster import Moved
from egressd.errors import EgressError, EnvironmentProblem, KernelError
from egressd.kernel import Change, Kernel
from egressd.kernel.bridge import Binder
from egressd.kernel.conntrack import TCP
from egressd.kernel.routes import Routes, install_routes
from egressd.kernel.watch import Watch
from egressd.model import Verdict

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from egressd.agent.roster import Roster
    from egressd.exchange import LastKnown
    from egressd.grants import Admission, Element, Ledger
    from egressd.kernel.nflog import Report
    from egressd.settings import Settings

__all__ = ["Enforcement"]

log = logging.getLogger("egressd.agent")

MEND_PAUSE_S: Final = 0.3
MEND_BURST, MEND_BURST_S = 8, 10.0
"""Repairs follow damage at once; past so many in so many seconds they come at this distance, so that somebody who
breaks things in a loop does not occupy us."""
COMPARE_S: Final = 5.0
COUNTERS: Final = ("change", "heartbeat", "table_mended", "routes_mended", "cut", "failed_cuts", "put_back")
"""Changes and heartbeats that the kernel refused, repairs, connections cut, attempts to cut that failed, connections
put back that the kernel had forgotten."""


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
        self.cuts = Cuts(self.kernel, roster, self.counters)
        self._eviction = Eviction(roster, ledger, self._push_out)
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
        self._complaint = ""
        self._routes: Routes | None = None
        self._routes_damaged = False
        self._routes_complaint = ""
        self._compared_at = 0.0
        self._services_taken = False

    # ------------------------------------------------------------------------------------- begin and end

    def begin(self, loop: asyncio.AbstractEventLoop) -> int:
        """Take over what an earlier run left, and write the whole state; returns how many grants were taken over.

        Sockets must be open: interception begins in the same transaction. Raises `EgressError`.
        """
        now = self._compared_at = self._clock()
        restored = restore(self.kernel, self._roster, self._ledger, self._known, now)
        self.cuts.take_over(restored.revoked, restored.lapsed, now)
        install_routes(self._settings, self._servers)
        self._routes = Routes(self._settings, self._servers)
        self._write()
        self._listen(loop)
        return restored.grants

    def release(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let go of the table, which stays and enforces, for a successor or for the next start."""
        if self._holding:
            self._holding = False
            self._stop_watching(loop)
            self._binder.close()
            self._eviction.forget()
            self.kernel.close()

    def reclaim(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take the table back that no successor wanted. Raises `EgressError` if one has it after all."""
        self.kernel.reopen()
        self._write()
        self._listen(loop)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        self.release(loop)
        self.kernel.close()
        self.cuts.close()
        self._eviction.close()
        if self._routes is not None:
            self._routes.close()

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

    def apply(self, change: Change) -> None:
        """Make a change; one that the kernel refuses is written with all the rest at the next repair."""
        if change == Change():
            return
        try:
            self.kernel.apply(change)
        except EgressError as error:
            self.counters["change"] += 1
            log.error("the kernel refused a change: %s; the whole state is written anew", error)
            self._ledger.doubt(change.grants)
            self.damage = self.damage or "a change was refused"
        if change.pods or change.gone_pods:
            self._binder.follow()

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
        except EgressError as error:
            log.warning("the kernel kept %d elements that a bound pushed out: %s", len(elements), error)

    def _push_out(self, admission: Admission) -> None:
        """Take grants out as a bound asks, with what others that hold the same addresses have left."""
        try:
            self.kernel.apply(Change(grants=admission.writes, gone_grants=admission.gone))
        except EgressError as error:
            self._ledger.doubt(admission.writes)
            log.warning("the kernel kept %d elements that a bound pushed out: %s", len(admission.gone), error)

    def beat(self) -> None:
        """Renew the heartbeat."""
        try:
            self.kernel.heartbeat()
        except KernelError as error:
            self.counters["heartbeat"] += 1
            log.error("heartbeat: %s; the table is written anew", error)
            self.damage = self.damage or "the heartbeat was refused"

    # ------------------------------------------------------------------------------------- others' hands

    def tick(self, now: float) -> bool:
        """What is due: repairs, cuts, the comparison. Returns whether the table was mended.

        Raises `EnvironmentProblem` if another egressd has the table.
        """
        if not self._holding:
            return False
        if now - self._compared_at >= COMPARE_S:
            self._compared_at = now
            self._compare()
        mended = self._mend(now)
        self._mend_routes()
        self.cuts.tick(now)
        self._eviction.tick(now)
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
        self._wake()

    def _compare(self) -> None:
        """The second look, for what the watch did not hear of."""
        try:
            if not self.kernel.untouched():
                self.damage = self.damage or self.kernel.difference()
        except EgressError as error:
            self.damage = self.damage or str(error)
        self._put_routes_back()
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
            usurped = self.kernel.usurped()
            if not usurped:
                self._write()
        except EgressError as error:  # missing rights too: whoever took them may give them back
            if str(error) != self._complaint:
                log.error("the table could not be mended (%s): %s; trying again", why, error)
            self._complaint, self.damage = str(error), why
            return False
        if usurped:
            raise EnvironmentProblem(
                f"another egressd wrote the table inet {self._settings.firewall.table}: this one ends",
                "run one egressd for a table",
            )
        self._complaint = ""
        self.counters["table_mended"] += 1
        log.warning("the table inet %s was written anew: %s", self._settings.firewall.table, why)
        self.cuts.cut(Moved(cut=set(self._roster.addresses())), now)
        return True

    def _write(self) -> None:
        now = self._clock()
        change = self._roster.whole(now)
        change.revoked = self.cuts.shut(now)
        if self._watch is not None:
            self._watch.ignore(self.kernel.port)
        self.kernel.install(change, beating=True)
        self._binder.follow()

    def _mend_routes(self) -> None:
        """At once, as queries are lost for as long as a rule or route is missing; when refused, with the next tick."""
        if not self._routes_damaged:
            return
        self._routes_damaged = False
        if self._put_routes_back():
            self.counters["routes_mended"] += 1
            log.warning("another program took away a routing rule or route of ours: putting them back")

    def _put_routes_back(self) -> bool:
        if self._routes is None:
            return False
        complaint = ""
        try:
            self._routes.put_back()
        except EgressError as error:
            complaint = str(error)
            self._routes_damaged = True
        if complaint and complaint != self._routes_complaint:
            log.error("routes for intercepted queries: %s; trying again", complaint)
        self._routes_complaint = complaint
        return not complaint

    def put_back(self, report: Report, now: float) -> None:
        """A packet of a TCP connection that the kernel does not know came for a pod (chain `forgotten`).

        If the pod may open that connection now, its entry is put back as it was, from the pod's side; what the other
        end repeats then finds it. What was cut may not be opened, and stays shut.
        """
        pod, peer = report.destination, report.source
        if min(report.port, report.source_port) < 0 or not self._may_open(pod, peer, report.source_port, now):
            return
        try:
            self.counters["put_back"] += self.cuts.conntrack.restore(pod, report.port, peer, report.source_port)
        except KernelError as error:
            log.warning("a forgotten connection was not put back: %s", error)

    def _may_open(self, pod: bytes, peer: bytes, port: int, now: float) -> bool:
        """Whether the kernel would let a new connection pass: a grant that is alive, or a rule about addresses."""
        party = self._roster.parties.get(pod)
        if party is None or self.cuts.keeps_shut(pod, peer, now):
            return False
        judge = party.judge
        if judge is None or not judge.enforced or self._ledger.opens(party.subject, peer, TCP, port, now):
            return True
        return judge.judge_destination((), peer, TCP, port).verdict is Verdict.ALLOWED
