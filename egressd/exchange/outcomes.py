"""What a pod is told for each way a query can end: one table for the wire, the records and the documentation.

Codes: RFC 1035 section 4.1.1 (rcode), RFC 8914 section 5.2 (extended DNS errors).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from egressd.model import Decision, Reason, Verdict

if TYPE_CHECKING:
    from egressd.policy import Judge

__all__ = [
    "DENY_RCODES",
    "EDE_OTHER",
    "MALFORMED",
    "NOERROR",
    "NXDOMAIN",
    "RATE_LIMITED",
    "REASON_EDE",
    "SERVFAIL",
    "UNKNOWN",
    "UNSELECTED",
    "explain_denial",
]

NOERROR: Final = 0
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
REFUSED: Final = 5

DENY_RCODES: Final = {"NXDOMAIN": NXDOMAIN, "REFUSED": REFUSED, "NODATA": NOERROR}
"""Setting `dns.deny_rcode` → the rcode of a denial; NODATA is NOERROR without an answer."""

EDE_OTHER: Final = 0
REASON_EDE: Final = {
    Reason.NO_RULE: 17,  # Filtered
    Reason.DENY_RULE: 17,
    Reason.REBINDING: 17,
    Reason.UNKNOWN_POD: 18,  # Prohibited
    Reason.FOREIGN_RESOLVER: 18,
    Reason.RATE_LIMIT: EDE_OTHER,
    Reason.PROGRAM_FAILED: EDE_OTHER,
}

UNSELECTED: Final = Decision(Verdict.ALLOWED, Reason.UNSELECTED, resolve=True)
UNKNOWN: Final = Decision(Verdict.DENIED, Reason.UNKNOWN_POD)
RATE_LIMITED: Final = Decision(Verdict.DENIED, Reason.RATE_LIMIT)
MALFORMED: Final = Decision(Verdict.DENIED, Reason.MALFORMED)

_TEXTS: Final = {
    Reason.REBINDING: "the answer points only at addresses that no outside name may lead to (private, link-local, …)",
    Reason.UNKNOWN_POD: "no pod is known to have this address",
    Reason.RATE_LIMIT: "this pod asks more than its budget allows",
    Reason.PROGRAM_FAILED: "the kernel did not take the rule that would open the answer",
}
_MAX_POLICIES_NAMED: Final = 3


def explain_denial(decision: Decision, name: str, judge: Judge | None) -> str:
    """The sentence a denied program finds in its DNS answer (EXTRA-TEXT, RFC 8914 section 2)."""
    if decision.reason is Reason.DENY_RULE:
        return f"egressd: {name} is denied by rule {decision.rule} of {decision.policy}"
    if decision.reason is Reason.NO_RULE and judge is not None:
        policies = judge.subject.key
        named = ", ".join(policies[:_MAX_POLICIES_NAMED])
        more = f" and {len(policies) - _MAX_POLICIES_NAMED} more" if len(policies) > _MAX_POLICIES_NAMED else ""
        return f"egressd: no rule of {named}{more} allows {name}"
    return f"egressd: {_TEXTS.get(decision.reason, decision.reason.value)}"
