"""`table bridge egressd` in the kernel: which address is bound to which port, and every change of that.

The table is there while anything is bound: a node whose pods have wires of their own never sees it. What is wanted is
a value, `Bindings`; `BridgeTable.write` makes the kernel's table so, by its difference from what stands, in one
transaction. A fresh process finds what an earlier one bound by reading it back.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pyroute2.netlink import NLM_F_CREATE
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFPROTO_BRIDGE,
    NFT_MSG_DELTABLE,
    NFT_MSG_GETRULE,
    NFT_MSG_GETSETELEM,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWTABLE,
)

from egressd.errors import KernelError
from egressd.kernel.bridge.template import CHAINS, OTHER, POD, SETS
from egressd.kernel.change import rule_message
from egressd.kernel.comments import COMMENT, read_comment, user_data
from egressd.kernel.elements import KEY, USER_DATA, SetHeaders, add_elements, delete_elements, element
from egressd.kernel.expr import NF_ACCEPT, NFT_GOTO, verdict_data
from egressd.kernel.netlink import Channel, Message, Refused, attributes, be32, blob, nested, string
from egressd.kernel.sets import create_set
from egressd.kernel.state import table_facts

if TYPE_CHECKING:
    from egressd.kernel.state import PodElement

__all__ = ["Bindings", "Bound", "BridgeTable"]

log = logging.getLogger("egressd.kernel")

RESYNC: Final = frozenset({errno.ENOENT, errno.EEXIST, errno.EBUSY, errno.EPERM})
"""Errors that mean: the table is not what we believe."""
LACKING: Final = frozenset({errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ENOPROTOOPT})
"""What a kernel without nf_tables for bridges says to a whole new table: no such chain type, no such hook."""
CHAIN_TYPE: Final = "filter"
NAME: Final = 16
"""Octets of an interface's name in a key (IFNAMSIZ)."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Where an address lives, and whose it is (`shop/web-0`)."""

    port: str
    comment: str


@dataclass(frozen=True, slots=True)
class Bindings:
    """What the table says: addresses with their ports, and the other ports of the same bridges."""

    bound: Mapping[bytes, Bound] = field(default_factory=dict)
    others: frozenset[str] = frozenset()

    def of(self, pods: Mapping[bytes, PodElement]) -> Bindings:
        """What of this still holds for `pods`: an address counts only while it is the same pod's."""
        kept = {a: b for a, b in self.bound.items() if a in pods and pods[a].comment == b.comment}
        return Bindings(kept, self.others)


ADDRESS_SETS: Final = {4: (("bound4", "held4"),), 16: (("bound6", "held6"), ("targets6", "held-targets6"))}
"""By length of an address: sets of port . address, and of the address alone."""

Entries = dict[str, dict[bytes, bytes]]
"""Elements by set and key."""


def _entries(bindings: Bindings) -> Entries:
    out: Entries = {spec.name: {} for spec in SETS}
    for port in bindings.others:
        _enter(out, "ports", _name(port), "", verdict_data(2, NFT_GOTO, OTHER))
    for address, place in bindings.bound.items():
        _enter(out, "ports", _name(place.port), place.comment, verdict_data(2, NFT_GOTO, POD))
        for bound, held in ADDRESS_SETS[len(address)]:
            _enter(out, bound, _name(place.port) + address, place.comment)
            _enter(out, held, address, place.comment)
    return out


def _enter(into: Entries, name: str, key: bytes, comment: str, data: bytes = b"") -> None:
    into[name][key] = element(key, data=data, comment=comment)


def _name(port: str) -> bytes:
    return port.encode().ljust(NAME, b"\0")


class BridgeTable:
    """The table of family bridge beside `inet`'s, on its channel. `table_message` creates or deletes `inet`'s."""

    def __init__(self, channel: Callable[[], Channel], table: str, table_message: Callable[[int], Message]) -> None:
        self._channel = channel
        self._table = table
        self._table_message = table_message
        self._headers = SetHeaders(table)
        self.standing: Bindings | None = None
        """What the kernel holds; None: nothing, or not known yet."""
        self.unusable = ""
        """Why pods on a shared bridge are not held to their ports, in words; empty if they can be."""

    def write(self, wanted: Bindings) -> None:
        """Make the table say this. Raises `KernelError`; a kernel that cannot filter bridges is logged, once."""
        if self.unusable or wanted == (self.standing or Bindings()):
            return
        try:
            if self.standing is None:
                self._channel().transact(self.anew(wanted))
            else:
                self._transact_difference(self.standing, wanted)
        except Refused as error:
            if self.standing is None and error.errno in LACKING:
                self._give_up("this kernel lacks nf_tables for bridges (nf_tables_bridge, CONFIG_NF_TABLES_BRIDGE)")
                return
            raise
        self.wrote(wanted)

    def wrote(self, bindings: Bindings | None) -> None:
        """The kernel has this now; None: what it has is to be read."""
        self.standing = bindings if bindings is not None and bindings.bound and not self.unusable else None

    def _transact_difference(self, standing: Bindings, wanted: Bindings) -> None:
        try:
            messages = self._difference(standing, wanted) if wanted.bound else [self._delete()]
            if messages:
                self._channel().transact(messages)
        except Refused as error:
            if error.errno not in RESYNC:
                raise
            messages = self.anew(wanted)
            if messages:
                self._channel().transact(messages)

    def carried(self, pods: Mapping[bytes, PodElement]) -> Bindings:
        """What is bound already, by us or by an earlier run, and still holds for `pods`."""
        return (self.standing or self._read_back()).of(pods)

    def anew(self, wanted: Bindings) -> list[Message]:
        """The whole table, whatever there was, as messages for one transaction."""
        facts = table_facts(self._channel(), self._table, NFPROTO_BRIDGE)
        if facts is not None and not facts.comment.startswith("egressd schema "):
            self._give_up(f"a table bridge {self._table} is there already, and egressd did not make it")
            return []
        out = [self._delete()] if facts is not None else []
        if wanted.bound:
            out += [self._ours(message) for message in self._whole(wanted)]
        return out

    def removal(self) -> list[Message]:
        """What deletes the table, if it is there and ours."""
        try:
            return self.anew(Bindings())
        except KernelError:  # the table of family inet says what is the matter
            return []

    def differs(self) -> str:
        """What somebody else changed, in words; empty if nothing. Raises `KernelError` (ENOENT: it is gone)."""
        if self.standing is None:
            return ""
        wanted = _entries(self.standing)
        if any({key for key, _ in self._elements(name)} != wanted[name].keys() for name in wanted):
            return f"addresses or ports of table bridge {self._table} differ"
        rules = len(self._channel().dump(NFT_MSG_GETRULE, string(1, self._table), NFPROTO_BRIDGE))
        return "" if rules == sum(len(chain.rules) for chain in CHAINS) else f"rules of bridge {self._table} differ"

    # ----------------------------------------------------------------------------------------- messages

    def _give_up(self, why: str) -> None:
        self.unusable = why
        log.warning("pods on a shared bridge could take each other's addresses: %s", why)

    def _ours(self, message: Message) -> Message:
        return message._replace(family=NFPROTO_BRIDGE)

    def _delete(self) -> Message:
        return self._ours(self._table_message(NFT_MSG_DELTABLE))

    def _whole(self, wanted: Bindings) -> Iterator[Message]:
        yield self._table_message(NFT_MSG_NEWTABLE)
        for spec in SETS:
            yield create_set(self._table, spec)
        for chain in CHAINS:
            parts = [string(1, self._table), string(3, chain.name), blob(12, user_data(COMMENT, chain.comment))]
            if chain.hook is not None:
                hook = nested(4, be32(1, chain.hook.number), be32(2, chain.hook.priority & 0xFFFFFFFF))
                parts += [hook, be32(5, NF_ACCEPT), string(7, CHAIN_TYPE)]
            yield Message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, b"".join(parts), f"create chain {chain.name} for bridges")
        for chain in CHAINS:
            yield from (rule_message(self._table, chain.name, rule) for rule in chain.rules)
        yield from self._difference(Bindings(), wanted)

    def _difference(self, standing: Bindings, wanted: Bindings) -> list[Message]:
        before, after = _entries(standing), _entries(wanted)
        out = []
        for name in after:
            gone = [element(key) for key, octets in before[name].items() if after[name].get(key) != octets]
            new = [octets for key, octets in after[name].items() if before[name].get(key) != octets]
            header = self._headers.named(name)
            bodies = (*delete_elements(header, gone), *add_elements(header, new))
            out += [self._ours(Message(*body, f"bind addresses to ports ({name})")) for body in bodies]
        return out

    # ------------------------------------------------------------------------------------- reading back

    def _read_back(self) -> Bindings:
        """What the kernel holds, nothing if there is no such table, or if it is of another schema."""
        bound = {}
        try:
            for key, comment in (*self._elements("bound4"), *self._elements("bound6")):
                bound[key[NAME:]] = Bound(key[:NAME].rstrip(b"\0").decode(errors="replace"), comment)
            ports = {key.rstrip(b"\0").decode(errors="replace") for key, _ in self._elements("ports")}
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return Bindings()
        return Bindings(bound, frozenset(ports - {place.port for place in bound.values()}))

    def _elements(self, name: str) -> Iterator[tuple[bytes, str]]:
        """Key and comment of each element of a set."""
        body = self._headers.named(name)
        for answer in self._channel().dump(NFT_MSG_GETSETELEM, body, NFPROTO_BRIDGE):
            for kind, value in attributes(answer):
                for _, entry in attributes(value) if kind == 3 else ():
                    found = dict(attributes(entry))
                    yield found[KEY][4:], read_comment(found.get(USER_DATA, b""))
