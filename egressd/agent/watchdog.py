"""Notices an event loop that stands still, and ends the process so that it is started again.

Meanwhile nothing is lost that need not be: the heartbeat in the kernel has lapsed after 3 s, names resolve past us, and
what was granted stays open. Two ways to notice, as a thread of Python's cannot run while the interpreter is held:
a thread for a loop that waits, and a timer of processor time (ITIMER_PROF) for one that spins. Neither counts the time
in which the whole process was stopped (SIGSTOP, a frozen container): then it simply goes on.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from typing import Final

__all__ = ["Watchdog"]

STALL_S: Final = 10.0
LOOK_S: Final = 1.0
EXIT_CODE: Final = 1


class Watchdog:
    """Ends the process when `beat` is not called for `stall_s` seconds. `start` and `stop` it; `beat` is cheap."""

    def __init__(self, stall_s: float = STALL_S, look_s: float = LOOK_S) -> None:
        self._stall_s = stall_s
        self._look_s = look_s
        self._alive_at = 0.0
        self._over = threading.Event()

    def start(self) -> None:
        self._alive_at = time.monotonic()
        faulthandler.register(signal.SIGPROF, all_threads=True, chain=True)  # chain: then die of it
        self.beat()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """The loop is alive."""
        self._alive_at = time.monotonic()
        if not self._over.is_set():
            signal.setitimer(signal.ITIMER_PROF, self._stall_s)

    def stop(self) -> None:
        self._over.set()
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _watch(self) -> None:
        """Count looks, not time: a look that comes late shows that we did not run either."""
        seen, looks = self._alive_at, 0.0
        while not self._over.wait(self._look_s):
            if self._alive_at != seen:
                seen, looks = self._alive_at, 0.0
                continue
            looks += self._look_s
            if looks >= self._stall_s:
                self._end()

    def _end(self) -> None:
        text = f"egressd: error: the event loop has stood still for {self._stall_s:g} s; ending for a restart\n"
        os.write(sys.stderr.fileno(), text.encode())
        faulthandler.dump_traceback(all_threads=True)
        os._exit(EXIT_CODE)
