"""The endpoints: one table of what there is, for the router and for the OpenAPI document, and one function for each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from aiohttp import web

from egressd.admin import openapi, page, shapes, views
from egressd.admin import parameters as query
from egressd.admin.audit import NDJSON, serve_audit
from egressd.admin.explain import explain
from egressd.admin.facts import AwayError, Facts, alive, unready
from egressd.admin.history import serve_history, serve_map, serve_stale, workload
from egressd.admin.parameters import Parameter
from egressd.admin.problem import HttpProblem
from egressd.admin.scrape import scrape
from egressd.schema.target import Target
from egressd.telemetry import CONTENT_TYPE, exposition

__all__ = ["ENDPOINTS", "MAX_LISTED", "Endpoint"]

MAX_LISTED: Final = 10_000
"""Entries of one answer, at most."""
MAX_OBSERVATIONS: Final = 50_000
"""Observations of one answer, some 400 octets each; `suggest` asks for a day at a time."""

MAX_NEAR: Final = 5
"""Pods named to somebody who asked for one that is not there."""

Values = dict[str, Any]
Handler = Callable[[web.Request, Facts, Values], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path. All of them are GET, read-only, and served on the unix socket and on TCP alike."""

    path: str
    name: str
    summary: str
    handler: Handler
    answer: type[msgspec.Struct] | str
    """The type that is answered as JSON, or another media type."""
    parameters: tuple[Parameter, ...] = ()
    problems: tuple[int, ...] = ()
    """Status codes of its own problems, beside those that every endpoint has."""


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


# ---------------------------------------------------------------------------------------------- probes and metrics


async def _healthz(_request: web.Request, facts: Facts, _values: Values) -> web.Response:
    if not alive(facts, time.monotonic()):
        raise HttpProblem(503, "the data path has said nothing for half a minute: it hangs")
    return _json(shapes.Health(alive=True))


async def _readyz(_request: web.Request, facts: Facts, _values: Values) -> web.Response:
    reasons = unready(facts, time.monotonic())
    if reasons:
        listed = [{"reason": reason, "detail": detail} for reason, detail in reasons.items()]
        raise HttpProblem(503, "; ".join(f"{reason}: {detail}" for reason, detail in reasons.items()), reasons=listed)
    return _json(shapes.Readiness(ready=True))


async def _metrics(_request: web.Request, facts: Facts, _values: Values) -> web.Response:
    return web.Response(body=exposition(scrape(facts, time.monotonic())), headers={"Content-Type": CONTENT_TYPE})


async def _status(_request: web.Request, facts: Facts, _values: Values) -> web.Response:
    return _json(views.status(facts, time.monotonic()))


async def _page(request: web.Request, _facts: Facts, _values: Values) -> web.Response:
    return await page.serve(request)


async def _openapi(_request: web.Request, _facts: Facts, _values: Values) -> web.Response:
    return _json(openapi.document(ENDPOINTS))


# ------------------------------------------------------------------------------------------------------ listings


async def _pods(_request: web.Request, facts: Facts, values: Values) -> web.Response:
    wanted = values["namespace"]
    found = [
        views.pod(raw, facts.labels(raw["namespace"], raw["name"]))
        async for raw in _pages(facts, "pods", "pods", 0)
        if wanted in {None, raw["namespace"]}
    ]
    found.sort(key=lambda pod: (pod.namespace, pod.name))
    limit = values["limit"]
    return _json(shapes.Pods(found[:limit], len(found) > limit))


async def _policies(_request: web.Request, facts: Facts, values: Values) -> web.Response:
    limit, wanted = values["limit"], values["namespace"]
    uses = await facts.history.uses() if facts.history.on else {}
    in_force, conditions, refused, pods = facts.policies, facts.conditions, facts.refused, views.selected(facts)
    every = sorted({*in_force, *refused, *conditions})
    names = [name for name in every if wanted in {None, name.partition("/")[0]}]

    def made() -> shapes.Policies:
        found = [
            views.policy(name, in_force.get(name), conditions.get(name, ()), refused.get(name, ()), pods[name], uses)
            for name in names[:limit]
        ]
        return shapes.Policies(found, len(names) > limit)

    return await asyncio.to_thread(lambda: _json(made()))  # a thousand policies are a megabyte


async def _grants(_request: web.Request, facts: Facts, values: Values) -> web.Response:
    """Live grants, of one pod's subject or of all; of one name or of all."""
    subjects: dict[int, list[str]] = {}
    only: int | None = None
    async for raw in _pages(facts, "pods", "pods", 0):
        if raw["policies"]:
            subjects[raw["subject"]] = raw["policies"]
        if values["pod"] == (raw["namespace"], raw["name"]):
            only = raw["subject"]
    if values["pod"] is not None and only is None:
        raise _no_pod(facts, values["pod"])
    found: dict[tuple[Any, ...], shapes.Grant] = {}
    async for raw in _grant_pages(facts, values["name"], only):
        if only in {None, raw[0]}:
            found[tuple(raw[:3])] = views.grant(raw, subjects.get(raw[0], []))
        if len(found) > values["limit"]:
            break
    listed = list(found.values())
    return _json(shapes.Grants(listed[: values["limit"]], len(listed) > values["limit"]))


async def _grant_pages(facts: Facts, name: str | None, subject: int | None) -> AsyncIterator[views.Raw]:
    if name is not None:
        for raw in (await _ask(facts, "grants", {"name": name}))["grants"]:
            yield raw
        return
    async for raw in _pages(facts, "grants", "grants", (subject or 0, 0)):
        if subject is not None and raw[0] != subject:
            return
        yield raw


async def _pages(facts: Facts, what: str, key: str, start: Any) -> AsyncIterator[Any]:
    """Everything that the data path lists, a page at a time."""
    while start is not None:
        body = await _ask(facts, what, {"start": start})
        for item in body[key]:
            yield item
        start = body["next"]


async def _ask(facts: Facts, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        body = await facts.ask(what, arguments)
    except AwayError as error:
        raise HttpProblem(504, str(error)) from None
    if "error" in body:
        raise HttpProblem(500, body["error"])
    return body


def _no_pod(facts: Facts, pod: tuple[str, str]) -> HttpProblem:
    detail = (
        f"there is no pod {'/'.join(pod)} on node {facts.settings.node}; finished pods, pods of other nodes and pods "
        "that use the node's network (hostNetwork) are not known here"
    )
    near = sorted({str(entry.identity) for entry in facts.pods if entry.identity.namespace == pod[0]})[:MAX_NEAR]
    if near:
        detail += f"; in its namespace there is {', '.join(near)}"
    return HttpProblem(404, detail, parameter="pod")


# ------------------------------------------------------------------------------------------------------- explain


async def _explain(_request: web.Request, facts: Facts, values: Values) -> web.Response:
    (namespace, name), target = values["pod"], values["to"]
    arguments: dict[str, Any] = {"namespace": namespace, "name": name}
    arguments |= {"to": target.name} if target.name is not None else {"address": target.address}
    told = await _ask(facts, "explain", arguments)
    if not told["known"]:
        raise _no_pod(facts, values["pod"])
    return _json(await asyncio.to_thread(_explained, facts, target, told))


def _explained(facts: Facts, target: Target, told: dict[str, Any]) -> shapes.Explained:
    return explain(facts.settings, facts.policies, target, told)


_LIMIT: Final = query.number("limit", "entries at most", 1000, 1, MAX_LISTED)
_NAMESPACE: Final = query.namespace()

ENDPOINTS: Final[tuple[Endpoint, ...]] = (
    Endpoint("/healthz", "healthz", "Whether the daemon lives", _healthz, shapes.Health, problems=(503,)),
    Endpoint("/readyz", "readyz", "Whether the daemon is ready, else why not", _readyz, shapes.Readiness, (), (503,)),
    Endpoint("/metrics", "metrics", "Metrics for Prometheus", _metrics, "text/plain"),
    Endpoint("/api/v1/status", "status", "How the node fares", _status, shapes.Status),
    Endpoint(
        "/api/v1/pods",
        "pods",
        "Pods of this node and the policies that select them",
        _pods,
        shapes.Pods,
        (_NAMESPACE, _LIMIT),
        (504,),
    ),
    Endpoint(
        "/api/v1/policies",
        "policies",
        "Policies with their conditions, what is wrong with their text, and their rules",
        _policies,
        shapes.Policies,
        (_NAMESPACE, _LIMIT),
    ),
    Endpoint(
        "/api/v1/grants",
        "grants",
        "Live grants: which name opened which address, for how long yet",
        _grants,
        shapes.Grants,
        (query.pod(), query.name(), _LIMIT),
        (404, 504),
    ),
    Endpoint(
        "/api/v1/explain",
        "explain",
        "Whether a pod may reach a destination, step by step",
        _explain,
        shapes.Explained,
        (query.pod(required=True), query.destination()),
        (404, 504),
    ),
    Endpoint(
        "/api/v1/audit",
        "audit",
        "Audit records, oldest first, one JSON object a line; with follow=1 those to come as well",
        serve_audit,
        NDJSON,
        (
            query.pod(),
            query.pattern(),
            query.verdict(),
            query.choice("event", "one kind of record", ("dns", "flow", "policy", "audit")),
            query.since(),
            query.number("limit", "the latest so many of those that were written", 1000, 0, MAX_LISTED),
            query.flag("follow", "1: go on with what comes, until the client hangs up"),
        ),
        (503,),
    ),
    Endpoint(
        "/api/v1/history",
        "history",
        "What workloads asked for and reached, summed up by day",
        serve_history,
        shapes.History,
        (
            query.since(),
            query.since("until", "up to when"),
            _NAMESPACE,
            workload(),
            query.pattern(),
            query.verdict(),
            query.choice("event", "one kind of observation", ("dns", "flow")),
            query.number("limit", "observations at most", 1000, 1, MAX_OBSERVATIONS),
        ),
        (503,),
    ),
    Endpoint(
        "/api/v1/map",
        "map",
        "Which workload asked for and reached which names, since a day ago unless `since` is given; by hours, but by "
        "days where that is longer ago, or a midnight (UTC)",
        serve_map,
        shapes.Map,
        (query.since(), _NAMESPACE, query.number("limit", "edges at most", MAX_LISTED, 1, MAX_LISTED)),
        (503,),
    ),
    Endpoint(
        "/api/v1/stale",
        "stale",
        "Rules, patterns and policies that nothing has used; for 30 days unless `since` says otherwise",
        serve_stale,
        shapes.Stale,
        (query.since(), _NAMESPACE),
        (503,),
    ),
    Endpoint("/api/v1/openapi.json", "openapi", "This description", _openapi, "application/json"),
    Endpoint("/", "page", "The web page; its parts are under /static", _page, "text/html"),
)
