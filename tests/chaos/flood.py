"""Memory under a flood of random subdomains: names that nobody asked before, each of them decided, asked and granted.

Profiles differ in what upstream says of such names (`PROFILES`). The hostile pod's own rate budget is lifted, or the
flood would end at the budget and prove nothing of the tables behind it. The plateau is the resident memory when two
thirds of the burst are over; what counts is how far the end is above it.
"""

from __future__ import annotations

import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chaos.stage import Options, Stage, merged
from egressd.lab import Query, Sections, message

__all__ = ["HOUR", "PROFILES", "Flood", "flood", "table"]

HOUR: Final = 10_000
"""New names of an hour's worth of ordinary churn, before the burst."""
PLATEAU: Final = 2 / 3
UNBOUNDED: Final[dict[str, Any]] = {
    "budgets": {"queries_per_second_per_pod": 1_000_000, "burst_per_pod": 1_000_000, "in_flight_per_pod": 4096}
}
PROFILES: Final = {
    "distinct": "allowed, each name an address of its own",
    "few": "allowed, eight addresses in all",
    "nxdomain": "allowed, none of the names exists",
    "denied": "denied",
    "mixed": "half denied, half allowed with 8,192 addresses",
}
"""What the names are; `attack` has a mode of the same name for each."""
FEW: Final = 8
TTL_S: Final = 30
HEAD: Final = (
    "random subdomains",
    "names",
    "a second",
    "before",
    "after 10,000",
    "at two thirds",
    "at the end",
    "growth",
)


@dataclass(frozen=True)
class Flood:
    """Resident memory of the data path in MiB: before, after the hour's worth, late in the burst, at its end."""

    profile: str
    names: int
    seconds: float
    before: float
    hour: float
    plateau: float
    end: float
    outcome: str
    ends: int = 0
    """How often the data path ended, which it never should."""

    @property
    def growth(self) -> float:
        """How far the end is above the plateau, as a part of it."""
        return self.end / self.plateau - 1


def table(bursts: Sequence[Flood]) -> str:
    """RSS in MiB, one line for each flood, as Markdown."""
    lines = [HEAD, tuple("---" if n == 0 else "--:" for n in range(len(HEAD)))]
    for each in bursts:
        memory = (f"{value:.0f}" for value in (each.before, each.hour, each.plateau, each.end))
        rate = f"{each.names / each.seconds:,.0f}"
        lines.append((PROFILES[each.profile], f"{each.names:,}", rate, *memory, f"{100 * each.growth:+.1f} %"))
    notes = [f"- {PROFILES[each.profile]}: {each.outcome}" for each in bursts]
    return "\n".join([*("| " + " | ".join(line) + " |" for line in lines), "", *notes])


def flood(
    folder: Path, names: int, profile: str, *, seed: int = 1, settings: dict[str, Any] | None = None, hour: int = HOUR
) -> Flood:
    """Flood a daemon of its own, `names` in a burst; a little load of other pods goes on beside it."""
    how = Options(seed=seed, rate=50.0, settings=merged(UNBOUNDED, settings or {}))
    with Stage(folder, how) as stage:
        _prepare(stage)
        stage.start()
        time.sleep(2.0)
        before = stage.memory()
        stage.attack(profile, 600.0, hour)
        after_hour = stage.memory()
        begun = time.monotonic()
        outcome = stage.attack(profile, 3600.0, names)
        ended = time.monotonic()
        late = begun + PLATEAU * (ended - begun)
        plateau = next(sample.data for sample in stage.samples if sample.time >= late)
        end, ends = stage.memory(), len(stage.supervisor.ends)
        if ends:
            print(stage.daemon.log(), file=sys.stderr)
    return Flood(profile, names, ended - begun, before, after_hour, plateau, end, outcome, ends)


def _prepare(stage: Stage) -> None:
    zone = stage.node.dns.zone

    def answer(query: Query) -> Sequence[bytes]:
        """Computed, as a million names are too many to write down."""
        kind = query.name.split(".", 2)[1]
        if kind not in ("distinct", "few"):
            return [message(query, zone.sections(query.case, query.name, query.qtype))]
        number = int(query.name[8:].partition(".")[0], 16)
        host = number if kind == "distinct" else number % FEW
        data = socket.inet_pton(socket.AF_INET6, "2001:db8:f5::")[:8] + host.to_bytes(8, "big")
        return [message(query, Sections(0, 1, 0, b"\xc0\x0c" + struct.pack("!HHIH", 28, 1, TTL_S, 16) + data))]

    zone.behave("*", script=answer)
