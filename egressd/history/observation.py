"""What history remembers: one observation is everything alike that one workload did on one day. Values, no I/O.

The fields of a `Key` are in the order of the table's primary key: all of a day lies together, in it all of a
workload, and in that all of a name, so that a day is read, summed up and deleted from one end to the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from egressd.names import Pattern

__all__ = [
    "ABSENT",
    "DAY_S",
    "MANY_PORTS",
    "NO_PORT",
    "PRIVATE",
    "Edge",
    "Filter",
    "Key",
    "Observation",
    "Sums",
    "Trace",
    "Use",
]

DAY_S: Final = 86_400
NO_PORT: Final = -1
MANY_PORTS: Final = 0
"""Port of flows to more ports of one name than are remembered one by one; no flow that matters goes to port 0."""
ABSENT: Final = "absent"
PRIVATE: Final = "private"
"""What is remembered of an answer: that there was no such name, or that it held an address that is not ordinary."""


class Key(NamedTuple):
    """What observations have in common. Text that does not apply is empty."""

    day: int
    """Days since the epoch, UTC."""
    namespace: str
    workload: str
    """`KIND/NAME`, as in `Deployment/web`; `Pod/NAME` of a pod without an owner."""
    name: str
    """The domain name; of a flow to an address without one, the address; `*.DOMAIN`, `*` or a block where folded."""
    verdict: str
    reason: str
    policy: str
    rule: str
    search: bool
    """Noise of a search list."""
    event: str
    """`dns` or `flow`."""
    port: int
    protocol: str
    """As in the audit records; empty for `dns`."""
    service_account: str
    answer: str
    """`ABSENT`, `PRIVATE` or empty; of queries that went through."""


class Sums(NamedTuple):
    """How often, and when. Times in seconds since the epoch."""

    first_seen: int
    last_seen: int
    number: int
    """Queries, or flow records."""
    packets: int


class Observation(NamedTuple):
    """One row of history."""

    key: Key
    sums: Sums


class Edge(NamedTuple):
    """What one workload did with one name under one decision, over days."""

    namespace: str
    workload: str
    name: str
    verdict: str
    reason: str
    policy: str
    rule: str
    search: bool


class Trace(NamedTuple):
    """What somebody decided about a name, and when that was seen last."""

    namespace: str
    service_account: str
    event: str
    name: str
    verdict: str
    reason: str
    policy: str
    rule: str
    last_seen: int


class Use(NamedTuple):
    """How often a rule decided, and when last."""

    number: int
    last_seen: int


@dataclass(frozen=True, slots=True)
class Filter:
    """Which observations are wanted; None: any. Times in seconds since the epoch.

    A day's observations are sums: those that reach into the time from `since` to `until` are taken whole.
    """

    since: float = 0.0
    until: float | None = None
    namespace: str | None = None
    workload: str | None = None
    name: Pattern | None = None
    verdict: str | None = None
    event: str | None = None
