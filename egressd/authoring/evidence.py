"""What the records say of each workload: names and addresses with their ports and counts; no file, no clock.

What goes in is what a policy has to allow. Left out, and counted, are names inside the cluster, the noise of search
lists, names that do not exist, and what was denied, unless it is asked for.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from egressd.authoring.seen import Dropped, Flow, Query, Seen, canonical
from egressd.authoring.selecting import workload_key
from egressd.model import Address, PodIdentity, Ports, Verdict
from egressd.names import Name, in_domain
from egressd.policy import ClusterFacts, is_search_noise, union
from egressd.policy.addresses import Guard, Kind
from egressd.policy.ports import point

__all__ = ["Evidence", "Peer", "Workload", "inside", "noise"]

DEFAULT_ACCOUNT: Final = "default"
"""What the API server writes into a pod that names no service account."""
MAPPED: Final = bytes(10) + b"\xff\xff"
"""First octets of ::ffff:0:0/96 (RFC 4291 section 2.5.5.2)."""
_OBJECT: Final = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*\Z")


def inside(facts: ClusterFacts, name: Name) -> bool:
    """Whether a name is inside the cluster."""
    return any(in_domain(name, domain) for domain in facts.domains)


def noise(facts: ClusterFacts, query: Query) -> bool:
    """Whether a query was no more than a step of a search list."""
    return query.search or is_search_noise(query.name, facts.domains)


@dataclass(slots=True)
class Peer:
    """A name or an address that was seen, and how."""

    queries: int = 0
    flows: int = 0
    ports: Ports = ()
    """Ports of the flows that went through (or were denied, where that is asked for)."""
    any_port: bool = False
    """A flow had no protocol that a policy could name."""
    unwatched: bool = False
    """It was allowed, and flows to what is allowed need not be recorded: there may be ports that nobody saw."""
    watched: bool = False
    """Flows that were allowed were recorded too."""
    denied: bool = True
    """Nothing of it ever went through."""
    addresses: set[Address] = field(default_factory=set)
    """Special ones that it led to: private ranges, the cluster's, and what is never granted."""

    @property
    def known_ports(self) -> Ports:
        """Its ports, or none where they are not known for certain."""
        certain = self.flows and not self.any_port and (self.watched or not self.unwatched)
        return self.ports if certain else ()


@dataclass(slots=True)
class Workload:
    """One workload of one namespace, with all that was seen of its pods."""

    namespace: str
    name: str
    accounts: set[str] = field(default_factory=set)
    pods: set[str] = field(default_factory=set)
    names: dict[Name, Peer] = field(default_factory=dict)
    addresses: dict[Address, Peer] = field(default_factory=dict)
    queries: int = 0
    flows: int = 0
    first: str = ""
    last: str = ""
    unwritable: set[Name] = field(default_factory=set)
    """Names with octets that no policy can spell."""

    def saw(self, pod: PodIdentity, time: str) -> None:
        if pod.name:
            self.pods.add(pod.name)
        self.accounts.add(pod.service_account or DEFAULT_ACCOUNT)
        self.first = min(self.first or time, time)
        self.last = max(self.last, time)


class Evidence:
    """Gathers records. `facts` say what is inside the cluster; with `denied` what was denied counts as well."""

    def __init__(self, facts: ClusterFacts, *, denied: bool = False, namespace: str = "") -> None:
        self.facts = facts
        self.denied = denied
        self.namespace = namespace
        self.workloads: dict[tuple[str, str], Workload] = {}
        self.left_out: Counter[str] = Counter()
        """Records that no policy need allow, by why."""
        self.guard = Guard(facts.cidrs, ())

    def add(self, seen: Seen) -> None:
        """Take one record."""
        if isinstance(seen, Dropped):
            self.left_out[seen.why] += seen.number
            return
        pod = seen.pod
        if self.namespace not in {"", pod.namespace}:
            return
        if not all(map(_OBJECT.match, (pod.namespace, pod.service_account or DEFAULT_ACCOUNT))):
            self.left_out["with names that Kubernetes does not have"] += seen.times
            return
        key = workload_key(pod)
        workload = self.workloads.setdefault(key, Workload(*key))
        workload.saw(pod, seen.first or seen.time)
        workload.saw(pod, seen.time)
        if not seen.went_through and not self.denied:
            self.left_out["of what was denied"] += seen.times
        elif isinstance(seen, Query):
            self._query(workload, seen)
        else:
            self._flow(workload, seen)

    def _query(self, workload: Workload, query: Query) -> None:
        if noise(self.facts, query):
            self.left_out["of search lists"] += query.times
        elif self._open(query.name):
            self.left_out["of names inside the cluster"] += query.times
        elif query.absent:
            self.left_out["of names that do not exist"] += query.times
        elif not canonical(query.name):
            workload.unwritable.add(query.name)
        else:
            peer = workload.names.setdefault(query.name, Peer())
            workload.queries += query.times
            peer.queries += query.times
            peer.unwatched |= query.verdict is Verdict.ALLOWED
            peer.denied &= not query.went_through
            peer.addresses |= {one for one in query.addresses if self.guard.kind(one) is not Kind.ORDINARY}

    def _flow(self, workload: Workload, flow: Flow) -> None:
        outside = [name for name in flow.names if not self._open(name)]
        known = [name for name in outside if canonical(name)]
        if not outside and (flow.names or self._in_blocks(flow.address)):
            self.left_out["of flows inside the cluster"] += flow.times
            return
        if not known and flow.address[:12] == MAPPED:
            self.left_out["of flows to IPv4 written as IPv6, which no policy can name"] += flow.times
            return
        workload.flows += flow.times
        for name in known:
            peer = workload.names.setdefault(name, Peer())
            if self.guard.kind(flow.address) is not Kind.ORDINARY:
                peer.addresses.add(flow.address)
            _reached(peer, flow)
        if not known:
            _reached(workload.addresses.setdefault(flow.address, Peer()), flow)

    def _open(self, name: Name) -> bool:
        """Whether a name needs no rule, for the cluster is open."""
        return not self.facts.enforce and inside(self.facts, name)

    def _in_blocks(self, address: Address) -> bool:
        blocks = (block for block in self.facts.cidrs if len(block.first) == len(address))
        return not self.facts.enforce and any(block.first <= address <= block.last for block in blocks)


def _reached(peer: Peer, flow: Flow) -> None:
    peer.flows += flow.times
    peer.watched |= flow.verdict is Verdict.ALLOWED
    peer.denied &= not flow.went_through
    if flow.protocol in {1, 58}:
        peer.ports = union(peer.ports, point(1, -1), point(58, -1))
    elif flow.protocol in {6, 17, 132}:
        peer.ports = union(peer.ports, point(flow.protocol, flow.port))
    else:
        peer.any_port = True
