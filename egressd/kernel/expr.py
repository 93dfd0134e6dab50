"""nf_tables expressions as bytes: the words that template.py writes rules with.

Each function gives the packed expressions for one phrase of nft's language, named after it, so that a rule is the sum
of its phrases. Registers: 32-bit registers from number 8 on; a key starts there, a field of a concatenation takes
whole registers. Whatever reads an IP header is guarded by the packet's family first, as the table is of family inet.
Layouts follow include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from pyroute2.netlink.nfnetlink.nftsocket import NFPROTO_IPV4, NFPROTO_IPV6, Cmp, Meta

from egressd.kernel.netlink import NESTED, be32, be64, blob, nested, string

__all__ = [
    "ACCEPT",
    "ADDRESS_LOCAL",
    "COUNTER",
    "DADDR",
    "DADDR_SADDR",
    "DROP",
    "ELSEWHERE",
    "ENDPOINT",
    "ESTABLISHED",
    "IPV4",
    "IPV6",
    "LINK_DISCOVERY",
    "LOOPBACK",
    "NOTRACK",
    "NOT_ONLY_SYN",
    "NOT_TCP",
    "ONLY_SYN",
    "ON_LINK",
    "ORIGINAL",
    "REJECT",
    "RESET",
    "RETURN",
    "SADDR",
    "SADDR_DADDR",
    "SEEN_ENDPOINT",
    "SEEN_PROTOCOL",
    "TCP",
    "UDP",
    "Family",
    "add_to",
    "any_dport",
    "compare",
    "destination_prefix",
    "dport",
    "family_in",
    "goto",
    "interface",
    "jump",
    "limit",
    "log",
    "lookup",
    "mark_has",
    "mark_set",
    "masked",
    "matches",
    "meta",
    "over_rate",
    "payload",
    "protocol_in",
    "protocol_is",
    "tproxy",
    "verdict_data",
    "vmap",
]

REGISTER: Final = 8
"""NFT_REG32_00; 16 of them."""
NF_DROP, NF_ACCEPT, NFT_JUMP, NFT_GOTO, NFT_RETURN = 0, 1, -3, -4, -5
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
TCP_NUMBER, UDP_NUMBER, ICMPV6_NUMBER = 6, 17, 58
LOOKUP_INVERTED: Final = 1
CT_STATE, CT_DIRECTION = 0, 1
FIB_SADDR, FIB_DADDR, FIB_IIF, FIB_PRESENT = 1, 2, 8, 32
FIB_RESULT_OIF, FIB_RESULT_ADDRTYPE = 1, 3
RTN_LOCAL: Final = 2
REJECT_ICMPX, REJECT_TCP_RESET = 2, 1
ICMPX_ADMIN_PROHIBITED: Final = 3
LIMIT_OVER: Final = 1
"""NFT_LIMIT_F_INV"""
LOG_BYTES: Final = 128
"""Octets of a packet that a log event carries: IPv6 header, extension headers and ports."""


@dataclass(frozen=True, slots=True)
class Family:
    """IPv4 or IPv6, as rules need it."""

    number: int
    """Suffix of set names: 4 or 6."""
    protocol: int
    """NFPROTO_IPV4 or NFPROTO_IPV6."""
    length: int
    """Octets of an address."""
    source: int
    """Offset of the source address in the IP header; the destination address follows it."""
    address_type: str
    """nft's name for addresses of this family."""

    @property
    def destination(self) -> int:
        return self.source + self.length


IPV4: Final = Family(4, NFPROTO_IPV4, 4, 12, "ipv4_addr")
IPV6: Final = Family(6, NFPROTO_IPV6, 16, 8, "ipv6_addr")


# ------------------------------------------------------------------------------------------- building blocks


def expression(name: str, *parts: bytes) -> bytes:
    return nested(1, string(1, name), nested(2, *parts))


def _value(kind: int, value: bytes) -> bytes:
    return nested(kind, blob(1, value))


def compare(value: bytes, operator: Cmp = Cmp.NFT_CMP_EQ, register: int = REGISTER) -> bytes:
    return expression("cmp", be32(1, register), be32(2, operator), _value(3, value))


def meta(key: Meta, register: int = REGISTER) -> bytes:
    return expression("meta", be32(1, register), be32(2, key))


def payload(base: int, offset: int, length: int, register: int = REGISTER) -> bytes:
    return expression("payload", be32(1, register), be32(2, base), be32(3, offset), be32(4, length))


def masked(mask: bytes, flip: bytes) -> bytes:
    """register = (register & mask) ^ flip"""
    return expression(
        "bitwise", be32(1, REGISTER), be32(2, REGISTER), be32(3, len(mask)), _value(4, mask), _value(5, flip)
    )


def lookup(name: str, *extra: bytes) -> bytes:
    return expression("lookup", string(1, name), be32(2, REGISTER), *extra)


def _family(family: Family) -> bytes:
    return meta(Meta.NFT_META_NFPROTO) + compare(bytes((family.protocol,)))


def _protocol(number: int) -> bytes:
    return meta(Meta.NFT_META_L4PROTO) + compare(bytes((number,)))


def _host32(value: int) -> bytes:
    """A 32-bit value in the machine's own byte order, as marks, conntrack states and address types are."""
    return struct.pack("=I", value)


# ---------------------------------------------------------------------------------------------------- keys

Key = tuple[str, ...]
SADDR: Final[Key] = ("saddr",)
DADDR: Final[Key] = ("daddr",)
SADDR_DADDR: Final[Key] = ("saddr", "daddr")
DADDR_SADDR: Final[Key] = ("daddr", "saddr")
ENDPOINT: Final[Key] = ("daddr", "l4proto", "dport")
SEEN_ENDPOINT: Final[Key] = ("saddr", "daddr", "l4proto", "dport")
SEEN_PROTOCOL: Final[Key] = ("saddr", "daddr", "l4proto")


def _load(family: Family, key: Key) -> bytes:
    """`ip daddr . meta l4proto . th dport`: the fields of a key into registers, behind the guard of the family."""
    parts = [_family(family)]
    register = REGISTER
    for part in key:
        if part == "saddr":
            parts.append(payload(NETWORK_HEADER, family.source, family.length, register))
        elif part == "daddr":
            parts.append(payload(NETWORK_HEADER, family.destination, family.length, register))
        elif part == "l4proto":
            parts.append(meta(Meta.NFT_META_L4PROTO, register))
        else:
            parts.append(payload(TRANSPORT_HEADER, 2, 2, register))
        register += family.length // 4 if part in ("saddr", "daddr") else 1
    return b"".join(parts)


def matches(family: Family, key: Key, name: str, *, negated: bool = False) -> bytes:
    """`ip daddr @cluster4`, or `ip daddr != @resolvers4`."""
    return _load(family, key) + lookup(name, *([be32(5, LOOKUP_INVERTED)] if negated else []))


def vmap(family: Family, key: Key, name: str) -> bytes:
    """`ip saddr vmap @pods4`: the verdict that the map holds for the key, if it holds one."""
    return _load(family, key) + lookup(name, be32(3, 0))


def add_to(family: Family, key: Key, name: str) -> bytes:
    """`add @seen4 { … }`; the rule ends here if the set is full, so no verdict may stand behind it."""
    return _load(family, key) + expression("dynset", string(1, name), be32(3, 0), be32(4, REGISTER))


def family_in(name: str, *, negated: bool = False) -> bytes:
    """`meta nfproto @heartbeat`"""
    return meta(Meta.NFT_META_NFPROTO) + lookup(name, *([be32(5, LOOKUP_INVERTED)] if negated else []))


def protocol_in(name: str, *, negated: bool = False) -> bytes:
    """`meta l4proto @ported`"""
    return meta(Meta.NFT_META_L4PROTO) + lookup(name, *([be32(5, LOOKUP_INVERTED)] if negated else []))


# ------------------------------------------------------------------------------------------------- matches


def destination_prefix(family: Family, prefix: bytes) -> bytes:
    """`ip daddr 224.0.0.0/24`: the first whole octets of the destination."""
    return _family(family) + payload(NETWORK_HEADER, family.destination, len(prefix)) + compare(prefix)


def interface(pattern: str) -> bytes:
    """`iifname "eni*"`: a name, or how names begin."""
    if pattern.endswith("*"):
        return meta(Meta.NFT_META_IIFNAME) + compare(pattern[:-1].encode())
    return meta(Meta.NFT_META_IIFNAME) + compare(pattern.encode().ljust(16, b"\0"))


def dport(protocol: int, port: int) -> bytes:
    """`udp dport 53`"""
    return _protocol(protocol) + payload(TRANSPORT_HEADER, 2, 2) + compare(port.to_bytes(2, "big"))


def any_dport(port: int) -> bytes:
    """`th dport 53`, whatever has a port there: two steps for a packet that has another."""
    return payload(TRANSPORT_HEADER, 2, 2) + compare(port.to_bytes(2, "big"))


def protocol_is(number: int) -> bytes:
    """`meta l4proto tcp`"""
    return _protocol(number)


def mark_has(bits: int) -> bytes:
    """`meta mark & BITS == BITS`"""
    return meta(Meta.NFT_META_MARK) + masked(_host32(bits), _host32(0)) + compare(_host32(bits))


LOOPBACK: Final = meta(Meta.NFT_META_IIF) + compare(_host32(1))
"""`iif "lo"`: index 1 in each network namespace (LOOPBACK_IFINDEX of include/net/flow.h)."""
TCP: Final = TCP_NUMBER
UDP: Final = UDP_NUMBER
NOT_TCP: Final = meta(Meta.NFT_META_L4PROTO) + compare(bytes((TCP_NUMBER,)), Cmp.NFT_CMP_NEQ)
"""`meta l4proto != tcp`"""
_OPENING_FLAGS: Final = _protocol(TCP_NUMBER) + payload(TRANSPORT_HEADER, 13, 1) + masked(b"\x17", b"\0")
ONLY_SYN: Final = _OPENING_FLAGS + compare(b"\x02")
"""`tcp flags syn / fin,syn,rst,ack`"""
NOT_ONLY_SYN: Final = _OPENING_FLAGS + compare(b"\x02", Cmp.NFT_CMP_NEQ)
"""`tcp flags != syn / fin,syn,rst,ack`"""
ESTABLISHED: Final = (
    expression("ct", be32(1, REGISTER), be32(2, CT_STATE))
    + masked(_host32(2 | 4), _host32(0))
    + compare(_host32(0), Cmp.NFT_CMP_NEQ)
)
"""`ct state established,related`"""
ORIGINAL: Final = expression("ct", be32(1, REGISTER), be32(2, CT_DIRECTION)) + compare(b"\0")
"""`ct direction original`"""
ELSEWHERE: Final = expression(
    "fib", be32(1, REGISTER), be32(2, FIB_RESULT_OIF), be32(3, FIB_SADDR | FIB_IIF | FIB_PRESENT)
) + compare(b"\0\0\0\0")
"""`fib saddr . iif oif missing`: the way back to the source does not lead through the interface it came from."""
ON_LINK: Final = expression(
    "fib", be32(1, REGISTER), be32(2, FIB_RESULT_OIF), be32(3, FIB_DADDR | FIB_IIF | FIB_PRESENT)
) + compare(b"\x01\0\0\0")
"""`fib daddr . iif oif exists`: the destination is reached through the interface the packet came from."""
ADDRESS_LOCAL: Final = expression("fib", be32(1, REGISTER), be32(2, FIB_RESULT_ADDRTYPE), be32(3, FIB_DADDR)) + compare(
    _host32(RTN_LOCAL)
)
"""`fib daddr type local`: the destination is an address of this node."""
LINK_DISCOVERY: Final = (
    _family(IPV6)
    + _protocol(ICMPV6_NUMBER)
    + payload(TRANSPORT_HEADER, 0, 1)
    + expression("range", be32(1, REGISTER), be32(2, 0), _value(3, b"\x85"), _value(4, b"\x89"))
)
"""`icmpv6 type nd-router-solicit-nd-redirect`: neighbour and router discovery (133 to 137, RFC 4861 section 4)."""


# ---------------------------------------------------------------------------------------------- statements


def verdict_data(kind: int, code: int, chain: str = "") -> bytes:
    """A verdict as a value: of a rule, or of an element of a verdict map."""
    return nested(kind, nested(2, be32(1, code & 0xFFFFFFFF), *([string(2, chain)] if chain else [])))


def _verdict(code: int, chain: str = "") -> bytes:
    return expression("immediate", be32(1, 0), verdict_data(2, code, chain))


def goto(chain: str) -> bytes:
    return _verdict(NFT_GOTO, chain)


def jump(chain: str) -> bytes:
    return _verdict(NFT_JUMP, chain)


ACCEPT: Final = _verdict(NF_ACCEPT)
DROP: Final = _verdict(NF_DROP)
RETURN: Final = _verdict(NFT_RETURN)
COUNTER: Final = expression("counter", be64(1, 0), be64(2, 0))
NOTRACK: Final = expression("notrack")
RESET: Final = expression("reject", be32(1, REJECT_TCP_RESET), blob(2, b"\0"))
"""`reject with tcp reset`"""
REJECT: Final = expression("reject", be32(1, REJECT_ICMPX), blob(2, bytes((ICMPX_ADMIN_PROHIBITED,))))
"""`reject with icmpx admin-prohibited`"""


def mark_set(bits: int) -> bytes:
    """`meta mark set meta mark | BITS`"""
    combine = meta(Meta.NFT_META_MARK) + masked(_host32(~bits & 0xFFFFFFFF), _host32(bits))
    return combine + expression("meta", be32(2, Meta.NFT_META_MARK), be32(3, REGISTER))


def tproxy(family: Family, port: int) -> bytes:
    """`tproxy ip to ip daddr:53`: to a transparent socket there; the rule ends here if there is none."""
    behind = REGISTER + family.length // 4
    return (
        _family(family)
        + payload(NETWORK_HEADER, family.destination, family.length)
        + expression("immediate", be32(1, behind), _value(2, port.to_bytes(2, "big")))
        + expression("tproxy", be32(1, family.protocol), be32(2, REGISTER), be32(3, behind))
    )


def limit(rate: int, burst: int) -> bytes:
    """`limit rate RATE/second burst BURST packets`"""
    return expression("limit", be64(1, rate), be64(2, 1), be32(3, burst), be32(4, 0), be32(5, 0))


def over_rate(family: Family, key: Key, name: str, rate: int, burst: int) -> bytes:
    """`add @pace4 { ip saddr limit rate over RATE/second burst BURST packets }`: goes on once a key is past its rate.

    Where the set is full the rule ends here, as below the rate. The limit is the element's own (nft_dynset.c).
    """
    bound = expression("limit", be64(1, rate), be64(2, 1), be32(3, burst), be32(4, 0), be32(5, LIMIT_OVER))
    state = blob(7 | NESTED, bound[4:])
    return _load(family, key) + expression("dynset", string(1, name), be32(3, 0), be32(4, REGISTER), state)


def log(prefix: str, group: int) -> bytes:
    """`log prefix "denied" group 1986`: an NFLOG event. Group and threshold are 16 bits wide."""
    return expression(
        "log",
        blob(1, group.to_bytes(2, "big")),
        string(2, prefix),
        be32(3, LOG_BYTES),
        blob(4, (1).to_bytes(2, "big")),
    )
