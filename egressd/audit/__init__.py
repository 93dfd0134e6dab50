"""Audit records as JSON Lines: how a record is spelled (`lines`, pure) and how lines reach the disk (`writer`).

The data path renders, the control side writes; neither half knows the other.
"""

from __future__ import annotations

from egressd.audit.lines import Renderer
from egressd.audit.writer import Writer

__all__ = ["Renderer", "Writer"]
