"""Tables for a terminal and for a pipe: fixed columns, cut to the width of the terminal, whole in a pipe."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from typing import Final

import click

__all__ = ["colour", "cut", "table", "width"]

GAP: Final = "  "
NARROWEST: Final = 8
"""Columns below which a cell is cut no further."""
WHOLE: Final = 10_000

COLOURS: Final = {
    "allowed": "green",
    "denied": "red",
    "refused": "red",
    "would-deny": "yellow",
    "would-allow": "yellow",
    "False": "red",
    "no": "red",
}


def width() -> int:
    """Columns to fill: the terminal's, or no bound in a pipe (`COLUMNS` counts in both)."""
    if os.environ.get("COLUMNS", "").isdecimal():
        return int(os.environ["COLUMNS"])
    return shutil.get_terminal_size((80, 24)).columns if sys.stdout.isatty() else WHOLE


def colour(text: str, word: str) -> str:
    """The text in the colour of a word, on a terminal that may have colours (no-color.org)."""
    hue = COLOURS.get(word)
    if hue is None or "NO_COLOR" in os.environ or not sys.stdout.isatty():
        return text
    return click.style(text, fg=hue)


def cut(text: str, columns: int) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= columns else text[: max(columns - 1, 0)] + "…"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], columns: int, indent: str = "") -> list[str]:
    """Lines of a table. Where it is too wide, the widest columns give way."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    room = columns - len(indent) - len(GAP) * (len(head) - 1)
    while sum(widths) > room and max(widths) > NARROWEST:
        widest = widths.index(max(widths))
        widths[widest] -= 1
    return [_line(row, widths, indent) for row in [head, *rows]]


def _line(cells: Sequence[str], widths: Sequence[int], indent: str) -> str:
    *first, last = [cut(cell, width) for cell, width in zip(cells, widths, strict=True)]
    padded = [cell.ljust(width) for cell, width in zip(first, widths, strict=False)]
    return indent + GAP.join([*(colour(text, text.strip()) for text in padded), colour(last, last)]).rstrip()
