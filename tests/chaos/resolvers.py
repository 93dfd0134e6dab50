"""What resolvers do that are dead, slow, lying, refusing, truncating or flapping, and answers that are traps."""

from __future__ import annotations

import itertools
import random
import struct
import time
from collections.abc import Callable, Sequence
from typing import Final

from chaos.identities import FORGED
from chaos.stage import ATTACK_S, OUTAGE_S, SERVED, Stage
from egressd.lab import Query, Sections, message, name_wire

__all__ = [
    "closed",
    "dead",
    "flapping",
    "hostile_answers",
    "lying",
    "one_dead",
    "refusing",
    "slow",
    "truncating",
]


def dead(stage: Stage) -> None:
    _misbehave(stage, drop=1 << 40)


def closed(stage: Stage) -> None:
    stage.node.dns.close()
    time.sleep(OUTAGE_S)
    stage.node.dns.start()


def one_dead(stage: Stage) -> None:
    stage.node.run(["ip", "route", "add", "blackhole", SERVED[0]], check=True)
    time.sleep(OUTAGE_S)
    stage.node.run(["ip", "route", "del", "blackhole", SERVED[0]], check=True)


def slow(stage: Stage) -> None:
    _misbehave(stage, delay_s=1.0)


def lying(stage: Stage) -> None:
    _misbehave(stage, forge=("wrong-id", "wrong-question", "wrong-port", "wrong-address", "garbage"), forged=FORGED)


def refusing(stage: Stage) -> None:
    _misbehave(stage, rcode=5)


def truncating(stage: Stage) -> None:
    _misbehave(stage, truncate=True)


def flapping(stage: Stage) -> None:
    for _ in range(4):
        _misbehave(stage, seconds=OUTAGE_S / 8, drop=1 << 40)
        time.sleep(OUTAGE_S / 8)


def _misbehave(stage: Stage, seconds: float = OUTAGE_S, **how: object) -> None:
    zone = stage.node.dns.zone
    zone.behave("*", **how)  # type: ignore[arg-type]  # keyword arguments of `behave`, by name
    time.sleep(seconds)
    zone.behave("*")


def hostile_answers(stage: Stage) -> str:
    zone = stage.node.dns.zone
    dice = random.Random(stage.options.seed)

    def answer(query: Query) -> Sequence[bytes]:
        if query.name.endswith("hostile.example"):
            return [bomb(query, dice.randrange(len(BOMBS)))]
        return [message(query, zone.sections(query.case, query.name, query.qtype))]

    zone.behave("*", script=answer)
    try:
        return stage.attack("hostile", ATTACK_S)
    finally:
        zone.behave("*")


def bomb(query: Query, number: int) -> bytes:
    """An answer to exactly this question that no reader should fall for, or get lost in."""
    answers, octets = BOMBS[number](query)
    return message(query, Sections(0, answers, 0, octets))


def _record(data: bytes, kind: int = 28, owner: bytes = b"\xc0\x0c", ttl: int = 300) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def _end(query: Query) -> int:
    """Offset of the first record."""
    return 12 + len(query.case) + 4


def _pointer_chain(query: Query) -> tuple[int, bytes]:
    """An owner made of pointers to pointers."""
    start = _end(query)
    hops = b"".join((0xC000 | (start + 2 * n)).to_bytes(2, "big") for n in range(200))
    return 1, hops + _record(bytes(16))


def _pointer_to_itself(query: Query) -> tuple[int, bytes]:
    return 1, _record(bytes(16), owner=(0xC000 | _end(query)).to_bytes(2, "big"))


def _long_chain(query: Query) -> tuple[int, bytes]:
    """Forty CNAMEs, and then an address."""
    names = [query.case, *(name_wire(f"c{n}.hostile.example") for n in range(40))]
    links = [_record(after, 5, before) for before, after in itertools.pairwise(names)]
    return 41, b"".join(links) + _record(bytes(16), owner=names[-1])


def _many(_: Query) -> tuple[int, bytes]:
    """Two thousand addresses."""
    return 2000, b"".join(_record(b"\x20\x01\x0d\xb8" + n.to_bytes(12, "big")) for n in range(2000))


BOMBS: Final[tuple[Callable[[Query], tuple[int, bytes]], ...]] = (
    _pointer_chain,
    _pointer_to_itself,
    _long_chain,
    _many,
    lambda _: (65535, b""),
    lambda _: (1, b"\xc0\x0c\0\x1c\0\1\0\0\0\1\xff\xff" + bytes(16)),
    lambda _: (1, _record(bytes(16), ttl=1 << 31)),
    lambda _: (1, bytes(60_000)),
    lambda _: (1, _record(bytes(5))),
)
