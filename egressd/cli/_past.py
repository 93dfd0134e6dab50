"""What was seen, from where it is kept: audit files, or the history of the running daemon, asked for day by day."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import click

from egressd.cli._daemon import Daemon
from egressd.cli._records import records

if TYPE_CHECKING:
    from egressd.authoring import Seen

__all__ = ["from_option", "seen_in"]

PART: Final = 50_000
"""Observations asked for at a time."""


def from_option(function: Any) -> Any:
    """Adds --from to a verb; it gets `source`."""
    return click.option(
        "--from",
        "source",
        type=click.Choice(["audit", "history"]),
        default="audit",
        show_default=True,
        help="Audit files, or the running daemon's history: it reaches further back, by whole days.",
    )(function)


def seen_in(source: str, daemon: Daemon, files: tuple[str, ...], default: str, since: float) -> Iterator[Seen]:
    """What was seen since a moment; `files` are those that --audit names. Raises `EnvironmentProblem`."""
    if source == "audit":
        return _noted(records(files or (default,), since), since)
    if files:
        raise click.UsageError("--audit names files, and --from history reads none")
    return _history(daemon, since)


def _noted(found: Iterable[Seen], since: float) -> Iterator[Seen]:
    """As it is, with a word on standard error where the files do not reach as far back as was asked."""
    from egressd.authoring import moment

    told = not since
    for seen in found:
        if not told and moment(seen.time) > since + 3600:
            click.echo(f"the audit files begin {seen.time[:19]}Z; --from history may reach further back", err=True)
        told = True
        yield seen


def _history(daemon: Daemon, since: float) -> Iterator[Seen]:
    """Observations, the newest day first. A day that is too large for one answer is told, and cut."""
    from egressd.authoring import read_observation

    until: str | None = None
    while True:
        start = f"{datetime.fromtimestamp(int(since), UTC):%Y-%m-%dT%H:%M:%SZ}" if since else None
        answer = daemon.get("/api/v1/history", since=start, until=until, limit=PART)
        days = [(day, list(some)) for day, some in groupby(answer["observations"], lambda one: one["day"])]
        whole = answer["truncated"] and len(days) > 1
        for _, observations in days[: -1 if whole else None]:
            yield from filter(None, map(read_observation, observations))
        if not answer["truncated"]:
            return
        last = days[-1][0] if days else ""
        if not whole:
            click.echo(f"warning: history holds more than could be read{f' of {last}' if last else ''}", err=True)
        if not last:
            return
        until = f"{last}T23:59:59Z" if whole else _before(last)


def _before(day: str) -> str:
    """The last second before a day."""
    return f"{date.fromisoformat(day) - timedelta(days=1)}T23:59:59Z"
