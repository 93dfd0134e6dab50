"""The rebinding guard (policy.md, Rebinding), range by range."""

from __future__ import annotations

import pytest
from policy_samples import CLUSTER, CLUSTER_ENFORCED, allow, deny, judge_of, packed, policy, ports

from egressd.model import ANY_PORT, Block, Decision, Reason, Verdict
from egressd.names import Name
from egressd.policy import ClusterFacts, block_text
from egressd.policy.addresses import cidr

NAME = Name("a.example")
ORDINARY, PRIVATE, NEVER = "ordinary", "private", "never"
ADDRESSES = [
    *((text, ORDINARY) for text in ("1.1.1.1", "52.216.1.2", "9.255.255.255", "11.0.0.0", "100.63.255.255")),
    *((text, ORDINARY) for text in ("100.128.0.0", "126.255.255.255", "128.0.0.0", "169.253.255.255", "169.255.0.0")),
    *(
        (text, ORDINARY)
        for text in ("172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0", "223.255.255.255")
    ),
    *((text, ORDINARY) for text in ("192.0.2.1", "198.51.100.1", "203.0.113.1", "198.18.0.1", "2001:db8::1")),
    *(
        (text, ORDINARY)
        for text in ("2606:4700::1", "fbff::1", "fe00::1", "fec0::1", "::2", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1")
    ),
    *((text, PRIVATE) for text in ("10.0.0.0", "10.255.255.255", "172.16.0.0", "172.31.255.255", "192.168.0.1")),
    *((text, PRIVATE) for text in ("100.64.0.0", "100.127.255.255", "240.0.0.0", "255.255.255.254", "192.168.255.255")),
    *((text, PRIVATE) for text in ("fc00::", "fd12:3456::1", "::ffff:10.1.2.3", "64:ff9b::192.168.1.1")),
    *((text, NEVER) for text in ("0.0.0.0", "0.255.255.255", "127.0.0.1", "127.255.255.255", "169.254.169.254")),
    *((text, NEVER) for text in ("224.0.0.1", "239.255.255.255", "255.255.255.255", "169.254.0.0", "::", "::1")),
    *((text, NEVER) for text in ("fe80::1", "febf::1", "ff02::1", "::ffff:127.0.0.1", "64:ff9b::169.254.169.254")),
]


@pytest.mark.parametrize(("address", "kind"), ADDRESSES)
def test_ranges(address: str, kind: str) -> None:
    """Ordinary addresses may be granted, private ones if a rule says so, the rest never."""
    plain = judge_of(policy("s/p", allow("a.example", "443/TCP")))
    private = judge_of(policy("s/p", allow("a.example", "443/TCP", private=True)))
    verdicts = [judge.admissible(packed(address), judge.judge_name(NAME)) for judge in (plain, private)]
    assert (
        verdicts
        == {
            ORDINARY: [None, None],
            PRIVATE: [Reason.REBINDING, None],
            NEVER: [Reason.REBINDING, Reason.REBINDING],
        }[kind]
    )


def test_cluster_blocks_are_private_wherever_they_lie() -> None:
    """An external name may not point into the cluster, also where the cluster uses public addresses."""
    facts = ClusterFacts(cidrs=(cidr("52.0.0.0/16"), cidr("2001:db8:c::/48")))
    judge = judge_of(policy("s/p", allow("a.example")), facts=facts)
    decision = judge.judge_name(NAME)
    assert judge.admissible(packed("52.0.3.4"), decision) is Reason.REBINDING
    assert judge.admissible(packed("52.1.3.4"), decision) is None
    assert judge.admissible(packed("2001:db8:c::1"), decision) is Reason.REBINDING
    assert judge.admissible(packed("::ffff:52.0.3.4"), decision) is Reason.REBINDING


@pytest.mark.parametrize("facts", [CLUSTER, CLUSTER_ENFORCED])
def test_a_name_inside_the_cluster_is_not_external(facts: ClusterFacts) -> None:
    """A Service name that a rule allows resolves to the cluster's own addresses without `allowPrivate`."""
    judge = judge_of(policy("s/p", allow("api.shop.svc.cluster.local", "443/TCP")), facts=facts)
    decision = judge.judge_name(Name("api.shop.svc.cluster.local"))
    assert decision.allow_private
    assert judge.admissible(packed("10.96.0.10"), decision) is None
    assert judge.admissible(packed("169.254.169.254"), decision) is Reason.REBINDING
    assert judge.grant_ports(packed("10.96.0.10"), decision) == ports("443/TCP")


def test_in_cluster_decision() -> None:
    """A name let through as in-cluster may have private addresses, never loopback or link-local ones."""
    judge = judge_of(policy("s/p", deny("10.96.0.66 10.96.0.67/32"), deny("10.96.0.68", "80/TCP")))
    decision = judge.judge_name(Name("api.shop.svc.cluster.local"))
    assert decision.reason is Reason.IN_CLUSTER
    assert judge.admissible(packed("10.96.0.10"), decision) is None
    assert judge.admissible(packed("192.168.1.1"), decision) is None
    assert judge.admissible(packed("127.0.0.1"), decision) is Reason.REBINDING
    assert judge.admissible(packed("fe80::1"), decision) is Reason.REBINDING
    assert judge.admissible(packed("10.96.0.66"), decision) is Reason.DENY_RULE
    assert judge.admissible(packed("10.96.0.68"), decision) is None


def test_in_cluster_that_an_audited_policy_would_deny() -> None:
    """What goes through goes through as in-cluster, though the record tells the audited deny rule."""
    judge = judge_of(policy("s/p"), policy("s/q", deny("*.cluster.local"), audit=True))
    decision = judge.judge_name(Name("api.shop.svc.cluster.local"))
    assert decision.verdict is Verdict.WOULD_DENY
    assert judge.admissible(packed("10.96.0.10"), decision) is None
    assert judge.admissible(packed("127.0.0.1"), decision) is Reason.REBINDING


@pytest.mark.parametrize(
    ("rule_ports", "denied", "on", "address", "reason"),
    [
        pytest.param("443/TCP", "203.0.113.0/24", "any", "203.0.113.5", Reason.DENY_RULE, id="covered"),
        pytest.param("443/TCP", "203.0.113.0/24", "any", "203.0.112.5", None, id="beside"),
        pytest.param("443/TCP", "203.0.113.0/24", "443/TCP", "203.0.113.5", Reason.DENY_RULE, id="its-port"),
        pytest.param("443/TCP", "203.0.113.0/24", "80/TCP", "203.0.113.5", None, id="another-port"),
        pytest.param("443/TCP, 80/TCP", "203.0.113.0/24", "443/TCP", "203.0.113.5", None, id="one-port-is-left"),
        pytest.param("443/TCP", "203.0.113.0/24", "any", "::ffff:203.0.113.5", Reason.DENY_RULE, id="mapped"),
        pytest.param("443/TCP", "203.0.113.0/24", "any", "64:ff9b::203.0.113.5", Reason.DENY_RULE, id="nat64"),
        pytest.param("443/TCP", "2001:db8::/32", "any", "2001:db8::9", Reason.DENY_RULE, id="ipv6"),
        pytest.param("443/TCP", "::ffff:0:0/96", "any", "::ffff:203.0.113.5", Reason.DENY_RULE, id="mapped-block"),
    ],
)
def test_addresses_that_deny_rules_cover(
    rule_ports: str, denied: str, on: str, address: str, reason: Reason | None
) -> None:
    """An address that deny rules cover on every port the name would open is withheld."""
    judge = judge_of(policy("s/p", allow("a.example", rule_ports), deny(denied, on)))
    assert judge.admissible(packed(address), judge.judge_name(NAME)) is reason


def test_deny_rules_add_up() -> None:
    """Two deny rules that together cover all of a name's ports withhold the address."""
    judge = judge_of(
        policy("s/p", allow("a.example", "80/TCP, 443/TCP"), deny("203.0.113.0/24", "80/TCP")),
        policy("s/q", deny("203.0.0.0/16", "443/TCP")),
    )
    assert judge.admissible(packed("203.0.113.5"), judge.judge_name(NAME)) is Reason.DENY_RULE
    assert judge.admissible(packed("203.0.114.5"), judge.judge_name(NAME)) is None


def test_audited_deny_rules_withhold_nothing_beside_enforced_ones() -> None:
    """Audit neither closes nor opens: its deny blocks do not withhold, its allowPrivate does not permit."""
    judge = judge_of(
        policy("s/p", allow("a.example")),
        policy("s/q", deny("203.0.113.0/24"), allow("a.example", private=True), audit=True),
    )
    assert judge.admissible(packed("203.0.113.5"), judge.judge_name(NAME)) is None
    assert judge.admissible(packed("10.0.0.1"), judge.judge_name(NAME)) is Reason.REBINDING


def test_audit_only_says_what_would_be_withheld() -> None:
    """Where nothing is enforced, the guard answers for the audited policies, so that it can be reported."""
    judge = judge_of(policy("s/q", allow("a.example"), deny("203.0.113.0/24"), audit=True))
    assert judge.admissible(packed("203.0.113.5"), judge.judge_name(NAME)) is Reason.DENY_RULE
    assert judge.admissible(packed("10.0.0.1"), judge.judge_name(NAME)) is Reason.REBINDING


def test_a_name_that_only_resolves_has_nothing_to_withhold() -> None:
    """Under `dns: Resolve` a name without a rule opens nothing, so its addresses, private ones too, are told."""
    judge = judge_of(policy("s/p", allow("10.0.0.0/8"), resolve=True))
    decision = judge.judge_name(NAME)
    assert (decision.verdict, decision.resolve) == (Verdict.DENIED, True)
    assert judge.admissible(packed("10.0.0.1"), decision) is None


def test_private_addresses_get_the_ports_of_rules_that_allow_them() -> None:
    """Two rules on one name, one with allowPrivate: a private address opens that one's ports alone."""
    judge = judge_of(
        policy("s/p", allow("a.example", "443/TCP", private=True), allow("*.example", "22/TCP"), deny("*", "80/TCP"))
    )
    decision = judge.judge_name(NAME)
    assert decision.allow_private
    assert judge.grant_ports(packed("10.0.0.1"), decision) == ports("443/TCP")
    assert judge.grant_ports(packed("203.0.113.1"), decision) == ports("22/TCP, 443/TCP")


def test_private_ports_that_are_all_denied() -> None:
    """allowPrivate of a rule whose ports a deny rule took out does not let private addresses in."""
    judge = judge_of(
        policy("s/p", allow("a.example", "80/TCP", private=True), allow("a.example", "443/TCP"), deny("*", "80/TCP"))
    )
    decision = judge.judge_name(NAME)
    assert not decision.allow_private
    assert judge.admissible(packed("10.0.0.1"), decision) is Reason.REBINDING


def test_a_private_address_is_judged_by_the_ports_it_would_open() -> None:
    """A deny block that covers the private rule's ports withholds the address, though other ports are allowed."""
    judge = judge_of(
        policy(
            "s/p",
            allow("a.example", "443/TCP", private=True),
            allow("a.example", "22/TCP"),
            deny("10.0.0.0/8", "443/TCP"),
        )
    )
    assert judge.admissible(packed("10.0.0.1"), judge.judge_name(NAME)) is Reason.DENY_RULE
    assert judge.admissible(packed("192.168.0.1"), judge.judge_name(NAME)) is None


def test_a_decision_made_by_hand_keeps_its_meaning() -> None:
    """`allow_private` without `private_ports` stands for all of its ports."""
    judge = judge_of(policy("s/p"))
    decision = Decision(Verdict.ALLOWED, Reason.RULE, "s/p", "r", ANY_PORT, resolve=True, allow_private=True)
    assert judge.admissible(packed("10.0.0.1"), decision) is None
    assert judge.grant_ports(packed("10.0.0.1"), decision) == ANY_PORT


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (cidr("203.0.113.0/24"), "203.0.113.0/24"),
        (cidr("203.0.113.7"), "203.0.113.7"),
        (cidr("0.0.0.0/0"), "0.0.0.0/0"),
        (cidr("2001:db8::/32"), "2001:db8::/32"),
        (Block(packed("192.0.2.1"), packed("192.0.2.9")), "192.0.2.1-192.0.2.9"),
        (Block(packed("192.0.2.1"), packed("192.0.2.2")), "192.0.2.1-192.0.2.2"),
    ],
)
def test_block_text(block: Block, text: str) -> None:
    """Blocks are spelled as policies spell them."""
    assert block_text(block) == text
