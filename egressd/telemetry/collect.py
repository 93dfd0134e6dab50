"""From what the data path counted and the control side knows to the text that Prometheus scrapes.

Every metric of the table is served at every scrape, with all its labels, so that an alert never waits for a first
event; only what needs the data path's word is left out while it has said none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import accumulate
from typing import Final, NamedTuple

from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.utils import floatToGoString

from egressd.link import Stats, Tally
from egressd.telemetry.process import ProcessUse
from egressd.telemetry.table import COUNTER, HISTOGRAM, METRICS, Metric

__all__ = ["CONTENT_TYPE", "ControlFacts", "HistoryFacts", "Reading", "exposition", "readings"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

Samples = Iterable[tuple[tuple[str, ...], float]]
"""Label values, and the value."""
_number: Final[Callable[[float], str]] = floatToGoString
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


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
    """The Prometheus text format, version 0.0.4: to the octet what prometheus_client writes, in a quarter of its time.

    A scrape comes every few seconds, to a process that is cold by then: what counts is how little code it runs through.
    """
    return "".join(text for metric in METRICS for text in _text(metric, facts)).encode()


def _text(metric: Metric, facts: ControlFacts) -> Iterator[str]:
    if metric.kind == HISTOGRAM:
        if facts.stats is not None and facts.stats.latency_us:
            yield _opening(metric)
            yield from _histogram(metric.name, facts.stats)
        return
    samples = _samples(metric, facts)
    if samples is not None:
        yield _opening(metric)
        for values, value in samples:
            yield f"{_series(metric.name, metric.labels, values)} {_number(value)}\n"


def _histogram(name: str, stats: Stats) -> Iterator[str]:
    bounds = [*(f"{bound / 1e6:g}" for bound in stats.latency_bounds_us), "+Inf"]
    counts = list(accumulate(stats.latency_us))
    for bound, count in zip(bounds, counts, strict=True):
        yield f"{_series(f'{name}_bucket', ('le',), (bound,))} {_number(count)}\n"
    yield f"{name}_count {_number(counts[-1])}\n{name}_sum {_number(stats.latency_sum_us / 1e6)}\n"


@cache
def _opening(metric: Metric) -> str:
    return f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"


@lru_cache(1024)
def _series(name: str, labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    """A time series as it is spelled; there are a few hundred."""
    pairs = ",".join(
        f'{label}="{value.translate(_ESCAPES)}"' for label, value in sorted(zip(labels, values, strict=True))
    )
    return f"{name}{{{pairs}}}" if pairs else name
