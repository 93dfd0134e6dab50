"""The table of metrics and what a scrape serves: names, labels, and values that parts of the daemon really count."""

from __future__ import annotations

import asyncio
import re

from prometheus_client.parser import text_string_to_metric_families

from egressd.exchange.tally import BOUNDS_US, Tally
from egressd.link import Stats, UpstreamHealth
from egressd.link import Tally as Counted
from egressd.listen import Listener
from egressd.model import Decision, Reason, Verdict
from egressd.settings import Settings, Upstream
from egressd.telemetry import METRICS, ControlFacts, HistoryFacts, ProcessUse, exposition, own_use, sample_names
from egressd.telemetry.table import COUNTER, GAUGE, HISTOGRAM
from egressd.upstream import Upstreams

REASONS = {"source-away": True, "not-synced": False}


def facts(stats: Stats | None) -> ControlFacts:
    """Everything that the control side can say."""
    use = ProcessUse(1.5, 4096, 1_700_000_000.0)
    return ControlFacts(
        "0.1.0",
        stats,
        unready=REASONS,
        data_path_up=True,
        source_up=False,
        policies={"in-force": 2, "refused": 1},
        processes={"control": use},
        records_written=7,
        records_dropped={"queue-full": 3},
        requests={200: 5},
        followers=1,
        exported=6,
        export_dropped={"queue-full": 2},
        export_failures=1,
        history=HistoryFacts(9, 4096, 50, 3, 2, 1),
    )


def full() -> Stats:
    """A word of the data path with something in every metric."""
    keys = [part.key for metric in METRICS for part in metric.parts]
    return Stats(
        serving=True,
        refused="",
        started=1_700_000_000.0,
        queries=(Counted("denied", "no-rule", 3), Counted("allowed", "rule", 4)),
        flows=(Counted("denied", "no-rule", 2),),
        latency_us=(1, 2, 0, 4),
        latency_bounds_us=(50, 100, 250),
        latency_sum_us=2_000_000,
        counters=dict.fromkeys(keys, 11),
        gauges=dict.fromkeys(keys, 12.0),
        upstreams=(UpstreamHealth("udp://192.0.2.53:53", True, 0), UpstreamHealth("udp://192.0.2.54:53", False, 4)),
    )


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of a scrape, as the Prometheus parser reads it."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_names_and_units() -> None:
    """Names begin with egressd_, counters end in _total, nothing else does, and no name is there twice."""
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch("egressd_[a-z]+(_[a-z]+)*", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == COUNTER)
        assert metric.kind in {COUNTER, GAUGE, HISTOGRAM}
        assert metric.help.endswith(".")
        assert not re.search("_(ms|us|milliseconds|kib|mb)(_|$)", metric.name)


def test_labels_are_bounded() -> None:
    """No label could hold a name, an address or a pod."""
    bounded = {"version", "reason", "process", "state", "verdict", "transport", "event", "result", "upstream"}
    bounded |= {"operation", "code"}
    for metric in METRICS:
        assert set(metric.labels) <= bounded, metric.name
        assert all(len(part.labels) == len(metric.labels) for part in metric.parts), metric.name


def test_every_metric_is_served() -> None:
    """A scrape of a node with something in everything has all series of the table and no other."""
    served = {name for name, _ in samples(exposition(facts(full())))}
    assert served == set(sample_names())


def test_without_the_data_path() -> None:
    """Before its first word, what only the data path knows is left out instead of being zero."""
    served = samples(exposition(facts(None)))
    names = {name for name, _ in served}
    assert "egressd_dns_queries_total" not in names
    assert "egressd_cache_entries" not in names
    assert served["egressd_unready", frozenset({("reason", "source-away")})] == 1
    assert served["egressd_ready", frozenset()] == 0


def test_values() -> None:
    """Counters, gauges, tallies and the histogram carry what was said."""
    served = samples(exposition(facts(full())))
    assert served["egressd_dns_queries_total", frozenset({("verdict", "denied"), ("reason", "no-rule")})] == 3
    assert served["egressd_upstream_healthy", frozenset({("upstream", "1")})] == 0
    assert served["egressd_upstream_events_total", frozenset({("event", "timeout")})] == 11
    assert served["egressd_dns_query_duration_seconds_bucket", frozenset({("le", "0.0001")})] == 3
    assert served["egressd_dns_query_duration_seconds_bucket", frozenset({("le", "+Inf")})] == 7
    assert served["egressd_dns_query_duration_seconds_count", frozenset()] == 7
    assert served["egressd_dns_query_duration_seconds_sum", frozenset()] == 2.0
    assert served["egressd_resident_memory_bytes", frozenset({("process", "control")})] == 4096


def test_counters_of_parts_are_counted() -> None:
    """Every counter of listener and upstreams has its place in the table, under the name that the part gives it."""
    loop = asyncio.new_event_loop()
    upstreams = Upstreams(loop, (Upstream(bytes((192, 0, 2, 53))),), lambda _: None)
    listener = Listener(loop, Settings(), [], lambda *_: None)
    counted = {f"upstream.{name}" for name in upstreams.counters} | {f"listen.{name}" for name in listener.counters}
    upstreams.close()
    loop.close()
    table = {
        part.key for metric in METRICS for part in metric.parts if part.key.split(".")[0] in {"upstream", "listen"}
    }
    assert table - {"upstream.in_flight"} == counted


def test_tally() -> None:
    """Every query is in one bucket and under one verdict; the bounds are inclusive."""
    tally = Tally()
    allowed, denied = Decision(Verdict.ALLOWED, Reason.RULE), Decision(Verdict.DENIED, Reason.NO_RULE)
    for age_s in (0.0, 0.000_05, 0.000_051, 4.9, 99.0):
        tally.add(allowed, age_s)
    tally.add(denied, 0.001)
    assert tally.queries == {(Verdict.ALLOWED, Reason.RULE): 5, (Verdict.DENIED, Reason.NO_RULE): 1}
    assert sum(tally.latency_us) == 6
    assert tally.latency_us[0] == 2
    assert tally.latency_us[-1] == 1
    assert len(tally.latency_us) == len(BOUNDS_US) + 1


def test_own_use() -> None:
    """A Python process has used some CPU and some megabytes."""
    use = own_use()
    assert use.cpu_s > 0
    assert use.resident > 1 << 20
