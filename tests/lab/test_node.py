"""A node of the lab is wired as a CNI would: what pods see, whom they reach, and how a packet looks on the node."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from egressd.lab import POD_CIDRS, SERVICES, Node


@pytest.fixture(autouse=True)
def _names(request: pytest.FixtureRequest) -> None:
    for fixture in ("node", "kube_proxy_node", "node_bridge"):
        if fixture in request.fixturenames:
            node = request.getfixturevalue(fixture)
            node.dns.zone.add("api.example.com", "A", "203.0.113.10")
            node.dns.zone.add("api.example.com", "AAAA", "2001:db8::10")
            node.internet.serve_http(80)
            node.internet.serve_udp_echo(7)
            node.internet.serve_tcp_echo(7)


@pytest.mark.parametrize(("option", "address"), [("-4", "203.0.113.10"), ("-6", "2001:db8::10")])
def test_curl_by_name(node: Node, option: str, address: str) -> None:
    """curl, unchanged, resolves with the pod's resolv.conf and is seen with the pod's own address."""
    pod = node.add_pod("shop/web-0")
    result = pod.run(["curl", "-sS", option, "http://api.example.com/"], check=True)
    source = pod.v4 if option == "-4" else pod.v6
    assert result.stdout == f"api.example.com is {address} port 80, you are {source}\n"
    assert [contact.source for contact in node.internet.reached(address, 80)] == [source]
    assert node.dns.names()[0] == "api.example.com.shop.svc.cluster.local"  # ndots:5 and the search list


def test_getent_and_musl(node: Node, musl_client: Path) -> None:
    """glibc and musl both resolve with the pod's resolv.conf."""
    pod = node.add_pod("shop/web-0")
    assert pod.run(["getent", "ahostsv4", "api.example.com"]).stdout.startswith("203.0.113.10")
    assert set(pod.run([musl_client, "api.example.com"]).stdout.split()) == {"203.0.113.10", "2001:db8::10"}
    assert pod.run([musl_client, "missing.example.com"]).returncode == 1


def test_pods_know_themselves(node: Node) -> None:
    """Host name, hosts file and address are the pod's, as kubelet writes them."""
    pod = node.add_pod("shop/web-0")
    assert pod.run(["hostname"]).stdout == "web-0\n"
    assert pod.v4 in pod.run(["getent", "ahostsv4", "web-0"]).stdout
    assert pod.manifest()["status"]["podIPs"] == [{"ip": pod.v4}, {"ip": pod.v6}]


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_pods_reach_each_other(node: Node, family: socket.AddressFamily) -> None:
    """Pods talk to each other directly, in both families."""
    first, second = node.add_pod("shop/web-0"), node.add_pod("shop/web-1")
    address = second.v4 if family == socket.AF_INET else second.v6
    with second.socket(family, socket.SOCK_DGRAM) as receiver, first.socket(family, socket.SOCK_DGRAM) as sender:
        receiver.settimeout(10)
        receiver.bind((address, 5000))
        sender.sendto(b"hello", (address, 5000))
        data, peer = receiver.recvfrom(100)
    assert (data, peer[0]) == (b"hello", first.v4 if family == socket.AF_INET else first.v6)


@pytest.mark.parametrize(
    "address",
    ["198.51.100.200", "192.0.2.9", "2001:db8:5::7", "169.254.169.254", "172.16.3.4", "192.168.7.7", "10.0.0.9"],
)
def test_internet_owns_its_blocks(node: Node, address: str) -> None:
    """Every address of the internet answers, over UDP and TCP, from the address that was asked."""
    pod = node.add_pod("web-0")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pod.socket(family, socket.SOCK_DGRAM) as udp, pod.socket(family) as tcp:
        for opened in (udp, tcp):
            opened.settimeout(10)
            opened.connect((address, 7))
            opened.send(b"echo")
            assert opened.recv(100) == b"echo"
    assert {contact.protocol for contact in node.internet.reached(address, 7)} == {"udp", "tcp"}


def test_closed_ports_refuse(node: Node) -> None:
    """Nobody listens where no server was asked for."""
    with node.add_pod("web-0").socket() as tcp:
        tcp.settimeout(10)
        with pytest.raises(ConnectionRefusedError):
            tcp.connect(("203.0.113.1", 9999))


def test_kube_proxy(kube_proxy_node: Node) -> None:
    """Behind destination NAT the DNS Service answers from its own address, over UDP, TCP and IPv6."""
    pod = kube_proxy_node.add_pod("shop/web-0")
    for extra in ([], ["+tcp"], [f"@{SERVICES[1]}"]):
        assert pod.run(["dig", "+short", *extra, "api.example.com"]).stdout == "203.0.113.10\n"
    assert {query.server for query in kube_proxy_node.dns.seen} == {"10.244.0.53", "fd00:10:244::53"}


def test_wiring(node: Node) -> None:
    """On the node, pods look as their CNI would have it; `nft` sees a pod's own address before NAT."""
    pod = node.add_pod("shop/web-0")
    routes = node.run(["ip", "route"]).stdout
    if node.wiring == "p2p":
        assert f"{pod.v4} dev {pod.interface}" in routes
        assert "169.254.1.1" in pod.run(["ip", "route", "show", "default"]).stdout
    else:
        assert "10.244.1.0/24 dev cni0" in routes
        assert "10.244.1.1" in pod.run(["ip", "route", "show", "default"]).stdout
    rule = f"ip saddr {POD_CIDRS[0]} counter"
    rules = f"table inet t {{ chain c {{ type filter hook prerouting priority -150; {rule}; }}; }}"
    node.run(["nft", "-f", "-"], stdin=rules, check=True)
    pod.run(["curl", "-sS", "http://203.0.113.10/"], check=True)
    assert "packets 0" not in node.run(["nft", "list", "chain", "inet", "t", "c"]).stdout


def test_bridge_passes_ip_hooks(node_bridge: Node) -> None:
    """With br_netfilter, packets between two pods of one bridge pass the node's IP hooks."""
    assert node_bridge.bridge_netfilter
    first, second = node_bridge.add_pod("web-0"), node_bridge.add_pod("web-1")
    rules = "table ip t { chain c { type filter hook prerouting priority -150; icmp type echo-request drop; }; }"
    assert first.run(["ping", "-c1", "-W1", second.v4]).returncode == 0
    node_bridge.run(["nft", "-f", "-"], stdin=rules, check=True)
    assert first.run(["ping", "-c1", "-W1", second.v4]).returncode == 1


def test_pods_come_and_go(node: Node) -> None:
    """A removed pod's address can be given to another pod, which is reached at once."""
    old = node.add_pod("shop/web-0")
    old.run(["curl", "-sS", "http://203.0.113.10/"], check=True)
    node.remove_pod(old)
    assert not node.pods
    new = node.add_pod("shop/db-0", index=old.index)
    assert new.v4 == old.v4
    new.run(["curl", "-sS", "http://203.0.113.10/"], check=True)


def test_unknown_wiring() -> None:
    """A wiring that does not exist is refused by name."""
    with pytest.raises(ValueError, match="'star'"):
        Node("star")
