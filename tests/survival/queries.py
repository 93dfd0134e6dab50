"""A steady stream of queries from a pod that counts what is never answered. Nothing is asked twice.

    python queries.py SERVER RATE SECONDS TCP NAME…

RATE queries a second over UDP, from 64 sockets; beside them TCP threads that each open a connection, ask, wait a while
as clients do, ask once more and close. Prints {"asked", "answered", "lost", "refused", "slowest_ms"} as JSON;
`refused` are answers with a response code other than NOERROR.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import struct
import sys
import threading
import time

WAIT_S = 5.0
SOCKETS = 64


class Tally:
    def __init__(self) -> None:
        self.asked = 0
        self.answered = 0
        self.lost: list[str] = []
        self.refused: list[str] = []
        self.slowest = 0.0

    def answer(self, data: bytes, begun: float, what: str) -> None:
        self.answered += 1
        self.slowest = max(self.slowest, time.monotonic() - begun)
        if data[3] & 15:
            self.refused.append(f"{what} at {begun:.3f}: response code {data[3] & 15}")


def query(number: int, name: str) -> bytes:
    wire = b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"
    return struct.pack("!H", number & 0xFFFF) + b"\x01\0\0\x01\0\0\0\0\0\0" + wire + struct.pack("!HH", 1, 1)


def over_udp(server: str, rate: float, seconds: float, names: list[str], tally: Tally) -> None:
    selector = selectors.DefaultSelector()
    sockets = []
    for _ in range(SOCKETS):
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.connect((server, 53))
        opened.setblocking(False)
        selector.register(opened, selectors.EVENT_READ)
        sockets.append(opened)
    open_since: dict[int, float] = {}
    begun = time.monotonic()
    while (now := time.monotonic()) < begun + seconds + (WAIT_S if open_since else 0):
        while tally.asked < min(now - begun, seconds) * rate:
            number = tally.asked
            open_since[number & 0xFFFF] = now
            tally.asked += 1
            sockets[number % SOCKETS].send(query(number, names[number % len(names)]))
        for key, _ in selector.select(0.002):
            try:
                data = key.fileobj.recv(4096)  # type: ignore[union-attr]  # they are sockets
            except OSError as error:
                tally.lost.append(f"udp at {now:.3f}: {error}")
                continue
            since = open_since.pop(data[0] << 8 | data[1], None)
            if since is not None:
                tally.answer(data, since, "udp")
        if now > begun + seconds and not open_since:
            break
    tally.lost += [f"udp at {since:.3f}: no answer" for since in open_since.values()]


def over_tcp(server: str, seconds: float, names: list[str], tally: Tally) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name in names:
            if time.monotonic() > end:
                break
            begun = time.monotonic()
            try:
                with socket.create_connection((server, 53), WAIT_S) as opened:
                    for _ in range(2):
                        tally.asked += 1
                        asked = time.monotonic()
                        tally.answer(once(opened, name), asked, "tcp")
                        time.sleep(0.05)
            except (OSError, EOFError) as error:
                tally.lost.append(f"tcp at {begun:.3f}: {error!r}")


def once(opened: socket.socket, name: str) -> bytes:
    asked = query(int.from_bytes(os.urandom(2), "big"), name)
    opened.sendall(len(asked).to_bytes(2, "big") + asked)
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        more = opened.recv(4096)
        if not more:
            raise EOFError("closed before the answer")
        data += more
    return data[2:]


def main(server: str, rate: float, seconds: float, tcp: int, names: list[str]) -> None:
    udp_tally, tcp_tally = Tally(), Tally()
    threads = [threading.Thread(target=over_tcp, args=(server, seconds, names, tcp_tally)) for _ in range(tcp)]
    for thread in threads:
        thread.start()
    over_udp(server, rate, seconds, names, udp_tally)
    for thread in threads:
        thread.join()
    print(
        json.dumps(
            {
                "asked": udp_tally.asked + tcp_tally.asked,
                "answered": udp_tally.answered + tcp_tally.answered,
                "lost": (udp_tally.lost + tcp_tally.lost)[:10],
                "refused": (udp_tally.refused + tcp_tally.refused)[:10],
                "slowest_ms": int(1000 * max(udp_tally.slowest, tcp_tally.slowest)),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
