"""What a pod is told for each way a query can end: one table for the wire, the records and the documentation.

Codes: RFC 1035 section 4.1.1 (rcode), RFC 8914 section 5.2 (extended DNS errors).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from egressd.compiled import mypyc_attr
from egressd.model import Reason, Verdict

if TYPE_CHECKING:
    from egressd.cache import Entry
    from egressd.exchange.query import Query
    from egressd.grants import Element
    from egressd.model import Decision
    from egressd.policy import Judge
    from egressd.wire import Answer

__all__ = [
    "DENY_RCODES",
    "REASON_EDE",
    "SERVFAIL",
    "STALE_TTL_S",
    "Outcome",
    "denied",
    "explain_denial",
    "failed",
    "looped",
    "nonexistent",
    "unprogrammed",
]

STALE_TTL_S: Final = 30
"""TTL of a stale answer (RFC 8767 section 4)."""

NOERROR: Final = 0
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
REFUSED: Final = 5

DENY_RCODES: Final = {"NXDOMAIN": NXDOMAIN, "REFUSED": REFUSED, "NODATA": NOERROR}
"""Setting `dns.deny_rcode` → the rcode of a denial; NODATA is NOERROR without an answer."""

EDE_OTHER: Final = 0
EDE_FILTERED: Final = 17
EDE_LOOP: Final = 22
"""No Reachable Authority."""
REASON_EDE: Final = {
    Reason.NO_RULE: EDE_FILTERED,
    Reason.DENY_RULE: EDE_FILTERED,
    Reason.REBINDING: EDE_FILTERED,
    Reason.UNKNOWN_POD: 18,  # Prohibited
    Reason.FOREIGN_RESOLVER: 18,
    Reason.RATE_LIMIT: EDE_OTHER,
    Reason.PROGRAM_FAILED: EDE_OTHER,
}

_TEXTS: Final = {
    Reason.REBINDING: "the answer points only at addresses that no outside name may lead to (private, link-local, …)",
    Reason.UNKNOWN_POD: "no pod is known to have this address",
    Reason.RATE_LIMIT: "this pod asks more than its budget allows",
    Reason.PROGRAM_FAILED: "the kernel did not take the rule that would open the answer",
}
_MAX_POLICIES_NAMED: Final = 3


@mypyc_attr(acyclic=True)
class Outcome:
    """How a query ended: the decision in force at the end, the rcode, and the answer it may see, if any."""

    ede: int | None = None
    text = ""
    search = False
    stale = False
    entry: Entry[Answer] | None = None
    """Where the answer is kept, unless upstream gave it just now."""
    age = 0
    """Seconds the answer was kept, by which its TTLs shrink."""
    granted: tuple[bytes, ...] = ()
    withheld: frozenset[bytes] = frozenset()
    writes: Sequence[Element] = ()

    def __init__(self, query: Query, decision: Decision, rcode: int, answer: Answer | None = None) -> None:
        self.query = query
        self.decision = decision
        self.rcode = rcode
        self.answer = answer

    @property
    def cached(self) -> bool:
        """Whether the answer was kept."""
        return self.entry is not None

    @property
    def ttl(self) -> int:
        """What is left of the answer's TTL in seconds: smallest along the chain, less its age."""
        if self.answer is None:
            return 0
        return STALE_TTL_S if self.stale else max(self.answer.ttl - self.age, 0)


def denied(query: Query, decision: Decision, deny_rcode: int) -> Outcome:
    """The pod may not have this name, or not now."""
    outcome = Outcome(query, decision, SERVFAIL if decision.reason is Reason.RATE_LIMIT else deny_rcode)
    outcome.ede = REASON_EDE.get(decision.reason, EDE_FILTERED)
    if query.question.edns:  # else nothing carries the sentence
        outcome.text = explain_denial(decision, query.question.name, query.party.judge)
    return outcome


def nonexistent(query: Query) -> Outcome:
    """A search-list expansion that no Service or pod record can have: it does not exist, and nobody need be asked."""
    outcome = Outcome(query, query.decision, NXDOMAIN)
    outcome.search = True
    return outcome


def failed(query: Query, ede: int, text: str) -> Outcome:
    """No upstream answered."""
    outcome = Outcome(query, replace(query.decision, reason=Reason.UPSTREAM_FAILED), SERVFAIL)
    outcome.ede, outcome.text = ede, text
    return outcome


def looped(query: Query) -> Outcome:
    """Our own question, come back to be asked again: whoever serves us is asked through us."""
    outcome = failed(
        query, EDE_LOOP, "egressd: this question is egressd's own, come back; exempt the DNS pods (dns.exempt)"
    )
    outcome.decision = replace(outcome.decision, verdict=Verdict.DENIED)
    return outcome


def unprogrammed(outcome: Outcome, errno: int) -> None:
    """The kernel refused the grants: *an answer that is not open is never given*."""
    decision = outcome.decision = replace(outcome.decision, reason=Reason.PROGRAM_FAILED)
    outcome.rcode, outcome.answer, outcome.granted = SERVFAIL, None, ()
    outcome.ede, outcome.text = EDE_OTHER, f"{explain_denial(decision, '', None)} (errno {errno})"


def explain_denial(decision: Decision, name: str, judge: Judge | None) -> str:
    """The sentence a denied program finds in its DNS answer (EXTRA-TEXT, RFC 8914 section 2)."""
    if decision.verdict is Verdict.WOULD_ALLOW:  # the reason given is that of the audited policies
        return f"egressd: no enforced rule allows {name}; rule {decision.rule} of {decision.policy} (Audit) would"
    if decision.reason is Reason.DENY_RULE:
        return f"egressd: {name} is denied by rule {decision.rule} of {decision.policy}"
    if decision.reason is Reason.NO_RULE and judge is not None:
        policies = judge.subject.key
        named = ", ".join(policies[:_MAX_POLICIES_NAMED])
        more = f" and {len(policies) - _MAX_POLICIES_NAMED} more" if len(policies) > _MAX_POLICIES_NAMED else ""
        return f"egressd: no rule of {named}{more} allows {name}"
    return f"egressd: {_TEXTS.get(decision.reason, decision.reason.value)}"
