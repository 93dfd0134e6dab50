"""A command in a cage: a network of its own, joined to the machine's by a node that filters with the real daemon.

    machine ──uplink── node (daemon) ──cage── command

Three places: the machine itself, a node namespace in the middle, and the command's own namespaces, wired to the node as
its one pod. The command reaches what its policies allow, and for that alone names resolve. All of it is gone when the
command ends, and also after a kill -9 (world.py; masquerade.py and forwarding.py for what the machine itself is told).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from egressd.errors import EgressError, EnvironmentProblem, KernelError
from egressd.lab import syscalls
from egressd.lab.links import End, Route, connect
from egressd.lab.sandbox.addresses import Side
from egressd.lab.sandbox.cage import NOT_EXECUTABLE, NOT_FOUND, Caller, start
from egressd.lab.sandbox.daemon import CAGE_WIRE, NAMESPACE, POD, Filter
from egressd.lab.sandbox.forwarding import Forwarding
from egressd.lab.sandbox.machine import Machine, mac
from egressd.lab.space import Space
from egressd.lab.world import exit_code, forward_to, run_private
from egressd.schema.units import read_upstream

__all__ = ["NAMESPACE", "NOT_EXECUTABLE", "NOT_FOUND", "POD", "Order", "run_sandbox"]

FOLDER: Final = "/run/sandbox"
"""The daemon's files: a file system of its own, mounted where the command's mounts do not have it."""
FOLDER_SIZE: Final = "64m"
RESOLV_CONF: Final = "/etc/resolv.conf"
READ_SIZE: Final = 1 << 16
MAX_LINE: Final = 1 << 20
"""Octets of a record; what is longer is none of ours."""
STOPPED: Final = 3
"""Exit code when the environment stops us (interface.md)."""
REMEDY: Final = (
    "let sandboxes through: iptables -I FORWARD -i egressd+ -j ACCEPT; iptables -I FORWARD -o egressd+ -j ACCEPT"
    " (with Docker, in chain DOCKER-USER)"
)
LAST_WORDS_S: Final = 10.0
"""Seconds that the daemon's last records are waited for."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to run, and within which bounds."""

    command: Sequence[str]
    policies: Mapping[str, str]
    """Policy documents by name; each selects the command."""
    resolvers: Sequence[str]
    """Who is asked for names, as `dns.upstreams` has it."""
    resolv_conf: str = ""
    """Lines of the command's resolv.conf beside the name server's."""
    on_record: Callable[[bytes], object] = lambda _: None
    """Called with every audit record, a line of JSON."""
    on_end: Callable[[], object] = lambda: None
    """Called when the command has ended and all records are told."""
    say: Callable[[str], object] = lambda _: None
    """Called with what a person should know meanwhile."""


def run_sandbox(order: Order) -> int:
    """Run a command and return its exit code: 128 + n for its end by signal n, 126 or 127 where it cannot be run.

    SIGINT and SIGQUIT are left to the command, SIGTERM is handed on. Call it while there is one thread. Raises
    `EnvironmentProblem` where this machine lacks what is needed; what is noticed only inside is said, with exit code 3.
    """
    caller = Caller.here()
    network = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    previous = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    try:
        with Forwarding() as forwarding:
            if forwarding.changed:
                order.say("IPv4 forwarding is switched on while this runs (net.ipv4.ip_forward)")
            return run_private(lambda: _told(order, network, caller))
    finally:
        signal.signal(signal.SIGQUIT, previous)
        os.close(network)


def _told(order: Order, network: int, caller: Caller) -> int:
    try:
        return _inside(order, network, caller)
    except EgressError as error:
        order.say(f"error: {error}")
        return STOPPED


def _inside(order: Order, network: int, caller: Caller) -> int:
    """In the private world: build the three places, run the command, tear down."""
    cages: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: _hand_on(cages, number, wanted=False))
    signal.signal(signal.SIGTERM, lambda number, _: _hand_on(cages, number))
    cage = Space(socket.gethostname(), {RESOLV_CONF: ""})
    Path(FOLDER).mkdir()
    syscalls.mount("tmpfs", FOLDER, f"mode=700,size={FOLDER_SIZE}")
    node = Space("sandbox")
    machine = Machine(network)
    uplink = machine.connect(node)
    try:
        filtering = Filter(node, Path(FOLDER), uplink.sides, _reachable(order.resolvers, uplink.sides), order.policies)
        _wire(node, cage, uplink.number, uplink.sides)
        with contextlib.suppress(KernelError):  # it is only about a warning
            if dropping := machine.obstacle():
                order.say(f"warning: {dropping} drops what is forwarded; {REMEDY}")
        servers = "".join(f"nameserver {each.gateway}\n" for each in uplink.sides[:1])
        cage.write_file(RESOLV_CONF, servers + order.resolv_conf)
        filtering.wait()
        cages.append(start(cage, order.command, caller))
        return _attend(order, cages[0], filtering)
    finally:
        machine.disconnect(uplink)


def _hand_on(cages: list[int], number: int, *, wanted: bool = True) -> None:
    """Treat a signal: before there is a command it ends us, later it is handed on, unless the terminal did that."""
    if not cages:
        os._exit(128 + number)
    if wanted:
        forward_to(cages)(number, None)


def _reachable(resolvers: Sequence[str], sides: Sequence[Side]) -> list[str]:
    """The resolvers of the families that lead out of the sandbox."""
    lengths = {4, 16} if len(sides) > 1 else {4}
    found = [resolver for resolver in resolvers if len(read_upstream(resolver).address) in lengths]
    if not found:
        raise EnvironmentProblem(
            "all resolvers of this machine have IPv6 addresses, and IPv6 does not lead out of a sandbox here",
            "name one with --dns ADDRESS, or let the machine forward IPv6 (net.ipv6.conf.all.forwarding)",
        )
    return found


def _wire(node: Space, cage: Space, number: int, sides: Sequence[Side]) -> None:
    """Join node and command. Without IPv6 addresses there is no IPv6 at all on the wire, not even its link's own."""
    node.sysctl("net.ipv4.ip_forward", "1")
    if len(sides) > 1:
        node.sysctl("net.ipv6.conf.all.forwarding", "1")
    elif Path("/proc/sys/net/ipv6").exists():
        for space in (node, cage):
            space.sysctl("net.ipv6.conf.default.disable_ipv6", "1")
    near = End(node, CAGE_WIRE, mac(number, 3), [each.on_wire(each.gateway) for each in sides])
    far = End(
        cage,
        "eth0",
        mac(number, 4),
        [each.on_wire(each.command) for each in sides],
        [Route(each.anywhere, each.gateway) for each in sides],
    )
    connect(near, far)


def _attend(order: Order, pid: int, filtering: Filter) -> int:
    """Tell records while the command runs and the last ones after it; return its exit code."""
    lines = _Lines(filtering.records, order.on_record)
    ended = os.pidfd_open(pid)
    waiting = select.poll()
    waiting.register(ended, select.POLLIN)
    waiting.register(filtering.records, select.POLLIN)
    while not any(descriptor == ended for descriptor, _ in waiting.poll()):
        if not lines.read():
            waiting.unregister(filtering.records)
            order.say("error: the filter ended; what is open stays open, and nothing more is opened or resolved")
    code = exit_code(os.waitpid(pid, 0)[1])
    os.close(ended)
    filtering.stop()
    lines.read_to_end(LAST_WORDS_S)
    filtering.close()
    order.on_end()
    return code


class _Lines:
    """Lines out of a pipe, each told once it is whole."""

    def __init__(self, pipe: int, tell: Callable[[bytes], object]) -> None:
        self._pipe = pipe
        self._tell = tell
        self._rest = b""

    def read(self) -> bool:
        """Read what is there, waiting for some; False at the end of file."""
        data = os.read(self._pipe, READ_SIZE)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._tell(line)
        self._rest = self._rest if len(self._rest) < MAX_LINE else b""
        return bool(data)

    def read_to_end(self, patience: float) -> None:
        """Read to the end of file, for as long as something comes within `patience` seconds."""
        waiting = select.poll()
        waiting.register(self._pipe, select.POLLIN)
        while waiting.poll(patience * 1000) and self.read():
            pass
