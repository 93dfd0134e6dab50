"""How many packets reported flows had: counters in the elements of the sets `seen…`, looked up one by one.

The chains that report (template.py) add an element for each flow they report, which lives for a minute and counts the
flow's packets. Getting an element by its key is one hash look-up, whatever the size of the set (nft_get_set_elem in
net/netfilter/nf_tables_api.c): 3 µs, where a dump of a full set takes a second of the kernel's time. Nothing is
written here. Layouts follow include/uapi/linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from pyroute2.netlink.nfnetlink.nftsocket import NFT_MSG_GETRULE, NFT_MSG_GETSETELEM

from egressd.kernel.elements import EXPIRATION, element, endpoint
from egressd.kernel.netlink import Channel, attributes, nested, string
from egressd.kernel.nflog import WITH_PORTS
from egressd.kernel.sets import SEEN, SEEN_TIMEOUT_MS
from egressd.kernel.template import FLOODING
from egressd.kernel.verdicts import reporting_chains

if TYPE_CHECKING:
    from collections.abc import Sequence

    from egressd.kernel.nflog import Report
    from egressd.settings import Settings

__all__ = ["LIFETIME_S", "Count", "FlowCounters", "FlowKey", "flow_key", "read_count", "read_counter"]

LIFETIME_S: Final = SEEN_TIMEOUT_MS / 1000
"""How long a flow's element lives from its first packet on; what comes later is reported anew."""

_EXPRESSION, _EXPRESSIONS = 7, 11
"""NFTA_SET_ELEM_EXPR and NFTA_SET_ELEM_EXPRESSIONS: one expression of an element, or several (5.11)."""
_RULE_EXPRESSIONS: Final = 4
_COUNTER_PACKETS: Final = 2


class FlowKey(NamedTuple):
    """Where a flow is counted."""

    set: str
    key: bytes


class Count(NamedTuple):
    """What an element says: packets so far, and how long it lives on."""

    packets: int
    remaining_s: float


def flow_key(report: Report) -> FlowKey | None:
    """The element in which the flow of a reported packet is counted; None if its port could not be read."""
    number = 4 if len(report.source) == 4 else 6
    if report.prefix == FLOODING:
        return FlowKey(f"flooding{number}", report.source)
    stem = SEEN[report.prefix]
    pair = report.source + report.destination
    if report.protocol not in WITH_PORTS:
        return FlowKey(f"{stem}{number}-any", pair + bytes((report.protocol, 0, 0, 0)))
    if report.port < 0:
        return None
    return FlowKey(f"{stem}{number}", report.source + endpoint(report.destination, report.protocol, report.port))


class FlowCounters:
    """Reads counters of the table over a socket of its own. One thread; every method may raise `KernelError`."""

    def __init__(self, settings: Settings) -> None:
        self._channel = Channel()
        self._table = string(1, settings.firewall.table)
        self._chains = [string(2, name) for name in reporting_chains(settings)]

    def close(self) -> None:
        self._channel.close()

    def read(self, keys: Sequence[FlowKey]) -> list[Count | None]:
        """The counts of flows, in their order; None where the element is gone. A hundred take about half a millisecond.

        Some hundreds at most, as the answers wait in the socket's buffer.
        """
        bodies = [self._table + string(2, name) + nested(3, element(key)) for name, key in keys]
        return [read_count(found) for found in self._channel.look_up(NFT_MSG_GETSETELEM, bodies)]

    def unreported(self) -> int:
        """Packets that no event told of since the table was written: past the bound of events, or the set was full."""
        return self._counted(self._chains)

    def flooded(self) -> int:
        """Queries dropped unread since the table was written (chain `flooding`)."""
        return self._counted([string(2, FLOODING)])

    def _counted(self, chains: Sequence[bytes]) -> int:
        """The packets of all counters in the rules of these chains."""
        return sum(
            read_counter(dict(attributes(rule)).get(_RULE_EXPRESSIONS, b""))
            for chain in chains
            for rule in self._channel.dump(NFT_MSG_GETRULE, self._table + chain)
        )


def read_count(message: bytes) -> Count | None:
    """The count in a message about one element; None if it holds no element, or one that counts nothing."""
    for kind, listed in attributes(message):
        for _, entry in attributes(listed) if kind == 3 else ():
            found = dict(attributes(entry))
            expressions = found.get(_EXPRESSIONS)
            if expressions is None:
                one = found.get(_EXPRESSION, b"")
                packets = _packets(one)
            else:
                packets = read_counter(expressions)
            if packets:
                return Count(packets, int.from_bytes(found.get(EXPIRATION, b""), "big") / 1000)
    return None


def read_counter(expressions: bytes) -> int:
    """The packets of the counters in a list of expressions, such as a rule's."""
    return sum(_packets(expression) for _, expression in attributes(expressions))


def _packets(expression: bytes) -> int:
    """The packets of one expression (NFTA_EXPR_NAME, NFTA_EXPR_DATA) if it is a counter, else 0."""
    found = dict(attributes(expression))
    if found.get(1) != b"counter\0":
        return 0
    return int.from_bytes(dict(attributes(found.get(2, b""))).get(_COUNTER_PACKETS, b""), "big")
