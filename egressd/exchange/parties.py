"""Who asks, and how much they may: pods as the data path knows them, their budgets, and what they know addresses by.

Sans-IO; `now` is monotonic seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from egressd.model import PodIdentity
    from egressd.names import Name
    from egressd.policy import Judge
    from egressd.settings import Budgets

__all__ = ["LastKnown", "Party"]

K = TypeVar("K")

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


class LastKnown:
    """By which names pods came to know addresses: what makes a refused packet explain itself, and what tells a live
    connection that is still sanctioned from one that is not, long after its grant ended. Bounded, oldest out first
    (in an OrderedDict: to find its oldest entry, a dict walks past the places of all that left before)."""

    NAMES: Final = 4
    RECALLED: Final = 16_384
    """About a millisecond's worth."""

    def __init__(self, size: int = 65_536) -> None:
        self._size = size
        self._by_pod: OrderedDict[tuple[bytes, bytes], tuple[Name, ...]] = OrderedDict()
        self._by_address: OrderedDict[bytes, tuple[Name, ...]] = OrderedDict()

    def note(self, pod: bytes, name: Name, addresses: tuple[bytes, ...]) -> None:
        """`name` resolved to these addresses for the pod with this address."""
        by_pod = self._by_pod
        for address in addresses:
            key = pod, address
            known = by_pod.get(key, ())
            if name in known:
                continue
            self._put(by_pod, key, known, name)
            anyones = self._by_address.get(address, ())
            if name not in anyones:
                self._put(self._by_address, address, anyones, name)

    def _put(self, table: OrderedDict[K, tuple[Name, ...]], key: K, known: tuple[Name, ...], name: Name) -> None:
        if not known and len(table) >= self._size:
            table.popitem(last=False)
        table[key] = (name, *known[: self.NAMES - 1])

    def names_for(self, pod: bytes, address: bytes) -> tuple[Name, ...]:
        """Names by which this pod learned the address, the latest first."""
        return self._by_pod.get((pod, address), ())

    def names(self, pod: bytes, address: bytes) -> tuple[Name, ...]:
        """The same or, where this pod asked for none, the names by which any pod of the node learned it."""
        return self._by_pod.get((pod, address)) or self._by_address.get(address, ())

    def addresses_for(self, pods: Collection[bytes], name: Name) -> list[bytes]:
        """Addresses that these pods learned by this name, among the latest `RECALLED` of all pods."""
        latest = islice(reversed(self._by_pod.items()), self.RECALLED)
        return [address for (pod, address), names in latest if pod in pods and name in names]

    def entries(self) -> Iterable[tuple[tuple[bytes, bytes], tuple[Name, ...]]]:
        """Everything known: (pod, address) and names."""
        return self._by_pod.items()

    def forget(self, pod: bytes) -> None:
        """The pod is gone; its address may be another's tomorrow."""
        for key in [key for key in self._by_pod if key[0] == pod]:
            del self._by_pod[key]
