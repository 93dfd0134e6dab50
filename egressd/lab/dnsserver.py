"""The lab's DNS server: answers what its `Zone` says, over UDP and TCP, on every address given, and notes who asked.

Fast enough to stand behind load tests (tens of thousands of queries a second): answers are pre-rendered, a query costs
a few microseconds of slicing. It trusts its clients: what it cannot read, it drops.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from egressd.lab.rdata import name_wire
from egressd.lab.serving import Loop
from egressd.lab.space import Space
from egressd.lab.zone import Behaviour, Query, Sections, Zone, address_data, question_text

__all__ = ["DnsServer", "message"]

Send = Callable[[bytes], object]

SEEN: Final = 500_000
"""Queries remembered; older ones are forgotten."""
DRAIN: Final = 64
"""Datagrams taken in one turn."""
RESPONSE: Final = 0x8000
RECURSION_AVAILABLE: Final = 0x0080
RECURSION_DESIRED: Final = 0x0100
CHECKING_DISABLED: Final = 0x0010
TRUNCATED: Final = 0x0200
OPT: Final = 41
WELL_BEHAVED: Final = Behaviour()
FORMAT_ERROR: Final = Sections(1, 0, 0, b"")
NO_RECORDS: Final = Sections(0, 0, 0, b"")
_BUFFER: Final = 8 << 20


class DnsServer:
    """Serves from the moment it is made until `close`. `zone` may be changed at any time; `seen` holds every query."""

    def __init__(self, space: Space, addresses: Sequence[str], zone: Zone | None = None, port: int = 53) -> None:
        self.zone = zone or Zone()
        self.seen: deque[Query] = deque(maxlen=SEEN)
        self.addresses = tuple(addresses)
        self.port = port
        self._space = space
        self._sockets: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._loop: Loop | None = None
        self.start()

    def start(self) -> None:
        """Serve (again); nothing happens if it does already."""
        if self._loop is None:
            self._loop = Loop(self._space)
            self._loop.run(self._open)

    def close(self) -> None:
        """Stop serving, as a crashed server would: the ports are closed. `start` serves again. Idempotent."""
        if self._loop is None:
            return
        self._loop.run(self._shut)
        self._loop.close()
        self._loop = None

    def names(self) -> list[str]:
        """The names asked for so far, in order."""
        return [query.name for query in self.seen.copy()]

    def forget(self) -> None:
        """Empty `seen`."""
        self.seen.clear()

    # ------------------------------------------------------------------------------------- sockets

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        for address in self.addresses:
            udp = _bound(address, self.port, socket.SOCK_DGRAM)
            self._sockets.append(udp)
            loop.add_reader(udp, self._readable, udp, address)
            tcp = _bound(address, self.port, socket.SOCK_STREAM)
            self._servers.append(await asyncio.start_server(self._connected, sock=tcp, backlog=1024))

    async def _shut(self) -> None:
        loop = asyncio.get_running_loop()
        for udp in self._sockets:
            loop.remove_reader(udp)
            udp.close()
        for server in self._servers:
            server.close()
        self._sockets.clear()
        self._servers.clear()

    def _readable(self, udp: socket.socket, address: str) -> None:
        for _ in range(DRAIN):
            try:
                data, peer = udp.recvfrom(65535)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error for an earlier answer

            def send(answer: bytes, peer: Any = peer) -> None:
                with contextlib.suppress(OSError):
                    udp.sendto(answer, peer)

            self._handle(data, "udp", address, peer, send)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer, here = writer.get_extra_info("peername"), writer.get_extra_info("sockname")
        if peer is None or here is None:
            writer.close()
            return

        def send(answer: bytes) -> None:
            if not writer.is_closing():
                writer.write(struct.pack("!H", len(answer)) + answer)

        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                self._handle(await reader.readexactly(length), "tcp", here[0], peer, send)
                await writer.drain()
        writer.close()

    # ------------------------------------------------------------------------------------- answers

    def _handle(self, data: bytes, transport: str, server: str, peer: Any, send: Send) -> None:
        try:
            query = _read(data, transport, server, peer)
        except (IndexError, struct.error):
            return
        self.seen.append(query)
        behaviour = self.zone.behaviour(query.name)
        if behaviour is None:
            send(self._answer(query, WELL_BEHAVED))
        else:
            self._misbehave(query, behaviour, send)

    def _misbehave(self, query: Query, behaviour: Behaviour, send: Send) -> None:
        if behaviour.drop > 0:
            behaviour.drop -= 1
            return
        if behaviour.script is not None:
            messages = list(behaviour.script(query))
        else:
            self._forge(query, behaviour, send)
            messages = [self._answer(query, behaviour)]
        loop = asyncio.get_running_loop()
        for message in messages:
            if behaviour.delay_s:
                loop.call_later(behaviour.delay_s, send, message)
            else:
                send(message)

    def _answer(self, query: Query, behaviour: Behaviour) -> bytes:
        if behaviour.no_edns and query.edns:
            return message(query, FORMAT_ERROR, edns=False)
        if behaviour.rcode is not None:
            return message(query, Sections(behaviour.rcode, 0, 0, b""))
        answer = message(query, self.zone.sections(query.case, query.name, query.qtype))
        if query.transport == "udp" and (behaviour.truncate or len(answer) > query.udp_size):
            return message(query, NO_RECORDS, flags=TRUNCATED)
        return answer

    def _forge(self, query: Query, behaviour: Behaviour, send: Send) -> None:
        number, data = address_data(behaviour.forged)
        record = Sections(0, 1, 0, struct.pack("!HHHIH", 0xC00C, number, 1, 300, len(data)) + data)
        honest = message(query, record)
        other = query._replace(case=name_wire("forged." + query.name))
        for kind in behaviour.forge:
            if kind == "wrong-id":
                for step in (1, 2, 0x8000):
                    send(struct.pack("!H", query.ident ^ step) + honest[2:])
            elif kind == "wrong-question":
                send(message(other, record))
            elif kind == "garbage":
                send(honest[:2] + os.urandom(40))
            elif query.transport == "udp":
                _send_from_elsewhere(query, honest, same_address=kind == "wrong-port")


def message(query: Query, sections: Sections, *, flags: int = 0, edns: bool = True) -> bytes:
    """A whole answer to a query: header, its question, sections, and an OPT record if the client sent one."""
    with_opt = edns and query.edns
    asked = struct.unpack_from("!H", query.data, 2)[0]
    bits = RESPONSE | RECURSION_AVAILABLE | flags | sections.rcode | asked & (RECURSION_DESIRED | CHECKING_DISABLED)
    header = struct.pack("!6H", query.ident, bits, 1, sections.answers, sections.authorities, int(with_opt))
    question = query.case + struct.pack("!HH", query.qtype, 1)
    return header + question + sections.octets + (b"\0\0\x29\x04\xd0\0\0\0\0\0\0" if with_opt else b"")


def _read(data: bytes, transport: str, server: str, peer: Any) -> Query:
    ident, flags, questions, _, _, additional = struct.unpack_from("!6H", data)
    if flags & RESPONSE or questions != 1:
        raise IndexError("not a query")
    name, end = question_text(data, 12)
    (qtype,) = struct.unpack_from("!H", data, end)
    size, edns = 512, False
    if additional and len(data) >= end + 4 + 11 and data[end + 4] == 0:
        kind, advertised = struct.unpack_from("!HH", data, end + 5)
        if kind == OPT:
            edns, size = True, max(512, min(advertised, 4096))
    case = data[12:end]
    return Query(time.monotonic(), name, qtype, transport, peer[0], peer[1], server, ident, size, edns, case, data)


def _send_from_elsewhere(query: Query, answer: bytes, *, same_address: bool) -> None:
    """Send an answer from another port of the server, or from port 53 of an address next to it."""
    family = socket.AF_INET6 if ":" in query.server else socket.AF_INET
    packed = socket.inet_pton(family, query.server)
    near = socket.inet_ntop(family, packed[:-1] + bytes((packed[-1] ^ 0x80,)))
    with socket.socket(family, socket.SOCK_DGRAM) as liar, contextlib.suppress(OSError):
        _allow_any_address(liar)
        liar.bind((query.server, 0) if same_address else (near, 53))
        liar.sendto(answer, (query.source, query.source_port))


def _bound(address: str, port: int, kind: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
    opened.setblocking(False)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    _allow_any_address(opened)
    opened.bind((address, port))
    return opened


def _allow_any_address(opened: socket.socket) -> None:
    """Let a socket be bound to addresses that no interface has (IP_FREEBIND, IPV6_FREEBIND)."""
    if opened.family == socket.AF_INET6:
        opened.setsockopt(socket.IPPROTO_IPV6, 78, 1)
    else:
        opened.setsockopt(socket.IPPROTO_IP, 15, 1)


_SO_RCVBUFFORCE: Final = 33
