"""A decision told step by step, for a person at three in the morning.

Nothing is decided here: the steps say which rules match (found by the same index) and what `verdict.judge` made of
them. Rules that do not match are counted, not listed, and every list is cut at `MAX_LISTED`, so that an explanation
fits a screen however many policies there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from egressd.model import Decision, Mode, Policy, Ports, Reason, Verdict, address_text
from egressd.names import Name
from egressd.policy.addresses import block_text
from egressd.policy.ports import intersect, ports_text, subtract, union
from egressd.policy.sweep import block_size
from egressd.policy.verdict import Case, Entry, Outcome, judge

__all__ = ["Context", "Explanation", "explain_address", "explain_name"]

MAX_LISTED: Final = 5
"""Policies, deny rules and allow rules spelled out; at most three times 5 + 2 lines beside the few that conclude."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """A decision and the sentences that led to it, in order; the last one is the verdict."""

    decision: Decision
    steps: tuple[str, ...]


class Context(NamedTuple):
    """What an explanation needs to know of the subject."""

    policies: tuple[Policy, ...]
    entries: Sequence[Entry]
    filters_dns: bool


def explain_name(name: Name, case: Case, decision: Decision, context: Context) -> Explanation:
    """Explain the verdict for a query of `name`."""

    def how(entry: Entry) -> str:
        closest = max(
            (pattern for pattern in entry.rule.patterns if pattern.matches(name)),
            key=lambda pattern: (not pattern.wildcard, len(pattern.name)),
        )
        return f"matches {name} by {closest}" if closest.wildcard else f"names {name}"

    return Explanation(decision, tuple(_steps(_Story(name, how, case, decision, context))))


def explain_address(address: bytes, case: Case, decision: Decision, context: Context) -> Explanation:
    """Explain the verdict for an address that is dialled without a name."""
    text = address_text(address)

    def how(entry: Entry) -> str:
        own = (block for block in entry.rule.blocks if len(block.first) == len(address))
        covering = [block for block in own if block.first <= address <= block.last]
        return f"covers {text} by {block_text(min(covering, key=block_size))}"

    return Explanation(decision, tuple(_steps(_Story(text, how, case, decision, context))))


class _Story(NamedTuple):
    text: str
    """The destination, spelled."""
    how: Callable[[Entry], str]
    """By which of its peers a rule matches."""
    case: Case
    decision: Decision
    context: Context


def _steps(story: _Story) -> Iterator[str]:
    policies = story.context.policies
    if not policies:
        yield "no policy selects the pod: it is not judged"
        yield f"verdict: {_verdict_text(story.decision)}"
        return
    yield from _listed(
        [f"policy {p.name} ({p.mode.value}, dns: {p.dns.value}) selects the pod" for p in policies],
        "more policies select the pod",
    )
    yield from _rules(story, deny=True)
    yield from _rules(story, deny=False)
    yield from _cluster(story)
    yield from _readings(story)
    yield f"verdict: {_verdict_text(story.decision)}{_consequence(story)}"


def _listed(lines: Sequence[str], more: str) -> Iterator[str]:
    yield from lines[:MAX_LISTED]
    if len(lines) > MAX_LISTED:
        yield f"{len(lines) - MAX_LISTED} {more}"


def _rules(story: _Story, *, deny: bool) -> Iterator[str]:
    """The deny (or allow) rules that match, closest first, and how many others there are."""
    word = "deny" if deny else "allow"
    rules = [entry for entry in story.context.entries if entry.deny is deny]
    matching = [entry for entry in dict.fromkeys(story.case.entries) if entry.deny is deny]
    if not rules:
        yield f"the pod's policies have no {word} rule"
        return
    if not matching and len(rules) == 1:
        yield f"{_rule_text(rules[0])} does not match {story.text}"
        return
    if not matching:
        yield f"none of the {len(rules)} {word} rules matches {story.text}"
        return
    lines = [f"{_rule_text(entry)} {story.how(entry)}{_ports_part(story, entry)}" for entry in matching]
    yield from _listed(lines, f"more {word} rules match")
    others = len(rules) - len(matching)
    if others:
        yield f"{others} other {word} rule{'s do' if others > 1 else ' does'} not match"


def _rule_text(entry: Entry) -> str:
    audited = "audited " if entry.audited else ""
    return f'{audited}{"deny" if entry.deny else "allow"} rule "{entry.rule.name}" of {entry.policy.name}'


def _ports_part(story: _Story, entry: Entry) -> str:
    if story.case.whole_name:
        return f" on {_ports_text(entry.ports)}"
    asked = _asked(story.case)
    if intersect(entry.ports, story.case.wanted):
        return f" and its ports ({ports_text(entry.ports)}) include {asked}"
    return f", but its ports ({ports_text(entry.ports)}) do not include {asked}"


def _asked(case: Case) -> str:
    span = case.wanted[0]
    return (
        f"some port of {ports_text(case.wanted)[2:]}" if span.first_port != span.last_port else ports_text(case.wanted)
    )


def _cluster(story: _Story) -> Iterator[str]:
    if story.case.cluster_open:
        yield f"{story.text} is inside the cluster, which is open (in_cluster: Allow)"
    elif story.case.in_cluster:
        yield f"{story.text} is inside the cluster, and judged like any other destination (in_cluster: Enforce)"


def _readings(story: _Story) -> Iterator[str]:
    """What the enforced policies say, what all would say, and what deny rules leave of the ports."""
    modes = {policy.mode for policy in story.context.policies}
    everything = judge(story.case)
    if modes == {Mode.AUDIT}:
        yield "only Audit policies select the pod: nothing is closed, what they would do is reported"
        yield from _left(story.case)
        return
    enforced = story.case.enforced(selected=True)
    yield from _left(enforced)
    if Mode.AUDIT in modes:
        yield f"the enforced policies alone: {_outcome_text(judge(enforced))}"
        yield f"if the audited ones were enforced too: {_outcome_text(everything)}"


def _left(case: Case) -> Iterator[str]:
    """What deny rules take out of the ports that allow rules give a name."""
    claimed = union(*(entry.ports for entry in case.entries if not entry.deny))
    barred = union(*(entry.ports for entry in case.entries if entry.deny))
    taken = intersect(claimed, barred)
    if case.whole_name and taken:
        left = subtract(claimed, barred)
        yield f"deny rules take out {ports_text(taken)}: {_ports_text(left) if left else 'nothing'} stays allowed"


def _ports_text(ports: Ports) -> str:
    text = ports_text(ports)
    return f"every port{text.removeprefix('any')}" if text.startswith("any") else text


def _outcome_text(outcome: Outcome) -> str:
    word = "allowed" if outcome.allowed else "denied"
    by = f' by rule "{outcome.entry.rule.name}" of {outcome.entry.policy.name}' if outcome.entry else ""
    return f"{word} ({outcome.reason.value}){by}"


def _verdict_text(decision: Decision) -> str:
    by = f' by rule "{decision.rule}" of {decision.policy}' if decision.policy else ""
    return f"{decision.verdict.value} ({decision.reason.value}){by}"


_FATE: Final = {
    Verdict.WOULD_DENY: "; it goes through, the audited policies would stop it",
    Verdict.WOULD_ALLOW: "; it is stopped, the audited policies would let it through",
}


def _consequence(story: _Story) -> str:
    """What the verdict means in practice."""
    decision, fate = story.decision, _FATE.get(story.decision.verdict, "")
    if not story.case.whole_name:
        return fate
    if decision.verdict in (Verdict.DENIED, Verdict.WOULD_ALLOW):
        if decision.resolve:
            return f"{fate}; the name resolves (dns: Resolve), its addresses stay closed"
        return f"{fate}; the name is not resolved (dns: Filter)"
    if decision.reason is Reason.UNSELECTED or not decision.ports:
        return fate
    private = "" if decision.allow_private else ", private addresses excepted"
    return f"{fate}; what it resolves to is opened on {_ports_text(decision.ports)}{private}"
