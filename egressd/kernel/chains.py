"""What the tables are made of: chains and rules, and how a rule is written. No rule is here.

A rule is a comment, which nft prints, and its phrases (expr.py) in nft's order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from egressd.kernel.expr import IPV4, IPV6, Family

__all__ = ["Chain", "Hook", "Rule", "rule", "twice"]


class Rule(NamedTuple):
    comment: str
    expressions: bytes


class Hook(NamedTuple):
    number: int
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    name: str
    comment: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


def rule(comment: str, *phrases: bytes) -> Rule:
    return Rule(comment, b"".join(phrases))


def twice(make: Callable[[Family], Rule]) -> tuple[Rule, Rule]:
    return make(IPV4), make(IPV6)
