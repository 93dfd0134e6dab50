"""How the tour looks: headings, command lines, check marks, tables. Good at 80 columns, in colour and in a pipe.

Nothing here knows what the story is about. Glyphs that the output cannot encode are replaced by plain ones.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

__all__ = ["VERDICT_STYLES", "Page"]

INDENT: Final = 4
MOST_COLUMNS: Final = 100
"""Wider lines are harder to read."""
VERDICT_STYLES: Final = {
    "allowed": "green",
    "would-allow": "yellow",
    "would-deny": "yellow",
    "denied": "red",
}
_PLAIN: Final = {"✓": "ok", "✗": "NOT", "·": "-", "→": "->", "…": "..."}


class Page:
    """Prints on standard output. Colour only on a terminal, and not with NO_COLOR (rich)."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace", line_buffering=True)
        self.console = Console(highlight=False, emoji=False)
        self.console.width = min(self.console.width, MOST_COLUMNS)
        self._plain = self.console.options.ascii_only
        self._chapters = 0

    def glyph(self, text: str) -> str:
        """A sign, or what stands for it where only ASCII can be written."""
        return "".join(_PLAIN.get(sign, sign) for sign in text) if self._plain else text

    def blank(self) -> None:
        self.console.print()

    def title(self, text: str) -> None:
        self.console.print(Text(self.glyph(text), style="bold"))

    def chapter(self, title: str, text: str) -> None:
        """A numbered heading and the sentences under it."""
        self._chapters += 1
        self.blank()
        heading = Text(f"{self._chapters:>2}  {self.glyph(title)} ", style="bold cyan")
        self.console.print(Rule(heading, align="left", style="cyan", characters="-" if self._plain else "─"))
        self.say(text)
        self.blank()

    def say(self, text: str, style: str = "") -> None:
        self._indented(Text(self.glyph(text), style=style))

    def command(self, where: str, line: str) -> None:
        """What somebody types."""
        self._indented(Text.assemble((f"{where} $ ", "dim"), (line, "bold")))

    def output(self, lines: Iterable[str]) -> None:
        """What a program printed."""
        for line in lines:
            self._indented(Text(line.replace("\t", " ")), by=2)

    def audit(self, record: Mapping[str, Any]) -> None:
        """An audit record or a part of one."""
        body = json.dumps(record, ensure_ascii=self._plain)
        self._indented(Text.assemble(("audit ", "dim cyan"), (body, "dim")), by=2)

    def check(self, sentence: str, *, right: bool) -> None:
        mark = (self.glyph("✓"), "bold green") if right else (self.glyph("✗"), "bold red")
        self._indented(Text.assemble(mark, " ", self.glyph(sentence)))

    def policy(self, name: str, text: str) -> None:
        self._indented(Text(f"# {name}", style="dim"), by=2)
        self._indented(Text(text.rstrip()), by=2)

    def table(self, heads: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
        table = Table(*heads, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=False)
        for column in table.columns:
            column.overflow = "fold"
        for row in rows:
            table.add_row(*(self.glyph(cell) if isinstance(cell, str) else cell for cell in row))
        self._indented(table)

    def hint(self, text: str, command: str) -> None:
        """What a reader may do, and the line to copy; it is never broken in two."""
        self.say(text)
        self.console.print(Text(f"{' ' * (INDENT + 2)}{command}", style="bold"), soft_wrap=True)

    def _indented(self, what: Text | Table, by: int = 0) -> None:
        self.console.print(Padding(what, (0, 0, 0, INDENT + by), expand=False))
