"""The data path of one node: sockets, grants and the kernel, put together around one event loop.

It reads DNS and netlink, and what its own control side says; nothing else. Everything here runs on one thread, and
no step blocks: a transaction with the kernel completes inside the system call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING, Final

from egressd import link, wire
from egressd.agent.answers import Answers
from egressd.agent.child import Beginning, Child
from egressd.agent.descriptors import Descriptors
from egressd.agent.enforcement import Enforcement
from egressd.agent.flows import Flows
from egressd.agent.garbage import Frost
from egressd.agent.orders import Orders
from egressd.agent.periodic import every
from egressd.agent.preflight import check
from egressd.agent.reports import Reports
from egressd.agent.roster import Roster
from egressd.agent.stats import Counted, stats
from egressd.agent.succession import Door, Parcel, inherit
from egressd.agent.trail import AuditQueue, Trail
from egressd.agent.watchdog import Watchdog
from egressd.audit.lines import Renderer
from egressd.errors import EgressError, EnvironmentProblem
from egressd.exchange import Exchange, LastKnown, Parts
from egressd.grants import Ledger
from egressd.listen import Endpoint, Listener
from egressd.names import Name
from egressd.policy import ClusterFacts
from egressd.upstream import Upstreams

if TYPE_CHECKING:
    from egressd.settings import Settings

__all__ = ["Daemon"]

log = logging.getLogger("egressd.agent")

HEARTBEAT_S: Final = 1.0
TICK_S: Final = 0.1
FLUSH_S: Final = 0.15
"""Between two batches of audit lines; each wakes the control side, and its file is to lack no more than 200 ms."""
EXPIRE_MOST: Final = 2_000
"""Grants forgotten in one tick, about 5 µs each: after a flood all end together, and nobody shall wait for that."""
MINUTE_LOOK_S: Final = 1.0
STATS_S: Final = 1.0
DRAIN_S: Final = 1.0
"""How long queries in flight may hold up a hand-over; the rest are answered SERVFAIL, and asked again."""
SETTLE_S: Final = 30.0
"""A process that has just taken over keeps the place: two supervisors that each restart theirs would play ping-pong."""


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
        self.enforcement = Enforcement(
            settings, self.servers, self.roster, self.ledger, self.known, time.monotonic, self._tick
        )
        self.watchdog = Watchdog()
        self.frost = Frost()
        self.descriptors = Descriptors()
        self.renderer = Renderer(settings.node)
        self.queue = AuditQueue(settings.audit.queue, self._dropped_line)
        self.trail = Trail(self.renderer, self.queue)
        self.orders = Orders(self)
        self.child = Child(arguments, self.queue, self.orders.hear, self.orders.lost)
        self.answers = Answers(
            self.roster,
            self.ledger,
            self.known,
            time.monotonic,
            lambda name: self.exchange.store.last(name, time.monotonic()),
        )
        self.serving = False
        flows = Flows(self.roster.parties, self.known, self._opens, time.time)
        self.reports = Reports(settings, flows, self.trail.flow, self.enforcement.put_back)
        self._started = time.time()
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._taking_over: asyncio.Task[None] | None = None
        self._door: Door | None = None
        self._inherited_at = 0.0

    # -------------------------------------------------------------------------------------- life

    async def run(self, beginning: Beginning) -> None:
        """Serve until SIGTERM or SIGINT, or until a successor does. Raises `EgressError` for what stops it."""
        check()
        loop = asyncio.get_running_loop()
        self._build(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.child.send(link.Reload()))
        await self.child.adopt(beginning)
        timers = [
            loop.create_task(every(HEARTBEAT_S, self._beat)),
            loop.create_task(every(TICK_S, self._tick)),
            loop.create_task(every(FLUSH_S, self.child.flush)),
            loop.create_task(every(MINUTE_LOOK_S, self._second)),
            loop.create_task(every(STATS_S, self._tell_stats)),
        ]
        self.watchdog.start()
        await self._stop.wait()
        for timer in timers:
            timer.cancel()
        await self._close(loop)
        if self._failure is not None:
            raise self._failure

    def _build(self, loop: asyncio.AbstractEventLoop) -> None:
        settings = self.settings
        loop_option = wire.loop_option(os.urandom(12))
        self.upstreams = Upstreams(
            loop,
            settings.dns.upstreams,
            lambda answers: self.exchange.deliver(answers),
            max_records=settings.budgets.answer_records,
            options=loop_option,
            gather=True,
            ca_file=settings.dns.ca_file,
        )
        self.exchange = Exchange(
            settings,
            Parts(
                parties=self.roster.parties,
                ledger=self.ledger,
                known=self.known,
                ask=self.upstreams.ask,
                program=self.enforcement.program,
                loop_option=loop_option,
                withdraw=self.enforcement.withdraw,
                record=self.trail.dns,
                form=self.renderer.dns_form,
                clock=time.monotonic,
                wall=time.time,
                repeat=self.trail.again,
                flush=self._flush,
            ),
        )
        self.listener = Listener(loop, settings, self.servers, self.exchange.receive)

    async def _close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stop asking and answering; what is in the kernel stays, and enforces (dns.md, Staying up)."""
        self.watchdog.stop()
        if self._taking_over is not None and not self._taking_over.done():
            self._taking_over.cancel()  # which hangs up: the older process serves again
            await asyncio.wait([self._taking_over])
        if self._door is not None:
            self._door.close()
        self.listener.close()
        if self.serving:
            self.reports.close(loop)
        self.serving = False
        self.enforcement.close(loop)
        self.upstreams.close()
        self.descriptors.close()
        await self.child.close()

    # ------------------------------------------------------------------------------------ taking over

    def begin(self) -> None:
        """The world is known: begin to serve, as the first or as the heir of the process that does."""
        if not self.serving and self._taking_over is None:
            self._taking_over = asyncio.get_running_loop().create_task(self._take_over())
            self._taking_over.add_done_callback(self._took_over)

    async def _take_over(self) -> None:
        loop = asyncio.get_running_loop()
        heir = await inherit(loop, self.settings.firewall.table)
        try:
            for pod, address, names in heir.parcel.known:
                for name in names:
                    self.known.note(pod, Name(name), (address,))
            await heir.check()
            self._serve(loop, heir.parcel)
            self._inherited_at = time.monotonic() if heir.follows else 0.0
            await heir.serve()
            if heir.place is not None:
                self._door = Door(loop, heir.place, self)
        finally:
            heir.close()

    def _took_over(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._fail(error)
            return
        self.orders.confirm()
        self.child.settled()

    def _serve(self, loop: asyncio.AbstractEventLoop, parcel: Parcel) -> None:
        """Sockets first, as interception begins with the table; none is read before this returns."""
        self.listener.open({Endpoint(*place): sock for place, sock in parcel.sockets.items()})
        restored = self.enforcement.begin(loop)
        self.reports.open(loop)
        self.serving = True
        self.frost.settle()
        for sock, received in parcel.streams:
            self.listener.adopt(sock, received)
        for place, address, port, data in parcel.held:
            client = self.listener.client(Endpoint(*place), address, port)
            if client is not None:
                self.exchange.receive([(data, client)])
        counts = self.roster.counts()
        log.info(
            "ready: %d pods, %d policies that select them, %d subjects, %d grants taken over",
            counts["pods"],
            counts["policies"],
            counts["subjects"],
            restored,
        )

    def _fail(self, error: BaseException) -> None:
        """End the process: what it says is the reason."""
        self._failure = self._failure or error
        self._stop.set()

    # -------------------------------------------------------------------------------------- handing over

    def unwilling(self) -> str:
        """Why this process does not hand over now (succession.Estate)."""
        if not self.serving:
            return "it is starting itself"
        if self._inherited_at and time.monotonic() - self._inherited_at < SETTLE_S:
            return f"it took over from another one less than {SETTLE_S:g} s ago"
        return ""

    async def settle(self) -> Parcel:
        """Finish what is in flight, `DRAIN_S` at most, and let go of everything but the sockets."""
        loop = asyncio.get_running_loop()
        self.listener.drain()
        deadline = time.monotonic() + DRAIN_S
        while self.exchange.in_flight and time.monotonic() < deadline:  # noqa: ASYNC110 - the hot path sets no events
            await asyncio.sleep(0.002)
        self.enforcement.beat()
        self.serving = False
        self.reports.close(loop)
        self.enforcement.release(loop)
        held = []
        for data, client in self.exchange.let_go():
            if client.transport == "udp":
                family = socket.AF_INET if len(client.address) == 4 else socket.AF_INET6
                held.append(((int(family), client.server, "udp"), client.address, client.port, data))
        return Parcel(
            {(int(place.family), place.server, place.transport): sock for place, sock in self.listener.sockets.items()},
            self.listener.connections(),
            held,
            [(pod, address, names) for (pod, address), names in self.known.entries()],
        )

    async def resume(self) -> None:
        """The successor did not come: everything as before."""
        loop = asyncio.get_running_loop()
        try:
            self.enforcement.reclaim(loop)
            self.reports.open(loop)
        except EgressError as error:
            self._fail(error)
            return
        self.serving = True
        self.listener.resume()

    def depart(self) -> None:
        """The successor serves: end with exit code 0."""
        log.info("handed over; this process ends")
        self._stop.set()

    # --------------------------------------------------------------------------------- the kernel

    def _beat(self) -> None:
        if self.serving:
            self.enforcement.beat()

    def _tick(self) -> None:
        self.watchdog.beat()
        self.exchange.tick(time.monotonic())
        self.reports.tick()
        self.ledger.expire(time.monotonic(), EXPIRE_MOST)
        try:
            if self.enforcement.tick(time.monotonic()):
                self.orders.confirm()
        except EnvironmentProblem as error:
            self._fail(error)

    def _second(self) -> None:
        self.exchange.minute(time.monotonic())

    # -------------------------------------------------------------------------------------- records

    def _flush(self) -> None:
        """A batch is done: what it asked and what it answered leaves."""
        self.upstreams.push()
        self.listener.flush()

    def _opens(self, subject: int, address: bytes, protocol: int, port: int) -> bool:
        return self.ledger.opens(subject, address, protocol, port, time.monotonic())

    def _tell_stats(self) -> None:
        """Say how it goes, unless the control side has fallen behind: the next one says it all the same."""
        self.descriptors.look()
        if self.child.keeps_up:
            parts = Counted(
                self.exchange,
                self.upstreams,
                self.listener,
                self.ledger,
                self.roster,
                self.reports.nflog,
                self.queue,
                self.child,
                self.reports.counts,
                self.reports.counters,
                self.enforcement.counters,
            )
            refused = self.enforcement.damage
            self.child.send(stats(parts, serving=self.serving, refused=refused, started=self._started))

    def _dropped_line(self, count: int) -> bytes:
        return self.renderer.dropped_line(count, time.time())
