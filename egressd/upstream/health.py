"""How an upstream fares: how fast it answers, how long to wait for it, and when others are preferred.

No clock in here: `now` is seconds of the loop's clock. The smoothed round trip and its deviation are those of TCP (RFC
6298), with one difference: the deviation rises with the samples and falls with time. A resolver answers most
questions from its cache within a millisecond and some after a walk through the world; a thousand of the first kind
within a second must not make the next of the second kind look lost.
"""

from __future__ import annotations

import random
from typing import Final

from egressd.model import address_text
from egressd.settings import Upstream

__all__ = ["FIRST_WAIT_S", "LONGEST_WAIT_S", "PROBE_S", "Health", "jittered"]

TOLERATED: Final = 3
"""Failures in a row before others are preferred: one lost datagram says nothing."""
SILENT_S: Final = 0.75
"""Nor do three within a moment: nothing at all came for so long."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 16.0
SHORTEST_WAIT_S: Final = 0.05
FIRST_WAIT_S: Final = 0.8
"""Bounds of the wait for the first answer, and what is waited for a server that was never measured."""
LONGEST_WAIT_S: Final = 2.0
PROBE_S: Final = 10.0
"""How often an upstream is measured that nobody asks."""
CALMING_S: Final = 2.0
"""Seconds after which a deviation that does not recur has fallen to a third."""
RARE_S: Final = 5.0
"""A sample after so long says more than the average before it."""
TELL_S: Final = 60.0
"""How often at most the log says that it fails."""
LEAST_S: Final = 1e-6


def jittered(seconds: float) -> float:
    """Three quarters of it to all of it: nodes that lost a server together must not come back together."""
    return seconds * (0.75 + random.random() / 4)  # noqa: S311 - spreads load, keeps no secret


class Health:
    """What is known of one upstream. An unhealthy one goes to the end of the list, never off it."""

    __slots__ = (
        "_deviation_s",
        "_pause_s",
        "_silent_since",
        "failures",
        "healthy",
        "probe_at",
        "refusals",
        "rtt_s",
        "sampled",
        "told_at",
        "upstream",
    )

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.failures = 0
        """Failures since the last answer."""
        self.refusals = 0
        """Answers since the last one that was neither SERVFAIL nor REFUSED."""
        self.healthy = True
        """Whether it answered last, or has failed too rarely to say otherwise."""
        self.rtt_s = 0.0
        """Smoothed time to its answers; 0 before the first."""
        self.probe_at = 0.0
        """When it is to be measured, should nobody have asked it by then; 0 if that was never said."""
        self.told_at = 0.0
        """When people were told last that it fails; 0 for never."""
        self._deviation_s = 0.0
        self.sampled = 0.0
        """When `rtt_s` was brought up to date."""
        self._silent_since = 0.0
        self._pause_s = 0.0

    def __str__(self) -> str:
        upstream = self.upstream
        address = address_text(upstream.address)
        host = f"[{address}]" if ":" in address else address
        name = f"#{upstream.host}" if upstream.host not in {"", address} else ""
        return f"{upstream.scheme}://{host}:{upstream.port}{upstream.path}{name}"

    @property
    def avoided(self) -> bool:
        """Whether others are to be preferred: it is silent, or knows nothing."""
        return not self.healthy or self.refusals >= TOLERATED

    def wait_s(self, timeouts: int) -> float:
        """How long to wait for its answer to a question that has been waited for in vain so often.

        Twice as long each time, and with some jitter from the second on. While nothing comes at all, haste is of no
        use: it would only multiply the questions that a server finds when it comes back.
        """
        first = FIRST_WAIT_S
        if self.rtt_s and self.failures < TOLERATED:
            first = min(max(self.rtt_s + 4 * self._deviation_s, SHORTEST_WAIT_S), FIRST_WAIT_S)
        if not timeouts:
            return first
        return jittered(min(first * 2.0**timeouts, LONGEST_WAIT_S))

    def measured(self, rtt_s: float, now: float) -> None:
        """An answer took so many seconds."""
        if not self.rtt_s:
            self.rtt_s, self._deviation_s = max(rtt_s, LEAST_S), rtt_s / 2
        else:
            elapsed = now - self.sampled
            off = rtt_s - self.rtt_s
            self.rtt_s = max(self.rtt_s + off * (0.5 if elapsed > RARE_S else 0.125), LEAST_S)
            gap = abs(off) - self._deviation_s
            self._deviation_s += gap / 4 if gap > 0 else gap * min(elapsed / CALMING_S, 0.25)
        self.sampled = now
        self.probe_at = now + PROBE_S

    def answered(self, refused: bool) -> None:
        """It answered; `refused` where the answer was SERVFAIL or REFUSED."""
        self.refusals = self.refusals + 1 if refused else 0
        self.failures = 0
        self.healthy = True
        self._pause_s = 0.0

    def stumbled(self, now: float, asked: float) -> bool:
        """It did not answer what it was asked at `asked`, which is 0 where it is known that it never will.

        True if from now on others are to be preferred.
        """
        if not self.failures:
            self._silent_since = asked
        self.failures += 1
        since = min(asked, self._silent_since)
        if not self.healthy or self.failures < TOLERATED or now - since < SILENT_S:
            return False
        self.healthy = False
        self.pause(now)
        return True

    def to_tell(self, now: float) -> bool:
        """Whether people should hear of its failing now: not of every turn of one that comes and goes."""
        if self.told_at and now - self.told_at < TELL_S:
            return False
        self.told_at = now
        return True

    def pause(self, now: float) -> None:
        """Leave it alone, twice as long as the last time; then it is asked one question, which others answer."""
        self._pause_s = min(self._pause_s * 2 or FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self.probe_at = now + jittered(self._pause_s)
