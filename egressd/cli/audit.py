"""`egressd audit`: what was asked, reached and refused; filtered, and followed as it happens."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import click

from egressd.cli import EXIT_NO, EXIT_USAGE
from egressd.cli._daemon import Daemon, Refusal, daemon_options, output_option
from egressd.cli._table import colour, cut, width

__all__ = ["command", "row"]

BAD_REQUEST = 400


@click.command("audit", epilog="Example: egressd audit --pod shop/web-0 --verdict denied --since 1h --follow")
@click.option("--pod", metavar="NS/NAME", help="Records of one pod.")
@click.option("--name", metavar="NAME", help="Records about one name, or *.NAME for all under it.")
@click.option(
    "--verdict", type=click.Choice(["allowed", "denied", "would-deny", "would-allow"]), help="Records of one verdict."
)
@click.option("--event", type=click.Choice(["dns", "flow", "policy", "audit"]), help="Records of one kind.")
@click.option("--since", metavar="TIME", help="How far back: 90s, 15m, 2h, 7d, or 2026-11-22T13:00:00Z.")
@click.option("--limit", type=click.IntRange(0, 10_000), help="The latest so many; default 1000, or 10 with --follow.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@daemon_options
@output_option
def command(
    daemon: Daemon,
    config: str | None,  # noqa: ARG001 - `daemon` is made from it
    output: str,
    limit: int | None,
    follow: bool,
    **filters: str | None,
) -> None:
    """Read and filter the audit records, oldest first.

    -o json prints the records as they are, one a line. Exit code 1 if no record matches.
    """
    if limit is None:
        limit = 1000 if not follow or filters["since"] else 10
    found = daemon.lines("/api/v1/audit", patient=follow, follow=1 if follow else None, limit=limit, **filters)
    shown = 0
    try:
        for line in found:
            shown += 1
            for text in _shown(line, output):
                click.echo(text)
            sys.stdout.flush()
    except Refusal as refusal:
        if refusal.status != BAD_REQUEST:
            raise
        click.echo(f"Error: {refusal}", err=True)
        sys.exit(EXIT_USAGE)
    except (KeyboardInterrupt, BrokenPipeError):
        return
    if not shown:
        click.echo("no record matches", err=True)
        sys.exit(EXIT_NO)


def _shown(line: bytes, output: str) -> Iterator[str]:
    if output == "json":
        yield line.decode().rstrip("\n")
    elif output == "yaml":
        from egressd.schema import yaml_text

        yield f"---\n{yaml_text(json.loads(line)).rstrip()}"
    else:
        yield row(json.loads(line), width(), f"{datetime.now(UTC):%Y-%m-%d}")


def row(record: dict[str, Any], columns: int, today: str) -> str:
    """One record on one line: when, what became of it, why, who, what; the date unless it is `today`."""
    date, time = record["time"][:10], record["time"][11:19]
    verdict = record.get("verdict") or record.get("change") or record["event"]
    when = time if date == today else f"{date} {time}"
    text = f"{when} {verdict:<11} {record.get('reason', ''):<10} {_what(record)}"
    return cut(text, columns).replace(verdict, colour(verdict, verdict), 1)


def _what(record: dict[str, Any]) -> str:
    match record["event"]:
        case "dns":
            query, response = record["query"], record.get("response", {})
            name = f"{query.get('name', '(no name)')} {query.get('type', '')}".rstrip()
            if record.get("aggregated"):
                name = f"({record['aggregated']} queries more)"
            answer = response.get("addresses") or [response.get("rcode", "no answer")]
            return f"{_pod(record)} {name} → {_few(answer)}{_rule(record)}"
        case "flow":
            to = record["destination"]
            port = f":{to['port']}" if "port" in to else ""
            names = f" [{_few(to['names'])}]" if to["names"] else ""
            packets = f" x{record['packets']}" if record["packets"] > 1 else ""
            return f"{_pod(record)} {to['ip']}{port}/{to['protocol']}{names}{packets}{_rule(record)}"
        case "policy":
            return f"policy {record.get('policy', '')} {record.get('error', '')}".rstrip()
        case _:
            return f"{record.get('dropped', 0)} records were dropped"


def _pod(record: dict[str, Any]) -> str:
    pod = record["pod"]
    return f"{pod['namespace']}/{pod['name']}" if "name" in pod else str(pod["ip"])


def _rule(record: dict[str, Any]) -> str:
    return f' ("{record["rule"]}" of {record["policy"]})' if record.get("policy") else ""


def _few(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{items[0]} +{len(items) - 1}"
