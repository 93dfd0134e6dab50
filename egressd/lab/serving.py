"""An asyncio loop in a thread that lives inside a space: where the lab's servers run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from egressd.lab.space import Space

__all__ = ["Loop"]

T = TypeVar("T")


class Loop:
    """Runs until closed. Sockets opened by what it runs belong to the space. Callers are in other threads."""

    def __init__(self, space: Space) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = space.thread(self._serve)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]], timeout: float = 30.0) -> T:
        """Run a coroutine function in the loop and wait for its result."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(timeout)

    def close(self) -> None:
        """Cancel what still runs, close the loop, and wait for the thread to end. Idempotent."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(30.0)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()
