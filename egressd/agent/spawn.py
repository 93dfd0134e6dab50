"""How a control side is started. Imports next to nothing, so that it is under way while we get ready ourselves."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Final

__all__ = ["spawn"]

ONE_HEAP: Final = {"MALLOC_ARENA_MAX": "1"}
"""mallopt(3): the control side's threads, of which one runs at a time, share a heap: 2 MiB less. Can be overridden."""


def spawn(arguments: list[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a control side; returns it and our end of the link. Raises `OSError` (no descriptor, no memory)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        command = [sys.executable, "-m", "egressd.control", "--fd", str(theirs.fileno()), *arguments]
        surroundings = ONE_HEAP | os.environ
        try:
            process = subprocess.Popen(  # noqa: S603 - ourselves
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=surroundings
            )
        except OSError:
            ours.close()
            raise
    return process, ours
