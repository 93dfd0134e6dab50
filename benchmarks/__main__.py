"""`python -m benchmarks`: runs peers and workloads in turn, and prints what they cost as Markdown tables."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cpu import describe_machine, resident_mib, usage
from benchmarks.peers import Egressd, Peer
from benchmarks.place import BenchmarkError, Place
from benchmarks.resolvers import CoreDns, Dnsdist, Dnsmasq, Unbound
from benchmarks.table import Sample, measure_table, ratio_table
from benchmarks.workloads import MAX_QUERIES, WORKLOADS, Load, Workload, run_load

PEERS: tuple[Peer, ...] = (
    Egressd("egressd"),
    Egressd("egressd-interpreted", compiled=False),
    Egressd("egressd-no-audit", audit=False),
    Dnsmasq("dnsmasq"),
    Dnsmasq("dnsmasq-nftset", nftset=True),
    Dnsmasq("dnsmasq-log", log_queries=True),
    Dnsmasq("dnsmasq-nftset-log", nftset=True, log_queries=True),
    Unbound("unbound"),
    Dnsdist("dnsdist"),
)
COREDNS = os.environ.get("COREDNS", "")
"""A CoreDNS binary to compare with, as Debian has none: `make bench COREDNS=/path/to/coredns`."""
if COREDNS:
    PEERS += (CoreDns("coredns", COREDNS), CoreDns("coredns-log", COREDNS, log_queries=True))
SETTLE_S = 1.0
"""Between a peer's first answer and the first question: what it does only while it starts is not what a query costs."""
LEAST_CPU_US = 1.0
"""Less than this a query, and the peer was not asked at all: no resolver is that cheap."""


def main() -> int:
    """Exit code 0; 1 if a run failed; 3 if the environment does not allow any."""
    options = read_options()
    if os.geteuid() != 0:
        print("benchmarks make network namespaces: run them as root", file=sys.stderr)
        return 3
    peers = [peer for peer in PEERS if peer.name in options.peers]
    workloads = [workload for workload in WORKLOADS if workload.name in options.workloads]
    load = Load(options.queries, options.outstanding, options.clients, options.rate)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: nothing is left behind
    try:
        with tempfile.TemporaryDirectory(prefix="egressd-bench-") as folder, Place(Path(folder)) as place:
            samples = measure(place, peers, workloads, load, options.repeats)
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    with io.StringIO() as page, contextlib.redirect_stdout(page):
        report(samples, workloads, load, options.repeats)
        text = page.getvalue()
    print(text)
    if options.write:
        options.write.write_text(text)
    return 0


def read_options() -> argparse.Namespace:
    """The command line; names are checked here."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    peers, workloads = [peer.name for peer in PEERS], [workload.name for workload in WORKLOADS]
    parser.add_argument(
        "--peers", nargs="+", choices=peers, default=peers, help="default: all; ratios are to the first"
    )
    parser.add_argument("--workloads", nargs="+", choices=workloads, default=workloads, help="default: all")
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--queries", type=int, default=60_000, help=f"a run; at most {MAX_QUERIES}; default: %(default)s"
    )
    parser.add_argument("--outstanding", type=int, default=32, help="queries in flight; default: %(default)s")
    parser.add_argument("--clients", type=int, default=8, help="sockets asking; default: %(default)s")
    parser.add_argument("--rate", type=int, default=0, help="queries a second; default: as fast as answers come")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the tables there, too")
    options = parser.parse_args()
    if not 1 <= options.queries <= MAX_QUERIES or options.repeats < 1:
        parser.error(f"--queries is 1 to {MAX_QUERIES}, --repeats at least 1")
    return options


def measure(
    place: Place, peers: Sequence[Peer], workloads: Sequence[Workload], load: Load, repeats: int
) -> list[Sample]:
    """All runs: within a repeat and workload the peers follow each other, beginning with another one each time."""
    samples = []
    for repeat in range(repeats):
        for workload in workloads:
            first = repeat % len(peers)
            for peer in (*peers[first:], *peers[:first]):
                if not peer.takes(workload):
                    continue
                sample = measure_once(place, peer, workload, load, repeat)
                print(f"{repeat + 1}/{repeats} {workload.name} {peer.name}: {sample.cpu_us:.1f} µs", file=sys.stderr)
                samples.append(sample)
    order = {peer.name: place for place, peer in enumerate(peers)}
    return sorted(samples, key=lambda sample: order[sample.peer])


def measure_once(place: Place, peer: Peer, workload: Workload, load: Load, repeat: int) -> Sample:
    """A fresh peer, warmed up, asked, and ended."""
    peer.start(place, cached=workload.cached)
    try:
        time.sleep(SETTLE_S)
        run_load(place, workload, peer.address, workload.warm_up(), load)
        before = usage(peer.pids())
        run = run_load(place, workload, peer.address, workload.questions(load.queries), load)
        spent = usage(peer.pids()).since(before)
        opened, resident = peer.opened(place), resident_mib(peer.pids())
    finally:
        peer.stop(place)
    cpu_us, user_us = spent.total / run.completed * 1e6, spent.user / run.completed * 1e6
    if cpu_us < LEAST_CPU_US:
        raise BenchmarkError(f"{peer.name} spent {cpu_us:.2f} µs a query on {workload.name}: it was not asked")
    check_opened(peer, workload, load, opened)
    return Sample(repeat, workload.name, peer.name, cpu_us, user_us, run.rate, run.latency_us, resident)


def check_opened(peer: Peer, workload: Workload, load: Load, opened: int) -> None:
    """A peer that opens addresses must have opened every allowed one, or it was cheap for a bad reason."""
    due = workload.opens(load.queries) if peer.opens else 0
    if opened < due:
        raise BenchmarkError(f"{peer.name} opened {opened} addresses of {due} on {workload.name}")


def report(samples: Sequence[Sample], workloads: Sequence[Workload], load: Load, repeats: int) -> None:
    """The tables, ready to be pasted into a page."""
    titles = {workload.name: workload.title for workload in workloads}
    base = samples[0].peer
    pace = f"{load.rate} queries/s" if load.rate else "as fast as answers come"
    print(f"Machine: {describe_machine()}")
    print(f"Load: {load.queries} queries a run, {load.outstanding} in flight, {pace}; {repeats} interleaved repeats\n")
    print("CPU a query, µs (user + system of all its processes; median)\n")
    print(measure_table(samples, titles, lambda sample: sample.cpu_us, ".1f"))
    print(f"\nThe same as a ratio to {base} in the same repeat: median (least-largest)\n")
    print(ratio_table(samples, titles))
    print("\nOf it user time, µs\n")
    print(measure_table(samples, titles, lambda sample: sample.user_us, ".1f"))
    print("\nAnswers a second\n")
    print(measure_table(samples, titles, lambda sample: sample.rate, ".0f"))
    print("\nMean latency, µs\n")
    print(measure_table(samples, titles, lambda sample: sample.latency_us, ".0f"))
    print("\nMemory at the end, MiB (resident, all its processes)\n")
    print(measure_table(samples, titles, lambda sample: sample.resident_mib, ".0f"))


if __name__ == "__main__":
    sys.exit(main())
