"""Clocks: a step of the wall clock, or another start of the monotonic one, neither shortens nor prolongs anything.

The wall clock is stepped under the daemon alone (chaos/clock/sitecustomize.py), and its records show that it was.
Suspend: the kernel's timeouts and CLOCK_MONOTONIC both stand still while a machine sleeps, so a grant has the rest of
its life after it has woken up. That cannot be tried without one.
"""

from __future__ import annotations

import ast
import os
import re
import struct
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from e2e.shop import API4, ECHO, Shop, ask, connect, dial, echoes, open_shop, rcode

import egressd
from egressd.lab import eventually
from survival.stand import ALLOW, FOR_WEB, stand

CLOCK = Path(__file__).parent.parent / "chaos" / "clock"
HOUR = 3600.0
BUDGET = {"budgets": {"queries_per_second_per_pod": 1, "burst_per_pod": 8}}
WALL = {"time", "time_ns", "localtime", "gmtime", "clock_settime", "now", "utcnow", "today"}
"""What tells the wall clock's time, of modules `time` and `datetime`."""
DATA_PATH = ("agent", "exchange", "grants", "kernel", "listen", "policy", "upstream", "wire", "cache.py", "link.py")
"""What decides, keeps, waits and expires."""
WRITE_RECORDS = {"agent/daemon.py", "agent/reports.py"}
"""They hand the wall clock on to what writes times into records, for people."""


def _reads_wall_clock(node: ast.AST) -> bool:
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.value.id in {"time", "datetime", "date"} and node.attr in WALL
    return isinstance(node, ast.ImportFrom) and node.module == "time" and bool({a.name for a in node.names} & WALL)


def wall_clock_readers() -> set[str]:
    """Modules of the data path in which the wall clock's time is read, or the reading function handed on."""
    home = Path(egressd.__file__).parent
    found = set()
    for path in home.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if _reads_wall_clock(node):
                found.add(str(path.relative_to(home)))
    return {name for name in found if name.split("/")[0] in DATA_PATH}


def test_nothing_that_decides_reads_the_wall_clock() -> None:
    """The data path knows what time it is only where it writes a record."""
    assert wall_clock_readers() == WRITE_RECORDS


class Clock:
    """The daemon's wall clock."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._file.write_bytes(bytes(8))

    def step(self, offset: float) -> None:
        """From now on it is wrong by so many seconds."""
        with self._file.open("r+b") as file:  # in place: the daemon has it mapped
            file.write(struct.pack("=d", offset))


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
def shop(tmp_path: Path, clock: Clock) -> Iterator[Shop]:
    """A running shop whose wall clock `clock` is."""
    with open_shop(tmp_path, BUDGET, start=False) as made:
        path = f"{CLOCK}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        made.node.environment |= {"CHAOS_CLOCK": str(tmp_path / "clock"), "PYTHONPATH": path}
        made.daemon.put_policy("shop/web", FOR_WEB + ALLOW)
        made.daemon.start()
        yield made


def ends(shop: Shop) -> float:
    """When the kernel ends the grant for the API, monotonic seconds."""
    found = re.search(rf"{re.escape(API4)} (?:timeout \S+ )?expires (?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", shop.grants())
    assert found, shop.grants()
    minutes, seconds, milliseconds = (int(part or 0) for part in found.groups())
    return time.monotonic() + 60 * minutes + seconds + milliseconds / 1000


@pytest.mark.parametrize("offset", [HOUR, -HOUR], ids=["forward", "back"])
def test_a_step_changes_nothing_but_the_records(shop: Shop, clock: Clock, offset: float) -> None:
    """Grant, cache, budget, live connection and the followed log go on as if nothing had happened."""
    argv = [sys.executable, "-m", "egressd", "audit", "--config", str(shop.daemon.folder / "egressd.yaml")]
    eventually((shop.daemon.folder / "admin.sock").exists, 20.0, what="the admin socket")
    with shop.node.popen([*argv, "--follow", "-o", "json"]) as follower:
        assert rcode(ask(shop.web, "api.example.com")) == "NOERROR"
        before, asked = ends(shop), len(shop.node.dns.seen)
        with connect(shop.web, API4, ECHO) as live:
            clock.step(offset)
            answer = ask(shop.web, "api.example.com")
            assert rcode(answer) == "NOERROR"
            assert len(shop.node.dns.seen) == asked
            assert min(rrset.ttl for rrset in answer.answer) > 10
            assert ends(shop) == pytest.approx(before, abs=2.0)
            assert dial(shop.web, API4) == "open"
            assert echoes(live)
        refused = [rcode(ask(shop.web, "api.example.com")) for _ in range(20)].count("SERVFAIL")
        assert refused >= 8
        rcode(ask(shop.other, f"stepped{'-back' if offset < 0 else ''}.example.com"))
        record = shop.daemon.wait_record(lambda r: r["query"]["name"].startswith("stepped"))
        told = datetime.fromisoformat(record["time"]).timestamp()
        assert told == pytest.approx(time.time() + offset, abs=60.0)
        assert follower.stdout is not None
        assert any('"stepped' in line for line in iter(follower.stdout.readline, ""))
        follower.kill()


def test_another_start_of_the_monotonic_clock(tmp_path: Path) -> None:
    """A daemon whose monotonic clock began elsewhere (a time namespace) takes grants over with what is left of them."""
    with stand(tmp_path) as shop:
        before = ends(shop)
        shop.daemon.stop()
        argv = ["unshare", "--time", "--fork", "--kill-child", "--monotonic", "1000000", "--boottime", "1000000"]
        argv += [sys.executable, "-m", "egressd", "run", "--config", str(tmp_path / "egressd.yaml")]
        with shop.daemon.log_file.open("a") as log, shop.node.popen(argv, stdout=log, stderr=log) as elsewhere:
            eventually(lambda: "1 grants taken over" in shop.daemon.log(), 30.0, what="the next one ready")
            assert ends(shop) == pytest.approx(before, abs=2.0)
            assert dial(shop.web, API4) == "open"
            elsewhere.kill()
