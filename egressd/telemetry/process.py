"""What a process of ours costs: CPU time, resident memory, when it began (proc(5), /proc/PID/stat)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, NamedTuple

__all__ = ["ProcessUse", "process_use"]

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class ProcessUse(NamedTuple):
    cpu_s: float
    resident: int
    """Octets."""
    started: float
    """Seconds since the epoch."""


def process_use(pid: int) -> ProcessUse | None:
    """Read one process's use; None where there is no such process. Threads count, children do not."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("ascii", "replace")
        booted = _boot_time()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # behind the name, which may hold anything; field 3 comes first
    cpu_s = (int(fields[11]) + int(fields[12])) / _TICKS
    return ProcessUse(cpu_s, int(fields[21]) * _PAGE, booted + int(fields[19]) / _TICKS)


def _boot_time() -> float:
    for line in Path("/proc/stat").read_text("ascii", "replace").splitlines():
        if line.startswith("btime "):
            return float(line.split()[1])
    return 0.0
