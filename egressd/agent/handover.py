"""What an old and a new process of one table say to each other, and how each knows that the other may say it.

They meet at an abstract unix socket named by the table, `@egressd/TABLE`: it belongs to the network namespace, as the
table does, needs no folder that both can see, and vanishes with its holder even after `kill -9`. Binding it is also
what makes a daemon the only one. Abstract sockets have no file mode, so each end looks at the other: its uid must be
ours (SO_PEERCRED), and who asks for the sockets shows what only CAP_NET_ADMIN can make in this very network namespace:
a socket whose receive buffer was forced (SO_RCVBUFFORCE) to the largest there is. A message is one record of a
SOCK_SEQPACKET connection, one MessagePack value, with descriptors beside it (SCM_RIGHTS).
"""

from __future__ import annotations

import array
import asyncio
import errno
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

import msgspec

from egressd.errors import LinkError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Busy",
    "Done",
    "Held",
    "Hello",
    "Known",
    "Line",
    "Place",
    "Reclaimed",
    "Serving",
    "Sockets",
    "Streams",
    "Welcome",
    "claim",
    "is_proof",
    "peer",
    "proof",
    "visit",
]

RECORD: Final = 1 << 18
"""Octets of the largest record: more than the default send buffer (net.core.wmem_default, 212,992) lets through."""
DESCRIPTORS: Final = 64
"""Descriptors beside one record; the kernel takes up to 253 (SCM_MAX_FD)."""

_SO_RCVBUFFORCE, _SO_NETNS_COOKIE = 33, 71
_FORCED: Final = 0x7FFFFFFE
"""What SO_RCVBUFFORCE makes of 1 GiB (net/core/sock.c, __sock_set_rcvbuf); net.core.rmem_max bounds everybody else."""

Place = tuple[int, bytes, str]
"""Family, server and transport of a listening socket (`listen.Endpoint`)."""


class Hello(msgspec.Struct, frozen=True, tag=True):
    """New to old: hand over to me. The proof comes beside it."""

    pid: int
    version: str


class Busy(msgspec.Struct, frozen=True, tag=True):
    """Old to new: not now, and why. The new one ends."""

    reason: str


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """Old to new: you will have it; I finish what is in flight."""


class Sockets(msgspec.Struct, frozen=True, tag=True):
    """Listening sockets, one descriptor each; an empty list: the socket of this meeting place itself."""

    places: tuple[Place, ...]


class Streams(msgspec.Struct, frozen=True, tag=True):
    """TCP connections that await no answer, one descriptor each, with what came of their next queries."""

    received: tuple[bytes, ...]


class Held(msgspec.Struct, frozen=True, tag=True):
    """UDP queries not answered yet: place, client's address and port, octets."""

    queries: tuple[tuple[Place, bytes, int, bytes], ...]


class Known(msgspec.Struct, frozen=True, tag=True):
    """By which names pods know addresses: pod, address, names."""

    entries: tuple[tuple[bytes, bytes, tuple[str, ...]], ...]


class Done(msgspec.Struct, frozen=True, tag=True):
    """Old to new: that was all, and the kernel is yours."""


class Serving(msgspec.Struct, frozen=True, tag=True):
    """New to old: I serve; go."""


class Reclaimed(msgspec.Struct, frozen=True, tag=True):
    """Old to new: you took too long; I serve again. The new one ends."""


Message = Hello | Busy | Welcome | Sockets | Streams | Held | Known | Done | Serving | Reclaimed
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Message)


# ------------------------------------------------------------------------------------------- the meeting place


def claim(table: str) -> socket.socket | None:
    """Become the holder of the meeting place; None if somebody is."""
    place = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        place.bind(_name(table))
    except OSError as error:
        place.close()
        if error.errno != errno.EADDRINUSE:
            raise
        return None
    place.listen()
    return place


def visit(table: str) -> socket.socket:
    """A connection to the holder. Raises `OSError`: nobody is there any more, or its queue is full."""
    visitor = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        visitor.connect(_name(table))
    except OSError:
        visitor.close()
        raise
    return visitor


def _name(table: str) -> bytes:
    return b"\0egressd/" + table.encode()


def peer(connection: socket.socket) -> tuple[int, int]:
    """PID (0 if it lives in another PID namespace) and uid of the other end, or of who last called listen there."""
    data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, _ = struct.unpack("=iII", data)
    return pid, uid


def proof() -> socket.socket:
    """A socket that only CAP_NET_ADMIN can make. Raises `OSError` without."""
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 30)
    except OSError:
        made.close()
        raise
    return made


def is_proof(shown: socket.socket) -> bool:
    """Whether a socket proves its maker's right to administer the network namespace that we are in."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        same = _namespace(shown) == _namespace(own)
    return same and shown.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == _FORCED


def _namespace(opened: socket.socket) -> bytes:
    try:
        return opened.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
    except OSError:  # before 5.14: the uid and the forced buffer must do
        return b""


# ------------------------------------------------------------------------------------------------ conversation


class Line:
    """One end of a conversation. Close it, whatever happens."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        self._loop = loop
        self._socket = connection

    @property
    def peer(self) -> tuple[int, int]:
        return peer(self._socket)

    async def send(self, message: Message, sockets: Sequence[socket.socket] = ()) -> None:
        """Say something. Raises `OSError` when nobody hears it."""
        data = _encoder.encode(message)
        rights = array.array("i", [sock.fileno() for sock in sockets])
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if sockets else []
        while True:
            try:
                self._socket.sendmsg([data], ancillary, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                await self._ready(self._loop.add_writer, self._loop.remove_writer)
            else:
                return

    async def receive(self, timeout_s: float) -> tuple[Any, list[socket.socket]]:
        """The next message and the sockets beside it. Raises `TimeoutError`, `OSError` (the end too), `LinkError`."""
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    found = self._socket.recvmsg(RECORD, socket.CMSG_SPACE(4 * DESCRIPTORS), socket.MSG_CMSG_CLOEXEC)
                except BlockingIOError:
                    await self._ready(self._loop.add_reader, self._loop.remove_reader)
                else:
                    break
        data, ancillary, flags, _ = found
        sockets = _sockets(ancillary)
        if not data:
            raise ConnectionResetError(errno.ECONNRESET, "the other process ended or hung up")
        try:
            message = _decoder.decode(data)
        except msgspec.MsgspecError as error:
            message = None
            reason = str(error)
        if message is None or flags & (socket.MSG_CTRUNC | socket.MSG_TRUNC):
            for sock in sockets:
                sock.close()
            raise LinkError(f"a hand-over message that is not understood: {'cut' if message else reason}")
        return message, sockets

    async def _ready(self, add: Callable[..., Any], remove: Callable[[int], Any]) -> None:
        ready = self._loop.create_future()
        number = self._socket.fileno()
        add(number, _settle, ready)
        try:
            await ready
        finally:
            remove(number)

    def close(self) -> None:
        self._socket.close()


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _sockets(ancillary: list[tuple[int, int, bytes]]) -> list[socket.socket]:
    numbers = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    found = []
    for number in numbers:
        try:
            found.append(socket.socket(fileno=number))
        except OSError:  # not a socket
            os.close(number)
    for sock in found:
        sock.setblocking(False)
    return found
