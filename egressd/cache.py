"""Answers kept for as long as their TTL says, and a while longer for the day the upstream fails.

Sans-IO and ignorant of DNS: keys and values are the caller's, `now` is monotonic seconds. Bounded in entries and in
octets; what has not been asked for lately leaves first (the CLOCK approximation of least-recently-used, which costs a
hit one attribute). dns.md (Cache) is the law; RFC 8767 for stale answers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

__all__ = ["OVERHEAD", "Entry", "TtlCache"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

OVERHEAD: Final = 700
"""Octets that an entry is counted for besides its message: the objects that hold what was understood of it (measured
with tracemalloc for an answer of two addresses: 640)."""
PREFETCH_SHARE: Final = 0.1
"""Share of the TTL, at its end, in which a popular entry is fetched anew."""


class Entry(Generic[V]):
    """One kept value. Times are monotonic seconds."""

    __slots__ = ("dropped", "expires", "fetching", "hits", "size", "stored", "used", "value")

    def __init__(self, value: V, size: int, stored: float, expires: float) -> None:
        self.value = value
        self.size = size
        self.stored = stored
        self.expires = expires
        self.used = False
        self.hits = 0
        self.fetching = False
        self.dropped = False
        """Whether it is in the table no more."""

    def hit(self) -> None:
        """Somebody asked for it."""
        self.used = True
        self.hits += 1

    def age(self, now: float) -> int:
        """Whole seconds since it was stored, by which its TTLs have shrunk."""
        return int(now - self.stored)

    def worth_refreshing(self, now: float) -> bool:
        """Whether it ends soon and was asked for more than once: true one time per life."""
        if self.fetching or self.hits < 2 or now < self._prefetch:
            return False
        self.fetching = True
        return True

    def steady_until(self, now: float) -> float:
        """Until when a hit is like one at `now`: of the same age, and no reason to refresh."""
        end = min(self.stored + self.age(now) + 1, self.expires)
        if self.fetching:
            return end
        return min(end, self._prefetch)

    @property
    def _prefetch(self) -> float:
        return self.expires - (self.expires - self.stored) * PREFETCH_SHARE


class TtlCache(Generic[K, V]):
    """A bounded table of entries that expire, and stay to be served stale until `keep_stale_s` after."""

    def __init__(self, entries: int, octets: int, keep_stale_s: float) -> None:
        self.octets = 0
        self.evicted = 0
        self._max_entries = entries
        self._max_octets = octets
        self._keep_stale_s = keep_stale_s
        self._table: OrderedDict[K, Entry[V]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._table)

    def get(self, key: K, now: float) -> Entry[V] | None:
        """The entry, if it is fresh."""
        entry = self._table.get(key)
        if entry is None or entry.expires <= now:
            return None
        entry.hit()
        return entry

    def stale(self, key: K, now: float) -> Entry[V] | None:
        """The entry, fresh or expired, if it may be served while the upstream fails."""
        entry = self._table.get(key)
        if entry is None or entry.expires + self._keep_stale_s <= now:
            return None
        entry.used = True
        return entry

    def peek(self, key: K) -> Entry[V] | None:
        """The entry, however old, without a trace of having been asked for."""
        return self._table.get(key)

    def put(self, key: K, value: V, size: int, ttl_s: float, now: float) -> None:
        """Keep a value for `ttl_s` seconds; `size` is its octets without the overhead. Nothing is kept at 0 seconds."""
        size += OVERHEAD
        if ttl_s <= 0 or size > self._max_octets or not self._max_entries:
            return
        self._drop(key)
        self._table[key] = Entry(value, size, now, now + ttl_s)
        self.octets += size
        while len(self._table) > self._max_entries or self.octets > self._max_octets:
            self._evict()

    def _evict(self) -> None:
        """Drop the oldest entry that nobody has asked for since it was last passed over."""
        table = self._table
        while True:
            key = next(iter(table))
            entry = table[key]
            if not entry.used:
                break
            entry.used = False
            table.move_to_end(key)  # passed over once: to the end of the queue
        self._drop(key)
        self.evicted += 1

    def _drop(self, key: K) -> None:
        entry = self._table.pop(key, None)
        if entry is not None:
            entry.dropped = True
            self.octets -= entry.size

    def expire(self, now: float, limit: int = 2_000) -> int:
        """Drop what is too old even to be served stale, looking at `limit` entries at most. Returns how many went."""
        oldest = [key for key, _ in zip(self._table, range(limit), strict=False)]
        gone = [key for key in oldest if self._table[key].expires + self._keep_stale_s <= now]
        for key in gone:
            self._drop(key)
        return len(gone)
