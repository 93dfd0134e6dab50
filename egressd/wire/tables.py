"""The numbers of DNS that egressd names: record types, response codes, header and record heads, budgets.

Every untrusted loop has its budget here. Nothing in this file reads bytes. Names are those of the IANA registry
"DNS Parameters"; what has no name is spelled as RFC 3597 section 5 does it.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

__all__ = [
    "AAAA",
    "AD",
    "ANY",
    "BADVERS",
    "CD",
    "CNAME",
    "DO",
    "EXTRA_TEXT",
    "FORMERR",
    "HEADER",
    "HTTPS",
    "IN",
    "MAX_HOPS",
    "MAX_MESSAGE",
    "MAX_QUERY",
    "MAX_RECORDS",
    "MAX_WIRE_NAME",
    "NAME_AT",
    "NOTIMP",
    "OPCODE",
    "OPT",
    "QR",
    "RA",
    "RCODE",
    "RCODES",
    "RD",
    "RECORD",
    "RECORD_HEAD",
    "SERVFAIL",
    "SOA",
    "SVCB",
    "TC",
    "TYPES",
    "UDP_SIZE",
    "A",
    "rcode_text",
    "type_text",
]

MAX_QUERY: Final = 4096
"""Octets in a query: a name, a type and an OPT record fit in 600; the rest is room for options we do not know."""
MAX_MESSAGE: Final = 65_535
"""Octets in any message: what the two-octet length of TCP can say (RFC 1035 section 4.2.2)."""
MAX_HOPS: Final = 16
"""Compression pointers in one name, and CNAME records in one chain."""
MAX_RECORDS: Final = 512
"""Records in one answer: 120 addresses with their signatures and a full additional section are under half of it."""
MAX_WIRE_NAME: Final = 255
"""Octets of a name on the wire, lengths and root included (RFC 1035 section 2.3.4)."""
UDP_SIZE: Final = 1232
"""Octets we offer to take over UDP: what passes every path unfragmented (1280 of IPv6, less 48 of IP and UDP)."""
EXTRA_TEXT: Final = 200
"""Octets of EXTRA-TEXT: with the longest question and OPT the answer still fits the classic 512 octets."""

FORMERR: Final = 1
SERVFAIL: Final = 2
NOTIMP: Final = 4
BADVERS: Final = 16

HEADER: Final = Struct(">HHHHHH")
"""ID, flags, and the counts of question, answer, authority, additional (RFC 1035 section 4.1.1)."""
NAME_AT: Final = 12
"""Offset of the question's name, the first of a message: a pointer to before it leads to no name."""
QR: Final = 0x8000
OPCODE: Final = 0x7800
TC: Final = 0x0200
RD: Final = 0x0100
RA: Final = 0x0080
AD: Final = 0x0020
CD: Final = 0x0010
RCODE: Final = 0x000F
DO: Final = 0x8000
"""In the lower half of OPT's TTL field (RFC 6891 section 6.1.4); the other flags are the header's."""

RECORD: Final = Struct(">2xHHIH")
"""Type, class, TTL and length of a record, from two octets before them: there a compressed owner has its pointer."""
RECORD_HEAD: Final = Struct(">HHIH")
"""The same without the two octets, to write one."""

IN: Final = 1
A: Final = 1
CNAME: Final = 5
SOA: Final = 6
AAAA: Final = 28
OPT: Final = 41
SVCB: Final = 64
HTTPS: Final = 65
ANY: Final = 255
"""QTYPE and QCLASS `*` (RFC 1035 sections 3.2.3 and 3.2.5)."""

TYPES: Final[dict[int, str]] = {
    1: "A",
    2: "NS",
    5: "CNAME",
    6: "SOA",
    10: "NULL",
    11: "WKS",
    12: "PTR",
    13: "HINFO",
    15: "MX",
    16: "TXT",
    17: "RP",
    18: "AFSDB",
    24: "SIG",
    25: "KEY",
    28: "AAAA",
    29: "LOC",
    33: "SRV",
    35: "NAPTR",
    36: "KX",
    37: "CERT",
    39: "DNAME",
    41: "OPT",
    42: "APL",
    43: "DS",
    44: "SSHFP",
    45: "IPSECKEY",
    46: "RRSIG",
    47: "NSEC",
    48: "DNSKEY",
    49: "DHCID",
    50: "NSEC3",
    51: "NSEC3PARAM",
    52: "TLSA",
    53: "SMIMEA",
    55: "HIP",
    59: "CDS",
    60: "CDNSKEY",
    61: "OPENPGPKEY",
    62: "CSYNC",
    63: "ZONEMD",
    64: "SVCB",
    65: "HTTPS",
    99: "SPF",
    108: "EUI48",
    109: "EUI64",
    249: "TKEY",
    250: "TSIG",
    251: "IXFR",
    252: "AXFR",
    255: "ANY",
    256: "URI",
    257: "CAA",
}
"""Record types by number."""

RCODES: Final[dict[int, str]] = {
    0: "NOERROR",
    1: "FORMERR",
    2: "SERVFAIL",
    3: "NXDOMAIN",
    4: "NOTIMP",
    5: "REFUSED",
    6: "YXDOMAIN",
    7: "YXRRSET",
    8: "NXRRSET",
    9: "NOTAUTH",
    10: "NOTZONE",
    11: "DSOTYPENI",
    16: "BADVERS",
    17: "BADKEY",
    18: "BADTIME",
    19: "BADMODE",
    20: "BADNAME",
    21: "BADALG",
    22: "BADTRUNC",
    23: "BADCOOKIE",
}
"""Response codes by number, those that need an OPT record (16 and up) included."""


def type_text(qtype: int) -> str:
    """Spell a record type: 28 gives `AAAA`, 65280 gives `TYPE65280` (RFC 3597 section 5)."""
    return TYPES.get(qtype) or f"TYPE{qtype}"


def rcode_text(rcode: int) -> str:
    """Spell a response code: 3 gives `NXDOMAIN`, 3841 gives `RCODE3841`."""
    return RCODES.get(rcode) or f"RCODE{rcode}"
