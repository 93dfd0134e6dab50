"""Whom to ask first and how long to wait: what answers teach, what silence teaches, and that nothing flaps."""

from __future__ import annotations

import asyncio
import itertools

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from egressd.settings import Upstream
from egressd.upstream import Health, choice, health
from egressd.upstream.choice import Choice
from egressd.upstream.flight import Flight, Server
from egressd.wire import Answer

from .secure import Streams
from .world import LOOPBACK, RIGHT, Caller, Resolver, eventually, play, question, reply, right, silent


class Nowhere:
    """A carrier that carries nothing."""

    server: Server

    def send(self, flight: Flight, now: float) -> float:
        raise OSError(0, "nowhere")

    def close(self) -> None:
        """Nothing to close."""


def servers(*schemes: str) -> list[Server]:
    """Servers that are never asked."""
    upstreams = [Upstream(LOOPBACK, port, scheme) for port, scheme in enumerate(schemes, 1)]
    return [Server(upstream, Health(upstream), Nowhere(), Nowhere()) for upstream in upstreams]


def well(caller: Caller) -> bool:
    """Whether the first upstream is."""
    return caller.upstreams.healthy[0].healthy


def ports(ordered: tuple[Server, ...]) -> list[int]:
    """The order, by the numbers that `servers` gave."""
    return [server.upstream.port for server in ordered]


# ---------------------------------------------------------------------------------------------------- waiting


def test_waits_follow_what_was_measured() -> None:
    """0.8 s before any answer; then the smoothed time and four deviations, never under 50 ms nor over 0.8 s."""
    known = Health(Upstream(LOOPBACK))
    assert known.wait_s(0) == 0.8
    known.measured(0.1, 10.0)
    assert known.wait_s(0) == pytest.approx(0.1 + 4 * 0.05)
    for step in range(200):
        known.measured(0.1, 11.0 + step)
    assert known.rtt_s == pytest.approx(0.1)
    assert known.wait_s(0) == pytest.approx(0.1, abs=0.01)
    for step in range(200):
        known.measured(0.0005, 300.0 + step)
    assert known.wait_s(0) == 0.05
    for step in range(50):
        known.measured(3.0, 600.0 + step)
    assert known.wait_s(0) == 0.8


def test_each_wait_is_twice_the_one_before() -> None:
    """With some jitter, up to two seconds: seven waits from 50 ms on fill the four seconds of a question."""
    known = Health(Upstream(LOOPBACK))
    for step in range(100):
        known.measured(0.001, float(step))
    for timeouts in range(1, 8):
        whole = min(0.05 * 2**timeouts, 2.0)
        drawn = {known.wait_s(timeouts) for _ in range(50)}
        assert len(drawn) > 10
        assert min(drawn) >= 0.75 * whole
        assert max(drawn) <= whole
    assert sum(min(0.05 * 2**step, 2.0) for step in range(7)) > 4


def test_silence_is_no_reason_for_haste() -> None:
    """From the third failure in a row on the wait is 0.8 s again, until something comes."""
    known = Health(Upstream(LOOPBACK))
    known.measured(0.001, 10.0)
    waits = []
    for _ in range(4):
        waits.append(known.wait_s(0))
        known.stumbled(10.2, 10.1)
    assert waits == [0.05, 0.05, 0.05, 0.8]
    known.answered(refused=False)
    assert known.wait_s(0) == 0.05


def test_a_slow_answer_is_not_forgotten_within_a_second() -> None:
    """A thousand quick answers within a tenth of a second do not make the next slow one look lost."""
    known = Health(Upstream(LOOPBACK))
    known.measured(0.001, 0.0)
    known.measured(0.4, 1.0)
    before = known.wait_s(0)
    assert before > 0.2
    for step in range(1000):
        known.measured(0.001, 1.0 + step / 10_000)
    assert known.wait_s(0) > 0.8 * before - 0.1
    for step in range(100):
        known.measured(0.001, 1.1 + step / 10)
    assert known.wait_s(0) < 0.1


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 30)), max_size=60))
def test_waits_stay_within_their_bounds(samples: list[tuple[float, float]]) -> None:
    """Whatever is measured and whenever: estimates are finite and positive, every wait is between 37 ms and 2 s."""
    known = Health(Upstream(LOOPBACK))
    now = 0.0
    for rtt_s, later in samples:
        now += later
        known.measured(rtt_s, now)
        assert 0 < known.rtt_s <= 10
        for timeouts in range(8):
            assert 0.0375 <= known.wait_s(timeouts) <= 2.0


# ------------------------------------------------------------------------------------------------------ health


def test_silence_takes_three_failures_and_a_while() -> None:
    """Three questions lost within a moment say nothing; nor do two in a minute; an answer in between begins anew."""
    known = Health(Upstream(LOOPBACK))
    assert [known.stumbled(10.1, 10.05) for _ in range(20)] == [False] * 20
    assert known.healthy
    assert known.stumbled(10.9, 10.85)
    assert (known.healthy, known.failures, known.avoided) == (False, 21, True)
    assert not known.stumbled(11.9, 11.0)
    known.answered(refused=False)
    assert (known.healthy, known.failures, known.avoided) == (True, 0, False)
    assert [known.stumbled(70.0 + 30 * step, 69.0 + 30 * step) for step in range(3)] == [False, False, True]


def test_what_never_comes_counts_at_once() -> None:
    """Refused connections are no matter of patience."""
    known = Health(Upstream(LOOPBACK))
    assert [known.stumbled(10.0, 0.0) for _ in range(3)] == [False, False, True]


def test_pauses_grow_and_end() -> None:
    """From one second to sixteen, each with some jitter; an answer ends them."""
    known = Health(Upstream(LOOPBACK))
    for _ in range(3):
        known.stumbled(100.0, 0.0)
    for whole in (1, 2, 4, 8, 16, 16):
        assert 0.75 * whole <= known.probe_at - 100.0 <= whole
        known.pause(100.0)
    known.answered(refused=False)
    known.pause(100.0)
    assert known.probe_at <= 101.0


def test_who_only_refuses_is_avoided() -> None:
    """Three SERVFAILs in a row: others first, though it is there; one real answer, and it is as good as any."""
    known = Health(Upstream(LOOPBACK))
    for _ in range(3):
        known.answered(refused=True)
    assert (known.healthy, known.avoided) == (True, True)
    known.answered(refused=False)
    assert not known.avoided


@pytest.mark.parametrize(
    ("upstream", "text"),
    [
        (Upstream(LOOPBACK), "udp://127.0.0.1:53"),
        (Upstream(bytes(15) + b"\1", 853, "tls", "::1"), "tls://[::1]:853"),
        (Upstream(LOOPBACK, 443, "https", "dns.example", "/q"), "https://127.0.0.1:443/q#dns.example"),
    ],
)
def test_upstreams_are_spelled_as_in_settings(upstream: Upstream, text: str) -> None:
    """In status, records and the log."""
    assert str(Health(upstream)) == text


# ------------------------------------------------------------------------------------------------------- order


def test_the_fastest_is_first() -> None:
    """As configured until something is known, then by time."""
    known = servers("udp", "udp", "udp")
    order = Choice(known)
    assert ports(order.ordered(0.0)) == [1, 2, 3]
    for server, rtt_s in zip(known, (0.2, 0.1, 0.05), strict=True):
        server.health.measured(rtt_s, 0.0)
    assert ports(order.ordered(1.0)) == [3, 2, 1]


def test_it_stays_until_another_is_clearly_faster() -> None:
    """A fifth and a millisecond: two of about the same speed do not change places."""
    first, second = known = servers("udp", "udp")
    order = Choice(known)
    first.health.measured(0.010, 0.0)
    changes = 0
    last = [1, 2]
    for step in range(1000):
        second.health.measured(0.0095 if step % 2 else 0.0105, float(step))
        now = ports(order.ordered(float(step)))
        changes += now != last
        last = now
    assert changes == 0
    second.health.measured(0.001, 1001.0)
    for step in range(20):
        second.health.measured(0.001, 1001.0 + step)
    assert ports(order.ordered(1030.0)) == [2, 1]


def test_a_plain_one_never_overtakes_an_encrypted_one() -> None:
    """Speed decides among neighbours of the same kind; only a failure lets the next kind go ahead."""
    known = servers("tls", "https", "udp", "udp")
    order = Choice(known)
    for server, rtt_s in zip(known, (0.2, 0.05, 0.002, 0.001), strict=True):
        server.health.measured(rtt_s, 0.0)
    assert ports(order.ordered(1.0)) == [2, 1, 4, 3]
    for server in known[:2]:
        for _ in range(3):
            server.health.stumbled(2.0, 0.0)
    order.changed()
    assert ports(order.ordered(2.0)) == [4, 3, 2, 1]


@given(st.permutations(range(4)), st.lists(st.sampled_from(["udp", "tls"]), min_size=4, max_size=4))
def test_every_server_stays_in_the_order(speeds: list[int], schemes: list[str]) -> None:
    """However fast or ill they are: nobody is left out, nobody is twice, and groups do not mix."""
    known = servers(*schemes)
    order = Choice(known)
    for server, speed in zip(known, speeds, strict=True):
        server.health.measured(0.01 * 3**speed, 0.0)
    found = order.ordered(1.0)
    assert sorted(ports(found)) == [1, 2, 3, 4]
    kinds = [kind for kind, _ in itertools.groupby(server.upstream.scheme for server in found)]
    assert kinds == [kind for kind, _ in itertools.groupby(schemes)]


def test_others_are_measured_now_and_then() -> None:
    """Each in its turn, every ten seconds or so; whoever is asked anyway is not."""
    known = servers("udp", "udp", "udp")
    order = Choice(known)
    known[0].health.measured(0.01, 0.0)
    probed: list[tuple[int, float]] = []
    for step in range(1, 240):
        now = step / 4
        order.ordered(now)
        if order.due is not None:
            probed.append((order.due.upstream.port, now))
            order.measuring(order.due, now)
    assert {port for port, _ in probed} == {2, 3}
    for port in (2, 3):
        times = [now for each, now in probed if each == port]
        assert times[0] <= 3.0
        assert all(9 <= later - earlier <= 11 for earlier, later in itertools.pairwise(times))


# ---------------------------------------------------------------------------------------------- on real sockets


def test_a_faster_one_behind_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first takes a tenth of a second, the second none: probes find out, and the second is asked from then on."""
    monkeypatch.setattr(choice, "PROBE_S", 0.2)
    monkeypatch.setattr(health, "PROBE_S", 0.2)

    async def scene() -> None:
        async with Streams(delay=lambda query: 0.1) as slow, Resolver(right) as quick:
            with Caller(slow.upstream(), quick.upstream) as caller:
                number = 0
                while caller.upstreams._choice.ordered(0.0)[0].upstream.scheme != "udp":
                    number += 1
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                    assert number < 200
                counted = caller.upstreams.counters
                assert counted["probes"] >= 1
                assert counted["asked"] == counted["answered"] == number
                before = len(slow.queries)
                for number in range(50):
                    assert await caller.addresses(question(f"m{number}.example.com")) == [RIGHT]
                assert len(slow.queries) - before <= 3
                assert all(status.rtt_s > 0 for status in caller.upstreams.healthy)

    play(uvloop.new_event_loop, scene)


def test_a_probe_risks_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is probed is dead, lies or refuses: every question is answered by the other, at its first asking."""
    monkeypatch.setattr(choice, "PROBE_S", 0.02)
    monkeypatch.setattr(choice, "SORT_S", 0.0)
    scripts = [silent, lambda query: [b"", query], lambda query: [reply(query, rcode="REFUSED")]]

    async def scene() -> None:
        async with (
            Resolver(right) as good,
            Resolver(scripts[0]) as mute,
            Resolver(scripts[1]) as liar,
            Resolver(scripts[2]) as unwilling,
        ):
            bad = (mute, liar, unwilling)
            with Caller(good.upstream, *(resolver.upstream for resolver in bad)) as caller:
                for number in range(100):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                    await asyncio.sleep(0.002)
                assert len(good.queries) == 100
                assert all(resolver.queries for resolver in bad)
                await eventually(lambda: not caller.upstreams._probes)

    play(uvloop.new_event_loop, scene)


def test_who_comes_back_is_asked_again() -> None:
    """Dead, and the second is asked; alive again, one probe shows it, and being faster it is the first again."""

    async def scene() -> None:
        first = Resolver(right)
        async with first, Streams(delay=lambda query: 0.05) as second:
            with Caller(first.upstream, second.upstream()) as caller:
                assert await caller.addresses(question("a.example.com")) == [RIGHT]
                first.say = silent
                number = 0
                while well(caller):
                    number += 1
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                assert caller.upstreams.healthy[1].rtt_s > 0
                first.say = right
                while not well(caller):
                    number += 1
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                asked = len(second.queries)
                for number in range(20):
                    assert await caller.addresses(question(f"m{number}.example.com")) == [RIGHT]
                assert len(second.queries) == asked

    play(uvloop.new_event_loop, scene)


def test_a_lost_datagram_costs_what_the_server_usually_takes() -> None:
    """A hundred quick answers, then one that is lost: it is asked again after 50 ms, not after 0.8 s."""

    async def scene() -> None:
        async with Resolver(right) as resolver:
            with Caller(resolver.upstream) as caller:
                for number in range(100):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                waits = caller.upstreams.healthy[0].wait_s(0)
                lost = question("lost.example.com")
                resolver.say = silent
                caller.upstreams.ask(lost, "lost")
                flight = caller.upstreams._flights[lost.key]
                assert flight.deadline - flight.asked == pytest.approx(waits)
                resolver.say = right
                await caller.until(101)
                assert isinstance(caller.outcomes["lost"], Answer)
                assert caller.upstreams.counters["timeouts"] <= 1

    play(uvloop.new_event_loop, scene)


def test_late_answers_teach_patience() -> None:
    """A server that becomes slow: a late answer is measured from its own sending, and the next one waited for."""

    async def scene() -> None:
        resolver = Resolver(right)
        async with resolver:
            with Caller(resolver.upstream) as caller:
                for number in range(50):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                quick = caller.upstreams.healthy[0].wait_s(0)
                loop = asyncio.get_running_loop()

                def slow(query: bytes) -> list[bytes]:
                    if len({each[12:] for each in resolver.queries}) != len(resolver.queries):
                        return []  # only the first sending of a question is answered
                    loop.call_later(0.4, resolver._udp.sendto, reply(query, RIGHT), resolver.sources[-1])
                    return []

                resolver.queries.clear()
                resolver.say = slow
                assert await caller.addresses(question("slow.example.com")) == [RIGHT]
                assert caller.upstreams.counters["timeouts"] >= 1
                assert caller.upstreams.healthy[0].wait_s(0) > quick + 0.1

    play(uvloop.new_event_loop, scene)


def test_one_that_comes_and_goes_is_told_of_once_a_minute() -> None:
    """The first failing is said; the next ones within a minute are not."""
    known = Health(Upstream(LOOPBACK))
    assert [known.to_tell(now) for now in (5.0, 6.0, 64.0, 66.0, 125.0)] == [True, False, False, True, False]
