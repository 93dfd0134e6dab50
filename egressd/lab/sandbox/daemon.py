"""The filter of a sandbox: the real daemon in the node's space, with one pod, and its records as they come.

Its policies are files that it is started with, on a file system that only the node can see. Records come through a
pipe from its standard output, one JSON line each; they end when it has ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from egressd.errors import EnvironmentProblem
from egressd.lab.daemon import intercepts
from egressd.lab.patience import eventually
from egressd.lab.sandbox.addresses import Side
from egressd.lab.space import Space

__all__ = ["CAGE_WIRE", "NAMESPACE", "POD", "Filter"]

CAGE_WIRE: Final = "command"
"""The node's interface to the command: whatever comes from it is the command's, or is held."""
NAMESPACE: Final = "sandbox"
POD: Final = "command"
"""The command, as policies, records and explanations name it."""
START_S: Final = 30.0
STOP_S: Final = 10.0
CODE: Final = Path(__file__).parents[3]
"""The folder that holds the package."""
LOG_TAIL: Final = 2000
"""Characters of the daemon's log that are told when it does not come up."""


class Filter:
    """A running daemon. `records` is the descriptor that its records can be read from, to the end of file."""

    def __init__(
        self, node: Space, folder: Path, sides: Sequence[Side], resolvers: Sequence[str], policies: Mapping[str, str]
    ) -> None:
        """`policies` are documents by name, `resolvers` as `dns.upstreams` has them. Returns before it is ready."""
        self._node = node
        self._log = folder / "log"
        objects = folder / "objects"
        objects.mkdir()
        items = [_pod(sides), *(_configmap(name, text) for name, text in policies.items())]
        (objects / "sandbox.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
        settings = folder / "egressd.yaml"
        settings.write_text(json.dumps(_settings(folder, objects, sides, resolvers)))
        self.records, pipe = os.pipe()
        try:
            self._process = node.call(self._start, settings, pipe)
        finally:
            os.close(pipe)

    def _start(self, settings: Path, pipe: int) -> subprocess.Popen[bytes]:
        """In a process group of its own, so that Ctrl-C is the command's; without variables that are settings.

        Where its code lies, not in the caller's folder, whose files `python -m` would import.
        """
        argv = [sys.executable, "-m", "egressd", "run", "--config", str(settings)]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("EGRESSD_")}
        with self._log.open("w") as log:
            return subprocess.Popen(  # noqa: S603 - our own program; no shell
                argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=log, env=variables, cwd=CODE, process_group=0
            )

    def wait(self) -> None:
        """Wait until it filters. Raises `EnvironmentProblem` with its own words where it does not."""
        try:
            eventually(lambda: intercepts(self._node) or self._process.poll() is not None, START_S)
        except TimeoutError:
            self._process.kill()
        if self._process.poll() is not None:
            words = self._log.read_text(errors="replace")[-LOG_TAIL:].strip().removeprefix("egressd: error: ")
            raise EnvironmentProblem(f"the filter did not come up: {words or 'it said nothing in time'}")

    def stop(self) -> None:
        """Let it end; it writes its last records first."""
        self._process.terminate()

    def close(self) -> None:
        """Wait for its end, and bring it about where it does not come."""
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self.records)


def _pod(sides: Sequence[Side]) -> dict[str, Any]:
    addresses = [{"ip": each.command} for each in sides]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "namespace": NAMESPACE},
        "spec": {"nodeName": NAMESPACE},
        "status": {"phase": "Running", "podIP": addresses[0]["ip"], "podIPs": addresses},
    }


def _configmap(name: str, text: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"egressd.io/policy": "true"}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"policy.yaml": text}}


def _settings(folder: Path, objects: Path, sides: Sequence[Side], resolvers: Sequence[str]) -> dict[str, Any]:
    """Nothing counts as inside a cluster, nothing passes by when the daemon is down, and no file outlives it."""
    return {
        "node": NAMESPACE,
        "source": {"kind": "directory", "path": str(objects)},
        "pod_interfaces": [CAGE_WIRE],
        "cluster_domains": [],
        "in_cluster": "Enforce",
        "dns": {"upstreams": list(resolvers), "servers": [each.gateway for each in sides], "when_down": "Block"},
        "audit": {"file": "", "stdout": True},
        "history": {"file": ""},
        "admin": {"socket": str(folder / "admin.sock"), "listen": ""},
    }
