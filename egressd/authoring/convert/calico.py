"""Calico's NetworkPolicy and GlobalNetworkPolicy (projectcalico.org/v3, crd.projectcalico.org/v1), with `domains`.

The first rule that matches counts, and a policy with egress rules closes what none of its rules matches. `*` stands
for one or more labels, as here. Selectors are expressions; a chain of `&&` has a like in Kubernetes, the rest has none.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from egressd.authoring.convert.draft import EVERYTHING, Draft, add_rule, blocks, one_port, pattern, refuse
from egressd.authoring.convert.ordered import action_of
from egressd.authoring.convert.walk import Part

__all__ = ["calico"]

OWN_LABEL: Final = "kubernetes.io/metadata.name"
RENAMED: Final = {"projectcalico.org/name": OWN_LABEL}
"""Labels that Calico adds to namespaces."""
ALWAYS: Final = {"projectcalico.org/orchestrator"}
"""Labels that every pod has."""
_KEY: Final = r"(?P<key>[A-Za-z0-9_./-]+)"
_TEXT: Final = r"(?:'(?P<one>[^']*)'|\"(?P<two>[^\"]*)\")"
_COMPARED: Final = re.compile(rf"{_KEY}\s*(?P<how>==|!=)\s*{_TEXT}\Z")
_LISTED: Final = re.compile(rf"{_KEY}\s+(?P<how>not\s+in|in)\s*{{(?P<values>[^}}]*)}}\Z")
_HAS: Final = re.compile(rf"(?P<how>!?)\s*has\(\s*{_KEY}\s*\)\Z")


def calico(document: Part, namespace: str, name: str, *, cluster: bool) -> Iterator[Draft]:
    """One draft, if the policy has egress rules."""
    spec = document.at("spec")
    spec.ignore("order", "tier", "types", "ingress", "performanceHints")
    if not spec.at("egress"):
        spec.log.note(spec.line, f"{spec.path} has no egress rules: there is nothing to convert")
        return
    draft = Draft(namespace, name, spec.line, pods=_selector(spec.at("selector")))
    if cluster:
        draft.namespaces = _selector(spec.at("namespaceSelector"))
    if accounts := spec.at("serviceAccountSelector"):
        raise refuse(accounts, "selects service accounts by label; egressd by name")
    for part in spec.unread():
        if not part.path.startswith(f"{spec.path}.egress["):
            raise refuse(part, "has no like here")
    for rule in spec.at("egress").items():
        if action := action_of(rule, "action"):
            _rule(draft, rule, action)
    yield draft


def _selector(part: Part) -> dict[str, Any]:
    """A chain of `&&` as a label selector."""
    out: dict[str, Any] = {}
    for piece in part.text.split("&&"):
        term = piece.strip()
        if not term or term in {"all()", "global()"}:
            continue
        one = _term(term)
        if one is None:
            raise refuse(part, f"holds {term[:60]!r}, which no label selector can say")
        key = RENAMED.get(one["key"], one["key"])
        if key in ALWAYS:
            continue
        if key.startswith("projectcalico.org/"):
            raise refuse(part, f"selects by {key}, which is no label in Kubernetes")
        if one["operator"] == "In" and len(one["values"]) == 1 and key not in out.get("matchLabels", {}):
            out.setdefault("matchLabels", {})[key] = one["values"][0]
        else:
            out.setdefault("matchExpressions", []).append({**one, "key": key})
    return out


def _term(term: str) -> dict[str, Any] | None:
    if found := _COMPARED.match(term):
        value = found["one"] if found["one"] is not None else found["two"]
        return {"key": found["key"], "operator": "In" if found["how"] == "==" else "NotIn", "values": [value]}
    if found := _LISTED.match(term):
        values = [value.strip().strip("'\"") for value in found["values"].split(",") if value.strip()]
        return {"key": found["key"], "operator": "In" if found["how"] == "in" else "NotIn", "values": values}
    if found := _HAS.match(term):
        return {"key": found["key"], "operator": "DoesNotExist" if found["how"] else "Exists"}
    return None


def _rule(draft: Draft, rule: Part, action: str) -> None:
    rule.ignore("metadata")
    to = rule.at("destination")
    domains, nets = to.at("domains"), to.at("nets")
    peers: list[str] = [] if domains or nets else list(EVERYTHING)
    for text, line in domains.texts():
        peers += pattern(text, line, rule.log, one_label=False)
    for net in nets.items():
        peers += blocks(net, [])
    if domains and nets:
        rule.swallow()
        rule.log.warn(rule.line, f"{rule.path} is not carried over: names and blocks must both match there")
        return
    protocol = rule.at("protocol").text
    entries = to.at("ports").items()
    ports = [one_port(protocol, *_range(one.text), one) for one in entries]
    if not entries and protocol:
        ports = [one_port(protocol, "", "", rule)]
    add_rule(draft, rule, action, peers, ports, ordered=True)


def _range(text: str) -> tuple[str, str]:
    first, _, last = text.partition(":")
    return first, last
