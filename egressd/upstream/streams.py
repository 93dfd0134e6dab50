"""TCP: one connection per question, for answers that do not fit a datagram and for `tcp://` upstreams (RFC 7766).

Keeping connections open would spare a round trip; questions that need TCP are too rare to pay for it yet.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Final

from egressd.model import address_text
from egressd.settings import Upstream
from egressd.upstream.flight import NETWORK_ERROR, NO_REACHABLE_AUTHORITY, Failure, Flight, Server, Sink
from egressd.upstream.idents import Idents
from egressd.wire import upstream_query

__all__ = ["WAIT_S", "StreamCarrier"]

WAIT_S: Final = 4.0
"""Seconds for one connection, from SYN to the last octet."""
MAX_CALLS: Final = 256
"""Connections at a time to one upstream, so that file descriptors last; above it an attempt fails at once."""


class StreamCarrier:
    """Asks one upstream over TCP."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sink: Sink,
        upstream: Upstream,
        local: set[tuple[bytes, int]],
        mark: int,
    ) -> None:
        self.server: Server
        self.loop = loop
        self.sink = sink
        self.local = local
        self.calls: set[_Call] = set()
        self._mark = mark
        self._idents = Idents()
        self._family = socket.AF_INET if len(upstream.address) == 4 else socket.AF_INET6
        self.peer = (address_text(upstream.address), upstream.port)

    def send(self, flight: Flight, now: float) -> float:  # noqa: ARG002 - the interface of carriers
        """Open a connection and ask. Raises OSError when there are too many, or no descriptor is left."""
        if len(self.calls) >= MAX_CALLS:
            raise OSError(0, f"{MAX_CALLS} TCP connections are open already")
        ident, _ = self._idents.take()
        sock = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        if self._mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
        call = _Call(self, sock, flight, ident)
        self.calls.add(call)
        flight.tickets.append((call, ident))
        return WAIT_S

    def close(self) -> None:
        for call in tuple(self.calls):
            call.forget(0)


class _Call:
    """One connection with one question; gone with its answer, or when it is forgotten."""

    def __init__(self, carrier: StreamCarrier, sock: socket.socket, flight: Flight, ident: int) -> None:
        self._carrier = carrier
        self._sock = sock
        self._flight = flight
        self._ident = ident
        self._task = carrier.loop.create_task(self._run())
        self._task.add_done_callback(lambda _: sock.close())  # also where it is forgotten before it ran

    def forget(self, ident: int) -> None:  # noqa: ARG002 - a connection has one question
        """Hang up."""
        self._carrier.calls.discard(self)
        self._task.cancel()

    async def _run(self) -> None:
        """Connect, ask, read, report: exactly one report, unless forgotten first."""
        try:
            data = await self._ask()
        except OSError as error:
            self._report(None, f"{error.strerror or error}")
        else:
            self._report(data, "")

    async def _ask(self) -> bytes:
        loop, sock, local = self._carrier.loop, self._sock, self._carrier.local
        await loop.sock_connect(sock, self._carrier.peer)
        host, port = sock.getsockname()[:2]
        here = (socket.inet_pton(sock.family, host), port)
        local.add(here)
        try:
            query = upstream_query(self._flight.question, self._ident, self._flight.edns, self._flight.options)
            await loop.sock_sendall(sock, len(query).to_bytes(2, "big") + query)
            size = int.from_bytes(await self._read(2), "big")
            return await self._read(size)
        finally:
            local.discard(here)

    async def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = await self._carrier.loop.sock_recv(self._sock, size - len(data))
            if not more:
                raise ConnectionResetError(0, "closed before the whole answer came")
            data += more
        return data

    def _report(self, data: bytes | None, problem: str) -> None:
        carrier = self._carrier
        if self not in carrier.calls:
            return  # forgotten while the last octets came
        carrier.calls.discard(self)
        server, flight, ident = carrier.server, self._flight, self._ident
        if data is not None and int.from_bytes(data[:2], "big") != ident:
            data, problem = None, "answered another question over TCP"
        if data is None or not carrier.sink.replied(server, flight, self, ident, data):
            ede = NETWORK_ERROR if problem else NO_REACHABLE_AUTHORITY
            problem = problem or "answered another question over TCP"
            carrier.sink.failed(server, flight, self, ident, Failure(ede, f"{server.health}: {problem}"))
        carrier.sink.flush()
