"""From what the data path counted and the control side knows to the text that Prometheus scrapes.

Every metric of the table is served at every scrape, with all its labels, so that an alert never waits for a first
event; only what needs the data path's word is left out while it has said none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from egressd.link import Stats, Tally
from egressd.telemetry.process import ProcessUse
from egressd.telemetry.table import COUNTER, HISTOGRAM, METRICS, Metric

__all__ = ["CONTENT_TYPE", "ControlFacts", "HistoryFacts", "Reading", "exposition", "readings"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Label values, and the value."""
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


class HistoryFacts(NamedTuple):
    """How history fares."""

    rows: int = 0
    octets: int = 0
    records: int = 0
    folded: int = 0
    dropped: int = 0
    failures: int = 0


@dataclass(frozen=True, slots=True)
class ControlFacts:
    """What the control side adds to the data path's own counters."""

    version: str
    stats: Stats | None = None
    """What the data path said last."""
    stats_age_s: float = 0.0
    unready: Mapping[str, bool] = field(default_factory=dict)
    """Every reason that there can be for /readyz to say no, and whether it holds now."""
    data_path_up: bool = False
    source_up: bool = True
    policies: Mapping[str, int] = field(default_factory=dict)
    """By state."""
    processes: Mapping[str, ProcessUse] = field(default_factory=dict)
    records_written: int = 0
    records_dropped: Mapping[str, int] = field(default_factory=dict)
    """By where they were lost."""
    requests: Mapping[int, int] = field(default_factory=dict)
    """Answers of the admin API by HTTP status."""
    followers: int = 0
    exported: int = 0
    """Audit records that a collector has taken."""
    export_dropped: Mapping[str, int] = field(default_factory=dict)
    """By why."""
    export_failures: int = 0
    """Requests that a collector did not take."""
    history: HistoryFacts = HistoryFacts()


def _tallies(tallies: Iterable[Tally]) -> Samples:
    return sorted(((tally.verdict, tally.reason), tally.count) for tally in tallies)


def _plain(value: float) -> Samples:
    return [((), value)]


_WORKED_OUT: Final[dict[str, Callable[[ControlFacts], Samples]]] = {
    "egressd_build_info": lambda facts: [((facts.version,), 1)],
    "egressd_ready": lambda facts: _plain(not any(facts.unready.values())),
    "egressd_unready": lambda facts: [((reason,), holds) for reason, holds in facts.unready.items()],
    "egressd_data_path_up": lambda facts: _plain(facts.data_path_up),
    "egressd_start_time_seconds": lambda facts: [((who,), use.started) for who, use in facts.processes.items()],
    "egressd_cpu_seconds_total": lambda facts: [((who,), use.cpu_s) for who, use in facts.processes.items()],
    "egressd_resident_memory_bytes": lambda facts: [((who,), use.resident) for who, use in facts.processes.items()],
    "egressd_source_up": lambda facts: _plain(facts.source_up),
    "egressd_policies": lambda facts: [((state,), count) for state, count in facts.policies.items()],
    "egressd_audit_records_total": lambda facts: _plain(facts.records_written),
    "egressd_audit_dropped_total": lambda facts: [((where,), count) for where, count in facts.records_dropped.items()],
    "egressd_export_records_total": lambda facts: _plain(facts.exported),
    "egressd_export_dropped_total": lambda facts: [((why,), count) for why, count in facts.export_dropped.items()],
    "egressd_export_failures_total": lambda facts: _plain(facts.export_failures),
    "egressd_history_rows": lambda facts: _plain(facts.history.rows),
    "egressd_history_bytes": lambda facts: _plain(facts.history.octets),
    "egressd_history_records_total": lambda facts: _plain(facts.history.records),
    "egressd_history_folded_total": lambda facts: _plain(facts.history.folded),
    "egressd_history_dropped_total": lambda facts: _plain(facts.history.dropped),
    "egressd_history_failures_total": lambda facts: _plain(facts.history.failures),
    "egressd_admin_requests_total": lambda facts: [((str(code),), n) for code, n in sorted(facts.requests.items())],
    "egressd_admin_followers": lambda facts: _plain(facts.followers),
}

_OF_STATS: Final[dict[str, Callable[[Stats], Samples]]] = {
    "egressd_data_path_serving": lambda stats: _plain(stats.serving),
    "egressd_dns_queries_total": lambda stats: _tallies(stats.queries),
    "egressd_flow_events_total": lambda stats: _tallies(stats.flows),
    "egressd_kernel_consistent": lambda stats: _plain(not stats.refused),
    "egressd_upstream_healthy": lambda stats: [((str(n),), u.healthy) for n, u in enumerate(stats.upstreams)],
    "egressd_upstream_failures": lambda stats: [((str(n),), u.failures) for n, u in enumerate(stats.upstreams)],
    "egressd_upstream_rtt_seconds": lambda stats: [((str(n),), u.rtt_us / 1e6) for n, u in enumerate(stats.upstreams)],
}


class _Once(Collector):
    """All metrics, from one set of facts."""

    def __init__(self, facts: ControlFacts) -> None:
        self._facts = facts

    def collect(self) -> Iterator[Family]:
        for metric in METRICS:
            family = _family(metric, self._facts)
            if family is not None:
                yield family


def _family(metric: Metric, facts: ControlFacts) -> Family | None:
    if metric.kind == HISTOGRAM:
        return _histogram(metric, facts.stats) if facts.stats else None
    made: CounterMetricFamily | GaugeMetricFamily = (
        CounterMetricFamily if metric.kind == COUNTER else GaugeMetricFamily
    )(metric.name, metric.help, labels=metric.labels)
    samples = _samples(metric, facts)
    if samples is None:
        return None
    for labels, value in samples:
        made.add_metric(labels, value)
    return made


def _samples(metric: Metric, facts: ControlFacts) -> Samples | None:
    """The samples of a metric; None where the data path has yet to speak."""
    if metric.name in _WORKED_OUT:
        return _WORKED_OUT[metric.name](facts)
    stats = facts.stats
    if stats is None:
        return None
    if metric.name in _OF_STATS:
        return _OF_STATS[metric.name](stats)
    known = stats.counters if metric.kind == COUNTER else stats.gauges
    return [(part.labels, known.get(part.key, 0)) for part in metric.parts]


def _histogram(metric: Metric, stats: Stats) -> HistogramMetricFamily | None:
    if not stats.latency_us:
        return None
    bounds = [*(f"{bound / 1e6:g}" for bound in stats.latency_bounds_us), "+Inf"]
    buckets = list(zip(bounds, map(float, accumulate(stats.latency_us)), strict=True))
    made = HistogramMetricFamily(metric.name, metric.help)
    made.add_metric((), buckets, stats.latency_sum_us / 1e6)
    return made


# ------------------------------------------------------------------------------------------ for other formats


class Reading(NamedTuple):
    """One metric as plain values, for formats other than Prometheus' own."""

    metric: Metric
    samples: tuple[tuple[tuple[str, ...], float, float], ...]
    """Label values, value, and since when it was counted (seconds since the epoch)."""
    buckets: tuple[int, ...] = ()
    """A histogram's counts, each without those before it; the last one is for what is above all bounds."""
    bounds: tuple[float, ...] = ()
    """Inclusive upper bounds, seconds."""


def readings(facts: ControlFacts) -> Iterator[Reading]:
    """What `exposition` serves, as values. A histogram's one sample holds its sum."""
    for metric in METRICS:
        stats = facts.stats
        if metric.kind == HISTOGRAM:
            if stats is not None and stats.latency_us:
                bounds = tuple(bound / 1e6 for bound in stats.latency_bounds_us)
                total = (((), stats.latency_sum_us / 1e6, stats.started),)
                yield Reading(metric, total, stats.latency_us, bounds)
            continue
        samples = _samples(metric, facts)
        if samples is not None:
            found = tuple((labels, value, _since(metric, labels, facts)) for labels, value in samples)
            yield Reading(metric, found)


def _since(metric: Metric, labels: tuple[str, ...], facts: ControlFacts) -> float:
    """When the process began that counts it."""
    if metric.name in _WORKED_OUT:
        use = facts.processes.get(labels[0] if metric.labels == ("process",) else "control")
        return use.started if use is not None else 0.0
    return facts.stats.started if facts.stats is not None else 0.0


# ---------------------------------------------------------------------------------------------- for Prometheus


def exposition(facts: ControlFacts) -> bytes:
    """The Prometheus text format, version 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(facts))
    return generate_latest(registry)
