"""Search-list noise: names under a cluster domain that no Service or pod record can have.

A resolver with `ndots:5` tries `s3.amazonaws.com.shop.svc.cluster.local` and three more before the name it was asked
for (dns.md, Names that people forget). The shapes that do exist are those of the Kubernetes DNS specification 1.1
(kubernetes/dns, docs/specification.md); a name is noise only if it has none of them, whoever owns it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Final

from egressd.names import ROOT, Name, in_domain

__all__ = ["is_expansion", "is_search_noise"]

MULTI_CLUSTER: Final = Name("clusterset.local")
"""Domain of the Multi-Cluster Services API (KEP-1645); headless records there have one label more, the cluster's."""

_LABEL: Final = re.compile(r"[a-z0-9-]+\Z")
_WILDCARDS: Final = ("any", "\\042")
"""`any` and `*` stood for any label in queries to kube-dns and CoreDNS before 1.9."""
_POD_ADDRESS: Final = re.compile(r"(?:\d{1,3}(?:-\d{1,3}){3}|[0-9a-f]{0,4}(?:-[0-9a-f]{0,4}){2,7})\Z")
"""An address with dashes: 172-12-0-3, 2001-db8--1 (specification, section 2.3, and CoreDNS `pods insecure`)."""


def is_search_noise(name: Name, domains: Sequence[Name]) -> bool:
    """Whether the name lies strictly under a cluster domain and has the shape of nothing that a cluster serves.

    With nested domains, the shape in any of them saves it. The root as a domain says nothing and is ignored.
    """
    over = [domain for domain in domains if domain != ROOT and in_domain(name, domain)]
    return bool(over) and not any(_has_shape(name, domain) for domain in over)


def is_expansion(name: str, asked: Container[str], domains: Iterable[Name]) -> bool:
    """Whether a name that does not exist is no more than another one, of those `asked`, with a search domain behind it.

    `paste.example.shop.svc.cluster.local` has the shape of a Service's host, so a cluster is asked for it; only that
    the same client asked for `paste.example` as well tells what it was.
    """
    if not any(domain not in {ROOT, name} and in_domain(Name(name), domain) for domain in domains):
        return False
    at = name.find(".")
    while at > 0:
        if name[:at] in asked:
            return True
        at = name.find(".", at + 1)
    return False


def _has_shape(name: Name, domain: Name) -> bool:
    if name == domain:
        return True  # the zone itself: SOA, NS
    labels = name[: -len(domain) - 1].split(".")
    kind = _KINDS.get(labels[-1])
    return kind is not None and kind(labels[:-1], domain)


def _service(labels: list[str], domain: Name) -> bool:
    """What may stand before `svc`. Fewer labels than a Service has are empty places in the tree, which exist."""
    if not all(_LABEL.match(label) or label in _WILDCARDS for label in labels[-2:]):
        return False  # a Service or namespace with such a name cannot be (RFC 1123 labels)
    if len(labels) <= 3:
        return True  # svc; NS.svc; SERVICE.NS.svc; HOST.SERVICE.NS.svc, HOST a host name or a dashed address, or _PROTO
    if len(labels) == 4:
        if domain == MULTI_CLUSTER:
            return True  # HOST.CLUSTER.SERVICE.NS.svc
        return all(label.startswith("_") or label in _WILDCARDS for label in labels[:2])  # _PORT._PROTO.SERVICE.NS.svc
    return False


def _pod(labels: list[str], _domain: Name) -> bool:
    """What may stand before `pod`: nothing, NS, or ADDRESS.NS with the address in dashes."""
    return len(labels) < 2 or (len(labels) == 2 and _POD_ADDRESS.match(labels[0]) is not None)


def _alone(labels: list[str], _domain: Name) -> bool:
    return not labels


_KINDS: Final[dict[str, Callable[[list[str], Name], bool]]] = {
    "svc": _service,
    "pod": _pod,
    "dns-version": _alone,  # TXT, the specification's version
    "any": _alone,
    "\\042": _alone,
}
