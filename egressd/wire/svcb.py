"""The address hints of SVCB and HTTPS records (RFC 9460): read them, or take some out.

Parameters are walked once and in ascending order, so the work is bounded by the length of the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final

from egressd.errors import WireError
from egressd.wire.name import read_cased_name

__all__ = ["read_hints", "shrink_hints"]

_PARAMETER: Final = Struct(">HH")
_MANDATORY: Final = 0
_WIDTHS: Final = {4: 4, 6: 16}
"""Octets of one address in `ipv4hint` and `ipv6hint` (RFC 9460 section 7.3)."""


def _parameters(data: bytes, at: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Key and value of each parameter. Raises `WireError` where keys do not ascend or the record is overrun."""
    last = -1
    while at < end:
        if at + 4 > end:
            raise WireError("a service parameter is cut off")
        key, length = _PARAMETER.unpack_from(data, at)
        at += 4 + length
        if at > end:
            raise WireError("a service parameter is longer than its record")
        if key <= last:
            raise WireError("service parameters are not in ascending order")
        last = key
        width = _WIDTHS.get(key)
        if width and (not length or length % width):
            raise WireError(f"an address hint of {length} octets")
        yield key, data[at - length : at]


def _target(data: bytes, at: int, end: int) -> tuple[bytes, int]:
    """The target name, which follows the priority, and the offset behind it."""
    name, after = read_cased_name(data, at + 2)
    if after > end:
        raise WireError("a service record is shorter than its target name")
    return name, after


def _split(value: bytes, width: int) -> list[bytes]:
    return [value[i : i + width] for i in range(0, len(value), width)]


def read_hints(data: bytes, at: int, end: int) -> list[bytes]:
    """The addresses that the record data `data[at:end]` hints at; none in AliasMode (section 2.4.2).

    Raises `WireError` for what a client must refuse too (section 2.2).
    """
    parameters = list(_parameters(data, _target(data, at, end)[1], end))
    if data[at : at + 2] == b"\0\0":
        return []
    return [hint for key, value in parameters if key in _WIDTHS for hint in _split(value, _WIDTHS[key])]


def shrink_hints(data: bytes, at: int, end: int, withheld: frozenset[bytes]) -> bytes:
    """The record data without the withheld addresses: target decompressed, emptied hints no longer mandatory."""
    name, after = _target(data, at, end)
    kept: dict[int, bytes] = {}
    for key, value in _parameters(data, after, end):
        if key not in _WIDTHS:
            kept[key] = value
        elif hints := [hint for hint in _split(value, _WIDTHS[key]) if hint not in withheld]:
            kept[key] = b"".join(hints)
    if _MANDATORY in kept:
        mandatory = _split(kept.pop(_MANDATORY), 2)
        still = b"".join(key for key in mandatory if int.from_bytes(key) in kept)
        kept = {_MANDATORY: still, **kept} if still else kept
    return data[at : at + 2] + name + b"".join(_PARAMETER.pack(key, len(value)) + value for key, value in kept.items())
