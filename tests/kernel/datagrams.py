"""Sends one datagram after the other to each address named, from new to new, until its input ends: new flows all."""

from __future__ import annotations

import select
import socket
import sys

PORT = 4000
ROUND = 20


def main(addresses: list[str]) -> None:
    """Whatever becomes of a datagram, the next one follows."""
    clients = {}
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        clients[address] = socket.socket(family, socket.SOCK_DGRAM)
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        for address, client in clients.items():
            for _ in range(ROUND):
                try:
                    client.sendto(b"x", (address, PORT))
                except OSError:
                    continue


if __name__ == "__main__":
    main(sys.argv[1:])
