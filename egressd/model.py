"""The vocabulary of egressd: policies, subjects, pods, decisions, queries, grants and records, as frozen values.

Everything here is plain data with no behaviour beyond spelling, so that it can cross the process boundary (`link`)
as it is. Meanings are those of policy.md. An *address* is packed bytes in network order, 4 octets (IPv4) or 16
(IPv6), as DNS and netlink carry it; `address_text` spells it.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, NewType

from egressd.names import Pattern

__all__ = [
    "ANY_PORT",
    "PROTOCOLS",
    "Action",
    "Address",
    "Block",
    "Decision",
    "DnsMode",
    "DnsRecord",
    "FlowRecord",
    "LabelRequirement",
    "LabelSelector",
    "Mode",
    "OnRevoke",
    "Peer",
    "PodIdentity",
    "Policy",
    "PolicyRecord",
    "PortSpan",
    "Ports",
    "Reason",
    "Rule",
    "Subject",
    "SubjectSelector",
    "Verdict",
    "address_text",
    "is_block",
]

Address = NewType("Address", bytes)


def address_text(address: bytes) -> str:
    """Spell a packed address: `b"\\x0a\\xf4\\x00\\x05"` gives `10.244.0.5`."""
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address)


# ---------------------------------------------------------------------------------------------- policies


class PortSpan(NamedTuple):
    """A box of protocols and ports, both ends inclusive: `PortSpan(6, 6, 443, 443)` is 443/TCP.

    Protocol numbers are IANA's (0 to 255); ports are 0 to 65535 and stand for all of it where the protocol has none.
    """

    first_protocol: int
    last_protocol: int
    first_port: int
    last_port: int


Ports = tuple[PortSpan, ...]
"""Disjoint spans in ascending order."""

ANY_PORT: Final[Ports] = (PortSpan(0, 255, 0, 65535),)
"""Every port of every protocol: what a rule without `ports` means."""

PROTOCOLS: Final[dict[str, tuple[int, ...]]] = {"TCP": (6,), "UDP": (17,), "SCTP": (132,), "ICMP": (1, 58)}
"""The protocols a policy can name and their IANA numbers; ICMP means ICMP and ICMPv6."""


class Block(NamedTuple):
    """A CIDR block as its first and last address, both inclusive and of one family."""

    first: Address
    last: Address


Peer = Pattern | Block


def is_block(peer: Peer) -> bool:
    """Whether a peer is an address block rather than a name pattern."""
    return isinstance(peer, Block)


class Action(StrEnum):
    ALLOW = "allow"
    DENY = "deny"


class Mode(StrEnum):
    ENFORCE = "Enforce"
    AUDIT = "Audit"


class DnsMode(StrEnum):
    FILTER = "Filter"
    RESOLVE = "Resolve"


class OnRevoke(StrEnum):
    CUT = "Cut"
    DRAIN = "Drain"


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of `allow` or `deny`. `name` is as written, else `allow[0]`; `ports` is `ANY_PORT` when not written."""

    name: str
    action: Action
    patterns: tuple[Pattern, ...] = ()
    blocks: tuple[Block, ...] = ()
    ports: Ports = ANY_PORT
    allow_private: bool = False
    line: int = 0
    """Line of the rule in its document, from 1; 0 when not known."""


class LabelRequirement(NamedTuple):
    """One `matchExpressions` entry; `operator` is In, NotIn, Exists or DoesNotExist."""

    key: str
    operator: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """A Kubernetes label selector; an empty one selects everything."""

    labels: tuple[tuple[str, str], ...] = ()
    expressions: tuple[LabelRequirement, ...] = ()


@dataclass(frozen=True, slots=True)
class SubjectSelector:
    """Whom a policy selects. `namespaces` is None outside the policy namespace (own namespace only)."""

    pods: LabelSelector = LabelSelector()
    namespaces: LabelSelector | None = None
    service_accounts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy document, valid and compiled: names are canonical, ports are spans, rules have names.

    `name` is `NAMESPACE/CONFIGMAP` or `NAMESPACE/CONFIGMAP/KEY`. In the policy namespace `subject.namespaces` is a
    selector (cluster policy); elsewhere it is None and the policy selects pods of `namespace` only.
    """

    name: str
    namespace: str
    subject: SubjectSelector = SubjectSelector()
    mode: Mode = Mode.ENFORCE
    dns: DnsMode = DnsMode.FILTER
    on_revoke: OnRevoke = OnRevoke.CUT
    allow: tuple[Rule, ...] = ()
    deny: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class Subject:
    """The policies that select a pod, sorted by name. Pods with equal subjects share grants; others never do."""

    policies: tuple[Policy, ...]

    @property
    def key(self) -> tuple[str, ...]:
        return tuple(policy.name for policy in self.policies)


# -------------------------------------------------------------------------------------------------- pods


@dataclass(frozen=True, slots=True)
class PodIdentity:
    """Who a pod is, as the audit records say it. `workload` is `KIND/NAME` of the folded owner, or empty."""

    namespace: str
    name: str
    uid: str = ""
    service_account: str = ""
    workload: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


# --------------------------------------------------------------------------------------------- decisions


class Verdict(StrEnum):
    __hash__ = str.__hash__  # of the value, as equality is; Enum's own, a Python function, would be called per query
    ALLOWED = "allowed"
    DENIED = "denied"
    WOULD_DENY = "would-deny"
    WOULD_ALLOW = "would-allow"


class Reason(StrEnum):
    __hash__ = str.__hash__  # as above
    RULE = "rule"
    DENY_RULE = "deny-rule"
    NO_RULE = "no-rule"
    IN_CLUSTER = "in-cluster"
    UNSELECTED = "unselected"
    UNKNOWN_POD = "unknown-pod"
    FOREIGN_RESOLVER = "foreign-resolver"
    REBINDING = "rebinding"
    RATE_LIMIT = "rate-limit"
    MALFORMED = "malformed"
    UPSTREAM_FAILED = "upstream-failed"
    SNI_MISMATCH = "sni-mismatch"
    PROGRAM_FAILED = "program-failed"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about a destination, and why: there is no decision without a reason.

    `policy` and `rule` name the rule that decided, and are empty where none did. `ports` is what an allowed name's
    grants may open (the union over the matched allow rules, less what deny rules take out); empty for all else.
    `resolve` says whether the name may be asked upstream at all: true for what is allowed and, under `dns: Resolve`,
    for everything. `allow_private` says whether a matched rule lets answers point at private ranges.
    """

    verdict: Verdict
    reason: Reason
    policy: str = ""
    rule: str = ""
    ports: Ports = ()
    resolve: bool = False
    allow_private: bool = False
    private_ports: Ports = field(default=(), compare=False)
    """The part of `ports` that rules with `allowPrivate` give: all that may be opened at a private address."""


# ----------------------------------------------------------------------------------------------- records


class DnsRecord(NamedTuple):
    """What one query came to: the source of one `dns` audit record (interface.md). Addresses are packed."""

    time: float
    """Seconds since the epoch (wall clock), when the query was finished."""
    client: bytes
    pod: PodIdentity | None
    name: str
    """Canonical name; empty when the query was too malformed to have one."""
    qtype: int
    transport: str
    """`udp` or `tcp`."""
    server: bytes
    port: int
    """Client's source port."""
    verdict: Verdict
    reason: Reason
    policy: str
    rule: str
    rcode: int
    """The rcode answered, or -1 where nothing was answered."""
    addresses: tuple[bytes, ...]
    """Addresses in the answer given to the pod."""
    cnames: tuple[str, ...]
    ttl: int
    """Smallest TTL of the answer in seconds, or -1 where there was none."""
    cached: bool
    granted: tuple[bytes, ...]
    latency_us: int
    search: bool = False
    aggregated: int = 0
    """Denied queries past the pod's budget of distinct names that this record stands for; then `name` is empty."""


class FlowRecord(NamedTuple):
    """Packets the kernel reported: the source of one `flow` audit record (interface.md)."""

    time: float
    client: bytes
    pod: PodIdentity | None
    destination: bytes
    port: int
    """Destination port, or -1 where the protocol has none."""
    protocol: int
    names: tuple[str, ...]
    """Names the address was last known by."""
    verdict: Verdict
    reason: Reason
    policy: str
    rule: str
    packets: int


@dataclass(frozen=True, slots=True)
class PolicyRecord:
    """A policy changed or was refused: the source of one `policy` audit record. `change`: updated, refused, deleted."""

    time: float
    policy: str
    change: str
    error: str = field(default="")
