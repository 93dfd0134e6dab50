"""TCP (RFC 7766): length-framed queries, pipelined, answered in whatever order answers come.

Budgets keep it bounded: connections per client address and in all, an idle clock, the size of a query, the octets
that a slow reader may leave unread.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any, Final

from egressd.listen.client import MAX_DRAIN, Client, Handler, pack
from egressd.wire import MAX_QUERY

__all__ = ["Connections"]

READ_SIZE: Final = MAX_QUERY + 2
"""One largest query with its length."""
MAX_UNSENT: Final = 256 * 1024
"""Octets of answers a connection may leave unread: four of the largest; more closes it."""
MAX_CONNECTIONS: Final = 4096
"""Connections in all, so that file descriptors last; `budgets.tcp_per_pod` bounds each client."""
UNANSWERED: Final = 3
"""Idle times that a connection is kept while answers are outstanding (RFC 7766 section 6.2.3)."""
SWEEP_S: Final = 1.0
RECOVERY_S: Final = 0.1
"""Pause before accepting again after the process ran out of file descriptors."""

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_HEADER: Final = 12
"""Octets of the shortest message that can be answered."""


class Connections:
    """Every TCP connection, and the sockets they are accepted from."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        on_queries: Handler,
        counters: dict[str, int],
        per_client: int,
        idle_s: float,
    ) -> None:
        self.loop = loop
        self.on_queries = on_queries
        self.counters = counters
        self._per_client = per_client
        self._idle_s = idle_s
        self._listening: set[socket.socket] = set()
        self._open: set[_Connection] = set()
        self._by_client: dict[bytes, int] = {}
        self._sweeper: asyncio.TimerHandle | None = None

    def listen(self, sock: socket.socket) -> None:
        """Accept connections from a listening, non-blocking socket."""
        self._listening.add(sock)
        self.loop.add_reader(sock.fileno(), self._accept, sock)

    def stop_listening(self) -> None:
        """Accept no more; what is open goes on. The listening sockets stay the caller's to close."""
        for sock in self._listening:
            self.loop.remove_reader(sock.fileno())
        self._listening.clear()

    def pause(self) -> None:
        """Accept and read no more: what comes waits in the kernel. Answers can still be sent."""
        self.stop_listening()
        for connection in self._open:
            connection.pause()

    def resume(self) -> None:
        """Read the open connections again; listening sockets are the caller's to give back."""
        for connection in tuple(self._open):
            connection.resume()

    def quiet(self) -> list[tuple[socket.socket, bytes]]:
        """Open connections that await no answer, and what came of their next queries; they stay ours until closed."""
        return [connection.state for connection in self._open if connection.is_quiet]

    def adopt(self, sock: socket.socket, received: bytes) -> None:
        """Go on with a connection that an older process had, from what it had `received` of the next queries."""
        try:
            peer = sock.getpeername()
        except OSError:  # the client is gone
            sock.close()
            return
        self._admit(sock, peer, received)

    def close(self) -> None:
        self.stop_listening()
        for connection in tuple(self._open):
            connection.close()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def forget(self, connection: _Connection) -> None:
        """Give a closed connection's place to others."""
        self._open.discard(connection)
        left = self._by_client[connection.address] - 1
        if left:
            self._by_client[connection.address] = left
        else:
            del self._by_client[connection.address]

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(MAX_DRAIN):
            try:
                sock, peer = listening.accept()
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._pause(listening)
                if error.errno != errno.ECONNABORTED:
                    return
            else:
                self._admit(sock, peer)

    def _pause(self, listening: socket.socket) -> None:
        self.counters["tcp_exhausted"] += 1
        self.loop.remove_reader(listening.fileno())
        self.loop.call_later(RECOVERY_S, self._resume, listening)

    def _resume(self, listening: socket.socket) -> None:
        if listening in self._listening:
            self.listen(listening)

    def _admit(self, sock: socket.socket, peer: tuple[Any, ...], received: bytes = b"") -> None:
        address = pack(peer[0])
        held = self._by_client.get(address, 0)
        if held >= self._per_client or len(self._open) >= MAX_CONNECTIONS:
            self.counters["tcp_over_budget"] += 1
            sock.close()
            return
        self.counters["tcp_connections"] += 1
        self._by_client[address] = held + 1
        self._open.add(_Connection(self, sock, address, peer[1], received))
        if self._sweeper is None:
            self._sweeper = self.loop.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in tuple(self._open):
            if connection.idle_since + self._idle_s * (UNANSWERED if connection.unanswered else 1) <= now:
                self.counters["tcp_idle"] += 1
                connection.close()
        self._sweeper = self.loop.call_later(SWEEP_S, self._sweep) if self._open else None


class _Connection:
    """One connection; it is the `Client` of every query that comes over it."""

    __slots__ = (
        "_closed",
        "_ended",
        "_owner",
        "_paused",
        "_received",
        "_socket",
        "_unsent",
        "address",
        "idle_since",
        "port",
        "server",
        "unanswered",
    )

    transport: str = "tcp"

    def __init__(self, owner: Connections, sock: socket.socket, address: bytes, port: int, received: bytes) -> None:
        sock.setblocking(False)
        self._owner = owner
        self._socket = sock
        self._received = bytearray(received)
        self._unsent = bytearray()
        self._closed = self._ended = self._paused = False
        self.address = address
        self.port = port
        self.server = pack(sock.getsockname()[0])
        self.unanswered = 0
        self.idle_since = owner.loop.time()
        owner.loop.add_reader(sock.fileno(), self._readable)
        if received:
            owner.loop.call_soon(self._read_frames)

    @property
    def is_quiet(self) -> bool:
        """Whether it awaits no answer and nothing is left to be sent."""
        return not self._ended and not self._unsent and self.unanswered <= 0

    @property
    def state(self) -> tuple[socket.socket, bytes]:
        return self._socket, bytes(self._received)

    def pause(self) -> None:
        self._paused = True
        self._owner.loop.remove_reader(self._socket.fileno())

    def resume(self) -> None:
        self._paused = False
        self._go_on()

    def send(self, data: bytes) -> None:
        """Frame and send an answer; a connection that is gone, or never reads, loses it."""
        if self._closed:
            return
        self.unanswered -= 1
        self.idle_since = self._owner.loop.time()
        if len(data) > 0xFFFF:
            self._abandon("tcp_send_errors")
            return
        waiting = bool(self._unsent)
        self._unsent += len(data).to_bytes(2, "big") + data
        if not waiting:
            self._writable(start_writer=True)
        elif len(self._unsent) > MAX_UNSENT:
            self._abandon("tcp_slow")

    def close(self) -> None:
        """Close at once; safe to call again."""
        if self._closed:
            return
        self._closed = True
        self._owner.loop.remove_reader(self._socket.fileno())
        self._owner.loop.remove_writer(self._socket.fileno())
        self._socket.close()
        self._owner.forget(self)

    def _abandon(self, counter: str) -> None:
        self._owner.counters[counter] += 1
        self.close()

    def _writable(self, start_writer: bool = False) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._abandon("tcp_send_errors")
            return
        del self._unsent[:sent]
        if self._unsent:
            if start_writer:
                self._owner.loop.add_writer(self._socket.fileno(), self._writable)
            return
        if not start_writer:
            self._owner.loop.remove_writer(self._socket.fileno())
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._ended and not self._unsent and self.unanswered <= 0:
            self.close()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if data:
            self._received += data
            self._read_frames()
            return
        self._ended = True  # the client will ask no more, but may wait for answers
        self._owner.loop.remove_reader(self._socket.fileno())
        self._close_if_done()

    def _read_frames(self) -> None:
        """Hand on at most 32 whole queries, then let others run before the next 32."""
        queries: list[tuple[bytes, Client]] = []
        while len(queries) < MAX_DRAIN and (query := self._next_query()) is not None:
            queries.append((query, self))
        if queries:
            self.unanswered += len(queries)
            self.idle_since = self._owner.loop.time()
            self._owner.counters["tcp_queries"] += len(queries)
            self._owner.on_queries(queries)
        if len(queries) == MAX_DRAIN:
            self._yield_to_others()

    def _next_query(self) -> bytes | None:
        received = self._received
        if self._closed or len(received) < 2:
            return None
        size = received[0] << 8 | received[1]
        if not _HEADER <= size <= MAX_QUERY:
            self._abandon("tcp_malformed")
            return None
        if len(received) < 2 + size:
            return None
        query = bytes(received[2 : 2 + size])
        del received[: 2 + size]
        return query

    def _yield_to_others(self) -> None:
        if self._closed:
            return
        self._owner.loop.remove_reader(self._socket.fileno())
        self._owner.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._closed or self._paused or self._ended:
            return
        self._owner.loop.add_reader(self._socket.fileno(), self._readable)
        self._read_frames()
