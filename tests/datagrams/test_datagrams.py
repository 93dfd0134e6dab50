"""Datagrams by the batch: the module in C and its twin in Python do the same, and never raise for one datagram."""

from __future__ import annotations

import errno
import importlib.util
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressd.datagrams import MOST, address_of, name_of, plain, port_of

ROOT = Path(__file__).resolve().parent.parent.parent
SIZE = 4352
"""Octets of the largest datagram that is taken whole."""


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module in C, built from this checkout."""
    folder = tmp_path_factory.mktemp("batch")
    command = [sys.executable, str(ROOT / ".ci/compile.py"), "--batch", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    (library,) = folder.rglob("*.so")
    spec = importlib.util.spec_from_file_location("egressd.datagrams._batch", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["compiled", "plain"])
def twin(request: pytest.FixtureRequest) -> Any:
    """Each of the two in turn."""
    return request.getfixturevalue("compiled") if request.param == "compiled" else plain


@pytest.fixture(params=[(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["IPv4", "IPv6"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets on loopback that know nothing of each other."""
    family, host = request.param
    with socket.socket(family, socket.SOCK_DGRAM) as one, socket.socket(family, socket.SOCK_DGRAM) as other:
        for sock in (one, other):
            sock.bind((host, 0))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            sock.setblocking(False)
        yield one, other


def name_of_socket(sock: socket.socket) -> bytes:
    host, port = sock.getsockname()[:2]
    return name_of(socket.inet_pton(sock.family, host), port)


def test_names_are_what_the_kernel_writes(twin: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    """A name that came with a datagram holds the sender's address and port, and leads back to it."""
    one, other = pair
    other.sendto(b"asked", one.getsockname())
    ((data, name),) = twin.receive(one, 8, SIZE)
    assert (data, name) == (b"asked", name_of_socket(other))
    assert (address_of(name), port_of(name)) == (
        socket.inet_pton(one.family, other.getsockname()[0]),
        other.getsockname()[1],
    )
    assert twin.send(one, [(b"answered", name)]) == []
    assert other.recvfrom(100) == (b"answered", one.getsockname())


def test_a_batch_comes_in_order_and_no_larger_than_asked_for(
    twin: Any, pair: tuple[socket.socket, socket.socket]
) -> None:
    """At most `count` datagrams are taken at once, each cut to `size`; the rest waits, and then there is nothing."""
    one, other = pair
    name = name_of_socket(one)
    sent = [bytes((number,)) * number for number in range(10)]
    assert twin.send(other, [(data, name) for data in sent]) == []
    assert [data for data, _ in twin.receive(one, 4, 3)] == [data[:3] for data in sent[:4]]
    assert [data for data, _ in twin.receive(one, MOST, SIZE)] == sent[4:]
    assert twin.receive(one, MOST, SIZE) == []


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=SIZE + 100), max_size=100))
def test_any_octets_come_as_they_were_sent(compiled: Any, datagrams: list[bytes]) -> None:
    """Sent by either twin and received by either, octets are what they were, in their order, cut at the size."""
    for sender, receiver in ((compiled, plain), (plain, compiled), (compiled, compiled)):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind(("127.0.0.1", 0))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            one.connect(one.getsockname())
            for start in range(0, len(datagrams), 20):
                some = datagrams[start : start + 20]
                assert sender.send(one, [(data, b"") for data in some]) == []
                found = receiver.receive(one, MOST, SIZE)
                assert [data for data, _ in found] == [data[:SIZE] for data in some]


def test_what_the_kernel_refuses_is_told_by_its_place(twin: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    """A datagram that is too long fails alone; those around it leave."""
    one, other = pair
    name = name_of_socket(other)
    failures = twin.send(one, [(b"first", name), (bytes(70_000), name), (b"", name), (b"last", name)])
    assert failures == [(1, errno.EMSGSIZE)]
    assert [data for data, _ in twin.receive(other, 8, SIZE)] == [b"first", b"", b"last"]


def test_more_than_one_call_can_carry(twin: Any, pair: tuple[socket.socket, socket.socket]) -> None:
    """A list of any length is sent whole, and a failure in its midst is told by its place in the list."""
    one, other = pair
    name = name_of_socket(other)
    datagrams = [(bytes((number % 256,)), name) for number in range(3 * MOST)]
    datagrams[2 * MOST + 1] = (bytes(70_000), name)
    assert twin.send(one, datagrams) == [(2 * MOST + 1, errno.EMSGSIZE)]
    found: list[bytes] = []
    while batch := twin.receive(other, MOST, SIZE):
        found += [data for data, _ in batch]
    assert found == [data for data, _ in datagrams if len(data) == 1]


def test_an_error_of_the_socket_is_raised(twin: Any) -> None:
    """What ICMP said of a connected socket is raised by receiving, once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed:
        closed.bind(("127.0.0.1", 0))
        peer = closed.getsockname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(peer)
        assert twin.send(sock, [(b"refused", b"")]) == []
        with pytest.raises(ConnectionRefusedError):
            twin.receive(sock, 8, SIZE)
        assert twin.receive(sock, 8, SIZE) == []


def test_a_full_send_buffer_loses_datagrams_and_says_so(twin: Any) -> None:
    """Where nothing more fits, sending goes on without waiting: each datagram left or is told with EAGAIN."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other:
        failures = twin.send(one, [(bytes(1000), b"")] * 2000)
        assert {number for _, number in failures} == {errno.EAGAIN}
        found = 0
        while batch := twin.receive(other, MOST, SIZE):
            found += len(batch)
        assert found == 2000 - len(failures)


@pytest.mark.parametrize(
    "call",
    [
        lambda module, sock: module.receive(sock, 0, 100),
        lambda module, sock: module.receive(sock, MOST + 1, 100),
        lambda module, sock: module.receive(sock, 1, SIZE + 1),
        lambda module, sock: module.receive(sock, 1),
        lambda module, sock: module.receive("none", 1, 1),
        lambda module, sock: module.send(sock, ((b"", b""),)),
        lambda module, sock: module.send(sock, [b"x"]),
        lambda module, sock: module.send(sock, [("x", b"")]),
        lambda module, sock: module.send(sock, [(b"x", b"", b"")]),
    ],
)
def test_misuse_is_an_exception_and_no_more(compiled: Any, call: Callable[[Any, socket.socket], object]) -> None:
    """What no caller may ask for is refused by the module in C before anything is read or written."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, pytest.raises((TypeError, ValueError)):
        call(compiled, sock)
