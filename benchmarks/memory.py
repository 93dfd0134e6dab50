"""What egressd holds in memory on a node with 250 pods and 10,000 open addresses, beside what Python itself needs.

    python -m benchmarks.memory            (root)

A few policies, settings as they are by default (cache, history, audit file and admin API are on), 10,000 names asked by
five pods of different identities at a rate that their budgets allow, one scrape. Goal: 80 MiB for both processes.

RSS counts each page that a process maps; where both map it (the interpreter, libraries) it counts for each, but once in
the sum. PSS shares it among all that map it, other programs of the machine as well: less than RSS where these run
Python, too. Private dirty is what nobody else can have and what no file holds. All from /proc (proc_pid_smaps(5)).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.cpu import describe_machine
from benchmarks.peers import Egressd, Peer, config_map, pod
from benchmarks.place import SELECTED, UNSELECTED, UPSTREAM, BenchmarkError, Place
from benchmarks.resolvers import Dnsmasq, Unbound
from benchmarks.table import markdown

PODS: Final = 250
GRANTS: Final = 10_000
GOAL_MIB: Final = 80
APPS: Final = 5
"""Identities, each with a policy of its own; one pod of each asks."""
RULES: Final = 20
RATE: Final = 800
"""Questions a second: less than a pod's default budget of 1,000."""
SETTLED_S: Final = 12.0
"""Until history has written what was seen, twice over, and the first second's work is done."""
PAGE: Final = os.sysconf("SC_PAGE_SIZE")
PRESENT: Final = 1 << 63
FRAME: Final = (1 << 55) - 1
"""Documentation/admin-guide/mm/pagemap.rst: whether a page is in memory, and which page frame it is."""


class Held(NamedTuple):
    """MiB that one process, or several together, hold."""

    rss: float
    pss: float
    dirty: float


class Crowded(Egressd):
    """The daemon as it comes, on a node of `PODS` pods."""

    def _settings(self, home: Path, objects: Path, log: Path, cached: bool) -> dict[str, object]:
        settings = super()._settings(home, objects, log, cached)
        dns = {"upstreams": [UPSTREAM]}
        return {key: value for key, value in settings.items() if key != "budgets"} | {"dns": dns}

    @staticmethod
    def _objects() -> list[dict[str, object]]:
        policies = [_policy(app) for app in range(APPS)]
        return [*policies, *(pod(f"pod-{n}", _address(n), {"app": f"app-{n % APPS}"}) for n in range(PODS))]


def _address(number: int) -> str:
    """Of pod `number`. The first is `SELECTED`, in whose namespace the others that ask live; the last, the other's."""
    return (SELECTED, *(f"10.244.0.{host}" for host in range(7, PODS + 5)), UNSELECTED)[number]


def _policy(app: int) -> dict[str, object]:
    rules: list[dict[str, object]] = [
        {"to": [f"a{n}.p{app}.example", f"*.b{n}.p{app}.example"], "ports": ["443/TCP"]} for n in range(RULES - 1)
    ]
    rules.append({"name": "bench", "to": ["*.allowed.bench.example"], "ports": ["443/TCP"]})
    deny = [{"name": "never", "to": ["*.denied.bench.example"]}]
    subject = {"podSelector": {"matchLabels": {"app": f"app-{app}"}}}
    return config_map(f"app-{app}", {"subject": subject, "deny": deny, "allow": rules})


# ------------------------------------------------------------------------------------------------------ what is held


def held(pid: int) -> Held:
    """What one process holds. Raises `FileNotFoundError` when it is gone."""
    fields = dict(_fields(Path(f"/proc/{pid}/smaps_rollup").read_text()))
    return Held(*(fields[name] / 1024 for name in ("Rss", "Pss", "Private_Dirty")))


def together(pids: Sequence[int]) -> Held:
    """What several hold, each page frame counted once in `rss`."""
    each = [held(pid) for pid in pids]
    frames = set().union(*(_frames(pid) for pid in pids))
    return Held(len(frames) * PAGE / 2**20, sum(one.pss for one in each), sum(one.dirty for one in each))


def _fields(text: str) -> Iterator[tuple[str, float]]:
    for line in text.splitlines()[1:]:
        name, value, *_ = line.split()
        yield name.rstrip(":"), float(value)


def _frames(pid: int) -> set[int]:
    """The page frames that a process has mapped. Raises `BenchmarkError` without the right to know."""
    found: set[int] = set()
    with Path(f"/proc/{pid}/pagemap").open("rb") as pagemap:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, _, end = line.split()[0].partition("-")
            first, count = int(start, 16) // PAGE, (int(end, 16) - int(start, 16)) // PAGE
            if first >= 1 << 51:
                continue  # the kernel's own vsyscall page
            pagemap.seek(8 * first)
            entries = memoryview(pagemap.read(8 * count)).cast("Q")
            found |= {entry & FRAME for entry in entries if entry & PRESENT}
    if found == {0}:
        raise BenchmarkError("the kernel does not say which pages a process has; CAP_SYS_ADMIN is needed")
    return found - {0}


# ------------------------------------------------------------------------------------------------------------ runs


def wire(place: Place) -> list[str]:
    """Give the selected pod's namespace the addresses of all the pods that ask; returns them."""
    asking = [_address(number) for number in range(APPS)]
    for address in asking[1:]:
        place.run(SELECTED, "ip", "address", "add", f"{address}/32", "dev", "eth0")
        place.run("node", "ip", "route", "add", f"{address}/32", "dev", "pod0")
    return asking


def ask(place: Place, server: str, asking: Sequence[str]) -> None:
    """Each pod asks for its share of `GRANTS` names, none twice. Raises `BenchmarkError` where answers are lost."""
    share = GRANTS // len(asking)
    for number, address in enumerate(asking):
        names = place.folder / "names.txt"
        wanted = range(number * share, (number + 1) * share)
        names.write_text("".join(f"n-{name}.allowed.bench.example A\n" for name in wanted))
        command = ["dnsperf", "-s", server, "-a", address, "-d", str(names), "-n", "1", "-Q", str(RATE), "-c", "4"]
        report = place.run(SELECTED, *command)
        if f"NOERROR {share} " not in report:
            raise BenchmarkError(f"{address} asked for {share} names, and heard:\n{report}")


def scrape(place: Place, home: Path) -> None:
    """Read what a kubelet and Prometheus read."""
    for path in ("readyz", "metrics"):
        url = ["--unix-socket", str(home / "admin.sock"), f"http://localhost/{path}"]
        patience = ["--retry", "20", "--retry-delay", "1", "--retry-all-errors"]  # it comes up behind the data path
        place.run("node", "curl", "-sS", "--fail", *patience, "-o", "/dev/null", *url)


@contextmanager
def running(place: Place, peer: Peer) -> Iterator[None]:
    """A peer answers, from here to its end."""
    peer.start(place, cached=True)
    try:
        yield
    finally:
        peer.stop(place)


def egressd(place: Place, name: str, asking: Sequence[str], *, compiled: bool) -> dict[str, tuple[Held, Held]]:
    """What each process holds before the first question, and with `GRANTS` addresses open."""
    peer = Crowded(name, compiled=compiled)
    with running(place, peer):  # once for its byte code: a start that has to compile takes some MiB more
        scrape(place, place.folder / name)
    with running(place, peer):
        scrape(place, place.folder / name)
        time.sleep(SETTLED_S)
        before = _both(peer.pids())
        ask(place, peer.address, asking)
        scrape(place, place.folder / name)
        time.sleep(SETTLED_S)
        opened = peer.opened(place)
        if opened < GRANTS:
            raise BenchmarkError(f"{opened} addresses are open, not {GRANTS}")
        after = _both(peer.pids())
    return {f"{name}, {part}": (before[part], after[part]) for part in before}


def _both(pids: Sequence[int]) -> dict[str, Held]:
    if len(pids) != 2:
        raise BenchmarkError(f"egressd has {len(pids)} processes, not 2")
    path, control = pids
    return {"data path": held(path), "control side": held(control), "both": together(pids)}


def resolver(place: Place, peer: Peer, asking: Sequence[str]) -> tuple[Held, Held]:
    """The same of another resolver, which caches all the names."""
    with running(place, peer):
        before = together(peer.pids())
        ask(place, peer.address, asking)
        if peer.opens and peer.opened(place) < GRANTS:
            raise BenchmarkError(f"{peer.name} opened {peer.opened(place)} addresses, not {GRANTS}")
        return before, together(peer.pids())


def floor() -> Held:
    """What an interpreter with the event loop imported holds, and nothing else."""
    program = "import asyncio, uvloop; print('here', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = held(process.pid)
        process.communicate(b"\n", timeout=60)
    return found


def measure(place: Place, *, others: bool) -> dict[str, tuple[Held, Held]]:
    """All rows: MiB before the first question, and at the end."""
    asking = wire(place)
    bare = floor()
    found = {"Python with uvloop, and nothing else": (bare, bare)}
    found |= egressd(place, "egressd", asking, compiled=True)
    found |= egressd(place, "egressd-interpreted", asking, compiled=False)
    peers: tuple[Peer, ...] = (Dnsmasq("dnsmasq-nftset", nftset=True), Unbound("unbound")) if others else ()
    return found | {peer.name: resolver(place, peer, asking) for peer in peers}


def report(found: Mapping[str, tuple[Held, Held]]) -> str:
    """One row a process."""
    head = ["MiB", "RSS at rest", f"RSS, {GRANTS:,} grants", "PSS", "private dirty"]
    rows: Iterable[Sequence[str]] = [
        [title, *(f"{value:.1f}" for value in (before.rss, after.rss, after.pss, after.dirty))]
        for title, (before, after) in found.items()
    ]
    return f"{markdown(head, rows)}\n\nGoal: {GOAL_MIB} MiB for both processes with {GRANTS:,} grants."


def main() -> int:
    """Exit code 0; 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--alone", action="store_true", help="egressd only, not the other resolvers")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="egressd-bench-") as folder, Place(Path(folder)) as place:
            found = measure(place, others=not options.alone)
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    print(f"Machine: {describe_machine()}\nPods: {PODS}, names asked for: {GRANTS:,}\n\n{report(found)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
