"""What the data path and the control side say to each other, over one socket pair, in typed messages.

Down (control to data path): settings, pods, compiled policies, questions. Up: audit lines, counters, answers to
questions. A frame is a 4-octet length in network order and one MessagePack value. Both ends bound what they take
(`MAX_FRAME`) and what they hold back to send. The two are parts of one release; there is no version negotiation.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from egressd.errors import LinkError
from egressd.model import PodIdentity, Policy, Ports
from egressd.settings import Settings

__all__ = [
    "MAX_FRAME",
    "Answer",
    "Applied",
    "Ask",
    "Down",
    "Frames",
    "Lines",
    "PodEntry",
    "Ready",
    "Refused",
    "Reload",
    "Stats",
    "Synced",
    "Tally",
    "Up",
    "Update",
    "UpstreamHealth",
    "encode",
]

MAX_FRAME: Final = 8 * 1024 * 1024
"""Octets of one frame: a ConfigMap holds at most 1 MiB, and an update at most a few dozen policies."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """First word of a control side: the checked settings. What it says until `Synced` is the whole world."""

    settings: Settings


class Refused(msgspec.Struct, frozen=True, tag=True):
    """First and last word of a control side that cannot start: `code` is the exit code, the text is already printed."""

    code: int


class PodEntry(msgspec.Struct, frozen=True):
    """One address of a pod: who it is, which policies (by name, sorted) select it, whether it serves DNS to us."""

    address: bytes
    identity: PodIdentity
    policies: tuple[str, ...] = ()
    exempt: bool = False


class Update(msgspec.Struct, frozen=True, tag=True):
    """A change, or one slice of a large one. Pods name only policies said in this or an earlier update."""

    policies: tuple[Policy, ...] = ()
    gone_policies: tuple[str, ...] = ()
    pods: tuple[PodEntry, ...] = ()
    gone_pods: tuple[bytes, ...] = ()
    more: bool = False
    """The next update goes on with the same change: nothing of it comes into force before the last of them is here."""


class Synced(msgspec.Struct, frozen=True, tag=True):
    """The whole world has been said: policies and pods not named since `Ready` exist no more."""


class Ask(msgspec.Struct, frozen=True, tag=True):
    """A question of the admin API to the data path; answered by `Answer` with the same `ident`."""

    ident: int
    what: str
    arguments: dict[str, Any] = {}


class Answer(msgspec.Struct, frozen=True, tag=True):
    ident: int
    body: dict[str, Any]


class Lines(msgspec.Struct, frozen=True, tag=True):
    """Rendered audit records: whole JSON lines, newline included, and how many they are."""

    data: bytes
    count: int
    kinds: tuple[int, ...] = ()
    """Of each line a number that it shares with lines alike to history (audit/lines.py), 0 where there is none; may be
    left out."""


class Reload(msgspec.Struct, frozen=True, tag=True):
    """SIGHUP came: read the settings again (a new `Ready` follows) and reopen the audit file."""


class Applied(msgspec.Struct, frozen=True, tag=True):
    """So many updates of those said since `Ready` are in force in the kernel, from the first one on."""

    updates: int


class UpstreamHealth(msgspec.Struct, frozen=True):
    """How one resolver fares: `failures` in a row since its last answer."""

    upstream: str
    healthy: bool
    failures: int
    rtt_us: int = 0
    """Smoothed time to its answers; 0 before the first."""


class Tally(msgspec.Struct, frozen=True):
    """How often something ended this way: `verdict` and `reason` are those of the audit records."""

    verdict: str
    reason: str
    count: int


class Stats(msgspec.Struct, frozen=True, tag=True):
    """About once a second: what the data path has counted since it started. Nothing is ever asked for a scrape."""

    serving: bool
    """Whether queries are answered: the world was said, table, routes and sockets are there."""
    refused: str
    """What the kernel refused, if its table is not what it should be; else empty. It is written anew each second."""
    started: float
    """When the data path started, seconds since the epoch."""
    queries: tuple[Tally, ...] = ()
    flows: tuple[Tally, ...] = ()
    """Events that the kernel reported, not packets."""
    latency_us: tuple[int, ...] = ()
    """Queries by time to answer: how many were within each of `latency_bounds_us` and not the one before; the rest."""
    latency_bounds_us: tuple[int, ...] = ()
    latency_sum_us: int = 0
    counters: dict[str, int] = {}
    """By `PART.NAME`, as in `upstream.timeouts`."""
    gauges: dict[str, float] = {}
    upstreams: tuple[UpstreamHealth, ...] = ()


Down = Ready | Refused | Update | Synced | Ask
Up = Lines | Answer | Reload | Applied | Stats

_encoder: Final = msgspec.msgpack.Encoder()


def encode(message: Down | Up) -> bytes:
    """Frame one message."""
    body = _encoder.encode(message)
    return len(body).to_bytes(4, "big") + body


class Frames:
    """Cuts a byte stream into messages of one direction, all that came or one at a time; sans-IO."""

    def __init__(self, direction: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(direction)
        self._buffer = bytearray()
        self._start = 0
        """Where in the buffer the next frame begins."""

    def feed(self, data: bytes) -> list[Any]:
        """The messages that `data` completes. Raises `LinkError` for a frame too long or not understood."""
        self.put(data)
        messages: list[Any] = []
        while (message := self.take()) is not None:
            messages.append(message)
        return messages

    def put(self, data: bytes) -> None:
        """Take in what came; `take` understands it, a message at a time."""
        self._buffer += data

    def take(self) -> Any:
        """The next message, or None until more has come. Raises `LinkError` for a frame too long or not understood."""
        buffer, start = self._buffer, self._start + 4
        length = int.from_bytes(buffer[self._start : start], "big")
        if length > MAX_FRAME:
            raise LinkError(f"a frame of {length} octets; at most {MAX_FRAME} are taken")
        if len(buffer) < start + length:
            del buffer[: self._start]
            self._start = 0
            return None
        try:
            message = self._decoder.decode(memoryview(buffer)[start : start + length])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # the latter for text that is not UTF-8
            raise LinkError(f"a frame that is not understood: {error}") from error
        self._start = start + length
        if isinstance(message, Update):
            _share(message.policies)
        return message


def _share(policies: tuple[Policy, ...]) -> None:
    """Have equal ports and equal names of rules be one value. As they are decoded, each rule has its own: half of what
    policies take up in memory."""
    known: dict[Ports | str, Any] = {}
    for policy in policies:
        for rule in (*policy.allow, *policy.deny):
            for field, value in (("ports", rule.ports), ("name", rule.name)):
                object.__setattr__(rule, field, known.setdefault(value, value))  # frozen, but nobody has it yet
