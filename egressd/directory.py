"""A folder of manifests as a source of objects: which files changed, and what is in them now.

`Folder.scan` compares the folder with what it saw last and reads what differs; `changes` calls it whenever inotify
speaks, once more shortly after (writers are slower than events), and every few seconds in any case. Nothing here
knows what the objects mean. A file with any error keeps its last good objects; a file that is being written is
waited for; a folder that cannot be listed keeps all its files.

Files are `*.yaml`, `*.yml` and `*.json`; names that begin with a dot are passed over, sub-folders included, which is
also what a mounted ConfigMap needs: its files are links through `..data`, whose target is swapped by one rename.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from watchfiles import awatch

from egressd.errors import EnvironmentProblem
from egressd.schema import BarePolicy, Manifest, Problem, has_errors, read_manifests

__all__ = ["MAX_DEPTH", "MAX_FILE", "MAX_FILES", "Folder", "Reading"]

SUFFIXES: Final = (".yaml", ".yml", ".json")
MAX_FILE: Final = 64 * 1024 * 1024
"""Octets of one file: a list of 5,000 pods as kubectl prints it is about 40 MiB."""
MAX_FILES: Final = 20_000
"""Files in the folder: ten thousand ConfigMaps and as many pods is past what a node is told."""
MAX_DEPTH: Final = 16
"""Sub-folders in sub-folders; also where a ring of links ends."""
SETTLE: Final = 0.4
"""Seconds a file that was suddenly empty is waited for: a shell's `>` empties it before the program writes."""
QUIET_MS: Final = 50
"""Milliseconds without an event that end a burst of them."""
BURST_MS: Final = 100
"""Milliseconds after which a burst is looked at though it goes on."""
RESCAN: Final = 5.0
"""Seconds between looks when inotify says nothing: it follows no link, and misses what other machines write."""
POLL: Final = 0.5
"""Seconds between looks while there is no inotify (its limits are per user and can be used up)."""

Signature = tuple[int, ...]


class Reading(NamedTuple):
    """What one file that changed says now. `objects` is None where it could not be read: its last good ones stay."""

    file: str
    objects: tuple[Manifest, ...] | None
    problems: tuple[Problem, ...] = ()


class _Seen(NamedTuple):
    signature: Signature
    digest: bytes
    empty: bool
    sure: bool
    """Whether it was read twice: two writes within one tick of the file system's clock have one signature."""


class Folder:
    """What was last seen of one folder. Not to be used from two threads at once."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._seen: dict[str, _Seen] = {}
        self._good: set[str] = set()
        self._emptied: dict[str, float] = {}
        self._complaints: dict[str, str] = {}
        self._unwatched = ""
        self._poked = asyncio.Event()

    def check(self) -> None:
        """Raise `EnvironmentProblem` when the folder cannot be listed at all."""
        try:
            with os.scandir(self.path):
                pass
        except OSError as error:
            raise EnvironmentProblem(
                f"the folder {self.path} cannot be read: {error.strerror}",
                "create it, or set source.path to the folder of manifests",
            ) from None

    def scan(self, now: float) -> list[Reading]:
        """What differs from the last scan; `now` in seconds, monotonic. Reads and parses, so it may take a while."""
        listed, unlisted = self._list()
        failed = {path: f"cannot be listed: {why}" for path, why in unlisted.items()}
        readings: list[Reading] = []
        for file, signature in sorted(listed.items()):
            seen = self._seen.get(file)
            if seen is None or not seen.sure or seen.signature != signature:
                try:
                    readings += self._look(file, signature, now)
                except OSError as error:
                    failed[file] = f"cannot be read: {error.strerror or error}"
        for file in sorted(self._seen.keys() - listed.keys()):
            if not any(Path(file).is_relative_to(folder) for folder in unlisted):
                self._forget(file)
                readings.append(Reading(file, ()))
        return self._complain(failed) + readings

    def _look(self, file: str, signature: Signature, now: float) -> list[Reading]:
        """Read one file. An empty list: it says what it said before, or its writer has not got far yet."""
        content = _content(file)
        seen, empty = self._seen.get(file), not content.strip()
        if empty and seen is not None and not seen.empty and now - self._emptied.setdefault(file, now) < SETTLE:
            return []
        self._emptied.pop(file, None)
        digest = hashlib.blake2b(content).digest()
        known = seen is not None and seen.digest == digest
        self._seen[file] = _Seen(signature, digest, empty, sure=known)
        return [] if known else [self._read(file, content)]

    def _read(self, file: str, content: bytes) -> Reading:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line_start = content.rfind(b"\n", 0, error.start) + 1
            line = content.count(b"\n", 0, error.start) + 1
            problem = Problem(
                file, line, error.start - line_start + 1, "error", "not UTF-8 text; save the file as UTF-8"
            )
            return Reading(file, None, (problem,))
        manifests, problems = read_manifests(text, file)
        problems += [_homeless(manifest) for manifest in manifests if isinstance(manifest, BarePolicy)]
        if has_errors(problems):
            # The first time there is nothing to keep: what could be read is then better than nothing, since a pod
            # that no policy selects may reach everything.
            return Reading(file, None if file in self._good else tuple(manifests), tuple(problems))
        self._good.add(file)
        return Reading(file, tuple(manifests), tuple(problems))

    def _complain(self, failed: dict[str, str]) -> list[Reading]:
        """What went wrong with files and folders that every scan tries again: said once for as long as it is so."""
        new = [path for path, message in failed.items() if self._complaints.get(path) != message]
        self._complaints = failed
        return [Reading(path, None, (Problem(path, 0, 0, "error", failed[path]),)) for path in new]

    def _forget(self, file: str) -> None:
        del self._seen[file]
        self._emptied.pop(file, None)
        self._good.discard(file)

    def _list(self) -> tuple[dict[str, Signature], dict[str, str]]:
        """Every file with its signature, and the folders that could not be listed with the reason."""
        listed: dict[str, Signature] = {}
        unlisted: dict[str, str] = {}
        pending = [(self.path, 0)]
        while pending:
            folder, depth = pending.pop()
            try:
                for path, status in _entries(folder):
                    if stat.S_ISDIR(status.st_mode) and depth < MAX_DEPTH:
                        pending.append((path, depth + 1))
                    elif stat.S_ISREG(status.st_mode) and path.endswith(SUFFIXES):
                        listed[path] = _signature(status)
            except OSError as error:
                unlisted[folder] = error.strerror or str(error)
            if len(listed) > MAX_FILES:
                unlisted[self.path] = f"more than {MAX_FILES} files; the others are not read"
                break
        return listed, unlisted

    @property
    def _unsettled(self) -> bool:
        return bool(self._emptied) or not all(seen.sure for seen in self._seen.values())

    # ----------------------------------------------------------------------------------------------- watching

    def poke(self) -> None:
        """Make `changes` look, and yield, now. Call it from the event loop."""
        self._poked.set()

    async def changes(self) -> AsyncGenerator[list[Reading], None]:
        """Scan after scan, for ever: the first at once, each later one where something changed or `poke` was called."""
        watching = asyncio.create_task(self._watch())
        try:
            yield await asyncio.to_thread(self.scan, time.monotonic())
            while True:
                wait = POLL if watching.done() or self._unsettled else RESCAN
                poked = await _within(self._poked, wait)
                readings = await asyncio.to_thread(self.scan, time.monotonic())
                if watching.done():
                    readings += self._cannot_watch(watching)
                    watching = asyncio.create_task(self._watch())
                if poked or readings:
                    yield readings
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self) -> None:
        """Poke on events. Ends when the folder is replaced or inotify fails; `changes` then polls and tries again."""
        identity = _identity(self.path)
        async for events in awatch(
            self.path,
            watch_filter=None,
            debounce=BURST_MS,
            step=QUIET_MS,
            rust_timeout=int(RESCAN * 1000),
            yield_on_timeout=True,
            force_polling=False,
            ignore_permission_denied=True,
        ):
            if events:
                self._poked.set()
            if _identity(self.path) != identity:
                return

    def _cannot_watch(self, watching: asyncio.Task[None]) -> list[Reading]:
        """Say once why inotify does not serve; it is no reason to keep or drop any object."""
        why = str(watching.exception() or "")
        if why == self._unwatched:
            return []
        self._unwatched = why
        text = f"cannot be watched: {why}; it is looked at every {POLL} s instead"
        return [Reading(self.path, None, (Problem(self.path, 0, 0, "warning", text),))] if why else []


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Whether `event` is set, waiting for it at most `seconds`; clears it."""
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    happened = event.is_set()
    event.clear()
    return happened


def _homeless(bare: BarePolicy) -> Problem:
    text = 'a policy without a ConfigMap is ignored; put it under data of one labelled egressd.io/policy: "true"'
    return Problem(bare.file, bare.node.line, bare.node.column, "warning", text)


def _entries(folder: str) -> Iterator[tuple[str, os.stat_result]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith("."):
                with suppress(FileNotFoundError):  # gone since, or a link to nothing
                    yield entry.path, entry.stat()


def _signature(status: os.stat_result) -> Signature:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - one call; Path.stat() would build a Path for it
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _content(file: str) -> bytes:
    with Path(file).open("rb") as stream:
        content = stream.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise OSError(f"larger than {MAX_FILE} octets")
    return content
