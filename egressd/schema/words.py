"""The words of a policy: peers and ports, from text to values, each refusal saying what to write instead."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from functools import cache
from typing import Final

from publicsuffixlist import PublicSuffixList

from egressd.errors import InvalidName
from egressd.model import PROTOCOLS, Address, Block, Peer, PortSpan
from egressd.names import MAX_NAME, ROOT, Name, Pattern, parse_name, parse_pattern
from egressd.schema.problem import did_you_mean, shown
from egressd.schema.tree import Odd

__all__ = [
    "read_address",
    "read_block",
    "read_domain",
    "read_peer",
    "read_spans",
    "registrable",
    "registrable_under",
    "spans_strangers",
    "suffix_warning",
]

MAX_PEER: Final = MAX_NAME + len("*.") + len(".")
"""Characters of a peer; longer ones are refused before anything looks at their labels."""
_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")
_NUMERIC: Final = re.compile(r"[0-9.]+\Z")
_NUMERIC_STARS: Final = re.compile(r"[0-9.*]+\Z")
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://(?P<host>[^/:?#]*)", re.IGNORECASE)
_HOST_PORT: Final = re.compile(
    r"(?P<host>[^:\[\]/]+):(?P<port>[0-9]{1,5})\Z|\[(?P<host6>[^\]]+)\]:(?P<port6>[0-9]{1,5})\Z"
)


# ------------------------------------------------------------------------------------------------ peers


def _unscoped(text: str) -> str:
    """Python takes `fe80::1%eth0`; an interface means nothing in a policy."""
    return "" if "%" in text else text


def read_address(text: str) -> Address:
    """An IPv4 or IPv6 address, packed. Raises `ValueError`."""
    try:
        return Address(ipaddress.ip_address(_unscoped(text)).packed)
    except ValueError:
        raise ValueError(f"{shown(text)} is not an IP address; write one such as 192.0.2.1 or 2001:db8::1") from None


def read_block(text: str) -> Block:
    """An address or a CIDR block without host bits. Raises `ValueError`."""
    try:
        network = ipaddress.ip_network(_unscoped(text), strict=False)
    except ValueError:
        raise ValueError(
            f"{shown(text)} is not an IP address or CIDR block; write one such as 192.0.2.0/24 or 2001:db8::/32"
        ) from None
    written, _, length = text.partition("/")
    if length and not length.isdecimal():
        raise ValueError(f"{shown(text)}: write the length of the prefix instead of a mask: {network}")
    if length and ipaddress.ip_address(written) != network.network_address:
        raise ValueError(
            f"{shown(text)} has bits set behind its prefix; write {network}, or {written} for the one address"
        )
    if isinstance(network, ipaddress.IPv6Network) and network.subnet_of(_MAPPED):
        inner = network.network_address.ipv4_mapped
        raise ValueError(f"{shown(text)} is IPv4 written as IPv6; write {inner}/{network.prefixlen - 96}")
    return Block(Address(network.network_address.packed), Address(network.broadcast_address.packed))


def read_peer(text: str) -> Peer:
    """A name, a wildcard pattern, an address or a CIDR block (policy.md, Patterns). Raises `ValueError`."""
    if len(text) > MAX_PEER:
        raise ValueError(f"{shown(text)} has {len(text)} characters; a name has at most {MAX_NAME}")
    if text.strip() != text:
        raise ValueError(f"{shown(text)} has spaces around it; write {text.strip()!r}")
    if found := _URL.match(text):
        raise ValueError(f"{shown(text)} is a URL; write the host's name alone: {shown(found['host'])}")
    if found := _HOST_PORT.match(text):
        host, port = found["host"] or found["host6"], found["port"] or found["port6"]
        raise ValueError(f"{shown(text)} holds a port; write {shown(host)} here and [{port}/TCP] under 'ports'")
    if ":" in text or _NUMERIC.match(text.partition("/")[0]):
        return read_block(text)
    if "/" in text:
        raise ValueError(f"{shown(text)}: a name has no '/'; paths cannot be told apart, write the host's name alone")
    if "*" in text and text not in {"*", "*."} and _NUMERIC_STARS.match(text):
        raise ValueError(f"{shown(text)}: addresses have no wildcard; write a CIDR block such as 192.0.2.0/24")
    pattern = parse_pattern(text)
    if pattern.name.rpartition(".")[2].isdigit():
        raise ValueError(f"{shown(text)} is neither an address nor a name; write a range of addresses as CIDR blocks")
    return pattern


def read_domain(text: str) -> Name:
    """A domain for settings, without wildcard. Raises `InvalidName`."""
    if len(text) > MAX_PEER:
        raise InvalidName(f"{shown(text)} has {len(text)} characters; a name has at most {MAX_NAME}")
    if text.startswith("*."):
        raise InvalidName(f"{shown(text)}: a domain covers everything under it", f"write {text[2:]!r}")
    return parse_name(text)


@cache
def _suffixes() -> PublicSuffixList:
    return PublicSuffixList(accept_unknown=False)


def suffix_warning(pattern: Pattern) -> str:
    """What to say of a wildcard directly under a public suffix (`*.com`, `*.github.io`); empty for all else."""
    if not pattern.wildcard or pattern.name == ROOT or not _suffixes().is_public(pattern.name):
        return ""
    return (
        f"'{pattern}' covers everyone who registers a name under {pattern.name}, a public suffix: "
        "list the names that are meant, if you can"
    )


def registrable(name: str) -> str:
    """The domain that somebody registered and a name lies under: one label more than its public suffix.

    Where the list knows no suffix (`cluster.local`, `example`), the last two labels; of a suffix itself, itself.
    """
    found: str | None = _suffixes().privatesuffix(name)
    return found or ".".join(name.rsplit(".", 2)[-2:])


def registrable_under(parent: str) -> str:
    """What `registrable` says of every name right under `parent`; empty where they may lie under different domains."""
    if "." not in parent or _over_suffix(parent):
        return ""
    found: str | None = _suffixes().privatesuffix(parent)
    if found is None and _suffixes().is_public(parent):  # by a rule with a wildcard
        return ""
    return found or ".".join(parent.rsplit(".", 2)[-2:])


def _over_suffix(domain: str) -> bool:
    """Whether the domain is a public suffix, the stem of one with a wildcard, or above one of these."""
    return domain in _listed() or domain in _above_listed()


def _listed() -> frozenset[str]:
    """Public suffixes as they are in the list, with `*.` and `!`."""
    found: frozenset[str] = _suffixes()._publicsuffix  # noqa: SLF001 - it has no other list
    return found


@cache
def _above_listed() -> frozenset[str]:
    """What the list leads to, and does not have itself: some hundred, where the list has ten thousand."""
    listed, found = _listed(), set()
    for suffix in listed:
        domain = suffix.lstrip("*!.")
        while domain:
            if domain not in listed:
                found.add(domain)
            domain = domain.partition(".")[2]
    return frozenset(found)


def spans_strangers(domain: Name) -> bool:
    """Whether a wildcard under the domain could cover names of several owners.

    So it is for a public suffix, for whatever has one below it, and for a single label, be it in the list or not.
    """
    return "." not in domain or _over_suffix(domain) or bool(_suffixes().is_public(domain))


# ------------------------------------------------------------------------------------------------ ports

_PORTS: Final = re.compile(
    r"(?P<first>[0-9]{1,9})(?:-(?P<last>[0-9]{1,9}))?(?:/(?P<protocol>[A-Za-z0-9]+))?\Z|\*/(?P<every>[A-Za-z0-9]+)\Z"
)
_WITH_PORTS: Final = tuple(name for name in PROTOCOLS if name != "ICMP")
_EXAMPLES: Final = "443/TCP, 8000-8100/UDP, 443 (TCP, UDP and SCTP), */TCP or */ICMP"
_SERVICES: Final = {
    "http": "80/TCP",
    "https": "443/TCP",
    "dns": "53",
    "ssh": "22/TCP",
    "smtp": "25/TCP",
    "ntp": "123/UDP",
}


def read_spans(entry: str | int | Odd) -> tuple[PortSpan, ...]:
    """One entry of `ports`, as one span a protocol. Raises `ValueError`."""
    text = str(entry)
    found = _PORTS.match(text)
    if not found or isinstance(entry, Odd):
        raise ValueError(_no_ports(text))
    if every := found["every"]:
        return tuple(PortSpan(number, number, 0, 65535) for number in _numbers(every, text))
    first = int(found["first"])
    last = int(found["last"] or first)
    for port in (first, last):
        if not 1 <= port <= 65535:
            raise ValueError(f"{shown(text)}: port {port} does not exist; ports are 1 to 65535")
    if last < first:
        raise ValueError(f"{shown(text)}: the range runs backwards; write {last}-{first}")
    protocol = found["protocol"]
    if protocol and protocol.upper().startswith("ICMP"):
        raise ValueError(f"{shown(text)}: ICMP has no ports; write */ICMP")
    names = (protocol,) if protocol else _WITH_PORTS
    return tuple(PortSpan(number, number, first, last) for name in names for number in _numbers(name, text))


def _numbers(protocol: str, text: str) -> Iterable[int]:
    upper = protocol.upper()
    if upper == "ICMPV6":
        raise ValueError(f"{shown(text)}: ICMP means ICMPv6 too; write */ICMP")
    if upper not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise ValueError(f"{shown(text)}: {shown(protocol)} is none of {known}{did_you_mean(upper, PROTOCOLS)}")
    return PROTOCOLS[upper]


def _no_ports(text: str) -> str:
    lower = text.lower()
    if lower in _SERVICES:
        return f"{shown(text)}: ports have no names here; write {_SERVICES[lower]}"
    if lower == "*":
        return "'*': leave 'ports' out for every port of every protocol, or write */TCP"
    if text.upper() in PROTOCOLS:
        return f"{shown(text)}: write */{text.upper()} for every port of it"
    turned = re.match(r"([A-Za-z]+)[/: ]([0-9]+(?:-[0-9]+)?)\Z", text) or re.match(
        r"([0-9]+(?:-[0-9]+)?)[: ]([A-Za-z]+)\Z", text
    )
    if turned:
        protocol, port = sorted(turned.groups(), reverse=True)
        return f"{shown(text)}: write {port}/{protocol.upper()}"
    return f"{shown(text)} is not a port; write {_EXAMPLES}"
