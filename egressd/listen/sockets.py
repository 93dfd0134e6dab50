"""Opening the transparent sockets: options, binding, and a plain sentence for each thing that can be missing.

Option numbers are those of include/uapi/linux/in.h, in6.h and asm-generic/socket.h where Python has no name for them.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from egressd.errors import EnvironmentProblem
from egressd.model import address_text

__all__ = ["IP_PKTINFO", "Endpoint", "endpoints", "open_endpoint", "renew_marks"]

PORT: Final = 53
RECEIVE_BUFFER: Final = 4 * 1024 * 1024
"""Octets of kernel buffer per UDP socket; the default lost 4 % at 15,000 queries/s (kernel.md)."""
BACKLOG: Final = 1024
"""TCP connections that may wait to be accepted; the kernel cuts it to net.core.somaxconn."""

IP_PKTINFO: Final = 8
_IPV6_TRANSPARENT: Final = 75
_SO_ATTACH_FILTER: Final = 26
_SO_RCVBUFFORCE: Final = 33

_MARK_OFFSET: Final = 0xFFFFF014
"""SKF_AD_OFF + SKF_AD_MARK (include/uapi/linux/filter.h): a filter reads the packet's mark there."""


class Endpoint(NamedTuple):
    """One listening socket's place. `server` is empty for the wildcard socket that answers for foreign servers."""

    family: int
    server: bytes
    transport: str

    def __str__(self) -> str:
        wildcard = "any IPv4 address" if self.family == socket.AF_INET else "any IPv6 address"
        host = address_text(self.server) if self.server else wildcard
        return f"{host} port {PORT}/{self.transport}"


def endpoints(servers: Sequence[bytes], foreign: bool) -> list[Endpoint]:
    """Where to listen. TCP sockets bound to one address and to any cannot both listen, so in foreign mode the
    wildcard pair serves TCP for all; for UDP the narrower socket is simply found first, and is the cheaper one.
    """
    families = (socket.AF_INET, socket.AF_INET6)
    places = [
        Endpoint(families[len(server) == 16], server, transport)
        for server in dict.fromkeys(servers)
        for transport in (("udp",) if foreign else ("udp", "tcp"))
    ]
    if foreign:
        places += [Endpoint(family, b"", transport) for family in families for transport in ("udp", "tcp")]
    return places


def open_endpoint(endpoint: Endpoint, answer_mark: int, intercept_mark: int) -> socket.socket | None:
    """Open, bind and (TCP) listen; non-blocking. None where a foreign server's family does not exist on this machine.

    Raises `EnvironmentProblem`.
    """
    try:
        return _open(endpoint, answer_mark, intercept_mark)
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT and not endpoint.server:
            return None
        raise _explain(endpoint, error) from error


def renew_marks(opened: socket.socket, endpoint: Endpoint, answer_mark: int, intercept_mark: int) -> None:
    """Give a socket from an older process today's marks. Raises `EnvironmentProblem`."""
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, answer_mark)
        if not endpoint.server:
            _heed_only_marked(opened, intercept_mark)
    except OSError as error:
        raise _explain(endpoint, error) from error


def _open(endpoint: Endpoint, answer_mark: int, intercept_mark: int) -> socket.socket:
    kind = socket.SOCK_DGRAM if endpoint.transport == "udp" else socket.SOCK_STREAM
    opened = socket.socket(endpoint.family, kind | socket.SOCK_NONBLOCK)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, answer_mark)
        _make_transparent(opened)
        if not endpoint.server:
            _heed_only_marked(opened, intercept_mark)
        if endpoint.transport == "udp":
            opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
            if not endpoint.server:
                _tell_destination(opened)
        else:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.bind((address_text(endpoint.server) if endpoint.server else "", PORT))
        if endpoint.transport == "tcp":
            opened.listen(BACKLOG)
    except OSError:
        opened.close()
        raise
    return opened


def _make_transparent(opened: socket.socket) -> None:
    if opened.family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_TRANSPARENT, 1)


def _tell_destination(opened: socket.socket) -> None:
    """Have each datagram say which address it was sent to; the same message, sent back, sets an answer's source."""
    if opened.family == socket.AF_INET:
        opened.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
    else:
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)


def _heed_only_marked(opened: socket.socket, mark: int) -> None:
    """Let a wildcard socket receive intercepted packets alone, or the node would be a resolver for its whole network.

    A classic BPF program of four instructions: load the packet's mark, test our bit, take all or nothing.
    """
    program = (
        (0x20, 0, 0, _MARK_OFFSET),  # ld [mark]
        (0x45, 0, 1, mark),  # jset #mark, take, drop
        (0x06, 0, 0, 0xFFFFFFFF),  # ret all
        (0x06, 0, 0, 0),  # ret nothing
    )
    code = array.array("B", b"".join(struct.pack("=HBBI", *step) for step in program))
    address, _ = code.buffer_info()
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), address))


_PROBLEMS: Final = {
    errno.EPERM: ("not permitted", "run egressd as root with CAP_NET_ADMIN"),
    errno.EACCES: ("not permitted", "add CAP_NET_BIND_SERVICE, or lower net.ipv4.ip_unprivileged_port_start"),
    errno.EADDRINUSE: ("another program listens there", "stop it, or take the address out of dns.servers"),
    errno.EAFNOSUPPORT: ("this kernel has no IPv6", "take IPv6 addresses out of dns.servers and dns.upstreams"),
    errno.ENOPROTOOPT: ("this kernel lacks transparent sockets", "load the module nft_tproxy"),
}


def _explain(endpoint: Endpoint, error: OSError) -> EnvironmentProblem:
    what, remedy = _PROBLEMS.get(error.errno or 0, (error.strerror or str(error), ""))
    return EnvironmentProblem(f"cannot listen on {endpoint}: {what}", remedy)
