"""The tour of `egressd demo`: a node of namespaces, the real daemon, real clients, and what each of them gets to reach.

`cast` says who takes part, `chapters` tells the story, `guide` holds every sentence of it against what really
happened, `stage` is the node, `page` is how it looks; `window` lets a browser outside look in.
"""

from __future__ import annotations

import signal
import socket
import sys
from typing import Final

from egressd.cli.tour import window
from egressd.cli.tour.around import hints, introduction, kernel_view, summary
from egressd.cli.tour.chapters import CHAPTERS
from egressd.cli.tour.guide import Guide
from egressd.cli.tour.page import Page
from egressd.cli.tour.stage import Stage

__all__ = ["tour", "window"]

DIFFERENT: Final = 1
STOPPED: Final = 3
INTERRUPTED: Final = 128 + signal.SIGINT


def tour(*, stay: bool, processes: int, page_socket: socket.socket | None = None) -> int:
    """Tell the whole story; with `stay` idle until Ctrl-C afterwards. For `egressd.lab.run_private`.

    `processes` is a descriptor of the caller's /proc, `page_socket` what `window.listen` gave. Returns the exit code:
    0 if all went as told, 1 if not, 3 if the daemon says that this machine cannot do it, 130 after Ctrl-C.
    """
    page, stage = Page(), Stage()
    introduction(page)
    try:
        with stage:
            code = _start(stage)
            if code:
                return code
            if page_socket is not None:
                window.serve(page_socket, stage.node)
            code = _tell(Guide(stage, page))
            if stay:
                _stay(page, stage, processes, window.address(page_socket) if page_socket else "")
    except KeyboardInterrupt:
        page.say("\ninterrupted; nothing is left of it")
        return INTERRUPTED
    return code


def _start(stage: Stage) -> int:
    """Start the daemon. Returns 0, or the exit code if it does not come up."""
    try:
        stage.daemon.start()
    except RuntimeError as error:
        print(f"egressd: error: {error}", file=sys.stderr)
        ended = stage.daemon.process.returncode if stage.daemon.process else None
        return STOPPED if ended == STOPPED else DIFFERENT
    return 0


def _tell(guide: Guide) -> int:
    for chapter in CHAPTERS:
        guide.page.chapter(chapter.title, chapter.text)
        chapter.tell(guide)
    kernel_view(guide)
    summary(guide)
    return DIFFERENT if guide.surprises else 0


def _stay(page: Page, stage: Stage, processes: int, url: str) -> None:
    hints(page, stage, processes, url)
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        page.say("\ndone; nothing is left of it")
