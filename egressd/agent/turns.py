"""Long work in short turns: after each of them the event loop looks at its sockets, so that no query waits for it.

Work is an iterator whose steps are short. One piece is done wholly before the next begins; steps are taken until a
turn's time is spent, and at least one a turn.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

__all__ = ["TURN_S", "Turns", "Work"]

log = logging.getLogger("egressd.agent")

TURN_S: Final = 0.0002
"""What one turn may take, plus what is left of a step then: not more than a few answers take."""

Work = Iterable[object]
"""What a piece of work consists of; what its steps yield means nothing."""


class Turns:
    """Does what `begin` hands out, piece by piece, until there is none (None); `wake` then has it ask again.

    An error of a step ends its piece, is logged, and is told by `failed`.
    """

    def __init__(
        self,
        begin: Callable[[], Work | None],
        failed: Callable[[], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._begin = begin
        self._failed = failed
        self._clock = clock
        self._work: Iterator[object] | None = None
        self._awake = False

    def wake(self) -> None:
        """There is work, with the loop's next turn; harmless if that is known."""
        if not self._awake:
            self._awake = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        try:
            self._awake = self._steps(self._clock() + TURN_S)
        except Exception:
            log.exception("what the control side said could not be carried out")
            self._work = None
            self._failed()
        if self._awake:
            asyncio.get_running_loop().call_soon(self._turn)

    def _steps(self, until: float) -> bool:
        """Take steps until that time; whether there is more to do."""
        while True:
            if self._work is None:
                work = self._begin()
                if work is None:
                    return False
                self._work = iter(work)
            try:
                next(self._work)
            except StopIteration:
                self._work = None
            if self._clock() >= until:
                return True
