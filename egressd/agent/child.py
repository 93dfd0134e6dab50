"""The control side as seen from the data path: a child process at the other end of a socket pair.

The child may die, hang or fall behind: it is started again, its messages are taken whole, and audit lines wait for it
in a bounded queue. Nothing here ever blocks the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from egressd import link
from egressd.errors import LinkError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AuditQueue", "Beginning", "Child", "spawn"]

log = logging.getLogger("egressd.agent")

BATCH_LINES: Final = 256
OUTSTANDING: Final = 1 << 20
"""Octets handed to the socket pair and not yet taken by the child, above which lines wait in the queue."""
BACKOFF_S: Final = (0.2, 0.5, 1.0, 2.0, 5.0)


class Beginning(NamedTuple):
    """A control side just started, our end of the link to it, and what it has said so far."""

    process: subprocess.Popen[bytes]
    sock: socket.socket
    frames: link.Frames
    backlog: list[Any]


def spawn(arguments: list[str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a control side; returns it and our end of the link. Raises `OSError` (no descriptor, no memory)."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with theirs:
        command = [sys.executable, "-m", "egressd.control", "--fd", str(theirs.fileno()), *arguments]
        try:
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)  # noqa: S603 - ourselves
        except OSError:
            ours.close()
            raise
    return process, ours


class AuditQueue:
    """Audit lines on their way to the control side: bounded in records, counted when dropped, never in the way."""

    def __init__(self, size: int, dropped_line: Callable[[int], bytes]) -> None:
        self.dropped = 0
        self.size = size
        self._lines: deque[bytes] = deque()
        self._dropped_line = dropped_line
        self._unsaid = 0

    def __len__(self) -> int:
        return len(self._lines)

    def put(self, line: bytes) -> None:
        if len(self._lines) >= self.size:
            self.dropped += 1
            self._unsaid += 1
        else:
            self._lines.append(line)

    def take(self) -> link.Lines | None:
        """The next batch, or None. What was dropped is said in a record of its own, as soon as there is room."""
        if self._unsaid and len(self._lines) < self.size:
            self._lines.append(self._dropped_line(self._unsaid))
            self._unsaid = 0
        count = min(BATCH_LINES, len(self._lines))
        if not count:
            return None
        return link.Lines(b"".join([self._lines.popleft() for _ in range(count)]), count)


class Child(asyncio.Protocol):
    """Keeps a control side alive and the conversation with it going."""

    def __init__(
        self, arguments: list[str], queue: AuditQueue, on_message: Callable[[Any], None], on_lost: Callable[[], None]
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
        for message in beginning.backlog:
            self._on_message(message)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: self, sock=beginning.sock)
        self._transport = transport

    # ------------------------------------------------------------------------------- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._on_message(message)
        except LinkError as error:
            log.error("control side: %s; starting it again", error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
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
                beginning = Beginning(*spawn(self._arguments), link.Frames(link.Down), [])
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
