"""How one process of a table follows another without losing a query: the new one's part and the old one's.

    new                                   old (serving)
    Hello, proof            ->
                            <-            Welcome, or Busy: then the new one ends, with the reason
                                          reads no more queries, finishes those in flight, lets go of the kernel
                            <-            Sockets, Streams, Held, Known …, Done
    reads the kernel back, installs its table, reads the sockets
    Serving                 ->
                                          ends with exit code 0

Queries that come in between wait in the sockets. The old one keeps its own descriptors until `Serving`: if the new one
dies or stops on the way, the old one serves again, as if nothing had been. If the old one says nothing for
`ANSWER_S`, it hangs: it is killed, and the new one starts without its sockets.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import signal
import socket
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from egressd import __version__
from egressd.agent.handover import (
    Busy,
    Done,
    Held,
    Hello,
    Known,
    Line,
    Place,
    Reclaimed,
    Serving,
    Sockets,
    Streams,
    Welcome,
    claim,
    is_proof,
    proof,
    visit,
)
from egressd.errors import EgressError, EnvironmentProblem, LinkError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["Door", "Estate", "Heir", "Parcel", "inherit"]

log = logging.getLogger("egressd.agent")

ANSWER_S: Final = 2.0
"""A process that says nothing for so long is taken to hang."""
PARCEL_S: Final = 10.0
"""Longest that the old one may take to finish and hand over."""
TAKEOVER_S: Final = 30.0
"""Longest that the new one may take from `Done` to `Serving`: reading 100,000 grants back takes 2 s."""
ATTEMPTS: Final = 5
SOCKETS_A_MESSAGE, STREAMS_A_MESSAGE, ENTRIES_A_MESSAGE = 32, 16, 100
"""Each keeps a record under 128 KiB: a query is at most 4 KiB, a name 1 KiB."""

T = TypeVar("T")
Query = tuple[Place, bytes, int, bytes]
Entry = tuple[bytes, bytes, tuple[str, ...]]


@dataclass
class Parcel:
    """Everything that changes hands."""

    sockets: dict[Place, socket.socket] = field(default_factory=dict)
    streams: list[tuple[socket.socket, bytes]] = field(default_factory=list)
    held: list[Query] = field(default_factory=list)
    known: list[Entry] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------------ new


class Heir:
    """What a starting process came to: the meeting place (None: a stranger holds its name) and perhaps a parcel."""

    def __init__(self, place: socket.socket | None, line: Line | None = None, parcel: Parcel | None = None) -> None:
        self.place = place
        self.parcel = parcel or Parcel()
        self._line = line

    @property
    def follows(self) -> bool:
        """Whether there was one to follow."""
        return self._line is not None

    async def check(self) -> None:
        """Raises `EnvironmentProblem` if the old one serves again. Its death is no reason to stop: we hold all."""
        if self._line is None:
            return
        try:
            message, _ = await self._line.receive(0.0)
        except (TimeoutError, OSError, LinkError):
            return
        if isinstance(message, Reclaimed):
            raise EnvironmentProblem("the older egressd did not wait any longer, and serves again", "try again")

    async def serve(self) -> None:
        """Tell the old one to go. Raises `EnvironmentProblem` as `check`."""
        if self._line is None:
            return
        await self.check()
        try:
            await self._line.send(Serving())
        except OSError as error:
            log.info("the older egressd ended by itself: %s", error)
        self.close()

    def close(self) -> None:
        """Hang up; before `serve` this makes the old one serve again."""
        if self._line is not None:
            self._line.close()
            self._line = None


async def inherit(loop: asyncio.AbstractEventLoop, table: str) -> Heir:
    """Become the daemon of this table: the first, or the heir of the one that runs.

    Raises `EnvironmentProblem` if the one that runs does not hand over; then this process ends.
    """
    for _ in range(ATTEMPTS):
        place = claim(table)
        if place is not None:
            return Heir(place)
        try:
            line = Line(loop, visit(table))
        except OSError as error:
            log.info("another egressd just left its place: %s", error)
            await asyncio.sleep(0.1)
            continue
        heir = await _ask(line)
        if heir is not None:
            return heir
    raise EnvironmentProblem(
        f"the place of table {table} changes hands too fast", "start one egressd for a table at a time"
    )


async def _ask(line: Line) -> Heir | None:
    """Talk to the holder; None: try again."""
    pid, uid = line.peer
    try:
        if uid != os.geteuid():
            log.error("uid %d holds the meeting place of this table: start without it; no hand-over is possible", uid)
            line.close()
            return Heir(None)
        with proof() as shown:
            await line.send(Hello(os.getpid(), __version__), [shown])
        await _welcome(line)
        return await _unpack(line)
    except TimeoutError:
        line.close()
        _end(pid)
    except (OSError, LinkError) as error:
        line.close()
        log.warning("the older egressd (pid %d) broke off the hand-over: %s", pid, error)
        await asyncio.sleep(0.1)
    except BaseException:
        line.close()
        raise
    return None


async def _welcome(line: Line) -> None:
    message, _ = await line.receive(ANSWER_S)
    if isinstance(message, Busy):
        raise EnvironmentProblem(
            f"another egressd (pid {line.peer[0]}) runs for this table: {message.reason}",
            "let it be, or stop it first",
        )
    if not isinstance(message, Welcome):
        raise _unexpected(message)


async def _expect(line: Line, kind: type[Serving], timeout_s: float) -> None:
    message, _ = await line.receive(timeout_s)
    if not isinstance(message, kind):
        raise _unexpected(message)


def _unexpected(message: object) -> LinkError:
    return LinkError(f"an unexpected {type(message).__name__} in a hand-over")


async def _unpack(line: Line) -> Heir:
    heir = Heir(None, line)
    parcel = heir.parcel
    while True:
        message, sockets = await line.receive(PARCEL_S)
        match message:
            case Sockets(places=()):
                heir.place = sockets[0]
                heir.place.listen()  # from now on, its peers see our credentials (unix_listen)
            case Sockets(places=places):
                parcel.sockets |= dict(zip(places, sockets, strict=True))
            case Streams(received=received):
                parcel.streams += zip(sockets, received, strict=True)
            case Held(queries=queries):
                parcel.held += queries
            case Known(entries=entries):
                parcel.known += entries
            case Done():
                return heir
            case _:
                raise _unexpected(message)


def _end(pid: int) -> None:
    """Kill a process that hangs: it would go on one day with what it knew then, beside us."""
    if pid <= 0:
        raise EnvironmentProblem(
            "an egressd that does not answer holds this table, in another PID namespace", "stop its container"
        )
    log.error(
        "the egressd with pid %d says nothing for %g s: it is ended, and this one starts without it", pid, ANSWER_S
    )
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], ANSWER_S)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------------------------ old


class Estate(Protocol):
    """What the old process does for its successor."""

    def unwilling(self) -> str:
        """Why it cannot hand over now; empty if it can."""

    async def settle(self) -> Parcel:
        """Take no more queries, finish what is in flight, let go of the kernel; returns what is to be handed on."""

    async def resume(self) -> None:
        """Nobody took over: serve again."""

    def depart(self) -> None:
        """The successor serves."""


class Door:
    """Waits at the meeting place for a successor."""

    def __init__(self, loop: asyncio.AbstractEventLoop, place: socket.socket, estate: Estate) -> None:
        self._loop = loop
        self._place = place
        self._estate = estate
        self._talks: set[asyncio.Task[None]] = set()
        self._busy = False
        loop.add_reader(place.fileno(), self._accept)

    def close(self) -> None:
        """Leave the place; a conversation that is going on is broken off."""
        self._loop.remove_reader(self._place.fileno())
        self._place.close()
        for talk in self._talks:
            talk.cancel()

    def _accept(self) -> None:
        try:
            connection, _ = self._place.accept()
        except OSError:
            return
        connection.setblocking(False)
        talk = self._loop.create_task(self._talk(Line(self._loop, connection)))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)

    async def _talk(self, line: Line) -> None:
        try:
            if await self._is_successor(line):
                self._busy = True
                await self._hand_over(line)
        except (OSError, EgressError) as error:
            log.warning("a hand-over came to nothing: %s", error)
        finally:
            self._busy = False
            line.close()

    async def _is_successor(self, line: Line) -> bool:
        pid, uid = line.peer
        message, sockets = await line.receive(ANSWER_S)
        try:
            proven = uid == os.geteuid() and len(sockets) == 1 and is_proof(sockets[0])
        finally:
            for sock in sockets:
                sock.close()
        if not proven or not isinstance(message, Hello):
            log.warning("pid %d, uid %d asked for our sockets without the right to", pid, uid)
            return False
        reason = "it is handing over to another one" if self._busy else self._estate.unwilling()
        if reason:
            log.warning("egressd with pid %d wants to take over: refused, %s", message.pid, reason)
            await line.send(Busy(reason))
            return False
        log.info("handing over to egressd %s with pid %d", message.version, message.pid)
        await line.send(Welcome())
        return True

    async def _hand_over(self, line: Line) -> None:
        """Settle, send, wait for `Serving`; whatever goes wrong on the way, serve again."""
        try:
            parcel = await self._estate.settle()
            await self._send(line, parcel)
            await _expect(line, Serving, TAKEOVER_S)
        except (OSError, LinkError) as error:
            log.warning("the successor did not take over (%s): serving again", error or type(error).__name__)
            try:
                await line.send(Reclaimed())
            except OSError:
                log.info("the successor is gone")
            await self._estate.resume()
        else:
            self._estate.depart()

    async def _send(self, line: Line, parcel: Parcel) -> None:
        for places in _pieces(parcel.sockets.items(), SOCKETS_A_MESSAGE):
            await line.send(Sockets(tuple(place for place, _ in places)), [sock for _, sock in places])
        for streams in _pieces(parcel.streams, STREAMS_A_MESSAGE):
            await line.send(Streams(tuple(received for _, received in streams)), [sock for sock, _ in streams])
        for queries in _pieces(parcel.held, STREAMS_A_MESSAGE):
            await line.send(Held(tuple(queries)))
        for entries in _pieces(parcel.known, ENTRIES_A_MESSAGE):
            await line.send(Known(tuple(entries)))
        await line.send(Sockets(()), [self._place])
        await line.send(Done())


def _pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    left: Any = iter(items)
    while piece := list(islice(left, size)):
        yield piece
