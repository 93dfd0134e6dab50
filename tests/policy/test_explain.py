"""What `explain` tells a person, word for word."""

from __future__ import annotations

import pytest
from policy_samples import CLUSTER, CLUSTER_ENFORCED, judge_of, packed, world

from egressd.model import Subject
from egressd.names import Name
from egressd.policy import ClusterFacts, Judge


def test_allowed_name() -> None:
    """Policies, then rules, then the verdict and what it opens."""
    judge = judge_of(
        *world("shop/web: allow *.example [443/TCP] as object-storage; allow b.test; deny up.example as no-uploads")
    )
    assert judge.explain_name(Name("s3.example")).steps == (
        "policy shop/web (Enforce, dns: Filter) selects the pod",
        'deny rule "no-uploads" of shop/web does not match s3.example',
        'allow rule "object-storage" of shop/web matches s3.example by *.example on 443/TCP',
        "1 other allow rule does not match",
        (
            'verdict: allowed (rule) by rule "object-storage" of shop/web'
            "; what it resolves to is opened on 443/TCP, private addresses excepted"
        ),
    )


def test_ports_that_a_deny_rule_takes() -> None:
    """The arithmetic of deny rules with ports is told."""
    judge = judge_of(*world("shop/web: allow a.example [80/TCP, 443/TCP] as web private; deny * [80/TCP] as plain"))
    assert judge.explain_name(Name("a.example")).steps[1:] == (
        'deny rule "plain" of shop/web matches a.example by * on 80/TCP',
        'allow rule "web" of shop/web names a.example on 80/TCP, 443/TCP',
        "deny rules take out 80/TCP: 443/TCP stays allowed",
        'verdict: allowed (rule) by rule "web" of shop/web; what it resolves to is opened on 443/TCP',
    )


def test_audited_policies_beside_enforced_ones() -> None:
    """Both readings are told where they can differ."""
    judge = judge_of(*world("shop/web: allow a.example as web | sys/base audit: deny a.example as base"))
    assert judge.explain_name(Name("a.example")).steps == (
        "policy shop/web (Enforce, dns: Filter) selects the pod",
        "policy sys/base (Audit, dns: Filter) selects the pod",
        'audited deny rule "base" of sys/base names a.example on every port',
        'allow rule "web" of shop/web names a.example on every port',
        'the enforced policies alone: allowed (rule) by rule "web" of shop/web',
        'if the audited ones were enforced too: denied (deny-rule) by rule "base" of sys/base',
        (
            'verdict: would-deny (deny-rule) by rule "base" of sys/base'
            "; it goes through, the audited policies would stop it"
            "; what it resolves to is opened on every port, private addresses excepted"
        ),
    )


def test_address() -> None:
    """A block is named, and whether its ports include the one asked for."""
    judge = judge_of(
        *world("shop/web: allow 203.0.113.0/24 [5432/TCP] as db; deny 203.0.113.66 as bad; deny 198.51.100.7")
    )
    assert judge.explain_address(packed("203.0.113.9"), 6, 5432).steps[1:] == (
        "none of the 2 deny rules matches 203.0.113.9",
        'allow rule "db" of shop/web covers 203.0.113.9 by 203.0.113.0/24 and its ports (5432/TCP) include 5432/TCP',
        'verdict: allowed (rule) by rule "db" of shop/web',
    )
    assert judge.explain_address(packed("203.0.113.9"), 6, 80).steps[2:] == (
        (
            'allow rule "db" of shop/web covers 203.0.113.9 by 203.0.113.0/24'
            ", but its ports (5432/TCP) do not include 80/TCP"
        ),
        "verdict: denied (no-rule)",
    )
    assert judge.explain_address(packed("203.0.113.66"), 6, -1).steps[1] == (
        'deny rule "bad" of shop/web covers 203.0.113.66 by 203.0.113.66 and its ports (any) include some port of TCP'
    )


@pytest.mark.parametrize(
    ("policies", "facts", "name", "step"),
    [
        pytest.param(
            "s/p:",
            CLUSTER,
            "api.shop.svc.cluster.local",
            "api.shop.svc.cluster.local is inside the cluster, which is open (in_cluster: Allow)",
            id="in-cluster",
        ),
        pytest.param(
            "s/p:",
            CLUSTER_ENFORCED,
            "a.svc.cluster.local",
            "a.svc.cluster.local is inside the cluster, and judged like any other destination (in_cluster: Enforce)",
            id="in-cluster-enforced",
        ),
        pytest.param(
            "s/p:",
            CLUSTER,
            "a.example",
            "verdict: denied (no-rule); the name is not resolved (dns: Filter)",
            id="filter",
        ),
        pytest.param(
            "s/p resolve:",
            CLUSTER,
            "a.example",
            "verdict: denied (no-rule); the name resolves (dns: Resolve), its addresses stay closed",
            id="resolve",
        ),
        pytest.param("s/p:", CLUSTER, "a.example", "the pod's policies have no allow rule", id="no-rules-at-all"),
        pytest.param(
            "s/p audit:",
            CLUSTER,
            "a.example",
            "only Audit policies select the pod: nothing is closed, what they would do is reported",
            id="audit-only",
        ),
        pytest.param(
            "s/p: allow a.example [443/TCP]; deny * [1-1000/TCP]",
            CLUSTER,
            "a.example",
            "deny rules take out 443/TCP: nothing stays allowed",
            id="nothing-left",
        ),
    ],
)
def test_step(policies: str, facts: ClusterFacts, name: str, step: str) -> None:
    """Each circumstance has its sentence."""
    assert step in judge_of(*world(policies), facts=facts).explain_name(Name(name)).steps


def test_unselected() -> None:
    """A pod that no policy selects needs two sentences."""
    assert Judge(Subject(()), CLUSTER).explain_name(Name("a.example")).steps == (
        "no policy selects the pod: it is not judged",
        "verdict: allowed (unselected)",
    )


def test_a_thousand_policies_fit_a_screen() -> None:
    """Every list is cut and what is left out is counted."""
    judge = judge_of(*world(" | ".join(f"s/p{n}: allow *.example as a; deny x{n}.example as d" for n in range(1000))))
    steps = judge.explain_name(Name("x1.example")).steps
    assert len(steps) < 20
    assert "995 more policies select the pod" in steps
    assert "999 other deny rules do not match" in steps
    assert "995 more allow rules match" in steps
