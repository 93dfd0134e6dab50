"""NFLOG: what the kernel reports of refused packets becomes values, whatever the packet, and losses are counted."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressd.errors import KernelError
from egressd.kernel.nflog import NflogReader, Report, read_packet, read_report
from egressd.lab import Node, Pod, Space

GROUP = 1986
RULES = """
table inet t {
  chain c {
    type filter hook prerouting priority -150;
    iifname "%s" fib daddr type != local meta l4proto { tcp, udp, icmp } log prefix "denied" group 1986 drop
  }
}
"""
V4, V6 = socket.inet_aton("198.51.100.9"), socket.inet_pton(socket.AF_INET6, "2001:db8::9")


def address(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def drain(reader: NflogReader, events: list[Report], wanted: Callable[[], bool]) -> None:
    """Read as an event loop would, until `wanted` holds."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    while not wanted():
        assert poll.poll(10_000), f"no more reports after {len(events)}"
        reader.read_ready()


@pytest.fixture
def pod(node: Node) -> Pod:
    """A pod all of whose traffic is reported and dropped."""
    made = node.add_pod("shop/web-0")
    incoming = made.interface if node.wiring == "p2p" else "cni0"
    node.run(["nft", "-f", "-"], stdin=RULES % incoming, check=True)
    return made


@pytest.fixture
def events() -> list[Report]:
    """What was reported so far."""
    return []


@pytest.fixture
def reader(node: Node, pod: Pod, events: list[Report]) -> Iterator[NflogReader]:
    """A reader of the node's log group."""
    with node.entered():
        made = NflogReader(GROUP, events.append)
    yield made
    made.close()


@pytest.mark.parametrize("destination", ["198.51.100.9", "2001:db8::9"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_real_denials(pod: Pod, reader: NflogReader, events: list[Report], destination: str, protocol: str) -> None:
    """A refused TCP and UDP packet of either family is reported with pod, destination, protocol and port."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    kind, number = (socket.SOCK_STREAM, 6) if protocol == "tcp" else (socket.SOCK_DGRAM, 17)
    source = address(pod.v6 if ":" in destination else pod.v4)
    with pod.socket(family, kind) as client:
        client.setblocking(False)
        client.connect_ex((destination, 4433))
        if protocol == "udp":
            client.send(b"x")
        expected = Report("denied", source, address(destination), number, 4433, client.getsockname()[1])
        drain(reader, events, lambda: expected in events)
    assert reader.malformed == 0


def test_ping_has_no_port(pod: Pod, reader: NflogReader, events: list[Report]) -> None:
    """ICMP is reported with port -1."""
    pod.run(["ping", "-c1", "-W1", "198.51.100.9"])
    expected = Report("denied", address(pod.v4), V4, 1, -1)
    drain(reader, events, lambda: expected in events)


def test_fragments(pod: Pod, reader: NflogReader, events: list[Report]) -> None:
    """A datagram in fragments is one report per packet the rule sees, with its port where that packet has it."""
    with pod.socket(kind=socket.SOCK_DGRAM) as client:
        client.sendto(b"x" * 5000, ("198.51.100.9", 4433))
        expected = Report("denied", address(pod.v4), V4, 17, 4433, client.getsockname()[1])
    drain(reader, events, lambda: expected in events)


def test_flood_and_losses(node: Node, pod: Pod, reader: NflogReader, events: list[Report]) -> None:
    """Of a flood that overruns the buffer every packet is either reported or counted as lost."""
    reader._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sent = 20_000
    with pod.socket(kind=socket.SOCK_DGRAM) as client:
        for _ in range(sent):
            client.sendto(b"x", ("198.51.100.9", 4433))
        reader._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        last = Report("denied", address(pod.v4), V4, 17, 9999, client.getsockname()[1])
        while last not in events[-100:]:  # after an overrun the first reports may be lost too
            client.sendto(b"x", ("198.51.100.9", 9999))
            select.select([reader], [], [], 1)
            reader.read_ready()
    assert reader.lost > 0
    assert len([event for event in events if event.port == 4433]) + reader.lost >= sent


def test_group_is_taken(node: Node, reader: NflogReader) -> None:
    """A group that another reader has is refused with the setting to change."""
    with node.entered(), pytest.raises(KernelError, match="log_group"):
        NflogReader(GROUP, lambda report: None)


def test_nothing_there_does_not_block() -> None:
    """Reading an empty group returns at once, and a closed reader can be closed again."""
    with Space("web-0") as space, space.entered():
        reader = NflogReader(GROUP, lambda report: pytest.fail("nothing was sent"))
        reader.read_ready()
        reader.close()
        reader.close()


# ----------------------------------------------------------------------------------------- parsing


def ipv4(protocol: int, payload: bytes, *, options: bytes = b"", fragment: int = 0) -> bytes:
    head = struct.pack("!BBHHHBBH", 0x40 | (5 + len(options) // 4), 0, 0, 1, fragment, 64, protocol, 0)
    return head + address("10.244.1.2") + V4 + options + payload


def ipv6(following: int, payload: bytes) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), following, 64) + address("fd00:10:244:1::2") + V6 + payload


PORTS = struct.pack("!HH", 40000, 443) + bytes(16)
HOP = bytes((6, 0)) + bytes(6)


@pytest.mark.parametrize(
    ("packet", "protocol", "port"),
    [
        (ipv4(6, PORTS), 6, 443),
        (ipv4(17, PORTS, options=bytes(40)), 17, 443),
        (ipv4(132, PORTS), 132, 443),
        (ipv4(47, PORTS), 47, -1),
        (ipv4(6, PORTS, fragment=0x2000), 6, 443),  # first of several
        (ipv4(6, PORTS, fragment=0x0001), 6, -1),
        (ipv4(6, PORTS[:3]), 6, -1),
        (ipv4(6, b""), 6, -1),
        (bytes((0x41,)) + ipv4(6, PORTS)[1:], 6, -1),  # header length 4
        (ipv6(6, PORTS), 6, 443),
        (ipv6(58, PORTS), 58, -1),
        (ipv6(59, PORTS), 59, -1),
        (ipv6(0, HOP + PORTS), 6, 443),
        (ipv6(60, bytes((43, 1)) + bytes(14) + bytes((6, 0)) + bytes(6) + PORTS), 6, 443),
        (ipv6(51, bytes((17, 4)) + bytes(22) + PORTS), 17, 443),
        (ipv6(44, bytes((17, 0, 0, 1)) + bytes(4) + PORTS), 17, 443),
        (ipv6(44, bytes((17, 0, 0, 9)) + bytes(4) + PORTS), 17, -1),
        (ipv6(44, bytes((17, 0, 1, 0)) + bytes(4) + PORTS), 17, -1),
        (ipv6(0, bytes((0, 0)) + bytes(6)), 0, -1),
        (ipv6(0, b"\x06"), 0, -1),
        (ipv6(0, bytes((6, 255)) + bytes(6)), 6, -1),
        (ipv6(60, (bytes((60, 0)) + bytes(6)) * 40 + PORTS), 60, -1),  # more headers than we follow
    ],
)
def test_packets(packet: bytes, protocol: int, port: int) -> None:
    """Options, extension headers, fragments and cut packets are read as the RFCs have them."""
    source = address("10.244.1.2") if packet[0] >> 4 == 4 else address("fd00:10:244:1::2")
    assert read_packet(packet) == (source, V4 if packet[0] >> 4 == 4 else V6, protocol, port)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x45", b"\x60", b"\x4f"]), st.binary(max_size=30))
def test_any_octets(tail: bytes, first: bytes, prefix: bytes) -> None:
    """Any octets give a value of the right shape or the one error."""
    with contextlib.suppress(KernelError):
        report = read_report(prefix, first + tail)
        assert len(report.source) == len(report.destination) in (4, 16)
        assert 0 <= report.protocol <= 255
        assert -1 <= report.port <= 65535


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_message(parts: list[bytes]) -> None:
    """Whatever a netlink message of the kernel holds, the reader goes on: an event or a counted malformed report."""
    reader = NflogReader.__new__(NflogReader)
    reader.lost = reader.malformed = reader._overruns = 0
    reader._expected = -1
    events: list[Report] = []
    reader._on_event = events.append
    for part in parts:
        reader._take(part)
    assert len(events) + reader.malformed == len(parts)


def test_sequence_numbers() -> None:
    """Gaps are counted once, also around the end of the number range and after an overrun already counted."""
    reader = NflogReader.__new__(NflogReader)
    reader.lost, reader._overruns, reader._expected = 0, 0, -1
    for sequence in (7, 8, 11, 12):
        reader._count(sequence)
    assert reader.lost == 2
    reader._expected = 0xFFFFFFFF
    for sequence in (0xFFFFFFFF, 0, 1):
        reader._count(sequence)
    assert reader.lost == 2
    reader.lost, reader._overruns = 3, 1
    reader._count(7)
    assert reader.lost == 7  # five are missing, one of which was counted when the buffer overran
