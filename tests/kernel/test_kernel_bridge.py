"""Pods on one bridge, each held to its port: frames by hand, how bindings are learned, and the table's life."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Self

import pytest
from kernel_node import API4, API6, JOB4, JOB6, RESOLVER4, STRAY4, STRAY6, WEB4, WEB6, KernelNode, Space, packed

import egressd.kernel.bridge.table as bridge_table
from egressd.kernel import Change, Kernel, PodElement
from egressd.kernel.bridge import Binder, wires

WEB, JOB = "shop/web-0", "shop/job-0"
PODS = [PodElement(packed(a), None, False, name) for name, a in ((WEB, WEB4), (WEB, WEB6), (JOB, JOB4), (JOB, JOB6))]
GATEWAY4, LINK_LOCAL = "192.0.2.1", "fe80::77"
ARP, IP, IP6, VLAN, QINQ, LLDP = 0x0806, 0x0800, 0x86DD, 0x8100, 0x88A8, 0x88CC
DEADLINE_S = 20.0


class Scene:
    """A bridge with pods web and job, a port of nobody's (stray), the table, and the binder on a loop of its own."""

    def __init__(self, node: KernelNode, *, pods: list[PodElement] | None = None, netfilter: bool = False) -> None:
        self.node = node
        if not netfilter:  # then only the bridge's own table decides
            for family in ("ip", "ip6"):
                Path(f"/proc/sys/net/bridge/bridge-nf-call-{family}tables").write_text("0")
        self.loop = asyncio.new_event_loop()
        self.kernel = node.install(Change(pods=PODS if pods is None else pods))
        self.binder = Binder(self.kernel.bridge, lambda: self.kernel.pods)
        self.binder.open(self.loop)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.binder.close()
        self.loop.close()

    def apply(self, change: Change) -> None:
        self.kernel.apply(change)
        self.binder.follow()

    def bound(self) -> dict[str, str]:
        """Port by address, as `nft` prints the kernel's table."""
        pairs = re.findall(r'"([\w-]+)" \. ([\d.]+|[\da-f:]+) comment', listing())
        return {address: port for port, address in pairs if not address.startswith("0x")}

    def run(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))

    def until(self, condition: Callable[[], object]) -> None:
        """Let the loop run until something holds."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, (self.bound(), listing())
            self.run(0.01)

    def learn(self) -> Scene:
        """Until both pods are bound."""
        self.until(lambda: len(self.bound()) == 4)
        return self


@pytest.fixture
def node() -> Iterator[KernelNode]:
    """The bridged scene of these tests, entered."""
    with KernelNode(bridged=True) as made:
        yield made


@pytest.fixture
def scene(node: KernelNode) -> Iterator[Scene]:
    """Both pods bound."""
    with Scene(node) as made:
        yield made.learn()


def nft(*words: str, text: str = "") -> str:
    return subprocess.run(["nft", *words], input=text, capture_output=True, text=True, check=True).stdout


def listing() -> str:
    """The table as `nft` prints it, nothing if there is none."""
    command = ["nft", "list", "table", "bridge", "egressd"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


# ------------------------------------------------------------------------------------------------- frames

_marks = count(1)


def mac_of(space: Space) -> bytes:
    text = show(space, "link", "show", "eth0").partition("link/ether ")[2][:17]
    return bytes.fromhex(text.replace(":", ""))


def show(space: Space, *words: str) -> str:
    with space:
        return subprocess.run(["ip", "-o", *words], capture_output=True, text=True, check=True).stdout


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip4(source: str, port: int = 9, protocol: int = 17) -> tuple[int, bytes]:
    """A datagram to everybody on the link."""
    udp = struct.pack(">HHHH", 40000, port, 8, 0)
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, protocol, 0, packed(source), b"\xff" * 4)
    head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
    return IP, head + udp


def ip6(source: str, body: bytes, next_header: int, target: str = "ff02::1") -> tuple[int, bytes]:
    return IP6, struct.pack(">IHBB16s16s", 6 << 28, len(body), next_header, 255, packed(source), packed(target)) + body


def udp6(source: str) -> tuple[int, bytes]:
    return ip6(source, struct.pack(">HHHH", 40000, 9, 8, 0), 17)


def neighbour(kind: int, source: str, target: str, *, extension: bool = False) -> tuple[int, bytes]:
    """A neighbour solicitation (135) or advertisement (136), the latter also behind a destination options header."""
    body = struct.pack(">BBHI16s", kind, 0, 0, 0x20000000 if kind == 136 else 0, packed(target))
    pseudo = packed(source) + packed("ff02::1") + struct.pack(">II", len(body), 58)
    body = body[:2] + checksum(pseudo + body).to_bytes(2, "big") + body[4:]
    return ip6(source, b"\x3a\0\1\4\0\0\0\0" + body, 60) if extension else ip6(source, body, 58)


def arp(sender: str, kind: int = 2, target: str = "192.0.2.77") -> tuple[int, bytes]:
    mac = b"\2\0\0\0\0\x42"
    return ARP, struct.pack(">HHBBH6s4s6s4s", 1, IP, 6, 4, kind, mac, packed(sender), bytes(6), packed(target))


def tagged(frame: tuple[int, bytes], *tags: int) -> tuple[int, bytes]:
    """The frame with VLAN tags of VLAN 0 before it, the first the outermost."""
    kind, body = frame
    for tag in reversed(tags):
        kind, body = tag, struct.pack(">HH", 0, kind) + body
    return kind, body


class Wire:
    """Raw frames out of one port and into another."""

    def __init__(self, node: KernelNode, source: Space, target: Space) -> None:
        with source:
            self._out = node.keep(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
            self._out.bind(("eth0", 0))
        with target:
            self._in = node.keep(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
            self._in.bind(("eth0", 3))
        self._in.settimeout(5)
        self.mac = mac_of(source)

    def send(self, frame: tuple[int, bytes], mac: bytes = b"") -> bytes:
        """Send a frame to everybody; returns the mark at its end."""
        mark = b"mark" + next(_marks).to_bytes(4, "big")
        self._out.send(b"\xff" * 6 + (mac or self.mac) + frame[0].to_bytes(2, "big") + frame[1] + bytes(64) + mark)
        return mark

    def passes(self, frame: tuple[int, bytes]) -> bool:
        """Whether a frame arrives: before a second one, which always does, as veths keep the order."""
        wanted, last = self.send(frame), self.send((LLDP, b"end"))
        seen = False
        while True:
            data = self._in.recv(2048)
            seen = seen or wanted in data
            if last in data:
                return seen


FROM_POD = {
    "own IPv4 address": (ip4(WEB4), True),
    "own IPv6 address": (udp6(WEB6), True),
    "own address with a priority tag": (tagged(ip4(WEB4), VLAN), True),
    "link-local IPv6": (udp6(LINK_LOCAL), True),
    "ARP with its own address": (arp(WEB4), True),
    "ARP probe": (arp("0.0.0.0", 1), True),
    "DHCP": (ip4("0.0.0.0", 67), True),
    "duplicate address detection": (neighbour(135, "::", WEB6), True),
    "solicitation": (neighbour(135, WEB6, JOB6), True),
    "advertisement of its own address": (neighbour(136, WEB6, WEB6), True),
    "advertisement of its own address by link-local": (neighbour(136, LINK_LOCAL, WEB6), True),
    "advertisement of a link-local address": (neighbour(136, LINK_LOCAL, LINK_LOCAL), True),
    "later fragment of ICMPv6": (ip6(WEB6, b"\x3a\0\0\x08\0\0\0\1" + bytes(16), 44), True),
    "another protocol": ((LLDP, b"\2\7\4"), True),
    "its neighbour's IPv4 address": (ip4(JOB4), False),
    "its neighbour's IPv6 address": (udp6(JOB6), False),
    "its neighbour's address with a priority tag": (tagged(ip4(JOB4), VLAN), False),
    "its neighbour's IPv6 address with a service tag": (tagged(udp6(JOB6), QINQ), False),
    "two tags": (tagged(ip4(JOB4), VLAN, VLAN), False),
    "two tags of both kinds": (tagged(ip4(JOB4), QINQ, VLAN), False),
    "the DNS server's address": (ip4(RESOLVER4), False),
    "the gateway's address": (ip4(GATEWAY4), False),
    "no address, not DHCP": (ip4("0.0.0.0", 53), False),
    "no IPv6 address, not ICMPv6": (udp6("::"), False),
    "ARP for its neighbour": (arp(JOB4), False),
    "ARP with a priority tag for its neighbour": (tagged(arp(JOB4), VLAN), False),
    "ARP for the gateway": (arp(GATEWAY4), False),
    "ARP request in its neighbour's name": (arp(JOB4, 1), False),
    "advertisement of its neighbour's address": (neighbour(136, WEB6, JOB6), False),
    "the same by link-local": (neighbour(136, LINK_LOCAL, JOB6), False),
    "the same behind an extension header": (neighbour(136, LINK_LOCAL, JOB6, extension=True), False),
    "the same from no address": (neighbour(136, "::", JOB6), False),
    "solicitation in its neighbour's name": (neighbour(135, JOB6, GATEWAY6 := "2001:db8:1::1"), False),
    "advertisement of the gateway": (neighbour(136, WEB6, GATEWAY6), False),
}
FROM_OTHER = {
    "own address": (ip4(STRAY4), True),
    "own IPv6 address": (udp6(STRAY6), True),
    "an address of elsewhere": (ip4(API4), True),
    "an IPv6 address of elsewhere": (udp6(API6), True),
    "ARP for somebody else": (arp(GATEWAY4), True),
    "advertisement of somebody else": (neighbour(136, STRAY6, STRAY6), True),
    "two tags": (tagged(ip4(STRAY4), VLAN, VLAN), True),
    "a pod's IPv4 address": (ip4(WEB4), False),
    "a pod's IPv6 address": (udp6(WEB6), False),
    "a pod's address with a priority tag": (tagged(ip4(WEB4), VLAN), False),
    "ARP for a pod": (arp(WEB4), False),
    "advertisement of a pod's address": (neighbour(136, STRAY6, WEB6), False),
}


def test_which_frames_a_port_may_send(scene: Scene) -> None:
    """A pod's port carries its own addresses and what links need; other ports all but pods' addresses."""
    node = scene.node
    from_pod, from_other = Wire(node, node.web, node.job), Wire(node, node.stray, node.job)
    assert {name: from_pod.passes(frame) for name, (frame, _) in FROM_POD.items()} == {
        name: passes for name, (_, passes) in FROM_POD.items()
    }
    assert {name: from_other.passes(frame) for name, (frame, _) in FROM_OTHER.items()} == {
        name: passes for name, (_, passes) in FROM_OTHER.items()
    }
    dropped = sum(not passes for _, passes in (*FROM_POD.values(), *FROM_OTHER.values()))
    assert f"counter packets {dropped} " in listing()


def test_ports_of_another_bridge_are_not_touched(scene: Scene) -> None:
    """The same addresses on a bridge without pods, where they may belong to anybody, pass."""
    node = scene.node
    with closing(Space()) as left, closing(Space()) as right:
        node.space.ip("link add elsewhere type bridge", "link set elsewhere up")
        for space, name in ((left, "left"), (right, "right")):
            node._join(space, name)
            node.space.ip(f"link set {name} up master elsewhere")
            space.ip("link set eth0 up")
        scene.until(lambda: "forwarding" in ports_of("elsewhere"))
        scene.run(0.3)
        wire = Wire(node, left, right)
        assert wire.passes(ip4(WEB4))
        assert wire.passes(arp(JOB4))
        assert "left" not in listing()


def ports_of(bridge: str) -> str:
    command = ["bridge", "link", "show", "master", bridge]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


# --------------------------------------------------------------------------------------------- real traffic


@pytest.mark.parametrize("netfilter", [False, True], ids=["plain", "br_netfilter"])
def test_pods_own_traffic_is_unaffected(node: KernelNode, netfilter: bool) -> None:
    """TCP and UDP out, echo requests to the neighbour and the node, in both families, with caches empty."""
    with Scene(node, netfilter=netfilter) as scene:
        scene.learn()
        for space in (node.space, node.web, node.job):
            for family in ("-4", "-6"):
                with space:
                    subprocess.run(["ip", family, "neigh", "flush", "all"], check=True, capture_output=True)
        for address in (API4, API6):
            assert node.tcp(node.web, address) == "open"
            server = node.udp_server(address, 9999)
            client = node.udp_client(node.web, address, 9999)
            client.send(b"hello")
            data, peer = server.recvfrom(100)
            server.sendto(data, peer)
            assert client.recv(100) == b"hello"
        for address in (JOB4, JOB6, GATEWAY4):
            assert node.ping(node.web, address)
        assert "counter packets 0 " in listing()


def test_an_address_taken_from_the_neighbour_is_of_no_use(scene: Scene) -> None:
    """Pod job takes web's addresses: nobody hears of it, nothing it sends by them arrives, web goes on."""
    node = scene.node
    node.job.ip(f"address add {WEB4}/24 dev eth0", f"address add {WEB6}/64 dev eth0 nodad")
    server4, server6 = node.udp_server(API4, 9998), node.udp_server(API6, 9998)
    Wire(node, node.job, node.web).send(arp(WEB4, target=WEB4))
    for source, target, server in ((WEB4, API4, server4), (WEB6, API6, server6)):
        client = node.udp_client(node.job, target, 9998, source)
        client.send(b"taken")
        own = node.udp_client(node.web, target, 9998, source)
        own.send(b"own")
        assert server.recv(100) == b"own"
    assert node.tcp(node.web, API4) == "open"
    assert node.tcp(node.job, API4) == "open"


def test_duplicate_address_detection_still_works(scene: Scene) -> None:
    """A pod that takes its own address anew finds it free; one that takes its neighbour's finds it in use."""
    node = scene.node
    for space in (node.web, node.job):
        with space:
            Path("/proc/sys/net/ipv6/conf/eth0/accept_dad").write_text("1")
    node.web.ip(f"address del {WEB6}/64 dev eth0", f"address add {WEB6}/64 dev eth0")
    scene.until(lambda: "tentative" not in addresses(node.web))
    node.job.ip(f"address add {WEB6}/64 dev eth0")
    assert "dadfailed" not in addresses(node.web)
    scene.until(lambda: "dadfailed" in addresses(node.job))


def addresses(space: Space) -> str:
    return show(space, "-6", "address", "show", "dev", "eth0")


# --------------------------------------------------------------------------------------- what nft makes of it


def test_nft_prints_and_reloads_the_table(scene: Scene) -> None:
    """What `nft list` prints, `nft -f` takes, and then it prints the same again."""
    before = listing()
    assert f'"pod-web" . {WEB4} comment "{WEB}"' in before
    assert '"pod-stray" : goto other' in before
    nft("-f", "-", text=f"delete table bridge egressd\n{before}")
    assert listing() == before


# ---------------------------------------------------------------------------------------------- learning


def test_without_a_bridge_nothing_is_installed() -> None:
    """Pods with wires of their own: no table, and no ear for neighbours."""
    with KernelNode() as node:
        kernel = node.install(Change(pods=PODS))
        binder = Binder(kernel.bridge, lambda: kernel.pods)
        loop = asyncio.new_event_loop()
        binder.open(loop)
        loop.run_until_complete(asyncio.sleep(0.3))
        assert "bridge" not in nft("list", "tables")
        assert not binder._hearing
        assert binder._elsewhere == {pod.address for pod in PODS}
        binder.close()
        loop.close()


def test_a_bridge_that_tells_vlans_apart_is_left_alone(node: KernelNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """With vlan_filtering, an address alone says nothing about a pod."""
    ageing_time = 4  # never 0, and there on kernels that cannot filter VLANs, too
    monkeypatch.setattr(wires, "BRIDGE_VLAN_FILTERING", ageing_time)
    with Scene(node) as scene:
        scene.run(0.3)
        assert listing() == ""


def test_a_pod_is_bound_when_it_is_first_heard_of(node: KernelNode) -> None:
    """A pod that nobody knows is waited for, and bound by its first ARP or ND message; both families at once."""
    node.web.ip("link set eth0 down")
    with Scene(node) as scene:
        scene.until(lambda: len(scene.bound()) == 2)
        scene.run(0.3)
        assert scene.bound() == {JOB4: "pod-job", JOB6: "pod-job"}
        assert scene.binder._hearing
        node.web.ip("link set eth0 up", f"address replace {WEB4}/24 dev eth0", "route replace default via 192.0.2.1")
        node.web.ip(f"address replace {WEB6}/64 dev eth0 nodad")
        scene.until(lambda: "state UP" in show(node.space, "link", "show", "pod-web"))
        assert node.ping(node.web, GATEWAY4)
        scene.learn()
        assert scene.bound()[WEB6] == "pod-web"
        assert not scene.binder._hearing


def test_a_pod_that_has_been_silent_is_asked(node: KernelNode) -> None:
    """The bridge forgets silent ports after five minutes, the neighbour table does not: the kernel probes."""
    with Scene(node, pods=[]) as scene:
        assert not node.ping(node.web, GATEWAY4, 1)  # not a pod yet, but its ARP is heard
        forget = ["bridge", "fdb", "del", mac_of(node.web).hex(":"), "dev", "pod-web", "master"]
        subprocess.run(forget, check=True)
        scene.apply(Change(pods=PODS[:2]))
        scene.until(lambda: len(scene.bound()) == 2)


def test_a_pod_replaced_behind_another_port_is_bound_anew(scene: Scene) -> None:
    """Same name, same addresses, another interface: the old binding goes with its port, the new one is learned."""
    node = scene.node
    node.space.ip("link del pod-web")
    scene.until(lambda: WEB4 not in scene.bound())
    assert "pod-web" not in listing()
    with closing(Space()) as again:
        node._wire(again, "pod-new", WEB4, WEB6)
        assert node.ping(again, GATEWAY4)
        scene.learn()
        assert scene.bound() == {WEB4: "pod-new", WEB6: "pod-new", JOB4: "pod-job", JOB6: "pod-job"}
        assert node.ping(again, JOB4)


def test_an_address_of_another_pod_inherits_nothing(scene: Scene) -> None:
    """The address goes to another pod while the port stays: bound anew, under the new name; others as they were."""
    scene.apply(Change(pods=[PodElement(packed(WEB4), None, False, "shop/web-1")], gone_pods=[packed(WEB6)]))
    assert WEB6 not in scene.bound()
    scene.until(lambda: f'{WEB4} comment "shop/web-1"' in listing())
    assert scene.bound() == {WEB4: "pod-web", JOB4: "pod-job", JOB6: "pod-job"}


def test_the_table_goes_with_the_last_pod(scene: Scene) -> None:
    """Pods leave one by one, and then there is no table."""
    scene.apply(Change(gone_pods=[packed(WEB4), packed(WEB6)]))
    assert scene.bound() == {JOB4: "pod-job", JOB6: "pod-job"}
    assert '"pod-web" : goto other' in listing()
    scene.apply(Change(gone_pods=[packed(JOB4), packed(JOB6)]))
    assert listing() == ""


def test_a_forged_mac_address_gives_nobody_a_second_pods_address(
    node: KernelNode, caplog: pytest.LogCaptureFixture
) -> None:
    """Web sends with job's MAC address, so that the bridge believes job to be there: it is not bound to web's port."""
    with Scene(node, pods=PODS[:2]) as scene:
        scene.until(lambda: WEB4 in scene.bound())
        wire = Wire(node, node.web, node.stray)
        assert not node.ping(node.job, GATEWAY4, 1)  # not a pod yet, but its ARP is heard
        node.job.ip("link set eth0 down")  # it says nothing more by itself
        wire.send((LLDP, b"forged"), mac_of(node.job))
        scene.apply(Change(pods=PODS[2:]))
        scene.until(lambda: caplog.text)
        assert scene.bound() == {WEB4: "pod-web", WEB6: "pod-web"}
        assert f"{JOB} seems to be behind pod-web, but that is the port of {WEB}" in caplog.text
        assert not wire.passes(ip4(JOB4))
        node.job.ip("link set eth0 up")
        scene.until(lambda: "state UP" in show(node.space, "link", "show", "pod-job"))
        assert node.ping(node.job, GATEWAY4)
        scene.learn()
        assert scene.bound()[JOB4] == "pod-job"


def test_new_ports_of_the_bridge_are_watched(scene: Scene) -> None:
    """A port that comes later may not use pods' addresses either."""
    node = scene.node
    with closing(Space()) as late:
        node._join(late, "late")
        node.space.ip("link set late up master bridge")
        late.ip("link set eth0 up")
        scene.until(lambda: '"late" : goto other' in listing())
        node.space.ip("link set late nomaster")
        scene.until(lambda: "late" not in listing())


# ------------------------------------------------------------------------------------------------ life


def test_a_restart_keeps_what_was_bound(scene: Scene) -> None:
    """A fresh process finds the bindings in the kernel, in the transaction that writes its table."""
    scene.binder.close()
    second = scene.node.make()
    second.install(Change(pods=PODS[:3]))
    assert scene.bound() == {WEB4: "pod-web", WEB6: "pod-web", JOB4: "pod-job"}
    assert '"pod-stray" : goto other' in listing()


def test_a_binder_goes_on_after_a_pause(node: KernelNode) -> None:
    """Closed and opened again, as when a successor did not come, it hears of new pods as before."""
    node.web.ip("link set eth0 down")
    with Scene(node) as scene:
        scene.until(lambda: len(scene.bound()) == 2)
        scene.binder.close()
        scene.kernel.reopen()
        scene.kernel.install(Change(pods=PODS))
        assert scene.bound() == {JOB4: "pod-job", JOB6: "pod-job"}
        scene.binder.open(scene.loop)
        scene.until(lambda: scene.binder._hearing)
        node.web.ip("link set eth0 up")
        scene.until(lambda: "state UP" in show(node.space, "link", "show", "pod-web"))
        assert node.ping(node.web, GATEWAY4)
        scene.learn()


def test_a_port_that_vanished_meanwhile_is_found_out(scene: Scene) -> None:
    """What is taken over from an earlier run is checked against the bridge as it is now."""
    scene.binder.close()
    scene.node.space.ip("link del pod-web")
    second = scene.node.make()
    second.install(Change(pods=PODS))
    assert WEB4 in scene.bound()
    binder = Binder(second.bridge, lambda: second.pods)
    binder.open(scene.loop)
    scene.until(lambda: WEB4 not in scene.bound())
    assert scene.bound() == {JOB4: "pod-job", JOB6: "pod-job"}
    binder.close()


def test_remove_takes_both_tables(scene: Scene) -> None:
    """`egressd cleanup` leaves nothing, and may be repeated."""
    fresh = scene.node.make()
    fresh.remove()
    fresh.remove()
    assert nft("list", "tables") == ""


def test_another_hand_is_noticed_and_mended(scene: Scene) -> None:
    """A flushed set, a lost rule, a deleted table: each is a difference, and installing puts it right."""
    kernel = scene.kernel
    for harm in (
        ("flush", "set", "bridge", "egressd", "held4"),
        ("flush", "chain", "bridge", "egressd", "other"),
        ("delete", "table", "bridge", "egressd"),
    ):
        assert kernel.difference() == ""
        nft(*harm)
        assert kernel.difference() != ""
        kernel.install(Change(pods=PODS))
        assert len(scene.bound()) == 4


def test_a_strangers_table_is_left_alone(node: KernelNode, caplog: pytest.LogCaptureFixture) -> None:
    """A bridge table of our name that egressd did not make stays as it is; pods are judged all the same."""
    nft("add", "table", "bridge", "egressd")
    with Scene(node) as scene:
        scene.until(lambda: scene.kernel.bridge.unusable)
        assert "egressd did not make it" in caplog.text
        scene.kernel.remove()
    assert nft("list", "tables") == "table bridge egressd\n"


def test_a_kernel_that_cannot_filter_bridges_is_said_once(
    node: KernelNode, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the chain type (here: one that no kernel has) there is one warning, and everything else works."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(bridge_table, "CHAIN_TYPE", "no-such-type")
    with Scene(node, netfilter=True) as scene:
        scene.until(lambda: scene.kernel.bridge.unusable)
        scene.apply(Change(gone_pods=[packed(WEB4)]))
        scene.apply(Change(pods=PODS[:1]))
        scene.run(0.2)
        assert listing() == ""
        assert caplog.text.count("could take each other's addresses") == 1
        assert "CONFIG_NF_TABLES_BRIDGE" in caplog.text
        assert node.tcp(node.web, API4) == "open"


def test_many_pods_are_bound_in_one_transaction(node: KernelNode) -> None:
    """A node's worth of addresses fits, and a change of one writes that one only."""
    many = {f"10.9.{n // 200}.{n % 200 + 1}": f"veth{n % 110}" for n in range(440)}
    kernel: Kernel = node.install()
    bound = {packed(a): bridge_table.Bound(port, f"shop/{port}") for a, port in many.items()}
    kernel.bridge.write(bridge_table.Bindings(bound, frozenset({"uplink"})))
    assert len(kernel.bridge._read_back().bound) == 440
    fewer = dict(list(bound.items())[1:])
    messages = kernel.bridge._difference(bridge_table.Bindings(bound), bridge_table.Bindings(fewer))
    assert [message.about for message in messages] == [
        f"bind addresses to ports ({name})" for name in ("bound4", "held4")
    ]
