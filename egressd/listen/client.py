"""Who asked: what the handler of a query gets beside its octets, whatever carried them; and how answers leave."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, Protocol

from egressd.exchange import Client

__all__ = ["MAX_DRAIN", "Client", "Handler", "Outbox", "Sender", "pack"]

MAX_DRAIN: Final = 32
"""Datagrams, connections or pipelined queries taken in one wake, so that no socket starves the others."""


Handler = Callable[[list[tuple[bytes, Client]]], None]
"""Called with all the queries that one wake found, each with its octets exactly as received and unread."""


class Sender(Protocol):
    """Whoever holds answers that were posted: a UDP socket, a TCP connection."""

    def flush(self) -> None:
        """Send them."""


class Outbox:
    """Who holds answers that were posted and not sent: those of one batch leave together, when the batch is done."""

    __slots__ = ("waiting",)

    def __init__(self) -> None:
        self.waiting: list[Sender] = []
        """Each once; senders add themselves."""

    def flush(self) -> None:
        """Send all that was posted."""
        if self.waiting:
            waiting, self.waiting = self.waiting, []
            for sender in waiting:
                sender.flush()


def pack(host: str) -> bytes:
    """Pack an address as the socket module spells it, a link-local one without its zone."""
    if ":" not in host:
        return socket.inet_pton(socket.AF_INET, host)
    return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
