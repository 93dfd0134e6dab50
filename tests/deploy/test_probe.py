"""The probe: asks the daemon of its own pod through its socket, and says what Kubernetes should show."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .rendering import DEPLOY

READY = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nready\n"
NOT_READY = b"HTTP/1.1 503 Service Unavailable\r\n\r\nthe API server was not reached yet\n"


@contextlib.contextmanager
def daemon(admin: Path, answer: bytes) -> Iterator[list[bytes]]:
    """Something at a unix socket that gives one answer and hangs up; yields what it was asked."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(admin))
        listener.listen()

        def serve() -> None:
            peer, _ = listener.accept()
            with peer:
                asked.append(peer.recv(4096))
                for start in range(0, len(answer), 7):  # an answer may come in pieces
                    peer.sendall(answer[start : start + 7])

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield asked
        thread.join(10)


def probe(*arguments: str, admin: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the probe as the manifest does, with an interpreter that sees neither site-packages nor variables."""
    environ = {"EGRESSD_ADMIN__SOCKET": str(admin)} if admin else {}
    command = [sys.executable, "-I", "-S", str(DEPLOY / "probe.py"), *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False, timeout=30)


def test_ready(tmp_path: Path) -> None:
    """200 is exit code 0, without a word."""
    admin = tmp_path / "admin.sock"
    with daemon(admin, READY) as asked:
        done = probe("/readyz", admin=admin)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert asked[0].startswith(b"GET /readyz HTTP/1.0\r\nHost: ")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (NOT_READY, "HTTP/1.1 503 Service Unavailable\nthe API server was not reached yet\n"),
        (b"", "\n"),
        (b"\xff\xfe nonsense 200", "\xff\xfe nonsense 200\n"),
        (b"HTTP/1.1 2000 no\r\n\r\n", "HTTP/1.1 2000 no\n"),
    ],
    ids=["not ready", "hangs up", "no HTTP", "no such status"],
)
def test_not_ready(answer: bytes, said: str, tmp_path: Path) -> None:
    """Anything but 200 is exit code 1, and what was said is shown."""
    admin = tmp_path / "admin.sock"
    with daemon(admin, answer):
        done = probe("/readyz", admin=admin)
    assert (done.returncode, done.stdout, done.stderr) == (1, said, "")


def test_nobody_there(tmp_path: Path) -> None:
    """No socket, or none that anyone listens at: exit code 1 and the reason."""
    done = probe("/healthz", admin=tmp_path / "admin.sock")
    assert (done.returncode, done.stdout) == (1, f"{tmp_path}/admin.sock: No such file or directory\n")
    dead = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(dead))
    assert probe("/healthz", admin=dead).stdout == f"{dead}: Connection refused\n"


def test_a_daemon_that_hangs(tmp_path: Path) -> None:
    """No answer in time is exit code 1, not a probe that hangs as well."""
    admin = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(admin))
        listener.listen()
        done = probe("/readyz", admin=admin)
    assert (done.returncode, done.stdout) == (1, f"{admin}: timed out\n")


def test_wrong_use() -> None:
    """Without a path it says how it is used."""
    done = probe()
    assert done.returncode == 1
    assert "usage" in done.stderr
