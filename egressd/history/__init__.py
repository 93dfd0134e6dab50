"""History: what workloads did, summed up by day, in an embedded database that is bounded and may be lost.

Questions about last week thus need no log pipeline. `Keeper` is all of it to the control side: `pending` sums up audit
lines in memory, `folding` keeps a flood of names to a handful of rows, `store` is the file, `reading` the questions to
it, and `book` what is done when the file is broken or the disk takes nothing.
"""

from __future__ import annotations

from egressd.history.keeper import Counts, Keeper, Span, peers_of
from egressd.history.observation import ABSENT, MANY_PORTS, PRIVATE, Edge, Filter, Key, Observation, Sums, Trace, Use
from egressd.history.reading import Traffic

__all__ = [
    "ABSENT",
    "MANY_PORTS",
    "PRIVATE",
    "Counts",
    "Edge",
    "Filter",
    "Keeper",
    "Key",
    "Observation",
    "Span",
    "Sums",
    "Trace",
    "Traffic",
    "Use",
    "peers_of",
]
