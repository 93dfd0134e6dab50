"""Asking: what counts as an answer, who is asked next, and what is left behind. Both loops, real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from itertools import pairwise

import dns.message
import pytest
import uvloop

from egressd.errors import EnvironmentProblem
from egressd.settings import Upstream
from egressd.upstream import Failure, Health, Upstreams, datagrams
from egressd.wire import Answer, upstream_query

from .world import LOOPBACK, Caller, Loops, Resolver, both_loops, eventually, play, question, reply

RIGHT = "192.0.2.7"
FORGED = "203.0.113.66"


def silent(query: bytes) -> list[bytes]:
    """The script of a resolver that never answers."""
    return []


def right(query: bytes) -> list[bytes]:
    """The script of a resolver that answers well."""
    return [reply(query, RIGHT)]


def closed_port() -> int:
    """A loopback port where nothing listens: what is sent there is refused by ICMP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@both_loops
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_answer_comes_back_as_it_was_sent(loops: Loops, address: str) -> None:
    """The waiter gets the resolver's own bytes, read; the query on the wire was fresh and carried OPT."""

    async def scene() -> None:
        async with Resolver(right, address=address) as resolver:
            with Caller(resolver.upstream) as caller:
                answer = await caller.outcome()
                assert isinstance(answer, Answer)
                assert answer.data == reply(resolver.queries[0], RIGHT)
                assert dns.message.from_wire(resolver.queries[0]).payload == 1232
                assert len(caller.upstreams) == 0

    play(loops, scene)


def other_id(query: bytes) -> bytes:
    """A forged answer with another ID."""
    said = reply(query, FORGED)
    return bytes((said[0] ^ 1,)) + said[1:]


def other_name(query: bytes) -> bytes:
    """A forged answer to another question, with the right ID."""
    return query[:2] + reply(upstream_query(question("www.example.com"), 0), FORGED)[2:]


def other_type(query: bytes) -> bytes:
    """A forged answer whose question has another type."""
    at = query.index(b"\x03com\x00") + 6
    said = reply(query, FORGED)
    return said[:at] + bytes((28,)) + said[at + 1 :]


def no_response(query: bytes) -> bytes:
    """The query itself, echoed."""
    return query


def two_questions(query: bytes) -> bytes:
    """A response that claims two questions."""
    said = reply(query, FORGED)
    return said[:4] + b"\0\2" + said[6:]


FORGERIES = [other_id, other_name, other_type, no_response, two_questions, lambda query: b"", lambda query: query[:1]]


@both_loops
@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_forged_replies_change_nothing(loops: Loops, forge: object) -> None:
    """Ten forged datagrams ahead of the right one are counted and ignored; the right one still counts."""
    assert callable(forge)

    async def scene() -> None:
        async with Resolver(lambda query: [forge(query)] * 10 + right(query)) as resolver:
            with Caller(resolver.upstream) as caller:
                assert await caller.addresses() == [RIGHT]
                assert caller.upstreams.counters["forged"] == 10
                assert len(resolver.queries) == 1

    play(loops, scene)


def test_only_the_peer_is_heard() -> None:
    """A perfect answer from another port of the same address never reaches the reader."""

    async def scene() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            resolver = Resolver(silent)

            def say(query: bytes) -> list[bytes]:
                stranger.sendto(reply(query, FORGED), resolver.sources[-1])
                return right(query)

            resolver.say = say
            async with resolver:
                with Caller(resolver.upstream) as caller:
                    assert await caller.addresses() == [RIGHT]
                    assert caller.upstreams.counters["forged"] == 0

    play(uvloop.new_event_loop, scene)


def test_letter_case_of_the_answer_is_free() -> None:
    """A resolver may answer in other letter case than it was asked (RFC 1035 section 2.3.3)."""

    async def scene() -> None:
        async with Resolver(lambda query: [reply(query.replace(b"api", b"ApI"), RIGHT)]) as resolver:
            with Caller(resolver.upstream) as caller:
                assert await caller.addresses() == [RIGHT]

    play(uvloop.new_event_loop, scene)


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
    """Three queries in four seconds without an answer end as EDE 22, and nothing stays behind."""

    async def scene() -> None:
        async with Resolver(silent) as resolver:
            with Caller(resolver.upstream) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Failure)
                assert outcome.ede == 22
                assert "no answer in time" in outcome.text
                assert len(resolver.queries) == 3
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


def test_nxdomain_is_an_answer() -> None:
    """NXDOMAIN is final: the second upstream is not asked."""

    async def scene() -> None:
        async with Resolver(lambda query: [reply(query, rcode="NXDOMAIN")]) as first, Resolver(right) as second:
            with Caller(first.upstream, second.upstream) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Answer)
                assert outcome.rcode == 3
                assert second.queries == []

    play(uvloop.new_event_loop, scene)


@both_loops
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_truncated_answer_is_fetched_over_tcp(loops: Loops, address: str) -> None:
    """TC leads to the same upstream over TCP; an answer of 300 addresses arrives whole."""
    many = [f"198.51.{100 + number // 250}.{number % 250 + 1}" for number in range(300)]

    async def scene() -> None:
        resolver = Resolver(lambda query: [reply(query, tc=True)], lambda query: [reply(query, *many)], address)
        async with resolver:
            with Caller(resolver.upstream) as caller:
                assert sorted(await caller.addresses()) == sorted(many)
                assert (len(resolver.queries), resolver.over_tcp) == (1, 1)
                assert caller.upstreams.counters["truncated"] == 1

    play(loops, scene)


@pytest.mark.parametrize("case", ["wrong id", "wrong question", "closed", "garbage"])
def test_tcp_that_goes_wrong_moves_on(case: str) -> None:
    """Whatever a TCP connection brings but the answer leads to the next upstream."""
    scripts = {
        "wrong id": lambda query: [other_id(query)],
        "wrong question": lambda query: [other_name(query)],
        "closed": silent,
        "garbage": lambda query: [os.urandom(64)],
    }

    async def scene() -> None:
        async with Resolver(silent, scripts[case]) as bad, Resolver(right) as good:
            with Caller(bad.over("tcp"), good.upstream) as caller:
                assert await caller.addresses() == [RIGHT]
                assert len(good.queries) == bad.over_tcp == 1
            with Caller(bad.over("tcp")) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Failure)
                assert outcome.ede in {22, 23}

    play(uvloop.new_event_loop, scene)


@both_loops
def test_tcp_upstreams_are_asked_over_tcp_alone(loops: Loops) -> None:
    """`tcp://` never sends a datagram; a refused connection moves on."""

    async def scene() -> None:
        async with Resolver(silent, right) as resolver:
            with Caller(Upstream(LOOPBACK, closed_port(), "tcp"), resolver.over("tcp")) as caller:
                assert await caller.addresses() == [RIGHT]
                assert resolver.queries == []
                assert caller.upstreams._local == set()

    play(loops, scene)


@pytest.mark.parametrize("bare", [False, True], ids=["with question", "header alone"])
def test_edns_is_left_out_where_it_is_not_understood(bare: bool) -> None:
    """FORMERR to a query with OPT leads to the same query without it."""

    def old(query: bytes) -> list[bytes]:
        if dns.message.from_wire(query).edns < 0:
            return [reply(query, RIGHT, edns=False)]
        refusal = reply(query, rcode="FORMERR", edns=False)
        return [refusal[:4] + bytes(8) if bare else refusal]

    async def scene() -> None:
        async with Resolver(old) as resolver:
            with Caller(resolver.upstream) as caller:
                assert await caller.addresses() == [RIGHT]
                assert len(resolver.queries) == 2
                assert caller.upstreams.counters["no_edns"] == 1

    play(uvloop.new_event_loop, scene)


def test_a_persistent_formerr_is_passed_on() -> None:
    """FORMERR without EDNS too is the answer."""

    async def scene() -> None:
        async with Resolver(lambda query: [reply(query, rcode="FORMERR", edns=False)]) as resolver:
            with Caller(resolver.upstream) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Answer)
                assert outcome.rcode == 1
                assert len(resolver.queries) == 2

    play(uvloop.new_event_loop, scene)


def test_a_malformed_answer_is_a_failure() -> None:
    """The right ID and question with records cut off: counted, and a failure where there is nobody else."""

    async def scene() -> None:
        async with Resolver(lambda query: [reply(query, RIGHT)[:-20]]) as resolver:
            with Caller(resolver.upstream) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Failure)
                assert outcome.ede == 22
                assert caller.upstreams.counters["malformed"] == 1
                assert caller.upstreams.counters["forged"] == 0

    play(uvloop.new_event_loop, scene)


def test_garbage_never_escapes() -> None:
    """Random octets behind the right ID and question, a thousand times: each ends in an outcome, none in an error."""

    async def scene() -> None:
        def say(query: bytes) -> list[bytes]:
            head = bytearray(query[: 12 + len(question("n000.example.com").raw)])
            head[2] = 0x81
            struct.pack_into(">HHH", head, 6, *os.urandom(3))
            return [bytes(head) + os.urandom(80)]

        async with Resolver(say) as resolver:
            with Caller(resolver.upstream) as caller:
                for start in range(0, 1000, 100):
                    for number in range(start, start + 100):
                        caller.upstreams.ask(question(f"n{number:03}.example.com"), number)
                    await caller.until(start + 100)
                assert len(caller.upstreams) == 0

    play(uvloop.new_event_loop, scene)


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
                assert len({port for _, port in resolver.sources}) == 200

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
            await asyncio.sleep(0.02)
            caller.upstreams.close()
            other.upstreams.close()
            await asyncio.sleep(0.3)
            assert caller.outcomes == other.outcomes == {}
            deaf.close()

    play(uvloop.new_event_loop, scene)


@pytest.mark.parametrize("scheme", ["tls", "https"])
def test_what_this_version_cannot_ask_is_refused(scheme: str) -> None:
    """DoT and DoH upstreams stop the start with a sentence that names them."""
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(EnvironmentProblem, match=f"{scheme} is not in this version"):
            Upstreams(loop, [Upstream(LOOPBACK, 853, scheme)], lambda settled: None)
        with pytest.raises(EnvironmentProblem, match="no upstream"):
            Upstreams(loop, [], lambda settled: None)
    finally:
        loop.close()


def test_health_pauses_grow_and_end() -> None:
    """Three failures begin a pause; failures within it do not lengthen it, later ones double it; an answer ends all."""
    health = Health(Upstream(LOOPBACK))
    for _ in range(2):
        health.stumbled(10.0)
    assert health.healthy
    assert not health.avoided(10.0)
    for _ in range(50):
        health.stumbled(10.0)
    assert health.avoided(10.9)
    assert not health.avoided(11.1)
    health.stumbled(12.0)
    assert health.avoided(13.9)
    assert not health.avoided(14.1)
    health.succeeded()
    assert health.healthy
    assert not health.avoided(12.0)
    assert str(health) == "udp://127.0.0.1:53"
