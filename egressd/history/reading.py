"""Questions to the database: a day or an hour at a time, the newest first, within a number of answers and a time.

Whatever is asked, what a question costs is bounded: a day is read in the order in which it lies, without a sort, and
when the time is over the answer is what was found so far, and says so.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from egressd.history.observation import ABSENT, DAY_S, Edge, Filter, Key, Observation, Sums, Trace
from egressd.history.store import Store
from egressd.names import ROOT, Pattern

__all__ = ["ANSWER_S", "Traffic", "edges", "observations", "survey"]

ANSWER_S: Final = 2.0
"""Seconds that one question may take."""
STEPS: Final = 10_000
"""Instructions of SQLite's machine between two looks at the clock: well under a millisecond."""

MAX_SHOWN: Final = 50_000
"""Kinds that a survey knows again: some 15 MiB."""

_EDGE: Final = "namespace, workload, name, verdict, reason, policy, rule, search"


@dataclass(slots=True)
class Traffic:
    """What went over one edge. Ports are those of its flows, with their protocols."""

    queries: int = 0
    flows: int = 0
    packets: int = 0
    ports: set[tuple[int, str]] = field(default_factory=set)
    absent: int = 0
    """Queries to which the answer was that there is no such name."""
    first_seen: int = 0
    last_seen: int = 0

    def add(
        self, queries: int, flows: int, packets: int, ports: str | None, absent: int, first: int, last: int
    ) -> None:
        """Add what went over it on one day; `ports` are PORT/PROTOCOL, separated by commas."""
        self.queries += queries
        self.flows += flows
        self.packets += packets
        self.absent += absent
        for text in ports.split(",") if ports else ():
            port, _, protocol = text.partition("/")
            self.ports.add((int(port), protocol))
        self.first_seen = min(self.first_seen or first, first)
        self.last_seen = max(self.last_seen, last)


@dataclass(slots=True)
class _Clock:
    """Whether the time of a question is over."""

    over: bool = False


@contextmanager
def _within(store: Store, seconds: float) -> Iterator[_Clock]:
    """Let statements run for so long; the one that runs then is interrupted, and the clock says so."""
    clock, end = _Clock(), time.monotonic() + seconds
    store.connection.set_progress_handler(lambda: store.hurried or time.monotonic() > end, STEPS)
    try:
        yield clock
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_INTERRUPT:
            raise
        clock.over = True
    finally:
        store.connection.set_progress_handler(None, 0)


def _select(store: Store, what: str, wanted: Filter, rest: str, *values: object) -> Iterator[tuple[Any, ...]]:
    """The rows of each day that are wanted, the newest day first."""
    first, last = wanted.since // DAY_S, None if wanted.until is None else wanted.until // DAY_S
    days = [day for day in store.days if day >= first and (last is None or day <= last)]
    yield from _read(store, "observations", "day", days, (what, wanted, rest, *values))


def _read(
    store: Store, table: str, column: str, spans: Iterable[int], question: tuple[Any, ...]
) -> Iterator[tuple[Any, ...]]:
    """The rows of each of these days or hours; a question is what is wanted, which rows, and how they end."""
    what, wanted, rest, *values = question
    conditions, given = _conditions(wanted)
    statement = f"SELECT {what} FROM {table} WHERE {' AND '.join([f'{column} = ?', *conditions])} {rest}"  # noqa: S608 - ours
    for span in spans:
        yield from store.connection.execute(statement, (span, *given, *values))


def _conditions(wanted: Filter) -> tuple[list[str], list[object]]:
    """What a filter says of a row of a day that is looked at, with the values for its question marks."""
    found: list[tuple[str, object]] = [
        (f"{column} = ?", value)
        for column, value in (
            ("namespace", wanted.namespace),
            ("workload", wanted.workload),
            ("verdict", wanted.verdict),
            ("event", wanted.event),
        )
        if value is not None
    ]
    if wanted.since:
        found.append(("last_seen >= ?", int(wanted.since)))
    if wanted.until is not None:
        found.append(("first_seen <= ?", int(wanted.until)))
    if wanted.name is not None and wanted.name != Pattern(ROOT, wildcard=True):
        ending = f".{wanted.name.name}"
        found.append(
            (f"substr(name, -{len(ending)}) = ?", ending) if wanted.name.wildcard else ("name = ?", ending[1:])
        )
    return [condition for condition, _ in found], [value for _, value in found]


def _observation(row: tuple[Any, ...]) -> Observation:
    return Observation(Key._make((*row[:8], bool(row[8]), *row[9:14])), Sums._make(row[14:]))


def observations(store: Store, wanted: Filter, limit: int) -> tuple[list[Observation], bool]:
    """Observations, the newest day first, in it by namespace, workload and name; whether there are more of them."""
    found: list[Observation] = []
    with _within(store, ANSWER_S) as clock:
        for row in _select(store, "*", wanted, f"ORDER BY day, {_EDGE} LIMIT ?", limit + 1):
            found.append(_observation(row))
            if len(found) > limit:
                break
    return found[:limit], clock.over or len(found) > limit


def edges(store: Store, wanted: Filter, limit: int) -> tuple[dict[Edge, Traffic], bool]:
    """Who did what with which name, summed up over days, or over hours where those are known since then; whether there
    is more. Of more, the newest days' or hours' are told."""
    found: dict[Edge, Traffic] = {}
    more = False
    what = (
        f"{_EDGE}, sum(iif(event = 'dns', count, 0)), sum(iif(event = 'flow', count, 0)), sum(packets), "
        "group_concat(DISTINCT iif(event = 'flow', port || '/' || protocol, NULL)), "
        f"sum(iif(answer = '{ABSENT}', count, 0)), min(first_seen), max(last_seen)"
    )
    hours = store.hours_since(wanted.since) if wanted.until is None else None
    grouped = f"GROUP BY {_EDGE}"
    if hours is None:
        rows = _select(store, what, wanted, grouped)
    else:
        rows = _read(store, "hours", "hour", hours, (what, wanted, grouped))
    with _within(store, ANSWER_S) as clock:
        for row in rows:
            edge = Edge._make((*row[:7], bool(row[7])))
            if edge not in found and len(found) >= limit:
                more = True
                continue
            found.setdefault(edge, Traffic()).add(*row[8:])
    return found, clock.over or more


def survey(store: Store, since: float, reasons: Collection[str], seconds: float, see: Callable[[Trace], None]) -> int:
    """Show what was decided for these reasons, each kind of it once; returns since when nothing is missing.

    What is the same on many days is shown as of the newest one. Times in seconds since the epoch.
    """
    whole = max(int(since), store.facts["begun"])
    shown: set[tuple[Any, ...]] = set()
    day = -1
    with _within(store, seconds) as clock:
        wanted = f"AND reason IN ({', '.join('?' * len(reasons))})"
        what = f"{', '.join(Trace._fields)}, day"
        for row in _select(store, what, Filter(since=since), wanted, *reasons):
            kind = row[:-2]
            day = row[-1]
            if kind not in shown:
                if len(shown) >= MAX_SHOWN:
                    shown.clear()
                shown.add(kind)
                see(Trace._make(row[:-1]))
    return max(whole, (day + 1) * DAY_S) if clock.over else whole
