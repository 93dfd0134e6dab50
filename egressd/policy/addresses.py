"""The rebinding guard: which addresses an answer may not point at (policy.md, Rebinding), and which deny rules cover.

Everything that is known about special address ranges lives in the table `RANGES`. An address is ordinary unless the
table, the cluster's own blocks or a deny rule say otherwise; ordinary IPv4 costs one look at its first octet.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from egressd.model import Address, Block, Ports, Reason
from egressd.policy.ports import subtract, union
from egressd.policy.sweep import AddressSpace
from egressd.policy.verdict import Entry

__all__ = ["RANGES", "Guard", "Kind", "block_text", "cidr", "special"]


class Kind(IntEnum):
    """How an address may be granted through a name; of several ranges over one address the greatest counts."""

    ORDINARY = 0
    PRIVATE = 1
    """Only by a rule that says `allowPrivate`, or through a name inside the cluster."""
    NEVER = 2
    """Never, whatever a rule says: this machine, this link, nobody in particular, or everybody."""


def cidr(text: str) -> Block:
    """The block that `text` (`10.0.0.0/8`, `::1`) spells; ValueError if it spells none. For constants and tests."""
    network = ipaddress.ip_network(text)
    return Block(Address(network.network_address.packed), Address(network.broadcast_address.packed))


RANGES: Final[tuple[tuple[Block, Kind, str], ...]] = tuple(
    (cidr(text), kind, word)
    for text, kind, word in (
        (
            "0.0.0.0/8",
            Kind.NEVER,
            "unspecified",
        ),  # "this network": RFC 791 section 3.2; Linux connects 0.0.0.0 to itself
        ("10.0.0.0/8", Kind.PRIVATE, "private"),  # RFC 1918
        ("100.64.0.0/10", Kind.PRIVATE, "private"),  # shared with the carrier: RFC 6598
        ("127.0.0.0/8", Kind.NEVER, "loopback"),  # RFC 1122 section 3.2.1.3
        ("169.254.0.0/16", Kind.NEVER, "link-local"),  # cloud metadata services: RFC 3927
        ("172.16.0.0/12", Kind.PRIVATE, "private"),  # RFC 1918
        ("192.168.0.0/16", Kind.PRIVATE, "private"),  # RFC 1918
        ("224.0.0.0/4", Kind.NEVER, "multicast"),  # RFC 5771
        ("240.0.0.0/4", Kind.PRIVATE, "reserved"),  # RFC 1112 section 4; some clouds number their insides so
        ("255.255.255.255/32", Kind.NEVER, "broadcast"),  # RFC 919 section 7
        ("::/128", Kind.NEVER, "unspecified"),  # RFC 4291 section 2.5.2
        ("::1/128", Kind.NEVER, "loopback"),  # RFC 4291 section 2.5.3
        ("fc00::/7", Kind.PRIVATE, "private"),  # unique local: RFC 4193
        ("fe80::/10", Kind.NEVER, "link-local"),  # RFC 4291 section 2.5.6
        ("ff00::/8", Kind.NEVER, "multicast"),  # RFC 4291 section 2.7
    )
)

_CARRIERS: Final = (bytes(10) + b"\xff\xff", bytes.fromhex("0064ff9b") + bytes(8))
"""First 12 octets of IPv6 addresses whose last four are an IPv4 address: ::ffff:0:0/96 (RFC 4291 section 2.5.5.2) and
64:ff9b::/96 (NAT64, RFC 6052 section 2.1)."""


def block_text(block: Block) -> str:
    """Spell a block: `203.0.113.0/24`, a single address alone, an uneven one `192.0.2.1-192.0.2.9`."""
    first, last = ipaddress.ip_address(bytes(block.first)), ipaddress.ip_address(bytes(block.last))
    if first == last:
        return str(first)
    size = int(last) - int(first) + 1
    if size & (size - 1) == 0 and int(first) % size == 0:
        return f"{first}/{first.max_prefixlen - size.bit_length() + 1}"
    return f"{first}-{last}"


def special(address: bytes, cluster: Iterable[Block]) -> tuple[Kind, str]:
    """What is special about an address and the word for it, as in (Kind.NEVER, "link-local"); the strictest counts."""
    ranges = (*((block, Kind.PRIVATE, "inside the cluster") for block in cluster), *RANGES)
    inner = (address[12:],) if len(address) == 16 and address[:12] in _CARRIERS else ()
    found = [
        (kind, word)
        for one in (address, *inner)
        for block, kind, word in ranges
        if len(block.first) == len(one) and block.first <= one <= block.last
    ]
    return max(found, key=lambda each: each[0], default=(Kind.ORDINARY, "ordinary"))


def _first_octets(blocks: Iterable[Block]) -> bytes:
    flags = bytearray(256)
    for first, last in blocks:
        if len(first) == 4:
            flags[first[0] : last[0] + 1] = b"\x01" * (last[0] - first[0] + 1)
    return bytes(flags)


class Guard:
    """The special ranges, the cluster's blocks and the deny rules of one subject, as one map of the address space."""

    __slots__ = ("_known", "_space", "notable")

    def __init__(self, cluster: Iterable[Block], denies: Iterable[Entry]) -> None:
        items: list[tuple[Block, Kind | Entry]] = [(block, kind) for block, kind, _ in RANGES]
        items += [(block, Kind.PRIVATE) for block in cluster]
        items += [(block, entry) for entry in denies for block in entry.rule.blocks]
        self._space: AddressSpace[Kind | Entry] = AddressSpace(items)
        self._known: dict[tuple[Kind | Entry, ...], tuple[Kind, Ports]] = {}
        self.notable = _first_octets(block for block, _ in items)
        """256 flags: whether any IPv4 address with this first octet is other than ordinary."""

    def kind(self, address: bytes) -> Kind:
        """The strictest of what is known about the address and about an IPv4 address inside it."""
        return self._look_up(address)[0]

    def judge(self, address: bytes, ports: Ports, private_ports: Ports) -> Reason | None:
        """Why the address may not be granted for `ports`, or only if private for `private_ports`; None if it may."""
        kind, barred = self._look_up(address)
        if kind is Kind.NEVER or (kind is Kind.PRIVATE and not private_ports):
            return Reason.REBINDING
        wanted = private_ports if kind is Kind.PRIVATE else ports
        return Reason.DENY_RULE if barred and not subtract(wanted, barred) else None

    def _look_up(self, address: bytes) -> tuple[Kind, Ports]:
        """The kind of the address and the ports that deny rules take; remembered for each cell of the map."""
        over = self._space.at(address)
        if len(address) == 16 and address[:12] in _CARRIERS:
            over = (*over, *self._space.at(address[12:]))
        found = self._known.get(over)
        if found is None:
            kind = max((one for one in over if isinstance(one, Kind)), default=Kind.ORDINARY)
            found = self._known[over] = kind, union(*(one.ports for one in over if isinstance(one, Entry)))
        return found
