"""Audit lines on their way to those who follow them: as many as each can take, and nobody waits for anybody.

Batches are handed over as they come, unparsed. A reader who falls behind by more than `MAX_BEHIND` loses the oldest,
and is told how many.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from egressd.link import Lines

__all__ = ["MAX_BEHIND", "MAX_FOLLOWERS", "Feed", "Follower"]

MAX_BEHIND: Final = 4 * 1024 * 1024
"""Octets that wait for one follower: some 8,000 records."""
MAX_FOLLOWERS: Final = 16
RECENT: Final = 2 * 1024 * 1024
"""Octets of the latest lines that are kept where there is no file to read them from."""


class Follower:
    """One reader of what comes."""

    def __init__(self) -> None:
        self.lost = 0
        """Records lost since `take` was called last."""
        self._batches: deque[Lines] = deque()
        self._octets = 0
        self._filled = asyncio.Event()

    def __len__(self) -> int:
        """Batches that wait."""
        return len(self._batches)

    def put(self, lines: Lines) -> int:
        """Hand over a batch; returns how many records it pushed out."""
        self._batches.append(lines)
        self._octets += len(lines.data)
        lost = 0
        while self._octets > MAX_BEHIND and len(self._batches) > 1:
            oldest = self._batches.popleft()
            self._octets -= len(oldest.data)
            lost += oldest.count
        self.lost += lost
        self._filled.set()
        return lost

    async def take(self, timeout_s: float) -> tuple[bytes, int]:
        """The next batch and how many records were lost before it; nothing, 0 when none came in time."""
        if not self._batches:
            self._filled.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._filled.wait()
            except TimeoutError:
                return b"", 0
        lines = self._batches.popleft()
        self._octets -= len(lines.data)
        lost, self.lost = self.lost, 0
        return lines.data, lost


class Feed:
    """Everybody who follows. One event loop."""

    def __init__(self) -> None:
        self.dropped = 0
        """Records that followers have lost, in all."""
        self._followers: set[Follower] = set()
        self._recent: deque[bytes] = deque()
        self._octets = 0

    def __len__(self) -> int:
        return len(self._followers)

    @property
    def recent(self) -> bytes:
        """The latest lines that were kept, oldest first."""
        return b"".join(self._recent)

    def put(self, lines: Lines, *, keep: bool = True) -> None:
        """Hand a batch to everyone, and keep it for `recent` unless there is a file to read it from; never waits."""
        if keep:
            self._recent.append(lines.data)
            self._octets += len(lines.data)
        while self._octets > (RECENT if keep else 0):
            self._octets -= len(self._recent.popleft())
        for follower in self._followers:
            self.dropped += follower.put(lines)

    @contextmanager
    def follow(self) -> Iterator[Follower | None]:
        """Follow for a while; None where too many do already."""
        if len(self._followers) >= MAX_FOLLOWERS:
            yield None
            return
        follower = Follower()
        self._followers.add(follower)
        try:
            yield follower
        finally:
            self._followers.discard(follower)
