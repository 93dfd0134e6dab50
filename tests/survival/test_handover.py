"""An upgrade: the new process stands beside the old one, takes its sockets and state over, and nobody notices."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from e2e.shop import API4, ECHO, connect, echoes

from egressd.agent import handover
from egressd.lab import Space, eventually
from survival.stand import OPEN_TO_NFT, Load, allowed, closed, stand

NAMES = [f"n{number}.example.com" for number in range(40)]


@pytest.mark.parametrize("settings", [{}, OPEN_TO_NFT], ids=["owned", "open"])
def test_an_upgrade_under_load_loses_nothing(tmp_path: Path, settings: dict[str, object]) -> None:
    """Under 1,000 queries/s, one in ten over TCP, no query is lost, no connection is cut, and the old one exits 0."""
    with stand(tmp_path, settings) as shop:
        for name in NAMES:
            shop.node.dns.zone.add(name, "A", API4, ttl=1)
        live = connect(shop.web, API4, ECHO)
        load = Load(shop.web, 1000, 5.0, NAMES, tcp=4)
        time.sleep(1.0)
        old = shop.daemon.process
        assert old is not None
        shop.daemon.start(wait=False)
        assert old.wait(20) == 0
        assert shop.daemon.process is not None
        assert closed(shop)
        found = load.end()
        assert found["lost"] == []
        assert found["refused"] == []
        assert found["answered"] == found["asked"] > 3500
        assert echoes(live)
        live.close()
        assert allowed(shop)
        assert shop.daemon.process.poll() is None


def test_a_second_start_in_haste(tmp_path: Path) -> None:
    """A process that has just taken over keeps its place: the next one ends with exit code 3 and says why."""
    with stand(tmp_path) as shop:
        first = shop.daemon.process
        shop.daemon.start(wait=False)
        assert first is not None
        assert first.wait(20) == 0
        second = shop.daemon.process
        shop.daemon.start(wait=False)
        third = shop.daemon.process
        assert third is not None
        assert third.wait(20) == 3
        shop.daemon.process = second
        assert "took over from another one less than" in shop.daemon.log()
        assert allowed(shop)


def test_an_old_process_that_hangs_is_ended(tmp_path: Path) -> None:
    """It says nothing for two seconds: the new one ends it and starts without its sockets; they never fight."""
    with stand(tmp_path) as shop:
        hung = shop.daemon.process
        assert hung is not None
        shop.daemon.signal(signal.SIGSTOP)
        shop.daemon.start(wait=False)
        assert hung.wait(20) == -signal.SIGKILL
        eventually(lambda: "1 grants taken over" in shop.daemon.log(), what="the new one ready")
        assert allowed(shop)
        assert closed(shop)


async def take_the_parcel(table: str) -> list[str]:
    """Play a successor up to `Done`, then hang up; returns what was said."""
    loop = asyncio.get_running_loop()
    line = handover.Line(loop, handover.visit(table))
    said = []
    try:
        with handover.proof() as shown:
            await line.send(handover.Hello(os.getpid(), "test"), [shown])
        while True:
            message, sockets = await line.receive(5.0)
            for sock in sockets:
                sock.close()
            said.append(type(message).__name__)
            if isinstance(message, handover.Done):
                return said
    finally:
        line.close()


def test_a_successor_that_dies_on_the_way(tmp_path: Path) -> None:
    """The old one serves again, with its table, and loses no query."""
    with stand(tmp_path) as shop:
        load = Load(shop.web, 200, 3.0, ["api.example.com"], tcp=2)
        time.sleep(1.0)
        said = shop.node.call(lambda: asyncio.run(take_the_parcel("egressd")))
        assert said[0] == "Welcome"
        assert "Sockets" in said
        found = load.end()
        assert (found["lost"], found["refused"]) == ([], [])
        assert allowed(shop)
        assert closed(shop)
        assert "serving again" in shop.daemon.log()


async def ask_without_rights(table: str) -> str:
    """Ask for the sockets with a socket that proves nothing."""
    line = handover.Line(asyncio.get_running_loop(), handover.visit(table))
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nothing:
            await line.send(handover.Hello(os.getpid(), "test"), [nothing])
        message, _ = await line.receive(5.0)
        return type(message).__name__
    except ConnectionResetError:
        return "hung up"
    finally:
        line.close()


def test_who_may_ask(tmp_path: Path) -> None:
    """Without CAP_NET_ADMIN in this network namespace nobody gets a socket, and the daemon goes on."""
    with stand(tmp_path) as shop:
        assert shop.node.call(lambda: asyncio.run(ask_without_rights("egressd"))) == "hung up"
        with Space("elsewhere") as elsewhere:
            foreign = elsewhere.call(handover.proof)
            assert not shop.node.call(lambda: handover.is_proof(foreign))
            foreign.close()
        assert allowed(shop)
