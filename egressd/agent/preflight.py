"""What would make protection an empty word, looked for before anything is promised.

The rest is found by doing: missing kernel features by `Kernel.install` (each is named), missing rights and taken
addresses by the listener, missing policy routing by `install_routes`. Each ends the start with exit code 3.
"""

from __future__ import annotations

import socket

from egressd.agent.handover import proof
from egressd.errors import EnvironmentProblem

__all__ = ["check", "takes_services"]

IPVS_INTERFACE = "kube-ipvs0"
"""The dummy interface that holds every Service address where kube-proxy runs in IPVS mode."""


def check() -> None:
    """Raises `EnvironmentProblem` where this machine cannot be protected."""
    try:
        proof().close()
    except OSError as error:
        raise EnvironmentProblem(
            f"this process may not administer the network (CAP_NET_ADMIN): {error.strerror}",
            "run it as root, or as uid 0 with the capability NET_ADMIN",
        ) from error
    found = takes_services()
    if found is not None:
        raise found


def takes_services() -> EnvironmentProblem | None:
    """What takes packets to Services before they can be judged, if anything does."""
    try:
        socket.if_nametoindex(IPVS_INTERFACE)
    except OSError:
        return None
    return EnvironmentProblem(
        f"kube-proxy runs in IPVS mode (interface {IPVS_INTERFACE}): it takes packets to Services, queries to the"
        " cluster DNS among them, before they can be judged",
        "run kube-proxy in nftables or iptables mode, or delete the interface if it is a left-over",
    )
