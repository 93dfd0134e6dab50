"""A node and one client in two network namespaces of a child process, joined by a veth pair or by a bridge.

The witness of interception is the `nft` program with the tproxy rules of kernel.md. Nothing outlives the child.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import dns.flags
import dns.message
import dns.rrset
import pytest
from pyroute2.iproute import IPRoute

from egressd.kernel.routes import install_routes
from egressd.lab.syscalls import NEW_MOUNT, NEW_NET, set_namespace, unshare
from egressd.listen import Client, Listener
from egressd.listen.client import Handler
from egressd.model import address_text
from egressd.settings import Settings

NODE4, NODE6 = "198.51.100.1", "2001:db8:1::1"
CLIENT4, CLIENT6 = "198.51.100.7", "2001:db8:1::7"

RULES = """
table inet witness {{
  chain intercept {{
    type filter hook prerouting priority raw; policy accept;
    ip daddr {{ {v4} }} udp dport 53 tproxy ip to ip daddr:53 meta mark set meta mark | 0x20000 notrack accept
    ip daddr {{ {v4} }} tcp dport 53 tproxy ip to ip daddr:53 meta mark set meta mark | 0x20000 notrack accept
    ip6 daddr {{ {v6} }} udp dport 53 tproxy ip6 to ip6 daddr:53 meta mark set meta mark | 0x20000 notrack accept
    ip6 daddr {{ {v6} }} tcp dport 53 tproxy ip6 to ip6 daddr:53 meta mark set meta mark | 0x20000 notrack accept
  }}
  chain answers {{
    type filter hook output priority raw; policy accept;
    meta mark & 0x40000 == 0x40000 counter notrack accept
  }}
}}
"""

T = TypeVar("T")
Loops = Callable[[], asyncio.AbstractEventLoop]
One = Callable[[bytes, Client], None]
"""What a test does with one query."""


def isolated(body: Callable[[], None]) -> None:
    """Run `body` in a child process with network and mount namespaces of its own; its failure becomes ours."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        report = b""
        try:
            os.close(reader)
            unshare(NEW_MOUNT | NEW_NET)
            body()
        except BaseException:  # whatever it is, the parent shall print it
            report = traceback.format_exc().encode()
        os.write(writer, report[-60_000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        failure = pipe.read().decode()
    os.waitpid(child, 0)
    if failure:
        pytest.fail(failure)


@dataclass(frozen=True)
class World:
    """The two namespaces, by file descriptor; the calling process lives on the node."""

    node: int
    client: int

    def at_client(self, call: Callable[[], T]) -> T:
        """Run `call` in the client's namespace, in this thread; sockets made there stay there."""
        set_namespace(self.client, NEW_NET)
        try:
            return call()
        finally:
            set_namespace(self.node, NEW_NET)


def build(bridge: bool = False) -> World:
    """Make the client's namespace and the link to it; returns with addresses usable at once."""
    node = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    unshare(NEW_NET)
    world = World(node, os.open("/proc/thread-self/ns/net", os.O_RDONLY))
    set_namespace(node, NEW_NET)
    with IPRoute() as route:
        route.link("set", index=1, state="up")
        route.link("add", ifname="pod0", kind="veth", peer={"ifname": "eth0", "net_ns_fd": world.client})
        port = route.link_lookup(ifname="pod0")[0]
        holder = _bridge(route, port) if bridge else port
        route.link("set", index=port, state="up")
        _address(route, holder, NODE4, NODE6)
    for family in ("ipv4", "ipv6"):
        Path(f"/proc/sys/net/{family}/conf/all/forwarding").write_text("1")
    world.at_client(_join)
    return world


def _bridge(route: IPRoute, port: int) -> int:
    route.link("add", ifname="br0", kind="bridge", br_stp_state=0, br_forward_delay=0)
    bridge: int = route.link_lookup(ifname="br0")[0]
    route.link("set", index=port, master=bridge)
    route.link("set", index=bridge, state="up")
    for name in ("iptables", "ip6tables"):
        Path(f"/proc/sys/net/bridge/bridge-nf-call-{name}").write_text("1")
    return bridge


def _address(route: IPRoute, index: int, v4: str, v6: str) -> None:
    route.addr("add", index=index, address=v4, prefixlen=24)
    route.addr("add", index=index, address=v6, prefixlen=64, flags=2)  # IFA_F_NODAD: usable at once


def _join() -> None:
    with IPRoute() as route:
        route.link("set", index=1, state="up")
        index = route.link_lookup(ifname="eth0")[0]
        route.link("set", index=index, state="up")
        _address(route, index, CLIENT4, CLIENT6)
        route.route("add", dst="default", gateway=NODE4)
        route.route("add", family=10, dst="default", gateway=NODE6)


def intercept(settings: Settings, servers: Sequence[bytes], caught: Sequence[bytes] = ()) -> None:
    """Have the kernel bring queries for `caught` (default: `servers`) to this process."""
    install_routes(settings, servers)
    caught = caught or servers
    v4 = ", ".join(address_text(server) for server in caught if len(server) == 4)
    v6 = ", ".join(address_text(server) for server in caught if len(server) == 16)
    subprocess.run(["nft", "-f", "-"], input=RULES.format(v4=v4, v6=v6), text=True, check=True)


def one_by_one(one: One) -> Handler:
    """A listener's handler that hands on each query of a wake by itself."""

    def handler(queries: list[tuple[bytes, Client]]) -> None:
        for data, client in queries:
            one(data, client)

    return handler


def answer(data: bytes, client: Client) -> None:
    """Answer like a resolver that knows one address; the server asked stands in a TXT record."""
    query = dns.message.from_wire(data)
    reply = dns.message.make_response(query)
    reply.flags |= dns.flags.RA
    name = query.question[0].name
    reply.answer.append(dns.rrset.from_text(name, 60, "IN", "TXT", address_text(client.server)))
    client.send(reply.to_wire())


def serve(
    loops: Loops,
    settings: Settings,
    servers: Sequence[bytes],
    handler: One,
    scene: Callable[[Listener], Awaitable[None]],
) -> Listener:
    """Open a listener on a fresh loop, play `scene`, close it; returns it for a look at its counters."""
    loop = loops()
    listener = Listener(loop, settings, servers, one_by_one(handler))
    listener.open()
    try:
        loop.run_until_complete(scene(listener))
    finally:
        listener.close()
        loop.close()
    return listener


def ask(server: str, *options: str) -> str:
    """What `dig` makes of one question, in the namespace of the calling thread; empty when nothing came."""
    command = ["dig", f"@{server}", "api.example.com", "TXT", "+short", "+tries=1", "+time=5", *options]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
