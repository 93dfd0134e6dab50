"""What else egressd does must not be felt: latency while policies are rewritten, CPU while everybody watches.

    python -m benchmarks.disturbed            (root)

Both at a fixed rate. First the time to answer, in peace and while 1,000 policies are rewritten again and again and the
metrics are scraped each second: policies that select no pod of the node, and such that select 200. Then the CPU of all
of egressd's processes with history, a scrape each second and the live log open in a browser, beside a run without any
of them; the audit file is written in all. The browser is headless Chromium on the same cores: what it does to their
caches and clocks is in the numbers, its own CPU is not. So curl reads the log in a third kind of run, which shows what
is egressd's own part. Runs go through the three kinds and back, and a ratio is the median of the pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from benchmarks.cpu import describe_machine, spent_s
from benchmarks.latency import NAMES, POPULAR, latencies_us
from benchmarks.peers import Egressd, config_map, pod
from benchmarks.place import SELECTED, UPSTREAM, BenchmarkError, Place
from benchmarks.table import markdown
from benchmarks.watchers import CHROMIUM, Scraper, again_and_again, live_log

POLICIES: Final = 1_000
RULES: Final = 20
PODS: Final = 200
"""Whom they select, if anybody: addresses of the node's range that nothing else has."""
SECONDS: Final = 20
BROWSER: Final = "Chromium"
SETTLED_S: Final = 12.0
"""After a start: until all policies are known, and what history notes of them is written."""
REWRITE_EVERY_S: Final = 2.0
SCRAPE_EVERY_S: Final = 1.0


class Watched(Egressd):
    """The daemon with `POLICIES` more, pods that they select or none, history or none, and an admin socket to ask."""

    def __init__(self, *, history: bool = True, pods: int = 0) -> None:
        super().__init__("egressd")
        self.history = history
        self.pods = [
            pod(f"crowd-{number}", f"10.244.0.{10 + number}", {"crowd": str(number)}) for number in range(pods)
        ]
        self.crowd = Path()
        self.socket = Path()

    def command(self, place: Place, *, cached: bool) -> Sequence[str]:
        """As for any benchmark, with one more file of objects."""
        command = super().command(place, cached=cached)
        self.crowd = place.folder / self.name / "objects" / "crowd.json"
        self.socket = place.folder / self.name / "admin.sock"
        self.rewrite(0)
        return command

    def rewrite(self, edition: int) -> None:
        """Another edition of all of the crowd's policies, each of them changed."""
        items = [*self.pods, *(_crowd_policy(number, edition) for number in range(POLICIES))]
        draft = self.crowd.with_suffix(".new")
        draft.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        draft.replace(self.crowd)

    def _settings(self, home: Path, objects: Path, log: Path, cached: bool) -> dict[str, object]:
        settings = super()._settings(home, objects, log, cached)
        return settings | {"history": {"file": str(home / "history.db") if self.history else ""}}


def _crowd_policy(number: int, edition: int) -> dict[str, object]:
    rules = [{"to": [f"e{edition}-{each}.p{number}.example"], "ports": ["443/TCP"]} for each in range(RULES)]
    subject = {"podSelector": {"matchLabels": {"crowd": str(number % PODS)}}}
    return config_map(f"crowd-{number}", {"subject": subject, "allow": rules})


# --------------------------------------------------------------------------------------------------- the two questions


def latency(place: Place, rate: int, *, disturbed: bool, pods: int = 0) -> list[float]:
    """Microseconds of each answer, half of them forwarded and half from the cache."""
    peer = Watched(pods=pods)
    peer.start(place, cached=True)
    names = [number % POPULAR if number % 2 else number % NAMES for number in range(rate * SECONDS)]
    try:
        time.sleep(3.0)
        latencies_us(place, rate, [number % POPULAR for number in range(rate * 5)])
        with ExitStack() as stack:
            if disturbed:
                edition = iter(range(1, 1_000_000))
                edits = stack.enter_context(again_and_again(REWRITE_EVERY_S, lambda: peer.rewrite(next(edition))))
                scraper = Scraper(peer.socket)
                stack.enter_context(again_and_again(SCRAPE_EVERY_S, scraper.scrape))
            found = latencies_us(place, rate, names)
        if disturbed and not edits[0]:
            raise BenchmarkError("no policy was rewritten meanwhile")
        return found
    finally:
        peer.stop(place)


def cpu_us(place: Place, rate: int, reader: str) -> float:
    """Microseconds of CPU a query, of all processes; with history and scrapes if somebody reads the log."""
    seen = bool(reader)
    peer = Watched(history=seen)
    peer.start(place, cached=True)
    names = [number % POPULAR for number in range(rate * SECONDS)]
    try:
        time.sleep(SETTLED_S)
        scraper = Scraper(peer.socket)
        with ExitStack() as stack:
            if seen:
                stack.enter_context(live_log(place, scraper, peer.socket, browser=reader == BROWSER))
                stack.enter_context(again_and_again(SCRAPE_EVERY_S, scraper.scrape))
            latencies_us(place, rate, names[: rate * 5])
            before = spent_s(peer.pids())
            answered = len(latencies_us(place, rate, names))
            spent = spent_s(peer.pids()) - before
        remembered = scraper.scrape()["egressd_history_records_total"]
        scraper.close()
        if (remembered >= answered) != seen:
            raise BenchmarkError(f"history has {remembered:.0f} records of {answered} queries")
        return spent / answered * 1e6
    finally:
        peer.stop(place)


def report(place: Place, rate: int, repeats: int) -> str:
    """Both questions, each with and without in turn."""
    quiet: list[float] = []
    loud: list[float] = []
    louder: list[float] = []
    readers = ("", "curl", BROWSER) if CHROMIUM else ("", "curl")
    cost: dict[str, list[float]] = {reader: [] for reader in readers}
    for repeat in range(repeats):
        quiet += latency(place, rate, disturbed=False)
        loud += latency(place, rate, disturbed=True)
        louder += latency(place, rate, disturbed=True, pods=PODS)
        for reader in (*readers, *reversed(readers)):
            cost[reader].append(cpu_us(place, rate, reader))
            print(f"{repeat + 1}/{repeats} {reader or 'off'}: {cost[reader][-1]:.1f} µs", file=sys.stderr)
    rows = []
    rewritten = f"{POLICIES:,} policies rewritten, and scraped"
    for title, found in (
        ("in peace", quiet),
        (f"{rewritten}; they select no pod here", loud),
        (f"{rewritten}; they select {PODS} pods", louder),
    ):
        cuts = statistics.quantiles(found, n=1000)
        rows.append([title, f"{cuts[499]:.0f}", f"{cuts[989]:.0f}", f"{cuts[998]:.0f}"])
    costs = []
    for reader, found in cost.items():
        title = f"all three, the live log in {reader}" if reader else "neither history, nor scrapes, nor the live log"
        ratios = sorted(more / less for more, less in zip(found, cost[""], strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})" if reader else "1.00"
        costs.append([title, f"{statistics.median(found):.1f}", spread])
    return (
        f"Time to answer at {rate:,} queries/s, µs\n\n{markdown(['', 'p50', 'p99', 'p99.9'], rows)}\n\n"
        f"CPU a query at {rate:,} queries/s, µs, all processes\n\n{markdown(['', 'µs', 'ratio'], costs)}"
    )


def main() -> int:
    """Exit code 0; 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.disturbed", description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000, help="queries a second; default: %(default)s")
    parser.add_argument("--repeats", type=int, default=1, help="default: %(default)s")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="egressd-bench-") as folder, Place(Path(folder)) as place:
            text = report(place, options.rate, options.repeats)
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    print(f"Machine: {describe_machine()}\nPods: {SELECTED} asks {UPSTREAM}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
