"""Grants past a bound leave, but for those whose connections live (dns.md, Budgets).

Reading the connection table takes 32 ms where it has 100,000 entries, so a thread reads it, with a socket of its own,
and no more than a twentieth of the time; the ledger is asked before and told after, by the event loop's tick. A look
that fails pushes nothing out: the ledger's hard bounds hold meanwhile.

A connection that begins while we look may lose its grant. It goes on like any other that outlives its grant.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

from egressd.errors import EgressError
from egressd.kernel.conntrack import Conntrack

if TYPE_CHECKING:
    from collections.abc import Callable

    from egressd.agent.roster import Roster
    from egressd.grants import Admission, Crowd, Ledger

__all__ = ["Eviction"]

log = logging.getLogger("egressd.agent")

PAUSE_S: Final = 1.0
SHARE: Final = 20
"""After a look we rest so many times as long as it took, at least `PAUSE_S`."""

Pairs = set[tuple[bytes, bytes]]
"""Pod and destination."""


class _Look(NamedTuple):
    crowd: Crowd
    owners: dict[bytes, int]
    """The pods that were looked at, and their subjects."""
    begun: float
    pairs: Future[Pairs]


class Eviction:
    """Looks when the ledger is crowded, and lets it push out what may go. One thread calls; `now` is monotonic s."""

    def __init__(self, roster: Roster, ledger: Ledger, settle: Callable[[Admission], None]) -> None:
        """`settle` makes the change in the kernel."""
        self._roster = roster
        self._ledger = ledger
        self._settle = settle
        self._conntrack = Conntrack()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="eviction")
        self._look: _Look | None = None
        self._next = 0.0
        self._complaint = ""

    def forget(self) -> None:
        """The table is another's for a while: what a look under way finds will be too old."""
        self._look = None

    def close(self) -> None:
        """Look no more; a look under way ends by itself."""
        self._pool.submit(self._conntrack.close)  # behind the look, which has the socket
        self._pool.shutdown(wait=False)

    def tick(self, now: float) -> None:
        """Begin a look if one is due, or take in what one has found."""
        if self._look is None:
            if now >= self._next and (crowd := self._ledger.crowded()) is not None:
                self._begin(crowd, now)
        elif self._look.pairs.done():
            look, self._look = self._look, None
            self._next = now + max(PAUSE_S, SHARE * (now - look.begun))
            self._take_in(look, now)

    def _begin(self, crowd: Crowd, now: float) -> None:
        owners = {
            address: state.number
            for state in self._roster.subjects.values()
            if state.number in crowd.addresses
            for address in state.addresses
        }
        destinations = frozenset[bytes]().union(*crowd.addresses.values())
        self._look = _Look(crowd, owners, now, self._pool.submit(self._conntrack.live, tuple(owners), destinations))

    def _take_in(self, look: _Look, now: float) -> None:
        try:
            pairs = look.pairs.result()
        except EgressError as error:
            if str(error) != self._complaint:
                log.warning("grants past their bound stay, as their connections cannot be seen: %s", error)
            self._complaint = str(error)
            return
        self._complaint = ""
        live: dict[int, set[bytes]] = {}
        for pod, destination in pairs:
            live.setdefault(look.owners[pod], set()).add(destination)
        gone = self._ledger.trim(look.crowd, live, now)
        if gone.gone or gone.writes:
            self._settle(gone)
