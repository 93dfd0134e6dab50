"""The sentence of the program: read → identify → decide → ask → admit → program → record → reply.

`Exchange` takes what pods ask and sees each question through to exactly one outcome, one audit record and, but for
packets that deserve silence, one reply. It is sans-IO: sockets, upstreams, the kernel and the audit log are handed in
as `Parts`, and time comes from `Parts.clock`. dns.md ("One query") numbers the same steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from egressd import wire
from egressd.errors import KernelError, WireError
from egressd.exchange.outcomes import (
    DENY_RCODES,
    EDE_OTHER,
    MALFORMED,
    NXDOMAIN,
    RATE_LIMITED,
    REASON_EDE,
    SERVFAIL,
    UNKNOWN,
    UNSELECTED,
    explain_denial,
)
from egressd.exchange.parties import LastKnown, Party
from egressd.grants import UNSELECTED_SUBJECT, Element, Ledger
from egressd.model import ANY_PORT, Decision, DnsRecord, Ports, Reason, Verdict
from egressd.policy import is_search_noise

if TYPE_CHECKING:
    from egressd.settings import Settings

__all__ = ["Client", "Exchange", "LastKnown", "Parts", "Party", "Query"]

MEMO: Final = 8192
"""Questions remembered by their bytes, per generation: a cookie or a random name in each must not grow the table."""


class Client(Protocol):
    """Where a query came from and its answer goes. `send` never raises and never blocks."""

    address: bytes
    port: int
    server: bytes
    transport: str

    def send(self, data: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What the exchange is made of besides itself."""

    parties: dict[bytes, Party]
    """Pods by address, kept up to date by the owner."""
    ledger: Ledger
    known: LastKnown
    ask: Callable[[wire.Question, Query], None]
    """Ask upstream; the answer comes back through `Exchange.deliver`."""
    program: Callable[[Sequence[Element]], None]
    """Write grant elements, acknowledged; raises `KernelError`."""
    withdraw: Callable[[Sequence[Element]], None]
    """Take elements out of the kernel that a bound pushed out of the ledger."""
    record: Callable[[DnsRecord], None]
    clock: Callable[[], float]
    wall: Callable[[], float]


class Query:
    """One question on its way: who asked what, what was decided, when it began."""

    __slots__ = ("client", "decision", "ident", "judge", "party", "question", "started")

    def __init__(self, client: Client, ident: int, question: wire.Question, party: Party, started: float) -> None:
        self.client = client
        self.ident = ident
        self.question = question
        self.party = party
        self.judge = party.judge
        self.decision = UNSELECTED
        self.started = started


class Outcome:
    """How a query ended: the decision in force at the end, and the answer it may see, if any."""

    __slots__ = ("answer", "decision", "ede", "granted", "query", "rcode", "search", "text", "withheld", "writes")

    def __init__(self, query: Query, decision: Decision, rcode: int, answer: wire.Answer | None = None) -> None:
        self.query = query
        self.decision = decision
        self.rcode = rcode
        self.answer = answer
        self.ede: int | None = None
        self.text = ""
        self.search = False
        self.granted: tuple[bytes, ...] = ()
        self.withheld: frozenset[bytes] = frozenset()
        self.writes: list[Element] = []


class Exchange:
    """The path of every query. One instance a node, one thread."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.counters: Counter[str] = Counter()
        self.in_flight = 0
        self._parts = parts
        self._budgets = settings.budgets
        self._deny_rcode = DENY_RCODES[settings.dns.deny_rcode]
        self._domains = settings.cluster_domains
        self._unknown_wait = settings.unknown_wait
        self._held: dict[bytes, list[tuple[float, bytes, Client]]] = {}
        self._young: dict[bytes, tuple[wire.Question, bool]] = {}
        self._old: dict[bytes, tuple[wire.Question, bool]] = {}

    # ------------------------------------------------------------------------------- the sentence, first half

    def receive(self, data: bytes, client: Client) -> None:
        """One message from a pod: read, identify, decide; then ask, or end it here."""
        self._receive(data, client, self._parts.clock())

    def _receive(self, data: bytes, client: Client, started: float) -> None:
        try:
            question, search = self._read(data)
        except WireError as error:
            self._malformed(data, client, error, started)
            return
        party = self._parts.parties.get(client.address)
        if party is None:
            self._hold(data, client, started)
            return
        query = Query(client, data[0] << 8 | data[1], question, party, started)
        self._decide(query)
        if not query.decision.resolve:
            self._finish(self._denied(query, query.decision))
        elif search and query.decision.reason is not Reason.RULE:
            self._finish(self._noise(query))
        else:
            self.in_flight += 1
            party.in_flight += 1
            self._parts.ask(question, query)

    # ------------------------------------------------------------------------------ the sentence, second half

    def deliver(self, answers: Iterable[tuple[Any, wire.Answer | Any]]) -> None:
        """Answers from upstream that came together: admit each, program all at once, then record and reply each."""
        outcomes = [self._admit(query, answer) for query, answer in answers]
        self._program(outcomes)
        for outcome in outcomes:
            self.in_flight -= 1
            outcome.query.party.in_flight -= 1
            self._finish(outcome)

    def _finish(self, outcome: Outcome) -> None:
        self._record(outcome)
        self._reply(outcome)

    # -------------------------------------------------------------------------------------------- read

    def _read(self, data: bytes) -> tuple[wire.Question, bool]:
        """The question and whether it is search-list noise; remembered by everything behind the ID."""
        tail = data[2:]
        found = self._young.get(tail)
        if found is None:
            found = self._old.pop(tail, None)
            if found is None:
                question = wire.read_query(data)
                found = question, is_search_noise(question.name, self._domains)
            if len(self._young) >= MEMO:
                self._old, self._young = self._young, {}
            self._young[tail] = found
        return found

    def _malformed(self, data: bytes, client: Client, error: WireError, started: float) -> None:
        self.counters["malformed"] += 1
        party = self._parts.parties.get(client.address)
        rcode = -1 if error.rcode is None or len(data) < 12 else error.rcode
        self._emit(client, party, MALFORMED, rcode, started)
        if rcode >= 0:
            client.send(wire.header_error(data, rcode))

    # ---------------------------------------------------------------------------------------- identify

    def _hold(self, data: bytes, client: Client, started: float) -> None:
        """A pod not yet known: its query waits to be learned, within the budgets of queries in flight."""
        waiting = self._held.setdefault(client.address, [])
        budgets = self._budgets
        if len(waiting) < budgets.in_flight_per_pod and len(self._held) <= budgets.in_flight:
            waiting.append((started, data, client))
        else:
            self._refuse_unknown(data, client, started, RATE_LIMITED)

    def learned(self, addresses: Iterable[bytes]) -> None:
        """Pods with these addresses are known now: what they asked meanwhile is taken up."""
        for address in addresses:
            for started, data, client in self._held.pop(address, ()):
                self._receive(data, client, started)

    def tick(self, now: float) -> None:
        """Ends the wait of queries from sources that stayed unknown. Call it a few times a second."""
        for address in list(self._held):
            waiting = self._held[address]
            while waiting and waiting[0][0] + self._unknown_wait <= now:
                started, data, client = waiting.pop(0)
                self._refuse_unknown(data, client, started, UNKNOWN)
            if not waiting:
                del self._held[address]

    def minute(self, now: float) -> None:
        """Says, once a minute and pod, how many denials had no record of their own. Call it about once a second."""
        for address, party in list(self._parts.parties.items()):
            count = party.minute_over(now)
            if count:
                decision = Decision(Verdict.DENIED, Reason.NO_RULE)
                head = (self._parts.wall(), address, party.identity, "", 0, "udp", b"", 0)
                tail = (self._deny_rcode, (), (), -1, False, (), 0, False, count)
                self._parts.record(DnsRecord(*head, *_verdict(decision), *tail))

    def _refuse_unknown(self, data: bytes, client: Client, started: float, decision: Decision) -> None:
        question, _ = self._read(data)
        rcode = self._deny_rcode if decision is UNKNOWN else SERVFAIL
        self._emit(client, None, decision, rcode, started, question)
        text = explain_denial(decision, question.name, None)
        client.send(wire.denial(question, data[0] << 8 | data[1], rcode, REASON_EDE[decision.reason], text))

    # ------------------------------------------------------------------------------------------ decide

    def _decide(self, query: Query) -> None:
        party = query.party
        if self.in_flight >= self._budgets.in_flight or not party.take(self._budgets, query.started):
            query.decision = RATE_LIMITED
        else:
            self._judge(query)

    def _judge(self, query: Query) -> None:
        query.judge = judge = query.party.judge
        query.decision = UNSELECTED if judge is None else judge.judge_name(query.question.name)

    def _denied(self, query: Query, decision: Decision) -> Outcome:
        rcode = SERVFAIL if decision.reason in (Reason.RATE_LIMIT, Reason.PROGRAM_FAILED) else self._deny_rcode
        outcome = Outcome(query, decision, rcode)
        outcome.ede = REASON_EDE[decision.reason]
        outcome.text = explain_denial(decision, query.question.name, query.party.judge)
        return outcome

    def _noise(self, query: Query) -> Outcome:
        """A search-list expansion that no Service or pod record can have: it does not exist, and nobody need ask."""
        outcome = Outcome(query, query.decision, NXDOMAIN)
        outcome.search = True
        return outcome

    # ------------------------------------------------------------------------------------------- admit

    def _admit(self, query: Query, answer: wire.Answer | Any) -> Outcome:
        """What of the answer the pod may have, and the grants that open it."""
        overtaken = self._overtaken(query)
        if overtaken is not None:
            return overtaken
        decision = query.decision
        if not isinstance(answer, wire.Answer):
            outcome = Outcome(query, replace(decision, reason=Reason.UPSTREAM_FAILED), SERVFAIL)
            outcome.ede, outcome.text = answer.ede, answer.text
            return outcome
        name = query.question.name
        addresses = answer.addresses
        outcome = Outcome(query, decision, answer.rcode, answer)
        if addresses:
            self._parts.known.note(query.client.address, name, addresses)
        if query.party.judge is None:
            self._grant(outcome, addresses, ANY_PORT)
            return outcome
        denied = self._denied_on_the_way(query, answer)
        if denied is not None:
            return denied
        if addresses:
            return self._admit_addresses(outcome, addresses)
        return outcome

    def _overtaken(self, query: Query) -> Outcome | None:
        """The world may have changed while we asked: the pod gone, its address another's, its policies edited."""
        if query.party is not self._parts.parties.get(query.client.address):
            return self._denied(query, UNKNOWN)
        if query.judge is query.party.judge:
            return None
        self._judge(query)
        return None if query.decision.resolve else self._denied(query, query.decision)

    def _denied_on_the_way(self, query: Query, answer: wire.Answer) -> Outcome | None:
        """A denied name in the middle of the CNAME chain denies the answer; one without a rule need not be listed."""
        judge = query.party.judge
        if judge is None or not judge.enforced or not judge.filters_dns:
            return None
        for cname in answer.cnames:
            decision = judge.judge_name(cname)
            if decision.verdict is Verdict.DENIED and decision.reason is Reason.DENY_RULE:
                return self._denied(query, decision)
        return None

    def _admit_addresses(self, outcome: Outcome, addresses: tuple[bytes, ...]) -> Outcome:
        query, judge = outcome.query, outcome.query.party.judge
        if judge is None or outcome.answer is None:
            return outcome
        decision = self._through_chain(query.decision, outcome.answer, judge)
        reasons = {a: reason for a in addresses if (reason := judge.admissible(a, decision)) is not None}
        if reasons:
            worst = next(iter(reasons.values()))
            if not judge.enforced:
                outcome.decision = Decision(Verdict.WOULD_DENY, worst, decision.policy, decision.rule, resolve=True)
            elif len(reasons) == len(addresses) and decision.verdict is not Verdict.DENIED:
                return self._denied(query, Decision(Verdict.DENIED, worst, decision.policy, decision.rule))
            else:
                outcome.withheld = frozenset(reasons)
            addresses = tuple(a for a in addresses if a not in reasons)
        if decision.ports and addresses:
            self._grant(outcome, addresses, decision.ports)
        return outcome

    def _through_chain(self, decision: Decision, answer: wire.Answer, judge: Any) -> Decision:
        """A name inside the cluster may lead outside (ExternalName): then the rules of the names it leads to count."""
        if decision.reason is not Reason.IN_CLUSTER:
            return decision
        onward = (judge.judge_name(cname) for cname in answer.cnames)
        return next((found for found in onward if found.ports and found.verdict is not Verdict.DENIED), decision)

    def _grant(self, outcome: Outcome, addresses: tuple[bytes, ...], ports: Ports) -> None:
        query, answer, parts = outcome.query, outcome.answer, self._parts
        if not addresses or answer is None:
            return
        subject = query.party.subject
        ttl = max(answer.ttl, 0)
        admission = parts.ledger.admit(subject, query.question.name, addresses, ports, ttl, parts.clock())
        outcome.writes = admission.writes
        if subject != UNSELECTED_SUBJECT:
            outcome.granted = addresses
        if admission.gone:
            self.counters["grants_evicted"] += len(admission.gone)
            parts.withdraw(admission.gone)

    # ----------------------------------------------------------------------------------------- program

    def _program(self, outcomes: list[Outcome]) -> None:
        """All grants of a batch in one transaction; if the kernel refuses it, each on its own, so that one that cannot
        be had fails alone. An answer that is not open is never given."""
        writes = [write for outcome in outcomes for write in outcome.writes]
        if not writes:
            return
        try:
            self._parts.program(writes)
        except KernelError:
            for outcome in outcomes:
                if outcome.writes:
                    self._program_alone(outcome)

    def _program_alone(self, outcome: Outcome) -> None:
        try:
            self._parts.program([write._replace(refresh=True) for write in outcome.writes])
        except KernelError as error:
            self.counters["program_failed"] += 1
            self._parts.ledger.doubt(outcome.writes)
            outcome.decision = replace(outcome.decision, reason=Reason.PROGRAM_FAILED)
            outcome.rcode, outcome.answer, outcome.granted = SERVFAIL, None, ()
            outcome.ede, outcome.text = EDE_OTHER, f"{explain_denial(outcome.decision, '', None)} (errno {error.errno})"

    # -------------------------------------------------------------------------------- record and reply

    def _record(self, outcome: Outcome) -> None:
        query, answer, decision, parts = outcome.query, outcome.answer, outcome.decision, self._parts
        name = query.question.name
        if decision.verdict is Verdict.DENIED and not query.party.worth_a_line(name, self._budgets, query.started):
            self.counters["aggregated"] += 1
            return
        client = query.client
        addresses, cnames, ttl = (answer.addresses, answer.cnames, answer.ttl) if answer is not None else ((), (), -1)
        if outcome.withheld:
            addresses = tuple(a for a in addresses if a not in outcome.withheld)
        parts.record(
            DnsRecord(
                parts.wall(),
                client.address,
                query.party.identity,
                name,
                query.question.qtype,
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
                False,
                outcome.granted,
                int((parts.clock() - query.started) * 1e6),
                outcome.search,
            )
        )

    def _emit(
        self,
        client: Client,
        party: Party | None,
        decision: Decision,
        rcode: int,
        started: float,
        question: wire.Question | None = None,
    ) -> None:
        """The record of a query that ended before it was one: malformed, or from nobody known."""
        name, qtype = (question.name, question.qtype) if question else ("", 0)
        identity = party.identity if party else None
        latency = int((self._parts.clock() - started) * 1e6)
        head = (self._parts.wall(), client.address, identity, name, qtype, client.transport, client.server, client.port)
        self._parts.record(DnsRecord(*head, *_verdict(decision), rcode, (), (), -1, False, (), latency))

    def _reply(self, outcome: Outcome) -> None:
        query, answer = outcome.query, outcome.answer
        udp = query.client.transport == "udp"
        if answer is not None:
            data = wire.reply(answer, query.question, query.ident, udp=udp, withheld=outcome.withheld)
        else:
            data = wire.denial(query.question, query.ident, outcome.rcode, outcome.ede, outcome.text)
        query.client.send(data)


def _verdict(decision: Decision) -> tuple[Verdict, Reason, str, str]:
    return decision.verdict, decision.reason, decision.policy, decision.rule
