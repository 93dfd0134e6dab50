"""Padding of our own queries, so that their length does not give their names away (RFC 7830, RFC 8467 section 4.1).

Only for what travels encrypted. Nothing here reads octets of others.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct
from typing import Final

from egressd.wire.query import Question, upstream_query

__all__ = ["padded_query"]

BLOCK: Final = 128
"""Octets; queries are as long as a multiple of it."""
_PADDING: Final = 12
_OPTION: Final = Struct(">HH")
_LENGTH: Final = Struct(">H")


def padded_query(question: Question, ident: int, options: bytes = b"") -> bytes:
    """A fresh query as `upstream_query` makes it, with an OPT record that fills it up to a multiple of 128 octets."""
    query = upstream_query(question, ident, True, options)
    end = len(query) - len(options)  # OPT is the last record, the options its end, their length in front of them
    padding = _padding(-(len(query) + _OPTION.size) % BLOCK)
    return query[: end - _LENGTH.size] + _LENGTH.pack(len(options) + len(padding)) + query[end:] + padding


@lru_cache(BLOCK)
def _padding(length: int) -> bytes:
    return _OPTION.pack(_PADDING, length) + bytes(length)
