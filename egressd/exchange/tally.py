"""How queries ended and how long they took, counted as they pass: two increments a query, and no clock of its own.

Most queries end like the one before, and took about as long: only what differs is looked up.
"""

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
FOREVER_US: Final = 1 << 60


class Tally:
    """Counts only ever grow. `latency_us[i]` counts queries of at most `BOUNDS_US[i]`; the last one all slower ones."""

    __slots__ = ("_above_us", "_bucket", "_count", "_last", "_queries", "_upto_us", "latency_sum_us", "latency_us")

    def __init__(self) -> None:
        self._queries: dict[tuple[Verdict, Reason], int] = {}
        self._last: Decision | None = None
        self._count = 0
        """Queries that ended with this decision and are not in the table yet."""
        self._bucket = 0
        self._above_us = -1
        self._upto_us = BOUNDS_US[0]
        """The bucket of the query before, and its bounds."""
        self.latency_us = [0] * (len(BOUNDS_US) + 1)
        self.latency_sum_us = 0

    def add(self, decision: Decision, age_s: float) -> int:
        """One query ended with this decision, `age_s` seconds after it came; returns that in microseconds."""
        if decision is not self._last:
            self._settle()
            self._last = decision
        self._count += 1
        latency_us = int(age_s * 1e6)
        if not self._above_us < latency_us <= self._upto_us:
            self._find_bucket(latency_us)
        self.latency_us[self._bucket] += 1
        self.latency_sum_us += latency_us
        return latency_us

    @property
    def queries(self) -> dict[tuple[Verdict, Reason], int]:
        """How many ended so."""
        self._settle()
        return self._queries

    def _settle(self) -> None:
        if self._last is not None and self._count:
            key = self._last.verdict, self._last.reason
            self._queries[key] = self._queries.get(key, 0) + self._count
            self._count = 0

    def _find_bucket(self, latency_us: int) -> None:
        bucket = self._bucket = bisect_left(BOUNDS_US, latency_us)
        self._above_us = BOUNDS_US[bucket - 1] if bucket else -1
        self._upto_us = BOUNDS_US[bucket] if bucket < len(BOUNDS_US) else FOREVER_US
