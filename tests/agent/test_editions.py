"""Editions: a large change in parts, of which no pod is ever judged by half."""

from __future__ import annotations

from dataclasses import replace

from egressd.agent.editions import Part, whole
from egressd.agent.roster import Roster
from egressd.exchange import LastKnown
from egressd.grants import Ledger
from egressd.link import PodEntry, Update
from egressd.model import Action, PodIdentity, Policy, Rule
from egressd.names import parse_pattern
from egressd.policy import ClusterFacts

PODS = 6


def address(number: int) -> bytes:
    return bytes((10, 244, 1, number + 2))


def policy(name: str, edition: int) -> Policy:
    rule = Rule("allow[0]", Action.ALLOW, (parse_pattern(f"e{edition}.example"),))
    return Policy(name, "shop", allow=(rule,))


def entry(number: int, *policies: str, six: bool = False) -> PodEntry:
    where = bytes(15) + bytes((number + 2,)) if six else address(number)
    return PodEntry(where, PodIdentity("shop", f"pod-{number}", f"uid-{number}"), policies)


def world() -> Roster:
    """Pods of two policies each: one of their own and one that all share."""
    roster = Roster(ClusterFacts(), Ledger(), LastKnown(), intercept_all=True)
    policies = (*(policy(f"shop/p{number}", 0) for number in range(PODS)), policy("shop/shared", 0))
    pods = tuple(entry(number, f"shop/p{number}", "shop/shared") for number in range(PODS))
    change, moved = roster.plan(Update(policies, pods=pods), 0.0)
    roster.settle(change, moved)
    return roster


def editions_of(roster: Roster, number: int) -> set[str]:
    """By which editions of its policies a pod is judged."""
    judge = roster.parties[address(number)].judge
    assert judge is not None
    return {str(pattern) for each in judge.subject.policies for rule in each.allow for pattern in rule.patterns}


def test_no_pod_is_judged_by_half_an_edition() -> None:
    """All policies are edited, in slices: before the last slice nothing changes, then pod after pod, each whole."""
    roster = world()
    names = [*(f"shop/p{number}" for number in range(PODS)), "shop/shared"]
    for name in names:
        roster.stage(Update((policy(name, 1),), more=name != names[-1]))
        assert all(editions_of(roster, number) == {"e0.example"} for number in range(PODS))
    parts = roster.parts()
    assert len(parts) == PODS
    for done, part in enumerate(parts, 1):
        assert len(list(roster.build(part))) == 1, "one judge is one step"
        roster.settle(*roster.change(part, 0.0))
        found = [editions_of(roster, number) for number in range(PODS)]
        assert all(len(each) == 1 for each in found)
        assert found.count({"e1.example"}) == done


def test_what_a_move_ties_together_is_one_part() -> None:
    """A pod's addresses, the subject it leaves and the one it comes to; an edit of that subject goes with them."""
    roster = world()
    both = (entry(0, "shop/p1", "shop/shared"), entry(0, "shop/p1", "shop/shared", six=True))
    roster.stage(Update((policy("shop/p1", 1),), pods=both))
    (part,) = roster.parts()
    assert part == Part(both, (), (("shop/p1", "shop/shared"),))
    list(roster.build(part))
    roster.settle(*roster.change(part, 0.0))
    assert editions_of(roster, 0) == editions_of(roster, 1) == {"e0.example", "e1.example"}
    assert roster.parties[address(0)] is roster.parties[both[1].address]


def test_strangers_come_apart() -> None:
    """A pod that goes and another that moves are two parts; together they are what one change would be."""
    roster = world()
    update = Update(pods=(entry(1),), gone_pods=(address(0),))
    roster.stage(update)
    parts = roster.parts()
    assert sorted(parts, key=repr) == sorted([Part(gone=(address(0),)), Part(pods=update.pods)], key=repr)
    assert whole(parts)[:2] == (update.pods, update.gone_pods)


def test_judges_are_built_before_they_are_needed() -> None:
    """The change itself makes none; a subject that all its pods leave is not judged anew for nothing."""
    roster = world()
    roster.stage(Update((policy("shop/p0", 1),), pods=(entry(0, "shop/p1", "shop/shared"),)))
    (part,) = roster.parts()
    assert len(list(roster.build(part))) == 0
    change, _ = roster.change(part, 0.0)
    assert (list(change.subjects), len(change.gone_subjects)) == ([], 1)


def test_what_is_not_said_to_the_end_is_void() -> None:
    """A control side that dies in the middle of an edition has changed nothing."""
    roster = world()
    roster.stage(Update((policy("shop/p0", 1),), more=True))
    roster.unstage()
    assert roster.parts() == []
    assert roster.policies["shop/p0"] == policy("shop/p0", 0)


def test_what_is_so_already_is_no_change() -> None:
    """A control side that starts again says the same world."""
    roster = world()
    same = tuple(replace(each) for each in roster.policies.values())
    roster.stage(Update(same, pods=tuple(each for each, _ in roster.pods())))
    assert roster.parts() == []
