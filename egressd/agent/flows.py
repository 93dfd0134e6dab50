"""From what the kernel reports of flows (NFLOG) to flow records that name pod, name, policy and reason.

A report says by its prefix what became of the packet: the chain that it was written in. Why, is judged here, by the
pod's names and policies as they are now. Where the two disagree the kernel is right about what happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from egressd.kernel.template import FLOODING
from egressd.kernel.verdicts import ALLOWED, REPORTED
from egressd.model import FlowRecord, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from egressd.exchange import LastKnown, Party
    from egressd.kernel.nflog import Report
    from egressd.model import Decision
    from egressd.policy import Judge

__all__ = ["Flows"]

DNS_PORT: Final = 53
DNS_PROTOCOLS: Final = (6, 17)
VERDICTS: Final = {ALLOWED: Verdict.ALLOWED, REPORTED: Verdict.WOULD_DENY}
"""What became of a reported packet, by the prefix of the report; what was refused, by any other."""

Why = tuple[Verdict, Reason, str, str]
"""Verdict, reason, policy, rule."""


class Flows:
    """Explains the kernel's reports. `opens` says whether a live grant opens a port of an address for a subject."""

    def __init__(
        self,
        parties: Mapping[bytes, Party],
        known: LastKnown,
        opens: Callable[[int, bytes, int, int], bool],
        wall: Callable[[], float],
    ) -> None:
        self._parties = parties
        self._known = known
        self._opens = opens
        self._wall = wall

    def explain(self, report: Report) -> FlowRecord:
        """The record of one reported packet."""
        party = self._parties.get(report.source)
        return FlowRecord(
            self._wall(),
            report.source,
            party.identity if party is not None else None,
            report.destination,
            report.port,
            report.protocol,
            self._known.names(report.source, report.destination),
            *self._why(report, party),
            1,
        )

    def _why(self, report: Report, party: Party | None) -> Why:
        if report.prefix == FLOODING:
            return Verdict.DENIED, Reason.RATE_LIMIT, "", ""
        verdict = VERDICTS.get(report.prefix, Verdict.DENIED)
        if party is None:
            return verdict, Reason.UNKNOWN_POD, "", ""
        if party.judge is None:
            reason = Reason.UNSELECTED if verdict is Verdict.ALLOWED else Reason.UNKNOWN_POD
            return verdict, reason, "", ""
        if verdict is Verdict.ALLOWED:
            return self._let_through(report, party, party.judge)
        return self._stopped(report, party.judge, verdict)

    def _stopped(self, report: Report, judge: Judge, verdict: Verdict) -> Why:
        """Why a packet was refused, or would be were the audited policies enforced."""
        own = self._known.names_for(report.source, report.destination)
        decision = judge.judge_destination(own, report.destination, report.protocol, report.port)
        if verdict is Verdict.DENIED and decision.verdict is Verdict.WOULD_ALLOW:
            verdict = Verdict.WOULD_ALLOW
        reason = decision.reason
        if reason not in (Reason.DENY_RULE, Reason.NO_RULE):
            # allowed by name or by the cluster's ranges, yet refused: its grant has ended, or a DNS server of its own
            reason = Reason.NO_RULE
        if reason is Reason.NO_RULE and report.port == DNS_PORT and report.protocol in DNS_PROTOCOLS:
            reason = Reason.FOREIGN_RESOLVER
        return _told(verdict, decision) if reason is decision.reason else (verdict, reason, "", "")

    def _let_through(self, report: Report, party: Party, judge: Judge) -> Why:
        """Why a packet was let through: by the names that led there, a grant of pods of the same policies included.

        What no name or rule explains any more was opened by a grant, whose name is forgotten, or is the node itself.
        """
        names = self._known.names(report.source, report.destination)
        decision = judge.judge_destination(names, report.destination, report.protocol, report.port)
        if decision.verdict is Verdict.ALLOWED:
            return _told(Verdict.ALLOWED, decision)
        if decision.verdict is Verdict.WOULD_DENY and decision.reason is Reason.DENY_RULE:
            return _told(Verdict.WOULD_DENY, decision)
        granted = self._opens(party.subject, report.destination, report.protocol, max(report.port, 0))
        return Verdict.ALLOWED, Reason.RULE if granted else Reason.IN_CLUSTER, "", ""


def _told(verdict: Verdict, decision: Decision) -> Why:
    return verdict, decision.reason, decision.policy, decision.rule
