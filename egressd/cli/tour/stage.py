"""What the tour plays on: a node with its pods, a small internet, the real daemon, and policies as files to edit."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from egressd.cli.tour.cast import PODS, POLICIES, Role, write_names
from egressd.lab import Daemon, Node, Pod

__all__ = ["Stage"]


class Stage:
    """Built when entered, gone when left; also gone when the process is (egressd.lab). `daemon` is to be started."""

    def __init__(self) -> None:
        self.folder = Path("/run/demo")  # /run is a tmpfs of our own world
        self.folder.mkdir()
        self.node = Node("p2p")
        self.daemon = Daemon(self.node, self.folder)

    def __enter__(self) -> Self:
        write_names(self.node.dns.zone)
        self.node.internet.serve_http(80)
        for role in PODS:
            self.node.add_pod(role.name, labels=role.labels, service_account=role.labels["app"])
        self._write_objects()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.daemon.__exit__(kind, error, trace)
        self.node.close()

    def pod(self, name: str) -> Pod:
        return self.node.pods[name]

    def records(self) -> list[dict[str, Any]]:
        """The audit records about pods so far."""
        return [record for record in self.daemon.records() if "pod" in record]

    def write_policy(self, name: str, text: str) -> None:
        """Write a policy `NAMESPACE/NAME` as the ConfigMap that a person would write."""
        namespace, _, short = name.partition("/")
        lines = "\n".join(f"    {line}" for line in text.splitlines())
        manifest = (
            "apiVersion: v1\nkind: ConfigMap\nmetadata:\n"
            f"  name: {short}\n  namespace: {namespace}\n"
            '  labels: {egressd.io/policy: "true"}\n'
            f"data:\n  policy.yaml: |\n{lines}\n"
        )
        self.daemon.put_text(f"{namespace}-{short}.yaml", manifest)

    def policy_file(self, name: str) -> Path:
        """Where `write_policy` wrote."""
        return self.daemon.objects / f"{name.replace('/', '-')}.yaml"

    def _write_objects(self) -> None:
        self.daemon.put_pods()  # for the namespaces; the pods follow with their owners
        known = json.loads((self.daemon.objects / "pods.yaml").read_text())["items"]
        others = [item for item in known if item["kind"] != "Pod"]
        self.daemon.put("pods", *(self._manifest(role) for role in PODS), *others)
        for name, text in POLICIES.items():
            self.write_policy(name, text)

    def _manifest(self, role: Role) -> dict[str, Any]:
        manifest = self.pod(role.name).manifest(self.node.name)
        kind, owner = role.owner
        manifest["metadata"]["ownerReferences"] = [{"kind": kind, "name": owner, "controller": True}]
        return manifest
