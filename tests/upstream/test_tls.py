"""DNS over TLS (RFC 7858), the strict profile (RFC 8310). Real TLS servers on loopback, certificates made here."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from pathlib import Path

import dns.message
import pytest
import uvloop

from egressd.errors import EnvironmentProblem
from egressd.settings import Upstream
from egressd.upstream import Failure, Upstreams, connection, tls
from egressd.wire import Answer

from .secure import NAME, Streams, ca_file, context, outdated, stranger
from .world import (
    LOOPBACK,
    RIGHT,
    Caller,
    Loops,
    Resolver,
    both_loops,
    closed_port,
    eventually,
    play,
    question,
    right,
    silent,
)


@both_loops
def test_a_question_travels_encrypted(loops: Loops, tmp_path: Path) -> None:
    """The server is called by its name, queries are padded to 128 octets, and a hundred share one connection."""

    async def scene() -> None:
        async with Streams(tls=context()) as resolver:
            with Caller(resolver.upstream(), ca_file=ca_file(tmp_path)) as caller:
                for number in range(100):
                    name = f"{'long' * (number % 15)}n{number}.example.com"
                    assert await caller.addresses(question(name)) == [RIGHT]
                assert (resolver.connections, resolver.names) == (1, [NAME])
                assert {len(query) % 128 for query in resolver.queries} == {0}
                padding = dns.message.from_wire(resolver.queries[0]).options[-1]
                assert int(padding.otype) == 12
                assert set(padding.to_wire() or b"") <= {0}

    play(loops, scene)


def test_the_padding_stands_beside_our_own_option(tmp_path: Path) -> None:
    """The loop option stays as it is; a question without EDNS is not padded, as there is nowhere to put it."""
    option = b"\xff\x21\0\x04mark"

    async def scene() -> None:
        async with Streams(tls=context()) as resolver:
            with Caller(resolver.upstream(), ca_file=ca_file(tmp_path), options=option) as caller:
                assert await caller.addresses() == [RIGHT]
                first, second = dns.message.from_wire(resolver.queries[0]).options
                assert (int(first.otype), first.to_wire(), int(second.otype)) == (0xFF21, b"mark", 12)
                assert len(resolver.queries[0]) % 128 == 0

    play(uvloop.new_event_loop, scene)


def test_an_address_in_the_certificate_will_do(tmp_path: Path) -> None:
    """Without a name the certificate must be for the address."""

    async def scene() -> None:
        async with Streams(tls=context("127.0.0.1")) as resolver:
            with Caller(resolver.upstream("127.0.0.1"), ca_file=ca_file(tmp_path)) as caller:
                assert await caller.addresses() == [RIGHT]

    play(uvloop.new_event_loop, scene)


REFUSED: dict[str, tuple[Callable[[], ssl.SSLContext], str, str]] = {
    "another name": (lambda: context("other.example"), NAME, "certificate is refused"),
    "a name where the address is asked for": (context, "127.0.0.1", "certificate is refused"),
    "another address": (lambda: context("192.0.2.1"), "127.0.0.1", "certificate is refused"),
    "expired": (lambda: context(expired=True), NAME, "certificate has expired"),
    "unknown authority": (lambda: context(by=stranger()), NAME, "certificate is refused"),
    "TLS 1.1": (outdated, NAME, "closed by the server"),
}


@both_loops
@pytest.mark.parametrize("case", REFUSED)
def test_a_server_that_cannot_prove_itself_is_told_nothing(loops: Loops, case: str, tmp_path: Path) -> None:
    """No query reaches it; the next upstream answers, and without one the failure says what is wrong."""
    make, name, says = REFUSED[case]

    async def scene() -> None:
        async with Streams(tls=make()) as bad, Resolver(right) as good:
            trust = ca_file(tmp_path)
            with Caller(bad.upstream(name), good.upstream, ca_file=trust) as caller:
                assert await caller.addresses() == [RIGHT]
            with Caller(bad.upstream(name), ca_file=trust) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Failure)
                assert outcome.ede == 23
                assert says in outcome.text
                assert caller.upstreams.counters["distrusted"] == ("certificate" in says)
                assert caller.upstreams.counters["connections"] == 0
            assert bad.queries == []
            await asyncio.sleep(0.05)  # for the server's half of the handshakes

    play(loops, scene)


def test_the_system_does_not_vouch_for_a_private_authority() -> None:
    """Without `ca_file` the certificates of the system decide."""

    async def scene() -> None:
        async with Streams(tls=context()) as resolver:
            with Caller(resolver.upstream()) as caller:
                outcome = await caller.outcome()
                assert isinstance(outcome, Failure)
                assert "certificate is refused" in outcome.text
                assert resolver.queries == []
            await asyncio.sleep(0.05)

    play(uvloop.new_event_loop, scene)


def test_the_start_is_refused_where_nobody_can_be_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is missing or holds nothing, a system without certificates: each says what to do."""
    empty = tmp_path / "empty.pem"
    empty.write_text("nothing\n")
    loop = asyncio.new_event_loop()
    upstream = Upstream(LOOPBACK, 853, "tls", NAME)
    monkeypatch.setattr(tls, "_system_store", lambda: False)
    cases = {"": "install ca-certificates", str(empty): "holds no certificates", "/nonexistent": "cannot be read"}
    try:
        for file, says in cases.items():
            with pytest.raises(EnvironmentProblem, match=says):
                Upstreams(loop, [upstream], lambda settled: None, ca_file=file)
    finally:
        loop.close()


def test_where_the_system_keeps_its_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file or a folder that OpenSSL finds; neither, and there is no store."""
    file = tmp_path / "ca.pem"
    folder = tmp_path / "certs"
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    monkeypatch.setenv("SSL_CERT_DIR", str(folder))
    assert not tls._system_store()
    folder.mkdir()
    assert not tls._system_store()
    (folder / "0123abcd.0").touch()
    assert tls._system_store()
    (folder / "0123abcd.0").unlink()
    file.write_text("x")
    assert tls._system_store()


@pytest.mark.parametrize("case", ["plain TCP", "garbage", "closes at once", "never shakes hands"])
def test_a_server_that_speaks_no_tls_gives_way(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever answers on the port but TLS: the next upstream is asked, and the connection is not kept."""
    monkeypatch.setattr(connection, "CONNECT_S", 0.3)
    scripts = {"plain TCP": b"\0\x0chello, world", "garbage": os.urandom(500), "closes at once": b""}

    async def scene() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            if case in scripts:
                writer.write(scripts[case])
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        bad = Upstream(LOOPBACK, server.sockets[0].getsockname()[1], "tls", NAME)
        async with Resolver(right) as good:
            with Caller(bad, good.upstream, ca_file=ca_file(tmp_path)) as caller:
                assert await caller.addresses() == [RIGHT]
                assert caller.upstreams.counters["unreachable"] == 1
                await eventually(lambda: not caller.upstreams._local - set(_udp(caller)))
            server.close()

    play(uvloop.new_event_loop, scene)


def _udp(caller: Caller) -> list[tuple[bytes, int]]:
    return [channel.local for channel in caller.upstreams._datagrams._channels.values()]


@both_loops
def test_a_connection_cut_under_a_question_is_made_anew(loops: Loops, tmp_path: Path) -> None:
    """As over TCP: the question is asked again, nobody notices."""

    async def scene() -> None:
        async with Streams(tls=context(), cut=3) as resolver:
            resolver.say = lambda query: right(query) if len(resolver.queries) % 3 else []
            with Caller(resolver.upstream(), ca_file=ca_file(tmp_path)) as caller:
                for number in range(9):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                assert caller.upstreams.counters["hung_up"] >= 3
                assert caller.upstreams.counters["unreachable"] == 0
            await asyncio.sleep(0.05)

    play(loops, scene)


def test_a_restarted_server_is_found_again(tmp_path: Path) -> None:
    """It comes back with another certificate of the same authority."""

    async def scene() -> None:
        first = Streams(tls=context())
        async with first:
            with Caller(first.upstream(), ca_file=ca_file(tmp_path)) as caller:
                assert await caller.addresses() == [RIGHT]
                first.stop()
                async with Streams(tls=context(), port=first.port) as second:
                    await caller.until_answered()
                    assert second.queries
            await asyncio.sleep(0.05)

    play(uvloop.new_event_loop, scene)


def test_a_slow_server_is_waited_for(tmp_path: Path) -> None:
    """Answers that take a second come from the one connection, each asked for once, and are measured as such."""

    async def scene() -> None:
        async with Streams(tls=context(), delay=lambda query: 1.0) as resolver:
            with Caller(resolver.upstream(), ca_file=ca_file(tmp_path)) as caller:
                for number in range(2):
                    assert await caller.addresses(question(f"n{number}.example.com")) == [RIGHT]
                assert len(resolver.queries) == caller.upstreams.counters["sent"] == 2
                assert caller.upstreams.healthy[0].rtt_s > 0.9

    play(uvloop.new_event_loop, scene)


def test_one_of_a_mixed_list_is_dead(tmp_path: Path) -> None:
    """A closed port, a silent server and one that answers: every question is answered, and soon by the right one."""

    async def scene() -> None:
        dead = Upstream(LOOPBACK, closed_port(), "tls", NAME)
        async with Streams(silent, tls=context()) as mute, Streams(tls=context()) as well:
            with Caller(dead, mute.upstream(), well.upstream(), ca_file=ca_file(tmp_path)) as caller:
                for number in range(30):
                    caller.upstreams.ask(question(f"n{number}.example.com"), number)
                await caller.until(30)
                assert all(isinstance(outcome, Answer) for outcome in caller.outcomes.values())
                asked = len(mute.queries)
                for number in range(30):
                    assert await caller.addresses(question(f"m{number}.example.com")) == [RIGHT]
                assert len(mute.queries) - asked <= 3  # probes
            await asyncio.sleep(0.05)

    play(uvloop.new_event_loop, scene)
