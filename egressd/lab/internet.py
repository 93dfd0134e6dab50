"""The rest of the world: one space that owns whole blocks of addresses, with servers on any port of all of them.

A server listens on every address at once, as an anycast network would, and says in its answer which one was dialled.
Everything that arrives is remembered, so that a test can say "nothing got through" and mean it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import struct
import time
from collections import deque
from typing import Final, NamedTuple

from egressd.lab.serving import Loop
from egressd.lab.space import Space

__all__ = ["BLOCKS", "Contact", "Internet", "pool"]

BLOCKS: Final = (
    "203.0.113.0/24",
    "198.51.100.0/24",
    "192.0.2.0/24",
    "2001:db8::/32",
    "169.254.169.254/32",  # a cloud's metadata server, where no pod's name should lead
    "172.16.0.0/16",
    "192.168.0.0/16",
    "10.0.0.0/16",
    "fd00:dead::/32",
)
"""What the internet owns: documentation ranges, and private ones for rebinding."""

CONTACTS: Final = 500_000
BACKLOG: Final = 4096
TICK_S: Final = 0.05
_IPV6_FREEBIND: Final = 78
"""Answer from an address that no interface has (include/uapi/linux/in6.h)."""
_MAPPED: Final = "::ffff:"


class Contact(NamedTuple):
    """One TCP connection or UDP datagram that arrived. Addresses are text."""

    time: float
    """Seconds, monotonic clock."""
    protocol: str
    source: str
    source_port: int
    destination: str
    port: int


class Internet(Space):
    """Servers are added with `serve_*`; each stays until the space is closed."""

    def __init__(self, name: str = "internet") -> None:
        super().__init__(name)
        self.contacts: deque[Contact] = deque(maxlen=CONTACTS)
        self._loop = Loop(self)

    def serve_http(self, port: int = 80, tls: ssl.SSLContext | None = None) -> None:
        """HTTP/1.1 on every address.

        `/bytes/N` sends N octets, `/stream` a line every 50 ms for ever, any other path says who dialled whom.
        """
        self._loop.run(lambda: self._listen(port, _Http, tls))

    def serve_tcp_echo(self, port: int = 7) -> None:
        """Return every octet, over TCP, on every address."""
        self._loop.run(lambda: self._listen(port, _Echo, None))

    def serve_udp_echo(self, port: int = 7) -> None:
        """Return every datagram from the very address it was sent to."""
        self._loop.run(lambda: self._listen_udp(port))

    def reached(self, address: str, port: int = 0) -> list[Contact]:
        """What arrived at an address (and port, if given) so far."""
        wanted = str(ipaddress.ip_address(address))
        return [got for got in self.contacts.copy() if got.destination == wanted and port in {0, got.port}]

    def forget(self) -> None:
        """Empty `contacts`."""
        self.contacts.clear()

    def close(self) -> None:
        self._loop.close()
        super().close()

    async def _listen(self, port: int, protocol: type[_Connection], tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
        await loop.create_server(lambda: protocol(self), sock=listener, ssl=tls, backlog=BACKLOG)

    async def _listen_udp(self, port: int) -> None:
        opened = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        opened.bind(("::", port))
        asyncio.get_running_loop().add_reader(opened, self._datagram, opened, port)

    def _datagram(self, opened: socket.socket, port: int) -> None:
        with contextlib.suppress(OSError):  # an ICMP error for an earlier answer, or a peer without a route
            data, ancillary, _, peer = opened.recvmsg(65535, 256)
            information = next(value for _, kind, value in ancillary if kind == socket.IPV6_PKTINFO)
            here = socket.inet_ntop(socket.AF_INET6, information[:16])
            self.remember("udp", peer, (here, port))
            reply = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, information[:16] + struct.pack("I", 0))
            opened.sendmsg([data], [reply], 0, peer)

    def remember(self, protocol: str, peer: tuple[str, int], here: tuple[str, int]) -> Contact:
        """Note that somebody arrived."""
        source, destination = peer[0].removeprefix(_MAPPED), here[0].removeprefix(_MAPPED)
        contact = Contact(time.monotonic(), protocol, source, peer[1], destination, here[1])
        self.contacts.append(contact)
        return contact


class _Connection(asyncio.Protocol):
    """One TCP connection, remembered when it is made."""

    transport: asyncio.Transport
    contact: Contact

    def __init__(self, internet: Internet) -> None:
        self.internet = internet

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - what asyncio promises, told to mypy
        self.transport = transport
        peer, here = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if peer is None or here is None:
            transport.abort()
            return
        self.contact = self.internet.remember("tcp", peer[:2], here[:2])


class _Echo(_Connection):
    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class _Http(_Connection):
    """As much of HTTP/1.1 as curl, wget and urllib want: GET, HEAD, keep-alive."""

    pending = b""
    ticking: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        self.pending += data
        while b"\r\n\r\n" in self.pending:
            head, _, self.pending = self.pending.partition(b"\r\n\r\n")
            lines = head.decode("latin-1").split("\r\n")
            method, path, _ = (lines[0] + "  ").split(" ", 2)
            headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
            self._respond(method, path, headers.get("host", ""))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        if self.ticking is not None:
            self.ticking.cancel()

    def _respond(self, method: str, path: str, host: str) -> None:
        if path.startswith("/stream"):
            self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n")
            self._tick(0)
            return
        if path.startswith("/bytes/"):
            body = b"x" * int(path.removeprefix("/bytes/"))
        else:
            here = self.contact
            name = host or here.destination
            body = f"{name} is {here.destination} port {here.port}, you are {here.source}\n".encode()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self.transport.write(head if method == "HEAD" else head + body)

    def _tick(self, number: int) -> None:
        self.transport.write(f"line {number}\n".encode())
        self.ticking = asyncio.get_running_loop().call_later(TICK_S, self._tick, number + 1)


def pool(block: str, count: int, start: int = 1) -> list[str]:
    """`count` consecutive addresses of a block, from its `start`-th: a pool to rotate through."""
    network = ipaddress.ip_network(block)
    return [str(network[start + i]) for i in range(count)]
