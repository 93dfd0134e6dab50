"""When each grant is to be looked at: by whole seconds, each grant once, gone as soon as the grant is.

A heap would keep what was pushed out until its time comes, which under a flood of long TTLs is most of it. Each grant
knows its place in the list of its second, so that leaving it costs no search; the last of the list takes the place.
"""

from __future__ import annotations

import heapq
from typing import Final

from egressd.grants.elements import Grant

__all__ = ["Due"]

HORIZON_S: Final = 600
"""What ends later is looked at in between, so that there are never more seconds than these."""


class Due:
    """Times are monotonic seconds, as everywhere in the ledger."""

    def __init__(self) -> None:
        self._seconds: dict[int, list[Grant]] = {}
        self._order: list[int] = []
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, grant: Grant, now: float) -> None:
        """Remember a grant that is not here, until it ends."""
        second = int(min(grant.until, now + HORIZON_S))
        grants = self._seconds.get(second)
        if grants is None:
            grants = self._seconds[second] = []
            heapq.heappush(self._order, second)
        grant.due, grant.place = second, len(grants)
        grants.append(grant)
        self._size += 1

    def remove(self, grant: Grant) -> None:
        """Forget a grant, if it is here."""
        if grant.place < 0:
            return
        grants = self._seconds[grant.due]
        last = grants.pop()
        if last is not grant:
            grants[grant.place] = last
            last.place = grant.place
        grant.place = -1
        self._size -= 1

    def take(self, before: float) -> Grant | None:
        """A grant whose second is over by then; it is here no more. None if there is none."""
        order = self._order
        while order and order[0] + 1 <= before:
            grants = self._seconds[order[0]]
            if grants:
                grant = grants.pop()
                grant.place = -1
                self._size -= 1
                return grant
            del self._seconds[heapq.heappop(order)]
        return None
