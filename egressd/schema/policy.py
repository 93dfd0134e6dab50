"""One policy document: text in, a compiled `Policy` or all that is wrong with it out.

Any text gives a policy or at least one error, never an exception. A document with any error gives no policy at all
(policy.md, Bad input); warnings leave it as it is.

A policy of 20 rules and 60 peers takes about 1 ms of CPU (Python 3.11, libyaml), the worst megabyte found 3.4 s.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from sys import intern
from typing import Final

from egressd.model import (
    ANY_PORT,
    Action,
    Block,
    DnsMode,
    LabelSelector,
    Mode,
    OnRevoke,
    Policy,
    Ports,
    Rule,
    SubjectSelector,
)
from egressd.names import Pattern
from egressd.policy.ports import normalise
from egressd.schema.checks import validate
from egressd.schema.document import AllowRule, DenyRule, Document
from egressd.schema.problem import Fault, Origin, Problem, shown
from egressd.schema.tree import Mapping, Node, compose, place, plain
from egressd.schema.words import suffix_warning

__all__ = ["MAX_POLICY", "policy_of_node", "read_policy"]

MAX_POLICY: Final = 1024 * 1024
"""Characters of one document: what a whole ConfigMap may hold in octets."""


def read_policy(
    text: str,
    *,
    name: str,
    namespace: str,
    policy_namespace: str,
    file: str = "",
    origin: Origin = Origin(),  # noqa: B008 - frozen
) -> tuple[Policy | None, list[Problem]]:
    """Read the document `text`, the policy `name` of `namespace`. `origin` says where the text lies in `file`."""
    node, faults = _single(text)
    policy = None
    if node is not None:
        policy, more = policy_of_node(node, len(text), name, namespace, policy_namespace)
        faults += more
    problems = origin.problems(file, faults)
    return (None if any(fault.severity == "error" for fault in faults) else policy), problems


def _single(text: str) -> tuple[Node | None, list[Fault]]:
    if len(text) > MAX_POLICY:
        return None, [Fault(1, 1, f"the document has {len(text)} characters; at most {MAX_POLICY} are read")]
    nodes, faults = compose(text)
    if not faults and len(nodes) != 1:
        line, column = (nodes[1].line, nodes[1].column) if nodes else (1, 1)
        what = "a second document; put each policy under a key of its own" if nodes else _EMPTY
        faults.append(Fault(line, column, what))
    return (None if faults else nodes[0]), faults


_EMPTY: Final = "the document is empty; write 'allow: []' to let the namespace's pods reach nothing outside"


def policy_of_node(
    node: Node, size: int, name: str, namespace: str, policy_namespace: str
) -> tuple[Policy | None, list[Fault]]:
    """Compile one composed document; `size` is the length of the text it came from."""
    faults: list[Fault] = []
    value, whole = plain(node, faults, size=size)
    if whole and not isinstance(node, Mapping):
        found = _EMPTY if value is None else "a policy is a mapping with 'subject', 'allow', 'deny' …; this is not one"
        faults.append(Fault(node.line, node.column, found))
    elif whole:
        document = validate(Document, value, node, faults)
        if document:
            cluster = namespace == policy_namespace
            faults += _beyond_fields(document, node, cluster, policy_namespace)
            if not any(fault.severity == "error" for fault in faults):
                return _compiled(document, node, name, namespace, cluster), faults
    return None, faults


# ------------------------------------------------------------------------------------- across the fields


def _beyond_fields(document: Document, node: Node, cluster: bool, policy_namespace: str) -> list[Fault]:
    faults = _duplicates(document, node)
    if not cluster and "namespaces" in document.subject.model_fields_set:
        line, column = place(node, ("subject", "namespaceSelector"), key=True)
        faults.append(
            Fault(
                line,
                column,
                "'namespaceSelector' is for cluster policies, in namespace "
                f"{policy_namespace!r}: this policy selects pods of its own namespace only; remove it",
            )
        )
    for index, rule in enumerate(document.allow):
        for position, peer in enumerate(rule.to):
            if isinstance(peer, Pattern) and (warning := suffix_warning(peer)):
                faults.append(Fault(*place(node, ("allow", index, "to", position)), warning, "warning"))
    return faults


def _duplicates(document: Document, node: Node) -> list[Fault]:
    faults: list[Fault] = []
    seen: dict[str, int] = {}
    for action, rules in ((Action.ALLOW, document.allow), (Action.DENY, document.deny)):
        for index, rule in enumerate(rules):
            name = _name(rule, action, index)
            line, column = place(node, (str(action), index, "name"))
            if name in seen:
                faults.append(Fault(line, column, f"rule name {shown(name)} is taken by the rule at line {seen[name]}"))
            seen.setdefault(name, line)
    return faults


# ---------------------------------------------------------------------------------------------- compile


def _name(rule: DenyRule, action: Action, index: int) -> str:
    return rule.name or intern(f"{action}[{index}]")  # one text for all policies


def _ports(rule: DenyRule) -> Ports:
    spans = tuple(span for entry in rule.ports for span in entry)
    return _same_ports(spans) if spans else ANY_PORT


@lru_cache(maxsize=1024)
def _same_ports(spans: Ports) -> Ports:
    """The ports in canonical form; one value for all rules that have the same, as most rules have 443/TCP."""
    return normalise(spans)


def _rules(rules: Sequence[DenyRule], action: Action, node: Node) -> tuple[Rule, ...]:
    return tuple(
        Rule(
            name=_name(rule, action, index),
            action=action,
            patterns=tuple(dict.fromkeys(peer for peer in rule.to if isinstance(peer, Pattern))),
            blocks=tuple(dict.fromkeys(peer for peer in rule.to if isinstance(peer, Block))),
            ports=_ports(rule),
            allow_private=isinstance(rule, AllowRule) and rule.allow_private,
            line=place(node, (str(action), index))[0],
        )
        for index, rule in enumerate(rules)
    )


def _compiled(document: Document, node: Node, name: str, namespace: str, cluster: bool) -> Policy:
    subject = document.subject
    namespaces: LabelSelector | None = subject.namespaces.compiled() if cluster else None
    return Policy(
        name=name,
        namespace=namespace,
        subject=SubjectSelector(
            pods=subject.pods.compiled(), namespaces=namespaces, service_accounts=tuple(subject.accounts)
        ),
        mode=Mode(document.mode),
        dns=DnsMode(document.dns),
        on_revoke=OnRevoke(document.on_revoke),
        allow=_rules(document.allow, Action.ALLOW, node),
        deny=_rules(document.deny, Action.DENY, node),
    )
