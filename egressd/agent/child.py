"""The control side as seen from the data path: a child process at the other end of a socket pair.

The child may die, hang or fall behind: it is started again, its messages are taken whole, and audit lines wait for it
in a bounded queue. Nothing here ever blocks the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from egressd import link
from egressd.agent.spawn import spawn
from egressd.agent.turns import Turns, Work
from egressd.errors import LinkError

if TYPE_CHECKING:
    import socket
    import subprocess
    from collections.abc import Callable

    from egressd.agent.trail import AuditQueue

__all__ = ["Beginning", "Child"]

log = logging.getLogger("egressd.agent")

OUTSTANDING: Final = 1 << 20
"""Octets handed to the socket pair and not yet taken by the child, above which lines wait in the queue."""
BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)


class Beginning(NamedTuple):
    """A control side just started, our end of the link to it, and what has come from it so far."""

    process: subprocess.Popen[bytes]
    sock: socket.socket
    frames: link.Frames


class Child(asyncio.Protocol):
    """Keeps a control side alive and the conversation with it going.

    What it says is heard in turns (turns.py), message after message; no more is read before all that has come is done.
    """

    def __init__(
        self, arguments: list[str], queue: AuditQueue, on_message: Callable[[Any], Work], on_lost: Callable[[], None]
    ) -> None:
        self.restarts = 0
        """Since it worked last."""
        self.losses = 0
        """In all."""
        self._arguments = arguments
        self._queue = queue
        self._on_message = on_message
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._frames = link.Frames(link.Down)
        self._turns = Turns(self._next, self._abort)
        self._closing = False

    @property
    def pid(self) -> int:
        """Process ID of the present control side, 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    async def adopt(self, beginning: Beginning) -> None:
        """Go on with a control side that was started by `spawn`."""
        self._process = beginning.process
        self._frames = beginning.frames
        beginning.sock.setblocking(False)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: self, sock=beginning.sock)
        self._transport = transport
        self._turns.wake()

    # ------------------------------------------------------------------------------- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._frames.put(data)
        if self._transport is not None:
            self._transport.pause_reading()
        self._turns.wake()

    def _next(self) -> Work | None:
        """What the next message asks for; None until there is one, and then more may come."""
        try:
            message = self._frames.take()
        except LinkError as error:
            log.error("control side: %s; starting it again", error)
            self._abort()
            return None
        if message is not None:
            return self._on_message(message)
        if self._transport is not None and not self._transport.is_reading() and not self._transport.is_closing():
            self._transport.resume_reading()
        return None

    def _abort(self) -> None:
        self._frames = link.Frames(link.Down)
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._frames = link.Frames(link.Down)
        if self._closing:
            return
        self.losses += 1
        log.warning("the control side ended (%s); what it said last stays in force", exc or "end of its link")
        self._on_lost()
        self._restart = asyncio.get_running_loop().create_task(self._start_again())

    async def _start_again(self) -> None:
        self._reap()
        beginning = None
        while beginning is None:
            delay = BACKOFF_S[min(self.restarts, len(BACKOFF_S) - 1)]
            self.restarts += 1
            await asyncio.sleep(delay)
            if self._closing:
                return
            try:
                beginning = Beginning(*spawn(self._arguments), link.Frames(link.Down))
            except OSError as error:
                log.error("the control side cannot be started: %s; trying again", error)
        await self.adopt(beginning)

    # -------------------------------------------------------------------------------------- speaking

    def send(self, message: link.Up) -> bool:
        """Say something; false when nobody is there to hear it."""
        if self._transport is None:
            return False
        self._transport.write(link.encode(message))
        return True

    @property
    def keeps_up(self) -> bool:
        """Whether somebody is there who takes what we say."""
        return self._transport is not None and self._transport.get_write_buffer_size() < OUTSTANDING

    def flush(self) -> None:
        """Hand over audit lines while the child keeps up. Call it every 200 ms at least."""
        transport = self._transport
        while transport is not None and transport.get_write_buffer_size() < OUTSTANDING:
            lines = self._queue.take()
            if lines is None:
                return
            transport.write(link.encode(lines))

    async def close(self, timeout_s: float = 3.0) -> None:
        """Hand over what is left, hang up, and wait for the child to write it down."""
        self._closing = True
        self.flush()
        transport, process = self._transport, self._process
        if transport is not None:
            transport.close()
        for _ in range(int(timeout_s / 0.02)):
            if process is None or process.poll() is not None:
                return
            await asyncio.sleep(0.02)
        self._reap()

    def _reap(self) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait()
            self._process = None

    def settled(self) -> None:
        """The child works again: the next loss is answered at once."""
        self.restarts = 0
