"""What is suggested: readable, valid, as small as what was seen, and allowing all of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from authoring_samples import API, FACTS, JOB, WEB, compiled, dns, flow, replayed, suggested
from hypothesis import given, settings
from hypothesis import strategies as st

from egressd.authoring import Change, read_line
from egressd.authoring.page import port_words, scalar
from egressd.authoring.seen import Dropped, Flow, Query, canonical
from egressd.model import ANY_PORT, PodIdentity, Policy
from egressd.names import Name
from egressd.policy.ports import point, union
from egressd.schema.words import read_spans, registrable, registrable_under, spans_strangers


def peers(policy: Policy) -> dict[str, int]:
    """The patterns and addresses that a policy allows, with the number of port spans of their rule."""
    found: dict[str, int] = {}
    for rule in policy.allow:
        spans = 0 if rule.ports == ANY_PORT else len(rule.ports)
        found |= {str(pattern): spans for pattern in rule.patterns}
        found |= {".".join(map(str, block.first)): spans for block in rule.blocks}
    return found


def one(lines: list[bytes], **how: object) -> Policy:
    """The only policy that is suggested for the lines, checked."""
    policies, problems = compiled(suggested(lines, **how))  # type: ignore[arg-type]  # passed on as given
    assert problems == []
    (policy,) = policies.values()
    return policy


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([dns("api.example.com", "192.0.2.1")], {"api.example.com": 0}, id="no flow: every port"),
        pytest.param(
            [dns("a.example", verdict="would-deny", reason="no-rule"), flow("192.0.2.1", 443, 6, "a.example")],
            {"a.example": 1},
            id="flows tell the ports",
        ),
        pytest.param(
            [dns("a.example"), flow("192.0.2.1", 80, 6, "a.example")],
            {"a.example": 0},
            id="allowed before: flows need not be all recorded",
        ),
        pytest.param(
            [dns("a.example"), flow("192.0.2.1", 80, 6, "a.example", verdict="allowed", reason="rule")],
            {"a.example": 1},
            id="allowed flows recorded: ports are known",
        ),
        pytest.param([flow("198.51.100.7", 123, 17)], {"198.51.100.7": 1}, id="an address without a name"),
        pytest.param([flow("198.51.100.7", -1, 1)], {"198.51.100.7": 2}, id="ICMP is both"),
        pytest.param([flow("198.51.100.7", -1, 47)], {"198.51.100.7": 0}, id="GRE: no word for it, every port"),
        pytest.param(
            [dns("a.example"), dns("db.shop.svc.cluster.local"), dns("a.example.svc.cluster.local", search=True)],
            {"a.example": 0},
            id="in-cluster names and noise",
        ),
        pytest.param([dns("a.example"), flow("10.244.3.4", 80)], {"a.example": 0}, id="in-cluster flows"),
        pytest.param([dns("a.example"), dns("a.b.example", rcode="NXDOMAIN")], {"a.example": 0}, id="absent"),
        pytest.param(
            [dns("a.example"), dns("b.example", verdict="denied", reason="no-rule", rcode="NXDOMAIN")],
            {"a.example": 0},
            id="denied",
        ),
        pytest.param([dns("a.example"), dns("q\\046q.example")], {"a.example": 0}, id="no policy can spell it"),
    ],
)
def test_what_is_allowed(lines: list[bytes], expected: dict[str, int]) -> None:
    """Names, addresses and whether their ports are told."""
    assert peers(one(lines)) == expected


def test_denied_names_only_on_request() -> None:
    """With a word about it in the comment."""
    lines = [dns("b.example", verdict="denied", reason="no-rule", rcode="NXDOMAIN")]
    assert suggested(lines) == ""
    assert "- b.example  # 1 query, denied so far" in suggested(lines, denied=True)


def test_private_answers_need_saying() -> None:
    """A name that led to a private address is allowed to, in a rule of its own; loopback is only told."""
    policy = one([dns("db.corp.example", "10.1.2.3"), dns("a.example", "192.0.2.1")])
    assert {str(rule.patterns[0]): rule.allow_private for rule in policy.allow} == {
        "db.corp.example": True,
        "a.example": False,
    }
    assert "Answers held 127.0.0.1, which are never granted." in suggested([dns("a.example", "127.0.0.1")])


def test_shared_accounts_are_told() -> None:
    """Records hold no labels: a policy selects by account, and says who else is selected."""
    text = suggested([dns("a.example"), dns("b.example", pod=API), dns("c.example", pod=JOB)])
    policies, problems = compiled(text)
    assert problems == []
    assert list(policies) == [
        "batch/suggested-pod-job-0",
        "shop/suggested-deployment-api",
        "shop/suggested-deployment-web",
    ]
    assert policies["batch/suggested-pod-job-0"].subject.service_accounts == ("default",)
    assert "shared with Deployment/web: this policy selects those pods too" in text.replace("\n# ", " ")


def test_a_policy_in_the_policy_namespace_stays_there() -> None:
    """Without a namespaceSelector it would be a cluster policy for every pod."""
    policy = one([dns("a.example", pod=PodIdentity("egressd-system", "x", "", "x", ""))])
    assert policy.subject.namespaces is not None
    assert policy.subject.namespaces.labels == (("kubernetes.io/metadata.name", "egressd-system"),)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.cdn.example.com", "b.cdn.example.com", "c.cdn.example.com"], ["*.cdn.example.com"]),
        (["a.cdn.example.com", "b.cdn.example.com"], ["a.cdn.example.com", "b.cdn.example.com"]),
        (["a.x.test.com", "b.x.test.com", "d.x.test.com", "x.test.com"], ["*.x.test.com", "x.test.com"]),
        (["a.co.uk", "b.co.uk", "c.co.uk"], ["a.co.uk", "b.co.uk", "c.co.uk"]),
        (["a.github.io", "b.github.io", "c.github.io"], ["a.github.io", "b.github.io", "c.github.io"]),
        (["a.example", "b.example", "c.example"], ["a.example", "b.example", "c.example"]),
        ([f"{one}.amazonaws.com" for one in "abc"], [f"{one}.amazonaws.com" for one in "abc"]),
    ],
)  # fmt: skip
def test_folding(names: list[str], expected: list[str]) -> None:
    """Three siblings make a wildcard, but never at or above a public suffix, nor under a single label."""
    assert sorted(peers(one([dns(name) for name in names], fold=3))) == sorted(expected)
    assert sorted(peers(one([dns(name) for name in names]))) == sorted(names)


@pytest.mark.parametrize(
    ("domain", "strangers"),
    [("com", True), ("uk", True), ("co.uk", True), ("amazonaws.com", True), ("nowhere", True), ("example.com", False)],
)
def test_whose_names_a_wildcard_covers(domain: str, strangers: bool) -> None:
    """Public suffixes, what lies above one, and single labels."""
    assert spans_strangers(Name(domain)) is strangers


SUFFIXES = ["com", "example", "uk", "co.uk", "ck", "www.ck", "kobe.jp", "city.kobe.jp", "amazonaws.com", "github.io"]


@given(
    st.lists(st.sampled_from(["a", "www", "city", "s3", "eu-west-1"]), max_size=4),
    st.sampled_from(SUFFIXES),
    st.sampled_from(["b", "www", "city", "s3"]),
)
def test_the_domain_of_all_names_under_one(labels: list[str], suffix: str, label: str) -> None:
    """Where it is known at once, it is the domain of each of them."""
    parent = ".".join([*labels, suffix])
    assert registrable_under(parent) in {"", registrable(f"{label}.{parent}")}
    assert labels[1:] == [] or suffix == "amazonaws.com" or registrable_under(parent)


def test_the_page_is_golden() -> None:
    """As a person reads it."""
    lines = [
        *[dns("api.example.com", "192.0.2.1", verdict="would-deny", reason="no-rule")] * 3,
        flow("192.0.2.1", 443, 6, "api.example.com"),
        flow("192.0.2.1", 8443, 6, "api.example.com"),
        dns("s3.example", "192.0.2.9"),
    ]
    assert (
        suggested(lines, mode="Audit")
        == """\
---
# Deployment/web, 1 pod: 4 queries and 2 flows, 2001-09-09T01:46:40 to 2001-09-09T01:46:40 UTC.
apiVersion: v1
kind: ConfigMap
metadata:
  name: suggested-deployment-web
  namespace: shop
  labels: {egressd.io/policy: "true"}
data:
  policy.yaml: |
    subject:
      serviceAccounts: [web]
    mode: Audit
    allow:
    - to:
      - api.example.com  # 3 queries, 2 flows
      ports: [443/TCP, 8443/TCP]
    # Ports were not seen, or not all of them: every port is open. Add 'ports' if you can.
    - to:
      - s3.example  # 1 query
"""
    )


# ------------------------------------------------------------------------------------------------ properties

LABELS = st.sampled_from(["a", "b", "no", "on", "1", "x-y", "_dmarc", "xn--mnchen-3ya", "é", "q\\046q"])
TOPS = st.sampled_from(["example", "example.com", "co.uk", "github.io", "svc.cluster.local", "0x1f.example", "7"])
NAMES = st.builds(lambda labels, top: ".".join([*labels, top]), st.lists(LABELS, max_size=3), TOPS)
ADDRESSES = st.sampled_from(["192.0.2.1", "10.1.2.3", "10.244.0.9", "2001:db8::1", "fd00::1", "::ffff:10.1.2.3"])
PODS = st.sampled_from([WEB, API, JOB, replace(WEB, name="web-1", service_account="other")])
VERDICTS = st.sampled_from(["allowed", "would-deny", "denied", "would-allow"])
REASONS = st.sampled_from(["rule", "no-rule", "deny-rule", "unselected", "in-cluster", "rebinding"])
QUERIES = st.builds(
    lambda name, addresses, pod, verdict, reason: dns(name, *addresses, pod=pod, verdict=verdict, reason=reason),
    NAMES, st.lists(ADDRESSES, max_size=2), PODS, VERDICTS, REASONS,
)  # fmt: skip
DIALLED = st.sampled_from(["192.0.2.1", "10.1.2.3", "10.244.0.9", "2001:db8::1", "fd00::1"])
PORTS = st.sampled_from([(443, 6), (80, 6), (53, 17), (0, 6), (-1, 1), (-1, 58), (-1, 47), (9, 132)])
FLOWS = st.builds(
    lambda address, port, names, pod, verdict, reason: flow(
        address, *port, *names, pod=pod, verdict=verdict, reason=reason
    ),
    DIALLED, PORTS, st.lists(NAMES, max_size=2), PODS, VERDICTS, REASONS,
)  # fmt: skip


@given(st.lists(QUERIES | FLOWS, max_size=12), st.sampled_from([0, 2]), st.booleans(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_the_policy_allows_all_that_it_was_learned_from(
    lines: list[bytes], fold: int, denied: bool, enforce: bool
) -> None:
    """It passes `check` without a word, and nothing that can be spelled and went through is newly denied."""
    facts = replace(FACTS, enforce=enforce)
    policies, problems = compiled(suggested(lines, fold=fold, denied=denied, facts=facts))
    assert problems == []
    replay = replayed(lines, policies, facts)
    denials = [one for one in replay.changes if one.change is Change.NEWLY_DENIED]
    assert [one for one in denials if one.event == "flow" or canonical(one.destination)] == []


@given(st.binary(max_size=200))
def test_any_line_is_a_record_or_nothing(line: bytes) -> None:
    """No line raises."""
    assert isinstance(read_line(line), Query | Flow | Dropped | None)


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"{}", b'{"event":"dns"}', b'{"event":"flow","pod":{"namespace":"a","name":"b"},"verdict":"x"}',
     dns("a.example", reason="rate-limit"), flow("192.0.2.1", 53, 17, reason="foreign-resolver")],
)  # fmt: skip
def test_lines_that_tell_nothing(line: bytes) -> None:
    """No record, or one that no rule would change."""
    assert read_line(line) is None


@given(st.lists(st.tuples(st.sampled_from([6, 17, 132]), st.integers(1, 65535)), min_size=1, max_size=8))
def test_ports_are_written_as_they_are_read(wanted: list[tuple[int, int]]) -> None:
    """What `port_words` writes, the schema reads as the same set."""
    ports = union(*(point(protocol, port) for protocol, port in wanted))
    assert union(*(read_spans(word) for word in port_words(ports))) == ports


@given(st.text(max_size=30))
def test_any_text_is_one_scalar(text: str) -> None:
    """Whatever was seen stays text in YAML."""
    import yaml

    assert yaml.safe_load(f"[{scalar(text)}]") == [text]
