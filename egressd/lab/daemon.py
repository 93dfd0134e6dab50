"""The real daemon in a lab node: its settings, its folder of objects, its life and its audit records.

daemon = Daemon(node, folder, {"grants": {"min": "2s", "grace": "1s"}})
daemon.put_pods()
daemon.put_policy("shop/web-egress", "allow:\\n- to: [api.example.com]\\n")
daemon.start()
…
daemon.wait_record(lambda record: record["verdict"] == "denied")
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from egressd.lab.node import CLUSTER_CIDRS, POD_CIDRS, SERVICES, UPSTREAMS, Node
from egressd.lab.space import Space

__all__ = ["Daemon", "intercepts"]

POLL_S: Final = 0.02
NETLINK_NETFILTER: Final = 12
"""include/uapi/linux/netlink.h; `socket` has no name for it."""
LOG_TAIL: Final = 4000
"""Characters of the daemon's own log quoted when it does not come up."""

Record = dict[str, Any]


class Daemon:
    """`python -m egressd run` in a node. Files live in `folder`, which must exist: settings, objects, log, records.

    `settings` are laid over `defaults`, mapping by mapping. Several lives are fine: `start` after `stop` or `kill`.
    """

    def __init__(self, node: Node, folder: Path, settings: Mapping[str, Any] | None = None) -> None:
        self.node = node
        self.folder = folder
        self.objects = folder / "objects"
        self.objects.mkdir(exist_ok=True)
        self.audit_file = folder / "audit.jsonl"
        self.log_file = folder / "log"
        self.settings = _merged(self.defaults(), settings or {})
        self.process: subprocess.Popen[str] | None = None

    def defaults(self) -> dict[str, Any]:
        """Settings that fit the node: its pods, its DNS server, everything else under `folder`."""
        return {
            "node": self.node.name,
            "source": {"kind": "directory", "path": str(self.objects)},
            "pod_cidrs": list(POD_CIDRS),
            "cluster_cidrs": list(CLUSTER_CIDRS),
            "dns": {"upstreams": list(UPSTREAMS[:1]), "servers": list(SERVICES)},
            "audit": {"file": str(self.audit_file)},
            "history": {"file": str(self.folder / "history.db")},
            "admin": {"socket": str(self.folder / "admin.sock")},
        }

    # ------------------------------------------------------------------------------------- objects

    def put(self, name: str, *manifests: Mapping[str, Any]) -> None:
        """Write manifests to one file of the objects folder, replacing it in one step (JSON, which is YAML)."""
        self.put_text(f"{name}.yaml", json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}, indent=1))

    def put_text(self, file: str, text: str) -> None:
        """Write any text to a file of the objects folder, replacing it in one step."""
        draft = self.folder / f"{file}.draft"
        draft.write_text(text)
        draft.replace(self.objects / file)

    def put_policy(self, name: str, text: str) -> None:
        """Write the policy `NAMESPACE/NAME`, as a ConfigMap with one `policy.yaml`."""
        namespace, _, short = name.partition("/")
        metadata = {"name": short, "namespace": namespace, "labels": {"egressd.io/policy": "true"}}
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"policy.yaml": text}}
        self.put(f"policy-{namespace}-{short}", manifest)

    def put_pods(self) -> None:
        """Write the manifests of all pods that the node has now, and of their namespaces."""
        pods = self.node.pods.values()
        names = {"kubernetes.io/metadata.name": ""}
        namespaces = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": dict.fromkeys(names, name)}}
            for name in sorted({pod.namespace for pod in pods})
        ]
        self.put("pods", *(pod.manifest(self.node.name) for pod in pods), *namespaces)

    def remove(self, name: str) -> None:
        """Delete a file that `put` or `put_policy` (`policy-NAMESPACE-NAME`) wrote."""
        (self.objects / f"{name}.yaml").unlink()

    # ---------------------------------------------------------------------------------------- life

    def start(self, timeout: float = 30.0, *, wait: bool = True) -> Self:
        """Start it and, with `wait`, return when it intercepts DNS; `RuntimeError` with its log if it does not."""
        file = self.folder / "egressd.yaml"
        file.write_text(json.dumps(self.settings, indent=1))
        with self.log_file.open("a") as log:
            argv = [sys.executable, "-m", "egressd", "run", "--config", str(file)]
            self.process = self.node.popen(argv, stdout=log, stderr=log)
        if wait:
            self._wait_ready(self.process, timeout)
        return self

    def stop(self, timeout: float = 20.0) -> int:
        """SIGTERM, wait for the end, return the exit code."""
        process = self._running()
        process.terminate()
        return process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL: no farewell."""
        process = self._running()
        process.kill()
        process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal (SIGHUP, SIGSTOP, SIGCONT)."""
        os.kill(self._running().pid, number)

    def children(self) -> list[int]:
        """PIDs of its child processes (the control side), to be killed or stopped by a test; empty when it is gone."""
        found = []
        for tasks in Path(f"/proc/{self._running().pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # a thread that ended meanwhile
                found += [int(pid) for pid in tasks.read_text().split()]
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGCONT)
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.kill()

    # ------------------------------------------------------------------------------------- records

    def records(self, event: str = "") -> list[Record]:
        """The audit records written so far, parsed; of one `event` if given. A half-written last line is left out."""
        lines = self.audit_file.read_text().split("\n")[:-1] if self.audit_file.exists() else []
        records: list[Record] = [json.loads(line) for line in lines]
        return [record for record in records if event in {"", record["event"]}]

    def wait_record(self, wanted: Callable[[Record], object], timeout: float = 10.0) -> Record:
        """The first record, past or future, that `wanted` is true of (fields it misses count as false).

        `TimeoutError` with the last records if there is none in time.
        """
        deadline = time.monotonic() + timeout
        while True:
            records = self.records()
            for record in records:
                with contextlib.suppress(KeyError):
                    if wanted(record):
                        return record
            if time.monotonic() > deadline:
                shown = "\n".join(json.dumps(record) for record in records[-20:])
                raise TimeoutError(f"no such record among {len(records)}, the last being\n{shown}\n{self.log()}")
            time.sleep(POLL_S)

    def log(self) -> str:
        """The end of what it wrote to standard output and standard error."""
        return self.log_file.read_text()[-LOG_TAIL:] if self.log_file.exists() else ""

    # -------------------------------------------------------------------------------------- inside

    def _running(self) -> subprocess.Popen[str]:
        if self.process is None:
            raise RuntimeError("the daemon was never started")
        return self.process

    def _wait_ready(self, process: subprocess.Popen[str], timeout: float) -> None:
        table = str(self.settings.get("firewall", {}).get("table", "egressd"))
        deadline = time.monotonic() + timeout
        while not intercepts(self.node, table):
            if process.poll() is not None:
                raise RuntimeError(f"the daemon ended with exit code {process.returncode}:\n{self.log()}")
            if time.monotonic() > deadline:
                process.kill()
                raise RuntimeError(f"the daemon was not ready after {timeout:g} s:\n{self.log()}")
            time.sleep(POLL_S)


def intercepts(space: Space, table: str = "egressd") -> bool:
    """Whether a daemon's heartbeat is alive in a space: its set `heartbeat` has an element (kernel.md, Schema).

    One dump of NFT_MSG_GETSETELEM (include/uapi/linux/netfilter/nf_tables.h); a table that is not there says no.
    """
    subsystem, get_elements, elements = 10, 13, 3
    body = struct.pack("!BBH", 1, 0, 0) + _text_attribute(1, table) + _text_attribute(2, "heartbeat")
    header = struct.pack("=IHHII", 16 + len(body), subsystem << 8 | get_elements, 0x301, 1, 0)
    with space.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
        netlink.settimeout(5.0)
        netlink.send(header + body)
        data = netlink.recv(65536)
    kind = struct.unpack_from("=H", data, 4)[0]
    return kind >> 8 == subsystem and elements in _filled(data[20 : struct.unpack_from("=I", data)[0]])


def _text_attribute(kind: int, text: str) -> bytes:
    value = text.encode() + b"\0"
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _filled(data: bytes) -> set[int]:
    """The attributes that hold something."""
    found, offset = set(), 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length > 4:
            found.add(kind & 0x3FFF)
        offset += max(4, length + -length % 4)
    return found


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
