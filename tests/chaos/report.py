"""What a run came to, as a Markdown table and as the list of broken promises."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from chaos.faults import FAULTS
from chaos.tally import Ending, Kind, Phase, Total, percentile, totals

__all__ = ["broken", "table"]

HEAD = (
    "fault",
    "strikes",
    "look-ups",
    "known names failed",
    "new names failed",
    "second try",
    "allowed connections",
    "known refused",
    "new refused",
    "denied tried",
    "**got through**",
    "live cut",
    "trouble, s",
    "p50, ms",
    "p99, ms",
    "RSS data, MiB",
    "RSS control, MiB",
)
FAILED = (Ending.LOST, Ending.ERROR)


def table(phases: Sequence[Phase]) -> str:
    """One line for each fault; below, what was noted."""
    sums = totals(phases)
    lines = [HEAD, tuple("---" if n == 0 else "--:" for n in range(len(HEAD))), *(_row(total) for total in sums)]
    notes = [f"- {total.fault}: {note}" for total in sums for note in total.notes]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ([""] if notes else []) + notes)


def _row(total: Total) -> tuple[str, ...]:
    dials = total.count((Kind.DIAL_KNOWN, Kind.DIAL_FRESH))
    numbers = (
        total.strikes,
        total.asked,
        total.count((Kind.KNOWN,), FAILED),
        total.count((Kind.FRESH,), FAILED),
        total.retried,
        dials,
        total.refused_known,
        total.refused_fresh,
        total.denied_tried,
        total.through,
        total.cut,
    )
    milliseconds = (1000 * percentile(total.latencies, part) for part in (0.5, 0.99))
    return (
        FAULTS[total.fault].about,
        *map(str, numbers),
        f"{total.trouble_s:.1f}",
        *(f"{value:.1f}" for value in milliseconds),
        f"{total.data_rss:.0f}",
        f"{total.control_rss:.0f}",
    )


def broken(phases: Iterable[Phase], *, rss_mib: float) -> list[str]:
    """Promises not kept: nothing denied gets through, ever; lossless faults lose nothing; RSS is bounded."""
    out = []
    for total in totals(phases):
        wanted = {"denied connections that got through": total.through}
        if FAULTS[total.fault].lossless:
            wanted |= {
                "failed look-ups": total.failed,
                "refused connections to known names": total.refused_known,
                "live connections cut": total.cut,
            }
        out += [f"{total.fault}: {count} {what}" for what, count in wanted.items() if count]
        if total.data_rss > rss_mib:
            out.append(f"{total.fault}: the data path took {total.data_rss:.0f} MiB, more than {rss_mib:g}")
    return out
