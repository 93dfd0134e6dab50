"""The labels that select exactly one workload, as far as its pods tell; values in, values out.

A selector is good if all pods of the workload that are known have its labels and no other known pod of the namespace
has all of them. Preferred are the labels by which people tell applications apart; what a controller or a release
writes of its own accord changes with every rollout, and is never taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from egressd.model import PodIdentity

__all__ = ["Pods", "gathered", "selector", "workload_key"]

Labels = Mapping[str, str]
Pods = Mapping[tuple[str, str], Sequence[Labels]]
"""Labels of each known pod, by namespace and workload as `workload_key` has them."""

TELLING: Final = frozenset(
    {
        "app.kubernetes.io/name",
        "app.kubernetes.io/instance",
        "app.kubernetes.io/component",
        "k8s-app",
        "app",
        "name",
        "component",
        "role",
        "tier",
    }
)
"""By convention of Kubernetes ("Recommended Labels") and of its users."""
PASSING: Final = frozenset(
    {
        "pod-template-hash",
        "pod-template-generation",
        "controller-revision-hash",
        "controller-uid",
        "job-name",
        "batch.kubernetes.io/controller-uid",
        "batch.kubernetes.io/job-name",
        "batch.kubernetes.io/job-completion-index",
        "statefulset.kubernetes.io/pod-name",
        "apps.kubernetes.io/pod-index",
        "app.kubernetes.io/version",
        "app.kubernetes.io/managed-by",
        "helm.sh/chart",
        "topology.kubernetes.io/region",
        "topology.kubernetes.io/zone",
    }
)
"""Written by controllers, releases or the scheduler."""
_PART: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?\Z")
_KEY: Final = re.compile(rf"(?:[a-z0-9](?:[a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_PART.pattern}")
"""Values, and keys with or without a prefix (Kubernetes, "Labels and Selectors", Syntax and character set)."""


def workload_key(pod: PodIdentity) -> tuple[str, str]:
    """What a pod counts under: its namespace, and its workload or itself."""
    return pod.namespace, pod.workload or f"Pod/{pod.name}"


def gathered(pods: Iterable[tuple[PodIdentity, Labels]]) -> Pods:
    """Pods with their labels, by workload."""
    found: dict[tuple[str, str], list[Labels]] = {}
    for identity, labels in pods:
        found.setdefault(workload_key(identity), []).append(labels)
    return found


def _writable(key: str, value: str) -> bool:
    """Whether Kubernetes has such a label, and a policy thus may ask for it."""
    return bool(_KEY.match(key) and (not value or _PART.match(value)))


def selector(namespace: str, workload: str, pods: Pods) -> dict[str, str]:
    """The labels that select the workload and nothing else in its namespace; empty where there are none such."""
    own = pods.get((namespace, workload), [])
    if not own:
        return {}
    common = {key: own[0][key] for key in sorted(own[0]) if key not in PASSING and _writable(key, own[0][key])}
    for labels in own[1:]:
        common = {key: value for key, value in common.items() if labels.get(key) == value}
    others = [
        labels for (place, name), found in pods.items() if place == namespace and name != workload for labels in found
    ]
    telling = {key: value for key, value in common.items() if key in TELLING}
    for wanted in (telling, common):
        if wanted and not any(wanted.items() <= other.items() for other in others):
            return wanted
    return {}
