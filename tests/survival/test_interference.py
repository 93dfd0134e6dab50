"""Other hands: what another program does to table, rules and routes is put right within a second, whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from e2e.shop import API4, ECHO, Shop, addresses, ask, connect, dial, echoes

from egressd.lab import eventually
from survival.stand import OPEN_TO_NFT, allowed, closed, mended, stand

TABLE = "inet egressd"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A daemon on a kernel that lets other programs at its table."""
    with stand(tmp_path_factory.mktemp("open"), OPEN_TO_NFT) as made:
        yield made


@pytest.fixture
def shop(running: Shop) -> Shop:
    """The same, with an empty log."""
    running.daemon.log_file.write_text("")
    return running


DAMAGE = {
    "the whole ruleset": "flush ruleset",
    "the table": f"delete table {TABLE}",
    "rules of the egress chain": f"flush chain {TABLE} egress",
    "a base chain": f"delete chain {TABLE} egress",
    "every pod": f"flush map {TABLE} pods4",
    "the heartbeat": f"flush set {TABLE} heartbeat",
    "trusted resolvers": f"flush set {TABLE} resolvers4",
    "a rule before all others": f"insert rule {TABLE} egress accept",
}


@pytest.mark.parametrize("command", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_mended_within_a_second(shop: Shop, command: str) -> None:
    """The table is written anew with live grants; the log says so; the metric's counter is told."""
    with connect(shop.web, API4, ECHO) as live:
        shop.node.run(["nft", command], check=True)
        mended(shop)
        assert closed(shop)
        assert dial(shop.web, API4) == "open"
        assert echoes(live)
    assert allowed(shop)
    assert shop.daemon.process is not None
    assert shop.daemon.process.poll() is None


def test_what_slipped_through_is_cut(shop: Shop) -> None:
    """A connection opened while the table was gone does not live on after the repair."""
    shop.node.run(["nft", "flush", "ruleset"], check=True)
    try:
        slipped = connect(shop.web, "192.0.2.1", ECHO, timeout=0.3)
    except OSError:
        return  # mended before it could
    mended(shop)
    eventually(lambda: not echoes(slipped), what="the connection cut")
    slipped.close()


def test_another_table_is_nobodys_business(shop: Shop) -> None:
    """What other tools do in tables of their own causes no repair."""
    shop.node.run(["nft", "add table inet other; add chain inet other c; delete table inet other"], check=True)
    with pytest.raises(TimeoutError):
        mended(shop, within=1.0)


ROUTING = {
    "a rule": ["ip", "rule", "del", "pref", "64", "to", "10.96.0.10"],
    "the route": ["ip", "route", "flush", "table", "20053"],
    "the IPv6 route": ["ip", "-6", "route", "flush", "table", "20053"],
}


@pytest.mark.parametrize("argv", ROUTING.values(), ids=ROUTING.keys())
def test_routing_is_put_back(shop: Shop, argv: list[str]) -> None:
    """A removed routing rule or route comes back within a second, and queries are filtered again."""
    before = routing(shop)
    shop.node.run(argv, check=True)
    mended(shop, "putting them back")
    eventually(lambda: routing(shop) == before, 1.0, what="rules and routes as before")
    assert addresses(ask(shop.web, "api.example.com")) == [API4]


def routing(shop: Shop) -> tuple[str, ...]:
    """Our rules and routes, as ip prints them."""
    commands = [["ip", family, kind, "show", "table", "20053"] for family in ("-4", "-6") for kind in ("rule", "route")]
    return tuple(shop.node.run(command).stdout for command in commands)


def test_flushed_conntrack(shop: Shop) -> None:
    """With the connection table flushed, what has a grant goes on, and what has none stays shut."""
    with connect(shop.web, API4, ECHO) as live:
        shop.node.run(["conntrack", "-F"], check=True)
        assert echoes(live)
    assert closed(shop)


def test_a_renamed_interface(shop: Shop) -> None:
    """No rule names a pod's interface, so that its name does not matter."""
    shop.node.run(["ip", "link", "set", shop.web.interface, "name", "renamed0"], check=True)
    assert allowed(shop)
    assert closed(shop)
    shop.node.run(["ip", "link", "set", "renamed0", "name", shop.web.interface], check=True)


def test_the_second_look(shop: Shop) -> None:
    """What the kernel reports to nobody, routes that go with their interface, is found by comparison."""
    shop.node.run(["ip", "link", "set", "lo", "down"], check=True)  # routes go without a word from the kernel
    shop.node.run(["ip", "link", "set", "lo", "up"], check=True)
    eventually(lambda: "local default" in routing(shop)[1], 8.0, what="the route back")
