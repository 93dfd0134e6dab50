"""Explaining online: the policies say why, the data path says what is open now, and both are held together.

The control side judges, since an explanation may take long; the data path is asked for the pod, its live grants and
who else knows the addresses. If its own verdict differs, a change is on its way to it, and that is said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from egressd.admin import shapes, views
from egressd.admin.answered import Barred, barred_address, followed
from egressd.model import Decision, Mode, Policy, PortSpan, Reason, Subject, Verdict, address_text
from egressd.names import Name
from egressd.policy import ClusterFacts, Explanation, Judge, contains, ports_text
from egressd.policy.addresses import Kind, special
from egressd.policy.narrow import narrowed
from egressd.policy.ports import point
from egressd.schema.target import Target
from egressd.settings import Settings

__all__ = ["explain"]

OPEN: Final = frozenset({Verdict.ALLOWED, Verdict.WOULD_DENY})
MAX_NAMES: Final = 4
"""Names of an address that a step lists."""


def explain(
    settings: Settings, policies: Mapping[str, Policy], target: Target, told: Mapping[str, Any]
) -> shapes.Explained:
    """Explain a destination for the pod that the data path told of. Takes milliseconds: for a thread."""
    names = told["pod"]["policies"]
    known = tuple(policies[name] for name in names if name in policies)
    facts = ClusterFacts(settings.cluster_cidrs, settings.cluster_domains, settings.in_cluster == "Enforce")
    judge = Judge(Subject(known), facts)
    whole = _of_name(judge, target) if target.name is not None else _of_address(judge, target, told)
    barred: list[Barred] = []
    if target.name is not None and known and whole.decision.verdict in OPEN:
        whole, barred = followed(judge, target, whole, told["answers"], settings.dns.deny_rcode)
    steps = list(whole.steps)
    if len(known) < len(names) or (target.name is not None and _differs(judge, target.name, told["verdict"])):
        steps.insert(len(steps) - 1, "the data path still judges by an older version: a change is on its way to it")
    decision = whole.decision
    return shapes.Explained(
        str(decision.verdict),
        str(decision.reason),
        decision.policy,
        decision.rule,
        steps,
        [views.grant(raw, names) for raw in told["grants"]],
        [shapes.Sharer(address_text(one["address"]), one["pod"], one["names"]) for one in told["shared"]],
        _allow(judge, target, decision, barred, told["pod"]["namespace"]),
    )


def _differs(judge: Judge, name: Name, verdict: str) -> bool:
    return bool(judge.subject.policies) and str(judge.judge_name(name).verdict) != verdict


def _of_name(judge: Judge, target: Target) -> Explanation:
    assert target.name is not None  # noqa: S101 - what the caller chose by
    whole = judge.explain_name(target.name)
    return narrowed(judge, whole, target.protocol, target.port) if target.asked else whole


def _of_address(judge: Judge, target: Target, told: Mapping[str, Any]) -> Explanation:
    """What address rules say and, where none speaks, what the names say by which the pod knows the address."""
    alone = judge.explain_address(target.address, target.protocol, target.port)
    names = [Name(name) for name in told["names"]]
    if not names:
        return alone
    *steps, verdict = alone.steps
    steps.append(f"{address_text(target.address)} is known to the pod as {_listed(names)}")
    steps.append(verdict.replace("verdict:", "the address alone:", 1))
    if alone.decision.reason is not Reason.NO_RULE:
        return Explanation(alone.decision, (*steps, verdict))
    opening = [raw for raw in told["grants"] if _opens(raw[3], target)]
    if opening:
        _, name, _, _, remaining_s = max(opening, key=lambda raw: raw[4])
        steps.append(f"a grant is alive: {name} led there, open for another {int(remaining_s)} s")
        decision = judge.judge_destination([Name(name)], target.address, target.protocol, target.port)
    else:
        decision = alone.decision
        asked = ports_text(point(target.protocol, target.port))
        steps.append(f"no grant is alive that opens {asked}: {_why_not(judge, target.address, names)}")
    by = f' by rule "{decision.rule}" of {decision.policy}' if decision.policy else ""
    return Explanation(decision, (*steps, f"verdict: {decision.verdict} ({decision.reason}){by}"))


def _why_not(judge: Judge, address: bytes, names: Sequence[Name]) -> str:
    words = [barred_address(judge, address, judge.judge_name(name)) for name in names]
    if all(words):
        return f"it is {words[0]}, and none of its names may lead there (rebinding)"
    return "a new look-up of an allowed name would give one"


def _opens(ports: Sequence[Sequence[int]], target: Target) -> bool:
    return contains(tuple(PortSpan(*span) for span in ports), target.protocol, target.port)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


# ------------------------------------------------------------------------------------------- what would allow it


def _allow(
    judge: Judge, target: Target, decision: Decision, barred: Sequence[Barred], namespace: str
) -> shapes.AllowLine | None:
    """What to write so that it is allowed; None where it is."""
    if decision.verdict is Verdict.ALLOWED or not judge.subject.policies:
        return None
    if decision.reason is Reason.REBINDING:
        return _allow_private(judge, target, decision, barred, namespace)
    if decision.reason is not Reason.NO_RULE:
        note = f'deny wins over every allow rule: change rule "{decision.rule}" of {decision.policy} itself'
        return shapes.AllowLine(decision.policy, "", note if decision.policy else str(decision.reason))
    policy = _editable(judge.subject.policies, decision.verdict, namespace)
    asked = ports_text(point(target.protocol, target.port)) if target.asked else ""
    return shapes.AllowLine(policy.name, _yaml(target, asked), f"add it under `allow:` in {_place(policy)}")


def _allow_private(
    judge: Judge, target: Target, decision: Decision, barred: Sequence[Barred], namespace: str
) -> shapes.AllowLine:
    """What helps where the answer led where outside names may not lead: `allowPrivate`, but not everywhere."""
    kinds = [(one.address, *special(one.address, judge.facts.cidrs)) for one in barred if one.reason is decision.reason]
    if all(kind is Kind.NEVER for _, kind, _ in kinds):
        address, _, word = kinds[0]
        note = f"no rule can allow it: {address_text(address)} is {word}, and no name may ever lead there"
        return shapes.AllowLine(decision.policy, "", f"{note}; look at who answers for {target.name}")
    policy = _editable(judge.subject.policies, decision.verdict, namespace)
    opened = ports_text(point(target.protocol, target.port) if target.asked else decision.ports)
    note = (
        f"add it under `allow:` in {_place(policy)}, if whoever answers for {target.name} may choose private addresses"
    )
    return shapes.AllowLine(policy.name, _yaml(target, "" if opened.startswith("any") else opened, private=True), note)


def _place(policy: Policy) -> str:
    _, configmap, *key = policy.name.split("/")
    return f"ConfigMap {configmap} in namespace {policy.namespace}{f', key {key[0]}' if key else ''}"


def _editable(policies: Sequence[Policy], verdict: Verdict, namespace: str) -> Policy:
    """The policy to add a rule to: one that counts for the verdict, and of the pod's own namespace if there is one."""
    audited = verdict is Verdict.WOULD_DENY
    return min(policies, key=lambda one: ((one.mode is Mode.AUDIT) != audited, one.namespace != namespace, one.name))


def _yaml(target: Target, opened: str, *, private: bool = False) -> str:
    """A rule for the target on the ports `opened`, as `ports_text` spells them; empty: on all."""
    peer = target.name if target.name is not None else address_text(target.address)
    quoted = json.dumps(peer) if ":" in peer or peer.replace(".", "").isdigit() else peer
    each = opened.replace("ICMPv6", "ICMP").split(", ")  # which means both in a policy
    ports = ", ".join(json.dumps(one) if one.startswith("*") else one for one in each)
    return f"- {{to: [{quoted}]{f', ports: [{ports}]' if opened else ''}{', allowPrivate: true' if private else ''}}}"
