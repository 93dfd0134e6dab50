"""The listener: every socket that pods' queries arrive on, from opening to handing over."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from egressd.errors import EnvironmentProblem
from egressd.listen.client import Client, Handler, Outbox
from egressd.listen.datagrams import DatagramReader, DatagramSender, ForeignReader, datagram_client
from egressd.listen.sockets import Endpoint, endpoints, open_endpoint, renew_marks
from egressd.listen.streams import Connections
from egressd.settings import Settings

__all__ = ["Listener"]

_COUNTERS = (
    "udp_queries",
    "udp_receive_errors",
    "udp_send_errors",  # answers that the kernel would not take: full buffer, no route
    "tcp_connections",
    "tcp_queries",
    "tcp_over_budget",  # connections refused: too many of one client, or in all
    "tcp_exhausted",  # pauses because the process had no file descriptor left
    "tcp_idle",  # connections closed by the idle clock
    "tcp_slow",  # connections closed because the client did not read its answers
    "tcp_malformed",  # connections closed because of an impossible length
    "tcp_send_errors",
)


class Listener:
    """Listens for intercepted queries to `servers` (packed addresses) and gives each to `on_queries`.

    With `dns.foreign: Answer` it listens for queries to any address. Works with asyncio's loop and with uvloop.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, settings: Settings, servers: Sequence[bytes], on_queries: Handler
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._servers = tuple(servers)
        self._on_queries = on_queries
        self._sockets: dict[Endpoint, socket.socket] = {}
        self._reading: set[socket.socket] = set()
        self.counters: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        budgets = settings.budgets
        self._outbox = Outbox()
        self._connections = Connections(
            loop, on_queries, self.counters, budgets.tcp_per_pod, budgets.tcp_idle, self._outbox
        )

    @property
    def sockets(self) -> Mapping[Endpoint, socket.socket]:
        """The listening sockets by place, for handing over to a new process (kernel.md, Hand-over)."""
        return MappingProxyType(self._sockets)

    def open(self, adopted: Mapping[Endpoint, socket.socket] = MappingProxyType({})) -> None:
        """Open every socket and begin to read; those `adopted` from an older process are used as they are.

        Sockets in `adopted` that belong to no place any more are left to the caller. Raises `EnvironmentProblem`, and
        then nothing stays open.
        """
        firewall = self._settings.firewall
        try:
            for endpoint in endpoints(self._servers, self._settings.dns.foreign == "Answer"):
                sock = adopted.get(endpoint)
                if sock is not None:
                    renew_marks(sock, endpoint, firewall.answer_mark, firewall.intercept_mark)
                else:
                    sock = open_endpoint(endpoint, firewall.answer_mark, firewall.intercept_mark)
                if sock is not None:
                    self._sockets[endpoint] = sock
        except EnvironmentProblem:
            self.close()
            raise
        for endpoint, sock in self._sockets.items():
            self._read(endpoint, sock)

    def drain(self) -> None:
        """Take no new query, from no socket and no connection: what comes waits in the kernel, for whoever reads next.

        Answers to what came before can still be sent. For the old process of a hand-over; `close` or `resume` follows.
        """
        for sock in self._reading:
            self._loop.remove_reader(sock.fileno())
        self._reading.clear()
        self._connections.pause()

    def resume(self) -> None:
        """Read everything again, after a `drain` that led to nothing."""
        for endpoint, sock in self._sockets.items():
            self._read(endpoint, sock)
        self._connections.resume()

    def connections(self) -> list[tuple[socket.socket, bytes]]:
        """Open connections that can change hands, as none awaits an answer; each with what came of its next query."""
        return self._connections.quiet()

    def adopt(self, sock: socket.socket, received: bytes) -> None:
        """Go on with a connection from an older process's `connections`."""
        self._connections.adopt(sock, received)

    def client(self, endpoint: Endpoint, address: bytes, port: int) -> Client | None:
        """The way back for a UDP query that an older process took in and did not answer; None without its socket."""
        sock = self._sockets.get(endpoint) or self._sockets.get(endpoint._replace(server=b""))
        if sock is None:
            return None
        sender = DatagramSender(sock, endpoint.server, self.counters, self._outbox)
        return datagram_client(sender, address, port, self.counters)

    def flush(self) -> None:
        """Send the answers that were posted (`Client.post`): a handler calls it when it is done with a batch."""
        self._outbox.flush()

    def close(self) -> None:
        """Close every socket and connection; safe to call again."""
        self.drain()
        self._connections.close()
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    def _read(self, endpoint: Endpoint, sock: socket.socket) -> None:
        if endpoint.transport == "tcp":
            self._connections.listen(sock)
            return
        reader: DatagramReader | ForeignReader
        if endpoint.server:
            sender = DatagramSender(sock, endpoint.server, self.counters, self._outbox)
            reader = DatagramReader(sender, self._on_queries, self.counters)
        else:
            reader = ForeignReader(sock, self._on_queries, self.counters)
        self._reading.add(sock)
        self._loop.add_reader(sock.fileno(), reader.readable)
