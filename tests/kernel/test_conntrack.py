"""Connection tracking: a pod's entries are found and cut, others' are not touched; `conntrack -L` is the witness."""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressd.errors import KernelError
from egressd.kernel import conntrack as module
from egressd.kernel.conntrack import Conntrack, Entry, read_entry
from egressd.kernel.netlink import blob, nested
from egressd.lab import Node, Pod, eventually

RULES = "table inet t { chain c { type filter hook forward priority 0; ct state new accept; }; }"
PLACES = {socket.AF_INET: ("198.51.100.9", "198.51.100.10"), socket.AF_INET6: ("2001:db8::9", "2001:db8::10")}


def packed(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def keep_nothing(destination: bytes, protocol: int, port: int) -> bool:
    return False


@pytest.fixture
def tracked(node: Node) -> Node:
    """A node that tracks connections, with echo servers behind it."""
    node.run(["nft", "-f", "-"], stdin=RULES, check=True)
    node.internet.serve_tcp_echo(7)
    node.internet.serve_udp_echo(7)
    return node


@pytest.fixture
def table(tracked: Node) -> Iterator[Conntrack]:
    """The node's connection table."""
    with tracked.entered():
        made = Conntrack()
    yield made
    made.close()


def connect(pod: Pod, place: str, kind: socket.SocketKind = socket.SOCK_STREAM, port: int = 7) -> socket.socket:
    """Open a connection and see it work."""
    client = pod.socket(socket.AF_INET6 if ":" in place else socket.AF_INET, kind)
    client.settimeout(10)
    client.connect((place, port))
    client.send(b"hello")
    assert client.recv(10) == b"hello"
    return client


def witness(node: Node, family: socket.AddressFamily, source: str) -> int:
    """How many entries `conntrack` sees with that original source."""
    name = "ipv6" if family == socket.AF_INET6 else "ipv4"
    return len(node.run(["conntrack", "-L", "-f", name, "--orig-src", source]).stdout.splitlines())


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_cut(tracked: Node, table: Conntrack, family: socket.AddressFamily) -> None:
    """What `keep` does not keep is deleted, with the pairs told once; other destinations and other pods live on."""
    first, second = tracked.add_pod("shop/web-0"), tracked.add_pod("shop/web-1")
    source, other = (first.v6, second.v6) if family == socket.AF_INET6 else (first.v4, second.v4)
    here, there = PLACES[family]
    with (
        connect(first, here),
        connect(first, here, socket.SOCK_DGRAM),
        connect(first, there),
        connect(second, here),
    ):
        seen = {(entry.destination, entry.protocol, entry.port) for entry in table.entries(packed(source))}
        assert seen == {(packed(here), 6, 7), (packed(here), 17, 7), (packed(there), 6, 7)}
        assert witness(tracked, family, source) == 3
        pairs = table.cut(packed(source), lambda destination, protocol, port: destination == packed(there))
        assert pairs == [(packed(source), packed(here))]
        assert witness(tracked, family, source) == 1
        assert witness(tracked, family, other) == 1
        assert table.cut(packed(source), keep_nothing) == [(packed(source), packed(there))]
        assert table.cut(packed(source), keep_nothing) == []
        assert witness(tracked, family, source) == 0


def test_keep_is_asked_with_what_was_dialled(tracked: Node, table: Conntrack) -> None:
    """Behind destination NAT the entry is known by the address the pod dialled, and ICMP has no port."""
    rule = "ip daddr 10.96.0.99 dnat to 198.51.100.9"
    rules = f"table ip n {{ chain c {{ type nat hook prerouting priority dstnat; {rule}; }}; }}"
    tracked.run(["nft", "-f", "-"], stdin=rules, check=True)
    pod = tracked.add_pod("shop/web-0")
    asked = []

    def keep(destination: bytes, protocol: int, port: int) -> bool:
        asked.append((destination, protocol, port))
        return True

    with connect(pod, "10.96.0.99"):
        pod.run(["ping", "-c1", "-W5", "198.51.100.9"], check=True)
        assert table.cut(packed(pod.v4), keep) == []
    assert sorted(asked) == sorted([(packed("10.96.0.99"), 6, 7), (packed("198.51.100.9"), 1, -1)])


def test_many(tracked: Node, table: Conntrack) -> None:
    """More entries than fit one message to the kernel are all found and all cut, among more of another pod."""
    first, second = tracked.add_pod("shop/web-0"), tracked.add_pod("shop/web-1")
    count = 3 * module.DELETES + 5
    for pod in (first, second):
        with pod.socket(kind=socket.SOCK_DGRAM) as client:
            for port in range(10_000, 10_000 + count):
                client.sendto(b"x", ("198.51.100.9", port))
    entries = table.entries(packed(first.v4))
    assert len({entry.port for entry in entries}) == count
    assert table.cut(packed(first.v4), keep_nothing) == [(packed(first.v4), packed("198.51.100.9"))]
    assert witness(tracked, socket.AF_INET, first.v4) == 0
    assert len(table.entries(packed(second.v4))) == count


@pytest.mark.parametrize("family", PLACES)
def test_restore(tracked: Node, table: Conntrack, family: socket.AddressFamily) -> None:
    """A forgotten connection is put back from the opener's side, works on, can be cut again; twice is once."""
    pod = tracked.add_pod("shop/a")
    place = PLACES[family][0]
    client = connect(pod, place)
    source = pod.v4 if family == socket.AF_INET else pod.v6
    tracked.run(["conntrack", "-F"], check=True)
    assert table.restore(packed(source), client.getsockname()[1], packed(place), 7)
    assert not table.restore(packed(source), client.getsockname()[1], packed(place), 7)
    assert witness(tracked, family, source) == 1
    client.send(b"again")
    assert client.recv(10) == b"again"
    assert [(entry.destination, entry.port) for entry in table.entries(packed(source))] == [(packed(place), 7)]
    assert table.cut(packed(source), keep_nothing) == [(packed(source), packed(place))]
    client.close()


def test_deleting_what_is_gone(tracked: Node, table: Conntrack) -> None:
    """Entries that vanished meanwhile are no error and are not counted."""
    pod = tracked.add_pod("shop/web-0")
    with connect(pod, "198.51.100.9"), connect(pod, "198.51.100.10"):
        first, second = table.entries(packed(pod.v4))
        assert table.delete([first]) == 1
        assert table.delete([first]) == 0
        assert table.delete([first, second, first]) == 1
        assert table.delete([]) == 0


def test_entries_of_many(tracked: Node, table: Conntrack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked one by one or read from the whole table, the entries of several pods are the same, and nobody else's."""
    pods = [tracked.add_pod(f"shop/web-{n}") for n in range(4)]
    with contextlib.ExitStack() as opened:
        for pod, family in itertools.product(pods, PLACES):
            opened.enter_context(connect(pod, PLACES[family][0]))
        wanted = {packed(address) for pod in pods[:3] for address in (pod.v4, pod.v6)}
        one_by_one = table.entries_of(wanted)
        monkeypatch.setattr(module, "FILTERED", 0)
        at_once = table.entries_of(wanted)
    assert {entry.source for entry in at_once} == wanted
    assert sorted(at_once) == sorted(one_by_one)
    assert table.entries_of(set()) == []


def test_without_the_kernels_filter(tracked: Node, table: Conntrack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that ignores the filter sends everything, and the same entries are found."""
    first, second = tracked.add_pod("shop/web-0"), tracked.add_pod("shop/web-1")
    with connect(first, "198.51.100.9"), connect(second, "198.51.100.9"):
        filtered = table.entries(packed(first.v4))
        monkeypatch.setattr(table, "_filter", lambda pod: b"")
        assert [entry.source for entry in table.entries(packed(first.v4))] == [packed(first.v4)]
        assert len(filtered) == 1


@pytest.mark.parametrize("filtered", [True, False])
def test_live(tracked: Node, table: Conntrack, monkeypatch: pytest.MonkeyPatch, *, filtered: bool) -> None:
    """Pods and those of the asked destinations to which something lives, once each, whatever the kernel filters."""
    if not filtered:
        monkeypatch.setattr(module, "FILTERED", 0)
    pod, other = tracked.add_pod("shop/web-0"), tracked.add_pod("shop/web-1")
    here4, there4 = map(packed, PLACES[socket.AF_INET])
    here6, there6 = map(packed, PLACES[socket.AF_INET6])
    pods = [packed(address) for address in (pod.v4, pod.v6)]
    with (
        connect(pod, "198.51.100.9"),
        connect(pod, "198.51.100.9"),
        connect(pod, "2001:db8::9", socket.SOCK_DGRAM),
        connect(other, "198.51.100.10"),
    ):
        assert table.live(pods, {here4, there4, here6}) == {(packed(pod.v4), here4), (packed(pod.v6), here6)}
        assert table.live(pods, {there4, there6}) == set()
        assert table.live(pods, {here6}) == {(packed(pod.v6), here6)}
        assert table.live([], {here4}) == set()


def test_what_has_ended_does_not_live(tracked: Node, table: Conntrack) -> None:
    """A TCP connection that was closed is remembered for a while and is not alive; one half closed is."""
    pod, here = tracked.add_pod("shop/web-0"), packed("198.51.100.9")
    with connect(pod, "198.51.100.9") as client, connect(pod, "198.51.100.10") as half:
        half.shutdown(socket.SHUT_RD)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(10) == b""
        eventually(lambda: not table.live([packed(pod.v4)], {here}), what="the end of the connection")
        assert {entry.destination for entry in table.entries(packed(pod.v4))} >= {here}
        there = packed("198.51.100.10")
        assert table.live([packed(pod.v4)], {here, there}) == {(packed(pod.v4), there)}


def test_refused_filter_and_other_errors(tracked: Node, table: Conntrack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that the kernel does not take is left out; an entry that the kernel does not take is our error."""
    pod = tracked.add_pod("shop/web-0")
    flags = nested(25, blob(1, b"\xff\xff\xff\x7f"))
    with connect(pod, "198.51.100.9"):
        monkeypatch.setattr(table, "_filter", lambda pod: flags)
        (entry,) = table.entries(packed(pod.v4))
        with pytest.raises(KernelError, match="delete a connection"):
            table.delete([entry._replace(selector=nested(1, nested(1, blob(1, b"\x01"))))])
        assert table.delete([entry]) == 1


def tuple_of(source: bytes, destination: bytes, protocol: int, port: int) -> bytes:
    kinds = (1, 2) if len(source) == 4 else (3, 4)
    ip = nested(1, blob(kinds[0], source), blob(kinds[1], destination))
    return nested(1, ip, nested(2, blob(1, bytes((protocol,))), blob(2, b"\x9c\x40"), blob(3, port.to_bytes(2, "big"))))


@given(
    st.sampled_from([4, 16]).flatmap(
        lambda n: st.tuples(st.binary(min_size=n, max_size=n), st.binary(min_size=n, max_size=n))
    ),
    st.integers(0, 255),
    st.integers(0, 65535),
)
def test_round_trip(addresses: tuple[bytes, bytes], protocol: int, port: int) -> None:
    """An entry as the kernel writes it is read back field by field, and its selector names it by tuple, ID and zone."""
    extra = blob(12, b"\0\0\0\7") + blob(18, b"\0\3")
    wire = tuple_of(*addresses, protocol, port)
    entry = read_entry(wire + blob(3, bytes(4)) + extra)
    assert entry == Entry(*addresses, protocol, port, wire + extra)


@given(st.binary(max_size=300))
def test_any_octets(data: bytes) -> None:
    """Any octets give an entry or the one error."""
    for body in (data, nested(1, data), nested(1, nested(1, data), nested(2, data))):
        with contextlib.suppress(KernelError):
            entry = read_entry(body)
            assert len(entry.source) == len(entry.destination) in (4, 16)
            assert -1 <= entry.port <= 65535


@given(
    st.sampled_from([4, 16]).flatmap(lambda n: st.tuples(*[st.binary(min_size=n, max_size=n)] * 3)),
    st.booleans(),
)
def test_no_entry_is_overlooked(addresses: tuple[bytes, bytes, bytes], reordered: bool) -> None:
    """The quick look never passes over an entry of a pod, whatever comes first in it."""
    source, destination, other = addresses
    entry = tuple_of(source, destination, 6, 443)
    payload = bytes(4) + (blob(12, bytes(4)) + entry if reordered else entry)
    assert module._may_be_of({source, other}, payload)
    assert module._may_be_of({source}, payload, {destination})
    if not reordered and source != other:
        assert not module._may_be_of({other}, payload)
    if not reordered and destination != other:
        assert not module._may_be_of({source}, payload, {other})
