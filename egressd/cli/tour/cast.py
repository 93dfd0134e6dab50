"""Who and what the tour is about: pods, names and policies, as data. Whoever wants another story begins here."""

from __future__ import annotations

from typing import Final, NamedTuple

from egressd.lab import Zone, pool

__all__ = [
    "GUARDRAIL",
    "HARD_CODED",
    "PODS",
    "POLICIES",
    "STORAGE_TTL_S",
    "WEB",
    "WEB_WITHOUT_LIVE",
    "Role",
    "write_names",
]

STORAGE_TTL_S: Final = 5
HARD_CODED: Final = "198.51.100.9"
"""An address that no name leads to."""


class Role(NamedTuple):
    """A pod of the story: its name, its labels, and its owner as Kubernetes would write it."""

    name: str
    labels: dict[str, str]
    owner: tuple[str, str]
    workload: str
    """What a person would call its owner, and the records do."""
    policies: str
    """What judges it, in a few words."""


PODS: Final = (
    Role(
        "shop/web-0",
        {"app": "web", "pod-template-hash": "6d5f9"},
        ("ReplicaSet", "web-6d5f9"),
        "Deployment/web",
        "shop/web, guardrail",
    ),
    Role(
        "shop/report-x7k2p", {"app": "report"}, ("Job", "report-29387520"), "CronJob/report", "shop/report, guardrail"
    ),
    Role("payments/api-0", {"app": "api"}, ("StatefulSet", "api"), "StatefulSet/api", "payments/api, guardrail"),
    Role("dev/trial-0", {"app": "trial"}, ("StatefulSet", "trial"), "StatefulSet/trial", "dev/trial (mode: Audit)"),
    Role("legacy/batch-0", {"app": "batch"}, ("StatefulSet", "batch"), "StatefulSet/batch", "none"),
)

WEB: Final = """\
subject:
  podSelector: {matchLabels: {app: web}}
allow:
- name: web
  to: [api.example.com, www.example.com, "*.partner.example"]
  ports: [80/TCP]
- name: live
  to: [live.example.com]
  ports: [80/TCP]
"""
WEB_WITHOUT_LIVE: Final = WEB.partition("- name: live")[0]

_REPORT: Final = """\
subject:
  podSelector: {matchLabels: {app: report}}
allow:
- name: object-storage
  to: ["*.s3.example"]
  ports: [80/TCP]
"""
_API: Final = """\
allow:
- name: live
  to: [live.example.com]
  ports: [80/TCP]
"""
_TRIAL: Final = """\
mode: Audit
allow:
- name: api
  to: [api.example.com]
"""
GUARDRAIL: Final = """\
subject:
  namespaceSelector:
    matchExpressions:
    - {key: kubernetes.io/metadata.name, operator: In, values: [shop, payments]}
deny:
- name: no-uploads
  to: [uploads.s3.example]
"""

POLICIES: Final = {
    "shop/web": WEB,
    "shop/report": _REPORT,
    "payments/api": _API,
    "dev/trial": _TRIAL,
    "egressd-system/guardrail": GUARDRAIL,
}
"""The policies of the cluster, by the name that the records give them."""


def write_names(zone: Zone) -> None:
    """What the small internet's DNS says."""
    zone.add("api.example.com", "A", "203.0.113.10")
    zone.add("www.example.com", "CNAME", "www.cdn.example")
    zone.add("*.cdn.example", "CNAME", "edge-7.pop.example")
    zone.add("edge-7.pop.example", "A", "203.0.113.77")
    zone.add("live.example.com", "A", "203.0.113.20")
    zone.add("paste.example", "A", "203.0.113.66")
    zone.add("imds.partner.example", "A", "169.254.169.254")
    for name in ("objects", "uploads"):
        zone.rotate(f"{name}.s3.example", pool("198.51.100.0/24", 120, start=100), count=4, ttl=STORAGE_TTL_S)
