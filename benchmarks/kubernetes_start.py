"""What a cluster costs a node: time to ready, memory, CPU of a watch event, time from a ConfigMap to the kernel.

    python -m benchmarks.kubernetes_start            (root)

A small API server (the tests' own) and the real daemon in a lab node with 250 pods and 1,000 policies of 20 rules.
Goals: ready within 2 s, 120 MiB, and 50 ms from a ConfigMap's event to the kernel, as its own notifications tell of it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from benchmarks.build import installed_environment
from benchmarks.cpu import describe_machine, tree, usage
from benchmarks.place import BenchmarkError
from egressd.lab import CLUSTER_CIDRS, POD_CIDRS, SERVICES, Daemon, Node, eventually, run_private

ROOT: Final = Path(__file__).resolve().parent.parent
NAMESPACES: Final = 10
APPS: Final = 25
"""Applications of one namespace, so that a policy selects one pod in 250 and a pod has four policies in 1,000."""
RULES: Final = 20
NETLINK_NETFILTER, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES = 12, 270, 1, 7
"""include/uapi/linux/netlink.h, linux/netfilter/nfnetlink.h; `socket` has no names for them."""


class Bench:
    """A node, its API server full of objects, and the daemon."""

    def __init__(self, node: Node, folder: Path, pods: int, policies: int) -> None:
        sys.path.insert(0, str(ROOT / "tests" / "apiserver"))
        import kubeapi.objects
        from kubeapi import ApiServer, kubeconfig

        self.objects = kubeapi.objects
        self.node = node
        self.pods = pods
        self.policies = policies
        self.api = ApiServer(("127.0.0.1", 6443), listen=self._listen)
        self.daemon = Daemon(node, folder)
        config = kubeconfig(folder / "kubeconfig", self.api.url)
        self.daemon.settings["source"] = {"kind": "kubernetes", "kubeconfig": str(config)}
        for found_out in ("pod_cidrs", "cluster_cidrs", "dns"):
            del self.daemon.settings[found_out]
        self._fill()

    def close(self) -> None:
        self.daemon.stop()
        self.api.close()

    def _listen(self, address: tuple[str, int]) -> socket.socket:
        with self.node.entered():
            return socket.create_server(address)

    def _fill(self) -> None:
        made, put = self.objects, self.api.put
        put("nodes", made.node(self.node.name, POD_CIDRS))
        put("services", made.service("kube-system/kube-dns", SERVICES, {"k8s-app": "kube-dns"}))
        put("servicecidrs", made.servicecidr(CLUSTER_CIDRS[1], CLUSTER_CIDRS[3]))
        for number in range(NAMESPACES):
            put("namespaces", made.namespace(f"team-{number}"))
        for number in range(self.pods):
            self.put_pod(number)
        for number in range(self.policies):
            self.put_policy(number)

    def put_pod(self, number: int, **labels: str) -> None:
        """Pods carry what pods carry: managed fields, conditions, a container's worth of specification."""
        address = (f"10.244.1.{number + 2}", f"fd00:10:244:1::{number + 2:x}")
        own = {"app": f"app-{number // NAMESPACES % APPS}", **labels}
        thing = self.objects.pod(f"team-{number % NAMESPACES}/pod-{number}", *address, labels=own)
        thing["metadata"]["managedFields"] = [{"manager": "kubelet", "fieldsV1": {f"f:{n}": {} for n in range(80)}}]
        thing["spec"]["containers"][0]["env"] = [{"name": f"VARIABLE_{n}", "value": "x" * 20} for n in range(20)]
        thing["status"]["conditions"] = [{"type": f"Condition{n}", "status": "True"} for n in range(5)]
        self.api.put("pods", thing)

    def put_policy(self, number: int, peer: str = "192.0.2.1") -> None:
        """Sixteen rules with names, three with blocks, and one with `peer`."""
        rules = [
            f"- to: [a{n}.p{number}.example, '*.b{n}.p{number}.example']\n  ports: [443/TCP]" for n in range(RULES - 4)
        ]
        rules += [f"- to: [198.51.{number % 256}.{n * 16}/28]\n  ports: [5432/TCP]" for n in range(3)]
        rules += [f"- to: [{peer}]\n  ports: [8443/TCP]"]
        subject = f"subject: {{podSelector: {{matchLabels: {{app: app-{number // NAMESPACES % APPS}}}}}}}\nallow:\n"
        self.api.put(
            "configmaps", self.objects.configmap(f"team-{number % NAMESPACES}/p{number}", subject + "\n".join(rules))
        )

    # ------------------------------------------------------------------------------------- measuring

    def start(self) -> float:
        """Seconds from the program's start until it intercepts: an earlier life's heartbeat would say so too soon."""
        self.daemon.log_file.unlink(missing_ok=True)
        all_of_it = f"ready: {self.pods} pods, "
        started = time.monotonic()
        self.daemon.start(wait=False)
        eventually(lambda: all_of_it in self.daemon.log(), timeout=120, what="ready")
        return time.monotonic() - started

    @property
    def processes(self) -> list[int]:
        """The data path and its control side."""
        if self.daemon.process is None:
            raise BenchmarkError("the daemon does not run")
        return tree(self.daemon.process.pid)

    def memory(self) -> list[tuple[float, float]]:
        """MiB of each process: resident, and its own share of it (PSS)."""
        return [(_field(pid, "Rss") / 1024, _field(pid, "Pss") / 1024) for pid in self.processes]

    def cpu(self, event: Callable[[int], None], count: int, pause_s: float = 0.02) -> float:
        """Milliseconds of CPU for one event, of all processes, less what they spend in as much time at rest."""
        before = usage(self.processes)
        time.sleep(count * pause_s)
        rest = usage(self.processes).since(before).total
        before = usage(self.processes)
        for number in range(count):
            event(number)
            time.sleep(pause_s)
        time.sleep(0.5)
        return (usage(self.processes).since(before).total - rest) / count * 1e3

    def latency(self, count: int) -> list[float]:
        """Milliseconds from each of `count` writes of a policy to the kernel's first word of the change."""
        heard: deque[float] = deque()
        monitor = self.node.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        monitor.bind((0, 0))
        monitor.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
        monitor.settimeout(0.2)
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    if b"heartbeat\0" not in monitor.recv(1 << 20):
                        heard.append(time.monotonic())

        listener = threading.Thread(target=listen)
        listener.start()
        found = []
        for number in range(count):
            heard.clear()
            began = time.monotonic()
            self.put_policy(number % self.policies, f"192.0.2.{number % 200 + 2}")
            while not heard:
                if time.monotonic() - began > 10:
                    raise BenchmarkError(f"edit {number} of a policy never reached the kernel\n{self.daemon.log()}")
                time.sleep(0.0005)
            found.append((heard[0] - began) * 1e3)
            time.sleep(0.1)
        ended.set()
        listener.join()
        monitor.close()
        return found


def _field(pid: int, name: str) -> float:
    """KiB, from /proc/PID/smaps_rollup."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(name + ":"))


def report(bench: Bench, starts: int, events: int, edits: int) -> None:
    """Measure all of it and print a table."""
    ready = []
    for number in range(starts):
        if number:
            bench.daemon.stop()
        ready.append(bench.start())
    rows = [("ready after the first start", f"{ready[0]:.2f} s", "2 s")]
    if starts > 1:
        rows.append(("ready after a restart, median", f"{statistics.median(ready[1:]):.2f} s", "1 s"))
    (path, _), (control, _), *_ = memory = bench.memory()
    shared = sum(pss for _, pss in memory)
    rows.append(("memory of both processes (PSS)", f"{shared:.0f} MiB", "120 MiB"))
    rows.append(("resident: data path, control side", f"{path:.0f} MiB, {control:.0f} MiB", ""))
    quiet = bench.cpu(lambda number: bench.put_pod(number % bench.pods, beat=str(number)), events)
    rows.append(("CPU of an event: a label of a pod that selects nothing else", f"{quiet:.2f} ms", ""))
    other = bench.cpu(lambda number: bench.put_pod(0, app=f"app-{number % 2}"), events)
    rows.append(("CPU of an event: a pod goes under other policies", f"{other:.2f} ms", ""))
    bench.put_pod(0)
    times = bench.latency(edits)
    tail = sorted(times)[int(len(times) * 0.95)]
    rows.append(("ConfigMap to kernel, median", f"{statistics.median(times):.1f} ms", "50 ms"))
    rows.append(("ConfigMap to kernel, 95 of 100", f"{tail:.1f} ms", ""))
    print(f"Machine: {describe_machine()}")
    print(f"Objects: {bench.pods} pods, {bench.policies} policies of {RULES} rules\n")
    print("| what | measured | goal |\n| --- | ---: | ---: |")
    for what, value, goal in rows:
        print(f"| {what} | {value} | {goal} |")


def main() -> int:
    """Parse the command line, build the place, measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kubernetes_start")
    parser.add_argument("--pods", type=int, default=250, help="at most 250; default: %(default)s")
    parser.add_argument("--policies", type=int, default=1000, help="default: %(default)s")
    parser.add_argument("--starts", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--events", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--edits", type=int, default=50, help="default: %(default)s")
    options = parser.parse_args()
    os.environ.update(installed_environment())

    def measure() -> int:
        with Node("p2p") as node, tempfile.TemporaryDirectory() as folder:
            bench = Bench(node, Path(folder), options.pods, options.policies)
            try:
                report(bench, options.starts, options.events, options.edits)
            finally:
                bench.close()
        return 0

    return run_private(measure)


if __name__ == "__main__":
    sys.exit(main())
