"""The running control side: two loops over one link, one that tells the world and one that listens.

Whatever may take long (reading and parsing files, compiling policies, writing to a disk) happens in a thread, so that
both ends of the link are always attended to.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress
from typing import Final

from egressd.control.privileges import LAST_WORDS_S
from egressd.control.records import Records
from egressd.control.world import Step, World, frames
from egressd.directory import Folder, Reading
from egressd.errors import EgressError, EnvironmentProblem, LinkError
from egressd.link import Frames, Lines, Ready, Reload, Synced, Up, encode
from egressd.model import PolicyRecord
from egressd.schema import Problem, has_errors
from egressd.settings import Settings

__all__ = ["Service", "open_source", "serve"]

READ_SIZE: Final = 256 * 1024
"""Octets taken from the link at a time: some 400 audit records."""
MAX_ERROR: Final = 2000
"""Characters of `error` in a policy record; all problems are on standard error anyway."""


def open_source(settings: Settings) -> Folder:
    """The source of objects that the settings name. Raises `EnvironmentProblem` when it cannot be read."""
    if settings.source.kind != "directory":
        raise EnvironmentProblem(
            f"source.kind {settings.source.kind} is not in this release", "set source.kind: directory"
        )
    folder = Folder(settings.source.path)
    folder.check()
    return folder


def serve(service: Service, link: socket.socket) -> int:
    """Run until the link is closed; returns the exit code: 0, or 1 after a failure that is a bug."""
    try:
        asyncio.run(service.run(link))
    except LinkError as error:
        _say([f"egressd: {error}"])
        return 1
    except Exception:  # the one place that turns a bug into words and an exit code
        traceback.print_exc()
        return 1
    finally:
        signal.alarm(0)
    return 0


class Service:
    """The control side of one daemon. `read` reads the settings again; it raises `EgressError`."""

    def __init__(self, settings: Settings, folder: Folder, read: Callable[[], Settings]) -> None:
        self._settings = settings
        self._folder = folder
        self._read = read
        self._world = World(settings)
        self._reload = False

    async def run(self, link: socket.socket) -> None:
        """Tell and listen until the other end hangs up, then write what is still to be written."""
        link.setblocking(False)
        self._records = Records(self._settings)
        writing = asyncio.create_task(self._records.run())
        listening, telling = asyncio.create_task(self._listen(link)), asyncio.create_task(self._tell(link))
        running = {writing, listening, telling}
        try:
            while not listening.done():
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            signal.alarm(LAST_WORDS_S)  # whatever a disk or a huge file does now: nobody waits for us any more
            for task in (listening, telling):
                task.cancel()
            await asyncio.gather(listening, telling, return_exceptions=True)
            await self._records.close()
            await writing

    # ------------------------------------------------------------------------------------------------- listening

    async def _listen(self, link: socket.socket) -> None:
        """Take in all that was ever sent, to the end of the link, even of a data path that was killed."""
        incoming, loop = Frames(Up), asyncio.get_running_loop()
        while data := await _received(loop, link):
            for message in incoming.feed(data):
                match message:
                    case Lines():
                        await self._records.put(message)
                    case Reload():
                        self._reload = True
                        self._folder.poke()

    # --------------------------------------------------------------------------------------------------- telling

    async def _tell(self, link: socket.socket) -> None:
        with suppress(ConnectionError):  # nobody listens any more; what was sent to us is still to be read
            while True:
                await self._tell_world(link)
                self._reload = False
                await asyncio.to_thread(self._reread)
                await self._records.reopen(self._settings)

    async def _tell_world(self, link: socket.socket) -> None:
        """Say everything, then every change, until the settings are to be read again."""
        await _send(link, [encode(Ready(self._settings))])
        synced = False
        async with aclosing(self._folder.changes()) as changes:
            async for readings in changes:
                step = await asyncio.to_thread(self._digest, readings)
                if not synced:
                    await _send(link, frames(self._world.everything()))
                    await _send(link, [encode(Synced())])
                    synced = True
                elif step.update is not None:
                    await _send(link, frames(step.update))
                self._report(readings, step)
                if self._reload:
                    return

    def _digest(self, readings: list[Reading]) -> Step:
        return self._world.replace({r.file: r.objects for r in readings if r.objects is not None})

    def _reread(self) -> None:
        """Take new settings; where they cannot be used, say so and go on with the old ones."""
        try:
            settings = self._read()
            folder = self._folder if settings.source == self._settings.source else open_source(settings)
        except EgressError as error:
            _say([str(error), "egressd: the settings stay as they were"])
            return
        if folder is not self._folder or _scope(settings) != _scope(self._settings):
            same_home = settings.policy_namespace == self._settings.policy_namespace
            world = World(settings, self._world.policies if same_home else None)
            world.replace(self._world.sources if folder is self._folder else {})
            self._folder, self._world = folder, world
        self._settings = settings

    def _report(self, readings: list[Reading], step: Step) -> None:
        """Say what is wrong on standard error, and what became of policies in the audit trail."""
        now = time.time()
        _say(problem for reading in readings for problem in reading.problems)
        _say(step.problems)
        refused = [
            PolicyRecord(now, "", "refused", _error(reading.problems))
            for reading in readings
            if has_errors(reading.problems)
        ]
        news = [PolicyRecord(now, news.policy, news.change, _error(news.problems)) for news in step.news]
        self._records.tell([*refused, *news])


def _scope(settings: Settings) -> object:
    """The settings that a world is made with."""
    return settings.node, settings.policy_namespace, settings.dns


async def _send(link: socket.socket, messages: Iterable[bytes]) -> None:
    loop = asyncio.get_running_loop()
    for message in messages:
        await loop.sock_sendall(link, message)


async def _received(loop: asyncio.AbstractEventLoop, link: socket.socket) -> bytes:
    """What comes next; nothing at the end, which is ECONNRESET (after all data) where our own words were not read."""
    with suppress(ConnectionError):
        return await loop.sock_recv(link, READ_SIZE)
    return b""


def _say(lines: Iterable[str | Problem]) -> None:
    for line in lines:
        print(line, file=sys.stderr, flush=True)


def _error(problems: Iterable[Problem]) -> str:
    text = "; ".join(str(problem) for problem in problems if problem.severity == "error")
    return text if len(text) <= MAX_ERROR else text[: MAX_ERROR - 1] + "…"
