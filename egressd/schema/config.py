"""The settings of a node from their four sources: flag over variable over file over default.

`read_settings` is pure; `load_settings` reads the file, resolv.conf and the host's name around it, and is the only
place in `schema` that does any I/O. Problems of all sources are told at once, each with its place: file:line:column,
or the variable's or flag's name.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, get_origin

from pydantic import BaseModel

from egressd.schema.checks import Location, complaints
from egressd.schema.options import Options
from egressd.schema.problem import Fault, Origin, Problem, SettingsError, did_you_mean, shown
from egressd.schema.tree import Mapping as MappingNode
from egressd.schema.tree import Node, Scalar, compose, place, plain
from egressd.schema.units import Given
from egressd.schema.words import read_address
from egressd.settings import Settings, Upstream

__all__ = ["load_settings", "read_settings", "resolvers_of", "stated_settings"]

MAX_SETTINGS: Final = 1024 * 1024
"""Characters of a settings file: what a ConfigMap may hold."""
PREFIX: Final = "EGRESSD_"
SHORTEST_INTERVAL_S: Final = 1
"""The data path speaks once a second; more often there is nothing new."""
RESOLV_CONF: Final = "/etc/resolv.conf"
_SERVICE: Final = re.compile(
    r"EGRESSD_(?:[A-Z0-9_]+_)?(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?"
    r"|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)\Z"
)
"""What Kubernetes sets in every container for a Service named `egressd` or `egressd-…`: not ours to complain about."""


def load_settings(
    file: str | None, environ: Mapping[str, str], flags: Mapping[str, object], *, resolv_conf: str = RESOLV_CONF
) -> Settings:
    """The settings of this node, complete. Raises `SettingsError`.

    `flags` are settings by dotted name (`dns.upstreams`), those that are None or empty tuples count as not given.
    """
    settings = stated_settings(file, environ, flags)
    if not settings.node:
        settings = dataclasses.replace(settings, node=environ.get("NODE_NAME") or socket.gethostname())
    if not settings.dns.upstreams and settings.source.kind == "directory":  # a cluster has a DNS Service
        dns = dataclasses.replace(settings.dns, upstreams=_node_resolvers(resolv_conf))
        settings = dataclasses.replace(settings, dns=dns)
    return settings


def stated_settings(file: str | None, environ: Mapping[str, str], flags: Mapping[str, object]) -> Settings:
    """What file, variables and flags say, without what only a node can fill in. Raises `SettingsError`."""
    text = "" if file is None else _read(file)
    settings, problems = read_settings(text, file or "", environ, flags)
    if settings is None:
        raise SettingsError(problems)
    return settings


def _read(file: str) -> str:
    try:
        with Path(file).open("rb") as stream:
            return stream.read(4 * MAX_SETTINGS + 1).decode()
    except OSError as error:
        raise SettingsError(
            [Problem(file, 0, 0, "error", f"cannot be read: {os.strerror(error.errno or 0)}")]
        ) from None
    except (UnicodeDecodeError, ValueError):
        raise SettingsError([Problem(file, 0, 0, "error", "is not UTF-8 text")]) from None


def _node_resolvers(resolv_conf: str) -> tuple[Upstream, ...]:
    try:
        text = Path(resolv_conf).read_text("utf-8", "replace")
    except OSError as error:
        text, why = "", os.strerror(error.errno or 0)
    else:
        why = "it names no server"
    found = resolvers_of(text)
    if not found:
        message = f"dns.upstreams is not set, and {resolv_conf} cannot stand in: {why}; set dns.upstreams"
        raise SettingsError([Problem("dns.upstreams", 0, 0, "error", message)])
    return found


def resolvers_of(text: str) -> tuple[Upstream, ...]:
    """The `nameserver` lines of a resolv.conf (resolv.conf(5)); those with an interface scope are left out."""
    found: dict[Upstream, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver":
            try:
                found[Upstream(read_address(words[1]))] = None
            except ValueError:
                continue
    return tuple(found)


# ---------------------------------------------------------------------------------------------- layers


class _Layers:
    """The written settings as one plain tree, and for each overlaid location the variable or flag it came from."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.sources: dict[Location, str] = {}
        self.problems: list[Problem] = []
        self.blocked: list[tuple[str, ...]] = []

    def lay(self, path: tuple[str, ...], value: Any, source: str) -> None:
        """Set one location; what lay there is replaced. What stood in the way is, too, but remembered as wrong."""
        here = self.tree
        for depth, step in enumerate(path[:-1]):
            if not isinstance(here.setdefault(step, {}), dict):
                self.blocked.append(path[: depth + 1])
                here[step] = {}
            here = here[step]
        here[path[-1]] = value
        self.sources = {known: name for known, name in self.sources.items() if known[: len(path)] != path}
        self.sources[path] = source

    def lay_text(self, words: Iterable[str], text: str, source: str) -> None:
        """Set one location by its words in any case, from text without types."""
        path, annotation = self.resolve(tuple(words), source)
        if path:
            value, ok = _typed(text, annotation)
            if ok:
                self.lay(path, value, source)
            else:
                self.complain(source, f"{shown(text)} is not a list or mapping in YAML")

    def resolve(self, words: tuple[str, ...], source: str) -> tuple[tuple[str, ...], Any]:
        annotation: Any = Options
        path: list[str] = []
        for word in words:
            fields = {} if not _is_model(annotation) else _fields(annotation)
            name = next((name for name in fields if _folded(name) == _folded(word)), None)
            if name is None:
                known = [*fields]
                near = did_you_mean(word, known) or (f"; known here: {', '.join(known)}" if known else "")
                self.complain(source, f"there is no setting {shown('.'.join([*path, word.lower()]))}{near}")
                return (), None
            path.append(name)
            annotation = fields[name]
        return tuple(path), annotation

    def complain(self, source: str, message: str) -> None:
        self.problems.append(Problem(source[:200], 0, 0, "error", message))

    def source_of(self, location: Location) -> str | None:
        return next((name for path, name in self.sources.items() if location[: len(path)] == path), None)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _fields(model: type[BaseModel]) -> dict[str, Any]:
    return {info.alias or name: info.annotation for name, info in model.model_fields.items()}


def _folded(word: str) -> str:
    return word.replace("_", "").replace("-", "").lower()


def _typed(text: str, annotation: Any) -> tuple[Any, bool]:
    """The plain value that a variable's text stands for: YAML for mappings, YAML or commas for lists."""
    mapping = _is_model(annotation) or get_origin(annotation) is dict
    if not mapping and get_origin(annotation) is not list:
        return Given(text), True
    if not mapping and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()], True
    nodes, faults = compose(text[:MAX_SETTINGS])
    if faults or len(nodes) != 1:
        return None, False
    value, _ = plain(nodes[0], faults, size=len(text))
    return value, isinstance(value, dict if mapping else list) and not faults


def _overlay(layers: _Layers, environ: Mapping[str, str], flags: Mapping[str, object]) -> None:
    for name in sorted(environ):
        if name.startswith(PREFIX) and not _SERVICE.match(name):
            layers.lay_text(name.removeprefix(PREFIX).split("__"), environ[name], name)
    for name, value in flags.items():
        source = "--" + _dashed(name)
        if isinstance(value, str):
            layers.lay_text(name.split("."), value, source)
        elif value is not None and value not in ((), []):
            path, _ = layers.resolve(tuple(name.split(".")), source)
            if path:
                layers.lay(path, list(value) if isinstance(value, tuple) else value, source)


def _dashed(name: str) -> str:
    return name.replace(".", "-").replace("_", "-")


# ---------------------------------------------------------------------------------------------- reading


def read_settings(
    text: str, file: str, environ: Mapping[str, str], flags: Mapping[str, object]
) -> tuple[Settings | None, list[Problem]]:
    """Settings from the text of a file, variables and flags, without what the machine itself fills in."""
    node, tree, faults = _file(text)
    layers = _Layers(tree)
    _overlay(layers, environ, flags)
    faults += [Fault(*place(node, path), "expected a mapping") for path in layers.blocked]
    options, found = complaints(Options, layers.tree, node)
    if options is not None:
        found = list(_across(options, node))
    for location, fault in found:
        source = layers.source_of(location)
        if source is None:
            faults.append(fault)
        else:
            layers.complain(source, fault.message)
    problems = Origin().problems(file, faults) + layers.problems
    return (options.onto(Settings()) if options is not None and not problems else None), problems


def _file(text: str) -> tuple[Node, dict[str, Any], list[Fault]]:
    empty = MappingNode(1, 1)
    if len(text) > MAX_SETTINGS:
        return empty, {}, [Fault(1, 1, f"the file has more than {MAX_SETTINGS} characters")]
    nodes, faults = compose(text)
    if faults or not nodes:
        return empty, {}, faults
    if len(nodes) > 1:
        return empty, {}, [Fault(nodes[1].line, nodes[1].column, "a second document; settings are one mapping")]
    value, whole = plain(nodes[0], faults, size=len(text))
    if isinstance(value, dict):
        return nodes[0], value, faults
    if whole and not (value is None and isinstance(nodes[0], Scalar)):
        faults.append(Fault(nodes[0].line, nodes[0].column, "settings are one mapping, and this is none"))
    return empty, {}, faults


def _across(options: Options, node: Node) -> Iterator[tuple[Location, Fault]]:
    """What is wrong between fields that are right by themselves."""
    settings = options.onto(Settings())
    firewall = settings.firewall
    if firewall.intercept_mark == firewall.answer_mark:
        yield _at(("firewall", "marks"), node, "the marks 'intercept' and 'answer' must be two different bits")
    if firewall.route_table in {253, 254, 255}:
        message = f"route table {firewall.route_table} is the system's own (default, main or local); choose another"
        yield _at(("firewall", "route_table"), node, message)
    if settings.otlp.interval < SHORTEST_INTERVAL_S:
        yield _at(("otlp", "interval"), node, "metrics can be sent once a second at most")
    if settings.source.kind == "directory" and not settings.source.path:
        yield _at(("source", "path"), node, "a source of kind 'directory' needs a path")


def _at(location: Location, node: Node, message: str) -> tuple[Location, Fault]:
    return location, Fault(*place(node, location), message)
