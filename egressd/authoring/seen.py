"""Audit records read back: one JSON line in, one value or nothing out; no file, no clock.

The fields are those of interface.md (Audit records). A line that is no record, or a record that tells nothing of a
pod's destination, gives None: a log on a disk is what the disk made of it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, NamedTuple

import msgspec

from egressd.errors import InvalidName
from egressd.model import Address, PodIdentity, Reason, Verdict
from egressd.names import Name, parse_name
from egressd.schema.words import read_address

__all__ = ["Dropped", "Flow", "Query", "Seen", "canonical", "moment", "read_line"]

PROTOCOLS: Final = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "sctp": 132}
"""`destination.protocol` as the records spell it; any other is its IANA number in decimal."""
WENT_THROUGH: Final = frozenset({Verdict.ALLOWED, Verdict.WOULD_DENY})
"""Verdicts under which the destination was had."""
UNRELATED: Final = frozenset(
    {Reason.UNKNOWN_POD, Reason.FOREIGN_RESOLVER, Reason.RATE_LIMIT, Reason.MALFORMED, Reason.PROGRAM_FAILED}
)
"""Reasons that no rule of a policy would change."""


class _Pod(msgspec.Struct):
    namespace: str = ""
    name: str = ""
    uid: str = ""
    service_account: str = ""
    workload: str = ""


class _Query(msgspec.Struct):
    name: str = ""


class _Response(msgspec.Struct):
    rcode: str = ""
    addresses: list[str] = []


class _Destination(msgspec.Struct):
    ip: str
    protocol: str
    port: int = -1
    names: list[str] = []


class _Line(msgspec.Struct):
    event: str
    time: str = ""
    verdict: str = ""
    reason: str = ""
    pod: _Pod | None = None
    query: _Query | None = None
    response: _Response | None = None
    destination: _Destination | None = None
    search: bool = False
    aggregated: int = 0
    dropped: int = 0


_decoder: Final = msgspec.json.Decoder(_Line)


class Query(NamedTuple):
    """One recorded query."""

    time: str
    pod: PodIdentity
    name: Name
    verdict: Verdict
    reason: Reason
    rcode: str
    """As the records spell it; empty where nothing was answered."""
    addresses: tuple[Address, ...]
    search: bool
    """Noise of a search list, answered by the daemon itself."""
    times: int = 1
    """How many records this stands for, all alike."""
    first: str = ""
    """Time of the first of them, where they are several."""

    @property
    def went_through(self) -> bool:
        return self.verdict in WENT_THROUGH

    @property
    def absent(self) -> bool:
        """It was asked upstream, and there is no such name: nothing is lost if it is not asked again."""
        return self.went_through and self.rcode == "NXDOMAIN"


class Flow(NamedTuple):
    """One recorded flow. `port` is -1 for some port; `names` are those the pod knew the address by."""

    time: str
    pod: PodIdentity
    address: Address
    protocol: int
    port: int
    names: tuple[Name, ...]
    verdict: Verdict
    reason: Reason
    times: int = 1
    first: str = ""

    @property
    def went_through(self) -> bool:
        return self.verdict in WENT_THROUGH


class Dropped(NamedTuple):
    """Records that are missing: `number` were dropped, or stand in one without names."""

    time: str
    number: int
    why: str = "dropped before they were written"


Seen = Query | Flow | Dropped


def read_line(line: bytes) -> Seen | None:
    """What one line tells, if it tells anything that a policy could change."""
    try:
        record = _decoder.decode(line)
        if record.event == "audit" or record.aggregated:
            return Dropped(record.time, record.dropped or record.aggregated)
        if record.pod is None or not record.pod.name or not record.pod.namespace:
            return None
        verdict, reason = Verdict(record.verdict), Reason(record.reason)
        pod = record.pod
        identity = PodIdentity(pod.namespace, pod.name, pod.uid, pod.service_account, pod.workload)
        return None if reason in UNRELATED else _seen(record, identity, verdict, reason)
    except (msgspec.MsgspecError, ValueError, UnicodeError):
        return None


def _seen(record: _Line, pod: PodIdentity, verdict: Verdict, reason: Reason) -> Seen | None:
    to, query = record.destination, record.query
    if record.event == "flow" and to is not None:
        protocol = PROTOCOLS[to.protocol] if to.protocol in PROTOCOLS else int(to.protocol)
        if not (0 <= protocol <= 255 and -1 <= to.port <= 65535):
            return None
        names = tuple(Name(name) for name in to.names if name)
        return Flow(record.time, pod, read_address(to.ip), protocol, to.port, names, verdict, reason)
    if record.event == "dns" and query is not None and query.name:
        answer = record.response or _Response()
        addresses = tuple(read_address(address) for address in answer.addresses)
        name = Name(query.name)
        return Query(record.time, pod, name, verdict, reason, answer.rcode, addresses, record.search)
    return None


def canonical(name: str) -> bool:
    """Whether a recorded name can stand in a policy: the names on the wire may hold any octet."""
    try:
        return parse_name(name) == name and not name.rpartition(".")[2].isdigit()
    except InvalidName:
        return False


def moment(text: str) -> float:
    """Seconds since the epoch of a record's time, 0.0 where it has none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0
