"""Conditions of policies: what was accepted, and what the data path has confirmed."""

from __future__ import annotations

from egressd.control.conditions import Conditions
from egressd.control.world import News, Step
from egressd.link import Update
from egressd.model import Policy
from egressd.schema import Problem

NAME = "shop/web"
PROBLEM = Problem("configmap shop/web[policy.yaml]", 2, 1, "error", "there is no field 'allows'")
GOOD = Step(Update(policies=(Policy(NAME, "shop"),)), (News(NAME, "updated"),))
BAD = Step(None, (News(NAME, "refused", (PROBLEM,)),))


def shown(conditions: Conditions) -> list[tuple[str, str, str, float]]:
    return [(each.type, each.status, each.reason, each.since) for each in conditions.of(NAME)]


def test_a_policy_is_programmed_once_its_update_is_confirmed() -> None:
    """Not by an earlier one's word."""
    conditions = Conditions()
    conditions.take(GOOD, 3, 10.0)
    conditions.programmed(2, 11.0)
    assert shown(conditions) == [("Accepted", "True", "Accepted", 10.0), ("Programmed", "False", "Pending", 10.0)]
    conditions.programmed(3, 12.0)
    assert shown(conditions)[1] == ("Programmed", "True", "Programmed", 12.0)


def test_a_refused_edit_leaves_the_last_good_version_programmed() -> None:
    """And says where the document is wrong."""
    conditions = Conditions()
    conditions.take(GOOD, 1, 10.0)
    conditions.programmed(1, 11.0)
    conditions.take(BAD, 1, 12.0)
    accepted, programmed = conditions.of(NAME)
    assert (accepted.status, accepted.reason, accepted.since) == ("False", "Refused", 12.0)
    assert "2:1: error: there is no field 'allows'" in accepted.message
    assert (programmed.status, programmed.message) == ("True", "the last good version is in force")


def test_a_policy_never_accepted_is_never_programmed() -> None:
    """Whatever the data path confirms."""
    conditions = Conditions()
    conditions.take(BAD, 1, 10.0)
    conditions.programmed(5, 11.0)
    assert shown(conditions)[1] == ("Programmed", "False", "NotAccepted", 10.0)


def test_a_deleted_policy_has_no_conditions() -> None:
    """It is no more."""
    conditions = Conditions()
    conditions.take(GOOD, 1, 10.0)
    conditions.take(Step(None, (News(NAME, "deleted"),)), 2, 11.0)
    assert conditions.all() == {}


def test_a_world_said_anew_is_confirmed_anew() -> None:
    """A restarted count begins at nothing; since when it is accepted stays."""
    conditions = Conditions()
    conditions.take(GOOD, 9, 10.0)
    conditions.programmed(9, 11.0)
    conditions.begin([NAME], 2, 12.0)
    assert shown(conditions)[1][1:3] == ("False", "Pending")
    conditions.programmed(2, 13.0)
    assert shown(conditions) == [("Accepted", "True", "Accepted", 10.0), ("Programmed", "True", "Programmed", 13.0)]
