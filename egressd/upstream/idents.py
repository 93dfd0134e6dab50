"""Unpredictable numbers for queries, from the kernel's generator, bought by the block."""

from __future__ import annotations

import os
from struct import Struct
from typing import Final

__all__ = ["Idents"]

_ONE: Final = Struct(">HB")
"""A 16-bit ID (RFC 1035 section 4.1.1) and an octet that picks the socket."""
_BLOCK: Final = 1024
"""Pairs per call of os.urandom: the system call costs about as much as twenty pairs."""


class Idents:
    """An endless supply of pairs: a random ID and a random octet."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = _ONE.iter_unpack(b"")

    def take(self) -> tuple[int, int]:
        """The next pair: ID (0 to 65535), octet (0 to 255)."""
        for pair in self._left:
            return pair
        self._left = _ONE.iter_unpack(os.urandom(_BLOCK * _ONE.size))
        return self.take()
