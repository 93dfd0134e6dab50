"""The cache: TTLs, bounds, staleness, and who leaves first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from egressd.cache import OVERHEAD, TtlCache


def cache(entries: int = 100, octets: int = 1 << 20, stale: float = 60.0) -> TtlCache[str, str]:
    return TtlCache(entries, octets, stale)


def test_entry_lives_for_its_ttl_and_tells_its_age() -> None:
    """A value is fresh until its TTL ends, and its age is what its TTLs shrink by."""
    book = cache()
    book.put("a", "1", 10, 5, 100.0)
    entry = book.get("a", 104.9)
    assert entry is not None
    assert (entry.value, entry.age(104.9)) == ("1", 4)
    assert book.get("a", 105.0) is None


def test_zero_ttl_is_not_kept() -> None:
    """A TTL of 0 means: for this transaction only (RFC 1035 section 3.2.1)."""
    book = cache()
    book.put("a", "1", 10, 0, 100.0)
    assert len(book) == 0


def test_stale_until_its_time_is_over() -> None:
    """An expired value may be served while the upstream fails, for `keep_stale_s` and no longer."""
    book = cache(stale=60)
    book.put("a", "1", 10, 5, 100.0)
    assert book.get("a", 110.0) is None
    assert book.stale("a", 164.9) is not None
    assert book.stale("a", 165.0) is None
    assert book.expire(165.0) == 1
    assert (len(book), book.octets) == (0, 0)


def test_entries_in_use_outlive_those_that_are_not() -> None:
    """At the bound, what was asked for stays and what was not leaves, oldest first."""
    book = cache(entries=3)
    for number, key in enumerate("abc"):
        book.put(key, key, 10, 600, 100.0 + number)
    assert book.get("a", 110.0)
    book.put("d", "d", 10, 600, 111.0)
    assert [key for key in "abcd" if book.get(key, 112.0)] == ["a", "c", "d"]
    assert book.evicted == 1


def test_octets_are_bounded() -> None:
    """Large values push out more than one small one; a value that could never fit is not kept."""
    book = cache(octets=4 * (OVERHEAD + 100))
    for key in "abcd":
        book.put(key, key, 100, 600, 100.0)
    book.put("e", "e", OVERHEAD + 200, 600, 101.0)
    assert [key for key in "abcde" if book.get(key, 102.0)] == ["c", "d", "e"]
    book.put("f", "f", 1 << 20, 600, 103.0)
    assert book.get("f", 103.0) is None


def test_popular_entries_are_refreshed_once_before_they_end() -> None:
    """In the last tenth of its TTL an entry that was hit more than once asks to be fetched anew, one time."""
    book = cache()
    book.put("a", "1", 10, 100, 1000.0)
    first = book.get("a", 1001.0)
    assert first is not None
    assert not first.worth_refreshing(1095.0), "asked for once: not popular"
    assert book.get("a", 1089.0)
    assert not first.worth_refreshing(1089.0)
    assert first.worth_refreshing(1091.0)
    assert not first.worth_refreshing(1092.0)


def test_size_zero_keeps_nothing() -> None:
    """`cache.size: 0` turns it off."""
    book = cache(entries=0)
    book.put("a", "1", 10, 600, 100.0)
    assert len(book) == 0


@hypothesis_settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["put", "get", "stale", "expire"]), st.integers(0, 40)),
        max_size=60,
    )
)
def test_bounds_and_truth_hold_after_any_history(steps: list[tuple[str, str, int]]) -> None:
    """After any history: bounds kept, octets counted right, and a fresh value is the one last put, within its TTL."""
    book: TtlCache[str, int] = TtlCache(4, 3 * (OVERHEAD + 30), 20.0)
    last: dict[str, tuple[int, float]] = {}
    now = 1000.0
    for number, (key, action, amount) in enumerate(steps):
        now += 1.5
        if action == "put":
            book.put(key, number, amount, amount, now)
            if amount:
                last[key] = number, now + amount
        elif action == "expire":
            book.expire(now)
        else:
            entry = book.get(key, now) if action == "get" else book.stale(key, now)
            if entry is not None:
                assert entry.value == last[key][0]
                assert last[key][1] + (0 if action == "get" else 20) > now
        assert len(book) <= 4
        assert book.octets <= 3 * (OVERHEAD + 30)
        assert book.octets == sum(entry.size for entry in book._table.values())


@hypothesis_settings(max_examples=100, deadline=None)
@given(ttl=st.integers(1, 30), hits=st.integers(0, 3), asked=st.floats(0, 29), later=st.floats(0, 2))
def test_a_hit_is_steady_until_its_age_or_its_freshness_changes(
    ttl: int, hits: int, asked: float, later: float
) -> None:
    """Before `steady_until` an entry has the same age, is fresh, and gives no more reason to refresh it than it did."""
    book = cache()
    book.put("a", "1", 10, ttl, 0.0)
    for _ in range(hits):
        book.get("a", 0.0)
    entry = book.get("a", asked)
    if entry is None:
        return
    entry.worth_refreshing(asked)
    until = entry.steady_until(asked)
    assert until <= asked + 1
    then = asked + later
    if then < until:
        assert entry.age(then) == entry.age(asked)
        assert book.get("a", then) is entry
        assert not entry.worth_refreshing(then)


def test_an_entry_knows_that_it_left() -> None:
    """One that was replaced, or made room for, is told from the one in its place."""
    book = cache(entries=1)
    book.put("a", "1", 10, 5, 100.0)
    first = book.get("a", 100.0)
    book.put("a", "2", 10, 5, 100.0)
    second = book.get("a", 100.0)
    book.put("b", "3", 10, 5, 100.0)
    book.put("c", "3", 10, 5, 100.0)
    assert first is not None
    assert second is not None
    assert (first.dropped, second.dropped) == (True, True)
    assert len(book) == 1
