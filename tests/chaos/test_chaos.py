"""The short schedule: real load, the main faults in an order that a seed decides, and what must not happen.

`make soak` runs all faults for as long as one likes.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest

from chaos.faults import FAULTS, Fault, rotation
from chaos.flood import Flood, flood
from chaos.flood import table as flood_table
from chaos.report import broken, table
from chaos.stage import Options, Stage
from chaos.tally import Ending, Kind, Phase, Record, add_records, totals

SEED = 1
PROCESSES = ("kill", "upgrade", "restart", "control-kill", "edit")
HANDS = ("owned", "foreign-rules", "remove-rules", "conntrack-flush", "rename")
OPEN = ("flush-ruleset", "delete-elements")
MEANS = ("disk-slow", "no-descriptors")
SHORT = (*PROCESSES, *HANDS, *OPEN, *MEANS)
CALM_S = 1.5
WITHIN_S = 10.0
"""The soak holds it to 1 s; a test does not depend on how busy the machine is."""
RSS_MIB = 200.0
"""The data path under this load takes about 60 MiB."""


@pytest.mark.timeout(240)
def test_short_schedule(tmp_path: Path) -> None:
    """Nothing denied gets through, ever; a kill, an upgrade and the like lose no look-up, connection or live flow."""
    options = Options(seed=SEED, rate=300.0, crowd=1000, within_s=WITHIN_S)
    with Stage(tmp_path, options) as stage:
        stage.start()
        time.sleep(3.0)
        for name in itertools.islice(rotation(SHORT, SEED), len(SHORT)):
            stage.strike(FAULTS[name], CALM_S)
        phases = stage.finish()
        said = f"{table(phases)}\n{stage.daemon.log()}"
    assert not broken(phases, rss_mib=RSS_MIB), said
    worked = totals(phases)
    assert sum(total.asked for total in worked) > 1000, said
    assert sum(total.denied_tried for total in worked) > 100, said


SMALL: Final[dict[str, Any]] = {
    "dns": {"cache": {"size": 5000, "bytes": "4MiB"}},
    "grants": {"total": 10_000, "min": "1s", "grace": "1s"},
    "audit": {"queue": 4096},
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize(("profile", "names"), [("mixed", 60_000), ("distinct", 40_000)])
def test_memory_is_flat_under_a_flood(tmp_path: Path, profile: str, names: int) -> None:
    """Names nobody asked before, with all bounds small: the end is within a tenth of the plateau."""
    burst = flood(tmp_path, names, profile, settings=SMALL, hour=2000)
    assert burst.growth < 0.10, burst
    assert burst.end < RSS_MIB, burst
    assert burst.ends == 0, burst


def test_every_fault_has_its_turn() -> None:
    """A round has each fault once, and changes the daemon's settings no more often than there are settings."""
    turns = list(itertools.islice(rotation(list(FAULTS), SEED), 2 * len(FAULTS)))
    for start in (0, len(FAULTS)):
        assert set(turns[start : start + len(FAULTS)]) == set(FAULTS)
    settings = [repr(FAULTS[name].settings) for name in turns[: len(FAULTS)]]
    assert len(list(itertools.groupby(settings))) == len(set(settings))


def test_what_was_exposed_is_told_apart() -> None:
    """What gets through while the table is gone does not count as a hole; what does later, and an accusation, do."""
    phase = Phase("flush-ruleset", 10.0, 20.0, exposed_s=1.0)
    add_records([phase], [Record(began, 0.1, Kind.DIAL_DENIED, Ending.THROUGH, 80) for began in (10.2, 10.9, 11.1)])
    phase.accusations.append("mended in 1.50 s")
    assert broken([phase], rss_mib=1.0) == [
        "flush-ruleset: 1 denied connections that got through",
        "flush-ruleset: mended in 1.50 s",
    ]
    assert "| 1 (2 before it was mended) |" in table([phase])


def test_what_block_must_not_do() -> None:
    """A denied name that resolves while we are down is a broken promise with `when_down: Block`, and only there."""
    counts: Counter[tuple[int, int]] = Counter({(Kind.DENIED, Ending.UNFILTERED): 2})
    phases = [Phase(name, 0.0, 1.0, counts=counts.copy()) for name in ("kill", "kill-block")]
    assert broken(phases, rss_mib=1.0) == ["kill-block: 2 denied names that were resolved"]


def test_the_table_of_floods() -> None:
    """Memory in whole MiB, growth against the plateau."""
    text = flood_table([Flood("few", 1000, 2.0, 40.0, 41.0, 50.0, 51.0, "1000 sent")])
    assert "| allowed, eight addresses in all | 1,000 | 500 | 40 | 41 | 50 | 51 | +2.0 % |" in text
    assert text.endswith("1000 sent")


def test_wrongs_count_against_the_strike_that_fell_into_them() -> None:
    """What goes wrong just before a strike is the strike's; what goes well, or began long before, is not."""
    phases = [Phase("nothing", 10.0, 20.0), Phase("kill", 20.0, 30.0)]
    records = [
        Record(9.0, 0.1, Kind.KNOWN, Ending.GOOD, 0),
        Record(19.9, 0.2, Kind.KNOWN, Ending.GOOD, 0),
        Record(19.9, 5.0, Kind.KNOWN, Ending.RETRIED, 0),
        Record(19.8, 0.1, Kind.KNOWN, Ending.ERROR, 2),
        Record(17.0, 5.0, Kind.KNOWN, Ending.LOST, 0),
        Record(25.0, 0.1, Kind.DIAL_DENIED, Ending.THROUGH, 80),
        Record(30.5, 0.1, Kind.KNOWN, Ending.LOST, 0),
    ]
    add_records(phases, records)
    calm, kill = totals(phases)
    assert (calm.asked, calm.failed, calm.retried) == (3, 2, 0)
    assert (kill.asked, kill.failed, kill.retried, kill.through) == (1, 0, 1, 1)
    assert kill.trouble_s == 5.0
    assert broken(phases, rss_mib=1.0) == [
        "nothing: 2 failed look-ups",
        "kill: 1 denied connections that got through",
    ]


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_faults_are_described(fault: Fault) -> None:
    """The table's words for a fault are there, and do not break the table."""
    assert fault.about
    assert "|" not in fault.about
