"""Sharing, batches, unpredictable IDs and ports, and what is left behind. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
from itertools import pairwise

import pytest
import uvloop

from egressd.settings import Upstream
from egressd.upstream import datagrams
from egressd.wire import Answer

from .world import (
    FORGED,
    LOOPBACK,
    RIGHT,
    Caller,
    Loops,
    Resolver,
    both_loops,
    closed_port,
    eventually,
    other_id,
    play,
    question,
    reply,
    right,
    silent,
)


def test_one_question_is_asked_once() -> None:
    """Twenty waiters, in differing letter case, share one datagram and its answer, in one delivery."""

    async def scene() -> None:
        async with Resolver(right) as resolver:
            with Caller(resolver.upstream) as caller:
                for waiter in range(20):
                    name = "API.example.com" if waiter % 2 else "api.example.com"
                    caller.upstreams.ask(question(name), waiter)
                assert caller.upstreams.asking(question())
                await caller.until(20)
                assert len(resolver.queries) == 1
                assert caller.deliveries == [20]
                assert not caller.upstreams.asking(question())
                assert caller.upstreams.counters["shared"] == 19

    play(uvloop.new_event_loop, scene)


@both_loops
def test_answers_that_wait_together_are_delivered_together(loops: Loops) -> None:
    """Answers that arrived while the loop was busy come in few deliveries, at most 32 datagrams each."""

    async def scene() -> None:
        held: list[tuple[bytes, tuple[str, int]]] = []
        resolver = Resolver(silent)
        async with resolver:
            with Caller(resolver.upstream) as caller:
                for number in range(64):
                    caller.upstreams.ask(question(f"n{number}.example.com"), number)
                await eventually(lambda: len(resolver.queries) == 64)
                held = list(zip(resolver.queries, resolver.sources, strict=True))
                for query, source in held:
                    resolver._udp.sendto(reply(query, RIGHT), source)
                await caller.until(64)
                assert max(caller.deliveries) <= 32
                assert max(caller.deliveries) > 8  # 64 questions over 32 random sockets: about 28 differ

    play(loops, scene)


@both_loops
def test_gathered_questions_leave_together(loops: Loops) -> None:
    """With `gather` nothing leaves before `push`; then a batch leaves from one port, and the next from another."""

    async def scene() -> None:
        async with Resolver(right) as resolver:
            with Caller(resolver.upstream, gather=True) as caller:
                for batch in range(8):
                    for number in range(80):
                        caller.upstreams.ask(question(f"n{number}.b{batch}.example.com"), (batch, number))
                    await asyncio.sleep(0)
                    assert len(resolver.queries) == batch * 80
                    caller.upstreams.push()
                    await caller.until((batch + 1) * 80)
                ports = [source[1] for source in resolver.sources]
                assert all(len(set(ports[batch * 80 : (batch + 1) * 80])) == 1 for batch in range(8))
                assert len(set(ports)) > 1
                assert all(isinstance(outcome, Answer) for outcome in caller.outcomes.values())

    play(loops, scene)


@both_loops
def test_gathered_questions_that_cannot_leave_are_asked_elsewhere(loops: Loops) -> None:
    """Where the kernel knows no way to one upstream, a whole batch goes to the next, in the same push."""

    async def scene() -> None:
        nowhere = Upstream(socket.inet_pton(socket.AF_INET, "255.255.255.255"))
        async with Resolver(right) as resolver:
            with Caller(nowhere, resolver.upstream, gather=True) as caller:
                for number in range(40):
                    caller.upstreams.ask(question(f"n{number}.example.com"), number)
                caller.upstreams.push()
                await caller.until(40)
                assert all(isinstance(outcome, Answer) for outcome in caller.outcomes.values())
            with Caller(Upstream(LOOPBACK, closed_port()), resolver.upstream, gather=True) as caller:
                for number in range(40):
                    caller.upstreams.ask(question(f"m{number}.example.com"), number)
                caller.upstreams.push()
                await caller.until(40)
                assert all(isinstance(outcome, Answer) for outcome in caller.outcomes.values())

    play(loops, scene)


def test_the_same_words_are_understood_once() -> None:
    """From the second time on, an answer that differs from the last by its ID alone is that one; any other is new."""

    async def scene() -> None:
        said = [RIGHT, RIGHT, RIGHT, FORGED]
        async with Resolver(lambda query: [reply(query, said.pop(0))]) as resolver:
            with Caller(resolver.upstream) as caller:
                _, second, third, fourth = [await caller.outcome() for _ in range(4)]
                assert second is third
                assert isinstance(fourth, Answer)
                assert fourth.addresses == (socket.inet_pton(socket.AF_INET, FORGED),)

    play(uvloop.new_event_loop, scene)


def test_ids_and_ports_are_spread() -> None:
    """A thousand questions: IDs and ports spread over their ranges, and the kernel chose ports out of order."""

    async def scene() -> None:
        async with Resolver(right) as resolver:
            with Caller(resolver.upstream) as caller:
                for start in range(0, 1000, 100):
                    for number in range(start, start + 100):
                        caller.upstreams.ask(question(f"n{number}.example.com"), number)
                    await caller.until(start + 100)
                idents = [int.from_bytes(query[:2], "big") for query in resolver.queries]
                assert len(set(idents)) > 950  # 1000 of 65536: about 8 repeat
                assert min(idents) < 4096
                assert max(idents) > 61440
                ports = list(dict.fromkeys(port for _, port in resolver.sources))
                assert len(ports) == datagrams.POOL
                assert ports != sorted(ports)
                gaps = [abs(second - first) for first, second in pairwise(ports)]
                assert sum(gap > 256 for gap in gaps) > len(gaps) / 2

    play(uvloop.new_event_loop, scene)


def test_sockets_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its uses a socket gives way to one on another port; an unanswered question keeps the old one alive."""
    monkeypatch.setattr(datagrams, "MAX_USES", 4)
    monkeypatch.setattr(datagrams, "POOL", 1)

    async def scene() -> None:
        resolver = Resolver(silent)
        resolver.say = lambda query: [] if b"\x04held" in query else right(query)
        async with resolver:
            with Caller(resolver.upstream) as caller:
                caller.upstreams.ask(question("held.example.com"), "held")
                for number in range(12):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                assert len({port for _, port in resolver.sources}) == 4
                assert len(caller.upstreams._datagrams._channels) == 2
                resolver._udp.sendto(reply(resolver.queries[0], RIGHT), resolver.sources[0])
                await caller.until(13)
                assert isinstance(caller.outcomes["held"], Answer)
                assert len(caller.upstreams._datagrams._channels) == 1

    play(uvloop.new_event_loop, scene)


def test_a_forger_loses_the_port() -> None:
    """A socket that saw many forged datagrams is left for a new one."""

    async def scene() -> None:
        async with Resolver(lambda query: [other_id(query)] * 40 + right(query)) as resolver:
            with Caller(resolver.upstream) as caller:
                for number in range(200):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                ports = {port for _, port in resolver.sources}
                assert len(ports) > 190  # the kernel picks at random, and may pick a closed one again

    play(uvloop.new_event_loop, scene)


@both_loops
def test_ten_thousand_questions_leave_nothing_behind(loops: Loops) -> None:
    """Bursts of 500, a tenth of them never answered at first: no socket, question or ID stays, every waiter is told."""

    async def scene() -> None:
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counting, at rest
        async with Resolver(right) as resolver:
            seen: set[bytes] = set()

            def forgetful(query: bytes) -> list[bytes]:
                name = query[12:]
                if name[2:3] == b"7" and name not in seen:
                    seen.add(name)
                    return []
                return right(query)

            resolver.say = forgetful
            with Caller(resolver.upstream) as caller:
                for start in range(0, 10_000, 500):
                    for number in range(start, start + 500):
                        caller.upstreams.ask(question(f"n{number}.example.com"), number)
                    await asyncio.sleep(0)
                    await caller.until(start + 450)
                await caller.until(10_000)
                counted = caller.upstreams.counters
                assert counted["answered"] + counted["failed"] == counted["asked"] == 10_000
                assert counted["failed"] == 0
                assert len(caller.upstreams) == 0
                channels = caller.upstreams._datagrams._channels.values()
                assert len(channels) <= datagrams.POOL
                assert not any(channel.pending for channel in channels)
                assert len(caller.upstreams._local) == len(channels)
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) <= before + 2  # noqa: PTH208 - the loop's own

    play(loops, scene)


def test_own_questions_are_recognised() -> None:
    """A query from one of our sockets is known as ours by address and port, and no longer once it is closed."""

    async def scene() -> None:
        async with Resolver(right) as resolver:
            caller = Caller(resolver.upstream)
            await caller.addresses()
            address, port = resolver.sources[0]
            own = socket.inet_pton(socket.AF_INET, address)
            assert caller.upstreams.is_own(own, port)
            assert not caller.upstreams.is_own(bytes((192, 0, 2, 1)), port)
            caller.upstreams.close()
            assert not caller.upstreams.is_own(own, port)

    play(uvloop.new_event_loop, scene)


def test_the_source_mark_is_on_every_socket() -> None:
    """With `source_mark` the kernel can tell our own queries from everybody else's."""

    async def scene() -> None:
        async with Resolver(right) as resolver:
            with Caller(resolver.upstream, source_mark=0x40000) as caller:
                await caller.addresses()
                for channel in caller.upstreams._datagrams._channels.values():
                    assert channel.sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x40000

    play(uvloop.new_event_loop, scene)


def test_closing_while_asking_is_quiet() -> None:
    """Close with questions in flight over UDP and TCP: nothing is delivered, no task complains."""

    async def scene() -> None:
        async with Resolver(silent) as resolver:
            caller = Caller(resolver.upstream)
            caller.upstreams.ask(question(), "udp")
            deaf = socket.create_server(("127.0.0.1", 0))  # connects, and never answers
            other = Caller(Upstream(LOOPBACK, deaf.getsockname()[1], "tcp"))
            other.upstreams.ask(question(), "tcp")
            hasty = Caller(Upstream(LOOPBACK, deaf.getsockname()[1], "tcp"))
            await asyncio.sleep(0.02)
            hasty.upstreams.ask(question(), "never begun")
            hasty.upstreams.close()
            caller.upstreams.close()
            other.upstreams.close()
            await asyncio.sleep(0.3)
            assert caller.outcomes == other.outcomes == hasty.outcomes == {}
            deaf.close()

    play(uvloop.new_event_loop, scene)
