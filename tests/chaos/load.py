"""The load of one pod: it looks names up and connects, as a program with an ordinary stub resolver does.

    python -m chaos.load JSON    (a `Task`; stops at SIGTERM, when what is in flight has ended)

Resolver: glibc's defaults, two tries of five seconds. A port that refuses ends a try at once, a truncated answer goes
on over TCP. A third of the look-ups use one socket for all, a third a fresh one each, as getaddrinfo does, and some
TCP. No EDNS, so that the last octets of an answer are its last address.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from chaos.tally import Ending, Kind, Record

TRIES: Final = 2
TRY_S: Final = 5.0
ALLOWED_S: Final = 7.0
"""An allowed connection has this long to open: SYNs at 0, 1, 3 and 7 s."""
DENIED_S: Final = 1.0
LIVE_BEAT_S: Final = 0.25
LIVE_SILENCE_S: Final = 10.0
"""A long connection that says nothing for so long counts as cut."""
NO_LINGER: Final = struct.pack("ii", 1, 0)
"""SO_LINGER: close by reset, so that a busy client runs out of no ports."""
A, AAAA = 1, 28


@dataclass(frozen=True)
class Task:
    """What a pod does. `denied` and `denied_udp` are (address, port) pairs; rates are per second."""

    out: str
    server: str
    seed: int = 0
    lookups: float = 50.0
    dials: float = 8.0
    denied_dials: float = 8.0
    live: int = 8
    names: list[str] = field(default_factory=list)
    fresh: str = ""
    """Names never asked before are made under this one; they have IPv6 addresses only."""
    denied_name: str = ""
    blocks: list[str] = field(default_factory=list)
    """Addresses that a rule about addresses allows, on port 80."""
    denied: list[tuple[str, int]] = field(default_factory=list)
    denied_udp: list[tuple[str, int]] = field(default_factory=list)


def query(ident: int, name: str, qtype: int) -> bytes:
    """A plain query with recursion desired."""
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return struct.pack("!6H", ident, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", qtype, 1)


class Datagrams:
    """One connected UDP socket and the queries in flight on it."""

    def __init__(self, server: str) -> None:
        self._socket = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.connect((server, 53))
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(65535)
        except BlockingIOError:
            return
        except OSError as error:  # an ICMP error: every query in flight has failed
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(ConnectionError(str(error)))
            return
        future = self._waiting.get(int.from_bytes(data[:2], "big")) if len(data) >= 12 else None
        if future is not None and not future.done():
            future.set_result(data)

    async def ask(self, name: str, qtype: int) -> bytes:
        """One try; raises `TimeoutError` or `OSError`."""
        ident = random.getrandbits(16)
        while ident in self._waiting:
            ident = (ident + 1) & 0xFFFF
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[ident] = future
        try:
            self._socket.send(query(ident, name, qtype))
            return await asyncio.wait_for(future, TRY_S)
        finally:
            del self._waiting[ident]

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()


async def ask_tcp(server: str, name: str, qtype: int) -> bytes:
    """One try over TCP, in a connection of its own."""
    async with asyncio.timeout(TRY_S):
        reader, writer = await asyncio.open_connection(server, 53)
        try:
            message = query(random.getrandbits(16), name, qtype)
            writer.write(struct.pack("!H", len(message)) + message)
            (length,) = struct.unpack("!H", await reader.readexactly(2))
            return await reader.readexactly(length)
        finally:
            writer.close()


class Pod:
    """Everything one pod does, until `stop`."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.dice = random.Random(task.seed)
        self.shared = Datagrams(task.server)
        self.addresses: dict[tuple[str, int], str] = {}
        """Of known names: the last address each answer gave."""
        self.file = Path(task.out).open("ab")  # noqa: SIM115 - `run` closes it
        self.stopping = asyncio.Event()
        self.running: set[asyncio.Task[None]] = set()
        self.numbers = itertools.count()

    def note(self, began: float, kind: Kind, ending: Ending, detail: int = 0) -> None:
        self.file.write(Record(began, time.monotonic() - began, kind, ending, detail).pack())

    # ------------------------------------------------------------------------------------------- look-ups

    async def resolve(self, name: str, qtype: int) -> tuple[bytes, int]:
        """The answer and the tries it took. Raises `OSError` when none came."""
        way = self.dice.random()
        for tries in range(1, TRIES + 1):
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                if way < 0.05:
                    return await ask_tcp(self.task.server, name, qtype), tries
                data = await (self.shared.ask(name, qtype) if way < 0.5 else self._ask_once(name, qtype))
                if data[2] & 2:
                    data = await ask_tcp(self.task.server, name, qtype)
                return data, tries
        raise TimeoutError(name)

    async def _ask_once(self, name: str, qtype: int) -> bytes:
        own = Datagrams(self.task.server)
        try:
            return await own.ask(name, qtype)
        finally:
            own.close()

    async def look_up(self, kind: Kind, name: str, qtype: int) -> str:
        """Look an allowed name up and note how it went; returns an address, or nothing."""
        began = time.monotonic()
        try:
            data, tries = await self.resolve(name, qtype)
        except OSError:
            self.note(began, kind, Ending.LOST)
            return ""
        address, rcode = address_of(data, qtype), data[3] & 15
        ending = (Ending.GOOD if tries == 1 else Ending.RETRIED) if address else Ending.ERROR
        self.note(began, kind, ending, rcode)
        return address

    async def look_up_known(self) -> None:
        name, qtype = self.dice.choice(self.task.names), self.dice.choice((A, AAAA))
        address = await self.look_up(Kind.KNOWN, name, qtype)
        if address:
            self.addresses[name, qtype] = address

    async def look_up_fresh(self) -> None:
        """Ask for a new name and, like a browser, connect at once."""
        number = next(self.numbers)
        address = await self.look_up(Kind.FRESH, f"n{self.task.seed}-{number}.{self.task.fresh}", AAAA)
        if address:
            await self.dial(Kind.DIAL_FRESH, address, 80, ALLOWED_S)

    async def look_up_denied(self) -> None:
        began = time.monotonic()
        try:
            data, _ = await self.resolve(f"n{next(self.numbers)}.{self.task.denied_name}", A)
        except OSError:
            self.note(began, Kind.DENIED, Ending.LOST)
            return
        rcode = data[3] & 15
        answered = Ending.UNFILTERED if rcode == 0 else Ending.ERROR
        self.note(began, Kind.DENIED, Ending.GOOD if rcode == 3 else answered, rcode)

    # ---------------------------------------------------------------------------------------- connections

    async def dial(self, kind: Kind, address: str, port: int, patience: float) -> None:
        began = time.monotonic()
        opened = _tcp(address)
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_connect(opened, (address, port)), patience)
            ending = Ending.THROUGH if kind is Kind.DIAL_DENIED else Ending.GOOD
        except TimeoutError:
            ending = Ending.GOOD if kind is Kind.DIAL_DENIED else Ending.SILENCE
        except OSError:
            ending = Ending.GOOD if kind is Kind.DIAL_DENIED else Ending.REFUSED
        finally:
            opened.close()
        self.note(began, kind, ending, port)

    async def dial_known(self) -> None:
        known = [*self.addresses.values(), *self.task.blocks]
        if known:
            address = self.dice.choice(known)
            await self.dial(Kind.DIAL_KNOWN, address, 80, ALLOWED_S)

    async def dial_denied(self) -> None:
        address, port = self.dice.choice(self.task.denied)
        await self.dial(Kind.DIAL_DENIED, address, port, DENIED_S)

    async def send_denied(self) -> None:
        address, port = self.dice.choice(self.task.denied_udp)
        began = time.monotonic()
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as opened:
            opened.setblocking(False)
            try:
                opened.connect((address, port))
                opened.send(b"hello")
                await asyncio.wait_for(asyncio.get_running_loop().sock_recv(opened, 100), DENIED_S)
                ending = Ending.THROUGH
            except OSError:
                ending = Ending.GOOD
        self.note(began, Kind.SEND_DENIED, ending, port)

    async def live(self, port: int) -> None:
        """Hold a connection open for as long as the pod works: an echo (port 7), or a stream that never ends (80)."""
        while not self.stopping.is_set():
            if not self.addresses:
                await asyncio.sleep(0.2)
                continue
            address = self.dice.choice(list(self.addresses.values()))
            opened = _tcp(address)
            last = [time.monotonic()]
            try:
                await asyncio.wait_for(asyncio.get_running_loop().sock_connect(opened, (address, port)), ALLOWED_S)
                self.note(last[0], Kind.LIVE, Ending.GOOD, port)
                await (self._echo(opened, last) if port == 7 else self._stream(opened, last))
            except OSError:
                self.note(last[0], Kind.LIVE, Ending.CUT, port)
                await asyncio.sleep(0.5)
            finally:
                opened.close()

    async def _echo(self, opened: socket.socket, last: list[float]) -> None:
        loop = asyncio.get_running_loop()
        while not self.stopping.is_set():
            async with asyncio.timeout(LIVE_SILENCE_S):
                await loop.sock_sendall(opened, b"still here")
                if not await loop.sock_recv(opened, 100):
                    raise ConnectionResetError
            last[0] = time.monotonic()
            await asyncio.sleep(LIVE_BEAT_S)

    async def _stream(self, opened: socket.socket, last: list[float]) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(opened, b"GET /stream HTTP/1.1\r\nHost: stream.example\r\n\r\n")
        while not self.stopping.is_set():
            async with asyncio.timeout(LIVE_SILENCE_S):
                if not await loop.sock_recv(opened, 4096):
                    raise ConnectionResetError
            last[0] = time.monotonic()

    # ---------------------------------------------------------------------------------------------- life

    def launch(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self.running.add(task)
        task.add_done_callback(self.running.discard)

    async def repeat(self, per_second: float, action: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start `action` at random times, so many a second in the mean, whether or not earlier ones have ended."""
        due = time.monotonic()
        while per_second and not self.stopping.is_set():
            due = max(due, time.monotonic() - 1.0) + self.dice.expovariate(per_second)
            await asyncio.sleep(due - time.monotonic())
            self.launch(action())

    async def run(self) -> None:
        task = self.task
        fresh = task.dials / 4 if task.fresh else 0.0
        denied = (task.lookups / 10 if task.denied_name else 0.0, task.denied_dials if task.denied else 0.0)
        beats = [
            self.repeat(task.lookups - fresh - denied[0], self.look_up_known),
            self.repeat(fresh, self.look_up_fresh),
            self.repeat(denied[0], self.look_up_denied),
            self.repeat(task.dials - fresh, self.dial_known),
            self.repeat(denied[1], self.dial_denied),
            self.repeat(denied[1] / 4 if task.denied_udp else 0.0, self.send_denied),
        ]
        for beat in beats:
            self.launch(beat)
        for number in range(task.live):
            self.launch(self.live(80 if number % 4 == 3 else 7))
        self.launch(self._keep_written())
        await self.stopping.wait()
        while self.running:
            await asyncio.wait(self.running)
        self.file.close()

    async def _keep_written(self) -> None:
        while not self.stopping.is_set():
            await asyncio.sleep(0.5)
            self.file.flush()


def address_of(data: bytes, qtype: int) -> str:
    """The last address of an answer without EDNS; empty if there is none."""
    if len(data) < 12 or data[3] & 15 or data[6:8] == b"\0\0":
        return ""
    return socket.inet_ntop(socket.AF_INET, data[-4:]) if qtype == A else socket.inet_ntop(socket.AF_INET6, data[-16:])


def _tcp(address: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    return opened


async def main(task: Task) -> None:
    pod = Pod(task)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, pod.stopping.set)
    await pod.run()


if __name__ == "__main__":
    asyncio.run(main(Task(**json.loads(sys.argv[1]))))
