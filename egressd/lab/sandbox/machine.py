"""The machine itself, seen from a sandbox: what addresses it uses, whether it has IPv6, and the uplink laid to it.

It is entered through a descriptor of its network namespace that was opened before the sandbox left it. What is made
there (an interface with an address and a route, and a table) vanishes with the sandbox; nothing else is touched.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pyroute2.iproute import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from egressd.errors import EnvironmentProblem
from egressd.kernel.netlink import Channel
from egressd.lab import syscalls
from egressd.lab.links import End, Route, connect, remove_link
from egressd.lab.sandbox.addresses import INTERFACE, Network, Side, candidates
from egressd.lab.sandbox.forwarding import SWITCH6, forwards
from egressd.lab.sandbox.masquerade import Masquerade
from egressd.lab.sandbox.obstacle import obstacle
from egressd.lab.space import Space

__all__ = ["Machine", "Uplink", "mac"]

UPLINK: Final = "uplink"
"""The node's interface to the machine."""
TABLE: Final = "egressd-sandbox"
"""How the machine's tables for sandboxes begin; the number of the sandbox follows."""
UNICAST: Final = 1


class Uplink(NamedTuple):
    """What was laid: the sandbox's number on this machine and its addresses, one family or both."""

    number: int
    sides: Sequence[Side]
    table: Masquerade


class Machine(Space):
    """The machine's own network, to lay an uplink to. Unlike other spaces it is neither made nor taken down by us."""

    def __init__(self, network: int) -> None:
        """`network` is a descriptor of its network namespace; it is closed with this."""
        self.name = "machine"
        self._kinds = {syscalls.NEW_NET: network}
        self._programs = []

    def close(self) -> None:
        for descriptor in self._kinds.values():
            os.close(descriptor)
        self._kinds.clear()

    def connect(self, node: Space) -> Uplink:
        """Lay the uplink to a node. Raises `EnvironmentProblem` where no addresses are free, `KernelError`."""
        taken, six = self.call(_look_around)
        for number, (four_side, six_side) in candidates(taken):
            sides = (four_side, six_side) if six else (four_side,)
            try:
                self._lay(number, sides, node)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise EnvironmentProblem(f"cannot make an interface on this machine: {error}") from error
            else:
                blocks = [each.block for each in sides]
                name = f"{INTERFACE}{number}"
                return Uplink(number, sides, self.call(Masquerade, f"{TABLE}-{number}", name, blocks))
        raise EnvironmentProblem(
            "no addresses are free for a sandbox: routes of this machine cover all it would take",
            "end other sandboxes, or remove a route that covers all private ranges",
        )

    def obstacle(self) -> str:
        """The chain of this machine, if any, that drops what a sandbox sends (obstacle.py)."""

        def look() -> str:
            channel = Channel()
            try:
                return obstacle(channel)
            finally:
                channel.close()

        return self.call(look)

    def disconnect(self, uplink: Uplink) -> None:
        """Take away at once what would vanish with this process anyway."""
        uplink.table.close()
        remove_link(self, f"{INTERFACE}{uplink.number}")

    def _lay(self, number: int, sides: Sequence[Side], node: Space) -> None:
        near = End(
            self,
            f"{INTERFACE}{number}",
            mac(number, 1),
            [each.on_wire(each.machine) for each in sides],
            [Route(str(each.cage), each.uplink) for each in sides],
        )
        far = End(
            node,
            UPLINK,
            mac(number, 2),
            [each.on_wire(each.uplink) for each in sides],
            [Route(each.anywhere, each.machine) for each in sides],
        )
        connect(near, far)


def mac(number: int, end: int) -> str:
    """A locally administered MAC address for one end of a wire of a sandbox."""
    return f"02:65:67:00:{number:02x}:{end:02x}"


def _look_around() -> tuple[list[Network], bool]:
    """The blocks that routes and addresses cover, and whether IPv6 leads anywhere and is forwarded."""
    taken: list[Network] = []
    way_out = False
    with IPRoute() as ip:
        for message in _routes(ip):
            destination, length = message.get_attr("RTA_DST"), message["dst_len"]
            if length:
                taken.append(ipaddress.ip_network(f"{destination}/{length}", strict=False))
            elif message["family"] == socket.AF_INET6:
                way_out = way_out or message["type"] == UNICAST
    return taken, way_out and forwards(SWITCH6)


def _routes(ip: Any) -> list[Any]:
    """The routes of every table, addresses of the machine among them (table `local`)."""
    found: list[Any] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            found += ip.get_routes(family=family)
        except NetlinkError as error:
            if error.code not in {errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:  # a kernel without IPv6
                raise
    return found
