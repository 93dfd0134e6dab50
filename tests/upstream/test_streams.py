"""TCP connections that are kept: shared, bounded, left when idle or silent, made anew. Real sockets on loopback."""

from __future__ import annotations

import asyncio
import random
import socket
from typing import Any

import pytest
import uvloop

from egressd.settings import Upstream
from egressd.upstream import Failure, connection, streams
from egressd.wire import Answer

from .secure import Streams, framed
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


def carrier(caller: Caller, place: int = 0) -> streams.StreamCarrier:
    """What carries the questions of one upstream."""
    found = caller.upstreams._servers[place].stream
    assert isinstance(found, streams.StreamCarrier)
    return found


@both_loops
def test_many_questions_share_few_connections(loops: Loops) -> None:
    """A thousand at once use at most eight connections, a hundred more one after another open none."""

    async def scene() -> None:
        async with Streams(delay=lambda query: 0.02) as resolver:
            with Caller(resolver.upstream()) as caller:
                for number in range(1000):
                    caller.upstreams.ask(question(f"n{number}.example.com"), number)
                    if number % 50 == 0:
                        await asyncio.sleep(0.002)
                await caller.until(1000)
                assert all(isinstance(outcome, Answer) for outcome in caller.outcomes.values())
                opened = resolver.connections
                assert 1 < opened <= streams.MAX_CONNECTIONS
                for number in range(100):
                    assert await caller.addresses(question(f"m{number}.example.com")) == [RIGHT]
                assert resolver.connections == opened == caller.upstreams.counters["connections"]
                assert len(resolver.queries) == 1100

    play(loops, scene)


def test_a_slow_answer_holds_up_no_other() -> None:
    """Answers come in any order: a question asked later over the same connection is answered first."""

    async def scene() -> None:
        async with Streams(delay=lambda query: 0.5 if b"slow" in query else 0.0) as resolver:
            with Caller(resolver.upstream()) as caller:
                caller.upstreams.ask(question("slow.example.com"), "slow")
                assert await caller.addresses(question("quick.example.com")) == [RIGHT]
                assert "slow" not in caller.outcomes
                await caller.until(2)
                assert isinstance(caller.outcomes["slow"], Answer)
                assert resolver.connections == 1

    play(uvloop.new_event_loop, scene)


def test_answers_cut_into_pieces_are_put_together() -> None:
    """However the octets of many answers are split on their way, each is read."""

    async def scene() -> None:
        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            octets = b""
            for _ in range(3):
                query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                octets += framed(right(query)[0])
            for octet in octets:
                writer.write(bytes((octet,)))
                await writer.drain()
                await asyncio.sleep(0.0005)

        server = await asyncio.start_server(drip, "127.0.0.1", 0)
        with Caller(Upstream(LOOPBACK, server.sockets[0].getsockname()[1], "tcp")) as caller:
            for number in range(3):
                caller.upstreams.ask(question(f"n{number}.example.com"), number)
            await caller.until(3)
            assert all(isinstance(outcome, Answer) for outcome in caller.outcomes.values())
            server.close()

    play(uvloop.new_event_loop, scene)


@both_loops
def test_an_idle_connection_is_closed(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody asks, and it goes, its port with it; the next question opens another."""
    monkeypatch.setattr(connection, "IDLE_S", 0.05)

    async def scene() -> None:
        async with Streams() as resolver:
            with Caller(resolver.upstream()) as caller:
                assert await caller.addresses() == [RIGHT]
                (own,) = caller.upstreams._local
                assert caller.upstreams.is_own(*own)
                await eventually(lambda: not carrier(caller)._sockets)
                assert caller.upstreams._local == set()
                assert await caller.addresses() == [RIGHT]
                assert resolver.connections == 2
                assert caller.upstreams.counters["unreachable"] == 0

    play(loops, scene)


@both_loops
def test_a_connection_closed_under_a_question_costs_nothing(loops: Loops) -> None:
    """A server that closes after every fifth question: the fifth is asked again over a new connection, none fails."""

    async def scene() -> None:
        async with Streams(cut=5) as resolver:
            resolver.say = lambda query: right(query) if len(resolver.queries) % 5 else []
            with Caller(resolver.upstream()) as caller:
                for number in range(20):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                assert caller.upstreams.counters["hung_up"] == 4
                assert caller.upstreams.counters["unreachable"] == 0
                assert caller.upstreams.healthy[0].healthy

    play(loops, scene)


def test_a_server_that_always_hangs_up_gives_way() -> None:
    """A good connection that is cut twice under the same question leads to the next upstream."""

    async def scene() -> None:
        async with Streams(cut=2) as bad, Resolver(right) as good:
            bad.say = lambda query: right(query) if b"first" in query else []
            with Caller(bad.upstream(), good.upstream) as caller:
                assert await caller.addresses(question("first.example.com")) == [RIGHT]
                assert await caller.addresses(question("second.example.com")) == [RIGHT]
                assert caller.upstreams.counters["hung_up"] == 1
                assert len(good.queries) == 1

    play(uvloop.new_event_loop, scene)


@both_loops
def test_a_restarted_server_is_found_again(loops: Loops) -> None:
    """While it is away questions fail; once it is back, a moment later, they are answered."""

    async def scene() -> None:
        resolver = Streams()
        async with resolver:
            with Caller(resolver.upstream()) as caller:
                assert await caller.addresses() == [RIGHT]
                resolver.stop()
                await eventually(lambda: not carrier(caller)._sockets)
                assert isinstance(await caller.outcome(), Failure)
                async with Streams(port=resolver.port):
                    await caller.until_answered()
                    assert caller.upstreams.healthy[0].failures == 0

    play(loops, scene)


def test_a_closed_port_is_not_knocked_at_with_every_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred questions within a moment make a handful of attempts; the pauses double."""
    attempts: list[connection.Connection] = []

    def attempt(carrier: streams.StreamCarrier, sock: socket.socket) -> connection.Connection:
        attempts.append(connection.Connection(carrier, sock))
        return attempts[-1]

    monkeypatch.setattr(streams, "Connection", attempt)

    async def scene() -> None:
        with Caller(Upstream(LOOPBACK, closed_port(), "tcp")) as caller:
            for number in range(200):
                caller.upstreams.ask(question(f"n{number}.example.com"), number)
                await asyncio.sleep(0.002)
            await caller.until(200)
            assert {outcome.ede for outcome in caller.outcomes.values() if isinstance(outcome, Failure)} <= {22, 23}
            assert 1 <= len(attempts) < 40
            assert carrier(caller)._pause_s > streams.FIRST_PAUSE_S

    play(uvloop.new_event_loop, scene)


def test_a_silent_connection_is_left_for_another() -> None:
    """The server forgets a connection without a word: the question is asked again over a new one, and answered."""

    async def scene() -> None:
        async with Streams() as resolver:
            resolver.say = lambda query: [] if b"lost" in query and resolver.connections == 1 else right(query)
            with Caller(resolver.upstream()) as caller:
                assert await caller.addresses(question("first.example.com")) == [RIGHT]
                assert await caller.addresses(question("lost.example.com")) == [RIGHT]
                assert resolver.connections == 2
                await eventually(lambda: len(carrier(caller)._sockets) == 1)

    play(uvloop.new_event_loop, scene)


def test_a_server_that_reads_nothing_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not take is bounded in questions, connections and octets; whatever is above fails at once."""
    monkeypatch.setattr(connection, "MAX_PENDING", 16)

    async def scene() -> None:
        deaf = socket.create_server(("127.0.0.1", 0))
        with Caller(Upstream(LOOPBACK, deaf.getsockname()[1], "tcp")) as caller:
            for number in range(400):
                caller.upstreams.ask(question(f"n{number}.example.com"), number)
                if number % 20 == 0:
                    await asyncio.sleep(0.005)
            waiting = sum(len(each.pending) for each in carrier(caller)._sockets)
            assert waiting <= 16 * streams.MAX_CONNECTIONS
            assert len(carrier(caller)._sockets) <= streams.MAX_SOCKETS
            await caller.until(400)
            assert all(isinstance(outcome, Failure) for outcome in caller.outcomes.values())
        deaf.close()

    play(uvloop.new_event_loop, scene)


def strays(query: bytes) -> bytes:
    """More answers than anybody asked for."""
    said = right(query)[0]
    asked = int.from_bytes(query[:2], "big")
    return b"".join(framed((asked + number & 0xFFFF).to_bytes(2, "big") + said[2:]) for number in range(1, 3000))


@pytest.mark.parametrize(
    ("octets", "ede"),
    [
        (lambda query: b"\0\0", 22),
        (lambda query: b"\0\x05hello", 22),
        (lambda query: framed(query[:2] + reply(query.replace(b"api", b"www"), RIGHT)[2:]), 22),
        (strays, 22),
        (lambda query: framed(reply(query, RIGHT, tc=True)), 22),
        (lambda query: framed(reply(query, RIGHT)[:-20]), 22),
    ],
    ids=["empty", "short", "other question", "strays", "truncated", "malformed"],
)
def test_what_breaks_the_protocol_leads_on(octets: Any, ede: int) -> None:
    """Whatever a server sends but an answer leads to the next upstream, and with none to a failure that says so."""

    async def scene() -> None:
        async with Streams(octets=octets) as bad, Resolver(right) as good:
            with Caller(bad.upstream(), good.upstream) as caller:
                assert await caller.addresses() == [RIGHT]
            with Caller(bad.upstream()) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Failure)
                assert outcome.ede == ede
                assert outcome.text.startswith("tcp://127.0.0.1:")

    play(uvloop.new_event_loop, scene)


def test_the_largest_message_is_read() -> None:
    """65,535 octets, which is what the length field can say, and 512 records, which is what is read of one answer."""
    many = [f"198.51.{100 + number // 250}.{number % 250 + 1}" for number in range(500)]

    async def scene() -> None:
        def full(query: bytes) -> list[bytes]:
            said = reply(query, *many, edns=False)
            padding = 65_535 - len(said) - 11
            head = said[:10] + (1).to_bytes(2, "big") + said[12:]
            opt = b"\0\0\x29\x04\xd0\0\0\0\0" + padding.to_bytes(2, "big")
            return [head + opt + b"\0\x0c" + (padding - 4).to_bytes(2, "big") + bytes(padding - 4)]

        async with Streams(full) as resolver:
            with Caller(resolver.upstream()) as caller:
                answer = await caller.outcome()
                assert isinstance(answer, Answer)
                assert len(answer.data) == 65_535
                assert len(answer.addresses) == 500

    play(uvloop.new_event_loop, scene)


def test_truncated_datagrams_share_a_connection() -> None:
    """Answers that do not fit a datagram are fetched over one connection, which is kept."""

    async def scene() -> None:
        async with Streams() as stream:
            datagrams = Resolver(lambda query: [reply(query, tc=True)])
            datagrams.port = stream.port
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            sock.bind(("127.0.0.1", stream.port))
            datagrams._udp = sock
            asyncio.get_running_loop().add_reader(sock.fileno(), datagrams._readable)
            with Caller(datagrams.upstream) as caller:
                for number in range(10):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                assert (stream.connections, caller.upstreams.counters["truncated"]) == (1, 10)
            asyncio.get_running_loop().remove_reader(sock.fileno())
            sock.close()

    play(uvloop.new_event_loop, scene)


def test_the_source_mark_is_on_connections() -> None:
    """With `source_mark` the kernel can tell our own connections too."""

    async def scene() -> None:
        async with Streams() as resolver:
            with Caller(resolver.upstream(), source_mark=0x40000) as caller:
                assert await caller.addresses() == [RIGHT]
                (open_,) = carrier(caller)._sockets
                assert open_._sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x40000

    play(uvloop.new_event_loop, scene)


def test_garbage_never_escapes() -> None:
    """Random octets in place of answers, in random pieces: each question ends in an outcome, none in an error."""
    draw = random.Random(1)

    async def scene() -> None:
        def octets(query: bytes) -> bytes:
            said = bytearray(framed(right(query)[0]))
            for _ in range(draw.randrange(4)):
                said[draw.randrange(len(said))] = draw.randrange(256)
            return bytes(said) + draw.randbytes(draw.randrange(40))

        async with Streams(octets=octets) as bad, Resolver(right) as good:
            with Caller(bad.upstream(), good.upstream) as caller:
                for number in range(300):
                    caller.upstreams.ask(question(f"n{number}.example.com"), number)
                    if number % 10 == 0:
                        await asyncio.sleep(0.01)
                await caller.until(300)
                assert all(isinstance(outcome, Answer) for outcome in caller.outcomes.values())
                assert len(caller.upstreams) == 0

    play(uvloop.new_event_loop, scene)


def test_a_question_given_up_is_forgotten() -> None:
    """A server that answers nothing: after the failure no connection remembers the question."""

    async def scene() -> None:
        async with Streams(silent) as resolver:
            with Caller(resolver.upstream()) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Failure)
                assert "no answer in time" in outcome.text
                assert all(not each.pending for each in carrier(caller)._sockets)
                assert len(resolver.queries) == resolver.connections

    play(uvloop.new_event_loop, scene)
