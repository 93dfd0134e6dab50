"""Memory under a flood of random subdomains: names that nobody asked before, each of them decided, asked and granted.

The hostile pod's own rate budget is lifted, or the flood would end at the budget and prove nothing of the tables
behind it. The plateau is the resident memory when two thirds of the burst are over, for half of the names are denied
and 200,000 grants must have come before the first is pushed out; what counts is how far the end is above it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chaos.stage import Options, Stage

__all__ = ["HOUR", "Flood", "flood"]

HOUR: Final = 10_000
"""New names of an hour's worth of ordinary churn, before the burst."""
PLATEAU: Final = 2 / 3
UNBOUNDED: Final[dict[str, Any]] = {
    "budgets": {"queries_per_second_per_pod": 1_000_000, "burst_per_pod": 1_000_000, "in_flight_per_pod": 4096}
}


@dataclass(frozen=True)
class Flood:
    """Resident memory of the data path in MiB: before, after the hour's worth, late in the burst, at its end."""

    names: int
    seconds: float
    before: float
    hour: float
    plateau: float
    end: float
    outcome: str

    @property
    def growth(self) -> float:
        """How far the end is above the plateau, as a part of it."""
        return self.end / self.plateau - 1

    def __str__(self) -> str:
        return (
            f"random subdomains: {HOUR} names, then {self.names} in {self.seconds:.0f} s ({self.outcome}): RSS"
            f" {self.before:.0f} MiB before, {self.hour:.0f} after the first, {self.plateau:.0f} at two thirds of it,"
            f" {self.end:.0f} at its end ({100 * self.growth:+.1f} %)"
        )


def flood(folder: Path, names: int, *, seed: int = 1, settings: dict[str, Any] | None = None) -> Flood:
    """Flood a daemon of its own, `names` in a burst; a little load of other pods goes on beside it."""
    with Stage(folder, Options(seed=seed, rate=50.0, settings={**UNBOUNDED, **(settings or {})})) as stage:
        stage.start()
        time.sleep(2.0)
        before = stage.memory()
        stage.attack("flood", 600.0, HOUR)
        hour = stage.memory()
        begun = time.monotonic()
        outcome = stage.attack("flood", 3600.0, names)
        ended = time.monotonic()
        late = begun + PLATEAU * (ended - begun)
        plateau = next(sample.data for sample in stage.samples if sample.time >= late)
        end = stage.memory()
    return Flood(names, ended - begun, before, hour, plateau, end, outcome)
