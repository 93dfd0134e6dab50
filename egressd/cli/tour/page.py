"""How the tour looks: headings, command lines, check marks, tables. Good at 80 columns, in colour and in a pipe.

Nothing here knows what the story is about. Signs that the output cannot encode are replaced by plain ones.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.text import Text

__all__ = ["VERDICT_STYLES", "Page"]

INDENT: Final = "    "
INNER: Final = INDENT + "  "
MOST_COLUMNS: Final = 100
"""Wider lines are harder to read."""
VERDICT_STYLES: Final = {"allowed": "green", "would-allow": "yellow", "would-deny": "yellow", "denied": "red"}
_PLAIN: Final = str.maketrans({"✓": "+", "✗": "!", "·": "-", "─": "-", "—": "-", "…": "..."})


class Page:
    """Prints on standard output. Colour only on a terminal, and not with NO_COLOR (rich heeds it)."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace", line_buffering=True)
        self._console = Console(highlight=False, emoji=False, markup=False)
        self._width = min(self._console.width, MOST_COLUMNS)
        self._plain = self._console.options.ascii_only
        self._chapters = 0

    def blank(self) -> None:
        self._console.print()

    def title(self, text: str) -> None:
        self._lines(self._text(text, "bold"), "")

    def chapter(self, title: str, text: str) -> None:
        """A numbered heading and the sentences under it."""
        self._chapters += 1
        self.blank()
        heading = self._text(f"{self._chapters:>2}  {title} ", "bold cyan")
        heading.append(self._signs("─" * (self._width - len(heading))), "cyan")
        self._lines(heading, "")
        self.say(text)
        self.blank()

    def say(self, text: str, style: str = "") -> None:
        self._lines(self._text(text, style), INDENT)

    def command(self, where: str, line: str) -> None:
        """What somebody types."""
        self._lines(Text.assemble((f"{where} $ ", "dim"), (line, "bold")), INDENT)

    def output(self, lines: Iterable[str]) -> None:
        """What a program printed."""
        for line in lines:
            text = line.expandtabs(2)
            depth = len(text) - len(text.lstrip())
            self._lines(Text(text.lstrip()), INNER + " " * depth, hanging="  ")

    def check(self, sentence: str, *, right: bool) -> None:
        """A claim and whether it is so."""
        self._lines(Text.assemble(self._mark(right), " ", self._text(sentence)), INDENT, hanging="  ")

    def audit(self, record: Mapping[str, Any], *, right: bool) -> None:
        """An audit record or a part of one, and whether it is the one that was told."""
        body = (json.dumps(record, ensure_ascii=self._plain), "dim")
        self._lines(Text.assemble(self._mark(right), " ", ("audit ", "cyan"), body), INDENT, hanging="  ")

    def policy(self, name: str, text: str) -> None:
        self._lines(Text(f"# {name}", "dim"), INNER)
        for line in text.splitlines():
            self._lines(Text(line), INNER)

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str]], styles: Mapping[str, str] = {}) -> None:
        """Columns as wide as they need to be; a cell whose text is a key of `styles` has that style."""
        cells = [[self._signs(cell) for cell in row] for row in (heads, *rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        looks = {self._signs(text): style for text, style in styles.items()}
        for number, row in enumerate(cells):
            line = Text()
            for cell, width in zip(row, widths, strict=True):
                line.append(cell.ljust(width), looks.get(cell, "") if number else "dim").append("  ")
            self._lines(line, INDENT)

    def hint(self, purpose: str, line: str) -> None:
        """What a reader may do, and the line to copy, which is therefore never broken in two. No purpose: go on."""
        if purpose:
            self._lines(self._text(purpose, "dim"), INDENT)
        self._console.print(Text(f"{INNER}{line}"), soft_wrap=True)

    def _mark(self, right: bool) -> Text:
        return self._text("✓", "bold green") if right else self._text("✗", "bold red")

    def _text(self, text: str, style: str = "") -> Text:
        return Text(self._signs(text), style)

    def _signs(self, text: str) -> str:
        return text.translate(_PLAIN) if self._plain else text

    def _lines(self, text: Text, indent: str, hanging: str = "") -> None:
        """Wrap and print; further lines are indented by `hanging` more. No spaces at the ends of lines."""
        width = self._width - len(indent) - len(hanging)
        for number, line in enumerate(text.wrap(self._console, width)):
            line.rstrip()
            self._console.print(Text(indent + (hanging if number else "")).append_text(line), soft_wrap=True)
