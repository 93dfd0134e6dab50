"""Asks the egressd of this container, and no other, how it is: `probe.py /readyz` or `probe.py /healthz`.

Kubernetes runs it every few seconds, so it needs nothing but the interpreter's core. It speaks through this pod's own
unix socket (EGRESSD_ADMIN__SOCKET): while an update runs two pods side by side, the TCP port may answer for the other.
Exit code 0: the answer was 200. 1: it was not, or there was none; what was said instead is on standard output, where
`kubectl describe pod` shows it.
"""

import os
import socket
import sys

TIMEOUT_S = 2.0
MAX_ANSWER = 64 * 1024
"""Octets of an answer that are read; reasons are a few hundred."""


def ask(path: str, admin: str) -> tuple[bool, str]:
    """Whether the daemon at the unix socket `admin` answers 200 to `path`, and the body of what it said."""
    request = f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    answer = b""
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(TIMEOUT_S)
            peer.connect(admin)
            peer.sendall(request)
            while len(answer) < MAX_ANSWER and (data := peer.recv(MAX_ANSWER)):
                answer += data
    except OSError as error:
        return False, f"{admin}: {error.strerror or error}"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = head.partition(b"\r\n")[0].decode("latin-1")
    good = status.split(" ")[1:2] == ["200"]
    return good, f"{status}\n{body.decode('utf-8', 'replace')}".strip()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: probe.py /readyz|/healthz")
    ready, said = ask(sys.argv[1], os.environ.get("EGRESSD_ADMIN__SOCKET") or "/run/egressd/admin.sock")
    if not ready:
        sys.stdout.write(said + "\n")
    sys.exit(0 if ready else 1)
