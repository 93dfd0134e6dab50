"""The resolvers that are compared: each is started fresh for each run, in the node's namespace.

A peer forwards to the one upstream, denies the zone `denied.bench.example` by itself, and is asked at `address`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cpu import tree
from benchmarks.place import DNSMASQ, NODE, POD_CIDR, SELECTED, UNSELECTED, UPSTREAM, BenchmarkError, Place

__all__ = ["PEERS", "Dnsmasq", "Egressd", "Peer"]

READY_WITHIN = 30.0
"""Seconds from the start of a peer to its first right answer."""


class Peer(ABC):
    """One resolver: `start` returns when it answers from the node and not merely its upstream through it."""

    address: str

    def __init__(self, name: str, *, opens: bool) -> None:
        self.name = name
        self.opens = opens
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self, place: Place) -> Sequence[str]:
        """Prepare files and kernel objects under `place`, and say what to run in its node."""

    @abstractmethod
    def opened(self, place: Place) -> int:
        """How many addresses the kernel now lets the pods reach on this peer's word."""

    def start(self, place: Place) -> None:
        """Run it and wait for its readiness; raises BenchmarkError with its last words if it does not come up."""
        log = f"{self.name}.log"
        self._process = place.start("node", self.command(place), log)
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


class Dnsmasq(Peer):
    """dnsmasq as a forwarder on the node's address; unless told to cache, it forwards each query."""

    address = NODE

    def __init__(self, name: str, *, nftset: bool = False, log_queries: bool = False, cache: int = 0) -> None:
        super().__init__(name, opens=nftset)
        self.nftset, self.log_queries, self.cache = nftset, log_queries, cache

    def command(self, place: Place) -> Sequence[str]:
        """A fresh empty set, and the options. Logs go to a file, which is the cheapest that it offers."""
        command = [*DNSMASQ, "--except-interface=lo", "--dns-forward-max=4096"]
        command += [f"--listen-address={NODE}", f"--server={UPSTREAM}", f"--cache-size={self.cache}"]
        command += ["--local=/denied.bench.example/"]
        if self.nftset:
            self._make_set(place)
            command += ["--nftset=/allowed.bench.example/4#inet#bench#opened"]
        if self.log_queries:
            log = place.folder / f"{self.name}.queries"
            log.unlink(missing_ok=True)
            command += ["--log-queries", f"--log-facility={log}"]
        return command

    def opened(self, place: Place) -> int:
        """Elements of the set."""
        return count_elements(place, "opened") if self.nftset else 0

    def stop(self, place: Place) -> None:
        """End it and remove its set."""
        super().stop(place)
        if self.nftset:
            place.run("node", "nft", "delete table inet bench", check=False)

    @staticmethod
    def _make_set(place: Place) -> None:
        place.run("node", "nft", "add table inet bench")
        place.run("node", "nft", "add set inet bench opened { type ipv4_addr; }")


class Egressd(Peer):
    """The daemon of this repository on settings of its own, intercepting what the pods ask the upstream."""

    address = UPSTREAM

    def __init__(self, name: str, *, audit: bool = True) -> None:
        super().__init__(name, opens=True)
        self.audit = audit

    def command(self, place: Place) -> Sequence[str]:
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
        settings.write_text(json.dumps(self._settings(home, objects, log)))
        return [sys.executable, "-m", "egressd", "run", "--config", str(settings)]

    def opened(self, place: Place) -> int:
        """Grants in the sets of all subjects."""
        return count_elements(place, "grant")

    def stop(self, place: Place) -> None:
        """End it and remove what it leaves in force on purpose: the next run starts from nothing."""
        super().stop(place)
        place.run("node", "nft", "delete table inet egressd", check=False)

    def _settings(self, home: Path, objects: Path, log: Path) -> dict[str, object]:
        plenty = 10_000_000
        return {
            "node": "bench",
            "source": {"kind": "directory", "path": str(objects)},
            "pod_cidrs": [POD_CIDR],
            "dns": {"upstreams": [UPSTREAM], "cache": {"size": 0}},
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
        policy = {
            "subject": {"podSelector": {"matchLabels": {"app": "web"}}},
            "allow": [{"name": "bench", "to": ["*.allowed.bench.example"], "ports": ["443/TCP"]}],
        }
        labels = {"egressd.io/policy": "true"}
        config_map: dict[str, object] = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "web-egress", "namespace": "shop", "labels": labels},
            "data": {"policy.yaml": json.dumps(policy)},
        }
        return [config_map, _pod("web-0", SELECTED, {"app": "web"}), _pod("free-0", UNSELECTED, {"app": "free"})]


def _pod(name: str, address: str, labels: dict[str, str]) -> dict[str, object]:
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


PEERS: tuple[Peer, ...] = (
    Egressd("egressd"),
    Egressd("egressd-no-audit", audit=False),
    Dnsmasq("dnsmasq"),
    Dnsmasq("dnsmasq-nftset", nftset=True),
    Dnsmasq("dnsmasq-log", log_queries=True),
    Dnsmasq("dnsmasq-nftset-log", nftset=True, log_queries=True),
    Dnsmasq("dnsmasq-cache", cache=10_000),
)
