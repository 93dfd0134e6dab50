"""One target under libFuzzer, in a process of its own: `python -m fuzz.engine TARGET [options and folders]`.

atheris counts which lines and comparisons of egressd an input reaches; it must see the modules before anybody else.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def main(name: str, arguments: list[str]) -> None:
    """Fuzz until libFuzzer's options say stop; a finding ends it with a traceback and a file."""
    atheris: Any = importlib.import_module("atheris")  # only here: nothing but `make fuzz` needs it
    with atheris.instrument_imports(include=["egressd", "yaml"]):
        from fuzz.targets import TARGETS
    target = TARGETS[name]
    options = [f"-max_len={target.longest}", f"-artifact_prefix={target.findings}/", "-print_final_stats=1"]
    atheris.Setup([name, *options, *arguments], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
