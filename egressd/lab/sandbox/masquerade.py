"""The one table that a sandbox adds to the machine: what comes from it leaves under the machine's own address.

The table belongs to the socket that wrote it (NFT_TABLE_F_OWNER, Linux 5.12): nobody else changes it, and the kernel
takes it away when the socket closes, which no way of dying prevents. An older kernel has it removed by `close` alone.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from typing import Final

from pyroute2.netlink import NLM_F_CREATE
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWTABLE,
    Cmp,
    Meta,
)

from egressd.errors import KernelError
from egressd.kernel.chains import Rule
from egressd.kernel.change import rule_message
from egressd.kernel.comments import COMMENT, user_data
from egressd.kernel.expr import IPV4, IPV6, REGISTER, compare, expression, masked, meta, payload
from egressd.kernel.netlink import Channel, Message, be32, blob, nested, string
from egressd.lab.sandbox.addresses import Network

__all__ = ["Masquerade"]

OWNER: Final = 0x1 << 1
"""NFT_TABLE_F_OWNER (include/uapi/linux/netfilter/nf_tables.h)."""
WITHOUT_OWNER: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL})
"""What a kernel that knows no owners says to the flag."""
POSTROUTING: Final = 4
SOURCE_NAT: Final = 100
"""NF_IP_PRI_NAT_SRC"""
NETWORK_HEADER: Final = 1
CHAIN: Final = "postrouting"


class Masquerade:
    """The table, for as long as it is open. To be made in the machine's own network, used from any thread."""

    def __init__(self, table: str, interface: str, blocks: Sequence[Network]) -> None:
        """Raises `KernelError` where the kernel refuses it."""
        self._table = table
        self._channel = Channel()
        for flags in (OWNER, 0):
            messages = [self._new_table(flags), self._new_chain(), *self._rules(interface, blocks)]
            try:
                self._channel.transact(messages)
            except KernelError as error:
                if not flags or error.errno not in WITHOUT_OWNER:
                    self._channel.close()
                    raise
            else:
                return

    def close(self) -> None:
        """Take the table away."""
        self._channel.transact([Message(NFT_MSG_DELTABLE, 0, string(1, self._table), f"delete table {self._table}")])
        self._channel.close()

    def _new_table(self, flags: int) -> Message:
        comment = blob(6, user_data(COMMENT, "egressd sandbox: gone when its command ends"))
        body = string(1, self._table) + be32(2, flags) + comment
        return Message(NFT_MSG_NEWTABLE, NLM_F_CREATE, body, f"create table {self._table}")

    def _new_chain(self) -> Message:
        hook = nested(4, be32(1, POSTROUTING), be32(2, SOURCE_NAT))
        body = string(1, self._table) + string(3, CHAIN) + hook + string(7, "nat")
        return Message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, body, f"create chain {CHAIN}")

    def _rules(self, interface: str, blocks: Sequence[Network]) -> Iterator[Message]:
        """`ip saddr BLOCK oifname != INTERFACE masquerade`"""
        elsewhere = meta(Meta.NFT_META_OIFNAME) + compare(interface.encode().ljust(16, b"\0"), Cmp.NFT_CMP_NEQ)
        for block in blocks:
            family = IPV4 if block.version == 4 else IPV6
            source = meta(Meta.NFT_META_NFPROTO) + compare(bytes((family.protocol,)))
            source += payload(NETWORK_HEADER, family.source, family.length, REGISTER)
            source += masked(block.netmask.packed, bytes(family.length)) + compare(block.network_address.packed)
            yield rule_message(self._table, CHAIN, Rule("", source + elsewhere + expression("masq")))
