"""Wires between spaces, laid with rtnetlink through pyroute2: veth pairs, a bridge, addresses, routes, neighbours.

Nothing here knows what a pod is; `node` says which wire goes where. Each function does its work in a thread inside
the space concerned, so that pyroute2's sockets and event loop are of that place and end with it.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pyroute2.iproute import IPRoute

from egressd.lab.patience import eventually
from egressd.lab.space import Space

__all__ = ["End", "Route", "add_routes", "connect", "make_bridge", "remove_link"]

T = TypeVar("T")

LINK_SCOPE: Final = 253
HOST_SCOPE: Final = 254
LOCAL_TABLE: Final = 255
NO_DAD: Final = 0x02
"""IFA_F_NODAD: the address is usable at once (include/uapi/linux/if_addr.h)."""
PERMANENT: Final = 0x80
"""NUD_PERMANENT (include/uapi/linux/neighbour.h)."""


@dataclass(frozen=True, slots=True)
class Route:
    """`to` is a block (`0.0.0.0/0`: default); without `via`, on the link itself; `local`: the space owns all of it."""

    to: str
    via: str = ""
    local: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """One end of a wire. `addresses` carry a prefix length; `neighbours` are (address, MAC address) fixed for good."""

    space: Space
    interface: str
    mac: str
    addresses: Sequence[str] = ()
    routes: Sequence[Route] = ()
    neighbours: Sequence[tuple[str, str]] = ()
    bridge: str = ""


def connect(near: End, far: End) -> None:
    """Lay a veth pair between two spaces and configure both ends."""

    def lay(ip: Any) -> None:
        peer = {"ifname": far.interface, "address": far.mac, "net_ns_fd": far.space.network}
        ip.link("add", ifname=near.interface, kind="veth", address=near.mac, peer=peer)

    _with_netlink(near.space, lay)
    for end in (far, near):
        _configure_addresses(end)
    for end in (far, near):  # a route wants its interface to be up, which needs both ends
        add_routes(end.space, end.interface, end.routes)
    for end in (far, near):
        _await_carrier(end)


def make_bridge(space: Space, interface: str, mac: str, addresses: Sequence[str]) -> None:
    """Make a Linux bridge with the gateway addresses of a pod network."""
    _with_netlink(space, lambda ip: ip.link("add", ifname=interface, kind="bridge", address=mac))
    _configure_addresses(End(space, interface, mac, addresses))


def add_routes(space: Space, interface: str, routes: Iterable[Route]) -> None:
    """Add routes through an interface."""

    def add(ip: Any) -> None:
        index = _index(ip, interface)
        for route in routes:
            ip.route("add", **_route_attributes(route, index))

    _with_netlink(space, add)


def remove_link(space: Space, interface: str) -> None:
    """Delete an interface (a veth's other end goes with it); its routes go too. Nothing happens if it is gone."""

    def remove(ip: Any) -> None:
        for index in ip.link_lookup(ifname=interface):
            ip.link("del", index=index)

    _with_netlink(space, remove)


def _with_netlink(space: Space, work: Callable[[Any], T]) -> T:
    def inside() -> T:
        with IPRoute() as ip:
            return work(ip)

    return space.call(inside)


def _configure_addresses(end: End) -> None:
    def configure(ip: Any) -> None:
        index = _index(ip, end.interface)
        for text in end.addresses:
            address = ipaddress.ip_interface(text)
            flags = {"flags": NO_DAD} if address.version == 6 else {}
            ip.addr("add", index=index, address=str(address.ip), prefixlen=address.network.prefixlen, **flags)
        if end.bridge:
            ip.link("set", index=index, master=_index(ip, end.bridge))
        ip.link("set", index=index, state="up")
        for neighbour, mac in end.neighbours:
            ip.neigh("add", dst=neighbour, lladdr=mac, ifindex=index, state=PERMANENT, family=_family(neighbour))

    _with_netlink(end.space, configure)


def _await_carrier(end: End) -> None:
    """Wait until an end carries packets.

    The kernel's link watch follows some milliseconds behind, and a neighbour solicitation lost meanwhile would be
    repeated only after a second.
    """

    def carried(ip: Any) -> bool:
        links = [link for name in (end.interface, end.bridge) if name for link in ip.get_links(ifname=name)]
        return all(link.get_attr("IFLA_OPERSTATE") == "UP" for link in links)

    def wait(ip: Any) -> None:
        eventually(lambda: carried(ip), what=f"{end.interface} of {end.space.name} up")

    _with_netlink(end.space, wait)


def _route_attributes(route: Route, index: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {"dst": route.to, "oif": index, "family": _family(route.to)}
    if route.via:
        return attributes | {"gateway": route.via}
    if route.local:
        return attributes | {"type": "local", "table": LOCAL_TABLE, "scope": HOST_SCOPE}
    return attributes | {"scope": LINK_SCOPE}


def _index(ip: Any, interface: str) -> int:
    found: list[int] = list(ip.link_lookup(ifname=interface))
    return found[0]


def _family(text: str) -> int:
    return socket.AF_INET6 if ":" in text else socket.AF_INET
