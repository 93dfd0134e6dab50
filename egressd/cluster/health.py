"""How the API server is doing, said once per change of state: a line when it fails, a line when it works again.

Five watches lose one server together; what they say of it in the same words is said once, and a loss that the next
try mends is not worth a line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = ["Health"]

QUIET: Final = 1
"""Failures in a row that are kept quiet: a connection may be cut at any time, and the next one stands."""


class Health:
    """Who fails at what, and why. `say` takes one line of text."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._ailing: dict[str, str] = {}

    @property
    def ailments(self) -> tuple[str, ...]:
        """What is wrong now, one text each, for readiness."""
        return tuple(dict.fromkeys(self._ailing.values()))

    def failed(self, who: str, reason: str, failures: int, *, own: bool) -> None:
        """`who` failed for the n-th time in a row. `own`: the reason is about that watch, not about the connection."""
        if failures <= QUIET:
            return
        text = f"{who}: {reason}" if own else reason
        known = text in self._ailing.values()
        self._ailing[who] = text
        if not known:
            self._say(f"cluster: {text}; what is known stays in force, trying again")

    def works(self, who: str) -> None:
        """`who` works, or works again."""
        if self._ailing.pop(who, None) is not None and not self._ailing:
            self._say("cluster: the API server answers again")
