"""UDP: a handful of connected sockets per upstream, on random ports that do not stay.

An off-path forger must guess the ID, the port, and the question (RFC 5452). The kernel picks each socket's port at
random when it is bound to port 0; a socket is replaced after some uses, some seconds or some forged datagrams, and
the old one lives on until its last question is answered or given up. A connected socket takes datagrams from its
peer only.

Questions of one batch leave together, over one socket picked at random for them all: for each of them, port and ID are
as hard to guess as if it had gone alone.

All sockets share one epoll descriptor, and that alone is given to the loop: replies that came on many sockets are then
read in one wake and delivered together, and a socket in error (an ICMP message arrived) does not stop being polled,
as it would under uvloop, where libuv ends a poll at the first error.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import socket
from typing import Final

from egressd.datagrams import receive, send
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
_PASSING: Final = frozenset({errno.EAGAIN, errno.ECONNREFUSED})
"""Errors that say nothing of a query: the send buffer was full (as lost as on the wire, and asked again in time), or an
earlier datagram was refused, which is said only once; then it is sent again."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Channel:
    """One connected socket and the questions asked over it, by ID."""

    __slots__ = ("born", "carrier", "forged", "local", "pending", "posted", "retired", "sock", "uses")

    def __init__(self, carrier: DatagramCarrier, sock: socket.socket, local: tuple[bytes, int], born: float) -> None:
        self.carrier = carrier
        self.sock = sock
        self.local = local
        self.born = born
        self.pending: dict[int, Flight] = {}
        self.posted: list[tuple[bytes, bytes]] = []
        """Queries of this batch, to be sent together."""
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
        self._batch: Channel | None = None

    def send(self, flight: Flight, now: float) -> float:
        """Ask over a random socket with a random ID. Raises OSError when the kernel knows no way."""
        ident, pick = self._idents.take()
        channel = self._batch or self._pick(pick, now)
        pending = channel.pending
        while ident in pending:
            ident, _ = self._idents.take()
        data = upstream_query(flight.question, ident, flight.edns, flight.options)
        if self.datagrams.gather:
            self._batch = channel
            self.datagrams.post(channel, data)
        else:
            _send_one(channel.sock, data)
        channel.uses += 1
        pending[ident] = flight
        flight.tickets.append((channel, ident))
        return self.server.health.wait_s(flight.timeouts)

    def close(self) -> None:
        for channel in self._channels:
            if channel is not None:
                self.datagrams.close_channel(channel)
        self._channels = [None] * POOL

    def end_batch(self) -> None:
        """What is asked from now on goes over another socket."""
        self._batch = None

    def _pick(self, pick: int, now: float) -> Channel:
        channel = self._channels[pick % POOL]
        if channel is None or channel.uses >= MAX_USES or now - channel.born > MAX_AGE_S or channel.forged > MAX_FORGED:
            channel = self._replace(pick % POOL, now)
        return channel

    def _replace(self, place: int, now: float) -> Channel:
        try:
            fresh = self.datagrams.open_channel(self, self._family, self._peer, now)
        except OSError as error:
            spare = self._spare(place) if error.errno in _EXHAUSTED else None
            if spare is None:
                raise
            return spare
        old, self._channels[place] = self._channels[place], fresh
        if old is not None:
            old.retired = True
            if not old.pending:
                self.datagrams.close_channel(old)
        return fresh

    def _spare(self, place: int) -> Channel | None:
        """Without a descriptor left, a port in use for longer than it should be is better than no answer; one that a
        forger knows is not."""
        standing = (self._channels[place], *self._channels)
        return next((channel for channel in standing if channel is not None and channel.forged <= MAX_FORGED), None)


class Datagrams:
    """Every UDP socket to every upstream, read through one epoll descriptor."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sink: Sink,
        counters: dict[str, int],
        local: set[tuple[bytes, int]],
        mark: int,
        *,
        gather: bool = False,
    ) -> None:
        """With `gather`, queries wait for `push`."""
        self._loop = loop
        self._sink = sink
        self._counters = counters
        self._local = local
        self._mark = mark
        self.gather = gather
        self._posted: list[Channel] = []
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

    # ---------------------------------------------------------------------------------------- sending

    def post(self, channel: Channel, data: bytes) -> None:
        """Have `push` send a query."""
        if not channel.posted:
            self._posted.append(channel)
        channel.posted.append((data, b""))

    def push(self) -> None:
        """Send what was posted, with one system call for each socket that any of it goes over: nearly always one."""
        while self._posted:  # what cannot be sent is asked elsewhere, and posted anew
            posted, self._posted = self._posted, []
            for channel in posted:
                channel.carrier.end_batch()
                self._push(channel)

    def _push(self, channel: Channel) -> None:
        queries, channel.posted = channel.posted, []
        if channel.sock.fileno() < 0:
            return  # whoever asked has given up
        failures = send(channel.sock, queries)
        refused = [queries[place] for place, number in failures if number == errno.ECONNREFUSED]
        for place, number in failures:
            if number not in _PASSING:
                data = queries[place][0]
                self._fail(channel, data[0] << 8 | data[1], number)
        if refused:
            send(channel.sock, refused)

    # ---------------------------------------------------------------------------------------- receiving

    def _readable(self) -> None:
        """Read up to 32 replies, then deliver them together; the loop calls again for more."""
        left = MAX_DRAIN
        for descriptor, _ in self._epoll.poll(0, MAX_DRAIN):
            channel = self._channels.get(descriptor)
            if channel is None:
                continue  # closed by what an earlier reply of this batch led to
            try:
                replies = receive(channel.sock, left, READ_SIZE)
            except OSError as error:
                self._lost(channel, error)
            else:
                for data, _ in replies:
                    self._read(channel, data)
                left -= len(replies)
            if not left:
                break
        self._sink.flush()

    def _read(self, channel: Channel, data: bytes) -> None:
        ident = data[0] << 8 | data[1] if len(data) >= 2 else -1
        flight = channel.pending.get(ident)
        if flight is None or not self._sink.replied(channel.carrier.server, flight, channel, ident, data):
            channel.forged += 1
            self._counters["forged"] += 1

    def _lost(self, channel: Channel, error: OSError) -> None:
        """The kernel reports that the upstream cannot be reached: nothing asked over this socket will be answered."""
        for ident in tuple(channel.pending):
            self._fail(channel, ident, error.errno or 0)

    def _fail(self, channel: Channel, ident: int, number: int) -> None:
        server, flight = channel.carrier.server, channel.pending.get(ident)
        if flight is not None:
            failure = Failure(NO_REACHABLE_AUTHORITY, f"{server.health}: {os.strerror(number)}")
            self._sink.failed(server, flight, channel, ident, failure)


def _send_one(sock: socket.socket, data: bytes) -> None:
    try:
        sock.send(data)
    except BlockingIOError:
        pass  # as below
    except ConnectionRefusedError:
        sock.send(data)
