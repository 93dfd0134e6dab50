"""The benchmark measures what it says: CPU is charged to the right processes, and a wrong answer stops it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import growth, memory, packets
from benchmarks.cpu import Usage, tree, usage
from benchmarks.place import BenchmarkError
from benchmarks.table import Sample, markdown, measure_table, ratio_table
from benchmarks.workloads import MAX_QUERIES, POPULAR, WORKLOADS, read_report

REPORT = """
  Queries sent:         1000
  Queries completed:    {completed} (100.00%)
  Queries lost:         0 (0.00%)

  Response codes:       {codes}
  Queries per second:   40044.5

  Average Latency (s):  0.000731 (min 0.000100, max 0.004000)
"""
BURN = "import time\nwhile time.process_time() < 0.3: pass\nprint('burnt', flush=True)\ninput()"


def test_cpu_of_a_process_tree_is_counted() -> None:
    """What a grandchild spends is in the usage of the tree, and in nothing else's."""
    shell = ["sh", "-c", '"$0" -c "$1"; exit 0', sys.executable, BURN]
    with subprocess.Popen(shell, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"burnt\n"
        pids = tree(process.pid)
        spent = usage(pids)
        process.communicate(b"\n", timeout=60)
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert spent.total >= 0.25
    assert usage([process.pid]) == Usage(0, 0)


def test_memory_of_two_counts_shared_pages_once() -> None:
    """What one process holds is what its pages come to; a fork of it that touches nothing adds next to nothing."""
    program = "import os; block = b'x' * (32 << 20); pid = os.fork(); print(pid or '', flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = sorted([process.stdout.readline(), process.stdout.readline()])
        pids = [process.pid, int(lines[1])]
        one, both = memory.held(pids[0]), memory.together(pids)
        assert memory.together(pids[:1]).rss == pytest.approx(one.rss, rel=0.05)
        assert both.rss < one.rss + 16 < memory.held(pids[1]).rss + one.rss
        assert both.pss == pytest.approx(sum(memory.held(pid).pss for pid in pids), rel=0.05)
        process.communicate(b"\n\n", timeout=60)


def test_report_of_the_expected_answers_is_read() -> None:
    """Count, rate and latency come out of a dnsperf report."""
    run = read_report(REPORT.format(completed=1000, codes="NOERROR 1000 (100.00%)"), WORKLOADS[0])
    assert (run.completed, run.rate) == (1000, 40044.5)
    assert run.latency_us == pytest.approx(731)


@pytest.mark.parametrize(
    ("completed", "codes"),
    [
        pytest.param(1000, "NOERROR 990 (99.00%), SERVFAIL 10 (1.00%)", id="wrong answers"),
        pytest.param(990, "NOERROR 990 (100.00%)", id="lost answers"),
        pytest.param(1000, "NXDOMAIN 1000 (100.00%)", id="none as expected"),
    ],
)
def test_wrong_answers_are_no_result(completed: int, codes: str) -> None:
    """A peer that loses queries or answers them wrongly has not done the work that is priced."""
    with pytest.raises(BenchmarkError):
        read_report(REPORT.format(completed=completed, codes=codes), WORKLOADS[0])


def test_warm_up_leaves_new_names_new() -> None:
    """No name of a workload about new names is asked before its measurement."""
    for workload in WORKLOADS:
        asked = set(workload.questions(MAX_QUERIES))
        assert asked.isdisjoint(workload.warm_up()) == (workload.distinct > POPULAR), workload.name
        assert len(asked) == min(workload.distinct, workload.most(MAX_QUERIES))


def test_ratios_are_taken_within_a_repeat() -> None:
    """A machine that is slow for a whole repeat moves medians of time, but not the ratio."""
    samples = [
        Sample(repeat, "w", peer, slow * cost, 0.0, 0.0, 0.0)
        for repeat, slow in enumerate((1, 5, 2))
        for peer, cost in (("a", 10.0), ("b", 30.0))
    ]
    assert "3.00 (3.00-3.00)" in ratio_table(samples, {"w": "work"})
    assert "| work | 20.0 | 60.0 |" in measure_table(samples, {"w": "work"}, lambda sample: sample.cpu_us, ".1f")


def test_table_is_markdown() -> None:
    """Columns are padded to one width, numbers to the right."""
    assert markdown(["", "a"], [["work", "1"]]) == "|      |   a |\n| ---- | --: |\n| work |   1 |"


def test_benchmark_runs() -> None:
    """The whole of it, small: namespaces, upstream, dnsmasq with its set, dnsperf, tables."""
    command = [sys.executable, "-m", "benchmarks", "--repeats", "1", "--queries", "4000"]
    command += ["--peers", "dnsmasq", "dnsmasq-nftset", "--workloads", "allowed-new", "four-new", "denied"]
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert "| allowed, new name and address " in done.stdout
    assert "| allowed, new name, four new addresses |" in done.stdout


def test_packet_ratios_are_to_conntrack_alone() -> None:
    """A way through the node is compared with the same repeat's run on conntrack alone, packets and connections."""
    base = [packets.Cost(1000.0, 50.0, 20_000.0), packets.Cost(2000.0, 100.0, 10_000.0)]
    own = [packets.Cost(1100.0, 60.0, 16_000.0), packets.Cost(2200.0, 120.0, 8_000.0)]
    text = packets.report({packets.BASE: base, "egressd": own})
    assert "| egressd   |        1650 | 1.10 (1.10-1.10) |" in text
    assert text.rstrip().endswith("|            90.0 | 1.20 (1.20-1.20) |         12000 |")


def test_growth_is_told_as_tables_and_curves(tmp_path: Path) -> None:
    """Each curve is a row with a value for each size, and a line with its title in the plot."""
    lines = [growth.Line("compile", (10, 100), [0.1, 1.0])]
    panels = [growth.Panel(title, "rules", "ms", lines) for title in "abcd"]
    assert "| compile | 0.1 |   1 |" in growth.tables(panels)
    growth.plot(panels, tmp_path / "plot.svg")
    assert (tmp_path / "plot.svg").read_text().count("compile") >= 4


@pytest.mark.parametrize("module", ["packets --repeats 1 --packets 4000", "growth --repeats 1 --small"])
def test_other_benchmarks_run(module: str) -> None:
    """Small runs of the packet path and of growth, on the real kernel, end well and print their tables."""
    root = Path(__file__).resolve().parent.parent
    name, *arguments = module.split()
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert {"packets": "| egressd ", "growth": "| one a transaction "}[name] in done.stdout
