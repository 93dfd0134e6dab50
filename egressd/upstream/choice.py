"""Which upstream is asked first: the fastest that is well, of those that the settings put first.

Neighbours in the list of settings that are alike, all encrypted or all plain, are one group and may overtake each
other; a plain server never overtakes an encrypted one before it, nor the other way round. Whoever is first stays so
until another is clearly faster, so that two of equal speed do not change places all the time. Those that nobody asks
are measured now and then, with a question that is asked elsewhere too.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Final

from egressd.settings import Upstream
from egressd.upstream.flight import Server
from egressd.upstream.health import PROBE_S, jittered

__all__ = ["Choice"]

SORT_S: Final = 0.25
"""How often the order is looked at; at once where one falls silent or comes back."""
MARGIN: Final = 0.8
MARGIN_S: Final = 0.001
"""To go ahead a server must need less than this share of the first one's time, and a millisecond less than that."""
UNMEASURED_S: Final = 1e6


class Choice:
    """The order of some servers. `due` is one to be measured now, if there is one."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.due: Server | None = None
        self._configured = tuple(servers)
        self._order = self._configured
        self._groups = _groups([server.upstream for server in servers])
        self._sort_at = 0.0

    def ordered(self, now: float) -> tuple[Server, ...]:
        """The servers, the one to ask first in front."""
        if now >= self._sort_at:
            self._sort(now)
        return self._order

    def changed(self) -> None:
        """One fell silent or came back: look again at the next question."""
        self._sort_at = 0.0

    def measuring(self, server: Server, now: float) -> None:
        """`due` is being measured."""
        server.health.probe_at = now + PROBE_S
        self.due = None

    def _sort(self, now: float) -> None:
        if len(self._configured) == 1:
            return
        first = self._order[0]
        ranks = [
            (server.health.avoided, self._groups[place], _cost(server, server is first), place)
            for place, server in enumerate(self._configured)
        ]
        self._order = tuple(self._configured[place] for *_, place in sorted(ranks))
        self._sort_at = now + SORT_S
        self.due = None
        for server in self._order[1:]:
            if not server.health.probe_at:
                server.health.probe_at = now + jittered(PROBE_S) / 4
            elif now >= server.health.probe_at:
                self.due = server


def _cost(server: Server, is_first: bool) -> float:
    """Seconds that an answer takes, with the first one's lead."""
    took = server.health.rtt_s or UNMEASURED_S
    return took * MARGIN - MARGIN_S if is_first else took


def _groups(upstreams: Sequence[Upstream]) -> list[int]:
    """The group of each upstream: a number that rises with every change between plain and encrypted."""
    alike = groupby(upstreams, key=lambda upstream: upstream.scheme in {"tls", "https"})
    return [number for number, (_, members) in enumerate(alike) for _ in members]
