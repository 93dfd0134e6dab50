"""Puts rendered lines on the disk and on standard output; nothing that a disk does ever stops the program.

Whole batches of lines are appended with one write and rotated by size: FILE, FILE.1 (the newest) … FILE.keep. What
cannot be written is counted, said once a minute on standard error, and tried again with the next
batch. A batch is in a file whole or not at all, so a full disk never leaves half a line behind.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from egressd.settings import Audit

__all__ = ["REPORT_EVERY", "Writer"]

REPORT_EVERY: Final = 60.0
"""Seconds between two complaints about the same output."""
_STDOUT: Final = 1
_MODE: Final = 0o640


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Writer:
    """The outputs of one daemon. Blocks as long as the disk does: give it a thread. Not to be used from two at once."""

    def __init__(
        self, settings: Audit, *, say: Callable[[str], None] = _say, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings
        self._path = Path(settings.file) if settings.file else None
        self._say = say
        self._clock = clock
        self._fd = -1
        self._size = 0
        self._rotates = True
        self._lost: dict[str, int] = {}
        self._said: dict[str, float] = {}

    def write(self, data: bytes, count: int) -> bool:
        """Write `count` whole lines to each output. Never raises: says whether they are in the file.

        Where no file is wanted, it says so of standard output.
        """
        written = True
        if self._settings.stdout:
            written = self._try("standard output", count, lambda: _write_all(_STDOUT, data))
        if self._path is not None:
            path = self._path
            written = self._try(str(path), count, lambda: self._append(path, data))
        return written

    def _try(self, output: str, count: int, write: Callable[[], None]) -> bool:
        try:
            write()
        except OSError as error:
            self._lost[output] = self._lost.get(output, 0) + count
            self._complain(output, f"{error.strerror or error} ({self._lost[output]} records lost so far)")
            return False
        return True

    def reopen(self) -> None:
        """Close the file; the next write opens, and if need be creates, whatever has its name then."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    close = reopen

    def _append(self, path: Path, data: bytes) -> None:
        if self._fd < 0:
            self._open(path)
        limit = self._settings.max_size
        if self._rotates and 0 < limit < self._size + len(data) and self._size:
            self._rotate(path)
        try:
            _write_all(self._fd, data)
        except OSError:
            if self._rotates:
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def _open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _MODE)
        status = os.fstat(fd)
        self._fd = fd
        self._size = status.st_size
        self._rotates = stat.S_ISREG(status.st_mode)  # a pipe or a terminal has no size and no older files

    def _rotate(self, path: Path) -> None:
        """Shift the older files by one. Where that fails, this file goes on: too long is better than lost."""
        try:
            names = [path, *(Path(f"{path}.{i}") for i in range(1, self._settings.keep + 1))]
            names[-1].unlink(missing_ok=True)
            for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
                if newer.exists():
                    newer.replace(older)
            self.reopen()
            self._open(path)
        except OSError as error:
            self._complain(f"{path} (rotation)", error.strerror or str(error))
            if self._fd < 0:
                raise

    def _complain(self, output: str, what: str) -> None:
        now = self._clock()
        if now - self._said.get(output, -REPORT_EVERY) >= REPORT_EVERY:
            self._said[output] = now
            self._say(f"egressd: audit: cannot write {output}: {what}")


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
