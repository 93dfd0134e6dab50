"""Address space cut into cells: within one cell, the same blocks cover every address.

A sweep over the first and last addresses of blocks. IPv4 and IPv6 are two spaces that never meet; packed addresses of
one family compare like the numbers they are, so bytes are the coordinates.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, Generic, TypeVar

from egressd.model import Address, Block

__all__ = ["AddressSpace", "before", "block_size"]

T = TypeVar("T")
FAMILIES: Final = (4, 16)
"""Octets of an IPv4 and of an IPv6 address."""


class AddressSpace(Generic[T]):
    """Values over blocks, found by address with one bisection. Built once."""

    __slots__ = ("_starts", "_values")

    def __init__(self, items: Iterable[tuple[Block, T]]) -> None:
        """`items` may overlap in any way; values over the same block keep their order."""
        blocks: dict[Block, list[T]] = {}
        for block, value in items:
            blocks.setdefault(block, []).append(value)
        self._starts: dict[int, list[bytes]] = {}
        self._values: dict[int, list[tuple[T, ...]]] = {}
        for octets in FAMILIES:
            mine = {block: values for block, values in blocks.items() if len(block.first) == octets}
            self._starts[octets], self._values[octets] = _cut(mine, octets)

    def at(self, address: bytes) -> tuple[T, ...]:
        """What lies over the address, smallest block first."""
        octets = len(address)
        return self._values[octets][bisect_right(self._starts[octets], address) - 1]

    def cells(self, octets: int) -> Iterator[tuple[bytes, tuple[T, ...]]]:
        """First address and values of every cell of one family, ascending; together they are the whole space."""
        return zip(self._starts[octets], self._values[octets], strict=True)


def before(address: bytes) -> bytes:
    """The address one below; not for the lowest."""
    return (int.from_bytes(address) - 1).to_bytes(len(address))


def block_size(block: Block) -> int:
    """Addresses in the block."""
    return int.from_bytes(block.last) - int.from_bytes(block.first) + 1


def _cut(blocks: dict[Block, list[T]], octets: int) -> tuple[list[bytes], list[tuple[T, ...]]]:
    """Starts of the cells and their values. CIDR blocks nest at most 33 (129) deep: so many are active at once."""
    opening: dict[bytes, list[Block]] = {}
    closing: dict[bytes, list[Block]] = {}
    for block in blocks:
        opening.setdefault(block.first, []).append(block)
        if block.last != b"\xff" * octets:
            after = Address((int.from_bytes(block.last) + 1).to_bytes(octets))
            closing.setdefault(after, []).append(block)
    starts: list[bytes] = [bytes(octets)]
    cells: list[tuple[T, ...]] = [()]
    active: dict[Block, int] = {}
    for start in sorted({*opening, *closing}):
        for block in closing.get(start, ()):
            del active[block]
        for block in opening.get(start, ()):
            active[block] = block_size(block)
        inner_first = sorted(active, key=lambda block: (active[block], block)) if len(active) > 1 else active
        values = tuple([value for block in inner_first for value in blocks[block]])
        if start == starts[-1]:
            cells[-1] = values
        elif values != cells[-1]:
            starts.append(start)
            cells.append(values)
    return starts, cells
