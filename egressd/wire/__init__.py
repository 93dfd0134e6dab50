"""DNS messages: bytes in, values out (RFC 1035). The front door; nothing behind it does I/O, logs or knows a clock.

`read_query` and `read_answer` promise that any bytes give a value or `WireError` and take time linear in their
length; whoever reaches past them parses untrusted bytes without that promise.
"""

from __future__ import annotations

from egressd.wire.answer import Answer, read_answer
from egressd.wire.padding import padded_query
from egressd.wire.query import Question, loop_option, read_query, upstream_query
from egressd.wire.reply import denial, header_error, reply
from egressd.wire.tables import (
    MAX_HOPS,
    MAX_QUERY,
    MAX_RECORDS,
    RCODES,
    TYPES,
    UDP_SIZE,
    rcode_text,
    type_text,
)

__all__ = [
    "MAX_HOPS",
    "MAX_QUERY",
    "MAX_RECORDS",
    "RCODES",
    "TYPES",
    "UDP_SIZE",
    "Answer",
    "Question",
    "denial",
    "header_error",
    "loop_option",
    "padded_query",
    "rcode_text",
    "read_answer",
    "read_query",
    "reply",
    "type_text",
    "upstream_query",
]
