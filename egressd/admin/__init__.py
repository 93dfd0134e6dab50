"""The admin API: what happens on this node, why, and what would happen. Read-only; the only home of aiohttp's server.

`server.Server` serves what `Facts` know, and whoever has them starts it; it is not imported here, since aiohttp takes a
third of a second that no start should wait for. Nothing here is in the way of a query: what the data path counts is
there already, and what it is asked for comes a page at a time.
"""

from __future__ import annotations

from egressd.admin.facts import REASONS, AwayError, Condition, Exports, Facts, unready
from egressd.admin.feed import Feed

__all__ = ["REASONS", "AwayError", "Condition", "Exports", "Facts", "Feed", "unready"]
