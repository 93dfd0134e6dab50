"""IPv4 forwarding of the machine: on while any sandbox needs it, and afterwards as it was, whatever way they end.

Who finds it off leaves a note of that in a file of /run, switches it on, and holds a shared lock on the file for as
long as its sandbox lives. Who leaves last (alone gets the lock for itself) puts the old value back and removes the
file. Both is done by a process of its own that heeds no signal and waits for the end of file of a pipe, which comes
when the last process of the sandbox is gone: so a kill -9 is undone like anything else.

IPv6 forwarding is never switched on: the machine would forget the routes that its router advertised.
"""

from __future__ import annotations

import fcntl
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn, Self

from egressd.errors import EnvironmentProblem

__all__ = ["Forwarding", "forwards"]

NOTE: Final = Path("/run/egressd-sandbox.ip_forward")
SWITCH: Final = Path("/proc/sys/net/ipv4/ip_forward")
SWITCH6: Final = Path("/proc/sys/net/ipv6/conf/all/forwarding")


def forwards(switch: Path) -> bool:
    """Whether the machine forwards packets of a family."""
    return switch.exists() and switch.read_text().strip() != "0"


class Forwarding:
    """Forwarding for one sandbox, as a context manager. `changed` tells whether it had to be switched on."""

    def __init__(self, note: Path = NOTE, switch: Path = SWITCH) -> None:
        self._note = note
        self._switch = switch
        self._keeper = 0
        self._alive = -1
        self.changed = False

    def __enter__(self) -> Self:
        """To be entered while this process has one thread. Raises `EnvironmentProblem` where it cannot be done."""
        if forwards(self._switch) and not self._note.exists():
            return self
        try:
            self._begin()
        except OSError as error:
            raise EnvironmentProblem(
                f"cannot switch IPv4 forwarding on: {error.strerror or error}", "set net.ipv4.ip_forward=1"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._keeper:
            os.close(self._alive)
            os.waitpid(self._keeper, 0)
            self._keeper = 0

    def _begin(self) -> None:
        lock = self._locked()
        before = os.pread(lock, 16, 0)
        self.changed = not forwards(self._switch)
        end, self._alive = os.pipe()
        self._keeper = os.fork()
        if self._keeper == 0:
            os.close(self._alive)
            self._keep(lock, end, before)
        os.close(end)
        os.close(lock)  # the keeper has the same one open
        self._switch.write_text("1")

    def _locked(self) -> int:
        """The note, open and locked in common with other sandboxes, and not one that a leaving one just removed."""
        while True:
            self._leave_note()
            with suppress(FileNotFoundError):
                lock = os.open(self._note, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                fcntl.flock(lock, fcntl.LOCK_SH)
                with suppress(FileNotFoundError):
                    if self._note.stat().st_ino == os.fstat(lock).st_ino:
                        return lock
                os.close(lock)

    def _leave_note(self) -> None:
        """Write down how it was, unless somebody did; the note is there with its text or not at all."""
        draft = self._note.with_suffix(f".{os.getpid()}")
        draft.write_bytes(self._switch.read_bytes().strip())
        with suppress(FileExistsError):
            self._note.hardlink_to(draft)
        draft.unlink()

    def _keep(self, lock: int, end: int, before: bytes) -> NoReturn:
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_IGN)
            null = os.open(os.devnull, os.O_RDWR)
            for standard in (0, 1, 2):
                os.dup2(null, standard)
            while os.read(end, 1):
                pass
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused (OSError) while another sandbox has it
            self._switch.write_bytes(before)
            self._note.unlink()
        finally:
            os._exit(0)
