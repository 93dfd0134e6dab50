"""What counts as an answer: forgeries, truncation, EDNS, malformed octets. Real sockets on loopback."""

from __future__ import annotations

import os
import socket
import struct

import dns.message
import pytest
import uvloop

from egressd.upstream import Failure
from egressd.wire import Answer, upstream_query

from .world import (
    FORGED,
    RIGHT,
    Caller,
    Loops,
    Resolver,
    both_loops,
    other_id,
    play,
    question,
    reply,
    right,
    silent,
)


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
