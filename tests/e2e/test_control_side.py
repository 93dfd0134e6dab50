"""The control side killed, stopped or busy: the data path answers as if nothing were the matter."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.shop import API4, FOR_WEB, NOTHING, Shop, addresses, ask, dial, open_shop, rcode
from egressd.lab import SERVICES, Pod, eventually, name_wire

ALLOW = 'allow:\n- to: ["*.example.com"]\n  ports: [80/TCP]\n'
COUNT = 400


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """A running node on which any name under example.com exists."""
    with open_shop(tmp_path, {"budgets": {"queries_per_second_per_pod": 1_000_000}}) as made:
        made.node.dns.zone.add("*.example.com", "A", "203.0.113.20")
        made.policy("shop/web", ALLOW)
        yield made


def latencies(pod: Pod, prefix: str, count: int = COUNT) -> list[float]:
    """Ask for `count` names nobody asked for before, one after another; the seconds each took. All must be answered."""
    taken = []
    with pod.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.settimeout(5)
        opened.connect((SERVICES[0], 53))
        for number in range(count):
            ident = struct.pack("!H", number)
            query = ident + b"\x01\0\0\x01\0\0\0\0\0\0" + name_wire(f"{prefix}{number}.example.com") + b"\0\x01\0\x01"
            begun = time.perf_counter()
            opened.send(query)
            answer = opened.recv(4096)
            taken.append(time.perf_counter() - begun)
            assert answer[:2] == ident
            assert answer[-4:] == socket.inet_aton("203.0.113.20")
    return taken


def as_before(busy: list[float], quiet: list[float]) -> bool:
    """Whether the median is about the same. Generous: this machine may have two cores and other things to do."""
    return statistics.median(busy) < 10 * statistics.median(quiet) + 0.005


def asked(shop: Shop, prefix: str) -> int:
    """How many records there are of names that begin so."""
    return len([r for r in shop.daemon.records("dns") if r["query"].get("name", "").startswith(prefix)])


@contextlib.contextmanager
def repeating(action: Callable[[], object], period_s: float) -> Iterator[None]:
    """Do something again and again in a thread, until the end of the block."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            action()
            over.wait(period_s)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def kill_children(shop: Shop) -> None:
    for pid in shop.daemon.children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_killed(shop: Shop) -> None:
    """Killed over and over, it is started again; every query is answered, records and edits come."""
    quiet = latencies(shop.web, "quiet")
    (first,) = shop.daemon.children()
    with repeating(lambda: kill_children(shop), 0.3):
        eventually(lambda: first not in shop.daemon.children(), what="the end of the first control side")
        assert as_before(latencies(shop.web, "killed"), quiet)
        assert dial(shop.web, "203.0.113.20") == "open"
    eventually(shop.daemon.children, what="another control side")
    eventually(lambda: asked(shop, "last") or not latencies(shop.web, "last", 1), what="records again")
    shop.policy("shop/web", NOTHING)
    assert rcode(ask(shop.web, "api.example.com")) == "NXDOMAIN"


def test_killed_while_the_world_changes(shop: Shop) -> None:
    """What was edited or deleted while nobody looked is in force once there is a control side again."""
    shop.policy("shop/other", NOTHING, "subject: {podSelector: {matchLabels: {app: other}}}\n")
    assert dial(shop.other, API4) == "refused"
    kill_children(shop)
    shop.daemon.remove("policy-shop-other")
    shop.daemon.put_policy("shop/web", FOR_WEB + NOTHING)
    eventually(lambda: dial(shop.other, API4) == "open", what="the policy gone")
    eventually(lambda: rcode(ask(shop.web, "api.example.com")) == "NXDOMAIN", what="the policy edited")


def test_stopped(shop: Shop) -> None:
    """While it is stopped all is answered and granted as ever; its records and edits come when it goes on."""
    quiet = latencies(shop.web, "quiet")
    eventually(lambda: asked(shop, "quiet") == COUNT, what="the records")
    (child,) = shop.daemon.children()
    os.kill(child, signal.SIGSTOP)
    shop.daemon.put_policy("shop/web", FOR_WEB + ALLOW + "deny:\n- to: [api.example.com]\n")
    assert as_before(latencies(shop.web, "stopped"), quiet)
    assert addresses(ask(shop.web, "api.example.com")) == [API4]
    assert dial(shop.web, API4) == "open"
    assert asked(shop, "stopped") == 0
    os.kill(child, signal.SIGCONT)
    eventually(lambda: asked(shop, "stopped") == COUNT, what="the records")
    eventually(lambda: rcode(ask(shop.web, "api.example.com")) == "NXDOMAIN", what="the edit")
    assert shop.daemon.children() == [child]


def many_policies(turn: int) -> list[dict[str, Any]]:
    """A thousand policies for pods that do not exist, another thousand each turn."""
    labels = {"egressd.io/policy": "true"}
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"namespace": "crowd", "name": f"p{number}", "labels": labels},
            "data": {
                "policy.yaml": f"allow:\n- to: [n{number}.example.com, t{turn}.example.com, 192.0.2.{number % 250}]\n"
            },
        }
        for number in range(1000)
    ]


def test_busy(shop: Shop) -> None:
    """While a thousand policies are written anew all the time, queries are answered as ever; then edits take effect."""
    quiet = latencies(shop.web, "quiet")
    turns = iter(range(1_000_000))
    with repeating(lambda: shop.daemon.put("crowd", *many_policies(next(turns))), 0.5):
        eventually(lambda: len(shop.daemon.records("policy")) > 1000, 30, what="a thousand policies read")
        assert as_before(latencies(shop.web, "busy"), quiet)
        assert dial(shop.web, "203.0.113.20") == "open"
    eventually(lambda: asked(shop, "busy") == COUNT, 30, what="the records")
    shop.daemon.put_policy("shop/web", FOR_WEB + NOTHING)
    eventually(lambda: rcode(ask(shop.web, "api.example.com")) == "NXDOMAIN", 30, what="the edit")
