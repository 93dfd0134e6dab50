"""ConfigMaps written for people: a policy document with comments, ready to apply.

Every text from outside goes through `scalar` (quoted unless it is plainly text) or `comment` (one printable line), so
that nothing seen on a network can become part of a policy's structure.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from egressd.model import ANY_PORT, PROTOCOLS, Ports, PortSpan
from egressd.policy import normalise
from egressd.schema import POLICY_LABEL

__all__ = ["Page", "RuleText", "comment", "document", "page_text", "port_words", "scalar"]

WIDTH: Final = 110
"""Characters of a comment's line."""
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_-]+)+\Z|[0-9]+/(?:TCP|UDP|SCTP)\Z")
_WORD: Final = re.compile(r"[a-z][a-z0-9-]*[a-z0-9]\Z")
_RESERVED: Final = frozenset({"yes", "no", "on", "off", "true", "false", "null"})


def scalar(text: str) -> str:
    """A text as YAML, quoted where any reader might take it for something else."""
    plain = _PLAIN.match(text) or (_WORD.match(text) and text not in _RESERVED)
    if plain:
        return text
    wide = (json.dumps(letter)[1:-1] if ord(letter) < 0x10000 else f"\\U{ord(letter):08X}" for letter in text)
    return f'"{"".join(wide)}"'  # letter by letter, for JSON writes surrogate pairs, and YAML knows none


def comment(text: str) -> str:
    """A text as one line of a comment."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def listed(items: Iterable[str]) -> str:
    """A YAML list on one line."""
    return f"[{', '.join(scalar(item) for item in items)}]"


def port_words(ports: Ports) -> list[str]:
    """Entries of `ports` for a set of TCP, UDP, SCTP and ICMP ports; empty for every port of every protocol.

    Port 0, which no policy can name, widens its protocol to `*/TCP`.
    """
    if ports == ANY_PORT:
        return []
    words: list[str] = []
    for name, (number, *_) in PROTOCOLS.items():
        spans = [span for span in ports if span.first_protocol <= number <= span.last_protocol]
        ranges = [(first, last) for *_, first, last in normalise(PortSpan(number, number, *s[2:]) for s in spans)]
        if name == "ICMP":
            icmp = (span.first_protocol <= n <= span.last_protocol for span in ports for n in PROTOCOLS[name])
            words += ["*/ICMP"] if any(icmp) else []
        elif any(first == 0 for first, _ in ranges):
            words.append(f"*/{name}")
        else:
            words += [f"{first}/{name}" if first == last else f"{first}-{last}/{name}" for first, last in ranges]
    return words


@dataclass(frozen=True, slots=True)
class RuleText:
    """One rule to be written: peers, each with what to say beside it, and what to say above the rule."""

    action: str
    peers: Sequence[tuple[str, str]]
    ports: Sequence[str] = ()
    private: bool = False
    said: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """One ConfigMap with one policy. `subject` is YAML lines without indentation; empty: the whole namespace."""

    namespace: str
    name: str
    head: Sequence[str]
    subject: Sequence[str]
    rules: Sequence[RuleText]
    mode: str = ""
    dns: str = ""
    said: Sequence[str] = field(default=())
    """Comments inside the document, which stay with it in the cluster."""


def document(page: Page) -> Iterator[str]:
    """The lines of the policy document."""
    for text in page.said:
        yield from _comments(text)
    if page.subject:
        yield "subject:"
        yield from (f"  {line}" for line in page.subject)
    if page.mode:
        yield f"mode: {page.mode}"
    if page.dns:
        yield f"dns: {page.dns}"
    for action in ("allow", "deny"):
        rules = [rule for rule in page.rules if rule.action == action and rule.peers]
        if rules:
            yield f"{action}:"
        elif action == "allow":
            yield "allow: []"
        for rule in rules:
            yield from _rule(rule)


def _rule(rule: RuleText) -> Iterator[str]:
    for text in rule.said:
        yield from _comments(text)
    yield "- to:"
    wide = max(len(scalar(peer)) for peer, _ in rule.peers)
    for peer, said in rule.peers:
        yield f"  - {scalar(peer).ljust(wide)}  # {comment(said)}" if said else f"  - {scalar(peer)}"
    if rule.ports:
        yield f"  ports: {listed(rule.ports)}"
    if rule.private:
        yield "  allowPrivate: true"


def _comments(text: str) -> list[str]:
    return textwrap.wrap(comment(text), WIDTH, initial_indent="# ", subsequent_indent="# ", break_long_words=False) or [
        "#"
    ]


def page_text(page: Page) -> str:
    """The ConfigMap as one YAML document, `---` first."""
    lines = ["---", *(line for text in page.head for line in _comments(text))]
    lines += ["apiVersion: v1", "kind: ConfigMap", "metadata:"]
    lines += [f"  name: {scalar(page.name)}", f"  namespace: {scalar(page.namespace)}"]
    lines += [f'  labels: {{{POLICY_LABEL}: "true"}}', "data:", "  policy.yaml: |"]
    return "\n".join([*lines, *(f"    {line}" for line in document(page))]) + "\n"
