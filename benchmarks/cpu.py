"""CPU time of a process and its descendants, and what kind of machine this is.

Times come from /proc/PID/stat (proc_pid_stat(5)): utime and stime hold the threads that already ended, too. Their
resolution is one tick of `_SC_CLK_TCK` (10 ms), so a run should keep its peer busy for a second.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Usage", "describe_machine", "resident_mib", "spent_s", "tree", "usage"]

PROC = Path("/proc")
CPUCLOCK_SCHED = 2
"""include/linux/posix-timers_types.h: what the scheduler counted."""


class Usage(NamedTuple):
    """Seconds of CPU, all processes together."""

    user: float
    system: float

    def since(self, earlier: Usage) -> Usage:
        """What was spent from `earlier` to here."""
        return Usage(self.user - earlier.user, self.system - earlier.system)

    @property
    def total(self) -> float:
        """User and system together, seconds."""
        return self.user + self.system


def stat_fields(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from `state` (field 3) on; None if the process is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the command in field 2 may itself hold blanks and parentheses


def usage(pids: Iterable[int]) -> Usage:
    """Time charged so far to these processes and to the children they waited for."""
    user = system = 0
    for pid in pids:
        fields = stat_fields(pid)
        if fields is None:
            continue
        utime, stime, cutime, cstime = (int(field) for field in fields[11:15])
        user += utime + cutime
        system += stime + cstime
    tick = os.sysconf("SC_CLK_TCK")
    return Usage(user / tick, system / tick)


def spent_s(pids: Iterable[int]) -> float:
    """Seconds of CPU so far, to the nanosecond: for short bursts, which ticks count wrongly.

    From each process's CPU clock, all its threads together, as clock_getcpuclockid(3) numbers it; without its children.
    """
    return sum(time.clock_gettime((~pid << 3) | CPUCLOCK_SCHED) for pid in pids)


def resident_mib(pids: Iterable[int]) -> float:
    """Memory that these processes hold, MiB; pages that they share are counted for each."""
    pages = sum(int(fields[21]) for pid in pids if (fields := stat_fields(pid)) is not None)
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def tree(root: int) -> list[int]:
    """`root` and all its living descendants."""
    children: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := stat_fields(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [root]
    for pid in found:  # grows while it is walked: breadth first
        found.extend(children.get(pid, ()))
    return found


def describe_machine() -> str:
    """One line: processor, cores, memory, kernel, Python."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in (PROC / "cpuinfo").read_text().splitlines()
            if line.startswith(("model name", "CPU part"))
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kernel, python = platform.release(), platform.python_version()
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB, Linux {kernel}, Python {python}"
