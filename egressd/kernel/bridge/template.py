"""The template of `table bridge egressd`: which addresses a frame may carry, by the port of the bridge it came from.

    table bridge egressd {
      map ports   { type ifname : verdict }       # "veth2" comment "shop/web-0" : goto pod; "veth9" : goto other
      set bound4  { type ifname . ipv4_addr }     # "veth2" . 10.244.0.5 comment "shop/web-0"
      set held4   { type ipv4_addr }              # the same addresses, for the other ports of the bridge
      set bound6, held6                           # the same for IPv6
      set targets6, held-targets6                 # the same once more, for what neighbour advertisements claim
      chain ports { type filter hook prerouting priority dstnat; iifname vmap @ports }
    }

A frame of a pod costs two look-ups in hash sets, a frame of any other bridge one. Chains say `meta protocol`, never
`ether type`: the latter sees the VLAN tag of a frame whose tag 0 the receiver would pass over. A tag within a tag is
not looked into, and pods may not send it. Frames that carry no address (spanning tree, EAPOL, …) pass.

nft knows the target of a neighbour advertisement by name only since 1.0.7. The sets it is looked up in have the type
of the raw octets, `@nh,384,128`, which every version since 1.0.3 prints and reads; hence the advertisement must
follow the IPv6 header at once, as RFC 4861 section 4.4 draws it.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from pyroute2.netlink.nfnetlink.nftsocket import Cmp, Meta

from egressd.kernel.chains import Chain, Hook, Rule
from egressd.kernel.expr import (
    ACCEPT,
    COUNTER,
    DROP,
    REGISTER,
    UDP,
    compare,
    dport,
    goto,
    lookup,
    masked,
    meta,
    payload,
    protocol_is,
)
from egressd.kernel.netlink import be32
from egressd.kernel.sets import SetKind, SetSpec
from egressd.kernel.template import PREROUTING

__all__ = ["BEFORE_ALL", "CHAINS", "OTHER", "POD", "SETS"]

BEFORE_ALL: Final = -300
"""NF_BR_PRI_NAT_DST_BRIDGED: before ebtables and br_netfilter, so before the IP hooks of bridged packets."""
POD, OTHER = "pod", "other"
"""Chains that the map `ports` leads to."""
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
ICMPV6, NEIGHBOUR_ADVERTISEMENT = 58, 136
ANY_LINK_LOCAL: Final = b"\xff\xc0".ljust(16, b"\0")
"""The mask of fe80::/10."""


class Sender(NamedTuple):
    """Where a kind of frame says whose it is: EtherType, offset from the network header and length of the address."""

    protocol: bytes
    offset: int
    length: int


IP: Final = Sender(b"\x08\x00", 12, 4)
IP6: Final = Sender(b"\x86\xdd", 8, 16)
ARP: Final = Sender(b"\x08\x06", 14, 4)
"""`arp saddr ip`: ar_sip, of Ethernet and IPv4."""
TARGET: Final = Sender(b"\x86\xdd", 48, 16)
"""Target of a neighbour advertisement, 8 octets into ICMPv6."""
VLAN, SERVICE_VLAN = b"\x81\x00", b"\x88\xa8"


def _frame(protocol: bytes) -> bytes:
    """`meta protocol arp`"""
    return meta(Meta.NFT_META_PROTOCOL) + compare(protocol)


def _held(sender: Sender, name: str) -> bytes:
    """`ip saddr @held4`"""
    return payload(NETWORK_HEADER, sender.offset, sender.length) + lookup(name)


def _bound(sender: Sender, name: str) -> bytes:
    """`iifname . ip saddr @bound4`"""
    address = payload(NETWORK_HEADER, sender.offset, sender.length, REGISTER + 4)
    return meta(Meta.NFT_META_IIFNAME) + address + lookup(name)


def _is(sender: Sender, address: bytes) -> bytes:
    """`arp saddr ip 0.0.0.0`"""
    return payload(NETWORK_HEADER, sender.offset, sender.length) + compare(address)


def _is_link_local(sender: Sender) -> bytes:
    """`ip6 saddr fe80::/10`"""
    octets = payload(NETWORK_HEADER, sender.offset, sender.length) + masked(ANY_LINK_LOCAL, bytes(16))
    return octets + compare(b"\xfe\x80".ljust(16, b"\0"))


ADVERTISEMENT: Final = (
    _frame(IP6.protocol)
    + protocol_is(ICMPV6)
    + payload(TRANSPORT_HEADER, 0, 1)
    + compare(bytes((NEIGHBOUR_ADVERTISEMENT,)))
)
"""`icmpv6 type nd-neighbor-advert`"""
BEHIND_EXTENSIONS: Final = payload(NETWORK_HEADER, 6, 1) + compare(bytes((ICMPV6,)), Cmp.NFT_CMP_NEQ)
"""`ip6 nexthdr != ipv6-icmp`"""
SPOOFED: Final = goto("spoofed")


def _rule(comment: str, *phrases: bytes) -> Rule:
    return Rule(comment, b"".join(phrases))


CHAINS: Final = (
    Chain(
        "ports",
        "every frame that a bridge receives",
        (_rule("", meta(Meta.NFT_META_IIFNAME), lookup("ports", be32(3, 0))),),
        Hook(PREROUTING, BEFORE_ALL),
    ),
    Chain(
        POD,
        "from a pod: only its own addresses",
        (
            _rule("", _frame(IP.protocol), _bound(IP, "bound4"), ACCEPT),
            _rule("", _frame(IP6.protocol), _bound(IP6, "bound6"), goto("claims")),
            _rule("", _frame(ARP.protocol), _bound(ARP, "bound4"), ACCEPT),
            _rule("link-local", _frame(IP6.protocol), _is_link_local(IP6), goto("claims")),
            _rule(
                "duplicate address detection",
                _frame(IP6.protocol),
                _is(IP6, bytes(16)),
                protocol_is(ICMPV6),
                goto("claims"),
            ),
            _rule("is the address free", _frame(ARP.protocol), _is(ARP, bytes(4)), ACCEPT),
            _rule("DHCP", _frame(IP.protocol), _is(IP, bytes(4)), dport(UDP, 67), ACCEPT),
            *(_rule("", _frame(sender.protocol), SPOOFED) for sender in (IP, IP6, ARP)),
            _rule("a tag within a tag", _frame(VLAN), SPOOFED),
            _rule("a tag within a tag", _frame(SERVICE_VLAN), SPOOFED),
        ),
    ),
    Chain(
        "claims",
        "which address a pod says is its own",
        (
            _rule("", ADVERTISEMENT, BEHIND_EXTENSIONS, SPOOFED),
            _rule("", ADVERTISEMENT, _bound(TARGET, "targets6"), ACCEPT),
            _rule("link-local", ADVERTISEMENT, _is_link_local(TARGET), ACCEPT),
            _rule("", ADVERTISEMENT, SPOOFED),
            _rule("", ACCEPT),
        ),
    ),
    Chain(
        OTHER,
        "from another port of a pod's bridge: everything but pods' addresses",
        (
            _rule("", _frame(IP.protocol), _held(IP, "held4"), SPOOFED),
            _rule("", _frame(IP6.protocol), _held(IP6, "held6"), SPOOFED),
            _rule("", _frame(ARP.protocol), _held(ARP, "held4"), SPOOFED),
            _rule("", ADVERTISEMENT, _held(TARGET, "held-targets6"), SPOOFED),
        ),
    ),
    Chain("spoofed", "an address from a port that it is not bound to", (_rule("", COUNTER, DROP),)),
)


# ------------------------------------------------------------------------------------------------------ sets


def _datum(kind: int, value: bytes) -> bytes:
    return bytes((kind, len(value))) + value


def _numbers(*values: int) -> bytes:
    """Attributes 0, 1, … of 32 bits."""
    return b"".join(_datum(kind, struct.pack("=I", value)) for kind, value in enumerate(values))


# Expressions as nft keeps them in the user data of a set (enum expr_types and the udata of nft's src/payload.c,
# src/meta.c and src/expression.c): type 0 says which expression, type 1 holds its parts.
_KEY_TYPEOF: Final = 3
"""NFTNL_UDATA_SET_KEY_TYPEOF"""
_EXPR_META, _EXPR_PAYLOAD, _EXPR_CONCAT = 9, 7, 13
_RAW, _NH_BASE = 0, 2
"""No known protocol; nft's PROTO_BASE_NETWORK_HDR."""
_TARGET: Final = _datum(0, struct.pack("=I", _EXPR_PAYLOAD)) + _datum(
    1, _numbers(_RAW, 0, _NH_BASE, 8 * TARGET.offset, 8 * TARGET.length)
)
"""`@nh,384,128`"""
_PORT: Final = _datum(0, struct.pack("=I", _EXPR_META)) + _datum(1, _numbers(Meta.NFT_META_IIFNAME))
_PORT_AND_TARGET: Final = _datum(0, struct.pack("=I", _EXPR_CONCAT)) + _datum(1, _datum(0, _PORT) + _datum(1, _TARGET))


def _typeof(expression: bytes) -> bytes:
    return _datum(_KEY_TYPEOF, expression)


SETS: Final = (
    SetSpec("ports", SetKind(("ifname",), verdicts=True), "ports of bridges with pods, and whose they are"),
    SetSpec("bound4", SetKind(("ifname", "ipv4_addr")), "what a pod's port may send"),
    SetSpec("held4", SetKind(("ipv4_addr",)), "the same, for rules that ask: is it a pod's"),
    SetSpec("bound6", SetKind(("ifname", "ipv6_addr"))),
    SetSpec("held6", SetKind(("ipv6_addr",))),
    SetSpec("targets6", SetKind(("ifname", "integer128"), typeof=_typeof(_PORT_AND_TARGET)), "what it may advertise"),
    SetSpec("held-targets6", SetKind(("integer128",), typeof=_typeof(_TARGET))),
)
