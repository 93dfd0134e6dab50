"""What other hands do to our table, our routing rules and our routes, heard from the kernel as it happens.

One socket for nf_tables (group NFNLGRP_NFTABLES), one for routing. Filters in the kernel (classic BPF over the first
message of each report) hold back what we did ourselves and what cannot concern us, so that a grant wakes nobody: a
subscribed watch costs 2 µs a transaction. What was lost on the way counts as a change. Layouts follow
include/uapi/linux/netlink.h, rtnetlink.h and netfilter/nfnetlink.h.
"""

from __future__ import annotations

import array
import errno
import socket
import struct
from typing import TYPE_CHECKING, Final

from pyroute2.netlink import NETLINK_NETFILTER, NETLINK_ROUTE
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES
from pyroute2.netns import create_socket

from egressd.kernel.netlink import attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Watch", "names_table"]

RECEIVE_BUFFER: Final = 1 << 20
READS: Final = 64
"""Reports taken in one turn of the event loop."""

_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP_NFTABLES: Final = 7
"""NFNLGRP_NFTABLES."""
_GROUPS_ROUTING: Final = (7, 8, 11, 19)
"""RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_RULE."""
_DELETED: Final = (25, 33)
"""RTM_DELROUTE, RTM_DELRULE."""
_TABLE_ATTRIBUTE: Final = 15
"""RTA_TABLE and FRA_TABLE."""
_HEADER: Final = struct.Struct("=IHHII")
_LOAD_WORD, _LOAD_HALF, _EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06
_TYPE_AT, _PORT_AT = 4, 12
"""Offsets of nlmsg_type and nlmsg_pid."""


def _swapped(layout: str, value: int) -> int:
    """A number in the machine's order as BPF, which loads in network order, will see it."""
    return int.from_bytes(struct.pack(layout, value), "big")


def _attach(opened: socket.socket, program: tuple[tuple[int, int, int, int], ...]) -> None:
    code = array.array("B", b"".join(struct.pack("=HBBI", *step) for step in program))
    address, _ = code.buffer_info()
    opened.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(program), address))


def _subscribe(protocol: int, groups: tuple[int, ...]) -> socket.socket:
    opened: socket.socket = create_socket(None, socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    opened.bind((0, 0))
    try:
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    for group in groups:
        opened.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    opened.setblocking(False)
    return opened


class Watch:
    """Calls `table_touched` or `routes_touched` when another hand was at ours; give both sockets to the loop."""

    def __init__(
        self, table: str, route_table: int, table_touched: Callable[[], None], routes_touched: Callable[[], None]
    ) -> None:
        self._table = table.encode() + b"\0"
        self._route_table = route_table
        self._table_touched = table_touched
        self._routes_touched = routes_touched
        self.rules = _subscribe(NETLINK_NETFILTER, (_GROUP_NFTABLES,))
        self.routing = _subscribe(NETLINK_ROUTE, _GROUPS_ROUTING)
        first, second = (_swapped("=H", kind) for kind in _DELETED)
        take = (_RETURN, 0, 0, 0xFFFFFFFF)
        _attach(
            self.routing,
            ((_LOAD_HALF, 0, 0, _TYPE_AT), (_EQUAL, 2, 0, first), (_EQUAL, 1, 0, second), (_RETURN, 0, 0, 0), take),
        )

    def ignore(self, port: int) -> None:
        """Say nothing of what this netlink port does to nf_tables: it is ours."""
        mine = _swapped("=I", port)
        _attach(
            self.rules,
            (
                (_LOAD_WORD, 0, 0, _PORT_AT),
                (_EQUAL, 0, 1, mine),
                (_RETURN, 0, 0, 0),
                (_RETURN, 0, 0, 0xFFFFFFFF),
            ),
        )

    def read_rules(self) -> None:
        """Take what came of nf_tables; one call for all of it."""
        touched = [self._is_our_table(data) for data in _reports(self.rules)]
        if any(touched):
            self._table_touched()

    def read_routing(self) -> None:
        """Take what came of routing; one call for all of it."""
        touched = [self._is_our_route(data) for data in _reports(self.routing)]
        if any(touched):
            self._routes_touched()

    def close(self) -> None:
        self.rules.close()
        self.routing.close()

    def _is_our_table(self, data: bytes | None) -> bool:
        return data is None or names_table(data, self._table)

    def _is_our_route(self, data: bytes | None) -> bool:
        if data is None:
            return True
        for _, body in _messages(data):
            value = dict(attributes(body[12:])).get(_TABLE_ATTRIBUTE, b"")  # rtmsg and fib_rule_hdr are 12 octets
            if len(value) == 4 and struct.unpack("=I", value)[0] == self._route_table:
                return True
        return False


def names_table(data: bytes, table: bytes) -> bool:
    """Whether a report of nf_tables is about this table: the first attribute of every kind of object names it."""
    return any(
        kind >> 8 == NFNL_SUBSYS_NFTABLES and dict(attributes(body[4:])).get(1) == table
        for kind, body in _messages(data)
    )


def _reports(opened: socket.socket) -> Iterator[bytes | None]:
    """What has come; None where something was lost."""
    for _ in range(READS):
        try:
            yield opened.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            yield None


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each message of a report."""
    offset = 0
    while offset + 16 <= len(data):
        size, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        yield kind, data[offset + 16 : offset + size]
        offset += max(16, (size + 3) & ~3)
