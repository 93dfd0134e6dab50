"""Properties of verdicts in small worlds where rules meet often; the reference follows policy.md point by point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import TypeVar

from hypothesis import given
from hypothesis import strategies as st
from policy_samples import BLOCKS, POINTS, facts, names, policies, policy_sets, rules

from egressd.model import Action, Mode, Policy, Reason, Rule, Subject, Verdict
from egressd.names import Name, in_domain
from egressd.policy import ClusterFacts, Judge, contains, normalise, subtract

THROUGH = (Verdict.ALLOWED, Verdict.WOULD_DENY)
ADDRESSES = sorted({edge for block in BLOCKS for edge in block})
Point = tuple[int, int]
T = TypeVar("T")

addresses = st.sampled_from(ADDRESSES)
points = st.sampled_from(POINTS)
enforced_sets = st.lists(policies(st.just(Mode.ENFORCE)), min_size=1, max_size=3, unique_by=lambda one: one.name)


def judge_of(members: Sequence[Policy], where: ClusterFacts) -> Judge:
    return Judge(Subject(tuple(sorted(members, key=lambda one: one.name))), where)


def matches(rule: Rule, destination: Name | bytes) -> bool:
    if isinstance(destination, bytes):
        return any(
            block.first <= destination <= block.last for block in rule.blocks if len(block.first) == len(destination)
        )
    return any(pattern.matches(destination) for pattern in rule.patterns)


def open_points(members: Sequence[Policy], where: ClusterFacts, destination: Name | bytes) -> set[Point]:
    """policy.md, Verdict, for every point of a destination: deny, allow, in-cluster, in this order."""
    if isinstance(destination, bytes):
        blocks = [block for block in where.cidrs if len(block.first) == len(destination)]
        inside = any(block.first <= destination <= block.last for block in blocks)
    else:
        inside = any(in_domain(destination, domain) for domain in where.domains)
    found = set()
    for at in POINTS:
        denied = any(matches(r, destination) and contains(r.ports, *at) for p in members for r in p.deny)
        allowed = any(matches(r, destination) and contains(r.ports, *at) for p in members for r in p.allow)
        if not denied and (allowed or (inside and not where.enforce)):
            found.add(at)
    return found


def expected(members: Sequence[Policy], passes: bool, would_pass: bool) -> Verdict:
    """What the record says, from what the Enforce policies let through and what all of them would."""
    if all(policy.mode is Mode.AUDIT for policy in members):
        passes = True
    if passes:
        return Verdict.ALLOWED if would_pass else Verdict.WOULD_DENY
    return Verdict.WOULD_ALLOW if would_pass else Verdict.DENIED


@given(policy_sets, facts, names)
def test_names_as_the_reference(members: list[Policy], where: ClusterFacts, name: Name) -> None:
    """A name is allowed exactly if one of its ports is, and opens exactly the ports that allow rules leave."""
    enforced = [policy for policy in members if policy.mode is Mode.ENFORCE]
    decision = judge_of(members, where).judge_name(name)
    passes, would_pass = open_points(enforced, where, name), open_points(members, where, name)
    assert decision.verdict is expected(members, bool(passes), bool(would_pass))
    reading = enforced or members
    unaided = open_points(reading, ClusterFacts(domains=(), enforce=True), name)
    assert {at for at in POINTS if contains(decision.ports, *at)} == unaided


@given(policy_sets, facts, addresses, points)
def test_addresses_as_the_reference(members: list[Policy], where: ClusterFacts, address: bytes, at: Point) -> None:
    """An address and port is judged as the order of policy.md says, and port -1 by whether any of its ports is open."""
    enforced = [policy for policy in members if policy.mode is Mode.ENFORCE]
    judge = judge_of(members, where)
    passes, would_pass = open_points(enforced, where, address), open_points(members, where, address)
    assert judge.judge_address(address, *at).verdict is expected(members, at in passes, at in would_pass)
    some = judge.judge_address(address, at[0], -1)
    protocols, would_protocols = {protocol for protocol, _ in passes}, {protocol for protocol, _ in would_pass}
    assert some.verdict is expected(members, at[0] in protocols, at[0] in would_protocols)


@given(policy_sets, facts, names, addresses, points, st.randoms(use_true_random=False))
def test_order_does_not_matter(
    members: list[Policy], where: ClusterFacts, name: Name, address: bytes, at: Point, random: Random
) -> None:
    """Rules and peers in any order give the same decisions, named rules included, and the same plan."""

    def shuffled(sequence: Sequence[T]) -> tuple[T, ...]:
        return tuple(random.sample(sequence, len(sequence)))

    def mixed(rules: Sequence[Rule]) -> tuple[Rule, ...]:
        return shuffled([replace(r, patterns=shuffled(r.patterns), blocks=shuffled(r.blocks)) for r in rules])

    other = [replace(policy, allow=mixed(policy.allow), deny=mixed(policy.deny)) for policy in members]
    one, two = judge_of(members, where), Judge(Subject(shuffled(other)), where)
    assert one.judge_name(name) == two.judge_name(name)
    assert one.judge_name(name).private_ports == two.judge_name(name).private_ports
    assert one.judge_address(address, *at) == two.judge_address(address, *at)
    assert replace(one.plan(), comment="") == replace(two.plan(), comment="")


@given(enforced_sets, facts, names, rules(Action.ALLOW))
def test_adding_an_allow_never_denies(members: list[Policy], where: ClusterFacts, name: Name, rule: Rule) -> None:
    """One more allow rule closes no name and takes no port away."""
    more = [replace(members[0], allow=(*members[0].allow, replace(rule, name="more"))), *members[1:]]
    before, after = judge_of(members, where).judge_name(name), judge_of(more, where).judge_name(name)
    assert before.verdict is Verdict.DENIED or after.verdict is Verdict.ALLOWED
    assert subtract(before.ports, after.ports) == ()


@given(enforced_sets, facts, names, rules(Action.DENY))
def test_adding_a_deny_never_allows(members: list[Policy], where: ClusterFacts, name: Name, rule: Rule) -> None:
    """One more deny rule opens no name and gives no port."""
    more = [replace(members[0], deny=(*members[0].deny, replace(rule, name="more"))), *members[1:]]
    before, after = judge_of(members, where).judge_name(name), judge_of(more, where).judge_name(name)
    assert before.verdict is Verdict.ALLOWED or after.verdict is Verdict.DENIED
    assert subtract(after.ports, before.ports) == ()


@given(enforced_sets, facts, addresses, points, rules(Action.ALLOW), rules(Action.DENY))
def test_the_same_for_addresses(
    members: list[Policy], where: ClusterFacts, address: bytes, at: Point, allow: Rule, deny: Rule
) -> None:
    """More allow rules close no address, more deny rules open none."""
    first = members[0]
    opened = [replace(first, allow=(*first.allow, replace(allow, name="more"))), *members[1:]]
    closed = [replace(first, deny=(*first.deny, replace(deny, name="more"))), *members[1:]]
    now = judge_of(members, where).judge_address(address, *at).verdict
    if now is Verdict.ALLOWED:
        assert judge_of(opened, where).judge_address(address, *at).verdict is Verdict.ALLOWED
    else:
        assert judge_of(closed, where).judge_address(address, *at).verdict is Verdict.DENIED


@given(enforced_sets, facts, names, policies(st.just(Mode.AUDIT)), addresses, points)
def test_an_audit_policy_changes_nothing_that_happens(
    members: list[Policy], where: ClusterFacts, name: Name, audited: Policy, address: bytes, at: Point
) -> None:
    """What goes through, what is opened, resolved and withheld stays what the enforced policies say."""
    extra = replace(audited, name="zz/audited")
    before, after = judge_of(members, where), judge_of([*members, extra], where)
    old, new = before.judge_name(name), after.judge_name(name)
    assert (old.verdict in THROUGH) is (new.verdict in THROUGH)
    assert (old.ports, old.resolve, old.allow_private) == (new.ports, new.resolve, new.allow_private)
    if new.verdict is old.verdict:
        assert new == old
    if old.ports:
        assert before.admissible(address, old) is after.admissible(address, new)
        assert normalise(before.grant_ports(address, old)) == normalise(after.grant_ports(address, new))
    seen = (before.judge_address(address, *at).verdict, after.judge_address(address, *at).verdict)
    assert (seen[0] in THROUGH) is (seen[1] in THROUGH)
    assert (before.plan().allow, before.plan().deny) == (after.plan().allow, after.plan().deny)


@given(policy_sets, facts, names, addresses, points)
def test_every_decision_has_its_reason(
    members: list[Policy], where: ClusterFacts, name: Name, address: bytes, at: Point
) -> None:
    """A rule is named exactly where a rule decided, and it is a rule of that policy that matches."""
    judge = judge_of(members, where)
    by_name = {policy.name: policy for policy in members}
    for destination, decision in ((name, judge.judge_name(name)), (address, judge.judge_address(address, *at))):
        assert decision.reason in (Reason.RULE, Reason.DENY_RULE, Reason.NO_RULE, Reason.IN_CLUSTER)
        ruled = decision.reason in (Reason.RULE, Reason.DENY_RULE)
        assert bool(decision.policy) is bool(decision.rule) is ruled
        if ruled:
            policy = by_name[decision.policy]
            candidates = policy.allow if decision.reason is Reason.RULE else policy.deny
            assert any(rule.name == decision.rule and matches(rule, destination) for rule in candidates)
        assert decision.allow_private is bool(decision.private_ports)
        assert subtract(decision.private_ports, decision.ports) == ()


@given(policy_sets, facts, st.lists(names, min_size=2, max_size=6))
def test_what_is_remembered_is_what_would_be_said(
    members: list[Policy], where: ClusterFacts, asked: list[Name]
) -> None:
    """A judge that has answered other names answers as a fresh one."""
    judge = judge_of(members, where)
    assert [judge.judge_name(name) for name in asked] == [judge_of(members, where).judge_name(name) for name in asked]


@given(policy_sets, facts, names, addresses, points)
def test_explanations_equal_the_verdict(
    members: list[Policy], where: ClusterFacts, name: Name, address: bytes, at: Point
) -> None:
    """`explain` decides nothing of its own: same decision, and its last sentence says it."""
    judge = judge_of(members, where)
    pairs = (
        (judge.judge_name(name), judge.explain_name(name)),
        (judge.judge_address(address, *at), judge.explain_address(address, *at)),
    )
    for decision, explanation in pairs:
        assert explanation.decision == decision
        assert explanation.steps[-1].startswith(f"verdict: {decision.verdict.value} ({decision.reason.value})")
        assert len(explanation.steps) <= 26


@given(policy_sets, facts, addresses, points)
def test_a_flow_without_names_is_its_address(
    members: list[Policy], where: ClusterFacts, address: bytes, at: Point
) -> None:
    """Where no name is known, a flow is judged as its address."""
    judge = judge_of(members, where)
    assert judge.judge_destination([], address, *at) == judge.judge_address(address, *at)
