"""What is wrong with a text, and where: the one shape of every complaint that `schema` makes.

Checks speak of `Fault`s, with lines and columns of the text that they read. An `Origin` knows where that text lies in
the file that holds it (a policy is a block scalar inside a ConfigMap) and turns faults into `Problem`s of the file.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from egressd.errors import EgressError

__all__ = ["MAX_PROBLEMS", "Fault", "Origin", "Problem", "SettingsError", "did_you_mean", "has_errors", "shown"]

MAX_PROBLEMS: Final = 200
"""Complaints reported about one document: more than anyone reads, and a bound on what a hostile one makes us say."""
_NEAR: Final = 40
"""Characters of a word that is still compared with others: difflib is quadratic, and no field is as long."""


class Fault(NamedTuple):
    """One complaint in the coordinates of the text that was read, from 1."""

    line: int
    column: int
    message: str
    severity: str = "error"


class Problem(NamedTuple):
    """One complaint about a file. `line` and `column` count from 1; 0 where there is none (a variable, a flag)."""

    file: str
    line: int
    column: int
    severity: str
    """`error` or `warning`."""
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.severity}: {self.message}"


class SettingsError(EgressError):
    """Settings that cannot be used; the text holds every problem, one a line."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a text lies in its file: at `line`, every line of it shifted right by `indent` columns.

    With `exact` unset the text's own lines cannot be told in the file (a quoted or folded scalar): every fault then
    points at the scalar's start and says its own place in words.
    """

    line: int = 1
    indent: int = 0
    exact: bool = True

    def problem(self, file: str, fault: Fault) -> Problem:
        if self.exact:
            line, column, message = fault.line + self.line - 1, fault.column + self.indent, fault.message
        else:
            line, column = self.line, self.indent + 1
            message = f"{fault.message} (line {fault.line}, column {fault.column} of this text)"
        return Problem(file, line, column, fault.severity, message)

    def problems(self, file: str, faults: Iterable[Fault]) -> list[Problem]:
        """All faults in reading order, at most `MAX_PROBLEMS` and a last one that says how many were left out."""
        ordered = sorted(dict.fromkeys(faults), key=lambda fault: (fault.line, fault.column))
        kept = ordered[:MAX_PROBLEMS]
        if len(ordered) > len(kept):
            last = ordered[MAX_PROBLEMS]
            severity = "error" if any(fault.severity == "error" for fault in ordered[MAX_PROBLEMS:]) else "warning"
            kept.append(last._replace(message=f"and {len(ordered) - len(kept)} more from here on", severity=severity))
        return [self.problem(file, fault) for fault in kept]


def has_errors(problems: Iterable[Problem]) -> bool:
    """Whether any of them is an error, and not just a warning."""
    return any(problem.severity == "error" for problem in problems)


def shown(text: str) -> str:
    """Quote a piece of input for a message, cut to a readable length."""
    return repr(text if len(text) <= 60 else text[:57] + "…")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`; did you mean 'allow'?`, or an empty text where nothing is near."""
    if len(word) > _NEAR:
        return ""
    folded = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""
