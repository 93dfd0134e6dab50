"""Selectors of suggested policies: the labels that tell a workload apart, and the service account where none do."""

from __future__ import annotations

import pytest
from authoring_samples import API, JOB, WEB, compiled, dns, suggested
from hypothesis import given
from hypothesis import strategies as st

from egressd.authoring.selecting import PASSING, gathered, selector
from egressd.model import PodIdentity

KEY = ("shop", "Deployment/web")
NAME, INSTANCE, PART = ("app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component")


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        pytest.param([{"app": "web"}], [], {"app": "web"}, id="alone"),
        pytest.param([{"app": "web"}], [{"app": "api"}], {"app": "web"}, id="another application"),
        pytest.param(
            [{"app": "web", "pod-template-hash": "a"}, {"app": "web", "pod-template-hash": "b"}],
            [],
            {"app": "web"},
            id="two rollouts",
        ),
        pytest.param(
            [{NAME: "shop", INSTANCE: "blue", PART: "web", "helm.sh/chart": "shop-1"}],
            [{NAME: "shop", INSTANCE: "blue", PART: "api"}],
            {INSTANCE: "blue", NAME: "shop", PART: "web"},
            id="a chart's",
        ),
        pytest.param(
            [{"app": "web", "track": "canary"}],
            [{"app": "web", "track": "stable"}],
            {"app": "web", "track": "canary"},
            id="only an odd label differs",
        ),
        pytest.param([{"app": "web"}], [{"app": "web", "extra": "1"}], {}, id="others have them all"),
        pytest.param([{"app": "web"}, {"app": "web2"}], [], {}, id="nothing in common"),
        pytest.param([{"pod-template-hash": "a"}], [], {}, id="nothing that lasts"),
        pytest.param([{}], [], {}, id="no label"),
        pytest.param([], [{"app": "web"}], {}, id="not known"),
    ],
)
def test_cases(own: list[dict[str, str]], others: list[dict[str, str]], expected: dict[str, str]) -> None:
    """What is taken of a workload's labels, beside others of its namespace."""
    assert selector(*KEY, {KEY: own, ("shop", "Deployment/api"): others}) == expected


labels = st.dictionaries(
    st.sampled_from(["app", "track", NAME, "pod-template-hash"]), st.sampled_from(["a", "b"]), max_size=3
)


@given(st.lists(labels, max_size=4), st.lists(labels, max_size=4))
def test_exactly_the_workload(own: list[dict[str, str]], others: list[dict[str, str]]) -> None:
    """A selector has every pod of its own and none of the others, in any namespace but for that of another."""
    pods = {KEY: own, ("shop", "Job/other"): others, ("elsewhere", "Deployment/web"): own}
    wanted = selector(*KEY, pods)
    if wanted:
        assert own
        assert all(wanted.items() <= each.items() for each in own)
        assert not any(wanted.items() <= each.items() for each in others)
        assert not PASSING & wanted.keys()


def test_policies_are_selected_by_labels() -> None:
    """Where labels tell, the policy says so and a shared account needs no warning; elsewhere it is by account."""
    lines = [dns("a.example"), dns("b.example", pod=API), dns("c.example", pod=JOB)]
    pods = gathered([(WEB, {"app": "web"}), (API, {"app": "true"}), (PodIdentity("batch", "x"), {"app": "x"})])
    text = suggested(lines, pods=pods)
    assert "podSelector: {matchLabels: {app: web}}" in text
    assert 'podSelector: {matchLabels: {app: "true"}}' in text
    assert text.count("serviceAccounts:") == 1
    assert "is shared with" not in text
    policies, problems = compiled(text)
    assert problems == []
    chosen = {name: policy.subject for name, policy in policies.items()}
    assert dict(chosen["shop/suggested-deployment-web"].pods.labels) == {"app": "web"}
    assert chosen["shop/suggested-deployment-web"].service_accounts == ()
    assert chosen["batch/suggested-pod-job-0"].service_accounts == ("default",)


def test_labels_are_written_so_that_yaml_takes_them_for_text() -> None:
    """Keys and values come back as they were, and what Kubernetes would not have as a label is not written."""
    known = {NAME: "1e3", INSTANCE: "no", PART: "null"}
    odd = {"app": "c, d: {", "on }": "x"}
    policies, problems = compiled(suggested([dns("a.example")], pods=gathered([(WEB, known | odd)])))
    assert problems == []
    (policy,) = policies.values()
    assert dict(policy.subject.pods.labels) == known
