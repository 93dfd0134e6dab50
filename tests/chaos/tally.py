"""What the load writes down of each thing it tried, and how such records are counted by phase. Pure.

A record says when something began (monotonic seconds, one clock for all processes), how long it took, what it was and
how it ended. It belongs to the phase it began in; only what went wrong counts against the next strike if that fell into
its first moments (`BLAME_S`), as with a query in flight when the data path is killed.
"""

from __future__ import annotations

import bisect
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final, NamedTuple

__all__ = ["Ending", "Kind", "Phase", "Record", "Total", "add_records", "percentile", "read_records", "totals"]


class Kind(IntEnum):
    """What was tried."""

    KNOWN = 1
    """Look-up of an allowed name that is asked all the time."""
    FRESH = 2
    """Look-up of an allowed name that was never asked before."""
    DENIED = 3
    """Look-up of a denied name."""
    DIAL_KNOWN = 4
    """TCP connection to an address of an allowed name looked up before."""
    DIAL_FRESH = 5
    """TCP connection to the address that a fresh name's answer just gave."""
    DIAL_DENIED = 6
    """TCP connection where no policy leads."""
    SEND_DENIED = 7
    """UDP datagram where no policy leads."""
    LIVE = 8
    """Life of a long TCP connection: one record when it opens, one if it is cut."""


class Ending(IntEnum):
    """How it ended. For what is denied, GOOD means: it was refused."""

    GOOD = 0
    RETRIED = 1
    """Answered, but only the second try."""
    LOST = 2
    """A look-up that no try had an answer to."""
    ERROR = 3
    """A look-up answered with anything but NOERROR and an address; for a denied name: with anything but a denial."""
    UNFILTERED = 4
    """A denied name was resolved: nobody intercepts (allowed by `when_down: Bypass`)."""
    REFUSED = 5
    SILENCE = 6
    THROUGH = 7
    """What is denied got through."""
    CUT = 8


LOOKUPS: Final = (Kind.KNOWN, Kind.FRESH)
FAILED: Final = (Ending.LOST, Ending.ERROR)
NOT_OPEN: Final = (Ending.REFUSED, Ending.SILENCE)
BLAME_S: Final = 0.5
"""Longer than a look-up takes that goes well, and than a long connection is silent."""
LAYOUT: Final = struct.Struct("<dfBBH")


class Record(NamedTuple):
    """`began` and `lasted` in seconds; `detail` is the rcode of a look-up, the port of a dial."""

    began: float
    lasted: float
    kind: int
    ending: int
    detail: int

    def pack(self) -> bytes:
        return LAYOUT.pack(*self)


def read_records(data: bytes) -> Iterator[Record]:
    """Whole records of a file; a half-written last one is left out."""
    whole = len(data) - len(data) % LAYOUT.size
    return (Record(*fields) for fields in LAYOUT.iter_unpack(data[:whole]))


@dataclass
class Phase:
    """From one strike to the next."""

    fault: str
    began: float
    ended: float = 0.0
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    """Seconds, of allowed look-ups answered at all."""
    last_trouble: float = 0.0
    """When the last thing that went wrong began."""
    contacts_through: int = 0
    """What arrived in the internet and should not have, as seen there."""
    data_rss: float = 0.0
    control_rss: float = 0.0
    """Peaks, MiB."""
    note: str = ""
    exposed_s: float = 0.0
    """Seconds from its beginning in which nothing may be enforced: what gets through then is counted apart."""
    exposed: int = 0
    contacts_exposed: int = 0
    accusations: list[str] = field(default_factory=list)
    """Promises that the fault's action itself saw broken."""
    failures: Counter[str] = field(default_factory=Counter)
    """Allowed look-ups that failed, by what came of them."""

    @property
    def trouble_s(self) -> float:
        """Seconds after the strike in which something still went wrong."""
        return max(0.0, self.last_trouble - self.began)


def add_records(phases: Sequence[Phase], records: Iterable[Record]) -> None:
    """Count records into the phases (in order of time) that they belong to; earlier ones are warm-up."""
    starts = [phase.began for phase in phases]
    for record in records:
        at = bisect.bisect_right(starts, record.began) - 1
        blamed = record.began + min(record.lasted, BLAME_S)
        if record.ending and at + 1 < len(starts) and starts[at + 1] < blamed:
            at += 1
        if at >= 0 and (not phases[at].ended or record.began < phases[at].ended):
            _add(phases[at], record)


def _add(phase: Phase, record: Record) -> None:
    if record.ending == Ending.THROUGH and record.began < phase.began + phase.exposed_s:
        phase.exposed += 1
        return
    phase.counts[record.kind, record.ending] += 1
    if record.kind in LOOKUPS and record.ending in FAILED:
        way = "no answer" if record.ending == Ending.LOST else f"rcode {record.detail}"
        phase.failures[f"{Kind(record.kind).name.lower()}: {way}"] += 1
    if record.ending:
        phase.last_trouble = max(phase.last_trouble, record.began, phase.began)
    if record.kind in LOOKUPS and record.ending in (Ending.GOOD, Ending.RETRIED):
        phase.latencies.append(record.lasted)


@dataclass
class Total:
    """Phases of one fault, summed up."""

    fault: str
    strikes: int = 0
    counts: Counter[tuple[int, int]] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    trouble_s: float = 0.0
    contacts_through: int = 0
    data_rss: float = 0.0
    control_rss: float = 0.0
    exposed: int = 0
    """Denied connections that got through while the kernel had no table."""
    accusations: list[str] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    notes: dict[str, None] = field(default_factory=dict)

    def count(self, kinds: Iterable[int], endings: Iterable[int] = tuple(Ending)) -> int:
        endings = tuple(endings)
        return sum(self.counts[kind, ending] for kind in kinds for ending in endings)

    @property
    def asked(self) -> int:
        return self.count(LOOKUPS)

    @property
    def failed(self) -> int:
        """Allowed look-ups that had no good answer after all tries."""
        return self.count(LOOKUPS, FAILED)

    @property
    def retried(self) -> int:
        return self.count(LOOKUPS, (Ending.RETRIED,))

    @property
    def refused_known(self) -> int:
        return self.count((Kind.DIAL_KNOWN,), NOT_OPEN)

    @property
    def refused_fresh(self) -> int:
        return self.count((Kind.DIAL_FRESH,), NOT_OPEN)

    @property
    def denied_tried(self) -> int:
        return self.count((Kind.DIAL_DENIED, Kind.SEND_DENIED))

    @property
    def through(self) -> int:
        """Denied connections that got through: what clients saw, or what the internet saw, whichever is more."""
        return max(self.count((Kind.DIAL_DENIED, Kind.SEND_DENIED), (Ending.THROUGH,)), self.contacts_through)

    @property
    def cut(self) -> int:
        return self.count((Kind.LIVE,), (Ending.CUT,))


def totals(phases: Iterable[Phase]) -> list[Total]:
    """One sum for each fault, in the order of their first strike."""
    found: dict[str, Total] = {}
    for phase in phases:
        total = found.setdefault(phase.fault, Total(phase.fault))
        total.strikes += 1
        total.counts += phase.counts
        total.latencies += phase.latencies
        total.trouble_s = max(total.trouble_s, phase.trouble_s)
        total.contacts_through += phase.contacts_through
        total.exposed += max(phase.exposed, phase.contacts_exposed)
        total.accusations += phase.accusations
        total.failures += phase.failures
        total.data_rss = max(total.data_rss, phase.data_rss)
        total.control_rss = max(total.control_rss, phase.control_rss)
        if phase.note:
            total.notes[phase.note] = None
    return list(found.values())


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which `part` (0 to 1) of the values lie; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
