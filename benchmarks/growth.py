"""How cost grows: with the rules of a policy, with the pods of a node, with the grants that are open already.

    python -m benchmarks.growth [--plot FILE.svg]            (root)

Each step is CPU time of this process (the kernel's part of a transaction is in it, as it completes inside the call),
the median of several runs, on a real table in a network namespace of its own. A hundredth of the rules are blocks.
"""

from __future__ import annotations

import argparse
import math
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple, Self

from benchmarks.cpu import describe_machine
from benchmarks.table import markdown
from egressd.grants import Element
from egressd.kernel import Change, Kernel, PodElement
from egressd.lab import run_private
from egressd.model import Address, Policy, PortSpan, Subject
from egressd.names import Name
from egressd.policy import ClusterFacts, Judge, Plan
from egressd.schema import read_policy
from egressd.schema.words import read_block
from egressd.settings import Dns, Settings, Upstream

RULES: Final = (10, 30, 100, 300, 1_000, 3_000, 10_000)
PODS: Final = (1, 5, 10, 50, 100, 250, 500)
GRANTS: Final = (100, 1_000, 10_000, 100_000)
SUBJECT_RULES: Final = 20
NAMES: Final = 2_000
"""Names judged for one measurement: more than are remembered is not needed, since each is new."""
HTTPS: Final = PortSpan(6, 6, 443, 443)


class Line(NamedTuple):
    """One curve: what was measured at each of the sizes, in the unit of its panel."""

    title: str
    sizes: Sequence[int]
    values: list[float]


class Panel(NamedTuple):
    """Curves that share their axes."""

    title: str
    across: str
    unit: str
    lines: list[Line]


def cpu_ms(work: Callable[[], object]) -> float:
    """Milliseconds of CPU that `work` takes."""
    before = time.process_time()
    work()
    return (time.process_time() - before) * 1e3


# ------------------------------------------------------------------------------------------------------ policies


def policy_text(rules: int, mark: str = "a") -> str:
    """A policy of so many rules: exact names, wildcards, and a block in a hundred."""
    peers = [
        f"198.18.{n // 256 % 256}.{n % 256}"
        if n % 100 == 99
        else f"'*.{mark}{n}.bench.example'"
        if n % 2
        else f"{mark}{n}.bench.example"
        for n in range(rules)
    ]
    return "allow:\n" + "".join(f"- to: [{peer}]\n  ports: [443/TCP]\n" for peer in peers)


def policy_of(text: str, name: str = "shop/web") -> Policy:
    """The policy, which must be valid."""
    policy, problems = read_policy(text, name=name, namespace="shop", policy_namespace="egressd-system")
    if policy is None:
        raise ValueError(f"the policy of the benchmark is not valid: {problems}")
    return policy


def plan_of(policy: Policy) -> Plan:
    """What the kernel is to know of pods that this policy alone selects."""
    return Judge(Subject((policy,)), ClusterFacts()).plan()


def measure_rules(sizes: Sequence[int], repeats: int) -> Panel:
    """Reading, compiling and putting in force one policy of n rules."""
    reading, compiling, placing = [], [], []
    for rules in sizes:
        text = policy_text(rules)
        policy = policy_of(text)
        plan = plan_of(policy)
        reading.append(median(cpu_ms(partial(policy_of, text)) for _ in range(repeats)))
        compiling.append(median(cpu_ms(partial(plan_of, policy)) for _ in range(repeats)))
        with Table() as table:
            placing.append(median(table.apply_ms(Change(subjects={1: plan})) for _ in range(repeats + 1)))
        print(f"{rules} rules: {reading[-1]:.1f} {compiling[-1]:.2f} {placing[-1]:.2f} ms", file=sys.stderr)
    lines = [
        Line("read and check the YAML", sizes, reading),
        Line("compile", sizes, compiling),
        Line("replace in the kernel", sizes, placing),
    ]
    return Panel("An edit of one policy", "rules", "ms", lines)


def measure_verdicts(sizes: Sequence[int], repeats: int) -> Panel:
    """A verdict for a name that was never asked before."""
    lines = [
        Line(title, sizes, [_verdict_us(policy_of(policy_text(rules)), form, repeats) for rules in sizes])
        for title, form in (("allowed", "n{}.a1.bench.example"), ("denied", "n{}.other.example"))
    ]
    return Panel("A verdict for a new name", "rules", "µs", lines)


def _verdict_us(policy: Policy, form: str, repeats: int) -> float:
    names = [Name(form.format(number)) for number in range(NAMES)]

    def once() -> float:
        judge = Judge(Subject((policy,)), ClusterFacts())

        def work() -> None:
            for name in names:
                judge.judge_name(name)

        return cpu_ms(work)

    return median(once() for _ in range(repeats)) / NAMES * 1e3


# ---------------------------------------------------------------------------------------------------- the kernel


class Table:
    """egressd's table in the namespace that we are in, empty, and removed at the end."""

    def __enter__(self) -> Self:
        settings = Settings(
            node="bench",
            pod_cidrs=(read_block("10.244.0.0/16"),),
            dns=Dns(upstreams=(Upstream(Address(socket.inet_aton("192.0.2.53"))),)),
        )
        self.kernel = Kernel(settings)
        self.kernel.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.kernel.remove()
        self.kernel.close()

    def apply_ms(self, change: Change) -> float:
        """Milliseconds of CPU of one change."""
        return cpu_ms(lambda: self.kernel.apply(change))

    def program_us(self, batches: Sequence[Sequence[Element]]) -> float:
        """Microseconds of CPU a grant, a transaction for each batch."""

        def work() -> None:
            for batch in batches:
                self.kernel.program(batch)

        return cpu_ms(work) / sum(map(len, batches)) * 1e3


def measure_pods(sizes: Sequence[int], repeats: int) -> Panel:
    """The first word of a node's pods, each under a policy of its own, and one more pod then."""
    whole, one = [], []
    for pods in sizes:
        plans = {n: plan_of(policy_of(policy_text(SUBJECT_RULES, f"p{n}-"), f"shop/p{n}")) for n in range(1, pods + 1)}
        elements = [_pod(number) for number in plans]
        runs, singles = [], []
        for _ in range(repeats):
            with Table() as table:
                runs.append(table.apply_ms(Change(subjects=plans, pods=elements)))
                singles.append(table.apply_ms(Change(subjects={pods + 1: plans[1]}, pods=[_pod(pods + 1)])))
        whole.append(median(runs))
        one.append(median(singles))
        print(f"{pods} pods: {whole[-1]:.1f} {one[-1]:.2f} ms", file=sys.stderr)
    return Panel(
        f"Pods with {SUBJECT_RULES} rules of their own",
        "pods",
        "ms",
        [Line("all at once", sizes, whole), Line("one more", sizes, one)],
    )


def _pod(number: int) -> PodElement:
    return PodElement(struct.pack("!I", 0x0AF40000 + number + 1), number, False, f"shop/web-{number}")


def measure_grants(sizes: Sequence[int], repeats: int) -> Panel:
    """Opening addresses in a set that holds n already: one in a transaction, or many."""
    batches = (1, 16, 500)
    found: dict[int, list[float]] = {batch: [] for batch in batches}
    plan = plan_of(policy_of(policy_text(SUBJECT_RULES)))
    for there in sizes:
        with Table() as table:
            table.kernel.apply(Change(subjects={1: plan}))
            number = 0
            while number < there:
                table.kernel.program(_grants(number, 500))
                number += 500
            for batch in batches:
                rounds, runs = max(1, 500 // batch), []
                for _ in range(repeats):
                    work = [_grants(number + each * batch, batch) for each in range(rounds)]
                    number += rounds * batch
                    runs.append(table.program_us(work))
                found[batch].append(median(runs))
        print(f"{there} grants: {', '.join(f'{found[b][-1]:.1f}' for b in batches)} µs each", file=sys.stderr)
    titles = {1: "one a transaction", 16: "16 a transaction", 500: "500 a transaction"}
    return Panel(
        "Opening one address",
        "grants open already",
        "µs",
        [Line(titles[batch], sizes, values) for batch, values in found.items()],
    )


def _grants(first: int, count: int) -> list[Element]:
    return [
        Element(1, "port", struct.pack("!I", 0xC6120000 + number), HTTPS, 600_000, "n.bench.example", False)
        for number in range(first, first + count)
    ]


# ------------------------------------------------------------------------------------------------------ the pages


def tables(panels: Sequence[Panel]) -> str:
    """One table a panel: a row a curve, a column a size."""
    parts = []
    for panel in panels:
        sizes = panel.lines[0].sizes
        rows = [[line.title, *(f"{value:.3g}" for value in line.values)] for line in panel.lines]
        parts.append(f"{panel.title}, {panel.unit}\n\n{markdown([panel.across, *map('{:,}'.format, sizes)], rows)}")
    return "\n\n".join(parts)


def plot(panels: Sequence[Panel], file: Path) -> None:
    """The same as curves on logarithmic axes: what does not grow is level, what grows in proportion is a diagonal."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "egressd", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for panel, axis in zip(panels, axes.flat, strict=True):
        for line, style in zip(panel.lines, ("o-", "s--", "^:"), strict=False):
            axis.plot(line.sizes, line.values, style, label=line.title)
        axis.set(xscale="log", yscale="log", title=panel.title, xlabel=panel.across, ylabel=f"CPU, {panel.unit}")
        found = [value for line in panel.lines for value in line.values]
        axis.set_ylim(10 ** math.floor(math.log10(min(found))), 10 ** math.ceil(math.log10(max(found))))  # no zoom
        axis.grid(visible=True, which="major", alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(file, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    file.write_text("\n".join(text.rstrip() for text in file.read_text().splitlines()) + "\n")


def main() -> int:
    """Exit code 0; in namespaces that end with it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--small", action="store_true", help="leave out the large sizes")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves into this SVG")
    options = parser.parse_args()

    def measure() -> int:
        keep = 3 if options.small else None
        panels = [
            measure_rules(RULES[:keep], options.repeats),
            measure_verdicts(RULES[:keep], options.repeats),
            measure_pods(PODS[:keep], options.repeats),
            measure_grants(GRANTS[:keep], options.repeats),
        ]
        if options.plot:
            plot(panels, options.plot)
        print(f"Machine: {describe_machine()}\n\n{tables(panels)}", flush=True)
        return 0

    return run_private(measure)


if __name__ == "__main__":
    sys.exit(main())
