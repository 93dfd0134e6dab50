"""The data path: the process that holds the sockets, the grants and the kernel. `main` is `egressd run`."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from egressd import link
from egressd.agent.child import Beginning, spawn
from egressd.agent.descriptors import raise_limit
from egressd.errors import EgressError, LinkError

if TYPE_CHECKING:
    import socket

    from egressd.settings import Settings

__all__ = ["main"]

EXIT_ENVIRONMENT = 3
GC_THRESHOLDS = (50_000, 20, 1_000)
"""The hot path makes no cycles: reference counts free what it allocates, and the collector walks the ledger seldom."""


def main(arguments: list[str]) -> int:
    """Run the daemon of one node in the foreground until SIGTERM. Returns the exit code (interface.md).

    `arguments` go to the control side as they are: it reads and checks the settings and sends them here ready-made.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="egressd: %(levelname)s: %(message)s")
    if os.geteuid() != 0:
        print("egressd: error: run needs root: it programs nftables; use sudo", file=sys.stderr)
        return EXIT_ENVIRONMENT
    raise_limit()
    process, sock = spawn(arguments)
    import_module("egressd.agent.daemon")  # 0.3 s, while the control side takes longer to its first word
    try:
        frames, settings, backlog = _first_word(sock)
    except LinkError as error:
        process.wait()
        print(f"egressd: error: {error}", file=sys.stderr)
        return EXIT_ENVIRONMENT
    if settings is None:
        process.wait()
        return backlog[0].code if backlog else EXIT_ENVIRONMENT
    return _serve(settings, arguments, Beginning(process, sock, frames, backlog))


def _serve(settings: Settings, arguments: list[str], beginning: Beginning) -> int:
    import uvloop

    from egressd.agent.daemon import Daemon

    async def life() -> None:
        daemon = Daemon(settings, arguments)
        gc.collect()
        gc.freeze()  # what is loaded by now stays: the collector need not walk it again
        gc.set_threshold(*GC_THRESHOLDS)
        await daemon.run(beginning)

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(life())
    except EgressError as error:
        print(f"egressd: error: {error}", file=sys.stderr)
        beginning.sock.close()
        beginning.process.wait()
        return EXIT_ENVIRONMENT
    return 0


def _first_word(sock: socket.socket) -> tuple[link.Frames, Settings | None, list[Any]]:
    """Wait for the control side's settings; returns them and what came behind, or None and its refusal."""
    frames = link.Frames(link.Down)
    while data := sock.recv(1 << 16):
        messages = frames.feed(data)
        if messages:
            first, *rest = messages
            return (frames, first.settings, rest) if isinstance(first, link.Ready) else (frames, None, [first])
    raise LinkError("the control side ended before it said a word; its message is above")
