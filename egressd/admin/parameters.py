"""Query parameters: what each endpoint takes, within which bounds, and a sentence for everything else.

A parameter that no endpoint knows, or one that is there twice, is refused too: a filter that is silently ignored would
answer another question than the one that was asked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from multidict import MultiMapping

from egressd.admin.problem import HttpProblem
from egressd.errors import InvalidName
from egressd.model import Verdict
from egressd.names import parse_name, parse_pattern
from egressd.schema.problem import did_you_mean, shown
from egressd.schema.target import parse_target

__all__ = [
    "Parameter",
    "choice",
    "destination",
    "flag",
    "name",
    "namespace",
    "number",
    "pattern",
    "pod",
    "read",
    "since",
    "verdict",
]

MAX_TEXT: Final = 512
"""Characters of any value: a name has 253, a pod 317."""
_POD: Final = re.compile(r"[a-z0-9.-]{1,253}/[a-z0-9.-]{1,253}\Z")
_NAMESPACE: Final = re.compile(r"[a-z0-9-]{1,63}\Z")
LATEST: Final = 253_402_300_799.0
"""The last second that RFC 3339 can spell."""
_AGO: Final = re.compile(r"([0-9]{1,9})([smhd])\Z")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of an endpoint. `read` takes its text to a value, or raises `ValueError` with what to write."""

    name: str
    help: str
    read: Callable[[str], Any]
    schema: dict[str, Any]
    default: Any = None
    required: bool = False
    examples: dict[str, str] = field(default_factory=dict)


def read(given: MultiMapping[str], parameters: Iterable[Parameter]) -> dict[str, Any]:
    """The values of all parameters. Raises `HttpProblem` (400) for the first one that is wrong."""
    known = {parameter.name: parameter for parameter in parameters}
    for key in given:
        if key not in known:
            takes = f"this endpoint takes {', '.join(known)}" if known else "this endpoint takes no parameter"
            raise _wrong(key[:80], f"there is no parameter {shown(key)}{did_you_mean(key, known)}; {takes}")
        if len(given.getall(key)) > 1:
            raise _wrong(key, f"{key} is given more than once; give it once")
    return {parameter.name: _value(given, parameter) for parameter in known.values()}


def _value(given: MultiMapping[str], parameter: Parameter) -> Any:
    text = given.get(parameter.name)
    if text is None:
        if parameter.required:
            raise _wrong(parameter.name, f"{parameter.name} is missing: {parameter.help}")
        return parameter.default
    if len(text) > MAX_TEXT:
        raise _wrong(parameter.name, f"{parameter.name} has {len(text)} characters; at most {MAX_TEXT} are taken")
    try:
        return parameter.read(text)
    except (ValueError, InvalidName) as error:
        raise _wrong(parameter.name, f"{parameter.name}: {error}") from None


def _wrong(name: str, detail: str) -> HttpProblem:
    return HttpProblem(400, detail, parameter=name)


# ----------------------------------------------------------------------------------------------------- kinds


def number(name: str, help: str, default: int, least: int, most: int) -> Parameter:  # noqa: A002 - click's word too
    """A whole number within bounds."""

    def read_number(text: str) -> int:
        if not re.fullmatch("[0-9]{1,12}", text, re.ASCII) or not least <= int(text) <= most:
            raise ValueError(f"{shown(text)} is not a whole number from {least} to {most}")
        return int(text)

    schema = {"type": "integer", "minimum": least, "maximum": most, "default": default}
    return Parameter(name, help, read_number, schema, default)


def choice(name: str, help: str, choices: Iterable[str]) -> Parameter:  # noqa: A002 - as above
    """One word of several."""
    words = tuple(choices)

    def read_choice(text: str) -> str:
        if text not in words:
            raise ValueError(f"{shown(text)} is none of {', '.join(words)}{did_you_mean(text, words)}")
        return text

    return Parameter(name, help, read_choice, {"type": "string", "enum": list(words)})


def flag(name: str, help: str) -> Parameter:  # noqa: A002 - as above
    """1 or 0."""
    one = choice(name, help, ("0", "1"))
    return Parameter(name, help, lambda text: one.read(text) == "1", one.schema, default=False)


def pod(*, required: bool = False) -> Parameter:
    """A pod as NAMESPACE/NAME."""

    def read_pod(text: str) -> tuple[str, str]:
        if not _POD.match(text):
            raise ValueError(f"{shown(text)} is no pod; write NAMESPACE/NAME")
        namespace, _, short = text.partition("/")
        return namespace, short

    schema = {"type": "string", "pattern": f"^{_POD.pattern.removesuffix(chr(92) + 'Z')}$"}
    return Parameter("pod", "the pod, as NAMESPACE/NAME", read_pod, schema, required=required)


def namespace() -> Parameter:
    """A namespace."""

    def read_namespace(text: str) -> str:
        if not _NAMESPACE.match(text):
            raise ValueError(f"{shown(text)} is no namespace")
        return text

    schema = {"type": "string", "pattern": "^[a-z0-9-]{1,63}$"}
    return Parameter("namespace", "a namespace", read_namespace, schema)


def name() -> Parameter:
    """A domain name."""
    schema = {"type": "string", "minLength": 1, "maxLength": 254}
    return Parameter("name", "a domain name", parse_name, schema, examples={"name": "api.example.com"})


def pattern() -> Parameter:
    """A domain name, or `*.` and a name for all names under it."""
    schema = {"type": "string", "minLength": 1, "maxLength": 256}
    help_ = "a domain name, or *.NAME for every name under it"
    return Parameter("name", help_, parse_pattern, schema, examples={"name": "api.example.com"})


def destination() -> Parameter:
    """A name or an address, with or without port and protocol."""
    help_ = "the destination, as NAME-or-IP[:PORT[/PROTO]]; IPv6 with a port in brackets"
    schema = {"type": "string", "minLength": 1, "maxLength": 300}
    examples = {"name": "api.example.com:443/tcp", "address": "192.0.2.1:443"}
    return Parameter("to", help_, parse_target, schema, required=True, examples=examples)


def since(name: str = "since", help_: str = "how far back") -> Parameter:
    """A moment: seconds since the epoch, from RFC 3339 or from how long ago it was."""

    def read_since(text: str) -> float:
        ago = _AGO.match(text)
        if ago:
            return max(0.0, time.time() - int(ago[1]) * _SECONDS[ago[2]])
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise ValueError(f"{shown(text)} is no time; write 90s, 15m, 2h, 7d or 2026-11-22T13:00:00Z") from None
        return min(max((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp(), 0.0), LATEST)

    help_ = f"{help_}: 90s, 15m, 2h, 7d, or a time as 2026-11-22T13:00:00Z"
    return Parameter(name, help_, read_since, {"type": "string", "maxLength": 64}, examples={"ago": "15m"})


def verdict() -> Parameter:
    """One of the four verdicts."""
    return choice("verdict", "one verdict", [str(verdict) for verdict in Verdict])
