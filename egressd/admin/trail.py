"""The audit records that were written: the latest that match, found from the end of the newest file backwards.

Files are opened once, at the start, so that a rotation meanwhile neither hides nor repeats a record. A line that is
no JSON, or longer than any record, is passed over: these files are ours, but a disk is a disk.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import msgspec

from egressd.names import Name, Pattern

__all__ = ["Filter", "backwards", "latest"]

CHUNK: Final = 256 * 1024
"""Octets read at a time."""
MAX_LINE: Final = 1024 * 1024
"""Octets of a line that is still looked at: 512 addresses and 16 names take a tenth of it."""


class _Pod(msgspec.Struct):
    namespace: str = ""
    name: str = ""


class _Query(msgspec.Struct):
    name: str = ""


class _Destination(msgspec.Struct):
    names: list[str] = []


class _Line(msgspec.Struct):
    """What filters look at; everything else in a record is skipped, not decoded."""

    time: str = ""
    event: str = ""
    verdict: str = ""
    pod: _Pod | None = None
    query: _Query | None = None
    destination: _Destination | None = None


_decoder: Final = msgspec.json.Decoder(_Line)


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records are wanted; None or empty: any. `since` is in seconds since the epoch."""

    pod: tuple[str, str] | None = None
    name: Pattern | None = None
    verdict: str | None = None
    event: str | None = None
    since: float = 0.0

    @property
    def everything(self) -> bool:
        return self == Filter()

    def takes(self, line: bytes) -> bool:
        """Whether one line matches; a line that is no record does not."""
        if self.verdict is not None and self.verdict.encode() not in line:
            return False
        if self.pod is not None and self.pod[1].encode() not in line:
            return False
        try:
            record = _decoder.decode(line)
        except msgspec.MsgspecError:
            return False
        return self._suits(record)

    def among(self, lines: bytes) -> bytes:
        """Those of some lines that match."""
        return b"".join(line + b"\n" for line in lines.splitlines() if self.takes(line))

    def _suits(self, record: _Line) -> bool:
        if self.verdict not in {None, record.verdict} or self.event not in {None, record.event}:
            return False
        pod = record.pod or _Pod()
        if self.pod is not None and self.pod != (pod.namespace, pod.name):
            return False
        if self.name is not None and not any(self.name.matches(Name(name)) for name in _names(record)):
            return False
        return not self.since or _moment(record.time) >= self.since

    def passed(self, line: bytes) -> bool:
        """Whether this line is older than anything wanted."""
        if not self.since:
            return False
        try:
            return _moment(_decoder.decode(line).time) < self.since
        except msgspec.MsgspecError:
            return False


def _names(record: _Line) -> list[str]:
    if record.query is not None:
        return [record.query.name]
    return record.destination.names if record.destination is not None else []


def _moment(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def latest(file: str, keep: int, wanted: Filter, limit: int) -> Generator[list[bytes] | None, None, None]:
    """Search FILE, FILE.1 … FILE.keep for the last `limit` lines that match.

    Yields None after each piece of work of some milliseconds, and at the end the lines, oldest first.
    """
    found: list[bytes] = []
    descriptors = _open([file, *(f"{file}.{n}" for n in range(1, keep + 1))])
    try:
        for fd in descriptors:
            over = False
            for lines in backwards(fd):
                found += filter(wanted.takes, lines)
                over = len(found) >= limit or (bool(lines) and wanted.passed(lines[-1]))
                yield None
                if over:
                    break
            if over:
                break
    finally:
        for fd in descriptors:
            os.close(fd)
    yield found[:limit][::-1]


def _open(names: list[str]) -> list[int]:
    found = []
    for name in names:
        try:
            found.append(os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
        except OSError:
            break
    return found


def backwards(fd: int) -> Iterator[list[bytes]]:
    """The lines of a file without their newline, last first, a chunk at a time; half a line at the end is left out."""
    end = os.fstat(fd).st_size
    head = b""
    last = True
    while end > 0:
        start = max(0, end - CHUNK)
        data = os.pread(fd, end - start, start) + head
        end = start
        first, *lines = data.split(b"\n")
        if last and lines:
            lines.pop()  # nothing, or half a line that is being written
            last = False
        head = first if len(first) <= MAX_LINE else b""
        yield lines[::-1]
    if not last:
        yield [head]
