"""The compiled copy of egressd that is measured: made anew whenever a source changes (.ci/compile.py)."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["ROOT", "compiled_environment", "installed_environment"]

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / ".venv" / "compiled"
BYTE_CODE = ROOT / ".venv" / "bytecode"
COMPILE = ROOT / ".ci" / "compile.py"


def installed_environment() -> Mapping[str, str]:
    """An environment in which byte code is kept, as it is wherever egressd is installed. Without it, every start
    compiles all that it imports: half a second in each process, and a few MiB."""
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(BYTE_CODE)}


def compiled_environment() -> Mapping[str, str]:
    """The same, in which `python -m egressd` is the compiled copy; says so where none can be made."""
    stamp, wanted = COPY / "stamp", _fingerprint()
    if not stamp.exists() or stamp.read_text() != wanted:
        print("compiling the hot path (half a minute)", file=sys.stderr)
        done = subprocess.run([sys.executable, COMPILE, COPY], capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
            print(f"egressd is measured interpreted, since it cannot be compiled here: {reason}", file=sys.stderr)
            return installed_environment()
        stamp.write_text(wanted)
    return {**installed_environment(), "PYTHONPATH": str(COPY), "PYTHONSAFEPATH": "1"}


def _fingerprint() -> str:
    digest = hashlib.sha256(sys.version.encode())
    for path in (COMPILE, *sorted((ROOT / "egressd").rglob("*.py"))):
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
