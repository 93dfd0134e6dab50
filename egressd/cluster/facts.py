"""What a cluster says of itself that settings may leave out: its DNS Service, its ranges, its domain.

Each fact comes from one place, tried in a fixed order; what was found where, and what was not, is kept in words for
`status`. Settings that were written always win (`complete`). Only the DNS Service is waited for: without a resolver
there is nothing to do.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from egressd.cluster.client import Api, ApiError
from egressd.cluster.objects import ConfigMap, Listing, Node, Service, ServiceCIDR
from egressd.errors import InvalidName
from egressd.model import Block, LabelSelector
from egressd.names import Name, parse_name
from egressd.schema import read_block
from egressd.settings import Dns, Settings, Upstream

__all__ = ["Facts", "complete", "discover", "label_selector"]

SYSTEM: Final = "kube-system"
K3S_PODS: Final = "10.42.0.0/16"
"""Where k3s puts pods unless its `--cluster-cidr` says otherwise (docs.k3s.io, cli/server, Networking)."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found. Empty: not there, or not ours to read; `notes` say which, one sentence each."""

    dns_services: tuple[str, ...] = ()
    """Names of the DNS Services, in the namespace of `dns.exempt`."""
    dns_addresses: tuple[bytes, ...] = ()
    node_cidrs: tuple[Block, ...] = ()
    """Pods of this node."""
    pod_cidrs: tuple[Block, ...] = ()
    """Pods of all nodes."""
    service_cidrs: tuple[Block, ...] = ()
    domains: tuple[Name, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Installed:
    """What the installer of the cluster left behind in ConfigMaps of kube-system."""

    pods: tuple[Block, ...] = ()
    services: tuple[Block, ...] = ()
    domains: tuple[Name, ...] = ()
    source: str = ""


def label_selector(selector: LabelSelector) -> str:
    """A selector as a query parameter of the API spells it."""
    parts = [f"{key}={value}" for key, value in selector.labels]
    for key, operator, values in selector.expressions:
        listed = f"({','.join(values)})"
        spelled = {
            "In": f"{key} in {listed}",
            "NotIn": f"{key} notin {listed}",
            "Exists": key,
            "DoesNotExist": f"!{key}",
        }
        parts.append(spelled[operator])
    return ",".join(parts)


# -------------------------------------------------------------------------------------------------- finding


async def discover(api: Api, settings: Settings, search: Sequence[str] = ()) -> Facts:
    """Ask the API server for everything. `search` are the search domains of the node's resolv.conf.

    Raises `ApiError` when it cannot be asked; what it refuses to tell (403, 404) is a note.
    """
    notes: list[str] = []
    services = await _dns_services(api, settings.dns, notes)
    node = await _node(api, settings.node, notes)
    installed = await _installed(api, notes)
    node_cidrs = _blocks(node.spec.pod_cidrs or [node.spec.pod_cidr]) if node else ()
    _say(notes, "pods of this node", node_cidrs, "the Node's podCIDRs", "set pod_cidrs, or pod_interfaces")
    pod_cidrs, where = (installed.pods, installed.source) if installed.pods else _k3s(node, node_cidrs)
    _say(notes, "pods of the cluster", pod_cidrs, where, "set cluster_cidrs, or enforced pods reach only this node's")
    service_cidrs = await _service_cidrs(api, notes) or installed.services
    _say(notes, "services of the cluster", service_cidrs, "", "set cluster_cidrs")
    domains = installed.domains or _searched(search)
    notes.append(f"cluster domain: {', '.join(domains)}" if domains else "cluster domain: not found; as in settings")
    return Facts(
        dns_services=tuple(service.metadata.name for service in services),
        dns_addresses=tuple(dict.fromkeys(address for service in services for address in service.dns_addresses)),
        node_cidrs=node_cidrs,
        pod_cidrs=pod_cidrs,
        service_cidrs=service_cidrs,
        domains=domains,
        notes=tuple(notes),
    )


async def _dns_services(api: Api, dns: Dns, notes: list[str]) -> list[Service]:
    selector = label_selector(dns.exempt.labels)
    path = f"/api/v1/namespaces/{dns.exempt.namespace}/services"
    found = await _list(api, path, Service, notes, labelSelector=selector)
    services = sorted((service for service in found if service.dns_addresses), key=lambda one: one.metadata.name)
    where = f"{dns.exempt.namespace}, label {selector}"
    names = ", ".join(service.metadata.name for service in services)
    notes.append(f"cluster DNS: Service {names} ({where})" if services else f"cluster DNS: no Service in {where}")
    return services


async def _node(api: Api, name: str, notes: list[str]) -> Node | None:
    try:
        return msgspec.json.decode(await api.get(f"/api/v1/nodes/{name}"), type=Node)
    except ApiError as error:
        _forgive(error, notes, f"Node {name}")
    except msgspec.MsgspecError as error:
        notes.append(f"Node {name}: not understood: {error}")
    return None


async def _service_cidrs(api: Api, notes: list[str]) -> tuple[Block, ...]:
    found = await _list(api, "/apis/networking.k8s.io/v1/servicecidrs", ServiceCIDR, notes)
    return _blocks(text for each in found for text in each.spec.cidrs or [])


async def _installed(api: Api, notes: list[str]) -> _Installed:
    """What kubeadm, flannel and CoreDNS were told when the cluster was made."""
    data: dict[str, str] = {}
    for name in ("kubeadm-config", "kube-flannel-cfg", "coredns"):
        selector = f"metadata.name={name}"
        for found in await _list(
            api, f"/api/v1/namespaces/{SYSTEM}/configmaps", ConfigMap, notes, fieldSelector=selector
        ):
            data |= found.data or {}
    kubeadm, network = data.get("ClusterConfiguration", ""), data.get("net-conf.json", "")
    flannel = re.findall(r'"(?:IPv6)?Network"\s*:\s*"([^"]+)"', network)
    zones = re.findall(r"^\s*kubernetes\s+([^{\n]*)", data.get("Corefile", ""), re.MULTILINE)
    served = [zone for line in zones for zone in line.split() if not zone.rstrip(".").endswith(".arpa")]
    pods = _blocks(_field(kubeadm, "podSubnet"))
    return _Installed(
        pods=pods or _blocks(flannel),
        services=_blocks(_field(kubeadm, "serviceSubnet")),
        domains=_names(served) or _names(_field(kubeadm, "dnsDomain")),
        source="kubeadm-config" if pods else "kube-flannel-cfg",
    )


def _field(text: str, key: str) -> list[str]:
    """The values of one field of kubeadm's YAML, which it writes one field a line; two ranges are joined by a comma."""
    found = re.search(rf"^\s*{key}:\s*[\"']?([^\s\"'#]+)", text, re.MULTILINE)
    return found[1].split(",") if found else []


def _k3s(node: Node | None, node_cidrs: tuple[Block, ...]) -> tuple[tuple[Block, ...], str]:
    """k3s leaves no such ConfigMap; the Node is annotated with the arguments it was started with."""
    annotations = (node.metadata.annotations or {}) if node else {}
    if not any(key.startswith("k3s.io/") for key in annotations):
        return (), ""
    told = re.findall(r'"--cluster-cidr"\s*,\s*"([^"]+)"', annotations.get("k3s.io/node-args", ""))
    told += re.findall(r'"--cluster-cidr=([^"]+)"', annotations.get("k3s.io/node-args", ""))
    if told:
        return _blocks(told[-1].split(",")), "k3s.io/node-args"
    usual = read_block(K3S_PODS)
    inside = bool(node_cidrs) and all(usual.first <= block.first <= block.last <= usual.last for block in node_cidrs)
    return ((usual,), "k3s's own default") if inside else ((), "")


def _searched(search: Sequence[str]) -> tuple[Name, ...]:
    """A pod's resolv.conf searches `NAMESPACE.svc.DOMAIN svc.DOMAIN DOMAIN`."""
    return _names(domain.removeprefix("svc.") for domain in search if domain.startswith("svc."))


async def _list(api: Api, path: str, model: type[Any], notes: list[str], **selector: str) -> list[Any]:
    try:
        page = msgspec.json.Decoder(Listing[model]).decode(await api.get(path, selector))  # type: ignore[valid-type]  # a type at run time
    except ApiError as error:
        _forgive(error, notes, path.rpartition("/")[2])
        return []
    except msgspec.MsgspecError as error:
        notes.append(f"{path.rpartition('/')[2]}: not understood: {error}")
        return []
    return page.items or []


def _forgive(error: ApiError, notes: list[str], what: str) -> None:
    """What we may not read, or an older cluster does not have, is noted; anything else is for later."""
    if error.status not in {403, 404}:
        raise error
    notes.append(f"{what}: {error.message}")


def _say(notes: list[str], what: str, blocks: Iterable[Block], where: str, otherwise: str) -> None:
    texts = [_text(block) for block in blocks]
    found = f"{', '.join(texts)}{f' ({where})' if where else ''}"
    notes.append(f"{what}: {found}" if texts else f"{what}: not found; {otherwise}")


def _text(block: Block) -> str:
    first, last = ipaddress.ip_address(block.first), ipaddress.ip_address(block.last)
    return ", ".join(str(network) for network in ipaddress.summarize_address_range(first, last))


def _blocks(texts: Iterable[str]) -> tuple[Block, ...]:
    return tuple(dict.fromkeys(_read(texts, read_block)))


def _names(texts: Iterable[str]) -> tuple[Name, ...]:
    return tuple(dict.fromkeys(_read(texts, parse_name)))


def _read(texts: Iterable[str], read: Callable[[str], Any]) -> Iterator[Any]:
    for text in texts:
        try:
            yield read(text.strip())
        except (ValueError, InvalidName):
            continue


# ------------------------------------------------------------------------------------------------- completing


def complete(settings: Settings, facts: Facts) -> Settings:
    """Settings with every gap filled that the cluster could fill."""
    dns = settings.dns
    upstreams = dns.upstreams or tuple(Upstream(address) for address in facts.dns_addresses)
    servers = dns.servers or facts.dns_addresses or tuple(upstream.address for upstream in upstreams)
    default = Settings().cluster_domains
    return replace(
        settings,
        dns=replace(dns, upstreams=upstreams, servers=servers),
        pod_cidrs=settings.pod_cidrs or facts.node_cidrs,
        cluster_cidrs=settings.cluster_cidrs or _union(facts.pod_cidrs or facts.node_cidrs, facts.service_cidrs),
        cluster_domains=settings.cluster_domains if settings.cluster_domains != default else facts.domains or default,
    )


def _union(*groups: tuple[Block, ...]) -> tuple[Block, ...]:
    """Blocks of all groups, without those that lie inside another one."""
    blocks = list(dict.fromkeys(block for group in groups for block in group))
    return tuple(block for block in blocks if not any(_inside(block, other) for other in blocks))


def _inside(block: Block, other: Block) -> bool:
    same_family = len(block.first) == len(other.first)
    return same_family and block != other and other.first <= block.first and block.last <= other.last
