"""Ordinary programs with their own resolv.conf, on both wirings: what they look up, reach, and are refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e.shop import API4, API6, FOR_WEB, Shop, addresses, ask, dial, error_of, open_shop, raw, rcode, settled
from egressd.lab import SERVICES, WIRINGS, Node

RULES = "allow:\n- to: [api.example.com]\n  ports: [80/TCP]\n"

ASYNCIO_CLIENT = """
import asyncio, sys
async def main():
    reader, writer = await asyncio.open_connection(sys.argv[1], 80)
    writer.write(b"GET / HTTP/1.1\\r\\nHost: " + sys.argv[1].encode() + b"\\r\\n\\r\\n")
    await reader.readuntil(b"\\r\\n\\r\\n")
    print((await reader.readline()).decode(), end="")
asyncio.run(main())
"""


@pytest.fixture(scope="module", params=WIRINGS)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A running node of each wiring; `web` may reach api.example.com on port 80."""
    with open_shop(tmp_path_factory.mktemp("shop"), wiring=request.param) as made:
        made.policy("shop/web", RULES)
        yield made


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="udp"),
        pytest.param(["+tcp"], id="tcp"),
        pytest.param(["+bufsize=4096"], id="bufsize"),
        pytest.param(["+noedns"], id="noedns"),
        pytest.param(["+cookie=0123456789abcdef"], id="cookie"),
        pytest.param(["+dnssec"], id="dnssec"),
        pytest.param(["+cd", "+adflag"], id="flags"),
        pytest.param(["+nsid", "+subnet=192.0.2.0/24"], id="options"),
        pytest.param([f"@{SERVICES[1]}"], id="udp6"),
        pytest.param([f"@{SERVICES[1]}", "+tcp"], id="tcp6"),
    ],
)
def test_dig(shop: Shop, options: list[str]) -> None:
    """dig gets the address it asked for, whatever it puts into its question, and it is open at once."""
    shown = shop.web.run(["dig", *options, "+tries=1", "api.example.com"], check=True).stdout
    assert "status: NOERROR" in shown
    assert f"\t{API4}\n" in shown
    assert ";; Warning" not in shown
    assert dial(shop.web, API4) == "open"


@pytest.mark.parametrize("server", SERVICES)
@pytest.mark.parametrize("tcp", [False, True])
def test_transports(shop: Shop, server: str, *, tcp: bool) -> None:
    """UDP and TCP, IPv4 and IPv6: the answer comes from the server and port asked, and what it names is open."""
    assert addresses(ask(shop.web, "api.example.com", server=server, tcp=tcp)) == [API4]
    assert addresses(ask(shop.web, "api.example.com", "AAAA", server=server, tcp=tcp)) == [API6]
    assert (dial(shop.web, API4), dial(shop.web, API6)) == ("open", "open")
    record = shop.dns_record(shop.web, "api.example.com", verdict="allowed", granted=[API6])
    assert record["query"]["server"] in SERVICES


@pytest.mark.parametrize("server", SERVICES)
@pytest.mark.parametrize("tcp", [False, True])
def test_denied_name(shop: Shop, server: str, *, tcp: bool) -> None:
    """A name that no rule allows does not exist, says why, and nothing of it leaves the node."""
    name = f"denied-{'tcp' if tcp else 'udp'}{len(server)}.cdn.example"
    answer = ask(shop.web, name, server=server, tcp=tcp)
    assert rcode(answer) == "NXDOMAIN"
    assert error_of(answer) == (17, f"egressd: no rule of shop/web allows {name}")
    assert name not in shop.node.dns.names()
    assert shop.dns_record(shop.web, name)["reason"] == "no-rule"


def test_denial_without_edns(shop: Shop) -> None:
    """Who asks without EDNS is denied without EDNS."""
    answer = ask(shop.web, "denied.cdn.example", edns=False)
    assert (rcode(answer), answer.edns) == ("NXDOMAIN", -1)


def test_denials_are_quick(shop: Shop) -> None:
    """The median denial takes the daemon a small part of a second (it is about a tenth of a millisecond)."""
    for number in range(50):
        assert rcode(ask(shop.web, f"quick-{number}.cdn.example")) == "NXDOMAIN"
    shop.dns_record(shop.web, "quick-49.cdn.example")
    records = [r for r in shop.daemon.records("dns") if r["query"].get("name", "").startswith("quick-")]
    taken = sorted(record["latency_us"] for record in records)
    assert len(taken) == 50
    assert taken[25] < 20_000


def test_glibc(shop: Shop) -> None:
    """glibc resolves both families with the pod's own search list, and both are open."""
    found = shop.web.run(["getent", "ahosts", "api.example.com"], check=True).stdout
    assert {line.split()[0] for line in found.splitlines()} == {API4, API6}
    assert shop.web.run(["getent", "ahosts", "denied.cdn.example"]).returncode == 2
    assert (dial(shop.web, API4), dial(shop.web, API6)) == ("open", "open")


def test_musl(shop: Shop, musl_client: Path) -> None:
    """musl, which asks all at once and takes REFUSED for a lost packet, resolves and is denied without waiting."""
    found = shop.web.run([musl_client, "api.example.com"], check=True).stdout.split()
    assert set(found) == {API4, API6}
    denied = shop.web.run([musl_client, "denied.cdn.example"], timeout=4)
    assert (denied.returncode, denied.stdout) == (1, "")


@pytest.mark.parametrize(("option", "address"), [("-4", API4), ("-6", API6)])
def test_curl(shop: Shop, option: str, address: str) -> None:
    """curl reaches the name over each family, from the pod's own address."""
    source = shop.web.v4 if option == "-4" else shop.web.v6
    shown = shop.web.run(["curl", "-sS", "-m10", option, "http://api.example.com/"], check=True).stdout
    assert shown == f"api.example.com is {address} port 80, you are {source}\n"


def test_asyncio(shop: Shop) -> None:
    """Python's asyncio resolves and connects in one go."""
    shown = shop.web.run([sys.executable, "-c", ASYNCIO_CLIENT, "api.example.com"], check=True).stdout
    assert shown.startswith("api.example.com is ")


def test_a_resolver_over_ipv6(shop: Shop) -> None:
    """A pod whose resolv.conf names the IPv6 address of the service resolves and connects alike."""
    pod = shop.node.add_pod("shop/six-0", labels={"app": "web"}, resolver=SERVICES[1])
    shop.daemon.put_pods()
    shown = pod.run(["curl", "-sS", "-m10", "-6", "http://api.example.com/"], check=True).stdout
    assert shown == f"api.example.com is {API6} port 80, you are {pod.v6}\n"


def test_search_list(shop: Shop) -> None:
    """The pod's settings are untouched; what only its search list makes up never leaves the node and is marked."""
    assert shop.web.run(["cat", "/etc/resolv.conf"]).stdout.endswith(
        "search shop.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
    )
    noise = "api.example.com.shop.svc.cluster.local"
    shop.node.dns.forget()
    shop.web.run(["getent", "ahostsv4", "api.example.com"], check=True)
    assert noise not in shop.node.dns.names()
    assert shop.dns_record(shop.web, noise)["search"] is True


def test_mixed_case(shop: Shop) -> None:
    """A question in mixed case (0x20) matches, and comes back in the very case it was asked in."""
    answer = raw(shop.web, b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x03aPi\x07exAMPle\x03CoM\0\0\x01\0\x01")
    assert answer[:2] == b"\x12\x34"
    assert b"\x03aPi\x07exAMPle\x03CoM\0\0\x01\0\x01" in answer


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::66"])
def test_hard_coded_address(shop: Shop, address: str) -> None:
    """A hard-coded address is refused at once, never reached, and told."""
    assert dial(shop.web, address) == "refused"
    assert shop.node.internet.reached(address) == []
    record = shop.flow_record(shop.web, address)
    assert (record["verdict"], record["reason"], record["destination"]["names"]) == ("denied", "no-rule", [])


def test_a_pod_without_a_policy(shop: Shop) -> None:
    """A pod that no policy selects resolves and reaches what it likes, and its queries are told all the same."""
    assert addresses(ask(shop.free, "api.example.com")) == [API4]
    assert dial(shop.free, "192.0.2.1") == "open"
    assert shop.dns_record(shop.free, "api.example.com")["reason"] == "unselected"


def test_behind_kube_proxy(kube_proxy_node: Node, tmp_path: Path) -> None:
    """Destination NAT of the DNS service, as kube-proxy does it, does not get in the way of any transport."""
    with settled(kube_proxy_node, tmp_path) as shop:
        assert addresses(ask(shop.web, "api.example.com")) == [API4]  # by NAT alone: nobody intercepts yet
        shop.daemon.put_policy("shop/web", FOR_WEB + RULES)
        shop.daemon.start()
        for server in SERVICES:
            for tcp in (False, True):
                assert addresses(ask(shop.web, "api.example.com", server=server, tcp=tcp)) == [API4]
                assert rcode(ask(shop.web, "denied.cdn.example", server=server, tcp=tcp)) == "NXDOMAIN"
        assert "denied.cdn.example" not in shop.node.dns.names()
        assert dial(shop.web, API4) == "open"
        assert shop.web.run(["curl", "-sS", "-m10", "-4", "http://api.example.com/"]).returncode == 0
        assert shop.daemon.stop() == 0
        assert addresses(ask(shop.web, "api.example.com", tcp=True)) == [API4]  # by NAT again
