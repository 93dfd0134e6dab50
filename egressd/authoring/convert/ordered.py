"""Policies in which the first rule that matches counts, and what no rule matches passes: OVN-Kubernetes' EgressFirewall
(k8s.ovn.org), Antrea's policies (crd.antrea.io) and Kubernetes' ClusterNetworkPolicy (policy.networking.k8s.io).

A last rule that denies everything is what egressd does anyway; where there is none, a rule that allows everything
keeps the meaning, and is said. Wildcards: one label for OVN (DNSNameResolver), any text for Antrea, one or more labels
for ClusterNetworkPolicy (NPEP-133), as here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

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

__all__ = ["antrea", "cluster_network_policy", "egress_firewall"]

ACTIONS: Final = {"allow": "allow", "accept": "allow", "deny": "deny", "drop": "deny", "reject": "deny"}
OWN_LABEL: Final = "kubernetes.io/metadata.name"


def action_of(rule: Part, key: str) -> str:
    """`allow` or `deny`; anything else is told, and empty."""
    text = rule.at(key).text
    action = ACTIONS.get(text.lower(), "")
    if not action:
        rule.swallow()
        rule.log.warn(rule.line, f"{rule.path} is not carried over: its action {text!r} has no like here")
    return action


def egress_firewall(document: Part, namespace: str, name: str) -> Iterator[Draft]:
    """An EgressFirewall holds for every pod of its namespace."""
    spec = document.at("spec")
    draft = Draft(namespace, name, spec.line)
    for rule in spec.at("egress").items():
        if not (action := action_of(rule, "type")):
            continue
        to = rule.at("to")
        peers = blocks(to.at("cidrSelector"), []) if to.at("cidrSelector") else []
        if value := to.at("dnsName"):
            peers += pattern(value.text, value.line, rule.log, one_label=True)
        ports = [one_port(p.at("protocol").text, p.at("port").text, "", p) for p in rule.at("ports").items()]
        add_rule(draft, rule, action, peers, ports, ordered=True)
    open_the_rest(draft, spec)
    yield draft


# ------------------------------------------------------------------------------------------------ Antrea


def antrea(document: Part, namespace: str, name: str, *, cluster: bool) -> Iterator[Draft]:
    """One draft for each entry of `appliedTo`: they are alternatives, where the parts of a subject must all hold."""
    spec = document.at("spec")
    spec.ignore("priority", "tier", "ingress")
    if not spec.at("egress"):
        spec.log.note(spec.line, f"{spec.path} has no egress rules: there is nothing to convert")
        return
    targets = spec.at("appliedTo").items()
    if not targets:
        raise refuse(spec, "has no appliedTo: who is meant is said in its rules, rule by rule")
    drafts = [_applied(target, namespace, name, cluster=cluster) for target in targets]
    first = drafts[0]
    for rule in spec.at("egress").items():
        if action := action_of(rule, "action"):
            _antrea_rule(first, rule, action)
    open_the_rest(first, spec)
    for draft in drafts:
        draft.rules = first.rules
        yield draft


def _applied(target: Part, namespace: str, name: str, *, cluster: bool) -> Draft:
    draft = Draft(namespace, name, target.line, pods=selector(target.at("podSelector")))
    if cluster:
        draft.namespaces = selector(target.at("namespaceSelector"))
    if account := target.at("serviceAccount"):
        draft.accounts = [account.at("name").text]
        draft.namespaces = {"matchLabels": {OWN_LABEL: account.at("namespace").text}}
    if lost := target.unread():
        raise refuse(lost[0], "selects what no subject can")
    return draft


def _antrea_rule(draft: Draft, rule: Part, action: str) -> None:
    rule.ignore("name", "enableLogging", "logLabel")
    peers: list[str] = [] if rule.at("to") or rule.at("toServices") else list(EVERYTHING)
    for part in rule.at("to").items():
        if value := part.at("fqdn"):
            peers += pattern(value.text, value.line, part.log, one_label=False)
        elif block := part.at("ipBlock"):
            peers += blocks(block.at("cidr"), block.at("except").texts())
        _tell_rest(part)
    ports = [_antrea_port(one) for one in rule.at("ports").items()]
    add_rule(draft, rule, action, peers, ports, ordered=True)


def _antrea_port(one: Part) -> list[str] | None:
    return one_port(one.at("protocol").text or "TCP", one.at("port").text, one.at("endPort").text, one)


def _tell_rest(part: Part) -> None:
    """A peer of a kind that is not known here leaves its rule smaller; the rule's other peers stay."""
    for lost in part.unread():
        lost.swallow()
        part.log.warn(lost.line, f"{lost.path} is not carried over: egressd knows names and addresses")
    part.swallow()


# --------------------------------------------------------------------------------- ClusterNetworkPolicy


def cluster_network_policy(document: Part, namespace: str, name: str) -> Iterator[Draft]:
    """ClusterNetworkPolicy, and the AdminNetworkPolicy and BaselineAdminNetworkPolicy that it came from."""
    spec = document.at("spec")
    spec.ignore("priority", "tier", "ingress")
    if not spec.at("egress"):
        spec.log.note(spec.line, f"{spec.path} has no egress rules: there is nothing to convert")
        return
    subject = spec.at("subject")
    pods = subject.at("pods")
    where = pods.at("namespaceSelector") if pods else subject.at("namespaces")
    draft = Draft(namespace, name, spec.line, selector(pods.at("podSelector")), selector(where))
    if lost := subject.unread():
        raise refuse(lost[0], "selects what no subject can")
    for rule in spec.at("egress").items():
        if action := action_of(rule, "action"):
            _cluster_rule(draft, rule, action)
    open_the_rest(draft, spec)
    yield draft


def _cluster_rule(draft: Draft, rule: Part, action: str) -> None:
    rule.ignore("name")
    peers: list[str] = []
    for part in rule.at("to").items():
        for text, line in part.at("domainNames").texts():
            peers += pattern(text, line, part.log, one_label=False)
        for network in part.at("networks").items():
            peers += blocks(network, [])
        _tell_rest(part)
    ports = [_cluster_port(one) for one in rule.at("ports").items()]
    ports += [entry for one in rule.at("protocols").items() for entry in _protocol(one)]
    add_rule(draft, rule, action, peers, ports, ordered=True)


def _cluster_port(one: Part) -> list[str] | None:
    """`portNumber`, `portRange` or `namedPort` (v1alpha1)."""
    number, span = one.at("portNumber"), one.at("portRange")
    if span:
        return one_port(span.at("protocol").text or "TCP", span.at("start").text, span.at("end").text, one)
    if number:
        return one_port(number.at("protocol").text or "TCP", number.at("port").text, "", one)
    one.swallow()
    one.log.warn(one.line, f"{one.path} is not carried over: ports have no names here")
    return None


def _protocol(one: Part) -> Iterator[list[str] | None]:
    """`tcp: {destinationPort: {number, range: {start, end}}}` (v1alpha2)."""
    for protocol, part in one.keys():  # noqa: SIM118 - a method of Part
        port = part.at("destinationPort")
        span = port.at("range")
        first = span.at("start").text if span else port.at("number").text
        yield one_port(protocol, first, span.at("end").text, part)
