"""How a flood of names stays a handful of rows: everything that decides what is remembered one by one lives here.

A workload has budgets for each day. Random names under one registrable domain (a DNS tunnel, a tracker, a wildcard
that is used as one) become `*.DOMAIN`, addresses dialled one after the other become their block, a port scan becomes
port 0, and whoever asks for ever new domains gets `*`. None of these spellings is a name that can be asked for: `*`
and `/` are escaped in canonical names. Nothing is lost by it but the distinction; counts stay true. No clock, no I/O.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from egressd.history.observation import MANY_PORTS, Key
from egressd.schema.words import registrable, registrable_under

__all__ = ["EVERYTHING", "Folding", "domain_of"]

PER_DOMAIN: Final = 200
"""Names of one workload under one registrable domain; more than a cloud's endpoints, far less than a tunnel's."""
PER_WORKLOAD: Final = 4_000
"""Names and addresses of one workload."""
PORTS_PER_NAME: Final = 64
TOTAL: Final = 50_000
"""Names, addresses and ports of all workloads of the node: about 10 MiB."""
EVERYTHING: Final = "*"
BLOCK_BITS: Final = {4: 16, 6: 32}
"""Prefix that stands for a registrable domain where there are only addresses."""


_under: Final = lru_cache(2048)(registrable_under)
"""Random names under one domain thus cost one look at the list of public suffixes, not one each."""


@dataclass(slots=True)
class _Workload:
    """What is remembered one by one of a workload."""

    names: set[str] = field(default_factory=set)
    domains: dict[str, int] = field(default_factory=dict)
    """Names under each domain."""
    ports: dict[str, set[tuple[int, str]]] = field(default_factory=dict)


class Folding:
    """The budgets of one day at a time; they begin anew with a later day, and when the clock was put back."""

    def __init__(self, total: int = TOTAL) -> None:
        self.folded = 0
        """Keys that were folded, in all."""
        self._total = total
        self._left = total
        self._day = -1
        self._workloads: dict[tuple[str, str], _Workload] = {}

    def fold(self, key: Key) -> Key:
        """The key under which an observation is remembered."""
        if not self._day - 1 <= key.day <= self._day:
            self._day, self._left = key.day, self._total
            self._workloads.clear()
        workload = self._workloads.get((key.namespace, key.workload))
        if workload is None:
            workload = self._workloads[key.namespace, key.workload] = _Workload()
        name = self._name(workload, key)
        folded = key if name is key.name else Key._make((*key[:3], name, *key[4:]))
        if key.event == "flow" and not self._port(workload, folded):
            folded = folded._replace(port=MANY_PORTS)
        self.folded += folded is not key
        return folded

    def _name(self, workload: _Workload, key: Key) -> str:
        name = key.name
        if name in workload.names or name == EVERYTHING:
            return name
        domain = domain_of(name, key.event)
        known = workload.domains.get(domain)
        if known is None and (len(workload.names) >= PER_WORKLOAD or self._left <= 0):
            return EVERYTHING
        if known is not None and (known >= PER_DOMAIN or len(workload.names) >= PER_WORKLOAD or self._left <= 0):
            return domain if "/" in domain else f"*.{domain}"
        workload.names.add(name)
        workload.domains[domain] = (known or 0) + 1
        self._left -= 1
        return name

    def _port(self, workload: _Workload, key: Key) -> bool:
        """Whether this port is remembered."""
        ports = workload.ports.get(key.name)
        if ports is None:
            ports = workload.ports[key.name] = set()
        port = key.port, key.protocol
        if port in ports:
            return True
        if len(ports) >= PORTS_PER_NAME or self._left <= 0:
            return False
        ports.add(port)
        self._left -= 1
        return True


def domain_of(name: str, event: str) -> str:
    """The domain that names are counted under: the registrable one, of an address its block."""
    if event == "flow":
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            pass
        else:
            return str(ipaddress.ip_network((address, BLOCK_BITS[address.version]), strict=False))
    return _under(name.partition(".")[2]) or registrable(name)
