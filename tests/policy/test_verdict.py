"""The sentences of policy.md, Patterns and Verdict, one named case each.

Policies are written in the notation of `policy_samples.world`.
"""

from __future__ import annotations

import pytest
from policy_samples import CLUSTER, CLUSTER_ENFORCED, judge_of, packed, world

from egressd.model import Decision, Reason, Subject, Verdict
from egressd.names import Name
from egressd.policy import ClusterFacts, Judge, ports_text


def told(decision: Decision) -> str:
    """`allowed rule by s/p yes on 443/TCP`; `, resolves` where that is not a matter of course."""
    by = f" by {decision.policy} {decision.rule}" if decision.policy else ""
    on = f" on {ports_text(decision.ports)}" if decision.ports else ""
    resolves = ", resolves" if decision.resolve and decision.verdict is not Verdict.ALLOWED else ""
    assert decision.resolve or decision.verdict in (Verdict.DENIED, Verdict.WOULD_ALLOW)
    return f"{decision.verdict.value} {decision.reason.value}{by}{on}{resolves}"


# case, policies, name, what is decided
CASES: list[tuple[str, str, str, str] | tuple[str, str, str, str, ClusterFacts]] = [
    # patterns
    ("exact", "s/p: allow kubernetes.example", "kubernetes.example", "allowed rule by s/p kubernetes.example on any"),
    ("exact-not-below", "s/p: allow kubernetes.example", "www.kubernetes.example", "denied no-rule"),
    ("wildcard-one-label", "s/p: allow *.k.example as r", "www.k.example", "allowed rule by s/p r on any"),
    ("wildcard-many-labels", "s/p: allow *.k.example as r", "a.b.k.example", "allowed rule by s/p r on any"),
    ("wildcard-not-itself", "s/p: allow *.k.example as r", "k.example", "denied no-rule"),
    ("wildcard-at-label-boundary", "s/p: allow *.k.example as r", "xk.example", "denied no-rule"),
    ("star", "s/p: allow * as r", "any.thing", "allowed rule by s/p r on any"),
    ("star-matches-the-root", "s/p: allow * as r", ".", "allowed rule by s/p r on any"),
    ("root-is-judged", "s/p: allow a.example", ".", "denied no-rule"),
    ("underscore", "s/p: allow _dmarc.example as r", "_dmarc.example", "allowed rule by s/p r on any"),
    ("odd-octets-are-judged", "s/p: allow *.example as r", "a\\032b.example", "allowed rule by s/p r on any"),
    ("dot-in-a-label-is-no-boundary", "s/p: allow *.b.example", "a\\046b.example", "denied no-rule"),
    # verdict, 2: deny always wins
    ("deny-beats-allow", "s/p: allow *.example; deny a.example as no", "a.example", "denied deny-rule by s/p no"),
    (
        "deny-wildcard-beats-exact-allow",
        "s/p: allow a.example; deny *.example as no",
        "a.example",
        "denied deny-rule by s/p no",
    ),
    (
        "deny-of-another-policy",
        "s/p: allow a.example | sys/base: deny a.example as no",
        "a.example",
        "denied deny-rule by sys/base no",
    ),
    ("deny-without-any-allow", "s/p: deny a.example as no", "a.example", "denied deny-rule by s/p no"),
    ("deny-beats-in-cluster", "s/p: deny *.cluster.local as no", "a.b.svc.cluster.local", "denied deny-rule by s/p no"),
    # deny rules with ports
    (
        "deny-rule-that-takes-all-is-named",
        "s/p: allow *; deny a.example [25/TCP] as some; deny *.example as all",
        "a.example",
        "denied deny-rule by s/p all",
    ),
    (
        "deny-ports-are-taken-out",
        "s/p: allow a.example [80/TCP, 443/TCP] as yes; deny a.example [80/TCP]",
        "a.example",
        "allowed rule by s/p yes on 443/TCP",
    ),
    (
        "deny-ports-from-any",
        "s/p: allow a.example as yes; deny * [25/TCP]",
        "a.example",
        "allowed rule by s/p yes on any but 25/TCP",
    ),
    (
        "deny-ports-leave-nothing",
        "s/p: allow a.example [443/TCP]; deny *.example [400-500/TCP] as no",
        "a.example",
        "denied deny-rule by s/p no",
    ),
    (
        "deny-ports-together-leave-nothing",
        "s/p: allow a.example [80/TCP, 443/TCP]; deny a.example [80/TCP] as no80; deny a.example [443/TCP] as no443",
        "a.example",
        "denied deny-rule by s/p no443",
    ),
    ("deny-ports-without-allow", "s/p: deny a.example [443/TCP]", "a.example", "denied no-rule"),
    ("deny-ports-leave-in-cluster-open", "s/p: deny * [443/TCP]", "a.b.svc.cluster.local", "allowed in-cluster"),
    (
        "deny-other-ports",
        "s/p: allow a.example [443/TCP] as yes; deny a.example [80/TCP]",
        "a.example",
        "allowed rule by s/p yes on 443/TCP",
    ),
    # verdict, 3: allow, and which rule is named
    (
        "ports-of-all-matching-rules",
        "s/a: allow a.example [443/TCP] as x | s/b: allow *.example [80/TCP]",
        "a.example",
        "allowed rule by s/a x on 80/TCP, 443/TCP",
    ),
    (
        "exact-is-named-before-wildcard",
        "s/a: allow *.example as w | s/b: allow a.example as e",
        "a.example",
        "allowed rule by s/b e on any",
    ),
    (
        "longer-wildcard-is-named",
        "s/a: allow *.example as w | s/b: allow *.b.example as l",
        "a.b.example",
        "allowed rule by s/b l on any",
    ),
    (
        "star-is-named-last",
        "s/a: allow * as star | s/b: allow *.example as w",
        "a.example",
        "allowed rule by s/b w on any",
    ),
    (
        "then-policy-name",
        "s/b: allow a.example as 1 | s/a: allow a.example as 2",
        "a.example",
        "allowed rule by s/a 2 on any",
    ),
    ("then-rule-name", "s/a: allow a.example as z; allow a.example as b", "a.example", "allowed rule by s/a b on any"),
    (
        "named-rule-really-opens",
        "s/a: allow a.example [80/TCP] as shut; allow *.example [443/TCP] as open; deny * [80/TCP]",
        "a.example",
        "allowed rule by s/a open on 443/TCP",
    ),
    # verdict, 4: inside the cluster
    ("in-cluster", "s/p: allow a.example", "api.shop.svc.cluster.local", "allowed in-cluster"),
    ("the-domain-itself", "s/p:", "cluster.local", "allowed in-cluster"),
    ("not-by-suffix-alone", "s/p:", "notcluster.local", "denied no-rule"),
    (
        "in-cluster-by-rule",
        "s/p: allow *.cluster.local [443/TCP] as svc",
        "a.b.svc.cluster.local",
        "allowed rule by s/p svc on 443/TCP",
    ),
    (
        "allow-that-is-denied-falls-back-to-in-cluster",
        "s/p: allow *.cluster.local [443/TCP]; deny * [443/TCP]",
        "a.b.svc.cluster.local",
        "allowed in-cluster",
    ),
    ("in-cluster-enforced", "s/p: allow a.example", "api.shop.svc.cluster.local", "denied no-rule", CLUSTER_ENFORCED),
    (
        "in-cluster-enforced-by-rule",
        "s/p: allow api.shop.svc.cluster.local [443/TCP] as svc",
        "api.shop.svc.cluster.local",
        "allowed rule by s/p svc on 443/TCP",
        CLUSTER_ENFORCED,
    ),
    # verdict, 5: otherwise
    ("no-rule", "s/p: allow a.example", "b.example", "denied no-rule"),
    ("empty-policy-closes", "s/p:", "b.example", "denied no-rule"),
    ("address-rules-allow-no-name", "s/p: allow 0.0.0.0/0", "b.example", "denied no-rule"),
    # dns: Resolve
    ("resolve", "s/p resolve: allow a.example", "b.example", "denied no-rule, resolves"),
    (
        "resolve-even-what-is-denied",
        "s/p resolve: deny b.example as no",
        "b.example",
        "denied deny-rule by s/p no, resolves",
    ),
    ("resolve-only-if-every-policy-says-so", "s/p resolve: | s/q:", "b.example", "denied no-rule"),
    ("audited-filter-does-not-count", "s/p resolve: | s/q audit:", "b.example", "denied no-rule, resolves"),
    ("audited-resolve-does-not-count", "s/p: | s/q audit resolve:", "b.example", "denied no-rule"),
    # mode: Audit beside enforced policies
    (
        "audited-deny-denies-nothing",
        "s/p: allow a.example [443/TCP] | s/q audit: deny a.example as no",
        "a.example",
        "would-deny deny-rule by s/q no on 443/TCP, resolves",
    ),
    (
        "audited-allow-opens-nothing",
        "s/p: | s/q audit: allow a.example as yes",
        "a.example",
        "would-allow rule by s/q yes",
    ),
    (
        "would-allow-under-resolve",
        "s/p resolve: | s/q audit: allow a.example as yes",
        "a.example",
        "would-allow rule by s/q yes, resolves",
    ),
    (
        "both-allow-tells-the-enforced",
        "s/q: allow *.example [80/TCP] as yes | s/p audit: allow a.example as close",
        "a.example",
        "allowed rule by s/q yes on 80/TCP",
    ),
    ("both-deny-tells-the-enforced", "s/p: | s/q audit: deny a.example", "a.example", "denied no-rule"),
    (
        "audited-deny-of-in-cluster",
        "s/p: | s/q audit: deny *.cluster.local as no",
        "a.b.svc.cluster.local",
        "would-deny deny-rule by s/q no, resolves",
    ),
    # only Audit policies
    (
        "audit-only-allowed",
        "s/q audit: allow a.example [443/TCP] as yes",
        "a.example",
        "allowed rule by s/q yes on 443/TCP",
    ),
    ("audit-only-would-deny", "s/q audit: allow a.example", "b.example", "would-deny no-rule, resolves"),
    ("audit-only-deny-rule", "s/q audit: deny * as no", "b.example", "would-deny deny-rule by s/q no, resolves"),
    ("audit-only-in-cluster", "s/q audit:", "a.b.svc.cluster.local", "allowed in-cluster"),
]


@pytest.mark.parametrize("case", [pytest.param(case[1:], id=case[0]) for case in CASES])
def test_name(case: tuple[str, str, str] | tuple[str, str, str, ClusterFacts]) -> None:
    """The verdict for a name, why, by which rule, what it opens and whether it is asked upstream."""
    policies, name, expected, *facts = case
    judge = judge_of(*world(policies), facts=facts[0] if facts else CLUSTER)
    decision = judge.judge_name(Name(name))
    assert told(decision) == expected
    assert judge.judge_name(Name(name)) is decision, "the second time it is remembered"


# case, policies, address, protocol, port, what is decided and by which rule
ADDRESSES = [
    ("block", "s/p: allow 203.0.113.0/24 [5432/TCP] as db", "203.0.113.9", 6, 5432, "allowed rule by db"),
    ("other-port", "s/p: allow 203.0.113.0/24 [5432/TCP]", "203.0.113.9", 6, 80, "denied no-rule"),
    ("other-protocol", "s/p: allow 203.0.113.0/24 [5432/TCP]", "203.0.113.9", 17, 5432, "denied no-rule"),
    ("outside", "s/p: allow 203.0.113.0/24", "203.0.114.0", 6, 80, "denied no-rule"),
    ("last-address", "s/p: allow 203.0.113.0/24 as r", "203.0.113.255", 6, 80, "allowed rule by r"),
    ("single", "s/p: allow 198.51.100.7 as r", "198.51.100.7", 132, 1, "allowed rule by r"),
    ("no-ports-is-every-protocol", "s/p: allow 198.51.100.7 as r", "198.51.100.7", 47, -1, "allowed rule by r"),
    ("ipv6", "s/p: allow 2001:db8::/32 as r", "2001:db8:ffff::1", 6, 80, "allowed rule by r"),
    ("families-apart", "s/p: allow 0.0.0.0/0", "2001:db8::1", 6, 80, "denied no-rule"),
    ("icmp", "s/p: allow 0.0.0.0/0 ::/0 [*/ICMP] as ping", "203.0.113.9", 1, -1, "allowed rule by ping"),
    ("icmpv6", "s/p: allow 0.0.0.0/0 ::/0 [*/ICMP] as ping", "2001:db8::1", 58, -1, "allowed rule by ping"),
    (
        "deny-wins",
        "s/p: allow 203.0.113.0/24; deny 203.0.113.66 as no",
        "203.0.113.66",
        6,
        80,
        "denied deny-rule by no",
    ),
    (
        "deny-larger-block-wins",
        "s/p: allow 203.0.113.66; deny 203.0.113.0/24 as no",
        "203.0.113.66",
        6,
        80,
        "denied deny-rule by no",
    ),
    (
        "deny-on-other-port",
        "s/p: allow 203.0.113.0/24 as r; deny 203.0.113.66 [25/TCP]",
        "203.0.113.66",
        6,
        80,
        "allowed rule by r",
    ),
    (
        "deny-on-this-port",
        "s/p: allow 203.0.113.0/24; deny 203.0.113.66 [25/TCP] as no",
        "203.0.113.66",
        6,
        25,
        "denied deny-rule by no",
    ),
    (
        "smallest-block-is-named",
        "s/a: allow 0.0.0.0/0 as all | s/b: allow 203.0.113.0/24 as near",
        "203.0.113.1",
        6,
        80,
        "allowed rule by near",
    ),
    ("some-port", "s/p: allow 203.0.113.0/24 [443/TCP] as r", "203.0.113.1", 6, -1, "allowed rule by r"),
    ("some-port-of-another-protocol", "s/p: allow 203.0.113.0/24 [443/TCP]", "203.0.113.1", 17, -1, "denied no-rule"),
    (
        "some-port-all-denied",
        "s/p: allow 203.0.113.0/24 [443/TCP]; deny 203.0.113.1 [1-1000/TCP] as no",
        "203.0.113.1",
        6,
        -1,
        "denied deny-rule by no",
    ),
    (
        "some-port-left",
        "s/p: allow 203.0.113.0/24 [80/TCP, 443/TCP] as r; deny 203.0.113.1 [80/TCP]",
        "203.0.113.1",
        6,
        -1,
        "allowed rule by r",
    ),
    ("in-cluster", "s/p:", "10.96.0.10", 6, 443, "allowed in-cluster"),
    ("in-cluster-ipv6", "s/p:", "fd00:10::a", 6, 443, "allowed in-cluster"),
    ("in-cluster-denied", "s/p: deny 10.96.0.1 as no", "10.96.0.1", 6, 443, "denied deny-rule by no"),
    ("in-cluster-denied-on-a-port", "s/p: deny 10.96.0.1 [443/TCP] as no", "10.96.0.1", 6, 80, "allowed in-cluster"),
    ("names-allow-no-address", "s/p: allow *", "203.0.113.9", 6, 80, "denied no-rule"),
    (
        "audited-deny",
        "s/p: allow 203.0.113.0/24 | s/q audit: deny 203.0.113.9 as no",
        "203.0.113.9",
        6,
        80,
        "would-deny deny-rule by no",
    ),
    ("audited-allow", "s/p: | s/q audit: allow 203.0.113.9 as yes", "203.0.113.9", 6, 80, "would-allow rule by yes"),
    ("audit-only", "s/q audit: allow 203.0.113.9 as yes", "203.0.113.8", 6, 80, "would-deny no-rule"),
]


@pytest.mark.parametrize(
    ("policies", "address", "protocol", "port", "expected"), [pytest.param(*case[1:], id=case[0]) for case in ADDRESSES]
)
def test_address(policies: str, address: str, protocol: int, port: int, expected: str) -> None:
    """The verdict for an address that is dialled without a name; it opens no grant."""
    decision = judge_of(*world(policies)).judge_address(packed(address), protocol, port)
    by = f" by {decision.rule}" if decision.policy else ""
    assert f"{decision.verdict.value} {decision.reason.value}{by}" == expected
    assert (decision.ports, decision.allow_private) == ((), False)


# case, names the address was known by, policies, what is decided of 203.0.113.9:443/TCP and by which rule
FLOWS = [
    (
        "address-rule-speaks-first",
        "a.example",
        "s/p: allow a.example; deny 203.0.113.9 as no",
        "denied deny-rule by no",
    ),
    ("no-name", "", "s/p: allow a.example", "denied no-rule"),
    ("name-denied", "a.example", "s/p: deny a.example as no", "denied deny-rule by no"),
    ("name-allowed-on-port", "a.example", "s/p: allow a.example [443/TCP] as yes", "allowed rule by yes"),
    ("name-allowed-on-another-port", "a.example", "s/p: allow a.example [80/TCP]", "denied no-rule"),
    ("name-denied-on-this-port", "a.example", "s/p: allow a.example; deny * [443/TCP] as no", "denied deny-rule by no"),
    (
        "one-allowed-name-suffices",
        "b.example a.example",
        "s/p: allow a.example as yes; deny b.example",
        "allowed rule by yes",
    ),
    ("audited-name", "a.example", "s/p: | s/q audit: allow a.example as yes", "would-allow rule by yes"),
    ("audit-only-name", "a.example", "s/q audit: deny a.example as no", "would-deny deny-rule by no"),
]


@pytest.mark.parametrize(("names", "policies", "expected"), [pytest.param(*case[1:], id=case[0]) for case in FLOWS])
def test_flow(names: str, policies: str, expected: str) -> None:
    """A flow: what address rules say, else what the names it was known by would say."""
    found = [Name(name) for name in names.split()]
    decision = judge_of(*world(policies)).judge_destination(found, packed("203.0.113.9"), 6, 443)
    by = f" by {decision.rule}" if decision.policy else ""
    assert f"{decision.verdict.value} {decision.reason.value}{by}" == expected


@pytest.mark.parametrize(
    ("policies", "enforced", "filters"),
    [
        pytest.param("s/p:", True, True, id="enforced-filter"),
        pytest.param("s/p resolve:", True, False, id="enforced-resolve"),
        pytest.param("s/p resolve: | s/q:", True, True, id="one-filters"),
        pytest.param("s/p audit:", False, False, id="audit-only"),
        pytest.param("s/p audit: | s/q resolve:", True, False, id="audited-filter"),
    ],
)
def test_what_a_subject_enforces(policies: str, enforced: bool, filters: bool) -> None:
    """Audit policies neither enforce nor filter."""
    judge = judge_of(*world(policies))
    assert (judge.enforced, judge.filters_dns) == (enforced, filters)


def test_no_policy_selects_the_pod() -> None:
    """Nobody judges an unselected pod, whatever it asks."""
    judge = Judge(Subject(()), CLUSTER)
    expected = Decision(Verdict.ALLOWED, Reason.UNSELECTED, resolve=True)
    assert judge.judge_name(Name("a.example")) == expected
    assert judge.judge_address(packed("203.0.113.1"), 6, 1) == expected
    assert judge.judge_destination([Name("a.example")], packed("203.0.113.1"), 6, 1) == expected
    assert (judge.enforced, judge.filters_dns) == (False, False)


def test_in_cluster_addresses_enforced() -> None:
    """With `in_cluster: Enforce` addresses of the cluster need a rule like any other."""
    judge = judge_of(*world("s/p: allow 10.96.0.1 [443/TCP]"), facts=CLUSTER_ENFORCED)
    assert judge.judge_address(packed("10.96.0.1"), 6, 443).verdict is Verdict.ALLOWED
    assert judge.judge_address(packed("10.96.0.2"), 6, 443).reason is Reason.NO_RULE


def test_what_is_remembered_does_not_grow_with_questions() -> None:
    """A flood of random names below a wildcard, or below nothing, leaves one decision each."""
    judge = judge_of(*world("s/p: allow *.example"))
    for number in range(1000):
        judge.judge_name(Name(f"x{number}.a.example"))
        judge.judge_name(Name(f"x{number}.test"))
    assert len(judge._below) + len(judge._exact) == 2
