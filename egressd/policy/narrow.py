"""The explanation of a name for one port of it: a name that is allowed may still have that port closed."""

from __future__ import annotations

from dataclasses import replace

from egressd.model import Reason, Verdict
from egressd.policy.explain import Explanation
from egressd.policy.judge import Judge
from egressd.policy.ports import contains, point, ports_text

__all__ = ["narrowed"]


def narrowed(judge: Judge, whole: Explanation, protocol: int, port: int) -> Explanation:
    """`whole`, as `judge.explain_name` gave it, for one port of one protocol; `port` -1: some port."""
    decision = whole.decision
    if decision.reason is not Reason.RULE or decision.verdict not in {Verdict.ALLOWED, Verdict.WOULD_DENY}:
        return whole
    asked, opened = ports_text(point(protocol, port)), ports_text(decision.ports)
    *steps, verdict = whole.steps
    steps.append(verdict.replace("verdict:", "the name itself:", 1))
    if contains(decision.ports, protocol, port):
        by = f' by rule "{decision.rule}" of {decision.policy}'
        said = (f"{asked} is among its ports ({opened})", f"verdict: {decision.verdict} ({decision.reason}){by}")
        return Explanation(decision, (*steps, *said))
    closed = replace(
        decision,
        verdict=Verdict.DENIED if judge.enforced else Verdict.WOULD_DENY,
        reason=Reason.NO_RULE,
        policy="",
        rule="",
        ports=(),
    )
    said = (f"{asked} is not among its ports ({opened})", f"verdict: {closed.verdict} ({closed.reason})")
    return Explanation(closed, (*steps, *said))
