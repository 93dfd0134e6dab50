"""The listener: every socket that pods' queries arrive on, from opening to handing over."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from egressd.errors import EnvironmentProblem
from egressd.listen.client import Handler
from egressd.listen.datagrams import DatagramReader, ForeignReader
from egressd.listen.sockets import Endpoint, endpoints, open_endpoint
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
    """Listens for intercepted queries to `servers` (packed addresses) and gives each to `on_query`.

    With `dns.foreign: Answer` it listens for queries to any address. Works with asyncio's loop and with uvloop.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, settings: Settings, servers: Sequence[bytes], on_query: Handler
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._servers = tuple(servers)
        self._on_query = on_query
        self._sockets: dict[Endpoint, socket.socket] = {}
        self._reading: set[socket.socket] = set()
        self.counters: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        budgets = settings.budgets
        self._connections = Connections(loop, on_query, self.counters, budgets.tcp_per_pod, budgets.tcp_idle)

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
                sock = adopted.get(endpoint) or open_endpoint(endpoint, firewall.answer_mark, firewall.intercept_mark)
                if sock is not None:
                    self._sockets[endpoint] = sock
        except EnvironmentProblem:
            self.close()
            raise
        for endpoint, sock in self._sockets.items():
            self._read(endpoint, sock)

    def drain(self) -> None:
        """Take no new query from UDP and no new connection; answers to what came before can still be sent.

        For the old process of a hand-over, once the new one reads the same sockets. `close` follows.
        """
        for sock in self._reading:
            self._loop.remove_reader(sock.fileno())
        self._reading.clear()
        self._connections.stop_listening()

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
        reader = (DatagramReader if endpoint.server else ForeignReader)(
            sock, endpoint.server, self._on_query, self.counters
        )
        self._reading.add(sock)
        self._loop.add_reader(sock.fileno(), reader.readable)
