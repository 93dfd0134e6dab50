"""Objects as a cluster holds them, with no more than what the tests speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["configmap", "endpointslice", "namespace", "node", "pod", "service", "servicecidr"]

Object = dict[str, Any]


def pod(
    name: str,
    *addresses: str,
    labels: Mapping[str, str] | None = None,
    node: str = "n1",
    phase: str = "Running",
    **spec: Any,
) -> Object:
    """A pod `NAMESPACE/NAME`; without addresses its status has not arrived yet."""
    where, _, short = name.rpartition("/")
    status: Object = {"phase": phase if addresses else "Pending"}
    if addresses:
        status |= {"podIP": addresses[0], "podIPs": [{"ip": address} for address in addresses]}
    return {
        "metadata": {"name": short, "namespace": where or "default", "labels": dict(labels or {})},
        "spec": {"nodeName": node, "serviceAccountName": "default", "containers": [{"name": "main"}], **spec},
        "status": status,
    }


def configmap(name: str, text: str, *, key: str = "policy.yaml", policy: bool = True) -> Object:
    where, _, short = name.rpartition("/")
    labels = {"egressd.io/policy": "true"} if policy else {}
    return {"metadata": {"name": short, "namespace": where or "default", "labels": labels}, "data": {key: text}}


def namespace(name: str, labels: Mapping[str, str] | None = None) -> Object:
    own = {"kubernetes.io/metadata.name": name}
    return {"metadata": {"name": name, "labels": {**own, **(labels or {})}}, "status": {"phase": "Active"}}


def node(name: str, cidrs: Sequence[str], annotations: Mapping[str, str] | None = None) -> Object:
    spec = {"podCIDR": cidrs[0], "podCIDRs": list(cidrs)} if cidrs else {}
    return {"metadata": {"name": name, "annotations": dict(annotations or {})}, "spec": spec}


def service(name: str, addresses: Sequence[str], labels: Mapping[str, str], port: int = 53) -> Object:
    where, _, short = name.rpartition("/")
    ports = [{"name": "dns", "port": port, "protocol": "UDP"}]
    return {
        "metadata": {"name": short, "namespace": where, "labels": dict(labels)},
        "spec": {"clusterIP": addresses[0], "clusterIPs": list(addresses), "ports": ports},
    }


def endpointslice(name: str, of: str, addresses: Sequence[str]) -> Object:
    where, _, short = name.rpartition("/")
    return {
        "metadata": {"name": short, "namespace": where, "labels": {"kubernetes.io/service-name": of}},
        "addressType": "IPv6" if ":" in addresses[0] else "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": True}} for address in addresses],
    }


def servicecidr(*cidrs: str) -> Object:
    return {"metadata": {"name": "kubernetes"}, "spec": {"cidrs": list(cidrs)}}
