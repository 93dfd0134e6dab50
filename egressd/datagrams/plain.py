"""The same in Python, a system call for each datagram: what `_batch.c` does is said here, and must be so there."""

from __future__ import annotations

import socket
import struct
from functools import lru_cache
from typing import Any, Final

__all__ = ["receive", "send"]

_IPV4: Final = struct.Struct("=H2s4s8x")
"""struct sockaddr_in: family, port in network order, address (ip(7))."""
_IPV6: Final = struct.Struct("=H2sI16sI")
"""struct sockaddr_in6: family, port, flow information in network order, address, scope (ipv6(7))."""
_PEERS: Final = 4096
"""Peers whose spelling is remembered, each way."""


def receive(sock: socket.socket, count: int, size: int) -> list[tuple[bytes, bytes]]:
    """What has come, at most `count` datagrams, each cut to `size` octets, with the name of the socket that sent it.

    Never waits; with nothing there, the list is empty. Raises `OSError` where the socket has an error to tell and no
    datagram before it; one behind a datagram is told next time, or (here, in Python) not at all.
    """
    found: list[tuple[bytes, bytes]] = []
    try:
        while len(found) < count:
            data, peer = sock.recvfrom(size, socket.MSG_DONTWAIT)
            found.append((data, _name(peer) if peer else b""))
    except BlockingIOError:
        pass
    except OSError:
        if not found:
            raise
    return found


def send(sock: socket.socket, datagrams: list[tuple[bytes, bytes]]) -> list[tuple[int, int]]:
    """Send each datagram to the socket of that name, or, with an empty one, to whom `sock` is connected.

    Never waits and never raises for a datagram: what the kernel did not take is returned, by its place in the list,
    with the error number.
    """
    failures = []
    for place, (data, name) in enumerate(datagrams):
        try:
            if name:
                sock.sendto(data, socket.MSG_DONTWAIT, _peer(name))
            else:
                sock.send(data, socket.MSG_DONTWAIT)
        except OSError as error:
            failures.append((place, error.errno or 0))
    return failures


@lru_cache(_PEERS)
def _name(peer: tuple[Any, ...]) -> bytes:
    """What the kernel calls a peer, from what the socket module calls it."""
    port = peer[1].to_bytes(2, "big")
    if len(peer) == 2:
        return _IPV4.pack(socket.AF_INET, port, socket.inet_aton(peer[0]))
    address = socket.inet_pton(socket.AF_INET6, peer[0].partition("%")[0])
    return _IPV6.pack(socket.AF_INET6, port, socket.htonl(peer[2]), address, peer[3])


@lru_cache(_PEERS)
def _peer(name: bytes) -> tuple[Any, ...]:
    """The other way round."""
    if len(name) == _IPV4.size:
        _, port, address = _IPV4.unpack(name)
        return socket.inet_ntoa(address), int.from_bytes(port, "big")
    _, port, flow, address, scope = _IPV6.unpack(name)
    return socket.inet_ntop(socket.AF_INET6, address), int.from_bytes(port, "big"), socket.ntohl(flow), scope
