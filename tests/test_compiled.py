"""The hot path compiled is the same program: built from this source, it passes the tests of what it is made of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("exchange", "grants", "wire", "cache", "datagrams", "listen")
MODULES = (
    *("exchange", "exchange.admission", "exchange.repeats", "grants", "wire.answer", "cache", "memo"),
    *("upstream.upstreams", "listen.datagrams", "listen.streams", "datagrams", "datagrams._batch"),
)


@pytest.mark.timeout(900)
def test_the_compiled_copy_passes_the_same_tests(tmp_path: Path) -> None:
    """mypyc takes every hot module, Python finds the compiled one, and it gives the answers that the source gives."""
    made = subprocess.run(
        [sys.executable, ROOT / ".ci/compile.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
    look = (
        "import importlib, sys; [print(importlib.import_module('egressd.' + name).__file__) for name in sys.argv[1:]]"
    )
    found = subprocess.run(
        [sys.executable, "-c", look, *MODULES], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert [Path(each).suffix for each in found] == [".so"] * len(MODULES)
    assert all(Path(each).is_relative_to(tmp_path) for each in found)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(f"tests/{suite}" for suite in SUITES)]
    tests = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert tests.returncode == 0, tests.stdout[-5000:]


def test_nothing_of_the_compiler_is_needed_to_run() -> None:
    """Where mypy is not installed, what the classes say to it is said to nobody."""
    code = "import sys; sys.modules['mypy_extensions'] = None; from egressd.wire import Answer; print(Answer.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == "Answer\n", done.stderr
