"""What it costs to record the flows that are let through (`audit.flows: All`) beside not to (`Denied`, the default).

    python -m benchmarks.flows              (root)

A pod opens flows to an address that its policy allows. Each to a port of its own is the worst case: each is an event, a
record and two look-ups of its counter. All to one port is the common case: one event a minute, the rest is counted in
the kernel. CPU is the daemon's own, both processes, for so many new flows at a steady pace, and less what it takes when
nothing happens. What the kernel spends on a new flow is in `benchmarks.packets`.
"""

from __future__ import annotations

import argparse
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.cpu import describe_machine, usage
from benchmarks.table import markdown
from egressd.lab import Daemon, Node, Pod, enter_private

TARGET: Final = "203.0.113.10"
POLICY: Final = "subject: {podSelector: {matchLabels: {app: web}}}\nallow:\n- to: [203.0.113.0/24]\n"
FLOWS: Final = 3200
PER_SECOND: Final = 400
"""Below the kernel's bound of events of what is let through (500 a second), so that each is a record."""
FIRST_PORT: Final = 10_000

Ports = Callable[[int], int]
WAYS: Final[dict[str, Ports]] = {
    "each to a port of its own": lambda number: FIRST_PORT + number,
    "all to one port": lambda _: FIRST_PORT,
}


def open_flows(pod: Pod, port: Ports) -> None:
    """One datagram a flow, from a new socket each, at a steady pace."""
    began = time.monotonic()
    for number in range(FLOWS):
        with pod.socket(kind=socket.SOCK_DGRAM) as opened:
            opened.sendto(b"x", (TARGET, port(number)))
        time.sleep(max(0.0, began + number / PER_SECOND - time.monotonic()))


def spent_s(daemon: Daemon, action: Callable[[], None]) -> float:
    """CPU seconds of the daemon and its child while `action` runs and two seconds after it."""
    assert daemon.process is not None
    pids = [daemon.process.pid, *daemon.children()]
    before = usage(pids)
    action()
    time.sleep(2.0)
    return usage(pids).since(before).total


def measure(flows: str) -> dict[str, float]:
    """µs of the daemon's CPU a flow, by the way they go."""
    with tempfile.TemporaryDirectory(prefix="egressd-bench-") as folder, Node("p2p") as node:
        pod = node.add_pod("shop/web-0", labels={"app": "web"})
        with Daemon(node, Path(folder), {"audit": {"flows": flows}}) as daemon:
            daemon.put_pods()
            daemon.put_policy("shop/web", POLICY)
            daemon.start()
            time.sleep(1.0)
            idle = spent_s(daemon, lambda: time.sleep(FLOWS / PER_SECOND))
            found = {}
            for way, port in WAYS.items():
                spent = spent_s(daemon, partial(open_flows, pod, port)) - idle
                found[way] = spent / FLOWS * 1e6
            recorded = len(daemon.records("flow"))
    print(f"{flows}: {found}, {recorded} records", file=sys.stderr)
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flows", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="default: %(default)s")
    repeats = parser.parse_args().repeats
    enter_private()
    samples = [{flows: measure(flows) for flows in ("Denied", "All")} for _ in range(repeats)]
    rows = [
        [way, *(f"{median(sample[flows][way] for sample in samples):.0f}" for flows in ("Denied", "All"))]
        for way in WAYS
    ]
    print(f"Machine: {describe_machine()}\n{FLOWS:,} flows a run, {PER_SECOND} a second, {repeats} repeats\n")
    print(markdown(["µs of CPU a flow", "`flows: Denied`", "`flows: All`"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
