"""Domain names and patterns: values that can only be built valid.

A `Name` is text in one canonical form: lower case, no trailing dot ("." alone is
the root), every octet outside `[a-z0-9_-]` written `\\DDD` (decimal, RFC 1035
section 5.1), so that two names are equal exactly when their wire forms are equal
without regard to case, and `name.split(".")` always yields the labels, even where
a label holds a dot. Names from policies come through `parse_name`; names from
packets are spelled by `wire` with `label_text`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NewType

from egressd.errors import InvalidName

__all__ = ["MAX_LABEL", "MAX_NAME", "ROOT", "Name", "Pattern", "in_domain", "label_text", "parse_name", "parse_pattern"]

MAX_LABEL: Final = 63
"""Octets in one label (RFC 1035 section 2.3.4)."""
MAX_NAME: Final = 253
"""Characters of a name in text without the trailing dot: 255 octets on the wire (RFC 1035 section 2.3.4)."""

Name = NewType("Name", str)
ROOT: Final = Name(".")

_LABEL: Final = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)\Z")
_PLAIN: Final = re.compile(rb"[a-z0-9_-]*\Z")


@dataclass(frozen=True, slots=True, order=True)
class Pattern:
    """What a rule's `to` says of names (policy.md, Patterns).

    `*.example.com` is `Pattern("example.com", wildcard=True)`: one or more whole labels in front, never the
    name itself. `*` is `Pattern(ROOT, wildcard=True)`. Without `wildcard` it matches that name alone.
    """

    name: Name
    wildcard: bool = False

    def __str__(self) -> str:
        if not self.wildcard:
            return self.name
        return "*" if self.name == ROOT else f"*.{self.name}"

    def matches(self, name: Name) -> bool:
        """Whether the pattern covers `name`; the reference that the label trie is tested against."""
        if not self.wildcard:
            return name == self.name
        return self.name == ROOT or name.endswith("." + self.name)


def label_text(label: bytes) -> str:
    """Spell one wire label canonically: `b"A.b"` gives `a\\046b`. Never fails; `label` is 1 to 63 octets."""
    lowered = label.lower()
    if _PLAIN.match(lowered):
        return lowered.decode("ascii")
    return "".join(chr(c) if _PLAIN.match(bytes((c,))) else f"\\{c:03d}" for c in lowered)


def in_domain(name: Name, domain: Name) -> bool:
    """Whether `name` is `domain` or lies under it, at a label boundary."""
    return domain in (name, ROOT) or name.endswith("." + domain)


def _a_label(label: str, text: str) -> str:
    if label.isascii():
        return label
    import idna  # on first use: only policies have such names, and the data path reads none

    try:
        return idna.encode(label, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise InvalidName(f"{text!r} is not a valid internationalised name: {error}") from None


def parse_name(text: str) -> Name:
    """Read a name as people write it: any case, trailing dot or not, Unicode or A-labels (IDNA 2008, RFC 5891).

    Raises `InvalidName`, which says what is wrong and what to write instead.
    """
    given = text
    text = text.replace("。", ".").removesuffix(".").lower()
    if not text:
        raise InvalidName("a name must not be empty", "write a domain name such as api.example.com")
    labels = [_a_label(label, given) for label in text.split(".")]
    for label in labels:
        if not label:
            raise InvalidName(f"{given!r} has an empty label", "remove the extra dot")
        if len(label) > MAX_LABEL:
            raise InvalidName(f"{given!r} has a label of {len(label)} octets; at most {MAX_LABEL} are legal")
        if "*" in label:
            raise InvalidName(_misplaced_star(given, labels), "")
        if not _LABEL.match(label):
            raise InvalidName(
                f"{given!r} is not a domain name: in {label!r} only letters, digits, '_' and inner '-' are legal"
            )
    name = ".".join(labels)
    if len(name) > MAX_NAME:
        raise InvalidName(f"{given[:40]!r}… has {len(name)} characters; a name has at most {MAX_NAME}")
    return Name(name)


def _misplaced_star(given: str, labels: list[str]) -> str:
    last = max(i for i, label in enumerate(labels) if "*" in label)
    rest = ".".join(labels[last + 1 :])
    instead = (
        f"write '*.{rest}' (every name under {rest}) or list the names"
        if rest
        else "list the names, or write '*' for every name"
    )
    return f"{given!r}: '*' may only be the whole first label; {instead}"


def parse_pattern(text: str) -> Pattern:
    """Read `name`, `*.name` or `*`. Raises `InvalidName` with the right spelling for any other use of `*`."""
    if text == "*":
        return Pattern(ROOT, wildcard=True)
    if text.startswith("*."):
        rest = text[2:]
        if "*" in rest or not rest:
            raise InvalidName(_misplaced_star(text, text.removesuffix(".").split(".")))
        return Pattern(parse_name(rest), wildcard=True)
    return Pattern(parse_name(text))
