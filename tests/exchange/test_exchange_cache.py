"""The exchange with its cache on: what is kept, for whom, how long, and what happens when upstream fails."""

from __future__ import annotations

from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
from test_exchange import API, FACTS, FREE, HTTPS, IPV4, POD, Bench, Client, ede, rule

from egressd.exchange.store import Refresh
from egressd.model import Policy, Subject
from egressd.policy import Judge


class Failure:
    """An upstream that did not answer."""

    ede, text = 22, "no upstream answered"


def bench() -> Bench:
    return Bench(cache=100)


def fail(book: Bench) -> None:
    book.exchange.deliver([(book.asked.pop(0)[1], Failure())])


def test_second_look_up_is_answered_from_the_cache_and_granted_again() -> None:
    """A kept answer comes with shrunken TTLs, its own record, and a grant of its own length."""
    book = bench()
    book.query(API)
    book.reply(f"{API} 300 A 203.0.113.7")
    book.now += 100
    client = book.query(API)
    assert book.asked == []
    assert client.answer.answer[0].ttl == 200
    assert [record.cached for record in book.records] == [False, True]
    assert book.records[1].ttl == 200
    assert book.records[1].granted == (IPV4,)
    assert len(book.kernel) == 1, "the first grant lives long enough"


def test_cache_never_leaks_past_a_verdict() -> None:
    """What one pod asked for is kept, and still denied to a pod that may not have it."""
    book = bench()
    book.query("cdn.example", client=Client(FREE))
    book.reply("cdn.example 300 A 203.0.113.9")
    client = book.query("cdn.example")
    assert client.answer.rcode() == dns.rcode.NXDOMAIN
    assert book.kernel == []


def test_cached_answer_is_granted_to_each_subject_that_asks() -> None:
    """A pod of another subject gets a grant of its own for a kept answer."""
    book = bench()
    book.query(API, client=Client(FREE))
    book.reply(f"{API} 300 A 203.0.113.7")
    assert book.kernel == []
    book.query(API)
    assert [(element.subject, element.address, element.span) for element in book.kernel] == [(1, IPV4, HTTPS[0])]


def test_flags_make_other_questions() -> None:
    """DO and CD answers are kept apart, letter case is not."""
    book = bench()
    book.query(API)
    book.reply(f"{API} 300 A 203.0.113.7")
    assert book.query("API.EXAMPLE.com").answer.question[0].name.to_text() == "API.EXAMPLE.com."
    book.query(API, want_dnssec=True)
    assert len(book.asked) == 1, "DO asks for signatures, which the kept answer lacks"
    query = dns.message.make_query(API, "A")
    query.flags |= dns.flags.CD
    book.exchange.receive([(query.to_wire(), Client())])
    assert len(book.asked) == 2


def test_expired_answer_is_asked_for_again() -> None:
    """After its TTL an answer is not given while upstream answers."""
    book = bench()
    book.query(API)
    book.reply(f"{API} 5 A 203.0.113.7")
    book.now += 5
    client = book.query(API)
    assert client.sent == []
    book.reply(f"{API} 5 A 203.0.113.8")
    assert client.answer.answer[0][0].to_text() == "203.0.113.8"


def test_failing_upstream_is_covered_by_stale_answers() -> None:
    """An expired answer is given with TTL 30 when upstream fails, at once as long as it is known to fail."""
    book = bench()
    book.query(API)
    book.reply(f"{API} 5 A 203.0.113.7")
    book.now += 60
    first = book.query(API)
    fail(book)
    assert (first.answer.rcode(), first.answer.answer[0].ttl) == (dns.rcode.NOERROR, 30)
    second = book.query(API)
    assert second.answer.answer[0].ttl == 30
    assert isinstance(book.asked[0][1], Refresh), "recovery is noticed by asking on"
    assert book.records[-1].cached


def test_slow_upstream_is_not_waited_for_where_a_stale_answer_is_at_hand() -> None:
    """After 1.8 s the stale answer is given; the late one is kept and given to nobody twice."""
    book = bench()
    book.query(API)
    book.reply(f"{API} 5 A 203.0.113.7")
    book.now += 60
    client = book.query(API)
    book.now += 1.9
    book.exchange.tick(book.now)
    assert client.answer.answer[0].ttl == 30
    book.reply(f"{API} 300 A 203.0.113.8")
    assert len(client.sent) == 1
    assert (book.exchange.in_flight, book.party.in_flight) == (0, 0)
    assert book.query(API).answer.answer[0][0].to_text() == "203.0.113.8"


def test_too_old_is_not_served() -> None:
    """Past `serve_stale` a failure is a failure."""
    book = bench()
    book.query(API)
    book.reply(f"{API} 5 A 203.0.113.7")
    book.now += 5 + 3600
    client = book.query(API, use_edns=0)
    fail(book)
    assert client.answer.rcode() == dns.rcode.SERVFAIL
    assert ede(client.answer) == (22, "no upstream answered")


def test_stale_answer_is_judged_by_todays_policy() -> None:
    """A stale answer for a name that was allowed once is denied today."""
    book = bench()
    book.query(API)
    book.reply(f"{API} 5 A 203.0.113.7")
    book.now += 60
    client = book.query(API)
    today = Policy("shop/web", "shop", allow=(rule("other.example"),))
    book.party.judge = Judge(Subject((today,)), FACTS)
    fail(book)
    assert client.answer.rcode() == dns.rcode.NXDOMAIN


def test_nonexistence_is_kept_as_long_as_the_soa_says() -> None:
    """NXDOMAIN and NODATA are kept for the SOA's minimum (RFC 2308); without SOA they are not."""
    book = bench()
    with_soa = "invalid. admin.invalid. 1 2 3 4 60"
    for rcode in (3, 0):
        name = f"n{rcode}.s3.example"
        book.query(name)
        book.reply(rcode=rcode, authority=f"s3.example 900 SOA {with_soa}")
        book.now += 59
        assert book.query(name).answer.rcode() == rcode
        assert book.asked == []
        book.now += 2
        book.query(name)
        book.reply(rcode=rcode)
        book.query(name)
        book.reply(rcode=rcode)


def test_errors_are_not_kept() -> None:
    """SERVFAIL from upstream is passed on and asked for again."""
    book = bench()
    for _ in range(2):
        client = book.query(API)
        book.reply(rcode=2)
        assert client.answer.rcode() == dns.rcode.SERVFAIL


def test_popular_name_is_refreshed_before_it_ends() -> None:
    """In the last tenth of its TTL a popular name is asked for once more, and nobody waits for it."""
    book = bench()
    book.query(API)
    book.reply(f"{API} 100 A 203.0.113.7")
    for seconds in (10, 10, 75):
        book.now += seconds
        assert len(book.query(API).sent) == 1
    ((_, waiter),) = book.asked
    assert isinstance(waiter, Refresh)
    before = len(book.records)
    book.reply(f"{API} 100 A 203.0.113.8")
    assert len(book.records) == before, "a refresh is nobody's query"
    assert book.query(API).answer.answer[0][0].to_text() == "203.0.113.8"


def test_withheld_addresses_stay_withheld_from_the_cache() -> None:
    """The rebinding guard judges a kept answer like a fresh one."""
    book = bench()
    for _ in range(2):
        client = book.query(API)
        if book.asked:
            book.reply(f"{API} 300 A 10.1.2.3", f"{API} 300 A 203.0.113.7")
        assert [str(item) for rrset in client.answer.answer for item in rrset] == ["203.0.113.7"]


def test_a_question_of_our_own_that_comes_back_ends_there() -> None:
    """Our own question in a pod's hand means that our upstream asks through us: SERVFAIL, counted, not asked again."""
    book = bench()
    client = Client(POD)
    question: Any = dns.message.make_query(API, "A", use_edns=0)
    question.use_edns(0, options=[dns.edns.GenericOption(dns.edns.OptionType.make(65313), b"0123456789ab")])
    book.exchange.receive([(question.to_wire(), client)])
    assert client.answer.rcode() == dns.rcode.SERVFAIL
    assert "dns.exempt" in ede(client.answer)[1]
    assert book.asked == []
    assert book.exchange.counters["loops"] == 1
    assert book.records[0].reason == "upstream-failed"
