"""`conntrack -F`: what may be opened goes on in both directions, what may not stays shut, and a cut is still a cut."""

from __future__ import annotations

import contextlib
import socket
import time
from pathlib import Path

import pytest
from e2e.shop import API4, API6, NOTHING, Shop, addresses, ask, connect

from egressd.lab import eventually
from survival.stand import ALLOW, stand

REQUEST = b"GET /stream HTTP/1.1\r\nHost: api.example.com\r\n\r\n"
SILENT_S = 3.0
"""Longer than the other end takes to repeat what was not acknowledged, three times over."""
BOTH = pytest.mark.parametrize(("api", "qtype"), [(API4, "A"), (API6, "AAAA")], ids=["ipv4", "ipv6"])


def download(shop: Shop, address: str) -> socket.socket:
    """A download on which the pod says nothing more, under way."""
    opened = connect(shop.web, address, 80)
    opened.sendall(REQUEST)
    opened.settimeout(10)
    assert opened.recv(4096)
    return opened


def comes(opened: socket.socket, seconds: float) -> bool:
    """Whether anything comes within so long, beside what has come already."""
    opened.settimeout(0.0)
    with contextlib.suppress(BlockingIOError):
        while opened.recv(1 << 16):
            pass
    opened.settimeout(seconds)
    try:
        return bool(opened.recv(4096))
    except OSError:
        return False


def entry_of(shop: Shop, api: str) -> bool:
    """Whether the connection table has it as one that the pod opened: its first source is the pod."""
    family, pod = ("ipv4", shop.web.v4) if api == API4 else ("ipv6", shop.web.v6)
    listed = shop.node.run(["conntrack", "-L", "-f", family, "-p", "tcp", "--orig-dst", api, "--orig-src", pod]).stdout
    return "dport=80" in listed


def flush(shop: Shop) -> None:
    shop.node.run(["conntrack", "-F"], check=True)


@BOTH
def test_a_download_goes_on(tmp_path: Path, api: str, qtype: str) -> None:
    """The kernel forgets it, the next packet brings it back, as the pod's own connection, and a cut then ends it."""
    with stand(tmp_path) as shop:
        assert addresses(ask(shop.web, "api.example.com", qtype)) == [api]
        with download(shop, api) as opened:
            flush(shop)
            assert comes(opened, 15.0), shop.daemon.log()
            assert entry_of(shop, api)
            shop.policy("shop/web", NOTHING)
            eventually(lambda: not comes(opened, SILENT_S), 20.0, what="the cut")
            flush(shop)
            assert not comes(opened, SILENT_S)


def test_what_may_not_be_opened_is_not_put_back(tmp_path: Path) -> None:
    """A drained connection lives on by its entry alone: without it, it is judged as a new one."""
    with stand(tmp_path) as shop, download(shop, API4) as opened:
        shop.policy("shop/web", "onRevoke: Drain\n" + NOTHING)
        assert comes(opened, 5.0)
        flush(shop)
        assert not comes(opened, SILENT_S)
        shop.policy("shop/web", ALLOW)
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
        eventually(lambda: comes(opened, 1.0), 60.0, what="the connection that is sanctioned again")


def test_a_stranger_opens_nothing(tmp_path: Path) -> None:
    """A packet out of nowhere, from where no grant leads, makes no entry."""
    with stand(tmp_path) as shop:
        begun = time.monotonic()
        with shop.node.internet.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as raw:
            header = (80).to_bytes(2, "big") + (40000).to_bytes(2, "big") + bytes(8) + b"\x50\x10\x20\x00" + bytes(4)
            while time.monotonic() < begun + 1.0:
                raw.sendto(header, (shop.web.v4, 0))
                time.sleep(0.05)
        listed = shop.node.run(["conntrack", "-L", "-p", "tcp"]).stdout
        assert "dport=40000" not in listed
        assert "sport=40000" not in listed
