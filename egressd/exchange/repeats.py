"""What was answered a moment ago is answered alike: to the same address, to the same octets, for less than a second.

Nothing is decided here. A `Repeat` is an outcome that the whole sentence led to, with the reply and the audit record as
they were then; it stands only while each thing that it followed from is the very same object as it was: the pod and
who it is, the judge of its policies, the kept answer, and the state of the ledger, which counts whatever it takes away.
A second later TTLs have shrunk, and the sentence is gone through again, which renews grants in time. Budgets, counters
and the bound of denied names apply to each query all the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from egressd.memo import Memo
from egressd.model import Verdict
from egressd.policy import RATE_LIMITED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from egressd.exchange.outcomes import Outcome
    from egressd.exchange.parties import Party
    from egressd.exchange.query import Client, Query
    from egressd.grants import Ledger
    from egressd.wire import Answer

__all__ = ["Repeat", "Repeats"]

REPEATS: Final = 2048
"""Outcomes remembered, per generation: pods that ask the same again within a second are few."""
MOST_S: Final = 1.0
"""How long an outcome with an answer is repeated: grants are renewed and TTLs shrink no later."""
FOREVER: Final = float("inf")
MAX_REPLY: Final = 1232
"""Octets of the largest reply that is remembered: with its record, an entry takes 3 KiB at most, all of them 12 MiB."""


class Repeat:
    """An outcome as it was told, and what it followed from."""

    __slots__ = (
        "answer",
        "decision",
        "denied_name",
        "entry",
        "form",
        "generation",
        "identity",
        "judge",
        "party",
        "rest",
        "server",
        "transport",
        "until",
    )

    def __init__(self, outcome: Outcome, reply: bytes, form: Any, generation: int, until: float) -> None:
        query = outcome.query
        self.party = query.party
        self.identity = query.party.identity
        self.judge = query.judge
        self.server = query.client.server
        self.transport = query.client.transport
        self.decision = outcome.decision
        self.answer = outcome.answer
        self.entry = outcome.entry
        self.denied_name = query.question.name if outcome.decision.verdict is Verdict.DENIED else ""
        """Where it was denied: such names are counted."""
        self.rest = reply[2:]
        """The reply behind its ID."""
        self.form = form
        self.generation = generation
        self.until = until


class Repeats:
    """Outcomes by address and question, the latter as its octets behind the ID."""

    def __init__(self, parties: Mapping[bytes, Party], ledger: Ledger) -> None:
        self._parties = parties
        self._ledger = ledger
        self._known: Memo[tuple[bytes, bytes], Repeat] = Memo(REPEATS)
        self._most_s = ledger.grace_s / 4
        """A grant outlives its answer by half of the grace, when it is given; by a quarter, in the last repeat."""

    def find(self, tail: bytes, client: Client, now: float) -> Repeat | None:
        """The outcome of this query, if it is still what it would come to, with nobody being asked."""
        repeat = self._standing(tail, client, now)
        if repeat is None or repeat.answer is None:
            return repeat
        return None if repeat.entry is None or repeat.entry.dropped else repeat

    def find_delivered(self, query: Query, answer: Answer, now: float) -> Repeat | None:
        """The outcome of a query that was answered just now with the very answer that led to one before."""
        if not query.tail:
            return None
        repeat = self._standing(query.tail, query.client, now)
        return repeat if repeat is not None and repeat.answer is answer and repeat.entry is None else None

    def _standing(self, tail: bytes, client: Client, now: float) -> Repeat | None:
        repeat = self._known.get((client.address, tail))
        if (
            repeat is None
            or repeat.until <= now
            or repeat.party is not self._parties.get(client.address)
            or repeat.judge is not repeat.party.judge
            or repeat.identity is not repeat.party.identity
            or repeat.transport != client.transport
            or repeat.server != client.server
            or (repeat.answer is not None and repeat.generation != self._ledger.generation)
        ):
            return None
        return repeat

    def learn(self, outcome: Outcome, reply: bytes, form: Any) -> None:
        """Remember an outcome, if nothing but what `find` looks at can change it."""
        query, entry = outcome.query, outcome.entry
        if not query.tail or len(reply) > MAX_REPLY:
            return
        if outcome.answer is None:
            if outcome.decision is not query.decision or outcome.decision is RATE_LIMITED:
                return
            until = FOREVER
        elif outcome.stale or outcome.decision is not query.decision:
            return
        else:
            until = query.started + min(self._most_s, MOST_S)
            if entry is not None:
                until = min(until, entry.steady_until(query.started))
        repeat = Repeat(outcome, reply, form, self._ledger.generation, until)
        self._known.put((query.client.address, query.tail), repeat)
