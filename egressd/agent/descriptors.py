"""File descriptors: as many as the system lets us have, and one clear word when none is left.

What serves DNS holds all that it needs open: sockets, netlink, timers. Without a descriptor no TCP connection is
accepted, no port to an upstream is changed, and a control side that ends cannot be started again; the rest goes on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
from typing import Final

__all__ = ["MOST", "Descriptors", "raise_limit"]

log = logging.getLogger("egressd.agent")

MOST: Final = 65_536
"""More than all budgets together can use; the usual soft limit, 1,024, is made for programs that use select(2)."""
_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE})


def raise_limit() -> None:
    """Take what the hard limit allows, `MOST` at most. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST if hard == resource.RLIM_INFINITY else min(hard, MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # what we have will have to do
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Descriptors:
    """Looks, about once a second, whether one can still be had."""

    def __init__(self) -> None:
        self.exhausted = False
        self._example = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def look(self) -> None:
        """Say it once when there is none, and once when there is one again."""
        try:
            os.close(os.dup(self._example))
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            if not self.exhausted:
                limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
                log.error(
                    "no file descriptor is left (%s; limit %d): new TCP connections of pods wait, all else goes on;"
                    " raise the limit of open files (LimitNOFILE, ulimit -n)",
                    error.strerror,
                    limit,
                )
            self.exhausted = True
            return
        if self.exhausted:
            log.warning("there are file descriptors again")
        self.exhausted = False

    def close(self) -> None:
        os.close(self._example)
