"""What a compared resolver is, and egressd as one: each is started fresh for each run, in the node's namespace.

A peer forwards to the one upstream, denies the zone `denied.bench.example` by itself, and is asked at `address`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.build import compiled_environment, installed_environment
from benchmarks.cpu import tree
from benchmarks.place import POD_CIDR, SELECTED, UNSELECTED, UPSTREAM, BenchmarkError, Place
from benchmarks.workloads import Workload

__all__ = ["Egressd", "Peer", "config_map", "count_elements", "pod"]

READY_WITHIN = 30.0
"""Seconds from the start of a peer to its first right answer."""


class Peer(ABC):
    """One resolver: `start` returns when it answers from the node and not merely its upstream through it."""

    address: str

    environment: Mapping[str, str] | None = None
    """What its process runs with; None: what the benchmark runs with."""

    def __init__(self, name: str, *, opens: bool = False) -> None:
        self.name = name
        self.opens = opens
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self, place: Place, *, cached: bool) -> Sequence[str]:
        """Prepare files and kernel objects under `place`, and say what to run in its node.

        `cached` says whether answers may be kept; if not, every query goes to the upstream.
        """

    def takes(self, workload: Workload) -> bool:  # noqa: ARG002 - some are choosier
        """Whether it can be asked so at all."""
        return True

    @abstractmethod
    def opened(self, place: Place) -> int:
        """How many addresses the kernel now lets the pods reach on this peer's word."""

    def start(self, place: Place, *, cached: bool = False) -> None:
        """Run it and wait for its readiness; raises BenchmarkError with its last words if it does not come up."""
        log = f"{self.name}.log"
        self._process = place.start("node", self.command(place, cached=cached), log, self.environment)
        deadline = time.monotonic() + READY_WITHIN
        while not self._denies(place):
            if self._process.poll() is not None or time.monotonic() > deadline:
                words = (place.folder / log).read_text(errors="replace")[-2000:]
                self.stop(place)
                raise BenchmarkError(f"{self.name} did not come up; it said:\n{words}")
            time.sleep(0.1)

    def stop(self, place: Place) -> None:
        """End it; harmless if it does not run."""
        if self._process is not None:
            place.stop(self._process)
            self._process = None

    def pids(self) -> list[int]:
        """The processes whose CPU counts."""
        return tree(self._process.pid) if self._process else []

    def _denies(self, place: Place) -> bool:
        # The upstream knows these names: NXDOMAIN can only be the peer's own word.
        command = ["dig", f"@{self.address}", "n-0.denied.bench.example", "+time=1", "+tries=1"]
        return "status: NXDOMAIN" in place.run(SELECTED, *command, check=False)


class Egressd(Peer):
    """The daemon of this repository on settings of its own, intercepting what the pods ask the upstream."""

    address = UPSTREAM

    def __init__(self, name: str, *, audit: bool = True, compiled: bool = True) -> None:
        super().__init__(name, opens=True)
        self.audit = audit
        self.compiled = compiled

    def command(self, place: Place, *, cached: bool) -> Sequence[str]:
        """Objects and settings. JSON is YAML; budgets that would throttle one pod asking this much are lifted."""
        home = place.folder / self.name
        objects = home / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        (objects / "objects.json").write_text(
            json.dumps({"apiVersion": "v1", "kind": "List", "items": self._objects()})
        )
        log = home / "audit.jsonl"
        log.unlink(missing_ok=True)
        settings = home / "egressd.yaml"
        settings.write_text(json.dumps(self._settings(home, objects, log, cached)))
        self.environment = compiled_environment() if self.compiled else installed_environment()
        return [sys.executable, "-m", "egressd", "run", "--config", str(settings)]

    def opened(self, place: Place) -> int:
        """Grants in the sets of all subjects."""
        return count_elements(place, "grant")

    def stop(self, place: Place) -> None:
        """End it and remove what it leaves in force on purpose: the next run starts from nothing."""
        super().stop(place)
        place.run("node", "nft", "delete table inet egressd", check=False)

    def _settings(self, home: Path, objects: Path, log: Path, cached: bool) -> dict[str, object]:
        plenty = 10_000_000
        return {
            "node": "bench",
            "source": {"kind": "directory", "path": str(objects)},
            "pod_cidrs": [POD_CIDR],
            "dns": {"upstreams": [UPSTREAM], "cache": {"size": 50_000 if cached else 0}},
            "budgets": {
                "in_flight_per_pod": 4096,
                "queries_per_second_per_pod": plenty,
                "burst_per_pod": plenty,
                "denied_names_per_pod_per_minute": plenty,
            },
            "audit": {"file": str(log) if self.audit else ""},
            "history": {"file": str(home / "history.db")},
            "admin": {"socket": str(home / "admin.sock")},
        }

    @staticmethod
    def _objects() -> list[dict[str, object]]:
        policy: dict[str, object] = {
            "subject": {"podSelector": {"matchLabels": {"app": "web"}}},
            "allow": [{"name": "bench", "to": ["*.allowed.bench.example"], "ports": ["443/TCP"]}],
        }
        web, free = pod("web-0", SELECTED, {"app": "web"}), pod("free-0", UNSELECTED, {"app": "free"})
        return [config_map("web-egress", policy), web, free]


def config_map(name: str, policy: dict[str, object]) -> dict[str, object]:
    """A policy as an object of namespace shop."""
    metadata = {"name": name, "namespace": "shop", "labels": {"egressd.io/policy": "true"}}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"policy.yaml": json.dumps(policy)},
    }


def pod(name: str, address: str, labels: dict[str, str]) -> dict[str, object]:
    """A running pod of namespace shop on this node."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "labels": labels},
        "spec": {"nodeName": "bench", "serviceAccountName": "default"},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    }


def count_elements(place: Place, prefix: str) -> int:
    """Elements of all sets of the node whose name starts with `prefix`."""
    listing = json.loads(place.run("node", "nft", "-j", "list", "ruleset"))["nftables"]
    sets = (entry["set"] for entry in listing if "set" in entry)
    return sum(len(found.get("elem", ())) for found in sets if found["name"].startswith(prefix))
