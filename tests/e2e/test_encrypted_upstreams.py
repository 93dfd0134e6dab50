"""The daemon asks over TLS and over HTTPS, and everything else is as ever: pods, grants, records, failures."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from upstream.secure import NAME, ca_file, context, stranger

from e2e.shop import API4, API6, Shop, addresses, ask, dial, error_of, rcode, settled
from egressd.lab import UPSTREAMS, Node, Space, eventually
from egressd.lab.serving import Loop

SCHEMES = {"tls": f"tls://{UPSTREAMS[0]}#{NAME}", "https": f"https://{UPSTREAMS[0]}/dns-query#{NAME}"}
BEHIND = UPSTREAMS[2]
"""Where the fronts pass queries on to."""


class Front:
    """DNS over TLS on port 853 and over HTTPS on port 443 of the first upstream, passed on in the clear behind it."""

    def __init__(self, space: Space, tls: ssl.SSLContext) -> None:
        self._space = space
        self._tls = tls
        self._writers: set[asyncio.StreamWriter] = set()
        self.connections = 0
        self.start()

    def start(self) -> None:
        self._loop = Loop(self._space)
        self._loop.run(self._open)

    def stop(self) -> None:
        """As a server that is restarted: the ports are closed, and so are all connections."""
        self._loop.run(self._shut)
        self._loop.close()

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._serve, UPSTREAMS[0], 853, ssl=self._tls)
        app = web.Application()
        app.router.add_post("/dns-query", self._post)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, UPSTREAMS[0], 443, ssl_context=self._tls).start()

    async def _shut(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await self._runner.cleanup()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                answer = await _passed_on(await _message(reader))
                writer.write(len(answer).to_bytes(2, "big") + answer)
        self._writers.discard(writer)
        writer.transport.abort()

    async def _post(self, request: web.Request) -> web.Response:
        return web.Response(body=await _passed_on(await request.read()), content_type="application/dns-message")


async def _message(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


async def _passed_on(query: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(BEHIND, 53)
    writer.write(len(query).to_bytes(2, "big") + query)
    answer = await _message(reader)
    writer.close()
    return answer


@contextlib.contextmanager
def encrypted(folder: Path, scheme: str, tls: ssl.SSLContext) -> Iterator[tuple[Shop, Front]]:
    """A shop whose only upstream is a front."""
    dns = {"upstreams": [SCHEMES[scheme]], "ca_file": ca_file(folder)}
    with Node("p2p") as node, settled(node, folder, {"dns": dns}) as shop:
        front = Front(node._dns_space, tls)
        try:
            shop.daemon.start()
            shop.policy("shop/web", 'allow:\n- to: ["*.example.com"]\n  ports: [80/TCP]\n')
            yield shop, front
        finally:
            front.stop()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pods_notice_nothing(scheme: str, tmp_path: Path) -> None:
    """Names are answered, addresses opened, the rest denied; nothing leaves in the clear; a restart is got over."""
    with encrypted(tmp_path, scheme, context()) as (shop, front):
        assert dial(shop.web, API4) == "refused"
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
        assert addresses(ask(shop.web, "api.example.com", "AAAA", tcp=True)) == [API6]
        assert dial(shop.web, API4) == dial(shop.web, API6) == "open"
        assert rcode(ask(shop.web, "api.example.net")) == "NXDOMAIN"
        assert shop.dns_record(shop.web, "api.example.com")["granted"] == [API4]
        front.stop()
        front.start()
        for number in range(3):
            shop.node.dns.zone.add(f"n{number}.example.com", "A", "203.0.113.30")
        eventually(lambda: rcode(ask(shop.web, "n0.example.com")) == "NOERROR", what="an answer after the restart")
        assert [addresses(ask(shop.web, f"n{number}.example.com")) for number in range(3)] == [["203.0.113.30"]] * 3
        assert {query.server for query in shop.node.dns.seen.copy()} == {BEHIND}
        eventually(lambda: re.search(r"yes +0 +[0-9.]+ ms$", _upstream_line(shop)), what="the time in status")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_stranger_is_not_believed(scheme: str, tmp_path: Path) -> None:
    """A certificate of an unknown authority: SERVFAIL that says so, no address opened, no query told to anybody."""
    with encrypted(tmp_path, scheme, context(by=stranger())) as (shop, _):
        answer = ask(shop.web, "api.example.com")
        assert rcode(answer) == "SERVFAIL"
        code, text = error_of(answer)
        assert code == 23
        assert "its certificate is refused" in text
        assert shop.dns_record(shop.web, "api.example.com")["reason"] == "upstream-failed"
        assert dial(shop.web, API4) == "refused"
        assert not shop.node.dns.seen


def _upstream_line(shop: Shop) -> str:
    """What `egressd status` says of the upstream."""
    socket = shop.daemon.settings["admin"]["socket"]
    said = shop.node.run([sys.executable, "-m", "egressd", "status", "--socket", socket]).stdout
    return next((line for line in said.splitlines() if NAME in line), "").rstrip()
