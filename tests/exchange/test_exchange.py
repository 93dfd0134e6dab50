"""The sentence of the program with its neighbours replaced by one-function fakes: every query, exactly one outcome."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from egressd import wire
from egressd.errors import KernelError
from egressd.exchange import Exchange, LastKnown, Parts, Party, Query
from egressd.grants import Element, Ledger
from egressd.model import (
    Action,
    Address,
    Block,
    DnsMode,
    DnsRecord,
    Mode,
    PodIdentity,
    Policy,
    PortSpan,
    Reason,
    Rule,
    Subject,
    Verdict,
)
from egressd.names import parse_pattern
from egressd.policy import ClusterFacts, Judge
from egressd.settings import Budgets, Cache, Settings

POD = bytes((10, 244, 1, 5))
FREE = bytes((10, 244, 1, 6))
STRANGER = bytes((10, 244, 1, 99))
HTTPS = (PortSpan(6, 6, 443, 443),)
API = "api.example.com"
IPV4 = bytes((203, 0, 113, 7))
METADATA = bytes((169, 254, 169, 254))
PRIVATE = bytes((10, 1, 2, 3))
FACTS = ClusterFacts((Block(Address(bytes((10, 96, 0, 0))), Address(bytes((10, 111, 255, 255)))),))


def rule(*patterns: str, action: Action = Action.ALLOW, **fields: Any) -> Rule:
    given = {"name": f"{action.value}[0]", "ports": HTTPS if action is Action.ALLOW else Rule("", action).ports}
    return Rule(action=action, patterns=tuple(parse_pattern(text) for text in patterns), **(given | fields))


WEB = Policy(
    "shop/web",
    "shop",
    allow=(
        rule("api.example.com", "*.s3.example", name="storage"),
        rule("db.corp.example", name="db", allow_private=True),
    ),
    deny=(rule("uploads.s3.example", action=Action.DENY, name="no-uploads"),),
)


class Client:
    """A pod's end: keeps what it is sent."""

    def __init__(self, address: bytes = POD, transport: str = "udp") -> None:
        self.address, self.port, self.server, self.transport = address, 40000, bytes((10, 96, 0, 10)), transport
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    post = send

    @property
    def answer(self) -> dns.message.Message:
        (data,) = self.sent
        return dns.message.from_wire(data)


class Bench:
    """An exchange with a world of two pods, a scripted upstream and a kernel that may refuse."""

    def __init__(self, *policies: Policy, cache: int = 0, **settings: Any) -> None:
        settings.setdefault("dns", Settings().dns)
        settings["dns"] = replace(settings["dns"], cache=Cache(size=cache))
        self.now = 100.0
        self.records: list[DnsRecord] = []
        self.asked: list[tuple[wire.Question, Any]] = []
        self.kernel: list[Element] = []
        self.withdrawn: list[Element] = []
        self.batches: list[int] = []
        self.refuse: set[bytes] = set()
        judge = Judge(Subject(policies or (WEB,)), FACTS)
        self.party = Party(PodIdentity("shop", "web-0"), 1, judge)
        self.parties = {POD: self.party, FREE: Party(PodIdentity("shop", "free-0"))}
        self.ledger = Ledger()
        self.known = LastKnown()
        self.exchange = Exchange(
            replace(Settings(), **settings),
            Parts(
                self.parties,
                self.ledger,
                self.known,
                lambda question, query: self.asked.append((question, query)),
                self.program,
                wire.loop_option(b"0123456789ab"),
                self.withdrawn.extend,
                self.records.append,
                self.form,
                self.repeat,
                lambda: self.now,
                lambda: 1_700_000_000.0,
            ),
        )

    def form(self, record: DnsRecord) -> DnsRecord:
        return record

    def repeat(self, form: DnsRecord, time: float, port: int, latency_us: int) -> None:
        self.records.append(form._replace(time=time, port=port, latency_us=latency_us))

    def program(self, elements: Sequence[Element]) -> None:
        self.batches.append(len(elements))
        if any(element.address in self.refuse for element in elements):
            raise KernelError("no space in the set", 28)
        self.kernel += elements

    def query(self, name: str, kind: str = "A", client: Client | None = None, **edns: Any) -> Client:
        client = client or Client()
        self.exchange.receive([(dns.message.make_query(name, kind, id=4711, **edns).to_wire(), client)])
        return client

    def reply(self, *records: str, rcode: int = 0, authority: str = "") -> None:
        self.exchange.deliver([self.made(*records, rcode=rcode, authority=authority)])

    def made(self, *records: str, rcode: int = 0, authority: str = "") -> tuple[Query, wire.Answer]:
        """An upstream's answer to a question in flight; each record: `NAME TTL TYPE RDATA`."""
        question, query = self.asked.pop(0)
        message = dns.message.make_response(dns.message.from_wire(wire.upstream_query(question, 7)))
        message.set_rcode(dns.rcode.Rcode.make(rcode))
        message.answer += [rrset(record) for record in records]
        message.authority += [rrset(record) for record in [authority] if record]
        return query, wire.read_answer(message.to_wire(), question)


def rrset(record: str) -> dns.rrset.RRset:
    name, ttl, kind, data = record.split(" ", 3)
    return dns.rrset.from_text(name.removesuffix(".") + ".", int(ttl), "IN", kind, data)


def ede(message: dns.message.Message) -> tuple[int, str]:
    (option,) = [option for option in message.options if isinstance(option, dns.edns.EDEOption)]
    return int(option.code), option.text or ""


def test_allowed_name_is_open_before_the_answer() -> None:
    """A name with a rule is asked, its addresses are programmed with the rule's ports, then the pod gets the answer."""
    bench = Bench()
    client = bench.query("API.example.com")
    assert client.sent == []
    bench.reply("api.example.com 5 A 203.0.113.7")
    assert [(e.subject, e.kind, e.address, e.span, e.lifetime_ms) for e in bench.kernel] == [
        (1, "port", IPV4, HTTPS[0], 90_000)
    ]
    assert client.answer.id == 4711
    assert client.answer.question[0].name.to_text() == "API.example.com."
    (record,) = bench.records
    assert (record.verdict, record.reason, record.policy, record.rule) == ("allowed", "rule", "shop/web", "storage")
    assert (record.addresses, record.granted, record.ttl, record.rcode) == ((IPV4,), (IPV4,), 5, 0)


def test_answers_that_share_a_refused_grant_fail_together() -> None:
    """Of two answers that come together with one address, the second relies on the first's grant: neither is given."""
    bench = Bench()
    bench.refuse = {IPV4}
    clients = [bench.query(API), bench.query(API)]
    bench.exchange.deliver([bench.made(f"{API} 5 A 203.0.113.7") for _ in clients])
    assert [client.answer.rcode() for client in clients] == [dns.rcode.SERVFAIL] * 2
    assert [(record.reason, record.granted) for record in bench.records] == [("program-failed", ())] * 2
    bench.refuse = set()
    third = bench.query(API)
    bench.reply(f"{API} 5 A 203.0.113.7")
    assert third.answer.rcode() == dns.rcode.NOERROR
    assert [element.address for element in bench.kernel] == [IPV4]


def test_what_one_wake_finds_is_programmed_together() -> None:
    """Queries answered from the cache in one wake share one transaction, and none is answered before it."""
    bench = Bench(cache=100)
    names = [f"n{number}.s3.example" for number in range(8)]
    for number, name in enumerate(names):
        bench.query(name, client=Client(FREE))
        bench.reply(f"{name} 60 A 198.51.100.{number}")
    assert bench.batches == []
    clients = [Client() for _ in names]
    queries = [dns.message.make_query(name, "A").to_wire() for name in names]
    bench.exchange.receive(list(zip(queries, clients, strict=True)))
    assert bench.batches == [8]
    assert [client.answer.rcode() for client in clients] == [dns.rcode.NOERROR] * 8


def test_name_without_rule_never_leaves_the_node() -> None:
    """A denied name is NXDOMAIN with an extended error that names the policy, and nobody is asked."""
    bench = Bench()
    client = bench.query("cdn.example", use_edns=0)
    assert bench.asked == []
    assert client.answer.rcode() == dns.rcode.NXDOMAIN
    assert ede(client.answer) == (17, "egressd: no rule of shop/web allows cdn.example")
    (record,) = bench.records
    assert (record.verdict, record.reason, record.name) == ("denied", "no-rule", "cdn.example")


@pytest.mark.parametrize(("setting", "rcode"), [("NXDOMAIN", 3), ("REFUSED", 5), ("NODATA", 0)])
def test_deny_rcode_setting(setting: str, rcode: int) -> None:
    """`dns.deny_rcode` chooses what a denied name looks like."""
    bench = Bench(dns=replace(Settings().dns, deny_rcode=setting))
    assert bench.query("cdn.example").answer.rcode() == rcode


def test_deny_rule_wins_and_is_named() -> None:
    """A deny rule beats the wildcard that allows its parent, and the error says which rule it was."""
    client = Bench().query("uploads.s3.example", use_edns=0)
    assert ede(client.answer) == (17, "egressd: uploads.s3.example is denied by rule no-uploads of shop/web")


def test_unselected_pod_is_resolved_and_not_programmed() -> None:
    """A pod that no policy selects gets any answer, private addresses too, and no element is written."""
    bench = Bench()
    client = bench.query("cdn.example", client=Client(FREE))
    bench.reply("cdn.example 60 A 10.1.2.3")
    assert client.answer.answer[0].to_text().endswith("10.1.2.3")
    assert bench.kernel == []
    assert (bench.records[0].verdict, bench.records[0].reason, bench.records[0].granted) == (
        "allowed",
        "unselected",
        (),
    )


def test_metadata_address_is_refused_whole() -> None:
    """An allowed name whose only address is link-local is denied as rebinding, and nothing is opened."""
    bench = Bench()
    client = bench.query("api.example.com", use_edns=0)
    bench.reply("api.example.com 60 A 169.254.169.254")
    assert client.answer.rcode() == dns.rcode.NXDOMAIN
    assert ede(client.answer)[0] == 17
    assert bench.kernel == []
    assert (bench.records[0].verdict, bench.records[0].reason) == ("denied", "rebinding")


def test_only_the_private_address_is_withheld() -> None:
    """Where some addresses are fine, the others are left out of answer and grant."""
    bench = Bench()
    client = bench.query("api.example.com")
    bench.reply("api.example.com 60 A 10.1.2.3", "api.example.com 60 A 203.0.113.7")
    assert [rr.to_text() for rrset in client.answer.answer for rr in rrset] == ["203.0.113.7"]
    assert [e.address for e in bench.kernel] == [IPV4]
    assert bench.records[0].addresses == (IPV4,)


def test_allow_private_opens_private_and_never_link_local() -> None:
    """`allowPrivate` lets a rule reach private ranges, but nothing lets it reach the metadata service."""
    bench = Bench()
    client = bench.query("db.corp.example")
    bench.reply("db.corp.example 60 A 10.1.2.3", "db.corp.example 60 A 169.254.169.254")
    assert [rr.to_text() for rrset in client.answer.answer for rr in rrset] == ["10.1.2.3"]
    assert [e.address for e in bench.kernel] == [PRIVATE]


def test_chain_is_followed_and_recorded() -> None:
    """Names on the way need no rule; the address at the end is granted to the name that was asked."""
    bench = Bench()
    bench.query("a.s3.example")
    bench.reply("a.s3.example 60 CNAME edge.cdn.example.", "edge.cdn.example 5 A 203.0.113.7")
    assert [e.comment for e in bench.kernel] == ["a.s3.example"]
    assert (bench.records[0].cnames, bench.records[0].ttl) == (("edge.cdn.example",), 5)


def test_denied_name_on_the_way_denies_the_answer() -> None:
    """A chain through a denied name is refused, and the record names the deny rule."""
    bench = Bench()
    client = bench.query("a.s3.example")
    bench.reply("a.s3.example 60 CNAME uploads.s3.example.", "uploads.s3.example 5 A 203.0.113.7")
    assert client.answer.rcode() == dns.rcode.NXDOMAIN
    assert bench.kernel == []
    assert (bench.records[0].reason, bench.records[0].rule) == ("deny-rule", "no-uploads")


def test_kernel_refusal_is_servfail_for_that_answer_alone() -> None:
    """Of two answers that came together, the one whose grant the kernel refuses is SERVFAIL, the other is given."""
    bench = Bench()
    bench.refuse = {IPV4}
    bad, good = bench.query("api.example.com", use_edns=0), bench.query("b.s3.example")
    first, second = bench.made("api.example.com 5 A 203.0.113.7"), bench.made("b.s3.example 5 A 203.0.113.8")
    bench.exchange.deliver([first, second])
    assert bad.answer.rcode() == dns.rcode.SERVFAIL
    assert "errno 28" in ede(bad.answer)[1]
    assert good.answer.rcode() == dns.rcode.NOERROR
    assert [(r.reason, r.rcode, r.granted != ()) for r in bench.records] == [
        ("program-failed", 2, False),
        ("rule", 0, True),
    ]
    bench.refuse = set()
    bench.query("api.example.com")
    bench.reply("api.example.com 5 A 203.0.113.7")
    assert bench.kernel[-1].address == IPV4, "a refused grant is written again"


def test_answers_that_come_together_are_one_transaction() -> None:
    """Group commit: three answers, one batch."""
    bench = Bench()
    for name in ("a", "b", "c"):
        bench.query(f"{name}.s3.example")
    bench.exchange.deliver([bench.made(f"{name}.s3.example 5 A 203.0.113.{i}") for i, name in enumerate("abc")])
    assert bench.batches == [3]


def test_known_name_costs_no_write() -> None:
    """A grant that lives long enough is not written again."""
    bench = Bench()
    for _ in range(2):
        bench.query("api.example.com")
        bench.reply("api.example.com 5 A 203.0.113.7")
    assert bench.batches == [1]


def test_upstream_failure_is_servfail_with_its_ede() -> None:
    """No upstream answered: SERVFAIL, EDE 22 or 23, reason upstream-failed."""

    class Failure:
        ede, text = 22, "no upstream answered in 4 s"

    bench = Bench()
    client = bench.query("api.example.com", use_edns=0)
    bench.exchange.deliver([(bench.asked.pop()[1], Failure())])
    assert client.answer.rcode() == dns.rcode.SERVFAIL
    assert ede(client.answer) == (22, "no upstream answered in 4 s")
    assert bench.records[0].reason == "upstream-failed"


def test_stranger_waits_and_is_served_when_learned() -> None:
    """A query from an address that is no pod yet is answered as soon as the pod is known, not before."""
    bench = Bench()
    client = bench.query("api.example.com", client=Client(STRANGER))
    bench.now += 1.0
    bench.exchange.tick(bench.now)
    assert (client.sent, bench.asked) == ([], [])
    bench.parties[STRANGER] = bench.party
    bench.exchange.learned([STRANGER])
    bench.reply("api.example.com 5 A 203.0.113.7")
    assert client.answer.rcode() == dns.rcode.NOERROR
    assert bench.records[0].latency_us == 1_000_000


def test_stranger_is_denied_after_the_wait() -> None:
    """After `unknown_wait` the query of an unknown source is denied, and nothing was asked for it."""
    bench = Bench()
    client = bench.query("api.example.com", client=Client(STRANGER), use_edns=0)
    bench.exchange.tick(bench.now + 2.0)
    assert client.answer.rcode() == dns.rcode.NXDOMAIN
    assert ede(client.answer)[0] == 18
    assert (bench.records[0].reason, bench.records[0].pod) == ("unknown-pod", None)


def test_strangers_are_bounded() -> None:
    """A flood from unknown sources is refused past the budget instead of kept."""
    bench = Bench(budgets=replace(Budgets(), in_flight=10, in_flight_per_pod=4))
    clients = [bench.query(f"n{i}.s3.example", client=Client(bytes((10, 244, 9, i // 5)))) for i in range(30)]
    assert sum(1 for client in clients if not client.sent) == 10
    assert sum(1 for record in bench.records if record.reason == "rate-limit") == 20


def test_rate_budget() -> None:
    """Past its burst a pod gets SERVFAIL with reason rate-limit; time refills it."""
    bench = Bench(budgets=replace(Budgets(), queries_per_second_per_pod=10, burst_per_pod=3))
    codes = [bench.query("cdn.example").answer.rcode() for _ in range(5)]
    assert codes == [3, 3, 3, 2, 2]
    bench.now += 0.15
    assert bench.query("cdn.example").answer.rcode() == 3


def test_in_flight_budget_of_a_pod() -> None:
    """A pod with too many questions open is refused, another pod is not."""
    bench = Bench(budgets=replace(Budgets(), in_flight_per_pod=2))
    clients = [bench.query(f"n{i}.s3.example") for i in range(3)]
    assert [len(client.sent) for client in clients] == [0, 0, 1]
    assert clients[2].answer.rcode() == dns.rcode.SERVFAIL
    assert bench.query("x.example", client=Client(FREE)).sent == []
    while bench.asked:
        bench.reply()
    assert bench.exchange.in_flight == 0
    assert bench.party.in_flight == 0


def test_denied_names_are_aggregated_past_their_budget() -> None:
    """Random names cannot flood the log: past the budget denials are counted, and the count is said once a minute."""
    bench = Bench(budgets=replace(Budgets(), denied_names_per_pod_per_minute=5))
    for number in range(12):
        bench.query(f"n{number}.example")
    assert len(bench.records) == 5
    bench.exchange.minute(bench.now + 61)
    assert [record.aggregated for record in bench.records[5:]] == [7]


def test_search_noise_is_answered_on_the_node() -> None:
    """A search-list expansion that cannot exist is NXDOMAIN without asking, and marked."""
    bench = Bench()
    client = bench.query("api.example.com.shop.svc.cluster.local")
    assert client.answer.rcode() == dns.rcode.NXDOMAIN
    assert bench.asked == []
    assert (bench.records[0].search, bench.records[0].verdict) == (True, "allowed")


def test_service_name_is_asked_and_not_granted() -> None:
    """An in-cluster name resolves; its addresses are open by the cluster's ranges, not by grants."""
    bench = Bench()
    bench.query("db.shop.svc.cluster.local")
    bench.reply("db.shop.svc.cluster.local 5 A 10.96.3.4")
    assert bench.kernel == []
    assert (bench.records[0].reason, bench.records[0].addresses) == ("in-cluster", (bytes((10, 96, 3, 4)),))


def test_external_name_service_is_granted_by_the_rule_of_its_target() -> None:
    """A Service of type ExternalName leads outside: what its target's rule allows is opened."""
    bench = Bench()
    bench.query("store.shop.svc.cluster.local")
    bench.reply("store.shop.svc.cluster.local 5 CNAME api.example.com.", "api.example.com 5 A 203.0.113.7")
    assert [(e.address, e.span) for e in bench.kernel] == [(IPV4, HTTPS[0])]


def test_policy_edit_while_asking_counts() -> None:
    """A name that was allowed when it was asked and is not when the answer comes is denied."""
    bench = Bench()
    client = bench.query("api.example.com")
    bench.party.judge = Judge(Subject((replace(WEB, allow=()),)), FACTS)
    bench.reply("api.example.com 5 A 203.0.113.7")
    assert client.answer.rcode() == dns.rcode.NXDOMAIN
    assert bench.kernel == []


def test_pod_gone_while_asking_grants_nothing() -> None:
    """An answer for a pod that left, or whose address is another pod's now, opens nothing."""
    bench = Bench()
    bench.query("api.example.com")
    bench.parties[POD] = Party(PodIdentity("shop", "other-0"))
    bench.reply("api.example.com 5 A 203.0.113.7")
    assert bench.kernel == []
    assert bench.records[0].reason == "unknown-pod"


def test_audited_pod_is_untouched_and_reported() -> None:
    """A pod that only Audit policies select gets every answer; the record says what enforcement would do."""
    bench = Bench(replace(WEB, mode=Mode.AUDIT))
    client = bench.query("cdn.example")
    bench.reply("cdn.example 5 A 203.0.113.7")
    assert client.answer.rcode() == dns.rcode.NOERROR
    assert (bench.records[0].verdict, bench.records[0].reason) == (Verdict.WOULD_DENY, Reason.NO_RULE)
    client = bench.query("api.example.com")
    bench.reply("api.example.com 5 A 169.254.169.254")
    assert client.answer.answer[0].to_text().endswith("169.254.169.254")
    assert (bench.records[1].verdict, bench.records[1].reason) == (Verdict.WOULD_DENY, Reason.REBINDING)


def test_resolve_mode_answers_and_opens_only_what_is_allowed() -> None:
    """`dns: Resolve`: every name resolves, and only those with a rule are opened."""
    bench = Bench(replace(WEB, dns=DnsMode.RESOLVE))
    client = bench.query("cdn.example")
    bench.reply("cdn.example 5 A 203.0.113.9")
    assert client.answer.rcode() == dns.rcode.NOERROR
    assert bench.kernel == []
    assert (bench.records[0].verdict, bench.records[0].reason, bench.records[0].granted) == ("denied", "no-rule", ())
    bench.query("api.example.com")
    bench.reply("api.example.com 5 A 203.0.113.7")
    assert [e.address for e in bench.kernel] == [IPV4]


def test_evicted_grants_leave_the_kernel() -> None:
    """What a bound pushes out of the ledger at once is taken out of the kernel too."""
    bench = Bench()
    bench.ledger.total = 1
    bench.query("api.example.com")
    bench.reply("api.example.com 5 A 203.0.113.7")
    bench.query("api.example.com")
    bench.reply("api.example.com 5 A 203.0.113.8")
    assert [e.address for e in bench.withdrawn] == [IPV4]


def test_malformed_is_recorded_and_answered_as_the_gate_says() -> None:
    """Packets that are no query get FORMERR, NOTIMP or silence, and always a record."""
    bench = Bench()
    header = struct.Struct("!6H")
    cases = {b"\x00": None, header.pack(1, 0x8000, 1, 0, 0, 0): None, header.pack(1, 0x2800, 1, 0, 0, 0): 4}
    cases[header.pack(1, 0x0100, 2, 0, 0, 0)] = 1
    for data, rcode in cases.items():
        client = Client()
        bench.exchange.receive([(data, client)])
        assert [sent[3] & 15 for sent in client.sent] == ([] if rcode is None else [rcode])
    assert [record.reason for record in bench.records] == ["malformed"] * 4


NAMES = ["api.example.com", "cdn.example", "uploads.s3.example", "x.s3.example", "a.b.c.d.svc.cluster.local", "."]
ANSWERS: list[tuple[str, ...]] = [(), ("203.0.113.7",), ("169.254.169.254",), ("10.0.0.1", "203.0.113.8")]


@hypothesis_settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([POD, FREE, STRANGER]), st.sampled_from(NAMES), st.sampled_from(ANSWERS), st.booleans()
        ),
        max_size=12,
    )
)
def test_every_query_has_exactly_one_record_and_one_reply(
    steps: list[tuple[bytes, str, tuple[str, ...], bool]],
) -> None:
    """Whatever pods ask and upstreams and the kernel say: one query, one record, one reply."""
    bench = Bench()
    clients = []
    for address, name, answers, kernel_works in steps:
        bench.refuse = set() if kernel_works else {IPV4}
        clients.append(bench.query(name, client=Client(address)))
        while bench.asked:
            bench.reply(*(f"{name} 5 A {text}" for text in answers))
    bench.exchange.tick(bench.now + 3)
    assert [len(client.sent) for client in clients] == [1] * len(steps)
    assert len(bench.records) == len(steps)
    assert METADATA not in {element.address for element in bench.kernel}
    assert bench.exchange.in_flight == 0


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.binary(max_size=64) | st.binary(max_size=40).map(lambda tail: b"\0\1\1\0\0\1\0\0\0\0\0\0" + tail))
def test_any_bytes_get_one_record_and_at_most_one_reply(data: bytes) -> None:
    """A pod may send anything: it is answered or met with silence, and recorded once."""
    bench = Bench()
    client = Client()
    bench.exchange.receive([(data, client)])
    assert len(client.sent) <= 1
    assert len(bench.records) + len(bench.asked) == 1
