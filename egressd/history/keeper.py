"""History as the control side has it: lines in as they pass by, to the disk every few seconds, questions answered.

Lines are taken on the event loop, in memory; the disk is a thread's business, one matter at a time. A question first
has everything written that was seen until then, so that an answer is never older than the question.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from egressd.history.book import Book
from egressd.history.folding import Folding, domain_of
from egressd.history.observation import Edge, Filter, Observation, Trace, Use
from egressd.history.pending import MAX_KEYS, Pending
from egressd.history.reading import Traffic, edges, observations, survey
from egressd.history.store import Store
from egressd.model import Block, Policy
from egressd.policy import block_text
from egressd.settings import History

__all__ = ["Counts", "Keeper", "Span", "peers_of"]

LOOK_S: Final = 5.0
LOOKS: Final = 3
"""What was seen is on the disk at the third look, unless somebody asks before: a kill -9 costs 15 seconds at most."""
MANY: Final = MAX_KEYS // 4
"""Entries with which it does not wait for the third look: far from where names are lost."""
SURVEY_S: Final = 8.0
"""Seconds that going through all there is may take; a million rows take three of CPU time."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Counts:
    """How history fares, for the metrics."""

    rows: int = 0
    octets: int = 0
    taken: int = 0
    """Records, in all."""
    folded: int = 0
    """Sums that lost their name or port to a budget, in all."""
    dropped: int = 0
    """Records without room, in all."""
    failures: int = 0
    """Times that the file could not be used, in all."""


@dataclass(frozen=True, slots=True)
class Span:
    """Since when what is known; seconds since the epoch."""

    since: int
    """Nothing is missing from here on."""
    flows: int | None
    """Since when allowed flows are recorded; None: they are not."""
    peers: dict[tuple[str, str], int]
    """Since when each peer of each policy is known, spelled as `peers_of` does."""


class Keeper:
    """The history of one daemon; one event loop. Questions are not to be put where it is not `on`."""

    def __init__(self, settings: History, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._folding = Folding()
        self._pending = Pending(self._folding)
        self._policies: tuple[Policy, ...] | None = None
        self._flows = False
        self._failures = 0
        self._turn = asyncio.Lock()
        self._closing = asyncio.Event()
        self._running: set[asyncio.Task[Any]] = set()
        self._settings = settings
        self._book = Book(settings, clock=clock)

    @property
    def on(self) -> bool:
        """Whether there is any: an empty `file` turns it off."""
        return bool(self._settings.file)

    @property
    def counts(self) -> Counts:
        """How it fares now."""
        book, pending = self._book, self._pending
        failures = self._failures + book.failures
        return Counts(book.rows, book.octets, pending.taken, self._folding.folded, pending.dropped, failures)

    def feed(self, lines: bytes, kinds: Sequence[int] = ()) -> None:
        """Take audit lines as they pass by, and their kinds (`link.Lines`); never waits."""
        if self.on:
            self._pending.feed(lines, kinds)

    def know(self, policies: Iterable[Policy], cluster: Iterable[Block], *, flows: bool) -> None:
        """Policies in force, the cluster's blocks, and whether allowed flows are recorded; written at the next turn."""
        self._pending.guard(cluster)
        self._flows = flows
        self._policies = tuple(policies)

    async def run(self) -> None:
        """Write every few seconds, until `close`; then what is left."""
        if self.on:
            await asyncio.to_thread(domain_of, "example", "dns")  # reads the public suffixes: a tenth of a second
        while not self._closing.is_set():
            await self._write()
            await self._rest()
        await self._write()
        async with self._turn:
            await asyncio.to_thread(self._book.close)

    def close(self) -> None:
        """Have `run` write what is left and return."""
        self._closing.set()
        self._book.hurry()

    async def reopen(self, settings: History) -> None:
        """Go on as `settings` say."""
        await self._write()
        async with self._turn:
            if settings != self._settings:
                await asyncio.to_thread(self._book.close)
                self._failures += self._book.failures
                self._settings, self._book = settings, Book(settings, clock=self._clock)

    async def _rest(self) -> None:
        """Until it is time to write again."""
        for _ in range(LOOKS):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), LOOK_S)
            if self._closing.is_set() or self._policies is not None or len(self._pending) >= MANY:
                return

    async def _write(self) -> None:
        try:
            if self.on:
                await self._ask(lambda _: None, None)
        except Exception:  # a bug here costs history, not the records and the policies
            traceback.print_exc()

    # ------------------------------------------------------------------------------------------------ questions

    async def observations(self, wanted: Filter, limit: int) -> tuple[list[Observation], bool]:
        """Observations, the newest day first, and whether there are more."""
        return await self._ask(lambda store: observations(store, wanted, limit), ([], True))

    async def edges(self, wanted: Filter, limit: int) -> tuple[dict[Edge, Traffic], bool]:
        """Who did what with which name, and whether there is more."""
        return await self._ask(lambda store: edges(store, wanted, limit), ({}, True))

    async def uses(self) -> dict[tuple[str, str], Use]:
        """How often each rule decided, by policy and rule."""
        return await self._ask(lambda store: store.uses, {})

    async def survey(self, since: float, reasons: Collection[str], see: Callable[[Trace], None]) -> Span | None:
        """Show what was decided for these reasons to `see`, in a thread; None where another daemon holds the file."""

        def all_of_it(store: Store) -> Span:
            whole = survey(store, since, reasons, SURVEY_S, see)
            return Span(whole, store.facts.get("flows"), store.peers)

        return await self._ask(all_of_it, None)

    async def _ask(self, question: Callable[[Store], T], nothing: T) -> T:
        """Write what is pending, then put a question; to the end, even where nobody waits for the answer any more."""
        task = asyncio.create_task(self._in_turn(question, nothing))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await asyncio.shield(task)

    async def _in_turn(self, question: Callable[[Store], T], nothing: T) -> T:
        async with self._turn:
            book, sums, policies, flows = self._book, self._pending.take(), self._policies, self._flows
            self._policies = None

            def work() -> T:
                book.write(sums)
                if policies is not None:
                    book.know(_Peers(policies), flows=flows)
                return book.read(question, nothing)

            try:
                return await asyncio.to_thread(work)
            finally:
                self._pending.give_back(sums)  # what could not be written


class _Peers(Mapping[str, Iterable[str]]):
    """The peers of each policy by its name, spelled out only while they are looked at."""

    def __init__(self, policies: Iterable[Policy]) -> None:
        self._policies = {policy.name: policy for policy in policies}

    def __getitem__(self, name: str) -> Iterable[str]:
        return peers_of(self._policies[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._policies)

    def __len__(self) -> int:
        return len(self._policies)


def peers_of(policy: Policy) -> Iterator[str]:
    """Every peer of every rule of a policy, as `ACTION PEER`: the same wherever in the policy it stands."""
    for rule in (*policy.deny, *policy.allow):
        for peer in (*map(str, rule.patterns), *map(block_text, rule.blocks)):
            yield f"{rule.action} {peer}"
