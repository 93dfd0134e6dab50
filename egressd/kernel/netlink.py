"""Netfilter netlink as bytes: attributes, messages, batches, and the socket that carries them.

A batch is one transaction of nf_tables: the kernel takes all of it or nothing, and has done so when `send` returns
(nfnetlink_rcv_batch in net/netfilter/nfnetlink.c). Only the last message asks for an acknowledgement; a refused one
answers with its error in any case. That last answer ends the reading: an acknowledgement before it proves nothing.
Layouts follow include/uapi/linux/netlink.h and netfilter/nfnetlink.h. pyroute2 opens the socket and gives numbers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from pyroute2.netlink import (
    NETLINK_EXT_ACK,
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_ACK_TLVS,
    NLM_F_CAPPED,
    NLM_F_DUMP,
    NLM_F_DUMP_INTR,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    SOL_NETLINK,
)
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES
from pyroute2.netlink.nfnetlink.nftsocket import NFPROTO_INET, NFT_MSG_GETGEN
from pyroute2.netns import create_socket

from egressd.errors import EnvironmentProblem, KernelError

__all__ = [
    "NESTED",
    "Batch",
    "Channel",
    "Message",
    "Refusal",
    "Refused",
    "attributes",
    "be32",
    "be64",
    "blob",
    "nested",
    "pack_batch",
    "string",
]

NESTED: Final = 0x8000
"""NLA_F_NESTED: the attribute holds attributes."""
BATCH_BEGIN: Final = 16
BATCH_END: Final = 17
NETLINK_CAP_ACK: Final = 10
"""Socket option: an error repeats the header of the refused message, not all of it."""
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SEND_BUFFER: Final = 16 * 1024 * 1024
"""Octets of the largest batch that needs no larger buffer: about 100,000 elements of 150 octets."""
RECEIVE_BUFFER: Final = 4 * 1024 * 1024
"""Room for some thousand refusals of one batch."""
RECEIVE_SIZE: Final = 1 << 17
"""Octets read at once: a dump fills at most 32 KiB (netlink_dump), an error is shorter."""
ANSWER_SIZE: Final = 8192
"""Octets read at once where one object answers: its message is at most a page (NLMSG_GOODSIZE)."""
DUMP_TRIES: Final = 10
"""A dump that a change interrupted is begun anew this many times."""

_ATTRIBUTE: Final = struct.Struct("=HH")
_HEADER: Final = struct.Struct("=IHHII")
HEADER: Final = struct.Struct("=IHHIIBBH")
"""nlmsghdr (length, type, flags, sequence, port) and nfgenmsg (family, version, resource)."""
_CODE: Final = struct.Struct("=i")
_PADDING: Final = (b"", b"\0\0\0", b"\0\0", b"\0")
_SUBSYSTEM: Final = NFNL_SUBSYS_NFTABLES << 8
_BEGIN: Final = HEADER.pack(20, BATCH_BEGIN, NLM_F_REQUEST, 0, 0, 0, 0, socket.htons(NFNL_SUBSYS_NFTABLES))
_END: Final = HEADER.pack(20, BATCH_END, NLM_F_REQUEST, 0, 0, 0, 0, socket.htons(NFNL_SUBSYS_NFTABLES))


def blob(kind: int, value: bytes) -> bytes:
    """One attribute, padded to 4 octets. `value` is at most 65,531 octets."""
    size = len(value)
    return _ATTRIBUTE.pack(size + 4, kind) + value + _PADDING[size & 3]


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute made of attributes."""
    return blob(kind | NESTED, b"".join(parts))


def be32(kind: int, value: int) -> bytes:
    return blob(kind, value.to_bytes(4, "big"))


def be64(kind: int, value: int) -> bytes:
    return blob(kind, value.to_bytes(8, "big"))


def string(kind: int, value: str) -> bytes:
    """A text attribute with its final NUL."""
    return blob(kind, value.encode() + b"\0")


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of what the kernel sent: numbers without flags, and values. Stops at what is not one."""
    offset, end = 0, len(data)
    while offset + 4 <= end:
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < 4 or offset + size > end:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + size]
        offset += (size + 3) & ~3


class Message(NamedTuple):
    """One message of a batch: `kind` is NFT_MSG_…, `about` says in an error what was tried, `family` whose table."""

    kind: int
    flags: int
    body: bytes
    about: str
    family: int = NFPROTO_INET


class Refusal(NamedTuple):
    """One refused message: its place in the batch (-1: the batch itself), positive errno, the kernel's words."""

    place: int
    errno: int
    text: str


class Refused(KernelError):
    """The batch was refused as a whole; `refusals` says which messages were the reason, in their order."""

    def __init__(self, message: str, refusals: Sequence[Refusal]) -> None:
        super().__init__(message, refusals[0].errno)
        self.refusals = tuple(refusals)


class Batch(NamedTuple):
    """A packed transaction, and the sequence number whose answer is its last word."""

    data: bytes
    last: int


def pack_batch(bodies: Iterable[tuple[int, int, bytes]]) -> Batch:
    """Pack (kind, flags, body) triples; the n-th has sequence number n + 1. Raises `ValueError` if there are none."""
    parts = [_BEGIN]
    add = parts.append
    sequence = 0
    for kind, flags, body in bodies:
        sequence += 1
        add(HEADER.pack(20 + len(body), _SUBSYSTEM | kind, NLM_F_REQUEST | flags, sequence, 0, NFPROTO_INET, 0, 0))
        add(body)
    if not sequence:
        raise ValueError("a batch without messages")
    size = 20 + len(parts[-1])
    parts[-2] = HEADER.pack(size, _SUBSYSTEM | kind, NLM_F_REQUEST | NLM_F_ACK | flags, sequence, 0, NFPROTO_INET, 0, 0)
    add(_END)
    return Batch(b"".join(parts), sequence)


def _pack_messages(messages: Sequence[Message]) -> Batch:
    """A batch that may be about tables of several families: each message says its own (nfgen_family)."""
    batch = pack_batch((message.kind, message.flags, message.body) for message in messages)
    data = bytearray(batch.data)
    offset = len(_BEGIN)
    for message in messages:
        data[offset + 16] = message.family
        offset += HEADER.size + len(message.body)
    return Batch(bytes(data), batch.last)


class Channel:
    """One netlink socket to nf_tables, used by one thread, synchronously."""

    def __init__(self) -> None:
        self._socket = _open()
        self._send_buffer = SEND_BUFFER
        self._missing = False
        """Whether there is no socket since an answer was lost, as none was to be had then (EMFILE)."""
        self.commits = 0
        """Transactions of ours that the kernel has taken."""

    @property
    def port(self) -> int:
        """The address of our end (nlmsg_pid): the author of a change as others are told."""
        return int(self._socket.getsockname()[0])

    def close(self) -> None:
        self._missing = False
        self._socket.close()

    def transact(self, messages: Sequence[Message]) -> None:
        """Commit messages as one transaction. Raises `Refused`, which says at what, and then nothing changed."""
        batch = _pack_messages(messages)
        refusals = self.commit(batch)
        if refusals:
            raise Refused(_explain(messages, refusals), refusals)

    def commit(self, batch: Batch) -> list[Refusal]:
        """Send a batch and read to its end. Returns why it was refused: nothing if the kernel committed it.

        Raises `KernelError` if the batch could not be sent, or if its outcome was lost.
        """
        receive = self._socket.recv
        self._send(batch.data)
        refusals: list[Refusal] = []
        while True:
            try:
                data = receive(RECEIVE_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            except OSError as error:
                raise self._lost(error) from error
            if _read_errors(data, refusals) == batch.last:
                self.commits += not refusals
                return refusals
        if not refusals:
            raise self._lost(None)
        return refusals

    def generation(self) -> int:
        """The number of the ruleset: one more with every transaction of anybody (NFT_MSG_GETGEN)."""
        self._send(HEADER.pack(20, _SUBSYSTEM | NFT_MSG_GETGEN, NLM_F_REQUEST, 1, 0, 0, 0, 0))
        (found,) = _messages(self._receive())
        return int.from_bytes(dict(attributes(found[2][4:])).get(1, b""), "big")

    def look_up(self, kind: int, bodies: Sequence[bytes]) -> list[bytes]:
        """One object for each body: the attributes of its message, in the same order; empty where there is none such.

        Answers wait in the receive buffer, so ask for a few hundred at most. Raises `KernelError` if one was lost.
        """
        asked = [
            HEADER.pack(20 + len(body), _SUBSYSTEM | kind, NLM_F_REQUEST, number, 0, NFPROTO_INET, 0, 0) + body
            for number, body in enumerate(bodies, 1)
        ]
        self._send(b"".join(asked))
        found: list[bytes] = []
        while len(found) < len(bodies):
            try:
                data = self._socket.recv(ANSWER_SIZE, socket.MSG_DONTWAIT)
            except OSError as error:
                raise self._lost(error) from error
            found += [b"" if seen == NLMSG_ERROR else payload[4:] for seen, _, payload in _messages(data)]
        return found

    def _receive(self) -> bytes:
        """What the kernel says next; waits for it."""
        try:
            return self._socket.recv(RECEIVE_SIZE)
        except OSError as error:
            raise self._lost(error) from error

    def _send(self, data: bytes) -> None:
        if self._missing:
            self._begin_anew()
        if len(data) > self._send_buffer - 4096:
            self._send_buffer = 2 * len(data)
            _enlarge(self._socket, SO_SNDBUFFORCE, socket.SO_SNDBUF, self._send_buffer)
        try:
            self._socket.send(data)
        except OSError as error:
            text = f"cannot send {len(data)} octets to nf_tables: {error.strerror}"
            raise KernelError(text, error.errno or errno.EIO) from error

    def _lost(self, error: OSError | None) -> KernelError:
        """The answer did not come: begin anew with a clean socket, so that no late one is taken for the next."""
        self._socket.close()
        self._missing = True
        reason = error.strerror if error is not None else "no acknowledgement"
        with contextlib.suppress(KernelError):  # then the next who has something to say tries again
            self._begin_anew()
        return KernelError(f"the outcome of a transaction is unknown: {reason}", errno.EIO)

    def _begin_anew(self) -> None:
        try:
            self._socket = _open()
        except EnvironmentProblem as error:
            code = error.__cause__.errno if isinstance(error.__cause__, OSError) else None
            raise KernelError(str(error), code or errno.EIO) from error
        self._missing = False
        self._send_buffer = SEND_BUFFER

    def dump(self, kind: int, body: bytes, family: int = NFPROTO_INET) -> list[bytes]:
        """Every object of one kind, as the attributes of its message. Raises `KernelError` (ENOENT: no such table)."""
        for _ in range(DUMP_TRIES):
            found, whole = self._dump_once(kind, body, family)
            if whole:
                return found
        raise KernelError("nf_tables changed faster than it could be read", errno.EINTR)

    def _dump_once(self, kind: int, body: bytes, family: int) -> tuple[list[bytes], bool]:
        header = HEADER.pack(20 + len(body), _SUBSYSTEM | kind, NLM_F_REQUEST | NLM_F_DUMP, 1, 0, family, 0, 0)
        self._send(header + body)
        found: list[bytes] = []
        whole = True
        while True:
            for kind_seen, flags, payload in _messages(self._receive()):
                whole = whole and not flags & NLM_F_DUMP_INTR
                if kind_seen in (NLMSG_DONE, NLMSG_ERROR):
                    code = -_CODE.unpack_from(payload)[0]
                    if code:
                        raise KernelError(f"cannot read nf_tables: {os.strerror(code)}", code)
                    return found, whole
                found.append(payload[4:])


def _open() -> socket.socket:
    try:
        opened: socket.socket = create_socket(None, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot open a netfilter netlink socket: {error.strerror}",
            "load the kernel module nfnetlink (CONFIG_NETFILTER_NETLINK)",
        ) from error
    opened.settimeout(None)  # a default of the program's would turn MSG_DONTWAIT into waiting
    opened.bind((0, 0))
    opened.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    opened.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
    _enlarge(opened, SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BUFFER)
    _enlarge(opened, SO_RCVBUFFORCE, socket.SO_RCVBUF, RECEIVE_BUFFER)
    return opened


def _enlarge(opened: socket.socket, force: int, plain: int, size: int) -> None:
    """Set a buffer size past the system's limit; without the right to (install says so), up to the limit."""
    try:
        opened.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:
        opened.setsockopt(socket.SOL_SOCKET, plain, size)


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and payload of each message in one read."""
    offset = 0
    while offset + 16 <= len(data):
        size, kind, flags, _, _ = _HEADER.unpack_from(data, offset)
        yield kind, flags, data[offset + 16 : offset + size]
        offset += max(16, (size + 3) & ~3)


def _read_errors(data: bytes, refusals: list[Refusal]) -> int:
    """Take in one nlmsgerr: code, header of the message it is about, TLVs. Returns that message's sequence number."""
    _, _, flags, sequence, _ = _HEADER.unpack_from(data)
    (code,) = _CODE.unpack_from(data, 16)
    if code:
        (original,) = struct.unpack_from("=I", data, 20)
        start = 20 + (16 if flags & NLM_F_CAPPED else (original + 3) & ~3)
        tlvs = dict(attributes(data[start:])) if flags & NLM_F_ACK_TLVS else {}
        refusals.append(Refusal(sequence - 1, -code, tlvs.get(1, b"").rstrip(b"\0").decode(errors="replace")))
    return int(sequence)


def _explain(messages: Sequence[Message], refusals: Sequence[Refusal]) -> str:
    """The first refusal in words, and how many there were."""
    first = refusals[0]
    about = messages[first.place].about if first.place >= 0 else "the transaction"
    text = f"the kernel refused to {about}: {first.text or os.strerror(first.errno)}"
    return text if len(refusals) == 1 else f"{text} (and {len(refusals) - 1} more)"
