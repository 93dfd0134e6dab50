"""Repeats: an exchange that remembers what it answered cannot be told from one that goes through it all each time."""

from __future__ import annotations

from functools import partial
from typing import Any

import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from test_exchange import API, FACTS, FREE, IPV4, POD, WEB, Bench, Client, rule

from egressd.exchange.repeats import Repeats
from egressd.exchange.store import Refresh
from egressd.model import Action, PodIdentity, Policy, Reason, Subject
from egressd.policy import Judge
from egressd.settings import Budgets

NAMES = (
    API,
    "Api.Example.COM",
    "x.s3.example",
    "uploads.s3.example",
    "cdn.example",
    "a.b.svc.cluster.local",
    "db.corp.example",
)
TIGHT = Budgets(queries_per_second_per_pod=5, burst_per_pod=12, denied_names_per_pod_per_minute=2)


class Twins:
    """Two exchanges with the same world, one of which repeats nothing."""

    def __init__(self, cache: int, budgets: Budgets) -> None:
        self.benches = [Bench(cache=cache, budgets=budgets) for _ in range(2)]
        self.clients: list[list[Client]] = [[], []]
        self.last: dict[tuple[int, bytes], Any] = {}

    def ask(self, name: str, address: bytes, transport: str, edns: bool, times: int) -> None:
        """The same question so many times, in one batch."""
        self._forget()
        wire = dns.message.make_query(name, "A", id=0, use_edns=0 if edns else -1).to_wire()
        for bench, clients in zip(self.benches, self.clients, strict=True):
            batch = [(bytes((9, number)) + wire[2:], Client(address, transport)) for number in range(times)]
            clients += [client for _, client in batch]
            bench.exchange.receive(list(batch))

    def answer(self, ttl: int, last: int) -> None:
        """Upstream answers all that is asked for; with the very same answer as before, where it says the same."""
        self._forget()
        for index, bench in enumerate(self.benches):
            delivered = []
            while bench.asked:
                question = bench.asked[0][0]
                query, answer = bench.made(f"{question.name} {ttl} A 203.0.113.{last}")
                known = self.last.setdefault((index, question.key), answer)
                if known.data == answer.data:
                    answer = known
                self.last[index, question.key] = answer
                delivered.append((query, answer))
            bench.exchange.deliver(delivered)

    def _forget(self) -> None:
        """The second one knows nothing of what it answered before."""
        bench = self.benches[1]
        bench.exchange._repeats = Repeats(bench.parties, bench.ledger)

    def each(self, change: Any) -> None:
        for bench in self.benches:
            change(bench)

    def outcome(self, index: int) -> tuple[Any, ...]:
        """All that can be seen from outside, but for the order of records within one batch."""
        bench = self.benches[index]
        return (
            [client.sent for client in self.clients[index]],
            sorted(bench.records, key=repr),
            bench.kernel,
            bench.exchange.tally.queries,
            bench.exchange.tally.latency_us,
            dict(bench.exchange.counters),
            bench.party.in_flight,
        )


def _judge(bench: Bench, denies: bool) -> None:
    """Other policies for the pod: the storage rule is gone, or denied."""
    more = (rule(API, action=Action.DENY, name="stop"),) if denies else ()
    bench.party.judge = Judge(Subject((Policy("shop/web", "shop", allow=WEB.allow, deny=(*WEB.deny, *more)),)), FACTS)


STEPS = st.one_of(
    st.tuples(
        st.just("ask"),
        st.sampled_from([API, API, API, "uploads.s3.example", *NAMES]),
        st.sampled_from([POD, POD, FREE]),
        st.sampled_from(["udp", "udp", "tcp"]),
        st.sampled_from([False, False, False, True]),
        st.integers(1, 4),
    ),
    st.tuples(st.just("answer"), st.sampled_from([0, 1, 2, 10, 300]), st.integers(7, 8)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.1, 0.4, 0.9, 1.0, 5.0, 61.0, 400.0])),
    st.tuples(st.just("judge"), st.booleans()),
    st.tuples(st.just("rename"), st.sampled_from(["web-0", "web-1"])),
    st.tuples(st.just("doubt")),
    st.tuples(st.just("forget")),
)


@pytest.mark.parametrize("cache", [0, 100], ids=["forwarded", "cached"])
@pytest.mark.parametrize("budgets", [Budgets(), TIGHT], ids=["wide", "tight"])
@hypothesis_settings(max_examples=60, deadline=None)
@given(steps=st.lists(STEPS, min_size=5, max_size=40))
def test_repeating_changes_nothing(cache: int, budgets: Budgets, steps: list[tuple[Any, ...]]) -> None:
    """Replies, records, grants, counters and budgets are the same, whatever is asked, answered and changed between."""
    twins = Twins(cache, budgets)
    for kind, *arguments in steps:
        if kind == "ask":
            twins.ask(*arguments)
        elif kind == "answer":
            twins.answer(*arguments)
        elif kind == "wait":
            twins.each(partial(_wait, seconds=arguments[0]))
        elif kind == "judge":
            twins.each(partial(_judge, denies=arguments[0]))
        elif kind == "rename":
            twins.each(partial(_rename, name=arguments[0]))
        elif kind == "doubt":
            twins.each(lambda bench: bench.ledger.doubt(list(bench.kernel)))
        else:
            twins.each(lambda bench: bench.ledger.forget(1))
    assert twins.outcome(0) == twins.outcome(1)


def _rename(bench: Bench, name: str) -> None:
    bench.party.identity = PodIdentity("shop", name)


def _wait(bench: Bench, seconds: float) -> None:
    bench.now += seconds
    bench.exchange.tick(bench.now)
    bench.exchange.minute(bench.now)
    bench.ledger.expire(bench.now)


def is_repeated(bench: Bench) -> bool:
    """Ask for the name, and say whether the answer will be a repeat."""
    tail = dns.message.make_query(API, "A").to_wire()[2:]
    found = bench.exchange._repeats.find(tail, Client(), bench.now)
    bench.query(API)
    return found is not None


def test_what_is_asked_again_within_a_second_is_repeated() -> None:
    """The second hit of a kept answer is a repeat; a second later it is gone through again, with a smaller TTL."""
    bench = Bench(cache=100)
    bench.query(API)
    bench.reply(f"{API} 300 A 203.0.113.7")
    assert [is_repeated(bench) for _ in range(3)] == [False, True, True]
    bench.now += 1
    assert not is_repeated(bench)
    assert is_repeated(bench)
    assert bench.query(API).answer.answer[0].ttl == 299
    assert bench.exchange.counters["cache_hits"] == 6


def test_a_change_of_policy_ends_a_repeat_at_once() -> None:
    """A name that was repeated a moment ago is denied by the next query."""
    bench = Bench(cache=100)
    bench.query(API)
    bench.reply(f"{API} 300 A 203.0.113.7")
    bench.query(API)
    bench.query(API)
    _judge(bench, denies=True)
    assert bench.query(API).answer.rcode() == dns.rcode.NXDOMAIN


def test_an_address_that_went_to_another_pod_ends_a_repeat() -> None:
    """What one pod was told is not repeated to the next one at its address."""
    bench = Bench(cache=100)
    bench.query(API)
    bench.reply(f"{API} 300 A 203.0.113.7")
    bench.query(API)
    bench.query(API)
    bench.parties[POD] = bench.parties[FREE]
    bench.query(API)
    assert bench.records[-1].pod == PodIdentity("shop", "free-0")


def test_a_grant_that_was_pushed_out_is_written_again() -> None:
    """Where a bound took the element away, the next query opens it anew, and does not repeat that it is open."""
    bench = Bench(cache=100)
    bench.query(API)
    bench.reply(f"{API} 300 A 203.0.113.7")
    bench.query(API)
    bench.query(API)
    bench.ledger.forget(1)
    bench.query(API)
    assert [element.address for element in bench.kernel] == [IPV4, IPV4]


def test_transport_and_server_tell_queries_apart() -> None:
    """What was told over UDP is no repeat over TCP, nor to who asked another server: their records differ."""
    bench = Bench(cache=100)
    bench.query(API)
    bench.reply(f"{API} 300 A 203.0.113.7")
    for _ in range(2):
        bench.query(API)
    bench.query(API, client=Client(transport="tcp"))
    elsewhere = Client()
    elsewhere.server = bytes((198, 51, 100, 53))
    bench.query(API, client=elsewhere)
    assert [record.transport for record in bench.records[-3:]] == ["udp", "tcp", "udp"]
    assert bench.records[-1].server == elsewhere.server


def test_a_refreshed_answer_ends_the_repeats_of_the_older_one() -> None:
    """As soon as the cache holds other addresses, they are what is given."""
    bench = Bench(cache=100)
    bench.query(API)
    bench.reply(f"{API} 300 A 203.0.113.7")
    for _ in range(2):
        bench.query(API)
    question = bench.exchange._read_before.get(dns.message.make_query(API, "A").to_wire()[2:])
    assert question is not None
    bench.asked.append((question[0], Refresh(question[0])))
    bench.reply(f"{API} 300 A 203.0.113.8")
    assert bench.query(API).answer.answer[0][0].to_text() == "203.0.113.8"


def test_a_refusal_for_the_rate_is_never_repeated() -> None:
    """As soon as the pod may ask again, it is answered."""
    bench = Bench(budgets=Budgets(queries_per_second_per_pod=1, burst_per_pod=2))
    for _ in range(4):
        bench.query("cdn.example")
    assert [record.reason for record in bench.records[1:]] == [Reason.NO_RULE, Reason.RATE_LIMIT, Reason.RATE_LIMIT]
    bench.now += 1
    assert bench.query("cdn.example").answer.rcode() == dns.rcode.NXDOMAIN


def test_forwarded_answers_are_repeated_only_as_the_very_same() -> None:
    """Without a cache, another answer is gone through like the first; the same one is repeated, and still recorded."""
    bench = Bench()
    answers: list[Any] = []
    for last in (7, 7, 7, 8):
        client = bench.query(API)
        query, answer = bench.made(f"{API} 300 A 203.0.113.{last}")
        answers = [known for known in answers if known.data[2:] == answer.data[2:]][:1] or [answer]
        bench.exchange.deliver([(query, answers[0])])
        assert client.answer.answer[0][0].to_text() == f"203.0.113.{last}"
    assert [record.addresses[0][3] for record in bench.records] == [7, 7, 7, 8]
    assert [element.address[3] for element in bench.kernel] == [7, 8]
    assert (bench.exchange.in_flight, bench.party.in_flight) == (0, 0)
