"""From an answer to what of it a pod may have: the rebinding guard, the CNAME chain, grants, and their programming."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from errno import EIO, ETIMEDOUT
from typing import TYPE_CHECKING, Any

from egressd.errors import KernelError
from egressd.exchange.outcomes import Outcome, denied, failed, unprogrammed
from egressd.exchange.store import Kept
from egressd.grants import UNSELECTED_SUBJECT
from egressd.model import ANY_PORT, Decision, Ports, Verdict
from egressd.policy import UNKNOWN_POD
from egressd.policy.chain import denied_on_the_way, onward
from egressd.wire import Answer

if TYPE_CHECKING:
    from egressd.exchange.query import Parts, Query
    from egressd.policy import Judge

__all__ = ["Admission"]


class Admission:
    """Steps admit and program of the sentence."""

    def __init__(self, parts: Parts, deny_rcode: int, counters: Counter[str]) -> None:
        self._parts = parts
        self._deny_rcode = deny_rcode
        self._counters = counters

    # ------------------------------------------------------------------------------------------- admit

    def admit(self, query: Query, kept: Kept | Any) -> Outcome:
        """What of the answer the pod may have, with the grants that open it in the ledger and in `outcome.writes`.

        Without an answer, `kept` is the upstream's failure with its `ede` and `text`.
        """
        overtaken = self._overtaken(query)
        if overtaken is not None:
            return overtaken
        if not isinstance(kept, Kept):
            return failed(query, kept.ede, kept.text)
        answer = kept.answer
        outcome = Outcome(query, query.decision, answer.rcode, answer)
        outcome.age, outcome.stale, outcome.entry = kept.age, kept.stale, kept.entry
        if answer.addresses:
            self._parts.known.note(query.client.address, query.question.name, answer.addresses)
        judge = query.judge
        if judge is None:
            self._grant(outcome, answer.addresses, ANY_PORT)
            return outcome
        on_the_way = denied_on_the_way(judge, query.decision, answer.cnames)
        if on_the_way is not None:
            return denied(query, on_the_way, self._deny_rcode)
        return self._admit_addresses(outcome, answer, judge)

    def _overtaken(self, query: Query) -> Outcome | None:
        """The world may have changed while we asked: the pod gone, its address another's, its policies edited."""
        if query.party is not self._parts.parties.get(query.client.address):
            return denied(query, UNKNOWN_POD, self._deny_rcode)
        if query.judge is query.party.judge:
            return None
        query.decide()
        return None if query.decision.resolve else denied(query, query.decision, self._deny_rcode)

    def _admit_addresses(self, outcome: Outcome, answer: Answer, judge: Judge) -> Outcome:
        query, addresses = outcome.query, answer.addresses
        if not addresses:
            return outcome
        decision = onward(judge, query.decision, answer.cnames)
        reasons = {a: reason for a in addresses if (reason := judge.admissible(a, decision)) is not None}
        if reasons:
            worst = next(iter(reasons.values()))
            if not judge.enforced:
                outcome.decision = Decision(Verdict.WOULD_DENY, worst, decision.policy, decision.rule, resolve=True)
            elif len(reasons) == len(addresses) and decision.verdict is not Verdict.DENIED:
                refusal = Decision(Verdict.DENIED, worst, decision.policy, decision.rule)
                return denied(query, refusal, self._deny_rcode)
            else:
                outcome.withheld = frozenset(reasons)
            addresses = tuple(a for a in addresses if a not in reasons)
        for ports, group in _by_ports(addresses, decision, judge):
            self._grant(outcome, group, ports)
        return outcome

    def _grant(self, outcome: Outcome, addresses: tuple[bytes, ...], ports: Ports) -> None:
        if not addresses:
            return
        query, parts = outcome.query, self._parts
        subject = query.party.subject
        admission = parts.ledger.admit(subject, query.question.name, addresses, ports, outcome.ttl, parts.clock())
        if admission.writes:
            outcome.writes = [*outcome.writes, *admission.writes]
        if subject != UNSELECTED_SUBJECT:
            outcome.granted += addresses
        if admission.gone:
            parts.withdraw(admission.gone)

    # ----------------------------------------------------------------------------------------- program

    def program(self, outcomes: Sequence[Outcome]) -> None:
        """All grants of a batch in one transaction; if the kernel refuses it, each answer's on their own, so that one
        that cannot be had fails alone. An acknowledgement that came too late is none, for all of them: trying each
        again would take as long each time."""
        writes = [write for outcome in outcomes for write in outcome.writes]
        if not writes:
            return
        try:
            self._parts.program(writes)
        except KernelError as error:
            if error.errno == ETIMEDOUT:
                self._parts.ledger.doubt(writes)
            self._program_each(outcomes, late=error.errno == ETIMEDOUT)

    def _program_each(self, outcomes: Sequence[Outcome], *, late: bool = False) -> None:
        """What another answer of the batch should have opened, and did not, is not open for those after it either."""
        refused: dict[tuple[int, bytes], int] = {}
        for outcome in outcomes:
            subject = outcome.query.party.subject
            errno = next((refused[subject, a] for a in outcome.granted if (subject, a) in refused), 0)
            if outcome.writes:
                errno = ETIMEDOUT if late else self._program_alone(outcome) or errno
                refused |= {(write.subject, write.address): errno for write in outcome.writes if errno}
            if errno:
                self._counters["program_failed"] += 1
                unprogrammed(outcome, errno)

    def _program_alone(self, outcome: Outcome) -> int:
        """The error number, 0 if the kernel took it."""
        try:
            self._parts.program([write._replace(refresh=True) for write in outcome.writes])
        except KernelError as error:
            self._parts.ledger.doubt(outcome.writes)
            return error.errno or EIO
        return 0


def _by_ports(
    addresses: tuple[bytes, ...], decision: Decision, judge: Judge
) -> Iterable[tuple[Ports, tuple[bytes, ...]]]:
    """The addresses by what may be opened of them: nearly always all alike; private ones may get less."""
    if not decision.ports:
        return ()
    if len(addresses) == 1:
        return ((judge.grant_ports(addresses[0], decision), addresses),)
    groups: dict[Ports, tuple[bytes, ...]] = {}
    for address in addresses:
        ports = judge.grant_ports(address, decision)
        groups[ports] = (*groups.get(ports, ()), address)
    return groups.items()
