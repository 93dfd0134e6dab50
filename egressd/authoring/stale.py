"""Which rules, and which peers of rules, nothing has used: policies and sightings in, findings out; no I/O, no clock.

Nothing is called stale that may have been used. A peer is *used* when its rule decided about a destination that it
covers and no other peer of that rule covers more closely, and where its rule may have opened (or barred) ports beside
the rule that decided. It is *shadowed* when destinations that it covers were seen, and something else decided each
time. It is *unobserved* where records could not tell: address rules that allow while flows that are let through are not
recorded, and whatever came later than the time that is looked at. All else is *unused*.

One node's history speaks of one node: what a policy does on the others, theirs know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from egressd.model import Action, Block, Mode, Peer, Policy, Reason, Rule, Verdict, is_block
from egressd.names import Name, Pattern, in_domain
from egressd.policy import block_text, subtract
from egressd.policy.select import DEFAULT_ACCOUNT
from egressd.policy.sweep import AddressSpace
from egressd.policy.trie import LabelTrie
from egressd.schema.words import read_address, read_block

__all__ = ["DECIDED", "Finding", "Sighting", "Stale", "State", "Window"]

SLACK_S: Final = 3600
"""Seconds that a peer may be younger than the time looked at, and still count as there all the time."""
MAX_KNOWN: Final = 10_000
"""Names whose peers are kept at hand."""
DECIDED: Final = frozenset(
    {
        Reason.RULE,
        Reason.DENY_RULE,
        Reason.REBINDING,
        Reason.UPSTREAM_FAILED,
        Reason.PROGRAM_FAILED,
        Reason.SNI_MISMATCH,
    }
)
"""Reasons behind which some rule stands; nothing else says anything of a rule."""


class State(StrEnum):
    UNUSED = "unused"
    SHADOWED = "shadowed"
    UNOBSERVED = "unobserved"


class Sighting(NamedTuple):
    """What history says of one kind of query or flow. `last_seen` in seconds since the epoch."""

    namespace: str
    service_account: str
    event: str
    """`dns` or `flow`."""
    name: str
    """A name; an address where a flow has none; `*.DOMAIN`, `*` or a block where it stands for many."""
    verdict: str
    reason: str
    policy: str
    rule: str
    last_seen: int


class Finding(NamedTuple):
    """One peer, one rule (no `pattern`) or one policy (no `rule` either) that nothing has used."""

    policy: str
    rule: str
    pattern: str
    state: State
    last_used: int
    """Seconds since the epoch, 0: never, as far as is known. Of what is shadowed: when it was last covered."""
    note: str


@dataclass(frozen=True, slots=True)
class Window:
    """The time that is looked at, and what is known of it. Seconds since the epoch."""

    since: float
    observed: float
    """From here on no observation is missing."""
    flows: float | None = None
    """Since when flows that are let through are recorded; None: they are not."""
    there: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """Since when each peer is there, by policy and `ACTION PEER`."""
    last_used: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """When each rule decided last, ever, by policy and rule."""
    pods: Mapping[str, int] = field(default_factory=dict)
    """How many pods each policy selects now."""

    @property
    def start(self) -> float:
        return max(self.since, self.observed)


class _Covering:
    """One peer of one rule, and when it was used and covered last."""

    __slots__ = ("covered", "peer", "policy", "rule", "used")

    def __init__(self, policy: Policy, rule: Rule, peer: Peer) -> None:
        self.policy = policy
        self.rule = rule
        self.peer = peer
        self.used = 0
        self.covered = 0

    @property
    def text(self) -> str:
        return block_text(self.peer) if isinstance(self.peer, Block) else str(self.peer)

    @property
    def denies(self) -> bool:
        return self.rule.action is Action.DENY

    def use(self, when: int) -> None:
        self.used = max(self.used, when)

    def cover(self, when: int) -> None:
        self.covered = max(self.covered, when)


class Stale:
    """Takes sightings, and tells what none of them has used."""

    def __init__(self, policies: Iterable[Policy], policy_namespace: str) -> None:
        self._policy_namespace = policy_namespace
        self._rules: dict[tuple[str, str], list[_Covering]] = {}
        every = [
            _Covering(policy, rule, peer)
            for policy in policies
            for rule in (*policy.deny, *policy.allow)
            for peer in _peers(rule)
        ]
        for one in every:
            self._rules.setdefault((one.policy.name, one.rule.name), []).append(one)
        self._every = every
        self._names: LabelTrie[_Covering] = LabelTrie()
        for one in every:
            if isinstance(one.peer, Pattern):
                self._names.add(one.peer, (one,))
        self._blocks = AddressSpace((one.peer, one) for one in every if isinstance(one.peer, Block))
        self._known: dict[tuple[str, str], tuple[_Covering, ...]] = {}

    def see(self, seen: Sighting) -> None:
        """Take one sighting."""
        if seen.reason not in DECIDED:
            return
        covering = [one for one in self._covering(seen.event, seen.name) if self._may_select(one.policy, seen)]
        decided = self._decided(seen, covering)
        many = seen.name.startswith("*") or "/" in seen.name
        for one in covering:
            one.cover(seen.last_seen)
            decides = decided is not None and (one is decided or (many and one.rule is decided.rule))
            if decides or _may_count(one, decided, seen):
                one.use(seen.last_seen)
        if decided is None or (seen.reason == Reason.DENY_RULE and not decided.denies):
            self._by_another(seen)

    def findings(self, window: Window) -> list[Finding]:
        """What nothing has used, by policy; rules in the order in which they stand."""
        found: list[Finding] = []
        policies: dict[str, list[list[_Covering]]] = {}
        for (policy, _), peers in sorted(self._rules.items(), key=lambda item: item[0][0]):
            policies.setdefault(policy, []).append(peers)
        for policy, rules in policies.items():
            told = [list(_rule_findings(peers, window)) for peers in rules]
            if not window.pods.get(policy, 0) and all(_wholly_unused(one) for one in told):
                last = max(one[0].last_used for one in told)
                found.append(Finding(policy, "", "", State.UNUSED, last, "selects no pod"))
            else:
                found += [one for findings in told for one in findings]
        return found

    # ---------------------------------------------------------------------------------------- what covers a name

    def _covering(self, event: str, name: str) -> tuple[_Covering, ...]:
        """The peers that cover a name, the closest first; of a name that stands for many, those that may cover any."""
        found = self._known.get((event, name))
        if found is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            found = self._known[event, name] = tuple(self._look_up(event, name))
        return found

    def _look_up(self, event: str, name: str) -> Iterator[_Covering]:
        if name == "*":
            yield from self._every
        elif name.startswith("*."):
            domain = Name(name[2:])
            yield from (one for one in self._every if isinstance(one.peer, Pattern) and _overlaps(one.peer, domain))
        elif "/" in name:
            block = read_block(name)
            yield from (one for one in self._every if isinstance(one.peer, Block) and _meets(one.peer, block))
        elif event == "flow" and _is_address(name):
            yield from self._blocks.at(read_address(name))
        else:
            for level in self._names.levels(Name(name)):
                yield from level

    def _may_select(self, policy: Policy, seen: Sighting) -> bool:
        """Whether the policy could select the pod, as far as can be told without its labels."""
        reaches = policy.namespace in {seen.namespace, self._policy_namespace}
        accounts = policy.subject.service_accounts
        return reaches and (not accounts or (seen.service_account or DEFAULT_ACCOUNT) in accounts)

    def _decided(self, seen: Sighting, covering: Sequence[_Covering]) -> _Covering | None:
        """The peer that decided: of the rule that is named; where there is no such rule, the closest of its policy."""
        own = [one for one in covering if one.policy.name == seen.policy]
        if (seen.policy, seen.rule) in self._rules:
            return next((one for one in own if one.rule.name == seen.rule), None)
        return next((one for one in own if one.denies == (seen.reason == Reason.DENY_RULE)), None)

    def _by_another(self, seen: Sighting) -> None:
        """What decided covers something that history does not know: any peer of the rule may have been used.

        A flow is remembered by one name of its address; an answer by its name, be it withheld for a name on the way
        (then the rule is named) or for its addresses (then it is not).
        """
        denied = seen.reason == Reason.DENY_RULE
        rule = self._rules.get((seen.policy, seen.rule), [])
        if rule and rule[0].denies == denied:
            used = rule
        else:
            used = [one for one in self._every if denied and one.denies and is_block(one.peer)]
        for one in used:
            if self._may_select(one.policy, seen):
                one.use(seen.last_seen)


def _peers(rule: Rule) -> tuple[Peer, ...]:
    return (*rule.patterns, *rule.blocks)


def _may_count(one: _Covering, decided: _Covering | None, seen: Sighting) -> bool:
    """Whether a peer that covers the destination may have counted, although another decided."""
    if decided is None:  # the rule that decided is gone, or the record does not name it
        return one.denies == (seen.reason == Reason.DENY_RULE)
    if one.denies:
        return not decided.denies and bool(subtract(decided.rule.ports, one.rule.ports))  # it took ports away
    if decided.denies:  # an audited deny rule would stop what an enforced rule let through
        return seen.verdict == Verdict.WOULD_DENY and one.policy.mode is Mode.ENFORCE
    if one.rule is decided.rule:
        return False
    more = subtract(one.rule.ports, decided.rule.ports) or (one.rule.allow_private and not decided.rule.allow_private)
    return bool(more) or one.policy.mode is not decided.policy.mode


def _overlaps(pattern: Pattern, domain: Name) -> bool:
    return in_domain(pattern.name, domain) or (pattern.wildcard and in_domain(domain, pattern.name))


def _meets(one: Block, other: Block) -> bool:
    return len(one.first) == len(other.first) and one.first <= other.last and other.first <= one.last


def _is_address(text: str) -> bool:
    try:
        read_address(text)
    except ValueError:
        return False
    return True


# --------------------------------------------------------------------------------------------------- findings


def _rule_findings(peers: Sequence[_Covering], window: Window) -> Iterator[Finding]:
    """What is to be said of one rule: of it as a whole where its peers fare alike, else of each."""
    told = [(one, *_state(one, window)) for one in peers if not one.used]
    whole = len(told) == len(peers) and len({(state, note) for _, state, note in told}) == 1
    last = window.last_used.get((peers[0].policy.name, peers[0].rule.name), 0)
    for one, state, note in told[:1] if whole else told:
        when = one.covered if state is State.SHADOWED else last if whole else 0
        yield Finding(one.policy.name, one.rule.name, "" if whole else one.text, state, when, note)


def _state(one: _Covering, window: Window) -> tuple[State, str]:
    if one.covered:
        return State.SHADOWED, "another decides" if not one.denies else "denied nothing"
    there = window.there.get((one.policy.name, f"{one.rule.action} {one.text}"))
    if there is None or there > window.start + SLACK_S:
        return State.UNOBSERVED, "it is new"
    unwatched = window.flows is None or window.flows > window.start + SLACK_S
    if is_block(one.peer) and not one.denies and unwatched:
        return State.UNOBSERVED, "flows unknown"
    return State.UNUSED, ""


def _wholly_unused(findings: Sequence[Finding]) -> bool:
    return len(findings) == 1 and not findings[0].pattern and findings[0].state is State.UNUSED
