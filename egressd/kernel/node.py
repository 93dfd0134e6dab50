"""The node's part of the table: its sets, what the settings put into them, and the base chains.

As with a change (change.py), interval sets are staged: they are there and filled before any rule refers to them. What
an earlier installation left in the table gives way in the flip, but for what a packet could fall between. Chains that
are there change their rules: of two base chains at one hook, an old and a new, each would leave the packet of that
moment to the other, and staged instances refer to the rest. The maps of pods change their elements, for a map that goes
has none at once (nft_map_deactivate).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pyroute2.netlink import NLM_F_CREATE
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELCHAIN,
    NFT_MSG_DELRULE,
    NFT_MSG_DELSETELEM,
    NFT_MSG_NEWCHAIN,
)

from egressd.kernel.chains import Chain
from egressd.kernel.change import rule_message
from egressd.kernel.comments import COMMENT, user_data
from egressd.kernel.elements import SetHeaders, add_elements, element, interval_elements
from egressd.kernel.expr import IPV4, IPV6, NF_ACCEPT
from egressd.kernel.netlink import Message, be32, blob, nested, string
from egressd.kernel.sets import NODE_SETS, PORTED, SetSpec, blocks_of, create_set, delete_set, named
from egressd.kernel.template import base_chains
from egressd.model import Address, Block

if TYPE_CHECKING:
    from egressd.kernel.state import ChainFacts
    from egressd.settings import Settings

__all__ = ["HEARTBEAT", "NodeWriter"]

HEARTBEAT: Final = "heartbeat"
MAPS: Final = frozenset(spec.name for spec in NODE_SETS if spec.kind.verdicts)
PORTED_PROTOCOLS: Final = (6, 17, 33, 132, 136)
"""TCP, UDP, DCCP, SCTP, UDP-Lite."""
EVERYWHERE: Final = tuple(Block(Address(bytes(length)), Address(b"\xff" * length)) for length in (4, 16))


class NodeWriter:
    """Messages for one installation. `names`: what the node's sets of ranges are called; `mark`: user data for the set
    of the heartbeat, which says whose the table is."""

    def __init__(self, settings: Settings, headers: SetHeaders, generation: int, mark: bytes) -> None:
        self._settings = settings
        self._table = settings.firewall.table
        self._headers = headers
        specs = [self._spec(spec, mark) for spec in NODE_SETS]
        self.names = {
            spec.name: named(spec.name, generation if spec.interval else 0)
            for spec, general in zip(specs, NODE_SETS, strict=True)
            if general.interval
        }
        self._early = [spec for spec in specs if spec.interval]
        self._late = [spec for spec in specs if not spec.interval]
        self._entries = dict(self._elements())
        self._chains = base_chains(settings, self.names)
        self.rules = {chain.name: len(chain.rules) for chain in self._chains}

    def stage(self) -> list[Message]:
        """Interval sets, filled, and the chains that instances refer to: empty where they are new, and so till the flip
        found by no packet."""
        chains = [self._chain(chain) for chain in self._chains if chain.hook is None]
        return chains + [message for spec in self._early for message in self._filled(spec, self.names[spec.name])]

    def unstage(self) -> list[Message]:
        """They go again, as nothing came to refer to them."""
        return [delete_set(self._table, self.names[spec.name]) for spec in self._early]

    def clear(
        self, sets: Iterable[str], chains: Mapping[str, ChainFacts], staying: AbstractSet[str]
    ) -> Iterator[Message]:
        """What an earlier installation left gives way: these sets, the rules of these chains, and those of the chains
        that are not `staying`. What is staged is not among them."""
        table = string(1, self._table)
        for name in chains:
            yield Message(NFT_MSG_DELRULE, 0, table + string(2, name), f"flush chain {name}")
        for name in sets:
            if name in MAPS:
                yield Message(NFT_MSG_DELSETELEM, 0, self._headers.named(name), f"flush map {name}")
            else:
                yield delete_set(self._table, name)
        ours = {chain.name: chain.hook for chain in self._chains}
        for name, found in chains.items():
            if name not in staying and ours.get(name, ()) != found.hook:
                yield Message(NFT_MSG_DELCHAIN, 0, table + string(3, name), f"delete chain {name}")

    def flip(self, sets: Container[str]) -> Iterator[Message]:
        """All the rest; of `sets` the maps are there. A base chain that stays is told its policy again."""
        for spec in self._late:
            if spec.name not in MAPS or spec.name not in sets:
                yield from self._filled(spec, spec.name)
        yield from (self._chain(chain) for chain in self._chains if chain.hook is not None)
        for chain in self._chains:
            yield from (rule_message(self._table, chain.name, rule) for rule in chain.rules)

    def _filled(self, spec: SetSpec, name: str) -> Iterator[Message]:
        yield create_set(self._table, replace(spec, name=name))
        for kind, flags, body in add_elements(self._headers.named(name), self._entries.get(spec.name, ())):
            yield Message(kind, flags, body, f"fill set {name}")

    def _spec(self, spec: SetSpec, mark: bytes) -> SetSpec:
        """The heartbeat's set is marked; resolvers are ranges only where every server is answered for."""
        if spec.name == HEARTBEAT:
            return replace(spec, data=mark)
        if self._settings.dns.foreign == "Answer" or not spec.name.startswith("resolvers"):
            return spec
        return replace(spec, kind=replace(spec.kind, flags=0))

    def _elements(self) -> Iterator[tuple[str, list[bytes]]]:
        """What the settings put into which set."""
        settings = self._settings
        foreign = settings.dns.foreign == "Answer"
        servers = settings.dns.servers or tuple(upstream.address for upstream in settings.dns.upstreams)
        ranges = {
            "unidentified": () if settings.pod_interfaces else settings.pod_cidrs,
            "cluster": settings.cluster_cidrs if settings.in_cluster == "Allow" else (),
            **({"resolvers": EVERYWHERE} if foreign else {}),
        }
        for stem, blocks in ranges.items():
            for family in (IPV4, IPV6):
                yield f"{stem}{family.number}", list(interval_elements(blocks_of(blocks, family.length)))
        for family in () if foreign else (IPV4, IPV6):
            own = dict.fromkeys(server for server in servers if len(server) == family.length)
            yield f"resolvers{family.number}", [element(server) for server in own]
        yield PORTED.name, [element(bytes((protocol,))) for protocol in PORTED_PROTOCOLS]

    def _chain(self, chain: Chain) -> Message:
        parts = [string(1, self._table), string(3, chain.name)]
        if chain.hook is not None:
            hook = nested(4, be32(1, chain.hook.number), be32(2, chain.hook.priority & 0xFFFFFFFF))
            parts += [hook, be32(5, NF_ACCEPT), string(7, "filter")]
        if chain.comment:
            parts.append(blob(12, user_data(COMMENT, chain.comment)))
        return Message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, b"".join(parts), f"create chain {chain.name}")
