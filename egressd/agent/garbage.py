"""Python's collector and the node's policies: what stays for days is not walked again and again.

What a change of the world built is frozen (gc.freeze) as soon as it is in force: reference counts still free it, only
the collector looks at it no more, as a walk over a thousand policies takes 50 ms. Cycles among what was frozen must
not pile up: when the process has grown since the last full look, everything is thawed and collected once.
"""

from __future__ import annotations

import gc
from typing import Final

from egressd.agent.stats import resident

__all__ = ["Frost"]

THRESHOLDS: Final = (10_000, 20, 1_000)
"""The hot path makes no cycles: reference counts free what it allocates. The young are looked through in under a
millisecond, and all that is not frozen seldom."""
SLACK: Final = 32 << 20
"""Octets that the process may grow by, beside half of what it had, before everything is looked through: while all
policies of a node are replaced, old and new ones are there. A look takes 100 ms with 1,000 policies."""


class Frost:
    """When to freeze, and when to thaw."""

    def __init__(self) -> None:
        self._most = 0

    def begin(self) -> None:
        """What is loaded by now stays."""
        self._look()
        gc.set_threshold(*THRESHOLDS)

    def settle(self) -> None:
        """The first world is known: what came with it is no growth."""
        self._expect()

    def keep(self) -> None:
        """Freeze what is there; takes a microsecond."""
        gc.freeze()

    def check(self) -> None:
        """Collect everything once if the process has grown much; call it after a change."""
        if resident() > self._most:
            self._look()

    def _look(self) -> None:
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        self._expect()

    def _expect(self) -> None:
        octets = resident()
        self._most = octets + octets // 2 + SLACK
