"""Sets and maps: their definitions, the node-level ones by name, and those of a subject's instance.

A definition carries what `nft` needs to print it (types, byte order and comment live in user data that the kernel only
keeps: NFTA_SET_USERDATA, types as in libnftnl's udata.h) and what the kernel needs to hold it (lengths and flags).

An interval set is filled before any rule refers to it and never again (change.py): what replaces it is a set of the
same stem and the next *generation*, `allow4-3` by `allow4-3.g1`. Hash sets stay under their stem.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL
from pyroute2.netlink.nfnetlink.nftsocket import (
    DATA_TYPE_IFNAME,
    DATA_TYPE_INET_PROTOCOL,
    DATA_TYPE_INET_SERVICE,
    DATA_TYPE_INTEGER,
    DATA_TYPE_IP6ADDR,
    DATA_TYPE_IPADDR,
    DATA_TYPE_NFPROTO,
    NFT_MSG_DELSET,
    NFT_MSG_NEWSET,
)

from egressd.kernel.comments import SET_COMMENT, user_data
from egressd.kernel.expr import COUNTER, IPV4, IPV6, Family
from egressd.kernel.netlink import NESTED, Message, be32, be64, blob, nested, string

if TYPE_CHECKING:
    from egressd.model import Block
    from egressd.policy import Plan

__all__ = [
    "NODE_SETS",
    "PORTED",
    "SEEN",
    "SetKind",
    "SetSpec",
    "blocks_of",
    "create_set",
    "delete_set",
    "grant_set",
    "named",
    "parse_instance_set",
    "plan_sets",
    "rule_set",
    "split_name",
]

INTERVAL, MAP, TIMEOUT, DYNAMIC, CONCAT = 0x4, 0x8, 0x10, 0x20, 0x80
"""NFT_SET_… flags."""
VERDICT_TYPE: Final = 0xFFFFFF00
"""NFT_DATA_VERDICT: the data type of verdict maps; their data length is 0."""
HOST_ORDER, NETWORK_ORDER = 1, 2
"""nft's enum byteorder."""
KEY_ORDER, DATA_ORDER = 0, 1
"""User data types NFTNL_UDATA_SET_KEYBYTEORDER and …_DATABYTEORDER."""
TYPE_BITS: Final = 6
"""A concatenation's type is its fields' types, 6 bits each (nft's TYPE_BITS)."""
SEEN_MAX: Final = 65_536
SEEN_TIMEOUT_MS: Final = 60_000
SOURCES_MAX: Final = 65_536
"""Addresses that ask for names here: more than a node has pods."""


class Field(NamedTuple):
    """One field of a key: nft's number of the type, octets, byte order."""

    type: int
    length: int
    order: int


FIELDS: Final = {
    "ipv4_addr": Field(DATA_TYPE_IPADDR, 4, NETWORK_ORDER),
    "ipv6_addr": Field(DATA_TYPE_IP6ADDR, 16, NETWORK_ORDER),
    "inet_proto": Field(DATA_TYPE_INET_PROTOCOL, 1, NETWORK_ORDER),
    "inet_service": Field(DATA_TYPE_INET_SERVICE, 2, NETWORK_ORDER),
    "nf_proto": Field(DATA_TYPE_NFPROTO, 1, HOST_ORDER),
    "ifname": Field(DATA_TYPE_IFNAME, 16, HOST_ORDER),
    "integer128": Field(DATA_TYPE_INTEGER, 16, NETWORK_ORDER),
}


@dataclass(frozen=True, slots=True)
class SetKind:
    """What a set holds and how: the type line and the flags line of nft's print."""

    fields: tuple[str, ...]
    flags: int = 0
    verdicts: bool = False
    size: int = 0
    """Most elements, 0 for no bound."""
    timeout_ms: int = 0
    """Default lifetime of elements, 0 for none."""
    counters: bool = False
    typeof: bytes = b""
    """User data that describes a key whose type has no name (nft's `typeof`)."""


@dataclass(frozen=True, slots=True)
class SetSpec:
    """A set to create."""

    name: str
    kind: SetKind
    comment: str = ""
    data: bytes = b""
    """More user data, of our own types."""

    @property
    def interval(self) -> bool:
        """Whether the kernel fills it only after the rules of the same transaction are in force."""
        return bool(self.kind.flags & INTERVAL)


def create_set(table: str, spec: SetSpec) -> Message:
    """The message that creates a set; one that is there already is refused (EEXIST)."""
    kind = spec.kind
    fields = [FIELDS[name] for name in kind.fields]
    concat = len(fields) > 1
    number = 0
    for field in fields:
        number = number << TYPE_BITS | field.type
    length = sum((field.length + 3) & ~3 for field in fields) if concat else fields[0].length
    interval_concat = concat and bool(kind.flags & INTERVAL)
    flags = kind.flags | (MAP if kind.verdicts else 0) | (CONCAT if interval_concat else 0)
    parts = [
        string(1, table),
        string(2, spec.name),
        be32(3, flags),
        be32(4, number),
        be32(5, length),
        be32(10, 1),
    ]  # the number by which only nameless sets are found
    if kind.verdicts:
        parts += [be32(6, VERDICT_TYPE), be32(7, 0)]
    description = [be32(1, kind.size)] if kind.size else []
    if interval_concat:
        description.append(nested(2, *(nested(1, be32(1, field.length)) for field in fields)))
    if description:
        parts.append(nested(9, *description))
    if kind.timeout_ms:
        parts.append(be64(11, kind.timeout_ms))
    order = 0 if concat else fields[0].order
    data = _orders(order, verdicts=kind.verdicts) + kind.typeof + user_data(SET_COMMENT, spec.comment) + spec.data
    parts.append(blob(13, data))
    if kind.counters:
        parts.append(blob(17 | NESTED, COUNTER[4:]))
    return Message(NFT_MSG_NEWSET, NLM_F_CREATE | NLM_F_EXCL, b"".join(parts), f"create set {spec.name}")


def _orders(key: int, *, verdicts: bool) -> bytes:
    pairs = [(KEY_ORDER, key), *([(DATA_ORDER, 0)] if verdicts else [])]
    return b"".join(bytes((kind, 4)) + order.to_bytes(4, sys.byteorder) for kind, order in pairs)


def delete_set(table: str, name: str) -> Message:
    return Message(NFT_MSG_DELSET, 0, string(1, table) + string(2, name), f"delete set {name}")


# -------------------------------------------------------------------------------------------- of the node

SEEN: Final = {
    "denied": "seen-denied",
    "unidentified": "seen-unidentified",
    "reported": "seen-passed",
    "allowed": "seen-passed",
}
"""Word of an event → stem of the sets of its flows. What is denied now is so reported now, though it passed, or waited
for its pod to be known, a moment ago; what Audit policies would deny passes as well, and is reported once."""
PORTED: Final = SetSpec("ported", SetKind(("inet_proto",)), "protocols that begin with two ports")


def _node_sets(family: Family) -> tuple[SetSpec, ...]:
    n, address = family.number, family.address_type
    pair = (address, address)
    seen = SetKind(
        (*pair, "inet_proto", "inet_service"),
        DYNAMIC | TIMEOUT,
        size=SEEN_MAX,
        timeout_ms=SEEN_TIMEOUT_MS,
        counters=True,
    )
    flooding = SetKind((address,), DYNAMIC | TIMEOUT, size=SOURCES_MAX, timeout_ms=SEEN_TIMEOUT_MS, counters=True)
    seen_any = SetKind(
        (*pair, "inet_proto"), DYNAMIC | TIMEOUT, size=SEEN_MAX, timeout_ms=SEEN_TIMEOUT_MS, counters=True
    )
    pace = SetKind((address,), DYNAMIC | TIMEOUT, size=SOURCES_MAX, timeout_ms=SEEN_TIMEOUT_MS)
    return (
        SetSpec(f"pods{n}", SetKind((address,), verdicts=True), "whose policies judge a pod; accept, allowed: none"),
        SetSpec(f"known{n}", SetKind((address,)), "the same pods, for rules that only ask: is it one"),
        SetSpec(f"bypass{n}", SetKind((address,)), "pods whose DNS is not intercepted"),
        SetSpec(f"unidentified{n}", SetKind((address,), INTERVAL), "where the pods of this node live"),
        SetSpec(f"resolvers{n}", SetKind((address,), INTERVAL), "DNS servers that are answered for"),
        SetSpec(f"cluster{n}", SetKind((address,), INTERVAL), "destinations in the cluster, let through"),
        SetSpec(f"revoked{n}", SetKind(pair, TIMEOUT), "pod . destination: judged afresh, established or not"),
        SetSpec(f"pace{n}", pace, "how fast each pod asks, against a bound that no pod should reach"),
        SetSpec(f"flooding{n}", flooding, "who was past it within the last minute"),
        *(
            spec
            for stem in dict.fromkeys(SEEN.values())
            for spec in (
                SetSpec(f"{stem}{n}", seen, "flows reported within the last minute"),
                SetSpec(f"{stem}{n}-any", seen_any, "the same, of protocols without ports"),
            )
        ),
    )


NODE_SETS: Final = (
    *_node_sets(IPV4),
    *_node_sets(IPV6),
    SetSpec("heartbeat", SetKind(("nf_proto",), TIMEOUT), "renewed while queries are answered"),
    SetSpec("revoking", SetKind(("nf_proto",), TIMEOUT), "families of which a pair is revoked"),
    PORTED,
)
"""Everything but the instances' own sets, in the order of kernel.md."""


def blocks_of(blocks: Iterable[Block], length: int) -> list[tuple[bytes, bytes]]:
    """The blocks of one family (`length` 4 or 16) as disjoint, ascending ranges: interval sets refuse overlaps."""
    merged: list[tuple[int, int]] = []
    for block in sorted(block for block in blocks if len(block.first) == length):
        first, last = int.from_bytes(block.first, "big"), int.from_bytes(block.last, "big")
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return [(first.to_bytes(length, "big"), last.to_bytes(length, "big")) for first, last in merged]


# ------------------------------------------------------------------------------------------- of instances

_INSTANCE: Final = re.compile(r"(?:grant|allow|deny|report)[46]-(\d+)(?:-any|-range)?(?:\.g\d+)?\Z")
_GENERATION: Final = re.compile(r"(.+)\.g(\d+)\Z", re.ASCII)
_GRANT_SUFFIX: Final = {"port": "", "any": "-any", "range": "-range"}
_GRANT_FLAGS: Final = {"port": TIMEOUT, "any": TIMEOUT, "range": TIMEOUT | INTERVAL}


def grant_set(family_number: int, subject: int, kind: str) -> str:
    """`grant4-3`, `grant4-3-any`, `grant4-3-range`"""
    return f"grant{family_number}-{subject}{_GRANT_SUFFIX[kind]}"


def rule_set(use: str, family_number: int, subject: int, *, ported: bool) -> str:
    """`allow4-3`, `deny6-3-any`: address rules of one use, with and without ports"""
    return f"{use}{family_number}-{subject}" + ("" if ported else "-any")


def named(stem: str, generation: int) -> str:
    """`allow4-3`, and from its first replacement on `allow4-3.g1`"""
    return f"{stem}.g{generation}" if generation else stem


def split_name(name: str) -> tuple[str, int]:
    """Stem and generation of a set's name."""
    found = _GENERATION.match(name)
    return (found.group(1), int(found.group(2))) if found else (name, 0)


def parse_instance_set(name: str) -> int | None:
    """The subject whose set it is, None for a set of the node."""
    found = _INSTANCE.match(name)
    return int(found.group(1)) if found else None


def plan_sets(subject: int, plan: Plan) -> tuple[list[SetSpec], list[SetSpec]]:
    """The sets a plan needs, by their stems: of grants, which outlive a change of the plan, and of address rules."""
    grants: list[SetSpec] = []
    rules: list[SetSpec] = []
    for family in (IPV4, IPV6):
        endpoint = (family.address_type, "inet_proto", "inet_service")
        for kind in sorted(plan.grants):
            fields = (family.address_type,) if kind == "any" else endpoint
            grants.append(SetSpec(grant_set(family.number, subject, kind), SetKind(fields, _GRANT_FLAGS[kind])))
        for use in ("deny", "report", "allow"):
            for ported in _needed(plan, use, family.length):
                fields = endpoint if ported else (family.address_type,)
                name = rule_set(use, family.number, subject, ported=ported)
                rules.append(SetSpec(name, SetKind(fields, INTERVAL)))
    return grants, rules


def _needed(plan: Plan, use: str, length: int) -> Sequence[bool]:
    """Whether address rules of one use and family name ports, and whether some name none."""
    return sorted({interval.span is not None for interval in getattr(plan, use) if len(interval.first) == length})
