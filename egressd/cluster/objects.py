"""What we read of the API's objects, and nothing else of them: JSON in, values out.

A list's items carry no `kind`, a watch's objects do; both are decoded by the same few fields (kubernetes.md). What
the API server has accepted is not judged again, only an address that is none is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec

from egressd.model import PodIdentity
from egressd.schema import (
    POLICY_LABEL,
    ConfigMapObject,
    NamespaceObject,
    PodObject,
    read_address,
    workload_of,
)

__all__ = [
    "CONFIGMAPS",
    "NAMESPACES",
    "PODS",
    "SERVICES",
    "SLICES",
    "ConfigMap",
    "Event",
    "Key",
    "Kind",
    "Listing",
    "Meta",
    "Node",
    "Service",
    "ServiceCIDR",
    "StatusObject",
    "Thing",
    "packed",
]

Key = tuple[str, str]
"""Namespace and name."""
FINISHED: Final = {"Succeeded", "Failed"}


class Owner(msgspec.Struct, rename="camel"):
    kind: str = ""
    name: str = ""
    controller: bool | None = None


class Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[Owner] | None = None
    creation_timestamp: str | None = None


class Thing(msgspec.Struct):
    """Any object; a bookmark is one with nothing but a version."""

    metadata: Meta = msgspec.field(default_factory=Meta)

    @property
    def key(self) -> Key:
        return self.metadata.namespace, self.metadata.name

    @property
    def version(self) -> Key:
        """`uid` and `resourceVersion`: two objects with the same are the same."""
        return self.metadata.uid, self.metadata.resource_version


class _PodSpec(msgspec.Struct, rename="camel"):
    node_name: str = ""
    service_account_name: str = ""
    host_network: bool | None = None


class _PodIP(msgspec.Struct):
    ip: str = ""


class _PodStatus(msgspec.Struct):
    phase: str = ""
    first: str = msgspec.field(name="podIP", default="")
    all: list[_PodIP] | None = msgspec.field(name="podIPs", default=None)


class Pod(Thing):
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)

    def manifest(self) -> PodObject:
        meta, spec, status = self.metadata, self.spec, self.status
        labels = meta.labels or {}
        workload = workload_of(meta.owner_references or [], labels)
        return PodObject(
            identity=PodIdentity(meta.namespace, meta.name, meta.uid, spec.service_account_name or "default", workload),
            labels=labels,
            addresses=packed([status.first, *(entry.ip for entry in status.all or [])]),
            node=spec.node_name,
            host_network=bool(spec.host_network),
            finished=status.phase in FINISHED,
            created=meta.creation_timestamp or "",
        )


class Namespace(Thing):
    def manifest(self) -> NamespaceObject:
        return NamespaceObject(self.metadata.name, self.metadata.labels or {})


class ConfigMap(Thing):
    data: dict[str, str] | None = None

    def manifest(self) -> ConfigMapObject:
        meta = self.metadata
        file = f"configmap {meta.namespace}/{meta.name}"
        return ConfigMapObject(meta.namespace, meta.name, meta.labels or {}, self.data or {}, file)


class _Port(msgspec.Struct):
    port: int | None = None


class _ServiceSpec(msgspec.Struct):
    ips: list[str] | None = msgspec.field(name="clusterIPs", default=None)
    ports: list[_Port] | None = None


class Service(Thing):
    spec: _ServiceSpec = msgspec.field(default_factory=_ServiceSpec)

    @property
    def dns_addresses(self) -> tuple[bytes, ...]:
        """Its cluster addresses, if it serves port 53 at any; headless Services have none (`None` is no address)."""
        serves = any(port.port == 53 for port in self.spec.ports or [])
        return packed(self.spec.ips or []) if serves else ()

    def manifest(self) -> frozenset[bytes]:
        return frozenset(self.dns_addresses)


class _Endpoint(msgspec.Struct):
    addresses: list[str] | None = None


class EndpointSlice(Thing):
    endpoints: list[_Endpoint] | None = None

    def manifest(self) -> frozenset[bytes]:
        """Every address, ready or not: a DNS server that starts or ends asks its own upstream too."""
        return frozenset(address for each in self.endpoints or [] for address in packed(each.addresses or []))


class _NodeSpec(msgspec.Struct, rename="camel"):
    pod_cidr: str = msgspec.field(name="podCIDR", default="")
    pod_cidrs: list[str] | None = msgspec.field(name="podCIDRs", default=None)


class Node(Thing):
    spec: _NodeSpec = msgspec.field(default_factory=_NodeSpec)


class _CidrSpec(msgspec.Struct):
    cidrs: list[str] | None = None


class ServiceCIDR(Thing):
    spec: _CidrSpec = msgspec.field(default_factory=_CidrSpec)


class StatusObject(msgspec.Struct):
    """The object of a watch's ERROR event."""

    code: int = 0
    reason: str | None = ""
    message: str | None = ""


class Event(msgspec.Struct):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


T = TypeVar("T", bound=Thing)


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str | None = msgspec.field(name="continue", default=None)


class Listing(msgspec.Struct, Generic[T]):
    """One page of a list."""

    metadata: _ListMeta = msgspec.field(default_factory=_ListMeta)
    items: list[T] | None = None


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """How one kind of object is listed and watched. `value` makes of an object what the rest of the program knows."""

    name: str
    path: str
    selector: tuple[tuple[str, str], ...]
    page: msgspec.json.Decoder[Listing[T]]
    one: msgspec.json.Decoder[T]
    value: Callable[[T], Any]

    def selecting(self, path: str = "", **selector: str) -> Kind[T]:
        """The same, of those objects only that a field or label selector chooses."""
        chosen = (*self.selector, *selector.items())
        return Kind(self.name, path or self.path, chosen, self.page, self.one, self.value)


def _kind(name: str, path: str, model: type[Any], **selector: str) -> Kind[Any]:
    page = msgspec.json.Decoder(Listing[model])  # type: ignore[valid-type]  # msgspec makes it at run time
    return Kind(name, path, tuple(selector.items()), page, msgspec.json.Decoder(model), model.manifest)


def packed(texts: Iterable[str]) -> tuple[bytes, ...]:
    """The addresses among some texts, each once, in order."""
    found: dict[bytes, None] = {}
    for text in texts:
        try:
            found[read_address(text)] = None
        except ValueError:
            continue
    return tuple(found)


PODS: Final = _kind("pods", "/api/v1/pods", Pod)
NAMESPACES: Final = _kind("namespaces", "/api/v1/namespaces", Namespace)
CONFIGMAPS: Final = _kind("configmaps", "/api/v1/configmaps", ConfigMap, labelSelector=f"{POLICY_LABEL}=true")
SERVICES: Final = _kind("services", "/api/v1/services", Service)
SLICES: Final = _kind("endpointslices", "/apis/discovery.k8s.io/v1/endpointslices", EndpointSlice)
