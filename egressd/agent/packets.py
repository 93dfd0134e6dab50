"""How many packets a recorded flow had: the kernel counts them for a minute, and is asked before it forgets.

A flow's first packet is a record at once; a minute later a second one says how many more there were, so that the sum of
`packets` is what came. The flow's element in the kernel (kernel/flows.py) is looked up twice: half way through its
life, which also tells to the millisecond when it ends, and `MARGIN_S` before that. A flow that goes on begins anew,
with a record and an element of its own.

What the sums lack: packets of the last `MARGIN_S` of each minute of a flow; those since the last look where the table
was written anew (a start, a repair); flows that were never reported or are not followed, which `counters` tell. Of a
flow that was let through only the packets before it is established are counted: for TCP its opening, for UDP all
until the first answer.
"""

from __future__ import annotations

import heapq
import logging
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Final

from egressd.errors import KernelError
from egressd.kernel.flows import LIFETIME_S, FlowCounters, flow_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from egressd.kernel.flows import Count, FlowKey
    from egressd.kernel.nflog import Report
    from egressd.model import FlowRecord

__all__ = ["Packets"]

log = logging.getLogger("egressd.agent")

MARGIN_S: Final = 0.25
"""Before the element ends: more than a tick of the event loop (0.1 s) is late."""
FLOWS_MAX: Final = 16_384
"""Flows followed at once, some 500 octets each."""
POD_MAX: Final = FLOWS_MAX // 4
"""Of one pod, so that one that scans ports does not cost the others their counts."""
BATCH: Final = 64
BUDGET_S: Final = 0.003
"""Of one turn of the event loop; a batch takes about half a millisecond."""
FINISH_S: Final = 0.05
"""For all that is followed when the daemon ends or hands over: about 6,000 flows; the rest say what they last knew."""
UNREPORTED_EVERY_S: Final = 10.0


class _Flow:
    """One flow whose element is alive. `told` of its `counted` packets are in records."""

    __slots__ = ("counted", "ends", "key", "record", "told")

    def __init__(self, key: FlowKey, record: FlowRecord) -> None:
        self.key = key
        self.record = record
        self.told = self.counted = record.packets
        self.ends = 0.0
        """When the element ends, once it has been looked at."""


class Packets:
    """Follows recorded flows. One thread; `now` is monotonic seconds, `clock` the same, for the budget of a turn."""

    def __init__(
        self,
        record: Callable[[FlowRecord], None],
        wall: Callable[[], float],
        clock: Callable[[], float],
        lifetime_s: float = LIFETIME_S,
    ) -> None:
        self.counters = {"unreported": 0, "unfollowed": 0}
        """Packets that no event told of; flows of which only the first packet of a minute is told."""
        self._record = record
        self._wall = wall
        self._clock = clock
        self._first_look_s = lifetime_s / 2
        self._kernel: FlowCounters | None = None
        self._flows: dict[FlowKey, _Flow] = {}
        self._due: list[tuple[float, int, _Flow]] = []
        self._serial = count()
        self._of_pod: Counter[bytes] = Counter()
        self._unreported = 0
        self._asked_at = 0.0

    def __len__(self) -> int:
        return len(self._flows)

    def begin(self, kernel: FlowCounters) -> None:
        """The table has been written, and counts from nothing."""
        self._kernel = kernel
        self._unreported = 0

    def follow(self, report: Report, record: FlowRecord, now: float) -> None:
        """A flow was reported and recorded: from now on its packets count."""
        key = flow_key(report)
        if key is None:
            return
        known = self._flows.get(key)
        if known is not None:  # its element went, and here is the next one
            self._end(known)
        if len(self._flows) >= FLOWS_MAX or self._of_pod[record.client] >= POD_MAX:
            self.counters["unfollowed"] += 1
            return
        flow = self._flows[key] = _Flow(key, record)
        self._of_pod[record.client] += 1
        self._schedule(flow, now + self._first_look_s)

    def tick(self, now: float) -> None:
        """Look at the flows that are due, as many as fit in `BUDGET_S`. Call it every 0.1 s."""
        stop = self._clock() + BUDGET_S
        while self._due and self._due[0][0] <= now:
            self._look(self._take(now), now)
            if self._clock() >= stop:
                return
        if now - self._asked_at >= UNREPORTED_EVERY_S:
            self._asked_at = now
            self._count_unreported()

    def finish(self, now: float) -> None:
        """Tell what is known of all flows, after a last look at as many as fit in `FINISH_S`, and follow none."""
        stop = self._clock() + FINISH_S
        flows = list(self._flows.values())
        for start in range(0, len(flows), BATCH):
            if self._clock() >= stop:
                break
            self._look(flows[start : start + BATCH], now)
        for flow in list(self._flows.values()):
            self._end(flow)
        self._due.clear()
        self._count_unreported()
        if self._kernel is not None:
            self._kernel.close()
            self._kernel = None

    # ------------------------------------------------------------------------------------------- looking

    def _schedule(self, flow: _Flow, due: float) -> None:
        heapq.heappush(self._due, (due, next(self._serial), flow))

    def _take(self, now: float) -> list[_Flow]:
        """The next batch that is due, without flows that have ended."""
        taken: list[_Flow] = []
        while self._due and self._due[0][0] <= now and len(taken) < BATCH:
            flow = heapq.heappop(self._due)[2]
            if self._flows.get(flow.key) is flow:
                taken.append(flow)
        return taken

    def _look(self, flows: Sequence[_Flow], now: float) -> None:
        for flow, found in zip(flows, self._read(flows), strict=True):
            if found is None or self._is_another(flow, found, now):
                self._end(flow)
                continue
            flow.counted = max(flow.counted, found.packets)
            first, flow.ends = not flow.ends, now + found.remaining_s
            if first and found.remaining_s > MARGIN_S:
                self._schedule(flow, flow.ends - MARGIN_S)
            else:
                self._end(flow)

    def _read(self, flows: Sequence[_Flow]) -> list[Count | None]:
        try:
            if self._kernel is not None and flows:
                return self._kernel.read([flow.key for flow in flows])
        except KernelError as error:
            log.warning("packets of %d flows could not be counted: %s", len(flows), error)
        return [None] * len(flows)

    def _is_another(self, flow: _Flow, found: Count, now: float) -> bool:
        """Whether it is not the element looked at before: that one ended, and the report of this one is to come."""
        return bool(flow.ends) and now + found.remaining_s > flow.ends + self._first_look_s / 2

    def _end(self, flow: _Flow) -> None:
        """Tell what no record has told, and forget the flow."""
        client = flow.record.client
        del self._flows[flow.key]
        self._of_pod[client] -= 1
        if not self._of_pod[client]:
            del self._of_pod[client]
        if flow.counted > flow.told:
            self._record(flow.record._replace(time=self._wall(), packets=flow.counted - flow.told))

    def _count_unreported(self) -> None:
        """A count that went back began anew with the table."""
        try:
            found = self._kernel.unreported() if self._kernel is not None else self._unreported
        except KernelError:
            return  # the table is being mended
        self.counters["unreported"] += found - self._unreported if found >= self._unreported else found
        self._unreported = found
