"""What egressd adds to a pod's wait: the same questions at a fixed rate, straight to the upstream and through egressd.

    python -m benchmarks.latency            (root)

First of an upstream that is as near as one can be, so that hardly anything but the way itself is measured; then of one
a millisecond away, as a cluster's DNS on another node is: a small relay holds each question that long.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.cpu import describe_machine
from benchmarks.peers import Egressd
from benchmarks.place import SELECTED, UPSTREAM, BenchmarkError, Place
from benchmarks.table import markdown

SECONDS: Final = 5
POPULAR: Final = 200
NAMES: Final = 60_000
DISTANT: Final = "192.0.2.54"
"""The upstream behind the relay."""
AWAY_S: Final = 0.001
_LINE: Final = re.compile(r"^> NOERROR \S+ A (\d+\.\d+)$", re.MULTILINE)
"""What dnsperf says of each query when it is verbose: rcode, name, type, seconds."""


def latencies_us(place: Place, rate: int, names: Iterable[int], upstream: str = UPSTREAM) -> list[float]:
    """Ask for allowed names at `rate` a second, and how long each took, in microseconds."""
    questions = place.folder / "questions.txt"
    lines = [f"n-{number}.allowed.bench.example A\n" for number in names]
    questions.write_text("".join(lines))
    command = ["dnsperf", "-v", "-s", upstream, "-d", str(questions), "-n", "1", "-Q", str(rate), "-c", "8", "-T", "1"]
    found = [float(seconds) * 1e6 for seconds in _LINE.findall(place.run(SELECTED, *command))]
    if len(found) < len(lines) * 0.999:
        raise BenchmarkError(f"{len(found)} answers to {len(lines)} questions, asking {upstream}")
    return found


class Behind(Egressd):
    """The daemon before the upstream that is asked."""

    def __init__(self, upstream: str) -> None:
        super().__init__("egressd")
        self.address = upstream

    def _settings(self, home: Path, objects: Path, log: Path, cached: bool) -> dict[str, object]:
        settings = super()._settings(home, objects, log, cached)
        return settings | {"dns": {"upstreams": [self.address], "cache": {"size": 50_000 if cached else 0}}}


class _Relay:
    """Hands each question on a little later, from a socket of its own; answers go back at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[bytes, tuple[str, int]] = {}
        self._down = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._down.bind((DISTANT, 53))
        self._up = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._up.connect((UPSTREAM, 53))
        for sock, ready in ((self._down, self._asked), (self._up, self._answered)):
            sock.setblocking(False)
            loop.add_reader(sock, ready)

    def _asked(self) -> None:
        data, client = self._down.recvfrom(4096)
        self._waiting[_key(data)] = client  # answers are told apart by ID and question
        self._loop.call_later(AWAY_S, self._up.send, data)

    def _answered(self) -> None:
        data = self._up.recv(4096)
        client = self._waiting.pop(_key(data), None)
        if client is not None:
            self._down.sendto(data, client)


def _key(message: bytes) -> bytes:
    """Its ID, and the name it asks for."""
    return message[:2] + message[12 : message.index(b"\0", 12)]


async def relay() -> None:
    """In the upstream's namespace, until it is ended."""
    _Relay(asyncio.get_running_loop())
    print("ready", flush=True)
    await asyncio.Event().wait()


@contextmanager
def _distant(place: Place) -> Iterator[str]:
    """The relay, while it runs; its address."""
    place.run("upstream", "ip", "address", "add", f"{DISTANT}/24", "dev", "eth0")
    process = place.start("upstream", [sys.executable, "-m", "benchmarks.latency", "--relay"], "relay.log")
    try:
        for _ in range(100):
            if "ready" in (place.folder / "relay.log").read_text():
                break
            time.sleep(0.05)
        else:
            raise BenchmarkError(f"the relay did not come up: {(place.folder / 'relay.log').read_text()}")
        yield DISTANT
    finally:
        place.stop(process)


def measure(place: Place, rate: int, upstream: str = UPSTREAM) -> dict[str, list[float]]:
    """Straight, forwarded by egressd (each name new to it), and from its cache."""
    count = rate * SECONDS
    found = {"the upstream directly": latencies_us(place, rate, range(count), upstream)}
    for title, cached, names in (
        ("egressd, forwarded, new names", False, range(count)),
        ("egressd, repeated names", True, [number % POPULAR for number in range(count)]),
    ):
        peer = Behind(upstream)
        peer.start(place, cached=cached)
        try:
            time.sleep(1.0)
            warm = [NAMES + number % POPULAR if not cached else number for number in names]
            latencies_us(place, rate, warm, upstream)
            found[title] = latencies_us(place, rate, names, upstream)
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
    parser.add_argument("--relay", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.relay:
        asyncio.run(relay())
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="egressd-bench-") as folder, Place(Path(folder)) as place:
            near = measure(place, options.rate)
            with _distant(place) as upstream:
                far = measure(place, options.rate, upstream)
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    print(f"Machine: {describe_machine()}\nLatency at {options.rate:,} queries/s, µs\n")
    away = f", {AWAY_S * 1000:g} ms away"
    rows = [
        row(f"{title}{where}", sample, found["the upstream directly"])
        for found, where in ((near, ""), (far, away))
        for title, sample in found.items()
    ]
    print(markdown(["", "p50", "p99", "p50 added", "p99 added"], rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
