"""What a hostile pod does: floods, crowds of connections, octets that are no queries. One mode for each.

    python -m chaos.attack MODE SERVER SECONDS NUMBER

NUMBER is the mode's size (queries, connections). Prints what came of it as JSON. Everything ends by itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

WINDOW: Final = 256
"""Queries in flight of a flood that waits for its answers."""
CORPUS: Final = Path(__file__).parent.parent / "corpus" / "wire"


def query(ident: int, name: str, qtype: int = 1) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split("."))
    return struct.pack("!6H", ident, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", qtype, 1)


def udp(server: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
    opened.connect((server, 53))
    opened.settimeout(0.25)
    return opened


def ask_many(server: str, seconds: float, number: int, name: Callable[[int], str]) -> Counter[str]:
    """Ask for `number` names (0: until `seconds` are over), `WINDOW` in flight; count the answers by code."""
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    sent = answered = 0
    with udp(server) as opened:
        while time.monotonic() < deadline and (not number or sent < number):
            while sent - answered < WINDOW and (not number or sent < number):
                with contextlib.suppress(OSError):
                    opened.send(query(sent & 0xFFFF, name(sent), 28))
                sent += 1
            try:
                seen[f"rcode {opened.recv(65535)[3] & 15}"] += 1
                answered += 1
            except TimeoutError:
                seen["unanswered"] += sent - answered
                answered = sent
            except OSError:
                seen["errors"] += 1
                answered += 1
    seen["sent"] = sent
    return seen


def flood(server: str, seconds: float, number: int) -> Counter[str]:
    """Random subdomains, of an allowed and of a denied zone in turn, none twice."""
    salt = os.urandom(4).hex()
    zones = ("flood.example", "denied.example")
    return ask_many(server, seconds, number, lambda n: f"{salt}{n:x}.{zones[n & 1]}")


def names_in(zone: str) -> Callable[[str, float, int], Counter[str]]:
    """The same with names of one zone: a salt of eight characters and a number, so that the server knows the number."""

    def ask(server: str, seconds: float, number: int) -> Counter[str]:
        salt = os.urandom(4).hex()
        return ask_many(server, seconds, number, lambda n: f"{salt}{n:x}.{zone}")

    return ask


def speed(server: str, seconds: float, number: int) -> Counter[str]:
    """One known name, as fast as answers come."""
    return ask_many(server, seconds, number, lambda _: "big.flood.example")


def hostile(server: str, seconds: float, number: int) -> Counter[str]:
    """Names whose answers are bombs, huge, or malformed; the zone's script sees to it."""
    salt = os.urandom(4).hex()
    return ask_many(server, seconds, number, lambda n: f"{salt}{n:x}.hostile.example")


def datagrams(server: str, seconds: float, number: int) -> Counter[str]:
    """Nothing, 64 KB, garbage, and the corpus of messages that hurt, in no order."""
    dice = random.Random(number)
    shapes = [b"", bytes(65507), os.urandom(65507), b"\0", bytes(12), query(1, "a.flood.example")[:-3]]
    shapes += [path.read_bytes()[:65507] for path in sorted(CORPUS.glob("*.bin"))]
    deadline = time.monotonic() + seconds
    seen: Counter[str] = Counter()
    with udp(server) as opened:
        opened.setblocking(False)
        while time.monotonic() < deadline:
            for shape in dice.sample(shapes, 16):
                try:
                    opened.send(shape)
                    seen["sent"] += 1
                except OSError as error:
                    seen[error.strerror or "error"] += 1
            with contextlib.suppress(OSError):
                while opened.recv(65535):
                    seen["answers"] += 1
            time.sleep(0.002)
    return seen


def scatter(server: str, seconds: float, number: int) -> Counter[str]:
    """Datagrams to `number` different denied destinations and ports, each seen for the first time."""
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.setblocking(False)
        for n in range(number):
            try:
                opened.sendto(b"x", (f"192.0.2.{8 + n // 60_000}", 1 + n % 60_000))
            except OSError:  # the refusal of an earlier one
                seen["refusals"] += 1
            seen["sent"] += 1
            if time.monotonic() > deadline:
                break
    return seen


def crowd(server: str, seconds: float, number: int) -> Counter[str]:
    """Hold `number` TCP connections open, opening another for each that is closed."""
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    chosen = selectors.DefaultSelector()
    held = 0
    with chosen:
        while time.monotonic() < deadline:
            for _ in range(min(200, number - held)):
                opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                opened.setblocking(False)
                opened.connect_ex((server, 53))
                chosen.register(opened, selectors.EVENT_READ)
                held += 1
                seen["opened"] += 1
            seen["held at most"] = max(seen["held at most"], held)
            for key, _ in chosen.select(0.02):
                chosen.unregister(key.fileobj)
                assert isinstance(key.fileobj, socket.socket)
                key.fileobj.close()
                held -= 1
                seen["closed by the server"] += 1
        seen["held at the end"] = held
        for entry in list(chosen.get_map().values()):
            assert isinstance(entry.fileobj, socket.socket)
            entry.fileobj.close()
    return seen


def slow(server: str, seconds: float, number: int) -> Counter[str]:
    """TCP clients that send an octet at a time, and others that ask for much and never read."""
    seen: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    message = query(7, "big.flood.example")
    framed = struct.pack("!H", len(message)) + message
    clients = []
    for index in range(number):
        opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        opened.settimeout(0.5)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        try:
            opened.connect((server, 53))
        except OSError:
            seen["refused"] += 1
            opened.close()
            continue
        opened.setblocking(False)
        clients.append((index, opened))
    step = 0
    while time.monotonic() < deadline and clients:
        for index, opened in list(clients):
            octets = framed[step % len(framed) :][:1] if index % 2 else framed * 50
            try:
                opened.send(octets)
                seen["sent"] += 1
            except BlockingIOError:
                seen["held back"] += 1
            except OSError:
                seen["closed by the server"] += 1
                clients.remove((index, opened))
                opened.close()
        step += 1
        time.sleep(0.1)
    for _, opened in clients:
        opened.close()
    return seen


ZONES: Final = {
    "distinct": "distinct.flood.example",
    "few": "few.flood.example",
    "nxdomain": "nothing.example",
    "denied": "denied.example",
}
MODES: Final = {
    **{act.__name__: act for act in (flood, speed, hostile, datagrams, scatter, crowd, slow)},
    **{name: names_in(zone) for name, zone in ZONES.items()},
    "mixed": flood,
}

if __name__ == "__main__":
    mode, server, seconds, number = sys.argv[1:]
    print(json.dumps(MODES[mode](server, float(seconds), int(number))))
