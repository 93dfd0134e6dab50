"""One connection to a resolver, over TCP or TLS: many questions at a time, answers in any order (RFC 7766, RFC 7858).

Every octet that the server sends ends in one of: an answer to a question that waits here, a stray that is counted, or
the end of the connection. Every question that waits here ends with an answer, with the connection, or when whoever
asked gives it up; it is reported once at most.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final, cast

from egressd.upstream.flight import NETWORK_ERROR, NO_REACHABLE_AUTHORITY, Failure, Flight
from egressd.upstream.tls import CERTIFICATE_REFUSED, what_failed
from egressd.wire import padded_query, upstream_query

if TYPE_CHECKING:
    from egressd.upstream.streams import StreamCarrier

__all__ = ["MAX_PENDING", "Connection"]

CONNECT_S: Final = 3.0
"""From SYN to the end of the TLS handshake."""
IDLE_S: Final = 10.0
"""How long a connection stays that nobody uses; servers close theirs about as soon (RFC 7766 section 6.2.3)."""
STALL_S: Final = 1.0
"""A connection that has answered nothing for so long is not trusted with another question."""
MAX_PENDING: Final = 512
"""Questions waiting on one connection."""
MAX_UNSENT: Final = 256 * 1024
"""Octets that the kernel has not taken; above it nothing is asked here, until it has."""
MAX_STRAYS: Final = 1024
"""Messages that answer nothing: late ones are no surprise, a stream of them is."""
_HEADER: Final = 12


class Connection(asyncio.Protocol):
    """A connection from its making on; questions may be asked at once, and leave when it stands."""

    def __init__(self, carrier: StreamCarrier, sock: socket.socket) -> None:
        self.pending: dict[int, Flight] = {}
        self.good = False
        """Whether it has answered anything."""
        self.retired = False
        """Not to be asked any more; it closes with the last answer."""
        self._carrier = carrier
        self._sock = sock
        self._here: tuple[bytes, int] | None = None
        self._transport: asyncio.Transport | None = None
        self._early: dict[int, bytes] = {}
        self._received = bytearray()
        self._stuffed = False
        self._heard = 0.0
        self._strays = 0
        self._idler: asyncio.TimerHandle | None = None
        self._task = carrier.loop.create_task(self._open())
        self._task.add_done_callback(lambda _: self._opened())

    # -------------------------------------------------------------------------------------------- asking

    @property
    def open(self) -> bool:
        """Whether it stands."""
        return self._transport is not None

    @property
    def takes_more(self) -> bool:
        """Whether another question can be asked here."""
        closing = self._transport is not None and self._transport.is_closing()
        return not (closing or self.retired or self._stuffed) and len(self.pending) < MAX_PENDING

    def stalled(self, now: float) -> bool:
        """Whether questions wait and nothing has come for long: the other end may be gone without a word."""
        return self.open and bool(self.pending) and now - self._heard > STALL_S

    def ask(self, flight: Flight, now: float) -> None:
        """Ask, now or as soon as the connection stands."""
        ident = self._carrier.ident()
        while ident in self.pending:
            ident = self._carrier.ident()
        if not self.pending:
            self._heard = now
        self.pending[ident] = flight
        flight.tickets.append((self, ident))
        padded = self._carrier.encrypted and flight.edns
        make = padded_query(flight.question, ident, flight.options) if padded else None
        query = make or upstream_query(flight.question, ident, flight.edns, flight.options)
        message = len(query).to_bytes(2, "big") + query
        if self._transport is None:
            self._early[ident] = message
        else:
            self._transport.write(message)

    def forget(self, ident: int) -> None:
        """Stop waiting for the answer with this ID."""
        self.pending.pop(ident, None)
        self._early.pop(ident, None)
        if self.retired and not self.pending:
            self.close()

    def retire(self) -> None:
        """Ask nothing more here; close with the last question."""
        self.retired = True
        if not self.pending:
            self.close()

    def close(self, *, at_once: bool = False) -> None:
        """Hang up; safe to call again. What still waits is not reported."""
        self.retired = True
        self.pending.clear()
        if self._transport is None:
            self._task.cancel()
        elif at_once:
            self._transport.abort()
        else:
            self._transport.close()

    # ------------------------------------------------------------------------------------- coming and going

    async def _open(self) -> None:
        """Connect and shake hands; whatever stops it is reported to all who wait."""
        carrier, sock = self._carrier, self._sock
        try:
            async with asyncio.timeout(CONNECT_S):
                await carrier.loop.sock_connect(sock, carrier.peer)
                host, port = sock.getsockname()[:2]
                self._here = (socket.inet_pton(sock.family, host), port)
                carrier.local.add(self._here)
                context = carrier.context
                name = carrier.host if context is not None else None
                await carrier.loop.create_connection(lambda: self, sock=sock, ssl=context, server_hostname=name)
        except OSError as error:
            problem = what_failed(error)
            carrier.counters["distrusted"] += problem.startswith(CERTIFICATE_REFUSED)
            carrier.failed_to_open()
            self._end(problem)
            carrier.sink.flush()

    def _opened(self) -> None:
        """The task has ended, well or not."""
        if self._transport is None:
            self._sock.close()
            self._carrier.gone(self, self._here)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        carrier = self._carrier
        self._transport = stream = cast("asyncio.Transport", transport)  # uvloop's are of no such class
        stream.set_write_buffer_limits(high=MAX_UNSENT)
        carrier.opened()
        carrier.counters["connections"] += 1
        self._heard = carrier.loop.time()
        self._idler = carrier.loop.call_later(IDLE_S, self._idle)
        for message in self._early.values():
            stream.write(message)
        self._early.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idler is not None:
            self._idler.cancel()
        self._carrier.gone(self, self._here)
        self._end(what_failed(exc) if exc is not None else "closed before the whole answer came")
        self._carrier.sink.flush()

    def pause_writing(self) -> None:
        self._stuffed = True

    def resume_writing(self) -> None:
        self._stuffed = False

    def _idle(self) -> None:
        loop = self._carrier.loop
        left = self._heard + IDLE_S - loop.time()
        if not self.pending and left <= 0:
            self.close()
        else:
            self._idler = loop.call_later(max(left, 1.0), self._idle)

    def _end(self, problem: str, ede: int = NETWORK_ERROR) -> None:
        """No answer comes here any more: say so to everyone who waits."""
        self.retired = True
        carrier = self._carrier
        carrier.leave(self)
        failure = Failure(ede, f"{carrier.server.health}: {problem}")
        report = carrier.sink.hung_up if self.good else carrier.sink.failed
        for ident, flight in tuple(self.pending.items()):
            if self.pending.get(ident) is flight:  # not forgotten by what an earlier report led to
                report(carrier.server, flight, self, ident, failure)

    # ---------------------------------------------------------------------------------------------- answers

    def data_received(self, data: bytes) -> None:
        received = self._received
        received += data
        self._heard = self._carrier.loop.time()
        start = 0
        while len(received) - start >= 2:
            end = start + 2 + int.from_bytes(received[start : start + 2], "big")
            if len(received) < end:
                break
            self._message(bytes(received[start + 2 : end]))
            start = end
            if self._transport is None or self._transport.is_closing():
                break
        del received[:start]
        self._carrier.sink.flush()

    def _message(self, data: bytes) -> None:
        """One whole message: an answer, a stray, or the reason to hang up."""
        carrier = self._carrier
        if len(data) < _HEADER:
            self._refuse("sent a message without a header")
            return
        ident = int.from_bytes(data[:2], "big")
        flight = self.pending.get(ident)
        if flight is None:
            self._strays += 1
            carrier.counters["forged"] += 1
            if self._strays > MAX_STRAYS:
                self._refuse("answers what nobody asked")
        elif carrier.sink.replied(carrier.server, flight, self, ident, data):
            self.good = True
        else:
            self._refuse("answered another question")

    def _refuse(self, problem: str) -> None:
        """The server breaks the protocol: nothing that it says here counts any more."""
        self.good = False
        if self._transport is not None:
            self._transport.abort()
        self._end(problem, NO_REACHABLE_AUTHORITY)
