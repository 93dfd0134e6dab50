"""TCP: framing, pipelining, budgets, slow and silent clients. Plain loopback connections, both loops."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from egressd.listen import Client
from egressd.listen import streams as module
from egressd.listen.client import Outbox
from egressd.listen.streams import Connections

from .world import Loops, One, one_by_one

COUNTERS = (
    "tcp_connections",
    "tcp_queries",
    "tcp_over_budget",
    "tcp_exhausted",
    "tcp_idle",
    "tcp_slow",
    "tcp_malformed",
    "tcp_send_errors",
)
both_loops = pytest.mark.parametrize(
    "loops", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


class Stage:
    """Connections under test, and the address to reach them at."""

    def __init__(self, handler: One, per_client: int, idle_s: float) -> None:
        self.counters = dict.fromkeys(COUNTERS, 0)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.listening.setblocking(False)
        self.connections = Connections(
            asyncio.get_running_loop(), one_by_one(handler), self.counters, per_client, idle_s, Outbox()
        )
        self.connections.listen(self.listening)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.listening.getsockname())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition that callbacks of the loop bring about."""
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - what is waited for differs from test to test
                await asyncio.sleep(0.01)


def play(
    loops: Loops,
    scene: Callable[[Stage], Awaitable[None]],
    handler: One,
    per_client: int = 32,
    idle_s: float = 30.0,
) -> None:
    """Run one scene; afterwards no connection is left open and no callback has failed."""
    problems: list[object] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        stage = Stage(handler, per_client, idle_s)
        try:
            async with asyncio.timeout(60):
                await scene(stage)
        finally:
            stage.connections.close()
            stage.listening.close()
        assert stage.connections._open == set()
        assert stage.connections._by_client == {}

    with asyncio.Runner(loop_factory=loops) as runner:
        runner.run(main())
    assert problems == []


def frame(message: bytes) -> bytes:
    """A message with its length (RFC 1035 section 4.2.2)."""
    return len(message).to_bytes(2, "big") + message


def numbered(number: int, size: int = 20) -> bytes:
    """Octets that stand for a query."""
    return number.to_bytes(2, "big") + bytes(size - 2)


async def receive(reader: asyncio.StreamReader) -> bytes:
    """One framed message."""
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


def echo(data: bytes, client: Client) -> None:
    client.send(data)


@both_loops
def test_pipelined_queries_in_odd_pieces(loops: Loops) -> None:
    """A hundred queries in one segment, then one octet by octet: every one is answered, whole."""

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(b"".join(frame(numbered(number, 20 + number)) for number in range(100)))
        for number in range(100):
            assert await receive(reader) == numbered(number, 20 + number)
        for octet in frame(numbered(7)):
            writer.write(bytes((octet,)))
            await writer.drain()
            await asyncio.sleep(0.001)
        assert await receive(reader) == numbered(7)
        assert stage.counters["tcp_queries"] == 101
        writer.close()

    play(loops, scene, echo)


@both_loops
def test_answers_go_out_in_any_order(loops: Loops) -> None:
    """Answers are sent as they come, not as they were asked; the client knows who asked and whom."""
    held: list[tuple[bytes, Client]] = []

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        for number in range(3):
            writer.write(frame(numbered(number)))
        await stage.until(lambda: len(held) == 3)
        client = held[0][1]
        assert (client.transport, client.address, client.server) == ("tcp", b"\x7f\0\0\1", b"\x7f\0\0\1")
        assert client.port == writer.get_extra_info("sockname")[1]
        for data, other in reversed(held):
            other.send(data)
        assert [await receive(reader) for _ in range(3)] == [numbered(number) for number in (2, 1, 0)]
        writer.close()

    play(loops, scene, lambda data, client: held.append((data, client)))


@both_loops
@pytest.mark.parametrize("size", [0, 11, 4097, 65535])
def test_impossible_lengths_close(loops: Loops, size: int) -> None:
    """A length that no query can have ends the connection at once."""

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(size.to_bytes(2, "big") + bytes(12))
        assert await reader.read() == b""
        assert stage.counters["tcp_malformed"] == 1
        assert stage.counters["tcp_queries"] == 0
        writer.close()

    play(loops, scene, echo)


@both_loops
def test_one_client_has_its_share(loops: Loops) -> None:
    """Above the budget a connection is closed unserved; one that ends gives its place to the next."""

    async def scene(stage: Stage) -> None:
        held = [await stage.connect() for _ in range(3)]
        await stage.until(lambda: stage.counters["tcp_connections"] == 3)
        reader, writer = await stage.connect()
        assert await reader.read() == b""
        assert stage.counters["tcp_over_budget"] == 1
        held[0][1].close()
        await stage.until(lambda: len(stage.connections._open) == 2)
        again, writer_again = await stage.connect()
        writer_again.write(frame(numbered(1)))
        assert await receive(again) == numbered(1)
        for _, each in (*held, (reader, writer), (again, writer_again)):
            each.close()

    play(loops, scene, echo, per_client=3)


@both_loops
def test_idle_connections_end(loops: Loops, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection without a query, and one that sends octets but never a whole query, are closed by the clock."""
    monkeypatch.setattr(module, "SWEEP_S", 0.05)

    async def scene(stage: Stage) -> None:
        silent, silent_writer = await stage.connect()
        slow, slow_writer = await stage.connect()

        async def dribble() -> None:
            while not slow.at_eof():
                slow_writer.write(b"\0")
                await asyncio.sleep(0.05)

        slow_writer.write(frame(numbered(1, 4000))[:2])
        task = asyncio.create_task(dribble())
        assert await silent.read() == b""
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await slow.readexactly(1)
        assert stage.counters["tcp_idle"] == 2
        task.cancel()
        silent_writer.close()
        slow_writer.close()

    play(loops, scene, echo, idle_s=0.5)


def test_outstanding_answers_keep_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """With an answer outstanding the clock waits three times as long, and then ends it all the same."""
    monkeypatch.setattr(module, "SWEEP_S", 0.05)

    async def scene(stage: Stage) -> None:
        loop = asyncio.get_running_loop()
        reader, writer = await stage.connect()
        writer.write(frame(numbered(1)))
        began = loop.time()
        assert await reader.read() == b""
        assert loop.time() - began > 0.8
        assert stage.counters["tcp_idle"] == 1
        writer.close()

    play(uvloop.new_event_loop, scene, lambda data, client: None, idle_s=0.3)


@both_loops
def test_a_client_that_stops_asking_still_gets_its_answers(loops: Loops) -> None:
    """After the client's FIN the answers outstanding are sent, then the connection closes."""
    held: list[tuple[bytes, Client]] = []

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(frame(numbered(1)) + frame(numbered(2)))
        writer.write_eof()
        await stage.until(lambda: len(held) == 2)
        await asyncio.sleep(0.05)
        for data, client in held:
            client.send(data)
        assert await receive(reader) == numbered(1)
        assert await receive(reader) == numbered(2)
        assert await reader.read() == b""
        await stage.until(lambda: not stage.connections._open)
        writer.close()

    play(loops, scene, lambda data, client: held.append((data, client)))


@both_loops
def test_a_client_that_does_not_read_is_dropped(loops: Loops) -> None:
    """Answers left unread beyond 256 KiB and the kernel's buffers end the connection; sending on is harmless."""

    def much(data: bytes, client: Client) -> None:
        for _ in range(400):
            client.send(bytes(60_000))

    async def scene(stage: Stage) -> None:
        _, writer = await stage.connect()
        writer.write(frame(numbered(1)))
        await stage.until(lambda: stage.counters["tcp_slow"] == 1)
        await stage.until(lambda: not stage.connections._open)
        writer.transport.abort()

    play(loops, scene, much)


@both_loops
def test_a_reader_that_catches_up_gets_everything(loops: Loops) -> None:
    """Answers beyond the kernel's buffer wait for the reader and come whole and in order."""

    def several(data: bytes, client: Client) -> None:
        for number in range(40):
            client.send(numbered(number, 6_000))

    async def scene(stage: Stage) -> None:
        stage.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, stage.listening.getsockname())
            reader, writer = await asyncio.open_connection(sock=sock)
            writer.write(frame(numbered(1)))
            await asyncio.sleep(0.1)
            for number in range(40):
                assert await receive(reader) == numbered(number, 6_000)
            writer.close()

    play(loops, scene, several)


@both_loops
def test_a_reset_frees_the_place(loops: Loops) -> None:
    """A client that resets is forgotten, and an answer that comes too late is dropped without a sound."""
    held: list[Client] = []

    async def scene(stage: Stage) -> None:
        for round_number in range(5):
            _, writer = await stage.connect()
            writer.write(frame(numbered(1)))
            await stage.until(lambda wanted=round_number + 1: len(held) == wanted)  # type: ignore[misc]  # bound now
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            await stage.until(lambda: not stage.connections._open)
        for client in held:
            client.send(numbered(1))

    play(loops, scene, lambda data, client: held.append(client), per_client=1)


@both_loops
def test_short_connections_in_crowds(loops: Loops) -> None:
    """A thousand connections, fifty at a time, each with one query: all are answered, and descriptors are re-used."""

    async def scene(stage: Stage) -> None:
        async def once(number: int) -> None:
            reader, writer = await stage.connect()
            writer.write(frame(numbered(number)))
            assert await receive(reader) == numbered(number)
            writer.close()

        for start in range(0, 1000, 50):
            await asyncio.gather(*(once(number) for number in range(start, start + 50)))
        await stage.until(lambda: not stage.connections._open)
        assert stage.counters["tcp_queries"] == 1000

    play(loops, scene, echo, per_client=200)


def test_running_out_of_descriptors_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a free file descriptor accepting rests and resumes; the waiting client is served then."""
    import resource

    async def scene(stage: Stage) -> None:
        client = socket.socket()
        client.setblocking(False)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno(), hard))
        try:
            await asyncio.get_running_loop().sock_connect(client, stage.listening.getsockname())
            await stage.until(lambda: stage.counters["tcp_exhausted"] >= 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        reader, writer = await asyncio.open_connection(sock=client)
        writer.write(frame(numbered(1)))
        assert await receive(reader) == numbered(1)
        writer.close()

    play(uvloop.new_event_loop, scene, echo)


def test_oversized_answers_are_not_framed_wrongly() -> None:
    """An answer that has no 16-bit length ends the connection and is counted; nothing is raised."""

    async def scene(stage: Stage) -> None:
        reader, writer = await stage.connect()
        writer.write(frame(numbered(1)))
        assert await reader.read() == b""
        assert stage.counters["tcp_send_errors"] == 1
        writer.close()

    play(uvloop.new_event_loop, scene, lambda data, client: client.send(bytes(65536)))
