"""A YAML tree walked by key, which remembers what was looked at: what nobody looked at was not carried over.

That is the whole guarantee of `convert`: a field that its reader does not know is found by `unread`, at its line, and
told; none is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from egressd.schema.tree import Mapping, Node, Scalar, Sequence

__all__ = ["Log", "Part", "Remark", "Uncarried"]


class Remark(NamedTuple):
    """Something to say of the source: a `warning` for what changed or is missing, a `note` for what does no harm."""

    line: int
    severity: str
    message: str


class Uncarried(Exception):
    """A whole policy that cannot be carried over."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.remark = Remark(line, "warning", message)


@dataclass(slots=True)
class Log:
    """The remarks on one file, and the fields that were read: by the identity of their nodes."""

    remarks: list[Remark] = field(default_factory=list)
    read: set[int] = field(default_factory=set)

    def warn(self, line: int, message: str) -> None:
        self.remarks.append(Remark(line, "warning", message))

    def note(self, line: int, message: str) -> None:
        self.remarks.append(Remark(line, "note", message))


class Part:
    """A node with its place in the document; one that is not there is false, and empty in every other way."""

    def __init__(self, node: Node | None, log: Log, path: str, line: int) -> None:
        self.node = node
        self.log = log
        self.path = path
        self.line = line

    def __bool__(self) -> bool:
        return self.node is not None

    def at(self, key: str) -> Part:
        """The value of a key, which is thereby read."""
        for name, value in self._pairs():
            if name.text == key:
                return self._child(name, value)
        return Part(None, self.log, f"{self.path}.{key}", self.line)

    def keys(self) -> Iterator[tuple[str, Part]]:
        """Every key with its value, all thereby read."""
        for name, value in self._pairs():
            yield name.text, self._child(name, value)

    def items(self) -> list[Part]:
        """The items of a list; none for anything else."""
        if not isinstance(self.node, Sequence):
            return []
        return [Part(one, self.log, f"{self.path}[{i}]", one.line) for i, one in enumerate(self.node.items)]

    @property
    def text(self) -> str:
        """A scalar's text; empty for anything else."""
        return self.node.text if isinstance(self.node, Scalar) else ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.items() or any(True for _ in self._pairs()) or self.text)

    def texts(self) -> list[tuple[str, int]]:
        """The scalars of a list with their lines."""
        return [(item.text, item.line) for item in self.items()]

    def ignore(self, *keys: str) -> None:
        """Read fields that change nothing."""
        for key in keys:
            self.at(key).swallow()

    def swallow(self) -> None:
        """Read everything inside."""
        self._swallow(self.node, set())

    def _swallow(self, node: Node | None, seen: set[int]) -> None:
        if node is None or id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, Mapping):
            for name, value in node.pairs:
                self.log.read.add(id(name))
                self._swallow(value, seen)
        elif isinstance(node, Sequence):
            for item in node.items:
                self._swallow(item, seen)

    def unread(self) -> list[Part]:
        """The outermost fields inside that nobody has read."""
        return list(self._unread(self, set()))

    def _unread(self, part: Part, seen: set[int]) -> Iterator[Part]:
        if id(part.node) in seen:
            return
        seen.add(id(part.node))
        for item in part.items():
            yield from self._unread(item, seen)
        for name, value in part._pairs():
            known = id(name) in self.log.read
            child = Part(value, self.log, f"{part.path}.{name.text}", name.line)
            if known:
                yield from self._unread(child, seen)
            else:
                yield child

    def _pairs(self) -> Iterator[tuple[Scalar, Node]]:
        if isinstance(self.node, Mapping):
            yield from ((name, value) for name, value in self.node.pairs if isinstance(name, Scalar))

    def _child(self, name: Scalar, value: Node) -> Part:
        self.log.read.add(id(name))
        if isinstance(value, Scalar) and value.plain and value.text in {"", "~", "null"}:
            return Part(None, self.log, f"{self.path}.{name.text}", name.line)
        return Part(value, self.log, f"{self.path}.{name.text}", name.line)
