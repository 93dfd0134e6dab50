"""What on the machine stops packets of a sandbox, whatever egressd allows: a chain that drops what is forwarded.

Docker sets `policy drop` on the forwarding of a machine, and so do some firewalls. No other table can lift that, and
theirs are not ours to change; but it can be said, with the rules that would let sandboxes through.
"""

from __future__ import annotations

import struct
from typing import Final

from pyroute2.netlink.nfnetlink.nftsocket import (
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
)

from egressd.kernel.netlink import Channel, attributes
from egressd.lab.sandbox.addresses import INTERFACE

__all__ = ["obstacle"]

FORWARD: Final = 2
"""NF_INET_FORWARD"""
DROP: Final = 0
"""NF_DROP as the policy of a chain."""
FAMILIES: Final = {"ip": NFPROTO_IPV4, "inet": NFPROTO_INET}
_TABLE, _CHAIN, _HOOK, _POLICY, _RULE_TABLE = 1, 3, 4, 5, 1


def obstacle(channel: Channel) -> str:
    """The first chain that drops forwarded packets by policy, in a table without a word on our interfaces; or empty.

    Raises `KernelError` if the ruleset cannot be read.
    """
    for name, family in FAMILIES.items():
        for data in channel.dump(NFT_MSG_GETCHAIN, b"", family):
            chain = dict(attributes(data))
            hook = dict(attributes(chain.get(_HOOK, b"")))
            if _number(hook.get(1, b"")) == FORWARD and _number(chain.get(_POLICY, b"")) == DROP:
                table = chain[_TABLE]
                if not _mentioned(channel, family, table):
                    return f"chain {_text(chain[_CHAIN])} of table {name} {_text(table)}"
    return ""


def _mentioned(channel: Channel, family: int, table: bytes) -> bool:
    """Whether any rule of a table names an interface of sandboxes."""
    rules = channel.dump(NFT_MSG_GETRULE, b"", family)
    return any(INTERFACE.encode() in data for data in rules if dict(attributes(data)).get(_RULE_TABLE) == table)


def _number(value: bytes) -> int:
    return int(struct.unpack("!I", value)[0]) if len(value) == 4 else -1


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")
