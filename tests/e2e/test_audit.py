"""The audit trail: every field, every record, in files that are rotated and reopened."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.shop import API4, Record, Shop, addresses, ask, dial, open_shop, rcode
from egressd.lab import SERVICES, eventually

ALLOW = 'allow:\n- name: shop-apis\n  to: ["*.example.com"]\n  ports: [80/TCP]\n'
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A running node; `web` belongs to a StatefulSet."""
    with open_shop(tmp_path_factory.mktemp("shop")) as made:
        owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "1", "controller": True}
        pods = [pod.manifest() for pod in made.node.pods.values()]
        pods[0]["metadata"]["ownerReferences"] = [owner]
        made.daemon.put("pods", *pods)
        made.policy("shop/web", ALLOW)
        yield made


def shown(record: Record) -> dict[str, Any]:
    """A record without what no two have in common: when, from which port, how fast."""
    assert TIME.fullmatch(record["time"])
    assert record.get("latency_us", 0) >= 0
    kept = {key: value for key, value in record.items() if key not in {"time", "latency_us"}}
    if "query" in kept:
        assert 0 < kept["query"]["port"] < 65536
        kept["query"] = {key: value for key, value in kept["query"].items() if key != "port"}
    return kept


def web(shop: Shop) -> dict[str, str]:
    return {
        "namespace": "shop",
        "name": "web-0",
        "uid": f"00000000-0000-4000-8000-{shop.web.index:012d}",
        "ip": shop.web.v4,
        "service_account": "web",
        "workload": "StatefulSet/web",
    }


def test_an_allowed_name(shop: Shop) -> None:
    """The record of an allowed name has these fields and no other."""
    zone = shop.node.dns.zone
    zone.add("first.example.com", "CNAME", "second.provider.example", ttl=60)
    zone.add("second.provider.example", "A", "203.0.113.60", "203.0.113.61", ttl=5)
    assert addresses(ask(shop.web, "first.example.com")) == ["203.0.113.60", "203.0.113.61"]
    assert shown(shop.dns_record(shop.web, "first.example.com")) == {
        "event": "dns",
        "node": "n1",
        "pod": web(shop),
        "query": {"name": "first.example.com", "type": "A", "transport": "udp", "server": SERVICES[0]},
        "verdict": "allowed",
        "reason": "rule",
        "policy": "shop/web",
        "rule": "shop-apis",
        "response": {
            "rcode": "NOERROR",
            "addresses": ["203.0.113.60", "203.0.113.61"],
            "cnames": ["second.provider.example"],
            "ttl": 5,
            "cached": False,
        },
        "granted": ["203.0.113.60", "203.0.113.61"],
    }


def test_a_cached_name(shop: Shop) -> None:
    """The second pod's record says that the answer came from the cache, and the grant is its own."""
    twin = shop.node.add_pod("shop/web-1", labels={"app": "web"})
    shop.daemon.put("twin", twin.manifest())
    shop.node.dns.zone.add("kept.example.com", "A", "203.0.113.62", ttl=300)
    assert addresses(ask(shop.web, "kept.example.com")) == ["203.0.113.62"]
    assert addresses(ask(twin, "kept.example.com")) == ["203.0.113.62"]
    assert shop.node.dns.names().count("kept.example.com") == 1
    record = shop.dns_record(twin, "kept.example.com")
    assert (record["response"]["cached"], record["granted"]) == (True, ["203.0.113.62"])


def test_a_denied_name(shop: Shop) -> None:
    """The record of a denied name, asked over TCP and IPv6 for an unknown type, has these fields and no other."""
    ask(shop.web, "Denied.CDN.example", "TYPE65280", server=SERVICES[1], tcp=True)
    assert shown(shop.dns_record(shop.web, "denied.cdn.example")) == {
        "event": "dns",
        "node": "n1",
        "pod": {**web(shop), "ip": shop.web.v6},
        "query": {"name": "denied.cdn.example", "type": "TYPE65280", "transport": "tcp", "server": SERVICES[1]},
        "verdict": "denied",
        "reason": "no-rule",
        "response": {"rcode": "NXDOMAIN", "addresses": [], "cnames": [], "cached": False},
    }


def test_a_refused_flow(shop: Shop) -> None:
    """The record of a refused connection names the pod, the destination and the names it was last known by."""
    shop.node.dns.zone.add("flow.example.com", "A", "203.0.113.63")
    ask(shop.free, "flow.example.com")
    assert dial(shop.web, "203.0.113.63", 443) == "refused"
    assert shown(shop.flow_record(shop.web, "203.0.113.63")) == {
        "event": "flow",
        "node": "n1",
        "pod": web(shop),
        "destination": {"ip": "203.0.113.63", "port": 443, "protocol": "tcp", "names": ["flow.example.com"]},
        "verdict": "denied",
        "reason": "no-rule",
        "packets": 1,
    }
    shop.web.run(["ping", "-c1", "-W1", "203.0.113.63"])
    record = shop.daemon.wait_record(lambda r: r["event"] == "flow" and r["destination"]["protocol"] == "icmp")
    assert record["destination"] == {"ip": "203.0.113.63", "protocol": "icmp", "names": ["flow.example.com"]}


def test_one_flow_record_a_minute(shop: Shop) -> None:
    """A hundred attempts at one destination are one record."""
    for _ in range(100):
        assert dial(shop.web, "192.0.2.77") == "refused"
    assert dial(shop.web, "192.0.2.78") == "refused"
    shop.flow_record(shop.web, "192.0.2.78")
    assert len([r for r in shop.daemon.records("flow") if r["destination"]["ip"] == "192.0.2.77"]) == 1


def test_policies(shop: Shop) -> None:
    """A policy's life is told: updated, refused with line and column while its last good version holds, deleted."""
    name = "shop/story"

    def changes() -> list[str]:
        return [r["change"] for r in shop.daemon.records("policy") if r.get("policy") == name]

    shop.policy(name, "allow:\n- to: [story.example]\n")
    assert shown(shop.daemon.wait_record(lambda r: r["policy"] == name)) == {
        "event": "policy",
        "policy": name,
        "change": "updated",
    }
    shop.node.dns.zone.add("story.example", "A", "203.0.113.64")
    shop.policy(name, "allows:\n- to: [other.example]\n")
    refused = shop.daemon.wait_record(lambda r: r["policy"] == name and r["change"] == "refused")
    assert "allow" in refused["error"]
    assert re.search(r":\d+:\d+: error: ", refused["error"])
    assert addresses(ask(shop.web, "story.example")) == ["203.0.113.64"]
    shop.drop_policy(name)
    eventually(lambda: changes() == ["updated", "refused", "deleted"], what="the last chapter")
    assert rcode(ask(shop.web, "story.example")) == "NXDOMAIN"


def test_a_broken_file(shop: Shop) -> None:
    """A file that is no YAML any more keeps its last good objects."""
    shop.daemon.put_text("policy-shop-web.yaml", "data: {unclosed: [")
    shop.daemon.wait_record(lambda r: r["event"] == "policy" and r["change"] == "refused" and "policy" not in r)
    assert addresses(ask(shop.web, "api.example.com")) == [API4]
    assert rcode(ask(shop.web, "denied.cdn.example")) == "NXDOMAIN"
    shop.policy("shop/web", ALLOW)


def test_reopened_on_sighup(shop: Shop) -> None:
    """After SIGHUP records go to a new file of the old name, as log rotation by others wants it."""
    moved = shop.daemon.folder / "audit.moved"
    shop.daemon.audit_file.rename(moved)
    ask(shop.web, "before-hup.example.com")
    eventually(lambda: "before-hup" in moved.read_text(), what="the record in the file moved away")
    shop.daemon.signal(signal.SIGHUP)
    eventually(lambda: ask(shop.web, "after-hup.example.com") and shop.daemon.audit_file.exists(), what="a new file")
    shop.dns_record(shop.web, "after-hup.example.com")
    assert addresses(ask(shop.web, "api.example.com")) == [API4]


def test_rotation(tmp_path: Path) -> None:
    """Files are rotated by size and count; no line is cut, and while they last none is missing."""
    settings = {
        "audit": {"max_size": "40KiB", "keep": 3},
        "budgets": {"denied_names_per_pod_per_minute": 100_000},
    }
    with open_shop(tmp_path, settings) as shop:
        shop.policy("shop/web", ALLOW)
        for first in range(0, 400, 40):
            for number in range(first, first + 40):
                ask(shop.web, f"n{number}.rotation.example")
            shop.dns_record(shop.web, f"n{number}.rotation.example")
        eventually(lambda: "n399.rotation" in everything(tmp_path), what="the last record")
        files = sorted(path.name for path in tmp_path.glob("audit.jsonl*"))
        assert files == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2", "audit.jsonl.3"]
        assert all(path.stat().st_size <= 40 * 1024 for path in tmp_path.glob("audit.jsonl*"))
        records = [json.loads(line) for line in everything(tmp_path).splitlines()]
        numbers = [int(r["query"]["name"][1:].split(".")[0]) for r in records if "rotation" in str(r.get("query"))]
        assert numbers == list(range(numbers[0], 400))


def everything(folder: Path) -> str:
    """All audit files, the oldest first."""
    return "".join(path.read_text() for path in sorted(folder.glob("audit.jsonl*"), reverse=True))
