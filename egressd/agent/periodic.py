"""What the data path does again and again, whatever became of the last time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

__all__ = ["every"]

log = logging.getLogger("egressd.agent")


async def every(period_s: float, action: Callable[[], None]) -> None:
    """Run `action` each period; an error is logged and the next period comes all the same."""
    while True:
        try:
            action()
        except Exception:
            log.exception("a periodic task failed")
        await asyncio.sleep(period_s)
