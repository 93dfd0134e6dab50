"""Opening, adopting, draining and closing, on loopback addresses of a namespace of its own."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from egressd.errors import EnvironmentProblem
from egressd.lab.syscalls import loopback_up
from egressd.listen import Client, Listener
from egressd.listen.client import pack
from egressd.settings import Dns, Settings

from .world import Loops, One, isolated, one_by_one

SETTINGS = Settings()
FOREIGN = replace(SETTINGS, dns=Dns(foreign="Answer"))
V4, V6 = "127.0.0.5", "::1"
SERVERS = [pack(V4), pack(V6)]
both_loops = pytest.mark.parametrize(
    "loops", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


def echo(data: bytes, client: Client) -> None:
    client.send(data)


def play(scene: Callable[[], Awaitable[None]], loops: Loops = uvloop.new_event_loop) -> None:
    """Run a scene in a fresh namespace; an exception in any callback of the loop is a failure."""

    def body() -> None:
        loopback_up()
        problems: list[object] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
            async with asyncio.timeout(60):
                await scene()

        with asyncio.Runner(loop_factory=loops) as runner:
            runner.run(main())
        assert problems == []

    isolated(body)


def opened(settings: Settings = SETTINGS, on_query: One = echo) -> Listener:
    """A listener on both loopback servers, open."""
    listener = Listener(asyncio.get_running_loop(), settings, SERVERS, one_by_one(on_query))
    listener.open()
    return listener


def udp_client(server: str = V4) -> socket.socket:
    """A connected UDP socket that never blocks."""
    sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.connect((server, 53))
    return sock


async def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send one datagram and wait for one back."""
    sock.send(data)
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(sock, 65535)


@both_loops
def test_sockets_are_as_the_kernel_page_says(loops: Loops) -> None:
    """One UDP and one TCP socket per server, transparent, marked, with a receive buffer of 4 MiB."""

    async def scene() -> None:
        listener = opened()
        assert [str(endpoint) for endpoint in listener.sockets] == [
            "127.0.0.5 port 53/udp",
            "127.0.0.5 port 53/tcp",
            "::1 port 53/udp",
            "::1 port 53/tcp",
        ]
        for endpoint, sock in listener.sockets.items():
            level, option = (socket.IPPROTO_IPV6, 75) if len(endpoint.server) == 16 else (socket.IPPROTO_IP, 19)
            assert sock.getsockopt(level, option) == 1
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == 0x40000
            if endpoint.transport == "udp":
                assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 4 * 1024 * 1024
        listener.close()
        listener.close()
        assert listener.sockets == {}

    play(scene, loops)


@both_loops
def test_a_burst_is_read_in_turns(loops: Loops) -> None:
    """At most 32 datagrams are handed on in one wake, so that others run in between; none is lost."""
    turns: list[int] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()

        def count(data: bytes, client: Client) -> None:
            if not turns or turns[-1] == 0:
                turns.append(0)
                loop.call_soon(turns.append, 0)
            turns[-1] += 1

        listener = opened(on_query=count)
        with udp_client() as sock:
            for number in range(100):
                sock.send(b"%012d" % number)
            while listener.counters["udp_queries"] < 100:  # noqa: ASYNC110 - counted by callbacks
                await asyncio.sleep(0.005)
        listener.close()
        assert sum(turns) == 100
        assert max(turns) <= 32

    play(scene, loops)


@both_loops
def test_posted_answers_leave_with_their_batch(loops: Loops) -> None:
    """What is posted waits for `flush`, over UDP and TCP; what is sent does not."""

    async def scene() -> None:
        asked: list[tuple[bytes, Client]] = []
        listener = opened(on_query=lambda data, client: asked.append((data, client)))
        loop = asyncio.get_running_loop()
        with udp_client() as sock, socket.socket() as stream:
            stream.setblocking(False)
            await loop.sock_connect(stream, (V4, 53))
            for number in range(3):
                sock.send(b"%012d" % number)
                stream.send(b"\0\x0c%012d" % number)
            while len(asked) < 6:  # noqa: ASYNC110 - counted by callbacks
                await asyncio.sleep(0.005)
            for data, client in asked:
                client.post(data)
            await asyncio.sleep(0.01)
            for quiet in (sock, stream):
                with pytest.raises(BlockingIOError):
                    quiet.recv(100)
            listener.flush()
            assert [sock.recv(100) for _ in range(3)] == [b"%012d" % number for number in range(3)]
            assert await read_stream(loop, stream, 42) == b"".join(b"\0\x0c%012d" % number for number in range(3))
            asked[0][1].send(b"at once, as it is")
            listener.flush()
            assert sock.recv(100) == b"at once, as it is"
            with pytest.raises(BlockingIOError):
                sock.recv(100)
        listener.close()
        for _, client in asked:
            client.post(b"too late")
        listener.flush()
        assert listener.counters["udp_send_errors"] == 3

    play(scene, loops)


async def read_stream(loop: asyncio.AbstractEventLoop, stream: socket.socket, size: int) -> bytes:
    """Read so many octets."""
    found = b""
    async with asyncio.timeout(10):
        while len(found) < size:
            found += await loop.sock_recv(stream, size - len(found))
    return found


def test_sizes_pass_unread() -> None:
    """An empty datagram and the largest reach the handler; of what is too long, one octet more than is legal."""
    seen: list[int] = []

    async def scene() -> None:
        listener = opened(on_query=lambda data, client: seen.append(len(data)))
        with udp_client(V6) as sock:
            for size in (0, 1, 4096, 4097, 9000):
                sock.send(bytes(size))
            while len(seen) < 5:  # noqa: ASYNC110 - counted by callbacks
                await asyncio.sleep(0.005)
        listener.close()
        assert seen == [0, 1, 4096, 4097, 4097]

    play(scene)


def test_sending_never_raises() -> None:
    """An answer that is too long, or comes after the close, is dropped and counted."""
    held: list[Client] = []

    async def scene() -> None:
        listener = opened(on_query=lambda data, client: held.append(client))
        with udp_client() as sock:
            sock.send(bytes(12))
            while not held:  # noqa: ASYNC110 - filled by callbacks
                await asyncio.sleep(0.005)
            held[0].send(bytes(70_000))
            listener.close()
            held[0].send(bytes(12))
        assert listener.counters["udp_send_errors"] == 2

    play(scene)


@both_loops
def test_a_new_listener_takes_the_sockets_over(loops: Loops) -> None:
    """Adopted sockets are read by the new listener; the drained old one still answers what it took before."""
    held: list[tuple[bytes, Client]] = []

    async def scene() -> None:
        old = opened(on_query=lambda data, client: held.append((data, client)))
        with udp_client() as first, udp_client() as second:
            first.send(b"taken by the old")
            while not held:  # noqa: ASYNC110 - filled by callbacks
                await asyncio.sleep(0.005)
            passed = {endpoint: sock.dup() for endpoint, sock in old.sockets.items()}
            new = Listener(asyncio.get_running_loop(), SETTINGS, SERVERS, one_by_one(echo))
            old.drain()
            new.open(passed)
            assert await exchange(second, b"taken by the new") == b"taken by the new"
            data, client = held[0]
            client.send(data)
            async with asyncio.timeout(10):
                assert await asyncio.get_running_loop().sock_recv(first, 100) == b"taken by the old"
            old.close()
            assert await exchange(second, b"after the old has gone") == b"after the old has gone"
            new.close()

    play(scene, loops)


@pytest.mark.parametrize("settings", [SETTINGS, FOREIGN], ids=["trusted", "foreign"])
def test_a_taken_port_is_explained_and_nothing_stays(settings: Settings) -> None:
    """Where another program listens the error names the place and the setting, and every socket is closed again."""

    async def scene() -> None:
        server = V6 if settings is SETTINGS else "127.0.0.9"
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with socket.create_server((server, 53), family=family):
            before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counting, at rest
            with pytest.raises(EnvironmentProblem, match=r"53/tcp: another program listens there.*dns\.servers"):
                opened(settings)
            assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208 - as above

    play(scene)


def test_missing_rights_are_explained() -> None:
    """Without CAP_NET_ADMIN the error names it."""

    async def scene() -> None:
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(EnvironmentProblem, match="CAP_NET_ADMIN"):
            opened()

    play(scene)


def test_foreign_mode_has_a_wildcard_pair_per_family() -> None:
    """Beside the trusted servers' UDP sockets there are two wildcard pairs; their TCP serves everyone."""

    async def scene() -> None:
        listener = opened(FOREIGN)
        assert [str(endpoint) for endpoint in listener.sockets] == [
            "127.0.0.5 port 53/udp",
            "::1 port 53/udp",
            "any IPv4 address port 53/udp",
            "any IPv4 address port 53/tcp",
            "any IPv6 address port 53/udp",
            "any IPv6 address port 53/tcp",
        ]
        listener.close()

    play(scene)


def test_ipv6_turned_off_does_not_stop_foreign_mode() -> None:
    """With IPv6 disabled by sysctl, IPv4 servers are still answered."""

    async def scene() -> None:
        await asyncio.to_thread(Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text, "1")
        listener = Listener(asyncio.get_running_loop(), FOREIGN, SERVERS[:1], one_by_one(echo))
        listener.open()
        with udp_client() as sock:
            assert await exchange(sock, b"hello") == b"hello"
        listener.close()

    play(scene)
