"""Label and field selectors as the API server reads them: a predicate over objects, or a refusal with status 400."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

__all__ = ["Refusal", "field_predicate", "label_predicate"]

Object = dict[str, Any]
Predicate = Callable[[Object], bool]

_SET = re.compile(r"(?P<key>\S+)\s+(?P<operator>in|notin)\s+\((?P<values>[^()]*)\)\Z")
_EQUAL = re.compile(r"(?P<key>[^=!\s]+)\s*(?P<operator>==|=|!=)\s*(?P<value>[^=!\s]*)\Z")
_KEY = re.compile(r"!?[A-Za-z0-9]([-A-Za-z0-9_./]*[A-Za-z0-9])?\Z")

FIELDS: dict[str, dict[str, Callable[[Object], str]]] = {
    "pods": {
        "metadata.name": lambda pod: str(pod["metadata"]["name"]),
        "metadata.namespace": lambda pod: str(pod["metadata"].get("namespace", "")),
        "spec.nodeName": lambda pod: str(pod.get("spec", {}).get("nodeName", "")),
        "spec.hostNetwork": lambda pod: str(bool(pod.get("spec", {}).get("hostNetwork", False))).lower(),
        "status.podIP": lambda pod: str(pod.get("status", {}).get("podIP", "")),
        "status.phase": lambda pod: str(pod.get("status", {}).get("phase", "")),
    }
}
"""Field selectors by resource; every other resource knows the two of its metadata."""


class Refusal(Exception):
    """A request that is answered with a Status: HTTP code, reason, message."""

    def __init__(self, code: int, reason: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details


def label_predicate(text: str) -> Predicate:
    """`a=b,c!=d,e in (f,g),h,!i`."""
    tests = [_label_test(part.strip()) for part in re.split(r",(?![^(]*\))", text)] if text.strip() else []
    return lambda thing: all(test(thing["metadata"].get("labels") or {}) for test in tests)


def _label_test(part: str) -> Callable[[dict[str, str]], bool]:
    if found := _SET.match(part):
        key, values = found["key"], {value.strip() for value in found["values"].split(",")}
        if found["operator"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUAL.match(part):
        key, value = found["key"], found["value"]
        if found["operator"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if not _KEY.match(part):
        raise Refusal(400, "BadRequest", f"unable to parse requirement: {part!r}")
    if part.startswith("!"):
        return lambda labels: part[1:] not in labels
    return lambda labels: part in labels


def field_predicate(text: str, resource: str) -> Predicate:
    """`a=b,c!=d` over the few fields that a resource knows."""
    known = FIELDS.get(resource) or {name: FIELDS["pods"][name] for name in ("metadata.name", "metadata.namespace")}
    tests: list[tuple[Callable[[Object], str], str, bool]] = []
    for part in filter(None, text.split(",")):
        found = _EQUAL.match(part)
        if not found:
            raise Refusal(400, "BadRequest", f"invalid field selector: {part!r}")
        if found["key"] not in known:
            raise Refusal(400, "BadRequest", f"field label not supported: {found['key']}")
        tests.append((known[found["key"]], found["value"], found["operator"] != "!="))
    return lambda thing: all((read(thing) == value) is equal for read, value, equal in tests)
