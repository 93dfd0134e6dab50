"""What becomes of packets: every chain of the template between real pods and a real outside, IPv4 and IPv6."""

from __future__ import annotations

import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from kernel_node import (
    API4,
    API6,
    EMPTY,
    JOB4,
    JOB6,
    OTHER4,
    OTHER6,
    PODS,
    RESOLVER4,
    RESOLVER6,
    SERVICE4,
    SERVICE6,
    SETTINGS,
    WEB4,
    WEB6,
    KernelNode,
    Nflog,
    family,
    grant,
    interval,
    listing,
    packed,
    plan,
    port,
    world,
)

from egressd.kernel import Change, PodElement
from egressd.model import PortSpan


@pytest.fixture
def node() -> Iterator[KernelNode]:
    """A node with two pods, a stray one, and a world outside."""
    with KernelNode() as made:
        yield made


BOTH = pytest.mark.parametrize(("api", "other"), [(API4, OTHER4), (API6, OTHER6)], ids=["ipv4", "ipv6"])
REFUSED = r"No route to host|Permission denied"
"""What "administratively prohibited" becomes for IPv4 and for IPv6."""
RESOLVERS = pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6], ids=["ipv4", "ipv6"])


@BOTH
def test_without_a_rule_everything_is_refused_at_once(node: KernelNode, api: str, other: str) -> None:
    """TCP gets a reset, UDP and ping an ICMP error, so that programs fail and do not wait."""
    assert node.tcp(node.web, api) == "open"
    assert node.ping(node.web, api)
    node.install(world(EMPTY))
    assert node.tcp(node.web, api) == "refused"
    client = node.udp_client(node.web, api, 4433)
    client.send(b"hello")
    with pytest.raises(OSError, match=REFUSED) as error:
        client.recv(100)
    assert not isinstance(error.value, TimeoutError)
    assert not node.ping(node.web, api)


@BOTH
@pytest.mark.parametrize("span", [port(6, 443), None, PortSpan(6, 6, 400, 500)], ids=["port", "any", "range"])
def test_a_grant_opens_its_address_and_ports(node: KernelNode, api: str, other: str, span: PortSpan | None) -> None:
    """Each kind of grant set opens what it says, for the subject it was given to and for nobody else."""
    kernel = node.install(world(plan(), plan()))
    kernel.program([grant(1, api, span)])
    assert node.tcp(node.web, api, 443) == "open"
    assert node.tcp(node.web, other, 443) == "refused"
    assert node.tcp(node.web, api, 8050) == ("open" if span is None else "refused")
    assert node.tcp(node.job, api, 443) == "refused"
    assert node.ping(node.web, api) is (span is None)


@BOTH
def test_udp_flows_through_a_grant(node: KernelNode, api: str, other: str) -> None:
    """A datagram reaches the server, and the answer comes back."""
    kernel = node.install(world(plan()))
    kernel.program([grant(1, api, port(17, 4433))])
    server, client = node.udp_server(api, 4433), node.udp_client(node.web, api, 4433)
    client.send(b"question")
    data, peer = server.recvfrom(100)
    server.sendto(b"answer to " + data, peer)
    assert client.recv(100) == b"answer to question"


def test_the_end_of_a_grant_stops_new_connections_only(node: KernelNode) -> None:
    """When the lifetime is over the established connection goes on, and a new one is refused."""
    kernel = node.install(world(plan()))
    kernel.program([grant(1, API4, port(6, 443), ms=1_000)])
    client = node.dial(node.web, API4, 443)
    server, _ = node.servers[443].accept()
    node.keep(server)
    deadline = time.monotonic() + 30
    while node.tcp(node.web, API4, 443) == "open":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    client.sendall(b"still here")
    server.settimeout(5)
    assert server.recv(100) == b"still here"


@BOTH
def test_address_rules_allow_and_deny(node: KernelNode, api: str, other: str) -> None:
    """Allow rules open addresses and ports; a deny rule wins over them and over a grant."""
    prefix, last = (api, other) if ":" in api else ("198.51.100.0", "198.51.100.255")
    allow = (interval(prefix, last, port(6, 443)), interval(prefix, last, port(6, 8050)))
    kernel = node.install(world(plan(allow=allow, deny=(interval(api, api, port(6, 443)), interval(other)))))
    kernel.program([grant(1, api), grant(1, other)])
    assert node.tcp(node.web, api, 443) == "refused"
    assert node.tcp(node.web, api, 8050) == "open"
    assert node.tcp(node.web, other, 8050) == "refused"


def test_an_allow_rule_without_ports_opens_every_protocol(node: KernelNode) -> None:
    """Ping and any port pass where the rule names none."""
    node.install(world(plan(allow=(interval("198.51.100.0", "198.51.100.10"),))))
    assert node.ping(node.web, API4)
    assert node.tcp(node.web, API4, 444) == "open"
    assert node.tcp(node.web, OTHER4, 444) == "refused"


def test_an_icmp_rule_opens_ping_and_nothing_else(node: KernelNode) -> None:
    """Where a protocol has no ports, its whole range of them stands for it."""
    allow = (interval(API4, API4, PortSpan(1, 1, 0, 65535)), interval(API6, API6, PortSpan(58, 58, 0, 65535)))
    node.install(world(plan(allow=allow)))
    assert node.ping(node.web, API4)
    assert node.ping(node.web, API6)
    assert node.tcp(node.web, API4) == "refused"


def test_an_unselected_pod_is_let_through(node: KernelNode) -> None:
    """No policy selects the pod: everything is accepted."""
    pods = [PodElement(packed(WEB4), None, False, "shop/web-0"), PodElement(packed(WEB6), None, False, "shop/web-0")]
    node.install(Change(pods=pods))
    assert node.tcp(node.web, API4) == "open"
    assert node.tcp(node.web, API6) == "open"
    assert node.ping(node.web, OTHER4)


@BOTH
def test_a_pod_not_known_yet_is_dropped_not_refused(node: KernelNode, api: str, other: str) -> None:
    """Its first packets are dropped and reported; once it is known, the retried SYN goes through."""
    kernel = node.install(world(EMPTY))
    events = Nflog(node)
    assert node.tcp(node.stray, api, timeout=1.5) == "dropped"
    assert events.next() == "unidentified"
    with node.stray:
        client = node.keep(socket.socket(family(api), socket.SOCK_STREAM))
    client.setblocking(False)
    assert client.connect_ex((api, 443)) != 0
    address = client.getsockname()[0]
    kernel.apply(Change(pods=[PodElement(packed(address), None, False, "shop/late-0")]))
    _, connected, _ = select.select([], [client], [], 20)
    assert connected
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


def test_unknown_sources_may_be_told_by_their_interface(node: KernelNode) -> None:
    """With `pod_interfaces` whatever comes from a pod's interface and is no known pod is dropped."""
    settings = replace(SETTINGS, pod_cidrs=(), pod_interfaces=("pod-str*",))
    node.install(Change(), settings)
    assert node.tcp(node.stray, API4, timeout=1.5) == "dropped"
    assert node.tcp(node.stray, API6, timeout=1.5) == "dropped"
    assert node.tcp(node.web, API4) == "open"
    assert 'iifname "pod-str*" goto unidentified' in listing()


def test_another_pods_address_does_not_help(node: KernelNode) -> None:
    """A packet with a known pod's source from another interface than the way back is dropped."""
    kernel = node.install(world(plan(), EMPTY))
    kernel.program([grant(1, API4), grant(1, API6)])
    node.job.ip(f"address add {WEB4}/32 dev lo", f"address add {WEB6}/128 dev lo nodad")
    for api, source in ((API4, WEB4), (API6, WEB6)):
        server = node.udp_server(api, 4433)
        server.settimeout(0.5)
        node.udp_client(node.job, api, 4433, source).send(b"forged")
        with pytest.raises(TimeoutError):
            server.recv(100)
        node.udp_client(node.web, api, 4433).send(b"true")
        server.settimeout(5)
        assert server.recv(100) == b"true"


def test_audited_pods_are_reported_and_let_through(node: KernelNode) -> None:
    """Where only Audit policies select a pod, what they would deny costs an event and no packet."""
    node.install(world(plan(enforced=False, deny=(interval(OTHER4),))))
    events = Nflog(node)
    assert node.tcp(node.web, OTHER4) == "open"
    assert events.next() == "reported"
    assert node.tcp(node.web, API4) == "open"
    assert events.next() == "reported"


def test_a_report_rule_logs_and_the_judgement_goes_on(node: KernelNode) -> None:
    """What an Audit policy beside enforced ones would deny is reported, and allowed or denied by the others."""
    report = (interval(API4, OTHER4, port(6, 443)), interval(API6))
    kernel = node.install(world(plan(report=report)))
    kernel.program([grant(1, API4), grant(1, API6)])
    events = Nflog(node)
    assert node.tcp(node.web, API4) == "open"
    assert events.next() == "reported"
    assert node.tcp(node.web, API6, 444) == "open"
    assert events.next() == "reported"
    assert node.tcp(node.web, API4, 444) == "open"
    assert events.quiet()
    assert node.tcp(node.web, OTHER4) == "refused"


def test_denials_are_reported_once_a_flow(node: KernelNode) -> None:
    """Many refused packets of one kind make one event; another port, or a protocol without ports, makes its own."""
    node.install(world(EMPTY))
    events = Nflog(node)
    for _ in range(20):
        assert node.tcp(node.web, API4, 443) == "refused"
    assert events.next() == "denied"
    assert events.quiet()
    assert node.tcp(node.web, API4, 444) == "refused"
    assert events.next() == "denied"
    for _ in range(2):
        assert not node.ping(node.web, API4)
    assert events.next() == "denied"
    assert events.quiet()
    counted = re.search(rf"{WEB4} \. {API4} \. tcp \. 443 counter packets (\d+)", listing())
    assert counted is not None
    assert int(counted.group(1)) == 20
    assert f"{WEB4} . {API4} . icmp counter packets" in listing()


def test_without_reject_packets_are_dropped(node: KernelNode) -> None:
    """`firewall.reject: false` answers nothing."""
    settings = replace(SETTINGS, firewall=replace(SETTINGS.firewall, reject=False))
    node.install(world(EMPTY), settings)
    assert node.tcp(node.web, API4, timeout=1.5) == "dropped"


def test_the_cluster_and_the_node_are_open_by_default(node: KernelNode) -> None:
    """`in_cluster: Allow`: addresses of the cluster and of the node itself need no rule; a deny rule closes them."""
    node.install(world(plan(deny=(interval(SERVICE6),)), EMPTY))
    assert node.tcp(node.web, SERVICE4) == "open"
    assert node.tcp(node.web, SERVICE6) == "refused"
    assert node.tcp(node.job, SERVICE6) == "open"
    assert node.ping(node.web, "198.51.100.1")
    assert node.ping(node.web, "192.0.2.1")


def test_in_cluster_enforce_closes_both(node: KernelNode) -> None:
    """`in_cluster: Enforce`: destinations in the cluster and on the node are judged like any other."""
    node.install(world(EMPTY), replace(SETTINGS, in_cluster="Enforce"))
    assert node.tcp(node.web, SERVICE4) == "refused"
    assert not node.ping(node.web, "198.51.100.1")


@BOTH
def test_another_resolver_is_no_way_around(node: KernelNode, api: str, other: str) -> None:
    """Port 53 is closed even in the cluster, unless a rule opens it; every event of it is reported."""
    service = SERVICE6 if ":" in api else SERVICE4
    kernel = node.install(world(plan()))
    events = Nflog(node)
    assert node.tcp(node.web, service, 443) == "open"
    assert node.tcp(node.web, service, 53) == "refused"
    assert events.next() == "denied"
    client = node.udp_client(node.web, service, 53)
    client.send(b"query")
    with pytest.raises(OSError, match=REFUSED):
        client.recv(100)
    assert events.next() == "denied"
    kernel.program([grant(1, service, port(6, 53))])
    assert node.tcp(node.web, service, 53) == "open"


@RESOLVERS
def test_resolvers_are_reached_while_nobody_intercepts(node: KernelNode, resolver: str) -> None:
    """`when_down: Bypass` lets queries to the trusted servers pass; `Block` refuses them."""
    node.install(world(EMPTY))
    assert node.tcp(node.web, resolver, 53) == "open"
    assert node.tcp(node.stray, resolver, 53) == "open"
    node.install(world(EMPTY), replace(SETTINGS, dns=replace(SETTINGS.dns, when_down="Block")))
    assert node.tcp(node.web, resolver, 53) == "refused"


@RESOLVERS
def test_a_flow_of_before_resolves_nothing(node: KernelNode, resolver: str) -> None:
    """Once `when_down` says `Block`, a socket that got answers while queries passed on gets none any more."""
    node.install(world(EMPTY))
    server, client = node.udp_server(resolver, 53), node.udp_client(node.web, resolver, 53)
    client.send(b"before")
    data, sender = server.recvfrom(100)
    server.sendto(data, sender)
    assert client.recv(100) == b"before"
    node.install(world(EMPTY), replace(SETTINGS, dns=replace(SETTINGS.dns, when_down="Block")))
    client.send(b"after")
    with pytest.raises(OSError, match=r"refused|denied|route|prohibited"):
        client.recv(100)


def test_link_traffic_is_never_judged(node: KernelNode) -> None:
    """Neighbour discovery and link multicast pass, whatever the policy; the same message to a far address does not."""
    node.install(world(EMPTY), replace(SETTINGS, in_cluster="Enforce"))
    for pod in (node.web, node.stray):
        with pod:
            raw = node.keep(socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6))
        raw.sendto(bytes((135, 0, 0, 0, 0, 0, 0, 0)) + packed(API6), (API6, 0))
        with pod:
            multicast = node.keep(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            index = socket.if_nametoindex("eth0")
        multicast.sendto(b"hello", ("ff02::1", 5355, 0, index))
    for space in (node.space, node.web):
        space.ip("neighbor flush all")
    events = Nflog(node)
    assert node.tcp(node.web, API6) == "refused"
    assert events.next() == "denied"
    table = listing()
    assert f"{WEB6} . {API6} . ipv6-icmp" in table
    assert "ff02" not in table.split("set seen-denied6-any")[1].split("}")[0]


def test_a_cut_flow_ends_and_a_sanctioned_one_goes_on(node: KernelNode) -> None:
    """Revocation ends an established UDP flow both ways; a destination granted again works at once."""
    kernel = node.install(world(plan()))
    kernel.program([grant(1, API4, port(17, 4433))])
    server, client = node.udp_server(API4, 4433), node.udp_client(node.web, API4, 4433)
    client.send(b"1")
    _, peer = server.recvfrom(100)
    server.sendto(b"1", peer)
    assert client.recv(100) == b"1"
    pair = (packed(WEB4), packed(API4))
    kernel.apply(Change(gone_grants=[grant(1, API4, port(17, 4433))], revoked=[pair, pair]))
    client.send(b"2")
    with pytest.raises(OSError, match="No route to host"):
        client.recv(100)
    kernel.apply(Change(revoked=[pair]))
    kernel.program([grant(1, API4, port(17, 4433))])
    again = node.udp_client(node.web, API4, 4433)
    again.send(b"3")
    data, peer = server.recvfrom(100)
    assert data == b"3"
    server.sendto(b"3", peer)
    assert again.recv(100) == b"3"


def test_the_other_end_does_not_reopen_a_cut_flow(node: KernelNode) -> None:
    """A datagram that comes from a revoked destination, of no flow of the pod's, does not reach the pod."""
    kernel = node.install(world(plan()))
    server = node.udp_server(API4, 4433)
    with node.web:
        listener = node.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    listener.bind((WEB4, 7000))
    listener.settimeout(5)
    server.sendto(b"before", (WEB4, 7000))
    assert listener.recv(100) == b"before"
    kernel.apply(Change(revoked=[(packed(WEB4), packed(API4))]))
    late = node.udp_server(API4, 4434)
    late.sendto(b"after", (WEB4, 7000))
    listener.settimeout(0.5)
    with pytest.raises(TimeoutError):
        listener.recv(100)


def test_no_stream_is_picked_up_towards_a_pod(node: KernelNode) -> None:
    """A TCP segment of no connection is dropped on its way to a pod, and not judged on its way to the host."""
    with node.outside:
        raw = node.keep(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP))
    raw.bind((API4, 0))
    raw.settimeout(5)
    host = "198.51.100.1"
    for target, number in ((WEB4, 5000), (host, 5001)):
        raw.sendto(_acknowledgement(API4, target, number), (target, 0))
        assert raw.recvfrom(200)[1][0] == target
    node.install(world(EMPTY))
    raw.sendto(_acknowledgement(API4, WEB4, 5002), (WEB4, 0))
    raw.sendto(_acknowledgement(API4, host, 5003), (host, 0))
    assert raw.recvfrom(200)[1][0] == host
    raw.settimeout(0.5)
    with pytest.raises(TimeoutError):
        raw.recvfrom(200)


def _acknowledgement(source: str, destination: str, number: int) -> bytes:
    """A TCP segment with the ACK flag alone, from port `number` to port 9 (RFC 9293 section 3.1)."""
    segment: bytes = struct.pack(">HHIIBBHHH", number, 9, 1, 1, 0x50, 0x10, 8192, 0, 0)
    pseudo = packed(source) + packed(destination) + struct.pack(">HH", 6, len(segment)) + segment
    total = sum(int.from_bytes(pseudo[place : place + 2], "big") for place in range(0, len(pseudo), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return segment[:16] + (~total & 0xFFFF).to_bytes(2, "big") + segment[18:]


@pytest.fixture
def bridged() -> Iterator[KernelNode]:
    """The same scene, its pods on one bridge."""
    with KernelNode(bridged=True) as made:
        yield made


@BOTH
def test_pods_on_a_bridge_are_judged_alike(bridged: KernelNode, api: str, other: str) -> None:
    """With br_netfilter what leaves the bridge and what stays on it passes the same chains."""
    neighbour = JOB6 if ":" in api else JOB4
    with bridged.job:
        bridged.keep(socket.create_server((neighbour, 443), family=family(neighbour)))
    kernel = bridged.install(world(plan()))
    kernel.program([grant(1, api, port(6, 443))])
    assert bridged.tcp(bridged.web, api) == "open"
    assert bridged.tcp(bridged.web, other) == "refused"
    assert bridged.tcp(bridged.web, neighbour) == "refused"
    assert bridged.tcp(bridged.stray, api, timeout=1.5) == "dropped"
    kernel.program([grant(1, neighbour)])
    bridged.web.ip("neighbor flush all")
    assert bridged.tcp(bridged.web, neighbour) == "open"


@pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6], ids=["ipv4", "ipv6"])
def test_queries_are_intercepted_on_a_bridge(bridged: KernelNode, resolver: str) -> None:
    """br_netfilter forgets the socket tproxy found; one bound to the address asked is found again."""
    kernel = bridged.install(world(EMPTY))
    kernel.heartbeat()
    _route_to_us(bridged)
    here = _transparent(bridged, resolver)
    client = bridged.udp_client(bridged.web, resolver, 53)
    client.send(b"query")
    data, peer = here.recvfrom(100)
    here.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, SETTINGS.firewall.answer_mark)
    here.sendto(b"answer to " + data, peer)
    assert client.recv(100) == b"answer to query"


@pytest.mark.parametrize("mode", ["answer", "silent"])
@pytest.mark.parametrize("resolver", [RESOLVER4, RESOLVER6], ids=["ipv4", "ipv6"])
def test_queries_are_intercepted_while_the_heart_beats(node: KernelNode, resolver: str, mode: str) -> None:
    """A transparent socket on the node gets a known and an unknown pod's query; without a heartbeat the server does."""
    kernel = node.install(world(EMPTY))
    kernel.apply(Change(pods=[replace(PODS[2], bypass=True), replace(PODS[3], bypass=True)]))
    _route_to_us(node)
    here = _transparent(node, resolver)
    there = node.udp_server(resolver, 53)
    here.settimeout(5)
    if mode == "answer":
        kernel.heartbeat()
    for pod in (node.web, node.stray):
        node.udp_client(pod, resolver, 53).send(b"query")
        assert (here if mode == "answer" else there).recv(100) == b"query"
    node.udp_client(node.job, resolver, 53).send(b"bypass")
    assert there.recv(100) == b"bypass"


def test_tcp_queries_are_intercepted_and_pass_on_without_a_listener(node: KernelNode) -> None:
    """TCP is taken as UDP is; where nobody listens, the packet goes where it was sent."""
    kernel = node.install(world(EMPTY))
    kernel.heartbeat()
    _route_to_us(node)
    assert node.tcp(node.web, RESOLVER4, 53) == "open"
    listener = node.keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    listener.setsockopt(socket.SOL_IP, 19, 1)
    listener.bind((RESOLVER4, 53))
    listener.listen()
    listener.settimeout(5)
    client = node.dial(node.web, RESOLVER4, 53)
    accepted, peer = listener.accept()
    node.keep(accepted)
    assert peer == client.getsockname()
    assert accepted.getsockname() == (RESOLVER4, 53)


def test_foreign_servers_are_answered_for_if_wished(node: KernelNode) -> None:
    """`foreign: Answer` takes queries to any server, by one wildcard socket, and other sockets of the host are safe."""
    kernel = node.install(world(EMPTY), replace(SETTINGS, dns=replace(SETTINGS.dns, foreign="Answer")))
    kernel.heartbeat()
    _route_to_us(node)
    there = node.udp_server(OTHER4, 53)
    node.udp_client(node.web, OTHER4, 53).send(b"passes while nobody listens")
    assert there.recv(100) == b"passes while nobody listens"
    here = _transparent(node, "0.0.0.0")
    node.udp_client(node.web, OTHER4, 53).send(b"taken")
    assert here.recv(100) == b"taken"


def _route_to_us(node: KernelNode) -> None:
    for v6 in (False, True):
        node.space.ip(
            "rule add fwmark 0x20000/0x20000 lookup 20053", "route add local default dev lo table 20053", v6=v6
        )


def _transparent(node: KernelNode, address: str) -> socket.socket:
    """A UDP socket bound to an address that is not the node's (IP_TRANSPARENT 19, IPV6_TRANSPARENT 75)."""
    v6 = ":" in address
    here = node.keep(socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM))
    here.setsockopt(socket.IPPROTO_IPV6 if v6 else socket.SOL_IP, 75 if v6 else 19, 1)
    here.bind((address, 53))
    here.settimeout(5)
    return here


def test_a_forged_query_is_not_taken(node: KernelNode) -> None:
    """A query with another pod's address from the wrong interface is dropped before it is intercepted."""
    kernel = node.install(world(EMPTY))
    kernel.heartbeat()
    _route_to_us(node)
    here = _transparent(node, RESOLVER4)
    node.job.ip(f"address add {WEB4}/32 dev lo")
    node.udp_client(node.job, RESOLVER4, 53, WEB4).send(b"forged")
    node.udp_client(node.job, RESOLVER4, 53, JOB4).send(b"true")
    assert here.recvfrom(100)[0] == b"true"
