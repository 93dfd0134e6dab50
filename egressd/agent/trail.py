"""Audit lines between the hot path and the control side: rendered at once, waiting for the next batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from egressd import link

if TYPE_CHECKING:
    from collections.abc import Callable

    from egressd.audit.lines import Form, Renderer
    from egressd.model import DnsRecord, FlowRecord

__all__ = ["BATCH_LINES", "AuditQueue", "Trail"]

BATCH_LINES: Final = 256


class AuditQueue:
    """Audit lines on their way to the control side: bounded in records, counted when dropped, never in the way."""

    def __init__(self, size: int, dropped_line: Callable[[int], bytes]) -> None:
        self.dropped = 0
        self.size = size
        self._lines: list[bytes] = []
        self._kinds: list[int] = []
        self._dropped_line = dropped_line
        self._unsaid = 0

    def __len__(self) -> int:
        return len(self._lines)

    def put(self, line: bytes, kind: int = 0) -> None:
        """Have one line wait; `kind` as in `link.Lines`."""
        if len(self._lines) >= self.size:
            self.dropped += 1
            self._unsaid += 1
        else:
            self._lines.append(line)
            self._kinds.append(kind)

    def take(self) -> link.Lines | None:
        """The next batch, or None. What was dropped is said in a record of its own, as soon as there is room."""
        if self._unsaid and len(self._lines) < self.size:
            line, self._unsaid = self._dropped_line(self._unsaid), 0
            self.put(line)
        if not self._lines:
            return None
        lines, kinds = self._lines[:BATCH_LINES], self._kinds[:BATCH_LINES]
        del self._lines[:BATCH_LINES], self._kinds[:BATCH_LINES]
        return link.Lines(b"".join(lines), len(lines), tuple(kinds))


class Trail:
    """Renders records into the queue."""

    def __init__(self, renderer: Renderer, queue: AuditQueue) -> None:
        self._renderer = renderer
        self._queue = queue

    def dns(self, record: DnsRecord) -> None:
        """A query that ended."""
        self._queue.put(self._renderer.dns_line(record))

    def again(self, form: Form, wall: float, port: int, latency_us: int) -> None:
        """Another query that ended in the same form."""
        self._queue.put(self._renderer.dns_again(form, wall, port, latency_us), form[3])

    def flow(self, record: FlowRecord) -> None:
        """A flow that the kernel told of."""
        self._queue.put(self._renderer.flow_line(record))
