"""The ledger against policy.md (Grants) by cases, and against a naive model by random histories."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from egressd.grants import UNSELECTED_SUBJECT, Element, Key, Ledger, expand
from egressd.grants.sets import Held
from egressd.model import ANY_PORT, Ports, PortSpan
from egressd.names import Name

A = bytes((192, 0, 2, 1))
B = bytes((192, 0, 2, 2))
API = Name("api.example.com")
CDN = Name("cdn.example")
HTTPS: Ports = (PortSpan(6, 6, 443, 443),)
WIDE: Ports = (PortSpan(6, 6, 8000, 8999),)
ICMP: Ports = (PortSpan(1, 1, 0, 65535), PortSpan(58, 58, 0, 65535))


def ledger(**bounds: int) -> Ledger:
    return Ledger(minimum_s=60, grace_s=30, **bounds)


def test_first_answer_is_written_with_minimum_and_grace() -> None:
    """A TTL of 5 s opens the address for min 60 s plus grace 30 s, as a plain add that names the domain."""
    writes, gone = ledger().admit(1, API, [A], HTTPS, 5, 1000.0)
    assert writes == [Element(1, "port", A, HTTPS[0], 90_000, API, False)]
    assert gone == []


def test_a_grant_that_lives_long_enough_needs_no_write() -> None:
    """A repeated answer is written again only when less than half of a new grant's lifetime is left."""
    book = ledger()
    book.admit(1, API, [A], HTTPS, 5, 1000.0)
    assert book.admit(1, API, [A], HTTPS, 5, 1044.0).writes == []
    (write,) = book.admit(1, API, [A], HTTPS, 5, 1046.0).writes
    assert write.refresh
    assert write.lifetime_ms == 90_000


def test_long_ttl_is_never_shortened() -> None:
    """A later answer with a smaller TTL does not shorten what an earlier one gave."""
    book = ledger()
    book.admit(1, API, [A], HTTPS, 600, 1000.0)
    assert book.admit(1, API, [A], HTTPS, 5, 1001.0).writes == []
    assert book.opens(1, A, 6, 443, 1600.0)


def test_grants_end() -> None:
    """After TTL and grace the ledger opens nothing, and forgets the grant after it lingered."""
    book = ledger()
    book.admit(1, API, [A], HTTPS, 120, 1000.0)
    assert book.opens(1, A, 6, 443, 1149.0)
    assert not book.opens(1, A, 6, 443, 1150.5)
    assert book.expire(1152.0) == 0
    assert book.expire(1156.0) == 1
    assert len(book) == 0


def test_an_expired_element_is_refreshed_while_the_kernel_may_still_hold_it() -> None:
    """Just after the end the kernel may still have the element: the write must work in both cases."""
    book = ledger()
    book.admit(1, API, [A], HTTPS, 5, 1000.0)
    (write,) = book.admit(1, API, [A], HTTPS, 5, 1091.0).writes
    assert write.refresh


def test_kinds_of_elements() -> None:
    """Single ports go to the hash set, wide ranges to the interval set, portless rules to `any`; ICMP by family."""
    assert expand(ANY_PORT, 4) == (("any", None),)
    assert expand(WIDE, 4) == (("range", WIDE[0]),)
    assert [span for _, span in expand((PortSpan(6, 6, 80, 82),), 4)] == [PortSpan(6, 6, p, p) for p in (80, 81, 82)]
    assert expand(ICMP, 4) == (("range", ICMP[0]),)
    assert expand(ICMP, 16) == (("range", ICMP[1]),)


def test_two_names_share_an_address() -> None:
    """An address under two names stays open until both let go, no longer than the longer of the two."""
    book = ledger()
    book.admit(1, API, [A], HTTPS, 5, 1000.0)
    book.admit(1, CDN, [A], HTTPS, 300, 1000.0)
    writes, gone = book.review(1, lambda name, _: () if name == CDN else HTTPS, 1001.0)
    assert gone == []
    assert [write.lifetime_ms for write in writes] == [89_000]
    _, gone = book.review(1, lambda *_: (), 1002.0)
    assert [element.address for element in gone] == [A]


def test_a_name_that_lingers_keeps_nothing_open() -> None:
    """What one name loses leaves at once, even where another that just ended is still remembered."""
    book = ledger()
    book.admit(1, API, [A], HTTPS, 5, 1000.0)
    book.admit(1, CDN, [A], HTTPS, 3600, 1001.0)
    _, gone = book.review(1, lambda name, _: () if name == CDN else HTTPS, 1091.0)
    assert [element.address for element in gone] == [A]
    assert not book.opens(1, A, 6, 443, 1092.0)


def test_what_a_bound_pushes_out_leaves_no_long_life_behind() -> None:
    """An element goes on as long as the names still in the book hold it, not as long as the one pushed out did."""
    book = ledger(total=1)
    book.admit(1, CDN, [A], HTTPS, 3600, 1000.0)
    writes, gone = book.admit(1, API, [A], HTTPS, 5, 1001.0)
    assert gone == []
    assert [(write.address, write.lifetime_ms, write.refresh) for write in writes] == [(A, 90_000, True)]


def test_ports_change_in_one_step() -> None:
    """A rule that is widened swaps elements; a port that stays is not taken out in between."""
    book = ledger()
    book.admit(1, API, [A], (PortSpan(6, 6, 80, 81),), 5, 1000.0)
    writes, gone = book.review(1, lambda *_: (PortSpan(6, 6, 81, 82),), 1001.0)
    assert {(w.span.first_port, w.refresh) for w in writes if w.span} == {(81, True), (82, False)}
    assert [e.span.first_port for e in gone if e.span] == [80]


def test_changed_ports_leave_no_long_life_behind() -> None:
    """A name that turns to other ports takes its long life with it from an element that another name still holds."""
    book = ledger()
    book.admit(1, API, [A], HTTPS, 60, 1000.0)
    book.admit(1, CDN, [A], HTTPS, 3600, 1000.0)
    writes, gone = book.admit(1, CDN, [A], WIDE, 60, 1001.0)
    assert gone == []
    assert {(write.kind, write.lifetime_ms) for write in writes} == {("port", 89_000), ("range", 90_000)}
    assert not book.opens(1, A, 6, 443, 1091.0)


def test_total_bound_takes_from_the_heaviest_subject() -> None:
    """One subject's flood costs that subject its own grants, never another's."""
    book = ledger(total=10)
    book.admit(2, CDN, [A], HTTPS, 5, 1000.0)
    for number in range(30):
        book.admit(1, Name(f"n{number}.example"), [bytes((198, 51, 100, number))], HTTPS, 5, 1000.0 + number)
    assert book.opens(2, A, 6, 443, 1031.0)
    assert len(book) == 10


def test_what_is_pushed_out_takes_no_memory() -> None:
    """Under a flood of names with long TTLs the book keeps no note of what it pushed out."""
    book = ledger(total=10)
    for number in range(1000):
        book.admit(1, Name(f"n{number}.example"), [A], HTTPS, 86_400, 1000.0 + number)
    assert (len(book), len(book._due)) == (10, 10)
    assert book.expire(1_000_000.0) == 10
    assert (len(book), len(book._due)) == (0, 0)


def test_unselected_pods_are_remembered_and_never_programmed() -> None:
    """What unselected pods learned is not written, but moves along when a policy that allows it selects them."""
    book = ledger()
    assert book.admit(UNSELECTED_SUBJECT, API, [A], ANY_PORT, 5, 1000.0).writes == []
    (write,) = book.copy(UNSELECTED_SUBJECT, 7, lambda *_: HTTPS, 1010.0)
    assert (write.subject, write.kind, write.lifetime_ms) == (7, "port", 80_000)


def test_refused_write_is_written_again() -> None:
    """After `doubt` the same answer asks for the write again, in the form that works whether or not it is there."""
    book = ledger()
    writes = book.admit(1, API, [A], HTTPS, 5, 1000.0).writes
    book.doubt(writes)
    assert not book.opens(1, A, 6, 443, 1000.0)
    (again,) = book.admit(1, API, [A], HTTPS, 5, 1000.1).writes
    assert again.refresh


def test_rewrite_says_everything_alive() -> None:
    """A kernel that lost its table is told every live element with what is left of its life."""
    book = ledger()
    book.admit(1, API, [A, B], HTTPS, 5, 1000.0)
    book.admit(2, CDN, [A], ANY_PORT, 5, 1000.0)
    assert {(e.address, e.lifetime_ms) for e in book.rewrite(1, 1030.0)} == {(A, 60_000), (B, 60_000)}


SUBJECTS = st.integers(1, 2)
NAMES = st.sampled_from([API, CDN, Name("x.example")])
ADDRESSES = st.lists(st.sampled_from([A, B, bytes((192, 0, 2, 3)), bytes(16)]), min_size=1, max_size=3, unique=True)
PORTS = st.sampled_from([HTTPS, WIDE, ANY_PORT, (PortSpan(6, 6, 443, 444), PortSpan(17, 17, 443, 443))])


class LedgerMachine(RuleBasedStateMachine):
    """The kernel imagined as a dict of timeouts, fed only with what the ledger says; a naive model beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.book = ledger()
        self.kernel: dict[Key, float] = {}
        self.grants: dict[tuple[int, Name, bytes], tuple[Ports, float]] = {}

    def write(self, elements: list[Element]) -> None:
        for element in elements:
            present = self.kernel.get(element[:4], 0.0) > self.now
            assert element.refresh or not present, "a plain add of an element that the kernel holds"
            self.kernel[element[:4]] = self.now + element.lifetime_ms / 1000

    @rule(subject=SUBJECTS, name=NAMES, addresses=ADDRESSES, ports=PORTS, ttl=st.sampled_from([0, 5, 300]))
    def answer(self, subject: int, name: Name, addresses: list[bytes], ports: Ports, ttl: int) -> None:
        for (number, held, _), (old, _until) in list(self.grants.items()):
            if (number, held) == (subject, name):
                ports = old  # a name's ports change only by review
        admission = self.book.admit(subject, name, addresses, ports, ttl, self.now)
        assert admission.gone == []
        self.write(admission.writes)
        for address in addresses:
            known = self.grants.get((subject, name, address), (ports, 0.0))[1]
            enough = self.now + max(ttl + 15, (max(ttl, 60) + 30) / 2)
            programmed = [self.kernel[subject, kind, address, span] for kind, span in expand(ports, len(address))]
            assert all(end >= enough for end in programmed), "an answer whose addresses close too soon"
            until = min([max(known, self.now + max(ttl, 60) + 30), *programmed])
            self.grants[subject, name, address] = ports, known if known >= enough else until

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0, 61.0, 88.0, 400.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.book.expire(self.now)
        self.grants = {key: value for key, value in self.grants.items() if value[1] + 5 >= self.now}

    @rule(subject=SUBJECTS, allowed=st.sets(NAMES), ports=PORTS)
    def edit(self, subject: int, allowed: set[Name], ports: Ports) -> None:
        change = self.book.review(subject, lambda name, _: ports if name in allowed else (), self.now)
        for element in change.gone:
            self.kernel.pop(element[:4], None)
        self.write(change.writes)
        for (number, name, address), (_, until) in list(self.grants.items()):
            if number == subject and until > self.now:
                if name in allowed:
                    self.grants[number, name, address] = ports, until
                else:
                    del self.grants[number, name, address]

    @invariant()
    def each_grant_is_due_once(self) -> None:
        """What is to be looked at is what there is."""
        assert len(self.book._due) == len(self.book)

    @invariant()
    def kernel_holds_what_the_model_says(self) -> None:
        """Each live grant's elements are in the kernel as long as the grant lives, and nothing else is."""
        wanted: dict[Key, float] = {}
        for (subject, _, address), (ports, until) in self.grants.items():
            for kind, span in expand(ports, len(address)):
                key = (subject, kind, address, span)
                wanted[key] = max(until, wanted.get(key, 0.0))
        for key, until in wanted.items():
            if until > self.now:
                # a name's life may be prolonged without a write only while the element lives on anyway
                assert self.kernel.get(key, 0.0) > self.now, key
        for key, until in self.kernel.items():
            if until > self.now:
                assert wanted.get(key, 0.0) >= until - 0.01, key


LedgerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase


def test_letting_go_does_not_look_at_all_holders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of names that lead to few addresses: evicted or expired, none of them makes us look at all the others."""
    looks = 0
    ends = Held.ends

    def counted(held: Held) -> tuple[Name, float]:
        nonlocal looks
        looks += 1
        return ends(held)

    monkeypatch.setattr(Held, "ends", counted)
    book = ledger(total=500)
    for number in range(1500):
        book.admit(1, Name(f"n{number}.example"), (A,), HTTPS, 30, number / 10)
    assert book.evicted == 0  # the element stays, for it is held
    assert book.expire(1000.0) == 500
    assert looks <= 10
