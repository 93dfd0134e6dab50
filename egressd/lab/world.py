"""A private world: everything made in it vanishes with the process that made it, even after `kill -9`.

The law: nothing here is ever cleaned up by our own code alone. Network namespaces live only as long as a process or
an open descriptor refers to them, mounts are private to a mount namespace, and every process belongs to a PID
namespace whose first process dies with us (PR_SET_PDEATHSIG, SIGKILL), whereupon the kernel kills the rest.

`run_private` runs a whole program that way (demo, sandbox); `enter_private` moves the calling process itself, for
those that cannot be started anew (pytest). In both, `/run` is an empty tmpfs of our own: no `ip netns` name reaches
the host, and no resolver daemon of the host (nscd, systemd-resolved) answers for a pod.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from egressd.errors import EgressError, EnvironmentProblem
from egressd.lab import syscalls

__all__ = [
    "Main",
    "child_namespace",
    "enter_private",
    "exit_code",
    "fork_first",
    "forward_to",
    "is_private",
    "run_private",
]

Main = Callable[[], int | None] | Sequence[str]
"""What runs in the world: a callable that returns an exit code (None: 0), or a program and its arguments."""

STOPPED: Final = 3
"""Exit code when the environment stops us (interface.md)."""


@dataclass(slots=True)
class _State:
    private: bool = False
    children: int = -1


_state = _State()


def is_private() -> bool:
    """Whether this process runs in a private world."""
    return _state.private


def child_namespace() -> int:
    """Descriptor of the PID namespace to start programs in, or -1 where they are in the right one anyway."""
    return _state.children


def run_private(main: Main) -> int:
    """Run `main` in a child with its own network, mount, PID, IPC and host-name namespaces; return its exit code.

    Blocks until it ends. SIGINT is left to the child (a terminal sends it to both), SIGTERM is handed on; a child
    killed by signal n gives 128 + n. Call it before starting threads. Raises `EnvironmentProblem` without root.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    first: list[int] = []
    previous = _handlers({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: forward_to(first)})
    try:
        first.append(fork_first(lambda: _first_process(main)))
        return exit_code(os.waitpid(first[0], 0)[1])
    finally:
        _handlers(previous)


def enter_private() -> None:
    """Move this process into its own network and mount namespaces, and the programs it starts into a PID namespace.

    For a process with one thread, once, early. Programs are to be started through `Space.popen`, or they miss the PID
    namespace. /proc stays the one outside, with the PIDs that we see: `/proc/self` is right for everybody, while
    `/proc/NUMBER` with a program's own idea of its PID is not. Also raises the limit of open files as far as allowed.
    Raises `EnvironmentProblem` without root.
    """
    syscalls.unshare(syscalls.NEW_NET | syscalls.NEW_MOUNT)
    _private_files()
    syscalls.loopback_up()
    _raise_file_limit()
    pid = fork_first(_idle)
    _state.children = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    _state.private = True


def _raise_file_limit() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _private_files() -> None:
    """Own mounts, an empty /run, and a file behind /etc/resolv.conf for pods' own ones to be bound over."""
    syscalls.private_mounts()
    syscalls.mount("tmpfs", "/run", "mode=755")
    Path("/run/netns").mkdir()
    target = Path(os.path.realpath("/etc/resolv.conf"))
    if target.is_relative_to("/run"):  # a symbolic link to what systemd-resolved wrote, now covered
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    if not target.is_file():
        raise EnvironmentProblem("there is no /etc/resolv.conf", "create one; an empty file is enough")


# -------------------------------------------------------------------------- the first process of a PID namespace


def fork_first(body: Callable[[], NoReturn]) -> int:
    """Fork PID 1 of a new PID namespace, tied to us, to run `body`; return its PID as we see it."""
    here = os.open("/proc/thread-self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    alive, held = os.pipe()
    try:
        syscalls.unshare(syscalls.NEW_PID)
        try:
            pid = os.fork()
            if pid == 0:
                _become_first(alive, held, body)
        finally:
            syscalls.set_namespace(here, syscalls.NEW_PID)
    finally:
        os.close(here)
        os.close(alive)
    # `held` stays open on purpose: its end of file tells a first process that came too late for the death signal.
    return pid


def _become_first(alive: int, held: int, body: Callable[[], NoReturn]) -> NoReturn:
    try:
        os.close(held)
        syscalls.die_with_parent(signal.SIGKILL)
        lifeline = select.poll()  # select() stops at descriptor 1024
        lifeline.register(alive, select.POLLIN)
        if lifeline.poll(0):
            os._exit(128 + signal.SIGKILL)
        os.close(alive)
        body()
    except EgressError as error:
        sys.stderr.write(f"egressd: {error}\n")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(STOPPED)


def _idle() -> NoReturn:
    """Hold the PID namespace open: no descriptor kept, no signal heeded, orphans reaped by the kernel."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.closerange(3, 1 << 20)
    while True:
        signal.pause()


def _first_process(main: Main) -> NoReturn:
    """PID 1: prepare the world, start `main`, hand signals on, reap orphans, leave with the exit code of `main`."""
    program: list[int] = []
    _handlers({signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: forward_to(program)})
    syscalls.unshare(syscalls.NEW_NET | syscalls.NEW_MOUNT | syscalls.NEW_UTS | syscalls.NEW_IPC)
    _private_files()
    syscalls.mount("proc", "/proc")
    syscalls.loopback_up()
    _raise_file_limit()
    _state.private, _state.children = True, -1
    program.append(os.fork())
    if program[0] == 0:
        _program(main)
    while True:
        pid, status = os.wait()
        if pid == program[0]:
            os._exit(exit_code(status))


def _program(main: Main) -> NoReturn:
    code: int | str | None = 1
    try:
        _handlers({signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL})
        if callable(main):
            code = main()
        else:
            os.execvp(main[0], list(main))  # noqa: S606 - no shell is the point
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            sys.stderr.write(code + "\n")
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


# ------------------------------------------------------------------------------------------------ signals

_Handler = Callable[[int, FrameType | None], object] | int | signal.Handlers | None


def _handlers(wanted: dict[signal.Signals, _Handler]) -> dict[signal.Signals, _Handler]:
    """Install signal handlers and return those that were there."""
    return {number: signal.signal(number, handler) for number, handler in wanted.items()}


def forward_to(pids: list[int]) -> Callable[[int, FrameType | None], None]:
    """A handler that hands a signal on to processes, those that have just ended left out."""

    def forward(number: int, _frame: FrameType | None) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    return forward


def exit_code(status: int) -> int:
    """What a shell would report of a wait status: 128 + n for the end by signal n."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
