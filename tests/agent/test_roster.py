"""The roster: what each change of pods and policies asks of the kernel, and whose live connections it questions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from egressd.agent.roster import Roster
from egressd.exchange import LastKnown
from egressd.grants import UNSELECTED_SUBJECT, Ledger
from egressd.kernel import Change
from egressd.link import PodEntry, Update
from egressd.model import ANY_PORT, Action, OnRevoke, PodIdentity, Policy, PortSpan, Rule
from egressd.names import Name, parse_pattern
from egressd.policy import ClusterFacts

WEB0, WEB1, API0 = (bytes((10, 244, 1, last)) for last in (5, 6, 7))
TARGET = bytes((203, 0, 113, 7))
API = Name("api.example.com")
HTTPS = (PortSpan(6, 6, 443, 443),)


def policy(name: str, *patterns: str, ports: tuple[PortSpan, ...] = HTTPS, **fields: object) -> Policy:
    rules = (Rule("allow[0]", Action.ALLOW, tuple(parse_pattern(text) for text in patterns), ports=ports),)
    return replace(Policy(name, name.split("/", maxsplit=1)[0], allow=rules), **fields)  # type: ignore[arg-type]  # fields of Policy


def pod(address: bytes, name: str, *policies: str, uid: str = "") -> PodEntry:
    return PodEntry(address, PodIdentity("shop", name, uid or name), policies)


class World:
    """A roster with its ledger, driven like the agent drives it."""

    def __init__(self) -> None:
        self.now = 100.0
        self.ledger = Ledger()
        self.known = LastKnown()
        self.roster = Roster(ClusterFacts(), self.ledger, self.known, intercept_all=True)

    def update(self, **fields: object) -> tuple[Change, set[bytes], set[bytes]]:
        change, moved = self.roster.plan(Update(**fields), self.now)  # type: ignore[arg-type]  # fields of Update
        self.fresh = self.roster.settle(change, moved)
        return change, moved.cut, moved.gone

    def learn(self, address: bytes, name: Name = API) -> None:
        """A pod resolved `name`, as the exchange would tell ledger and memory."""
        party = self.roster.parties[address]
        ports = party.judge.judge_name(name).ports if party.judge else ANY_PORT
        self.ledger.admit(party.subject, name, [TARGET], ports, 5, self.now)
        self.known.note(address, name, (TARGET,))

    def number(self, address: bytes) -> int:
        return self.roster.parties[address].subject


@pytest.fixture
def world() -> World:
    made = World()
    made.update(policies=(policy("shop/web", "api.example.com"),), pods=(pod(WEB0, "web-0", "shop/web"),))
    return made


def test_new_pods_and_subjects_are_one_change(world: World) -> None:
    """A first pod brings its subject's instance; a second with the same policies shares it; both are fresh."""
    change, cut, gone = world.update(pods=(pod(WEB1, "web-1", "shop/web"), pod(API0, "api-0")))
    assert change.subjects == {}
    assert [(e.address, e.subject, e.comment) for e in change.pods] == [
        (WEB1, world.number(WEB0), "shop/web-1"),
        (API0, None, "shop/api-0"),
    ]
    assert world.fresh == [WEB1, API0]
    assert world.number(API0) == UNSELECTED_SUBJECT
    assert (cut, gone) == (set(), set())


def test_what_did_not_change_asks_nothing(world: World) -> None:
    """A control side that starts again says the same world: the kernel hears nothing of it."""
    change, cut, gone = world.update(
        policies=(policy("shop/web", "api.example.com"),), pods=(pod(WEB0, "web-0", "shop/web"),)
    )
    assert (change, cut, gone) == (Change(), set(), set())


def test_edit_takes_out_what_is_denied_now(world: World) -> None:
    """A policy that allows a name no more: its grants leave, its pods' connections are looked through, and the rules
    of the instance, which know no names, stay as they are."""
    world.learn(WEB0)
    number = world.number(WEB0)
    change, cut, _ = world.update(policies=(policy("shop/web", "other.example"),))
    assert change.subjects == {}
    assert [(e.subject, e.address) for e in change.gone_grants] == [(number, TARGET)]
    assert cut == {WEB0}
    assert not world.roster.sanctions(WEB0, TARGET, 6, 443, world.now)


def test_edit_keeps_what_is_still_allowed(world: World) -> None:
    """An edit elsewhere in the policy touches no grant, and a flow under a grant long ended is still sanctioned."""
    world.learn(WEB0)
    change, _, _ = world.update(policies=(policy("shop/web", "api.example.com", "other.example"),))
    assert change.gone_grants == []
    world.now += 3600
    world.ledger.expire(world.now)
    assert world.roster.sanctions(WEB0, TARGET, 6, 443, world.now)
    assert not world.roster.sanctions(WEB0, TARGET, 6, 22, world.now)


def test_wider_rule_opens_at_once(world: World) -> None:
    """A rule that gains a port opens it for addresses already known, without a new query."""
    world.learn(WEB0)
    wider = (PortSpan(6, 6, 443, 444),)
    change, _, _ = world.update(policies=(policy("shop/web", "api.example.com", ports=wider),))
    assert {(e.span.first_port, e.refresh) for e in change.grants if e.span} == {(443, True), (444, False)}
    assert change.gone_grants == []


def test_second_policy_carries_grants_along(world: World) -> None:
    """A pod that one more policy selects gets a new subject, with the grants that it permits already in it."""
    world.learn(WEB0)
    old = world.number(WEB0)
    change, cut, _ = world.update(
        policies=(policy("shop/extra", "other.example"),), pods=(pod(WEB0, "web-0", "shop/extra", "shop/web"),)
    )
    new = world.number(WEB0)
    assert new != old
    assert [(e.subject, e.address) for e in change.grants] == [(new, TARGET)]
    assert change.gone_subjects == {old}
    assert cut == {WEB0}
    assert world.roster.sanctions(WEB0, TARGET, 6, 443, world.now)


def test_first_policy_keeps_what_it_sanctions(world: World) -> None:
    """A pod free until now keeps the addresses whose names its first policy allows, and no others."""
    world.update(pods=(pod(API0, "api-0"),))
    world.learn(API0)
    world.learn(API0, Name("unwanted.example"))
    change, cut, _ = world.update(pods=(pod(API0, "api-0", "shop/web"),))
    assert [(e.comment, e.span) for e in change.grants] == [(API, HTTPS[0])]
    assert cut == {API0}


def test_address_of_another_pod_inherits_nothing(world: World) -> None:
    """An address reused under another uid is a new pod: no subject, no memory, connections cut."""
    world.learn(WEB0)
    before = world.roster.parties[WEB0]
    change, _, gone = world.update(pods=(pod(WEB0, "job-9", uid="other"),))
    assert world.roster.parties[WEB0] is not before
    assert world.roster.parties[WEB0].judge is None
    assert [(e.address, e.subject) for e in change.pods] == [(WEB0, None)]
    assert change.gone_pods == []
    assert gone == {WEB0}
    assert world.known.names_for(WEB0, TARGET) == ()


def test_last_pod_takes_its_subject_along(world: World) -> None:
    """A subject without pods leaves the kernel, and its grants the ledger."""
    world.learn(WEB0)
    number = world.number(WEB0)
    change, _, gone = world.update(gone_pods=(WEB0,))
    assert (change.gone_pods, change.gone_subjects, gone) == ([WEB0], {number}, {WEB0})
    assert len(world.ledger) == 0
    assert WEB0 not in world.roster.parties


def test_policy_and_pods_may_go_in_one_update(world: World) -> None:
    """Deleting the only policy frees its pods."""
    change, _, _ = world.update(gone_policies=("shop/web",), pods=(pod(WEB0, "web-0"),))
    assert [(e.address, e.subject) for e in change.pods] == [(WEB0, None)]
    assert len(change.gone_subjects) == 1
    assert world.roster.sanctions(WEB0, TARGET, 6, 22, world.now)


def test_drain_only_if_every_policy_says_so(world: World) -> None:
    """Live connections may finish only where all policies of the pod drain."""
    assert not world.roster.drains(WEB0)
    world.update(policies=(policy("shop/web", "api.example.com", on_revoke=OnRevoke.DRAIN),))
    assert world.roster.drains(WEB0)
    world.update(policies=(policy("shop/cut", "x.example"),), pods=(pod(WEB0, "web-0", "shop/cut", "shop/web"),))
    assert not world.roster.drains(WEB0)


def test_whole_says_everything(world: World) -> None:
    """A table that has nothing is told instances, pods and grants in one change."""
    world.learn(WEB0)
    world.update(pods=(pod(API0, "api-0"),))
    change = world.roster.whole(world.now)
    assert list(change.subjects) == [world.number(WEB0)]
    assert {e.address for e in change.pods} == {WEB0, API0}
    assert [e.address for e in change.grants] == [TARGET]


def test_stale_is_what_a_whole_world_did_not_mention(world: World) -> None:
    """After a new control side has said everything, the rest is known to be gone."""
    assert world.roster.stale(set(), {WEB0}) == (("shop/web",), ())
    assert world.roster.stale({"shop/web"}, set()) == ((), (WEB0,))
