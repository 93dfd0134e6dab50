"""Long work in short turns: the sockets are served in between, whatever goes wrong in a step."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator

from egressd.agent.turns import TURN_S, Turns, Work


class Clock:
    """Seconds that pass only when a step says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def run(
    *pieces: Work,
    clock: Clock,
    failed: list[str] | None = None,
    rounds: int = 50,
    count: Callable[[], int] = lambda: 0,
) -> list[int]:
    """Do all the pieces; what `count` said in each round of the loop, where sockets would be served."""
    waiting = deque(pieces)
    served: list[int] = []

    async def life() -> None:
        turns = Turns(
            lambda: waiting.popleft() if waiting else None,
            lambda: failed.append("failed") if failed is not None else None,
            clock,
        )
        turns.wake()
        turns.wake()
        for _ in range(rounds):
            served.append(count())
            await asyncio.sleep(0)

    asyncio.run(life())
    return served


def steps(done: list[str], name: str, count: int, clock: Clock, each_s: float) -> Iterator[None]:
    """Work of so many steps that take so long."""
    for _ in range(count):
        clock.now += each_s
        done.append(name)
        yield


def test_one_long_step_a_turn() -> None:
    """Steps that take a turn's time each: the loop comes by between any two of them."""
    clock = Clock()
    done: list[str] = []
    before = run(steps(done, "a", 10, clock, TURN_S), clock=clock, rounds=5, count=lambda: len(done))
    assert before == [0, 1, 2, 3, 4]


def test_short_steps_share_a_turn_and_pieces_keep_their_order() -> None:
    """What takes no time is done at once; nothing of a piece is done before the one in front of it."""
    clock = Clock()
    done: list[str] = []
    run(steps(done, "a", 3, clock, 0.0), (), steps(done, "b", 3, clock, TURN_S), clock=clock)
    assert done == ["a"] * 3 + ["b"] * 3


def test_a_step_that_fails_ends_its_piece_and_no_other() -> None:
    """The failure is told once, and what comes behind is done."""
    clock = Clock()
    done: list[str] = []
    failed: list[str] = []

    def broken() -> Iterator[None]:
        yield
        raise ValueError("a bug")

    run(broken(), steps(done, "b", 2, clock, 0.0), clock=clock, failed=failed)
    assert (done, failed) == (["b"] * 2, ["failed"])
