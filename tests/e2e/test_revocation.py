"""A policy edit ends what is no longer allowed within a second, and nobody else notices.

`within` is the promise of policy.md (Revocation): one second from the moment the file is in place.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from e2e.shop import (
    API4,
    API6,
    ECHO,
    FOR_OTHER,
    FOR_WEB,
    NOTHING,
    Shop,
    ask,
    connect,
    dial,
    echoes,
    open_shop,
    rcode,
    send_udp,
)
from egressd.lab import WIRINGS, Pod, eventually

PROMISE_S = 1.0
ALLOW = 'allow:\n- to: ["*.example.com", 198.51.100.0/24]\n'
DRAIN = "onRevoke: Drain\n"


@pytest.fixture(scope="module", params=WIRINGS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A running node of each wiring."""
    with open_shop(tmp_path_factory.mktemp("shop"), wiring=request.param) as made:
        yield made


@pytest.fixture
def shop(running: Shop) -> Shop:
    """`web` and `other` may reach *.example.com and have asked for it."""
    running.daemon.put_policy("shop/web", FOR_WEB + ALLOW)
    running.daemon.put_policy("shop/other", FOR_OTHER + ALLOW)
    eventually(lambda: all(knows_api(pod) for pod in (running.web, running.other)), what="the policies in force")
    return running


def knows_api(pod: Pod) -> bool:
    """Whether a pod may ask for both addresses of api.example.com, and is judged by a policy."""
    known = all(rcode(ask(pod, "api.example.com", qtype)) == "NOERROR" for qtype in ("A", "AAAA"))
    return known and rcode(ask(pod, "denied.example")) == "NXDOMAIN" and dial(pod, "192.0.2.1") == "refused"


class Traffic:
    """Something that keeps happening on a socket in a thread, and when it last did."""

    def __init__(self, opened: socket.socket, step: Callable[[socket.socket], int]) -> None:
        self.last = time.monotonic()
        self.octets = 0
        self._socket = opened
        self._step = step
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        eventually(lambda: self.octets > 1000, what="traffic")

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                done = self._step(self._socket)
            except TimeoutError:
                continue
            except OSError:
                time.sleep(0.005)
                continue
            if done:
                self.last = time.monotonic()
                self.octets += done

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()


def uploading(pod: Pod, address: str) -> Traffic:
    """TCP to a server: what comes back is the proof that it arrived."""
    opened = connect(pod, address, ECHO, timeout=0.05)

    def step(here: socket.socket) -> int:
        here.send(b"x" * 100)
        return len(here.recv(65536))

    return Traffic(opened, step)


def downloading(pod: Pod, address: str) -> Traffic:
    """TCP from a server that sends by itself; the pod says nothing any more."""
    opened = connect(pod, address, 80, timeout=0.05)
    opened.settimeout(5)
    opened.sendall(b"GET /stream HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
    opened.settimeout(0.05)
    return Traffic(opened, lambda here: 200 * len(here.recv(65536)))


def datagrams(pod: Pod, address: str) -> Traffic:
    """UDP to an echo server."""
    opened = pod.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    opened.settimeout(0.05)
    opened.connect((address, ECHO))

    def step(here: socket.socket) -> int:
        time.sleep(0.002)
        here.send(b"x" * 100)
        return len(here.recv(100))

    return Traffic(opened, step)


KINDS = {"upload": uploading, "download": downloading, "udp": datagrams}


def revoke(shop: Shop, rules: str = NOTHING) -> float:
    """Put a policy that takes `web`'s names away; returns the moment the file was in place."""
    shop.daemon.put_policy("shop/web", FOR_WEB + rules)
    return time.monotonic()


@pytest.mark.parametrize("address", [API4, API6])
def test_an_edit_cuts_what_lives(shop: Shop, address: str) -> None:
    """Upload, download and UDP of the pod that lost its sanction stop within a second; new ones are refused."""
    live = {kind: begin(shop.web, address) for kind, begin in KINDS.items()}
    edited = revoke(shop)
    eventually(lambda: time.monotonic() - max(traffic.last for traffic in live.values()) > 1.5, 20, what="silence")
    took = {kind: traffic.last - edited for kind, traffic in live.items()}
    for traffic in live.values():
        traffic.stop()
    assert max(took.values()) < PROMISE_S, took
    assert dial(shop.web, address) == "refused"
    assert send_udp(shop.web, address, timeout=1.0) != "open"  # its ICMP error is subject to the kernel's rate limit
    assert rcode(ask(shop.web, "api.example.com")) == "NXDOMAIN"


@pytest.mark.parametrize("address", [API4, API6])
def test_others_lose_no_packet(shop: Shop, address: str) -> None:
    """While one pod's connections are cut, another pod's go on without a lost or repeated packet."""
    with contextlib.ExitStack() as stack:
        cut = [begin(shop.web, address) for begin in KINDS.values()]
        for traffic in cut:
            stack.callback(traffic.stop)
        stream, spared = downloading(shop.other, address), uploading(shop.other, address)
        stack.callback(stream.stop)
        stack.callback(spared.stop)
        counted = Counted(shop.other, address)
        before = shop.other.counters()
        for turn in range(4):
            revoke(shop, NOTHING if turn % 2 == 0 else ALLOW)
            time.sleep(0.4)
        after = shop.other.counters()
        assert counted.end() == []
        assert stream.last > time.monotonic() - 0.5
        assert spared.last > time.monotonic() - 0.5
        assert after["Tcp.RetransSegs"] == before["Tcp.RetransSegs"]


class Counted:
    """Numbered datagrams to an echo server; `end` tells which never came back."""

    def __init__(self, pod: Pod, address: str) -> None:
        self._socket = pod.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(1.0)
        self._socket.connect((address, ECHO))
        self._sent = 0
        self._received: set[int] = set()
        self._over = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        while not self._over.is_set():
            self._socket.send(struct.pack("!I", self._sent))
            self._sent += 1
            time.sleep(0.001)

    def _receive(self) -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                self._received.add(struct.unpack("!I", self._socket.recv(100))[0])

    def end(self) -> list[int]:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._socket.close()
        assert self._sent > 100
        return [number for number in range(self._sent) if number not in self._received]


def test_what_stays_allowed_goes_on(shop: Shop) -> None:
    """An edit that takes one name away leaves the pod's own other connections alone."""
    shop.node.dns.zone.add("kept.example.com", "A", "203.0.113.44")
    ask(shop.web, "kept.example.com")
    with connect(shop.web, "203.0.113.44", ECHO) as kept, connect(shop.web, API4, ECHO) as lost:
        assert echoes(kept)
        assert echoes(lost)
        counted = Counted(shop.web, "203.0.113.44")
        time.sleep(0.2)
        shop.policy("shop/web", ALLOW + "deny:\n- to: [api.example.com]\n")
        eventually(lambda: not echoes(lost), what="the cut")
        assert echoes(kept)
        time.sleep(0.2)
        assert counted.end() == []


def test_a_deleted_policy_and_a_lost_label_set_free(shop: Shop) -> None:
    """Without its policy a pod is unselected: its connections go on and everything else is open too."""
    with connect(shop.web, API4, ECHO) as kept:
        assert dial(shop.web, "192.0.2.1") == "refused"
        shop.drop_policy("shop/web")
        eventually(lambda: dial(shop.web, "192.0.2.1") == "open", what="freedom")
        assert echoes(kept)


def test_drain(shop: Shop) -> None:
    """With `onRevoke: Drain` live connections finish and only new ones are refused."""
    shop.policy("shop/web", DRAIN + ALLOW)
    address, address6 = "203.0.113.55", "2001:db8::55"
    shop.node.dns.zone.add("drained.example.com", "A", address)
    shop.node.dns.zone.add("drained.example.com", "AAAA", address6)
    ask(shop.web, "drained.example.com"), ask(shop.web, "drained.example.com", "AAAA")
    with connect(shop.web, address, ECHO) as tcp, connect(shop.web, address6, ECHO) as tcp6:
        udp = datagrams(shop.web, address)
        revoke(shop, DRAIN + NOTHING)
        eventually(lambda: dial(shop.web, address, ECHO) == "refused", what="the edit in force")
        time.sleep(0.5)
        assert echoes(tcp)
        assert echoes(tcp6)
        assert time.monotonic() - udp.last < 0.3
        udp.stop()


@pytest.mark.parametrize("address", [API4, API6])
def test_revoked_udp_stays_dead(shop: Shop, address: str) -> None:
    """A server that goes on sending does not open a revoked UDP flow again, in either direction."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    port = 5353
    with (
        shop.node.internet.socket(family, socket.SOCK_DGRAM) as server,
        shop.web.socket(family, socket.SOCK_DGRAM) as pod,
    ):
        for opened in (server, pod):
            opened.settimeout(0.2)
        server.setsockopt(*((socket.IPPROTO_IPV6, 78, 1) if family == socket.AF_INET6 else (socket.IPPROTO_IP, 15, 1)))
        server.bind((address, port))
        pod.connect((address, port))
        pod.send(b"hello")
        _, peer = server.recvfrom(100)
        server.sendto(b"welcome", peer)
        assert pod.recv(100) == b"welcome"
        shop.policy("shop/web", NOTHING)
        eventually(lambda: dial(shop.web, address) == "refused", what="the edit in force")
        time.sleep(0.3)
        for number in range(20):
            server.sendto(b"more %d" % number, peer)
            time.sleep(0.01)
        with contextlib.suppress(OSError):
            pod.send(b"and back")
        with pytest.raises(OSError, match=r"timed out|refused|route|denied"):
            pod.recv(100)
        with pytest.raises(TimeoutError):
            server.recvfrom(100)
        shop.policy("shop/web", ALLOW)
        assert rcode(ask(shop.web, "api.example.com", "AAAA" if ":" in address else "A")) == "NOERROR"
        eventually(lambda: comes_back(pod, server), what="the flow, allowed again")


def comes_back(pod: socket.socket, server: socket.socket) -> bool:
    """Whether a datagram gets there and its answer back."""
    try:
        pod.send(b"again")
        _, peer = server.recvfrom(100)
        server.sendto(b"welcome back", peer)
        return pod.recv(100) == b"welcome back"
    except OSError:
        return False
