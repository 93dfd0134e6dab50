"""Where a pod hangs, asked of the kernel: route to its address → bridge, neighbour entry → MAC, FDB → port.

Questions are single requests of rtnetlink, hand-packed: a few microseconds each, and one dump of links. They may wait
for the kernel's RTNL lock, so they are asked in a thread. Layouts follow include/uapi/linux/rtnetlink.h, neighbour.h
and if_link.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pyroute2.netlink import (
    NETLINK_ROUTE,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
)
from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_GETNEIGH, RTM_GETROUTE, RTM_NEWNEIGH
from pyroute2.netns import create_socket

from egressd.errors import KernelError
from egressd.kernel.netlink import attributes, blob

__all__ = ["Link", "Sighting", "Survey", "Wires", "messages", "read_link", "read_neighbour"]

HEADER: Final = struct.Struct("=IHHII")
"""nlmsghdr: length, type, flags, sequence, port."""
IFINFO: Final = struct.Struct("=BxHiII")
"""ifinfomsg: family, type, index, flags, change."""
NDMSG: Final = struct.Struct("=B3xiHBB")
"""ndmsg: family, interface, state, flags, type."""
RTMSG: Final = struct.Struct("=BBBBBBBBI")
"""rtmsg: family, destination length, source length, TOS, table, protocol, scope, type, flags."""
WORD: Final = struct.Struct("=I")

IFLA_IFNAME, IFLA_MASTER, IFLA_LINKINFO, IFLA_EXT_MASK = 3, 10, 18, 29
INFO_KIND, INFO_DATA, BRIDGE_VLAN_FILTERING = 1, 2, 7
SKIP_STATISTICS: Final = 1 << 3
"""RTEXT_FILTER_SKIP_STATS: a link in half a kilobyte, not in two."""
RTA_DST, RTA_OIF = 1, 4
UNICAST: Final = 1
"""RTN_UNICAST: not an address of the node itself, not unreachable."""
NDA_DST, NDA_LLADDR, NDA_MASTER = 1, 2, 9
NTF_USE: Final = 0x01
"""The kernel shall look for the neighbour, as if it had a packet for it."""
RESOLVED: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80
"""NUD_REACHABLE, STALE, DELAY, PROBE, NOARP, PERMANENT: states in which the link-layer address is known."""
PROBE, PERMANENT = 0x10, 0x80
"""NUD_PROBE: ask it at once; NUD_PERMANENT, of an FDB entry: the bridge's own address, not one that it learned."""
FIXED: Final = 0x40 | PERMANENT
"""NUD_NOARP, NUD_PERMANENT: entries that somebody wrote, and that are not to be probed."""
TIMEOUT_S: Final = 10.0
RECEIVE_SIZE: Final = 1 << 17


class Link(NamedTuple):
    number: int
    """The interface's index."""
    name: str
    master: int
    """Index of the bridge (or bond, VRF) it belongs to, 0 for none."""
    bridge: bool = False
    vlan_aware: bool = False


class Sighting(NamedTuple):
    """What is known of an address behind a bridge: indices, 0 and empty where unknown."""

    bridge: int
    mac: bytes = b""
    state: int = 0
    """Of the neighbour entry."""
    port: int = 0


@dataclass(frozen=True, slots=True)
class Survey:
    links: Mapping[int, Link]
    sightings: Mapping[bytes, Sighting] = field(default_factory=dict)
    """Those of the asked addresses that are behind a bridge."""


class Wires:
    """One rtnetlink socket, used by one thread at a time."""

    def __init__(self) -> None:
        self._socket: socket.socket = create_socket(None, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
        self._socket.bind((0, 0))
        self._socket.settimeout(TIMEOUT_S)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def survey(self, addresses: Collection[bytes], wake: Collection[bytes] = ()) -> Survey:
        """Look where addresses live; those of `wake` that the kernel does not know are looked for by it.

        A bridge that tells VLANs apart is none of ours. Raises `KernelError`.
        """
        try:
            links = {link.number: link for link in self._links()}
            if not any(link.bridge and not link.vlan_aware for link in links.values()):
                return Survey(links)
            sightings = {address: seen for address in addresses if (seen := self._look(address, links))}
            for address, seen in sightings.items():
                if not seen.port and address in wake:
                    self._wake(address, seen)
        except OSError as error:
            text = f"cannot ask rtnetlink for pods' ports: {error.strerror or error}"
            raise KernelError(text, error.errno or errno.EIO) from error
        return Survey(links, sightings)

    def _look(self, address: bytes, links: Mapping[int, Link]) -> Sighting | None:
        bridge = links.get(self._route(address))
        if bridge is None or not bridge.bridge or bridge.vlan_aware:
            return None
        mac, state = self._neighbour(bridge.number, address)
        return Sighting(bridge.number, mac, state, self._port(bridge.number, mac) if mac else 0)

    def _links(self) -> Iterator[Link]:
        body = IFINFO.pack(0, 0, 0, 0, 0) + blob(IFLA_EXT_MASK, WORD.pack(SKIP_STATISTICS))
        return map(read_link, self._ask(RTM_GETLINK, NLM_F_DUMP, body))

    def _route(self, address: bytes) -> int:
        """The interface that leads to an address, 0 if none does."""
        body = RTMSG.pack(_family(address), 8 * len(address), 0, 0, 0, 0, 0, 0, 0) + blob(RTA_DST, address)
        for answer in self._ask(RTM_GETROUTE, 0, body):
            found = dict(attributes(answer[RTMSG.size :]))
            if answer[7] == UNICAST and RTA_OIF in found:
                return int(WORD.unpack(found[RTA_OIF])[0])
        return 0

    def _neighbour(self, bridge: int, address: bytes) -> tuple[bytes, int]:
        body = NDMSG.pack(_family(address), bridge, 0, 0, 0) + blob(NDA_DST, address)
        for answer in self._ask(RTM_GETNEIGH, 0, body):
            state = NDMSG.unpack_from(answer)[2]
            if state & RESOLVED:
                return read_neighbour(answer)[1], state
        return b"", 0

    def _port(self, bridge: int, mac: bytes) -> int:
        body = NDMSG.pack(socket.AF_BRIDGE, 0, 0, 0, 0) + blob(NDA_LLADDR, mac) + blob(NDA_MASTER, WORD.pack(bridge))
        for answer in self._ask(RTM_GETNEIGH, 0, body):
            _, index, state, _, _ = NDMSG.unpack_from(answer)
            if not state & PERMANENT and index != bridge:
                return int(index)
        return 0

    def _wake(self, address: bytes, seen: Sighting) -> None:
        """Have the kernel send a solicitation; it reports what it finds (RTNLGRP_NEIGH).

        A neighbour that is known, though not at which port, is only probed: what is known of it stays.
        """
        about = blob(NDA_DST, address)
        if not seen.mac:
            body = NDMSG.pack(_family(address), seen.bridge, 0, NTF_USE, 0) + about
            self._ask(RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_ACK, body)
        elif not seen.state & FIXED:
            body = NDMSG.pack(_family(address), seen.bridge, PROBE, 0, 0) + about + blob(NDA_LLADDR, seen.mac)
            self._ask(RTM_NEWNEIGH, NLM_F_REPLACE | NLM_F_ACK, body)

    def _ask(self, kind: int, flags: int, body: bytes) -> list[bytes]:
        """Payloads of the answers; none where the kernel knows nothing, or refuses."""
        self._sequence += 1
        self._socket.send(HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, self._sequence, 0) + body)
        found: list[bytes] = []
        while True:
            for seen, sequence, payload in messages(self._socket.recv(RECEIVE_SIZE)):
                if sequence != self._sequence:
                    continue  # an answer that an earlier question gave up waiting for
                if seen in (NLMSG_DONE, NLMSG_ERROR):
                    return found
                found.append(payload)
                if not flags:
                    return found


def _family(address: bytes) -> int:
    return socket.AF_INET if len(address) == 4 else socket.AF_INET6


def messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, sequence number and payload of each message in one read."""
    offset = 0
    while offset + HEADER.size <= len(data):
        size, kind, _, sequence, _ = HEADER.unpack_from(data, offset)
        yield kind, sequence, data[offset + HEADER.size : offset + size]
        offset += max(HEADER.size, (size + 3) & ~3)


def read_link(payload: bytes) -> Link:
    """A link from RTM_NEWLINK or RTM_DELLINK."""
    index = IFINFO.unpack_from(payload)[2]
    found = dict(attributes(payload[IFINFO.size :]))
    info = dict(attributes(found.get(IFLA_LINKINFO, b"")))
    bridge = info.get(INFO_KIND, b"").rstrip(b"\0") == b"bridge"
    detail = dict(attributes(info.get(INFO_DATA, b""))) if bridge else {}
    name = found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
    master = WORD.unpack(found[IFLA_MASTER])[0] if IFLA_MASTER in found else 0
    return Link(index, name, master, bridge, detail.get(BRIDGE_VLAN_FILTERING, b"\0") != b"\0")


def read_neighbour(payload: bytes) -> tuple[bytes, bytes]:
    """Address (empty in an FDB entry) and MAC (empty if unknown) from RTM_NEWNEIGH."""
    found = dict(attributes(payload[NDMSG.size :]))
    return found.get(NDA_DST, b""), found.get(NDA_LLADDR, b"")
