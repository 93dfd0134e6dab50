"""From what the kernel refused or reported (NFLOG) to flow records that name pod, name, policy and reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from egressd.model import FlowRecord, PodIdentity, Reason, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from egressd.exchange import LastKnown, Party
    from egressd.kernel.nflog import Denial

__all__ = ["Denials"]

DNS_PORT: Final = 53
DNS_PROTOCOLS: Final = (6, 17)


class Denials:
    """Explains one event of the kernel: the same judgement that the pod's names and policies would give."""

    def __init__(
        self,
        parties: Mapping[bytes, Party],
        known: LastKnown,
        record: Callable[[FlowRecord], None],
        wall: Callable[[], float],
    ) -> None:
        self._parties = parties
        self._known = known
        self._record = record
        self._wall = wall

    def report(self, denial: Denial) -> None:
        """Write the record of one reported packet."""
        party = self._parties.get(denial.source)
        names = self._known.names(denial.source, denial.destination)
        verdict, reason, policy, rule = self._why(denial, party)
        identity: PodIdentity | None = party.identity if party is not None else None
        self._record(
            FlowRecord(
                self._wall(),
                denial.source,
                identity,
                denial.destination,
                denial.port,
                denial.protocol,
                names,
                verdict,
                reason,
                policy,
                rule,
                1,
            )
        )

    def _why(self, denial: Denial, party: Party | None) -> tuple[Verdict, Reason, str, str]:
        if party is None or party.judge is None:
            return Verdict.DENIED, Reason.UNKNOWN_POD, "", ""
        own = self._known.names_for(denial.source, denial.destination)
        decision = party.judge.judge_destination(own, denial.destination, denial.protocol, denial.port)
        verdict, reason = decision.verdict, decision.reason
        if denial.prefix == "reported":
            verdict = Verdict.WOULD_DENY
        elif verdict is not Verdict.WOULD_ALLOW:
            verdict = Verdict.DENIED
        if reason not in (Reason.DENY_RULE, Reason.NO_RULE):
            # allowed by name or by the cluster's ranges, yet refused: its grant has ended, or a DNS server of its own
            reason = Reason.NO_RULE
        if reason is Reason.NO_RULE and denial.port == DNS_PORT and denial.protocol in DNS_PROTOCOLS:
            reason = Reason.FOREIGN_RESOLVER
        if reason is decision.reason:
            return verdict, reason, decision.policy, decision.rule
        return verdict, reason, "", ""
