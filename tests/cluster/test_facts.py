"""What a cluster says of itself, and how settings are completed with it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from kubeapi import ApiServer, kubeconfig
from kubeapi.objects import configmap, node, service, servicecidr

from egressd.cluster.client import Api, ApiError
from egressd.cluster.facts import Facts, complete, discover, label_selector
from egressd.model import LabelRequirement, LabelSelector
from egressd.names import Name
from egressd.schema import read_block
from egressd.settings import Dns, Settings, Source, Upstream

LABELS = {"k8s-app": "kube-dns"}
KUBEADM = """apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
networking:
  dnsDomain: kubeadm.example
  podSubnet: "10.244.0.0/16,fd00:10:244::/56"
  serviceSubnet: 10.96.0.0/12
"""
COREFILE = """.:53 {
    errors
    kubernetes corefile.example in-addr.arpa ip6.arpa {
       pods insecure
    }
}
"""
FLANNEL = '{"Network": "10.42.0.0/16", "IPv6Network": "fd00:10:42::/56", "Backend": {"Type": "vxlan"}}'


@pytest.fixture
def api() -> Iterator[ApiServer]:
    """A cluster with a DNS Service and a node, and no word about anything else."""
    server = ApiServer()
    server.put("services", service("kube-system/kube-dns", ["10.96.0.10", "fd00:10:96::a"], LABELS))
    server.put("services", service("kube-system/metrics", ["10.96.0.11"], LABELS, port=9153))
    server.put("services", service("shop/kube-dns", ["10.96.0.12"], LABELS))
    server.put("nodes", node("n1", ["10.244.1.0/24", "fd00:10:244:1::/64"]))
    yield server
    server.close()


def found(server: ApiServer, folder: Path, *search: str) -> Facts:
    config = kubeconfig(folder / "kubeconfig", server.url)

    async def work() -> Facts:
        api = Api(Source(kind="kubernetes", kubeconfig=str(config)))
        try:
            return await discover(api, Settings(node="n1"), search)
        finally:
            await api.close()

    return asyncio.run(work())


def packed(*texts: str) -> tuple[bytes, ...]:
    return tuple(ip_address(text).packed for text in texts)


def blocks(*texts: str) -> tuple[tuple[bytes, bytes], ...]:
    return tuple(read_block(text) for text in texts)


def test_the_dns_service_is_found_by_label_and_port(api: ApiServer, tmp_path: Path) -> None:
    """In the namespace of `dns.exempt`; what shares the label without serving DNS is passed over."""
    facts = found(api, tmp_path)
    assert facts.dns_services == ("kube-dns",)
    assert facts.dns_addresses == packed("10.96.0.10", "fd00:10:96::a")
    assert facts.node_cidrs == blocks("10.244.1.0/24", "fd00:10:244:1::/64")


def test_what_is_not_found_is_said_with_what_to_set(api: ApiServer, tmp_path: Path) -> None:
    """A cluster that tells nothing of its ranges."""
    facts = found(api, tmp_path)
    assert (facts.pod_cidrs, facts.service_cidrs, facts.domains) == ((), (), ())
    assert "pods of the cluster: not found; set cluster_cidrs, or enforced pods reach only this node's" in facts.notes
    assert "services of the cluster: not found; set cluster_cidrs" in facts.notes


def test_kubeadm_and_coredns_tell_ranges_and_domain(api: ApiServer, tmp_path: Path) -> None:
    """CoreDNS knows best which domain it serves; the ServiceCIDR API wins over what kubeadm was told once."""
    api.put("configmaps", configmap("kube-system/kubeadm-config", KUBEADM, key="ClusterConfiguration", policy=False))
    facts = found(api, tmp_path)
    assert facts.pod_cidrs == blocks("10.244.0.0/16", "fd00:10:244::/56")
    assert facts.service_cidrs == blocks("10.96.0.0/12")
    assert facts.domains == (Name("kubeadm.example"),)
    api.put("configmaps", configmap("kube-system/coredns", COREFILE, key="Corefile", policy=False))
    api.put("servicecidrs", servicecidr("10.96.0.0/16", "fd00:10:96::/112"))
    facts = found(api, tmp_path)
    assert facts.service_cidrs == blocks("10.96.0.0/16", "fd00:10:96::/112")
    assert facts.domains == (Name("corefile.example"),)


def test_flannel_tells_the_pods_range(api: ApiServer, tmp_path: Path) -> None:
    """Where kubeadm does not."""
    api.put("configmaps", configmap("kube-system/kube-flannel-cfg", FLANNEL, key="net-conf.json", policy=False))
    assert found(api, tmp_path).pod_cidrs == blocks("10.42.0.0/16", "fd00:10:42::/56")


@pytest.mark.parametrize(
    ("annotations", "cidr", "expected"),
    [
        ({"k3s.io/node-args": '["server","--cluster-cidr","10.52.0.0/16"]'}, "10.52.1.0/24", ("10.52.0.0/16",)),
        ({"k3s.io/node-args": '["server","--cluster-cidr=10.52.0.0/16"]'}, "10.52.1.0/24", ("10.52.0.0/16",)),
        ({"k3s.io/node-args": '["server"]'}, "10.42.1.0/24", ("10.42.0.0/16",)),
        ({"k3s.io/node-args": '["server"]'}, "10.99.1.0/24", ()),
        ({}, "10.42.1.0/24", ()),
    ],
)
def test_k3s_is_known_by_its_annotations(
    api: ApiServer, tmp_path: Path, annotations: dict[str, str], cidr: str, expected: tuple[str, ...]
) -> None:
    """Its default range is only believed where the node's own lies in it."""
    api.put("nodes", node("n1", [cidr], annotations))
    assert found(api, tmp_path).pod_cidrs == blocks(*expected)


def test_search_domains_tell_the_cluster_s(api: ApiServer, tmp_path: Path) -> None:
    """Where the node's resolv.conf is a pod's."""
    search = ("egressd-system.svc.cluster.example", "svc.cluster.example", "cluster.example", "corp.example")
    assert found(api, tmp_path, *search).domains == (Name("cluster.example"),)


@pytest.mark.parametrize("path", ["/nodes", "/servicecidrs", "/configmaps"])
def test_what_may_not_be_read_is_a_note(api: ApiServer, tmp_path: Path, path: str) -> None:
    """Missing rights cost one fact, not the start."""
    api.fail(403, times=100, path=path)
    facts = found(api, tmp_path)
    assert facts.dns_services == ("kube-dns",)
    assert any("HTTP 403" in note for note in facts.notes)


@pytest.mark.parametrize("code", [401, 429, 500])
def test_a_server_in_trouble_is_no_fact(api: ApiServer, tmp_path: Path, code: int) -> None:
    """Asked again later, rather than believed to have nothing."""
    api.fail(code, path="/nodes")
    with pytest.raises(ApiError):
        found(api, tmp_path)


# -------------------------------------------------------------------------------------------------- completing

FACTS = Facts(
    dns_services=("kube-dns",),
    dns_addresses=packed("10.96.0.10"),
    node_cidrs=(read_block("10.244.1.0/24"),),
    pod_cidrs=(read_block("10.244.0.0/16"),),
    service_cidrs=(read_block("10.96.0.0/16"),),
    domains=(Name("cluster.example"),),
)


def test_gaps_are_filled() -> None:
    """Resolver, trusted server, ranges and domain come from the cluster."""
    settings = complete(Settings(node="n1"), FACTS)
    assert settings.dns.upstreams == (Upstream(packed("10.96.0.10")[0]),)
    assert settings.dns.servers == packed("10.96.0.10")
    assert settings.pod_cidrs == blocks("10.244.1.0/24")
    assert settings.cluster_cidrs == blocks("10.244.0.0/16", "10.96.0.0/16")
    assert settings.cluster_domains == (Name("cluster.example"),)


def test_what_is_written_wins() -> None:
    """No fact replaces a setting."""
    written = Settings(
        node="n1",
        pod_cidrs=(read_block("192.0.2.0/24"),),
        cluster_cidrs=(read_block("198.51.100.0/24"),),
        cluster_domains=(Name("corp.example"),),
        dns=Dns(upstreams=(Upstream(packed("192.0.2.53")[0]),), servers=packed("192.0.2.54")),
    )
    assert complete(written, FACTS) == written


def test_upstreams_of_one_s_own_leave_the_cluster_s_servers() -> None:
    """Pods go on asking the cluster DNS address, whoever answers in the end."""
    settings = complete(Settings(dns=Dns(upstreams=(Upstream(packed("192.0.2.53")[0]),))), FACTS)
    assert settings.dns.servers == packed("10.96.0.10")
    assert settings.dns.upstreams == (Upstream(packed("192.0.2.53")[0]),)


def test_without_a_pod_range_the_node_s_own_is_inside() -> None:
    """At least the pods of this node reach each other."""
    settings = complete(Settings(), dataclasses.replace(FACTS, pod_cidrs=()))
    assert settings.cluster_cidrs == blocks("10.244.1.0/24", "10.96.0.0/16")


def test_blocks_inside_others_are_left_out() -> None:
    """Overlapping ranges would be one set with overlapping elements."""
    facts = dataclasses.replace(FACTS, service_cidrs=(read_block("10.244.128.0/17"), read_block("fd00::/8")))
    assert complete(Settings(), facts).cluster_cidrs == blocks("10.244.0.0/16", "fd00::/8")


def test_selectors_are_spelled_as_the_api_reads_them() -> None:
    """All operators."""
    selector = LabelSelector(
        (("a", "b"),),
        (
            LabelRequirement("c", "In", ("d", "e")),
            LabelRequirement("f", "NotIn", ("g",)),
            LabelRequirement("h", "Exists", ()),
            LabelRequirement("i", "DoesNotExist", ()),
        ),
    )
    assert label_selector(selector) == "a=b,c in (d,e),f notin (g),h,!i"
