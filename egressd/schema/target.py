"""A destination as people write it: NAME-or-IP[:PORT[/PROTO]], IPv6 with a port in brackets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from egressd.model import PROTOCOLS
from egressd.names import Name, parse_name
from egressd.schema.words import read_address

__all__ = ["Target", "parse_target"]

_TARGET: Final = re.compile(
    r"(?:\[(?P<v6>[^\]]*)\]|(?P<host>[^\[\]:/]*))(?::(?P<port>[0-9]{1,5}|\*))?(?:/(?P<protocol>[A-Za-z0-9]+))?\Z"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A destination as asked for: a name or a packed address, a port (-1: some port) and a protocol number."""

    name: Name | None
    address: bytes
    port: int
    protocol: int
    asked: bool
    """Whether a port or a protocol was given at all."""


def parse_target(text: str) -> Target:
    """Read NAME-or-IP[:PORT[/PROTO]]; IPv6 with a port goes in brackets. Raises `ValueError`, `InvalidName`."""
    if text.count(":") > 1 and not text.startswith("["):
        return Target(None, read_address(text), -1, PROTOCOLS["TCP"][0], asked=False)
    found = _TARGET.match(text)
    if not found or not (found["v6"] or found["host"]):
        raise ValueError(f"{text!r} is no destination; write NAME-or-IP[:PORT[/PROTO]], IPv6 as [2001:db8::1]:443/tcp")
    host = found["v6"] or found["host"]
    port = -1 if found["port"] in {None, "*"} else int(found["port"])
    if port == 0 or port > 65535:
        raise ValueError(f"port {port} does not exist; ports are 1 to 65535")
    asked = port >= 0 or found["protocol"] is not None
    if found["v6"] or re.fullmatch("[0-9.]+", host):
        address = read_address(host)
        return Target(None, address, port, _protocol(found["protocol"], len(address) == 16), asked)
    return Target(parse_name(host), b"", port, _protocol(found["protocol"], six=False), asked)


def _protocol(text: str | None, six: bool) -> int:
    upper = (text or "TCP").upper()
    if upper not in PROTOCOLS:
        raise ValueError(f"protocol {text!r} is none of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[upper][-1 if six else 0]
