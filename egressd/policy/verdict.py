"""The order of policy.md, Verdict: everything that decides about a destination lives in this file.

A destination is a `Case`: the rules that match it by name or by address, and the ports that are asked about. One
function, `judge`, takes it to one `Outcome`; `decide` lays the verdict that counts (Enforce policies only) beside the
one that would be (every policy as if enforced) and makes the decision out of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from egressd.model import ANY_PORT, Action, Decision, Mode, Policy, Ports, Reason, Rule, Verdict
from egressd.policy.ports import intersect, normalise, subtract, union

__all__ = [
    "FOREIGN",
    "MALFORMED",
    "RATE_LIMITED",
    "UNKNOWN_POD",
    "UNSELECTED",
    "Case",
    "Entry",
    "Outcome",
    "decide",
    "entries_of",
    "judge",
]

UNSELECTED: Final = Decision(Verdict.ALLOWED, Reason.UNSELECTED, resolve=True)
"""No policy selects the pod: it is not judged."""
UNKNOWN_POD: Final = Decision(Verdict.DENIED, Reason.UNKNOWN_POD)
FOREIGN: Final = Decision(Verdict.DENIED, Reason.FOREIGN_RESOLVER)
RATE_LIMITED: Final = Decision(Verdict.DENIED, Reason.RATE_LIMIT)
MALFORMED: Final = Decision(Verdict.DENIED, Reason.MALFORMED)


class Entry:
    """One rule of one policy, ready to be judged by. Compared by identity; shared by all its patterns and blocks."""

    __slots__ = ("audited", "deny", "policy", "ports", "rule")

    def __init__(self, policy: Policy, rule: Rule) -> None:
        self.policy = policy
        self.rule = rule
        self.deny = rule.action is Action.DENY
        self.audited = policy.mode is Mode.AUDIT
        self.ports = normalise(rule.ports)

    @property
    def order(self) -> tuple[str, str]:
        """Who is named when rules match equally closely: independent of where they were written."""
        return self.policy.name, self.rule.name


def entries_of(policies: Iterable[Policy]) -> list[Entry]:
    """One entry for every rule, ordered by policy and rule name."""
    entries = [Entry(policy, rule) for policy in policies for rule in (*policy.deny, *policy.allow)]
    return sorted(entries, key=lambda entry: entry.order)


class Case(NamedTuple):
    """One destination: a name with every port, or an address with one port (or every port of one protocol)."""

    entries: tuple[Entry, ...]
    """The rules that match, the closest first: a name before its wildcards, a small block before a large one."""
    wanted: Ports
    in_cluster: bool
    """Whether the name or address is inside the cluster (settings `cluster_domains`, `cluster_cidrs`)."""
    cluster_open: bool
    """Whether that alone allows it (`in_cluster: Allow`)."""
    selected: bool = True
    """Whether any policy selects the pod at all."""

    @property
    def whole_name(self) -> bool:
        """Whether this is about a name, hence about every port."""
        return self.wanted == ANY_PORT

    def enforced(self, selected: bool) -> Case:
        """The case as the Enforce policies see it; `selected` says whether there is any."""
        return self._replace(entries=tuple(entry for entry in self.entries if not entry.audited), selected=selected)


class Outcome(NamedTuple):
    """What one reading of the policies says. `entry` is the rule that decided; `ports` what a name's grants open."""

    allowed: bool
    reason: Reason
    entry: Entry | None = None
    ports: Ports = ()
    private_ports: Ports = ()


_UNSELECTED: Final = Outcome(True, Reason.UNSELECTED)
_IN_CLUSTER: Final = Outcome(True, Reason.IN_CLUSTER)
_NO_RULE: Final = Outcome(False, Reason.NO_RULE)


def judge(case: Case) -> Outcome:
    """Judge the case by all its rules: a destination is allowed while one of its wanted ports is.

    Unselected, deny, allow, in-cluster, no rule: in this order. A deny rule's ports are taken out of everything else.
    """
    if not case.selected:
        return _UNSELECTED
    denies = [entry for entry in case.entries if entry.deny]
    barred = union(*(entry.ports for entry in denies))
    if denies and not subtract(case.wanted, barred):
        return Outcome(False, Reason.DENY_RULE, _barring(denies, case.wanted))
    matched = [entry for entry in case.entries if not entry.deny]
    claimed = intersect(union(*(entry.ports for entry in matched)), case.wanted)
    ports = subtract(claimed, barred)
    if ports:
        return _allowed(case, matched, ports)
    if case.cluster_open:
        return _IN_CLUSTER
    if claimed:
        return Outcome(False, Reason.DENY_RULE, _barring(denies, claimed))
    return _NO_RULE


def _allowed(case: Case, matched: Sequence[Entry], ports: Ports) -> Outcome:
    """Of the rules that really open something, the closest is named, and their `allowPrivate` counts.

    A name inside the cluster is no external name: what it resolves to is private by nature (policy.md, Rebinding).
    """
    opening = [entry for entry in matched if intersect(entry.ports, ports)]
    if not case.whole_name:
        return Outcome(True, Reason.RULE, opening[0])
    if case.in_cluster:
        private = ports
    else:
        private = intersect(union(*(entry.ports for entry in opening if entry.rule.allow_private)), ports)
    return Outcome(True, Reason.RULE, opening[0], ports, private)


def _barring(denies: Sequence[Entry], ports: Ports) -> Entry:
    """The closest deny rule that takes all of the ports, else the closest that takes some."""
    for entry in denies:
        if not subtract(ports, entry.ports):
            return entry
    return next(entry for entry in denies if intersect(entry.ports, ports))


_VERDICTS: Final = {
    (True, True): Verdict.ALLOWED,
    (True, False): Verdict.WOULD_DENY,
    (False, True): Verdict.WOULD_ALLOW,
    (False, False): Verdict.DENIED,
}
"""(what the Enforce policies allow, what all policies would allow) → what the record says."""


def decide(first: Outcome, second: Outcome, filters_dns: bool) -> Decision:
    """The decision: `first` is what counts, `second` what would count if every policy were enforced.

    Where they differ, or where only Audit policies select the pod, the reason is the second's: it is what an observer
    wants to know. Ports are what the kernel opens, hence the first's; for a pod that is only audited the second's,
    which open nothing that was closed but tell its would-be denied flows apart.
    """
    audited_only = first.reason is Reason.UNSELECTED
    told = second if audited_only or first.allowed != second.allowed else first
    opened = second if audited_only else first
    return Decision(
        verdict=_VERDICTS[first.allowed, second.allowed],
        reason=told.reason,
        policy=told.entry.policy.name if told.entry else "",
        rule=told.entry.rule.name if told.entry else "",
        ports=opened.ports,
        resolve=first.allowed or not filters_dns,
        allow_private=bool(opened.private_ports),
        private_ports=opened.private_ports,
    )
