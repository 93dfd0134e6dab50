"""Short ways to write policies in tests, and strategies that draw small worlds where rules meet often."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from hypothesis import strategies as st

from egressd.model import (
    ANY_PORT,
    PROTOCOLS,
    Action,
    Address,
    Block,
    DnsMode,
    Mode,
    Policy,
    Ports,
    PortSpan,
    Rule,
    Subject,
)
from egressd.names import ROOT, Name, Pattern, parse_pattern
from egressd.policy import ClusterFacts, Judge, normalise
from egressd.policy.addresses import cidr


def ports(text: str) -> Ports:
    """`443/TCP, 8000-8100/UDP, */ICMP` as a policy would say it; `any` for all."""
    if text == "any":
        return ANY_PORT
    spans = []
    for part in text.split(", "):
        numbers, _, protocol = part.partition("/")
        first, _, last = ("0-65535" if numbers == "*" else numbers).partition("-")
        spans += [PortSpan(n, n, int(first), int(last or first)) for n in PROTOCOLS[protocol]]
    return normalise(spans)


def rule(action: str, to: str, on: str = "any", name: str = "", private: bool = False) -> Rule:
    """A rule `to` the peers in a text, separated by spaces; its name is the text unless given."""
    patterns: list[Pattern] = []
    blocks: list[Block] = []
    for peer in to.split():
        try:
            blocks.append(cidr(peer))
        except ValueError:
            patterns.append(parse_pattern(peer))
    return Rule(name or to, Action(action), tuple(patterns), tuple(blocks), ports(on), private)


def allow(to: str, on: str = "any", name: str = "", private: bool = False) -> Rule:
    return rule("allow", to, on, name, private)


def deny(to: str, on: str = "any", name: str = "") -> Rule:
    return rule("deny", to, on, name)


def policy(name: str, *rules: Rule, audit: bool = False, resolve: bool = False) -> Policy:
    """A policy of these rules, in the namespace that its name says."""
    return Policy(
        name=name,
        namespace=name.split("/", maxsplit=1)[0],
        mode=Mode.AUDIT if audit else Mode.ENFORCE,
        dns=DnsMode.RESOLVE if resolve else DnsMode.FILTER,
        allow=tuple(one for one in rules if one.action is Action.ALLOW),
        deny=tuple(one for one in rules if one.action is Action.DENY),
    )


_RULE = re.compile(
    r"(?P<action>allow|deny) (?P<to>[^\[]+?)(?: \[(?P<on>.+?)\])?(?: as (?P<name>\S+))?(?P<private> private)?"
)


def world(text: str) -> list[Policy]:
    """Policies in one line: `s/p: allow a.example [443/TCP] as yes; deny * [25/TCP] | s/q audit resolve: allow *`."""
    found = []
    for part in text.split(" | "):
        head, _, body = part.partition(":")
        name, *flags = head.split()
        matches = [_RULE.fullmatch(one) for one in body.strip().split("; ") if one]
        assert None not in matches, f"not in the notation: {part}"
        members = [
            rule(m["action"], m["to"], m["on"] or "any", m["name"] or "", m["private"] is not None)
            for m in matches
            if m is not None
        ]
        found.append(policy(name, *members, audit="audit" in flags, resolve="resolve" in flags))
    return found


CLUSTER = ClusterFacts(cidrs=(cidr("10.96.0.0/12"), cidr("fd00:10::/48")))
CLUSTER_ENFORCED = ClusterFacts(cidrs=CLUSTER.cidrs, enforce=True)


def judge_of(*policies: Policy, facts: ClusterFacts = CLUSTER) -> Judge:
    return Judge(Subject(tuple(sorted(policies, key=lambda one: one.name))), facts)


def packed(text: str) -> Address:
    return Address(ipaddress.ip_address(text).packed)


# ------------------------------------------------------------------------------------------ strategies

NAMES: Sequence[Name] = [
    ROOT,
    *(Name(text) for text in ("example", "a.example", "b.example", "a.b.example", "b.a.example", "a.a.b.example")),
    *(Name(text) for text in ("test", "a.test", "cluster.local", "a.cluster.local", "b.a.cluster.local", "r.local")),
]
BLOCKS: Sequence[Block] = [
    cidr(text)
    for text in (
        *("0.0.0.0/0", "198.51.100.0/24", "198.51.100.0/25", "198.51.100.128/25", "198.51.100.7", "203.0.113.0/24"),
        *("10.96.0.0/16", "255.255.255.255", "::/0", "2001:db8::/32", "2001:db8::7", "fd00:10::/64"),
    )
]
EDGES = (0, 53, 80, 81, 443, 444, 1000, 1016, 65535)
SPANS: Sequence[PortSpan] = [
    *(PortSpan(6, 6, first, last) for first, last in ((0, 65535), (80, 80), (443, 443), (80, 443), (1000, 1015))),
    *(PortSpan(17, 17, first, last) for first, last in ((53, 53), (443, 443), (0, 65535))),
    *(PortSpan(1, 1, 0, 65535), PortSpan(58, 58, 0, 65535)),
    *(PortSpan(0, 255, 0, 65535), PortSpan(0, 255, 80, 443), PortSpan(7, 255, 0, 65535), PortSpan(0, 5, 0, 65535)),
]
PROTOCOL_EDGES = (0, 1, 2, 6, 7, 17, 18, 58, 59, 132, 255)
POINTS = [(protocol, port) for protocol in PROTOCOL_EDGES for port in EDGES]
"""One point at least of every box that SPANS can be cut into."""

names = st.sampled_from(NAMES)
patterns = st.one_of(
    st.just(Pattern(ROOT, wildcard=True)),
    st.builds(Pattern, st.sampled_from([name for name in NAMES if name != ROOT]), st.booleans()),
)
port_sets = st.one_of(
    st.just(ANY_PORT), st.lists(st.sampled_from(SPANS), min_size=1, max_size=3).map(lambda spans: normalise(spans))
)


def rules(action: Action) -> st.SearchStrategy[Rule]:
    return st.builds(
        Rule,
        name=st.sampled_from(["r1", "r2", "r3"]),
        action=st.just(action),
        patterns=st.lists(patterns, max_size=3).map(tuple),
        blocks=st.lists(st.sampled_from(BLOCKS), max_size=3).map(tuple),
        ports=port_sets,
        allow_private=st.booleans() if action is Action.ALLOW else st.just(False),
    )


def policies(mode: st.SearchStrategy[Mode] | None = None) -> st.SearchStrategy[Policy]:
    return st.builds(
        Policy,
        name=st.sampled_from([f"shop/{letter}" for letter in "abcdef"]),
        namespace=st.just("shop"),
        mode=st.sampled_from(Mode) if mode is None else mode,
        dns=st.sampled_from(DnsMode),
        allow=st.lists(rules(Action.ALLOW), max_size=3, unique_by=lambda one: one.name).map(tuple),
        deny=st.lists(rules(Action.DENY), max_size=2, unique_by=lambda one: one.name).map(tuple),
    )


policy_sets = st.lists(policies(), min_size=1, max_size=4, unique_by=lambda one: one.name)
facts = st.sampled_from([CLUSTER, CLUSTER_ENFORCED, ClusterFacts(domains=())])
