"""What a process of ours costs: CPU time, resident memory, when it began."""

from __future__ import annotations

import os
import time
from functools import cache
from typing import Final, NamedTuple

__all__ = ["ProcessUse", "own_use"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_BEGAN: Final = time.time()


class ProcessUse(NamedTuple):
    cpu_s: float
    """User and system, of all threads."""
    resident: int
    """Octets."""
    started: float
    """Seconds since the epoch."""


def own_use() -> ProcessUse:
    """This process's use (proc(5), statm: the second field is resident pages)."""
    try:
        resident = int(os.pread(_statm(), 256, 0).split()[1]) * _PAGE
    except OSError:
        resident = 0
    return ProcessUse(time.process_time(), resident, _BEGAN)


@cache
def _statm() -> int:
    """Opened once: each scrape reads it anew."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
