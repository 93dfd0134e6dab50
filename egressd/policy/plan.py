"""What the kernel must know of a subject: address rules as disjoint boxes, and which grant sets its names need.

The boxes say exactly what `Judge.judge_address` says of addresses: deny before allow, everything else closed but for
the cluster's own blocks, which the kernel keeps once for all subjects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from egressd.model import ANY_PORT, Mode, Policy, PortSpan
from egressd.policy.ports import WIDE_RANGE, union
from egressd.policy.sweep import FAMILIES, AddressSpace, before
from egressd.policy.verdict import Entry

__all__ = ["Interval", "Plan", "make_plan"]


class Interval(NamedTuple):
    """Addresses `first` to `last` (inclusive, one family) on one span of ports; None is all of every protocol."""

    first: bytes
    last: bytes
    span: PortSpan | None


@dataclass(frozen=True, slots=True)
class Plan:
    """One subject's instance of the kernel template. The boxes of a list are disjoint; both families are mixed."""

    comment: str
    """Names of the policies, separated by spaces."""
    enforced: bool
    """False where only Audit policies select the pods: what is not allowed is then reported, not denied."""
    allow: tuple[Interval, ...]
    deny: tuple[Interval, ...]
    report: tuple[Interval, ...]
    """Where Audit policies beside enforced ones would deny."""
    grants: frozenset[str]
    """The grant sets that names can need: `port`, `any`, `range`."""


Chooser = Callable[[Entry], bool]


def make_plan(policies: Sequence[Policy], entries: Sequence[Entry], blocks: AddressSpace[Entry]) -> Plan:
    """The plan of a subject. Where no policy is enforced, the audited ones are planned as if they were."""
    enforced = any(policy.mode is Mode.ENFORCE for policy in policies)
    counts: Chooser = (lambda entry: not entry.audited) if enforced else (lambda _: True)
    return Plan(
        comment=" ".join(policy.name for policy in policies),
        enforced=enforced,
        allow=_boxes(blocks, lambda entry: counts(entry) and not entry.deny),
        deny=_boxes(blocks, lambda entry: counts(entry) and entry.deny),
        report=_boxes(blocks, lambda entry: entry.audited and entry.deny) if enforced else (),
        grants=_grant_kinds([entry for entry in entries if counts(entry) and entry.rule.patterns]),
    )


def _boxes(blocks: AddressSpace[Entry], counts: Chooser) -> tuple[Interval, ...]:
    """The union of the chosen rules' boxes, cell by cell."""
    known: dict[tuple[Entry, ...], frozenset[PortSpan | None]] = {}

    def spans(over: tuple[Entry, ...]) -> frozenset[PortSpan | None]:
        found = known.get(over)
        if found is None:
            ports = union(*(entry.ports for entry in over if counts(entry)))
            found = known[over] = frozenset({None} if ports == ANY_PORT else ports)
        return found

    out: list[Interval] = []
    for octets in FAMILIES:
        out += _merged(((first, spans(over)) for first, over in blocks.cells(octets)), b"\xff" * octets)
    return tuple(out)


def _merged(cells: Iterable[tuple[bytes, frozenset[PortSpan | None]]], highest: bytes) -> list[Interval]:
    """Boxes of neighbouring cells that have the same span become one. Ascending by address."""
    out: list[Interval] = []
    running: dict[PortSpan | None, bytes] = {}
    spanned: frozenset[PortSpan | None] = frozenset()
    for start, spans in cells:
        if spans == spanned:
            continue
        spanned = spans
        out += [Interval(running.pop(span), before(start), span) for span in running.keys() - spans]
        for span in spans - running.keys():
            running[span] = start
    out += [Interval(start, highest, span) for span, start in running.items()]
    return sorted(out, key=lambda box: (box.first, box.last, box.span or ()))


def _kind(span: PortSpan) -> str:
    narrow = span.first_protocol == span.last_protocol and span.last_port - span.first_port < WIDE_RANGE
    return "port" if narrow else "range"


def _grant_kinds(entries: Sequence[Entry]) -> frozenset[str]:
    """Which sets the grants of any name can need, from the rules with patterns; too many rather than too few.

    Which rules meet on one name is not known here. Spans of several rules may join into a wide one, and a deny rule may
    leave any piece of a wide one; no other piece can arise.
    """
    allowed = [entry.ports for entry in entries if not entry.deny]
    together = union(*(ports for ports in allowed if ports != ANY_PORT))
    kinds = {_kind(span) for ports in (*allowed, together) if ports != ANY_PORT for span in ports}
    if ANY_PORT in (*allowed, together):
        kinds.add("any")
    bars_ports = any(entry.deny and entry.ports != ANY_PORT for entry in entries)
    if bars_ports and kinds & {"any", "range"}:
        kinds |= {"port", "range"}
    if "range" in kinds:
        kinds.add("port")  # a wide span is cut where other rules have borders, and a piece may be narrow
    return frozenset(kinds)
