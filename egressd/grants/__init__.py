"""Grants: which addresses are open, for whom, through which name, until when (policy.md, Grants). Sans-IO."""

from egressd.grants.crowd import Crowd
from egressd.grants.elements import (
    UNSELECTED_SUBJECT,
    WIDE_RANGE,
    Admission,
    Element,
    GrantView,
    Key,
    Permit,
    expand,
)
from egressd.grants.ledger import Ledger

__all__ = [
    "UNSELECTED_SUBJECT",
    "WIDE_RANGE",
    "Admission",
    "Crowd",
    "Element",
    "GrantView",
    "Key",
    "Ledger",
    "Permit",
    "expand",
]
