"""Scripted resolvers on loopback, and a caller that keeps what it is given."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
import uvloop

from egressd.settings import Upstream
from egressd.upstream import Failure, Upstreams
from egressd.wire import Answer, Question, read_query

Loops = Callable[[], asyncio.AbstractEventLoop]
Say = Callable[[bytes], list[bytes]]
"""A resolver's script: from one query to the datagrams sent back, in order."""

RIGHT = "192.0.2.7"
FORGED = "203.0.113.66"
LOOPBACK = socket.inet_pton(socket.AF_INET, "127.0.0.1")
both_loops = pytest.mark.parametrize(
    "loops", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)


def question(name: str = "api.example.com", edns: bool = True) -> Question:
    """What a pod's query for A asks."""
    return read_query(dns.message.make_query(name, "A", use_edns=0 if edns else -1).to_wire())


def reply(query: bytes, *addresses: str, rcode: str = "NOERROR", tc: bool = False, edns: bool = True) -> bytes:
    """A resolver's answer to `query`."""
    asked = dns.message.from_wire(query)
    said = dns.message.make_response(asked)
    said.flags |= dns.flags.RA | (dns.flags.TC if tc else 0)
    said.set_rcode(dns.rcode.from_text(rcode))
    said.use_edns(0 if edns else -1)
    if addresses:
        said.answer.append(dns.rrset.from_text(asked.question[0].name, 60, "IN", "A", *addresses))
    return said.to_wire(max_size=65535)


def silent(query: bytes) -> list[bytes]:
    """The script of a resolver that never answers."""
    return []


def right(query: bytes) -> list[bytes]:
    """The script of a resolver that answers well."""
    return [reply(query, RIGHT)]


def closed_port() -> int:
    """A loopback port where nothing listens: what is sent there is refused by ICMP."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def other_id(query: bytes) -> bytes:
    """A forged answer with another ID."""
    said = reply(query, FORGED)
    return bytes((said[0] ^ 1,)) + said[1:]


@dataclass
class Resolver:
    """A resolver on a loopback port, over UDP and TCP; remembers what it was asked and from which ports."""

    say: Say
    say_tcp: Say = field(default=lambda query: [])
    address: str = "127.0.0.1"
    queries: list[bytes] = field(default_factory=list)
    sources: list[tuple[str, int]] = field(default_factory=list)
    over_tcp: int = 0
    port: int = 0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self._tcp = await asyncio.start_server(self._serve, self.address, self.port, family=family)
        self.port = self._tcp.sockets[0].getsockname()[1]
        self._udp = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self._udp.bind((self.address, self.port))
        loop.add_reader(self._udp.fileno(), self._readable)
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._udp.fileno())
        self._udp.close()
        self._tcp.close()

    @property
    def upstream(self) -> Upstream:
        return self.over("udp")

    def over(self, scheme: str) -> Upstream:
        """How egressd is told of this resolver."""
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        return Upstream(socket.inet_pton(family, self.address), self.port, scheme)

    def _readable(self) -> None:
        while True:
            try:
                query, source = self._udp.recvfrom(4096)
            except BlockingIOError:
                return
            self.queries.append(query)
            self.sources.append(source[:2])
            for datagram in self.say(query):
                self._udp.sendto(datagram, source)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        self.over_tcp += 1
        for message in self.say_tcp(query):
            writer.write(len(message).to_bytes(2, "big") + message)
        await writer.drain()
        writer.close()


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for a condition that callbacks of the loop bring about."""
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what is waited for differs from test to test
            await asyncio.sleep(0.005)


class Caller:
    """Asks, and keeps outcomes by waiter and by delivery."""

    def __init__(self, *upstreams: Upstream, **options: Any) -> None:
        self.outcomes: dict[Any, Answer | Failure] = {}
        self.deliveries: list[int] = []
        self.upstreams = Upstreams(asyncio.get_running_loop(), upstreams, self._deliver, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.upstreams.close()

    def _deliver(self, settled: list[tuple[Any, Answer | Failure]]) -> None:
        self.deliveries.append(len(settled))
        for waiter, outcome in settled:
            assert waiter not in self.outcomes, "delivered twice"
            self.outcomes[waiter] = outcome

    async def until(self, count: int) -> None:
        """Wait until so many outcomes have come."""
        await eventually(lambda: len(self.outcomes) >= count)

    async def outcome(self, asked: Question | None = None) -> Answer | Failure:
        """Ask one question and wait for what comes of it."""
        waiter = object()
        self.upstreams.ask(asked or question(), waiter)
        await eventually(lambda: waiter in self.outcomes)
        return self.outcomes[waiter]

    async def until_answered(self) -> None:
        """Ask until an answer comes, for a server that is back: the pause between attempts may not be over."""
        async with asyncio.timeout(30):
            while not isinstance(await self.outcome(), Answer):  # noqa: ASYNC110 - the pause ends by the clock alone
                await asyncio.sleep(0.02)

    async def addresses(self, asked: Question | None = None) -> list[str]:
        """Ask, and spell the addresses of the answer."""
        answer = await self.outcome(asked)
        assert isinstance(answer, Answer), answer
        return [socket.inet_ntop(socket.AF_INET, address) for address in answer.addresses]


def play(loops: Loops, scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run `scene` on a fresh loop; an exception in any callback of the loop is a failure of the test."""
    loop = loops()
    problems: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: problems.append(context))
    try:
        loop.run_until_complete(scene())
        loop.run_until_complete(asyncio.sleep(0.02))  # what was closed closes
    finally:
        loop.close()
    assert problems == [], problems
