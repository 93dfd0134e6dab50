"""Whom a policy selects: labels, service accounts, namespaces (policy.md, Where policies live).

Selectors mean what they mean in Kubernetes (apimachinery, labels.Requirement): all parts must hold, an empty selector
selects everything, and `NotIn` holds where the label is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from egressd.model import LabelSelector, Policy

__all__ = ["select", "selector_matches"]

NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"
"""Set by the API server on every namespace, to its name; here also for namespaces known by name only."""
DEFAULT_ACCOUNT: Final = "default"
"""What the API server writes into a pod that names no service account."""

_OPERATORS: Final[dict[str, Callable[[str | None, tuple[str, ...]], bool]]] = {
    "In": lambda value, values: value is not None and value in values,
    "NotIn": lambda value, values: value is None or value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}


def selector_matches(selector: LabelSelector, labels: Mapping[str, str]) -> bool:
    """Whether every label and every expression of the selector holds for these labels."""
    return all(labels.get(key) == value for key, value in selector.labels) and all(
        _OPERATORS[part.operator](labels.get(part.key), part.values) for part in selector.expressions
    )


def select(
    policies: Iterable[Policy],
    namespace: str,
    namespace_labels: Mapping[str, str],
    pod_labels: Mapping[str, str],
    service_account: str,
    policy_namespace: str,
) -> tuple[Policy, ...]:
    """The policies that select this pod, sorted by name: what its `Subject` is made of."""
    place = {NAMESPACE_LABEL: namespace, **namespace_labels}
    account = service_account or DEFAULT_ACCOUNT
    found = [
        policy
        for policy in policies
        if _reaches(policy, namespace, place, policy_namespace)
        and (not policy.subject.service_accounts or account in policy.subject.service_accounts)
        and selector_matches(policy.subject.pods, pod_labels)
    ]
    return tuple(sorted(found, key=lambda policy: policy.name))


def _reaches(policy: Policy, namespace: str, namespace_labels: Mapping[str, str], policy_namespace: str) -> bool:
    """Cluster policies reach the namespaces they select (all, if they do not say); others only ever their own."""
    if policy.namespace != policy_namespace:
        return policy.namespace == namespace
    namespaces = policy.subject.namespaces
    return namespaces is None or selector_matches(namespaces, namespace_labels)
