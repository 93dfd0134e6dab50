"""How queries ended and how long they took, counted as they pass: two increments a query, and no clock of its own."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from egressd.model import Decision, Reason, Verdict

__all__ = ["BOUNDS_US", "Tally"]

BOUNDS_US: Final = (
    *(50, 100, 250, 500),
    *(1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000),
    *(1_000_000, 2_500_000, 5_000_000),
)
"""Upper bounds of the buckets: an answer from the cache takes some 50 µs, a resolver gives up after 5 s."""


class Tally:
    """Counts only ever grow. `latency_us[i]` counts queries of at most `BOUNDS_US[i]`; the last one all slower ones."""

    __slots__ = ("latency_sum_us", "latency_us", "queries")

    def __init__(self) -> None:
        self.queries: dict[tuple[Verdict, Reason], int] = {}
        self.latency_us = [0] * (len(BOUNDS_US) + 1)
        self.latency_sum_us = 0

    def add(self, decision: Decision, age_s: float) -> int:
        """One query ended with this decision, `age_s` seconds after it came; returns that in microseconds."""
        key = decision.verdict, decision.reason
        queries = self.queries
        queries[key] = queries.get(key, 0) + 1
        latency_us = int(age_s * 1e6)
        self.latency_us[bisect_left(BOUNDS_US, latency_us)] += 1
        self.latency_sum_us += latency_us
        return latency_us
