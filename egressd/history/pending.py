"""Audit lines summed up in memory until they are written: bytes in, a bounded table of sums out; no file, no clock.

A line is decoded once between two flushes; what comes after it of the same kind (`link.Lines.kinds`) is only counted, a
fifth of a microsecond each. A flood of new names takes no more memory than `MAX_KEYS` entries: what comes on top of
that is remembered without its name, and what comes on top of twice as much is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

import msgspec

from egressd.history.folding import EVERYTHING, Folding
from egressd.history.observation import ABSENT, DAY_S, NO_PORT, PRIVATE, Key, Sums
from egressd.model import Block, Reason, Verdict
from egressd.policy.addresses import Guard, Kind
from egressd.schema.words import read_address

__all__ = ["MAX_KEYS", "Pending"]

MAX_KEYS: Final = 8_192
"""Entries until the next flush: at most about 6 MiB, and the most new rows that one flush can bring."""
MAX_ADDRESSES: Final = 4_096
"""Answered addresses whose kind is known already."""
MAX_PACKETS: Final = 1 << 40
"""What one record may count; a number beyond it is none that the daemon wrote."""


class _Pod(msgspec.Struct, gc=False):
    namespace: str = ""
    name: str = ""
    service_account: str = ""
    workload: str = ""


class _Query(msgspec.Struct, gc=False):
    name: str = ""


class _Response(msgspec.Struct):
    rcode: str = ""
    addresses: list[str] = []


class _Destination(msgspec.Struct):
    ip: str
    protocol: str
    port: int = NO_PORT
    names: list[str] = []


class _Line(msgspec.Struct):
    """What history reads of a record; everything else is skipped, not decoded."""

    time: str
    event: str
    verdict: str = ""
    reason: str = ""
    policy: str = ""
    rule: str = ""
    pod: _Pod | None = None
    query: _Query | None = None
    response: _Response | None = None
    destination: _Destination | None = None
    packets: int = 0
    search: bool = False
    aggregated: int = 0


_TIME: Final = range(len('{"time":"'), len('{"time":"2026-11-22T13:00:00'))
"""Where in a line its time stands, to the second."""
_decoder: Final = msgspec.json.Decoder(_Line)
_WENT_THROUGH: Final = frozenset({str(Verdict.ALLOWED), str(Verdict.WOULD_DENY)})
_KNOWN: Final = {*map(str, Verdict), *map(str, Reason), "dns", "flow"}

Total = list[int]
"""First and last second, count, packets: a `Sums` that is added to."""


class Pending:
    """What was seen since it was last taken."""

    def __init__(self, folding: Folding) -> None:
        self.taken = 0
        """Records, in all."""
        self.dropped = 0
        """Records for which there was no room, in all."""
        self._folding = folding
        self._guard = Guard((), ())
        self._known: dict[Key, Total] = {}
        """Keys as they came, and the sums that they are added to; many of them may share one."""
        self._sums: dict[Key, Total] = {}
        self._kinds: dict[int, Total] = {}
        """What lines of each kind are added to, on `_day`."""
        self._day = 0
        self._head = b""
        self._now = 0
        """The second that `_head` spells."""
        self._moment = ("", 0)
        self._addresses: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def guard(self, cluster: Iterable[Block]) -> None:
        """The cluster's blocks: their addresses in answers are not ordinary."""
        self._guard = Guard(cluster, ())
        self._addresses.clear()
        self._kinds.clear()

    def feed(self, lines: bytes, kinds: Sequence[int] = ()) -> None:
        """Take audit lines, and of each, where that is known, its kind. Those that are no observation are passed over.

        A kind that was seen since the last flush is seen last when the batch ends, a fraction of a second late.
        """
        if not kinds:
            each = lines.splitlines()
            self._learn(each, [0] * len(each))
            return
        last = lines.rfind(b"\n", 0, -1) + 1
        head = lines[last + _TIME.start : last + _TIME.stop]
        if head != self._head:
            self._turn(head)
        now, known, rest = self._now, self._kinds, []
        for place, kind in enumerate(kinds):
            total = known.get(kind)
            if total is None:
                rest.append(place)
                continue
            if total[1] < now:  # noqa: PLR1730 - a call for every line would take longer than all else here
                total[1] = now
            total[2] += 1
        self.taken += len(kinds) - len(rest)
        if rest:
            each = lines.splitlines()
            self._learn([each[place] for place in rest], [kinds[place] for place in rest])

    def _learn(self, lines: Sequence[bytes], kinds: Sequence[int]) -> None:
        """Decode lines of kinds that were not seen since the last flush, and add them up."""
        for record, kind in zip(_decoded(lines), kinds, strict=True):
            total = self._take(record) if record is not None else None
            if total is not None and kind and len(self._kinds) < MAX_KEYS and total[1] // DAY_S == self._day:
                self._kinds[kind] = total

    def _turn(self, head: bytes) -> None:
        """A line of another second; totals of another day are no longer those to add to."""
        self._head, self._now = head, self._second(head.decode("ascii", "replace"))
        if self._now // DAY_S != self._day:
            self._day = self._now // DAY_S
            self._kinds.clear()

    def take(self) -> dict[Key, Sums]:
        """Everything there is; afterwards there is nothing."""
        taken = {key: Sums(*total) for key, total in self._sums.items()}
        self._known, self._sums = {}, {}
        self._kinds.clear()
        return taken

    def give_back(self, sums: dict[Key, Sums]) -> None:
        """Keep what could not be written, as far as there is room."""
        for key, more in sums.items():
            self._add(key, more)

    def _take(self, record: _Line) -> Total | None:
        """Add one record up; returns what it was added to, None where it is no observation or there is no room."""
        pod = record.pod
        if pod is None or not pod.name or record.verdict not in _KNOWN or record.reason not in _KNOWN:
            return None
        second = self._second(record.time)
        name, port, protocol, answer, count = "", NO_PORT, "", "", record.aggregated or 1
        if record.event == "dns" and record.query is not None:
            name = record.query.name or EVERYTHING
            if record.response is not None and record.verdict in _WENT_THROUGH:
                answer = self._answer(record.response)
        elif record.event == "flow" and record.destination is not None:
            to = record.destination
            name, port, protocol = to.names[0] if to.names else to.ip, to.port, to.protocol
        if not name or second <= 0 or not 0 <= record.packets < MAX_PACKETS or not 0 < count < MAX_PACKETS:
            return None
        workload = pod.workload or f"Pod/{pod.name}"
        key = Key._make((
            second // DAY_S, pod.namespace, workload, name, record.verdict, record.reason, record.policy, record.rule,
            record.search, record.event, port, protocol, pod.service_account, answer,
        ))  # fmt: skip
        self.taken += count
        total = self._known.get(key)
        if total is None:
            return self._add(key, (second, second, count, record.packets))
        total[0] = min(total[0], second)
        total[1] = max(total[1], second)
        total[2] += count
        total[3] += record.packets
        return total

    def _add(self, key: Key, more: Sequence[int]) -> Total | None:
        """Add what a `Sums` holds to that of a key not known yet, under the name that it is remembered by."""
        first, last, number, packets = more
        folded = self._folding.fold(key)
        total = self._sums.get(folded)
        if total is None and len(self._sums) >= MAX_KEYS:
            folded = folded._replace(name=EVERYTHING)
            total = self._sums.get(folded)
        if total is None:
            if len(self._sums) >= 2 * MAX_KEYS:
                self.dropped += number
                return None
            total = self._sums[folded] = [*more]
        else:
            total[0] = min(total[0], first)
            total[1] = max(total[1], last)
            total[2] += number
            total[3] += packets
        if folded is key:
            self._known[key] = total
        return total

    def _second(self, text: str) -> int:
        """Seconds since the epoch; most lines of a batch are of one second. 0 where there is no time."""
        head = text[:19]
        if head != self._moment[0]:
            try:
                self._moment = head, int(datetime.fromisoformat(f"{head}Z").timestamp())
            except ValueError:
                return 0
        return self._moment[1]

    def _answer(self, response: _Response) -> str:
        if response.rcode == "NXDOMAIN":
            return ABSENT
        return PRIVATE if any(map(self._private, response.addresses)) else ""

    def _private(self, address: str) -> bool:
        known = self._addresses.get(address)
        if known is None:
            try:
                known = self._guard.kind(read_address(address)) is not Kind.ORDINARY
            except ValueError:
                known = False
            if len(self._addresses) >= MAX_ADDRESSES:
                self._addresses.clear()
            self._addresses[address] = known
        return known


def _decoded(lines: Sequence[bytes]) -> Sequence[_Line | None]:
    """The record of each line; None where it is none."""
    try:
        found = _decoder.decode_lines(b"\n".join(lines))
    except (msgspec.MsgspecError, UnicodeError):
        return list(map(_one, lines))
    return found if len(found) == len(lines) else list(map(_one, lines))  # it passes over empty ones


def _one(line: bytes) -> _Line | None:
    try:
        return _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeError):
        return None
