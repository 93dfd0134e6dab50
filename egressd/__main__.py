"""`python -m egressd`: the same program as `egressd`."""

from __future__ import annotations

from egressd.cli import main

if __name__ == "__main__":
    main(prog_name="egressd")
