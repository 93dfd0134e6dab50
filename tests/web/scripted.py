"""A daemon that says what a test tells it: the page's own files, with answers of its shapes, on a port of this host.

It is for what a real node hardly has: 200 workloads, hostile names, a thousand records a second, a daemon that goes
away. `test_page` holds its answers against the types of `egressd.admin.shapes`, so that it says nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

from aiohttp import web

from egressd.admin import page

__all__ = ["Scripted", "crowd", "few", "hostile", "record", "served"]

T0: Final = "2026-11-22T13:00:{:02d}Z"
KINDS: Final = ("Deployment", "StatefulSet", "DaemonSet", "CronJob")

Answer = dict[str, Any]


class Scripted:
    """What is answered: `answers[path]`, or `problems[path]` = (status, detail). `lines` are audit records so far."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.problems: dict[str, tuple[int, str]] = {}
        self.lines: list[str] = []
        self.explained: Answer = {}
        self.url = ""
        self._followers: list[asyncio.Queue[list[str]]] = []
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None

    def say(self, lines: list[str]) -> None:
        """Records that happen now."""
        self._loop.call_soon_threadsafe(self._put, lines)

    def _put(self, lines: list[str]) -> None:
        self.lines = (self.lines + lines)[-1000:]
        for queue in self._followers:
            queue.put_nowait(lines)

    async def _api(self, request: web.Request) -> web.StreamResponse:
        what = request.path.removeprefix("/api/v1/")
        if what in self.problems:
            status, detail = self.problems[what]
            return web.json_response({"status": status, "detail": detail}, status=status)
        if what == "audit":
            return await self._audit(request)
        if what == "explain":
            return web.json_response(self.explained)
        return web.json_response(self.answers[what])

    async def _audit(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        queue: asyncio.Queue[list[str]] = asyncio.Queue()
        queue.put_nowait(self.lines[-int(request.query["limit"]) :])
        self._followers.append(queue)
        try:
            while True:
                await response.write("".join(line + "\n" for line in await queue.get()).encode())
        except (ConnectionError, asyncio.CancelledError):
            return response
        finally:
            self._followers.remove(queue)

    def serve(self, port: int = 0) -> int:
        """Begin to serve, at a port of its own choice or again at a former one; returns the port."""
        return asyncio.run_coroutine_threadsafe(self._serve(port), self._loop).result(10)

    async def _serve(self, port: int) -> int:
        app = web.Application()
        for path in page.parts():
            app.router.add_get(path, page.serve)
        app.router.add_get("/api/v1/{what:.*}", self._api)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}/"
        return port

    def leave(self) -> None:
        """Stop serving, and hang up on everybody."""
        if self._runner is not None:
            asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
            self._runner = None


@contextlib.contextmanager
def served(fill: Callable[[Scripted], None]) -> Iterator[Scripted]:
    """A scripted daemon that serves, filled by `few`, `crowd` or `hostile`."""
    made = Scripted()
    thread = threading.Thread(target=made._loop.run_forever, daemon=True)
    thread.start()
    fill(made)
    made.serve()
    try:
        yield made
    finally:
        made.leave()
        made._loop.call_soon_threadsafe(made._loop.stop)
        thread.join(10)
        made._loop.close()


# ------------------------------------------------------------------------------------------------------- answers


def status(**changes: Any) -> Answer:
    verdicts = {"total": 48213, "allowed": 47109, "denied": 1021, "would_deny": 83, "would_allow": 0}
    return {
        "version": "0.1.0",
        "node": "worker-3.fra1",
        "started": "2026-11-20T08:11:00Z",
        "ready": True,
        "reasons": [],
        "source": {"kind": "kubernetes", "up": True, "ailments": [], "facts": []},
        "pods": 34,
        "pods_selected": 21,
        "subjects": 5,
        "policies": {"in_force": 4, "refused": 1},
        "grants": {"alive": 57, "limit": 200000, "evicted": 0},
        "queries": verdicts,
        "flows": verdicts | {"total": 112, "allowed": 0, "denied": 112},
        "cache": {"entries": 391, "bytes": 120000, "hits": 40103, "misses": 8110},
        "upstreams": [{"upstream": "udp://10.96.0.10:53", "healthy": True, "failures": 0}],
        "audit": {"written": 48325, "dropped": 0, "queued": 0},
        "control_restarts": 0,
    } | changes


def edge(workload: str, name: str, verdict: str = "allowed", **changes: Any) -> Answer:
    namespace, _, owner = workload.partition("/")
    allowed = verdict == "allowed"
    return {
        "namespace": namespace,
        "workload": owner,
        "name": name,
        "folded": False,
        "verdict": verdict,
        "reason": "rule" if allowed else "no-rule",
        "policy": f"{namespace}/egress" if allowed else "",
        "rule": "allow[0]" if allowed else "",
        "queries": 12,
        "flows": 0,
        "packets": 0,
        "ports": ["443/TCP"] if allowed else [],
        "search": False,
        "first_seen": "2026-11-20T08:12:30Z",
        "last_seen": "2026-11-22T12:59:01Z",
    } | changes


def pod(namespace: str, name: str, workload: str, number: int = 5, **changes: Any) -> Answer:
    return {
        "namespace": namespace,
        "name": name,
        "uid": f"00000000-0000-4000-8000-{number:012d}",
        "service_account": workload.partition("/")[2],
        "workload": workload,
        "addresses": [f"10.244.{number // 250}.{number % 250 + 1}"],
        "policies": [f"{namespace}/egress"],
        "enforced": True,
        "exempt": False,
        "in_flight": 0,
    } | changes


def rule(name: str, to: list[str], ports: str = "443/TCP", **changes: Any) -> Answer:
    used = {"uses": 1204, "last_used": "2026-11-22T12:58:11Z"}
    return (
        {"name": name, "action": "allow", "to": to, "ports": ports, "allow_private": False, "line": 3} | used | changes
    )


def policy(name: str, rules: list[Answer], **changes: Any) -> Answer:
    condition = {"status": "True", "reason": "Valid", "message": "in force", "since": "2026-11-20T08:12:00Z"}
    conditions = [{"type": kind} | condition for kind in ("Accepted", "Programmed")]
    base = {"name": name, "mode": "Enforce", "dns": "Filter", "on_revoke": "Cut", "pods": 3}
    return base | {"conditions": conditions, "problems": [], "rules": rules} | changes


def grant(name: str, address: str, remaining_s: float, **changes: Any) -> Answer:
    base = {"name": name, "address": address, "ports": "443/TCP", "remaining_s": remaining_s}
    return base | {"policies": ["shop/egress"]} | changes


def record(number: int, verdict: str = "allowed", **changes: Any) -> str:
    """One `dns` record as a line."""
    who = {
        "namespace": "shop",
        "name": f"web-{number % 7}",
        "uid": "u",
        "ip": "10.244.0.5",
        "workload": "Deployment/web",
    }
    found = {
        "time": f"2026-11-22T13:{number // 60 % 60:02d}:{number % 60:02d}.{number % 1000:03d}456Z",
        "event": "dns",
        "node": "n1",
        "pod": who,
        "query": {"name": f"host-{number}.example.com", "type": "A", "transport": "udp", "port": 41233},
        "verdict": verdict,
        "reason": "rule" if verdict == "allowed" else "no-rule",
        "latency_us": 812,
    }
    if verdict == "allowed":
        response = {"rcode": "NOERROR", "addresses": ["203.0.113.10"], "cnames": [], "ttl": 30, "cached": False}
        found |= {"policy": "shop/egress", "rule": "allow[0]", "response": response}
    return json.dumps(found | changes)


# -------------------------------------------------------------------------------------------------------- nodes


def few(made: Scripted) -> None:
    """A small node where a bit of everything happens."""
    web_, api, batch = "shop/Deployment/web", "payments/StatefulSet/api", "legacy/CronJob/nightly-report"
    edges = [
        edge(web_, "api.example.com", queries=4210, flows=310, packets=512),
        edge(web_, "cdn.static.example.net", queries=910, flows=12, packets=20),
        edge(web_, "telemetry.vendor.example", "denied", queries=331),
        edge(web_, "198.51.100.9", "denied", queries=0, flows=14, packets=31, ports=["443/TCP"]),
        edge(web_, "api.example.com.shop.svc.cluster.local", "denied", queries=900, search=True),
        edge(
            web_, "api.example.com.svc.cluster.local", reason="in-cluster", policy="", rule="", queries=900, search=True
        ),
        edge(api, "ledger.bank.example", queries=77, flows=40, packets=44, ports=["8443/TCP"]),
        edge(api, "api.example.com", queries=15),
        edge(api, "time.example.org", "would-deny", queries=48, reason="no-rule"),
        edge(batch, "archive.example.org", queries=9, reason="unselected", policy="", rule=""),
        edge(
            batch, "old.partner.example", "would-allow", queries=3, reason="rule", policy="legacy/try", rule="partner"
        ),
        edge("dev/Pod/trial-0", "packages.example.org", "would-deny", queries=26),
    ]
    pods = [pod("shop", f"web-{n}", "Deployment/web", n) for n in range(3)]
    pods += [pod("payments", "api-0", "StatefulSet/api", 7), pod("dev", "trial-0", "", 8)]
    fault = {"file": "policy.yaml", "line": 4, "column": 8, "severity": "error"}
    bad = [fault | {"message": "'api.*.example.com' has its * in the middle; write '*.example.com'"}]
    no = {"status": "False", "reason": "Invalid", "message": "the text is refused", "since": "2026-11-22T09:00:00Z"}
    rules = [
        rule("no-metadata", ["169.254.169.254/32"], "*", action="deny", uses=0, last_used=""),
        rule("api", ["api.example.com", "*.static.example.net"], line=5),
        rule("partners", ["*.partner.example"], "443/TCP, 8443/TCP", line=9, uses=0, last_used=""),
    ]
    made.answers |= {
        "status": status(),
        "map": {"since": "2026-11-21T13:00:00Z", "truncated": False, "edges": edges},
        "pods": {"pods": pods, "truncated": False},
        "policies": {
            "policies": [
                policy("shop/egress", rules),
                policy("payments/egress", [rule("bank", ["ledger.bank.example"], "8443/TCP")], pods=1),
                policy("dev/watch", [rule("allow[0]", ["*.example.com"], "*")], mode="Audit", pods=1),
                policy("shop/broken", [], mode="", dns="", on_revoke="", pods=0, problems=bad)
                | {"conditions": [{"type": kind} | no for kind in ("Accepted", "Programmed")]},
            ],
            "truncated": False,
        },
        "grants": {
            "grants": [
                grant("api.example.com", "203.0.113.10", 71.4),
                grant("api.example.com", "2001:db8::10", 71.4),
                grant("cdn.static.example.net", "198.51.100.77", 8.9),
                grant("ledger.bank.example", "192.0.2.14", 312.0, ports="8443/TCP", policies=["payments/egress"]),
            ],
            "truncated": False,
        },
    }
    verdicts = ("allowed",) * 5 + ("denied", "would-deny")
    made.lines = [record(number, verdicts[number % len(verdicts)]) for number in range(60)]
    made.explained = {
        "verdict": "denied",
        "reason": "no-rule",
        "policy": "",
        "rule": "",
        "steps": [
            "policies that select the pod: shop/egress (Enforce)",
            "telemetry.vendor.example is not inside the cluster",
            "no deny rule names telemetry.vendor.example",
            "no allow rule names telemetry.vendor.example",
            "verdict: denied (no-rule)",
        ],
        "grants": [grant("cdn.static.example.net", "198.51.100.77", 42.0)],
        "shared": [{"address": "198.51.100.77", "pod": "payments/api-0", "names": ["cdn.static.example.net"]}],
        "allow": {
            "policy": "shop/egress",
            "yaml": "- {to: [telemetry.vendor.example], ports: [443/TCP]}",
            "note": "add it under `allow:` in ConfigMap egress in namespace shop",
        },
    }


def crowd(made: Scripted, workloads: int = 200, names: int = 2000, edges: int = 10000) -> None:
    """A node where 200 workloads ask for 2,000 names."""
    few(made)
    chance = random.Random(6)
    who = [f"team-{n % 14}/{KINDS[n % 4]}/service-{n}" for n in range(workloads)]
    what = [
        f"host-{n}.{('api', 'cdn', 'eu-west')[n % 3]}.domain-{int(chance.paretovariate(0.6)) % 160}.example"
        for n in range(names)
    ]
    pairs = {(n % workloads, n % names) for n in range(max(workloads, names))}
    while len(pairs) < edges:
        pairs.add((min(int(chance.expovariate(1 / 40)), workloads - 1), chance.randrange(names)))
    verdicts = ("allowed",) * 16 + ("denied", "denied", "would-deny", "would-allow")
    found = [
        edge(who[w], what[n], chance.choice(verdicts), queries=int(chance.paretovariate(0.5)) % 90000 + 1, flows=n % 3)
        for w, n in sorted(pairs)
    ]
    made.answers["map"] = {"since": "2026-11-21T13:00:00Z", "truncated": False, "edges": found}
    made.answers["grants"]["grants"] = [
        grant(name, f"198.51.100.{n % 250}", 20 + n % 300) for n, name in enumerate(what)
    ]
    made.answers["policies"]["policies"] += [
        policy(f"team-{n}/egress", [rule("allow[0]", [f"*.domain-{n}.example"])]) for n in range(100)
    ]


NASTY: Final = "<img src=x onerror=window.owned=1>.example"


def hostile(made: Scripted) -> None:
    """A node where every name and every text is an attempt to be more than text."""
    few(made)
    made.answers["status"] = status(node=NASTY)
    made.answers["map"]["edges"] = [
        edge("shop/Deployment/web", NASTY, "denied"),
        edge('<script>owned=1</script>/Deployment/"><svg onload=owned=1>', "javascript:owned=1", "denied"),
    ]
    made.answers["pods"]["pods"] = [pod("shop", NASTY, "Deployment/web", policies=["shop/egress"])]
    made.answers["grants"]["grants"] = [grant(NASTY, "192.0.2.1", 30, policies=[NASTY])]
    made.answers["policies"]["policies"] = [policy(NASTY, [rule(NASTY, [NASTY])])]
    made.lines = [record(1, "denied", query={"name": NASTY, "type": NASTY}, pod={"namespace": "shop", "name": NASTY})]
    made.explained |= {"steps": [NASTY], "grants": [grant(NASTY, "192.0.2.1", 3)], "policy": NASTY, "rule": NASTY}
    made.explained["allow"] = {"policy": NASTY, "yaml": NASTY, "note": NASTY}
