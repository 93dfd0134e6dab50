"""What flow records say of a reported packet: verdict, reason, policy and rule, and the names that led there."""

from __future__ import annotations

import pytest

from egressd.agent.flows import Flows
from egressd.exchange import LastKnown, Party
from egressd.kernel.nflog import Report
from egressd.model import Action, Address, Block, Mode, PodIdentity, Policy, PortSpan, Rule, Subject
from egressd.names import Name, parse_pattern
from egressd.policy import ClusterFacts, Judge

WEB, MATE, TEAM, FREE, GONE = (bytes((10, 244, 1, last)) for last in range(5, 10))
API, CDN, BAD, HOST, CLUSTER, ODD = (bytes((203, 0, 113, last)) for last in (7, 8, 9, 10, 200, 11))
HTTPS = (PortSpan(6, 6, 443, 443),)
FACTS = ClusterFacts(cidrs=(Block(Address(CLUSTER), Address(CLUSTER)),))


def policy(name: str, mode: Mode) -> Policy:
    """Allows *.example.com at 443/TCP and one address, denies bad.example.com."""
    allow = (
        Rule("api", Action.ALLOW, (parse_pattern("*.example.com"),), ports=HTTPS),
        Rule("host", Action.ALLOW, blocks=(Block(Address(HOST), Address(HOST)),)),
    )
    deny = (Rule("bad", Action.DENY, (parse_pattern("bad.example.com"),)),)
    return Policy(name, "shop", mode=mode, allow=allow, deny=deny)


@pytest.fixture
def flows() -> Flows:
    """Two enforced pods of one subject, one that is only audited, one that no policy selects."""
    enforced = Judge(Subject((policy("shop/web", Mode.ENFORCE),)), FACTS)
    audited = Judge(Subject((policy("team/try", Mode.AUDIT),)), FACTS)
    parties = {
        WEB: Party(PodIdentity("shop", "web-0"), 1, enforced),
        MATE: Party(PodIdentity("shop", "web-1"), 1, enforced),
        TEAM: Party(PodIdentity("team", "try-0"), 2, audited),
        FREE: Party(PodIdentity("shop", "free-0")),
    }
    known = LastKnown()
    for pod in (WEB, TEAM, FREE):
        known.note(pod, Name("api.example.com"), (API,))
        known.note(pod, Name("cdn.example"), (CDN,))
        known.note(pod, Name("bad.example.com"), (BAD,))
    return Flows(
        parties, known, lambda subject, address, _protocol, port: (subject, address, port) == (1, ODD, 443), lambda: 5.0
    )


CASES = {
    # let through
    "by name": ("allowed", WEB, API, 443, "allowed rule shop/web api"),
    "by a name that its mate asked for": ("allowed", MATE, API, 443, "allowed rule shop/web api"),
    "by address": ("allowed", WEB, HOST, 443, "allowed rule shop/web host"),
    "in the cluster": ("allowed", WEB, CLUSTER, 443, "allowed in-cluster"),
    "by a grant whose name is forgotten": ("allowed", WEB, ODD, 443, "allowed rule"),
    "the node itself": ("allowed", WEB, ODD, 444, "allowed in-cluster"),
    "audited, by name": ("allowed", TEAM, API, 443, "allowed rule team/try api"),
    "audited, the node itself": ("allowed", TEAM, ODD, 444, "allowed in-cluster"),
    "audited, by a name that would be denied": ("allowed", TEAM, BAD, 443, "would-deny deny-rule team/try bad"),
    "unselected": ("allowed", FREE, API, 443, "allowed unselected"),
    "gone meanwhile": ("allowed", GONE, API, 443, "allowed unknown-pod"),
    # stopped
    "no rule": ("denied", WEB, CDN, 443, "denied no-rule"),
    "another port": ("denied", WEB, API, 80, "denied no-rule"),
    "a deny rule": ("denied", WEB, BAD, 443, "denied deny-rule shop/web bad"),
    "its grant has ended": ("denied", WEB, API, 443, "denied no-rule"),
    "another resolver": ("denied", WEB, CLUSTER, 53, "denied foreign-resolver"),
    "not known yet": ("unidentified", GONE, API, 443, "denied unknown-pod"),
    "selected no more": ("denied", FREE, API, 443, "denied unknown-pod"),
    "too many queries": ("flooding", WEB, CLUSTER, 53, "denied rate-limit"),
    "would be denied": ("reported", TEAM, CDN, 443, "would-deny no-rule"),
    "would be denied by a rule": ("reported", TEAM, BAD, 443, "would-deny deny-rule team/try bad"),
    "would be denied, gone meanwhile": ("reported", GONE, CDN, 443, "would-deny unknown-pod"),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict_and_reason(flows: Flows, case: str) -> None:
    """The prefix says what became of the packet, names and policies say why."""
    prefix, pod, destination, port, expected = CASES[case]
    record = flows.explain(Report(prefix, pod, destination, 6, port))
    assert " ".join(filter(None, (record.verdict, record.reason, record.policy, record.rule))) == expected


def test_what_else_a_record_says(flows: Flows) -> None:
    """Pod, destination, the pod's names for it, and one packet; an address that nobody asked for has no name."""
    record = flows.explain(Report("allowed", WEB, API, 6, 443))
    assert (record.time, record.client, record.pod) == (5.0, WEB, PodIdentity("shop", "web-0"))
    assert (record.destination, record.port, record.protocol) == (API, 443, 6)
    assert (record.names, record.packets) == (("api.example.com",), 1)
    assert flows.explain(Report("denied", WEB, CLUSTER, 1, -1)).names == ()
    assert flows.explain(Report("denied", GONE, API, 6, 443)).pod is None
