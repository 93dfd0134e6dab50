"""The short schedule: real load, the main faults in an order that a seed decides, and what must not happen.

`make soak` runs all faults for as long as one likes.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from chaos.faults import FAULTS, Fault
from chaos.flood import flood
from chaos.report import broken, table
from chaos.stage import Options, Stage
from chaos.tally import Ending, Kind, Phase, Record, add_records, totals

SEED = 1
PROCESSES = ("nothing", "kill", "upgrade", "restart", "control-kill")
HANDS = ("flush-ruleset", "delete-table", "delete-elements", "foreign-rules", "remove-rules", "remove-routes")
SHORT = (*PROCESSES, *HANDS, "upstream-lying", "crowd", "datagrams")
CALM_S = 2.0
RSS_MIB = 200.0
"""The data path under this load takes about 60 MiB."""


@pytest.mark.timeout(180)
def test_short_schedule(tmp_path: Path) -> None:
    """Nothing denied gets through, ever; a kill, an upgrade and the like lose no look-up, connection or live flow."""
    options = Options(seed=SEED, rate=300.0, crowd=1000)
    with Stage(tmp_path, options) as stage:
        stage.start()
        time.sleep(3.0)
        for name in random.Random(SEED).sample(SHORT, len(SHORT)):
            stage.strike(name, FAULTS[name].action, CALM_S)
        phases = stage.finish()
        said = f"{table(phases)}\n{stage.daemon.log()}"
    assert not broken(phases, rss_mib=RSS_MIB), said
    worked = totals(phases)
    assert sum(total.asked for total in worked) > 1000, said
    assert sum(total.denied_tried for total in worked) > 100, said


@pytest.mark.timeout(180)
def test_memory_is_flat_under_a_flood(tmp_path: Path) -> None:
    """100,000 names nobody asked before, with all bounds small: the end is within a tenth of the plateau."""
    small = {
        "dns": {"cache": {"size": 5000, "bytes": "4MiB"}},
        "grants": {"total": 10_000, "min": "1s", "grace": "1s"},
        "audit": {"queue": 4096},
    }
    burst = flood(tmp_path, 100_000, settings=small)
    assert burst.growth < 0.10, burst
    assert burst.end < RSS_MIB, burst


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
