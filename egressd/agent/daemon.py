"""The data path of one node: sockets, grants and the kernel, put together around one event loop.

It reads DNS and netlink, and what its own control side says; nothing else. Everything here runs on one thread, and
no step blocks: a transaction with the kernel completes inside the system call.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Final

from egressd import link, wire
from egressd.agent.answers import Answers
from egressd.agent.child import AuditQueue, Beginning, Child
from egressd.agent.denials import Denials
from egressd.agent.recovery import restore_grants
from egressd.agent.roster import Moved, Roster
from egressd.agent.stats import Counted, stats
from egressd.audit.lines import Renderer
from egressd.errors import KernelError
from egressd.exchange import Exchange, LastKnown, Parts
from egressd.grants import Element, Ledger
from egressd.kernel import Change, Kernel
from egressd.kernel.conntrack import Conntrack, Entry
from egressd.kernel.nflog import NflogReader
from egressd.kernel.routes import install_routes
from egressd.listen import Listener
from egressd.model import DnsRecord, FlowRecord, Reason, Verdict
from egressd.policy import ClusterFacts
from egressd.upstream import Upstreams

if TYPE_CHECKING:
    from egressd.settings import Settings

__all__ = ["Daemon"]

log = logging.getLogger("egressd.agent")

HEARTBEAT_S: Final = 1.0
TICK_S: Final = 0.1
FLUSH_S: Final = 0.1
EXPIRE_S: Final = 1.0
STATS_S: Final = 1.0


class Daemon:
    """Everything a node runs, from the first word of its control side to SIGTERM."""

    def __init__(self, settings: Settings, arguments: list[str]) -> None:
        self.settings = settings
        self.servers = settings.dns.servers or tuple(upstream.address for upstream in settings.dns.upstreams)
        grants = settings.grants
        self.ledger = Ledger(minimum_s=grants.min, grace_s=grants.grace, per_name=grants.per_name, total=grants.total)
        self.known = LastKnown()
        self.facts = ClusterFacts(settings.cluster_cidrs, settings.cluster_domains, settings.in_cluster == "Enforce")
        self.roster = Roster(self.facts, self.ledger, self.known, intercept_all=settings.dns.intercept == "All")
        self.kernel = Kernel(settings)
        self.conntrack = Conntrack()
        self.renderer = Renderer(settings.node)
        self.queue = AuditQueue(settings.audit.queue, self._dropped_line)
        self.child = Child(arguments, self.queue, self._heard, self._child_lost)
        self.answers = Answers(self.roster, self.ledger, self.known, time.monotonic)
        self.serving = False
        self._flows: Counter[tuple[Verdict, Reason]] = Counter()
        self._refusals: Counter[str] = Counter()
        self._started = time.time()
        self._mentioned: tuple[set[str], set[bytes]] = (set(), set())
        self._heard_updates = 0
        self._dirty = False
        self._stop = asyncio.Event()

    # -------------------------------------------------------------------------------------- life

    async def run(self, beginning: Beginning) -> None:
        """Serve until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        self._build(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.child.send(link.Reload()))
        await self.child.adopt(beginning)
        timers = [
            loop.create_task(_every(HEARTBEAT_S, self._beat)),
            loop.create_task(_every(TICK_S, self._tick)),
            loop.create_task(_every(FLUSH_S, self.child.flush)),
            loop.create_task(_every(EXPIRE_S, self._expire)),
            loop.create_task(_every(STATS_S, self._tell_stats)),
        ]
        await self._stop.wait()
        for timer in timers:
            timer.cancel()
        await self._close(loop)

    def _build(self, loop: asyncio.AbstractEventLoop) -> None:
        settings = self.settings
        loop_option = wire.loop_option(os.urandom(12))
        self.upstreams = Upstreams(
            loop,
            settings.dns.upstreams,
            lambda answers: self.exchange.deliver(answers),
            max_records=settings.budgets.answer_records,
            options=loop_option,
        )
        self.exchange = Exchange(
            settings,
            Parts(
                parties=self.roster.parties,
                ledger=self.ledger,
                known=self.known,
                ask=self.upstreams.ask,
                program=self._program,
                loop_option=loop_option,
                withdraw=self._withdraw,
                record=self._record_dns,
                clock=time.monotonic,
                wall=time.time,
            ),
        )
        self.listener = Listener(loop, settings, self.servers, self.exchange.receive)
        self.denials = Denials(self.roster.parties, self.known, self._record_flow, time.time)
        self.nflog = NflogReader(settings.firewall.log_group, self.denials.report)

    async def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop asking and answering; what is in the kernel stays, and enforces (dns.md, Staying up)."""
        if self.serving:
            self.listener.close()
            loop.remove_reader(self.nflog.fileno())
        self.upstreams.close()
        await self.child.close()
        self.nflog.close()
        self.kernel.close()

    # ---------------------------------------------------------------------------- the control side

    def _heard(self, message: link.Down) -> None:
        if isinstance(message, link.Update):
            self._mentioned[0].update(policy.name for policy in message.policies)
            self._mentioned[1].update(entry.address for entry in message.pods)
            self._update(message)
            self._heard_updates += 1
            self._confirm()
        elif isinstance(message, link.Synced):
            gone_policies, gone_pods = self.roster.stale(*self._mentioned)
            if gone_policies or gone_pods:
                self._update(link.Update(gone_policies=gone_policies, gone_pods=gone_pods))
            self._serve()
            self._confirm()
            self.child.settled()
        elif isinstance(message, link.Ready):
            self._mentioned = (set(), set())
            self._heard_updates = 0
            self._resettle(message.settings)
        elif isinstance(message, link.Ask):
            self.child.send(self.answers.answer(message))
        elif isinstance(message, link.Refused):
            log.error("the control side refuses the settings; the last good ones stay in force")

    def _confirm(self) -> None:
        """Tell the control side that all it said so far is in the kernel, if it is."""
        if self.serving and not self._dirty:
            self.child.send(link.Applied(self._heard_updates))

    def _child_lost(self) -> None:
        self._mentioned = (set(), set())

    def _resettle(self, settings: Settings) -> None:
        """Settings came again (a new control side, SIGHUP): what differs is said, and taken at the next start."""
        differing = [f.name for f in fields(settings) if getattr(settings, f.name) != getattr(self.settings, f.name)]
        if differing:
            log.warning("settings changed: %s; restart egressd to take them", ", ".join(differing))

    def _serve(self) -> None:
        """The world is known: take over table, routes and sockets from whoever had them before."""
        if self.serving:
            return
        now = time.monotonic()
        restored = restore_grants(self.kernel, self.roster, self.ledger, now)
        self.kernel.install(self.roster.whole(now))
        install_routes(self.settings, self.servers)
        self.listener.open()
        asyncio.get_running_loop().add_reader(self.nflog.fileno(), self.nflog.read_ready)
        self.kernel.heartbeat()
        self.serving = True
        counts = self.roster.counts()
        log.info(
            "ready: %d pods, %d policies, %d subjects, %d grants taken over",
            counts["pods"],
            counts["policies"],
            counts["subjects"],
            restored,
        )

    # --------------------------------------------------------------------------------- the kernel

    def _update(self, update: link.Update) -> None:
        now = time.monotonic()
        change, moved = self.roster.plan(update, now)
        if not self.serving:
            self.roster.settle(change)
            return
        try:
            self.kernel.apply(change)
        except KernelError as error:
            log.error("the kernel refused a change: %s; the whole state is written anew", error)
            self._refusals["change"] += 1
            self.ledger.doubt(change.grants)
            self._dirty = True
        fresh = self.roster.settle(change)
        self._cut(moved, now)
        self.exchange.learned(fresh)

    def _cut(self, moved: Moved, now: float) -> None:
        """End live connections that lost their sanction: conntrack entries out, and both directions kept shut."""
        unsanctioned: list[Entry] = []
        for address in moved.gone | moved.cut:
            if address in moved.gone or not self.roster.drains(address):
                unsanctioned += [
                    entry
                    for entry in self.conntrack.entries(address)
                    if not self.roster.sanctions(address, entry.destination, entry.protocol, entry.port, now)
                ]
        if not unsanctioned:
            return
        pairs = {(entry.source, entry.destination) for entry in unsanctioned if entry.source in self.roster.parties}
        self.kernel.apply(Change(revoked=sorted(pairs)))
        self.conntrack.delete(unsanctioned)

    def _program(self, elements: Sequence[Element]) -> None:
        try:
            self.kernel.program(elements)
        except KernelError as error:
            if error.errno == errno.ENOENT:  # somebody else took a set, or the table: the next beat writes it anew
                self._dirty = True
            raise

    def _withdraw(self, elements: Sequence[Element]) -> None:
        try:
            self.kernel.apply(Change(gone_grants=list(elements)))
        except KernelError as error:
            log.warning("the kernel kept %d elements that a bound pushed out: %s", len(elements), error)

    def _beat(self) -> None:
        if not self.serving:
            return
        try:
            if self._dirty:
                self.kernel.install(self.roster.whole(time.monotonic()))
                self._dirty = False
                self._confirm()
            self.kernel.heartbeat()
        except KernelError as error:
            log.error("heartbeat: %s; the table is written anew", error)
            self._refusals["heartbeat"] += 1
            self._dirty = True

    def _tick(self) -> None:
        self.exchange.tick(time.monotonic())

    def _expire(self) -> None:
        self.ledger.expire(time.monotonic())
        self.exchange.minute(time.monotonic())

    # -------------------------------------------------------------------------------------- records

    def _record_dns(self, record: DnsRecord) -> None:
        self.queue.put(self.renderer.dns_line(record))

    def _record_flow(self, record: FlowRecord) -> None:
        self._flows[record.verdict, record.reason] += 1
        self.queue.put(self.renderer.flow_line(record))

    def _tell_stats(self) -> None:
        """Say how it goes, unless the control side has fallen behind: the next one says it all the same."""
        if self.child.keeps_up:
            parts = Counted(
                self.exchange,
                self.upstreams,
                self.listener,
                self.ledger,
                self.roster,
                self.nflog,
                self.queue,
                self.child,
                self._flows,
                self._refusals,
            )
            refused = "the kernel refused a change, the log says which; the table is written anew" * self._dirty
            self.child.send(stats(parts, serving=self.serving, refused=refused, started=self._started))

    def _dropped_line(self, count: int) -> bytes:
        return self.renderer.dropped_line(count, time.time())


async def _every(period_s: float, action: Callable[[], None]) -> None:
    """Run `action` each period; an error is logged and the next period comes all the same."""
    while True:
        try:
            action()
        except Exception:
            log.exception("a periodic task failed")
        await asyncio.sleep(period_s)
