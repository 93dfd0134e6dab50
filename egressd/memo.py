"""What can be computed again: remembered in two generations, so that it is bounded and what is used stays.

A table that is full becomes the older generation, and what was the older one is forgotten; what is found there comes
along into the younger. So random keys cannot grow it, and cost what is asked for again at most one computation.

Most keys are never met again. A memo that is `slow` remembers from the second meeting on: the first one leaves a mark
of one octet, where an entry would cost some hundred, and its making and forgetting as much time as the computation.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

__all__ = ["Memo"]

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

MARKS: Final = 1 << 14
"""Places for marks. A mark is 8 bits of the key's hash, so one new key in 256 may be taken for one met before, and is
remembered at once; a key whose mark another has overwritten is met anew."""


class Memo(Generic[K, V]):
    """At most `size` entries a generation."""

    __slots__ = ("_marks", "_old", "_size", "_young")

    def __init__(self, size: int, *, slow: bool = False) -> None:
        self._size = size
        self._young: dict[K, V] = {}
        self._old: dict[K, V] = {}
        self._marks = bytearray(MARKS if slow else 0)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: K) -> V | None:
        """What is remembered under this key."""
        found = self._young.get(key)
        if found is None and self._old:
            found = self._old.pop(key, None)
            if found is not None:
                self._remember(key, found)
        return found

    def put(self, key: K, value: V) -> bool:
        """Remember a value, which is not None. Returns whether it is: not so at the first meeting, where it is slow."""
        marks = self._marks
        if marks:
            number = hash(key) & (256 * MARKS - 1)
            place, mark = number >> 8, number & 255
            if marks[place] != mark:
                marks[place] = mark
                return False
        self._remember(key, value)
        return True

    def _remember(self, key: K, value: V) -> None:
        if len(self._young) >= self._size:
            self._old, self._young = self._young, {}
        self._young[key] = value
