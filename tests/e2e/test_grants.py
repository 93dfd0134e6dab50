"""Who may use what an answer opened, for how long, and what happens when it cannot be opened."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from e2e.shop import (
    API4,
    API6,
    ECHO,
    FOR_OTHER,
    NOTHING,
    Shop,
    addresses,
    ask,
    connect,
    dial,
    echoes,
    error_of,
    open_shop,
    rcode,
    send_udp,
)
from egressd.lab import WIRINGS, eventually, pool

OPEN = {"firewall": {"owner": False}}
"""Settings that let a test damage the table while the daemon runs."""

RULES = """
allow:
- to: [api.example.com]
  ports: [80/TCP]
- to: ["*.wild.example", many.example, echo.example]
- to: [198.51.100.7, 198.51.100.64/26]
  ports: [7/UDP, 8000-8100/TCP]
"""


@pytest.fixture(scope="module", params=WIRINGS)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A running node of each wiring with a policy for `web` and one for `other`."""
    with open_shop(tmp_path_factory.mktemp("shop"), wiring=request.param) as made:
        made.policy("shop/web", RULES)
        made.policy("shop/other", 'allow:\n- to: ["*.elsewhere.example"]\n', FOR_OTHER)
        yield made


def test_another_pods_grant(shop: Shop) -> None:
    """What one pod's answer opened stays shut for a pod of another identity, and its refusal names the name."""
    assert addresses(ask(shop.web, "api.example.com")) == [API4]
    assert dial(shop.web, API4) == "open"
    assert dial(shop.other, API4) == "refused"
    record = shop.flow_record(shop.other, API4)
    assert (record["verdict"], record["destination"]["names"]) == ("denied", ["api.example.com"])


def test_ports(shop: Shop) -> None:
    """A grant opens the ports of the rule that matched and no other port or protocol."""
    ask(shop.web, "api.example.com", "AAAA")
    assert (dial(shop.web, API6, 80), dial(shop.web, API6, ECHO), send_udp(shop.web, API6)) == (
        "open",
        "refused",
        "refused",
    )


def test_a_name_without_ports_opens_all(shop: Shop) -> None:
    """A rule without ports opens every port of every protocol, ICMP included."""
    shop.node.dns.zone.add("echo.example", "A", "203.0.113.77")
    shop.node.dns.zone.add("echo.example", "AAAA", "2001:db8::77")
    for qtype, address, ping in (("A", "203.0.113.77", "-4"), ("AAAA", "2001:db8::77", "-6")):
        assert addresses(ask(shop.web, "echo.example", qtype)) == [address]
        assert (dial(shop.web, address, ECHO), send_udp(shop.web, address)) == ("open", "open")
        assert shop.web.run(["ping", ping, "-c1", "-W3", address]).returncode == 0
    assert shop.web.run(["ping", "-c1", "-W1", "203.0.113.78"]).returncode != 0


def test_address_rules(shop: Shop) -> None:
    """Addresses and blocks in a rule are open without any question, for their ports alone."""
    assert send_udp(shop.web, "198.51.100.7") == "open"
    assert send_udp(shop.web, "198.51.100.100") == "open"
    assert dial(shop.web, "198.51.100.100") == "refused"
    assert send_udp(shop.web, "198.51.100.8") == "refused"


def test_120_addresses(shop: Shop) -> None:
    """All of 120 addresses of one answer, more than fit a datagram, are open."""
    many = pool("198.51.100.0/24", 60, start=100) + pool("192.0.2.0/24", 60, start=100)
    shop.node.dns.zone.add("many.example", "A", *many)
    shown = shop.web.run(["dig", "+short", "many.example"], check=True).stdout
    assert sorted(shown.split()) == sorted(many)
    assert {dial(shop.web, address) for address in many} == {"open"}
    assert dial(shop.web, "192.0.2.99") == "refused"


def test_three_names_under_one_wildcard(shop: Shop) -> None:
    """A wildcard opens each name below it at any depth, and not the name itself."""
    zone = shop.node.dns.zone
    names = {
        "a.wild.example": "203.0.113.101",
        "b.wild.example": "203.0.113.102",
        "deep.down.wild.example": "203.0.113.103",
    }
    for name, address in names.items():
        zone.add(name, "A", address)
        assert addresses(ask(shop.web, name)) == [address]
    assert {dial(shop.web, address) for address in names.values()} == {"open"}
    zone.add("wild.example", "A", "203.0.113.104")
    assert rcode(ask(shop.web, "wild.example")) == "NXDOMAIN"
    assert dial(shop.web, "203.0.113.104") == "refused"


def test_a_chain_of_cnames(shop: Shop) -> None:
    """Names on the way to an allowed name need not be listed; what an answer says beside the chain opens nothing."""
    zone = shop.node.dns.zone
    zone.add("chain.wild.example", "CNAME", "one.provider.example")
    zone.add("one.provider.example", "CNAME", "two.provider.example")
    zone.add("two.provider.example", "A", "203.0.113.110")
    assert addresses(ask(shop.web, "chain.wild.example")) == ["203.0.113.110"]
    assert dial(shop.web, "203.0.113.110") == "open"
    assert shop.dns_record(shop.web, "chain.wild.example")["response"]["cnames"] == [
        "one.provider.example",
        "two.provider.example",
    ]
    assert rcode(ask(shop.web, "two.provider.example")) == "NXDOMAIN"


@pytest.mark.parametrize("address", ["169.254.169.254", "192.168.0.1", "172.16.0.1", "fd00:dead::1", "10.244.0.53"])
def test_rebinding(shop: Shop, address: str) -> None:
    """An allowed name that leads to the metadata server or into private ranges is denied, and they stay shut."""
    name = f"rebind-{address.replace(':', '-').replace('.', '-')}.wild.example"
    qtype = "AAAA" if ":" in address else "A"
    shop.node.dns.zone.add(name, qtype, address)
    answer = ask(shop.web, name, qtype)
    assert (rcode(answer), error_of(answer)[0]) == ("NXDOMAIN", 17)
    assert shop.dns_record(shop.web, name)["reason"] == "rebinding"
    if address != "10.244.0.53":  # in the cluster and reachable as such
        assert dial(shop.web, address) == "refused"


def test_rebinding_in_part(shop: Shop) -> None:
    """Where only some addresses are not to be had, these alone are withheld from answer and grant."""
    shop.node.dns.zone.add("mixed.wild.example", "A", "203.0.113.120", "169.254.169.254")
    assert addresses(ask(shop.web, "mixed.wild.example")) == ["203.0.113.120"]
    assert (dial(shop.web, "203.0.113.120"), dial(shop.web, "169.254.169.254")) == ("open", "refused")


@pytest.mark.parametrize(("qtype", "address"), [("A", "203.0.113.30"), ("AAAA", "2001:db8::30")])
def test_end_of_ttl(tmp_path: Path, qtype: str, address: str) -> None:
    """When a grant has ended new connections are refused, the established one goes on, and asking opens it again."""
    with open_shop(tmp_path, {"grants": {"min": "1s", "grace": "1s"}}) as shop:
        shop.node.dns.zone.add("short.example.com", qtype, address, ttl=1)
        shop.policy("shop/web", 'allow:\n- to: ["*.example.com"]\n')
        assert addresses(ask(shop.web, "short.example.com", qtype)) == [address]
        begun = time.monotonic()
        with connect(shop.web, address, ECHO) as established:
            assert echoes(established)
            eventually(lambda: dial(shop.web, address, ECHO) == "refused", what="the end of the grant")
            assert time.monotonic() - begun > 1.5
            assert echoes(established)
            assert shop.flow_record(shop.web, address, ECHO)["destination"]["names"] == ["short.example.com"]
            assert addresses(ask(shop.web, "short.example.com", qtype)) == [address]
            assert dial(shop.web, address, ECHO) == "open"
            assert echoes(established)


def shrink(shop: Shop) -> str:
    """nft commands that make `web`'s set of grants too small for an answer of eight addresses."""
    number = shop.subject(shop.web)
    chain, grants = f"inet egressd subject-{number}", f"inet egressd grant4-{number}"
    return f"""
        flush chain {chain}
        delete set {grants}
        add set {grants} {{ typeof ip daddr . meta l4proto . th dport; flags timeout; size 3; }}
        add rule {chain} ip daddr . meta l4proto . th dport @grant4-{number} accept
        add rule {chain} goto denied
    """


def lose(shop: Shop) -> str:
    """nft commands that take `web`'s set of grants away."""
    number = shop.subject(shop.web)
    return f"flush chain inet egressd subject-{number}\ndelete set inet egressd grant4-{number}\n"


@pytest.mark.parametrize("damage", [shrink, lose])
def test_a_kernel_that_refuses(tmp_path: Path, damage: Callable[[Shop], str]) -> None:
    """An answer that the kernel does not take whole is SERVFAIL, never an unusable address; the table mends itself."""
    with open_shop(tmp_path, OPEN) as shop:
        shop.policy("shop/web", 'allow:\n- to: ["*.example.com"]\n  ports: [80/TCP]\n')
        refused = 0
        for attempt in range(20):
            eight = pool("198.51.100.0/24", 8, start=8 * attempt + 1)
            shop.node.dns.zone.add(f"eight{attempt}.example.com", "A", *eight)
            eventually(lambda: not shop.node.run(["nft", "-f", "-"], stdin=damage(shop)).returncode, what="damage")
            answer = ask(shop.web, f"eight{attempt}.example.com")
            if rcode(answer) == "NOERROR":  # mended already
                assert {dial(shop.web, address) for address in addresses(answer)} == {"open"}
                continue
            assert (rcode(answer), addresses(answer)) == ("SERVFAIL", [])
            assert "the kernel did not take the rule" in error_of(answer)[1]
            refused += 1
            if refused == 3:
                break
        assert refused
        eventually(lambda: dial(shop.web, "192.0.2.1") == "refused", what="the table mended")
        eventually(lambda: rcode(ask(shop.web, "eight0.example.com")) == "NOERROR", what="the answer")
        eventually(lambda: dial(shop.web, "198.51.100.8") == "open", what="its grants, written anew")


@pytest.mark.parametrize("owner", [True, False], ids=["owned", "open"])
def test_a_lost_table_comes_back(tmp_path: Path, *, owner: bool) -> None:
    """`nft flush ruleset` does not take our table, or not for long: it is written anew, live grants included."""
    with open_shop(tmp_path, {"firewall": {"owner": owner}}) as shop:
        shop.policy("shop/web", 'allow:\n- to: ["*.example.com"]\n  ports: [80/TCP]\n')
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
        shop.node.run(["nft", "flush", "ruleset"], check=True)
        eventually(lambda: dial(shop.web, "192.0.2.1") == "refused", what="the table written anew")
        eventually(lambda: dial(shop.web, API4) == "open", what="the grant written anew")
        eventually(lambda: rcode(ask(shop.web, "denied.cdn.example")) == "NXDOMAIN", what="interception")
        shop.node.dns.forget()
        assert rcode(ask(shop.web, "later.cdn.example")) == "NXDOMAIN"
        assert shop.node.dns.names() == []


def test_only_allowed_names_of_other_policies(shop: Shop) -> None:
    """Each pod is judged by the policies that select it."""
    shop.node.dns.zone.add("x.elsewhere.example", "A", "203.0.113.130")
    assert rcode(ask(shop.web, "x.elsewhere.example")) == "NXDOMAIN"
    assert addresses(ask(shop.other, "x.elsewhere.example")) == ["203.0.113.130"]
    assert rcode(ask(shop.other, "api.example.com")) == "NXDOMAIN"


def test_a_policy_that_allows_next_to_nothing(tmp_path: Path) -> None:
    """To be selected is to be closed: everything but what is named is refused."""
    with open_shop(tmp_path) as shop:
        shop.policy("shop/web", NOTHING)
        assert rcode(ask(shop.web, "api.example.com")) == "NXDOMAIN"
        assert (dial(shop.web, API4), send_udp(shop.web, API4)) == ("refused", "refused")
        assert dial(shop.other, API4) == "open"


@pytest.mark.parametrize("family", ["v4", "v6"])
def test_a_live_connection_keeps_its_grant(tmp_path: Path, family: str) -> None:
    """Past `per_name` the oldest addresses of a name leave, but never one that a pod has a connection to."""
    qtype, prefix = ("A", "203.0.113.") if family == "v4" else ("AAAA", "2001:db8::1:")
    rotation = [f"{prefix}{number}" for number in range(1, 51)]
    with open_shop(tmp_path, {"grants": {"per_name": 8}, "dns": {"cache": {"size": 0}}}) as shop:
        shop.policy("shop/web", "allow:\n- to: [turning.example.com]\n  ports: [7/TCP]\n")
        zone = shop.node.dns.zone

        def answer(address: str) -> None:
            zone.add("turning.example.com", qtype, address, ttl=5)
            assert addresses(ask(shop.web, "turning.example.com", qtype)) == [address]

        def granted() -> list[str]:
            found = re.findall(rf"({re.escape(prefix)}\d+) \. tcp \. 7 ", shop.grants())
            return sorted(found, key=rotation.index)

        answer(rotation[0])
        with connect(shop.web, rotation[0], ECHO) as first:
            assert echoes(first)
            for address in rotation[1:]:
                answer(address)
                assert rotation[0] in granted()
            eventually(lambda: granted() == [rotation[0], *rotation[-7:]], what="a name with eight addresses")
            assert dial(shop.web, rotation[0], ECHO) == "open"
            assert dial(shop.web, rotation[-7], ECHO) == "open"
            assert {dial(shop.web, address, ECHO) for address in rotation[1:-7:10]} == {"refused"}
            assert echoes(first)
