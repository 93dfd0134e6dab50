"""Connections the kernel still remembers, found by the pod that opened them, and cut (kernel.md, Revocation).

A pod's IPv4 entries are found with the kernel's own filter (CTA_FILTER, Linux 5.8; an older kernel sends all of them,
and we choose). For IPv6 addresses that filter is inverted: `ctnetlink_filter_match_tuple` drops what is equal (seen on
6.18, so written since 5.8), hence there we always choose ourselves, by looking for the address in the octets before
reading any of them. What an entry is deleted by is the very octets that the dump gave. Layouts follow
include/uapi/linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Callable, Collection, Iterator, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple

from pyroute2.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
)
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK
from pyroute2.netlink.nfnetlink.nfctsocket import IPCTNL_MSG_CT_DELETE, IPCTNL_MSG_CT_GET, IPCTNL_MSG_CT_NEW
from pyroute2.netns import create_socket

from egressd.errors import KernelError
from egressd.kernel.netlink import NESTED, attributes, blob, nested

__all__ = ["Conntrack", "Entry", "read_entry"]

DELETES: Final = 256
"""Deletions in one message to the kernel: 256 of at most 150 octets, and as many errors back, fit the buffers."""
PATIENCE_S: Final = 5.0
"""Seconds without a word from the kernel, in the middle of an answer, that we call a failure."""
RECEIVE_BUFFER: Final = 4 << 20

_TUPLE_ORIGINAL, _TUPLE_REPLY, _STATUS, _PROTOINFO, _TIMEOUT, _ID, _ZONE, _FILTER = 1, 2, 3, 4, 7, 12, 18, 25
_FILTER_ORIGINAL = 1
_BY_SOURCE_ADDRESS: Final = struct.pack("=I", 1)
"""CTA_FILTER_F_CTA_IP_SRC, in the machine's byte order."""
_TUPLE_IP, _TUPLE_PROTOCOL = 1, 2
_V4_SOURCE, _V4_DESTINATION, _V6_SOURCE, _V6_DESTINATION = 1, 2, 3, 4
_PROTOCOL_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_PROTOINFO_TCP, _TCP_STATE, _TCP_FLAGS_ORIGINAL, _TCP_FLAGS_REPLY = 1, 1, 4, 5
TCP: Final = 6
_TCP_OVER: Final = frozenset((b"\x06", b"\x07", b"\x08"))
"""LAST_ACK, TIME_WAIT and CLOSE (nf_conntrack_tcp.h): both sides have said their last."""
_TCP_ESTABLISHED: Final = b"\x03"
_BE_LIBERAL: Final = b"\x08\x08"
"""IP_CT_TCP_FLAG_BE_LIBERAL and its mask: what was sent so far is not known, so any window will do."""
_STANDING: Final = struct.pack("!I", 2 | 4 | 8)
"""IPS_SEEN_REPLY, IPS_ASSURED and IPS_CONFIRMED, which no entry may lack (EBUSY)."""
RESTORED_S: Final = 300
"""Lifetime of an entry put back; packets in both directions make it the kernel's own again."""
_SO_RCVBUFFORCE: Final = 33
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_IS_ORIGINAL: Final = struct.pack("=H", _TUPLE_ORIGINAL | NESTED)
_IS_IP: Final = struct.pack("=H", _TUPLE_IP | NESTED)
"""How kernels have begun an entry so far: its first tuple, in it the addresses, the source first."""
FILTERED: Final = 8
"""Pods for each of which the kernel is asked on its own; it walks the whole table for each."""


class Entry(NamedTuple):
    """One connection as it was opened, before any NAT. `port` is -1 where the protocol has none."""

    source: bytes
    destination: bytes
    protocol: int
    port: int
    selector: bytes
    """The attributes that name exactly this entry to the kernel."""
    alive: bool = True
    """False where TCP has ended and the kernel still remembers it, for two minutes at most."""


class Conntrack:
    """One netlink socket to the connection table. Synchronous; for one thread."""

    def __init__(self) -> None:
        self._socket: socket.socket = create_socket(None, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._socket.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def cut(self, pod: bytes, keep: Callable[[bytes, int, int], bool]) -> list[tuple[bytes, bytes]]:
        """Delete the entries that `pod` opened and `keep(destination, protocol, port)` does not keep.

        Returns the (pod, destination) pairs cut, each once. Raises `KernelError`; then some may be left.
        """
        doomed = [entry for entry in self.entries(pod) if not keep(entry.destination, entry.protocol, entry.port)]
        self.delete(doomed)
        return list(dict.fromkeys((entry.source, entry.destination) for entry in doomed))

    def entries(self, pod: bytes) -> list[Entry]:
        """The entries whose original source is `pod` (packed address). Raises `KernelError`."""
        return list(self._each({pod}))

    def entries_of(self, pods: Collection[bytes]) -> list[Entry]:
        """The same for many pods: past a few of a family the table is read once for all. Raises `KernelError`."""
        return list(self._each(pods))

    def live(self, pods: Collection[bytes], destinations: AbstractSet[bytes]) -> set[tuple[bytes, bytes]]:
        """The (pod, destination) pairs of these between which something lives, opened by the pod. Raises `KernelError`.

        It takes as much memory as there are pairs, however many connections.
        """
        families = {len(destination) for destination in destinations}
        asked = [pod for pod in pods if len(pod) in families]
        return {(entry.source, entry.destination) for entry in self._each(asked, destinations) if entry.alive}

    def _each(self, pods: Collection[bytes], destinations: AbstractSet[bytes] | None = None) -> Iterator[Entry]:
        """The entries that these pods opened, to these destinations or, with None, to any."""
        for length, few in ((4, FILTERED), (16, 1)):
            family = {pod for pod in pods if len(pod) == length}
            if len(family) > few:
                yield from self._dump(family, b"", destinations)
            else:
                for pod in family:
                    yield from self._of(pod, destinations)

    def _of(self, pod: bytes, destinations: AbstractSet[bytes] | None) -> Iterator[Entry]:
        try:
            yield from self._dump({pod}, self._filter(pod), destinations)
        except KernelError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            yield from self._dump({pod}, b"", destinations)  # it knows the attribute and not this use of it

    def delete(self, entries: Sequence[Entry]) -> int:
        """Delete entries; one that is gone already is no error. Returns how many were there. Raises `KernelError`."""
        return sum(self._delete(entries[start : start + DELETES]) for start in range(0, len(entries), DELETES))

    def restore(self, pod: bytes, pod_port: int, peer: bytes, peer_port: int) -> bool:
        """Put a TCP connection back that the pod opened and the kernel forgot; false if it is there.

        Raises `KernelError`.
        """
        body = _tuple(_TUPLE_ORIGINAL, pod, peer, pod_port, peer_port)
        body += _tuple(_TUPLE_REPLY, peer, pod, peer_port, pod_port)
        flags = [blob(kind, _BE_LIBERAL) for kind in (_TCP_FLAGS_ORIGINAL, _TCP_FLAGS_REPLY)]
        body += nested(_PROTOINFO, nested(_PROTOINFO_TCP, blob(_TCP_STATE, _TCP_ESTABLISHED), *flags))
        body += blob(_STATUS, _STANDING) + blob(_TIMEOUT, struct.pack("!I", RESTORED_S))
        self._socket.send(self._message(IPCTNL_MSG_CT_NEW, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, pod, body))
        for kind, sequence, payload in self._answers():
            if kind == NLMSG_ERROR and sequence == self._sequence:
                if -struct.unpack_from("=i", payload)[0] == errno.EEXIST:
                    return False
                _raise(payload, "put a connection back")
                return True
        return False

    # ---------------------------------------------------------------------------------- messages

    def _filter(self, pod: bytes) -> bytes:
        """What to add to a dump so that the kernel sends this pod's entries only; for IPv6 nothing (see above)."""
        if len(pod) != 4:
            return b""
        original = nested(_TUPLE_ORIGINAL, nested(_TUPLE_IP, blob(_V4_SOURCE, pod)))
        return original + nested(_FILTER, blob(_FILTER_ORIGINAL, _BY_SOURCE_ADDRESS))

    def _dump(self, pods: AbstractSet[bytes], only: bytes, to: AbstractSet[bytes] | None) -> Iterator[Entry]:
        """Entries of pods of one family. What is not read to its end is passed over by the next question."""
        self._socket.send(self._message(IPCTNL_MSG_CT_GET, NLM_F_DUMP, next(iter(pods)), only))
        for kind, sequence, payload in self._answers():
            if sequence != self._sequence:
                continue
            if kind in (NLMSG_DONE, NLMSG_ERROR):
                _raise(payload, "read the connection table")
                break
            if kind == NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW and _may_be_of(pods, payload, to):
                entry = read_entry(payload[4:])
                if entry.source in pods and (to is None or entry.destination in to):
                    yield entry

    def _delete(self, entries: Sequence[Entry]) -> int:
        messages = [self._message(IPCTNL_MSG_CT_DELETE, NLM_F_ACK, entry.source, entry.selector) for entry in entries]
        self._socket.send(b"".join(messages))
        gone = 0
        for kind, sequence, payload in self._answers():
            if kind != NLMSG_ERROR or sequence <= self._sequence - len(entries):
                continue
            if -struct.unpack_from("=i", payload)[0] == errno.ENOENT:
                gone += 1
            else:
                _raise(payload, "delete a connection")
            if sequence == self._sequence:
                break
        return len(entries) - gone

    def _message(self, kind: int, flags: int, address: bytes, body: bytes) -> bytes:
        """One message; netlink takes several in a row, each beginning at a multiple of 4 octets."""
        self._sequence += 1
        family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
        size, code = 20 + len(body), NFNL_SUBSYS_CTNETLINK << 8 | kind
        return _HEADER.pack(size, code, NLM_F_REQUEST | flags, self._sequence, 0) + bytes((family, 0, 0, 0)) + body

    def _answers(self) -> Iterator[tuple[int, int, bytes]]:
        """Type, sequence number and payload of what the kernel says, for as long as the caller wants more."""
        while True:
            try:
                data = self._socket.recv(1 << 17)
            except BlockingIOError:
                if not self._poll.poll(PATIENCE_S * 1000):
                    raise KernelError("the connection table did not answer", errno.ETIMEDOUT) from None
                continue
            except OSError as error:
                raise KernelError(f"cannot read the connection table: {error.strerror}", error.errno or 0) from error
            offset = 0
            while offset + 16 <= len(data):
                size, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
                yield kind, sequence, data[offset + 16 : offset + size]
                offset += max(16, (size + 3) & ~3)


def _may_be_of(pods: AbstractSet[bytes], payload: bytes, to: AbstractSet[bytes] | None = None) -> bool:
    """Whether a look at the first octets leaves it open: most entries of a large table are others'."""
    if payload[6:8] == _IS_ORIGINAL and payload[10:12] == _IS_IP:
        size, kind = _ATTRIBUTE.unpack_from(payload, 12)
        if kind in (_V4_SOURCE, _V6_SOURCE):
            end = 12 + size  # a multiple of 4, as addresses are
            if payload[16:end] not in pods:
                return False
            following, kind = _ATTRIBUTE.unpack_from(payload, end) if len(payload) >= end + 4 else (0, 0)
            if to is not None and kind in (_V4_DESTINATION, _V6_DESTINATION):
                return payload[end + 4 : end + following] in to
    return True


def _tuple(kind: int, source: bytes, destination: bytes, source_port: int, destination_port: int) -> bytes:
    """CTA_TUPLE_…: addresses and ports of one direction of a TCP connection."""
    first, second = (_V4_SOURCE, _V4_DESTINATION) if len(source) == 4 else (_V6_SOURCE, _V6_DESTINATION)
    ports = blob(_SOURCE_PORT, struct.pack("!H", source_port)) + blob(
        _DESTINATION_PORT, struct.pack("!H", destination_port)
    )
    return nested(
        kind,
        nested(_TUPLE_IP, blob(first, source), blob(second, destination)),
        nested(_TUPLE_PROTOCOL, blob(_PROTOCOL_NUMBER, bytes((TCP,))), ports),
    )


def read_entry(body: bytes) -> Entry:
    """Read one entry from the attributes of its message. Any octets give an `Entry` or `KernelError` (EBADMSG)."""
    found = dict(attributes(body))
    original = dict(attributes(found.get(_TUPLE_ORIGINAL, b"")))
    ip = dict(attributes(original.get(_TUPLE_IP, b"")))
    protocol = dict(attributes(original.get(_TUPLE_PROTOCOL, b"")))
    source = ip.get(_V4_SOURCE) or ip.get(_V6_SOURCE) or b""
    destination = ip.get(_V4_DESTINATION) or ip.get(_V6_DESTINATION) or b""
    number, port = protocol.get(_PROTOCOL_NUMBER, b""), protocol.get(_DESTINATION_PORT, b"")
    tcp = dict(attributes(dict(attributes(found.get(_PROTOINFO, b""))).get(_PROTOINFO_TCP, b"")))
    if len(source) not in (4, 16) or len(destination) != len(source) or len(number) != 1:
        raise KernelError("an entry of the connection table has no addresses or no protocol", errno.EBADMSG)
    selector = nested(_TUPLE_ORIGINAL, found[_TUPLE_ORIGINAL])
    selector += b"".join(blob(kind, found[kind]) for kind in (_ID, _ZONE) if kind in found)
    number_of_port = int.from_bytes(port, "big") if len(port) == 2 else -1
    return Entry(source, destination, number[0], number_of_port, selector, tcp.get(_TCP_STATE) not in _TCP_OVER)


def _raise(payload: bytes, what: str) -> None:
    """Raise `KernelError` if an NLMSG_ERROR or NLMSG_DONE carries one (nlmsgerr: a negative errno, 0 is fine)."""
    code = -struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else errno.EBADMSG
    if code:
        raise KernelError(f"cannot {what}: {os.strerror(code)}", code)
