"""A way from this machine's own loopback into the demo's node, so that a browser here can look at its web page.

The listening socket is made before the private world is entered and so belongs to the machine; what comes in on it is
handed on, octet by octet, to the daemon's address inside the node. Nothing else can be reached that way, and it ends
with the demo.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress
from typing import Final

from egressd.lab import Space

__all__ = ["address", "listen", "serve"]

INSIDE: Final = ("127.0.0.1", 9477)
"""Where the daemon answers in its node: the default of `admin.listen`."""
MOST: Final = 64
"""Connections at a time."""
CHUNK: Final = 64 * 1024


def listen() -> socket.socket:
    """A listening socket on this machine's loopback: at the daemon's usual port, or at any where that is taken."""
    for port in (INSIDE[1], 0):
        opened = socket.socket()
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            opened.bind((INSIDE[0], port))
        except OSError:
            opened.close()
            continue
        opened.listen()
        return opened
    raise OSError("no port is free on the loopback")


def address(window: socket.socket) -> str:
    """What to open in a browser."""
    host, port = window.getsockname()
    return f"http://{host}:{port}/"


def serve(window: socket.socket, node: Space) -> None:
    """Hand connections on to the daemon of a node, in a thread of its own, until the process ends."""
    threading.Thread(target=lambda: asyncio.run(_serve(window, node)), name="window", daemon=True).start()


async def _serve(window: socket.socket, node: Space) -> None:
    room = asyncio.Semaphore(MOST)

    async def came(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with room:
            with suppress(OSError):
                await _join(reader, writer, node)
            writer.close()

    async with await asyncio.start_server(came, sock=window) as server:
        await server.serve_forever()


async def _join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node: Space) -> None:
    """Copy both ways until both are at their end, or one breaks."""
    inside = node.socket()
    inside.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(inside, INSIDE)
    except OSError:
        inside.close()
        raise
    back, there = await asyncio.open_connection(sock=inside)
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_copy(reader, there))
            group.create_task(_copy(back, writer))
    except* OSError:
        pass  # one of them hung up
    finally:
        there.close()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK):
        sink.write(data)
        await sink.drain()
    if sink.can_write_eof():
        sink.write_eof()
