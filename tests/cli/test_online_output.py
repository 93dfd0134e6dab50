"""What `status`, `audit`, `top` and `explain` print, for a terminal of 80 columns: whole screens, as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from egressd.cli import main
from egressd.cli._table import table
from egressd.cli.audit import row
from egressd.cli.explain import told
from egressd.cli.status import lines
from egressd.cli.top import Window, render

STATUS: dict[str, Any] = {
    "version": "0.1.0",
    "node": "n1",
    "started": "2026-11-22T13:00:00Z",
    "ready": False,
    "reasons": [{"reason": "upstreams-failing", "detail": "no upstream answers: udp://192.0.2.53:53"}],
    "source": {"kind": "directory", "up": True, "ailments": [], "facts": []},
    "pods": 12,
    "pods_selected": 7,
    "subjects": 3,
    "policies": {"in_force": 1, "refused": 1},
    "grants": {"alive": 40, "limit": 200000, "evicted": 0},
    "queries": {"total": 110, "allowed": 100, "denied": 10, "would_deny": 0, "would_allow": 0},
    "flows": {"total": 0, "allowed": 0, "denied": 0, "would_deny": 0, "would_allow": 0},
    "cache": {"entries": 5, "bytes": 3800, "hits": 75, "misses": 25},
    "upstreams": [{"upstream": "udp://192.0.2.53:53", "healthy": False, "failures": 4, "rtt_us": 1789}],
    "audit": {"written": 111, "dropped": 0, "queued": 2},
    "control_restarts": 0,
}
FAULT = {
    "file": "ConfigMap shop/bad",
    "line": 7,
    "column": 9,
    "severity": "error",
    "message": "unknown field 'allows'; did you mean 'allow'?",
}
POLICIES: list[dict[str, Any]] = [
    {
        "name": "shop/web-egress",
        "mode": "Enforce",
        "conditions": [{"type": "Accepted", "status": "True"}, {"type": "Programmed", "status": "True"}],
        "problems": [],
        "rules": [{}, {}],
        "pods": 3,
    },
    {
        "name": "shop/bad",
        "mode": "",
        "conditions": [{"type": "Accepted", "status": "False"}, {"type": "Programmed", "status": "False"}],
        "problems": [FAULT],
        "rules": [],
        "pods": 0,
    },
]
STATUS_SCREEN = """\
egressd   0.1.0 on node n1, since 2026-11-22T13:00:00Z
ready     no
source    directory, up
pods      12, of which 7 selected, in 3 subjects
policies  1 in force, 1 refused
grants    40 of at most 200000, 0 evicted
queries   110: 100 allowed, 10 denied, 0 would-deny, 0 would-allow
flows     none yet
cache     5 entries, 3800 octets, 75 % hits
audit     111 written, 2 waiting, 0 dropped
          upstreams-failing: no upstream answers: udp://192.0.2.53:53

UPSTREAM             HEALTHY  FAILURES IN A ROW  RTT
udp://192.0.2.53:53  no       4                  1.8 ms

POLICY           MODE     ACCEPTED  PROGRAMMED  RULES  PODS
shop/bad         -        False     False       0      0
shop/web-egress  Enforce  True      True        2      3

shop/bad is refused:
  ConfigMap shop/bad:7:9: error: unknown field 'allows'; did you mean 'allow'?

what was denied, and why: egressd audit --verdict denied
"""

POD = {"namespace": "shop", "name": "web-0", "ip": "192.0.2.5"}
DNS: dict[str, Any] = {
    "time": "2026-11-22T13:00:00.123456Z",
    "event": "dns",
    "node": "n1",
    "pod": POD,
    "query": {"name": "api.example.com", "type": "A", "transport": "udp", "port": 41233},
    "verdict": "allowed",
    "reason": "rule",
    "policy": "shop/web-egress",
    "rule": "api",
    "response": {"rcode": "NOERROR", "addresses": ["203.0.113.10", "203.0.113.11"], "cnames": [], "cached": False},
    "latency_us": 812,
}
DENIED = {**DNS, "verdict": "denied", "reason": "no-rule", "policy": "", "response": {"rcode": "NXDOMAIN"}}
FLOW: dict[str, Any] = {
    "time": "2026-11-22T13:00:01.000000Z",
    "event": "flow",
    "pod": POD,
    "destination": {"ip": "198.51.100.9", "port": 443, "protocol": "tcp", "names": ["cdn.example"]},
    "verdict": "denied",
    "reason": "no-rule",
    "packets": 3,
}
TODAY = "2026-11-22"
ROWS = [
    (DNS, "13:00:00 allowed     rule       shop/web-0 api.example.com A → 203.0.113.10 +1 …"),
    (DENIED, "13:00:00 denied      no-rule    shop/web-0 api.example.com A → NXDOMAIN"),
    (
        {**DENIED, "query": {}, "aggregated": 17},
        "13:00:00 denied      no-rule    shop/web-0 (17 queries more) → NXDOMAIN",
    ),
    (
        {**DENIED, "pod": {"ip": "192.0.2.77"}},
        "13:00:00 denied      no-rule    192.0.2.77 api.example.com A → NXDOMAIN",
    ),
    (
        {**DENIED, "time": "2026-11-21T23:59:59.9Z"},
        "2026-11-21 23:59:59 denied      no-rule    shop/web-0 api.example.com A → NXDOM…",
    ),
    (FLOW, "13:00:01 denied      no-rule    shop/web-0 198.51.100.9:443/tcp [cdn.example] x3"),
    (
        {**FLOW, "verdict": "allowed", "reason": "rule", "policy": "shop/web", "rule": "cdn", "packets": 1},
        "13:00:01 allowed     rule       shop/web-0 198.51.100.9:443/tcp [cdn.example] (…",
    ),
    (
        {**FLOW, "destination": {"ip": "198.51.100.9", "protocol": "icmp", "names": []}},
        "13:00:01 denied      no-rule    shop/web-0 198.51.100.9/icmp x3",
    ),
    (
        {"time": FLOW["time"], "event": "policy", "policy": "shop/web", "change": "updated"},
        "13:00:01 updated                policy shop/web",
    ),
    ({"time": FLOW["time"], "event": "audit", "dropped": 9}, "13:00:01 audit                  9 records were dropped"),
]

EXPLAINED: dict[str, Any] = {
    "verdict": "denied",
    "reason": "no-rule",
    "steps": [
        "policy shop/web-egress (Enforce, dns: Filter) selects the pod",
        'allow rule "api" of shop/web-egress names api.example.com on 80/TCP, and this sentence is rather long',
        "verdict: denied (no-rule)",
    ],
    "grants": [{"name": "api.example.com", "address": "203.0.113.10", "ports": "80/TCP", "remaining_s": 73.4}],
    "shared": [{"address": "203.0.113.10", "pod": "shop/api-0", "names": ["cdn.example.com", "www.example.com"]}],
    "allow": {
        "policy": "shop/web-egress",
        "yaml": "- {to: [api.example.com], ports: [443/TCP]}",
        "note": "add it under `allow:` in ConfigMap web-egress in namespace shop",
    },
}
EXPLAIN_SCREEN = """\
 1. policy shop/web-egress (Enforce, dns: Filter) selects the pod
 2. allow rule "api" of shop/web-egress names api.example.com on 80/TCP, and
    this sentence is rather long
 3. verdict: denied (no-rule)

GRANT            ADDRESS       PORTS   LEFT
api.example.com  203.0.113.10  80/TCP  73 s

SHARED ADDRESS  POD         KNOWN AS
203.0.113.10    shop/api-0  cdn.example.com, www.example.com

to allow it (add it under `allow:` in ConfigMap web-egress in namespace shop):
  - {to: [api.example.com], ports: [443/TCP]}
"""

TOP_SCREEN = """\
1.6/s over the last 10 s, 4 different, 5 records missed
RATE/S  VERDICT  POD         DESTINATION
1.0     allowed  shop/web-0  api.example.com
0.3     denied   shop/web-0  api.example.com
0.2     allowed  shop/web-0  (search list)
0.1     denied   shop/web-0  cdn.example:443/tcp
"""


def test_status_screen() -> None:
    """Refused policies come first, and say what is wrong."""
    assert "\n".join(lines(STATUS, POLICIES, 80)) + "\n" == STATUS_SCREEN


@pytest.mark.parametrize(("record", "line"), ROWS)
def test_audit_rows(record: dict[str, Any], line: str) -> None:
    """One record, one line, within 80 columns; in a pipe it is whole."""
    assert row(record, 80, TODAY) == line
    assert len(row(record, 80, TODAY)) <= 80
    assert "…" not in row(record, 10_000, TODAY)


def test_explain_screen() -> None:
    """Steps, what is open, who shares it, what to write."""
    assert "\n".join(told(EXPLAINED, 80)) + "\n" == EXPLAIN_SCREEN


def test_explain_without_grants() -> None:
    """That nothing is open is said; a deny rule has no line to write."""
    allow = {"policy": "shop/guard", "yaml": "", "note": "deny wins over every allow rule"}
    text = list(told({**EXPLAINED, "grants": [], "shared": [], "allow": allow}, 80))
    assert "no grant is alive" in text
    assert text[-1] == "deny wins over every allow rule"


def test_top_screen() -> None:
    """Rates by pod, destination and verdict, the highest first; what the window has passed is gone."""
    window = Window(10.0)
    window.add(FLOW, 1.0)
    for _ in range(10):
        window.add(DNS, 95.0)
    window.add({**DENIED, "aggregated": 3}, 99.0)
    window.add(FLOW, 100.0)
    for step in ("api.example.com.svc.cluster.local", "api.example.com.cluster.local"):
        window.add({**DNS, "query": {"name": step}, "search": True}, 100.0)
    window.add({"event": "audit", "dropped": 5}, 100.0)
    assert "\n".join(render(window, 100.0, 80, 20)) + "\n" == TOP_SCREEN


def test_top_folds_what_no_shape_tells() -> None:
    """An unselected pod's search list is put together as well, in whatever order it came; a denial is none of it."""
    window = Window(10.0, ["cluster.local"])
    absent = {**DNS, "response": {"rcode": "NXDOMAIN"}}
    step = {"name": "api.example.com.shop.svc.cluster.local"}
    for record in (
        {**absent, "query": step},
        DNS,
        {**absent, "query": {"name": "db.shop.svc.cluster.local"}},
        {**DENIED, "response": {"rcode": "NXDOMAIN"}, "query": step},
    ):
        window.add(record, 100.0)
    rows = [(seen.destination, seen.verdict) for seen, _ in window.rows(100.0)[0]]
    assert sorted(rows) == [
        ("(search list)", "allowed"),
        ("api.example.com", "allowed"),
        ("api.example.com.shop.svc.cluster.local", "denied"),
        ("db.shop.svc.cluster.local", "allowed"),
    ]


def test_tables_give_way() -> None:
    """The widest column is cut until a table fits; no table is an empty one."""
    shown = table(("A", "LONG"), [("short", "x" * 100)], 20)
    assert all(len(line) <= 20 for line in shown)
    assert shown[1].endswith("…")
    assert table(("A",), [], 80) == []


@pytest.mark.parametrize("verb", [["status"], ["audit"], ["top", "--once"], ["explain", "--pod", "a/b", "--to", "c"]])
def test_without_a_daemon(tmp_path: Path, verb: list[str]) -> None:
    """Exit code 3, with what to do, whichever way the socket is named."""
    place = str(tmp_path / "none.sock")
    config = tmp_path / "egressd.yaml"
    config.write_text(json.dumps({"admin": {"socket": place}, "dns": {"upstreams": ["192.0.2.53"]}}))
    for arguments, environ in (
        ([*verb, "--socket", place], {}),
        ([*verb, "--config", str(config)], {}),
        (verb, {"EGRESSD_ADMIN__SOCKET": place}),
    ):
        result = CliRunner().invoke(main, arguments, env=environ)
        assert result.exit_code == 3
        assert f"no daemon answers at {place} (there is none); start it with `egressd run`" in result.stderr
        assert result.stdout == ""
