"""What an allowed name led to: its latest answers, held against the guard as the data path does (policy.md, Rebinding).

A name may be allowed and its answers withheld nevertheless. Values in, values out: milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from egressd.model import Decision, Reason, Verdict, address_text
from egressd.names import Name
from egressd.policy import Explanation, Judge, contains, ports_text
from egressd.policy.addresses import Kind, special
from egressd.policy.chain import denied_on_the_way, onward
from egressd.policy.ports import point
from egressd.schema.target import Target

__all__ = ["Barred", "barred_address", "followed"]

MAX_LISTED: Final = 4
"""Addresses that steps spell out."""
TCP: Final = 6


class Barred(NamedTuple):
    """An address that the name led to and that the pod does not get, or not on the port it was asked for."""

    address: bytes
    reason: Reason
    rule: Decision | None
    """The deny rule that is to blame."""
    withheld: bool
    """From the answer; else only the port is closed."""
    over: str = ""
    """The names on the way, of which one is denied."""


def followed(
    judge: Judge, target: Target, whole: Explanation, answers: Sequence[Mapping[str, Any]], rcode: str
) -> tuple[Explanation, list[Barred]]:
    """Go on from what the rules say of a name that they let through to what became of its answers.

    `answers` as the data path tells them, `rcode` what a denied query gets. Returns what is barred as well.
    """
    barred: list[Barred] = []
    steps: list[str] = []
    number = 0
    for answer in answers:
        addresses = [bytes(address) for address in answer["addresses"]]
        found = list(_barred(judge, target, whole.decision, addresses, [Name(name) for name in answer["cnames"]]))
        steps += _steps(judge, target, found, answer["age_s"])
        barred += found
        number += len(addresses)
    if not barred:
        return whole, []
    *before, verdict = whole.steps
    if len(barred) < number:
        steps.append(f"the other {number - len(barred)} of {number} addresses may be had")
        if judge.enforced:
            return Explanation(whole.decision, (*before, *steps, verdict)), barred
    decision = _decision(judge, whole.decision, barred[0])
    steps = [verdict.replace("verdict:", "the rules alone:", 1), *steps, _verdict(decision, barred, rcode)]
    return Explanation(decision, (*before, *steps)), barred


def barred_address(judge: Judge, address: bytes, decision: Decision) -> str:
    """The word for an address that a name with this decision may not lead to; empty where it may."""
    if judge.admissible(address, decision) is not Reason.REBINDING:
        return ""
    return special(address, judge.facts.cidrs)[1]


def _barred(
    judge: Judge, target: Target, decision: Decision, addresses: Sequence[bytes], cnames: Sequence[Name]
) -> Iterator[Barred]:
    """What is barred of one answer."""
    on_the_way = denied_on_the_way(judge, decision, cnames)
    through = onward(judge, decision, cnames)
    for address in addresses:
        if on_the_way is not None:
            yield Barred(address, on_the_way.reason, on_the_way, withheld=True, over=", ".join(cnames))
        elif (reason := judge.admissible(address, through)) is not None:
            alone = judge.judge_address(address, target.protocol if target.asked else TCP, target.port)
            denying = alone.reason is Reason.DENY_RULE and reason is Reason.DENY_RULE
            yield Barred(address, reason, alone if denying else None, withheld=True)
        elif target.asked:
            yield from _closed(judge, target, through, address)


def _closed(judge: Judge, target: Target, decision: Decision, address: bytes) -> Iterator[Barred]:
    """An address that the pod may have, but not on this port: by a deny rule, since it is private, or since a name
    inside the cluster, which opens nothing itself, led outside."""
    assert target.name is not None  # noqa: S101 - only names have answers
    names = [target.name] if decision.ports else []
    found = judge.judge_destination(names, address, target.protocol, target.port)
    if found.verdict is Verdict.DENIED:
        yield Barred(address, found.reason, found if found.reason is Reason.DENY_RULE else None, withheld=False)
    elif decision.ports and not contains(judge.grant_ports(address, decision), target.protocol, target.port):
        private = special(address, judge.facts.cidrs)[0] is Kind.PRIVATE
        yield Barred(address, Reason.REBINDING if private else Reason.NO_RULE, None, withheld=False)


def _decision(judge: Judge, decision: Decision, worst: Barred) -> Decision:
    """As the data path decides: the reason is the answer's, the rule the one that let the name through."""
    verdict = Verdict.DENIED if judge.enforced else Verdict.WOULD_DENY
    by = worst.rule or decision
    return replace(decision, verdict=verdict, reason=worst.reason, policy=by.policy, rule=by.rule)


# ----------------------------------------------------------------------------------------------------- in words


def _steps(judge: Judge, target: Target, barred: Sequence[Barred], age_s: int) -> Iterator[str]:
    which = f"its answer ({age_s} s old)" if age_s >= 0 else "an earlier answer"
    fate = "withheld" if judge.enforced else "it would be withheld"
    for one in barred[:MAX_LISTED]:
        kind, word = special(one.address, judge.facts.cidrs)
        what = f"{address_text(one.address)}{f' ({word})' if kind is not Kind.ORDINARY else ''}"
        by = f' (rule "{one.rule.rule}" of {one.rule.policy})' if one.rule and one.rule.policy else ""
        if one.over:
            yield f"{which} led over {one.over} to {what}, and that way is denied: {fate}, reason {one.reason}{by}"
        elif one.withheld:
            yield f"{which} pointed to {what}: {fate}, reason {one.reason}{by}"
        else:
            asked = ports_text(point(target.protocol, target.port))
            yield f"{which} pointed to {what}, where {asked} is closed: reason {one.reason}{by}"
    if len(barred) > MAX_LISTED:
        yield f"{len(barred) - MAX_LISTED} more of its addresses fare alike"


def _verdict(decision: Decision, barred: Sequence[Barred], rcode: str) -> str:
    by = f' by rule "{decision.rule}" of {decision.policy}' if decision.reason is Reason.DENY_RULE else ""
    said = f"verdict: {decision.verdict} ({decision.reason}){by}"
    if decision.verdict is Verdict.WOULD_DENY:
        return f"{said}; it goes through, the audited policies would stop it"
    if not all(one.withheld for one in barred):
        return said
    return f"{said}; the name is allowed, its answer is withheld: the pod is told {rcode}"
