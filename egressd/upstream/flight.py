"""One question on its way: who waits for it, where it was asked, and what may become of it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, Protocol

from egressd.settings import Upstream
from egressd.upstream.health import Health
from egressd.wire import Answer, Question

__all__ = ["NETWORK_ERROR", "NO_REACHABLE_AUTHORITY", "Carrier", "Failure", "Flight", "Holder", "Server", "Sink"]

NO_REACHABLE_AUTHORITY: Final = 22
NETWORK_ERROR: Final = 23
"""Extended DNS errors (RFC 8914 sections 4.23 and 4.24)."""


class Failure(NamedTuple):
    """No upstream gave an answer that can be passed on. `ede` is 22 or 23; `text` says why, for people."""

    ede: int
    text: str


class Holder(Protocol):
    """What waits for a reply on behalf of a flight: a UDP socket, a TCP connection."""

    def forget(self, ident: int) -> None:
        """Stop waiting for the reply with this ID."""


class Flight:
    """A question being asked. `tickets` are the replies still waited for, `attempts` how often it was sent.

    What seldom differs is said once, by the class: most flights are sent once, and answered.
    """

    server: Server
    """Whom it was sent to last, and until when the answer is waited for."""
    deadline: float
    asked: float
    """When it was sent last; 0 if that sending is known to have failed."""
    attempts = 0
    timeouts = 0
    edns = True
    probe = False
    """Sent to measure a server; nobody waits for it."""
    reopened = False
    """Whether it was asked again because a connection that had been good before was closed under it."""
    reshuffled = False
    """Whether the first ticket may be another than that of the first sending."""
    fallback: Answer | None = None
    """A SERVFAIL or REFUSED, passed on if nobody knows better."""
    failure: Failure | None = None

    def __init__(
        self, question: Question, waiter: Any, order: tuple[Server, ...], now: float, expires: float, options: bytes
    ) -> None:
        self.question = question
        self.waiters = [waiter]
        self.order = order
        self.options = options
        self.started = now
        self.expires = expires
        self.tickets: list[tuple[Holder, int]] = []

    def forget_tickets(self) -> None:
        """Stop waiting for anything asked so far."""
        for holder, ident in self.tickets:
            holder.forget(ident)
        self.tickets.clear()
        self.reshuffled = True

    def drop_ticket(self, holder: Holder, ident: int) -> None:
        """Stop waiting for one reply."""
        holder.forget(ident)
        place = self.tickets.index((holder, ident))
        del self.tickets[place]
        if not place:
            self.reshuffled = True
        if place == len(self.tickets):
            self.asked = 0.0

    def sent_at(self, holder: Holder, ident: int) -> float:
        """When the query left that one ticket waits for; 0 where that is not known any more."""
        ticket = (holder, ident)
        if self.tickets[-1] == ticket:
            return self.asked
        return self.started if self.tickets[0] == ticket and not self.reshuffled else 0.0


class Carrier(Protocol):
    """How questions travel to one server: over UDP, over TCP and TLS, or over HTTPS."""

    server: Server

    def send(self, flight: Flight, now: float) -> float:
        """Ask `flight.question`, add a ticket to the flight, return how many seconds to wait. Raises OSError."""

    def close(self) -> None: ...


class Server:
    """One configured upstream: where it is, how it fares, what carries questions to it."""

    __slots__ = ("carrier", "health", "stream", "upstream")

    def __init__(self, upstream: Upstream, health: Health, carrier: Carrier, stream: Carrier) -> None:
        self.upstream = upstream
        self.health = health
        self.carrier = carrier
        self.stream = stream
        """For answers that do not fit a datagram."""


class Sink(Protocol):
    """Where carriers report to. Each report concerns one ticket, which the receiver drops."""

    def replied(self, server: Server, flight: Flight, holder: Holder, ident: int, data: bytes) -> bool:
        """A reply with the right ID came from the server; false if it is forged and the wait goes on."""

    def failed(self, server: Server, flight: Flight, holder: Holder, ident: int, failure: Failure) -> None:
        """No reply will come."""

    def hung_up(self, server: Server, flight: Flight, holder: Holder, ident: int, failure: Failure) -> None:
        """The server closed a connection that was good until then: idle for it, perhaps, as the query was sent."""

    def flush(self) -> None:
        """The end of one batch of reports: deliver what they came to."""
