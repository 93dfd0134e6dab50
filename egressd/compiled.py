"""What the compiler of the hot path is told about a class (mypyc; .ci/compile.py); without it, nothing is said.

`acyclic` classes are those whose instances never lead back to themselves: compiled, reference counts alone free them,
and the cycle collector need not look at the hundred thousands that a busy node remembers.
"""

from __future__ import annotations

try:
    from mypy_extensions import mypyc_attr
except ImportError:  # interpreted, with nothing of the compiler's at hand
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

    def mypyc_attr(*attrs: str, **kwattrs: object) -> Callable[[T], T]:  # noqa: ARG001 - they are the compiler's
        """Nothing."""
        return lambda kind: kind


__all__ = ["mypyc_attr"]
