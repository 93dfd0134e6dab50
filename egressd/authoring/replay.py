"""Recorded queries and flows judged again, by policies that are not yet applied; no file, no clock.

Every record comes to exactly one `Change`. What counts as before is whether it went through then; what counts as
after is the verdict of the given policies alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from egressd.authoring.evidence import noise
from egressd.authoring.seen import WENT_THROUGH, Dropped, Flow, Query, Seen
from egressd.model import (
    Decision,
    LabelSelector,
    PodIdentity,
    Policy,
    Reason,
    Subject,
    SubjectSelector,
    Verdict,
    address_text,
)
from egressd.names import Name
from egressd.policy import ClusterFacts, Judge, ports_text, select
from egressd.policy.ports import point

__all__ = ["Change", "Known", "Outcome", "Replay"]


class Change(StrEnum):
    """What becomes of one record."""

    NEWLY_DENIED = "newly denied"
    NEWLY_WOULD_DENY = "newly would-deny"
    """It still goes through, and a policy in Audit mode would stop it."""
    NEWLY_ALLOWED = "newly allowed"
    UNCHANGED = "unchanged"
    UNSELECTED = "unselected"
    """None of the policies selects the pod: nothing is said of it."""
    LEFT_OUT = "left out"
    """Search-list noise, and names that do not exist: nobody misses them."""


class Outcome(NamedTuple):
    """A destination of a workload, and what the policies make of it."""

    change: Change
    event: str
    """`dns` or `flow`."""
    namespace: str
    workload: str
    destination: str
    before: str
    """The recorded verdict and reason."""
    after: str
    reason: str
    policy: str
    rule: str


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of pods beside the records: labels by NAMESPACE/NAME, by workload, and those of namespaces."""

    pods: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    workloads: Mapping[tuple[str, str], Mapping[str, str]] = field(default_factory=dict)
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def labels(self, pod: PodIdentity) -> Mapping[str, str] | None:
        """Labels of a pod, else of another pod of its workload, else None."""
        found = self.pods.get(str(pod))
        return found if found is not None else self.workloads.get((pod.namespace, pod.workload))


class Replay:
    """Replays records against policies; `changes` counts each outcome, `guessed` holds the pods without labels."""

    def __init__(self, policies: Iterable[Policy], facts: ClusterFacts, known: Known, policy_namespace: str) -> None:
        self.policies = tuple(policies)
        self.facts = facts
        self.known = known
        self.policy_namespace = policy_namespace
        self.counts: Counter[Change] = Counter()
        self.changes: Counter[Outcome] = Counter()
        self.dropped = 0
        self.guessed: set[str] = set()
        self._unlabelled = tuple(map(_without_labels, self.policies))
        self._judges: dict[tuple[str, ...], Judge] = {}
        self._subjects: dict[PodIdentity, Judge] = {}

    def add(self, seen: Seen) -> None:
        """Take one record."""
        if isinstance(seen, Dropped):
            self.dropped += seen.number
            return
        outcome = self._outcome(seen)
        self.counts[outcome.change] += seen.times
        if outcome.change in {Change.NEWLY_DENIED, Change.NEWLY_WOULD_DENY, Change.NEWLY_ALLOWED}:
            self.changes[outcome] += seen.times

    def _outcome(self, seen: Query | Flow) -> Outcome:
        judge = self._judge(seen.pod)
        decision = _name(judge, seen) if isinstance(seen, Query) else _flow(judge, seen)
        if isinstance(seen, Query) and (noise(self.facts, seen) or seen.absent):
            change = Change.LEFT_OUT
        elif not judge.subject.policies:
            change = Change.UNSELECTED
        else:
            change = _change(seen, decision.verdict)
        event, destination = ("dns", str(seen.name)) if isinstance(seen, Query) else ("flow", _spelled(seen))
        who = seen.pod.workload or f"Pod/{seen.pod.name}"
        before = f"{seen.verdict} ({seen.reason})"
        why = (str(decision.verdict), str(decision.reason), decision.policy, decision.rule)
        return Outcome(change, event, seen.pod.namespace, who, destination, before, *why)

    def _judge(self, pod: PodIdentity) -> Judge:
        known = self._subjects.get(pod)
        if known is None:
            known = self._subjects[pod] = self._new_judge(pod)
        return known

    def _new_judge(self, pod: PodIdentity) -> Judge:
        labels = self.known.labels(pod)
        place = self.known.namespaces.get(pod.namespace, {})
        policies = self.policies if labels is not None else self._unlabelled
        account, where = pod.service_account, self.policy_namespace
        chosen = select(policies, pod.namespace, place, labels or {}, account, where)
        by_label = {policy.name for policy in self.policies if policy.subject.pods != LabelSelector()}
        if labels is None and any(policy.name in by_label for policy in chosen):
            self.guessed.add(str(pod) if pod.name else f"{pod.namespace}/{pod.workload}")
        key = tuple(policy.name for policy in chosen)
        if key not in self._judges:
            self._judges[key] = Judge(Subject(chosen), self.facts)
        return self._judges[key]


def _without_labels(policy: Policy) -> Policy:
    """The policy as if its pod selector selected every pod: what can be said of pods whose labels nobody knows."""
    subject = policy.subject
    selector = SubjectSelector(LabelSelector(), subject.namespaces, subject.service_accounts)
    return replace(policy, subject=selector)


def _change(seen: Query | Flow, verdict: Verdict) -> Change:
    after = verdict in WENT_THROUGH
    if seen.went_through and verdict is Verdict.WOULD_DENY and seen.verdict is not Verdict.WOULD_DENY:
        return Change.NEWLY_WOULD_DENY
    if seen.went_through == after:
        return Change.UNCHANGED
    return Change.NEWLY_ALLOWED if after else Change.NEWLY_DENIED


# ---------------------------------------------------------------------------------------------- judging


def _name(judge: Judge, query: Query) -> Decision:
    """The verdict for a query and for what it was answered: an answer of private addresses alone is denied."""
    decision = judge.judge_name(query.name)
    if decision.verdict not in WENT_THROUGH or not judge.enforced:
        return decision
    if query.reason is Reason.REBINDING and not query.went_through:  # what was withheld then is not recorded
        reasons: Sequence[Reason | None] = [None if decision.allow_private else Reason.REBINDING]
    else:
        reasons = [judge.admissible(address, decision) for address in query.addresses]
    return _denied(decision, reasons[0]) if reasons and all(reasons) and reasons[0] else decision


def _denied(decision: Decision, reason: Reason) -> Decision:
    return replace(decision, verdict=Verdict.DENIED, reason=reason)


def _flow(judge: Judge, flow: Flow) -> Decision:
    """The verdict for a flow; a name opens a private address only where a rule says `allowPrivate`."""
    decision = judge.judge_destination(flow.names, flow.address, flow.protocol, flow.port)
    if decision.verdict not in WENT_THROUGH or not judge.enforced or not flow.names:
        return decision
    if judge.judge_address(flow.address, flow.protocol, flow.port).verdict in WENT_THROUGH:
        return decision
    reasons = [_barred(judge, name, flow) for name in flow.names]
    first = next((reason for reason in reasons if reason), None)
    return _denied(decision, first) if first and all(reasons) else decision


def _barred(judge: Judge, name: Name, flow: Flow) -> Reason | None:
    """Why the name does not open the flow's address; None where it does."""
    decision = judge.judge_name(name)
    if decision.verdict not in WENT_THROUGH:
        return Reason.NO_RULE
    return judge.admissible(flow.address, decision)


def _spelled(flow: Flow) -> str:
    """`api.example.com (192.0.2.1) 443/TCP`."""
    address, ports = address_text(flow.address), ports_text(point(flow.protocol, flow.port))
    return f"{flow.names[0]} ({address}) {ports}" if flow.names else f"{address} {ports}"
