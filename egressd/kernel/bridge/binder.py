"""Binding pods to ports as they come: first sight counts, for as long as the pod and its port are there.

The binder reads the pods that the kernel's table has, asks in a thread where those not bound yet hang (wires.py), and
writes what it learned (table.py). It wakes for changes of ports (RTNLGRP_LINK), and, only while a pod behind a bridge
is still to be found, for neighbours and FDB entries (RTNLGRP_NEIGH); of these only those it waits for count. All
addresses of a pod are bound at once, as a bound port may send nothing else. A port is one pod's: MAC addresses are
easily forged, so a second pod that seems to be behind it is not believed.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from pyroute2.netlink import NETLINK_ROUTE
from pyroute2.netlink.rtnl import RTM_DELLINK, RTM_NEWLINK, RTM_NEWNEIGH, RTNLGRP_LINK, RTNLGRP_NEIGH
from pyroute2.netns import create_socket

from egressd.errors import KernelError
from egressd.kernel.bridge.table import Bindings, Bound, BridgeTable
from egressd.kernel.bridge.wires import Link, Survey, Wires, messages, read_link, read_neighbour

if TYPE_CHECKING:
    from egressd.kernel.state import PodElement

__all__ = ["Binder"]

log = logging.getLogger("egressd.kernel")

PAUSE_S: Final = 0.05
"""Between two surveys: what comes meanwhile is looked at together."""
AGAIN_S: Final = 10.0
"""A pod that nobody has heard of is looked for again."""
READS: Final = 64
"""Reports taken in one turn of the event loop."""
SOL_NETLINK, ADD_MEMBERSHIP, DROP_MEMBERSHIP = 270, 1, 2
SO_RCVBUFFORCE: Final = 33
RECEIVE_BUFFER: Final = 1 << 20


class Binder:
    """`open` it when the table stands, say `follow` after each change of pods; it needs the event loop's thread."""

    def __init__(self, table: BridgeTable, pods: Callable[[], Mapping[bytes, PodElement]]) -> None:
        self._table = table
        self._pods = pods
        self._loop: asyncio.AbstractEventLoop | None = None
        self._links: Mapping[int, Link] = {}
        self._ports: dict[str, int] = {}
        """Index of each port that something is bound to, as of the last survey."""
        self._awaited: set[bytes] = set()
        """Addresses behind a bridge whose port is not known."""
        self._awaited_macs: set[bytes] = set()
        self._elsewhere: set[bytes] = set()
        """Addresses that were not behind a bridge when last looked for."""
        self._gone: set[int] = set()
        """Ports that vanished while a survey was under way."""
        self._hearing = False
        self._surveying = False
        self._again = False
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        """When it is up; a handle of uvloop that is due at once does not say so."""
        self._work: asyncio.Future[Survey] | None = None
        self._doubted: set[str] = set()
        self._woken: dict[bytes, float] = {}
        """When the kernel was last asked to look for an address."""

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to learn and to watch, also again after `close`. While open, a second time changes nothing."""
        if self._loop is not None:
            return
        self._loop = loop
        self._hearing = self._surveying = self._again = False
        self._ports.clear()
        self._wires = Wires()
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bridge")
        self._watch: socket.socket = create_socket(None, socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE)
        self._watch.bind((0, 0))
        self._watch.setblocking(False)
        self._watch.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self._watch.setsockopt(SOL_NETLINK, ADD_MEMBERSHIP, RTNLGRP_LINK)
        loop.add_reader(self._watch.fileno(), self._read)
        self._survey_soon(0.0)

    def close(self) -> None:
        """Stop learning; what is bound stays bound."""
        if self._loop is None:
            return
        self._loop.remove_reader(self._watch.fileno())
        for pending in (self._timer, self._work):
            if pending is not None:
                pending.cancel()
        self._loop = self._timer = self._work = None
        self._watch.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._wires.close()

    def follow(self) -> None:
        """Pods changed: those gone are bound no more, those new are looked for."""
        if self._loop is None:
            return
        pods = self._pods()
        self._awaited &= pods.keys()
        self._elsewhere &= pods.keys()
        self._write(self._bindings(self._owners()))
        if pods.keys() - self._standing.bound.keys() - self._awaited - self._elsewhere:
            self._survey_soon(0.0)

    # ---------------------------------------------------------------------------------------- what holds

    @property
    def _standing(self) -> Bindings:
        return self._table.standing or Bindings()

    def _owners(self) -> dict[str, str]:
        """Pods that are bound, with their ports."""
        return {place.comment: place.port for place in self._standing.of(self._pods()).bound.values()}

    def _bindings(self, owners: Mapping[str, str]) -> Bindings:
        """All addresses of these pods at their ports, and the other ports of the same bridges."""
        bound = {
            address: Bound(owners[pod.comment], pod.comment)
            for address, pod in self._pods().items()
            if pod.comment in owners
        }
        taken = {place.port for place in bound.values()}
        masters = {link.master for link in self._links.values() if link.name in taken}
        if not self._links:  # not looked yet: an earlier run did
            return Bindings(bound, self._standing.others - taken)
        others = {link.name for link in self._links.values() if link.master in masters - {0}}
        return Bindings(bound, frozenset(others - taken))

    def _write(self, bindings: Bindings) -> None:
        try:
            self._table.write(bindings)
        except KernelError as error:
            log.error("pods are not bound to their ports: %s", error)

    # ---------------------------------------------------------------------------------------- learning

    def _survey_soon(self, delay_s: float = PAUSE_S) -> None:
        if self._loop is None or self._table.unusable:
            return
        if self._surveying:
            self._again = True
            return
        due = self._loop.time() + delay_s
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_at(due, self._start)

    def _start(self) -> None:
        self._timer = None
        if self._loop is None:
            return
        self._surveying, self._again = True, False
        self._gone.clear()
        bound = self._standing.bound
        unbound = {address: pod.comment for address, pod in self._pods().items() if address not in bound}
        now = self._loop.time()
        self._woken = {address: at for address, at in self._woken.items() if address in unbound and now < at + AGAIN_S}
        wake = unbound.keys() - self._woken.keys()
        self._woken |= dict.fromkeys(wake, now)
        self._work = self._loop.run_in_executor(self._pool, self._wires.survey, tuple(unbound), wake)
        self._work.add_done_callback(lambda done: self._surveyed(done, unbound))

    def _surveyed(self, done: asyncio.Future[Survey], asked: Mapping[bytes, str]) -> None:
        if done is not self._work or done.cancelled():
            return
        self._surveying = False
        error = done.exception()
        if error is not None:
            log.warning("where pods hang is not known: %s", error)
            self._survey_soon(AGAIN_S)
            return
        self._learn(done.result(), asked)
        if self._again:
            self._survey_soon()
        elif self._awaited:
            self._survey_soon(AGAIN_S)

    def _learn(self, survey: Survey, asked: Mapping[bytes, str]) -> None:
        self._links = {index: link for index, link in survey.links.items() if index not in self._gone}
        pods = self._pods()
        owners = {comment: port for comment, port in self._owners().items() if self._still(port)}
        taken = {port: comment for comment, port in owners.items()}
        behind = {a: seen for a, seen in survey.sightings.items() if a in pods and pods[a].comment == asked[a]}
        for address, seen in behind.items():
            comment, link = pods[address].comment, self._links.get(seen.port)
            if link is None or link.master != seen.bridge or comment in owners:
                continue
            if taken.setdefault(link.name, comment) == comment:
                owners[comment] = link.name
            elif comment not in self._doubted:
                self._doubted.add(comment)
                log.warning(
                    "%s seems to be behind %s, but that is the port of %s", comment, link.name, taken[link.name]
                )
        bindings = self._bindings(owners)
        self._ports = {link.name: link.number for link in self._links.values() if link.name in taken}
        self._write(bindings)
        self._await({a: seen.mac for a, seen in behind.items() if a not in bindings.bound})
        self._elsewhere = asked.keys() & pods.keys() - behind.keys() - bindings.bound.keys()

    def _still(self, port: str) -> bool:
        """Whether a port is the interface that it was, and still a port of a bridge that is ours to watch."""
        for link in self._links.values():
            if link.name == port:
                bridge = self._links.get(link.master)
                ours = bridge is not None and bridge.bridge and not bridge.vlan_aware
                return ours and self._ports.get(port, link.number) == link.number
        return False

    def _await(self, unknown: Mapping[bytes, bytes]) -> None:
        """Listen for neighbours while there is somebody to wait for."""
        self._awaited = set(unknown)
        self._awaited_macs = {mac for mac in unknown.values() if mac}
        if bool(unknown) == self._hearing:
            return
        self._hearing = bool(unknown)
        option = ADD_MEMBERSHIP if self._hearing else DROP_MEMBERSHIP
        self._watch.setsockopt(SOL_NETLINK, option, RTNLGRP_NEIGH)
        self._again |= self._hearing  # what came before we listened

    # ---------------------------------------------------------------------------------------- watching

    def _read(self) -> None:
        for _ in range(READS):
            try:
                data = self._watch.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self._survey_soon()  # something was lost: look at everything
                continue
            self._heard(messages(data))

    def _heard(self, reports: Iterable[tuple[int, int, bytes]]) -> None:
        for kind, _, payload in reports:
            if kind in (RTM_NEWLINK, RTM_DELLINK):
                self._heard_link(read_link(payload), gone=kind == RTM_DELLINK)
            elif kind == RTM_NEWNEIGH:
                address, mac = read_neighbour(payload)
                if (address in self._awaited and mac) or (not address and mac in self._awaited_macs):
                    self._survey_soon()

    def _heard_link(self, link: Link, *, gone: bool) -> None:
        known = self._links.get(link.number)
        if gone:
            self._gone.add(link.number)
            if known is None:
                return
            self._links = {index: other for index, other in self._links.items() if index != link.number}
            if self._ports.get(known.name) == link.number:
                del self._ports[known.name]
                owners = {comment: port for comment, port in self._owners().items() if port != known.name}
                self._write(self._bindings(owners))
            self._survey_soon()
        elif (link.master or known is not None) and (known is None or known[:3] != link[:3]):
            self._elsewhere.clear()
            self._survey_soon()
