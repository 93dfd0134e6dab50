"""Comments: user data that says to people, and after a restart to us, whose an object is.

User data is a list of (type octet, length octet, value). Type 0 is what `nft` prints as the comment (7 for sets) and
reads back, up to 128 octets; it has no way to quote a quotation mark. What does not fit continues under a type of our
own, which nft passes over, up to the 254 octets that the kernel keeps of user data.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "COMMENT",
    "COMMENT_MAX",
    "INSTANCE",
    "NFT_COMMENT_MAX",
    "SET_COMMENT",
    "USER_DATA_MAX",
    "read_comment",
    "read_datum",
    "user_data",
]

COMMENT: Final = 0
"""NFTNL_UDATA_{TABLE,CHAIN,RULE,SET_ELEM}_COMMENT."""
SET_COMMENT: Final = 7
"""NFTNL_UDATA_SET_COMMENT."""
CONTINUED: Final = 200
"""Our own type: the rest of a comment longer than nft reads."""
INSTANCE: Final = 201
"""Our own type, of the set `heartbeat`: which run of the daemon wrote the table."""
NFT_COMMENT_MAX: Final = 128
"""Octets of a comment that nft reads (NFTNL_UDATA_COMMENT_MAXLEN)."""
USER_DATA_MAX: Final = 254
"""Octets of user data an element keeps; 256 are dropped without a word."""
REST_MAX: Final = USER_DATA_MAX - (2 + NFT_COMMENT_MAX + 1) - 2
COMMENT_MAX: Final = NFT_COMMENT_MAX + REST_MAX
"""Octets of the longest comment; one of this length may have been cut."""

_FORBIDDEN: Final = {**dict.fromkeys([*range(32), 127], " "), ord('"'): "'"}


def user_data(kind: int, text: str) -> bytes:
    """User data that holds a comment; nothing for an empty one. Text past 249 octets is cut at a character."""
    if not text:
        return b""
    if '"' in text or not text.isprintable():
        text = text.translate(_FORBIDDEN)
    octets = text.encode(errors="replace")
    head = _cut(octets, NFT_COMMENT_MAX)
    data = bytes((kind, len(head) + 1)) + head + b"\0"
    rest = _cut(octets[len(head) :], REST_MAX)
    return data + bytes((CONTINUED, len(rest))) + rest if rest else data


def _cut(octets: bytes, limit: int) -> bytes:
    """At most `limit` octets, and no half of a character."""
    if len(octets) <= limit:
        return octets
    while octets[limit] & 0xC0 == 0x80:
        limit -= 1
    return octets[:limit]


def read_comment(data: bytes, kind: int = COMMENT) -> str:
    """The comment in user data, continued part included; empty if there is none."""
    parts = _parts(data)
    head = parts.get(kind, b"").rstrip(b"\0")
    return (head + parts.get(CONTINUED, b"")).decode(errors="replace")


def read_datum(data: bytes, kind: int) -> bytes:
    """The octets of one type in user data; empty if there are none."""
    return _parts(data).get(kind, b"")


def _parts(data: bytes) -> dict[int, bytes]:
    parts = {}
    offset = 0
    while offset + 2 <= len(data):
        size = data[offset + 1]
        parts[data[offset]] = data[offset + 2 : offset + 2 + size]
        offset += 2 + size
    return parts
