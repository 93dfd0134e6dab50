"""What a packet and a new connection cost on their way through the node: nothing, conntrack, egressd, other designs.

    python -m benchmarks.packets            (root)

The same pod sends datagrams of one flow, and opens connections one after another, to the same server. The node between
them holds in turn no rules at all, conntrack alone, egressd's table with 250 pods and 100,000 grants, an ipset of
100,000 members behind iptables, and 1,000 rules that are walked one by one. CPU is that of the sender and ksoftirqd: a
packet goes through the node, up to the server's queue, in the time of whoever sends it. That holds where the kernel
charges soft interrupts to what they interrupt (no CONFIG_IRQ_TIME_ACCOUNTING); the sender's part is the same for all.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from benchmarks.cpu import describe_machine
from benchmarks.place import POD_CIDR, SELECTED, UPSTREAM, BenchmarkError, Place
from benchmarks.table import markdown

PODS: Final = 250
GRANTS: Final = 100_000
LINEAR: Final = 1_000
PORT: Final = 443
PACKETS: Final = 200_000
PER_CONNECTION: Final = 40
"""Datagrams of a run to each connection of it."""
BATCH: Final = 64
"""Datagrams of one sendmmsg(2): the sender's own part is to be small."""
BASE: Final = "conntrack"


class Cost(NamedTuple):
    """What one way through the node cost."""

    packet_ns: float
    connection_us: float
    connections_s: float


# ---------------------------------------------------------------------------------------------- the node's rules


def _none(_place: Place) -> None:
    """No rules: conntrack is off, too."""


def _conntrack(place: Place) -> None:
    place.run("node", "nft", "table inet bench { chain c { type filter hook prerouting priority -150; "
              "ct state established,related accept; }; }")  # fmt: skip


def _egressd(place: Place) -> None:
    place.run("node", sys.executable, "-m", "benchmarks.packets", "--build")


def _linear(place: Place) -> None:
    """Walked by each packet, as long lists of allowed addresses are; the last one matches."""
    others = (f"198.18.{number // 250}.{number % 250 + 1}" for number in range(LINEAR - 1))
    rules = "\n".join(f"ip daddr {address} accept" for address in (*others, UPSTREAM))
    _load(place, f"table inet bench {{ chain c {{ type filter hook prerouting priority -150; policy drop\n"
                 f"ip saddr != {SELECTED} accept\nct state invalid drop\n{rules}\n}}\n}}")  # fmt: skip


def _ipset(place: Place) -> None:
    lines = [f"create bench hash:ip,port hashsize 131072 maxelem {2 * GRANTS}"]
    lines += [f"add bench 198.18.{number >> 8}.{number & 255},tcp:{PORT}" for number in range(1 << 16)]
    lines += [f"add bench 198.19.{number >> 8}.{number & 255},tcp:{PORT}" for number in range(GRANTS - (1 << 16))]
    lines += [f"add bench {UPSTREAM},{protocol}:{PORT}" for protocol in ("tcp", "udp")]
    file = place.folder / "ipset"
    file.write_text("\n".join(lines) + "\n")
    place.run("node", "ipset", "restore", "-file", str(file))
    for rule in (
        "-m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        f"-s {SELECTED} -m set --match-set bench dst,dst -j ACCEPT",
        f"-s {SELECTED} -j REJECT",
    ):
        place.run("node", "iptables", "-t", "filter", "-A", "FORWARD", *rule.split())


def _load(place: Place, text: str) -> None:
    file = place.folder / "rules.nft"
    file.write_text(text)
    place.run("node", "nft", "-f", str(file))


SETUPS: Final[Mapping[str, Callable[[Place], None]]] = {
    "no rules": _none,
    BASE: _conntrack,
    "egressd": _egressd,
    "ipset": _ipset,
    "linear rules": _linear,
}


def _clear(place: Place) -> None:
    place.run("node", "nft", "flush ruleset")
    place.run("node", "ipset", "destroy", check=False)
    place.run("node", "conntrack", "-F", check=False)


def build() -> None:
    """In the node: egressd's own table, by its own code, with pods, a subject for each, and grants."""
    from egressd.grants import Element
    from egressd.kernel import Change, Kernel, PodElement
    from egressd.model import Address, PortSpan, Subject
    from egressd.policy import ClusterFacts, Judge
    from egressd.schema import read_policy
    from egressd.schema.words import read_block
    from egressd.settings import Dns, Settings, Upstream

    text = "allow:\n- to: ['*.bench.example']\n  ports: [443]\n"
    server = socket.inet_aton(UPSTREAM)
    settings = Settings(
        node="bench", pod_cidrs=(read_block(POD_CIDR),), dns=Dns(upstreams=(Upstream(Address(server)),))
    )
    subjects, pods, grants = {}, [], []
    for number in range(1, PODS + 1):
        policy, _ = read_policy(text, name=f"shop/p{number}", namespace="shop", policy_namespace="egressd-system")
        if policy is None:
            raise BenchmarkError("the policy of the benchmark is not valid")
        subjects[number] = Judge(Subject((policy,)), ClusterFacts()).plan()
        pods.append(PodElement(socket.inet_aton(f"10.244.0.{number + 1}"), number, False, f"shop/web-{number}"))
        for each in range(GRANTS // PODS):
            address = struct.pack("!I", 0xC6120000 + number * (GRANTS // PODS) + each)
            own = address if each else server
            for protocol in (6, 17) if not each else (6,):
                span = PortSpan(protocol, protocol, PORT, PORT)
                grants.append(Element(number, "port", own, span, 3_600_000, "n.bench.example", False))
    kernel = Kernel(settings)
    kernel.install(Change(subjects=subjects, pods=pods))
    for start in range(0, len(grants), 1000):
        kernel.program(grants[start : start + 1000])
    kernel.close()


# ------------------------------------------------------------------------------------------------- the traffic


class Clock:
    """Seconds of CPU of this process and of the kernel's threads that take soft interrupts off it."""

    def __init__(self) -> None:
        names = subprocess.run(["ps", "-e", "-o", "pid=,comm="], capture_output=True, text=True, check=True).stdout
        self._threads = [Path(f"/proc/{pid}/schedstat") for pid in re.findall(r"(\d+) ksoftirqd/", names)]

    def spent_s(self) -> float:
        """Since some instant: the threads' first number is nanoseconds on a core (sched-stats.rst)."""
        others = sum(int(thread.read_text().split()[0]) for thread in self._threads)
        return time.process_time() + others / 1e9


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Message(ctypes.Structure):
    """struct mmsghdr (sendmmsg(2))."""

    _fields_ = (
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32), ("vectors", ctypes.POINTER(_Vector)),
        ("vector_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_int), ("sent", ctypes.c_uint32),
    )  # fmt: skip


def send(count: int) -> None:
    """In the pod: `count` datagrams of one flow, then connections one by one; prints what each took."""
    libc, clock = ctypes.CDLL(None, use_errno=True), Clock()
    payload = ctypes.create_string_buffer(64)
    vector = _Vector(ctypes.addressof(payload), 64)
    messages = (_Message * BATCH)(*(_Message(None, 0, ctypes.pointer(vector), 1, None, 0, 0, 0) for _ in range(BATCH)))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((UPSTREAM, PORT))
        sock.send(b"first")
        sock.settimeout(10)
        if sock.recv(16) != b"first":
            raise BenchmarkError("the flow was not answered")
        sock.setblocking(True)
        before, sent = clock.spent_s(), 0
        while sent < count:
            done = libc.sendmmsg(sock.fileno(), messages, BATCH, 0)
            if done < 0:
                raise OSError(ctypes.get_errno(), "sendmmsg")
            sent += done
        print(f"packet_ns {(clock.spent_s() - before) / sent * 1e9:.1f}")
    before, began, connections = clock.spent_s(), time.monotonic(), max(1, count // PER_CONNECTION)
    for _ in range(connections):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.settimeout(5)
            sock.connect((UPSTREAM, PORT))
    print(f"connection_us {(clock.spent_s() - before) / connections * 1e6:.2f}")
    print(f"connections_s {connections / (time.monotonic() - began):.0f}")


def serve() -> None:
    """At the server: answers the first datagram, takes no others out of its queue, and accepts connections."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams, socket.create_server((UPSTREAM, PORT)) as door:
        datagrams.bind((UPSTREAM, PORT))
        print("ready", flush=True)
        data, client = datagrams.recvfrom(16)
        datagrams.sendto(data, client)
        while True:
            door.accept()[0].close()


def measure_once(place: Place, setup: str, packets: int) -> Cost:
    """One run; the server is fresh, since it holds what was sent to it."""
    _clear(place)
    SETUPS[setup](place)
    server = place.start("upstream", [sys.executable, "-m", "benchmarks.packets", "--serve"], "server.log")
    try:
        _wait(place.folder / "server.log", server)
        said = place.run(SELECTED, sys.executable, "-m", "benchmarks.packets", "--send", str(packets))
    finally:
        place.stop(server)
    found = dict(re.findall(r"(\w+) ([\d.]+)", said))
    return Cost(*(float(found[field]) for field in Cost._fields))


def _wait(log: Path, server: subprocess.Popen[bytes]) -> None:
    for _ in range(100):
        if "ready" in log.read_text():
            return
        if server.poll() is not None:
            break
        time.sleep(0.05)
    raise BenchmarkError(f"the server did not come up: {log.read_text()}")


def report(samples: Mapping[str, list[Cost]]) -> str:
    """Medians, and ratios to conntrack alone within a repeat."""
    rows = []
    for setup, found in samples.items():
        base = samples[BASE]
        packet = [own.packet_ns / other.packet_ns for own, other in zip(found, base, strict=True)]
        opened = [own.connection_us / other.connection_us for own, other in zip(found, base, strict=True)]
        rows.append(
            [
                setup,
                f"{median(each.packet_ns for each in found):.0f}",
                f"{median(packet):.2f} ({min(packet):.2f}-{max(packet):.2f})",
                f"{median(each.connection_us for each in found):.1f}",
                f"{median(opened):.2f} ({min(opened):.2f}-{max(opened):.2f})",
                f"{median(each.connections_s for each in found):.0f}",
            ]
        )
    head = ["", "ns a packet", "ratio", "µs a connection", "ratio", "connections/s"]
    return markdown(head, rows)


def main() -> int:
    """Exit code 0; 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packets", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--packets", type=int, default=PACKETS, help="a run; default: %(default)s")
    parser.add_argument("--build", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--send", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    part: Callable[[], None] | None = build if options.build else serve if options.serve else None
    if part is not None:
        part()
        return 0
    if options.send:
        send(options.send)
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="egressd-bench-") as folder, Place(Path(folder)) as place:
            print(section(place, options.repeats, options.packets))
    except BenchmarkError as error:
        print(f"benchmark failed: {error}", file=sys.stderr)
        return 1
    return 0


def section(place: Place, repeats: int, packets: int) -> str:
    """All runs, interleaved, as a section of a page."""
    samples: dict[str, list[Cost]] = {setup: [] for setup in SETUPS}
    for repeat in range(repeats):
        for setup, found in samples.items():
            found.append(measure_once(place, setup, packets))
            print(f"{repeat + 1}/{repeats} {setup}: {found[-1]}", file=sys.stderr)
    return (
        f"Machine: {describe_machine()}\n"
        f"egressd: {PODS} pods, {GRANTS:,} grants; ipset: {GRANTS:,} members; {LINEAR:,} linear rules; "
        f"{packets:,} datagrams of one flow and {packets // PER_CONNECTION:,} connections a run, "
        f"{repeats} interleaved repeats; ratios to {BASE} alone\n\n{report(samples)}"
    )


if __name__ == "__main__":
    sys.exit(main())
