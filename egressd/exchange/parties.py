"""Who asks, and how much they may: pods as the data path knows them, and their budgets.

Sans-IO; `now` is monotonic seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from egressd.model import PodIdentity
    from egressd.policy import Judge
    from egressd.settings import Budgets

__all__ = ["Party"]

MINUTE_S: Final = 60.0


class Party:
    """One pod: its identity, its subject (0: no policy selects it, then `judge` is None) and its budgets.

    All addresses of a pod share one party, so that a second address family doubles nobody's budget.
    """

    __slots__ = (
        "_denied",
        "_denied_since",
        "_stamp",
        "_tokens",
        "aggregated",
        "identity",
        "in_flight",
        "judge",
        "subject",
    )

    def __init__(self, identity: PodIdentity, subject: int = 0, judge: Judge | None = None) -> None:
        self.identity = identity
        self.subject = subject
        self.judge = judge
        self.in_flight = 0
        self.aggregated = 0
        self._tokens = -1.0
        self._stamp = 0.0
        self._denied: set[str] = set()
        self._denied_since = 0.0

    def take(self, budgets: Budgets, now: float) -> bool:
        """Whether one more query fits the pod's rate (a token bucket of `burst_per_pod`) and its queries in flight."""
        tokens = self._tokens
        if tokens < 0.0:
            tokens = float(budgets.burst_per_pod)
        else:
            tokens += (now - self._stamp) * budgets.queries_per_second_per_pod
            tokens = min(tokens, budgets.burst_per_pod)
        self._stamp = now
        if tokens < 1.0 or self.in_flight >= budgets.in_flight_per_pod:
            self._tokens = tokens
            return False
        self._tokens = tokens - 1.0
        return True

    def worth_a_line(self, name: str, budgets: Budgets, now: float) -> bool:
        """Whether this denied name gets an audit record of its own; past the budget of distinct names it is counted."""
        if name in self._denied:
            return True
        if len(self._denied) < budgets.denied_names_per_pod_per_minute:
            if not self._denied:
                self._denied_since = now
            self._denied.add(name)
            return True
        self.aggregated += 1
        return False

    def minute_over(self, now: float) -> int:
        """Ends the minute if it is over: returns how many denials had no record of their own, and starts anew."""
        if not self._denied or now - self._denied_since < MINUTE_S:
            return 0
        self._denied.clear()
        aggregated, self.aggregated = self.aggregated, 0
        return aggregated
