"""Bounds of the ledger: who leaves, in which order, and that a live connection keeps its grant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from egressd.grants import UNSELECTED_SUBJECT, Admission, Crowd, Element, Key, Ledger, expand
from egressd.grants.crowd import EVICT_MOST, LOOK, OVERSHOOT
from egressd.model import ANY_PORT, Ports, PortSpan
from egressd.names import Name

API = Name("api.example.com")
CDN = Name("cdn.example")
HTTPS: Ports = (PortSpan(6, 6, 443, 443),)


def place(number: int) -> bytes:
    return bytes((203, 0, 113 + number // 256, number % 256))


def book(per_name: int = 8, total: int = 200_000, overshoot: int = OVERSHOOT) -> Ledger:
    return Ledger(minimum_s=60, grace_s=30, per_name=per_name, total=total, overshoot=overshoot)


def rotate(made: Ledger, numbers: Iterable[int], name: Name = API, subject: int = 1) -> list[Element]:
    """Answers of one address each, a second apart; returns what left at once."""
    return [
        gone
        for number in numbers
        for gone in made.admit(subject, name, [place(number)], HTTPS, 300, 1000.0 + number).gone
    ]


def trim(made: Ledger, *live: int, now: float = 1100.0) -> list[bytes]:
    """One look, in which these are found; the addresses that leave."""
    crowd = made.crowded()
    if crowd is None:
        return []
    found = {place(number) for number in live}
    return [
        gone.address
        for gone in made.trim(crowd, {subject: found & them for subject, them in crowd.addresses.items()}, now).gone
    ]


def held(made: Ledger, name: Name = API, subject: int = 1) -> list[bytes]:
    return [view.address for view in made.views(subject, name, 1100.0)]


def test_nobody_looks_while_there_is_room() -> None:
    """Up to its bound a name asks for no look at the connections."""
    made = book()
    assert rotate(made, range(8)) == []
    assert made.crowded() is None


def test_the_oldest_leave() -> None:
    """Past `per_name` the addresses renewed longest ago leave with the next look, in their order."""
    made = book()
    rotate(made, range(8))
    made.admit(1, API, [place(0)], HTTPS, 600, 1050.0)
    assert rotate(made, range(50, 53)) == []
    assert trim(made) == [place(1), place(2), place(3)]
    assert made.crowded() is None
    assert (made.evicted, made.kept_live) == (3, 0)


def test_a_live_connection_keeps_its_grant() -> None:
    """The first address of a long rotation stays for its connection; all others leave, the oldest first."""
    made = book()
    rotate(made, range(50))
    assert trim(made, 0, 30) == [place(number) for number in (*range(1, 30), *range(31, 44))]
    assert set(held(made)) == {place(0), place(30), *map(place, range(44, 50))}
    assert (made.evicted, made.kept_live) == (42, 2)


def test_a_connection_that_ends_keeps_nothing() -> None:
    """What stayed for its connection counts as renewed then, and leaves in its turn once the connection is over."""
    made = book(per_name=2)
    rotate(made, range(3))
    assert trim(made, 0) == [place(1)]
    rotate(made, range(3, 5))
    assert trim(made) == [place(2), place(0)]


def test_all_alive() -> None:
    """Where each address has a connection all stay, past the bound, and the next look is about them again."""
    made = book(per_name=2)
    rotate(made, range(6))
    assert trim(made, *range(6)) == []
    assert len(held(made)) == 6
    assert made.crowded() is not None
    assert trim(made, 0, 1) == [place(2), place(3), place(4), place(5)]


def test_what_comes_during_the_look() -> None:
    """An address that nobody has looked at is left alone, and so is a name that left meanwhile."""
    made = book(per_name=1)
    rotate(made, (0, 1))
    rotate(made, (0, 1), CDN)
    crowd = made.crowded()
    assert crowd is not None
    made.review(1, lambda name, _: HTTPS if name == API else (), 1010.0)
    rotate(made, (2, 3))
    assert [gone.address for gone in made.trim(crowd, {}, 1100.0).gone] == [place(0), place(1)]
    assert held(made) == [place(2), place(3)]
    assert trim(made) == [place(2)]


def test_who_else_holds_the_address() -> None:
    """An element that another name still holds stays as long as that name has it, and that is written."""
    made = book(per_name=1)
    made.admit(1, API, [place(0)], HTTPS, 600, 1000.0)
    made.admit(1, CDN, [place(0)], HTTPS, 60, 1000.0)
    made.admit(1, API, [place(1)], HTTPS, 60, 1001.0)
    crowd = made.crowded()
    assert crowd is not None
    out = made.trim(crowd, {}, 1002.0)
    assert out.gone == []
    assert [(write.address, write.lifetime_ms, write.refresh) for write in out.writes] == [(place(0), 88_000, True)]


def test_no_name_grows_without_end() -> None:
    """With nobody looking, a name keeps `OVERSHOOT` more than its bound, and then the oldest leave at once."""
    made = book()
    most = 8 + OVERSHOOT
    assert rotate(made, range(most)) == []
    assert [gone.address for gone in rotate(made, range(most, most + 3))] == [place(0), place(1), place(2)]
    assert len(made) == most


def test_what_was_seen_alive_leaves_after_all_others() -> None:
    """At the hard bound too, a grant that the last look found in use is passed over, for one round."""
    made = book(per_name=1)
    rotate(made, range(1 + OVERSHOOT))
    crowd = made.crowded()
    assert crowd is not None
    made.trim(Crowd(crowd.names, {1: frozenset({place(0), place(1)})}), {1: {place(0), place(1)}}, 1100.0)
    more = range(1 + OVERSHOOT, 1 + 2 * OVERSHOOT)
    left = [gone.address for gone in rotate(made, more)]
    assert left == [place(number) for number in range(2, 2 + OVERSHOOT)]
    assert {place(0), place(1)} <= made._names[1][API].keys()


def test_what_no_policy_selects_opens_nothing() -> None:
    """What unselected pods learned is bounded at once: no connection hangs on it."""
    made = book()
    rotate(made, range(20), subject=UNSELECTED_SUBJECT)
    assert list(made._names[UNSELECTED_SUBJECT][API]) == [place(number) for number in range(12, 20)]
    assert made.crowded() is None


@pytest.mark.parametrize("together", [True, False], ids=["one name", "many names"])
def test_the_total_spares_what_is_in_use(*, together: bool) -> None:
    """Near the total, what leaves next is looked at first, so that the hard bound takes others."""
    made = book(per_name=100, total=32)

    def answer(number: int) -> list[bytes]:
        name = API if together else Name(f"n{number}.example")
        gone = made.admit(1, name, [place(number)], HTTPS, 300, 1000.0 + number).gone
        return [element.address for element in gone]

    for number in range(32):
        assert answer(number) == []
    assert trim(made, 0, 3) == []
    assert [address for number in range(32, 36) for address in answer(number)] == [
        place(number) for number in (1, 2, 4, 5)
    ]
    assert len(made) == 32
    assert made.kept_live == 2


def test_a_total_full_of_live_ones_is_still_a_bound() -> None:
    """Where all have connections, the oldest of them leaves after all: memory is bounded, whatever comes."""
    made = book(per_name=100, total=32)
    rotate(made, range(32))
    trim(made, *range(32))
    assert len(rotate(made, range(32, 40))) == 8
    assert len(made) == 32


def test_a_total_of_unselected_ones_asks_nobody() -> None:
    """Where the heaviest share opens nothing, no look is wanted."""
    made = book(per_name=100, total=32)
    rotate(made, range(32), subject=UNSELECTED_SUBJECT)
    assert made.crowded() is None


def test_a_look_and_a_trim_are_bounded() -> None:
    """However many names are crowded, a look is about some of them, and the rest have their turn."""
    made = book(per_name=1)
    names = [Name(f"n{number}.example") for number in range(12)]
    for name in names:
        rotate(made, range(1000), name)
    looked: set[Name] = set()
    for _ in range(40):
        crowd = made.crowded()
        if crowd is None:
            break
        assert sum(len(made._names[1][name]) for _, name in crowd.names) <= LOOK + 1000
        looked |= {name for _, name in crowd.names}
        before = len(made)
        made.trim(crowd, {}, 1100.0)
        assert 0 < before - len(made) <= EVICT_MOST
    assert looked == set(names)
    assert len(made) == 12
    assert made.crowded() is None


def test_what_is_gone_is_not_remembered_as_crowded() -> None:
    """A name that leaves takes its note along."""
    made = book(per_name=1)
    rotate(made, range(3))
    made.forget(1)
    assert made._crowded == {}
    assert made.crowded() is None


class CrowdMachine(RuleBasedStateMachine):
    """The kernel imagined as a dict of timeouts, fed only with what a ledger of tight bounds says."""

    PER_NAME, MORE, TOTAL = 2, 3, 14
    PORTS: Final[dict[Name, Ports]] = {API: HTTPS, CDN: ANY_PORT, Name("x.example"): HTTPS}
    """They change only by review."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.book = book(self.PER_NAME, self.TOTAL, self.MORE)
        self.kernel: dict[Key, float] = {}

    def settle(self, admission: Admission) -> None:
        assert {each[:4] for each in admission.gone}.isdisjoint(each[:4] for each in admission.writes)
        for element in admission.gone:
            self.kernel.pop(element[:4], None)
        for element in admission.writes:
            assert element.refresh or self.kernel.get(element[:4], 0.0) <= self.now
            self.kernel[element[:4]] = self.now + element.lifetime_ms / 1000

    @rule(
        subject=st.integers(0, 2),
        name=st.sampled_from([*PORTS]),
        numbers=st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
        ttl=st.sampled_from([0, 300]),
    )
    def answer(self, subject: int, name: Name, numbers: list[int], ttl: int) -> None:
        addresses = [place(each) for each in numbers]
        self.settle(self.book.admit(subject, name, addresses, self.PORTS[name], ttl, self.now))

    @rule(seconds=st.sampled_from([0.5, 20.0, 88.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.book.expire(self.now)

    @rule(subject=st.integers(1, 2), allowed=st.sets(st.sampled_from([*PORTS])))
    def edit(self, subject: int, allowed: set[Name]) -> None:
        self.settle(self.book.review(subject, lambda name, _: self.PORTS[name] if name in allowed else (), self.now))

    @rule(numbers=st.sets(st.integers(0, 9)))
    def look(self, numbers: set[int]) -> None:
        """A look finds these addresses in use: none of them leaves, and no name keeps more than it may but for them."""
        crowd = self.book.crowded()
        if crowd is None:
            return
        live: Mapping[int, set[bytes]] = {subject: {place(each) for each in numbers} for subject in (1, 2)}
        before = self.grants()
        self.settle(self.book.trim(crowd, live, self.now))
        left = before - self.grants()
        assert not any(address in live[subject] for subject, _, address in left)
        for subject, name in crowd.names:
            kept = [address for number, of, address in self.grants() if (number, of) == (subject, name)]
            assert len(kept) <= self.PER_NAME or set(kept) <= live[subject]
            assert len(kept) >= min(self.PER_NAME, sum(each[:2] == (subject, name) for each in before))

    def grants(self) -> set[tuple[int, Name, bytes]]:
        return {
            (subject, name, address)
            for subject, names in self.book._names.items()
            for name, addresses in names.items()
            for address in addresses
        }

    @invariant()
    def bounds_hold(self) -> None:
        """The total at every moment, and the hard bound of each name; notes are of what is there."""
        assert len(self.book._due) == len(self.book) <= self.TOTAL
        for subject, names in self.book._names.items():
            for name, addresses in names.items():
                assert 0 < len(addresses) <= self.PER_NAME + (self.MORE if subject else 0)
                assert subject == 0 or len(addresses) <= self.PER_NAME or (subject, name) in self.book._crowded
        assert all(name in self.book._names[subject] for subject, name in self.book._crowded)

    @invariant()
    def the_kernel_follows(self) -> None:
        """Each live grant is open, and nothing is open that no grant holds for as long."""
        wanted: dict[Key, float] = {}
        for subject, name, address in self.grants():
            grant = self.book._names[subject][name][address]
            for kind, span in expand(grant.ports, len(address)) if subject else ():
                key = subject, kind, address, span
                wanted[key] = max(wanted.get(key, 0.0), grant.until)
        for key, until in wanted.items():
            assert until <= self.now or self.kernel.get(key, 0.0) > self.now, key
        for key, until in self.kernel.items():
            assert until <= self.now or wanted.get(key, 0.0) >= until - 0.01, key


CrowdMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestCrowdMachine = CrowdMachine.TestCase
