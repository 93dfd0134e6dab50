"""A whole node of a cluster: pods wired to it as a CNI would, an internet behind it, a DNS server beside it.

    internet 203.0.113.0/24 …  ──eth0── node ──dns0── dns 10.244.0.53 (service 10.96.0.10)
                                         │
                            pods 10.244.1.0/24, fd00:10:244:1::/64

Pods' addresses are routable everywhere (no masquerading), forwarding is on, and there is no packet filter: that is
what egressd, or a test, brings.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from egressd.lab.dnsserver import DnsServer
from egressd.lab.internet import BLOCKS, Internet
from egressd.lab.links import End, Route, add_routes, connect, make_bridge, remove_link
from egressd.lab.space import NSSWITCH, Space

__all__ = [
    "CLUSTER_CIDRS",
    "POD_CIDRS",
    "SERVICES",
    "UPSTREAMS",
    "WIRINGS",
    "Node",
    "Pod",
]

WIRINGS: Final = ("p2p", "bridge")
"""`p2p`: a veth per pod with a host route (Calico, GKE); `bridge`: a bridge with br_netfilter (kindnet, flannel)."""

POD_CIDRS: Final = ("10.244.1.0/24", "fd00:10:244:1::/64")
CLUSTER_CIDRS: Final = ("10.244.0.0/16", "10.96.0.0/12", "fd00:10:244::/48", "fd00:10:96::/112")
SERVICES: Final = ("10.96.0.10", "fd00:10:96::10")
"""Service addresses of the cluster DNS, IPv4 and IPv6: what pods have in their resolv.conf."""
UPSTREAMS: Final = ("10.244.0.53", "fd00:10:244::53", "10.244.0.54", "fd00:10:244::54")
"""The DNS server's own addresses; the second pair is there for fail-over."""

ANYWHERE: Final = ("0.0.0.0/0", "::/0")
GATEWAY4: Final = "169.254.1.1"
GATEWAY6: Final = "fe80::1"


class Pod(Space):
    """A pod: `run` its programs, with their own resolv.conf, hosts file and host name."""

    def __init__(
        self, namespace: str, name: str, index: int, *, resolver: str, labels: Mapping[str, str], service_account: str
    ) -> None:
        self.namespace = namespace
        self.pod_name = name
        self.index = index
        self.labels = MappingProxyType(dict(labels))
        self.service_account = service_account
        self.v4 = f"10.244.1.{index}"
        self.v6 = f"fd00:10:244:1::{index:x}"
        self.interface = ""
        """The node's end of the pod's wire."""
        search = f"{namespace}.svc.cluster.local svc.cluster.local cluster.local"
        files = {
            "/etc/resolv.conf": f"nameserver {resolver}\nsearch {search}\noptions ndots:5\n",
            "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost\n{self.v4} {name}\n{self.v6} {name}\n",
            "/etc/nsswitch.conf": NSSWITCH,
        }
        super().__init__(name, {path: text for path, text in files.items() if Path(path).exists()})
        self.environment["HOME"] = "/nonexistent"  # no ~/.curlrc, no ~/.digrc

    def manifest(self, node: str = "n1") -> dict[str, Any]:
        """The pod as an ordinary v1 Pod, for `source: directory`."""
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": self.pod_name,
                "namespace": self.namespace,
                "uid": f"00000000-0000-4000-8000-{self.index:012d}",
                "labels": dict(self.labels),
            },
            "spec": {"nodeName": node, "serviceAccountName": self.service_account},
            "status": {"phase": "Running", "podIP": self.v4, "podIPs": [{"ip": self.v4}, {"ip": self.v6}]},
        }


class Node(Space):
    """A node and all around it. `dns` is the upstream DNS server, `internet` the rest of the world; both record calls.

    `service_route`: the DNS Service addresses lead to the DNS server by plain routing; False leaves them to a
    kube-proxy that a test installs. As a context manager it takes everything down at the end.
    """

    def __init__(self, wiring: str = "p2p", *, name: str = "n1", service_route: bool = True) -> None:
        if wiring not in WIRINGS:
            raise ValueError(f"wiring is one of {', '.join(WIRINGS)}, not {wiring!r}")
        self.wiring = wiring
        self.pods: dict[str, Pod] = {}
        """By `NAMESPACE/NAME`."""
        self.bridge_netfilter = False
        """Whether bridged packets pass through the IP hooks (br_netfilter; `bridge` wiring only)."""
        self._last_index = 1
        super().__init__(name, {"/etc/resolv.conf": f"nameserver {UPSTREAMS[0]}\n", "/etc/nsswitch.conf": NSSWITCH})
        for setting in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.sysctl(setting, "1")
        self.internet = Internet()
        self._connect_internet()
        self._dns_space = Space("dns")
        self._connect_dns(SERVICES if service_route else ())
        addresses = [*UPSTREAMS, *(SERVICES if service_route else ())]
        self.dns = DnsServer(self._dns_space, addresses)
        if wiring == "bridge":
            make_bridge(self, "cni0", _mac(0, 1), ["10.244.1.1/24", "fd00:10:244:1::1/64"])
            self._switch_bridge_netfilter_on()

    def add_pod(
        self,
        name: str,
        *,
        labels: Mapping[str, str] | None = None,
        service_account: str = "default",
        resolver: str = SERVICES[0],
        index: int = 0,
    ) -> Pod:
        """Start a pod `NAMESPACE/NAME` (namespace `default` if not said), wired and ready.

        `index` is the last part of its addresses (2 to 254; 0: the next), so that a test can use an address again.
        """
        namespace, _, short = name.rpartition("/")
        if not index:
            self._last_index += 1
        pod = Pod(
            namespace or "default",
            short,
            index or self._last_index,
            resolver=resolver,
            labels=labels or {},
            service_account=service_account,
        )
        self._connect_pod(pod)
        self.pods[f"{pod.namespace}/{short}"] = pod
        return pod

    def remove_pod(self, pod: Pod) -> None:
        """Stop a pod: its programs are killed, its wire and routes vanish."""
        self.pods = {name: other for name, other in self.pods.items() if other is not pod}
        remove_link(self, pod.interface)
        pod.close()

    def close(self) -> None:
        for pod in self.pods.values():
            pod.close()
        self.pods.clear()
        self.dns.close()
        self._dns_space.close()
        self.internet.close()
        super().close()

    # --------------------------------------------------------------------------------------- wires

    def _connect_internet(self) -> None:
        here = ("100.64.0.2", "fd00:64::2")
        there = ("100.64.0.1", "fd00:64::1")
        near = End(
            self,
            "eth0",
            _mac(1, 1),
            [f"{here[0]}/24", f"{here[1]}/64"],
            [Route(to, via) for to, via in zip(ANYWHERE, there, strict=True)],
        )
        back = [Route(to, via) for to, via in zip(POD_CIDRS, here, strict=True)]
        connect(near, End(self.internet, "eth0", _mac(1, 2), [f"{there[0]}/24", f"{there[1]}/64"], back))
        add_routes(self.internet, "lo", [Route(block, local=True) for block in BLOCKS])

    def _connect_dns(self, services: tuple[str, ...]) -> None:
        gateways = ("10.244.0.1", "fd00:10:244::1")
        near = End(
            self,
            "dns0",
            _mac(2, 1),
            [f"{gateways[0]}/24", f"{gateways[1]}/64"],
            [Route(_host(service), UPSTREAMS[":" in service]) for service in services],
        )
        addresses = [f"{address}/{64 if ':' in address else 24}" for address in UPSTREAMS]
        out = [Route(to, via) for to, via in zip(ANYWHERE, gateways, strict=True)]
        connect(near, End(self._dns_space, "eth0", _mac(2, 2), addresses, out))
        add_routes(self._dns_space, "lo", [Route(_host(service), local=True) for service in services])

    def _connect_pod(self, pod: Pod) -> None:
        host_mac, pod_mac = _mac(3, pod.index), _mac(4, pod.index)
        if self.wiring == "bridge":
            pod.interface = f"veth{pod.index}"
            gateways = ("10.244.1.1", "fd00:10:244:1::1")
            near = End(self, pod.interface, host_mac, bridge="cni0")
            far = End(
                pod,
                "eth0",
                pod_mac,
                [f"{pod.v4}/24", f"{pod.v6}/64"],
                [Route(to, via) for to, via in zip(ANYWHERE, gateways, strict=True)],
            )
        else:
            pod.interface = f"cali{pod.index}"
            near = End(self, pod.interface, host_mac, [f"{GATEWAY6}/64"], [Route(_host(pod.v4)), Route(_host(pod.v6))])
            far = End(
                pod,
                "eth0",
                pod_mac,
                [f"{pod.v4}/32", f"{pod.v6}/128"],
                [Route(_host(GATEWAY4)), Route(ANYWHERE[0], GATEWAY4), Route(ANYWHERE[1], GATEWAY6)],
                [(GATEWAY4, host_mac)],
            )
        connect(near, far)

    def _switch_bridge_netfilter_on(self) -> None:
        settings = [f"net/bridge/bridge-nf-call-{family}tables" for family in ("ip", "ip6")]
        self.bridge_netfilter = self.call(lambda: all(Path("/proc/sys", name).exists() for name in settings))
        if not self.bridge_netfilter:
            warnings.warn(
                "this kernel has no br_netfilter in a network namespace: the bridge wiring is NOT what kubeadm sets up"
                " (modprobe br_netfilter)",
                RuntimeWarning,
                stacklevel=3,
            )
            return
        for name in settings:
            self.sysctl(name, "1")


def _host(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def _mac(wire: int, index: int) -> str:
    """A locally administered MAC address."""
    return f"02:00:00:00:{wire:02x}:{index:02x}"
