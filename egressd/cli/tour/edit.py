"""The chapter of the policy edit: two live downloads, of which one loses its sanction."""

from __future__ import annotations

import shlex
import time
from typing import Final

from egressd.cli.tour.cast import WEB, WEB_WITHOUT_LIVE
from egressd.cli.tour.guide import PATIENCE_S, Guide
from egressd.lab import eventually

__all__ = ["edit_while_downloading"]

DOWNLOAD: Final = "curl -sSN http://live.example.com/stream"
ENOUGH: Final = 5
"""Lines (50 ms apart) that show that a download is alive."""
QUIET_S: Final = 0.5
"""Without a line for so long, a download is cut."""
CUT_S: Final = 5.0
"""policy.md says one second, and the page prints what it took; the rest is for machines that are busy otherwise."""


class Download:
    """A program that prints on and on in a pod, its output kept in a file."""

    def __init__(self, guide: Guide, pod: str) -> None:
        self.pod = pod
        self._file = guide.stage.folder / f"{pod.replace('/', '-')}.download"
        guide.page.command(pod, f"{DOWNLOAD} &")
        with self._file.open("w") as output:
            self.process = guide.stage.pod(pod).popen(shlex.split(DOWNLOAD), stdout=output, stderr=output)

    def lines(self) -> list[str]:
        return self._file.read_text().splitlines()

    def flows(self, more: int = ENOUGH) -> bool:
        """Whether so many more lines come in."""
        start = len(self.lines())
        try:
            eventually(lambda: len(self.lines()) >= start + more or self.process.poll() is not None, PATIENCE_S)
        except TimeoutError:
            return False
        return len(self.lines()) >= start + more

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def edit_while_downloading(guide: Guide) -> None:
    web, api = Download(guide, "shop/web-0"), Download(guide, "payments/api-0")
    guide.check("both are receiving, twenty lines a second", web.flows() and api.flows())
    edited = time.monotonic()
    guide.stage.write_policy("shop/web", WEB_WITHOUT_LIVE)
    guide.page.policy("shop/web", "".join(f"- {line}" for line in WEB.removeprefix(WEB_WITHOUT_LIVE).splitlines(True)))
    last = _last_arrival(web)
    arrived = len(web.lines())
    guide.check(f"shop/web-0 got its last line {max(0.0, last - edited):.2f} s after the edit", last - edited < CUT_S)
    guide.check("payments/api-0 downloads on, undisturbed", api.flows(2 * ENOUGH))
    guide.check("and still nothing more reaches shop/web-0", len(web.lines()) == arrived)
    if web.process.poll() is not None:
        guide.page.output(web.lines()[-1:])
    web.stop()
    api.stop()
    again = guide.run("shop/web-0", DOWNLOAD)
    guide.why(again, "live.example.com", "denied", "no-rule")


def _last_arrival(download: Download) -> float:
    """When the last line came in, once none has for `QUIET_S`; gives up after a while."""
    now = last = time.monotonic()
    count, deadline = len(download.lines()), now + PATIENCE_S
    while now < last + QUIET_S and now < deadline:
        time.sleep(0.02)
        now = time.monotonic()
        if len(download.lines()) > count:
            count, last = len(download.lines()), now
    return last
