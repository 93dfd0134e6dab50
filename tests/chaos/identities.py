"""Who may go where, in one table: policies, names, loads and the judgement of what arrives are all made from it."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final

from egressd.lab import Contact, pool

__all__ = ["FORGED", "IDENTITIES", "LENT", "LENT_NAME", "NAMES", "NOWHERE", "Identity"]

NAMES: Final = 10
"""Known names of an identity."""
FRESH_POOL: Final = 8192
"""Addresses that fresh names turn through: more than are granted at any one time."""
FORGED: Final = "198.51.100.66"
"""Where lying upstreams lead; nobody may go there."""
LENT_NAME: Final = "lent.example"
LENT: Final = ("203.0.113.200", "2001:db8:e::1")
"""A name that only a rule allows which comes and goes (edits.py), and its addresses."""
NOWHERE: Final = "192.0.2.7"
"""Where denied names lead; nobody may go there."""


@dataclass(frozen=True)
class Identity:
    """Pods under one policy. `number` makes their addresses; `judged` says whether anything is denied to them."""

    name: str
    number: int
    pods: int
    mode: str = "Enforce"
    blocks: tuple[str, ...] = ()
    """CIDR rules, on port 80."""
    extra: str = ""
    """More rules, as written."""

    @property
    def selected(self) -> bool:
        return bool(self.mode)

    @property
    def judged(self) -> bool:
        return self.mode == "Enforce"

    @property
    def names(self) -> list[str]:
        return [f"n{index}.{self.name}.example" for index in range(NAMES)]

    def v4(self, index: int) -> str:
        return f"203.0.113.{NAMES * self.number + index}"

    def v6(self, index: int) -> str:
        return f"2001:db8:{self.number:x}::{index:x}"

    @property
    def fresh(self) -> list[str]:
        return pool(f"2001:db8:f{self.number:x}::/64", FRESH_POOL)

    @property
    def policy(self) -> str:
        blocks = "".join(f"- to: [{block}]\n  ports: [80/TCP]\n" for block in self.blocks)
        return (
            f"subject: {{podSelector: {{matchLabels: {{app: {self.name}}}}}}}\nmode: {self.mode}\nallow:\n"
            f"- to: ['*.{self.name}.example']\n  ports: [80/TCP, 7/TCP]\n{blocks}{self.extra}"
        )

    def sanctions(self, contact: Contact) -> bool:
        """Whether the policy can ever have allowed this contact."""
        if not self.judged:
            return True
        address = ipaddress.ip_address(contact.destination)
        named = address in self._addresses or address in ipaddress.ip_network(f"2001:db8:f{self.number:x}::/64")
        block = any(address in ipaddress.ip_network(block) for block in self.blocks)
        return contact.protocol == "tcp" and ((contact.port in (80, 7) and named) or (contact.port == 80 and block))

    @property
    def _addresses(self) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        both = [*(self.v4(index) for index in range(NAMES)), *(self.v6(index) for index in range(NAMES))]
        return {ipaddress.ip_address(address) for address in both}


IDENTITIES: Final = (
    Identity("web", 1, 3),
    Identity("job", 2, 2, blocks=("198.51.100.0/26",)),
    Identity("watched", 3, 1, mode="Audit"),
    Identity("free", 4, 1, mode=""),
    Identity("flood", 5, 1, extra="- to: ['*.nothing.example']\n"),
)
"""The last one's pod has no load of its own: it is the hostile one. Nothing exists below nothing.example."""
