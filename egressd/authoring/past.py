"""Observations of history as what was seen: one JSON value of `/api/v1/history` in, one value or nothing out.

An observation stands for many records that are alike. It holds no pod's name, and of addresses no more than whether
one was out of the ordinary; where a verdict needs one, an address that is of that kind stands in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from egressd.authoring.seen import PROTOCOLS, UNRELATED, Dropped, Flow, Query, Seen
from egressd.model import Address, PodIdentity, Reason, Verdict
from egressd.names import Name
from egressd.schema.words import read_address

__all__ = ["read_observation"]

SOME_PRIVATE: Final = Address(bytes((10, 255, 255, 255)))
SOME_ORDINARY: Final = Address(bytes((192, 0, 2, 0)))
"""Of a range that is nobody's (RFC 5737): no rule is about it."""


def read_observation(one: Mapping[str, Any]) -> Seen | None:
    """What an observation tells, if it tells anything that a policy could change."""
    verdict, reason = Verdict(one["verdict"]), Reason(one["reason"])
    if reason in UNRELATED:
        return None
    if one["folded"]:
        return Dropped(one["last_seen"], one["count"], "without their names, of which there were too many")
    kind, _, name = one["workload"].partition("/")
    lone = kind == "Pod"
    pod = PodIdentity(
        one["namespace"], name if lone else "", "", one["service_account"], "" if lone else one["workload"]
    )
    return (_query if one["event"] == "dns" else _flow)(one, pod, verdict, reason)


def _query(one: Mapping[str, Any], pod: PodIdentity, verdict: Verdict, reason: Reason) -> Query:
    rcode = "NXDOMAIN" if one["answer"] == "absent" else ""
    addresses = (SOME_PRIVATE,) if one["answer"] == "private" else ()
    name = Name(one["name"])
    return Query(
        one["last_seen"],
        pod,
        name,
        verdict,
        reason,
        rcode,
        addresses,
        one["search"],
        one["count"],
        one["first_seen"],
    )


def _flow(one: Mapping[str, Any], pod: PodIdentity, verdict: Verdict, reason: Reason) -> Flow:
    name, protocol = one["name"], PROTOCOLS.get(one["protocol"], 255)
    names: tuple[Name, ...] = ()
    try:
        address = read_address(name)
    except ValueError:
        address, names = SOME_ORDINARY, (Name(name),)
    if one["protocol"].isdecimal():
        protocol = int(one["protocol"])
    port = one["port"] or -1  # 0 stands for many
    return Flow(one["last_seen"], pod, address, protocol, port, names, verdict, reason, one["count"], one["first_seen"])
