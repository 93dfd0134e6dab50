"""What the audit log says of a query: one record for each, whatever became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from egressd.model import Decision, DnsRecord, Reason, Verdict

if TYPE_CHECKING:
    from egressd.exchange.outcomes import Outcome
    from egressd.exchange.parties import Party
    from egressd.exchange.query import Client
    from egressd.wire import Question

__all__ = ["aggregate", "of_outcome", "without_pod"]


def of_outcome(outcome: Outcome, wall: float, latency_us: int) -> DnsRecord:
    """The record of a query that was understood and whose pod is known."""
    query, answer, decision = outcome.query, outcome.answer, outcome.decision
    client, question = query.client, query.question
    addresses, cnames, ttl = (answer.addresses, answer.cnames, outcome.ttl) if answer is not None else ((), (), -1)
    if answer is not None and answer.ttl < 0:
        ttl = -1
    if outcome.withheld:
        addresses = tuple(address for address in addresses if address not in outcome.withheld)
    return DnsRecord(
        wall,
        client.address,
        query.party.identity,
        question.name,
        question.qtype,
        client.transport,
        client.server,
        client.port,
        decision.verdict,
        decision.reason,
        decision.policy,
        decision.rule,
        outcome.rcode,
        addresses,
        cnames,
        ttl,
        outcome.cached,
        outcome.granted,
        latency_us,
        outcome.search,
    )


def without_pod(
    client: Client,
    party: Party | None,
    question: Question | None,
    decision: Decision,
    rcode: int,
    wall: float,
    age_s: float,
) -> DnsRecord:
    """The record of a query that ended before it was one: malformed (no `question`), or from nobody known."""
    name, qtype = (question.name, question.qtype) if question else ("", 0)
    identity = party.identity if party else None
    head = (wall, client.address, identity, name, qtype, client.transport, client.server, client.port)
    verdict = (decision.verdict, decision.reason, decision.policy, decision.rule)
    return DnsRecord(*head, *verdict, rcode, (), (), -1, False, (), int(age_s * 1e6))


def aggregate(address: bytes, party: Party, count: int, rcode: int, wall: float) -> DnsRecord:
    """The record that stands for `count` denials past the pod's budget of distinct names."""
    head = (wall, address, party.identity, "", 0, "udp", b"", 0)
    verdict = (Verdict.DENIED, Reason.NO_RULE, "", "")
    return DnsRecord(*head, *verdict, rcode, (), (), -1, False, (), 0, False, count)
