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

from egressd.control.conditions import Condition, Conditions
from egressd.control.denials import Denials
from egressd.control.lastgood import LastGood
from egressd.control.memory import give_back, undisturbed
from egressd.control.observe import Observe
from egressd.control.privileges import LAST_WORDS_S
from egressd.control.records import Records
from egressd.control.sources import Said, Source, open_source
from egressd.control.telling import Telling
from egressd.control.world import News, Step, World, frames
from egressd.errors import EgressError, LinkError
from egressd.export import Counts, Export
from egressd.history import Keeper
from egressd.link import Answer, Applied, Frames, Lines, Ready, Reload, Stats, Synced, Up, encode
from egressd.model import PolicyRecord
from egressd.schema import Problem, has_errors
from egressd.settings import Settings

__all__ = ["Service", "serve"]

READ_SIZE: Final = 256 * 1024
"""Octets taken from the link at a time: some 400 audit records."""
MAX_ERROR: Final = 2000
"""Characters of `error` in a policy record; all problems are on standard error anyway."""


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

    def __init__(self, settings: Settings, source: Source, read: Callable[[], Settings]) -> None:
        self._stated = settings
        self._settings = settings
        """As stated, and completed by the source."""
        self._source = source
        self._read = read
        self._last_good = LastGood(settings)
        self._world = World(settings, self._last_good.recall(), self._last_good.texts)
        self._telling = Telling()
        self._conditions = Conditions()
        self._denials = Denials()
        self._updates = 0
        """Updates said since `Ready`."""
        self._synced = False
        self._reload = False
        self._observe = Observe(self)
        self._export = Export(self._observe.scraped)
        self._history = Keeper(settings.history)
        self._voice = asyncio.Lock()

    @property
    def settings(self) -> Settings:
        return self._settings

    @property
    def world(self) -> World:
        return self._world

    @property
    def written(self) -> tuple[int, int]:
        """Audit records written, and lost on the way to the disk."""
        return self._records.written, self._records.lost

    @property
    def exports(self) -> Counts:
        """What became of the records that were to be exported."""
        return self._export.counts

    @property
    def history(self) -> Keeper:
        return self._history

    @property
    def synced(self) -> bool:
        """Whether the whole world was told to the data path at least once."""
        return self._synced

    @property
    def ailments(self) -> tuple[str, ...]:
        """Why we may be behind the source; empty while all is well."""
        return self._source.ailments

    @property
    def facts(self) -> tuple[str, ...]:
        """What the cluster said of itself, one sentence each."""
        return self._source.facts

    @property
    def conditions(self) -> dict[str, tuple[Condition, ...]]:
        """`Accepted` and `Programmed` of each policy; call it from the event loop."""
        return self._conditions.all()

    async def run(self, link: socket.socket) -> None:
        """Tell and listen until the other end hangs up, then write what is still to be written."""
        link.setblocking(False)
        self._records = Records(self._settings, self._tap)
        writing = asyncio.create_task(self._write())
        listening, telling = asyncio.create_task(self._listen(link)), asyncio.create_task(self._tell(link))
        observing = asyncio.create_task(self._observe.serve(lambda ask: self._send(link, [encode(ask)])))
        running = {writing, listening, telling}
        try:
            while not listening.done():
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            signal.alarm(LAST_WORDS_S)  # whatever a disk or a huge file does now: nobody waits for us any more
            for task in (observing, listening, telling):
                task.cancel()
            await asyncio.gather(observing, listening, telling, return_exceptions=True)
            await self._source.close()
            self._history.close()
            await self._records.close()
            await asyncio.gather(writing, self._export.close())

    async def _write(self) -> None:
        """Put records and history on the disk, until both are closed."""
        await asyncio.gather(self._records.run(), self._history.run())

    def _tap(self, lines: Lines) -> None:
        """Hand audit lines to all who want them beside the disk."""
        self._observe.feed.put(lines, keep=not self._settings.audit.file)
        self._export.put(lines)
        self._history.feed(lines.data, lines.kinds)

    # ------------------------------------------------------------------------------------------------- listening

    async def _listen(self, link: socket.socket) -> None:
        """Take in all that was ever sent, to the end of the link, even of a data path that was killed."""
        incoming, loop = Frames(Up), asyncio.get_running_loop()
        while data := await _received(loop, link):
            for message in incoming.feed(data):
                match message:
                    case Lines():
                        await self._records.put(message)
                        self._mention(message.data)
                    case Stats() | Answer():
                        self._observe.hear(message)
                    case Applied():
                        self._conditions.programmed(message.updates, time.time())
                    case Reload():
                        self._reload = True
                        self._source.poke()

    def _mention(self, lines: bytes) -> None:
        if self._settings.events.denials:
            for denial in self._denials.see(lines, time.monotonic()):
                self._source.denied(*denial)

    # --------------------------------------------------------------------------------------------------- telling

    async def _tell(self, link: socket.socket) -> None:
        with suppress(ConnectionError):  # nobody listens any more; what was sent to us is still to be read
            while True:
                await self._export.take(self._stated)
                settings = await self._source.prepare(self._stated)
                if settings is not None:
                    await asyncio.to_thread(self._settle, settings)
                    await self._tell_world(link)
                self._reload = False
                await self._reread()
                await self._records.reopen(self._stated)
                await self._history.reopen(self._stated.history)

    async def _tell_world(self, link: socket.socket) -> None:
        """Say everything, then every change, until the settings are to be read again."""
        await self._send(link, [encode(Ready(self._settings))])
        told = False
        async with aclosing(self._source.changes()) as changes:
            async for said in changes:
                step = await asyncio.to_thread(self._take, said)
                await (self._tell_change(link, step) if told else self._tell_everything(link, step))
                if step.news or not told:
                    self._remember()
                told = True
                self._report(said, step)
                if self._reload:
                    return

    def _take(self, said: Said) -> Step:
        """Take in what a source says, and remember what is in force for the next start."""
        with undisturbed():
            step = self._world.replace(said.objects, said.servers)
        self._world.forget()
        self._last_good.keep(self._world.policies, self._world.texts)
        return step

    def _remember(self) -> None:
        """History tells rules that are unused from rules that are new."""
        settings = self._settings
        flows = settings.audit.flows == "All"
        self._history.know(self._world.policies.values(), settings.cluster_cidrs, flows=flows)

    async def _tell_everything(self, link: socket.socket, step: Step) -> None:
        self._conditions.take(step, 0, time.time())
        self._updates = await self._send(link, frames(self._telling.everything(self._world)))
        self._conditions.begin(list(self._world.policies), self._updates, time.time())
        await self._send(link, [encode(Synced())])
        self._synced = True
        await asyncio.to_thread(give_back)

    async def _tell_change(self, link: socket.socket, step: Step) -> None:
        if step.update is not None:
            self._updates += await self._send(link, frames(self._telling.change(self._world, step.update)))
        self._conditions.take(step, self._updates, time.time())

    async def _send(self, link: socket.socket, messages: Iterable[bytes]) -> int:
        """Say messages, as fast as they are taken; returns how many they were. Questions come between them."""
        loop, count = asyncio.get_running_loop(), 0
        for message in messages:
            async with self._voice:
                await loop.sock_sendall(link, message)
            count += 1
        return count

    def _settle(self, settings: Settings) -> None:
        """Take settings that the source completed, and build the world anew where it depends on what changed."""
        old, self._settings = self._settings, settings
        if _scope(settings) != _scope(old):
            same_home = settings.policy_namespace == old.policy_namespace
            world = World(settings, *(self._world.past if same_home else ()))
            world.replace(self._world.sources, self._world.servers)
            self._world = world

    async def _reread(self) -> None:
        """Take new settings; where they cannot be used, say so and go on with the old ones."""
        try:
            settings = await asyncio.to_thread(self._read)
            if settings.source != self._stated.source:
                source = await asyncio.to_thread(open_source, settings)
                await self._source.close()
                same_home = settings.policy_namespace == self._stated.policy_namespace
                self._source = source
                self._world = World(self._settings, *(self._world.past if same_home else ()))
        except EgressError as error:
            _say([str(error), "egressd: the settings stay as they were"])
            return
        self._stated = settings

    def _report(self, said: Said, step: Step) -> None:
        """Say what is wrong on standard error, and what became of policies in the audit trail and to their owners."""
        now = time.time()
        _say(problem for problems in said.complaints for problem in problems)
        _say(step.problems)
        refused = [
            PolicyRecord(now, "", "refused", _error(problems)) for problems in said.complaints if has_errors(problems)
        ]
        news = [PolicyRecord(now, news.policy, news.change, _error(news.problems)) for news in step.news]
        self._records.tell([*refused, *news])
        for (namespace, configmap), problems in _refusals(step.news).items():
            self._source.refused(namespace, configmap, _error(problems))


def _refusals(news: Iterable[News]) -> dict[tuple[str, str], list[Problem]]:
    """What is wrong with each ConfigMap of which a policy was refused (policy.md, Where policies live: its name)."""
    found: dict[tuple[str, str], list[Problem]] = {}
    for each in news:
        if each.change == "refused":
            namespace, configmap, *_ = each.policy.split("/")
            known = found.setdefault((namespace, configmap), [])
            known += [problem for problem in each.problems if problem not in known]
    return found


def _scope(settings: Settings) -> object:
    """The settings that a world is made with."""
    return settings.node, settings.policy_namespace, settings.dns


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
