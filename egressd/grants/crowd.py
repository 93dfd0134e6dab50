"""Who leaves when there are too many grants: the oldest first, and those with a live connection after all others.

Whether an address has a live connection is known only to the kernel, and asking takes longer than an answer may wait
for. So a name may hold `OVERSHOOT` more than its bound until somebody has looked: what the look is to be about is a
`Crowd`, what it found is marked on the grants (`Grant.live`), and the marks also guide those bounds that cannot wait.
There a mark is good for one round: a marked grant goes behind all others, unmarked, so that finding the one to leave
costs little however many are marked (the clock algorithm of page replacement). Sans-IO.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

from egressd.grants.elements import Grant
from egressd.names import Name

__all__ = ["EVICT_MOST", "LOOK", "NEAR", "OVERSHOOT", "Crowd", "oldest_address", "oldest_name"]

OVERSHOOT: Final = 1024
"""Grants of one name beyond its bound: room for two answers of 512 records until a look, and for what it spares. Past
it the oldest leave at once. At 136 octets of kernel memory and 370 of ours at most, a name in excess costs 500 KiB."""
LOOK: Final = 4096
"""Addresses that one look is about, or one more name's: 2,048 and an answer's 512 at most."""
NEAR: Final = 16
"""The total bound is near when less than one in so many places is free: then its next victims are looked at."""
EVICT_MOST: Final = 1000
"""Grants, or their elements where they have several ports, that one `trim` pushes out: 3 ms here, and as much in the
kernel, for which DNS waits."""
ROUND: Final = 64
"""Names of which all is marked that one eviction passes over before it takes the next, marked or not."""


class Crowd(NamedTuple):
    """What a look at the connections is to tell: names whose grants are too many, or soon will be."""

    names: tuple[tuple[int, Name], ...]
    """Subject and name; the oldest first."""
    addresses: dict[int, frozenset[bytes]]
    """Their addresses, by subject, as they were when the look began."""


def oldest_address(held: dict[bytes, Grant]) -> tuple[bytes, int]:
    """The address that is to leave first, and how many were passed over, which go behind the others. `held` is in the
    order of leaving, and not empty."""
    for passed in range(len(held)):
        address = next(iter(held))
        grant = held[address]
        if not grant.live:
            return address, passed
        grant.live = False
        held[address] = held.pop(address)
    return next(iter(held)), len(held)


def oldest_name(names: OrderedDict[Name, dict[bytes, Grant]]) -> tuple[Name, int]:
    """The name that is to lose a grant first, and how many grants were passed over. `names` is not empty."""
    passed = 0
    for _ in range(min(ROUND, len(names) - 1)):
        name = next(iter(names))
        held = names[name]
        if not all(grant.live for grant in held.values()):
            return name, passed
        for grant in held.values():
            grant.live = False
        passed += len(held)
        names.move_to_end(name)
    return next(iter(names)), passed
