"""The front of asking: who shares a question, who is asked next, and when to give up.

What happens to a flight is decided here and nowhere else. Each report ends in exactly one of: it is finished (every
waiter gets the same answer or failure), it is asked once more, or it goes on waiting.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from egressd.errors import EnvironmentProblem, WireError
from egressd.settings import Upstream
from egressd.upstream.choice import Choice
from egressd.upstream.datagrams import Channel, DatagramCarrier, Datagrams
from egressd.upstream.flight import NO_REACHABLE_AUTHORITY, Carrier, Failure, Flight, Holder, Server
from egressd.upstream.health import FIRST_WAIT_S, LONGEST_WAIT_S, Health
from egressd.upstream.replies import bare_error_of, repeats
from egressd.upstream.streams import StreamCarrier
from egressd.upstream.tls import trusting
from egressd.upstream.understood import Understood
from egressd.wire import MAX_RECORDS, Answer, Question, rcode_text

__all__ = ["Deliver", "Upstreams"]

log = logging.getLogger("egressd.upstream")

BUDGET_S: Final = 4.0
"""Seconds for one question, retries included: less than the 5 s after which resolvers ask again."""
STREAM_BUDGET_S: Final = 8.0
"""Seconds for one question whose answer does not fit a datagram."""
MIN_ATTEMPTS: Final = 7
"""How often a question is sent before it is given up, however few upstreams there are: from 50 ms on, each wait twice
as long as the one before, seven fill the budget; from 0.8 s on, three."""
LAST_S: Final = 0.25
"""With less than that left nothing is sent any more."""
SWEEP_S: Final = 0.025
SAMPLE_S: Final = 0.001
"""Of the answers of one wake of the loop the first says how fast a server is; the others would say the same."""

_ELSEWHERE: Final = frozenset({2, 5})
"""SERVFAIL and REFUSED: another upstream may know better."""
_NO_EDNS: Final = frozenset({1, 4})
"""FORMERR and NOTIMP: what servers that do not know EDNS say to it (RFC 6891 section 7)."""

_COUNTERS: Final = (
    "asked",  # questions that were new
    "shared",  # questions that joined one in flight
    "sent",  # queries on the wire, retries included
    "answered",
    "failed",  # questions without any answer to pass on
    "timeouts",
    "unreachable",  # ICMP errors, refused connections, no route
    "servfail",  # SERVFAIL or REFUSED from an upstream
    "truncated",  # asked again over TCP
    "no_edns",  # asked again without EDNS
    "forged",  # datagrams with an ID or question never asked, late ones too: ignored
    "malformed",  # answers to our question that cannot be read
    "sockets",  # UDP sockets opened
    "connections",  # TCP connections opened, those of TLS and HTTPS too
    "distrusted",  # certificates refused
    "hung_up",  # asked again because an idle connection was closed under the question
    "probes",  # questions asked twice, to measure an upstream
)

Deliver = Callable[[list[tuple[Any, Answer | Failure]]], None]
"""Gets, together, everything that one wake of the loop has settled: waiter and outcome."""


class Upstreams:
    """Asks the configured resolvers; each `ask` leads to one delivery for its waiter, unless `close` comes first.

    `source_mark` is put on every packet to an upstream (0: none), EDNS `options` into every query. The certificates of
    encrypted upstreams are judged by those in `ca_file`, or by the system's. Raises `EnvironmentProblem` where there
    are none. Works with asyncio's loop and with uvloop.

    With `gather`, queries over UDP wait for `push`, so that those of one batch leave together.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        upstreams: Sequence[Upstream],
        deliver: Deliver,
        *,
        max_records: int = MAX_RECORDS,
        source_mark: int = 0,
        options: bytes = b"",
        ca_file: str = "",
        gather: bool = False,
    ) -> None:
        if not upstreams:
            raise EnvironmentProblem("there is no upstream to ask", "list resolvers in dns.upstreams")
        self._options = options
        self._loop = loop
        self._deliver = deliver
        self._answers = Understood(max_records)
        self._flights: dict[bytes, Flight] = {}
        self._done: list[tuple[Any, Answer | Failure]] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._probes: dict[Server, Flight] = {}
        self._local: set[tuple[bytes, int]] = set()
        self.counters: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        self._datagrams = Datagrams(loop, self, self.counters, self._local, source_mark, gather=gather)
        self._servers = tuple(self._server(upstream, source_mark, ca_file) for upstream in upstreams)
        self._choice = Choice(self._servers)

    def ask(self, question: Question, waiter: Any) -> None:
        """Ask for `waiter`, who gets the outcome through `deliver`, never before this returns."""
        flight = self._flights.get(question.key)
        if flight is not None:
            flight.waiters.append(waiter)
            self.counters["shared"] += 1
            return
        now = self._loop.time()
        flight = self._flights[question.key] = Flight(
            question, waiter, self._choice.ordered(now), now, now + BUDGET_S, self._options
        )
        self.counters["asked"] += 1
        self._ask_next(flight, now, len(flight.order))
        if self._choice.due is not None:
            self._probe(question, self._choice.due, now)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_S, self._sweep)
        if self._done:
            self._loop.call_soon(self.flush)

    def asking(self, question: Question) -> bool:
        """Whether this question is in flight: one that an upstream's own address asks meanwhile has come round."""
        return question.key in self._flights

    def is_own(self, address: bytes, port: int) -> bool:
        """Whether a query from this source was sent by one of our own sockets, so has come back to us unanswered."""
        return (address, port) in self._local

    @property
    def healthy(self) -> tuple[Health, ...]:
        """How each upstream fares, in the order configured."""
        return tuple(server.health for server in self._servers)

    def __len__(self) -> int:
        """Questions in flight."""
        return len(self._flights)

    def close(self) -> None:
        """Close every socket; what is in flight is never delivered."""
        for flight in (*self._flights.values(), *self._probes.values()):
            flight.forget_tickets()
        self._flights.clear()
        self._probes.clear()
        self._done.clear()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for server in self._servers:
            server.carrier.close()
            server.stream.close()
        self._datagrams.close()

    # ------------------------------------------------------------------------------- reports of the carriers

    def replied(self, server: Server, flight: Flight, holder: Holder, ident: int, data: bytes) -> bool:
        """Judge a reply that carries the right ID; false means forged: nothing has changed, the wait goes on."""
        try:
            answer = self._answers.read(data, flight.question)
        except WireError as error:
            return self._unreadable(server, flight, holder, ident, data, error)
        self._note(server, flight, holder, ident, answer.rcode in _ELSEWHERE)
        if flight.probe:
            self._probed(flight)
        elif answer.truncated and isinstance(holder, Channel):
            self._ask_again(flight, server, server.stream, "truncated")
        elif answer.truncated:
            return self._unfit(server, flight, holder, ident, "a truncated answer where nothing limits its size")
        elif answer.rcode in _NO_EDNS and answer.opt is None and flight.edns:
            self._ask_plainly(flight, server, holder)
        elif answer.rcode in _ELSEWHERE:
            self.counters["servfail"] += 1
            flight.fallback = answer
            flight.drop_ticket(holder, ident)
            self._ask_next(flight, self._loop.time(), len(flight.order))
        else:
            self.counters["answered"] += 1
            self._finish(flight, answer)
        return True

    def failed(self, server: Server, flight: Flight, holder: Holder, ident: int, failure: Failure) -> None:
        """No reply will come for this ticket: on to the next upstream at once."""
        now = self._loop.time()
        self.counters["unreachable"] += 1
        if flight.probe:
            self._probe_failed(flight, now, failure.text)
            return
        flight.failure = failure
        flight.drop_ticket(holder, ident)
        self._stumble(server, now, 0.0, failure.text)
        self._ask_next(flight, now, len(flight.order))

    def hung_up(self, server: Server, flight: Flight, holder: Holder, ident: int, failure: Failure) -> None:
        """A good connection is gone: the same server once more over another one (RFC 7766 section 6.2.4)."""
        if flight.reopened or flight.probe:
            self.failed(server, flight, holder, ident, failure)
            return
        flight.reopened = True
        flight.failure = failure
        flight.drop_ticket(holder, ident)
        self.counters["hung_up"] += 1
        now = self._loop.time()
        if not self._send(flight, server, server.stream, now):
            self._ask_next(flight, now, len(flight.order))

    def flush(self) -> None:
        """Deliver what has been settled, and send what that led to."""
        self._datagrams.push()
        if self._done:
            done, self._done = self._done, []
            self._deliver(done)

    def push(self) -> None:
        """Send what was asked since the last time, with `gather`."""
        self._datagrams.push()
        if self._done:
            self._loop.call_soon(self.flush)

    # ------------------------------------------------------------------------------------- what comes next

    def _unreadable(
        self, server: Server, flight: Flight, holder: Holder, ident: int, data: bytes, error: WireError
    ) -> bool:
        """Tell a bad answer of the upstream's from a forged one: it repeats our question, or is a bare error header."""
        bare_error = bare_error_of(data)
        if bare_error in _NO_EDNS and flight.edns and not flight.probe:
            self._ask_plainly(flight, server, holder)
            return True
        if not bare_error and not repeats(data, flight.question):
            return False
        what = f"answered {rcode_text(bare_error)} alone" if bare_error else f"malformed answer ({error.message})"
        return self._unfit(server, flight, holder, ident, what)

    def _unfit(self, server: Server, flight: Flight, holder: Holder, ident: int, what: str) -> bool:
        """An answer to our question that cannot be passed on: on to the next upstream."""
        self.counters["malformed"] += 1
        now = self._loop.time()
        if flight.probe:
            self._probe_failed(flight, now, what)
            return True
        flight.failure = Failure(NO_REACHABLE_AUTHORITY, f"{server.health}: {what}")
        flight.drop_ticket(holder, ident)
        self._ask_next(flight, now, len(flight.order))
        return True

    def _ask_plainly(self, flight: Flight, server: Server, holder: Holder) -> None:
        flight.edns = False
        self._ask_again(flight, server, server.carrier if isinstance(holder, Channel) else server.stream, "no_edns")

    def _ask_again(self, flight: Flight, server: Server, carrier: Carrier, counter: str) -> None:
        """Ask the same server in another way, and forget what was asked in the old one."""
        self.counters[counter] += 1
        flight.forget_tickets()
        now = self._loop.time()
        if not self._send(flight, server, carrier, now):
            self._ask_next(flight, now, len(flight.order))

    def _ask_next(self, flight: Flight, now: float, attempts: int) -> None:
        """Ask the next upstream in turn while fewer than `attempts` were made; with none left, await what is asked."""
        order = flight.order
        while flight.attempts < attempts:
            server = order[flight.attempts % len(order)]
            flight.attempts += 1
            if self._send(flight, server, server.carrier, now):
                return
        if not flight.tickets:
            self._give_up(flight)

    def _send(self, flight: Flight, server: Server, carrier: Carrier, now: float) -> bool:
        if carrier is server.stream and carrier is not server.carrier:
            flight.expires = flight.started + STREAM_BUDGET_S
        tickets = len(flight.tickets)
        try:
            wait_s = carrier.send(flight, now)
        except OSError as error:
            self.counters["unreachable"] += 1
            flight.failure = Failure(NO_REACHABLE_AUTHORITY, f"{server.health}: {error.strerror}")
            self._stumble(server, now, 0.0, flight.failure.text)
            return False
        if len(flight.tickets) > tickets:  # else it waits there already, over a connection that loses nothing
            self.counters["sent"] += 1
            flight.asked = now
        flight.server = server
        deadline = now + wait_s
        flight.deadline = min(flight.expires, deadline)
        return True

    def _sweep(self) -> None:
        """Forty times a second while anything is in flight: the only clock that questions have."""
        now = self._loop.time()
        for flight in [flight for flight in self._probes.values() if flight.deadline <= now]:
            self._probe_failed(flight, now, f"{flight.server.health}: no answer in time")
        for flight in [flight for flight in self._flights.values() if flight.deadline <= now]:
            self._time_out(flight, now)
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if self._flights or self._probes else None
        self.flush()

    def _time_out(self, flight: Flight, now: float) -> None:
        self.counters["timeouts"] += 1
        flight.timeouts += 1
        flight.failure = Failure(NO_REACHABLE_AUTHORITY, f"{flight.server.health}: no answer in time")
        self._stumble(flight.server, now, flight.asked, flight.failure.text)
        awaited = (flight.asked or flight.started) + FIRST_WAIT_S
        if now >= flight.expires:
            self._give_up(flight)
        elif flight.fallback is not None and flight.attempts >= len(flight.order):
            if now >= awaited:
                self._give_up(flight)
            else:
                flight.deadline = awaited  # the last hope need not be quick
        else:
            flight.deadline = flight.expires  # of the last wait, if nobody is left to ask, or no time
            in_time = flight.expires - now > LAST_S
            self._ask_next(flight, now, max(len(flight.order), MIN_ATTEMPTS) if in_time else 0)

    def _give_up(self, flight: Flight) -> None:
        if flight.fallback is not None:
            self.counters["answered"] += 1
            self._finish(flight, flight.fallback)
        else:
            self.counters["failed"] += 1
            self._finish(flight, flight.failure or Failure(NO_REACHABLE_AUTHORITY, "no upstream could be asked"))

    def _finish(self, flight: Flight, outcome: Answer | Failure) -> None:
        for holder, ident in flight.tickets:
            holder.forget(ident)
        del self._flights[flight.question.key]
        for waiter in flight.waiters:
            self._done.append((waiter, outcome))

    # ------------------------------------------------------------------------------------------ upstreams

    def _note(self, server: Server, flight: Flight, holder: Holder, ident: int, refused: bool) -> None:
        """What an answer says of the server that gave it. A refusal that came quickly is no sign of speed."""
        health = server.health
        if refused or health.failures or health.refusals:
            if not health.healthy:
                self._choice.changed()
            health.answered(refused)
        now = self._loop.time()
        if refused or (now - health.sampled < SAMPLE_S and not flight.timeouts):
            return
        sent_at = flight.asked if len(flight.tickets) == 1 else flight.sent_at(holder, ident)
        if sent_at and (server.carrier is server.stream or isinstance(holder, Channel)):
            health.measured(now - sent_at, now)

    def _stumble(self, server: Server, now: float, asked: float, why: str) -> None:
        if server.health.stumbled(now, asked):
            self._choice.changed()
            if server.health.to_tell(now):
                log.warning("%s; %s", why, "others are asked first" if len(self._servers) > 1 else "there is no other")

    def _probe(self, question: Question, server: Server, now: float) -> None:
        """Ask a server what another is being asked anyway, to see whether and how fast it answers."""
        self._choice.measuring(server, now)
        if server in self._probes:
            return
        flight = Flight(question, None, (server,), now, now + LONGEST_WAIT_S, self._options)
        flight.probe = True
        if self._send(flight, server, server.carrier, now):
            flight.deadline = flight.expires
            self._probes[server] = flight
            self.counters["probes"] += 1
        else:
            server.health.pause(now)

    def _probed(self, flight: Flight) -> None:
        flight.forget_tickets()
        self._probes.pop(flight.server, None)

    def _probe_failed(self, flight: Flight, now: float, why: str) -> None:
        self._probed(flight)
        self._stumble(flight.server, now, flight.started, why)
        flight.server.health.pause(now)

    def _server(self, upstream: Upstream, mark: int, ca_file: str) -> Server:
        health = Health(upstream)
        context = trusting(health, ca_file) if upstream.scheme in {"tls", "https"} else None
        stream: Carrier
        if upstream.scheme == "https":
            from egressd.upstream.https import HttpsCarrier  # the one library that few need

            stream = HttpsCarrier(self._loop, self, upstream, context, mark, self.counters)
        else:
            stream = StreamCarrier(self._loop, self, upstream, context, mark, self.counters, self._local)
        datagram = DatagramCarrier(self._datagrams, upstream)
        server = Server(upstream, health, datagram if upstream.scheme == "udp" else stream, stream)
        stream.server = datagram.server = server
        return server
