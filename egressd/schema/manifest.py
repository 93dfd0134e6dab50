"""Kubernetes manifests: files of ConfigMaps, Pods and Namespaces into typed values; other kinds are ignored.

Any text gives objects and problems, never an exception. An object with an error is not returned; the others of the
file are. Lists (`kind: List`, `PodList` …) are opened. JSON is read as the YAML that it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import Field

from egressd.model import Policy
from egressd.schema.checks import Lenient, Reads, validate
from egressd.schema.labels import LabelKey, LabelValue, Namespace, ObjectName
from egressd.schema.pod import PodModel, PodObject, pod_object
from egressd.schema.policy import policy_of_node, read_policy
from egressd.schema.problem import Fault, Origin, Problem, did_you_mean, has_errors, shown
from egressd.schema.tree import Mapping as MappingNode
from egressd.schema.tree import Node, Scalar, Sequence, compose, find, place, plain

__all__ = [
    "POLICY_LABEL",
    "BarePolicy",
    "ConfigMapObject",
    "Manifest",
    "NamespaceObject",
    "bare_policy",
    "check_configmap",
    "policies_of",
    "policy_name",
    "read_manifests",
]

POLICY_LABEL: Final = "egressd.io/policy"
"""A ConfigMap with this label set to "true" holds policies (policy.md)."""
MAX_FILE: Final = 64 * 1024 * 1024
"""Characters of one file of manifests: some 20,000 Pods; about 60 octets of memory each while it is read."""
_KEY: Final = re.compile(r"[-._a-zA-Z0-9]{1,253}\Z")
_PAIR: Final = re.compile(r"\\\\|\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_LOOKS: Final = re.compile(r"^[\"']?(?:subject|allow|deny)[\"']?\s*:", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ConfigMapObject:
    """A ConfigMap: what it holds, and where each text of `data` lies in its file."""

    namespace: str
    name: str
    labels: Mapping[str, str]
    data: Mapping[str, str]
    file: str = ""
    line: int = 1
    column: int = 1
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """Where the text of each key lies; keys without one count from line 1."""
    keys: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Line and column of each key of `data`."""

    def file_of(self, key: str) -> str:
        """What lines of the text of a key count in: the file, or the key itself where the object came from no file."""
        return self.file if key in self.origins or not self.file else f"{self.file}[{key}]"

    @property
    def labelled(self) -> bool:
        """Whether it holds policies at all."""
        return self.labels.get(POLICY_LABEL) == "true"


@dataclass(frozen=True, slots=True)
class NamespaceObject:
    name: str
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BarePolicy:
    """A document without `kind` that looks like a policy: for `check` and `explain`; a cluster knows no such thing."""

    file: str
    node: Node
    size: int


Manifest = ConfigMapObject | PodObject | NamespaceObject | BarePolicy


class _Metadata(Lenient):
    name: ObjectName
    namespace: Namespace = "default"
    labels: dict[LabelKey, LabelValue] = Field(default_factory=dict)


class _NamespaceMetadata(_Metadata):
    name: Namespace


def _data_text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("expected text; write '|' after the key, and indent the document under it")  # noqa: TRY004
    return value


DataText = Annotated[str, Reads(_data_text, {"type": "string"}, others=(dict, list))]


class _ConfigMapModel(Lenient):
    metadata: _Metadata
    data: dict[str, DataText] = Field(default_factory=dict)


class _NamespaceModel(Lenient):
    metadata: _NamespaceMetadata


# ------------------------------------------------------------------------------------------------ files


def read_manifests(text: str, file: str) -> tuple[list[Manifest], list[Problem]]:
    """All objects of one file, in order, and what is wrong with it; policy documents are judged by `policies_of`."""
    if len(text) > MAX_FILE:
        return [], [Problem(file, 1, 1, "error", f"the file has {len(text)} characters; at most {MAX_FILE} are read")]
    if text.lstrip("\ufeff \t\r\n")[:1] in {"{", "["}:
        text = _PAIR.sub(_unescaped, text)
    documents, faults = compose(text)
    lines = _Lines(text)
    found: list[Manifest] = []
    for document in documents:
        for node, kind in _objects(document, ""):
            made = _object(node, kind, file, lines, faults)
            if made is not None:
                found.append(made)
    return found, Origin().problems(file, faults)


def _unescaped(pair: re.Match[str]) -> str:
    """JSON writes characters beyond the BMP as two escapes (RFC 8259 section 7), which YAML does not know."""
    text = pair[0]
    return text if text == "\\\\" else (bytes.fromhex(text[2:6]) + bytes.fromhex(text[8:12])).decode("utf-16-be")


class _Lines:
    """The lines of a text as YAML counts them (section 4.2 of YAML 1.1), cut when first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.cut: list[str] = []

    def __getitem__(self, line: int) -> str:
        if not self.cut:
            self.cut = re.split("\r\n|[\r\n\x85\u2028\u2029]", self.text)
        return self.cut[line - 1] if line <= len(self.cut) else ""


def _text(node: Node, key: str) -> str:
    if isinstance(node, MappingNode):
        for name, value in node.pairs:
            if isinstance(name, Scalar) and isinstance(value, Scalar) and name.text == key:
                return value.text
    return ""


def _objects(node: Node, implied: str) -> Iterator[tuple[Node, str]]:
    """The objects of a document with their kinds. Items of a list from the API carry none: the list's name tells it."""
    kind = _text(node, "kind") or implied
    items, _, whole = find(node, ("items",))
    if kind.endswith("List") and whole and isinstance(items, Sequence):
        for item in items.items:
            if item is not node:
                yield item, _text(item, "kind") or kind.removesuffix("List")
    else:
        yield node, kind


def _object(node: Node, kind: str, file: str, lines: _Lines, faults: list[Fault]) -> Manifest | None:
    if not kind and _looks_bare(node):
        return BarePolicy(file, node, len(lines.text))
    if kind not in _KINDS:
        return None
    mine: list[Fault] = []
    value, whole = plain(node, mine, size=len(lines.text), strict=False)
    made = validate(_KINDS[kind], value, node, mine) if whole else None
    if isinstance(made, _ConfigMapModel):
        _check_data(made, node, mine)
    faults += mine
    if made is None or any(fault.severity == "error" for fault in mine):
        return None
    if isinstance(made, PodModel):
        return pod_object(made)
    if isinstance(made, _ConfigMapModel):
        return _configmap(made, node, file, lines)
    assert isinstance(made, _NamespaceModel)  # noqa: S101 - the table of kinds has no other
    return NamespaceObject(made.metadata.name, made.metadata.labels)


_KINDS: Final[Mapping[str, type[Lenient]]] = {
    "ConfigMap": _ConfigMapModel,
    "Pod": PodModel,
    "Namespace": _NamespaceModel,
}


# -------------------------------------------------------------------------------------------- ConfigMaps


def _check_data(made: _ConfigMapModel, node: Node, faults: list[Fault]) -> None:
    for key in made.data:
        if not _KEY.match(key):
            line, column = place(node, ("data", key), key=True)
            faults.append(
                Fault(line, column, f"{shown(key)} is not a key: letters, digits, '-', '_' and '.', at most 253")
            )


def _configmap(made: _ConfigMapModel, node: Node, file: str, lines: _Lines) -> ConfigMapObject:
    origins: dict[str, Origin] = {}
    keys: dict[str, tuple[int, int]] = {}
    for key in made.data:
        scalar, name, whole = find(node, ("data", key))
        if whole and isinstance(scalar, Scalar):
            origins[key] = _origin(scalar, lines)
            keys[key] = (name.line, name.column) if name else (scalar.line, scalar.column)
    meta = made.metadata
    return ConfigMapObject(
        meta.namespace, meta.name, meta.labels, made.data, file, node.line, node.column, origins, keys
    )


def _origin(scalar: Scalar, lines: _Lines) -> Origin:
    """Where the text of a scalar lies: a literal block starts on the next line, indented alike throughout."""
    if scalar.style != "|":
        return Origin(scalar.line, scalar.column - 1, exact=False)
    for offset, inner in enumerate(re.split("[\n\u2028\u2029]", scalar.text)):
        if inner.strip():
            outer = lines[scalar.line + 1 + offset]
            return Origin(scalar.line + 1, len(outer) - len(inner) if outer.endswith(inner) else 0)
    return Origin(scalar.line, scalar.column - 1, exact=False)


def policy_name(namespace: str, configmap: str, key: str) -> str:
    """The name of a policy (policy.md, Where policies live)."""
    return f"{namespace}/{configmap}" if key in {"policy.yaml", "policy.yml"} else f"{namespace}/{configmap}/{key}"


Known = Callable[[str, str], Policy | None]
"""The policy of that name that this text was read as before, without any problem, in the same policy namespace."""


def _nothing_known(_name: str, _text: str) -> Policy | None:
    return None


def policies_of(
    configmap: ConfigMapObject, policy_namespace: str, known: Known = _nothing_known
) -> tuple[dict[str, Policy], list[Problem], set[str]]:
    """The policies of a ConfigMap by name, what is wrong with it, and the names of those refused.

    One without the label has none. What is `known` is not read again.
    """
    return _policies(configmap, policy_namespace, known) if configmap.labelled else ({}, [], set())


def _policies(
    configmap: ConfigMapObject, policy_namespace: str, known: Known = _nothing_known
) -> tuple[dict[str, Policy], list[Problem], set[str]]:
    policies: dict[str, Policy] = {}
    problems: list[Problem] = []
    refused: set[str] = set()
    for key, text in configmap.data.items():
        if not key.endswith((".yaml", ".yml")):
            continue
        name = policy_name(configmap.namespace, configmap.name, key)
        if name in policies or name in refused:
            line, column = configmap.keys.get(key, (configmap.line, configmap.column))
            message = "policy.yaml and policy.yml would be one policy twice; remove one, or name it otherwise"
            problems.append(Problem(configmap.file, line, column, "error", message))
            policies.pop(name, None)
            refused.add(name)
            continue
        if (again := known(name, text)) is not None:
            policies[name] = again
            continue
        policy, found = read_policy(
            text,
            name=name,
            namespace=configmap.namespace,
            policy_namespace=policy_namespace,
            file=configmap.file_of(key),
            origin=configmap.origins.get(key, Origin()),
        )
        problems += found
        if policy is None or has_errors(found):
            refused.add(name)
        else:
            policies[name] = policy
    return policies, problems, refused


def check_configmap(configmap: ConfigMapObject, policy_namespace: str) -> tuple[dict[str, Policy], list[Problem]]:
    """What `egressd check` says of a ConfigMap: as `policies_of`, and a warning where policies lack the label."""
    if configmap.labelled:
        policies, problems, _ = _policies(configmap, policy_namespace)
        return policies, problems
    texts = [text for key, text in configmap.data.items() if key.endswith((".yaml", ".yml"))]
    if POLICY_LABEL not in configmap.labels and not any(_LOOKS.search(text) for text in texts):
        return {}, []
    message = f'ConfigMap {configmap.name!r} will be ignored: it needs the label {POLICY_LABEL}: "true"'
    warning = Problem(configmap.file, configmap.line, configmap.column, "warning", message)
    policies, problems, _ = _policies(configmap, policy_namespace)
    return policies, [warning, *problems]


# ----------------------------------------------------------------------------------------- bare policies

_TELLING: Final = ("subject", "allow", "deny")


def _looks_bare(node: Node) -> bool:
    if not isinstance(node, MappingNode):
        return False
    names = [key.text for key, _ in node.pairs if isinstance(key, Scalar)]
    if "apiVersion" in names:
        return False
    return any(did_you_mean(name, _TELLING) for name in names[:100])


def bare_policy(
    bare: BarePolicy, *, name: str, namespace: str, policy_namespace: str
) -> tuple[Policy | None, list[Problem]]:
    """Compile a bare document as the policy `name` of `namespace`."""
    policy, faults = policy_of_node(bare.node, bare.size, name, namespace, policy_namespace)
    return policy, Origin().problems(bare.file, faults)
