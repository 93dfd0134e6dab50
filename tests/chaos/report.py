"""What a run came to, as a Markdown table and as the list of broken promises."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from chaos.faults import FAULTS, KNOWN, LIVE, LOOKUPS
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
    notes += [f"- {total.fault}: failed look-ups, {', '.join(_told(total))}" for total in sums if total.failures]
    return "\n".join(["| " + " | ".join(line) + " |" for line in lines] + ([""] if notes else []) + notes)


def _told(total: Total) -> Iterator[str]:
    return (f"{count} {what}" for what, count in sorted(total.failures.items()))


def _row(total: Total) -> tuple[str, ...]:
    dials = total.count((Kind.DIAL_KNOWN, Kind.DIAL_FRESH))
    exposed = f" ({total.exposed} before it was mended)" if total.exposed else ""
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
        f"{total.through}{exposed}",
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
    """Promises not kept: nothing denied gets through, ever; what a fault keeps is kept; RSS is bounded."""
    out = []
    for total in totals(phases):
        fault = FAULTS[total.fault]
        costs = {
            LOOKUPS: ("failed look-ups", total.failed),
            KNOWN: ("refused connections to known names", total.refused_known),
            LIVE: ("live connections cut", total.cut),
        }
        wanted = [("denied connections that got through", total.through), *(costs[kept] for kept in fault.keeps)]
        if not fault.bypass:
            wanted.append(("denied names that were resolved", total.count((Kind.DENIED,), (Ending.UNFILTERED,))))
        out += [f"{total.fault}: {count} {what}" for what, count in wanted if count]
        out += [f"{total.fault}: {what}" for what in total.accusations]
        if total.data_rss > rss_mib:
            out.append(f"{total.fault}: the data path took {total.data_rss:.0f} MiB, more than {rss_mib:g}")
    return out
