"""The load generator: look a name up, connect to an address of the answer, close; again, from several threads.

    python load.py SERVER LOOKUPS

Prints {"lookups", "connected", "failures"} as JSON. One UDP socket a thread; no EDNS, so that the last octets of an
answer are its last address. Half the look-ups are of 50 names, the other half of names never asked before.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading

THREADS = 8
OUTCOMES: list[str] = []


def work(server: str, first: int, last: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.settimeout(15)
        resolver.connect((server, 53))
        for number in range(first, last):
            try:
                OUTCOMES.append(once(resolver, number))
            except OSError as error:
                OUTCOMES.append(f"{number}: {error}")


def once(resolver: socket.socket, number: int) -> str:
    """One look-up and one connection; returns nothing, or what went wrong."""
    v4 = number % 2 == 0
    name = f"s{number // 2 % 50}.rotating.example" if v4 else f"n{number}.fresh.example"
    wire = b"".join(bytes((len(label),)) + label.encode() for label in name.split(".")) + b"\0"
    ident = os.urandom(2)
    resolver.send(ident + b"\x01\0\0\x01\0\0\0\0\0\0" + wire + struct.pack("!HH", 1 if v4 else 28, 1))
    answer = resolver.recv(4096)
    while answer[:2] != ident:
        answer = resolver.recv(4096)
    if answer[3] & 15 or not answer[7]:
        return f"{number}: {name}: response code {answer[3] & 15}, {answer[7]} records"
    family = socket.AF_INET if v4 else socket.AF_INET6
    address = socket.inet_ntop(family, answer[-4:] if v4 else answer[-16:])
    with socket.socket(family, socket.SOCK_STREAM) as opened:
        opened.settimeout(15)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
        try:
            opened.connect((address, 80))
        except OSError as error:
            return f"{number}: {name} at {address}: {error}"
    return ""


def main(server: str, lookups: int) -> None:
    share = lookups // THREADS
    threads = [threading.Thread(target=work, args=(server, n * share, (n + 1) * share)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failures = [outcome for outcome in OUTCOMES if outcome]
    print(json.dumps({"lookups": len(OUTCOMES), "connected": OUTCOMES.count(""), "failures": failures[:20]}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
