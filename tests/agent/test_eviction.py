"""When the agent looks at connections for the ledger, of which pods, and what it does with what it finds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from egressd.agent import eviction
from egressd.agent.eviction import PAUSE_S, SHARE, Eviction
from egressd.errors import KernelError
from egressd.grants import Admission, Ledger
from egressd.lab import eventually
from egressd.model import Ports, PortSpan
from egressd.names import Name

API = Name("api.example.com")
HTTPS: Ports = (PortSpan(6, 6, 443, 443),)
POD, KIN, OTHER = (bytes((10, 244, 1, number)) for number in (2, 3, 4))
OLD, NEW, NEWER = (bytes((203, 0, 113, number)) for number in (7, 8, 9))


class Table:
    """A connection table that says what `answer` says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[set[bytes], set[bytes]]] = []
        self.answer: Callable[[], set[tuple[bytes, bytes]]] = set
        self.threads: set[int] = set()
        self.closed = threading.Event()

    def live(self, pods: Collection[bytes], destinations: Collection[bytes]) -> set[tuple[bytes, bytes]]:
        self.threads.add(threading.get_ident())
        self.asked.append((set(pods), set(destinations)))
        return self.answer()

    def close(self) -> None:
        self.closed.set()


class Bench:
    """A ledger of one address a name, two subjects (POD and KIN, OTHER), and a clock set by hand."""

    def __init__(self) -> None:
        self.table = Table()
        self.ledger = Ledger(per_name=1)
        self.settled: list[Admission] = []
        states = {
            ("shop/web",): SimpleNamespace(number=1, addresses={POD, KIN}),
            ("shop/other",): SimpleNamespace(number=2, addresses={OTHER}),
        }
        roster: Any = SimpleNamespace(subjects=states)
        self.eviction = Eviction(roster, self.ledger, self.settled.append)

    def answer(self, *addresses: bytes) -> None:
        for address in addresses:
            self.ledger.admit(1, API, [address], HTTPS, 300, 1000.0)

    def look(self, now: float, took: float = 0.0) -> None:
        """Begin a look and take it in."""
        self.eviction.tick(now)
        look = self.eviction._look
        assert look is not None
        eventually(look.pairs.done, what="the look")
        self.eviction.tick(now + took)

    def gone(self) -> list[bytes]:
        return [element.address for admission in self.settled for element in admission.gone]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made: list[Table] = []
    monkeypatch.setattr(eviction, "Conntrack", lambda: made[0])
    made.append(Table())
    bench = Bench()
    bench.table = made[0]
    yield bench
    bench.eviction.close()
    assert bench.table.closed.wait(30)


def test_no_look_without_need(bench: Bench) -> None:
    """While each name has room the connections are not looked at."""
    bench.answer(OLD)
    bench.eviction.tick(1000.0)
    assert bench.eviction._look is None
    assert bench.table.asked == []


def test_what_is_not_in_use_leaves(bench: Bench) -> None:
    """The look is about the pods of the crowded subject alone, on another thread; the oldest grant leaves."""
    bench.answer(OLD, NEW)
    bench.look(1000.0)
    assert bench.table.asked == [({POD, KIN}, {OLD, NEW})]
    assert threading.get_ident() not in bench.table.threads
    assert bench.gone() == [OLD]


def test_a_connection_of_any_pod_of_the_subject_counts(bench: Bench) -> None:
    """What one pod of the subject is connected to stays, for they share their grants."""
    bench.table.answer = lambda: {(KIN, OLD)}
    bench.answer(OLD, NEW)
    bench.look(1000.0)
    assert bench.gone() == [NEW]
    assert bench.ledger.kept_live == 1


def test_looks_rest_in_between(bench: Bench) -> None:
    """The next look comes a second later, or after twenty times as long as the last one took."""
    bench.answer(OLD, NEW)
    bench.look(1000.0)
    bench.answer(NEWER)
    bench.eviction.tick(1000.0 + PAUSE_S - 0.1)
    assert bench.eviction._look is None
    bench.look(1000.0 + PAUSE_S, took=0.5)
    bench.answer(OLD)
    bench.eviction.tick(1000.0 + PAUSE_S + SHARE * 0.5 + 0.4)
    assert bench.eviction._look is None
    bench.look(1000.0 + PAUSE_S + SHARE * 0.5 + 0.6)
    assert bench.gone() == [OLD, NEW, NEWER]


def test_nothing_waits_for_a_look(bench: Bench) -> None:
    """While a look takes its time the loop goes on, and no second one begins."""
    release = threading.Event()
    bench.table.answer = lambda: set() if release.wait(30) else {(POD, OLD)}
    bench.answer(OLD, NEW)
    begun = time.monotonic()
    for step in range(20):
        bench.eviction.tick(1000.0 + step)
    assert time.monotonic() - begun < 20
    assert bench.gone() == []
    release.set()
    look = bench.eviction._look
    assert look is not None
    eventually(look.pairs.done, what="the look")
    bench.eviction.tick(1020.0)
    assert len(bench.table.asked) == 1
    assert bench.gone() == [OLD]


def test_a_look_that_fails_pushes_nothing_out(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """When connections cannot be seen all grants stay; that is said once, and the next look is as good as any."""

    def fail() -> set[tuple[bytes, bytes]]:
        raise KernelError("cannot read the connection table: no buffer space", 105)

    bench.table.answer = fail
    bench.answer(OLD, NEW)
    bench.look(1000.0)
    bench.look(1002.0)
    assert bench.gone() == []
    assert [record.message for record in caplog.records].count(
        "grants past their bound stay, as their connections cannot be seen: "
        "cannot read the connection table: no buffer space"
    ) == 1
    bench.table.answer = set
    bench.look(1004.0)
    assert bench.gone() == [OLD]


def test_a_look_of_before_a_hand_over_counts_for_nothing(bench: Bench) -> None:
    """What was seen before the table was let go is not acted on after."""
    bench.answer(OLD, NEW)
    bench.eviction.tick(1000.0)
    bench.eviction.forget()
    bench.table.answer = lambda: {(POD, OLD)}
    bench.look(1010.0)
    assert bench.gone() == [NEW]
