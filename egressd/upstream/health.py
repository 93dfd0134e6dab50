"""How an upstream fares: a few failures in a row, and others are preferred for some seconds."""

from __future__ import annotations

from typing import Final

from egressd.model import address_text
from egressd.settings import Upstream

__all__ = ["Health"]

TOLERATED: Final = 3
"""Failures in a row before others are preferred: one lost datagram says nothing."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 16.0


class Health:
    """What is known of one upstream. An unhealthy one goes to the end of the list, never off it."""

    __slots__ = ("_pause_s", "_until", "failures", "upstream")

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.failures = 0
        """Failures since the last answer."""
        self._pause_s = 0.0
        self._until = 0.0

    def __str__(self) -> str:
        host = address_text(self.upstream.address)
        return f"{self.upstream.scheme}://{f'[{host}]' if ':' in host else host}:{self.upstream.port}"

    @property
    def healthy(self) -> bool:
        """Whether it answered last, or has failed too rarely to say otherwise."""
        return self.failures < TOLERATED

    def avoided(self, now: float) -> bool:
        """Whether others are to be preferred at `now` (seconds of the loop's clock)."""
        return now < self._until

    def succeeded(self) -> None:
        """It answered."""
        self.failures = 0
        self._pause_s = self._until = 0.0

    def stumbled(self, now: float) -> None:
        """It did not answer. Failures that come while it is avoided anyway do not lengthen the pause."""
        self.failures += 1
        if self.failures >= TOLERATED and now >= self._until:
            self._pause_s = min(self._pause_s * 2 or FIRST_PAUSE_S, LONGEST_PAUSE_S)
            self._until = now + self._pause_s
