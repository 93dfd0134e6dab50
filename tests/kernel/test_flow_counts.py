"""Flows that are let through, reported where `audit.flows: All`; and how many packets each flow had."""

from __future__ import annotations

import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_node import (
    API4,
    API6,
    EMPTY,
    JOB4,
    OTHER4,
    PODS,
    SERVICE4,
    SERVICE6,
    SETTINGS,
    WEB4,
    WEB6,
    KernelNode,
    Nflog,
    Space,
    grant,
    interval,
    listing,
    packed,
    plan,
    port,
    world,
)

from egressd.agent.packets import MARGIN_S, Packets
from egressd.kernel import Change, PodElement
from egressd.kernel.flows import FlowCounters, flow_key, read_count, read_counter
from egressd.kernel.netlink import be64, nested, string
from egressd.kernel.nflog import NflogReader, Report
from egressd.kernel.sets import NODE_SETS
from egressd.model import FlowRecord, Reason, Verdict
from egressd.settings import Audit

ALL = replace(SETTINGS, audit=Audit(flows="All"))


@pytest.fixture
def node() -> Iterator[KernelNode]:
    """A node with two pods, a stray one, and a world outside."""
    with KernelNode() as made:
        yield made


def counted(source: str, destination: str, protocol: str) -> int:
    """The packets that the kernel counts for a flow, as nft prints them; 0 where it knows none."""
    found = re.search(rf"{source} \. {destination} \. {protocol} counter packets (\d+)", listing())
    return int(found[1]) if found else 0


# --------------------------------------------------------------------------------------------- who is reported


@pytest.mark.parametrize(
    ("api", "service", "source"), [(API4, SERVICE4, WEB4), (API6, SERVICE6, WEB6)], ids=["ipv4", "ipv6"]
)
def test_every_way_out_is_reported(node: KernelNode, api: str, service: str, source: str) -> None:
    """A grant, an allow rule, the cluster and the node itself: one event a flow, whatever its packets."""
    rules = (interval(api, span=port(6, 444)),)
    kernel = node.install(world(plan(allow=rules)), ALL)
    kernel.program([grant(1, api, port(6, 443)), grant(1, api, port(17, 7))])
    events = Nflog(node)
    for address, number in ((api, 443), (api, 444), (service, 443)):
        for _ in range(3):
            assert node.tcp(node.web, address, number) == "open"
        assert events.next() == "allowed"
        assert events.quiet()
        assert counted(source, address, rf"tcp \. {number}") == 3
    assert node.ping(node.web, "198.51.100.1")  # the node itself
    assert events.next() == "allowed"
    server, client = node.udp_server(api, 7), node.udp_client(node.web, api, 7)
    for _ in range(4):
        client.send(b"hello")
        server.recv(100)
    assert events.next() == "allowed"
    assert events.quiet()
    assert counted(source, api, r"udp \. 7") == 4


def test_established_traffic_is_neither_reported_nor_counted(node: KernelNode) -> None:
    """Only what opens a flow is: the rest passes by one rule."""
    kernel = node.install(world(plan()), ALL)
    kernel.program([grant(1, API4)])
    server, client = node.udp_server(API4, 7), node.udp_client(node.web, API4, 7)
    client.send(b"hello")
    _, sender = server.recvfrom(100)
    server.sendto(b"hello", sender)
    client.recv(100)
    for _ in range(20):
        client.send(b"more")
    assert counted(WEB4, API4, r"udp \. 7") == 1


def test_pods_without_a_policy_are_reported(node: KernelNode) -> None:
    """Nobody judges them, and what they reach is known all the same; they stay without a subject when read back."""
    pod = PodElement(packed(JOB4), None, False, "shop/job-0")
    kernel = node.install(Change(pods=[pod]), ALL)
    events = Nflog(node)
    assert node.tcp(node.job, API4) == "open"
    assert events.next() == "allowed"
    assert kernel.read_back().pods == (pod,)
    assert kernel.difference() == ""
    kernel.apply(Change(gone_pods=[pod.address]))
    assert kernel.read_back().pods == ()


def test_what_audit_policies_would_deny_is_reported_as_that(node: KernelNode) -> None:
    """One event a flow: the one of the Audit policy, though the packet goes on to a way out."""
    change = world(plan(enforced=False, report=(interval(API4),), allow=(interval(API4, OTHER4),)))
    node.install(change, ALL)
    events = Nflog(node)
    assert node.tcp(node.web, API4) == "open"
    assert events.next() == "reported"
    assert events.quiet()
    assert node.tcp(node.web, OTHER4) == "open"
    assert events.next() == "allowed"


def test_by_default_nothing_is_added(node: KernelNode) -> None:
    """`audit.flows: Denied`: no chain, no rule, no event for what is let through."""
    kernel = node.install(world(plan(allow=(interval(OTHER4),))))
    kernel.apply(Change(pods=[PodElement(packed("192.0.2.77"), None, False, "shop/free-0")]))
    kernel.program([grant(1, API4)])
    events = Nflog(node)
    assert node.tcp(node.web, API4) == "open"
    assert node.tcp(node.web, OTHER4) == "open"
    assert events.quiet()
    printed = listing()
    assert "allowed" not in re.sub(r'comment "[^"]*"', "", printed)
    assert re.search(r'192\.0\.2\.77 comment "shop/free-0" : accept', printed)
    instance = printed[printed.index("chain subject-1 ") :]
    ways = re.findall(r"@(?:grant4-1-any|allow4-1-any|cluster4) (\S+)", instance)
    assert set(ways) == {"accept"}


def test_the_setting_is_taken_at_the_next_installation(node: KernelNode) -> None:
    """All and back: the table of the other kind is replaced whole, and agrees with what is written to it."""
    for settings, there in ((SETTINGS, False), (ALL, True), (SETTINGS, False)):
        kernel = node.install(world(plan(allow=(interval(API4),))), settings)
        assert ("chain allowed" in listing()) is there
        assert kernel.difference() == ""
        assert node.tcp(node.web, API4) == "open"
        kernel.close()


def test_nft_prints_and_reloads_it(node: KernelNode) -> None:
    """The table with chain `allowed`, a flow counted and a pod that no policy selects, is loaded from nft's print."""
    pods = [PODS[0], PodElement(packed(JOB4), None, False, "shop/job-0")]
    node.install(Change(subjects={1: plan(allow=(interval(API4),))}, pods=pods), ALL)
    assert node.tcp(node.web, API4) == "open"
    assert node.tcp(node.job, OTHER4) == "open"
    first = listing()
    again = Space()
    with again:
        subprocess.run(["nft", "-f", "-"], input=first, text=True, check=True)
        second = listing()
    again.close()
    chain = re.compile(r"\tchain (?:allowed|subject-1) \{.*?\n\t\}", re.DOTALL)
    assert chain.findall(first) == chain.findall(second)
    assert len(chain.findall(first)) == 2
    assert f'{JOB4} comment "shop/job-0" : goto allowed' in second


# ------------------------------------------------------------------------------------------------- counters


def report(prefix: str, source: str, destination: str, protocol: int, number: int) -> Report:
    return Report(prefix, packed(source), packed(destination), protocol, number)


@pytest.mark.parametrize(("pod", "api"), [(WEB4, API4), (WEB6, API6)], ids=["ipv4", "ipv6"])
def test_counts_are_read_by_key(node: KernelNode, pod: str, api: str) -> None:
    """Refused connections, datagrams and pings of either family; a flow that never was has no count."""
    node.install(world(EMPTY))
    client = node.udp_client(node.web, api, 4433)
    for _ in range(5):
        assert node.tcp(node.web, api) == "refused"
    for _ in range(7):
        _send(client)
    assert not node.ping(node.web, api)
    icmp = 58 if ":" in pod else 1
    wanted = [(6, 443), (6, 444), (17, 4433), (icmp, -1)]
    keys = [flow_key(report("denied", pod, api, protocol, number)) for protocol, number in wanted]
    with closing(FlowCounters(SETTINGS)) as counters:
        found = counters.read([key for key in keys if key is not None] * 40)
    assert len(found) == 160
    assert [count and count.packets for count in found[:4]] == [5, None, 7, 1]
    assert all(count is None or 50 < count.remaining_s <= 60 for count in found)


def _send(client: socket.socket) -> None:
    """One datagram more; an error that an earlier one met is taken off the socket first."""
    client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    client.send(b"hello")


def test_a_port_that_was_not_read_has_no_key() -> None:
    """A protocol with ports whose port is not in the reported octets cannot be looked up."""
    assert flow_key(report("denied", WEB4, API4, 6, -1)) is None


def test_without_a_table_nothing_is_counted() -> None:
    """Where somebody took the table away, every flow is gone."""
    space = Space()
    with space, closing(FlowCounters(SETTINGS)) as counters:
        key = flow_key(report("denied", WEB4, API4, 6, 443))
        assert key is not None
        assert counters.read([key]) == [None]
    space.close()


def test_packets_past_the_bound_are_counted(node: KernelNode) -> None:
    """Of a flood over many ports each packet is in an element, or counted as unreported."""
    node.install(world(EMPTY))
    with node.web:
        client = node.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sent = 6000
    for number in range(1, sent + 1):
        client.sendto(b"x", (API4, number))
    with closing(FlowCounters(SETTINGS)) as counters:
        unreported = counters.unreported()
    elements = listing().count(f"{WEB4} . {API4} . udp . ")
    assert unreported > 0
    assert elements + unreported == sent


# ------------------------------------------------------------------------------------------- over their lives


def test_the_sum_of_packets_is_what_was_sent(node: KernelNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flows that outlive several elements (here of 2 s): but for the end of each of them, every packet is told once."""
    lifetime = 2.0
    short = [
        replace(spec, kind=replace(spec.kind, timeout_ms=int(lifetime * 1000))) if "seen" in spec.name else spec
        for spec in NODE_SETS
    ]
    monkeypatch.setattr("egressd.kernel.node.NODE_SETS", short)
    kernel = node.install(world(plan()), ALL)
    kernel.program([grant(1, API4, port(17, 7))])
    node.udp_server(API4, 7)
    allowed, denied = (node.udp_client(node.web, API4, number) for number in (7, 8))
    once = node.udp_client(node.web, OTHER4, 9)
    told: list[FlowRecord] = []
    packets = Packets(told.append, time.time, time.monotonic, lifetime)
    packets.begin(FlowCounters(ALL))

    def heard(event: Report) -> None:
        verdict = Verdict.ALLOWED if event.prefix == "allowed" else Verdict.DENIED
        place = (event.destination, event.port, event.protocol)
        told.append(FlowRecord(0.0, event.source, None, *place, (), verdict, Reason.RULE, "", "", 1))
        packets.follow(event, told[-1], time.monotonic())

    with closing(NflogReader(1986, heard)) as reader:
        for _ in range(9):
            _send(once)
        began, sent = time.monotonic(), 0
        while time.monotonic() - began < 5:
            _send(allowed)
            _send(denied)
            sent += 1
            reader.read_ready()
            packets.tick(time.monotonic())
            time.sleep(0.02)
        time.sleep(0.1)
        reader.read_ready()
    packets.finish(time.monotonic())
    sums = {number: sum(record.packets for record in told if record.port == number) for number in (7, 8, 9)}
    lost = (MARGIN_S + 0.1) / lifetime
    assert sums[9] == 9
    assert sent * (1 - 2 * lost) < sums[7] <= sent
    assert sent * (1 - 2 * lost) < sums[8] <= sent
    assert len([record for record in told if record.port == 9]) == 2
    assert {record.verdict for record in told if record.port == 7} == {Verdict.ALLOWED}
    assert not len(packets)


# ---------------------------------------------------------------------------------------------------- octets


def counter(packets: int) -> bytes:
    return string(1, "counter") + nested(2, be64(1, 7), be64(2, packets))


@pytest.mark.parametrize("kind", [7, 11], ids=["one expression", "several"])
def test_both_ways_to_say_a_counter(kind: int) -> None:
    """Kernels before 5.11 know one expression an element, later ones also a list."""
    expression = nested(7, counter(3)) if kind == 7 else nested(11, nested(1, counter(3)))
    found = read_count(nested(3, nested(1, be64(5, 1500), expression)))
    assert found == (3, 1.5)


@given(st.binary(max_size=120))
def test_any_octets(data: bytes) -> None:
    """Whatever comes is a count or none."""
    for message in (data, nested(3, data), nested(3, nested(1, data)), nested(3, nested(1, nested(7, data)))):
        found = read_count(message)
        assert found is None or found.packets > 0
    assert read_counter(data) >= 0
