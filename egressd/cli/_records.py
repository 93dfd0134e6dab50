"""Audit files read line by line, rotated ones first, for the verbs that learn from them."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import click

from egressd.errors import EnvironmentProblem

if TYPE_CHECKING:
    from egressd.authoring import Seen

__all__ = ["audit_option", "records", "since_option"]

MAX_LINE: Final = 1024 * 1024
"""Octets of a line that is still looked at: 512 addresses and 16 names take a tenth of it."""
MAX_ROTATED: Final = 1000
"""Rotated files looked for; `audit.keep` is 10 unless somebody says otherwise."""
_AGO: Final = re.compile(r"(?P<number>[0-9]{1,9})(?P<unit>[smhd])\Z")
_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def audit_option(function: Any) -> Any:
    """Adds --audit to a verb; it gets `audit`."""
    return click.option(
        "--audit",
        metavar="FILE",
        multiple=True,
        help="Audit file, with its rotated ones (FILE.1 …), or '-'; may be repeated. Default: audit.file of --config.",
    )(function)


def _moment(_context: click.Context, _parameter: click.Parameter, value: str | None) -> float:
    """Seconds since the epoch."""
    if value is None:
        return 0.0
    if found := _AGO.match(value):
        return time.time() - int(found["number"]) * _UNITS_S[found["unit"]]
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        message = f"{value!r} is no time; write 90s, 15m, 2h, 7d, or 2026-11-22T13:00:00Z"
        raise click.BadParameter(message) from None


def since_option(function: Any) -> Any:
    """Adds --since to a verb; it gets `since` in seconds since the epoch, 0.0 for everything."""
    return click.option(
        "--since", metavar="TIME", callback=_moment, help="How far back: 90s, 15m, 2h, 7d, or 2026-11-22T13:00:00Z."
    )(function)


def records(files: Iterable[str], since: float) -> Iterator[Seen]:
    """What the audit files tell. Raises `EnvironmentProblem` for a file that cannot be read."""
    from egressd.authoring import moment, read_line

    for file in files:
        for line in _lines(file):
            seen = read_line(line)
            if seen is not None and (not since or moment(seen.time) >= since):
                yield seen


def _lines(file: str) -> Iterator[bytes]:
    with ExitStack() as stack:
        opened = [sys.stdin.buffer] if file == "-" else _opened(file, stack)
        for stream in opened:
            while line := stream.readline(MAX_LINE):
                yield line


def _opened(file: str, stack: ExitStack) -> list[BinaryIO]:
    """The file and its rotated ones, oldest first; opened at once, so that a rotation meanwhile repeats nothing."""
    found: list[BinaryIO] = []
    for path in (Path(file), *(Path(f"{file}.{number}") for number in range(1, MAX_ROTATED))):
        try:
            found.append(stack.enter_context(path.open("rb")))
        except OSError as error:
            if found:
                break
            remedy = "name an audit file with --audit, or the daemon's settings with --config"
            raise EnvironmentProblem(f"{path} cannot be read ({error.strerror})", remedy) from None
    return found[::-1]
