"""Subjects of one run never get the numbers that an earlier run's instances still have in the table."""

from __future__ import annotations

import pytest

from egressd.agent.roster import Roster
from egressd.exchange import LastKnown
from egressd.grants import Ledger
from egressd.link import PodEntry, Update
from egressd.model import LabelSelector, PodIdentity, Policy, SubjectSelector
from egressd.policy import ClusterFacts


@pytest.mark.parametrize("taken", [set(), {1}, {1, 2, 3}, {2}, {3}, {4, 5, 6}, {2, 90}], ids=str)
def test_no_number_is_given_twice(taken: set[int]) -> None:
    """Numbers are distinct, none of an earlier run's, small again where they can be, and pods follow their subject."""
    roster = Roster(ClusterFacts(), Ledger(), LastKnown(), intercept_all=True)
    names = ("shop/a", "shop/b", "shop/c")
    policies = tuple(Policy(name, "shop", SubjectSelector(LabelSelector())) for name in names)
    pods = tuple(
        PodEntry(bytes((192, 0, 2, number)), PodIdentity("shop", f"pod-{number}", str(number)), (name,))
        for number, name in enumerate(names, 1)
    )
    change, moved = roster.plan(Update(policies=policies, pods=pods), 0.0)
    roster.settle(change, moved)
    roster.renumber(taken)
    numbers = [state.number for state in roster.subjects.values()]
    assert len(set(numbers)) == 3
    assert taken.isdisjoint(numbers)
    assert min(numbers) == (1 if min(taken, default=9) > 3 else max(taken) + 1)
    for state in roster.subjects.values():
        assert {roster.parties[address].subject for address in state.addresses} == {state.number}
    late = PodEntry(bytes((192, 0, 2, 9)), PodIdentity("shop", "pod-9", "9"), names)
    change, _ = roster.plan(Update(pods=(late,)), 0.0)
    assert set(change.subjects).isdisjoint(numbers), "those of the earlier run have left the table by then"
