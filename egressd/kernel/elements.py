"""Set elements as bytes; the hot path of the kernel package: a grant is on the way of every answer.

Three ways to write an element, each safe whatever the set holds (kernel.md, Refreshing: what the kernel does with an
element that is added again differs by version):
- *fresh*: add with NLM_F_EXCL; a twin refuses the batch with EEXIST, and the caller writes it again as
- *renewed*: add, delete, add in one batch: never fails, and no packet misses the element;
- *withdrawn*: add, delete: gone, whether or not it was there.
All write the very same octets, as a delete reads the key alone.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from pyroute2.netlink import NLM_F_CREATE, NLM_F_EXCL
from pyroute2.netlink.nfnetlink.nftsocket import NFT_MSG_DELSETELEM, NFT_MSG_NEWSETELEM

from egressd.kernel.comments import COMMENT, USER_DATA_MAX, user_data
from egressd.kernel.netlink import NESTED, blob, nested, string
from egressd.kernel.sets import grant_set, split_name

if TYPE_CHECKING:
    from egressd.grants import Element
    from egressd.model import PortSpan

__all__ = [
    "LIST_MAX",
    "Body",
    "GrantWriter",
    "SetHeaders",
    "add_elements",
    "bodies",
    "delete_elements",
    "element",
    "endpoint",
    "interval_elements",
    "renew_elements",
]

LIST_MAX: Final = 60_000
"""Octets of elements in one message: a list attribute holds at most 65,531."""
LIFETIME_MIN_MS: Final = 250
"""Shortest lifetime: longer than a batch takes, so that nothing added by one expires before it is deleted again by it;
and never 0, which would be for ever."""
INTERVAL_END: Final = 1
"""NFT_SET_ELEM_INTERVAL_END"""

KEY: Final = 1
DATA: Final = 2
FLAGS: Final = 3
ELEMENT_TIMEOUT: Final = 4
EXPIRATION: Final = 5
USER_DATA: Final = 6
KEY_END: Final = 10
"""NFTA_SET_ELEM_…"""
_COMMENT_HEADS: Final = tuple([struct.pack("=HH", size + 4, USER_DATA) for size in range(USER_DATA_MAX + 1)])
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
_LIFETIME: Final = struct.Struct(">Q")
_TIMEOUT_HEADER: Final = struct.pack("=HH", 12, ELEMENT_TIMEOUT)
_NESTED_HEADER: Final = struct.Struct("=HH")

Body = tuple[int, int, bytes]
"""Kind, flags and attributes of one message."""


def element(key: bytes, *, end: bytes = b"", data: bytes = b"", lifetime_ms: int = 0, comment: str = "") -> bytes:
    """One element as an entry of a list. `end` is the last key of an interval of concatenations, inclusive."""
    parts = [nested(KEY, blob(1, key))]
    if end:
        parts.append(nested(KEY_END, blob(1, end)))
    parts.append(data)
    if lifetime_ms:
        parts.append(_TIMEOUT_HEADER + _LIFETIME.pack(lifetime_ms))
    if comment:
        parts.append(_comment(comment))
    return nested(1, *parts)


def _comment(text: str) -> bytes:
    """The attribute that holds a comment: `blob`, with heads made beforehand, as every grant has one."""
    data = user_data(COMMENT, text)
    size = len(data)
    return _COMMENT_HEADS[size] + data + _PADDING[size & 3]


def endpoint(address: bytes, protocol: int, port: int) -> bytes:
    """The key `address . protocol . port`, each field padded to 4 octets."""
    return address + bytes((protocol, 0, 0, 0)) + port.to_bytes(2, "big") + b"\0\0"


def interval_elements(ranges: Iterable[tuple[bytes, bytes]], comment: str = "") -> Iterator[bytes]:
    """Elements of a plain interval set: a start, and the address behind the end as an end mark (nft_set_rbtree.c)."""
    end_mark = (INTERVAL_END).to_bytes(4, "big")
    for first, last in ranges:
        yield element(first, comment=comment)
        behind = int.from_bytes(last, "big") + 1
        if behind < 1 << 8 * len(last):
            yield nested(1, nested(KEY, blob(1, behind.to_bytes(len(last), "big"))), blob(FLAGS, end_mark))


class SetHeaders:
    """How messages about the elements of each set begin; kept, as there is one for every set a grant was written to."""

    def __init__(self, table: str) -> None:
        self._table = string(1, table)
        self._grants: dict[tuple[int, str, int], bytes] = {}
        self._names: dict[int, dict[str, str]] = {}

    def named(self, name: str) -> bytes:
        return self._table + string(2, name)

    def grant(self, subject: int, kind: str, length: int) -> bytes:
        """The header of the grant set for addresses of `length` octets."""
        found = self._grants.get((subject, kind, length))
        if found is None:
            stem = grant_set(4 if length == 4 else 6, subject, kind)
            found = self.named(self._names.get(subject, {}).get(stem, stem))
            self._grants[subject, kind, length] = found
        return found

    def follow(self, subject: int, names: Iterable[str]) -> None:
        """From now on the sets of the subject are these; none: it is gone."""
        for key in [key for key in self._grants if key[0] == subject]:
            del self._grants[key]
        later = {split_name(name)[0]: name for name in names if name.startswith("grant") and split_name(name)[1]}
        self._names.pop(subject, None)
        if later:
            self._names[subject] = later

    def follow_all(self, subjects: Mapping[int, Iterable[str]]) -> None:
        """From now on these are all sets there are."""
        self._grants.clear()
        self._names.clear()
        for subject, names in subjects.items():
            self.follow(subject, names)


def bodies(header: bytes, elements: Iterable[bytes]) -> Iterator[bytes]:
    """Messages about any number of elements of one set, each within the limit of its list."""
    pending: list[bytes] = []
    size = 0
    for entry in elements:
        if size + len(entry) > LIST_MAX:
            yield header + _NESTED_HEADER.pack(size + 4, 3 | NESTED) + b"".join(pending)
            pending, size = [], 0
        pending.append(entry)
        size += len(entry)
    if pending:
        yield header + _NESTED_HEADER.pack(size + 4, 3 | NESTED) + b"".join(pending)


def add_elements(header: bytes, elements: Iterable[bytes], flags: int = 0) -> Iterator[Body]:
    return ((NFT_MSG_NEWSETELEM, NLM_F_CREATE | flags, body) for body in bodies(header, elements))


def delete_elements(header: bytes, elements: Iterable[bytes]) -> Iterator[Body]:
    return ((NFT_MSG_DELSETELEM, 0, body) for body in bodies(header, elements))


def renew_elements(header: bytes, elements: Sequence[bytes]) -> Iterator[Body]:
    """Add, delete, add."""
    packed = list(bodies(header, elements))
    for kind in (NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM, NFT_MSG_NEWSETELEM):
        for body in packed:
            yield kind, NLM_F_CREATE if kind == NFT_MSG_NEWSETELEM else 0, body


# --------------------------------------------------------------------------------------------------- grants


_PORT_FIELDS: Final = struct.Struct(">B3xH2x")
_ENTRY_HEADER: Final = struct.Struct("=HHHHHH")
_ENTRY: Final = 1 | NESTED
_KEY: Final = KEY | NESTED


def pack_grant(grant: Element) -> bytes:
    """One grant as an entry of its set's list. Lifetimes are at least `LIFETIME_MIN_MS`."""
    _, kind, address, span, lifetime_ms, comment, _ = grant
    tail = _TIMEOUT_HEADER + _LIFETIME.pack(max(lifetime_ms, LIFETIME_MIN_MS))
    if comment:
        tail += _comment(comment)
    if span is None:
        key = address
    elif kind == "range":
        return _pack_range(address, span, tail)
    else:
        key = address + _PORT_FIELDS.pack(span[0], span[2])
    size = len(key)
    return _ENTRY_HEADER.pack(size + 12 + len(tail), _ENTRY, size + 8, _KEY, size + 4, 1) + key + tail


def _pack_range(address: bytes, span: PortSpan, tail: bytes) -> bytes:
    first = endpoint(address, span.first_protocol, span.first_port)
    last = endpoint(address, span.last_protocol, span.last_port)
    return nested(1, nested(KEY, blob(1, first)), nested(KEY_END, blob(1, last)), tail)


class GrantWriter:
    """Grants as messages, grouped by set."""

    def __init__(self, headers: SetHeaders) -> None:
        self._headers = headers

    def write(self, grants: Sequence[Element], *, renew: bool = False) -> list[Body]:
        """What puts grants into the kernel: fresh ones as such, others (`renew`: all) renewed."""
        if len(grants) == 1:
            return self._single(grants[0], renew=renew)
        if not renew and not any(grant[6] for grant in grants):
            return self._fresh(grants)
        fresh, renewed = self._grouped(grants, renew=renew)
        messages: list[Body] = []
        for header, entries in fresh.items():
            messages += add_elements(header, entries.values(), NLM_F_EXCL)
        for header, entries in renewed.items():
            messages += renew_elements(header, list(entries.values()))
        return messages

    def _single(self, grant: Element, *, renew: bool) -> list[Body]:
        entry = pack_grant(grant)
        header = self._headers.grant(grant[0], grant[1], len(grant[2]))
        body = header + _NESTED_HEADER.pack(len(entry) + 4, 3 | NESTED) + entry
        if not (renew or grant[6]):
            return [(NFT_MSG_NEWSETELEM, NLM_F_CREATE | NLM_F_EXCL, body)]
        return [
            (NFT_MSG_NEWSETELEM, NLM_F_CREATE, body),
            (NFT_MSG_DELSETELEM, 0, body),
            (NFT_MSG_NEWSETELEM, NLM_F_CREATE, body),
        ]

    def _fresh(self, grants: Sequence[Element]) -> list[Body]:
        """Grants none of which is there already: what new names lead to."""
        sets: dict[bytes, list[bytes]] = {}
        for grant in grants:
            header = self._headers.grant(grant[0], grant[1], len(grant[2]))
            entries = sets.get(header)
            if entries is None:
                sets[header] = entries = []
            entries.append(pack_grant(grant))
        return [body for header, entries in sets.items() for body in add_elements(header, entries, NLM_F_EXCL)]

    def _grouped(
        self, grants: Sequence[Element], *, renew: bool
    ) -> tuple[dict[bytes, dict[tuple[bytes, PortSpan | None], bytes]], ...]:
        """Entries by set and element: of one that is said twice, the last word counts."""
        fresh: dict[bytes, dict[tuple[bytes, PortSpan | None], bytes]] = {}
        renewed: dict[bytes, dict[tuple[bytes, PortSpan | None], bytes]] = {}
        for grant in grants:
            header = self._headers.grant(grant[0], grant[1], len(grant[2]))
            key = (grant[2], grant[3])
            into, other = (renewed, fresh) if renew or grant[6] else (fresh, renewed)
            if key in other.get(header, ()):
                del other[header][key]
                into = renewed
            into.setdefault(header, {})[key] = pack_grant(grant)
        return fresh, renewed

    def withdraw(self, grants: Iterable[Element]) -> list[Body]:
        """What takes grants out, those included that expired meanwhile."""
        entries: dict[bytes, dict[tuple[bytes, PortSpan | None], bytes]] = {}
        for grant in grants:
            header = self._headers.grant(grant[0], grant[1], len(grant[2]))
            entries.setdefault(header, {})[grant[2], grant[3]] = pack_grant(grant)
        messages: list[Body] = []
        for header, packed in entries.items():
            messages += add_elements(header, packed.values())
            messages += delete_elements(header, packed.values())
        return messages
