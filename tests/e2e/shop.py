"""What the end-to-end tests share: a node with a few pods and the daemon, and clients that say what they met.

`open_shop` makes the node `shop`: pod `web` (label app=web), pod `other` (app=other), pod `free` that no policy of
these tests selects, HTTP on port 80, echo on port 7 of every address of the internet. `api.example.com` exists.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import dns.edns
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype

from egressd.lab import SERVICES, Daemon, Node, Pod, Space, eventually

API4: Final = "203.0.113.10"
API6: Final = "2001:db8::10"
ECHO: Final = 7

FOR_WEB: Final = "subject: {podSelector: {matchLabels: {app: web}}}\n"
FOR_OTHER: Final = "subject: {podSelector: {matchLabels: {app: other}}}\n"
NOTHING: Final = "allow:\n- to: [nothing.example]\n"
"""Rules of a policy that selects pods and lets them reach next to nothing."""

MARK: Final = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "mark", "namespace": "marks"},
    "spec": {"nodeName": "n1"},
    "status": {"podIPs": [{"ip": "10.244.1.250"}]},
}
"""A pod that is nowhere, for `Shop.settle`: what its policy says can be seen in the kernel."""

Record = dict[str, Any]


@dataclass
class Shop:
    """A node, its daemon (not started yet) and three pods."""

    node: Node
    daemon: Daemon
    web: Pod
    other: Pod
    free: Pod
    _last: int = 0

    def grants(self, table: str = "egressd") -> str:
        """The table as nft prints it."""
        return self.node.run(["nft", "list", "table", "inet", table]).stdout

    def policy(self, name: str, rules: str, subject: str = FOR_WEB) -> None:
        """Write a policy and, where the daemon runs, wait until it is in force."""
        self.daemon.put_policy(name, subject + rules)
        self.settle()

    def drop_policy(self, name: str) -> None:
        """Delete a policy and wait until it is gone."""
        self.daemon.remove(f"policy-{name.replace('/', '-')}")
        self.settle()

    def settle(self) -> None:
        """Wait until everything in the objects folder is in the kernel: what is written after it is there."""
        if self.running:
            self._last += 1
            mark = f"198.18.{self._last // 256}.{self._last % 256}"
            self.daemon.put_policy("marks/mark", f"allow:\n- to: [{mark}]\n")
            eventually(lambda: mark in self.grants(), what=f"the objects in force\n{self.daemon.log()}")

    def subject(self, pod: Pod) -> int:
        """The number of the subject that a pod belongs to in the kernel."""
        found = re.search(rf"{re.escape(pod.v4)} comment \S+ : goto subject-(\d+)", self.grants())
        assert found, self.grants()
        return int(found[1])

    @property
    def running(self) -> bool:
        return self.daemon.process is not None and self.daemon.process.poll() is None

    def dns_record(self, pod: Pod, name: str, **wanted: object) -> Record:
        """The first `dns` record of a pod about a name whose fields are as `wanted`."""
        return self.daemon.wait_record(
            lambda record: (
                record["event"] == "dns"
                and record["pod"].get("name") == pod.pod_name
                and record["query"].get("name") == name
                and all(record[field] == value for field, value in wanted.items())
            )
        )

    def flow_record(self, pod: Pod, address: str, port: int | None = None, **wanted: object) -> Record:
        """The first `flow` record of a pod about a destination whose fields are as `wanted`."""
        return self.daemon.wait_record(
            lambda record: (
                record["event"] == "flow"
                and record["pod"].get("name") == pod.pod_name
                and record["destination"]["ip"] == address
                and port in {None, record["destination"].get("port")}
                and all(record[field] == value for field, value in wanted.items())
            )
        )


@contextlib.contextmanager
def open_shop(
    folder: Path, settings: Mapping[str, Any] | None = None, *, wiring: str = "p2p", start: bool = True
) -> Iterator[Shop]:
    """A node of its own with a daemon; with `start` it runs, and no policy is there yet."""
    with Node(wiring) as node, settled(node, folder, settings) as shop:
        if start:
            shop.daemon.start()
        yield shop


@contextlib.contextmanager
def settled(node: Node, folder: Path, settings: Mapping[str, Any] | None = None) -> Iterator[Shop]:
    """The shop's pods, names and servers on a node that is there already."""
    node.dns.zone.add("api.example.com", "A", API4)
    node.dns.zone.add("api.example.com", "AAAA", API6)
    node.internet.serve_http(80)
    node.internet.serve_tcp_echo(ECHO)
    node.internet.serve_udp_echo(ECHO)
    web = node.add_pod("shop/web-0", labels={"app": "web"}, service_account="web")
    other = node.add_pod("shop/other-0", labels={"app": "other"})
    free = node.add_pod("shop/free-0")
    with Daemon(node, folder, settings) as daemon:
        daemon.put_pods()
        daemon.put("mark", MARK)
        yield Shop(node, daemon, web, other, free)


# ------------------------------------------------------------------------------------------------------- DNS


def ask(
    pod: Space,
    name: str,
    qtype: str = "A",
    *,
    server: str = SERVICES[0],
    tcp: bool = False,
    edns: bool = True,
    timeout: float = 10.0,
) -> dns.message.Message:
    """Ask from a pod with dnspython, which checks ID, question and the very address and port of the answer."""
    query = dns.message.make_query(name, qtype, use_edns=edns, payload=1232 if edns else None)
    way = dns.query.tcp if tcp else dns.query.udp
    return pod.call(lambda: way(query, server, timeout=timeout))


def rcode(answer: dns.message.Message) -> str:
    return dns.rcode.to_text(answer.rcode())


def addresses(answer: dns.message.Message) -> list[str]:
    """The A and AAAA records of an answer, in order."""
    wanted = (dns.rdatatype.A, dns.rdatatype.AAAA)
    return [item.address for rrset in answer.answer if rrset.rdtype in wanted for item in rrset]


def error_of(answer: dns.message.Message) -> tuple[int, str]:
    """Code and text of the one extended DNS error (RFC 8914) of an answer."""
    (found,) = [option for option in answer.options if isinstance(option, dns.edns.EDEOption)]
    return int(found.code), found.text or ""


def raw(pod: Space, query: bytes, server: str = SERVICES[0], *, timeout: float = 5.0) -> bytes:
    """Send octets over UDP and return the octets that come back; `TimeoutError` after silence."""
    with pod.socket(family_of(server), socket.SOCK_DGRAM) as opened:
        opened.settimeout(timeout)
        opened.connect((server, 53))
        opened.send(query)
        return opened.recv(65535)


# --------------------------------------------------------------------------------------------------- connections


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def connect(pod: Space, address: str, port: int = 80, timeout: float = 10.0) -> socket.socket:
    """A TCP connection from a pod; raises what `connect` raises."""
    opened = pod.socket(family_of(address))
    opened.settimeout(timeout)
    try:
        opened.connect((address, port))
    except OSError:
        opened.close()
        raise
    return opened


def spoofer(pod: Space, address: str, port: int = 0) -> socket.socket:
    """A UDP socket of a pod that sends from an address that is not its own (IP_TRANSPARENT, IPV6_TRANSPARENT)."""
    opened = pod.socket(family_of(address), socket.SOCK_DGRAM)
    opened.setsockopt(*((socket.IPPROTO_IPV6, 75, 1) if ":" in address else (socket.IPPROTO_IP, 19, 1)))
    opened.bind((address, port))
    return opened


REFUSALS: Final = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES})
"""What a reset and "communication administratively prohibited" (ICMP 3/13, ICMPv6 1/1) become in a program."""


def dial(pod: Space, address: str, port: int = 80, timeout: float = 3.0) -> str:
    """What becomes of a TCP connection: "open", "refused" (at once, by a reset or an ICMP error) or "silence"."""
    return _outcome(lambda: connect(pod, address, port, timeout).close())


def send_udp(pod: Space, address: str, port: int = ECHO, timeout: float = 3.0) -> str:
    """What becomes of a UDP datagram to an echo server: "open", "refused" or "silence"."""
    with pod.socket(family_of(address), socket.SOCK_DGRAM) as opened:
        opened.settimeout(timeout)
        opened.connect((address, port))
        return _outcome(lambda: (opened.send(b"hello"), opened.recv(100)))


def _outcome(action: Callable[[], object]) -> str:
    try:
        action()
    except TimeoutError:
        return "silence"
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        return "refused"
    return "open"


def echoes(opened: socket.socket, octets: bytes = b"still here") -> bool:
    """Whether a connection to an echo server returns what is sent."""
    try:
        opened.sendall(octets)
        return opened.recv(len(octets)) == octets
    except OSError:
        return False
