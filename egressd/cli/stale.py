"""`egressd stale`: rules, patterns and policies that nothing has used, as the running daemon's history knows."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Final

import click

from egressd.cli import EXIT_NO, EXIT_USAGE
from egressd.cli._daemon import Daemon, Refusal, daemon_options, output_option
from egressd.cli._table import cut, table, width

__all__ = ["command", "lines"]

BAD_REQUEST: Final = 400
TOLD: Final = ("unused", "shadowed")
"""States for which the exit code is 1; of what is `unobserved` nothing can be said."""

MEANING: Final = {
    "another decides": "seen, but another rule or a closer pattern decided",
    "denied nothing": "it covered what was seen, and denied none of it",
    "flows unknown": "allowed flows were not always recorded (audit.flows: All)",
    "it is new": "it came later than the time that is looked at begins",
    "selects no pod": "no pod of this node is selected by the policy now",
}
"""What the notes say."""


@click.command("stale", epilog="Example: egressd stale --since 30d --namespace shop; egressd stale -o json")
@click.option("--since", metavar="TIME", default="30d", show_default=True, help="How far back: 12h, 30d, or a time.")
@click.option("--namespace", "-n", metavar="NAMESPACE", help="Policies of one namespace.")
@daemon_options
@output_option
def command(
    daemon: Daemon,
    config: str | None,  # noqa: ARG001 - `daemon` is made from it
    since: str,
    namespace: str | None,
    output: str,
) -> None:
    """List rules, patterns and policies that nothing has used on this node.

    unused: nothing was seen that it covers. shadowed: something was, and another rule or a closer pattern decided
    each time. unobserved: nobody can tell; address rules need `audit.flows: All`. Ask the other nodes, too, before you
    delete. Exit code 1 if anything is unused or shadowed.
    """
    try:
        found = daemon.get("/api/v1/stale", since=since, namespace=namespace)
    except Refusal as refusal:
        if refusal.status != BAD_REQUEST:
            raise
        click.echo(f"Error: {refusal}", err=True)
        sys.exit(EXIT_USAGE)
    if output == "table":
        for line in lines(found, width()):
            click.echo(line)
    else:
        from egressd.cli._files import print_data

        print_data(found, output)
    if any(one["state"] in TOLD for one in found["unused"]):
        sys.exit(EXIT_NO)


def lines(found: dict[str, Any], columns: int) -> Iterator[str]:
    """What the table shows."""
    since, observed = found["since"], found["observed_since"]
    yield cut(f"node {found['node']}, since {max(since, observed)}", columns)
    if observed > since:
        yield cut(f"history begins {observed}, later than {since}", columns)
    yield ""
    if not found["unused"]:
        yield "every rule and pattern was used"
        return
    rows = [
        (one["state"], one["policy"], one["rule"] or "(all)", one["pattern"] or "(all)", _why(one))
        for one in found["unused"]
    ]
    yield from table(("STATE", "POLICY", "RULE", "PATTERN", "NOTE"), rows, columns)

    yield ""
    notes = {one["note"] for one in found["unused"]}
    yield from (cut(f"{note}: {text}", columns) for note, text in MEANING.items() if note in notes)


def _why(one: dict[str, Any]) -> str:
    return one["note"] or (f"last {one['last_used'][:10]}" if one["last_used"] else "never seen")
