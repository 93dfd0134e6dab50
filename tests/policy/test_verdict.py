"""The sentences of policy.md, Patterns and Verdict, one named case each."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from policy_samples import CLUSTER, CLUSTER_ENFORCED, allow, deny, judge_of, packed, policy, ports

from egressd.model import ANY_PORT, Decision, Policy, Ports, Reason, Subject, Verdict
from egressd.names import ROOT, Name, label_text
from egressd.policy import ClusterFacts, Judge, subtract

ALLOWED, DENIED, WOULD_DENY, WOULD_ALLOW = Verdict.ALLOWED, Verdict.DENIED, Verdict.WOULD_DENY, Verdict.WOULD_ALLOW


@dataclass
class Case:
    id: str
    policies: list[Policy]
    name: str
    verdict: Verdict
    reason: Reason
    by: tuple[str, str] = ("", "")
    ports: Ports = ()
    resolve: bool | None = None
    facts: ClusterFacts = field(default=CLUSTER)


P = policy
HTTPS = ports("443/TCP")
CASES = [
    # ---- patterns
    Case("exact", [P("s/p", allow("kubernetes.example"))], "kubernetes.example", ALLOWED, Reason.RULE, ("s/p", "kubernetes.example"), ANY_PORT),
    Case("exact-not-below", [P("s/p", allow("kubernetes.example"))], "www.kubernetes.example", DENIED, Reason.NO_RULE),
    Case("wildcard-one-label", [P("s/p", allow("*.k.example", name="r"))], "www.k.example", ALLOWED, Reason.RULE, ("s/p", "r"), ANY_PORT),
    Case("wildcard-many-labels", [P("s/p", allow("*.k.example", name="r"))], "a.b.k.example", ALLOWED, Reason.RULE, ("s/p", "r"), ANY_PORT),
    Case("wildcard-not-itself", [P("s/p", allow("*.k.example", name="r"))], "k.example", DENIED, Reason.NO_RULE),
    Case("wildcard-at-label-boundary", [P("s/p", allow("*.k.example", name="r"))], "xk.example", DENIED, Reason.NO_RULE),
    Case("star", [P("s/p", allow("*", name="r"))], "any.thing", ALLOWED, Reason.RULE, ("s/p", "r"), ANY_PORT),
    Case("star-matches-the-root", [P("s/p", allow("*", name="r"))], ROOT, ALLOWED, Reason.RULE, ("s/p", "r"), ANY_PORT),
    Case("root-is-judged", [P("s/p", allow("a.example"))], ROOT, DENIED, Reason.NO_RULE),
    Case("underscore", [P("s/p", allow("_dmarc.example", name="r"))], "_dmarc.example", ALLOWED, Reason.RULE, ("s/p", "r"), ANY_PORT),
    Case("odd-octets-are-judged", [P("s/p", allow("*.example", name="r"))], f"{label_text(b'a b')}.example", ALLOWED, Reason.RULE, ("s/p", "r"), ANY_PORT),
    Case("dot-in-a-label-is-no-boundary", [P("s/p", allow("*.b.example"))], f"{label_text(b'a.b')}.example", DENIED, Reason.NO_RULE),
    # ---- verdict, 2: deny always wins
    Case("deny-beats-allow", [P("s/p", allow("*.example"), deny("a.example", name="no"))], "a.example", DENIED, Reason.DENY_RULE, ("s/p", "no")),
    Case("deny-wildcard-beats-exact-allow", [P("s/p", allow("a.example"), deny("*.example", name="no"))], "a.example", DENIED, Reason.DENY_RULE, ("s/p", "no")),
    Case("deny-of-another-policy", [P("s/p", allow("a.example")), P("sys/base", deny("a.example", name="no"))], "a.example", DENIED, Reason.DENY_RULE, ("sys/base", "no")),
    Case("deny-without-any-allow", [P("s/p", deny("a.example", name="no"))], "a.example", DENIED, Reason.DENY_RULE, ("s/p", "no")),
    Case("deny-beats-in-cluster", [P("s/p", deny("*.cluster.local", name="no"))], "a.b.svc.cluster.local", DENIED, Reason.DENY_RULE, ("s/p", "no")),
    # ---- deny with ports
    Case("deny-ports-are-taken-out", [P("s/p", allow("a.example", "80/TCP, 443/TCP", "yes"), deny("a.example", "80/TCP"))], "a.example", ALLOWED, Reason.RULE, ("s/p", "yes"), HTTPS),
    Case("deny-ports-from-any", [P("s/p", allow("a.example", name="yes"), deny("*", "25/TCP"))], "a.example", ALLOWED, Reason.RULE, ("s/p", "yes"), subtract(ANY_PORT, ports("25/TCP"))),
    Case("deny-ports-leave-nothing", [P("s/p", allow("a.example", "443/TCP"), deny("*.example", "400-500/TCP", "no"))], "a.example", DENIED, Reason.DENY_RULE, ("s/p", "no")),
    Case("deny-ports-together-leave-nothing", [P("s/p", allow("a.example", "80/TCP, 443/TCP"), deny("a.example", "80/TCP", "no80"), deny("a.example", "443/TCP", "no443"))], "a.example", DENIED, Reason.DENY_RULE, ("s/p", "no443")),
    Case("deny-ports-without-allow", [P("s/p", deny("a.example", "443/TCP"))], "a.example", DENIED, Reason.NO_RULE),
    Case("deny-ports-leave-in-cluster-open", [P("s/p", deny("*", "443/TCP"))], "a.b.svc.cluster.local", ALLOWED, Reason.IN_CLUSTER),
    Case("deny-other-ports", [P("s/p", allow("a.example", "443/TCP", "yes"), deny("a.example", "80/TCP"))], "a.example", ALLOWED, Reason.RULE, ("s/p", "yes"), HTTPS),
    # ---- verdict, 3: allow
    Case("ports-of-all-matching-rules", [P("s/a", allow("a.example", "443/TCP", "x")), P("s/b", allow("*.example", "80/TCP"))], "a.example", ALLOWED, Reason.RULE, ("s/a", "x"), ports("80/TCP, 443/TCP")),
    Case("exact-is-named-before-wildcard", [P("s/a", allow("*.example", name="w")), P("s/b", allow("a.example", name="e"))], "a.example", ALLOWED, Reason.RULE, ("s/b", "e"), ANY_PORT),
    Case("longer-wildcard-is-named", [P("s/a", allow("*.example", name="w")), P("s/b", allow("*.b.example", name="l"))], "a.b.example", ALLOWED, Reason.RULE, ("s/b", "l"), ANY_PORT),
    Case("star-is-named-last", [P("s/a", allow("*", name="star")), P("s/b", allow("*.example", name="w"))], "a.example", ALLOWED, Reason.RULE, ("s/b", "w"), ANY_PORT),
    Case("then-policy-name", [P("s/b", allow("a.example", name="1")), P("s/a", allow("a.example", name="2"))], "a.example", ALLOWED, Reason.RULE, ("s/a", "2"), ANY_PORT),
    Case("then-rule-name", [P("s/a", allow("a.example", name="z"), allow("a.example", name="b"))], "a.example", ALLOWED, Reason.RULE, ("s/a", "b"), ANY_PORT),
    Case("named-rule-really-opens", [P("s/a", allow("a.example", "80/TCP", "shut"), allow("*.example", "443/TCP", "open"), deny("*", "80/TCP"))], "a.example", ALLOWED, Reason.RULE, ("s/a", "open"), HTTPS),
    # ---- verdict, 4: inside the cluster
    Case("in-cluster", [P("s/p", allow("a.example"))], "api.shop.svc.cluster.local", ALLOWED, Reason.IN_CLUSTER),
    Case("the-domain-itself", [P("s/p")], "cluster.local", ALLOWED, Reason.IN_CLUSTER),
    Case("not-by-suffix-alone", [P("s/p")], "notcluster.local", DENIED, Reason.NO_RULE),
    Case("in-cluster-by-rule", [P("s/p", allow("*.cluster.local", "443/TCP", "svc"))], "a.b.svc.cluster.local", ALLOWED, Reason.RULE, ("s/p", "svc"), HTTPS),
    Case("allow-that-is-denied-falls-back-to-in-cluster", [P("s/p", allow("*.cluster.local", "443/TCP"), deny("*", "443/TCP"))], "a.b.svc.cluster.local", ALLOWED, Reason.IN_CLUSTER),
    Case("in-cluster-enforced", [P("s/p", allow("a.example"))], "api.shop.svc.cluster.local", DENIED, Reason.NO_RULE, facts=CLUSTER_ENFORCED),
    Case("in-cluster-enforced-by-rule", [P("s/p", allow("api.shop.svc.cluster.local", "443/TCP", "svc"))], "api.shop.svc.cluster.local", ALLOWED, Reason.RULE, ("s/p", "svc"), HTTPS, facts=CLUSTER_ENFORCED),
    # ---- verdict, 5
    Case("no-rule", [P("s/p", allow("a.example"))], "b.example", DENIED, Reason.NO_RULE, resolve=False),
    Case("empty-policy-closes", [P("s/p")], "b.example", DENIED, Reason.NO_RULE, resolve=False),
    Case("address-rules-allow-no-name", [P("s/p", allow("0.0.0.0/0"))], "b.example", DENIED, Reason.NO_RULE),
    # ---- dns: Resolve
    Case("resolve", [P("s/p", allow("a.example"), resolve=True)], "b.example", DENIED, Reason.NO_RULE, resolve=True),
    Case("resolve-even-what-is-denied", [P("s/p", deny("b.example", name="no"), resolve=True)], "b.example", DENIED, Reason.DENY_RULE, ("s/p", "no"), resolve=True),
    Case("resolve-only-if-every-policy-says-so", [P("s/p", resolve=True), P("s/q")], "b.example", DENIED, Reason.NO_RULE, resolve=False),
    Case("audited-filter-does-not-count", [P("s/p", resolve=True), P("s/q", audit=True)], "b.example", DENIED, Reason.NO_RULE, resolve=True),
    Case("audited-resolve-does-not-count", [P("s/p"), P("s/q", audit=True, resolve=True)], "b.example", DENIED, Reason.NO_RULE, resolve=False),
    # ---- mode: Audit beside enforced policies
    Case("audited-deny-denies-nothing", [P("s/p", allow("a.example", "443/TCP")), P("s/q", deny("a.example", name="no"), audit=True)], "a.example", WOULD_DENY, Reason.DENY_RULE, ("s/q", "no"), HTTPS, True),
    Case("audited-allow-opens-nothing", [P("s/p"), P("s/q", allow("a.example", name="yes"), audit=True)], "a.example", WOULD_ALLOW, Reason.RULE, ("s/q", "yes"), (), False),
    Case("would-allow-under-resolve", [P("s/p", resolve=True), P("s/q", allow("a.example", name="yes"), audit=True)], "a.example", WOULD_ALLOW, Reason.RULE, ("s/q", "yes"), (), True),
    Case("both-allow-tells-the-enforced", [P("s/q", allow("*.example", "80/TCP", "yes")), P("s/p", allow("a.example", name="close"), audit=True)], "a.example", ALLOWED, Reason.RULE, ("s/q", "yes"), ports("80/TCP")),
    Case("both-deny-tells-the-enforced", [P("s/p"), P("s/q", deny("a.example"), audit=True)], "a.example", DENIED, Reason.NO_RULE),
    Case("audited-deny-of-in-cluster", [P("s/p"), P("s/q", deny("*.cluster.local", name="no"), audit=True)], "a.b.svc.cluster.local", WOULD_DENY, Reason.DENY_RULE, ("s/q", "no"), (), True),
    # ---- only Audit policies
    Case("audit-only-allowed", [P("s/q", allow("a.example", "443/TCP", "yes"), audit=True)], "a.example", ALLOWED, Reason.RULE, ("s/q", "yes"), HTTPS, True),
    Case("audit-only-would-deny", [P("s/q", allow("a.example"), audit=True)], "b.example", WOULD_DENY, Reason.NO_RULE, ("", ""), (), True),
    Case("audit-only-deny-rule", [P("s/q", deny("*", name="no"), audit=True)], "b.example", WOULD_DENY, Reason.DENY_RULE, ("s/q", "no"), (), True),
    Case("audit-only-in-cluster", [P("s/q", audit=True)], "a.b.svc.cluster.local", ALLOWED, Reason.IN_CLUSTER, ("", ""), (), True),
]  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_name(case: Case) -> None:
    """The verdict for a name, why, by which rule, what it opens and whether it is asked upstream."""
    judge = judge_of(*case.policies, facts=case.facts)
    decision = judge.judge_name(Name(case.name))
    assert (decision.verdict, decision.reason) == (case.verdict, case.reason)
    assert (decision.policy, decision.rule) == case.by
    assert decision.ports == case.ports
    assert decision.resolve is (case.resolve if case.resolve is not None else case.verdict is ALLOWED)
    assert judge.judge_name(Name(case.name)) is decision, "the second time it is remembered"


ADDRESSES = [
    ("block", [P("s/p", allow("203.0.113.0/24", "5432/TCP", "db"))], "203.0.113.9", 6, 5432, ALLOWED, Reason.RULE, "db"),
    ("other-port", [P("s/p", allow("203.0.113.0/24", "5432/TCP"))], "203.0.113.9", 6, 80, DENIED, Reason.NO_RULE, ""),
    ("other-protocol", [P("s/p", allow("203.0.113.0/24", "5432/TCP"))], "203.0.113.9", 17, 5432, DENIED, Reason.NO_RULE, ""),
    ("outside", [P("s/p", allow("203.0.113.0/24"))], "203.0.114.0", 6, 80, DENIED, Reason.NO_RULE, ""),
    ("last-address", [P("s/p", allow("203.0.113.0/24", name="r"))], "203.0.113.255", 6, 80, ALLOWED, Reason.RULE, "r"),
    ("single", [P("s/p", allow("198.51.100.7", name="r"))], "198.51.100.7", 132, 1, ALLOWED, Reason.RULE, "r"),
    ("no-ports-is-every-protocol", [P("s/p", allow("198.51.100.7", name="r"))], "198.51.100.7", 47, -1, ALLOWED, Reason.RULE, "r"),
    ("ipv6", [P("s/p", allow("2001:db8::/32", name="r"))], "2001:db8:ffff::1", 6, 80, ALLOWED, Reason.RULE, "r"),
    ("families-apart", [P("s/p", allow("0.0.0.0/0"))], "2001:db8::1", 6, 80, DENIED, Reason.NO_RULE, ""),
    ("icmp", [P("s/p", allow("0.0.0.0/0 ::/0", "*/ICMP", "ping"))], "203.0.113.9", 1, -1, ALLOWED, Reason.RULE, "ping"),
    ("icmpv6", [P("s/p", allow("0.0.0.0/0 ::/0", "*/ICMP", "ping"))], "2001:db8::1", 58, -1, ALLOWED, Reason.RULE, "ping"),
    ("deny-wins", [P("s/p", allow("203.0.113.0/24"), deny("203.0.113.66", name="no"))], "203.0.113.66", 6, 80, DENIED, Reason.DENY_RULE, "no"),
    ("deny-larger-block-wins", [P("s/p", allow("203.0.113.66"), deny("203.0.113.0/24", name="no"))], "203.0.113.66", 6, 80, DENIED, Reason.DENY_RULE, "no"),
    ("deny-on-other-port", [P("s/p", allow("203.0.113.0/24", name="r"), deny("203.0.113.66", "25/TCP"))], "203.0.113.66", 6, 80, ALLOWED, Reason.RULE, "r"),
    ("deny-on-this-port", [P("s/p", allow("203.0.113.0/24"), deny("203.0.113.66", "25/TCP", "no"))], "203.0.113.66", 6, 25, DENIED, Reason.DENY_RULE, "no"),
    ("smallest-block-is-named", [P("s/a", allow("0.0.0.0/0", name="all")), P("s/b", allow("203.0.113.0/24", name="near"))], "203.0.113.1", 6, 80, ALLOWED, Reason.RULE, "near"),
    ("some-port", [P("s/p", allow("203.0.113.0/24", "443/TCP", "r"))], "203.0.113.1", 6, -1, ALLOWED, Reason.RULE, "r"),
    ("some-port-of-another-protocol", [P("s/p", allow("203.0.113.0/24", "443/TCP"))], "203.0.113.1", 17, -1, DENIED, Reason.NO_RULE, ""),
    ("some-port-all-denied", [P("s/p", allow("203.0.113.0/24", "443/TCP"), deny("203.0.113.1", "1-1000/TCP", "no"))], "203.0.113.1", 6, -1, DENIED, Reason.DENY_RULE, "no"),
    ("some-port-left", [P("s/p", allow("203.0.113.0/24", "443/TCP, 80/TCP", "r"), deny("203.0.113.1", "80/TCP"))], "203.0.113.1", 6, -1, ALLOWED, Reason.RULE, "r"),
    ("in-cluster", [P("s/p")], "10.96.0.10", 6, 443, ALLOWED, Reason.IN_CLUSTER, ""),
    ("in-cluster-ipv6", [P("s/p")], "fd00:10::a", 6, 443, ALLOWED, Reason.IN_CLUSTER, ""),
    ("in-cluster-denied", [P("s/p", deny("10.96.0.1", name="no"))], "10.96.0.1", 6, 443, DENIED, Reason.DENY_RULE, "no"),
    ("in-cluster-denied-on-a-port", [P("s/p", deny("10.96.0.1", "443/TCP", "no"))], "10.96.0.1", 6, 80, ALLOWED, Reason.IN_CLUSTER, ""),
    ("names-allow-no-address", [P("s/p", allow("*"))], "203.0.113.9", 6, 80, DENIED, Reason.NO_RULE, ""),
    ("audited-deny", [P("s/p", allow("203.0.113.0/24")), P("s/q", deny("203.0.113.9", name="no"), audit=True)], "203.0.113.9", 6, 80, WOULD_DENY, Reason.DENY_RULE, "no"),
    ("audited-allow", [P("s/p"), P("s/q", allow("203.0.113.9", name="yes"), audit=True)], "203.0.113.9", 6, 80, WOULD_ALLOW, Reason.RULE, "yes"),
    ("audit-only", [P("s/q", allow("203.0.113.9", name="yes"), audit=True)], "203.0.113.8", 6, 80, WOULD_DENY, Reason.NO_RULE, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("policies", "address", "protocol", "port", "verdict", "reason", "named"),
    [pytest.param(*case[1:], id=case[0]) for case in ADDRESSES],
)
def test_address(
    policies: list[Policy], address: str, protocol: int, port: int, verdict: Verdict, reason: Reason, named: str
) -> None:
    """The verdict for an address that is dialled without a name; it opens no grant."""
    decision = judge_of(*policies).judge_address(packed(address), protocol, port)
    assert (decision.verdict, decision.reason, decision.rule) == (verdict, reason, named)
    assert bool(decision.policy) is bool(decision.rule)
    assert decision.ports == ()
    assert not decision.allow_private


def test_in_cluster_addresses_enforced() -> None:
    """With `in_cluster: Enforce` addresses of the cluster need a rule like any other."""
    judge = judge_of(policy("s/p", allow("10.96.0.1", "443/TCP")), facts=CLUSTER_ENFORCED)
    assert judge.judge_address(packed("10.96.0.1"), 6, 443).verdict is ALLOWED
    assert judge.judge_address(packed("10.96.0.2"), 6, 443).reason is Reason.NO_RULE


def test_no_policy_selects_the_pod() -> None:
    """Nobody judges an unselected pod, whatever it asks."""
    judge = Judge(Subject(()), CLUSTER)
    expected = Decision(ALLOWED, Reason.UNSELECTED, resolve=True)
    assert judge.judge_name(Name("a.example")) == expected
    assert judge.judge_address(packed("203.0.113.1"), 6, 1) == expected
    assert judge.judge_destination([Name("a.example")], packed("203.0.113.1"), 6, 1) == expected
    assert (judge.enforced, judge.filters_dns) == (False, False)


FLOWS = [
    ("address-rule-speaks-first", ["a.example"], [P("s/p", deny("203.0.113.9", name="no"), allow("a.example"))], DENIED, Reason.DENY_RULE, "no"),
    ("no-name", [], [P("s/p", allow("a.example"))], DENIED, Reason.NO_RULE, ""),
    ("name-denied", ["a.example"], [P("s/p", deny("a.example", name="no"))], DENIED, Reason.DENY_RULE, "no"),
    ("name-allowed-on-port", ["a.example"], [P("s/p", allow("a.example", "443/TCP", "yes"))], ALLOWED, Reason.RULE, "yes"),
    ("name-allowed-on-another-port", ["a.example"], [P("s/p", allow("a.example", "80/TCP"))], DENIED, Reason.NO_RULE, ""),
    ("name-denied-on-this-port", ["a.example"], [P("s/p", allow("a.example"), deny("*", "443/TCP", "no"))], DENIED, Reason.DENY_RULE, "no"),
    ("one-allowed-name-suffices", ["b.example", "a.example"], [P("s/p", allow("a.example", name="yes"), deny("b.example"))], ALLOWED, Reason.RULE, "yes"),
    ("audited-name", ["a.example"], [P("s/p"), P("s/q", allow("a.example", name="yes"), audit=True)], WOULD_ALLOW, Reason.RULE, "yes"),
    ("audit-only-name", ["a.example"], [P("s/q", deny("a.example", name="no"), audit=True)], WOULD_DENY, Reason.DENY_RULE, "no"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "policies", "verdict", "reason", "named"), [pytest.param(*case[1:], id=case[0]) for case in FLOWS]
)
def test_flow(names: list[str], policies: list[Policy], verdict: Verdict, reason: Reason, named: str) -> None:
    """A flow to 203.0.113.9:443/TCP: what address rules say, else what the names it was known by would say."""
    judge = judge_of(*policies)
    decision = judge.judge_destination([Name(name) for name in names], packed("203.0.113.9"), 6, 443)
    assert (decision.verdict, decision.reason, decision.rule) == (verdict, reason, named)


@pytest.mark.parametrize(
    ("policies", "enforced", "filters"),
    [
        pytest.param([P("s/p")], True, True, id="enforced-filter"),
        pytest.param([P("s/p", resolve=True)], True, False, id="enforced-resolve"),
        pytest.param([P("s/p", resolve=True), P("s/q")], True, True, id="one-filters"),
        pytest.param([P("s/p", audit=True)], False, False, id="audit-only"),
        pytest.param([P("s/p", audit=True), P("s/q", resolve=True)], True, False, id="audited-filter"),
    ],
)
def test_what_a_subject_enforces(policies: list[Policy], enforced: bool, filters: bool) -> None:
    """Audit policies neither enforce nor filter."""
    judge = judge_of(*policies)
    assert (judge.enforced, judge.filters_dns) == (enforced, filters)


def test_what_is_remembered_does_not_grow_with_questions() -> None:
    """A flood of random names below a wildcard, or below nothing, leaves one decision each."""
    judge = judge_of(policy("s/p", allow("*.example")))
    for number in range(1000):
        judge.judge_name(Name(f"x{number}.a.example"))
        judge.judge_name(Name(f"x{number}.test"))
    assert len(judge._below) + len(judge._exact) == 2
