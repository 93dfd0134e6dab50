"""Intercepted queries, end to end: real tproxy rules, `dig` and plain sockets as clients, both loops."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import dns.message
import pytest
import uvloop

from egressd.listen import Client, Listener
from egressd.listen.client import pack
from egressd.settings import Dns, Settings

from .world import CLIENT4, CLIENT6, Loops, answer, ask, build, intercept, isolated, serve

SETTINGS = Settings()
FOREIGN = replace(SETTINGS, dns=Dns(foreign="Answer"))
SERVERS = ("192.0.2.53", "2001:db8::53")
STRANGERS = ("203.0.113.9", "2001:db8:9::9")
PACKED = [pack(server) for server in SERVERS]
QUERY = dns.message.make_query("api.example.com", "TXT").to_wire()

loops = pytest.mark.parametrize("loops", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
links = pytest.mark.parametrize("bridge", [False, True], ids=["veth", "br_netfilter"])


@loops
@links
def test_each_query_is_answered_by_the_address_asked(loops: Loops, bridge: bool) -> None:
    """UDP and TCP, IPv4 and IPv6: dig accepts the answers, and they name the server it asked."""

    def body() -> None:
        world = build(bridge)
        intercept(SETTINGS, PACKED)
        seen: list[tuple[bytes, bytes, str]] = []

        def note(data: bytes, client: Client) -> None:
            seen.append((client.address, client.server, client.transport))
            answer(data, client)

        async def scene(listener: Listener) -> None:
            for server in SERVERS:
                for options in ((), ("+tcp",)):
                    said = await asyncio.to_thread(world.at_client, partial(ask, server, *options))
                    assert said == f'"{server}"', (server, options)

        listener = serve(loops, SETTINGS, PACKED, note, scene)
        me4, me6 = pack(CLIENT4), pack(CLIENT6)
        assert seen == [
            (me4, PACKED[0], "udp"),
            (me4, PACKED[0], "tcp"),
            (me6, PACKED[1], "udp"),
            (me6, PACKED[1], "tcp"),
        ]
        assert (listener.counters["udp_queries"], listener.counters["tcp_queries"]) == (2, 2)

    isolated(body)


@loops
@links
def test_foreign_servers_are_answered_in_their_name(loops: Loops, bridge: bool) -> None:
    """With `foreign: Answer` any address answers, over its own name, beside the trusted servers."""

    def body() -> None:
        world = build(bridge)
        intercept(FOREIGN, PACKED, [pack(address) for address in (*SERVERS, *STRANGERS)])

        async def scene(listener: Listener) -> None:
            for server in (*SERVERS, *STRANGERS):
                for options in ((), ("+tcp",)):
                    said = await asyncio.to_thread(world.at_client, partial(ask, server, *options))
                    assert said == f'"{server}"', (server, options)

        serve(loops, FOREIGN, PACKED, answer, scene)

    isolated(body)


def test_the_answer_leaves_from_port_53_of_the_server() -> None:
    """An unconnected client sees the server's address and port as the sender, trusted or foreign."""

    def body() -> None:
        world = build()
        intercept(FOREIGN, PACKED, [pack(address) for address in (*SERVERS, *STRANGERS)])

        def exchange(server: str) -> tuple[str, int]:
            family = socket.AF_INET6 if ":" in server else socket.AF_INET
            with world.at_client(lambda: socket.socket(family, socket.SOCK_DGRAM)) as sock:
                sock.settimeout(10)
                sock.sendto(QUERY, (server, 53))
                source = sock.recvfrom(4096)[1]
                return source[0], source[1]

        async def scene(listener: Listener) -> None:
            for server in (*SERVERS, *STRANGERS):
                assert await asyncio.to_thread(exchange, server) == (server, 53)

        serve(asyncio.new_event_loop, FOREIGN, PACKED, answer, scene)

    isolated(body)


def marked() -> int:
    """Packets that the witness counted with the answer mark."""
    listing = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
    return int(listing.split("counter packets ")[1].split()[0])


def test_answers_carry_the_answer_mark() -> None:
    """Answers over UDP and TCP pass the witness's rule for the second mark bit, and leave no conntrack entry."""

    def body() -> None:
        world = build()
        intercept(SETTINGS, PACKED)

        async def scene(listener: Listener) -> None:
            assert await asyncio.to_thread(world.at_client, partial(ask, SERVERS[0]))
            assert await asyncio.to_thread(marked) == 1
            assert await asyncio.to_thread(world.at_client, partial(ask, SERVERS[0], "+tcp"))
            assert await asyncio.to_thread(marked) >= 4  # one over UDP; SYN+ACK, ACK and answer over TCP
            assert "dport=53" not in await asyncio.to_thread(Path("/proc/net/nf_conntrack").read_text)

        serve(asyncio.new_event_loop, SETTINGS, PACKED, answer, scene)

    isolated(body)


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_the_wildcard_heeds_only_intercepted_packets(transport: str) -> None:
    """A query to the node's own address, not intercepted, gets no answer: the node is no resolver for its network."""

    def body() -> None:
        world = build()
        intercept(FOREIGN, PACKED)
        asked: list[bytes] = []

        async def scene(listener: Listener) -> None:
            option = "+notcp" if transport == "udp" else "+tcp"
            for own in ("198.51.100.1", "2001:db8:1::1"):
                said = await asyncio.to_thread(world.at_client, partial(ask, own, option, "+time=1"))
                assert "timed out" in said or "no servers" in said or not said

        serve(asyncio.new_event_loop, FOREIGN, PACKED, lambda data, client: asked.append(data), scene)
        assert asked == []

    isolated(body)


def test_nothing_listens_after_close() -> None:
    """With the listener closed the kernel's packets pass on: no socket, no answer, and opening again works."""

    def body() -> None:
        world = build()
        intercept(SETTINGS, PACKED)

        async def idle(listener: Listener) -> None:
            return None

        async def scene(listener: Listener) -> None:
            said = await asyncio.to_thread(world.at_client, partial(ask, SERVERS[0]))
            assert said == f'"{SERVERS[0]}"'

        serve(uvloop.new_event_loop, SETTINGS, PACKED, answer, idle)
        assert "no servers could be reached" in world.at_client(lambda: ask(SERVERS[0], "+time=1"))
        serve(uvloop.new_event_loop, SETTINGS, PACKED, answer, scene)

    isolated(body)
