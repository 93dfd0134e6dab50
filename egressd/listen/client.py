"""Who asked: what the handler of a query gets beside its octets, whatever carried them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from egressd.exchange import Client

__all__ = ["MAX_DRAIN", "Client", "Handler", "pack"]

MAX_DRAIN: Final = 32
"""Datagrams, connections or pipelined queries taken in one wake, so that no socket starves the others."""


Handler = Callable[[list[tuple[bytes, Client]]], None]
"""Called with all the queries that one wake found, each with its octets exactly as received and unread."""


def pack(host: str) -> bytes:
    """Pack an address as the socket module spells it, a link-local one without its zone."""
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
