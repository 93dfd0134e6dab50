"""DNS over HTTPS (RFC 8484) through aiohttp. Real HTTPS servers on loopback, certificates made here."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web

from egressd.settings import Upstream
from egressd.upstream import Failure, https
from egressd.wire import Answer

from .secure import NAME, Handler, Https, answered, ca_file, context, stranger
from .world import (
    LOOPBACK,
    RIGHT,
    Caller,
    Loops,
    Resolver,
    both_loops,
    closed_port,
    play,
    question,
    reply,
    right,
)


@both_loops
def test_a_question_is_one_post(loops: Loops, tmp_path: Path) -> None:
    """ID 0, the media type, padded, to the path of the settings; the name is said and verified, nobody looks it up."""

    async def scene() -> None:
        async with Https() as resolver:
            with Caller(resolver.upstream(path="/q/x"), ca_file=ca_file(tmp_path)) as caller:
                assert await caller.addresses() == [RIGHT]
                (request,), (query,) = resolver.requests, resolver.queries
                assert (request.method, request.path) == ("POST", "/q/x")
                assert request.host == f"{NAME}:{resolver.port}"
                assert query[:2] == b"\0\0"
                assert len(query) % 128 == 0
                wanted = {"Content-Type", "Accept", "Accept-Encoding", "Host", "Content-Length"}
                assert set(request.headers) == wanted
                assert request.headers["Accept"] == request.headers["Content-Type"] == "application/dns-message"

    play(loops, scene)


@both_loops
def test_many_questions_share_connections(loops: Loops, tmp_path: Path) -> None:
    """Two hundred at once take no more connections than there may be; a hundred in a row take one of those."""

    async def scene() -> None:
        async with Https() as resolver:
            with Caller(resolver.upstream(), ca_file=ca_file(tmp_path)) as caller:
                for number in range(200):
                    caller.upstreams.ask(question(f"n{number}.example.com"), number)
                await caller.until(200)
                assert all(isinstance(outcome, Answer) for outcome in caller.outcomes.values())
                assert len(resolver.peers) <= https.MAX_CONNECTIONS
                opened = len(resolver.peers)
                for number in range(100):
                    assert await caller.addresses(question(f"m{number}.example.com")) == [RIGHT]
                assert len(resolver.peers) == opened == caller.upstreams.counters["connections"]

    play(loops, scene)


def test_what_is_above_the_bound_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers nothing holds a bounded number of questions."""
    monkeypatch.setattr(https, "MAX_CALLS", 20)

    async def scene() -> None:
        async def slow(request: web.Request, query: bytes) -> web.Response:
            await asyncio.sleep(60)
            return answered(request, query)

        async with Https(slow) as resolver:
            with Caller(resolver.upstream(), ca_file=ca_file(tmp_path)) as caller:
                for number in range(50):
                    caller.upstreams.ask(question(f"n{number}.example.com"), number)
                await caller.until(30)
                assert len(caller.outcomes) == 30
                assert all("being asked already" in str(outcome) for outcome in caller.outcomes.values())

    play(uvloop.new_event_loop, scene)


def say(body: bytes = b"", **options: Any) -> Handler:
    """A script that says the same to everybody."""
    return lambda request, query: web.Response(
        body=body or right(query)[0], **{"content_type": "application/dns-message"} | options
    )


def zipped(request: web.Request, query: bytes) -> web.Response:
    """A right answer, packed, though nobody asked for that."""
    body = zlib.compress(right(query)[0])
    return web.Response(body=body, content_type="application/dns-message", headers={"Content-Encoding": "deflate"})


async def endless(request: web.Request, query: bytes) -> web.StreamResponse:
    """A right answer that goes on and on."""
    response = web.StreamResponse(headers={"Content-Type": "application/dns-message"})
    await response.prepare(request)
    await response.write(right(query)[0])
    for _ in range(100):
        await response.write(bytes(65536))
    return response


async def cut_off(request: web.Request, query: bytes) -> web.StreamResponse:
    """Half of an answer."""
    response = web.StreamResponse(headers={"Content-Type": "application/dns-message", "Content-Length": "100"})
    await response.prepare(request)
    await response.write(right(query)[0][:20])
    assert request.transport is not None
    request.transport.abort()
    return response


def hangs_up(request: web.Request, query: bytes) -> web.Response:
    """Nothing."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


UNFIT: dict[str, tuple[Handler, str]] = {
    "HTTP 500": (say(status=500), "answered HTTP 500"),
    "HTTP 404": (say(status=404), "answered HTTP 404"),
    "HTTP 204": (lambda request, query: web.Response(status=204), "answered HTTP 204"),
    "redirect": (lambda request, query: web.Response(status=307, headers={"Location": "/other"}), "HTTP 307"),
    "HTML": (say(content_type="text/html"), "other than a DNS message"),
    "packed": (zipped, "other than a DNS message"),
    "empty": (lambda request, query: web.Response(content_type="application/dns-message"), "another question"),
    "too large": (say(bytes(70_000)), "more than 65535 octets"),
    "endless": (endless, "more than 65535 octets"),
    "garbage": (say(os.urandom(300)), "another question"),
    "another ID": (lambda request, query: say(b"\x12\x34" + right(query)[0][2:])(request, query), "another question"),
    "another question": (
        lambda request, query: say(reply(query.replace(b"api", b"www"), RIGHT))(request, query),
        "another question",
    ),
    "malformed": (lambda request, query: say(right(query)[0][:-20])(request, query), "malformed"),
    "truncated": (lambda request, query: say(reply(query, RIGHT, tc=True))(request, query), "truncated"),
    "cut off": (cut_off, "127.0.0.1"),
    "hangs up": (hangs_up, "closed"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_what_is_no_answer_leads_on(case: str, tmp_path: Path) -> None:
    """Whatever comes back but an answer: the next upstream is asked, and without one the failure says what it was."""
    handle, says = UNFIT[case]

    async def scene() -> None:
        async with Https(handle) as bad, Resolver(right) as good:
            trust = ca_file(tmp_path)
            with Caller(bad.upstream(), good.upstream, ca_file=trust) as caller:
                assert await caller.addresses() == [RIGHT]
                assert len(good.queries) == 1
            with Caller(bad.upstream(), ca_file=trust) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Failure)
                assert outcome.ede in {22, 23}
                assert says in outcome.text
            assert {request.path for request in bad.requests} == {"/dns-query"}

    play(uvloop.new_event_loop, scene)


@pytest.mark.parametrize(
    ("tls", "says"),
    [
        (lambda: context("other.example"), "certificate is refused"),
        (lambda: context(expired=True), "certificate has expired"),
        (lambda: context(by=stranger()), "certificate is refused"),
    ],
    ids=["another name", "expired", "unknown authority"],
)
@both_loops
def test_a_server_that_cannot_prove_itself_is_told_nothing(loops: Loops, tls: Any, says: str, tmp_path: Path) -> None:
    """No request reaches it, and the failure says what is wrong."""

    async def scene() -> None:
        async with Https(tls=tls()) as bad:
            with Caller(bad.upstream(), ca_file=ca_file(tmp_path)) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Failure)
                assert outcome.ede == 23
                assert says in outcome.text
                assert caller.upstreams.counters["distrusted"] == 1
                assert bad.requests == []
            await asyncio.sleep(0.05)

    play(loops, scene)


def test_an_address_in_the_certificate_will_do(tmp_path: Path) -> None:
    """Without a name the certificate must be for the address, which is the host of the URL too."""

    async def scene() -> None:
        async with Https(tls=context("127.0.0.1")) as resolver:
            with Caller(resolver.upstream("127.0.0.1"), ca_file=ca_file(tmp_path)) as caller:
                assert await caller.addresses() == [RIGHT]
                assert resolver.requests[0].host == f"127.0.0.1:{resolver.port}"

    play(uvloop.new_event_loop, scene)


def test_cookies_and_proxies_mean_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cookie is not sent back; the proxy of the environment, which nobody runs, is not asked."""
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port()}")

    async def scene() -> None:
        async with Https(say(headers={"Set-Cookie": "id=1; Path=/"})) as resolver:
            with Caller(resolver.upstream(), ca_file=ca_file(tmp_path)) as caller:
                for number in range(3):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                assert all("Cookie" not in request.headers for request in resolver.requests)

    play(uvloop.new_event_loop, scene)


@both_loops
def test_a_restarted_server_is_found_again(loops: Loops, tmp_path: Path) -> None:
    """The connections that were kept are gone; a question asked over one of them is asked again over a new one."""

    async def scene() -> None:
        first = Https()
        async with first:
            with Caller(first.upstream(), ca_file=ca_file(tmp_path)) as caller:
                assert await caller.addresses() == [RIGHT]
                await first.stop()
                async with Https(port=first.port) as second:
                    await caller.until_answered()
                    assert second.queries
                assert isinstance(await caller.outcome(), Failure)

    play(loops, scene)


def test_closing_while_asking_is_quiet(tmp_path: Path) -> None:
    """Close with a request on its way: nothing is delivered, no task complains, no connection stays."""

    async def scene() -> None:
        async def slow(request: web.Request, query: bytes) -> web.Response:
            await asyncio.sleep(1)
            return answered(request, query)

        async with Https(slow) as resolver:
            caller = Caller(resolver.upstream(), ca_file=ca_file(tmp_path))
            caller.upstreams.ask(question(), "asked")
            await asyncio.sleep(0.2)
            caller.upstreams.ask(question("other.example.com"), "never begun")
            caller.upstreams.close()
            await asyncio.sleep(0.1)
            assert caller.outcomes == {}

    play(uvloop.new_event_loop, scene)


def test_a_dead_one_among_others(tmp_path: Path) -> None:
    """A closed port first, then one that answers: every question is answered."""

    async def scene() -> None:
        async with Https() as well:
            dead = Upstream(LOOPBACK, closed_port(), "https", NAME, "/dns-query")
            with Caller(dead, well.upstream(), ca_file=ca_file(tmp_path)) as caller:
                for number in range(20):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                assert [health.healthy for health in caller.upstreams.healthy] == [False, True]

    play(uvloop.new_event_loop, scene)


@pytest.mark.parametrize(("scheme", "loaded"), [("udp", "False"), ("https", "True")])
def test_aiohttp_is_loaded_by_those_alone_who_need_it(scheme: str, loaded: str) -> None:
    """The data path stays small where no upstream is https://."""
    code = (
        "import asyncio, sys; from egressd.settings import Upstream; from egressd.upstream import Upstreams;"
        "loop = asyncio.new_event_loop();"
        f"Upstreams(loop, [Upstream(bytes(4), 443, {scheme!r}, 'dns.example', '/q')], lambda settled: None);"
        "print('aiohttp' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == loaded
