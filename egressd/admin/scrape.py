"""What a scrape is made of: the data path's last word and what the control side knows; nobody is asked."""

from __future__ import annotations

from egressd import __version__
from egressd.admin.facts import REASONS, Facts, unready
from egressd.link import Stats
from egressd.telemetry import ControlFacts, HistoryFacts, ProcessUse, own_use

__all__ = ["scrape"]


def scrape(facts: Facts, now: float) -> ControlFacts:
    """Everything a scrape serves."""
    reasons = unready(facts, now)
    stats = facts.stats
    written, lost = facts.records
    return ControlFacts(
        version=__version__,
        stats=stats,
        unready={reason: reason in reasons for reason in REASONS},
        data_path_up="data-path-away" not in reasons,
        source_up=not facts.ailments,
        policies={"in-force": len(facts.policies), "refused": len(facts.refused)},
        processes=_processes(stats),
        records_written=written,
        records_dropped={
            "queue-full": stats.counters.get("audit.dropped", 0) if stats else 0,
            "not-written": lost,
            "slow-reader": facts.feed.dropped,
        },
        requests=facts.requests,
        followers=len(facts.feed),
        exported=facts.exports.sent,
        export_dropped=facts.exports.dropped,
        export_failures=facts.exports.failures,
        history=_history(facts),
    )


def _history(facts: Facts) -> HistoryFacts:
    counts = facts.history.counts
    return HistoryFacts(counts.rows, counts.octets, counts.taken, counts.folded, counts.dropped, counts.failures)


def _processes(stats: Stats | None) -> dict[str, ProcessUse]:
    """The two processes; the data path tells of itself."""
    found = {"control": own_use()}
    if stats is not None:
        gauges = stats.gauges
        use = ProcessUse(gauges.get("process.cpu_s", 0.0), int(gauges.get("process.resident", 0)), stats.started)
        found["data-path"] = use
    return found
