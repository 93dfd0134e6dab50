"""What the kernel holds, read back by dumps: for a restart, and to find the way again after somebody else's hand.

A dump of a set that was just resized may lack elements without any error, so grants are dumped twice and united
(kernel.md, Reading back). Subjects are chains, their policies the chains' comments.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pyroute2.netlink.nfnetlink.nftsocket import (
    NFPROTO_INET,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETSET,
    NFT_MSG_GETSETELEM,
    NFT_MSG_GETTABLE,
)

from egressd.kernel.comments import INSTANCE, read_comment, read_datum
from egressd.kernel.elements import DATA, EXPIRATION, KEY, KEY_END, USER_DATA
from egressd.kernel.netlink import Channel, attributes, string
from egressd.kernel.sets import grant_set, parse_instance_set
from egressd.model import PortSpan

__all__ = [
    "Installed",
    "LiveGrant",
    "PodElement",
    "Snapshot",
    "TableFacts",
    "installed",
    "plain_addresses",
    "snapshot",
    "table_facts",
]

_SUBJECT: Final = re.compile(r"subject-(\d+)\Z")
GRANT_KINDS: Final = ("port", "any", "range")


@dataclass(frozen=True, slots=True)
class PodElement:
    """One address of a pod, as the kernel knows it."""

    address: bytes
    subject: int | None
    """Number of the instance that judges it; None: no policy selects the pod, everything is accepted."""
    bypass: bool
    """Whether its DNS is not intercepted."""
    comment: str
    """The pod: `shop/web-0`."""


class LiveGrant(NamedTuple):
    """One grant that the kernel holds. `comment` is the name it was given for."""

    subject: int
    kind: str
    address: bytes
    span: PortSpan | None
    remaining_ms: int
    comment: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is ours in the kernel: subjects with the comments of their plans, pods, live grants."""

    subjects: dict[int, str]
    pods: tuple[PodElement, ...]
    grants: tuple[LiveGrant, ...]
    revoked: tuple[tuple[bytes, bytes], ...] = ()
    """(pod, destination) pairs that are kept shut after a cut."""


class TableFacts(NamedTuple):
    """What the table says of itself. `owner` is the netlink port of the process that owns it, 0 if none does."""

    comment: str
    instance: bytes
    owner: int


@dataclass(slots=True)
class Installed:
    """What stands in the table, so that a change deletes what is there and nothing else."""

    subjects: dict[int, set[str]] = field(default_factory=dict)
    """Names of the sets of each instance."""
    pods: dict[bytes, PodElement] = field(default_factory=dict)
    rules: dict[int, int] = field(default_factory=dict)
    """How many rules the chain of each instance has."""

    def copy(self) -> Installed:
        subjects = {subject: set(names) for subject, names in self.subjects.items()}
        return Installed(subjects, dict(self.pods), dict(self.rules))


def table_facts(channel: Channel, table: str, family: int = NFPROTO_INET) -> TableFacts | None:
    """Whose the table is; None if there is no such table."""
    for body in channel.dump(NFT_MSG_GETTABLE, b"", family):
        found = dict(attributes(body))
        if _text(found.get(1, b"")) == table:
            data = found.get(6, b"")
            return TableFacts(read_comment(data), read_datum(data, INSTANCE), int.from_bytes(found.get(7, b""), "big"))
    return None


def installed(channel: Channel, table: str) -> Installed:
    """Read instances and pods. Raises `KernelError` (ENOENT) if there is no table."""
    found = Installed(
        {subject: set() for subject in _subjects(channel, table)},
        {pod.address: pod for pod in _pods(channel, table)},
    )
    for name in _set_names(channel, table):
        subject = parse_instance_set(name)
        if subject is not None:
            found.subjects.setdefault(subject, set()).add(name)
    return found


def snapshot(channel: Channel, table: str) -> Snapshot:
    """Read everything. Raises `KernelError` (ENOENT) if there is no table."""
    subjects = _subjects(channel, table)
    names = set(_set_names(channel, table))
    grants: dict[tuple[int, str, bytes, PortSpan | None], LiveGrant] = {}
    for subject in subjects:
        for family in (4, 6):
            for kind in GRANT_KINDS:
                name = grant_set(family, subject, kind)
                for _ in range(2 if name in names else 0):
                    grants.update((grant[:4], grant) for grant in _grants(channel, table, name, subject, kind))
    revoked = tuple(_revoked(channel, table, names))
    return Snapshot(subjects, tuple(_pods(channel, table)), tuple(grants.values()), revoked)


def _revoked(channel: Channel, table: str, names: set[str]) -> Iterator[tuple[bytes, bytes]]:
    for name, length in (("revoked4", 4), ("revoked6", 16)):
        for entry in _elements(channel, table, name) if name in names else ():
            key = _key(entry[KEY])
            yield key[:length], key[length:]


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _subjects(channel: Channel, table: str) -> dict[int, str]:
    found = {}
    for body in channel.dump(NFT_MSG_GETCHAIN, string(1, table)):
        chain = dict(attributes(body))
        named = _SUBJECT.match(_text(chain.get(3, b"")))
        if named and _text(chain.get(1, b"")) == table:
            found[int(named.group(1))] = read_comment(chain.get(12, b""))
    return found


def _set_names(channel: Channel, table: str) -> Iterator[str]:
    for body in channel.dump(NFT_MSG_GETSET, string(1, table)):
        found = dict(attributes(body))
        if _text(found.get(1, b"")) == table:
            yield _text(found.get(2, b""))


def _elements(channel: Channel, table: str, name: str) -> Iterator[dict[int, bytes]]:
    """The attributes of each element of a set that has a key: another hand's catch-all element has none."""
    for body in channel.dump(NFT_MSG_GETSETELEM, string(1, table) + string(2, name)):
        for kind, value in attributes(body):
            for _, entry in attributes(value) if kind == 3 else ():
                found = dict(attributes(entry))
                if KEY in found:
                    yield found


def _key(value: bytes) -> bytes:
    """The octets of a key or its end: NFTA_DATA_VALUE."""
    return value[4:]


def _pods(channel: Channel, table: str) -> Iterator[PodElement]:
    for family in (4, 6):
        bypass = {_key(entry[KEY]) for entry in _elements(channel, table, f"bypass{family}")}
        for entry in _elements(channel, table, f"pods{family}"):
            address = _key(entry[KEY])
            yield PodElement(
                address, _target(entry.get(DATA, b"")), address in bypass, read_comment(entry.get(USER_DATA, b""))
            )


def plain_addresses(channel: Channel, table: str, stem: str) -> set[bytes]:
    """The keys of a node-level set of addresses, both families."""
    return {_key(entry[KEY]) for family in (4, 6) for entry in _elements(channel, table, f"{stem}{family}")}


def _target(data: bytes) -> int | None:
    """The subject an element of a verdict map goes to."""
    verdict = dict(attributes(dict(attributes(data)).get(2, b"")))
    named = _SUBJECT.match(_text(verdict.get(2, b"")))
    return int(named.group(1)) if named else None


def _grants(channel: Channel, table: str, name: str, subject: int, kind: str) -> Iterator[LiveGrant]:
    length = 4 if name.startswith("grant4") else 16
    size = length if kind == "any" else length + 8
    for entry in _elements(channel, table, name):
        key = _key(entry[KEY])
        end = _key(entry[KEY_END]) if KEY_END in entry else key
        if len(key) != size or len(end) != size:
            continue  # a set of that name and another type is not ours
        span = None if kind == "any" else _span(key[length:], end[length:])
        remaining = int.from_bytes(entry.get(EXPIRATION, b""), "big")
        if remaining:
            yield LiveGrant(subject, kind, key[:length], span, remaining, read_comment(entry.get(USER_DATA, b"")))


def _span(first: bytes, last: bytes) -> PortSpan:
    """`protocol . port` of both ends, each field padded to 4 octets."""
    return PortSpan(first[0], last[0], int.from_bytes(first[4:6], "big"), int.from_bytes(last[4:6], "big"))
