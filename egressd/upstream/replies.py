"""Replies that cannot be read: a bad answer of the upstream's, or somebody's forgery?"""

from __future__ import annotations

from egressd.wire import Question

__all__ = ["bare_error_of", "repeats"]


def bare_error_of(data: bytes) -> int:
    """The rcode of a response that is an error and a header, nothing more; 0 for anything else.

    Servers that could not read a question say so (RFC 1035 section 4.1.1), and cannot repeat it.
    """
    is_response = len(data) == 12 and data[2] & 0xF8 == 0x80
    return data[3] & 15 if is_response and not any(data[4:]) else 0


def repeats(data: bytes, question: Question) -> bool:
    """Whether this is a response that carries our question, whatever comes behind it."""
    if len(data) < 12 or data[2] & 0xF8 != 0x80 or data[4:6] != b"\0\1":
        return False
    asked = question.key[: len(question.raw)]
    said = data[12 : 12 + len(asked)]
    return said[:-4].lower() + said[-4:] == asked
