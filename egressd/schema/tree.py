"""YAML text in, a tree of marked nodes out, within named budgets; nothing here knows what the text is about.

Any text gives documents and faults, never an exception. The composer is our own and not recursive, on top of libyaml's
events: a nesting bomb ends at `MAX_DEPTH` instead of at the C stack, and aliases are expanded against a budget.
Scalars are read by the core of YAML 1.1, and whatever that reading makes surprising (`no`, `010`, `1:30`) is kept as
`Odd`, so that no field ever takes it for something else than what was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import yaml

from egressd.schema.problem import Fault, shown

__all__ = [
    "MAX_DEPTH",
    "MAX_EXPANDED",
    "Mapping",
    "Node",
    "Odd",
    "Scalar",
    "Sequence",
    "compose",
    "find",
    "place",
    "plain",
    "reading",
    "yaml_text",
]

MAX_DEPTH: Final = 100
"""Levels of nesting. A policy has 6, a Pod about 10, the deepest CRDs about 60; `plain` needs three frames a level."""
MAX_EXPANDED: Final = 100_000
"""Nodes that aliases may add to a document: each costs about 100 octets and a microsecond."""

_NULL: Final = re.compile(r"(?:~|null|Null|NULL|)\Z")
_BOOL: Final = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_OLD_BOOL: Final = re.compile(r"(?:yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)\Z")
_INT: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\Z|0x[0-9a-fA-F]{1,15}\Z")
_NUMBER: Final = re.compile(
    r"[-+]?(?:0b[01_]+|0o?[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
    r"|(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF))\Z|\.(?:nan|NaN|NAN)\Z"
)


@dataclass(slots=True, eq=False)
class Scalar:
    line: int
    column: int
    text: str
    plain: bool = False
    """Written without quotes or a block indicator: YAML may read it as something else than text."""
    style: str = ""
    tag: str = ""
    """An explicit tag other than those of text, lists and mappings: an error wherever the value is used."""


@dataclass(slots=True, eq=False)
class Sequence:
    line: int
    column: int
    tag: str = ""
    items: list[Node] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Mapping:
    line: int
    column: int
    tag: str = ""
    pairs: list[tuple[Node, Node]] = field(default_factory=list)


Node = Scalar | Sequence | Mapping


class Odd(NamedTuple):
    """A plain scalar that YAML 1.1 does not read as the text that it looks like; `kind` says what it reads."""

    text: str
    kind: str

    def __str__(self) -> str:
        return self.text


_ORDINARY_TAGS: Final = {None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"}


def _node(event: Any) -> Node:
    line, column = event.start_mark.line + 1, event.start_mark.column + 1
    tag = "" if event.tag in _ORDINARY_TAGS else event.tag
    if isinstance(event, yaml.ScalarEvent):
        return Scalar(line, column, event.value, event.implicit[0] and not event.tag, event.style or "", tag)
    return Mapping(line, column, tag) if isinstance(event, yaml.MappingStartEvent) else Sequence(line, column, tag)


class _Composer:
    """Builds one document from events with an explicit stack: open containers, outermost first."""

    def __init__(self) -> None:
        self.root: Node | None = None
        self.open: list[Sequence | Mapping] = []
        self.keys: list[Node | None] = []
        self.anchors: dict[str, Node] = {}

    def add(self, node: Node) -> None:
        if not self.open:
            self.root = node
            return
        parent = self.open[-1]
        if isinstance(parent, Sequence):
            parent.items.append(node)
        elif (key := self.keys[-1]) is None:
            self.keys[-1] = node
        else:
            parent.pairs.append((key, node))
            self.keys[-1] = None

    def feed(self, event: Any) -> Fault | None:
        """Take one event; a fault returned ends the reading."""
        line, column = event.start_mark.line + 1, event.start_mark.column + 1
        if isinstance(event, yaml.CollectionEndEvent):
            self.open.pop()
            self.keys.pop()
        elif isinstance(event, yaml.AliasEvent):
            name = str(event.anchor)
            if name not in self.anchors:
                return Fault(line, column, f"alias *{name[:60]} has no anchor before it; {_QUOTE_STARS}")
            self.add(self.anchors[name])
        elif isinstance(event, yaml.NodeEvent):
            node = _node(event)
            self.add(node)
            if event.anchor:
                self.anchors[event.anchor] = node
            if not isinstance(node, Scalar):
                self.open.append(node)
                self.keys.append(None)
            if len(self.open) > MAX_DEPTH:
                return Fault(line, column, f"nested more than {MAX_DEPTH} levels deep")
        return None


def _documents(text: str, faults: list[Fault]) -> Iterator[Node]:
    composer = _Composer()
    for event in yaml.parse(text, Loader=yaml.CSafeLoader):
        if isinstance(event, yaml.DocumentStartEvent):
            composer = _Composer()
        elif isinstance(event, yaml.DocumentEndEvent) and composer.root is not None:
            yield composer.root
        elif fault := composer.feed(event):
            faults.append(fault)
            return


def compose(text: str) -> tuple[list[Node], list[Fault]]:
    """Read all documents of a text. After a syntax error the documents before it are still returned."""
    found: list[Node] = []
    faults: list[Fault] = []
    try:
        for document in _documents(text, faults):
            found.append(document)  # noqa: PERF402 - what came before an error must survive it
    except yaml.MarkedYAMLError as error:
        faults.append(_syntax(text, error))
    except (yaml.YAMLError, UnicodeError) as error:
        faults.append(_characters(text, error))
    return found, faults


def _syntax(text: str, error: yaml.MarkedYAMLError) -> Fault:
    mark = error.problem_mark or error.context_mark
    what = ": ".join(part for part in (error.context, error.problem) if part)
    index = mark.index if mark else 0
    hint = ""
    if "alias" in what:
        hint = f"; {_QUOTE_STARS}"
    elif text[index : index + 1] == "\t":
        hint = "; indent with spaces instead of tabs"
    return Fault(mark.line + 1 if mark else 1, mark.column + 1 if mark else 1, f"this is not YAML: {what}{hint}")


_QUOTE_STARS: Final = """quote text that begins with '*', as in "*.example.com\""""


def _characters(text: str, error: Exception) -> Fault:
    """libyaml gives no mark for characters that YAML does not allow (section 5.1): find the first one."""
    position = int(getattr(error, "position", getattr(error, "start", 0)))
    before = text[:position]
    line, column = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
    what = f"character U+{ord(text[position]):04X}" if position < len(text) else "a character"
    return Fault(line, column, f"this is not YAML: {what} is not allowed in it")


def reading(text: str) -> str | bool | int | Odd | None:
    """What YAML 1.1 reads in a plain scalar. Times stay text; numbers other than plain integers are `Odd`."""
    if _NULL.match(text):
        return None
    if text[0] in "0123456789-+." and _NUMBER.match(text):
        return int(text, 0) if _INT.match(text) else Odd(text, "a number")
    if _BOOL.match(text):
        return text[0] in "tT"
    return Odd(text, "a boolean") if _OLD_BOOL.match(text) else text


class _Exhausted(Exception):
    """The document is larger than its budget, or endless; never leaves this module."""

    def __init__(self, node: Node, message: str) -> None:
        super().__init__(message)
        self.fault = Fault(node.line, node.column, message)


class _Plain:
    """Turns nodes into plain values; `left` is the budget of nodes, `path` guards against aliases to an ancestor."""

    def __init__(self, faults: list[Fault], left: int, strict: bool) -> None:
        self.faults = faults
        self.left = left
        self.strict = strict
        self.path: set[int] = set()

    def value(self, node: Node) -> Any:
        self.left -= 1
        if node.tag:
            self.faults.append(Fault(node.line, node.column, f"tag {shown(node.tag)} has no meaning here; remove it"))
        if isinstance(node, Scalar):
            return reading(node.text) if node.plain else node.text
        if self.left < 0:
            raise _Exhausted(node, f"aliases expand to more than {MAX_EXPANDED} values; write them out")
        if id(node) in self.path:
            raise _Exhausted(node, "an alias inside its own anchor never ends; write the value out")
        if len(self.path) >= MAX_DEPTH:
            raise _Exhausted(node, f"nested more than {MAX_DEPTH} levels deep")
        self.path.add(id(node))
        out = [self.value(item) for item in node.items] if isinstance(node, Sequence) else self.mapping(node)
        self.path.discard(id(node))
        return out

    def mapping(self, node: Mapping) -> dict[str, Any]:
        out: dict[str, Any] = {}
        merged: list[Node] = []
        for key, value in node.pairs:
            if isinstance(key, Scalar) and key.plain and key.text == "<<":
                merged.append(value)
                continue
            name = self.key(key)
            if name is None:
                continue
            if name in out:
                self.faults.append(Fault(key.line, key.column, f"{shown(name)} is written twice in one mapping"))
                continue
            out[name] = self.value(value)
        for source in merged:
            self.merge(source, out)
        return out

    def merge(self, source: Node, out: dict[str, Any]) -> None:
        for part in source.items if isinstance(source, Sequence) else [source]:
            value = self.value(part)
            if isinstance(value, dict):
                for key, inner in value.items():
                    out.setdefault(key, inner)
            else:
                self.faults.append(Fault(part.line, part.column, "'<<' takes a mapping, or a list of mappings"))

    def key(self, node: Node) -> str | None:
        if not isinstance(node, Scalar):
            self.faults.append(Fault(node.line, node.column, "a key must be text, not a list or a mapping"))
            return None
        if self.strict and node.plain and not isinstance(reading(node.text), str):
            text = node.text[:60]
            self.faults.append(Fault(node.line, node.column, f'`{text}` is not text as a key; quote it: "{text}"'))
        return node.text


def plain(node: Node, faults: list[Fault], *, size: int, strict: bool = True) -> tuple[Any, bool]:
    """The plain value of a node (dict, list, str, bool, int, None or `Odd`) and whether it is whole.

    `size` is the length of its text: without aliases there are no more nodes than characters. With `strict`, keys
    that YAML does not read as text are faults; otherwise they are taken as written.
    """
    try:
        return _Plain(faults, size + 1 + MAX_EXPANDED, strict).value(node), True
    except _Exhausted as end:
        faults.append(end.fault)
        return None, False


def find(node: Node, location: tuple[int | str, ...]) -> tuple[Node, Node | None, bool]:
    """Walk a path of keys and indexes: the node, its key (in a mapping) and whether the whole path exists."""
    key: Node | None = None
    for depth, step in enumerate(location):
        if step == "[key]" and depth == len(location) - 1:
            break
        following = _step(node, step)
        if following is None:
            return node, key, False
        key, node = following
    return node, key, True


def _step(node: Node, step: int | str, merges: int = 8) -> tuple[Node | None, Node] | None:
    if isinstance(node, Sequence) and isinstance(step, int):
        return (None, node.items[step]) if step < len(node.items) else None
    if not isinstance(node, Mapping):
        return None
    for key, value in node.pairs:
        if isinstance(key, Scalar) and key.text == step:
            return key, value
    for key, value in node.pairs if merges else []:
        if isinstance(key, Scalar) and key.plain and key.text == "<<":
            for part in value.items if isinstance(value, Sequence) else [value]:
                if found := _step(part, step, merges - 1):
                    return found
    return None


def place(node: Node, location: tuple[int | str, ...], *, key: bool = False) -> tuple[int, int]:
    """Line and column of a path's value, or of its key; of the nearest thing around it where the path ends early."""
    value, name, whole = find(node, location)
    target = name if name is not None and (key or not whole) else value
    return target.line, target.column


def yaml_text(value: Any) -> str:
    """Write a plain value as YAML, keys in their order: what `-o yaml` prints."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False)
