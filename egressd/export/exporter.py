"""The export itself: lines wait in a bounded queue, are turned into requests in a thread, and are sent one at a time.

While a collector is slow or away its request is tried again, less and less often, and what no longer fits into the
queue is dropped, oldest first, and counted. Metrics are cumulative: a set that is lost is made good by the next.
"""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from egressd.export.access import Access
from egressd.export.counts import GIVEN_UP, QUEUE_FULL, REFUSED, Counts
from egressd.link import Lines
from egressd.settings import Settings

if TYPE_CHECKING:
    from egressd.export.collector import Collector, Outcome
    from egressd.export.requests import Requests
    from egressd.telemetry import ControlFacts

__all__ = ["Exporter"]

MAX_WAITING: Final = 16 * 1024 * 1024
"""Octets of lines that wait: some 30,000 records."""
MAX_REQUEST: Final = 512 * 1024
"""Octets of lines in one request, some 1,000 records; collectors take 4 MiB, and a request is twice its lines."""
LINGER_S: Final = 1.0
"""How long a first line waits for others."""
TRIES: Final = 10
"""Of one request: with the pauses between them about four minutes."""
MAX_PAUSE_S: Final = 30.0
FLUSH_S: Final = 2.0
"""For all that is left when it ends; the control side has 5 s for its last words."""
REPORT_EVERY_S: Final = 60.0
"""Between two complaints about the same."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Exporter:
    """The export to one collector. One event loop; `facts` is asked for every set of metrics."""

    def __init__(
        self,
        settings: Settings,
        access: Access,
        counts: Counts,
        facts: Callable[[], ControlFacts],
        *,
        say: Callable[[str], None] = _say,
    ) -> None:
        self._node = settings.node
        self._otlp = settings.otlp
        self._access = access
        self._counts = counts
        self._facts = facts
        self._say = say
        self._said: dict[str, float] = {}
        self._waiting: deque[Lines] = deque()
        self._octets = 0
        self._unsettled = 0
        """Records taken out of the queue of which it is not known yet what becomes of them."""
        self._filled = asyncio.Event()
        self._ending = asyncio.Event()

    def put(self, lines: Lines) -> None:
        """Take a batch of lines; never waits."""
        if not self._otlp.logs:
            return
        self._waiting.append(lines)
        self._octets += len(lines.data)
        while self._octets > MAX_WAITING:
            self._counts.dropped[QUEUE_FULL] += self._pop().count
        self._filled.set()

    async def run(self) -> None:
        """Export until `finish`. Raises `EnvironmentProblem` where certificates cannot be used."""
        module = await asyncio.to_thread(importlib.import_module, "egressd.export.requests")
        requests: Requests = module.Requests(self._node, self._access.attributes)
        collector: Collector = module.Collector(self._otlp.endpoint, self._access)
        try:
            async with asyncio.TaskGroup() as tasks:
                if self._otlp.logs:
                    tasks.create_task(self._export_logs(requests, collector))
                if self._otlp.metrics:
                    tasks.create_task(self._export_metrics(requests, collector))
        finally:
            await collector.close()

    async def finish(self, running: asyncio.Task[None]) -> None:
        """Have `run`, which is `running`, send what is left, once, and end: within `FLUSH_S`."""
        self._ending.set()
        self._filled.set()
        await asyncio.wait((running,), timeout=FLUSH_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        self._counts.dropped[GIVEN_UP] += self._unsettled + sum(lines.count for lines in self._waiting)
        self._waiting.clear()

    # ------------------------------------------------------------------------------------------------- logs

    async def _export_logs(self, requests: Requests, collector: Collector) -> None:
        while data := await self._gather():
            for lines in _pieces(data):
                body = await asyncio.to_thread(requests.logs, lines)
                count = lines.count(b"\n")
                await self._deliver(collector, body, count)
                self._unsettled -= count

    async def _gather(self) -> bytes:
        """What is to be sent next; nothing at the end."""
        if not self._waiting and not self._ending.is_set():
            self._filled.clear()
            await self._filled.wait()
        if self._octets < MAX_REQUEST:
            await self._pause(LINGER_S)
        found = []
        size = 0
        while self._waiting and size < MAX_REQUEST:
            lines = self._pop()
            found.append(lines.data)
            size += len(lines.data)
            self._unsettled += lines.count
        return b"".join(found)

    def _pop(self) -> Lines:
        lines = self._waiting.popleft()
        self._octets -= len(lines.data)
        return lines

    async def _deliver(self, collector: Collector, body: bytes, count: int) -> None:
        """Send one request, more than once if need be; every record of it is counted, as sent or as dropped."""
        counts, why = self._counts, GIVEN_UP
        for pause in _pauses():
            outcome = await collector.post("logs", body)
            if outcome.taken:
                rejected = min(outcome.rejected, count)
                counts.sent += count - rejected
                counts.dropped[REFUSED] += rejected
                return
            self._failed("logs", outcome)
            if outcome.again_s is None:
                why = REFUSED
                break
            if self._ending.is_set():
                break
            await self._pause(max(pause, outcome.again_s))
        counts.dropped[why] += count

    # ---------------------------------------------------------------------------------------------- metrics

    async def _export_metrics(self, requests: Requests, collector: Collector) -> None:
        while not self._ending.is_set():
            await self._pause(self._otlp.interval)
            body = await asyncio.to_thread(requests.metrics, self._facts())
            outcome = await collector.post("metrics", body)
            if not outcome.taken:
                self._failed("metrics", outcome)

    # ----------------------------------------------------------------------------------------------- common

    async def _pause(self, seconds: float) -> None:
        """Wait, but not past the end."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)

    def _failed(self, signal: str, outcome: Outcome) -> None:
        """Count, and say it once a minute."""
        self._counts.failures += 1
        now = time.monotonic()
        if now - self._said.get(signal, -REPORT_EVERY_S) >= REPORT_EVERY_S:
            self._said[signal] = now
            lost = f" ({sum(self._counts.dropped.values())} records lost so far)" if signal == "logs" else ""
            self._say(f"egressd: otlp: {self._otlp.endpoint}/v1/{signal} does not take them: {outcome.why}{lost}")


def _pauses() -> Iterator[float]:
    """The pauses after each try, seconds: 1, 2, 4 … 30, each a little off, lest all nodes come back at once."""
    for number in range(TRIES):
        yield min(2.0**number, MAX_PAUSE_S) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret


def _pieces(data: bytes) -> Iterator[bytes]:
    """Whole lines, about `MAX_REQUEST` octets at a time."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", min(start + MAX_REQUEST, len(data)) - 1) + 1 or len(data)
        yield data[start:end]
        start = end
