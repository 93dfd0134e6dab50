"""Compiles the hot path with mypyc: the same source, typed as it is, without the interpreter in between.

    python .ci/compile.py FOLDER              a copy of egressd in FOLDER, its hot modules compiled (benchmarks use it)
    python .ci/compile.py --batch FOLDER      the module in C alone (datagrams/_batch.c; its tests use it)

As a hook of hatchling it does the same for a wheel. Where mypyc, a C compiler or Python's headers are missing, or with
EGRESSD_PURE=1, the wheel is as good without: Python prefers a compiled module to its source, and takes the source where
there is none. An editable install is never compiled: what is edited there is what runs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
HOT = (
    "cache.py",
    "datagrams/__init__.py",
    "grants/*.py",
    "agent/trail.py",
    "audit/lines.py",
    "exchange/*.py",
    "kernel/comments.py",
    "kernel/elements.py",
    "listen/client.py",
    "listen/datagrams.py",
    "listen/streams.py",
    "memo.py",
    "policy/chain.py",
    "policy/judge.py",
    "policy/noise.py",
    "policy/trie.py",
    "upstream/datagrams.py",
    "upstream/flight.py",
    "upstream/health.py",
    "upstream/choice.py",
    "upstream/idents.py",
    "upstream/understood.py",
    "upstream/upstreams.py",
    "wire/answer.py",
    "wire/name.py",
    "wire/query.py",
    "wire/reply.py",
)
"""What every query passes, by measurement; globs below egressd/."""
BATCH = "egressd.datagrams._batch"
"""The one module in C: many datagrams with one system call."""
HARDENED = [
    *("-O2", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers", "-Werror"),
    *("-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"),
]
LINKED = ["-Wl,-z,relro", "-Wl,-z,now"]
_NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.so")


def compile_into(folder: Path) -> list[Path]:
    """Compile the hot modules of this checkout; the libraries, as they are to lie in `folder`. Raises `OSError` or
    `CalledProcessError`, whose `stderr` says why."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(ROOT / "egressd", Path(place) / "egressd", ignore=_NOT_SOURCE)
        shutil.copy(ROOT / "pyproject.toml", place)  # says to mypy which libraries have no types
        command = [sys.executable, __file__, "--extensions", str(folder)]
        subprocess.run(command, cwd=place, check=True, capture_output=True, text=True)  # noqa: S603 - this very file
    return sorted(folder.rglob("*.so"))


def build_extensions(folder: str) -> None:
    """In a process of its own, since mypyc ends it on errors: the working directory's hot modules into `folder`."""
    from mypyc.build import mypycify

    sources = [str(path) for glob in HOT for path in sorted(Path("egressd").glob(glob))]
    _build([_batch(), *mypycify(sources, opt_level="2")], folder, "build")


def build_batch(folder: str) -> None:
    """The module in C alone, as it lies in this checkout."""
    with tempfile.TemporaryDirectory() as place:
        os.chdir(ROOT)
        _build([_batch()], folder, place)


def _batch() -> Any:
    from setuptools import Extension

    return Extension(BATCH, [f"{BATCH.replace('.', '/')}.c"], extra_compile_args=HARDENED, extra_link_args=LINKED)


def _build(modules: list[Any], folder: str, temporary: str) -> None:
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    command = build_ext(Distribution({"name": "egressd", "ext_modules": modules}))
    command.build_lib, command.build_temp = folder, temporary
    command.ensure_finalized()
    command.run()


def compile_copy(folder: Path) -> None:
    """A copy of the package with its compiled modules beside their sources."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "egressd", folder / "egressd", ignore=_NOT_SOURCE)
    compile_into(folder)


try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface
except ImportError:  # run by hand, without hatchling
    pass
else:

    class Compiled(BuildHookInterface):  # type: ignore[type-arg]  # hatchling does not say of what
        """Adds the compiled modules to a wheel."""

        def initialize(self, version: str, build_data: dict[str, Any]) -> None:
            """`build_data` says what goes into the wheel, and for which platforms it is (hatchling, build hooks)."""
            if version == "editable" or os.environ.get("EGRESSD_PURE"):
                return
            folder = Path(self.directory) / "compiled"
            try:
                libraries = compile_into(folder)
            except (OSError, subprocess.CalledProcessError) as error:
                reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
                self.app.display_warning(f"not compiled, and none the worse for it but speed: {reason}")
                return
            build_data["pure_python"] = False
            build_data["infer_tag"] = True
            build_data["force_include"] |= {str(path): str(path.relative_to(folder)) for path in libraries}

        def finalize(self, *_: object) -> None:
            """What was built for the wheel is in it now."""
            shutil.rmtree(Path(self.directory) / "compiled", ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1] == "--extensions":
        build_extensions(sys.argv[2])
    elif sys.argv[1] == "--batch":
        build_batch(str(Path(sys.argv[2]).resolve()))
    else:
        try:
            compile_copy(Path(sys.argv[1]).resolve())
        except subprocess.CalledProcessError as error:
            sys.exit(error.stderr)
