"""TCP and TLS: a few connections per upstream, kept open and shared by many questions (RFC 7766 section 6.2).

For answers that do not fit a datagram, and for `tcp://` and `tls://` upstreams. A second connection is opened when the
first is busy, for a server may answer in the order asked. A server that cannot be reached is not tried again with
every question, but after a short while that doubles.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Final

from egressd.model import address_text
from egressd.settings import Upstream
from egressd.upstream.connection import Connection
from egressd.upstream.flight import Flight, Server, Sink
from egressd.upstream.health import FIRST_WAIT_S, LONGEST_WAIT_S, jittered
from egressd.upstream.idents import Idents

__all__ = ["StreamCarrier"]

MAX_CONNECTIONS: Final = 8
"""To one upstream, those that are to be asked; with 512 questions on each, all that `budgets.in_flight` allows."""
MAX_SOCKETS: Final = 32
"""With those that only wait for their last answers; above it an attempt fails at once."""
SPREAD: Final = 32
"""Questions waiting on every connection before another one is opened."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 1.0
"""Between attempts to reach a server that cannot be reached."""


class StreamCarrier:
    """Asks one upstream over TCP, or with a `context` over TLS."""

    server: Server

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sink: Sink,
        upstream: Upstream,
        context: ssl.SSLContext | None,
        mark: int,
        counters: dict[str, int],
        local: set[tuple[bytes, int]],
    ) -> None:
        self.loop = loop
        self.sink = sink
        self.context = context
        self.counters = counters
        self.local = local
        self.host = upstream.host
        self.peer = (address_text(upstream.address), upstream.port)
        self._family = socket.AF_INET if len(upstream.address) == 4 else socket.AF_INET6
        self._mark = mark
        self._idents = Idents()
        self._usable: list[Connection] = []
        self._sockets: set[Connection] = set()
        self._reopen_at = 0.0
        self._pause_s = 0.0

    @property
    def encrypted(self) -> bool:
        return self.context is not None

    def ident(self) -> int:
        """A random ID."""
        return self._idents.take()[0]

    def send(self, flight: Flight, now: float) -> float:
        """Ask over the least busy connection. Raises OSError when there is none and none can be opened."""
        connection = self._asked(flight, now)
        if connection is None:
            connection = self._least_busy(now)
            connection.ask(flight, now)
        if not connection.open:
            return LONGEST_WAIT_S
        return max(self.server.health.wait_s(flight.timeouts), FIRST_WAIT_S)

    def close(self) -> None:
        for connection in tuple(self._sockets):
            connection.close(at_once=True)
        self._usable.clear()

    def _asked(self, flight: Flight, now: float) -> Connection | None:
        """The connection where the question waits already: asking it twice there gains nothing, for TCP loses none."""
        for connection in self._usable:
            if not connection.stalled(now) and any(holder is connection for holder, _ in flight.tickets):
                return connection
        return None

    def _least_busy(self, now: float) -> Connection:
        for connection in tuple(self._usable):
            if connection.stalled(now):
                self._usable.remove(connection)
                connection.retire()
        found = [connection for connection in self._usable if connection.takes_more]
        best = min(found, key=lambda connection: len(connection.pending), default=None)
        if best is None:
            return self._open(now)
        if len(best.pending) < SPREAD or len(self._usable) >= MAX_CONNECTIONS or now < self._reopen_at:
            return best
        return self._open(now) if all(connection.open for connection in self._usable) else best

    def _open(self, now: float) -> Connection:
        if now < self._reopen_at:
            raise OSError(0, "no connection, and none is tried for a moment")
        if len(self._sockets) >= MAX_SOCKETS or len(self._usable) >= MAX_CONNECTIONS:
            raise OSError(0, f"{len(self._sockets)} connections are open and busy")
        sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
        except OSError:
            sock.close()
            raise
        connection = Connection(self, sock)
        self._usable.append(connection)
        self._sockets.add(connection)
        return connection

    # ------------------------------------------------------------------------------ reports of connections

    def opened(self) -> None:
        """The server can be reached."""
        self._pause_s = self._reopen_at = 0.0

    def failed_to_open(self) -> None:
        """It cannot: leave it alone for a moment, twice as long as the last time."""
        self._pause_s = min(self._pause_s * 2 or FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._reopen_at = self.loop.time() + jittered(self._pause_s)

    def leave(self, connection: Connection) -> None:
        """Nothing more is to be asked there."""
        if connection in self._usable:
            self._usable.remove(connection)

    def gone(self, connection: Connection, here: tuple[bytes, int] | None) -> None:
        """Its socket is closed."""
        self.leave(connection)
        self._sockets.discard(connection)
        if here is not None:
            self.local.discard(here)
