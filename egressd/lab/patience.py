"""Waiting for something that happens elsewhere, without guessing how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

__all__ = ["eventually"]

T = TypeVar("T")

POLL_S: Final = 0.02


def eventually(check: Callable[[], T], timeout: float = 10.0, *, what: str = "") -> T:
    """Call `check` until it returns something true, and return that; `TimeoutError` says `what` was waited for.

    Its own exceptions go through at once: it answers "not yet" by returning something false.
    """
    deadline = time.monotonic() + timeout
    while True:
        found = check()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what or check!r}")
        time.sleep(POLL_S)
