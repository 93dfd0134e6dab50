"""Audit lines summed up in memory until they are written: bytes in, a bounded table of sums out; no file, no clock.

A line costs a few microseconds, a flood of new names no more memory than `MAX_KEYS` entries: what comes on top of that
is remembered without its name, and what comes on top of twice as much is dropped and counted.
"""

from __future__ import annotations

from collections.abc import Iterable
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
        self._moment = ("", 0)
        self._addresses: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def guard(self, cluster: Iterable[Block]) -> None:
        """The cluster's blocks: their addresses in answers are not ordinary."""
        self._guard = Guard(cluster, ())
        self._addresses.clear()

    def feed(self, lines: bytes) -> None:
        """Take audit lines. Lines of other kinds, or that are none, are passed over."""
        try:
            records = _decoder.decode_lines(lines)
        except (msgspec.MsgspecError, UnicodeError):
            records = _one_by_one(lines)
        for record in records:
            pod = record.pod
            if pod is not None and pod.name and record.verdict in _KNOWN and record.reason in _KNOWN:
                self._take(record, pod)

    def take(self) -> dict[Key, Sums]:
        """Everything there is; afterwards there is nothing."""
        taken = {key: Sums(*total) for key, total in self._sums.items()}
        self._known, self._sums = {}, {}
        return taken

    def give_back(self, sums: dict[Key, Sums]) -> None:
        """Keep what could not be written, as far as there is room."""
        for key, more in sums.items():
            self._add(key, more)

    def _take(self, record: _Line, pod: _Pod) -> None:
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
            return
        workload = pod.workload or f"Pod/{pod.name}"
        key = Key(
            second // DAY_S, pod.namespace, workload, name, record.verdict, record.reason, record.policy, record.rule,
            record.search, record.event, port, protocol, pod.service_account, answer,
        )  # fmt: skip
        self.taken += count
        total = self._known.get(key)
        if total is None:
            self._add(key, Sums(second, second, count, record.packets))
        else:
            total[0] = min(total[0], second)
            total[1] = max(total[1], second)
            total[2] += count
            total[3] += record.packets

    def _add(self, key: Key, more: Sums) -> None:
        """Add to the sums of a key that is not known yet, under the name that it is remembered by."""
        folded = self._folding.fold(key)
        if len(self._sums) >= MAX_KEYS and folded not in self._sums:
            folded = folded._replace(name=EVERYTHING)
        total = self._sums.get(folded)
        if total is None:
            if len(self._sums) >= 2 * MAX_KEYS:
                self.dropped += more.number
                return
            total = self._sums[folded] = [*more]
        else:
            total[0] = min(total[0], more.first_seen)
            total[1] = max(total[1], more.last_seen)
            total[2] += more.number
            total[3] += more.packets
        if folded is key:
            self._known[key] = total

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


def _one_by_one(lines: bytes) -> list[_Line]:
    """The records of a batch in which not every line is one."""
    found = []
    for line in lines.splitlines():
        try:
            found.append(_decoder.decode(line))
        except (msgspec.MsgspecError, UnicodeError):
            continue
    return found
