"""The loop: observe with Audit, suggest, check, simulate, apply, enforce, find what is stale; all through the verbs.

An application that uses several names, ports and protocols is learned from what it does; the policy that comes of it is
enforced; the application notices nothing, and a name that it never used is denied.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final

import pytest

from egressd.lab import Node, Pod, eventually

from .shop import ECHO, Shop, addresses, ask, dial, error_of, rcode, settled

OBSERVE: Final = "subject: {namespaceSelector: {}}\nmode: Audit\nallow: []\n"
"""What deploy/overlays/observe applies."""
UNUSED: Final = "    - {name: leftover, to: [old.example.com], ports: [443/TCP]}\n"
"""A rule that nobody uses, to be added to a policy that was suggested."""
WEB: Final = "shop/suggested-pod-web-0"
OTHER: Final = "shop/suggested-pod-other-0"

APPLICATION: Final = """
import socket, sys
def echo(kind, name, port):
    family, _, _, _, place = socket.getaddrinfo(name, port, socket.AF_INET, kind)[0]
    with socket.socket(family, kind) as opened:
        opened.settimeout(5)
        opened.connect(place)
        opened.sendall(b"hello")
        return opened.recv(5) == b"hello"
def page(name):
    with socket.create_connection((name, 80), 5) as opened:
        opened.sendall(f"GET / HTTP/1.1\\r\\nHost: {name}\\r\\nConnection: close\\r\\n\\r\\n".encode())
        return opened.recv(12) == b"HTTP/1.1 200"
JOBS = {
    "api": lambda: page("api.example.com"),
    "page": lambda: page("www.example.com"),
    "queue": lambda: echo(socket.SOCK_STREAM, "queue.example.com", 7),
    "clock": lambda: echo(socket.SOCK_DGRAM, "clock.example.com", 7),
    "fixed": lambda: echo(socket.SOCK_DGRAM, "198.51.100.50", 7),
}
for job in sys.argv[1:]:
    try:
        print(job, "done" if JOBS[job]() else "wrong answer", flush=True)
    except OSError as error:
        print(job, type(error).__name__, flush=True)
"""
JOBS: Final = ("api", "page", "queue", "clock", "fixed")


@pytest.fixture
def shop(tmp_path: Path, node_p2p: Node) -> Iterator[Shop]:
    """A node whose every pod is observed: all flows are recorded, nothing is stopped."""
    with settled(node_p2p, tmp_path, {"audit": {"flows": "All"}}) as made:
        zone = made.node.dns.zone
        zone.add("www.example.com", "CNAME", "www.cdn.example")
        zone.add("www.cdn.example", "A", "203.0.113.30")
        zone.add("queue.example.com", "A", "203.0.113.31")
        zone.add("clock.example.com", "A", "203.0.113.32")
        zone.add("reports.example.com", "A", "203.0.113.33")
        zone.add("new.example.com", "A", "203.0.113.34")
        made.daemon.put_policy("egressd-system/observe", OBSERVE)
        made.daemon.start()
        eventually(Path(made.daemon.settings["admin"]["socket"]).exists, what="the admin socket")
        yield made


def egressd(shop: Shop, *verb: str | Path) -> CompletedProcess[str]:
    """Run a verb as a person on the node would."""
    place = ["--socket", shop.daemon.settings["admin"]["socket"], "--config", shop.daemon.folder / "egressd.yaml"]
    known = {"check": place[2:], "explain": place[:2]}.get(str(verb[0]), place)
    return shop.node.run(["env", "COLUMNS=100", sys.executable, "-m", "egressd", *map(str, (*verb, *known))])


def work(pod: Pod, *jobs: str) -> dict[str, str]:
    """Let the application do its jobs; what became of each."""
    done = pod.run([sys.executable, "-c", APPLICATION, *(jobs or JOBS)])
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines())


def recorded(shop: Shop, pod: Pod) -> set[str]:
    """Where a pod's recorded flows went."""
    flows = [one for one in shop.daemon.records("flow") if one["pod"].get("name") == pod.pod_name]
    return {
        f"{one['destination']['ip']}:{one['destination']['port']}/{one['destination']['protocol']}" for one in flows
    }


def learn(shop: Shop) -> None:
    """Two applications at work under the Audit policy, until all that they did is on record."""
    assert work(shop.web) == dict.fromkeys(JOBS, "done")
    assert addresses(ask(shop.other, "reports.example.com")) == ["203.0.113.33"]
    assert dial(shop.other, "203.0.113.33") == "open"
    wanted = {"203.0.113.10:80/tcp", "203.0.113.30:80/tcp", "203.0.113.31:7/tcp", "203.0.113.32:7/udp"}
    wanted |= {f"198.51.100.50:{ECHO}/udp"}
    eventually(lambda: wanted <= recorded(shop, shop.web), what="the application's flows on record", timeout=30)
    eventually(lambda: recorded(shop, shop.other), what="the other one's flow on record", timeout=30)


def test_the_loop(shop: Shop, tmp_path: Path) -> None:
    """From what was seen to what is enforced, without a broken minute; then a rule that nobody uses is found."""
    learn(shop)

    told = egressd(shop, "suggest", "--namespace", "shop")
    assert told.returncode == 0, told.stderr
    assert "2 policies for 2 workloads" in told.stderr
    assert "podSelector: {matchLabels: {app: web}}" in told.stdout
    assert "www.cdn.example" not in told.stdout
    assert "would-deny" not in told.stdout
    suggested = tmp_path / "suggested.yaml"
    suggested.write_text(told.stdout)

    checked = egressd(shop, "check", suggested)
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stdout

    simulated = egressd(shop, "simulate", suggested, "-o", "json")
    assert simulated.returncode == 0, simulated.stdout
    outcome = json.loads(simulated.stdout)
    assert (outcome["counts"]["newly_denied"], outcome["counts"]["newly_would_deny"]) == (0, 0)
    assert outcome["warnings"] == []

    enforce(shop, told.stdout)
    assert work(shop.web) == dict.fromkeys(JOBS, "done")
    assert addresses(ask(shop.other, "reports.example.com")) == ["203.0.113.33"]
    denied(shop)
    stale(shop, told.stdout)


def enforce(shop: Shop, policies: str) -> None:
    """Apply what was suggested, and stop observing: from here on it bites."""
    shop.daemon.put_text("suggested.yaml", policies)
    shop.drop_policy("egressd-system/observe")
    status = json.loads(egressd(shop, "status", "-o", "json").stdout)
    modes = {policy["name"]: (policy["mode"], policy["pods"]) for policy in status["policy_list"]}
    assert modes[WEB] == modes[OTHER] == ("Enforce", 1)
    assert status["policies"]["refused"] == 0


def denied(shop: Shop) -> None:
    """What was never used is denied: a new name, another application's name, a known name's other port."""
    answer = ask(shop.web, "new.example.com")
    assert rcode(answer) == "NXDOMAIN"
    assert "no rule of" in error_of(answer)[1]
    assert rcode(ask(shop.web, "reports.example.com")) == "NXDOMAIN"
    assert dial(shop.web, "203.0.113.10", ECHO) == "refused"
    shop.dns_record(shop.web, "new.example.com", verdict="denied", reason="no-rule")
    shown = egressd(shop, "audit", "--pod", "shop/web-0", "--verdict", "denied", "--name", "new.example.com")
    assert "no-rule    shop/web-0 new.example.com A → NXDOMAIN" in shown.stdout
    why = egressd(shop, "explain", "--pod", "shop/web-0", "--to", "new.example.com:443")
    assert why.returncode == 1
    assert "verdict: denied (no-rule)" in why.stdout
    assert "- {to: [new.example.com], ports: [443/TCP]}" in why.stdout


def stale(shop: Shop, policies: str) -> None:
    """A rule that nothing uses is named, and no rule whose names are used.

    Flows are recorded once a minute, so the use of an address without a name may not be on record yet.
    """
    shop.daemon.put_text("suggested.yaml", policies.replace("    allow:\n", f"    allow:\n{UNUSED}"))
    shop.settle()
    assert work(shop.web) == dict.fromkeys(JOBS, "done")
    assert addresses(ask(shop.other, "reports.example.com")) == ["203.0.113.33"]

    def unused() -> set[tuple[str, str]]:
        told = egressd(shop, "stale", "--namespace", "shop", "-o", "json")
        assert told.returncode == 1, told.stderr
        return {(one["policy"], one["rule"]) for one in json.loads(told.stdout)["unused"]}

    address = next(rule for rule in rules(shop, WEB) if "198.51.100.50" in rule["to"])["name"]
    wanted = {(WEB, "leftover"), (OTHER, "leftover")}
    eventually(lambda: wanted == unused() - {(WEB, address)}, what="the stale rules", timeout=30)
    assert "leftover" in egressd(shop, "stale", "--since", "30d").stdout
    assert rules(shop, WEB)[1]["uses"] > 0


def rules(shop: Shop, policy: str) -> list[dict[str, Any]]:
    """The rules of a policy, as `status` tells them."""
    status = json.loads(egressd(shop, "status", "-o", "json").stdout)
    found: list[dict[str, Any]] = next(one for one in status["policy_list"] if one["name"] == policy)["rules"]
    return found
