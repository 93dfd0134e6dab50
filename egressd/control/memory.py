"""What the first reading of a large world leaves behind is given back: cycles, and pages that malloc keeps."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["give_back", "undisturbed"]


@contextmanager
def undisturbed() -> Iterator[None]:
    """While a world is built, which has no cycles, nobody looks for any: a quarter of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def give_back() -> None:
    """Collect garbage and return free memory to the kernel; takes some 50 ms, and saves 10 MiB with 1,000 policies.

    What is left is the world, which later collections need not walk (gc.freeze): it comes and goes without cycles.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # malloc_trim(3); musl has none
    if trim is not None:
        trim(0)
