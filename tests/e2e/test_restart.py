"""While the daemon is away the kernel goes on enforcing, names go on resolving, and the next one takes over."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.shop import API4, API6, ECHO, FOR_WEB, NOTHING, Shop, addresses, ask, connect, dial, echoes, open_shop, rcode
from egressd.lab import SERVICES, WIRINGS, Node, eventually

ALLOW = 'allow:\n- to: ["*.example.com"]\n'


@contextlib.contextmanager
def granted(folder: Path, wiring: str = "p2p", when_down: str = "Bypass") -> Iterator[Shop]:
    """A node where `web` has asked for both addresses of api.example.com."""
    with open_shop(folder, {"dns": {"when_down": when_down}}, wiring=wiring) as shop:
        shop.policy("shop/web", ALLOW)
        shop.node.dns.zone.add("later.example.com", "A", "203.0.113.50")
        for qtype in ("A", "AAAA"):
            assert rcode(ask(shop.web, "api.example.com", qtype)) == "NOERROR"
        yield shop


def granted_addresses(shop: Shop) -> set[str]:
    """The addresses in the grant sets, as nft lists them."""
    sets = re.findall(r"set grant\S+ \{.*?\n\t\}", shop.grants(), re.DOTALL)
    return set(re.findall(r"[{,]\s*([0-9a-f:.]{4,}) ", "".join(each.partition("elements")[2] for each in sets)))


def start_again(shop: Shop) -> None:
    """Start the daemon once more; the last life's heartbeat may still be there, so its own word is waited for."""
    lives = shop.daemon.log().count("ready: ")
    shop.daemon.start(wait=False)
    eventually(lambda: shop.daemon.log().count("ready: ") > lives, 30, what="another life")


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_restart(tmp_path: Path, wiring: str, end: str) -> None:
    """Between two lives names resolve, grants and connections hold, the rest is shut; the next takes grants over."""
    with granted(tmp_path, wiring) as shop, connect(shop.web, API4, ECHO) as tcp, connect(shop.web, API6, ECHO) as tcp6:
        children = shop.daemon.children()
        if end == "SIGTERM":
            assert shop.daemon.stop() == 0
        else:
            shop.daemon.kill()
        eventually(lambda: not any(Path(f"/proc/{child}").exists() for child in children), what="its child gone too")
        for server in SERVICES:
            for over_tcp in (False, True):
                assert addresses(ask(shop.web, "api.example.com", server=server, tcp=over_tcp)) == [API4]
        assert addresses(ask(shop.web, "later.example.com")) == ["203.0.113.50"]
        assert (dial(shop.web, API4), dial(shop.web, API6)) == ("open", "open")
        assert (dial(shop.web, "203.0.113.50"), dial(shop.web, "192.0.2.1")) == ("refused", "refused")
        assert dial(shop.free, "192.0.2.1") == "open"
        assert echoes(tcp)
        start_again(shop)
        assert "2 grants taken over" in shop.daemon.log()
        assert {API4, API6} <= granted_addresses(shop)
        assert (dial(shop.web, API4), dial(shop.web, API6)) == ("open", "open")
        assert echoes(tcp)
        assert echoes(tcp6)
        assert dial(shop.web, "203.0.113.50") == "refused"
        assert addresses(ask(shop.web, "later.example.com")) == ["203.0.113.50"]
        assert dial(shop.web, "203.0.113.50") == "open"
        assert rcode(ask(shop.web, "denied.cdn.example")) == "NXDOMAIN"


def test_no_packet_is_lost_by_a_restart(tmp_path: Path) -> None:
    """Connections to a granted address, new ones all the time, are open at the first SYN through stop and start."""
    with granted(tmp_path) as shop:
        before = shop.web.counters()
        over = threading.Event()
        outcomes: list[str] = []

        def dialling() -> None:
            while not over.is_set():
                outcomes.append(dial(shop.web, API4))

        thread = threading.Thread(target=dialling)
        thread.start()
        assert shop.daemon.stop() == 0
        start_again(shop)
        over.set()
        thread.join()
        after = shop.web.counters()
        assert set(outcomes) == {"open"}
        assert len(outcomes) > 50
        assert after["TcpExt.TCPSynRetrans"] == before["TcpExt.TCPSynRetrans"]


def test_what_changed_meanwhile(tmp_path: Path) -> None:
    """A policy that no longer allows a name is in force after the start, whatever the kernel still had."""
    with granted(tmp_path) as shop:
        assert shop.daemon.stop() == 0
        shop.daemon.put_policy("shop/web", FOR_WEB + NOTHING)
        assert dial(shop.web, API4) == "open"
        start_again(shop)
        assert dial(shop.web, API4) == "refused"
        assert granted_addresses(shop) == set()
        assert rcode(ask(shop.web, "api.example.com")) == "NXDOMAIN"


def test_hung(tmp_path: Path) -> None:
    """A process that hangs does not hold DNS hostage: its heartbeat lapses and queries pass on; then it goes on."""
    with granted(tmp_path) as shop:
        shop.daemon.signal(signal.SIGSTOP)
        try:
            shown = shop.web.run(["dig", "+short", "+tries=10", "+timeout=1", "later.example.com"], timeout=30).stdout
            assert "203.0.113.50" in shown
            assert dial(shop.web, API4) == "open"
            assert dial(shop.web, "192.0.2.1") == "refused"
        finally:
            shop.daemon.signal(signal.SIGCONT)
        eventually(lambda: rcode(ask(shop.web, "denied.cdn.example")) == "NXDOMAIN", what="interception again")


def test_when_down_block(tmp_path: Path) -> None:
    """`when_down: Block`: while nobody filters, nothing resolves; what is granted stays open."""
    with granted(tmp_path, when_down="Block") as shop:
        assert addresses(ask(shop.web, "later.example.com")) == ["203.0.113.50"]
        assert shop.daemon.stop() == 0
        shop.node.dns.forget()
        assert dial(shop.web, SERVICES[0], 53) == "refused"
        shown = shop.web.run(["dig", "+tries=1", "+timeout=2", "late.example.com"], timeout=20)
        assert shown.returncode != 0
        assert shop.node.dns.names() == []
        assert dial(shop.web, API4) == "open"


def traces(node: Node) -> dict[str, str]:
    """What the kernel has of rules, tables and routes."""
    commands = {
        "tables": ["nft", "list", "tables"],
        "rules": ["ip", "rule"],
        "rules6": ["ip", "-6", "rule"],
        "routes": ["ip", "route", "show", "table", "20053"],
        "routes6": ["ip", "-6", "route", "show", "table", "20053"],
    }
    return {what: node.run(command).stdout for what, command in commands.items()}


def test_cleanup(tmp_path: Path) -> None:
    """`egressd cleanup` leaves no table, rule or route; it may be said twice; and a foreign table is not touched."""
    with Node("p2p") as empty:
        nothing = traces(empty)
    with granted(tmp_path) as shop:
        shop.node.run(["nft", "add table inet somebody-elses"], check=True)
        assert shop.daemon.stop() == 0
        assert "table inet egressd" in traces(shop.node)["tables"]
        config = str(shop.daemon.folder / "egressd.yaml")
        for _ in range(2):
            shop.node.run([sys.executable, "-m", "egressd", "cleanup", "--config", config], check=True)
            assert traces(shop.node) == {**nothing, "tables": "table inet somebody-elses\n"}
        assert dial(shop.web, "192.0.2.1") == "open"
        assert addresses(ask(shop.web, "later.example.com")) == ["203.0.113.50"]


def ownerless(listed: str) -> str:
    """The table without its owner, with whom, here nft, it would end."""
    return re.sub(r" # progname .*|\tflags owner.*", "", listed)


def test_nft_prints_and_reloads_all(tmp_path: Path) -> None:
    """nft prints the running table with names a person can read, and takes back what it printed."""
    with granted(tmp_path) as shop:
        listed = ownerless(shop.grants())
        for words in ('comment "shop/web-0"', 'comment "api.example.com"', 'comment "shop/web"', "chain egress"):
            assert words in listed
        with Node("p2p") as empty:
            empty.run(["nft", "-f", "-"], stdin=listed, check=True)
            terse = ["nft", "-t", "list", "table", "inet", "egressd"]  # without elements: some end while we look
            ours, again = (where.run(terse, check=True).stdout for where in (shop.node, empty))
        assert again.split() == ownerless(ours).split()
