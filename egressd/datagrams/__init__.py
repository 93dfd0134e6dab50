"""Datagrams by the batch: one system call for all that has come, and one for all that is to go.

A datagram is its octets and the *name* of the socket at the other end, as the kernel writes it (struct sockaddr_in or
sockaddr_in6, with a scope where there is one), so that it can be handed back as it came; empty on a connected socket.
`_batch.c` does it, where a compiler has built it; else `plain` does the same in Python. This file knows neither DNS nor
who asks. It says what a name holds, too.
"""

from __future__ import annotations

import socket
import sys
from typing import Final

from egressd.datagrams import plain

try:
    from egressd.datagrams._batch import receive, send
except ImportError:  # not built: no compiler, or a checkout
    receive, send = plain.receive, plain.send

__all__ = ["MOST", "address_of", "name_of", "port_of", "receive", "send"]

MOST: Final = 64
"""Datagrams that one call receives at most; each of at most 4,352 octets."""


def address_of(name: bytes) -> bytes:
    """The packed address that a name holds."""
    return name[4:8] if len(name) == 16 else name[8:24]


def port_of(name: bytes) -> int:
    """The port that a name holds."""
    return name[2] << 8 | name[3]


def name_of(address: bytes, port: int) -> bytes:
    """The name of the socket at this packed address and port."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    head = int(family).to_bytes(2, sys.byteorder) + port.to_bytes(2, "big")
    return head + address + bytes(8) if len(address) == 4 else head + bytes(4) + address + bytes(4)
