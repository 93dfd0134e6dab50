"""What the pods ask, and the run of dnsperf that asks it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from benchmarks.place import SELECTED, UNSELECTED, WIDE, WIDE_NAMES, BenchmarkError, Place

__all__ = ["MAX_QUERIES", "POPULAR", "WORKLOADS", "Load", "Run", "Workload", "run_load"]

NAMES = 65_536
"""Names of a zone: one address each (place.py)."""
WARM_NAMES = 1_000
"""The last names of a zone warm the peer up, so that the measured ones are new to it."""
MAX_QUERIES = NAMES - WARM_NAMES
POPULAR = 200
LOST = 0.001
"""Share of queries that may stay unanswered before a run counts as failed."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Which pod asks which names. `distinct` names are asked once each; the expected answer is `rcode`."""

    name: str
    title: str
    pod: str
    zone: str
    distinct: int
    rcode: str = "NOERROR"
    cached: bool = False
    """Whether answers may come from the peer's cache; else each query is forwarded."""
    tcp: bool = False
    addresses: int = 1
    """How many each answer has."""

    def questions(self, count: int) -> Iterable[str]:
        """`count` lines of a dnsperf query file; fewer where so many names are not there to be new."""
        return (f"n-{number % self.distinct}.{self.zone}.bench.example A" for number in range(self.most(count)))

    def most(self, count: int) -> int:
        """How many of `count` queries are asked: those of names asked once, at most as many as were not warmed up."""
        return count if self.distinct <= POPULAR else min(count, self.distinct - WARM_NAMES)

    def opens(self, count: int) -> int:
        """How many addresses are to be open after `count` queries."""
        return min(self.most(count), self.distinct) * self.addresses if self.zone.endswith("allowed") else 0

    def warm_up(self) -> Iterable[str]:
        """Questions asked before the measurement: the popular names, or names that it will not ask."""
        first = 0 if self.distinct <= POPULAR else self.distinct - WARM_NAMES
        return islice(
            (f"n-{first + number}.{self.zone}.bench.example A" for number in range(WARM_NAMES)), self.distinct
        )


WORKLOADS = (
    Workload("allowed-new", "allowed, new name and address", SELECTED, "allowed", NAMES),
    Workload("allowed-known", "allowed, known name", SELECTED, "allowed", POPULAR),
    Workload("four-new", "allowed, new name, four new addresses", SELECTED, "four.allowed", WIDE_NAMES, addresses=WIDE),
    Workload("four-known", "allowed, known name, four addresses", SELECTED, "four.allowed", POPULAR, addresses=WIDE),
    Workload("denied", "denied, distinct names", SELECTED, "denied", NAMES, "NXDOMAIN"),
    Workload("popular", "forwarded without policy, popular names", UNSELECTED, "other", POPULAR),
    Workload("distinct", "forwarded without policy, distinct names", UNSELECTED, "other", NAMES),
    Workload("repeated", "from the cache, allowed", SELECTED, "allowed", POPULAR, cached=True),
    Workload("tcp", "from the cache, allowed, over TCP", SELECTED, "allowed", POPULAR, cached=True, tcp=True),
)


@dataclass(frozen=True, slots=True)
class Load:
    """How hard dnsperf asks: `outstanding` queries at a time from `clients` sockets; `rate` a second, 0: unpaced."""

    queries: int = 30_000
    outstanding: int = 32
    clients: int = 8
    rate: int = 0


class Run(NamedTuple):
    """What dnsperf saw: answers, answers a second, mean latency in microseconds."""

    completed: int
    rate: float
    latency_us: float


def run_load(place: Place, workload: Workload, server: str, questions: Iterable[str], load: Load) -> Run:
    """Ask `server` all `questions` from the workload's pod; raises BenchmarkError unless the expected answers come."""
    file = place.folder / "questions.txt"
    file.write_text("\n".join(questions) + "\n")
    command = ["dnsperf", "-s", server, "-d", str(file), "-n", "1", "-t", "2", "-T", "1"]
    command += ["-q", str(load.outstanding), "-c", str(load.clients), "-m", "tcp" if workload.tcp else "udp"]
    if load.rate:
        command += ["-Q", str(load.rate)]
    return read_report(place.run(workload.pod, *command), workload)


def read_report(text: str, workload: Workload) -> Run:
    """The figures of a dnsperf report, which must show the answers that the workload expects."""

    def figure(pattern: str) -> float:
        match = re.search(pattern, text)
        if match is None:
            raise BenchmarkError(f"dnsperf said nothing of {pattern!r}:\n{text}")
        return float(match[1])

    sent, completed = figure(r"Queries sent:\s+(\d+)"), figure(r"Queries completed:\s+(\d+)")
    expected = figure(rf"Response codes:.*?\b{workload.rcode} (\d+)")
    if expected < completed or completed < sent * (1 - LOST):
        raise BenchmarkError(
            f"{workload.name}: {sent:.0f} sent, {completed:.0f} answered, {expected:.0f} {workload.rcode}"
        )
    rate = figure(r"Queries per second:\s+([\d.]+)")
    return Run(int(completed), rate, figure(r"Average Latency \(s\):\s+([\d.]+)") * 1e6)
