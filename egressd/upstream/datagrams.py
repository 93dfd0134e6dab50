"""UDP: a handful of connected sockets per upstream, on random ports that do not stay.

An off-path forger must guess the ID, the port, and the question (RFC 5452). The kernel picks each socket's port at
random when it is bound to port 0; a socket is replaced after some uses, some seconds or some forged datagrams, and
the old one lives on until its last question is answered or given up. A connected socket takes datagrams from its
peer only.

All sockets share one epoll descriptor, and that alone is given to the loop: replies that came on many sockets are then
read in one wake and delivered together, and a socket in error (an ICMP message arrived) does not stop being polled,
as it would under uvloop, where libuv ends a poll at the first error.
"""

from __future__ import annotations

import asyncio
import select
import socket
from typing import Final

from egressd.model import address_text
from egressd.settings import Upstream
from egressd.upstream.flight import NO_REACHABLE_AUTHORITY, Failure, Flight, Server, Sink
from egressd.upstream.idents import Idents
from egressd.wire import upstream_query

__all__ = ["Channel", "DatagramCarrier", "Datagrams"]

POOL: Final = 32
"""Sockets per upstream: five more bits to guess."""
MAX_USES: Final = 512
"""Questions per socket; its making, about 30 µs, is then 0.06 µs a question."""
MAX_AGE_S: Final = 10.0
MAX_FORGED: Final = 32
"""Datagrams with a wrong ID or question after which the port counts as known to a forger."""
MAX_DRAIN: Final = 32
READ_SIZE: Final = 4096
"""Octets; more than the 1232 that we say we take."""
WAITS_S: Final[tuple[float, ...]] = (0.8, 1.2, 2.0)
"""Seconds to wait for an answer before the first, second and third retry: 4 in all."""


class Channel:
    """One connected socket and the questions asked over it, by ID."""

    __slots__ = ("born", "carrier", "forged", "local", "pending", "retired", "sock", "uses")

    def __init__(self, carrier: DatagramCarrier, sock: socket.socket, local: tuple[bytes, int], born: float) -> None:
        self.carrier = carrier
        self.sock = sock
        self.local = local
        self.born = born
        self.pending: dict[int, Flight] = {}
        self.uses = 0
        self.forged = 0
        self.retired = False

    def forget(self, ident: int) -> None:
        """Stop waiting for `ident`; a retired socket closes with the last."""
        self.pending.pop(ident, None)
        if self.retired and not self.pending:
            self.carrier.datagrams.close_channel(self)


class DatagramCarrier:
    """The sockets of one upstream."""

    def __init__(self, datagrams: Datagrams, upstream: Upstream) -> None:
        self.datagrams = datagrams
        self.server: Server
        self._idents = Idents()
        self._family = socket.AF_INET if len(upstream.address) == 4 else socket.AF_INET6
        self._peer = (address_text(upstream.address), upstream.port)
        self._channels: list[Channel | None] = [None] * POOL

    def send(self, flight: Flight, now: float) -> float:
        """Ask over a random socket with a random ID. Raises OSError when the kernel knows no way."""
        ident, pick = self._idents.take()
        channel = self._channels[pick % POOL]
        if channel is None or channel.uses >= MAX_USES or now - channel.born > MAX_AGE_S or channel.forged > MAX_FORGED:
            channel = self._replace(pick % POOL, now)
        pending = channel.pending
        while ident in pending:
            ident, _ = self._idents.take()
        data = upstream_query(flight.question, ident, flight.edns, flight.options)
        try:
            channel.sock.send(data)
        except BlockingIOError:
            pass  # the send buffer is full: as lost as on the wire, and asked again in time
        except ConnectionRefusedError:
            channel.sock.send(data)  # the error was an earlier datagram's, and is reported only once
        channel.uses += 1
        pending[ident] = flight
        flight.tickets.append((channel, ident))
        return WAITS_S[flight.timeouts] if flight.timeouts < len(WAITS_S) else WAITS_S[-1]

    def close(self) -> None:
        for channel in self._channels:
            if channel is not None:
                self.datagrams.close_channel(channel)
        self._channels = [None] * POOL

    def _replace(self, place: int, now: float) -> Channel:
        fresh = self.datagrams.open_channel(self, self._family, self._peer, now)
        old, self._channels[place] = self._channels[place], fresh
        if old is not None:
            old.retired = True
            if not old.pending:
                self.datagrams.close_channel(old)
        return fresh


class Datagrams:
    """Every UDP socket to every upstream, read through one epoll descriptor."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sink: Sink,
        counters: dict[str, int],
        local: set[tuple[bytes, int]],
        mark: int,
    ) -> None:
        self._loop = loop
        self._sink = sink
        self._counters = counters
        self._local = local
        self._mark = mark
        self._channels: dict[int, Channel] = {}
        self._epoll = select.epoll()
        loop.add_reader(self._epoll.fileno(), self._readable)

    def close(self) -> None:
        """Close every socket, those of retired channels too."""
        self._loop.remove_reader(self._epoll.fileno())
        for channel in tuple(self._channels.values()):
            self.close_channel(channel)
        self._epoll.close()

    def open_channel(
        self, carrier: DatagramCarrier, family: socket.AddressFamily, peer: tuple[str, int], now: float
    ) -> Channel:
        """A new socket on a random port, connected to `peer`. Raises OSError."""
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if self._mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
            sock.bind(("", 0))
            sock.connect(peer)
            host, port = sock.getsockname()[:2]
        except OSError:
            sock.close()
            raise
        channel = Channel(carrier, sock, (socket.inet_pton(family, host), port), now)
        self._channels[sock.fileno()] = channel
        self._epoll.register(sock.fileno(), select.EPOLLIN)
        self._local.add(channel.local)
        self._counters["sockets"] += 1
        return channel

    def close_channel(self, channel: Channel) -> None:
        """Close a socket; safe to call again."""
        if channel.sock.fileno() < 0:
            return
        del self._channels[channel.sock.fileno()]
        self._local.discard(channel.local)
        self._epoll.unregister(channel.sock.fileno())
        channel.sock.close()

    def _readable(self) -> None:
        """Read one reply from each of up to 32 sockets, then deliver them together; the loop calls again for more."""
        for descriptor, _ in self._epoll.poll(0, MAX_DRAIN):
            channel = self._channels.get(descriptor)
            if channel is None:
                continue  # closed by what an earlier reply of this batch led to
            try:
                data = channel.sock.recv(READ_SIZE)
            except BlockingIOError:
                continue  # a datagram whose checksum was wrong
            except OSError as error:
                self._lost(channel, error)
            else:
                self._read(channel, data)
        self._sink.flush()

    def _read(self, channel: Channel, data: bytes) -> None:
        ident = data[0] << 8 | data[1] if len(data) >= 2 else -1
        flight = channel.pending.get(ident)
        if flight is None or not self._sink.replied(channel.carrier.server, flight, channel, ident, data):
            channel.forged += 1
            self._counters["forged"] += 1

    def _lost(self, channel: Channel, error: OSError) -> None:
        """The kernel reports that the upstream cannot be reached: nothing asked over this socket will be answered."""
        server = channel.carrier.server
        failure = Failure(NO_REACHABLE_AUTHORITY, f"{server.health}: {error.strerror}")
        for ident, flight in tuple(channel.pending.items()):
            self._sink.failed(server, flight, channel, ident, failure)
