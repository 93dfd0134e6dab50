"""CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy (cilium.io/v2), and GKE's FQDNNetworkPolicy, built like it.

In `matchPattern`, `*` stands for characters of one label and `**.` for labels (pkg/fqdn/matchpattern). A policy with
egress rules closes everything else, and its denials win, as here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from egressd.authoring.convert.draft import (
    EVERYTHING,
    Draft,
    add_rule,
    blocks,
    one_port,
    open_the_rest,
    pattern,
    refuse,
    selector,
)
from egressd.authoring.convert.walk import Part

__all__ = ["cilium", "fqdn_policy"]

ACCOUNT: Final = "io.cilium.k8s.policy.serviceaccount"
NAMESPACE: Final = "io.kubernetes.pod.namespace"
NAMESPACE_LABELS: Final = "io.cilium.k8s.namespace.labels."
OWN_LABEL: Final = "kubernetes.io/metadata.name"
_PREFIX: Final = re.compile(r"\A(?:k8s|any)[:.]")
INSIDE: Final = ("toEndpoints", "toServices", "toNodes", "toGroups")
"""Peers inside the cluster, or known to a cloud alone."""


def cilium(document: Part, namespace: str, name: str, *, cluster: bool) -> Iterator[Draft]:
    """One draft for each spec with egress rules."""
    for spec in [part for part in (document.at("spec"), *document.at("specs").items()) if part]:
        draft = Draft(namespace, name, spec.line)
        if spec.at("nodeSelector"):
            raise refuse(spec.at("nodeSelector"), "selects nodes, not pods")
        _subject(draft, spec.at("endpointSelector"), cluster=cluster)
        spec.ignore("description", "labels", "ingress", "ingressDeny")
        rules, denials = spec.at("egress"), spec.at("egressDeny")
        if not rules and not denials:
            spec.log.note(spec.line, f"{spec.path} has no egress rules: there is nothing to convert")
            continue
        for rule in rules.items():
            _rule(draft, rule, "allow")
        for rule in denials.items():
            _rule(draft, rule, "deny")
        if spec.at("enableDefaultDeny").at("egress").text == "false" or not rules:
            open_the_rest(draft, spec)
        spec.at("enableDefaultDeny").ignore("ingress")
        yield draft


def _subject(draft: Draft, part: Part, *, cluster: bool) -> None:
    """Sort the labels of an endpoint selector into pods, namespaces and service accounts."""
    found = selector(part)
    pods: dict[str, Any] = {}
    places: dict[str, Any] = {}
    expressions = [
        {"key": key, "operator": "In", "values": [value]} for key, value in found.get("matchLabels", {}).items()
    ]
    for one in [*expressions, *found.get("matchExpressions", [])]:
        key = _PREFIX.sub("", one["key"], count=1)
        if key == ACCOUNT and one["operator"] == "In" and not draft.accounts:
            draft.accounts += one["values"]
        elif key == NAMESPACE and (cluster or one.get("values") == [draft.namespace]):
            if cluster:
                _put(places, {**one, "key": OWN_LABEL})
        elif key.startswith(NAMESPACE_LABELS) and cluster:
            _put(places, {**one, "key": key.removeprefix(NAMESPACE_LABELS)})
        elif ":" in key or key.startswith(("io.cilium.", "reserved.")) or key == NAMESPACE:
            raise refuse(part, f"selects by {one['key']}, which is no label of a pod")
        else:
            _put(pods, {**one, "key": key})
    draft.pods, draft.namespaces = pods, places if cluster else None


def _put(out: dict[str, Any], one: dict[str, Any]) -> None:
    labels = out.get("matchLabels", {})
    if one["operator"] == "In" and len(one["values"]) == 1 and one["key"] not in labels:
        out["matchLabels"] = {**labels, one["key"]: one["values"][0]}
    else:
        out.setdefault("matchExpressions", []).append(one)


def _rule(draft: Draft, rule: Part, action: str) -> None:
    if _only_dns(rule):
        rule.swallow()
        rule.log.note(rule.line, f"{rule.path} lets pods ask for names: egressd answers them itself, no rule is needed")
        return
    inside = [part for part in (rule.at(key) for key in INSIDE) if part]
    for part in inside:
        part.swallow()
        part.log.warn(part.line, f"{part.path} is not carried over: what is inside the cluster is open by `in_cluster`")
    peers = list(_peers(rule))
    any_peer = any(rule.at(key) for key in ("toFQDNs", "toCIDR", "toCIDRSet", "toEntities"))
    if not any_peer and not inside and not rule.empty:
        peers = list(EVERYTHING)
    ports = [entry for part in rule.at("toPorts").items() for entry in _ports(part)]
    ports += [["*/ICMP"] for part in rule.at("icmps").items() if _icmp(part)]
    if peers or any_peer or rule.unread():
        add_rule(draft, rule, action, peers, ports, ordered=False)


def _only_dns(rule: Part) -> bool:
    """Whether the rule is about asking a DNS server, and nothing else."""
    ports = rule.at("toPorts").items()
    return bool(ports) and not rule.at("toFQDNs") and all(part.at("rules").at("dns") for part in ports)


def _peers(rule: Part) -> Iterator[str]:
    for part in rule.at("toFQDNs").items():
        for key, one_label in (("matchName", False), ("matchPattern", True)):
            if value := part.at(key):
                yield from pattern(value.text, value.line, part.log, one_label=one_label)
    for part in rule.at("toCIDR").items():
        yield from blocks(part, [])
    for part in rule.at("toCIDRSet").items():
        if part.at("cidr"):
            yield from blocks(part.at("cidr"), part.at("except").texts())
    for part in rule.at("toEntities").items():
        if part.text in {"world", "all"}:
            yield from EVERYTHING
        elif part.text in {"world-ipv4", "world-ipv6"}:
            yield "0.0.0.0/0" if part.text.endswith("4") else "::/0"
        else:
            part.log.warn(part.line, f"{part.path} {part.text!r} is not carried over: it is inside the cluster")


def _ports(part: Part) -> Iterator[list[str] | None]:
    for one in part.at("ports").items():
        yield one_port(one.at("protocol").text, one.at("port").text, one.at("endPort").text, one)


def _icmp(part: Part) -> bool:
    part.swallow()
    part.log.warn(part.line, f"{part.path} is wider here: every type of ICMP")
    return True


# ------------------------------------------------------------------------------------------------- GKE


def fqdn_policy(document: Part, namespace: str, name: str) -> Iterator[Draft]:
    """FQDNNetworkPolicy of GKE (`matches`) and of its open forerunner (`to[].fqdns`), networking.gke.io."""
    spec = document.at("spec")
    draft = Draft(namespace, name, spec.line, pods=selector(spec.at("podSelector")))
    spec.ignore("policyTypes", "ingress")
    for rule in spec.at("egress").items():
        peers: list[str] = []
        for part in rule.at("matches").items():
            for key in ("name", "pattern"):
                if value := part.at(key):
                    peers += pattern(value.text, value.line, part.log, one_label=True)
        for part in rule.at("to").items():
            for text, line in part.at("fqdns").texts():
                peers += pattern(text, line, part.log, one_label=True)
        ports = [one_port(p.at("protocol").text or "TCP", p.at("port").text, "", p) for p in rule.at("ports").items()]
        add_rule(draft, rule, "allow", peers, ports, ordered=False)
    yield draft
