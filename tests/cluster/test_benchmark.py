"""The benchmark of a cluster's cost runs, small, and measures what it names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_benchmark_runs() -> None:
    """All its rows, with numbers in them."""
    command = [sys.executable, "-m", "benchmarks.kubernetes_start", "--pods", "10", "--policies", "20"]
    command += ["--starts", "1", "--events", "5", "--edits", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")][2:]
    assert len(rows) == 7
    assert "Objects: 10 pods, 20 policies of 20 rules" in done.stdout
    assert any(row.startswith("| ConfigMap to kernel, median") and row.endswith("| 50 ms |") for row in rows)
