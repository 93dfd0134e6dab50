"""The database of a daemon through good and bad days: whatever happens to the file costs history, never more.

A file that is no database, or one that is broken, is set aside as FILE.corrupt and a new one begun. Where the disk
takes nothing (full, read-only, no folder), history goes on in memory, bounded, and moves to the file once that can be
written again. One caller at a time; everything blocks as long as the disk does.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from egressd.history.observation import Filter, Key, Sums
from egressd.history.reading import observations
from egressd.history.store import ForeignFile, Store
from egressd.settings import History

__all__ = ["Book"]

RETRY_S: Final = 30.0
"""Seconds until a file that could not be used is tried again."""
MEMORY_ROWS: Final = 20_000
"""Rows while there is no file: some 6 MiB."""
MEMORY_BYTES: Final = 16 * 1024 * 1024
_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_BROKEN: Final = frozenset(
    {
        sqlite3.SQLITE_ERROR,  # what its tables should have is not there
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
        sqlite3.SQLITE_FORMAT,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_MISMATCH,
    }
)
"""Primary result codes (https://sqlite.org/rescode.html) for which the file is to blame; else the disk is."""

T = TypeVar("T")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Book:
    """The history of one daemon on its disk. `write`, `read` and `close` never raise what a disk or a file does."""

    def __init__(
        self,
        settings: History,
        *,
        say: Callable[[str], None] = _say,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.failures = 0
        """Times that the file could not be used or had to be set aside."""
        self.rows = 0
        self.octets = 0
        self._settings = settings
        self._path = Path(settings.file)
        self._say = say
        self._clock = clock
        self._monotonic = monotonic
        self._store: Store | None = None
        self._retry_at = 0.0
        self._said = ""

    def write(self, sums: dict[Key, Sums]) -> dict[Key, Sums]:
        """Add sums; returns those for which it has to be tried again."""

        def add(store: Store) -> None:
            store.write(sums)
            self.rows, self.octets = store.rows, store.octets

        self.read(add, None)
        return sums

    def know(self, peers: Mapping[str, Iterable[str]], *, flows: bool) -> None:
        """The peers of all policies in force, by policy, and whether allowed flows are recorded."""

        def tell(store: Store) -> None:
            store.know(peers, self._clock())
            store.note_flows(flows, self._clock())

        self.read(tell, None)

    def read(self, question: Callable[[Store], T], nothing: T) -> T:
        """Put a question; `nothing` where another daemon holds the file for too long."""
        for _ in range(3):  # the file as it is, a new one in its place, memory
            try:
                return question(self._opened())
            except (sqlite3.Error, OSError) as error:
                if _code(error) in _BUSY:
                    return nothing
                self._give_up(error)
        return nothing

    def hurry(self) -> None:
        """Have a question that runs now, in another thread, end with what it has."""
        if self._store is not None:
            self._store.hurried = True

    def close(self) -> None:
        """Close the file, if it is open."""
        if self._store is not None:
            with suppress(sqlite3.Error):
                self._store.close()
            self._store = None

    # -------------------------------------------------------------------------------------------------- the file

    def _opened(self) -> Store:
        """The open database: the file's if that can be had, else one in memory."""
        store = self._store
        if store is not None and store.path is not None and not self._same(store):
            self._mention(f"{self._path} is gone; a new one is begun")
            self.close()
        if self._store is None or (self._store.path is None and self._monotonic() >= self._retry_at):
            self._open()
        assert self._store is not None  # noqa: S101 - what _open is for
        return self._store

    def _same(self, store: Store) -> bool:
        """Whether the file is still the one that was opened."""
        try:
            return self._path.stat().st_ino == store.inode
        except OSError:
            return False

    def _open(self) -> None:
        if self._monotonic() < self._retry_at:
            self._store = self._in_memory()
            return
        before = self._store
        fresh = Store(self._path, self._settings.max_rows, self._settings.max_bytes, self._clock())
        if before is not None:
            kept, _ = observations(before, Filter(), MEMORY_ROWS)
            fresh.write({one.key: one.sums for one in kept}, hourly=False)
            before.close()
            self._mention(f"{self._path} can be written again")
            self._said = ""
        self._store = fresh

    def _in_memory(self) -> Store:
        return Store(None, min(self._settings.max_rows, MEMORY_ROWS), MEMORY_BYTES, self._clock())

    def _give_up(self, error: sqlite3.Error | OSError) -> None:
        """What to do about a file that cannot be used: set it aside, or leave it alone for a while."""
        self.failures += 1
        memory = self._store if self._store is not None and self._store.path is None else None
        if memory is None:
            self.close()
        if _broken(error) or self._path.is_dir():
            self._set_aside(error)
        else:
            self._mention(f"{self._path} cannot be used ({_words(error)}); history is kept in memory meanwhile")
            self._retry_at = self._monotonic() + RETRY_S

    def _set_aside(self, error: Exception) -> None:
        """Move the file out of the way, its log too, which would be taken for the new one's."""
        aside = Path(f"{self._path}.corrupt")
        try:
            self._path.replace(aside)
            for log in ("-wal", "-shm"):
                Path(f"{self._path}{log}").unlink(missing_ok=True)
        except OSError as refused:
            self._mention(f"{self._path} is no history ({_words(error)}) and cannot be set aside ({_words(refused)})")
            self._retry_at = self._monotonic() + RETRY_S
        else:
            self._mention(f"{self._path} is no history ({_words(error)}); it is now {aside}, and a new one is begun")

    def _mention(self, text: str) -> None:
        """Say something, once in a row."""
        if text != self._said:
            self._said = text
            self._say(f"egressd: history: {text}")


def _code(error: Exception) -> int:
    """The primary result code of SQLite; -1 where there is none."""
    code = getattr(error, "sqlite_errorcode", -1)
    return code & 0xFF if isinstance(code, int) and code >= 0 else -1


def _broken(error: Exception) -> bool:
    """Whether the file itself is not what it should be."""
    truncated = getattr(error, "sqlite_errorcode", -1) == sqlite3.SQLITE_IOERR_SHORT_READ
    return truncated or isinstance(error, ForeignFile) or _code(error) in _BROKEN


def _words(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)
