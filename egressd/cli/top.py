"""`egressd top`: who asks for what right now, and what becomes of it."""

from __future__ import annotations

import json
import math
import queue
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

import click

from egressd.cli._daemon import Daemon, daemon_options
from egressd.cli._table import table, width
from egressd.names import Name

__all__ = ["Seen", "Window", "command", "render"]

HOME: Final = "\x1b[H\x1b[J"
"""Cursor to the top left, the rest erased."""
MAX_SEEN: Final = 20_000
"""Different things remembered per interval; the rest is counted together."""

SMALL: Final = 0.1
"""Rates below it have another digit."""
SEARCH: Final = "(search list)"
"""Stands for every step of a search list: a resolver tries three of them for each name it is asked for."""
WENT_THROUGH: Final = frozenset({"allowed", "would-deny"})
MAX_RECALLED: Final = 10_000
"""Records asked for of the time before; what the endpoint gives at most."""


class Seen(NamedTuple):
    """What is counted together."""

    pod: str
    destination: str
    verdict: str
    absent: bool = False
    """Whether the answer was that there is no such name."""


class Window:
    """The last `seconds` of records, in slices; sans-IO, `now` is monotonic seconds. `domains` are the cluster's."""

    def __init__(self, seconds: float, domains: Iterable[str] = ()) -> None:
        self.seconds = seconds
        self._domains = tuple(map(Name, domains))
        self.began = 0.0
        self.lost = 0
        self._slices: deque[tuple[float, Counter[Seen]]] = deque()

    def add(self, record: dict[str, Any], now: float) -> None:
        """Count one record."""
        if "dropped" in record:
            self.lost += int(record["dropped"])
        seen = _seen(record)
        if seen is None:
            return
        if not self._slices or now - self._slices[-1][0] >= 1.0:
            self._slices.append((now, Counter()))
        counts = self._slices[-1][1]
        if seen not in counts and len(counts) >= MAX_SEEN:
            seen = Seen("(others)", "", seen.verdict)
        counts[seen] += int(record.get("aggregated", 0)) or 1

    def rows(self, now: float) -> tuple[list[tuple[Seen, float]], float]:
        """What was seen, by rate (per second), highest first; and the rate of all together."""
        while self._slices and now - self._slices[0][0] > self.seconds:
            self._slices.popleft()
        total: Counter[Seen] = Counter()
        for _, counts in self._slices:
            total.update(counts)
        total = self._folded(total)
        span = max(1.0, min(self.seconds, now - self.began))
        rows = sorted(((seen, count / span) for seen, count in total.items()), key=lambda row: (-row[1], row[0]))
        return rows, total.total() / span

    def _folded(self, total: Counter[Seen]) -> Counter[Seen]:
        """Steps of search lists put together, also those that only the names beside them tell."""
        from egressd.policy import is_expansion

        asked: dict[str, set[str]] = {}
        for seen in total:
            asked.setdefault(seen.pod, set()).add(seen.destination)
        folded: Counter[Seen] = Counter()
        for seen, count in total.items():
            noise = seen.absent and is_expansion(seen.destination, asked[seen.pod], self._domains)
            folded[Seen(seen.pod, SEARCH if noise else seen.destination, seen.verdict)] += count
        return folded


def _seen(record: dict[str, Any]) -> Seen | None:
    pod = record.get("pod", {})
    who = f"{pod['namespace']}/{pod['name']}" if "name" in pod else str(pod.get("ip", ""))
    if record["event"] == "dns":
        name = SEARCH if record.get("search") else record["query"].get("name", "(many names)")
        absent = record["verdict"] in WENT_THROUGH and record.get("response", {}).get("rcode") == "NXDOMAIN"
        return Seen(who, name, record["verdict"], absent)
    if record["event"] == "flow":
        to = record["destination"]
        name = to["names"][0] if to["names"] else to["ip"]
        return Seen(who, f"{name}:{to['port']}/{to['protocol']}" if "port" in to else name, record["verdict"])
    return None


def render(window: Window, now: float, columns: int, most: int) -> Iterator[str]:
    """The screen, line by line."""
    rows, rate = window.rows(now)
    lost = f", {window.lost} records missed" if window.lost else ""
    yield f"{rate:.1f}/s over the last {window.seconds:g} s, {len(rows)} different{lost}"
    shown = [
        (f"{each:.{1 if each >= SMALL else 2}f}", seen.verdict, seen.pod, seen.destination)
        for seen, each in rows[:most]
    ]
    yield from table(("RATE/S", "VERDICT", "POD", "DESTINATION"), shown, columns)


@click.command("top", epilog="Example: egressd top --interval 5; egressd top --once | head")
@click.option("--interval", type=click.FloatRange(0.2, 3600), default=2.0, show_default=True, help="Seconds a screen.")
@click.option(
    "--window", "seconds", type=click.FloatRange(1, 3600), default=10.0, show_default=True, help="Seconds counted."
)
@click.option("--once", is_flag=True, help="One table after one interval, then end.")
@daemon_options
def command(interval: float, seconds: float, once: bool, daemon: Daemon, config: str | None) -> None:  # noqa: ARG001 - `daemon` is made from it
    """Watch who asks for what: verdicts and rates, live, until Ctrl-C."""
    status = daemon.get("/api/v1/status")  # says at once if there is no daemon
    window = Window(seconds, status["inside"]["domains"])
    window.began = time.monotonic() - seconds
    arrived: queue.Queue[bytes | None] = queue.Queue(MAX_SEEN)
    threading.Thread(target=_read, args=(daemon, arrived, seconds), daemon=True).start()
    terminal = sys.stdout.isatty()
    try:
        while _gather(window, arrived, interval):
            _show(window, terminal)
            if once:
                return
        _show(window, terminal)
    except (KeyboardInterrupt, BrokenPipeError):
        return
    click.echo("the daemon ended", err=True)


def _read(daemon: Daemon, arrived: queue.Queue[bytes | None], seconds: float) -> None:
    """Hand on what comes, and before it what the window would hold if it had been open all along."""
    since = f"{math.ceil(seconds)}s"
    for line in daemon.lines("/api/v1/audit", patient=True, follow=1, since=since, limit=MAX_RECALLED):
        arrived.put(line)
    arrived.put(None)


def _gather(window: Window, arrived: queue.Queue[bytes | None], interval: float) -> bool:
    """Count what comes for an interval; false when nothing will come any more."""
    deadline = time.monotonic() + interval
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = arrived.get(timeout=left)
        except queue.Empty:
            return True
        if line is None:
            return False
        window.add(json.loads(line), time.monotonic())
    return True


def _show(window: Window, terminal: bool) -> None:
    import shutil

    most = shutil.get_terminal_size((80, 24)).lines - 3 if terminal else 1000
    lines = list(render(window, time.monotonic(), width(), most))
    click.echo((HOME if terminal else "") + "\n".join(lines))
    sys.stdout.flush()
