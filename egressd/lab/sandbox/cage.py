"""The command's own process: PID 1 of its own PID namespace, in its own network and mounts, without a way back.

What could undo the cage is given up before the command starts, for good: the capabilities to administer the network,
to enter or make namespaces, to mount, to trace, to load modules, to open files by handle, and set-user-ID programs.
Processes outside are not to be seen, /proc/sys and /sys cannot be written, and /run is not the machine's: behind the
sockets there sit services that would look up names, or start programs, outside (nscd, systemd, D-Bus, Docker).
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, NoReturn, Self

from egressd.lab import syscalls, world
from egressd.lab.space import Space

__all__ = ["KEPT", "NOT_EXECUTABLE", "NOT_FOUND", "Caller", "start"]

KEPT: Final = frozenset({0, 1, 3, 4, 5, 6, 7, 10, 18})
"""Capabilities that root keeps (include/uapi/linux/capability.h): CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID,
SETUID, NET_BIND_SERVICE, SYS_CHROOT."""
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
"""Exit codes for a command that cannot be run, as shells give them (POSIX, Exit Status for Commands)."""
_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)
"""What a terminal sends to everybody in front of it: the command alone heeds it."""
_OURS: Final = (*_TERMINAL, signal.SIGTERM)
"""Signals that we treat otherwise than our caller did."""
_GIVEN_BACK: Final = (*_OURS, signal.SIGPIPE, signal.SIGXFSZ)
"""And those that Python does."""
_FOLDERS: Final = ("/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/sysrq-trigger")
_OCTAL: Final = re.compile(r"\\([0-7]{3})")


class Caller(NamedTuple):
    """What a command inherits from its caller that we change for ourselves."""

    ignored: Sequence[signal.Signals]
    """Signals that it ignores."""
    open_files: tuple[int, int]
    """The limit of open files, soft and hard."""

    @classmethod
    def here(cls) -> Self:
        """As this process has it, to be asked before anything is changed."""
        ignored = [number for number in _OURS if signal.getsignal(number) is signal.SIG_IGN]
        return cls(ignored, resource.getrlimit(resource.RLIMIT_NOFILE))


def start(space: Space, command: Sequence[str], caller: Caller) -> int:
    """Start a command in a space, with our standard streams, terminal, folder, variables and user; return the PID.

    It is the PID of the cage's first process, which ends with the command's exit code. To be called while this process
    has one thread.
    """
    return world.fork_first(lambda: _first(space, command, caller))


def _first(space: Space, command: Sequence[str], caller: Caller) -> NoReturn:
    """Shut the cage from within, start the command, hand SIGTERM on, reap orphans, leave with its exit code."""
    program: list[int] = []
    for number in _TERMINAL:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, world.forward_to(program))
    space.move_in()
    syscalls.mount("proc", "/proc")
    for folder in (*_FOLDERS, *_mounts("/sys")):
        if Path(folder).exists():
            syscalls.read_only(folder)
    syscalls.keep_capabilities(KEPT)
    os.closerange(3, 1 << 20)
    program.append(os.fork())
    if program[0] == 0:
        _become(command, caller)
    while True:
        pid, status = os.wait()
        if pid == program[0]:
            os._exit(world.exit_code(status))


def _become(command: Sequence[str], caller: Caller) -> NoReturn:
    for number in _GIVEN_BACK:
        signal.signal(number, signal.SIG_IGN if number in caller.ignored else signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_NOFILE, caller.open_files)
    try:
        os.execvp(command[0], list(command))  # noqa: S606 - no shell is the point
    except (FileNotFoundError, NotADirectoryError) as error:
        _refuse(command[0], error, NOT_FOUND)
    except (OSError, ValueError) as error:
        _refuse(command[0], error, NOT_EXECUTABLE)


def _refuse(program: str, error: OSError | ValueError, code: int) -> NoReturn:
    why = error.strerror if isinstance(error, OSError) else error
    sys.stderr.write(f"egressd: {program}: {why}\n")
    sys.stderr.flush()
    os._exit(code)


def _mounts(folder: str) -> list[str]:
    """Where something is mounted, at a folder or below it (proc_pid_mountinfo(5))."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = (_OCTAL.sub(lambda found: chr(int(found[1], 8)), line.split()[4]) for line in lines)
    return [point for point in points if point == folder or point.startswith(folder + "/")]
