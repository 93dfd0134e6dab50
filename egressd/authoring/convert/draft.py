"""A policy on its way: what every reader fills in, and how it becomes a page.

Nothing is widened unless it is said: a peer, a port or a selector that cannot be carried over takes its rule (or its
policy) with it, for the same rule with less in it would open more.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from egressd.authoring.convert.walk import Log, Part, Uncarried
from egressd.authoring.page import RuleText
from egressd.errors import InvalidName
from egressd.model import PROTOCOLS
from egressd.schema.words import read_peer, read_spans

__all__ = [
    "EVERYTHING",
    "Draft",
    "add_rule",
    "blocks",
    "one_port",
    "open_the_rest",
    "pattern",
    "refuse",
    "selector",
]

EVERYTHING: Final = ("*", "0.0.0.0/0", "::/0")
"""The peers that are all names and all addresses."""
MAX_BLOCKS: Final = 1000
"""Blocks that one block with exceptions may fall into; each exception costs at most 128."""


@dataclass(slots=True)
class Draft:
    """One policy. `namespaces` is None for a policy of its own namespace alone."""

    namespace: str
    name: str
    line: int
    pods: dict[str, Any] = field(default_factory=dict)
    namespaces: dict[str, Any] | None = None
    accounts: list[str] = field(default_factory=list)
    rules: list[RuleText] = field(default_factory=list)
    closed: bool = False
    """A rule that denies everything was met: what comes after it never counted."""

    def subject(self) -> dict[str, Any]:
        """The `subject` of the document."""
        found: dict[str, Any] = {"namespaceSelector": self.namespaces or None, "podSelector": self.pods or None}
        return {key: value for key, value in {**found, "serviceAccounts": self.accounts}.items() if value}


def selector(part: Part) -> dict[str, Any]:
    """A Kubernetes label selector as it is."""
    out: dict[str, Any] = {}
    labels = {key: value.text for key, value in part.at("matchLabels").keys()}  # noqa: SIM118 - a method of Part
    if labels:
        out["matchLabels"] = labels
    expressions = [_expression(item) for item in part.at("matchExpressions").items()]
    if expressions:
        out["matchExpressions"] = expressions
    return out


def _expression(item: Part) -> dict[str, Any]:
    found: dict[str, Any] = {"key": item.at("key").text, "operator": item.at("operator").text}
    values = [text for text, _ in item.at("values").texts()]
    return {**found, "values": values} if values else found


def pattern(text: str, line: int, log: Log, *, one_label: bool) -> list[str]:
    """A name or a wildcard as a peer, or nothing; `one_label` says that `*` stood for one label, not for several."""
    text = text.lower().removesuffix(".")
    deep = text.startswith("**.")
    wanted = text[1:] if deep else text
    try:
        read_peer(wanted)
    except (ValueError, InvalidName) as error:
        log.warn(line, f"{text!r} is not carried over: {error}")
        return []
    if wanted.startswith("*.") and one_label and not deep:
        log.warn(line, f"{text!r} matched one label in front; here it matches one or more, which is wider")
    return [wanted]


def blocks(cidr: Part, exceptions: Sequence[tuple[str, int]]) -> list[str]:
    """An address block without its exceptions, as blocks."""
    try:
        left = [ipaddress.ip_network(cidr.text, strict=False)]
        for text, _ in exceptions:
            out = ipaddress.ip_network(text, strict=False)
            left = [piece for block in left for piece in _without(block, out)]
    except ValueError as error:
        cidr.log.warn(cidr.line, f"{cidr.path} is not carried over: {error}")
        return []
    if len(left) > MAX_BLOCKS:
        cidr.log.warn(cidr.line, f"{cidr.path} is not carried over: its exceptions make {len(left)} blocks of it")
        return []
    return [str(block) for block in left]


def _without(block: Any, out: Any) -> list[Any]:
    if block.version != out.version or not block.overlaps(out):
        return [block]
    return [] if block.subnet_of(out) else sorted(block.address_exclude(out))


def one_port(protocol: str, first: str, last: str, part: Part) -> list[str] | None:
    """One entry of `ports`: [] for every port of every protocol, None where it cannot be carried over."""
    protocol = protocol.upper().replace("ICMPV6", "ICMP")
    every = first in {"", "0"}
    if protocol in {"", "ANY"}:
        word = "" if every else first
    else:
        word = f"*/{protocol}" if every or protocol == "ICMP" else f"{first}/{protocol}"
    if last and last != first and not every:
        word = word.replace(first, f"{first}-{last}", 1)
    try:
        if word:
            read_spans(int(word) if word.isdigit() else word)
    except ValueError as error:
        known = "" if not protocol or protocol in {*PROTOCOLS, "ANY"} else " (protocol)"
        part.log.warn(part.line, f"{part.path}{known} is not carried over: {error}")
        return None
    return [word] if word else []


def add_rule(
    draft: Draft, source: Part, action: str, peers: Sequence[str], ports: Sequence[list[str] | None], *, ordered: bool
) -> None:
    """Add a rule, unless it lost something that narrowed it. `ports`: one entry for each of the source's.

    In `ordered` policies the first rule that matches counted, where here a deny always wins.
    """
    log, line = source.log, source.line
    lost = ", ".join(part.path.removeprefix(f"{source.path}.") for part in source.unread())
    carried = [entry for entry in ports if entry is not None]
    if lost:
        source.swallow()
        log.warn(line, f"{source.path} is not carried over: {lost} has no like here, and would be missed")
    elif not peers or (ports and not carried):
        log.warn(line, f"{source.path} is not carried over: nothing of it is left")
    elif draft.closed:
        log.warn(line, f"{source.path} is not carried over: a rule before it denies everything, so it never counted")
    elif action == "deny" and ordered and not ports and "0.0.0.0/0" in peers:
        draft.closed = True
        log.note(line, f"{source.path} denies everything: that is what egressd does with what no rule allows")
    else:
        if action == "deny" and ordered and any(rule.action == "allow" for rule in draft.rules):
            log.warn(line, f"{source.path} denies after rules that allow: here deny always wins, whatever the order")
        words = [] if [] in carried else list(dict.fromkeys(word for entry in carried for word in entry))
        draft.rules.append(RuleText(action, [(peer, "") for peer in dict.fromkeys(peers)], words))


def open_the_rest(draft: Draft, source: Part) -> None:
    """What no rule matched was allowed: so it stays, and that is said."""
    if draft.closed:
        return
    message = (
        "let through what no rule matches: the rule that allows everything keeps it so; remove it to close the rest"
    )
    source.log.warn(source.line, f"{source.path} {message}")
    draft.rules.append(
        RuleText("allow", [(peer, "") for peer in EVERYTHING], private=True, said=["What no rule matched was allowed."])
    )


def refuse(part: Part, message: str) -> Uncarried:
    """The whole policy cannot be carried over, because of this part."""
    return Uncarried(part.line, f"the policy is not carried over: {part.path} {message}")
