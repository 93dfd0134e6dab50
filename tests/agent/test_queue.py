"""Audit lines on their way to the control side: in order, each with its kind, bounded, honest about what is lost."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from egressd.agent.trail import BATCH_LINES, AuditQueue


def said(count: int) -> bytes:
    """The line that says how many were dropped."""
    return b"dropped %d\n" % count


@given(st.lists(st.integers(0, 3 * BATCH_LINES), max_size=4))
def test_lines_and_their_kinds(bursts: list[int]) -> None:
    """However they come and go, lines leave in order, in batches, and each has its own kind."""
    queue, numbers, taken = AuditQueue(10_000, said), iter(range(1, 10_000)), []
    for burst in bursts:
        for number in islice(numbers, burst):
            queue.put(b"%d\n" % number, -number)
        batch = queue.take()
        if batch is not None:
            taken.append(batch)
    while (batch := queue.take()) is not None:
        taken.append(batch)
    assert all(0 < batch.count == len(batch.kinds) <= BATCH_LINES for batch in taken)
    assert b"".join(batch.data for batch in taken) == b"".join(b"%d\n" % one for one in range(1, sum(bursts) + 1))
    assert [kind for batch in taken for kind in batch.kinds] == [-one for one in range(1, sum(bursts) + 1)]
    assert len(queue) == 0


def test_a_full_queue() -> None:
    """What has no room is dropped and counted, and the count is a line without a kind, as soon as there is room."""
    queue = AuditQueue(2, said)
    for number in range(5):
        queue.put(b"%d\n" % number, 9)
    assert queue.dropped == 3
    first, second = queue.take(), queue.take()
    assert first is not None
    assert second is not None
    assert (first.data, first.kinds) == (b"0\n1\n", (9, 9))
    assert (second.data, second.count, second.kinds) == (b"dropped 3\n", 1, (0,))
    assert queue.take() is None
