"""When each grant is to be looked at: by whole seconds, each grant once, gone as soon as the grant is.

A heap would keep what was pushed out until its time comes, which under a flood of long TTLs is most of it.
"""

from __future__ import annotations

import heapq
from typing import Final

from egressd.names import Name

__all__ = ["Due", "Entry"]

Entry = tuple[int, Name, bytes]
"""Subject, name, address."""

HORIZON_S: Final = 600
"""What ends later is looked at in between, so that there are never more seconds than these."""


class Due:
    """Times are monotonic seconds, as everywhere in the ledger."""

    def __init__(self) -> None:
        self._seconds: dict[int, set[Entry]] = {}
        self._order: list[int] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, entry: Entry, until: float, now: float) -> int:
        """Remember an entry that is not here; returns the second it is kept under."""
        second = int(min(until, now + HORIZON_S))
        entries = self._seconds.get(second)
        if entries is None:
            entries = self._seconds[second] = set()
            heapq.heappush(self._order, second)
        entries.add(entry)
        self._size += 1
        return second

    def remove(self, entry: Entry, second: int) -> None:
        """Forget an entry, if it is here."""
        entries = self._seconds.get(second)
        if entries is not None and entry in entries:
            entries.remove(entry)
            self._size -= 1

    def take(self, before: float) -> Entry | None:
        """An entry whose second is over by then; it is here no more. None if there is none."""
        order = self._order
        while order and order[0] + 1 <= before:
            entries = self._seconds[order[0]]
            if entries:
                self._size -= 1
                return entries.pop()
            del self._seconds[heapq.heappop(order)]
        return None
