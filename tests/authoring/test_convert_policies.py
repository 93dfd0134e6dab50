"""Other projects' policies converted: what is carried over, what is said, and that nothing is lost in silence."""

# ruff: noqa: E501 - each foreign policy of the tables is one line, so that the tables can be read

from __future__ import annotations

import pytest
import yaml
from authoring_samples import compiled
from hypothesis import given, settings
from hypothesis import strategies as st

from egressd.authoring import page_text
from egressd.authoring.convert import Remark, convert

OPEN = ["* 0.0.0.0/0 ::/0"]
"""The rule that keeps what no rule matched open."""


def source(api: str, kind: str, spec: str, namespace: str = "shop") -> str:
    return f"apiVersion: {api}\nkind: {kind}\nmetadata: {{name: web, namespace: {namespace}}}\nspec: {spec}\n"


def cilium(spec: str, kind: str = "CiliumNetworkPolicy") -> str:
    return source("cilium.io/v2", kind, spec)


def calico(spec: str, kind: str = "NetworkPolicy") -> str:
    return source("projectcalico.org/v3", kind, spec)


def antrea(spec: str, kind: str = "NetworkPolicy") -> str:
    return source("crd.antrea.io/v1beta1", kind, spec)


def ovn(spec: str) -> str:
    return source("k8s.ovn.org/v1", "EgressFirewall", spec)


def gke(spec: str) -> str:
    return source("networking.gke.io/v1alpha1", "FQDNNetworkPolicy", spec)


def upstream(spec: str, kind: str = "ClusterNetworkPolicy") -> str:
    return source("policy.networking.k8s.io/v1alpha2", kind, spec)


def converted(text: str) -> tuple[list[str], list[Remark], dict[str, object]]:
    """Rules as `[deny ]peers [ports]`, the remarks, and the subject of the last policy."""
    pages, remarks = convert(text, "in.yaml", "egressd-system", set())
    policies, problems = compiled("".join(map(page_text, pages)))
    assert [one for one in problems if one.severity == "error"] == []
    assert len(policies) == len(pages)
    rules = [
        " ".join([*(["deny"] if rule.action == "deny" else []), *(peer for peer, _ in rule.peers), *rule.ports])
        for page in pages
        for rule in page.rules
    ]
    subject = yaml.safe_load("\n".join(pages[-1].subject)) if pages and pages[-1].subject else {}
    return rules, remarks, subject


WEB = "endpointSelector: {matchLabels: {app: web}}"
ALL = "subject: {namespaces: {}}"


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        (cilium(f"{{{WEB}, egress: [{{toFQDNs: [{{matchName: API.example.com.}}]}}]}}"), ["api.example.com"]),
        (cilium(f'{{{WEB}, egress: [{{toFQDNs: [{{matchPattern: "**.x.example"}}, {{matchPattern: "*"}}]}}]}}'), ["*.x.example *"]),
        (
            cilium(
                f"{{{WEB}, egress: [{{toFQDNs: [{{matchName: a.example}}], toPorts: [{{ports: "
                '[{port: "8000", endPort: 8100, protocol: TCP}, {port: "53"}, {port: "0", protocol: UDP}]}]}]}'
            ),
            ["a.example 8000-8100/TCP 53 */UDP"],
        ),
        (
            cilium(f"{{{WEB}, egress: [{{toCIDRSet: [{{cidr: 192.0.2.0/24, except: [192.0.2.0/25]}}]}}]}}"),
            ["192.0.2.128/25"],
        ),
        (
            cilium(f"{{{WEB}, egress: [{{toEntities: [world]}}], egressDeny: [{{toCIDR: [192.0.2.1/32]}}]}}"),
            ["* 0.0.0.0/0 ::/0", "deny 192.0.2.1/32"],
        ),
        (cilium(f"{{{WEB}, egress: [{{}}]}}"), []),
        (gke('{podSelector: {}, egress: [{matches: [{name: a.example}], ports: [{protocol: TCP, port: 443}]}]}'), ["a.example 443/TCP"]),
        (gke("{podSelector: {}, egress: [{to: [{fqdns: [a.example, b.example]}]}]}"), ["a.example b.example"]),
        (
            ovn("{egress: [{type: Allow, to: {dnsName: a.example}}, {type: Deny, to: {cidrSelector: 0.0.0.0/0}}]}"),
            ["a.example"],
        ),
        (ovn("{egress: [{type: Deny, to: {cidrSelector: 192.0.2.0/24}}]}"), ["deny 192.0.2.0/24", *OPEN]),
        (
            antrea(
                "{appliedTo: [{podSelector: {matchLabels: {app: web}}}], egress: [{action: Allow, to: [{fqdn: '*.x.example'}],"
                " ports: [{protocol: TCP, port: 80, endPort: 90}]}, {action: Drop}]}"
            ),
            ["*.x.example 80-90/TCP"],
        ),
        (
            calico("{selector: app == 'web', egress: [{action: Allow, protocol: TCP, destination: {domains: ['*.x.example', a.example], ports: [443, '8000:8100']}}]}"),
            ["*.x.example a.example 443/TCP 8000-8100/TCP"],
        ),
        (
            calico("{egress: [{action: Allow, protocol: UDP, destination: {nets: [192.0.2.0/24]}}, {action: Deny}]}"),
            ["192.0.2.0/24 */UDP"],
        ),
        (
            upstream(f"{{{ALL}, tier: Admin, priority: 1, egress: [{{action: Accept, to: [{{domainNames: ['*.x.example']}}], protocols: [{{tcp: {{destinationPort: {{number: 443}}}}}}]}}, {{action: Deny, to: [{{networks: [0.0.0.0/0, '::/0']}}]}}]}}"),
            ["*.x.example 443/TCP"],
        ),
        (
            upstream(f"{{{ALL}, egress: [{{action: Allow, to: [{{domainNames: [a.example]}}], ports: [{{portRange: {{start: 1, end: 9, protocol: UDP}}}}]}}]}}", "AdminNetworkPolicy"),
            ["a.example 1-9/UDP", *OPEN],
        ),
    ],
)  # fmt: skip
def test_rules(text: str, rules: list[str]) -> None:
    """Peers, ports, exceptions, denials, and what happens to the rest."""
    assert converted(text)[0] == rules


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (cilium(f'{{{WEB}, egress: [{{toFQDNs: [{{matchPattern: "*.x.example"}}]}}]}}'), "here it matches one or more"),
        (cilium(f'{{{WEB}, egress: [{{toFQDNs: [{{matchPattern: "a-*.x.example"}}]}}]}}'), "write '*.x.example'"),
        (cilium(f"{{{WEB}, egress: [{{toServices: [{{k8sService: {{}}}}]}}]}}"), "toServices is not carried over"),
        (cilium(f"{{{WEB}, egress: [{{toFQDNs: [{{matchName: a.example}}], authentication: {{mode: x}}}}]}}"), "authentication has no like"),
        (cilium(f"{{{WEB}, egress: [{{toFQDNs: [{{matchName: a.example}}], toPorts: [{{ports: [{{port: http}}]}}]}}]}}"), "nothing of it is left"),
        (cilium("{nodeSelector: {}}"), "selects nodes"),
        (cilium(f"{{{WEB}, enableDefaultDeny: {{egress: false}}, egress: [{{toEntities: [world]}}]}}"), "let through what no rule matches"),
        (cilium(f"{{{WEB}, log: {{}}, egress: [{{toEntities: [cluster]}}]}}"), ".spec.log is not carried over"),
        (gke("{podSelector: {}, egress: [{matches: [{pattern: '*.x.example'}]}]}"), "here it matches one or more"),
        (ovn("{egress: [{type: Allow, to: {nodeSelector: {}}}]}"), "to.nodeSelector has no like here"),
        (ovn("{egress: [{type: Allow, to: {dnsName: a.example}}, {type: Deny, to: {dnsName: b.example}}]}"), "deny always wins"),
        (antrea("{appliedTo: [{group: g}], egress: [{action: Drop}]}"), "appliedTo[0].group selects what no subject can"),
        (antrea("{appliedTo: [{podSelector: {}}], egress: [{action: Pass}]}"), "its action 'Pass' has no like"),
        (antrea("{appliedTo: [{podSelector: {}}], egress: [{action: Allow, to: [{fqdn: '*x.example'}]}]}"), "'*x.example' is not carried over"),
        (calico("{selector: \"a == 'b' || c == 'd'\", egress: [{action: Allow}]}"), "which no label selector can say"),
        (calico("{egress: [{action: Allow, source: {selector: all()}, destination: {domains: [a.example]}}]}"), "source has no like here"),
        (calico("{egress: [{action: Allow, destination: {domains: ['www.*.example']}}]}"), "'www.*.example' is not carried over"),
        (calico("{serviceAccountSelector: all(), egress: [{action: Allow}]}"), "service accounts by label"),
        (upstream(f"{{{ALL}, egress: [{{action: Accept, to: [{{pods: {{}}}}, {{domainNames: [a.example]}}]}}]}}"), "to[0].pods is not carried over"),
        ("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n", "NetworkPolicy of networking.k8s.io is not converted"),
        ("a: [\n", "this is not YAML"),
        (cilium("{endpointSelector: {matchLabels: {app: 'not a label'}}, egress: [{toEntities: [world]}]}"), "is not a label value"),
    ],
)  # fmt: skip
def test_what_is_not_carried_over_is_said(text: str, said: str) -> None:
    """As a warning with a line of the source."""
    _, remarks, _ = converted(text)
    found = [one for one in remarks if said in one.message]
    assert [one.severity for one in found][:1] == ["warning"]
    assert 1 <= found[0].line <= text.count("\n") + 1


@pytest.mark.parametrize(
    ("text", "subject"),
    [
        (
            cilium("{endpointSelector: {matchLabels: {'k8s:app': web, 'io.cilium.k8s.policy.serviceaccount': web}}, egress: [{}]}"),
            {"podSelector": {"matchLabels": {"app": "web"}}, "serviceAccounts": ["web"]},
        ),
        (
            cilium("{endpointSelector: {matchLabels: {'k8s:io.kubernetes.pod.namespace': shop}}, egress: [{}]}", "CiliumClusterwideNetworkPolicy"),
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}},
        ),
        (
            calico("{selector: \"app == 'web' && tier in {'a', 'b'} && !has(x)\", egress: [{action: Deny}]}"),
            {"podSelector": {"matchLabels": {"app": "web"}, "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]}, {"key": "x", "operator": "DoesNotExist"}]}},
        ),
        (
            antrea("{appliedTo: [{serviceAccount: {name: web, namespace: shop}}], egress: [{action: Drop}]}", "ClusterNetworkPolicy"),
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}, "serviceAccounts": ["web"]},
        ),
        (
            source("k8s.ovn.org/v1", "EgressFirewall", "{egress: []}", "egressd-system"),
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "egressd-system"}}},
        ),
    ],
)  # fmt: skip
def test_subjects(text: str, subject: dict[str, object]) -> None:
    """Labels, namespaces and service accounts; a namespaced policy never becomes one for the cluster."""
    assert converted(text)[2] == subject


def test_addresses_stay_reachable_by_names() -> None:
    """An allowed block was open whatever name led to it: every name resolves, and that is noted."""
    text = cilium(f"{{{WEB}, egress: [{{toCIDR: [192.0.2.0/24]}}]}}")
    pages, remarks = convert(text, "in.yaml", "egressd-system", set())
    assert "    dns: Resolve\n" in page_text(pages[0])
    assert [one.severity for one in remarks] == ["note"]


def test_names_are_taken_once() -> None:
    """Two policies of one name become two ConfigMaps; lists are opened."""
    item = "{apiVersion: k8s.ovn.org/v1, kind: EgressFirewall, metadata: {name: default, namespace: shop}, spec: {egress: []}}"
    pages, _ = convert(f"kind: List\nitems:\n- {item}\n- {item}\n", "in.yaml", "egressd-system", set())
    assert [page.name for page in pages] == ["default", "default-2"]


KEYS = st.sampled_from(["egress", "egressDeny", "to", "toFQDNs", "toPorts", "ports", "port", "matchName", "destination",
                        "domains", "action", "type", "endpointSelector", "matchLabels", "subject", "pods", "appliedTo",
                        "podSelector", "networks", "domainNames", "selector", "fqdn", "spec", "x"])  # fmt: skip
VALUES = st.sampled_from(["Allow", "Deny", "a.example", "*", "*.example", "443", "", "0.0.0.0/0", "TCP", "all()", "no"])
TREES = st.recursive(
    VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)
READERS = st.sampled_from([cilium, calico, antrea, ovn, gke, upstream])


@given(READERS, TREES)
@settings(max_examples=300, deadline=None)
def test_any_spec_gives_valid_policies_or_remarks(reader: object, tree: object) -> None:
    """No text raises, and what comes out passes `check`."""
    assert callable(reader)
    _, remarks, _ = converted(
        reader(yaml.safe_dump(tree, default_flow_style=True, width=10_000).strip().removesuffix("..."))
    )
    assert all(one.severity in {"warning", "note"} for one in remarks)


@given(st.text(max_size=60))
def test_any_text_is_taken(text: str) -> None:
    """No text raises."""
    assert converted(text)[0] == []
