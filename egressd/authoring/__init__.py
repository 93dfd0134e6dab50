"""Policies from what was seen and from what others wrote: suggested, tried out, converted. Values and text in, values
and text out; no I/O, no clock.

`Evidence` and `suggest` write policies from audit records, `Replay` judges records by policies not yet applied, and
`egressd.authoring.convert` reads other projects' policies.
"""

from __future__ import annotations

from egressd.authoring.evidence import Evidence
from egressd.authoring.page import Page, comment, page_text
from egressd.authoring.past import read_observation
from egressd.authoring.replay import Change, Known, Outcome, Replay
from egressd.authoring.seen import Seen, moment, read_line
from egressd.authoring.selecting import Pods, gathered
from egressd.authoring.suggest import Wanted, suggest

__all__ = [
    "Change",
    "Evidence",
    "Known",
    "Outcome",
    "Page",
    "Pods",
    "Replay",
    "Seen",
    "Wanted",
    "comment",
    "gathered",
    "moment",
    "page_text",
    "read_line",
    "read_observation",
    "suggest",
]
