"""Those who watch a daemon while it is measured: a scraper, and somebody with the live log before them.

What they cost themselves is not counted; they run beside what is measured, as they do on a workstation, not on a node.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks.place import BenchmarkError, Place

__all__ = ["CHROMIUM", "Scraper", "again_and_again", "live_log"]

CHROMIUM: Final = shutil.which("chromium", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}") or ""
"""As .ci/bootstrap installs it for the tests; where it is missing, only curl reads the live log."""
PAGE: Final = "http://127.0.0.1:9477/#log"
FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",  # Chromium as root insists on it; what it loads here is ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--remote-debugging-port=0",  # without it, it loads the page and ends
    "--window-size=1280,800",
)
OPEN_S: Final = 30.0
"""Until the page follows the log."""
_SAMPLE: Final = re.compile(r"^(egressd_[a-z_]+(?:\{[^}]*\})?) (\S+)$", re.MULTILINE)


class Scraper:
    """Reads /metrics as Prometheus does, over one connection; from one thread at a time."""

    def __init__(self, admin: Path) -> None:
        self._connection = _UnixConnection(admin)
        self.done = 0
        """Scrapes, in all."""

    def scrape(self) -> dict[str, float]:
        """Every sample by its name and labels."""
        self._connection.request("GET", "/metrics")
        answer = self._connection.getresponse()
        text = answer.read().decode()
        if answer.status != http.client.OK or "egressd_" not in text:
            raise BenchmarkError(f"the scrape brought no metrics but {answer.status}: {text[:200]}")
        self.done += 1
        return {name: float(value) for name, value in _SAMPLE.findall(text)}

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        """As its parent does, to the daemon's socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(10)
        self.sock.connect(str(self._path))


@contextmanager
def again_and_again(period_s: float, work: Callable[[], object]) -> Iterator[list[int]]:
    """Do `work` each period in a thread, until the end of the block; how often it was done is told as it goes on."""
    ended, done = threading.Event(), [0]

    def body() -> None:
        while not ended.wait(period_s):
            work()
            done[0] += 1

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    try:
        yield done
    finally:
        ended.set()
        thread.join(60)


@contextmanager
def live_log(place: Place, scraper: Scraper, admin: Path, *, browser: bool) -> Iterator[None]:
    """Somebody has the live log open, in a browser or in curl. At the end they must have read all there was."""
    reader = _browser(place) if browser else _curl(place, admin)
    try:
        deadline = time.monotonic() + OPEN_S
        while not scraper.scrape()["egressd_admin_followers"]:
            if reader.poll() is not None or time.monotonic() > deadline:
                words = (place.folder / "follow.log").read_text(errors="replace")[-1000:]
                raise BenchmarkError(f"nobody reads the live log; the reader said:\n{words}")
            time.sleep(0.2)
        yield
        found = scraper.scrape()
    finally:
        place.stop(reader)
    lost = found['egressd_audit_dropped_total{event="slow-reader"}']
    if lost or found["egressd_admin_followers"] != 1:
        raise BenchmarkError(f"the reader of the live log went away, or was too slow: it lost {lost:.0f} records")


def _browser(place: Place) -> subprocess.Popen[bytes]:
    home = place.folder / "browser"
    home.mkdir(exist_ok=True)
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={home}", PAGE]
    return place.start("node", command, "follow.log", {**os.environ, "HOME": str(home)})


def _curl(place: Place, admin: Path) -> subprocess.Popen[bytes]:
    url = "http://localhost/api/v1/audit?follow=1&limit=0"
    return place.start("node", ["curl", "-sS", "-N", "--unix-socket", str(admin), url], "follow.log")
