"""From what the control side and the data path hold to what the endpoints answer. Values in, values out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from egressd import __version__, model
from egressd.admin import shapes
from egressd.admin.facts import Condition, Facts, unready
from egressd.history import Use
from egressd.link import Stats, Tally
from egressd.model import PortSpan, Verdict, address_text
from egressd.policy import block_text, ports_text
from egressd.schema import Problem

__all__ = ["grant", "moment", "pod", "policy", "selected", "status"]

Raw = tuple[int, str, bytes, Sequence[Sequence[int]], float]
"""A grant as the data path says it: subject, name, address, ports, seconds left."""


def moment(seconds: float) -> str:
    """RFC 3339 in UTC, whole seconds."""
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%SZ}"


# ------------------------------------------------------------------------------------------------------ status


def status(facts: Facts, now: float) -> shapes.Status:
    """How the node fares; from what is known already."""
    stats = facts.stats or Stats(serving=False, refused="", started=0.0)
    reasons = unready(facts, now)
    written, lost = facts.records
    counters, gauges = Counter(stats.counters), Counter(stats.gauges)
    settings = facts.settings
    return shapes.Status(
        version=__version__,
        node=settings.node,
        started=moment(stats.started) if stats.started else "",
        ready=not reasons,
        reasons=[shapes.Unready(reason, detail) for reason, detail in reasons.items()],
        source=shapes.Source(settings.source.kind, not facts.ailments, list(facts.ailments), list(facts.found)),
        inside=shapes.Inside(
            [block_text(block) for block in settings.cluster_cidrs], [*settings.cluster_domains], settings.in_cluster
        ),
        pods=int(gauges["roster.pods"]),
        pods_selected=int(gauges["roster.selected"]),
        subjects=int(gauges["roster.subjects"]),
        policies=shapes.PoliciesStatus(len(facts.policies), len(facts.refused)),
        grants=shapes.GrantsStatus(int(gauges["ledger.grants"]), settings.grants.total, counters["ledger.evicted"]),
        queries=_verdicts(stats.queries),
        flows=_verdicts(stats.flows),
        cache=shapes.Cache(
            int(gauges["cache.entries"]),
            int(gauges["cache.bytes"]),
            counters["exchange.cache_hits"],
            counters["exchange.cache_misses"],
        ),
        upstreams=[
            shapes.Upstream(each.upstream, each.healthy, each.failures, each.rtt_us) for each in stats.upstreams
        ],
        audit=shapes.Records(written, lost + counters["audit.dropped"], int(gauges["audit.queued"])),
        control_restarts=counters["control.restarts"],
    )


def _verdicts(tallies: Iterable[Tally]) -> shapes.Verdicts:
    counts: Counter[str] = Counter()
    for tally in tallies:
        counts[tally.verdict] += tally.count
    return shapes.Verdicts(
        total=counts.total(),
        allowed=counts[Verdict.ALLOWED],
        denied=counts[Verdict.DENIED],
        would_deny=counts[Verdict.WOULD_DENY],
        would_allow=counts[Verdict.WOULD_ALLOW],
    )


# ------------------------------------------------------------------------------------------- pods and policies


def pod(raw: Mapping[str, Any], labels: Mapping[str, str]) -> shapes.Pod:
    """A pod as the data path says it, with its labels, which the data path does not know."""
    return shapes.Pod(
        **{field: raw[field] for field in ("namespace", "name", "uid", "service_account", "workload", "policies")},
        labels=dict(labels),
        addresses=[address_text(address) for address in raw["addresses"]],
        **{field: raw[field] for field in ("enforced", "exempt", "in_flight")},
    )


def selected(facts: Facts) -> Counter[str]:
    """How many pods each policy selects."""
    pairs = {(entry.identity, name) for entry in facts.pods for name in entry.policies}
    return Counter(name for _, name in pairs)


def policy(
    name: str,
    found: model.Policy | None,
    conditions: Iterable[Condition],
    problems: Iterable[Problem],
    pods: int,
    uses: Mapping[tuple[str, str], Use],
) -> shapes.Policy:
    """A policy with its conditions, what is wrong with its latest text, and the rules in force with their use."""
    return shapes.Policy(
        name,
        str(found.mode) if found else "",
        str(found.dns) if found else "",
        str(found.on_revoke) if found else "",
        pods,
        [shapes.Condition(c.type, c.status, c.reason, c.message, moment(c.since)) for c in conditions],
        [shapes.Fault(*problem) for problem in problems],
        [_rule(rule, uses.get((name, rule.name))) for rule in (*found.deny, *found.allow)] if found else [],
    )


def _rule(rule: model.Rule, use: Use | None) -> shapes.Rule:
    peers = [*map(str, rule.patterns), *map(block_text, rule.blocks)]
    used = (use.number, moment(use.last_seen)) if use else (0, "")
    return shapes.Rule(rule.name, str(rule.action), peers, ports_text(rule.ports), rule.allow_private, rule.line, *used)


# ------------------------------------------------------------------------------------------------------ grants


def grant(raw: Raw, policies: Sequence[str]) -> shapes.Grant:
    """A live grant."""
    _, name, address, ports, remaining_s = raw
    spans = tuple(PortSpan(*span) for span in ports)
    return shapes.Grant(name, address_text(address), ports_text(spans), round(remaining_s, 1), list(policies))
