"""What egressd adds to a pod's wait: the same questions at a fixed rate, straight to the upstream and through egressd.

python -m benchmarks.latency            (root)
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from benchmarks.cpu import describe_machine
from benchmarks.peers import Egressd
from benchmarks.place import SELECTED, UPSTREAM, BenchmarkError, Place
from benchmarks.table import markdown

SECONDS: Final = 5
POPULAR: Final = 200
NAMES: Final = 60_000
_LINE: Final = re.compile(r"^> NOERROR \S+ A (\d+\.\d+)$", re.MULTILINE)
"""What dnsperf says of each query when it is verbose: rcode, name, type, seconds."""


def latencies_us(place: Place, rate: int, names: Iterable[int]) -> list[float]:
    """Ask for allowed names at `rate` a second, and how long each took, in microseconds."""
    questions = place.folder / "questions.txt"
    lines = [f"n-{number}.allowed.bench.example A\n" for number in names]
    questions.write_text("".join(lines))
    command = ["dnsperf", "-v", "-s", UPSTREAM, "-d", str(questions), "-n", "1", "-Q", str(rate), "-c", "8", "-T", "1"]
    found = [float(seconds) * 1e6 for seconds in _LINE.findall(place.run(SELECTED, *command))]
    if len(found) < len(lines) * 0.999:
        raise BenchmarkError(f"{len(found)} answers to {len(lines)} questions")
    return found


def measure(place: Place, rate: int) -> dict[str, list[float]]:
    """Straight, forwarded by egressd (each name new to it), and from its cache."""
    count = rate * SECONDS
    found = {"the upstream directly": latencies_us(place, rate, range(count))}
    for title, cached, names in (
        ("egressd, forwarded, new names", False, range(count)),
        ("egressd, repeated names", True, [number % POPULAR for number in range(count)]),
    ):
        peer = Egressd("egressd")
        peer.start(place, cached=cached)
        try:
            time.sleep(1.0)
            latencies_us(place, rate, [NAMES + number % POPULAR if not cached else number for number in names])
            found[title] = latencies_us(place, rate, names)
        finally:
            peer.stop(place)
    return found


def row(title: str, found: list[float], base: list[float]) -> list[str]:
    """p50 and p99 in microseconds, and what they are more than those of `base`."""
    own, other = (statistics.quantiles(sample, n=100) for sample in (found, base))
    return [title, f"{own[49]:.0f}", f"{own[98]:.0f}", f"{own[49] - other[49]:+.0f}", f"{own[98] - other[98]:+.0f}"]


def main() -> int:
    """Exit code 0; 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--rate", type=int, default=1_000, help="queries a second; default: %(default)s")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="egressd-bench-") as folder, Place(Path(folder)) as place:
            found = measure(place, options.rate)
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    print(f"Machine: {describe_machine()}\nLatency at {options.rate} queries/s, µs\n")
    base = found["the upstream directly"]
    head = ["", "p50", "p99", "p50 added", "p99 added"]
    print(markdown(head, [row(title, sample, base) for title, sample in found.items()]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
