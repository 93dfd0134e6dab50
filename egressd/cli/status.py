"""`egressd status`: how the node fares, on one screen."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from egressd.cli import EXIT_NO
from egressd.cli._daemon import Daemon, daemon_options, output_option
from egressd.cli._table import colour, cut, table, width

__all__ = ["command", "lines"]

MOST: Final = 20
"""Policies in the table; all of them with -o json."""


@click.command("status", epilog="Example: egressd status; egressd status -o json")
@daemon_options
@output_option
def command(daemon: Daemon, config: str | None, output: str) -> None:  # noqa: ARG001 - `daemon` is made from it
    """Show pods, policies, grants, counters and upstreams of the running daemon.

    Exit code 0 if it is ready, 1 if it is not, 3 if there is no daemon.
    """
    status = daemon.get("/api/v1/status")
    policies = daemon.get("/api/v1/policies", limit=10_000)["policies"]
    if output == "table":
        for line in lines(status, policies, width()):
            click.echo(line)
    else:
        from egressd.cli._files import print_data

        print_data(status | {"policy_list": policies}, output)
    if not status["ready"]:
        sys.exit(EXIT_NO)


def lines(status: dict[str, Any], policies: list[dict[str, Any]], columns: int) -> Iterator[str]:
    """What the table shows."""
    for label, text in _facts(status):
        yield cut(f"{label:<10}{text}", columns)
    for reason in status["reasons"]:
        yield cut(f"          {reason['reason']}: {reason['detail']}", columns)
    yield ""
    yield from _upstreams(status["upstreams"], columns)
    yield from _policies(policies, columns)
    if status["queries"]["denied"] or status["flows"]["denied"]:
        yield ""
        yield "what was denied, and why: egressd audit --verdict denied"


def _facts(status: dict[str, Any]) -> Iterator[tuple[str, str]]:
    source, grants, cache, audit = status["source"], status["grants"], status["cache"], status["audit"]
    yield "egressd", f"{status['version']} on node {status['node']}, since {status['started'] or 'just now'}"
    yield "ready", colour("yes", "allowed") if status["ready"] else colour("no", "no")
    yield "source", f"{source['kind']}, {'up' if source['up'] else 'away: ' + '; '.join(source['ailments'])}"
    for fact in source["facts"]:
        yield "", fact
    yield "pods", f"{status['pods']}, of which {status['pods_selected']} selected, in {status['subjects']} subjects"
    policies = status["policies"]
    yield "policies", f"{policies['in_force']} in force, {policies['refused']} refused"
    yield "grants", f"{grants['alive']} of at most {grants['limit']}, {grants['evicted']} evicted"
    yield "queries", _verdicts(status["queries"])
    yield "flows", _verdicts(status["flows"])
    looked = cache["hits"] + cache["misses"]
    share = f"{100 * cache['hits'] // looked} % hits" if looked else "no look-ups yet"
    yield "cache", f"{cache['entries']} entries, {cache['bytes']} octets, {share}"
    yield "audit", f"{audit['written']} written, {audit['queued']} waiting, {audit['dropped']} dropped"
    if status["control_restarts"]:
        yield "restarts", f"{status['control_restarts']} of the control side"


def _verdicts(counts: dict[str, int]) -> str:
    parts = [f"{counts[key]} {key.replace('_', '-')}" for key in ("allowed", "denied", "would_deny", "would_allow")]
    return f"{counts['total']}: {', '.join(parts)}" if counts["total"] else "none yet"


def _upstreams(upstreams: list[dict[str, Any]], columns: int) -> Iterator[str]:
    rows = [
        (each["upstream"], "yes" if each["healthy"] else "no", str(each["failures"]), _rtt(each["rtt_us"]))
        for each in upstreams
    ]
    yield from table(("UPSTREAM", "HEALTHY", "FAILURES IN A ROW", "RTT"), rows, columns)
    yield ""


def _rtt(rtt_us: int) -> str:
    return f"{rtt_us / 1000:.1f} ms" if rtt_us else "-"


def _policies(policies: list[dict[str, Any]], columns: int) -> Iterator[str]:
    """Refused ones first, each with what is wrong."""
    ordered = sorted(policies, key=lambda policy: (not policy["problems"], policy["name"]))
    rows = [
        (
            policy["name"],
            policy["mode"] or "-",
            _condition(policy, "Accepted"),
            _condition(policy, "Programmed"),
            str(len(policy["rules"])),
            str(policy["pods"]),
        )
        for policy in ordered[:MOST]
    ]
    yield from table(("POLICY", "MODE", "ACCEPTED", "PROGRAMMED", "RULES", "PODS"), rows, columns)
    if len(policies) > MOST:
        yield f"… and {len(policies) - MOST} more (-o json shows all)"
    for policy in ordered:
        for fault in policy["problems"]:
            yield ""
            yield f"{policy['name']} is refused:"
            yield f"  {fault['file']}:{fault['line']}:{fault['column']}: {fault['severity']}: {fault['message']}"


def _condition(policy: dict[str, Any], kind: str) -> str:
    return next((condition["status"] for condition in policy["conditions"] if condition["type"] == kind), "Unknown")
