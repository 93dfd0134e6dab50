"""The last yard of the audit trail: lines wait here, a few batches at most, for a thread that puts them on the disk.

A slow disk thus stops nothing but itself: the link is then read no further, and the data path, which never waits,
counts what it drops. What is lost on this side is said in the log as a record of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from egressd.audit import Renderer, Writer
from egressd.link import Lines
from egressd.model import PolicyRecord
from egressd.settings import Settings

__all__ = ["MAX_BATCHES", "Records"]

MAX_BATCHES: Final = 8
"""Batches waiting for the disk, each at most one frame of the link (8 MiB): a bound, not what is ever seen."""


class Records:
    """Takes lines and records from the event loop and writes them in order, one batch at a time."""

    def __init__(self, settings: Settings, tap: Callable[[Lines], None] = lambda _: None) -> None:
        self.written = 0
        self.lost = 0
        """Records in all, since we began."""
        self._tap = tap
        self._waiting: asyncio.Queue[Lines | Settings | None] = asyncio.Queue(MAX_BATCHES)
        self._lost = 0
        self._take(settings)

    async def put(self, lines: Lines) -> None:
        """Write rendered lines, and hand them to `tap`; waits while too many are waiting."""
        self._tap(lines)
        await self._waiting.put(lines)

    def tell(self, records: Sequence[PolicyRecord]) -> None:
        """Write records of our own; never waits: with no room they count as lost."""
        if not records:
            return
        data = b"".join(map(self._renderer.policy_line, records))
        lines = Lines(data, len(records))
        self._tap(lines)
        try:
            self._waiting.put_nowait(lines)
        except asyncio.QueueFull:
            self._lost += len(records)
            self.lost += len(records)

    async def reopen(self, settings: Settings) -> None:
        """Close the file and go on as `settings` say; what came before is written first."""
        await self._waiting.put(settings)

    async def close(self) -> None:
        """Have `run` return once everything is written."""
        await self._waiting.put(None)

    async def run(self) -> None:
        """Write until `close`."""
        while (item := await self._waiting.get()) is not None:
            if isinstance(item, Settings):
                self._writer.close()
                self._take(item)
            else:
                await self._write(item)
        self._writer.close()

    def _take(self, settings: Settings) -> None:
        self._renderer = Renderer(settings.node)
        self._writer = Writer(settings.audit)

    async def _write(self, lines: Lines) -> None:
        if not await asyncio.to_thread(self._writer.write, lines.data, lines.count):
            self._lost += lines.count
            self.lost += lines.count
            return
        self.written += lines.count
        if self._lost:
            lost, self._lost = self._lost, 0
            line = self._renderer.dropped_line(lost, time.time())
            if not await asyncio.to_thread(self._writer.write, line, 0):
                self._lost += lost
