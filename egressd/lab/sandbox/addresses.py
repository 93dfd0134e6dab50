"""Which addresses a sandbox takes: a few that nothing on the machine has or reaches. Values only; no socket is here.

Each sandbox has eight IPv4 addresses, and eight of IPv6 where the machine forwards that:

    machine .1 ──uplink── .2 node .5 ──cage── .6 command
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["INTERFACE", "Network", "Side", "candidates", "side"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

INTERFACE: Final = "egressd"
"""How the machine's interfaces to sandboxes begin; the number of the sandbox follows."""

POOLS: Final = ("100.127.53.0/24", "172.31.253.0/24", "10.253.53.0/24", "192.168.253.0/24")
"""Where addresses are looked for: shared space (RFC 6598) first, then corners of the private ranges (RFC 1918)."""
UNIQUE_LOCAL: Final = ipaddress.ip_network("fd65:6772:6573:7364::/64")
"""Where IPv6 addresses come from: a unique local prefix (RFC 4193) of our own."""
PREFIX: Final = 29
"""Eight IPv4 addresses a sandbox: two wires with four each."""


@dataclass(frozen=True, slots=True)
class Side:
    """The addresses of one sandbox in one family."""

    block: Network
    """All of it."""
    cage: Network
    """The half on the command's side of the node."""
    machine: str
    uplink: str
    gateway: str
    """The node as the command sees it, and the resolver that it asks."""
    command: str

    @property
    def anywhere(self) -> str:
        return "0.0.0.0/0" if self.block.version == 4 else "::/0"

    def on_wire(self, address: str) -> str:
        """An address with the length of its wire's prefix."""
        return f"{address}/{self.cage.prefixlen}"


def side(block: Network) -> Side:
    """Share out a block of eight addresses."""
    outer, cage = block.subnets(prefixlen_diff=1)
    return Side(block, cage, str(outer[1]), str(outer[2]), str(cage[1]), str(cage[2]))


def candidates(taken: Iterable[Network]) -> Iterator[tuple[int, Sequence[Side]]]:
    """Numbers of sandboxes with their addresses, IPv4 and IPv6, that overlap with nothing that is `taken`."""
    used = tuple(taken)
    blocks = (block for pool in POOLS for block in ipaddress.ip_network(pool).subnets(new_prefix=PREFIX))
    for number, block in enumerate(blocks):
        six = ipaddress.IPv6Network((int(UNIQUE_LOCAL.network_address) + 8 * number, 125))
        if not any(other.overlaps(mine) for mine in (block, six) for other in used if other.version == mine.version):
            yield number, (side(block), side(six))
