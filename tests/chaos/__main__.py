"""`python -m chaos`: the soak. Strikes every fault in turn, in an order that the seed decides, and prints the table."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from chaos.faults import FAULTS, rotation
from chaos.flood import PROFILES, Flood, flood
from chaos.flood import table as flood_table
from chaos.report import broken, table
from chaos.stage import Options, Stage
from chaos.tally import Phase
from egressd.lab import WIRINGS, run_private

WARM_UP_S = 6.0
RSS_MIB = 300.0
GROWTH = 0.10
"""Memory at the end of a flood may lie so far above its plateau."""


def main() -> int:
    """Exit code 0; 1 if a promise was broken; 3 if the environment does not allow a run."""
    options = read_options()
    if os.geteuid() != 0:
        print("the soak makes network namespaces: run it as root", file=sys.stderr)
        return 3
    return run_private(lambda: run(options))


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=300, help="a strike begun is ended; default: %(default)s")
    parser.add_argument(
        "--faults", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT", help="default: all"
    )
    parser.add_argument("--wiring", choices=WIRINGS, default=WIRINGS[0], help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=1000, help="look-ups a second in all; default: %(default)s")
    parser.add_argument("--crowd", type=int, default=10_000, help="TCP connections of a crowd; default: %(default)s")
    parser.add_argument("--calm", type=float, default=4.0, help="seconds after each strike; default: %(default)s")
    parser.add_argument("--flood", type=int, default=0, metavar="NAMES", help="then bursts of so many new names")
    parser.add_argument(
        "--floods", nargs="+", choices=PROFILES, default=list(PROFILES), metavar="PROFILE", help="default: all"
    )
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the tables go, too, as Markdown")
    return parser.parse_args()


def run(options: argparse.Namespace) -> int:
    """The whole soak, inside a private world."""
    told, faults = soak(options) if options.seconds > 0 else ("", [])
    bursts = [burst(name, options) for name in (options.floods if options.flood else ())]
    if bursts:
        told += f"\n{flood_table(bursts)}\n"
        faults += [f"flood {each.profile}: the data path ended {each.ends} times" for each in bursts if each.ends]
        faults += [
            f"flood {each.profile}: {each.growth:.0%} above the plateau" for each in bursts if each.growth > GROWTH
        ]
    told += "\n" + ("\n".join(f"BROKEN: {fault}" for fault in faults) or "Every promise was kept.") + "\n"
    print(told)
    if options.write is not None:
        options.write.write_text(told)
    return 1 if faults else 0


def soak(options: argparse.Namespace) -> tuple[str, list[str]]:
    """The table, and the promises broken."""
    with tempfile.TemporaryDirectory(prefix="egressd-soak-") as folder:
        how = Options(options.seed, options.wiring, options.rate, options.crowd)
        with Stage(Path(folder), how) as stage:
            stage.start()
            time.sleep(WARM_UP_S)
            phases = strike(stage, options.faults, options.seconds, options.calm)
            print(stage.daemon.log(), file=sys.stderr)
            ends = stage.supervisor.ends
    seconds = sum(phase.ended - phase.began for phase in phases)
    head = (
        f"{seconds:.0f} s, seed {options.seed}, {options.wiring}, {options.rate:g} look-ups/s wanted; ends of the data"
    )
    return f"{head} path that were not asked for: {ends}\n\n{table(phases)}\n", broken(phases, rss_mib=RSS_MIB)


def burst(profile: str, options: argparse.Namespace) -> Flood:
    """One flood on a daemon of its own."""
    print(f"flood: {profile}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="egressd-flood-") as folder:
        return flood(Path(folder), options.flood, profile, seed=options.seed)


def strike(stage: Stage, faults: Sequence[str], seconds: float, calm_s: float) -> list[Phase]:
    """Strike until the time is up; the load ends with the last phase."""
    deadline = time.monotonic() + seconds
    for name in rotation(faults, stage.options.seed):
        begun = time.monotonic()
        if begun > deadline:
            break
        phase = stage.strike(FAULTS[name], calm_s)
        took = time.monotonic() - begun
        print(f"{deadline - begun:6.0f} s left: {name}, {took:.1f} s {phase.note}", file=sys.stderr, flush=True)
    return stage.finish()


if __name__ == "__main__":
    sys.exit(main())
