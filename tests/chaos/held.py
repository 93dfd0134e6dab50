"""Connections by a rule that will be taken away: how long each of them lived, and whether it can be opened again.

    python -m chaos.held SERVER NAME     (until SIGTERM)

Looks the name up until it resolves, holds an echo (port 7) over IPv4 and IPv6 and a download (port 80), and prints
`open`. At the end it prints when each of them last had word from the other end (monotonic seconds), and what became of
another connection, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from typing import Final

from chaos.load import AAAA, A, address_of, ask_tcp

BEAT_S: Final = 0.05
DIAL_S: Final = 3.0
ASK_EVERY_S: Final = 0.2
REQUEST: Final = b"GET /stream HTTP/1.1\r\nHost: stream.example\r\n\r\n"


async def resolve(server: str, name: str, qtype: int) -> str:
    """The name's address, as soon as there is one."""
    address = address_of(await ask_tcp(server, name, qtype), qtype)
    if not address:
        await asyncio.sleep(ASK_EVERY_S)
        return await resolve(server, name, qtype)
    return address


async def dial(address: str, port: int) -> socket.socket:
    opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    opened.setblocking(False)
    await asyncio.wait_for(asyncio.get_running_loop().sock_connect(opened, (address, port)), DIAL_S)
    return opened


async def echo(opened: socket.socket, last: list[float], index: int) -> None:
    loop = asyncio.get_running_loop()
    while True:
        await loop.sock_sendall(opened, b"still here")
        if not await loop.sock_recv(opened, 100):
            return
        last[index] = time.monotonic()
        await asyncio.sleep(BEAT_S)


async def download(opened: socket.socket, last: list[float], index: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(opened, REQUEST)
    while await loop.sock_recv(opened, 4096):
        last[index] = time.monotonic()


async def main(server: str, name: str) -> None:
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    v4, v6 = await resolve(server, name, A), await resolve(server, name, AAAA)
    opened = [await dial(v4, 7), await dial(v6, 7), await dial(v4, 80)]
    last = [time.monotonic()] * len(opened)
    work = [echo, echo, download]
    tasks = [asyncio.ensure_future(work[index](sock, last, index)) for index, sock in enumerate(opened)]
    print("open", flush=True)
    await over.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    try:
        (await dial(v4, 7)).close()
        again = "open"
    except OSError as error:
        again = type(error).__name__
    print(json.dumps({"last": last, "again": again}))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
