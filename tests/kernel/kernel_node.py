"""A node, two pods, a stray pod and an outside world, as bare namespaces held by descriptors; and plain clients.

While a `KernelNode` is open, the calling thread is in the node's network namespace; `with node.web:` moves it into a
pod for as long as a socket is made or a program started. Pods live in 192.0.2.0/24 and 2001:db8:1::/64 behind
point-to-point veths; what they dial in 198.51.100.0/24, 203.0.113.0/24 and 2001:db8:2::/64 is one outside host.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from egressd.grants import Element
from egressd.kernel import Change, Kernel, PodElement
from egressd.kernel.netlink import attributes, blob
from egressd.lab.syscalls import NEW_NET, set_namespace, unshare
from egressd.model import Address, Block, PortSpan
from egressd.policy import Interval, Plan
from egressd.settings import Dns, Settings, Upstream

WEB4, WEB6 = "192.0.2.5", "2001:db8:1::5"
JOB4, JOB6 = "192.0.2.6", "2001:db8:1::6"
STRAY4, STRAY6 = "192.0.2.9", "2001:db8:1::9"
API4, API6 = "198.51.100.10", "2001:db8:2::10"
OTHER4, OTHER6 = "198.51.100.11", "2001:db8:2::11"
SERVICE4, SERVICE6 = "203.0.113.10", "2001:db8:2:1::10"
RESOLVER4, RESOLVER6 = "203.0.113.53", "2001:db8:2:1::53"
OUTSIDE = (API4, OTHER4, SERVICE4, RESOLVER4, API6, OTHER6, SERVICE6, RESOLVER6)
TCP_PORTS = (443, 444, 53, 8050)

EMPTY = Plan("shop/empty", True, (), (), (), frozenset())


def packed(text: str) -> bytes:
    return socket.inet_pton(family(text), text)


def family(text: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in text else socket.AF_INET


def block(first: str, last: str) -> Block:
    return Block(Address(packed(first)), Address(packed(last)))


def interval(first: str, last: str = "", span: PortSpan | None = None) -> Interval:
    return Interval(packed(first), packed(last or first), span)


def port(protocol: int, number: int) -> PortSpan:
    return PortSpan(protocol, protocol, number, number)


def grant(
    subject: int,
    address: str,
    span: PortSpan | None = None,
    *,
    ms: int = 60_000,
    refresh: bool = False,
    comment: str = "",
) -> Element:
    """A grant of the kind that its span asks for."""
    kind = "any" if span is None else "port" if span == port(span.first_protocol, span.first_port) else "range"
    return Element(subject, kind, packed(address), span, ms, comment or "api.example.com", refresh)


def plan(**parts: Any) -> Plan:
    """An enforced plan with every kind of grant set, but for what is said."""
    return replace(EMPTY, **{"grants": frozenset({"port", "any", "range"}), **parts})


SETTINGS = Settings(
    pod_cidrs=(block("192.0.2.0", "192.0.2.255"), block("2001:db8:1::", "2001:db8:1::ffff")),
    cluster_cidrs=(block("203.0.113.0", "203.0.113.255"), block("2001:db8:2:1::", "2001:db8:2:1::ffff")),
    dns=Dns(upstreams=(Upstream(packed(RESOLVER4)), Upstream(packed(RESOLVER6)))),
)


class Space:
    """A network namespace; `with space:` moves the calling thread there and back."""

    def __init__(self) -> None:
        with _here() as before:
            unshare(NEW_NET)
            self.descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            for name in ("all/disable_ipv6", "default/disable_ipv6", "default/accept_dad"):
                Path(f"/proc/sys/net/ipv6/conf/{name}").write_text("0")
            subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
            set_namespace(before, NEW_NET)
        self._back: list[int] = []

    def __enter__(self) -> Self:
        self._back.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        set_namespace(self.descriptor, NEW_NET)
        return self

    def __exit__(self, *error: object) -> None:
        descriptor = self._back.pop()
        set_namespace(descriptor, NEW_NET)
        os.close(descriptor)

    def ip(self, *lines: str, v6: bool = False) -> None:
        """Run lines of `ip -batch` here."""
        with self:
            subprocess.run(
                ["ip", *(["-6"] if v6 else []), "-batch", "-"], input="\n".join(lines), text=True, check=True
            )

    def close(self) -> None:
        os.close(self.descriptor)


@contextmanager
def _here() -> Iterator[int]:
    descriptor = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    yield descriptor
    os.close(descriptor)


class KernelNode:
    """The scene; whatever a test opens is closed with it. `bridged`: pods hang on a bridge, with br_netfilter."""

    def __init__(self, *, bridged: bool = False) -> None:
        self.bridged = bridged
        self._stack = ExitStack()
        spaces = [self._stack.enter_context(closing(Space())) for _ in range(5)]
        self.space, self.web, self.job, self.stray, self.outside = spaces
        if bridged:
            self.space.ip(
                "link add bridge type bridge",
                "link set bridge up",
                "address add 192.0.2.1/24 dev bridge",
                "address add fe80::1/64 dev bridge nodad",
                "route add 2001:db8:1::/64 dev bridge",
            )
        for pod, name, v4, v6 in (
            (self.web, "pod-web", WEB4, WEB6),
            (self.job, "pod-job", JOB4, JOB6),
            (self.stray, "pod-stray", STRAY4, STRAY6),
        ):
            self._wire(pod, name, v4, v6)
        self._wire_outside()
        self._stack.enter_context(self.space)
        calls = ("bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables") if bridged else ()
        for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", *calls):
            Path("/proc/sys/net", path).write_text("1")
        self.servers = {number: self._listen(number) for number in TCP_PORTS}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _join(self, space: Space, name: str) -> None:
        with self.space:
            subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0"], check=True)
            command = ["ip", "link", "set", "eth0", "netns", f"/proc/self/fd/{space.descriptor}"]
            subprocess.run(command, pass_fds=(space.descriptor,), check=True)

    def _wire(self, pod: Space, name: str, v4: str, v6: str) -> None:
        self._join(pod, name)
        point_to_point = (
            f"address add 192.0.2.1/32 dev {name}",
            f"route add {v4}/32 dev {name}",
            f"address add fe80::1/64 dev {name} nodad",
            f"route add {v6}/128 dev {name}",
        )
        self.space.ip(f"link set {name} up", *([f"link set {name} master bridge"] if self.bridged else point_to_point))
        pod.ip(
            f"address add {v4}/24 dev eth0",
            f"address add {v6}/{64 if self.bridged else 128} dev eth0 nodad",
            "link set eth0 up",
            "route add default via 192.0.2.1",
            "route add default via fe80::1 dev eth0",
        )

    def _wire_outside(self) -> None:
        self._join(self.outside, "uplink")
        self.space.ip(
            "link set uplink up",
            "address add 198.51.100.1/24 dev uplink",
            "address add fe80::2/64 dev uplink nodad",
            "route add 203.0.113.0/24 via 198.51.100.2",
            "route add 2001:db8:2::/47 via fe80::3 dev uplink",
        )
        self.outside.ip(
            "link set eth0 up",
            "address add 198.51.100.2/24 dev eth0",
            "address add fe80::3/64 dev eth0 nodad",
            *(f"address add {address} dev lo {'nodad' if ':' in address else ''}" for address in OUTSIDE),
            "route add 192.0.2.0/24 via 198.51.100.1",
            "route add 2001:db8:1::/64 via fe80::2 dev eth0",
        )

    def _listen(self, number: int) -> socket.socket:
        with self.outside:
            server = socket.create_server(("::", number), family=socket.AF_INET6, dualstack_ipv6=True, backlog=200)
        return self.keep(server)

    def keep(self, opened: socket.socket) -> socket.socket:
        """Close this socket with the node."""
        return self._stack.enter_context(opened)

    # ----------------------------------------------------------------------------------------------- kernel

    def make(self, settings: Settings = SETTINGS) -> Kernel:
        """A `Kernel` of this node, closed with it."""
        kernel = Kernel(settings)
        self._stack.callback(kernel.close)
        return kernel

    def install(self, change: Change | None = None, settings: Settings = SETTINGS) -> Kernel:
        """A `Kernel` with its table."""
        kernel = self.make(settings)
        kernel.install()
        if change is not None:
            kernel.apply(change)
        return kernel

    # ---------------------------------------------------------------------------------------------- clients

    def udp_server(self, address: str, number: int) -> socket.socket:
        with self.outside:
            server = self.keep(socket.socket(family(address), socket.SOCK_DGRAM))
        server.bind((address, number))
        server.settimeout(5)
        return server

    def udp_client(self, pod: Space, address: str, number: int, source: str = "") -> socket.socket:
        with pod:
            client = self.keep(socket.socket(family(address), socket.SOCK_DGRAM))
        if source:
            client.bind((source, 0))
        client.settimeout(5)
        client.connect((address, number))
        return client

    def dial(self, pod: Space, address: str, number: int, timeout: float = 5.0) -> socket.socket:
        """Connect by TCP: raises `ConnectionRefusedError` when refused, `TimeoutError` when dropped."""
        with pod:
            client = self.keep(socket.socket(family(address), socket.SOCK_STREAM))
        client.settimeout(timeout)
        client.connect((address, number))
        return client

    def tcp(self, pod: Space, address: str, number: int = 443, timeout: float = 5.0) -> str:
        """What becomes of a connection: `open`, `refused` or `dropped`."""
        try:
            self.dial(pod, address, number, timeout).close()
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "dropped"
        return "open"

    def ping(self, pod: Space, address: str, seconds: int = 5) -> bool:
        """Whether a first echo request is answered in time; a refusal ends it at once."""
        with pod:
            command = ["ping", "-c", "1", "-W", str(seconds), address]
            return subprocess.run(command, capture_output=True, check=False).returncode == 0


PODS = (
    PodElement(packed(WEB4), 1, False, "shop/web-0"),
    PodElement(packed(WEB6), 1, False, "shop/web-0"),
    PodElement(packed(JOB4), 2, False, "shop/job-0"),
    PodElement(packed(JOB6), 2, False, "shop/job-0"),
)


def world(web: Plan, job: Plan = EMPTY) -> Change:
    """Both pods known, each with a subject of its own: 1 for web, 2 for job."""
    return Change(subjects={1: web, 2: job}, pods=list(PODS))


def listing() -> str:
    """What `nft` prints of the table here."""
    command = ["nft", "list", "table", "inet", "egressd"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


class Nflog:
    """The plainest reader of log events: their prefixes, as they come."""

    def __init__(self, node: KernelNode, group: int = 1986) -> None:
        self._socket = node.keep(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12))
        self._socket.bind((0, 0))
        bind = blob(1, b"\1")  # NFULA_CFG_CMD: NFULNL_CFG_CMD_BIND
        copy = blob(2, struct.pack(">IBx", 128, 2))  # NFULA_CFG_MODE: 128 octets of each packet
        for body in (bind, copy):
            message = struct.pack("=IHHIIBBH", 20 + len(body), 4 << 8 | 1, 5, 0, 0, 0, 0, socket.htons(group)) + body
            self._socket.send(message)
            (code,) = struct.unpack_from("=i", self._socket.recv(4096), 16)
            assert code == 0
        self._socket.settimeout(5)

    def next(self) -> str:
        """The prefix of the next event; raises `TimeoutError` when there is none."""
        data = self._socket.recv(65536)
        return dict(attributes(data[20:]))[10].rstrip(b"\0").decode()

    def quiet(self) -> bool:
        """Whether nothing has come: events are sent before the packet's verdict, so there is nothing to wait for."""
        return not select.select([self._socket], [], [], 0)[0]
