"""Pods: the fields of a v1 Pod that say who it is, where it is and under which addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Final, Protocol

from pydantic import Field

from egressd.model import Address, PodIdentity
from egressd.schema.checks import Lenient, Reads
from egressd.schema.labels import LabelKey, LabelValue, Namespace, ObjectName
from egressd.schema.words import read_address

__all__ = ["OwnerReference", "PodModel", "PodObject", "pod_object", "workload_of"]

_CRON_JOB: Final = re.compile(r"(?P<name>.+)-[0-9]{8,}\Z")
"""A CronJob names its Jobs after the minute they are due (pkg/controller/cronjob getJobName): 8 digits until 2160."""
_FINISHED: Final = {"Succeeded", "Failed"}


@dataclass(frozen=True, slots=True)
class PodObject:
    identity: PodIdentity
    labels: Mapping[str, str]
    addresses: tuple[bytes, ...]
    """Packed, the primary one first; empty until the pod has one."""
    node: str
    host_network: bool
    finished: bool
    """Succeeded or Failed: the pod no longer owns its addresses."""
    created: str
    """creationTimestamp as written (RFC 3339, UTC): later pods compare greater."""


AddressText = Annotated[Address, Reads(read_address, {"type": "string"})]


class _Owner(Lenient):
    kind: str = ""
    name: str = ""
    controller: bool = False


class _Metadata(Lenient):
    name: ObjectName
    namespace: Namespace = "default"
    uid: str = ""
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)
    owners: list[_Owner] = Field(default_factory=list, alias="ownerReferences")
    created: str = Field(default="", alias="creationTimestamp")


class _Spec(Lenient):
    node: str = Field(default="", alias="nodeName")
    account: str = Field(default="default", alias="serviceAccountName")
    host_network: bool = Field(default=False, alias="hostNetwork")


class _PodAddress(Lenient):
    ip: AddressText


class _Status(Lenient):
    phase: str = ""
    ip: AddressText | None = Field(default=None, alias="podIP")
    """The first of `podIPs`; alone in manifests older than dual stack."""
    ips: list[_PodAddress] = Field(default_factory=list, alias="podIPs")


class PodModel(Lenient):
    metadata: _Metadata
    spec: _Spec = Field(default_factory=_Spec)
    status: _Status = Field(default_factory=_Status)


class OwnerReference(Protocol):
    """One of a pod's `ownerReferences`, however it was read."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def controller(self) -> bool | None: ...


def workload_of(owners: Iterable[OwnerReference], labels: Mapping[str, str]) -> str:
    """`KIND/NAME` of what a person would call the pod's owner, or empty (kubernetes.md, Decisions).

    A ReplicaSet whose name ends in the pod's template hash belongs to a Deployment; a Job with a CronJob's name to one.
    """
    owner = next((owner for owner in owners if owner.controller), None)
    if owner is None:
        return ""
    suffix = "-" + labels.get("pod-template-hash", "")
    if owner.kind == "ReplicaSet" and suffix != "-" and owner.name.endswith(suffix):
        return f"Deployment/{owner.name.removesuffix(suffix)}"
    if owner.kind == "Job" and (found := _CRON_JOB.match(owner.name)):
        return f"CronJob/{found['name']}"
    return f"{owner.kind}/{owner.name}"


def pod_object(pod: PodModel) -> PodObject:
    """The value that the rest of the program knows a pod by."""
    meta, spec, status = pod.metadata, pod.spec, pod.status
    first = [status.ip] if status.ip is not None else []
    identity = PodIdentity(meta.namespace, meta.name, meta.uid, spec.account, workload_of(meta.owners, meta.labels))
    return PodObject(
        identity=identity,
        labels=meta.labels,
        addresses=tuple(dict.fromkeys([*first, *(entry.ip for entry in status.ips)])),
        node=spec.node,
        host_network=spec.host_network,
        finished=status.phase in _FINISHED,
        created=meta.created,
    )
