"""Samples in, Markdown out: medians, and ratios taken within a repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import NamedTuple

__all__ = ["Sample", "markdown", "measure_table", "ratio_table"]


class Sample(NamedTuple):
    """One run: CPU in microseconds a query, answers a second, mean latency, memory at its end."""

    repeat: int
    workload: str
    peer: str
    cpu_us: float
    user_us: float
    rate: float
    latency_us: float
    resident_mib: float = 0.0


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [
        [
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in [lines[0], rule, *lines[1:]]
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in padded)


def measure_table(
    samples: Sequence[Sample], titles: dict[str, str], value: Callable[[Sample], float], form: str
) -> str:
    """A row a workload, a column a peer: the median of `value` over the repeats, printed in `form`."""
    peers = _peers(samples)
    rows = []
    for workload, title in titles.items():
        cells = [
            [value(sample) for sample in samples if (sample.workload, sample.peer) == (workload, peer)]
            for peer in peers
        ]
        rows.append([title, *(format(median(cell), form) if cell else "" for cell in cells)])
    return markdown(["", *peers], rows)


def ratio_table(samples: Sequence[Sample], titles: dict[str, str]) -> str:
    """CPU of each peer over that of the first peer in the same repeat: median, with the least and the largest."""
    peers = _peers(samples)
    cpu = {(sample.repeat, sample.workload, sample.peer): sample.cpu_us for sample in samples}
    repeats = sorted({sample.repeat for sample in samples})
    rows = []
    for workload, title in titles.items():
        row = [title]
        for peer in peers:
            pairs = [(cpu.get((repeat, workload, peer)), cpu.get((repeat, workload, peers[0]))) for repeat in repeats]
            ratios = [own / base for own, base in pairs if own and base]
            row.append(f"{median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "")
        rows.append(row)
    return markdown(["", *peers], rows)


def _peers(samples: Sequence[Sample]) -> list[str]:
    return list(dict.fromkeys(sample.peer for sample in samples))
