"""Every metric of egressd, in one table: what serves `/metrics`, the dashboard, the alert rules and the documentation.

Names begin with `egressd_`, units are base units, counters end in `_total`. The values of every label come from a
fixed set, or count what the settings list (`upstream`); a name, an address or a pod is never a label.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["COUNTER", "GAUGE", "HISTOGRAM", "METRICS", "Metric", "Part", "sample_names"]

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"


class Part(NamedTuple):
    """Where one sample comes from: a counter or gauge of `link.Stats`, with the label values that it stands for."""

    key: str
    labels: tuple[str, ...] = ()


class Metric(NamedTuple):
    """One metric. `name` is as it is scraped. Without `parts` it is worked out, by `collect` or by its sources."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()


def _parts(*pairs: tuple[str, str]) -> tuple[Part, ...]:
    return tuple(Part(key, (label,)) for key, label in pairs)


METRICS: Final[tuple[Metric, ...]] = (
    # ---------------------------------------------------------------------------------------------- the daemon
    Metric("egressd_build_info", GAUGE, "Always 1; the version of egressd.", ("version",)),
    Metric("egressd_ready", GAUGE, "Whether /readyz says yes."),
    Metric("egressd_unready", GAUGE, "1 for each reason why /readyz says no.", ("reason",)),
    Metric("egressd_data_path_up", GAUGE, "Whether the data path has reported within the last 5 seconds."),
    Metric("egressd_data_path_serving", GAUGE, "Whether queries are answered and the table is in the kernel."),
    Metric("egressd_start_time_seconds", GAUGE, "When the process started, since the epoch.", ("process",)),
    Metric("egressd_cpu_seconds_total", COUNTER, "CPU time, user and system.", ("process",)),
    Metric("egressd_resident_memory_bytes", GAUGE, "Resident memory.", ("process",)),
    Metric(
        "egressd_control_restarts_total",
        COUNTER,
        "Times that the control side had to be started again.",
        parts=(Part("control.restarts"),),
    ),
    Metric("egressd_source_up", GAUGE, "Whether the source of objects (folder, API server) can be read."),
    # -------------------------------------------------------------------------------------- pods and policies
    Metric("egressd_pods", GAUGE, "Pods of this node.", parts=(Part("roster.pods"),)),
    Metric("egressd_pods_selected", GAUGE, "Pods that some policy selects.", parts=(Part("roster.selected"),)),
    Metric(
        "egressd_subjects", GAUGE, "Distinct sets of policies that select pods here.", parts=(Part("roster.subjects"),)
    ),
    Metric("egressd_policies", GAUGE, "Policies: those in force, and those whose latest text is refused.", ("state",)),
    # ------------------------------------------------------------------------------------------------ queries
    Metric(
        "egressd_dns_queries_total",
        COUNTER,
        "Queries that ended, by verdict and reason.",
        ("verdict", "reason"),
    ),
    Metric("egressd_dns_query_duration_seconds", HISTOGRAM, "From a query's arrival to its answer."),
    Metric(
        "egressd_dns_received_total",
        COUNTER,
        "Queries received, by transport.",
        ("transport",),
        _parts(("listen.udp_queries", "udp"), ("listen.tcp_queries", "tcp")),
    ),
    Metric(
        "egressd_dns_socket_errors_total",
        COUNTER,
        "Queries that could not be read and answers that could not be sent.",
        ("event",),
        _parts(
            ("listen.udp_receive_errors", "udp-receive"),
            ("listen.udp_send_errors", "udp-send"),
            ("listen.tcp_send_errors", "tcp-send"),
        ),
    ),
    Metric(
        "egressd_dns_tcp_connections_total",
        COUNTER,
        "Connections of pods accepted.",
        parts=(Part("listen.tcp_connections"),),
    ),
    Metric(
        "egressd_dns_tcp_closed_total",
        COUNTER,
        "Connections of pods refused or closed by egressd.",
        ("event",),
        _parts(
            ("listen.tcp_over_budget", "over-budget"),
            ("listen.tcp_exhausted", "out-of-descriptors"),
            ("listen.tcp_idle", "idle"),
            ("listen.tcp_slow", "slow"),
            ("listen.tcp_malformed", "malformed"),
        ),
    ),
    Metric("egressd_dns_in_flight", GAUGE, "Queries that wait for an upstream.", parts=(Part("exchange.in_flight"),)),
    Metric(
        "egressd_dns_aggregated_denials_total",
        COUNTER,
        "Denied queries without a record of their own.",
        parts=(Part("exchange.aggregated"),),
    ),
    Metric(
        "egressd_dns_flood_dropped_total",
        COUNTER,
        "Queries that the kernel dropped unread, of pods far past their budget.",
        parts=(Part("flows.flooded"),),
    ),
    Metric(
        "egressd_dns_loops_total",
        COUNTER,
        "Own questions that came back: DNS pods that are not exempt.",
        parts=(Part("exchange.loops"),),
    ),
    Metric(
        "egressd_dns_stale_answers_total",
        COUNTER,
        "Expired answers given while no upstream answered.",
        parts=(Part("exchange.stale_answers"),),
    ),
    # -------------------------------------------------------------------------------------------------- cache
    Metric(
        "egressd_cache_lookups_total",
        COUNTER,
        "Look-ups in the cache.",
        ("result",),
        _parts(("exchange.cache_hits", "hit"), ("exchange.cache_misses", "miss")),
    ),
    Metric(
        "egressd_cache_refreshes_total",
        COUNTER,
        "Popular answers asked for anew before they expired.",
        parts=(Part("exchange.cache_refreshes"),),
    ),
    Metric("egressd_cache_entries", GAUGE, "Answers in the cache.", parts=(Part("cache.entries"),)),
    Metric("egressd_cache_bytes", GAUGE, "Octets of the answers in the cache.", parts=(Part("cache.bytes"),)),
    # ---------------------------------------------------------------------------------------------- upstreams
    Metric(
        "egressd_upstream_events_total",
        COUNTER,
        "What happened between egressd and its upstreams.",
        ("event",),
        _parts(
            ("upstream.asked", "asked"),
            ("upstream.shared", "shared"),
            ("upstream.sent", "sent"),
            ("upstream.answered", "answered"),
            ("upstream.failed", "failed"),
            ("upstream.timeouts", "timeout"),
            ("upstream.unreachable", "unreachable"),
            ("upstream.servfail", "servfail"),
            ("upstream.truncated", "truncated"),
            ("upstream.no_edns", "no-edns"),
            ("upstream.forged", "forged"),
            ("upstream.malformed", "malformed"),
            ("upstream.sockets", "socket"),
            ("upstream.connections", "connection"),
            ("upstream.distrusted", "distrusted"),
            ("upstream.hung_up", "hung-up"),
            ("upstream.probes", "probe"),
        ),
    ),
    Metric("egressd_upstream_in_flight", GAUGE, "Questions asked and open.", parts=(Part("upstream.in_flight"),)),
    Metric("egressd_upstream_healthy", GAUGE, "Whether an upstream answers; by its place in settings.", ("upstream",)),
    Metric("egressd_upstream_failures", GAUGE, "Failures in a row since an upstream's last answer.", ("upstream",)),
    Metric("egressd_upstream_rtt_seconds", GAUGE, "Smoothed time to an upstream's answers.", ("upstream",)),
    # ------------------------------------------------------------------------------------- grants and kernel
    Metric(
        "egressd_grants",
        GAUGE,
        "Grants alive, those remembered for unselected pods included.",
        parts=(Part("ledger.grants"),),
    ),
    Metric(
        "egressd_grants_limit", GAUGE, "The most grants there may be (grants.total).", parts=(Part("ledger.limit"),)
    ),
    Metric(
        "egressd_grants_evicted_total",
        COUNTER,
        "Elements that a bound pushed out while they lived.",
        parts=(Part("ledger.evicted"),),
    ),
    Metric(
        "egressd_grants_kept_live_total",
        COUNTER,
        "Times that a bound passed over a grant because a connection to its address was alive.",
        parts=(Part("ledger.kept_live"),),
    ),
    Metric(
        "egressd_kernel_refusals_total",
        COUNTER,
        "Transactions that the kernel refused: the grants of an answer, a change of the table, the heartbeat.",
        ("operation",),
        _parts(("exchange.program_failed", "grant"), ("kernel.change", "change"), ("kernel.heartbeat", "heartbeat")),
    ),
    Metric(
        "egressd_kernel_mended_total",
        COUNTER,
        "Times that the table, or a routing rule or route, was put right after another program changed it.",
        ("operation",),
        _parts(("kernel.table_mended", "table"), ("kernel.routes_mended", "routes")),
    ),
    Metric(
        "egressd_kernel_cut_connections_total",
        COUNTER,
        "Live connections ended because they lost their sanction.",
        parts=(Part("kernel.cut"),),
    ),
    Metric(
        "egressd_kernel_put_back_connections_total",
        COUNTER,
        "Live connections put back that the kernel had forgotten (conntrack -F).",
        parts=(Part("kernel.put_back"),),
    ),
    Metric("egressd_kernel_consistent", GAUGE, "Whether the kernel's table is what it should be."),
    # ---------------------------------------------------------------------------------------- flows and audit
    Metric(
        "egressd_flow_events_total",
        COUNTER,
        "Flows that the kernel reported, at most one a minute of each, by verdict and reason.",
        ("verdict", "reason"),
    ),
    Metric(
        "egressd_flow_events_lost_total",
        COUNTER,
        "Reports of the kernel that did not reach egressd.",
        parts=(Part("nflog.lost"),),
    ),
    Metric(
        "egressd_flow_packets_unreported_total",
        COUNTER,
        "Packets of new flows that no record tells of: past the kernel's bound of reports.",
        parts=(Part("flows.unreported"),),
    ),
    Metric(
        "egressd_flow_unfollowed_total",
        COUNTER,
        "Flows of which only the first packet of a minute is recorded: too many at once.",
        parts=(Part("flows.unfollowed"),),
    ),
    Metric("egressd_audit_queue_records", GAUGE, "Audit records that wait.", parts=(Part("audit.queued"),)),
    Metric("egressd_audit_queue_limit", GAUGE, "The most that may wait (audit.queue).", parts=(Part("audit.limit"),)),
    Metric("egressd_audit_records_total", COUNTER, "Audit records written."),
    Metric(
        "egressd_audit_dropped_total",
        COUNTER,
        "Audit records lost: to a full queue, to an output that failed, to a reader who was too slow.",
        ("event",),
    ),
    # ------------------------------------------------------------------------------------------- export (OTLP)
    Metric("egressd_export_records_total", COUNTER, "Audit records that the OTLP collector has taken."),
    Metric(
        "egressd_export_dropped_total",
        COUNTER,
        "Audit records not exported: no room to wait, refused by the collector, or given up after many tries.",
        ("reason",),
    ),
    Metric("egressd_export_failures_total", COUNTER, "Export requests that the OTLP collector did not take."),
    # ------------------------------------------------------------------------------------------------ history
    Metric("egressd_history_rows", GAUGE, "Rows in the history: one for all that is alike on one day."),
    Metric("egressd_history_bytes", GAUGE, "Size of the history on the disk."),
    Metric("egressd_history_records_total", COUNTER, "Records that went into the history."),
    Metric(
        "egressd_history_folded_total",
        COUNTER,
        "Sums kept without their very name or port, because their workload had too many of them that day.",
    ),
    Metric("egressd_history_dropped_total", COUNTER, "Records for which the history had no room."),
    Metric("egressd_history_failures_total", COUNTER, "Times that the history's file could not be used."),
    # ---------------------------------------------------------------------------------------------- admin API
    Metric("egressd_admin_requests_total", COUNTER, "Requests answered by the admin API.", ("code",)),
    Metric("egressd_admin_followers", GAUGE, "Readers that follow the audit records now."),
)
"""In the order in which they are served."""


def sample_names() -> tuple[str, ...]:
    """The name of every time series as a query spells it: a histogram has three."""
    endings = {HISTOGRAM: ("_bucket", "_sum", "_count")}
    return tuple(metric.name + ending for metric in METRICS for ending in endings.get(metric.kind, ("",)))
