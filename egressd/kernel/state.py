"""What the kernel holds, read back by dumps: for a restart, and to find the way again after somebody else's hand.

A dump of a set that was just resized may lack elements without any error, so grants are dumped twice and united
(kernel.md, Reading back). Subjects are chains, their policies the chains' comments. Of a set that is being replaced
there may be two generations (sets.py): a process that died in between leaves both.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from pyroute2.netlink.nfnetlink.nftsocket import (
    NFPROTO_INET,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETSET,
    NFT_MSG_GETSETELEM,
    NFT_MSG_GETTABLE,
)

from egressd.kernel.comments import COMMENT, INSTANCE, read_comment, read_datum, user_data
from egressd.kernel.elements import DATA, EXPIRATION, FLAGS, INTERVAL_END, KEY, KEY_END, USER_DATA
from egressd.kernel.netlink import Channel, attributes, string
from egressd.kernel.sets import NODE_SETS, grant_set, named, parse_instance_set, split_name
from egressd.model import PortSpan

__all__ = [
    "NODE",
    "AllowedRange",
    "ChainFacts",
    "Installed",
    "LiveGrant",
    "PodElement",
    "Snapshot",
    "TableFacts",
    "chains_of",
    "installed",
    "plain_addresses",
    "sets_of",
    "snapshot",
    "table_facts",
]

_SUBJECT: Final = re.compile(r"subject-(\d+)\Z")
GRANT_KINDS: Final = ("port", "any", "range")
NODE: Final = 0
"""In place of a subject's number: the node, whose sets are no instance's."""
_NODE_STEMS: Final = frozenset(spec.name for spec in NODE_SETS if spec.interval)


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


class AllowedRange(NamedTuple):
    """Addresses `first` to `last` that an instance lets through; `span` None: on every port."""

    first: bytes
    last: bytes
    span: PortSpan | None

    def covers(self, destination: bytes, protocol: int, port: int) -> bool:
        """`port` -1: the protocol has none."""
        inside = len(self.first) == len(destination) and self.first <= destination <= self.last
        span = self.span
        return inside and (
            span is None
            or (
                span.first_protocol <= protocol <= span.last_protocol
                and span.first_port <= max(port, 0) <= span.last_port
            )
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that is ours in the kernel: subjects with the comments of their plans, pods, live grants."""

    subjects: dict[int, str]
    pods: tuple[PodElement, ...]
    grants: tuple[LiveGrant, ...]
    revoked: tuple[tuple[bytes, bytes], ...] = ()
    """(pod, destination) pairs that are kept shut after a cut."""
    allowed: dict[int, tuple[AllowedRange, ...]] = field(default_factory=dict)
    """What the address rules of each subject allow."""


class TableFacts(NamedTuple):
    """What the table says of itself: NFT_TABLE_F_… `flags`, and `owner`, the netlink port of the process that owns it
    (0: none does)."""

    comment: str
    flags: int
    owner: int


class ChainFacts(NamedTuple):
    """A chain as it stands: hook number and priority of a base chain, else None; its comment."""

    hook: tuple[int, int] | None
    comment: str

    def says(self, comment: str) -> bool:
        """Whether it is a plain chain with this comment."""
        return self.hook is None and self.comment == read_comment(user_data(COMMENT, comment))


@dataclass(slots=True)
class Installed:
    """What stands in the table, so that a change deletes what is there and nothing else."""

    subjects: dict[int, set[str]] = field(default_factory=dict)
    """Names of the sets of each instance."""
    pods: dict[bytes, PodElement] = field(default_factory=dict)
    rules: dict[int, int] = field(default_factory=dict)
    """How many rules the chain of each instance has."""
    node: dict[str, str] = field(default_factory=dict)
    """Interval sets of the node: stem and name."""
    generations: dict[int, int] = field(default_factory=dict)
    """The latest generation among an instance's sets, and under `NODE` among the node's."""
    contents: dict[str, bytes] = field(default_factory=dict)
    """Digest of each address set that we filled; one that is not here holds nobody knows what."""

    def copy(self) -> Installed:
        subjects = {subject: set(names) for subject, names in self.subjects.items()}
        return Installed(
            subjects,
            dict(self.pods),
            dict(self.rules),
            dict(self.node),
            dict(self.generations),
            dict(self.contents),
        )

    def generation(self, of: int) -> int:
        """The generation of the sets that are made now, for a subject or the `NODE`; from then on the latest."""
        self.generations[of] = self.generations.get(of, -1) + 1
        return self.generations[of]

    def meet(self, name: str) -> None:
        """A set of the table: enter its name and its generation."""
        stem, generation = split_name(name)
        subject = parse_instance_set(name)
        if subject is not None:
            self.subjects.setdefault(subject, set()).add(name)
        elif stem in _NODE_STEMS:
            self.node[stem] = named(stem, max(generation, split_name(self.node.get(stem, stem))[1]))
        else:
            return
        of = NODE if subject is None else subject
        self.generations[of] = max(generation, self.generations.get(of, 0))


def table_facts(channel: Channel, table: str, family: int = NFPROTO_INET) -> TableFacts | None:
    """Whose the table is; None if there is no such table."""
    for body in channel.dump(NFT_MSG_GETTABLE, b"", family):
        found = dict(attributes(body))
        if _text(found.get(1, b"")) == table:
            flags, owner = (int.from_bytes(found.get(kind, b""), "big") for kind in (2, 7))
            return TableFacts(read_comment(found.get(6, b"")), flags, owner)
    return None


def installed(channel: Channel, table: str) -> Installed:
    """Read instances and pods. Raises `KernelError` (ENOENT) if there is no table."""
    chains = chains_of(channel, table)
    found = Installed(
        {subject: set() for subject in _subjects(chains)},
        {pod.address: pod for pod in _pods(channel, table)},
    )
    for name in sets_of(channel, table):
        found.meet(name)
    return found


def snapshot(channel: Channel, table: str) -> Snapshot:
    """Read everything. Raises `KernelError` (ENOENT) if there is no table."""
    subjects = _subjects(chains_of(channel, table))
    names = sets_of(channel, table)
    kinds = {
        grant_set(family, subject, kind): (subject, kind)
        for subject in subjects
        for family in (4, 6)
        for kind in GRANT_KINDS
    }
    grants: dict[tuple[int, str, bytes, PortSpan | None], LiveGrant] = {}
    for name in names:
        whose = kinds.get(split_name(name)[0])
        for subject, kind in [whose] * 2 if whose else ():
            grants.update((grant[:4], grant) for grant in _grants(channel, table, name, subject, kind))
    revoked = tuple(_revoked(channel, table, names))
    allowed = {
        subject: tuple(
            found
            for name in names
            if name.startswith("allow") and parse_instance_set(name) == subject
            for found in _allowed(channel, table, name)
        )
        for subject in subjects
    }
    return Snapshot(subjects, tuple(_pods(channel, table)), tuple(grants.values()), revoked, allowed)


def _allowed(channel: Channel, table: str, name: str) -> Iterator[AllowedRange]:
    """The ranges of an address set: an element each where it names ports, else starts and end marks."""
    length = 4 if name.startswith("allow4") else 16
    entries = list(_elements(channel, table, name))
    if not split_name(name)[0].endswith("-any"):
        for entry in entries:
            first, last = _key(entry[KEY]), _key(entry.get(KEY_END, entry[KEY]))
            if len(first) == len(last) == length + 8:
                yield AllowedRange(first[:length], last[:length], _span(first[length:], last[length:]))
        return
    marks = sorted(_key(entry[KEY]) for entry in entries if int.from_bytes(entry.get(FLAGS, b""), "big") & INTERVAL_END)
    for start in (_key(entry[KEY]) for entry in entries if FLAGS not in entry):
        place = bisect_right(marks, start)
        behind = int.from_bytes(marks[place], "big") if place < len(marks) else 1 << 8 * length
        yield AllowedRange(start, (behind - 1).to_bytes(length, "big"), None)


def _revoked(channel: Channel, table: str, names: Iterable[str]) -> Iterator[tuple[bytes, bytes]]:
    for name, length in (("revoked4", 4), ("revoked6", 16)):
        for entry in _elements(channel, table, name) if name in names else ():
            key = _key(entry[KEY])
            yield key[:length], key[length:]


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def _subjects(chains: Mapping[str, ChainFacts]) -> dict[int, str]:
    named_so = ((_SUBJECT.match(name), chain.comment) for name, chain in chains.items())
    return {int(found.group(1)): comment for found, comment in named_so if found}


def chains_of(channel: Channel, table: str) -> dict[str, ChainFacts]:
    """The chains of the table, by name."""
    out = {}
    for body in channel.dump(NFT_MSG_GETCHAIN, string(1, table)):
        found = dict(attributes(body))
        if _text(found.get(1, b"")) == table:
            hook = dict(attributes(found[4])) if 4 in found else {}
            place = (int.from_bytes(hook[1], "big"), int.from_bytes(hook[2], "big", signed=True)) if hook else None
            out[_text(found.get(3, b""))] = ChainFacts(place, read_comment(found.get(12, b"")))
    return out


def sets_of(channel: Channel, table: str) -> dict[str, bytes]:
    """The sets of the table, by name, with which run of the daemon made each (only the heartbeat's says so)."""
    out = {}
    for body in channel.dump(NFT_MSG_GETSET, string(1, table)):
        found = dict(attributes(body))
        if _text(found.get(1, b"")) == table:
            out[_text(found.get(2, b""))] = read_datum(found.get(13, b""), INSTANCE)
    return out


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
