"""DNS over HTTPS (RFC 8484): each question is one POST, its answer the body.

aiohttp speaks HTTP/1.1 alone, where a connection carries one request at a time; so there are several, kept open, and a
question that is given up takes its connection with it. Nothing is ever looked up: the host's name is verified and
said, the address is that of the settings. No redirect is followed, no cookie kept, no proxy asked, nothing unpacked.

POST answers come from no cache that would age them, so that TTLs are taken as they are (RFC 8484 section 5.1).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any, Final

import aiohttp
from aiohttp import hdrs
from aiohttp.abc import AbstractResolver, ResolveResult

from egressd.model import address_text
from egressd.settings import Upstream
from egressd.upstream.flight import NETWORK_ERROR, NO_REACHABLE_AUTHORITY, Failure, Flight, Server, Sink
from egressd.upstream.health import FIRST_WAIT_S, LONGEST_WAIT_S
from egressd.upstream.tls import CERTIFICATE_REFUSED, what_failed
from egressd.wire import padded_query, upstream_query

__all__ = ["HttpsCarrier"]

MEDIA_TYPE: Final = "application/dns-message"
MAX_CONNECTIONS: Final = 32
MAX_CALLS: Final = 512
"""Questions at a time, those included that wait for a connection; above it an attempt fails at once."""
MAX_BODY: Final = 65_535
"""Octets: what any DNS message may have."""
KEEP_S: Final = 30.0
"""How long an idle connection is kept."""
TIMES: Final = aiohttp.ClientTimeout(total=4.0, sock_connect=3.0)
"""The question's own budget, and that of a connection."""
HEADERS: Final = {hdrs.CONTENT_TYPE: MEDIA_TYPE, hdrs.ACCEPT: MEDIA_TYPE, hdrs.ACCEPT_ENCODING: "identity"}


class HttpsCarrier:
    """Asks one upstream over HTTPS."""

    server: Server

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sink: Sink,
        upstream: Upstream,
        context: ssl.SSLContext | None,
        mark: int,
        counters: dict[str, int],
    ) -> None:
        self.loop = loop
        self.sink = sink
        self.counters = counters
        self.calls: set[_Call] = set()
        host = f"[{upstream.host}]" if ":" in upstream.host else upstream.host
        self.url = f"https://{host}:{upstream.port}{upstream.path}"
        self._address = address_text(upstream.address)
        self._context = context
        self._mark = mark
        self._session: aiohttp.ClientSession | None = None
        self._closing: asyncio.Future[None] | None = None
        """Kept for as long as it runs: the loop holds tasks weakly."""

    def send(self, flight: Flight, now: float) -> float:  # noqa: ARG002 - the interface of carriers
        """Ask. Raises OSError when too many questions wait already."""
        if len(self.calls) >= MAX_CALLS:
            raise OSError(0, f"{MAX_CALLS} questions are being asked already")
        call = _Call(self, flight)
        self.calls.add(call)
        flight.tickets.append((call, 0))
        health = self.server.health
        return max(health.wait_s(flight.timeouts), FIRST_WAIT_S) if health.rtt_s else LONGEST_WAIT_S

    def close(self) -> None:
        """Hang up everywhere; the sockets close within the loop's next turns."""
        for call in tuple(self.calls):
            call.forget(0)
        session, self._session = self._session, None
        if session is not None and session.connector is not None:
            self._closing = asyncio.ensure_future(session.connector.close(abort_ssl=True), loop=self.loop)
            session.detach()

    def session(self) -> aiohttp.ClientSession:
        """Made with the first question, for it needs a running loop."""
        if self._session is None:
            connector = aiohttp.TCPConnector(
                resolver=_Settled(self._address),
                ssl=self._context or True,
                limit=MAX_CONNECTIONS,
                keepalive_timeout=KEEP_S,
                use_dns_cache=False,
                happy_eyeballs_delay=None,
                socket_factory=self._socket,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                headers=HEADERS,
                skip_auto_headers=[hdrs.USER_AGENT],
                timeout=TIMES,
                read_bufsize=MAX_BODY + 1,
            )
        return self._session

    def _socket(self, place: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol = place[:3]
        sock = socket.socket(family, kind, protocol)
        sock.setblocking(False)
        try:
            if self._mark:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self._mark)
        except OSError:
            sock.close()
            raise
        self.counters["connections"] += 1
        return sock


class _Settled(AbstractResolver):
    """Every name is the one address of the settings."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_INET,  # noqa: ARG002 - aiohttp's signature
    ) -> list[ResolveResult]:
        found = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        numeric = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
        return [ResolveResult(hostname=host, host=self._address, port=port, family=found, proto=0, flags=int(numeric))]

    async def close(self) -> None:
        """Nothing to close."""


class _Call:
    """One question; gone with its answer, or when it is forgotten."""

    def __init__(self, carrier: HttpsCarrier, flight: Flight) -> None:
        self._carrier = carrier
        self._flight = flight
        self._task = carrier.loop.create_task(self._run())

    def forget(self, ident: int) -> None:  # noqa: ARG002 - a call has one question
        """Stop asking."""
        self._carrier.calls.discard(self)
        self._task.cancel()

    async def _run(self) -> None:
        """Ask and report: exactly one report, unless forgotten first."""
        try:
            self._reply(await self._post())
        except _Unfit as error:
            self._fail(str(error), NO_REACHABLE_AUTHORITY)
        except (aiohttp.ClientError, OSError) as error:
            problem = _problem(error)
            self._carrier.counters["distrusted"] += problem.startswith(CERTIFICATE_REFUSED)
            self._fail(problem, NETWORK_ERROR, cut=_was_cut(error))
        self._carrier.calls.discard(self)
        self._carrier.sink.flush()

    def _reply(self, data: bytes) -> None:
        carrier = self._carrier
        if self in carrier.calls and not (
            data[:2] == b"\0\0" and carrier.sink.replied(carrier.server, self._flight, self, 0, data)
        ):
            raise _Unfit("answered another question")

    def _fail(self, problem: str, ede: int, *, cut: bool = False) -> None:
        carrier = self._carrier
        if self in carrier.calls:
            report = carrier.sink.hung_up if cut else carrier.sink.failed
            report(carrier.server, self._flight, self, 0, Failure(ede, f"{carrier.server.health}: {problem}"))

    async def _post(self) -> bytes:
        """The body of a good answer. Raises `_Unfit` for any other, OSError and aiohttp's errors."""
        flight = self._flight
        make = padded_query(flight.question, 0, flight.options) if flight.edns else None
        query = make or upstream_query(flight.question, 0, False)
        session = self._carrier.session()
        async with session.post(self._carrier.url, data=query, allow_redirects=False) as response:
            if response.status != 200:
                raise _Unfit(f"answered HTTP {response.status}")
            if response.content_type != MEDIA_TYPE or hdrs.CONTENT_ENCODING in response.headers:
                raise _Unfit("answered with something other than a DNS message")
            return await _body(response)


async def _body(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > MAX_BODY:
            response.close()
            raise _Unfit(f"answered with more than {MAX_BODY} octets")
    return bytes(data)


class _Unfit(Exception):
    """An answer in HTTP that is none in DNS; the text says why."""


def _was_cut(error: BaseException) -> bool:
    """Whether a connection was closed under the question, as an idle one may be."""
    return isinstance(error, aiohttp.ServerDisconnectedError | ConnectionResetError | BrokenPipeError)


def _problem(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return what_failed(error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return what_failed(error.os_error)
    if isinstance(error, aiohttp.ServerTimeoutError | TimeoutError):
        return "no answer in time"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "closed before the whole answer came"
    return what_failed(error)
