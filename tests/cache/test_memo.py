"""The memo: bounded by two generations, and what is used stays."""

from __future__ import annotations

from egressd.memo import Memo


def test_what_is_used_outlives_what_is_not() -> None:
    """A key that is asked for stays through any number of others, which come and go."""
    memo: Memo[str, int] = Memo(4)
    memo.put("used", 1)
    for number in range(100):
        memo.put(f"random-{number}", number)
        assert memo.get("used") == 1
        assert len(memo) <= 8
    assert memo.get("random-0") is None


def test_a_value_can_be_replaced_in_either_generation() -> None:
    """The latest value of a key is the one that is found."""
    memo: Memo[str, int] = Memo(2)
    for number in range(10):
        memo.put("key", number)
        memo.put(f"other-{number}", 0)
        assert memo.get("key") == number


def test_a_slow_memo_remembers_what_is_met_twice() -> None:
    """Keys met once leave no entry, but for the few taken for others; one met again is remembered from then on."""
    memo: Memo[str, int] = Memo(1000, slow=True)
    assert sum(memo.put(f"once-{number}", number) for number in range(500)) < 50
    assert len(memo) < 50
    memo.put("again", 1)
    assert memo.put("again", 2)
    assert memo.get("again") == 2
