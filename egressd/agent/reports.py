"""What the kernel reports of packets: flows become records, and connections that it forgot are put back."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from egressd.agent.packets import Packets
from egressd.errors import KernelError
from egressd.kernel.flows import FlowCounters
from egressd.kernel.nflog import NflogReader, Report
from egressd.kernel.template import FORGOTTEN

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from egressd.agent.flows import Flows
    from egressd.model import FlowRecord, Reason, Verdict
    from egressd.settings import Settings

__all__ = ["Reports"]

ASK_EVERY_S: Final = 5.0


class Reports:
    """Reads the log group while it is open. `put_back` gets what came for a pod and belongs to no connection."""

    def __init__(
        self,
        settings: Settings,
        flows: Flows,
        record: Callable[[FlowRecord], None],
        put_back: Callable[[Report, float], None],
    ) -> None:
        self.counts: Counter[tuple[Verdict, Reason]] = Counter()
        self.packets = Packets(record, time.time, time.monotonic)
        self.nflog: NflogReader | None = None
        self._flooded = 0
        self._kernel: FlowCounters | None = None
        self._last_flooded = 0
        self._asked_at = 0.0
        self._settings = settings
        self._flows = flows
        self._record = record
        self._put_back = put_back

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to read; the table has been written. Raises `KernelError` if the group is another program's."""
        self._kernel = FlowCounters(self._settings)
        self._last_flooded = 0
        self.packets.begin(self._kernel)
        self.nflog = NflogReader(self._settings.firewall.log_group, self._reported)
        loop.add_reader(self.nflog.fileno(), self.nflog.read_ready)

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take what has come so far, and leave the group to the next."""
        if self.nflog is not None:
            loop.remove_reader(self.nflog.fileno())
            self.nflog.read_ready()
            self.nflog.close()
        self._kernel = None
        self.packets.finish(time.monotonic())

    def tick(self) -> None:
        """Call it every 0.1 s."""
        now = time.monotonic()
        self.packets.tick(now)
        if self._kernel is not None and now - self._asked_at >= ASK_EVERY_S:
            self._asked_at = now
            self._count_flooded(self._kernel)

    @property
    def counters(self) -> dict[str, int]:
        """What flow records do not tell, and queries that the kernel dropped unread."""
        return {**self.packets.counters, "flooded": self._flooded}

    def _count_flooded(self, kernel: FlowCounters) -> None:
        """A count that went back began anew with the table."""
        try:
            found = kernel.flooded()
        except KernelError:
            return  # the table is being mended
        self._flooded += found - self._last_flooded if found >= self._last_flooded else found
        self._last_flooded = found

    def _reported(self, report: Report) -> None:
        """A flow: a record of it now, and one of its further packets within a minute."""
        if report.prefix == FORGOTTEN:
            self._put_back(report, time.monotonic())
            return
        record = self._flows.explain(report)
        self.counts[record.verdict, record.reason] += 1
        self._record(record)
        self.packets.follow(report, record, time.monotonic())
