"""What a grant is, and what it is made of in the kernel: elements of its sets. Who holds them: sets.py.

Sans-IO; `now` and every end are monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from egressd.compiled import mypyc_attr
from egressd.model import ANY_PORT, Ports, PortSpan
from egressd.names import Name

__all__ = [
    "LINGER_S",
    "NOTHING",
    "UNSELECTED_SUBJECT",
    "WIDE_RANGE",
    "Admission",
    "Element",
    "Grant",
    "GrantView",
    "Key",
    "Permit",
    "expand",
    "made",
    "milliseconds",
]

UNSELECTED_SUBJECT: Final = 0
"""Subject number of pods that no policy selects: remembered, so that a policy that comes to select them cuts nothing it
sanctions, but never programmed."""

WIDE_RANGE: Final = 16
"""Ports of one span up to which each becomes an element of a hash set; wider spans go to an interval set, where
inserting costs O(n)."""

LINGER_S: Final = 5.0
"""Seconds an expired element is remembered, so that one the kernel may still hold is refreshed, not plainly added."""

ICMP: Final = 1
ICMPV6: Final = 58


class Element(NamedTuple):
    """One set element: what `kernel` programs. `kind` is `port`, `any` or `range`; `span` is None for `any`."""

    subject: int
    kind: str
    address: bytes
    span: PortSpan | None
    lifetime_ms: int
    comment: str
    refresh: bool


def made(
    subject: int, kind: str, address: bytes, span: PortSpan | None, lifetime_ms: int, comment: str, refresh: bool
) -> Element:
    """The same as `Element`, without the Python function that every NamedTuple is made by: half of what one costs."""
    return tuple.__new__(Element, (subject, kind, address, span, lifetime_ms, comment, refresh))


class Admission(NamedTuple):
    """What one answer asks of the kernel: elements to write, and elements that a bound pushed out."""

    writes: list[Element]
    gone: list[Element]


NOTHING: Final = Admission([], [])
"""What an answer asks whose grants are alive long enough: the same value for all of them, and nobody's to change."""


class GrantView(NamedTuple):
    """One live grant, for `explain` and the admin API."""

    subject: int
    name: Name
    address: bytes
    ports: Ports
    remaining_s: float


Key = tuple[int, str, bytes, PortSpan | None]
Permit = Callable[[Name, bytes], Ports]
"""What a policy lets a name open of an address today; empty when nothing."""


@mypyc_attr(acyclic=True)
class Grant:
    """One address under one name of one subject."""

    __slots__ = ("address", "due", "live", "name", "place", "ports", "subject", "until")

    def __init__(self, subject: int, name: Name, address: bytes, ports: Ports, until: float) -> None:
        self.subject = subject
        self.name = name
        self.address = address
        self.ports = ports
        self.until = until
        self.due = 0
        """The second that it is kept under in `Due`, and its place there; -1 while it is not there."""
        self.place = -1
        self.live = False
        """Whether the last look at connections found one to it, and no bound has passed it over since (crowd.py)."""


_expansions: dict[tuple[Ports, int], tuple[tuple[str, PortSpan | None], ...]] = {}
_MAX_EXPANSIONS: Final = 4096


def expand(ports: Ports, family_octets: int) -> tuple[tuple[str, PortSpan | None], ...]:
    """The elements (kind, span) that open `ports` of an address of 4 or 16 octets; memoised, since rules are few."""
    key = (ports, family_octets)
    found = _expansions.get(key)
    if found is None:
        if len(_expansions) >= _MAX_EXPANSIONS:
            _expansions.clear()
        found = _expansions[key] = tuple(_expand(ports, family_octets))
    return found


def _expand(ports: Ports, family_octets: int) -> Iterable[tuple[str, PortSpan | None]]:
    if ports == ANY_PORT:
        return [("any", None)]
    out: list[tuple[str, PortSpan | None]] = []
    foreign_icmp = ICMPV6 if family_octets == 4 else ICMP
    for span in ports:
        one_protocol = span.first_protocol == span.last_protocol
        if one_protocol and span.first_protocol == foreign_icmp:
            continue
        if one_protocol and span.last_port - span.first_port < WIDE_RANGE:
            protocol = span.first_protocol
            out += [
                ("port", PortSpan(protocol, protocol, port, port))
                for port in range(span.first_port, span.last_port + 1)
            ]
        else:
            out.append(("range", span))
    return out


def milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))
