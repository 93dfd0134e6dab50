"""Which names under a cluster domain are search-list noise (dns.md, Names that people forget)."""

from __future__ import annotations

import pytest

from egressd.names import ROOT, Name, label_text
from egressd.policy import is_expansion, is_search_noise

DOMAINS = (Name("cluster.local"),)
REAL = {
    "the-domain-itself": "cluster.local",
    "outside": "s3.amazonaws.com",
    "looks-alike": "notcluster.local",
    "svc": "svc.cluster.local",
    "pod": "pod.cluster.local",
    "namespace": "shop.svc.cluster.local",
    "service": "api.shop.svc.cluster.local",
    "external-name-of-legal-shape": "api.example.svc.cluster.local",
    "stateful-pod": "web-0.nginx.shop.svc.cluster.local",
    "endpoint-by-address": "10-244-0-5.nginx.shop.svc.cluster.local",
    "srv": "_https._tcp.api.shop.svc.cluster.local",
    "srv-parent": "_tcp.api.shop.svc.cluster.local",
    "srv-old-wildcards": "any._tcp.api.shop.svc.cluster.local",
    "service-starting-with-digit": "3scale.shop.svc.cluster.local",
    "pods-of-namespace": "shop.pod.cluster.local",
    "pod-ipv4": "10-244-0-5.shop.pod.cluster.local",
    "pod-ipv6": "fd00-10-244--5.shop.pod.cluster.local",
    "dns-version": "dns-version.cluster.local",
    "any": "any.cluster.local",
    "any-service": "any.any.svc.cluster.local",
    "star-service": f"{label_text(b'*')}.shop.svc.cluster.local",
    "root": ROOT,
}
NOISE = {
    "first-expansion": "s3.amazonaws.com.shop.svc.cluster.local",
    "third-expansion": "s3.amazonaws.com.cluster.local",
    "bare-host": "web.cluster.local",
    "five-labels": "a.b.c.d.e.svc.cluster.local",
    "srv-with-a-label-more": "_https._tcp.x.api.shop.svc.cluster.local",
    "four-plain-labels": "a.b.c.d.svc.cluster.local",
    "service-cannot-have-underscore": "_x.shop.svc.cluster.local",
    "pod-not-an-address": "web.shop.pod.cluster.local",
    "pod-too-deep": "x.10-244-0-5.shop.pod.cluster.local",
    "version-too-deep": "x.dns-version.cluster.local",
    "svc-not-last": "api.shop.svc.example.cluster.local",
    "expanded-twice": "api.shop.svc.cluster.local.shop.svc.cluster.local",
}


@pytest.mark.parametrize("name", [pytest.param(Name(text), id=case) for case, text in REAL.items()])
def test_a_cluster_may_serve_it(name: Name) -> None:
    """Every shape of the DNS specification, and everything outside the domains, is asked upstream."""
    assert not is_search_noise(name, DOMAINS)


@pytest.mark.parametrize("name", [pytest.param(Name(text), id=case) for case, text in NOISE.items()])
def test_no_cluster_serves_it(name: Name) -> None:
    """A shape that no record can have is noise."""
    assert is_search_noise(name, DOMAINS)


def test_two_labels_before_svc_are_never_noise() -> None:
    """`www.example` expanded to `www.example.svc.cluster.local` could be a Service `www` in `example`."""
    assert not is_search_noise(Name("www.example.svc.cluster.local"), DOMAINS)


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [
        ("paste.example.legacy.svc.cluster.local", {"paste.example"}, True),
        ("paste.example.svc.cluster.local", {"paste.example", "other.example"}, True),
        ("db.legacy.svc.cluster.local", {"db"}, True),
        ("paste.example.legacy.svc.cluster.local", {"aste.example", "paste.examp", "other.example"}, False),
        ("paste.example.legacy.svc.cluster.local", {"paste.example.legacy.svc.cluster.local"}, False),
        ("paste.example.corp.example", {"paste.example"}, False),
        ("cluster.local", {"cluster"}, False),
        ("example", set(), False),
    ],
)
def test_expansions(name: str, asked: set[str], expected: bool) -> None:
    """Only a name inside the cluster that begins with another one, cut between labels, is told to be its expansion."""
    assert is_expansion(name, asked, (*DOMAINS, ROOT)) is expected


def test_multi_cluster_records_have_one_label_more() -> None:
    """A headless record of the Multi-Cluster Services API names its cluster."""
    name = "web-0.east.nginx.shop.svc"
    assert not is_search_noise(Name(f"{name}.clusterset.local"), (Name("clusterset.local"),))
    assert is_search_noise(Name(f"{name}.cluster.local"), DOMAINS)


def test_a_shape_in_any_domain_saves_the_name() -> None:
    """Nested and several domains: noise only if it is noise in all that cover it; none, or the root, make no noise."""
    nested = (Name("cluster.local"), Name("east.cluster.local"))
    assert not is_search_noise(Name("api.shop.svc.east.cluster.local"), nested)
    assert is_search_noise(Name("example.com.east.cluster.local"), nested)
    assert not is_search_noise(Name("www.example"), ())
    assert not is_search_noise(Name("www.example"), (ROOT,))
