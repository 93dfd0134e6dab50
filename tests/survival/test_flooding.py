"""One pod asks as fast as it can: its budget answers first, then the kernel drops, and no other pod notices."""

from __future__ import annotations

import json
import re
import socket
import struct
from pathlib import Path
from typing import Any

from e2e.shop import FOR_OTHER, Shop

from egressd.lab import SERVICES, Pod, eventually
from survival.queries import query
from survival.stand import ALLOW, Load, stand

BUDGET: dict[str, Any] = {"budgets": {"queries_per_second_per_pod": 50, "burst_per_pod": 50}}
PASSED = 4 * 50
"""What the kernel lets through at once; as many more each second."""
FLOOD = 5000


def flood(pod: Pod) -> int:
    """Send queries without waiting; returns how many were answered at all, each once."""
    with pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        opened.connect((SERVICES[0], 53))
        for number in range(FLOOD):
            opened.send(query(number, "api.example.com"))
        opened.settimeout(3.0)
        answered = 0
        try:
            while True:
                opened.recv(4096)
                answered += 1
        except TimeoutError:
            return answered


def flooders(shop: Shop) -> dict[str, int]:
    """Packets dropped, by source, as nft tells them."""
    listed = json.loads(shop.node.run(["nft", "-j", "list", "set", "inet", "egressd", "flooding4"], check=True).stdout)
    (found,) = (entry["set"] for entry in listed["nftables"] if "set" in entry)
    return {item["elem"]["val"]: item["elem"]["counter"]["packets"] for item in found.get("elem", ())}


def dropped_metric(shop: Shop) -> int:
    """What the daemon says of dropped queries."""
    socket_file = str(shop.daemon.folder / "admin.sock")
    text = shop.node.run(["curl", "-s", "--unix-socket", socket_file, "http://egressd/metrics"], check=True).stdout
    found = re.search(r"^egressd_dns_flood_dropped_total ([0-9.e+]+)$", text, re.MULTILINE)
    return int(float(found[1])) if found else -1


def test_a_flood_of_datagrams(tmp_path: Path) -> None:
    """Past four times its budget the pod's queries are dropped and recorded; another pod loses none."""
    with stand(tmp_path, BUDGET) as shop:
        shop.daemon.put_policy("shop/other", FOR_OTHER + ALLOW)
        shop.settle()
        steady = Load(shop.web, 40, 4.0, ["api.example.com"])
        answered = flood(shop.other)
        told = steady.end()
        assert (told["lost"], told["refused"]) == ([], [])
        assert told["answered"] == told["asked"] > 100
        dropped = flooders(shop)
        assert set(dropped) == {shop.other.v4}
        assert answered < FLOOD / 2
        assert answered >= PASSED
        assert dropped[shop.other.v4] + answered >= FLOOD - 5
        record = shop.flow_record(shop.other, SERVICES[0], 53)
        assert (record["verdict"], record["reason"]) == ("denied", "rate-limit")
        budget = shop.daemon.wait_record(lambda r: r["event"] == "dns" and r["reason"] == "rate-limit")
        assert budget["pod"]["name"] == shop.other.pod_name
        eventually(lambda: dropped_metric(shop) >= FLOOD - answered - 5, 20.0, what="the metric")


def test_a_flood_of_connections(tmp_path: Path) -> None:
    """SYNs count like queries; a connection that is open is not touched by it."""
    with stand(tmp_path, BUDGET) as shop:
        message = query(1, "api.example.com")
        framed = struct.pack("!H", len(message)) + message
        with shop.other.socket(socket.AF_INET, socket.SOCK_STREAM) as standing:
            standing.settimeout(10)
            standing.connect((SERVICES[0], 53))
            opened = []
            for _ in range(2 * PASSED):
                one = shop.other.socket(socket.AF_INET, socket.SOCK_STREAM)
                one.setblocking(False)
                one.connect_ex((SERVICES[0], 53))
                opened.append(one)
            eventually(lambda: flooders(shop).get(shop.other.v4, 0) > 0, 10.0, what="drops")
            for one in opened:
                one.close()
            standing.sendall(framed)
            assert standing.recv(4096)
        with shop.web.socket(socket.AF_INET, socket.SOCK_STREAM) as neighbour:
            neighbour.settimeout(10)
            neighbour.connect((SERVICES[0], 53))
            neighbour.sendall(framed)
            assert neighbour.recv(4096)
        assert shop.web.v4 not in flooders(shop)
