"""What the names on the way of an answer mean for it (policy.md, Patterns): a CNAME chain is followed in one answer.

Values in, values out; the data path decides by it, and an explanation tells it.
"""

from __future__ import annotations

from collections.abc import Iterable

from egressd.model import Decision, Reason, Verdict
from egressd.names import Name
from egressd.policy.judge import Judge

__all__ = ["denied_on_the_way", "onward"]


def denied_on_the_way(judge: Judge, decision: Decision, cnames: Iterable[Name]) -> Decision | None:
    """A denied name in the middle of the chain denies the answer; one without a rule need not be listed."""
    if not judge.filters_dns or decision.verdict is Verdict.DENIED:
        return None
    for cname in cnames:
        found = judge.judge_name(cname)
        if found.verdict is Verdict.DENIED and found.reason is Reason.DENY_RULE:
            return found
    return None


def onward(judge: Judge, decision: Decision, cnames: Iterable[Name]) -> Decision:
    """A name inside the cluster may lead outside (ExternalName): then the rules of the names it leads to count."""
    if decision.reason is not Reason.IN_CLUSTER:
        return decision
    for cname in cnames:
        found = judge.judge_name(cname)
        if found.ports and found.verdict is not Verdict.DENIED:
            return found
    return decision
