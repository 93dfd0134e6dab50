"""What a sandboxed command was denied, counted from its audit records, and the option that would allow it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

__all__ = ["Denials"]

MAX_KEPT: Final = 1000
"""Different destinations that are counted; a program that asks for more is told of the first."""
MAX_TOLD: Final = 50
"""Lines of the summary."""
HEADS: Final = {"denied": "denied:", "would-deny": "would be denied, were it not for mode: Audit:"}
"""The verdicts that are summed up."""
REMEDIES: Final = {
    "no-rule": "{option}",
    "rebinding": "{option} --allow-private (it answers with a private address)",
    "deny-rule": "(denied by rule {rule} of the policy)",
    "foreign-resolver": "{option} (a resolver of its own: it would see every name)",
    "rate-limit": "(too many queries)",
}
"""What would let it through, by reason; of others, the reason is told."""
ICMP: Final = frozenset({"icmp", "icmpv6"})


class _Denied(NamedTuple):
    """One thing that was stopped, the same however often."""

    verdict: str
    what: str
    """A name, or an address with its port and protocol."""
    unit: str
    """What is counted: `queries` or `packets`."""
    remedy: str
    """The option, or why none helps."""


class Denials:
    """Counts what was stopped; `lines` tells it. Bounded, whatever the command does."""

    def __init__(self) -> None:
        self._counts: dict[_Denied, int] = {}
        self._left_out = 0

    def take(self, line: bytes) -> None:
        """Note one audit record, a line of JSON.

        Passed over are records that denied nothing, names that a resolver's search list made, and what is no record.
        """
        try:
            record = json.loads(line)
        except ValueError:
            return
        if record.get("verdict") not in HEADS or record.get("search"):
            return
        denied, count = _query(record) if record["event"] == "dns" else _flow(record)
        if denied in self._counts or len(self._counts) < MAX_KEPT:
            self._counts[denied] = self._counts.get(denied, 0) + count
        else:
            self._left_out += 1

    def lines(self) -> Iterator[str]:
        """The summary, most frequent first; nothing where nothing was denied."""
        told = sorted(self._counts.items(), key=lambda item: -item[1])[:MAX_TOLD]
        rows = [(denied, _times(count, denied.unit)) for denied, count in told]
        wide = max((len(denied.what) for denied, _ in rows), default=0)
        often = max((len(times) for _, times in rows), default=0)
        for verdict, head in HEADS.items():
            shown = [(denied, times) for denied, times in rows if denied.verdict == verdict]
            if shown:
                yield head
            for denied, times in shown:
                yield f"  {denied.what.ljust(wide)}  {times.ljust(often)}  {denied.remedy}".rstrip()
        more = len(self._counts) - len(told)
        if more:
            yield f"  and {'more than ' if self._left_out else ''}{more} others (--audit FILE keeps every record)"


def _times(count: int, unit: str) -> str:
    return f"{count} {unit}" if count > 1 else f"1 {_SINGULAR[unit]}"


_SINGULAR: Final = {"queries": "query", "packets": "packet"}


def _query(record: dict[str, Any]) -> tuple[_Denied, int]:
    name = record["query"].get("name", "")
    count = max(1, record.get("aggregated", 0))
    what = name or ("other names" if record.get("aggregated") else "what is no DNS query")
    return _Denied(
        record["verdict"], what, "queries", _remedy(record, _option("*" if name == "." else name)) if name else ""
    ), count


def _flow(record: dict[str, Any]) -> tuple[_Denied, int]:
    there = record["destination"]
    address, protocol, names = there["ip"], there["protocol"], there["names"]
    host = f"[{address}]" if ":" in address else address
    if "port" in there and protocol not in ICMP:
        where, ports = f":{there['port']}", f":{there['port']}/{protocol.upper()}"
    else:
        where, ports = "", ":*/ICMP" if protocol in ICMP else ""
    what = f"{names[0]} ({host}){where}/{protocol}" if names else f"{host}{where}/{protocol}"
    remedy = _remedy(record, _option((names[0] if names else host) + ports))
    return _Denied(record["verdict"], what, "packets", remedy), record["packets"]


def _option(peer: str) -> str:
    return f"--allow {shlex.quote(peer)}"


def _remedy(record: dict[str, Any], option: str) -> str:
    return REMEDIES.get(record["reason"], "({reason})").format(
        option=option, rule=record.get("rule", ""), reason=record["reason"]
    )
