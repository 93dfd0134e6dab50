"""From evidence to policies: the smallest readable one per workload, which allows all that was seen and no more.

Names stand as they were asked. Siblings become a wildcard only on request, and never where a wildcard would let in
names of other owners (public suffixes, and whatever lies above one).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from egressd.authoring.evidence import Evidence, Peer, Workload
from egressd.authoring.page import Page, RuleText, comment, listed, port_words, scalar
from egressd.authoring.selecting import Pods, selector
from egressd.model import Address, address_text
from egressd.names import Name, Pattern
from egressd.policy.addresses import Guard, Kind
from egressd.schema.words import spans_strangers

__all__ = ["Wanted", "suggest"]

NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"
_KEY: Final = re.compile(r"[a-z][a-z0-9.-]*/[A-Za-z][A-Za-z0-9_.-]*\Z")
"""A label's key with a prefix, which YAML takes for nothing but text."""
MAX_TOLD: Final = 5
"""Addresses or names spelled out in one comment."""
MAX_NAME: Final = 240
"""Characters of a ConfigMap's name, of 253: room for a number behind it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """How policies are to be written. `fold`: siblings that make a wildcard; 0 never."""

    fold: int = 0
    mode: str = ""
    policy_namespace: str = "egressd-system"
    pods: Pods = field(default_factory=dict)
    """Pods whose labels are known; workloads that they do not tell apart are selected by service account."""


def suggest(evidence: Evidence, wanted: Wanted) -> Iterator[Page]:
    """One policy for every workload that reached something outside the cluster, ordered by namespace and name."""
    taken: set[tuple[str, str]] = set()
    for workload in sorted(evidence.workloads.values(), key=lambda one: (one.namespace, one.name)):
        if workload.names or workload.addresses:
            yield _page(workload, evidence, wanted, _free(workload, taken))


def _free(workload: Workload, taken: set[tuple[str, str]]) -> str:
    """A name for the ConfigMap that says it was suggested, so that it never replaces one that somebody wrote."""
    stem = re.sub("[^a-z0-9]+", "-", f"suggested-{workload.name.lower()}")[:MAX_NAME].strip("-")
    name, number = stem, 2
    while (workload.namespace, name) in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add((workload.namespace, name))
    return name


def _page(workload: Workload, evidence: Evidence, wanted: Wanted, name: str) -> Page:
    labels = selector(workload.namespace, workload.name, wanted.pods)
    if labels:
        subject = [f"podSelector: {{matchLabels: {{{', '.join(map(_label, labels.items()))}}}}}"]
        warnings = [*_left_out(workload)]
    else:
        subject = [f"serviceAccounts: {listed(sorted(workload.accounts))}"]
        warnings = [*_sharing(workload, evidence), *_left_out(workload)]
    if workload.namespace == wanted.policy_namespace:  # else it would be a cluster policy for everybody
        label = f"{{{NAMESPACE_LABEL}: {scalar(workload.namespace)}}}"
        subject.insert(0, f"namespaceSelector: {{matchLabels: {label}}}")
    return Page(
        namespace=workload.namespace,
        name=name,
        head=[_headline(workload), *warnings],
        subject=subject,
        rules=[*_name_rules(workload, evidence.guard, wanted.fold), *_address_rules(workload)],
        mode=wanted.mode,
    )


def _headline(workload: Workload) -> str:
    counts = f"{count(workload.queries, 'query')} and {count(workload.flows, 'flow')}"
    span = f"{workload.first[:19]} to {workload.last[:19]} UTC"
    pods = f", {count(len(workload.pods), 'pod')}" if workload.pods else ""
    return f"{workload.name}{pods}: {counts}, {span}."


def count(number: int, what: str) -> str:
    """`1 query`, `2 queries`."""
    plural = f"{what[:-1]}ies" if what.endswith("y") else f"{what}s"
    return f"{number:,} {what if number == 1 else plural}"


def _label(pair: tuple[str, str]) -> str:
    key, value = pair
    return f"{key if _KEY.match(key) else scalar(key)}: {scalar(value)}"


def _sharing(workload: Workload, evidence: Evidence) -> Iterator[str]:
    sharing = sorted(
        other.name
        for other in evidence.workloads.values()
        if other is not workload and other.namespace == workload.namespace and other.accounts & workload.accounts
    )
    if sharing:
        yield (
            f"The service account is shared with {_few(sharing)}: this policy selects those pods too. "
            "Give each workload its own account, or add a podSelector."
        )


def _left_out(workload: Workload) -> Iterator[str]:
    if workload.unwritable:
        yield f"Names that no policy can spell were left out: {_few(sorted(workload.unwritable))}."


def _few(items: Sequence[str]) -> str:
    more = f" and {len(items) - MAX_TOLD} more" if len(items) > MAX_TOLD else ""
    return comment(", ".join(items[:MAX_TOLD])) + more


# ------------------------------------------------------------------------------------------------ rules


def _name_rules(workload: Workload, guard: Guard, fold: int) -> Iterator[RuleText]:
    groups: dict[tuple[tuple[str, ...], bool], dict[Name, Peer]] = defaultdict(dict)
    for name, peer in workload.names.items():
        private = any(guard.kind(address) is Kind.PRIVATE for address in peer.addresses)
        groups[tuple(port_words(peer.known_ports)) if peer.known_ports else (), private][name] = peer
    for (ports, private), names in sorted(groups.items(), key=lambda item: (not item[0][0], item[0])):
        said = [] if ports else ["Ports were not seen, or not all of them: every port is open. Add 'ports' if you can."]
        never = sorted({a for peer in names.values() for a in peer.addresses if guard.kind(a) is Kind.NEVER})
        if never:
            said.append(f"Answers held {_few(list(map(address_text, never)))}, which are never granted.")
        peers = [(str(pattern), text) for pattern, text in _peers(names, fold)]
        yield RuleText("allow", peers, ports, private, said)


def _peers(names: Mapping[Name, Peer], fold: int) -> Iterator[tuple[Pattern, str]]:
    """The patterns of one rule with the evidence for each; what a wildcard covers is not listed again."""
    wildcards = _wildcards(names, fold) if fold else []
    rest = {name: peer for name, peer in names.items() if not any(one.matches(name) for one in wildcards)}
    found = [(Pattern(name), _proof([peer])) for name, peer in rest.items()]
    for one in wildcards:
        covered = [name for name in names if one.matches(name)]
        text = (
            f"{_proof(names[name] for name in covered)}: {count(len(covered), 'name')}, {_few(sorted(covered)[:2])} …"
        )
        found.append((one, text))
    return iter(sorted(found, key=lambda item: (item[0].name.split(".")[::-1], item[0].wildcard)))


def _wildcards(names: Iterable[Name], fold: int) -> list[Pattern]:
    siblings: dict[Name, int] = defaultdict(int)
    for name in names:
        siblings[Name(name.partition(".")[2])] += 1
    domains = [
        domain for domain, number in siblings.items() if number >= fold and domain and not spans_strangers(domain)
    ]
    patterns = [Pattern(domain, wildcard=True) for domain in domains]
    return [one for one in patterns if not any(other.matches(one.name) for other in patterns)]


def _proof(peers: Iterable[Peer]) -> str:
    """`12 queries, 3 flows, denied so far`."""
    every = list(peers)
    queries, flows = sum(peer.queries for peer in every), sum(peer.flows for peer in every)
    parts = [count(queries, "query")] if queries else []
    parts += [count(flows, "flow")] if flows else []
    parts += ["denied so far"] if any(peer.denied for peer in every) else []
    return ", ".join(parts)


def _address_rules(workload: Workload) -> Iterator[RuleText]:
    groups: dict[tuple[str, ...], dict[Address, Peer]] = defaultdict(dict)
    for address, peer in workload.addresses.items():
        groups[() if peer.any_port else tuple(port_words(peer.ports))][address] = peer
    for ports, addresses in sorted(groups.items()):
        peers = [(address_text(address), _proof([peer])) for address, peer in sorted(addresses.items())]
        yield RuleText("allow", peers, ports, said=["Addresses that were dialled without a name."])
