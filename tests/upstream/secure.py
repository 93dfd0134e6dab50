"""Resolvers on loopback that keep their connections: over TCP, TLS and HTTPS, with certificates made here."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ssl
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Self

import trustme
from aiohttp import web

from egressd.settings import Upstream

from .world import LOOPBACK, Say, right

NAME = "dns.example"


@cache
def authority() -> trustme.CA:
    """Who is trusted."""
    return trustme.CA()


@cache
def stranger() -> trustme.CA:
    """Who is not."""
    return trustme.CA()


def ca_file(folder: Path) -> str:
    """`authority` as `dns.ca_file` takes it."""
    file = folder / "ca.pem"
    authority().cert_pem.write_to_path(file)
    return str(file)


def context(*names: str, by: trustme.CA | None = None, expired: bool = False) -> ssl.SSLContext:
    """A server's, with a certificate for these names."""
    end = dt.datetime.now(dt.UTC) - dt.timedelta(days=1) if expired else None
    begin = end - dt.timedelta(days=1) if end else None
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (by or authority()).issue_cert(*(names or (NAME,)), not_before=begin, not_after=end).configure_cert(made)
    return made


def outdated() -> ssl.SSLContext:
    """A server's that speaks TLS 1.1 at most."""
    made = context()
    made.set_ciphers("DEFAULT@SECLEVEL=0")
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        made.minimum_version = ssl.TLSVersion.TLSv1
        made.maximum_version = ssl.TLSVersion.TLSv1_1
    return made


def framed(message: bytes) -> bytes:
    """A message as TCP carries it."""
    return len(message).to_bytes(2, "big") + message


@dataclass
class Streams:
    """A resolver over TCP, or with a `tls` context over TLS; each connection takes many questions.

    `delay` says how many seconds the answers to a query take, `cut` after how many queries a connection is closed
    (0: never), `octets` what is sent in place of framed answers.
    """

    say: Say = right
    tls: ssl.SSLContext | None = None
    delay: Callable[[bytes], float] = lambda query: 0.0
    cut: int = 0
    octets: Callable[[bytes], bytes] | None = None
    port: int = 0
    queries: list[bytes] = field(default_factory=list)
    connections: int = 0
    names: list[str | None] = field(default_factory=list)
    """What clients called the server (SNI)."""

    async def __aenter__(self) -> Self:
        if self.tls is not None:
            self.tls.sni_callback = lambda _, name, __: self.names.append(name)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the port and every connection, as a server that is restarted does."""
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    def upstream(self, name: str = NAME) -> Upstream:
        """How egressd is told of this resolver."""
        scheme = "tcp" if self.tls is None else "tls"
        return Upstream(LOOPBACK, self.port, scheme, name if self.tls is not None else "")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        taken = 0
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while not self.cut or taken < self.cut:
                query = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
                taken += 1
                self.queries.append(query)
                asyncio.get_running_loop().call_later(self.delay(query), self._answer, writer, query)
            await asyncio.sleep(0.01)
        self._writers.discard(writer)
        writer.transport.abort()

    def _answer(self, writer: asyncio.StreamWriter, query: bytes) -> None:
        octets = self.octets(query) if self.octets else b"".join(framed(message) for message in self.say(query))
        if octets and not writer.transport.is_closing():
            writer.write(octets)


Handler = Callable[[web.Request, bytes], Any]


def answered(request: web.Request, query: bytes) -> web.Response:
    """As a good DoH server does."""
    return web.Response(body=right(query)[0], content_type="application/dns-message")


@dataclass
class Https:
    """A DoH resolver; `handle` is its script, from request and query to what it returns or awaits."""

    handle: Handler = answered
    tls: ssl.SSLContext = field(default_factory=context)
    port: int = 0
    queries: list[bytes] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)
    peers: set[Any] = field(default_factory=set)
    """Where requests came from: one for each connection."""

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        assert self._runner.addresses
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close the port and every connection."""
        await self._runner.cleanup()

    def upstream(self, name: str = NAME, path: str = "/dns-query") -> Upstream:
        """How egressd is told of this resolver."""
        return Upstream(LOOPBACK, self.port, "https", name, path)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        query = await request.read()
        self.queries.append(query)
        self.requests.append(request)
        assert request.transport is not None
        self.peers.add(request.transport.get_extra_info("peername"))
        made = self.handle(request, query)
        response: web.StreamResponse = await made if asyncio.iscoroutine(made) else made
        return response
