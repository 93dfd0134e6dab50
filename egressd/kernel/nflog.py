"""What the kernel reports of packets, refused and let through: NFLOG messages of one group, read as values.

The reader promises: any octets the kernel may hand us give a `Report` or the one error of `read_report`, counted and
skipped; it never waits, and never takes more than a bounded share of the event loop. Layouts follow
include/uapi/linux/netfilter/nfnetlink_log.h; packets RFC 791 and RFC 8200 section 4.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from pyroute2.netlink import NETLINK_NETFILTER, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_ULOG
from pyroute2.netns import create_socket

from egressd.errors import KernelError
from egressd.kernel.netlink import attributes, blob

__all__ = ["NflogReader", "Report", "read_packet", "read_report"]

COPY_RANGE: Final = 128
"""Octets of each packet: an IPv6 header, some extension headers, and the ports."""
MAX_HEADERS: Final = 8
"""IPv6 extension headers followed; a packet has one of each kind, at most eight (RFC 8200 section 4.1)."""
DRAIN: Final = 8
"""Reads in one turn of the event loop, of a page each: about 14 reports, which take 30 µs to explain and record."""
RECEIVE_BUFFER: Final = 4 << 20
"""Octets: about 15,000 messages of 260 octets."""
FLUSH: Final = 5
"""Hundredths of a second after which the kernel hands over what it has gathered."""
BATCH: Final = 64
"""Messages the kernel gathers before it hands them over at once."""

_MSG_PACKET, _MSG_CONFIG = 0, 1
_CFG_CMD, _CFG_MODE, _CFG_TIMEOUT, _CFG_QTHRESH, _CFG_FLAGS = 1, 2, 4, 5, 6
_CMD_BIND = 1
_COPY_PACKET = 2
_FLAG_SEQUENCE = 1
_PAYLOAD, _PREFIX, _SEQUENCE = 9, 10, 12
_SO_RCVBUFFORCE: Final = 33
_HEADER: Final = struct.Struct("=IHHII")
_FAMILY: Final = struct.Struct("!BBH")
_WORD: Final = struct.Struct("!I")
_PORTS: Final = struct.Struct("!HH")

WITH_PORTS: Final = frozenset((6, 17, 33, 132, 136))
"""TCP, UDP, DCCP, SCTP and UDP-Lite begin with source and destination port."""
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, OPTIONS, MOBILITY, HIP, SHIM6 = 0, 43, 44, 51, 60, 135, 139, 140
_EIGHTS: Final = frozenset((HOP_BY_HOP, ROUTING, OPTIONS, MOBILITY, HIP, SHIM6))
"""Extension headers whose length field counts units of 8 octets beyond the first 8."""


class Report(NamedTuple):
    """One reported packet. `prefix` is the log rule's word; addresses are packed; `port` is -1 where there is none."""

    prefix: str
    source: bytes
    destination: bytes
    protocol: int
    port: int
    source_port: int = -1


class NflogReader:
    """Reads one log group for as long as it lives; `on_event` is called for each packet, from within `read_ready`.

    `lost` counts reports that did not reach us (gaps in the kernel's sequence numbers, overruns of the receive
    buffer), `malformed` those that held no IP packet. Raises `KernelError` if the group is another program's.
    """

    def __init__(self, group: int, on_event: Callable[[Report], None]) -> None:
        self.lost = 0
        self.malformed = 0
        self._group = group
        self._on_event = on_event
        self._expected = -1
        self._overruns = 0
        self._buffer = bytearray(1 << 16)
        self._socket: socket.socket = create_socket(None, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        try:
            self._configure()
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor to wait on for reading; it never blocks."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop reading; the kernel forgets the group's listener. Idempotent."""
        self._socket.close()

    def read_ready(self) -> None:
        """Take what has come. Exceptions of `on_event` go through; the report they were about is not repeated."""
        for _ in range(DRAIN):
            try:
                size = self._socket.recv_into(self._buffer)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise KernelError(
                        f"cannot read log group {self._group}: {error.strerror}", error.errno or 0
                    ) from error
                self.lost += 1
                self._overruns += 1
                continue
            for kind, payload in _messages(bytes(self._buffer[:size])):
                if kind == NFNL_SUBSYS_ULOG << 8 | _MSG_PACKET:
                    self._take(payload)

    def _take(self, payload: bytes) -> None:
        found = dict(attributes(payload[4:]))
        if len(sequence := found.get(_SEQUENCE, b"")) == 4:
            self._count(_WORD.unpack(sequence)[0])
        try:
            report = read_report(found.get(_PREFIX, b""), found.get(_PAYLOAD, b""))
        except KernelError:
            self.malformed += 1
            return
        self._on_event(report)

    def _count(self, sequence: int) -> None:
        """Compare a sequence number (32 bits, from 0) with the one due; an overrun was counted as one lost already."""
        if self._expected >= 0:
            gap = (sequence - self._expected) & 0xFFFFFFFF
            if gap:
                self.lost += max(0, gap - self._overruns)
                self._overruns = 0
        self._expected = (sequence + 1) & 0xFFFFFFFF

    def _configure(self) -> None:
        self._socket.bind((0, 0))
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        self._command(blob(_CFG_CMD, bytes((_CMD_BIND,))))
        self._command(
            blob(_CFG_MODE, struct.pack("!IBx", COPY_RANGE, _COPY_PACKET)),
            blob(_CFG_TIMEOUT, _WORD.pack(FLUSH)),
            blob(_CFG_QTHRESH, _WORD.pack(BATCH)),
            blob(_CFG_FLAGS, struct.pack("!H", _FLAG_SEQUENCE)),
        )
        self._socket.setblocking(False)

    def _command(self, *parts: bytes) -> None:
        body = _FAMILY.pack(socket.AF_UNSPEC, 0, self._group) + b"".join(parts)
        kind, flags = NFNL_SUBSYS_ULOG << 8 | _MSG_CONFIG, NLM_F_REQUEST | NLM_F_ACK
        self._socket.send(_HEADER.pack(16 + len(body), kind, flags, 1, 0) + body)
        code = self._acknowledgement()
        if code:
            raise KernelError(
                f"cannot read log group {self._group}: {os.strerror(code)}",
                code,
                "another program reads it: choose another firewall.log_group" if code in _TAKEN else "",
            )

    def _acknowledgement(self) -> int:
        """Positive errno of the command sent, or 0. Reports may come before it; they are the first that we read."""
        while True:
            for kind, payload in _messages(self._socket.recv(1 << 16)):
                if kind == NLMSG_ERROR and len(payload) >= 4:
                    return -int(struct.unpack_from("=i", payload)[0])
                if kind == NFNL_SUBSYS_ULOG << 8 | _MSG_PACKET:
                    self._take(payload)


_TAKEN: Final = (errno.EBUSY, errno.EPERM)


def read_report(prefix: bytes, packet: bytes) -> Report:
    """Read one report: the log prefix and the first octets of the packet. `KernelError` (EBADMSG) if it is not IP."""
    return Report(prefix.partition(b"\0")[0].decode("ascii", "replace").strip(), *_read_packet(packet))


def read_packet(packet: bytes) -> tuple[bytes, bytes, int, int]:
    """Source, destination, protocol and destination port (-1: none, or not in these octets) of an IP packet.

    Any octets give that or `KernelError` with EBADMSG.
    """
    return _read_packet(packet)[:4]


def _read_packet(packet: bytes) -> tuple[bytes, bytes, int, int, int]:
    """The same, and the source port."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        protocol, offset = packet[9], 4 * (packet[0] & 15)
        first = not (packet[6] & 0x1F or packet[7])  # RFC 791: fragment offset 0
        ports = _ports(packet, protocol, offset) if first and offset >= 20 else _NO_PORTS
        return packet[12:16], packet[16:20], protocol, *ports
    if version == 6 and len(packet) >= 40:
        protocol, offset = _upper_layer(packet)
        return packet[8:24], packet[24:40], protocol, *_ports(packet, protocol, offset)
    raise KernelError(f"{len(packet)} octets of log group payload are no IP packet", errno.EBADMSG)


def _upper_layer(packet: bytes) -> tuple[int, int]:
    """Protocol behind the IPv6 extension headers and where it begins; beyond the data: later fragments, cut packets."""
    kind, offset, end = packet[6], 40, len(packet)
    for _ in range(MAX_HEADERS):
        if kind not in _EIGHTS and kind not in (FRAGMENT, AUTHENTICATION):
            break
        if offset + 8 > end:
            return kind, end
        following = packet[offset]
        if kind == FRAGMENT:
            if packet[offset + 2] or packet[offset + 3] & 0xF8:
                return following, end
            offset += 8
        elif kind == AUTHENTICATION:  # RFC 4302 section 2.2: units of 4 octets, less 2
            offset += 4 * (packet[offset + 1] + 2)
        else:
            offset += 8 * (packet[offset + 1] + 1)
        kind = following
    return kind, offset


_NO_PORTS: Final = (-1, -1)


def _ports(packet: bytes, protocol: int, offset: int) -> tuple[int, int]:
    """Destination port and source port."""
    if protocol not in WITH_PORTS or offset + 4 > len(packet):
        return _NO_PORTS
    source, destination = _PORTS.unpack_from(packet, offset)
    return destination, source


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and payload of each netlink message in one read."""
    offset = 0
    while offset + 16 <= len(data):
        size, kind, *_ = _HEADER.unpack_from(data, offset)
        yield kind, data[offset + 16 : offset + size]
        offset += max(16, (size + 3) & ~3)
