"""Denials worth an Event, read from audit lines."""

from __future__ import annotations

import json
from typing import Any

import pytest

from egressd.control.denials import MAX_PODS, PERIOD_S, Denials

DNS: dict[str, Any] = {"query": {"name": "denied.example", "type": "A"}}
FLOW: dict[str, Any] = {"destination": {"ip": "192.0.2.9", "port": 443, "protocol": "tcp"}}


def line(pod: str | None = "web-0", *, verdict: str = "denied", **fields: Any) -> bytes:
    identity = {"pod": {"namespace": "shop", "name": pod, "uid": f"u-{pod}"}} if pod else {}
    record = {**identity, "verdict": verdict, "reason": "no-rule", **fields}
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (DNS, "the name denied.example (A) was denied: no-rule"),
        (FLOW, "192.0.2.9 port 443/tcp was denied: no-rule"),
        (DNS | {"policy": "shop/web"}, "was denied by policy shop/web: no-rule"),
        ({"query": {"type": "A"}}, "a destination was denied"),
    ],
)
def test_a_denial_is_told_in_a_sentence(fields: dict[str, Any], said: str) -> None:
    """With what was asked, and by whose word it was denied."""
    (denial,) = Denials().see(line(**fields), 0.0)
    assert denial[:3] == ("shop", "web-0", "u-web-0")
    assert said in denial.message


def test_one_a_pod_and_minute() -> None:
    """However many there are, and however many lines come at once."""
    denials = Denials()
    lines = line(**DNS) * 3 + line("web-1", **DNS) + line("web-2", verdict="allowed", **DNS) + line(None, **DNS)
    assert [denial.pod for denial in denials.see(lines, 0.0)] == ["web-0", "web-1"]
    assert denials.see(lines, PERIOD_S - 1) == []
    assert [denial.pod for denial in denials.see(line(**DNS), PERIOD_S + 1)] == ["web-0"]


def test_a_would_deny_is_no_denial() -> None:
    """Nothing was stopped; neither does the word elsewhere in a line count."""
    record = line(verdict="would-deny", **DNS) + line(verdict="allowed", query={"name": '"verdict":"denied"'})
    assert Denials().see(record, 0.0) == []


def test_what_is_remembered_is_bounded() -> None:
    """A flood of pods costs Events, not memory; those of a minute ago make room."""
    denials = Denials()
    flood = b"".join(line(f"p{number}", **DNS) for number in range(MAX_PODS + 10))
    assert len(denials.see(flood, 0.0)) == MAX_PODS
    assert len(denials.see(line("late", **DNS), PERIOD_S + 1)) == 1
