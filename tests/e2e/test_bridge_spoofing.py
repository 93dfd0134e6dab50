"""Pods on one bridge cannot be each other, nor the DNS server, with the real daemon: kernel.md, invariant 3."""

from __future__ import annotations

import re
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import dns.message
import dns.rrset
import pytest

from e2e.shop import (
    API4,
    API6,
    ECHO,
    NOTHING,
    Shop,
    addresses,
    ask,
    dial,
    family_of,
    open_shop,
    rcode,
    send_udp,
    spoofer,
)
from egressd.lab import SERVICES, UPSTREAMS, Pod, eventually

ALLOW = "allow:\n- to: [api.example.com]\n"
FOR_ALL_OTHERS = "subject: {podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}\n"
ALL_NODES = "33:33:00:00:00:01"


def listing(shop: Shop) -> str:
    return shop.node.run(["nft", "list", "table", "bridge", "egressd"]).stdout


def bound(shop: Shop) -> set[tuple[str, str]]:
    """Port and address of every binding, as nft prints it."""
    return set(re.findall(r'"(\w+)" \. ([\d.]+|[\da-f]+:[\da-f:]+) comment', listing(shop)))


def both(pod: Pod) -> set[tuple[str, str]]:
    return {(pod.interface, pod.v4), (pod.interface, pod.v6)}


def dropped(shop: Shop) -> int:
    """Frames that the bridge table dropped."""
    found = re.search(r"counter packets (\d+)", listing(shop))
    assert found, listing(shop)
    return int(found[1])


def await_drops(shop: Shop, least: int) -> None:
    eventually(lambda: dropped(shop) >= least, what=f"{least} forged frames dropped\n{listing(shop)}")


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """Pods on a bridge, all bound; `web` may reach api.example.com and has asked for it, the others nothing."""
    with open_shop(tmp_path, wiring="bridge") as made:
        made.policy("shop/web", ALLOW)
        made.policy("shop/others", NOTHING, FOR_ALL_OTHERS)
        everybody = both(made.web) | both(made.other) | both(made.free)
        eventually(lambda: bound(made) == everybody, what=f"every pod bound\n{made.daemon.log()}")
        for qtype in ("A", "AAAA"):
            assert rcode(ask(made.web, "api.example.com", qtype)) == "NOERROR"
        yield made


def take(thief: Pod, victim: Pod) -> None:
    """Give a pod its neighbour's addresses, as its root could."""
    for address in (f"{victim.v4}/24", f"{victim.v6}/64"):
        nodad = ["nodad"] if ":" in address else []
        thief.run(["ip", "address", "add", address, "dev", "eth0", *nodad], check=True)


def frame(pod: Pod, kind: int, body: bytes, to: str = "ff:ff:ff:ff:ff:ff") -> None:
    """Send a frame out of a pod by hand."""
    with pod.socket(socket.AF_PACKET, socket.SOCK_RAW) as opened:
        opened.bind(("eth0", 0))
        own = opened.getsockname()[4]
        opened.send(bytes.fromhex(to.replace(":", "")) + own + kind.to_bytes(2, "big") + body)


def gratuitous_arp(pod: Pod, address: str) -> None:
    """Say to everybody that an address is at this pod."""
    packed = socket.inet_aton(address)
    mac = bytes.fromhex("020000000499")
    frame(pod, 0x0806, struct.pack(">HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 2, mac, packed, mac, packed))


def advertisement(pod: Pod, address: str) -> None:
    """The same for IPv6, unsolicited, with override (RFC 4861 section 7.2.6), by a link-local address."""
    source, everybody = (socket.inet_pton(socket.AF_INET6, text) for text in ("fe80::99", "ff02::1"))
    target = socket.inet_pton(socket.AF_INET6, address)
    body = struct.pack(">BBHI16sBB6s", 136, 0, 0, 0x20000000, target, 2, 1, bytes.fromhex("020000000499"))
    words = source + everybody + struct.pack(">II", len(body), 58) + body
    total = sum(struct.unpack(f">{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    body = body[:2] + (~total & 0xFFFF).to_bytes(2, "big") + body[4:]
    head = struct.pack(">IHBB16s16s", 6 << 28, len(body), 58, 255, source, everybody)
    frame(pod, 0x86DD, head + body, ALL_NODES)


def neighbours(shop: Shop, pod: Pod) -> str:
    """What the node and another pod believe about where a pod is."""
    commands = [space.run(["ip", "neigh", "show"]).stdout for space in (shop.node, shop.free)]
    lines = "".join(commands).splitlines()
    return "\n".join(line for line in lines if line.split()[0] in {pod.v4, pod.v6})


def test_a_neighbours_address_brings_none_of_its_grants(shop: Shop) -> None:
    """Pod other takes web's addresses: what it sends by them reaches nobody, its own traffic is judged as its own."""
    take(shop.other, shop.web)
    for target, source in ((API4, shop.web.v4), (API6, shop.web.v6)):
        with spoofer(shop.other, source) as thief, shop.web.socket(family_of(target), socket.SOCK_DGRAM) as own:
            before = dropped(shop)
            for _ in range(3):
                thief.sendto(b"taken", (target, ECHO))
            await_drops(shop, before + 3)
            own.settimeout(10)
            own.connect((target, ECHO))
            own.send(b"own")
            assert own.recv(100) == b"own"
    assert dial(shop.web, API4) == dial(shop.web, API6) == "open"
    assert dial(shop.other, API4) == "refused"


def test_nobody_is_told_that_an_address_is_elsewhere(shop: Shop) -> None:
    """Forged ARP and neighbour advertisements change no neighbour table; connections go on."""
    for address in (shop.web.v4, shop.web.v6):  # so that there are entries to change
        shop.free.run([*ping(address)], check=True)
    before = dropped(shop)
    for _ in range(3):
        gratuitous_arp(shop.other, shop.web.v4)
        advertisement(shop.other, shop.web.v6)
    await_drops(shop, before + 6)
    assert "02:00:00:00:04:99" not in neighbours(shop, shop.web)
    assert dial(shop.web, API4) == dial(shop.web, API6) == "open"


def ping(address: str) -> list[str]:
    return ["ping", "-c", "1", "-W", "10", address]


@pytest.mark.parametrize("server", [SERVICES[0], UPSTREAMS[0]], ids=["service", "upstream"])
def test_a_pod_cannot_answer_for_the_dns_server(shop: Shop, server: str) -> None:
    """A forged answer from the server's address and port to a pod's open socket never arrives."""
    shop.drop_policy("shop/others")  # nothing but the bridge's table shall stop it
    question = dns.message.make_query("api.example.com", "A")
    answer = dns.message.make_response(question)
    answer.answer.append(dns.rrset.from_text("api.example.com.", 60, "IN", "A", "203.0.113.66"))
    with shop.web.socket(socket.AF_INET, socket.SOCK_DGRAM) as waiting:
        waiting.bind(("0.0.0.0", 0))
        port = waiting.getsockname()[1]
        before = dropped(shop)
        with spoofer(shop.other, server, 53) as forger, spoofer(shop.other, shop.other.v4) as honest:
            for _ in range(5):
                forger.sendto(answer.to_wire(), (shop.web.v4, port))
            await_drops(shop, before + 5)
            honest.sendto(b"honest", (shop.web.v4, port))
            honest_place = honest.getsockname()
        waiting.settimeout(10)
        assert waiting.recvfrom(2000) == (b"honest", honest_place)


def test_own_traffic_is_unaffected(shop: Shop) -> None:
    """DNS by UDP and TCP, TCP, UDP and echo requests in both families, with empty caches; no frame is dropped."""
    for space in (shop.web, shop.other, shop.node):
        for family in ("-4", "-6"):
            space.run(["ip", family, "neigh", "flush", "dev", "cni0" if space is shop.node else "eth0"])
    for server in SERVICES:
        for tcp in (False, True):
            assert addresses(ask(shop.web, "api.example.com", server=server, tcp=tcp)) == [API4]
    for target in (API4, API6):
        assert dial(shop.web, target) == "open"
        assert send_udp(shop.web, target) == "open"
    for target in (shop.free.v4, shop.free.v6, "10.244.1.1", "fd00:10:244:1::1"):
        shop.web.run(ping(target), check=True)
    assert dropped(shop) == 0


def test_bindings_follow_pods(shop: Shop) -> None:
    """A pod that goes is bound no more; one that comes with its addresses, behind another port, is bound there."""
    index = shop.other.index
    shop.node.remove_pod(shop.other)
    gone = {shop.other.v4, shop.other.v6}
    eventually(lambda: not gone & {address for _, address in bound(shop)}, what="the pod bound no more")
    late = shop.node.add_pod("shop/late-0", index=index)
    shop.daemon.put_pods()
    named = [f'{address} comment "shop/late-0"' for address in (late.v4, late.v6)]
    eventually(lambda: all(each in listing(shop) for each in named), what=f"the new pod bound\n{shop.daemon.log()}")
    assert both(late) <= bound(shop)


def test_a_restart_keeps_bindings_and_cleanup_ends_them(shop: Shop) -> None:
    """Between two lives, and from the first moment of the next, pods stay bound; `egressd cleanup` leaves no table."""
    before = bound(shop)
    assert shop.daemon.stop() == 0
    assert bound(shop) == before
    lives = shop.daemon.log().count("ready: ")
    shop.daemon.start(wait=False)
    while shop.daemon.log().count("ready: ") == lives:
        assert bound(shop) == before
    assert bound(shop) == before
    shop.daemon.stop()
    config = str(shop.daemon.folder / "egressd.yaml")
    shop.node.run([sys.executable, "-m", "egressd", "cleanup", "--config", config], check=True)
    assert shop.node.run(["nft", "list", "tables"]).stdout == ""
