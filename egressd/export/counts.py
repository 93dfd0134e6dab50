"""What became of the records that were to be exported; one set for the life of the process, whatever settings say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

__all__ = ["GIVEN_UP", "QUEUE_FULL", "REFUSED", "Counts"]

QUEUE_FULL: Final = "queue-full"
"""Too many were waiting; the oldest go first."""
REFUSED: Final = "refused"
"""The collector will not have them, now or ever."""
GIVEN_UP: Final = "given-up"
"""Tried often enough, or no time was left at the end."""


@dataclass(slots=True)
class Counts:
    sent: int = 0
    """Records that the collector has taken."""
    failures: int = 0
    """Requests that it has not taken, those tried again included."""
    dropped: dict[str, int] = field(default_factory=lambda: dict.fromkeys((QUEUE_FULL, REFUSED, GIVEN_UP), 0))
