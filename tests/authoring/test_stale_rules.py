"""Which rules nothing has used: never one that may have been, and why the others are told."""

from __future__ import annotations

from typing import Any

import pytest
from authoring_samples import compiled
from hypothesis import given
from hypothesis import strategies as st

from egressd.authoring.stale import Finding, Sighting, Stale, State, Window
from egressd.model import Block, Policy, Subject
from egressd.names import Name
from egressd.policy import ClusterFacts, Judge, block_text

NOW = 3_000_000.0
MONTH = Window(NOW - 2_592_000, NOW - 2_592_000, flows=NOW - 2_592_000)


def policies(**texts: str) -> dict[str, Policy]:
    """Policies of namespace `shop` by name; `cluster` is one of the policy namespace."""
    documents = [
        f"""
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: {name}, namespace: {"egressd-system" if name == "cluster" else "shop"}, labels: {{egressd.io/policy: "true"}}}}
data:
  policy.yaml: |
    {text.strip().replace(chr(10), chr(10) + "    ")}
"""  # noqa: E501 - one line of YAML
        for name, text in texts.items()
    ]
    found, problems = compiled("".join(documents))
    assert not problems
    return found


def there(found: dict[str, Policy], since: float = NOW - 5_184_000) -> dict[tuple[str, str], int]:
    """All peers, as if they had been there for long."""
    return {
        (policy.name, f"{rule.action} {block_text(peer) if isinstance(peer, Block) else peer}"): int(since)
        for policy in found.values()
        for rule in (*policy.allow, *policy.deny)
        for peer in (*rule.patterns, *rule.blocks)
    }


def seen(name: str, by: str = "shop/web allow[0]", **fields: Any) -> Sighting:
    """An allowed query, unless the fields say otherwise; `by` is POLICY RULE."""
    policy, _, rule = by.partition(" ")
    base: dict[str, Any] = {
        "namespace": "shop",
        "service_account": "web",
        "event": "dns",
        "name": name,
        "verdict": "allowed",
        "reason": "rule",
        "policy": policy,
        "rule": rule,
        "last_seen": int(NOW),
    }
    return Sighting(**(base | fields))


def stale(found: dict[str, Policy], *sightings: Sighting, **changes: Any) -> list[Finding]:
    """What is found; every policy selects a pod unless `pods` says otherwise."""
    judged = Stale(found.values(), "egressd-system")
    for one in sightings:
        judged.see(one)
    fields: dict[str, Any] = {"there": there(found), "pods": dict.fromkeys(found, 1)} | changes
    return judged.findings(Window(MONTH.since, MONTH.observed, **({"flows": MONTH.flows} | fields)))


def told(found: dict[str, Policy], *sightings: Sighting, **changes: Any) -> dict[tuple[str, str], str]:
    """The state of each rule and pattern that is found."""
    return {(one.rule, one.pattern): str(one.state) for one in stale(found, *sightings, **changes)}


WEB = "allow:\n- to: [a.example, b.example, '*.example.com', api.example.com]"
DENIED = {"verdict": "denied", "reason": "deny-rule"}
FLOW = {"event": "flow"}

CASES: dict[str, tuple[dict[str, str], list[Sighting], dict[tuple[str, str], str]]] = {
    "patterns of a rule that is used": (
        {"web": WEB},
        [seen("a.example"), seen("api.example.com")],
        {("allow[0]", "b.example"): "unused", ("allow[0]", "*.example.com"): "shadowed"},
    ),
    "a wildcard that is used beside a closer pattern": (
        {"web": WEB},
        [seen("a.example"), seen("b.example"), seen("www.example.com"), seen("api.example.com")],
        {},
    ),
    "a rule as a whole": (
        {"web": WEB + "\n- to: [c.example, d.example]"},
        [],
        {("allow[0]", ""): "unused", ("allow[1]", ""): "unused"},
    ),
    "would-allow is a use": (
        {"web": "mode: Audit\nallow:\n- to: [a.example]"},
        [seen("a.example", verdict="would-allow")],
        {},
    ),
    "an answer that was refused is a use": (
        {"web": "allow:\n- to: [a.example]"},
        [seen("a.example", verdict="denied", reason="rebinding")],
        {},
    ),
    "so is one that never came": (
        {"web": "allow:\n- to: [a.example]"},
        [seen("a.example", reason="upstream-failed")],
        {},
    ),
    "what no rule allowed is none": (
        {"web": "allow:\n- to: [a.example]"},
        [seen("a.example", "", verdict="denied", reason="no-rule"), seen("a.example", "", reason="unselected")],
        {("allow[0]", ""): "unused"},
    ),
    "another namespace's queries are none": (
        {"web": "allow:\n- to: [a.example]"},
        [seen("a.example", "other/web allow[0]", namespace="other")],
        {("allow[0]", ""): "unused"},
    ),
    "nor are another account's": (
        {"web": "subject: {serviceAccounts: [web]}\nallow:\n- to: [a.example]", "all": "allow:\n- to: [a.example]"},
        [seen("a.example", "shop/all allow[0]", service_account="job")],
        {("allow[0]", ""): "unused"},
    ),
    "the same name in two policies": (
        {"web": "allow:\n- {name: x, to: [a.example]}", "all": "allow:\n- to: [a.example]"},
        [seen("a.example", "shop/all allow[0]")],
        {("x", ""): "shadowed"},
    ),
    "more ports than the rule that decided": (
        {"web": "allow:\n- {to: [a.example], ports: [443/TCP]}\n- {to: ['*'], ports: [8080/TCP]}"},
        [seen("a.example")],
        {},
    ),
    "allowPrivate beside the rule that decided": (
        {"web": "allow:\n- {to: [a.example]}\n- {to: ['*'], allowPrivate: true}"},
        [seen("a.example")],
        {},
    ),
    "a deny rule that denied": (
        {"web": "deny:\n- to: [x.example]"},
        [seen("x.example", "shop/web deny[0]", **DENIED)],
        {},
    ),
    "a deny rule that denied nothing": (
        {"web": "deny:\n- to: [x.example]"},
        [seen("y.example", "shop/all x")],
        {("deny[0]", ""): "unused"},
    ),
    "a deny rule that took ports away": (
        {"web": "allow:\n- to: [a.example]\ndeny:\n- {to: [a.example], ports: [25/TCP]}"},
        [seen("a.example")],
        {},
    ),
    "an allow rule that deny wins over": (
        {"web": "allow:\n- to: [a.example]\ndeny:\n- to: ['*.example', a.example]"},
        [seen("a.example", "shop/web deny[0]", **DENIED)],
        {("allow[0]", ""): "shadowed", ("deny[0]", "*.example"): "shadowed"},
    ),
    "an enforced rule behind an audited deny": (
        {"web": "allow:\n- to: [a.example]", "audit": "mode: Audit\ndeny:\n- {name: x, to: [a.example]}"},
        [seen("a.example", "shop/audit x", verdict="would-deny", reason="deny-rule")],
        {},
    ),
    "a cluster policy": (
        {"cluster": "allow:\n- to: [a.example, b.example]"},
        [seen("a.example", "egressd-system/cluster allow[0]")],
        {("allow[0]", "b.example"): "unused"},
    ),
    "a rule that had another name then": (
        {"web": "allow:\n- {name: new, to: [a.example]}"},
        [seen("a.example", "shop/web old")],
        {},
    ),
    "a policy that had another name then": (
        {"web": "allow:\n- to: [a.example]"},
        [seen("a.example", "shop/old old")],
        {},
    ),
    "addresses": (
        {"web": "allow:\n- to: [198.51.100.0/24, 192.0.2.7, 203.0.113.0/24]"},
        [seen("198.51.100.9", **FLOW), seen("192.0.2.8", "", verdict="denied", reason="no-rule", **FLOW)],
        {("allow[0]", "192.0.2.7"): "unused", ("allow[0]", "203.0.113.0/24"): "unused"},
    ),
    "an address that had a name": (
        {"web": "allow:\n- to: [198.51.100.0/24, 203.0.113.0/24]"},
        [seen("cdn.example", **FLOW)],
        {},
    ),
    "an answer that a denied address took away": (
        {"web": "allow:\n- to: [a.example]\ndeny:\n- to: [203.0.113.66]"},
        [seen("a.example", "shop/web allow[0]", **DENIED)],
        {},
    ),
    "a denied name on the way to an allowed one": (
        {"web": "allow:\n- to: [a.example]\ndeny:\n- to: [x.example]\n- to: [y.example]"},
        [seen("a.example", "shop/web deny[0]", **DENIED)],
        {("allow[0]", ""): "shadowed", ("deny[1]", ""): "unused"},
    ),
    "a flow that had several names": (
        {"web": "allow:\n- to: [a.example, b.example]\n- to: [c.example]"},
        [seen("x.example", **FLOW)],
        {("allow[1]", ""): "unused"},
    ),
    "a name that stands for many": (
        {"web": "allow:\n- to: ['*.tunnel.example', x.tunnel.example, other.example]"},
        [seen("*.tunnel.example")],
        {("allow[0]", "other.example"): "unused"},
    ),
    "a name that stands for all": ({"web": WEB}, [seen("*")], {}),
    "a block that stands for many": (
        {"web": "allow:\n- to: [198.51.100.0/24, 203.0.113.0/24]"},
        [seen("198.51.0.0/16", **FLOW)],
        {("allow[0]", "203.0.113.0/24"): "unused"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_cases(case: str) -> None:
    """Used, shadowed, unused, as policy.md has the verdict."""
    texts, sightings, expected = CASES[case]
    assert told(policies(**texts), *sightings) == expected


def test_addresses_while_flows_are_not_recorded() -> None:
    """Nobody can tell; a deny rule's flows are recorded always."""
    found = policies(web="allow:\n- to: [192.0.2.1, a.example]\ndeny:\n- to: [192.0.2.2]")
    expected = {("allow[0]", "192.0.2.1"): "unobserved", ("allow[0]", "a.example"): "unused", ("deny[0]", ""): "unused"}
    assert told(found, flows=None) == expected
    assert told(found, flows=NOW - 86_400) == expected
    assert told(found)["allow[0]", ""] == "unused"
    assert {one.note for one in stale(found, flows=None) if one.state is State.UNOBSERVED} == {"flows unknown"}


def test_what_is_new() -> None:
    """A peer that came yesterday is not stale since a month; where history is a day old, it is there all the time."""
    found = policies(web="allow:\n- to: [a.example]")
    yesterday = there(found, NOW - 86_400)
    assert told(found, there=yesterday) == {("allow[0]", ""): "unobserved"}
    assert told(found, there={}) == {("allow[0]", ""): "unobserved"}
    judged = Stale(found.values(), "egressd-system")
    (one,) = judged.findings(Window(MONTH.since, NOW - 86_400, there=yesterday, pods={"shop/web": 1}))
    assert one.state is State.UNUSED


def test_a_policy_that_selects_nobody() -> None:
    """It is one finding; with pods that it closes, its rules are."""
    found = policies(web=WEB + "\n- to: [c.example]")
    last = {("shop/web", "allow[1]"): 77}
    assert stale(found, pods={}, last_used=last) == [Finding("shop/web", "", "", State.UNUSED, 77, "selects no pod")]
    assert [one.last_used for one in stale(found, last_used=last)] == [0, 77]


def test_a_policy_without_rules_is_not_told() -> None:
    """It closes everything, and that leaves no trace."""
    assert stale(policies(web="allow: []"), pods={}) == []


# -------------------------------------------------------------------------------------------------- never too much

NAMES = ("a.example", "b.a.example", "c.b.a.example", "x.test.example")
PEERS = st.sampled_from((*NAMES, "*.example", "*.a.example", "*.b.a.example", "*"))
RULES = st.lists(st.lists(PEERS, min_size=1, max_size=3, unique=True), max_size=3)


@given(allow=RULES, deny=RULES, other=RULES, asked=st.lists(st.sampled_from(NAMES), max_size=3))
def test_what_is_unused_may_go(
    allow: list[list[str]], deny: list[list[str]], other: list[list[str]], asked: list[str]
) -> None:
    """Without the peers that are told, every query that was seen is judged as before: allowed stays allowed."""

    def text(allow: list[list[str]], deny: list[list[str]]) -> str:
        lists = {"allow": allow, "deny": deny}
        rules = [
            f"{key}: [{', '.join('{to: ' + repr(list(map(str, to))) + '}' for to in some)}]"
            for key, some in lists.items()
        ]
        return "\n".join(rules)

    found = policies(web=text(allow, deny), other=text(other, []))
    judge = Judge(Subject(tuple(found.values())), ClusterFacts())
    sightings = []
    for name in asked:
        decision = judge.judge_name(Name(name))
        sightings.append(
            seen(name, f"{decision.policy} {decision.rule}", verdict=str(decision.verdict), reason=str(decision.reason))
        )
    useless = [one for one in stale(found, *sightings) if one.state is State.UNUSED]

    def rest(policy: str, kind: str, rules: list[list[str]]) -> list[list[str]]:
        gone = {(one.rule, one.pattern) for one in useless if one.policy == policy}
        return [
            kept
            for number, peers in enumerate(rules)
            if (f"{kind}[{number}]", "") not in gone
            and (kept := [peer for peer in peers if (f"{kind}[{number}]", peer) not in gone])
        ]

    left = policies(
        web=text(rest("shop/web", "allow", allow), rest("shop/web", "deny", deny)),
        other=text(rest("shop/other", "allow", other), []),
    )
    after = Judge(Subject(tuple(left.values())), ClusterFacts())
    for name in asked:
        assert after.judge_name(Name(name)).verdict is judge.judge_name(Name(name)).verdict
