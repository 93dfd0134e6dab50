"""The data path: the process that holds the sockets, the grants and the kernel. `main` is `egressd run`."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from egressd.agent.descriptors import raise_limit
from egressd.agent.spawn import spawn
from egressd.errors import EgressError, LinkError

if TYPE_CHECKING:
    import socket
    import subprocess

    from egressd import link
    from egressd.agent.child import Beginning
    from egressd.agent.daemon import Daemon

__all__ = ["main"]

EXIT_ENVIRONMENT = 3


def main(arguments: list[str]) -> int:
    """Run the daemon of one node in the foreground until SIGTERM. Returns the exit code (interface.md).

    `arguments` go to the control side as they are: it reads and checks the settings and sends them here ready-made.
    """
    if os.geteuid() != 0:
        print("egressd: error: run needs root: it programs nftables; use sudo", file=sys.stderr)
        return EXIT_ENVIRONMENT
    raise_limit()
    process, sock = spawn(arguments)
    return _follow(process, sock, arguments)


def _follow(process: subprocess.Popen[bytes], sock: socket.socket, arguments: list[str]) -> int:
    """Get ready to serve while the control side gets ready to speak, which takes longer; then do what it says."""
    from egressd import link
    from egressd.agent.child import Beginning
    from egressd.agent.daemon import Daemon

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="egressd: %(levelname)s: %(message)s")
    try:
        frames, first = _first_word(sock)
    except LinkError as error:
        process.wait()
        print(f"egressd: error: {error}", file=sys.stderr)
        return EXIT_ENVIRONMENT
    if not isinstance(first, link.Ready):
        process.wait()
        return first.code if isinstance(first, link.Refused) else EXIT_ENVIRONMENT
    return _serve(Daemon(first.settings, arguments), Beginning(process, sock, frames))


def _serve(daemon: Daemon, beginning: Beginning) -> int:
    import asyncio

    import uvloop

    async def life() -> None:
        daemon.frost.begin()
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


def _first_word(sock: socket.socket) -> tuple[link.Frames, link.Down]:
    """Wait for the control side's settings, or its refusal; what came behind stays in the frames."""
    from egressd import link

    frames = link.Frames(link.Down)
    while data := sock.recv(1 << 16):
        frames.put(data)
        if (message := frames.take()) is not None:
            return frames, message
    raise LinkError("the control side ended before it said a word; its message is above")
