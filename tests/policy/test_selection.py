"""Whom a policy selects (policy.md, Where policies live)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressd.model import LabelRequirement, LabelSelector, Policy, SubjectSelector
from egressd.policy import select, selector_matches

SYSTEM = "egressd-system"


def expression(key: str, operator: str, *values: str) -> LabelSelector:
    return LabelSelector(expressions=(LabelRequirement(key, operator, values),))


@pytest.mark.parametrize(
    ("selector", "labels", "matches"),
    [
        pytest.param(LabelSelector(), {}, True, id="empty-selects-everything"),
        pytest.param(LabelSelector((("app", "web"),)), {"app": "web", "tier": "front"}, True, id="label"),
        pytest.param(LabelSelector((("app", "web"),)), {"app": "api"}, False, id="other-value"),
        pytest.param(LabelSelector((("app", "web"),)), {}, False, id="label-missing"),
        pytest.param(LabelSelector((("app", "web"), ("tier", "x"))), {"app": "web"}, False, id="all-labels-must-hold"),
        pytest.param(expression("tier", "In", "front", "edge"), {"tier": "edge"}, True, id="in"),
        pytest.param(expression("tier", "In", "front", "edge"), {"tier": "back"}, False, id="not-among"),
        pytest.param(expression("tier", "In", "front"), {}, False, id="in-needs-the-label"),
        pytest.param(expression("tier", "NotIn", "front"), {"tier": "front"}, False, id="notin"),
        pytest.param(expression("tier", "NotIn", "front"), {}, True, id="notin-holds-without-the-label"),
        pytest.param(expression("tier", "Exists"), {"tier": ""}, True, id="exists-even-empty"),
        pytest.param(expression("tier", "Exists"), {}, False, id="exists-missing"),
        pytest.param(expression("tier", "DoesNotExist"), {}, True, id="does-not-exist"),
        pytest.param(expression("tier", "DoesNotExist"), {"tier": "x"}, False, id="exists-after-all"),
        pytest.param(
            LabelSelector((("app", "web"),), expression("tier", "Exists").expressions),
            {"app": "web"},
            False,
            id="labels-and-expressions-both",
        ),
    ],
)
def test_selector(selector: LabelSelector, labels: Mapping[str, str], matches: bool) -> None:
    """Selectors mean what they mean in Kubernetes."""
    assert selector_matches(selector, labels) is matches


OWN = Policy("shop/web", "shop", SubjectSelector(pods=LabelSelector((("app", "web"),))))
EVERYWHERE = Policy("egressd-system/base", SYSTEM, SubjectSelector(namespaces=LabelSelector()))
ABSENT = Policy("egressd-system/all", SYSTEM)
TEAMS = Policy("egressd-system/teams", SYSTEM, SubjectSelector(namespaces=LabelSelector((("team", "a"),))))
NAMED = Policy(
    "egressd-system/named",
    SYSTEM,
    SubjectSelector(namespaces=LabelSelector((("kubernetes.io/metadata.name", "shop"),))),
)
ACCOUNTS = Policy("shop/acc", "shop", SubjectSelector(service_accounts=("web", "web-canary")))
DEFAULT = Policy("shop/default", "shop", SubjectSelector(service_accounts=("default",)))
REACHING = Policy("shop/reach", "shop", SubjectSelector(namespaces=LabelSelector()))


@pytest.mark.parametrize(
    ("policy", "namespace", "namespace_labels", "labels", "account", "selected"),
    [
        pytest.param(OWN, "shop", {}, {"app": "web"}, "x", True, id="own-namespace"),
        pytest.param(OWN, "blog", {}, {"app": "web"}, "x", False, id="other-namespace"),
        pytest.param(OWN, "shop", {}, {"app": "api"}, "x", False, id="other-pod"),
        pytest.param(EVERYWHERE, "blog", {}, {}, "x", True, id="cluster-policy-empty-selector"),
        pytest.param(ABSENT, "blog", {}, {}, "x", True, id="cluster-policy-absent-selector"),
        pytest.param(TEAMS, "shop", {"team": "a"}, {}, "x", True, id="namespace-label"),
        pytest.param(TEAMS, "shop", {"team": "b"}, {}, "x", False, id="namespace-label-differs"),
        pytest.param(NAMED, "shop", {}, {}, "x", True, id="namespace-known-by-name-only"),
        pytest.param(NAMED, "blog", {}, {}, "x", False, id="another-name"),
        pytest.param(ACCOUNTS, "shop", {}, {}, "web-canary", True, id="service-account"),
        pytest.param(ACCOUNTS, "shop", {}, {}, "batch", False, id="other-account"),
        pytest.param(DEFAULT, "shop", {}, {}, "", True, id="no-account-is-default"),
        pytest.param(REACHING, "blog", {}, {}, "x", False, id="a-team-cannot-write-rules-for-others"),
    ],
)
def test_who_is_selected(
    policy: Policy,
    namespace: str,
    namespace_labels: Mapping[str, str],
    labels: Mapping[str, str],
    account: str,
    selected: bool,
) -> None:
    """Own namespace, cluster policies, labels and accounts, each as policy.md says."""
    found = select([policy], namespace, namespace_labels, labels, account, SYSTEM)
    assert found == ((policy,) if selected else ())


@given(st.permutations([replace(OWN, subject=SubjectSelector()), EVERYWHERE, ABSENT, DEFAULT]))
def test_sorted_by_name_whatever_the_order(policies: list[Policy]) -> None:
    """Equal sets of policies make equal subjects, however they were read."""
    found = select(policies, "shop", {}, {}, "", SYSTEM)
    assert [policy.name for policy in found] == [
        "egressd-system/all",
        "egressd-system/base",
        "shop/default",
        "shop/web",
    ]
