"""The front of asking: who shares a question, who is asked next, and when to give up.

What happens to a flight is decided here and nowhere else. Each report ends in exactly one of: it is finished (every
waiter gets the same answer or failure), it is asked once more, or it goes on waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

from egressd.errors import EnvironmentProblem, WireError
from egressd.settings import Upstream
from egressd.upstream.datagrams import Channel, DatagramCarrier, Datagrams
from egressd.upstream.flight import NO_REACHABLE_AUTHORITY, Carrier, Failure, Flight, Holder, Server
from egressd.upstream.health import Health
from egressd.upstream.streams import StreamCarrier
from egressd.wire import MAX_RECORDS, Answer, Question, rcode_text, read_answer

__all__ = ["Deliver", "Upstreams"]

BUDGET_S: Final = 4.0
"""Seconds for one question over UDP, retries included: less than the 5 s after which resolvers ask again."""
STREAM_BUDGET_S: Final = 8.0
"""Seconds for one question that TCP was needed for."""
MIN_ATTEMPTS: Final = 3
"""How often a question is sent before it is given up, however few upstreams there are."""
SWEEP_S: Final = 0.1

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
)

Deliver = Callable[[list[tuple[Any, Answer | Failure]]], None]
"""Gets, together, everything that one wake of the loop has settled: waiter and outcome."""


class Upstreams:
    """Asks the configured resolvers; each `ask` leads to one delivery for its waiter, unless `close` comes first.

    `source_mark` is put on every packet to an upstream (0: none), EDNS `options` into every query. Raises
    `EnvironmentProblem` for upstreams that this version cannot ask. Works with asyncio's loop and with uvloop.
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
    ) -> None:
        _check(upstreams)
        self._options = options
        self._loop = loop
        self._deliver = deliver
        self._max_records = max_records
        self._flights: dict[bytes, Flight] = {}
        self._done: list[tuple[Any, Answer | Failure]] = []
        self._sweeper: asyncio.TimerHandle | None = None
        self._stumbled = False
        self._local: set[tuple[bytes, int]] = set()
        self.counters: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        self._datagrams = Datagrams(loop, self, self.counters, self._local, source_mark)
        self._servers = tuple(self._server(upstream, source_mark) for upstream in upstreams)

    def ask(self, question: Question, waiter: Any) -> None:
        """Ask for `waiter`, who gets the outcome through `deliver`, never before this returns."""
        flight = self._flights.get(question.key)
        if flight is not None:
            flight.waiters.append(waiter)
            self.counters["shared"] += 1
            return
        now = self._loop.time()
        flight = self._flights[question.key] = Flight(
            question, waiter, self._ordered(now), now, now + BUDGET_S, self._options
        )
        self.counters["asked"] += 1
        self._ask_next(flight, now, len(flight.order))
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
        for flight in self._flights.values():
            flight.forget_tickets()
        self._flights.clear()
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
            answer = read_answer(data, flight.question, self._max_records)
        except WireError as error:
            return self._unreadable(server, flight, holder, ident, data, error)
        if server.health.failures:
            server.health.succeeded()
        if answer.truncated and isinstance(holder, Channel):
            self._ask_again(flight, server, server.stream, "truncated")
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
        flight.failure = failure
        flight.drop_ticket(holder, ident)
        self._stumble(server, now)
        self._ask_next(flight, now, len(flight.order))

    def flush(self) -> None:
        """Deliver what has been settled."""
        if self._done:
            done, self._done = self._done, []
            self._deliver(done)

    # ------------------------------------------------------------------------------------- what comes next

    def _unreadable(
        self, server: Server, flight: Flight, holder: Holder, ident: int, data: bytes, error: WireError
    ) -> bool:
        """Tell a bad answer of the upstream's from a forged one: it repeats our question, or is a bare error header."""
        bare_error = _bare_error(data)
        if bare_error in _NO_EDNS and flight.edns:
            self._ask_plainly(flight, server, holder)
            return True
        if not bare_error and not _repeats(data, flight.question):
            return False
        self.counters["malformed"] += 1
        what = f"answered {rcode_text(bare_error)} alone" if bare_error else f"malformed answer ({error.message})"
        flight.failure = Failure(NO_REACHABLE_AUTHORITY, f"{server.health}: {what}")
        flight.drop_ticket(holder, ident)
        self._ask_next(flight, self._loop.time(), len(flight.order))
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
        if carrier is server.stream:
            flight.expires = flight.started + STREAM_BUDGET_S
        try:
            wait_s = carrier.send(flight, now)
        except OSError as error:
            self.counters["unreachable"] += 1
            flight.failure = Failure(NO_REACHABLE_AUTHORITY, f"{server.health}: {error.strerror}")
            self._stumble(server, now)
            return False
        self.counters["sent"] += 1
        flight.server = server
        deadline = now + wait_s
        flight.deadline = min(flight.expires, deadline)
        return True

    def _sweep(self) -> None:
        """Every tenth of a second while anything is in flight: the only clock that questions have."""
        now = self._loop.time()
        for flight in [flight for flight in self._flights.values() if flight.deadline <= now]:
            self._time_out(flight, now)
        self._sweeper = self._loop.call_later(SWEEP_S, self._sweep) if self._flights else None
        self.flush()

    def _time_out(self, flight: Flight, now: float) -> None:
        self.counters["timeouts"] += 1
        flight.timeouts += 1
        flight.failure = Failure(NO_REACHABLE_AUTHORITY, f"{flight.server.health}: no answer in time")
        self._stumble(flight.server, now)
        all_asked = flight.attempts >= len(flight.order)
        if now >= flight.expires or (all_asked and flight.fallback is not None):
            self._give_up(flight)
        else:
            flight.deadline = flight.expires  # of the last wait, if nobody is left to ask
            self._ask_next(flight, now, max(len(flight.order), MIN_ATTEMPTS))

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

    def _ordered(self, now: float) -> tuple[Server, ...]:
        """Upstreams as configured, those to be avoided last."""
        if not self._stumbled:
            return self._servers
        self._stumbled = any(server.health.failures for server in self._servers)
        return tuple(sorted(self._servers, key=lambda server: server.health.avoided(now)))

    def _stumble(self, server: Server, now: float) -> None:
        self._stumbled = True
        server.health.stumbled(now)

    def _server(self, upstream: Upstream, mark: int) -> Server:
        stream = StreamCarrier(self._loop, self, upstream, self._local, mark)
        datagram = DatagramCarrier(self._datagrams, upstream)
        server = Server(upstream, Health(upstream), stream if upstream.scheme == "tcp" else datagram, stream)
        stream.server = datagram.server = server
        return server


def _check(upstreams: Sequence[Upstream]) -> None:
    if not upstreams:
        raise EnvironmentProblem("there is no upstream to ask", "list resolvers in dns.upstreams")
    for upstream in upstreams:
        if upstream.scheme not in {"udp", "tcp"}:
            what = f"upstream {Health(upstream)}: {upstream.scheme} is not in this version"
            raise EnvironmentProblem(what, "use a resolver over udp or tcp")


def _bare_error(data: bytes) -> int:
    """The rcode of a response that is an error and a header, nothing more; 0 for anything else.

    Servers that could not read a question say so (RFC 1035 section 4.1.1), and cannot repeat it.
    """
    is_response = len(data) == 12 and data[2] & 0xF8 == 0x80
    return data[3] & 15 if is_response and not any(data[4:]) else 0


def _repeats(data: bytes, question: Question) -> bool:
    """Whether this is a response that carries our question, whatever comes behind it."""
    if len(data) < 12 or data[2] & 0xF8 != 0x80 or data[4:6] != b"\0\1":
        return False
    asked = question.key[: len(question.raw)]
    said = data[12 : 12 + len(asked)]
    return said[:-4].lower() + said[-4:] == asked
