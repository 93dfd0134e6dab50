"""What the data path tells of itself about once a second: numbers that its parts count anyway, gathered."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

from egressd import link
from egressd.exchange.tally import BOUNDS_US

if TYPE_CHECKING:
    from collections.abc import Mapping

    from egressd.agent.child import Child
    from egressd.agent.roster import Roster
    from egressd.agent.trail import AuditQueue
    from egressd.exchange import Exchange
    from egressd.grants import Ledger
    from egressd.kernel.nflog import NflogReader
    from egressd.listen import Listener
    from egressd.model import Reason, Verdict
    from egressd.upstream import Upstreams

__all__ = ["Counted", "resident", "stats"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Counted(NamedTuple):
    """The parts that count."""

    exchange: Exchange
    upstreams: Upstreams
    listener: Listener
    ledger: Ledger
    roster: Roster
    nflog: NflogReader | None
    queue: AuditQueue
    child: Child
    flows: Mapping[tuple[Verdict, Reason], int]
    packets: Mapping[str, int]
    """What flow records do not tell (packets.py)."""
    kernel: Mapping[str, int]
    """What the kernel refused, and what of it was mended (enforcement.py)."""


def stats(parts: Counted, *, serving: bool, refused: str, started: float) -> link.Stats:
    """Gather them; some 40 µs."""
    tally = parts.exchange.tally
    return link.Stats(
        serving=serving,
        refused=refused,
        started=started,
        queries=_tallies(tally.queries),
        flows=_tallies(parts.flows),
        latency_us=tuple(tally.latency_us),
        latency_bounds_us=BOUNDS_US,
        latency_sum_us=tally.latency_sum_us,
        counters=_counters(parts),
        gauges=_gauges(parts),
        upstreams=tuple(
            link.UpstreamHealth(str(health), health.healthy, health.failures, round(health.rtt_s * 1e6))
            for health in parts.upstreams.healthy
        ),
    )


def _counters(parts: Counted) -> dict[str, int]:
    groups = {
        "exchange": parts.exchange.counters,
        "upstream": parts.upstreams.counters,
        "listen": parts.listener.counters,
        "flows": parts.packets,
        "kernel": parts.kernel,
    }
    counters = {f"{group}.{name}": count for group, counts in groups.items() for name, count in counts.items()}
    counters["ledger.evicted"] = parts.ledger.evicted
    counters["ledger.kept_live"] = parts.ledger.kept_live
    counters["nflog.lost"] = parts.nflog.lost if parts.nflog is not None else 0
    counters["audit.dropped"] = parts.queue.dropped
    counters["control.restarts"] = parts.child.losses
    return counters


def _gauges(parts: Counted) -> dict[str, float]:
    counts = parts.roster.counts()
    return {
        "roster.pods": counts["pods"],
        "roster.selected": counts["selected"],
        "roster.policies": counts["policies"],
        "roster.subjects": counts["subjects"],
        "exchange.in_flight": parts.exchange.in_flight,
        "cache.entries": len(parts.exchange.store),
        "cache.bytes": parts.exchange.store.octets,
        "upstream.in_flight": len(parts.upstreams),
        "ledger.grants": len(parts.ledger),
        "ledger.limit": parts.ledger.total,
        "audit.queued": len(parts.queue),
        "audit.limit": parts.queue.size,
        "process.cpu_s": time.process_time(),
        "process.resident": resident(),
    }


def resident() -> int:
    """Octets of memory of this process (proc(5), statm: the second field is resident pages)."""
    return int(os.pread(_statm(), 256, 0).split()[1]) * _PAGE


@cache
def _statm() -> int:
    """Kept open: the numbers are wanted most when no descriptor is left."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


def _tallies(counts: Mapping[tuple[Verdict, Reason], int]) -> tuple[link.Tally, ...]:
    return tuple(link.Tally(str(verdict), str(reason), count) for (verdict, reason), count in counts.items())
