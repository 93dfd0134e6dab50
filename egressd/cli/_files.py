"""Files of manifests named on the command line: found, read and decoded, with what is wrong as problems."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from egressd.schema import Manifest, Problem
    from egressd.settings import Settings

__all__ = ["Source", "print_data", "read_all", "settings_of", "sources"]

SUFFIXES: Final = (".yaml", ".yml", ".json")
STDIN: Final = "<stdin>"


@dataclass(frozen=True, slots=True)
class Source:
    """One file to read. `named` tells those given by name from those found in a folder."""

    path: Path | None
    """None: standard input."""
    shown: str
    named: bool

    def read(self) -> bytes:
        return sys.stdin.buffer.read() if self.path is None else self.path.read_bytes()

    @property
    def stem(self) -> str:
        """What a bare policy in it is called."""
        return self.path.stem if self.path else "stdin"


def sources(names: Iterable[str]) -> Iterator[Source]:
    """The files behind the names: `-` is standard input, folders are searched. Raises usage errors for missing ones."""
    for name in names:
        path = Path(name)
        if name == "-":
            yield Source(None, STDIN, named=True)
        elif path.is_dir():
            yield from (Source(found, str(found), named=False) for found in _inside(path))
        elif path.exists():
            yield Source(path, name, named=True)
        else:
            raise click.UsageError(f"{name}: no such file or folder")


def _inside(folder: Path) -> list[Path]:
    """Manifests in a folder and the folders below it; hidden ones (editors, git, Kubernetes' ..data) are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def read_all(found: Iterable[Source]) -> Iterator[tuple[Source, list[Manifest], list[Problem]]]:
    """The objects of every file. A file that cannot be read or decoded has one problem and no objects."""
    from egressd.schema import Problem, read_manifests

    for source in found:
        try:
            text = source.read().decode()
        except OSError as error:
            yield source, [], [Problem(source.shown, 0, 0, "error", f"cannot be read: {error.strerror}")]
        except UnicodeDecodeError as error:
            message = f"octet {error.start + 1} is not UTF-8 text; save the file as UTF-8"
            yield source, [], [Problem(source.shown, 0, 0, "error", message)]
        else:
            manifests, problems = read_manifests(text, source.shown)
            yield source, manifests, problems


def settings_of(config: str | None) -> Settings:
    """What a settings file says, or the defaults. Raises `SettingsError`."""
    from egressd.schema import stated_settings

    return stated_settings(config, {}, {})


def print_data(value: object, output: str) -> None:
    """Print data as `json` or `yaml` (`-o`)."""
    from egressd.schema import yaml_text

    click.echo(json.dumps(value, indent=2, ensure_ascii=False) if output == "json" else yaml_text(value).rstrip())
