"""Who is asked next, when, and when to give up. Real sockets on loopback."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from egressd.errors import EnvironmentProblem
from egressd.settings import Upstream
from egressd.upstream import Failure, Upstreams
from egressd.wire import Answer

from .world import (
    LOOPBACK,
    RIGHT,
    Caller,
    Loops,
    Resolver,
    both_loops,
    closed_port,
    eventually,
    play,
    question,
    reply,
    right,
    silent,
)


@both_loops
def test_a_lost_query_is_asked_again(loops: Loops) -> None:
    """A resolver that loses the first query is asked a second time, with another ID, and answers."""

    async def scene() -> None:
        resolver = Resolver(silent)
        resolver.say = lambda query: right(query) if len(resolver.queries) > 1 else []
        async with resolver:
            with Caller(resolver.upstream) as caller:
                assert await caller.addresses() == [RIGHT]
                assert len(resolver.queries) == 2
                assert resolver.queries[0][2:] == resolver.queries[1][2:]
                assert caller.upstreams.counters["timeouts"] == 1

    play(loops, scene)


def test_the_second_upstream_steps_in_and_is_then_preferred() -> None:
    """A silent first upstream costs one wait; after three failures it is asked last."""

    async def scene() -> None:
        async with Resolver(silent) as first, Resolver(right) as second:
            with Caller(first.upstream, second.upstream) as caller:
                for number in range(3):
                    caller.upstreams.ask(question(f"n{number}.example.com"), number)
                await caller.until(3)
                assert (len(first.queries), len(second.queries)) == (3, 3)
                assert [health.healthy for health in caller.upstreams.healthy] == [False, True]
                assert await caller.addresses() == [RIGHT]
                assert len(first.queries) == 3

    play(uvloop.new_event_loop, scene)


def test_a_late_answer_still_counts() -> None:
    """The first upstream's answer, late but within the budget, is taken while the second is being asked."""

    async def scene() -> None:
        slow = Resolver(silent)
        async with slow, Resolver(silent) as second:
            with Caller(slow.upstream, second.upstream) as caller:
                caller.upstreams.ask(question(), "w")
                await eventually(lambda: bool(second.queries))
                slow._udp.sendto(reply(slow.queries[0], RIGHT), slow.sources[0])
                await caller.until(1)
                assert isinstance(caller.outcomes["w"], Answer)

    play(uvloop.new_event_loop, scene)


def test_silence_ends_in_a_failure() -> None:
    """A few queries in four seconds without an answer end as EDE 22, and nothing stays behind."""

    async def scene() -> None:
        async with Resolver(silent) as resolver:
            with Caller(resolver.upstream) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Failure)
                assert outcome.ede == 22
                assert "no answer in time" in outcome.text
                assert len(resolver.queries) in {3, 4}  # from the second on waits have some jitter
                assert len(caller.upstreams) == 0
                assert all(not channel.pending for channel in caller.upstreams._datagrams._channels.values())

    play(uvloop.new_event_loop, scene)


@both_loops
def test_a_refused_port_moves_on_at_once(loops: Loops) -> None:
    """ICMP refusal leads to the next upstream without waiting, time after time (a poll in error goes on polling)."""

    async def scene() -> None:
        async with Resolver(right) as second:
            with Caller(Upstream(LOOPBACK, closed_port()), second.upstream) as caller:
                for number in range(100):
                    caller.upstreams.ask(question(f"n{number}.example.com"), number)
                await caller.until(100)
                assert caller.upstreams.counters["timeouts"] == 0
                assert caller.upstreams.counters["unreachable"] > 0
                assert all(isinstance(outcome, Answer) for outcome in caller.outcomes.values())

    play(loops, scene)


@both_loops
def test_nobody_listening_fails_at_once(loops: Loops) -> None:
    """With every upstream refused the failure comes without a timeout, for each of many questions."""

    async def scene() -> None:
        with Caller(Upstream(LOOPBACK, closed_port())) as caller:
            for number in range(200):
                caller.upstreams.ask(question(f"n{number}.example.com"), number)
                if number % 10 == 0:
                    await asyncio.sleep(0.01)
            await caller.until(200)
            assert caller.upstreams.counters["timeouts"] == 0
            assert {outcome.ede for outcome in caller.outcomes.values() if isinstance(outcome, Failure)} == {22}

    play(loops, scene)


def test_no_route_fails_without_reentrance() -> None:
    """An address that the kernel has no way to fails, but not before `ask` has returned."""

    async def scene() -> None:
        with Caller(Upstream(bytes((255, 255, 255, 255)))) as caller:
            caller.upstreams.ask(question(), "w")
            assert caller.outcomes == {}
            await caller.until(1)
            assert isinstance(caller.outcomes["w"], Failure)

    play(uvloop.new_event_loop, scene)


@pytest.mark.parametrize("rcode", ["SERVFAIL", "REFUSED"])
def test_a_failing_upstream_gives_way(rcode: str) -> None:
    """SERVFAIL and REFUSED send the question on; where nobody knows better the answer is passed on as it is."""

    async def scene() -> None:
        async with Resolver(lambda query: [reply(query, rcode=rcode)]) as bad, Resolver(right) as good:
            with Caller(bad.upstream, good.upstream) as caller:
                assert await caller.addresses() == [RIGHT]
            with Caller(bad.upstream) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Answer)
                assert outcome.rcode in {2, 5}
                assert caller.upstreams.counters["timeouts"] == 0

    play(uvloop.new_event_loop, scene)


@pytest.mark.parametrize("refusing_first", [False, True])
def test_a_refusal_waits_for_the_one_who_may_know(refusing_first: bool) -> None:
    """One says SERVFAIL at once; the other, quick until now, takes three tenths of a second, and is heard."""

    async def scene() -> None:
        async with Resolver(right) as knowing, Resolver(lambda query: [reply(query, rcode="SERVFAIL")]) as refusing:
            with Caller(knowing.upstream, refusing.upstream) as caller:
                for number in range(20):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]

                def late(query: bytes) -> list[bytes]:
                    here, source = knowing._udp, knowing.sources[-1]
                    asyncio.get_running_loop().call_later(0.3, here.sendto, reply(query, RIGHT), source)
                    return []

                knowing.say = late
                if refusing_first:
                    caller.upstreams._choice._order = caller.upstreams._servers[::-1]
                caller.upstreams._choice._sort_at = float("inf")
                assert await caller.addresses() == [RIGHT]
                assert caller.upstreams.counters["servfail"] >= 1

    play(uvloop.new_event_loop, scene)


@both_loops
def test_tcp_upstreams_are_asked_over_tcp_alone(loops: Loops) -> None:
    """`tcp://` never sends a datagram; a refused connection moves on."""

    async def scene() -> None:
        async with Resolver(silent, right) as resolver:
            with Caller(Upstream(LOOPBACK, closed_port(), "tcp"), resolver.over("tcp")) as caller:
                assert await caller.addresses() == [RIGHT]
                assert resolver.queries == []
                assert all(not channels for channels in caller.upstreams._datagrams._channels.values())

    play(loops, scene)


def test_no_upstream_stops_the_start() -> None:
    """With a sentence that says what to set."""
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(EnvironmentProblem, match=r"no upstream to ask; list resolvers in dns\.upstreams"):
            Upstreams(loop, [], lambda settled: None)
    finally:
        loop.close()
