"""Every benchmark after another, and one page of what they found: `make bench`.

    python -m benchmarks.everything --write benchmarks/RESULTS.md            (root)

Each is a program of its own, as it can be run by hand; what it prints is a section of the page. One that fails leaves
the page as it was. It takes some 40 minutes, and wants the machine for itself: two cores, and nothing else on them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

PLOT: Final = "growth.svg"


class Section(NamedTuple):
    """One benchmark: its heading, its module and arguments, and what a reader should know first."""

    title: str
    command: tuple[str, ...]
    words: str


SECTIONS: Final = (
    Section(
        "What a query costs",
        ("benchmarks",),
        "Each peer is fresh for each run, in network namespaces of its own. egressd does with each query what none of"
        " the others does: it knows the pod, judges the name by its policies, opens the addresses in the kernel before"
        " it answers, and writes an audit record. `egressd` has its hot path compiled from the very source that"
        " `egressd-interpreted` runs as it is.",
    ),
    Section(
        "What a pod waits",
        ("benchmarks.latency",),
        "The same questions at a fixed rate, straight to the upstream and through egressd. The first upstream is one"
        " hop away and answers out of thin air, so that hardly anything but the way itself is measured; the other is"
        " a millisecond away, as a cluster's DNS on another node is.",
    ),
    Section(
        "What else happens meanwhile",
        ("benchmarks.disturbed",),
        "Policies are reloaded and metrics scraped while pods ask; then everybody watches: history is on, the metrics"
        " are scraped each second, and somebody has the live log open. CPU is that of egressd's processes; the audit"
        " file is written in all runs. They go through the kinds and back; a ratio is the median of the pairs"
        " (least-largest). A browser on the same two cores costs others their caches, too; curl shows egressd's part.",
    ),
    Section(
        "What it holds in memory",
        ("benchmarks.memory",),
        "A node of 250 pods and a few policies, settings as they come, 10,000 names asked for once each. Pages that"
        " both processes map count once in their sum.",
    ),
    Section(
        "What a packet costs",
        ("benchmarks.packets",),
        "CPU is the sender's, in whose time the kernel forwards; its own part is in it, the same for all.",
    ),
    Section("How cost grows", ("benchmarks.growth",), f"![curves of the tables below]({PLOT})"),
    Section(
        "What a cluster costs a node",
        ("benchmarks.kubernetes_start",),
        "A small API server (the tests' own), the real daemon.",
    ),
)


def run(section: Section, extra: list[str], folder: Path) -> str:
    """The section's text. Raises `CalledProcessError`; what went wrong is on standard error by then."""
    plot = ["--plot", str(folder / PLOT)] if section.command[0] == "benchmarks.growth" else []
    command = [sys.executable, "-m", *section.command, *plot, *extra]
    print(f"== {section.title}: python -m {' '.join(command[2:])}", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return f"## {section.title}\n\n{section.words}\n\n{done.stdout.strip()}\n"


def main() -> int:
    """Exit code 0; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.everything", description=__doc__)
    modules = {section.command[0]: section for section in SECTIONS}
    parser.add_argument("--only", nargs="+", choices=list(modules), default=list(modules), help="default: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there")
    parser.add_argument("cpu", nargs=argparse.REMAINDER, help="after --: handed on to `python -m benchmarks`")
    options = parser.parse_args()
    folder = (options.write or Path(__file__)).parent
    parts = ["# What egressd costs\n\nWritten by `make bench`.\n"]
    for name in options.only:
        extra = [word for word in options.cpu if word != "--"] if name == "benchmarks" else []
        try:
            parts.append(run(modules[name], extra, folder))
        except subprocess.CalledProcessError as error:
            print(f"benchmark failed: {name} ended with {error.returncode}", file=sys.stderr)
            return 1
    text = "\n".join(parts)
    if options.write:
        options.write.write_text(text)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
