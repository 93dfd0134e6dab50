"""TCP (RFC 7766): length-framed queries, pipelined, answered in whatever order answers come.

Budgets keep it bounded: connections per client address and in all, an idle clock, the size of a query, the octets
that a slow reader may leave unread.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
from typing import Any, Final

from egressd.listen.client import MAX_DRAIN, Client, Handler, Outbox, pack
from egressd.wire import MAX_QUERY

__all__ = ["Connections"]

READ_SIZE: Final = MAX_QUERY + 2
"""One largest query with its length."""
MAX_UNSENT: Final = 256 * 1024
"""Octets of answers a connection may leave unread: four of the largest; more closes it."""
MAX_CONNECTIONS: Final = 4096
"""Connections in all; `budgets.tcp_per_pod` bounds each client."""
RESERVE: Final = 512
"""File descriptors that connections leave to everything else: sockets to upstreams, above all."""
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
        outbox: Outbox,
    ) -> None:
        self.loop = loop
        self.on_queries = on_queries
        self.counters = counters
        self.outbox = outbox
        self._per_client = per_client
        self._idle_s = idle_s
        self._most = _room()
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
        if held >= self._per_client or len(self._open) >= self._most:
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


def _room() -> int:
    """Connections in all, so that file descriptors last; a small limit is shared half and half."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_CONNECTIONS if limit < 0 else min(MAX_CONNECTIONS, max(limit - RESERVE, limit // 2))


class _Connection:
    """One connection; it is the `Client` of every query that comes over it."""

    __slots__ = (
        "_closed",
        "_ended",
        "_owner",
        "_paused",
        "_posted",
        "_received",
        "_socket",
        "_unsent",
        "_writing",
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
        self._received = received
        self._unsent = bytearray()
        self._closed = self._ended = self._paused = self._posted = self._writing = False
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
        return self._socket, self._received

    def pause(self) -> None:
        self._paused = True
        self._owner.loop.remove_reader(self._socket.fileno())

    def resume(self) -> None:
        self._paused = False
        self._go_on()

    def send(self, data: bytes) -> None:
        """Frame and send an answer; a connection that is gone, or never reads, loses it."""
        self._frame(data)
        self.flush()

    def post(self, data: bytes) -> None:
        """Frame an answer, and send it with those of its batch."""
        self._frame(data)
        if not (self._posted or self._closed):
            self._posted = True
            self._owner.outbox.waiting.append(self)

    def _frame(self, data: bytes) -> None:
        if self._closed:
            return
        self.unanswered -= 1
        if len(data) > 0xFFFF:
            self._abandon("tcp_send_errors")
        else:
            self._unsent += len(data).to_bytes(2) + data

    def flush(self) -> None:
        """Send what was posted, or have it wait for room behind what waits already."""
        self._posted = False
        if self._closed:
            return
        self.idle_since = self._owner.loop.time()
        if not self._writing:
            self._writable()
        if len(self._unsent) > MAX_UNSENT and not self._closed:
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

    def _writable(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._abandon("tcp_send_errors")
            return
        del self._unsent[:sent]
        if self._unsent:
            if not self._writing:
                self._writing = True
                self._owner.loop.add_writer(self._socket.fileno(), self._writable)
            return
        if self._writing:
            self._writing = False
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
            self._received = self._received + data if self._received else data
            self._read_frames()
            return
        self._ended = True  # the client will ask no more, but may wait for answers
        self._owner.loop.remove_reader(self._socket.fileno())
        self._close_if_done()

    def _read_frames(self) -> None:
        """Hand on at most 32 whole queries, then let others run before the next 32."""
        queries = self._take_queries()
        if queries:
            self.unanswered += len(queries)
            self.idle_since = self._owner.loop.time()
            self._owner.counters["tcp_queries"] += len(queries)
            self._owner.on_queries(queries)
        if len(queries) == MAX_DRAIN:
            self._yield_to_others()

    def _take_queries(self) -> list[tuple[bytes, Client]]:
        """The whole queries at the head of what was received."""
        queries: list[tuple[bytes, Client]] = []
        received, at = self._received, 0
        while not self._closed and len(queries) < MAX_DRAIN and len(received) >= at + 2:
            size = received[at] << 8 | received[at + 1]
            if not _HEADER <= size <= MAX_QUERY:
                self._abandon("tcp_malformed")
            elif len(received) < at + 2 + size:
                break
            else:
                queries.append((received[at + 2 : at + 2 + size], self))
                at += 2 + size
        self._received = received[at:]
        return queries

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
