"""What is frozen is freed all the same, and cycles do not pile up behind the collector's back."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from egressd.agent import garbage
from egressd.agent.garbage import SLACK, Frost


class Knot:
    """Something that leads back to itself."""

    def __init__(self) -> None:
        self.self = self


class Plain:
    """Something that leads nowhere."""


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How large the process is said to be, octets; the collector is as before afterwards."""
    size, thresholds = [100 << 20], gc.get_threshold()
    monkeypatch.setattr(garbage, "resident", lambda: size[0])
    yield size
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def test_cycles_are_collected_once_the_process_has_grown(grown: list[int]) -> None:
    """A cycle that was frozen is left alone until then, and is gone after it; so are later ones, after more growth."""
    frost = Frost()
    frost.begin()
    frost.settle()
    for _ in range(2):
        knot = weakref.ref(Knot())
        frost.keep()
        frost.check()
        gc.collect()
        assert knot() is not None
        grown[0] += grown[0] // 2 + SLACK + 1
        frost.check()
        assert knot() is None


def test_what_is_replaced_is_freed_at_once(grown: list[int]) -> None:
    """References alone free what was frozen, whatever the process has grown by."""
    frost = Frost()
    frost.begin()
    held = [Plain()]
    seen = weakref.ref(held[0])
    frost.keep()
    held.clear()
    assert seen() is None
    assert grown[0] == 100 << 20
