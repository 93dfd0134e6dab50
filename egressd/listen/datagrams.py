"""UDP: the hot path in, and out. One reader per socket, one small client object per datagram."""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

from egressd.datagrams import address_of, name_of, port_of, receive, send
from egressd.listen.client import MAX_DRAIN, Client, Handler, Outbox, pack
from egressd.listen.sockets import IP_PKTINFO
from egressd.wire import MAX_QUERY

__all__ = ["DatagramReader", "DatagramSender", "ForeignReader", "datagram_client"]

READ_SIZE: Final = MAX_QUERY + 1
"""One octet more than is legal, so that what is too long is seen to be so."""
MAX_ADDRESSES: Final = 1024
"""Clients whose packed address is remembered: more than a node has pods."""


class DatagramSender:
    """The way out of one socket."""

    __slots__ = ("_counters", "_outbox", "_posted", "server", "sock")

    def __init__(self, sock: socket.socket, server: bytes, counters: dict[str, int], outbox: Outbox) -> None:
        self.sock = sock
        self.server = server
        self._counters = counters
        self._outbox = outbox
        self._posted: list[tuple[bytes, bytes]] = []

    def post(self, data: bytes, name: bytes) -> None:
        """Send an answer with those of its batch."""
        if not self._posted:
            self._outbox.waiting.append(self)
        self._posted.append((data, name))

    def flush(self) -> None:
        """Send what was posted. What the kernel does not take is dropped and counted."""
        posted, self._posted = self._posted, []
        self.send(posted)

    def send(self, answers: list[tuple[bytes, bytes]]) -> None:
        """Send these at once."""
        try:
            failed = len(send(self.sock, answers))
        except (OSError, ValueError):  # the socket was closed meanwhile
            failed = len(answers)
        if failed:
            self._counters["udp_send_errors"] += failed


class _DatagramClient:
    """A client that asked one of the trusted servers; the socket's own address is the server's."""

    __slots__ = ("_name", "_sender", "address", "port", "server")

    transport: str = "udp"

    def __init__(self, sender: DatagramSender, name: bytes) -> None:
        self._sender = sender
        self._name = name
        self.address = address_of(name)
        self.port = port_of(name)
        self.server = sender.server

    def send(self, data: bytes) -> None:
        self._sender.send([(data, self._name)])

    def post(self, data: bytes) -> None:
        self._sender.post(data, self._name)


class _ForeignClient:
    """A client of the wildcard socket: each answer says which address it comes from."""

    __slots__ = ("_counters", "_peer", "_socket", "address", "port", "server")

    transport: str = "udp"

    def __init__(
        self, sock: socket.socket, server: bytes, address: bytes, peer: tuple[Any, ...], counters: dict[str, int]
    ) -> None:
        self._socket = sock
        self._peer = peer
        self._counters = counters
        self.address = address
        self.port: int = peer[1]
        self.server = server

    def send(self, data: bytes) -> None:
        try:
            self._socket.sendmsg([data], [_source(self.server)], 0, self._peer)
        except OSError:
            self._counters["udp_send_errors"] += 1

    def post(self, data: bytes) -> None:
        self.send(data)


def datagram_client(sender: DatagramSender, address: bytes, port: int, counters: dict[str, int]) -> Client:
    """The way back to a client by what is known of it; the sender's may be the server's own or the wildcard socket."""
    sock, server = sender.sock, sender.server
    if any(pack(sock.getsockname()[0])):
        return _DatagramClient(sender, name_of(address, port))
    host = socket.inet_ntop(sock.family, address)
    peer = (host, port) if sock.family == socket.AF_INET else (host, port, 0, 0)
    return _ForeignClient(sock, server, address, peer, counters)


class DatagramReader:
    """Reads one trusted server's socket; give `readable` to the loop."""

    def __init__(self, sender: DatagramSender, on_queries: Handler, counters: dict[str, int]) -> None:
        self._sender = sender
        self._socket = sender.sock
        self._counters = counters
        self._on_queries = on_queries

    def readable(self) -> None:
        """Hand at most 32 datagrams to the handler; the loop calls again for what is left."""
        try:
            found = receive(self._socket, MAX_DRAIN, READ_SIZE)
        except OSError:
            self._counters["udp_receive_errors"] += 1
            return
        if found:
            self._counters["udp_queries"] += len(found)
            sender = self._sender
            queries: list[tuple[bytes, Client]] = [(data, _DatagramClient(sender, name)) for data, name in found]
            self._on_queries(queries)


class ForeignReader:
    """Reads the wildcard socket of one family: the destination comes along as ancillary data."""

    def __init__(self, sock: socket.socket, on_queries: Handler, counters: dict[str, int]) -> None:
        self._socket = sock
        self._counters = counters
        self._packed: dict[str, bytes] = {}
        """Addresses of those who asked lately, by their text."""
        self._on_queries = on_queries

    def readable(self) -> None:
        """Hand at most 32 datagrams to the handler; the loop calls again for what is left."""
        queries: list[tuple[bytes, Client]] = []
        try:
            self._drain(queries)
        except BlockingIOError:
            pass
        except OSError:
            self._counters["udp_receive_errors"] += 1
        if queries:
            self._counters["udp_queries"] += len(queries)
            self._on_queries(queries)

    def _drain(self, queries: list[tuple[bytes, Client]]) -> None:
        """Read until there is nothing more, which the socket says with an error; a datagram that does not say where it
        was sent to cannot be answered, and is dropped."""
        sock, counters = self._socket, self._counters
        for _ in range(MAX_DRAIN):
            data, ancillary, _, peer = sock.recvmsg(READ_SIZE, _ANCILLARY_SIZE)
            server = _destination(ancillary)
            if server is None:
                counters["udp_receive_errors"] += 1
            else:
                queries.append((data, _ForeignClient(sock, server, self._pack(peer[0]), peer, counters)))

    def _pack(self, host: str) -> bytes:
        address = self._packed.get(host)
        if address is None:
            if len(self._packed) >= MAX_ADDRESSES:
                self._packed.clear()
            address = self._packed[host] = pack(host)
        return address


_PKTINFO: Final = struct.Struct("@I4s4s")
"""struct in_pktinfo: interface, local address to send from, destination in the header (ip(7))."""
_PKTINFO6: Final = struct.Struct("@16sI")
"""struct in6_pktinfo: address, interface (RFC 3542 section 6)."""
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(_PKTINFO6.size)


def _destination(ancillary: list[tuple[int, int, bytes]]) -> bytes | None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
            return data[8:12]
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return data[:16]
    return None


def _source(server: bytes) -> tuple[int, int, bytes]:
    if len(server) == 4:
        return socket.IPPROTO_IP, IP_PKTINFO, _PKTINFO.pack(0, server, bytes(4))
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(server, 0)
