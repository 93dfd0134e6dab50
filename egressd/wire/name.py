"""Names as packets carry them: everything that follows a label or a compression pointer is in this file.

A *wire name* here is uncompressed and in lower case, root octet included, so that two are equal exactly when the
names are (RFC 4343). Length octets are at most 63 and `A` is 65: lowering the whole of a wire name touches only
letters. Canonical text is made only where a name leaves `wire`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from egressd.errors import WireError
from egressd.names import ROOT, Name, label_text
from egressd.wire.tables import MAX_HOPS, MAX_WIRE_NAME, NAME_AT

__all__ = ["name_text", "read_cased_name", "read_name", "spell"]

_PLAIN: Final = b"abcdefghijklmnopqrstuvwxyz0123456789-_."
_KINDS: Final = bytes(97 if octet in _PLAIN else 0 for octet in range(256))
"""Translates what needs no escape to a letter, and all else to none."""
_TEXTS: Final = 4096
"""Names whose text is remembered: 1 MB for ordinary names, 6 MB were every one full of escapes."""


def read_cased_name(data: bytes, at: int) -> tuple[bytes, int]:
    """Read the name at offset `at`: its uncompressed wire form as spelled, and the offset behind it.

    Every pointer must lead to before the labels it was found behind, so each name ends; at most `MAX_HOPS` pointers,
    at most 255 octets (RFC 1035 sections 2.3.4 and 4.1.4). Raises `WireError`; `IndexError` where the data end first.
    """
    head, end, hops = b"", 0, 0
    start, last = at, at + MAX_WIRE_NAME - 1
    while length := data[at]:
        if length < 64:
            at += length + 1
            if at > last:
                raise WireError("a name is longer than 255 octets")
            continue
        if length < 192:
            raise WireError(f"a label has the reserved type {length >> 6:02b}")
        target = (length & 63) << 8 | data[at + 1]
        if not NAME_AT <= target < start:
            raise WireError("a compression pointer does not lead backwards")
        hops += 1
        if hops > MAX_HOPS:
            raise WireError(f"a name has more than {MAX_HOPS} compression pointers")
        head += data[start:at]
        end = end or at + 2
        start = at = target
        last = target + MAX_WIRE_NAME - 1 - len(head)
    return head + data[start : at + 1], end or at + 1


def read_name(data: bytes, at: int) -> tuple[bytes, int]:
    """Read the name at offset `at` like `read_cased_name`, in lower case: ready to be compared."""
    name, end = read_cased_name(data, at)
    return name.lower(), end


def spell(wire: bytes) -> Name:
    """Spell a wire name canonically. Never fails: `wire` came from `read_name`."""
    labels = []
    at = 0
    while length := wire[at]:
        at += 1
        labels.append(wire[at : at + length])
        at += length
    if not labels:
        return ROOT
    text = b".".join(labels)
    if text.translate(_KINDS).isalpha() and text.count(b".") == len(labels) - 1:  # so no label holds a dot
        return Name(text.decode("ascii"))
    return Name(".".join(map(label_text, labels)))


@lru_cache(maxsize=_TEXTS)
def name_text(wire: bytes) -> Name:
    """The same, remembered: for names that many answers have in common, those behind a CNAME."""
    return spell(wire)
