"""Who starts and ends the daemon, as a kubelet does: at once after any end that was not asked for."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from typing import Final

from egressd.lab import Daemon

__all__ = ["POLL_S", "Supervisor"]

POLL_S: Final = 0.02
RESTART_S: Final = 0.5
"""After its end the daemon is started again in this time, as a kubelet does at first."""
HAND_OVER_S: Final = 20.0
"""The old process of an upgrade has this long to end by itself."""


class Supervisor:
    """Keeps the daemon running; the only one who starts and ends it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.ends: list[int] = []
        """Exit codes of ends that were not asked for."""
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        self.daemon.start()
        self._wanted.set()
        self._thread.start()

    def close(self) -> None:
        self._wanted.clear()
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(POLL_S):
            process = self.daemon.process
            if self._wanted.is_set() and process is not None and process.poll() is not None:
                self.ends.append(process.returncode)
                time.sleep(RESTART_S)
                self.daemon.start(wait=False)

    def kill(self) -> None:
        """SIGKILL; it is started again as after any other end."""
        self.daemon.signal(signal.SIGKILL)

    def kill_for(self, seconds: float) -> None:
        """SIGKILL, and nobody starts it again for so long."""
        self._wanted.clear()
        self.daemon.kill()
        time.sleep(seconds)
        self.daemon.start(wait=False)
        self._wanted.set()

    def restart(self) -> None:
        """SIGTERM, wait, start."""
        self._wanted.clear()
        try:
            self.daemon.stop()
        except subprocess.TimeoutExpired:
            self.daemon.kill()
        self.daemon.start(wait=False)
        self._wanted.set()

    def upgrade(self) -> str:
        """Start a second one beside the first, and wait until one of them has ended."""
        self._wanted.clear()
        old = self.daemon.process
        assert old is not None
        self.daemon.start(wait=False)
        new = self.daemon.process
        assert new is not None
        deadline = time.monotonic() + HAND_OVER_S
        while old.poll() is None and new.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        note = ""
        if new.poll() is not None:
            note = f"the new process ended with {new.returncode}: no hand-over"
            self.daemon.process = old if old.poll() is None else new
        elif old.poll() is None:
            note = f"the old process did not end in {HAND_OVER_S:g} s: it was told to"
            old.terminate()
            old.wait(HAND_OVER_S)
        self._wanted.set()
        return note
