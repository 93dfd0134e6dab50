"""Other projects' policies into egressd's: text in, ConfigMaps and remarks out.

Any text gives pages and remarks, never an exception. What a reader does not know is found by `walk` and told with its
line; what would open more without a part that cannot be carried over is left out whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from egressd.authoring.convert.calico import calico
from egressd.authoring.convert.cilium import cilium, fqdn_policy
from egressd.authoring.convert.draft import Draft, refuse
from egressd.authoring.convert.ordered import antrea, cluster_network_policy, egress_firewall
from egressd.authoring.convert.walk import Log, Part, Remark, Uncarried
from egressd.authoring.page import Page, page_text
from egressd.schema import ConfigMapObject, check_configmap, read_manifests
from egressd.schema.tree import compose, yaml_text

__all__ = ["Remark", "convert"]

Reader = Callable[[Part, str, str], Iterator[Draft]]

READERS: Final[Mapping[tuple[str, str], tuple[Reader, bool]]] = {
    ("cilium.io", "CiliumNetworkPolicy"): (partial(cilium, cluster=False), False),
    ("cilium.io", "CiliumClusterwideNetworkPolicy"): (partial(cilium, cluster=True), True),
    ("projectcalico.org", "NetworkPolicy"): (partial(calico, cluster=False), False),
    ("projectcalico.org", "GlobalNetworkPolicy"): (partial(calico, cluster=True), True),
    ("crd.projectcalico.org", "NetworkPolicy"): (partial(calico, cluster=False), False),
    ("crd.projectcalico.org", "GlobalNetworkPolicy"): (partial(calico, cluster=True), True),
    ("crd.antrea.io", "NetworkPolicy"): (partial(antrea, cluster=False), False),
    ("crd.antrea.io", "ClusterNetworkPolicy"): (partial(antrea, cluster=True), True),
    ("networking.gke.io", "FQDNNetworkPolicy"): (fqdn_policy, False),
    ("k8s.ovn.org", "EgressFirewall"): (egress_firewall, False),
    ("policy.networking.k8s.io", "ClusterNetworkPolicy"): (cluster_network_policy, True),
    ("policy.networking.k8s.io", "AdminNetworkPolicy"): (cluster_network_policy, True),
    ("policy.networking.k8s.io", "BaselineAdminNetworkPolicy"): (cluster_network_policy, True),
}
"""API group and kind to the reader, and whether the object belongs to the cluster rather than to a namespace."""

PRIVATE: Final = "A name that must lead to private addresses needs `allowPrivate: true` in its rule here."
"""The other projects know no such guard, so it is said in every page."""
OWN_LABEL: Final = "kubernetes.io/metadata.name"
_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,230}[a-z0-9])?\Z")


def convert(
    text: str, file: str, policy_namespace: str, taken: set[tuple[str, str]]
) -> tuple[list[Page], list[Remark]]:
    """The policies of one file, and all that is to be said of it, by line.

    `taken` holds the ConfigMaps already made, by namespace and name, and grows.
    """
    documents, faults = compose(text)
    remarks = [Remark(fault.line, "warning", fault.message) for fault in faults]
    pages: list[Page] = []
    for document in documents:
        log = Log()
        for part in _objects(Part(document, log, "", document.line), set()):
            pages += _pages(part, file, policy_namespace, taken)
        remarks += log.remarks
    return pages, sorted(dict.fromkeys(remarks))


def _objects(part: Part, seen: set[int]) -> Iterator[Part]:
    """The objects of a document, lists opened, each once."""
    if id(part.node) in seen:
        return
    seen.add(id(part.node))
    items = part.at("items")
    if part.at("kind").text.endswith("List") and items:
        for item in items.items():
            yield from _objects(item, seen)
    else:
        yield part


def _pages(part: Part, file: str, policy_namespace: str, taken: set[tuple[str, str]]) -> Iterator[Page]:
    """The pages of one object, with its remarks as comments."""
    log = part.log
    start = len(log.remarks)
    found = _object(part, policy_namespace)
    said = [f"Converted from {file}:{part.line}, kind {part.at('kind').text}."]
    said += [f"{file}:{one.line}: {one.message}" for one in dict.fromkeys(log.remarks[start:])]
    for draft in found:
        if _by_address(draft):
            note = "addresses are allowed, whatever names lead to them: `dns: Resolve` lets every name resolve"
            log.note(draft.line, note)
            said.append(f"{file}:{draft.line}: {note}")
        page = _page(draft, policy_namespace, said, taken)
        if refusal := _refused(page, policy_namespace):
            log.warn(draft.line, f"the policy is not carried over: {refusal}")
            taken.discard((page.namespace, page.name))
        else:
            yield page


def _object(part: Part, policy_namespace: str) -> list[Draft]:
    """The drafts of one object; none, with a remark, for what is no policy that can be read."""
    kind, group = part.at("kind").text, part.at("apiVersion").text.partition("/")[0]
    known = READERS.get((group, kind))
    if known is None:
        what = f"{kind or 'a document'} of {group or 'no API group'}"
        part.log.warn(part.line, f"{what} is not converted: it is none of the known policies")
        return []
    reader, cluster = known
    meta = part.at("metadata")
    namespace = policy_namespace if cluster else meta.at("namespace").text or "default"
    try:
        found = list(reader(part, namespace, _name(meta.at("name"), namespace)))
    except Uncarried as end:
        part.log.remarks.append(end.remark)
        return []
    for lost in [one for key in ("spec", "specs") for one in part.at(key).unread()]:
        part.log.warn(lost.line, f"{lost.path} is not carried over")
    return found


def _name(part: Part, namespace: str) -> str:
    if not _NAME.match(part.text) or not _NAME.match(namespace):
        raise refuse(part, "or the namespace is no object's name")
    return part.text


def _refused(page: Page, policy_namespace: str) -> str:
    """Why `egressd check` would refuse the page: a label, for instance, that Kubernetes would not take either."""
    manifests, problems = read_manifests(page_text(page), "")
    for manifest in manifests:
        if isinstance(manifest, ConfigMapObject):
            problems += check_configmap(manifest, policy_namespace)[1]
    return next((problem.message for problem in problems if problem.severity == "error"), "")


def _page(draft: Draft, policy_namespace: str, said: list[str], taken: set[tuple[str, str]]) -> Page:
    name, number = draft.name, 2
    while (draft.namespace, name) in taken:
        name, number = f"{draft.name}-{number}", number + 1
    taken.add((draft.namespace, name))
    if draft.namespace == policy_namespace and draft.namespaces is None:  # else it would select every namespace
        draft.namespaces = {"matchLabels": {OWN_LABEL: draft.namespace}}
    subject = draft.subject()
    lines = yaml_text(subject).splitlines() if subject else []
    dns = "Resolve" if _by_address(draft) else ""
    return Page(draft.namespace, name, (), lines, draft.rules, dns=dns, said=[*said, PRIVATE])


def _by_address(draft: Draft) -> bool:
    """Whether the policy allows addresses while it does not allow every name."""
    peers = [peer for rule in draft.rules if rule.action == "allow" for peer, _ in rule.peers]
    return "*" not in peers and any("/" in peer for peer in peers)
