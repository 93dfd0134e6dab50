"""The sentence of the program: read → identify → decide → ask → admit → program → record → reply.

`Exchange` takes what pods ask and sees each question through to exactly one outcome, one audit record and, but for
packets that deserve silence, one reply. It is sans-IO: sockets, upstreams, the kernel and the audit log are handed in
as `Parts`, and time comes from `Parts.clock`. dns.md ("One query") numbers the same steps.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from egressd import wire
from egressd.errors import WireError
from egressd.exchange import records
from egressd.exchange.admission import Admission
from egressd.exchange.known import LastKnown
from egressd.exchange.outcomes import (
    DENY_RCODES,
    REASON_EDE,
    SERVFAIL,
    STALE_TTL_S,
    Outcome,
    denied,
    explain_denial,
    looped,
    nonexistent,
)
from egressd.exchange.parties import Party
from egressd.exchange.query import Client, Parts, Query
from egressd.exchange.repeats import Repeat, Repeats
from egressd.exchange.store import Kept, Refresh, Store, failed
from egressd.exchange.tally import Tally
from egressd.memo import Memo
from egressd.model import Decision, Reason, Verdict
from egressd.policy import MALFORMED, RATE_LIMITED, UNKNOWN_POD, is_search_noise

if TYPE_CHECKING:
    from egressd.settings import Settings

__all__ = ["Client", "Exchange", "LastKnown", "Parts", "Party", "Query"]

MEMO: Final = 8192
"""Questions remembered by their bytes, per generation: a cookie or a random name in each must not grow the table."""
Read = tuple[wire.Question, bool, bool]
"""What `_read` makes of a query."""
STALE_WAIT_S: Final = 1.8
"""How long a pod waits for upstream before it gets a stale answer (RFC 8767 section 5, client response timer)."""
FAILING_S: Final = 5.0
"""How long after a failure stale answers are given at once (RFC 8767 section 5, failure recheck timer)."""


class Exchange:
    """The path of every query. One instance a node, one thread."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self.counters: Counter[str] = Counter()
        self.tally = Tally()
        self.in_flight = 0
        self._parts = parts
        self._budgets = settings.budgets
        self._deny_rcode = DENY_RCODES[settings.dns.deny_rcode]
        self._domains = settings.cluster_domains
        self._unknown_wait = settings.unknown_wait
        self._admission = Admission(parts, self._deny_rcode, self.counters)
        self._held: dict[bytes, list[tuple[float, bytes, Client]]] = {}
        self._waiting = 0
        self._store = Store(settings.dns.cache, self.counters)
        self._impatient: deque[tuple[float, Query]] = deque()
        self._failing_until = 0.0
        self._read_before: Memo[bytes, Read] = Memo(MEMO, slow=True)
        self._repeats = Repeats(parts.parties, parts.ledger)

    @property
    def store(self) -> Store:
        """What is kept, for whoever counts it."""
        return self._store

    # ------------------------------------------------------------------------------- the sentence, first half

    def receive(self, messages: Iterable[tuple[bytes, Client]]) -> None:
        """What pods sent and one wake found: read, identify and decide each; then ask, or end it here.

        What repeats itself within a second is answered first, alike, and without any of it.
        """
        now = self._parts.clock()
        messages = self._repeat(messages, now)
        ended = [outcome for data, client in messages if (outcome := self._receive(data, client, now)) is not None]
        if ended:
            self._finish(ended)
        self._parts.flush()

    def _receive(self, data: bytes, client: Client, started: float) -> Outcome | None:
        """How the query ended, or None where it is on its way, or was none."""
        tail = data[2:]
        found = self._read_before.get(tail)
        try:
            found, again = (found, True) if found is not None else self._read(data)
        except WireError as error:
            self._malformed(data, client, error, started)
            return None
        party = self._parts.parties.get(client.address)
        if party is None:
            self._hold(data, client, started)
            return None
        question, search, ours = found
        query = Query(client, data[0] << 8 | data[1], question, party, started)
        if again:
            query.tail = tail
        self._decide(query)
        decision = query.decision
        if not decision.resolve:
            return denied(query, decision, self._deny_rcode)
        if search and decision.reason is not Reason.RULE:
            return nonexistent(query)
        if ours:
            self.counters["loops"] += 1
            return looped(query)
        return self._ask(query)

    # ---------------------------------------------------------------------------------- or the short of it

    def _repeat(self, messages: Iterable[tuple[bytes, Client]], now: float) -> list[tuple[bytes, Client]]:
        """Answer what repeats itself as it was answered before (repeats.py); returns the rest."""
        repeated: list[tuple[Repeat, bytes, Client, float]] = []
        rest = []
        for message in messages:
            data, client = message
            repeat = self._repeats.find(data[2:], client, now)
            if repeat is None or not self._has_room(repeat.party, now):
                rest.append(message)
                continue
            if repeat.entry is not None:
                self._store.hit(repeat.entry)
            repeated.append((repeat, data[:2], client, now))
        if repeated:
            self._say_again(repeated)
        return rest

    def _say_again(self, repeated: list[tuple[Repeat, bytes, Client, float]]) -> None:
        """Record and reply to each, as `_finish` does; nothing is programmed, as nothing needs to be."""
        parts = self._parts
        now, wall = parts.clock(), parts.wall()
        for repeat, ident, client, started in repeated:
            latency_us = self.tally.add(repeat.decision, now - started)
            if repeat.denied_name and not repeat.party.worth_a_line(repeat.denied_name, self._budgets, started):
                self.counters["aggregated"] += 1
            else:
                parts.repeat(repeat.form, wall, client.port, latency_us)
            client.post(ident + repeat.rest)

    # ------------------------------------------------------------------------------ the sentence, second half

    def deliver(self, answers: Iterable[tuple[Any, wire.Answer | Any]]) -> None:
        """Answers from upstream that came together: admit each, then end them."""
        now = self._parts.clock()
        repeated: list[tuple[Repeat, bytes, Client, float]] = []
        ended = []
        for query, kept in self._taken(answers, now):
            fresh = isinstance(kept, Kept) and kept.entry is None
            repeat = self._repeats.find_delivered(query, kept.answer, now) if fresh else None
            if repeat is None:
                ended.append(self._admission.admit(query, kept))
            else:
                repeated.append((repeat, query.ident.to_bytes(2), query.client, query.started))
        self._say_again(repeated)
        self._finish(ended)
        self._parts.flush()

    def _finish(self, outcomes: Sequence[Outcome]) -> None:
        """Program all that ends together in one transaction; then record and reply to each."""
        self._admission.program(outcomes)
        now, wall = self._parts.clock(), self._parts.wall()
        for outcome in outcomes:
            form = self._record(outcome, now, wall)
            reply = self._reply(outcome)
            if form is not None:
                self._repeats.learn(outcome, reply, form)

    # --------------------------------------------------------------------------------------------- ask

    def _ask(self, query: Query) -> Outcome | None:
        """From what is kept, else upstream. While upstream is known to fail, what is stale is better than waiting."""
        now, question = query.started, query.question
        kept, refresh = self._store.find(question, now)
        if kept is None and (stale := self._store.stale(question, now)) is not None:
            if now < self._failing_until:
                kept, refresh = stale, True
            else:
                self._impatient.append((now + STALE_WAIT_S, query))
        if refresh:
            self.counters["cache_refreshes"] += 1
            self._parts.ask(question, Refresh(question))
        if kept is not None:
            return self._admission.admit(query, kept)
        self.in_flight += 1
        query.party.in_flight += 1
        self._parts.ask(question, query)
        return None

    def _taken(self, answers: Iterable[tuple[Any, wire.Answer | Any]], now: float) -> list[tuple[Query, Kept | Any]]:
        """Keep each answer, and hand it on to those who still wait; where it is a failure, what is stale instead."""
        taken: list[tuple[Query, Kept | Any]] = []
        last: Any = None
        for waiter, answer in answers:
            query = waiter if isinstance(waiter, Query) else None
            question: wire.Question = query.question if query is not None else waiter.question
            lost = failed(answer)
            if answer is not last:
                last = answer
                self._store.keep(question, answer, now)
                if lost:
                    self._failing_until = now + FAILING_S
            if query is None or query.finished:
                continue
            self._landed(query)
            kept = self._store.stale(question, now) if lost else None
            taken.append((query, kept or (Kept(answer) if isinstance(answer, wire.Answer) else answer)))
        return taken

    def _landed(self, query: Query) -> None:
        query.finished = True
        self.in_flight -= 1
        query.party.in_flight -= 1

    def _lose_patience(self, now: float) -> None:
        """Answer with what is stale where upstream has taken too long (RFC 8767 section 5)."""
        while self._impatient and self._impatient[0][0] <= now:
            _, query = self._impatient.popleft()
            kept = None if query.finished else self._store.stale(query.question, now)
            if kept is not None:
                self._landed(query)
                self._finish([self._admission.admit(query, kept)])

    # -------------------------------------------------------------------------------------------- read

    def _read(self, data: bytes) -> tuple[Read, bool]:
        """The question, whether it is search-list noise, and whether it is one of ours come back; and whether that is
        remembered now, by everything behind the ID."""
        question = wire.read_query(data)
        ours = question.edns and data.find(self._parts.loop_option) >= 0
        found = question, is_search_noise(question.name, self._domains), ours
        return found, self._read_before.put(data[2:], found)

    def _malformed(self, data: bytes, client: Client, error: WireError, started: float) -> None:
        self.counters["malformed"] += 1
        parts = self._parts
        rcode = -1 if error.rcode is None or len(data) < 12 else error.rcode
        party, age = parts.parties.get(client.address), parts.clock() - started
        self.tally.add(MALFORMED, age)
        parts.record(records.without_pod(client, party, None, MALFORMED, rcode, parts.wall(), age))
        if rcode >= 0:
            client.send(wire.header_error(data, rcode))

    # ---------------------------------------------------------------------------------------- identify

    def _hold(self, data: bytes, client: Client, started: float) -> None:
        """A pod not yet known: its query waits to be learned, within the budgets of queries in flight."""
        waiting = self._held.setdefault(client.address, [])
        budgets = self._budgets
        if len(waiting) < budgets.in_flight_per_pod and self._waiting < budgets.in_flight:
            waiting.append((started, data, client))
            self._waiting += 1
        else:
            self._refuse_unknown(data, client, started, RATE_LIMITED)

    def let_go(self) -> list[tuple[bytes, Client]]:
        """Queries of pods not yet known, for another process to take up; here they are forgotten."""
        held = [(data, client) for waiting in self._held.values() for _, data, client in waiting]
        self._held.clear()
        self._waiting = 0
        return held

    def learned(self, addresses: Iterable[bytes]) -> None:
        """Pods with these addresses are known now: what they asked meanwhile is taken up."""
        for address in addresses:
            waiting = self._held.pop(address, [])
            self._waiting -= len(waiting)
            ended = (self._receive(data, client, started) for started, data, client in waiting)
            self._finish([outcome for outcome in ended if outcome is not None])
        self._parts.flush()

    def tick(self, now: float) -> None:
        """Ends waits that took too long: for a pod to be learned, for an upstream. Call it a few times a second."""
        self._lose_patience(now)
        for address in list(self._held):
            waiting = self._held[address]
            while waiting and waiting[0][0] + self._unknown_wait <= now:
                started, data, client = waiting.pop(0)
                self._waiting -= 1
                self._refuse_unknown(data, client, started, UNKNOWN_POD)
            if not waiting:
                del self._held[address]
        self._parts.flush()

    def _refuse_unknown(self, data: bytes, client: Client, started: float, decision: Decision) -> None:
        question, _, _ = self._read_before.get(data[2:]) or self._read(data)[0]
        parts = self._parts
        rcode = self._deny_rcode if decision is UNKNOWN_POD else SERVFAIL
        age = parts.clock() - started
        self.tally.add(decision, age)
        parts.record(records.without_pod(client, None, question, decision, rcode, parts.wall(), age))
        text = explain_denial(decision, question.name, None)
        client.send(wire.denial(question, data[0] << 8 | data[1], rcode, REASON_EDE[decision.reason], text))

    # ------------------------------------------------------------------------------------------ decide

    def _decide(self, query: Query) -> None:
        if self._has_room(query.party, query.started):
            query.decide()
        else:
            query.decision = RATE_LIMITED

    def _has_room(self, party: Party, now: float) -> bool:
        return self.in_flight < self._budgets.in_flight and party.take(self._budgets, now)

    # -------------------------------------------------------------------------------- record and reply

    def _record(self, outcome: Outcome, now: float, wall: float) -> Any:
        """The form of its record, where the same was asked before; None if it has no record of its own."""
        query, parts = outcome.query, self._parts
        latency_us = self.tally.add(outcome.decision, now - query.started)
        if outcome.decision.verdict is Verdict.DENIED and not query.party.worth_a_line(
            query.question.name, self._budgets, query.started
        ):
            self.counters["aggregated"] += 1
            return None
        record = records.of_outcome(outcome, wall, latency_us)
        if not query.tail:
            parts.record(record)
            return None
        form = parts.form(record)
        parts.repeat(form, wall, query.client.port, latency_us)
        return form

    def minute(self, now: float) -> None:
        """Says, once a minute and pod, how many denials had no record of their own. Call it about once a second."""
        self._store.expire(now)
        parts = self._parts
        for address, party in list(parts.parties.items()):
            count = party.minute_over(now)
            if count:
                parts.record(records.aggregate(address, party, count, self._deny_rcode, parts.wall()))

    def _reply(self, outcome: Outcome) -> bytes:
        query, answer = outcome.query, outcome.answer
        if answer is not None:
            udp = query.client.transport == "udp"
            if outcome.stale:
                self.counters["stale_answers"] += 1
            floor = STALE_TTL_S if outcome.stale else 0
            data = wire.reply(
                answer, query.question, query.ident, udp=udp, withheld=outcome.withheld, age=outcome.age, floor=floor
            )
        else:
            data = wire.denial(query.question, query.ident, outcome.rcode, outcome.ede, outcome.text)
        query.client.post(data)
        return data
