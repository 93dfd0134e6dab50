"""`python -m fuzz`: every target for a while, one after the other; prints what was run and found as a table.

A finding is kept in tests/corpus/fuzz/TARGET, where `make test` replays it from then on.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile

from fuzz.targets import TARGETS, Target

SLOW_S = 10
"""An input that takes longer is a finding."""
MEMORY_MIB = 1024
"""A process that takes more is a finding."""


def main() -> int:
    """Exit code 0 if nothing was found, else 1."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", default=list(TARGETS), metavar="TARGET", help="default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target; default: %(default)s")
    options = parser.parse_args()
    if unknown := set(options.targets) - set(TARGETS):
        parser.error(f"no such target: {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    print("| target | inputs run | features reached | found |\n| --- | --: | --: | --- |")
    codes = [fuzz(TARGETS[name], options.seconds) for name in options.targets]
    return int(any(codes))


def fuzz(target: Target, seconds: int) -> int:
    """Fuzz one target, print its line, show the last words of a finding. Returns 1 if there was one."""
    target.findings.mkdir(parents=True, exist_ok=True)
    before = set(target.findings.iterdir())
    with tempfile.TemporaryDirectory(prefix="egressd-fuzz-") as grown:
        argv = [sys.executable, "-m", "fuzz.engine", target.name, f"-max_total_time={seconds}", f"-timeout={SLOW_S}"]
        argv += [f"-rss_limit_mb={MEMORY_MIB}", grown, *map(str, target.folders())]
        done = subprocess.run(argv, capture_output=True, check=False)
    said = (done.stdout + done.stderr).decode(errors="replace")
    found = sorted(path.name for path in set(target.findings.iterdir()) - before)
    features = [int(number) for number in re.findall(r" ft: (\d+)", said)]
    print(
        f"| {target.name} | {_inputs(said)} | {max(features, default=0)} | {', '.join(found) or 'nothing'} |",
        flush=True,
    )
    if done.returncode or found:
        print(said[-3000:], file=sys.stderr)
    return int(bool(done.returncode or found))


def _inputs(said: str) -> int:
    """How many inputs were run: the final statistics, or the last line of progress before a finding."""
    final = re.findall(r"stat::number_of_executed_units: (\d+)", said)
    return int((final or re.findall(r"^#(\d+)", said, re.MULTILINE) or ["0"])[-1])


if __name__ == "__main__":
    sys.exit(main())
