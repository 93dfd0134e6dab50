"""Spaces: programs, functions and sockets are inside, with files of their own, and go when the space goes."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from egressd.lab import Space, eventually


@pytest.fixture
def space() -> Iterator[Space]:
    """A space with a resolv.conf of its own."""
    with Space("web-0", {"/etc/resolv.conf": "nameserver 192.0.2.53\n"}) as made:
        yield made


def network() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


def test_programs_see_the_space(space: Space) -> None:
    """A program has the space's network, files, host name and the caller's folder."""
    result = space.run(["sh", "-c", "cat /etc/resolv.conf; hostname; ip -o link | wc -l; pwd; cat"], stdin="input")
    assert result.stdout == f"nameserver 192.0.2.53\nweb-0\n1\n{Path.cwd()}\ninput"
    assert "192.0.2.53" not in Path("/etc/resolv.conf").read_text()


def test_files_can_change(space: Space) -> None:
    """A file of the space can be rewritten while it lives."""
    space.write_file("/etc/resolv.conf", "nameserver 192.0.2.54\n")
    assert space.run(["cat", "/etc/resolv.conf"]).stdout == "nameserver 192.0.2.54\n"


def test_environment(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables are added to the machine's, of which those that lead traffic elsewhere are left out."""
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.1:3128")
    with Space("web-1") as other:
        assert other.run(["sh", "-c", "echo $HTTPS_PROXY$EXTRA"], env={"EXTRA": "more"}).stdout == "more\n"


def test_run_tells_failure(space: Space) -> None:
    """Exit codes come back; `check` and a timeout raise, and the late program is gone."""
    assert space.run(["sh", "-c", "echo no >&2; exit 3"]).returncode == 3
    with pytest.raises(subprocess.CalledProcessError):
        space.run(["false"], check=True)
    with pytest.raises(subprocess.TimeoutExpired):
        space.run(["sleep", "100"], timeout=0.1)
    with pytest.raises(FileNotFoundError):
        space.run(["/nonexistent"])


def test_call_and_thread(space: Space) -> None:
    """Functions run inside, their value or exception comes back, and the caller stays where it was."""
    outside = network()
    inside = space.call(network)
    assert inside != outside == network()
    assert space.call(lambda text: text + socket.gethostname(), "on ") == "on web-0"
    with pytest.raises(ZeroDivisionError):
        space.call(lambda: 1 // 0)
    seen: list[str] = []
    space.thread(lambda: seen.append(network())).join(10)
    assert seen == [inside]


def test_entered(space: Space) -> None:
    """Within `entered` the calling thread alone is inside, and it comes back even after an exception."""
    outside, inside = network(), space.call(network)
    asked = threading.Event()
    told: list[str] = []

    def tell() -> None:
        asked.wait(10)
        told.append(network())

    other = threading.Thread(target=tell)
    other.start()
    with space.entered():
        assert network() == inside
        asked.set()
        other.join()
    assert network() == outside
    assert told == [outside]
    with contextlib.suppress(KeyError), space.entered():
        raise KeyError
    assert network() == outside


def test_sockets_belong_to_the_space(space: Space) -> None:
    """Two spaces can listen on the same address and port."""
    with Space("web-1") as other, space.socket() as first, other.socket() as second, socket.socket() as outside:
        for opened in (first, second, outside):
            opened.bind(("127.0.0.1", 5353))
            opened.listen()


def test_counters(space: Space) -> None:
    """The kernel's counters are those of the space."""
    before = space.counters()["Udp.InDatagrams"]
    with space.socket(kind=socket.SOCK_DGRAM) as receiver, space.socket(kind=socket.SOCK_DGRAM) as sender:
        receiver.bind(("127.0.0.1", 0))
        sender.sendto(b"x", receiver.getsockname())
        receiver.recv(10)
    assert space.counters()["Udp.InDatagrams"] == before + 1
    assert "TcpExt.TCPSynRetrans" in space.counters()


def test_sysctl(space: Space) -> None:
    """A sysctl is set in the space and not around it."""
    space.sysctl("net.ipv4.ip_forward", "1")
    assert space.run(["cat", "/proc/sys/net/ipv4/ip_forward"]).stdout == "1\n"
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == "0\n"


def test_close() -> None:
    """Closing kills what runs and can be done twice; a closed space refuses to start anything."""
    space = Space("web-0")
    program = space.popen(["sleep", "1000"])
    space.close()
    space.close()
    assert eventually(lambda: program.returncode is not None)
    with pytest.raises(RuntimeError, match="closed"):
        space.run(["true"])
