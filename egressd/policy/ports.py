"""The algebra of ports: sets of (protocol, port) as disjoint boxes in one canonical order.

`Ports` is a value: two sets of ports are equal exactly when their tuples are. Everything here returns the canonical
form, and takes any spans that `normalise` takes, overlapping ones included. No rule, name or address is known here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Final

from egressd.model import ANY_PORT, Ports, PortSpan

__all__ = ["WIDE_RANGE", "Grid", "contains", "intersect", "normalise", "point", "ports_text", "subtract", "union"]

WIDE_RANGE: Final = 16
"""Ports of one protocol up to which a span becomes single elements of a hash set; wider ones need an interval set."""

_MAX_PORT: Final = 65_535
_NAMES: Final = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6", 132: "SCTP"}

Range = tuple[int, int]
"""First and last port, both inclusive."""


def normalise(spans: Iterable[PortSpan]) -> Ports:
    """The same set in canonical form: protocols with equal ports share a span, touching ranges are one, ascending."""
    return _by_protocol(tuple(spans), (), lambda mine, _: mine)


def union(*several: Ports) -> Ports:
    """Every port that is in any of them; `()` for none."""
    parts = [ports for ports in several if ports]
    if len(parts) == 1:
        return normalise(parts[0]) if len(parts[0]) > 1 else parts[0]
    return ANY_PORT if ANY_PORT in parts else normalise(span for ports in parts for span in ports)


def subtract(ports: Ports, less: Ports) -> Ports:
    """Every port of `ports` that is not in `less`."""
    if not less:
        return normalise(ports)
    return () if less == ANY_PORT else _by_protocol(ports, less, _cut)


def intersect(ports: Ports, other: Ports) -> Ports:
    """Every port that is in both."""
    if ANY_PORT in (ports, other):
        return normalise(other if ports == ANY_PORT else ports)
    return normalise(box for a in ports for b in other if (box := _overlap(a, b)) is not None)


def contains(ports: Ports, protocol: int, port: int) -> bool:
    """Whether the port of the protocol is in the set; `port` -1 asks for some port of it."""
    return any(
        span.first_protocol <= protocol <= span.last_protocol
        and (port < 0 or span.first_port <= port <= span.last_port)
        for span in ports
    )


def point(protocol: int, port: int) -> Ports:
    """One port of one protocol, or with `port` -1 all of that protocol."""
    first, last = (0, _MAX_PORT) if port < 0 else (port, port)
    return (PortSpan(protocol, protocol, first, last),)


class Grid:
    """Cuts spans at every border that the rules of one subject have, so that any two pieces are equal or disjoint.

    Two names may open different wide ranges of one address; the kernel's interval sets refuse what overlaps
    (kernel.md, Messages), so both must be made of the same pieces. Single ports need no cutting: they are elements of
    a hash set.
    """

    def __init__(self, several: Iterable[Ports]) -> None:
        spans = {span for ports in several for span in ports}
        self._protocols = sorted({edge for span in spans for edge in (span.first_protocol, span.last_protocol + 1)})
        self._ports = sorted({edge for span in spans for edge in (span.first_port, span.last_port + 1)})
        self._known: dict[Ports, Ports] = {ANY_PORT: ANY_PORT}

    def cut(self, ports: Ports) -> Ports:
        """The same ports in pieces; every port of every protocol stays whole, for it has a set of its own."""
        known = self._known.get(ports)
        if known is None:
            known = self._known[ports] = tuple(sorted(piece for span in ports for piece in self._pieces(span)))
        return known

    def _pieces(self, span: PortSpan) -> Iterable[PortSpan]:
        if span.first_protocol == span.last_protocol and span.last_port - span.first_port < WIDE_RANGE:
            return (span,)
        protocols = _between(self._protocols, span.first_protocol, span.last_protocol)
        ports = _between(self._ports, span.first_port, span.last_port)
        return (PortSpan(a, b, c, d) for a, b in protocols for c, d in ports)


def _between(edges: Sequence[int], first: int, last: int) -> list[Range]:
    """The range from `first` to `last` cut at the edges inside it."""
    inner = [edge for edge in edges if first < edge <= last]
    return [(start, end - 1) for start, end in pairwise([first, *inner, last + 1])]


# ------------------------------------------------------------------------------------------------ rows


def _by_protocol(mine: Ports, others: Ports, merge: Callable[[list[Range], list[Range]], list[Range]]) -> Ports:
    """Apply `merge` to the port ranges of both sets, one run of protocols that neither splits after the other.

    Every set has one maximal run of protocols for each distinct list of ranges, which is what makes the form canonical.
    """
    if len(mine) <= 1 and not others:
        return mine
    edges = sorted({edge for span in (*mine, *others) for edge in (span.first_protocol, span.last_protocol + 1)})
    runs: list[tuple[int, int, list[Range]]] = []
    for first, after in pairwise(edges):
        ranges = merge(_ranges(mine, first), _ranges(others, first))
        if not ranges:
            continue
        if runs and runs[-1][1] == first - 1 and runs[-1][2] == ranges:
            runs[-1] = (runs[-1][0], after - 1, ranges)
        else:
            runs.append((first, after - 1, ranges))
    return tuple(PortSpan(first, last, *ports) for first, last, ranges in runs for ports in ranges)


def _ranges(spans: Sequence[PortSpan], protocol: int) -> list[Range]:
    """The port ranges of one protocol: ascending, disjoint, not touching."""
    out: list[Range] = []
    found = sorted((s.first_port, s.last_port) for s in spans if s.first_protocol <= protocol <= s.last_protocol)
    for first, last in found:
        if out and first <= out[-1][1] + 1:
            out[-1] = (out[-1][0], max(out[-1][1], last))
        else:
            out.append((first, last))
    return out


def _cut(mine: list[Range], others: list[Range]) -> list[Range]:
    """The ranges of `mine` without those of `others`, both as `_ranges` gives them."""
    out: list[Range] = []
    for start, last in mine:
        first = start
        for other_first, other_last in others:
            if other_last < first or other_first > last:
                continue
            if other_first > first:
                out.append((first, other_first - 1))
            first = other_last + 1
        if first <= last:
            out.append((first, last))
    return out


def _overlap(a: PortSpan, b: PortSpan) -> PortSpan | None:
    box = PortSpan(
        max(a.first_protocol, b.first_protocol),
        min(a.last_protocol, b.last_protocol),
        max(a.first_port, b.first_port),
        min(a.last_port, b.last_port),
    )
    return box if box.first_protocol <= box.last_protocol and box.first_port <= box.last_port else None


# ------------------------------------------------------------------------------------------------ text


def ports_text(ports: Ports) -> str:
    """Spell a set as a policy would: `443/TCP, 8000-8100/TCP`, `*/ICMP`, `any`, `any but 25/TCP`, `none`."""
    ports = normalise(ports)
    if ports == ANY_PORT:
        return "any"
    if not ports:
        return "none"
    without = subtract(ANY_PORT, ports)
    if len(without) < len(ports):
        return f"any but {_spans_text(without)}"
    return _spans_text(ports)


def _spans_text(ports: Ports) -> str:
    rest = list(ports)
    texts = []
    both = [PortSpan(number, number, 0, _MAX_PORT) for number in (1, 58)]
    if all(span in rest for span in both):  # ICMP in a policy means ICMP and ICMPv6
        rest = [span for span in rest if span not in both]
        texts.append("*/ICMP")
    return ", ".join([*(_span_text(span) for span in rest), *texts])


def _span_text(span: PortSpan) -> str:
    first_protocol, last_protocol, first, last = span
    ports = str(first) if first == last else f"{first}-{last}" if (first, last) != (0, _MAX_PORT) else "*"
    if first_protocol == last_protocol:
        return f"{ports}/{_NAMES.get(first_protocol, f'protocol {first_protocol}')}"
    return f"{ports}/protocols {first_protocol}-{last_protocol}"
