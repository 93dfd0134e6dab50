"""Which denials are worth an Event: one per pod and minute at most, read from the audit lines that pass by anyway.

Values in, values out. It looks at nothing but lines that say `denied`, so that a busy node pays for what it denies.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

__all__ = ["PERIOD_S", "Denial", "Denials"]

PERIOD_S: Final = 60.0
MAX_PODS: Final = 4096
"""Pods remembered; a node runs some hundreds."""
_DENIED: Final = b'"verdict":"denied"'


class Denial(NamedTuple):
    namespace: str
    pod: str
    uid: str
    message: str


class _Pod(msgspec.Struct):
    namespace: str = ""
    name: str = ""
    uid: str = ""


class _Query(msgspec.Struct):
    name: str = ""
    type: str = ""


class _Destination(msgspec.Struct):
    ip: str = ""
    port: int = -1
    protocol: str = ""


class _Line(msgspec.Struct):
    verdict: str = ""
    reason: str = ""
    policy: str = ""
    pod: _Pod | None = None
    query: _Query | None = None
    destination: _Destination | None = None


_decoder: Final = msgspec.json.Decoder(_Line)


class Denials:
    """Remembers which pods were mentioned when; `now` in seconds, monotonic."""

    def __init__(self) -> None:
        self._mentioned: dict[str, float] = {}

    def see(self, lines: bytes, now: float) -> list[Denial]:
        """The denials among audit lines whose pods were not mentioned within the last minute."""
        if _DENIED not in lines:
            return []
        found = []
        for text in lines.splitlines():
            if _DENIED in text:
                line = _decoder.decode(text)
                if line.verdict == "denied" and line.pod is not None and self._due(line.pod, now):
                    found.append(Denial(line.pod.namespace, line.pod.name, line.pod.uid, _sentence(line)))
        return found

    def _due(self, pod: _Pod, now: float) -> bool:
        who = f"{pod.namespace}/{pod.name}/{pod.uid}"
        if now - self._mentioned.get(who, float("-inf")) < PERIOD_S:
            return False
        if len(self._mentioned) >= MAX_PODS:
            self._mentioned = {pod: when for pod, when in self._mentioned.items() if now - when < PERIOD_S}
            if len(self._mentioned) >= MAX_PODS:
                return False
        self._mentioned[who] = now
        return True


def _sentence(line: _Line) -> str:
    what = "a destination"
    if line.query is not None and line.query.name:
        what = f"the name {line.query.name} ({line.query.type})"
    elif line.destination is not None:
        port = f" port {line.destination.port}" if line.destination.port >= 0 else ""
        what = f"{line.destination.ip}{port}/{line.destination.protocol}"
    by = f" by policy {line.policy}" if line.policy else ""
    return f"{what} was denied{by}: {line.reason}; more may follow, the audit log has all"
