"""`/api/v1/history`, `/api/v1/map` and `/api/v1/stale`: what was seen, who talked to whom, what nobody uses.

The control side's history answers, in a thread and within its own few seconds; here it is only spelled.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec
from aiohttp import web

from egressd.admin import shapes
from egressd.admin.facts import Facts
from egressd.admin.parameters import Parameter
from egressd.admin.problem import HttpProblem
from egressd.admin.views import moment, selected
from egressd.authoring.stale import DECIDED, Finding, Sighting, Stale, Window
from egressd.history import MANY_PORTS, Edge, Filter, Keeper, Observation, Span, Traffic
from egressd.names import Name
from egressd.policy import is_expansion
from egressd.schema.problem import shown

__all__ = ["serve_history", "serve_map", "serve_stale", "workload"]

MAP_S: Final = 86_400
"""Seconds that the map looks back unless it is told otherwise."""
STALE_S: Final = 30 * 86_400
"""Seconds after which what was not used is stale, unless it is told otherwise."""
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
_WORKLOAD: Final = re.compile(r"[A-Za-z0-9]{1,63}/[a-z0-9.-]{1,253}\Z")


def workload() -> Parameter:
    """A workload as KIND/NAME."""

    def read_workload(text: str) -> str:
        if not _WORKLOAD.match(text):
            raise ValueError(f"{shown(text)} is no workload; write KIND/NAME, as in Deployment/web")
        return text

    schema = {"type": "string", "pattern": f"^{_WORKLOAD.pattern.removesuffix(chr(92) + 'Z')}$"}
    return Parameter("workload", "a workload, as KIND/NAME", read_workload, schema)


def _kept(facts: Facts) -> Keeper:
    if not facts.history.on:
        raise HttpProblem(503, "history is off; set history.file and start egressd again, or send it SIGHUP")
    return facts.history


async def _json(make: Any, *arguments: Any) -> web.Response:
    """What `make` returns, as JSON; made in a thread, since there may be much of it."""
    body = await asyncio.to_thread(lambda: msgspec.json.encode(make(*arguments)))
    return web.Response(body=body, content_type="application/json")


# ------------------------------------------------------------------------------------------ history and map


async def serve_history(_request: web.Request, facts: Facts, values: dict[str, Any]) -> web.Response:
    """Observations."""
    fields = ("until", "namespace", "workload", "name", "verdict", "event")
    wanted = Filter(values["since"] or 0.0, **{field: values[field] for field in fields})
    found, truncated = await _kept(facts).observations(wanted, values["limit"])
    return await _json(lambda: shapes.History([_observation(one) for one in found], truncated))


async def serve_map(_request: web.Request, facts: Facts, values: dict[str, Any]) -> web.Response:
    """Edges."""
    since = time.time() - MAP_S if values["since"] is None else values["since"]
    wanted = Filter(since, namespace=values["namespace"])
    found, truncated = await _kept(facts).edges(wanted, values["limit"])
    domains = facts.settings.cluster_domains

    def made() -> shapes.Map:
        noise = expansions(found, domains)
        return shapes.Map(moment(since), truncated, [_edge(*one, one[0] in noise) for one in sorted_edges(found)])

    return await _json(made)


def expansions(found: Mapping[Edge, Traffic], domains: Collection[Name]) -> set[Edge]:
    """Edges that are steps of a search list, though somebody was asked: names that do not exist and begin with another
    name of the same workload."""
    asked: dict[tuple[str, str], set[str]] = {}
    for edge in found:
        asked.setdefault((edge.namespace, edge.workload), set()).add(edge.name)
    return {
        edge
        for edge, traffic in found.items()
        if traffic.absent == traffic.queries > 0 == traffic.flows
        and is_expansion(edge.name, asked[edge.namespace, edge.workload], domains)
    }


def sorted_edges(found: Mapping[Edge, Traffic]) -> list[tuple[Edge, Traffic]]:
    """The busiest first."""
    return sorted(found.items(), key=lambda one: (-one[1].queries - one[1].flows, one[0]))


def _observation(one: Observation) -> shapes.Observation:
    key, sums = one
    return shapes.Observation(
        day=f"{_EPOCH + timedelta(days=key.day):%Y-%m-%d}",
        folded=_folded(key.name),
        first_seen=moment(sums.first_seen),
        last_seen=moment(sums.last_seen),
        count=sums.number,
        packets=sums.packets,
        **{field: value for field, value in key._asdict().items() if field != "day"},
    )


def _edge(edge: Edge, traffic: Traffic, noise: bool) -> shapes.Edge:
    return shapes.Edge(
        folded=_folded(edge.name),
        queries=traffic.queries,
        flows=traffic.flows,
        packets=traffic.packets,
        ports=[_port(*one) for one in sorted(traffic.ports)],
        first_seen=moment(traffic.first_seen),
        last_seen=moment(traffic.last_seen),
        **edge._asdict() | {"search": edge.search or noise},
    )


def _folded(name: str) -> bool:
    return name.startswith("*") or "/" in name


def _port(port: int, protocol: str) -> str:
    """As a policy spells it."""
    return f"{port if port > MANY_PORTS else '*'}/{protocol.upper()}"


# ---------------------------------------------------------------------------------------------------- stale


async def serve_stale(_request: web.Request, facts: Facts, values: dict[str, Any]) -> web.Response:
    """What nothing has used."""
    history = _kept(facts)
    since = time.time() - STALE_S if values["since"] is None else values["since"]
    wanted = values["namespace"]
    policies = [policy for policy in facts.policies.values() if wanted in {None, policy.namespace}]
    stale = await asyncio.to_thread(Stale, policies, facts.settings.policy_namespace)
    span = await history.survey(since, DECIDED, lambda one: stale.see(Sighting(*one)))
    if span is None:
        raise HttpProblem(503, "another egressd holds the history; ask again")
    uses = await history.uses()
    pods = selected(facts)
    return await _json(_stale, facts.settings.node, stale, _window(since, span, uses, pods))


def _window(since: float, span: Span, uses: Mapping[tuple[str, str], Any], pods: Mapping[str, int]) -> Window:
    last_used = {rule: use.last_seen for rule, use in uses.items()}
    return Window(since, span.since, span.flows, span.peers, last_used, pods)


def _stale(node: str, stale: Stale, window: Window) -> shapes.Stale:
    found = [_unused(finding) for finding in stale.findings(window)]
    return shapes.Stale(node, moment(window.since), moment(window.observed), found)


def _unused(finding: Finding) -> shapes.Unused:
    last = moment(finding.last_used) if finding.last_used else ""
    return shapes.Unused(finding.policy, finding.rule, finding.pattern, str(finding.state), last, finding.note)
