"""Policies judged: from the policies that select a pod to a verdict for every name and address, and to what the kernel
must know. policy.md is the law; no I/O, no clock, no log.

`select` finds a pod's policies; a `Judge` is built from them and answers; `Plan` is its address rules for the kernel.
"""

from __future__ import annotations

from egressd.policy.addresses import block_text
from egressd.policy.explain import Explanation
from egressd.policy.judge import ClusterFacts, Judge
from egressd.policy.noise import is_expansion, is_search_noise
from egressd.policy.plan import Interval, Plan
from egressd.policy.ports import WIDE_RANGE, contains, intersect, normalise, ports_text, subtract, union
from egressd.policy.select import select, selector_matches
from egressd.policy.verdict import FOREIGN, MALFORMED, RATE_LIMITED, UNKNOWN_POD, UNSELECTED

__all__ = [
    "FOREIGN",
    "MALFORMED",
    "RATE_LIMITED",
    "UNKNOWN_POD",
    "UNSELECTED",
    "WIDE_RANGE",
    "ClusterFacts",
    "Explanation",
    "Interval",
    "Judge",
    "Plan",
    "block_text",
    "contains",
    "intersect",
    "is_expansion",
    "is_search_noise",
    "normalise",
    "ports_text",
    "select",
    "selector_matches",
    "subtract",
    "union",
]
