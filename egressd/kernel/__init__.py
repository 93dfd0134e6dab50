"""The kernel side: one nf_tables table, one template, and policies, pods and grants as data in it.

Everything is said over one netlink socket in hand-packed messages, each change in one atomic transaction that is
complete when the call returns. kernel.md is the law; template.py is the part to audit. Nothing here is safe to call
from two threads.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from pyroute2.netlink import NLM_F_CREATE
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWTABLE,
)

from egressd.errors import EnvironmentProblem, KernelError
from egressd.kernel.bridge.table import BridgeTable
from egressd.kernel.change import Change, ChangeWriter, rule_message
from egressd.kernel.comments import COMMENT, INSTANCE, user_data
from egressd.kernel.compare import difference, rules_of
from egressd.kernel.elements import (
    GrantWriter,
    SetHeaders,
    add_elements,
    element,
    interval_elements,
    renew_elements,
)
from egressd.kernel.expr import IPV4, IPV6, NF_ACCEPT
from egressd.kernel.netlink import Channel, Message, Refused, be32, blob, nested, pack_batch, string
from egressd.kernel.probe import missing, refuse_kernel
from egressd.kernel.sets import NODE_SETS, PORTED, SetSpec, blocks_of, create_set
from egressd.kernel.state import (
    Installed,
    LiveGrant,
    PodElement,
    Snapshot,
    TableFacts,
    installed,
    snapshot,
    table_facts,
)
from egressd.kernel.template import Chain, base_chains, subject_chain
from egressd.model import Address, Block

if TYPE_CHECKING:
    from egressd.grants import Element
    from egressd.settings import Settings

__all__ = ["SCHEMA", "Change", "Kernel", "LiveGrant", "PodElement", "Snapshot"]

OURS: Final = "egressd schema "
SCHEMA: Final = f"{OURS}1"
"""Comment of the table: whose it is, and of which version."""
REINSTALL: Final = "install the table again"
HEARTBEAT_MS: Final = 3000
INSTALL_TRIES: Final = 3
"""Once more without the flags of an owner, and once more if the table went away between looking and writing."""
PORTED_PROTOCOLS: Final = (6, 17, 33, 132, 136)
"""TCP, UDP, DCCP, SCTP, UDP-Lite."""
EVERYWHERE: Final = tuple(Block(Address(bytes(length)), Address(b"\xff" * length)) for length in (4, 16))
RESYNC: Final = frozenset({errno.ENOENT, errno.EEXIST, errno.EBUSY})
"""Errors that mean: the table is not what we believe."""
OWNED: Final = 0x2 | 0x4
"""NFT_TABLE_F_OWNER and _PERSIST (6.9): only our socket writes, and what it wrote outlives it, open to the next.
Owner without persist (5.12) would take the table away with the process, and is never used."""
UNSUPPORTED: Final = frozenset({errno.EOPNOTSUPP, errno.EINVAL})


class Kernel:
    """The table of one node. `install` first; every method raises `KernelError` where it says nothing else."""

    def __init__(self, settings: Settings, *, owner: bool = False) -> None:
        """`owner`: where the kernel can, let nobody else write to the table for as long as this socket is open."""
        self._settings = settings
        self._flags = OWNED if owner else 0
        self._instance = os.urandom(8)
        self._base: dict[str, int] = {}
        self._foreign = -1
        """Commits to nf_tables that are not ours, as last counted."""
        self._table = settings.firewall.table
        self._channel = Channel()
        self._headers = SetHeaders(self._table)
        self._changes = ChangeWriter(self._table, self._headers, local=settings.in_cluster == "Allow")
        self._grants = GrantWriter(self._headers)
        self._state = Installed()
        beats = [element(bytes((family,)), lifetime_ms=HEARTBEAT_MS) for family in (NFPROTO_IPV4, NFPROTO_IPV6)]
        self.bridge = BridgeTable(lambda: self._channel, self._table, self._table_message)
        self._beats = list(renew_elements(self._headers.named("heartbeat"), beats))
        self._beat = pack_batch(self._beats)

    def install(self, change: Change | None = None, *, beating: bool = False) -> None:
        """Create the table with its chains, node-level sets and, if given, a first `change`, in one transaction.

        A table of ours that is there already, of whatever schema, is replaced. `beating`: interception is on from the
        start, so that no query passes by between two versions. Raises `EnvironmentProblem` without the right to, on a
        kernel that lacks a feature (each is named), and if the table of that name is somebody else's.
        """
        for _ in range(INSTALL_TRIES):
            try:
                self._state = self._replace(change, beating=beating)
            except Refused as error:
                if error.errno == errno.ENOENT:
                    continue  # it went away after we looked
                if error.errno not in UNSUPPORTED or not self._flags:
                    raise self._diagnose(error) from error
                self._flags = 0
            else:
                return
        raise KernelError("the table was taken away while it was being written", errno.EAGAIN)

    def _replace(self, change: Change | None, *, beating: bool) -> Installed:
        """One transaction: the old table out, the new one in. What is owned cannot be added twice, so look first."""
        there = self._check_ours()
        state = Installed()
        messages = [self._table_message(NFT_MSG_DELTABLE)] if there else []
        messages += [self._table_message(NFT_MSG_NEWTABLE), *self._node_messages()]
        if change is not None:
            messages += self._changes.messages(change, state, renew=True)
        if beating:
            messages += [Message(*body, "begin the heartbeat") for body in self._beats]
        bindings = self.bridge.carried(state.pods)
        self._channel.transact(messages + self.bridge.anew(bindings))
        self.bridge.wrote(bindings)
        return state

    def apply(self, change: Change) -> None:
        """Make a change, all of it or, raising `KernelError`, nothing of it. Its grants may be there already.

        Where the table turns out not to be what was last written, it is read back and the change tried once more.
        """
        state = self._state.copy()
        messages = self._changes.messages(change, state)
        if not messages:
            return
        try:
            self._channel.transact(messages)
        except Refused as error:
            if error.errno not in RESYNC:
                raise
            self._state = self._read_installed()
            state = self._state.copy()
            messages = self._changes.messages(change, state, renew=True)
            if messages:
                self._channel.transact(messages)
        self._state = state

    def program(self, elements: Sequence[Element]) -> None:
        """Write grants in one transaction: the hot path. After it each lives for its full lifetime from now."""
        if not elements:
            return
        refusals = self._channel.commit(pack_batch(self._grants.write(elements)))
        if not refusals:
            return
        if refusals[0].errno == errno.EEXIST:
            refusals = self._channel.commit(pack_batch(self._grants.write(elements, renew=True)))
            if not refusals:
                return
        first = elements[0]
        about = f"{len(elements)} grants, the first for {first.comment or 'no name'} of subject {first.subject}"
        reason = refusals[0].text or errno.errorcode.get(refusals[0].errno, str(refusals[0].errno))
        raise KernelError(f"the kernel refused {about}: {reason}", refusals[0].errno)

    def heartbeat(self) -> None:
        """Keep interception alive for another 3 seconds."""
        refusals = self._channel.commit(self._beat)
        if refusals:
            code = refusals[0].errno
            remedy = REINSTALL if code == errno.ENOENT else ""
            raise KernelError(f"the heartbeat was refused: {errno.errorcode.get(code, code)}", code, remedy)

    def read_back(self) -> Snapshot:
        """What the table holds now. Raises `KernelError` (ENOENT) if there is none."""
        return snapshot(self._channel, self._table)

    def remove(self) -> None:
        """Delete our tables; nothing happens if there is none, or if it is not ours."""
        facts = self._facts()
        self._check_owner(facts)
        messages = [self._table_message(NFT_MSG_DELTABLE)] if _is_ours(facts) else []
        messages += self.bridge.removal()
        if not messages:
            return
        try:
            self._channel.transact(messages)
        except Refused as error:
            if error.errno != errno.ENOENT:
                raise self._diagnose(error) from error
        self._state = Installed()
        self.bridge.wrote(None)

    @property
    def pods(self) -> Mapping[bytes, PodElement]:
        """The pods that the table has, by address."""
        return self._state.pods

    def close(self) -> None:
        """Close the socket; the table stays, and enforces."""
        self._channel.close()

    # ------------------------------------------------------------------------------------ others' hands

    @property
    def port(self) -> int:
        """Our netlink port: what the kernel calls the author of our changes, for `Watch.ignore`."""
        return self._channel.port

    def reopen(self) -> None:
        """Open the socket again after `close`."""
        self._channel.close()
        self._channel = Channel()
        self.bridge.wrote(None)

    def untouched(self) -> bool:
        """Whether nobody but us has committed anything to nf_tables since this was last asked (NFT_MSG_GETGEN)."""
        generation, commits = self._channel.generation(), self._channel.commits
        theirs = (generation - commits) & 0xFFFFFFFF
        same, self._foreign = theirs == self._foreign, theirs
        return same

    def usurped(self) -> bool:
        """Whether another run of egressd has written the table since we did."""
        facts = self._facts()
        return facts is not None and facts.instance != self._instance

    def difference(self) -> str:
        """What somebody else changed, in words; empty if nothing that names and numbers show (compare.py)."""
        try:
            return difference(self._channel, self._table, self._state, self._base) or self.bridge.differs()
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return "the table, or a set of it, is gone"

    def _read_installed(self) -> Installed:
        if not _is_ours(self._facts()):
            raise KernelError(
                f"the table inet {self._table} is gone: another program removed it", errno.ENOENT, REINSTALL
            )
        if self.usurped():
            raise KernelError(f"the table inet {self._table} was written anew by another egressd", errno.EPERM)
        found = installed(self._channel, self._table)
        rules = rules_of(self._channel, self._table)
        found.rules = {subject: rules.get(subject_chain(subject), 0) for subject in found.subjects}
        return found

    # ----------------------------------------------------------------------------------------- installing

    def _facts(self) -> TableFacts | None:
        """Whose the table is, None if there is none. Raises `EnvironmentProblem` without the right to look."""
        try:
            return table_facts(self._channel, self._table)
        except KernelError as error:
            raise self._diagnose(error) from error

    def _check_ours(self) -> bool:
        """Whether the table is there; one that is not ours is an `EnvironmentProblem`."""
        facts = self._facts()
        if facts is None:
            return False
        if not _is_ours(facts):
            raise EnvironmentProblem(
                f"a table inet {self._table} is there already, and egressd did not make it",
                f"choose another name with firewall.table, or delete it: nft delete table inet {self._table}",
            )
        self._check_owner(facts)
        return True

    def _check_owner(self, facts: TableFacts | None) -> None:
        if facts is not None and facts.owner not in (0, self.port):
            raise EnvironmentProblem(
                f"the table inet {self._table} belongs to an egressd that is still running",
                "stop that one first; two daemons on a node need different tables, marks and route tables",
            )

    def _diagnose(self, error: KernelError) -> KernelError | EnvironmentProblem:
        """What stands behind a refusal while installing."""
        if error.errno == errno.EPERM:
            return EnvironmentProblem(
                "this process may not change the firewall (CAP_NET_ADMIN)",
                "run it as root, or as uid 0 with the capability NET_ADMIN",
            )
        lacking = missing(self._channel)
        return refuse_kernel(lacking) if lacking else error

    def _table_message(self, kind: int) -> Message:
        """Create or delete the table."""
        if kind == NFT_MSG_DELTABLE:
            return Message(kind, 0, string(1, self._table), f"delete table inet {self._table}")
        instance = struct.pack("BB", INSTANCE, len(self._instance)) + self._instance
        flags = be32(2, self._flags) if self._flags else b""
        body = string(1, self._table) + flags + blob(6, user_data(COMMENT, SCHEMA) + instance)
        return Message(kind, NLM_F_CREATE, body, f"create table inet {self._table}")

    def _node_messages(self) -> list[Message]:
        """Node-level sets and what the settings put into them, base chains, rules."""
        chains = base_chains(self._settings)
        self._base = {chain.name: len(chain.rules) for chain in chains}
        out = [create_set(self._table, self._spec(spec)) for spec in NODE_SETS]
        for name, entries in self._node_elements():
            for kind, flags, body in add_elements(self._headers.named(name), entries):
                out.append(Message(kind, flags, body, f"fill set {name}"))
        out += [self._chain_message(chain) for chain in chains]
        out += [rule_message(self._table, chain.name, rule) for chain in chains for rule in chain.rules]
        return out

    def _spec(self, spec: SetSpec) -> SetSpec:
        """Resolvers by address are a plain set: the kernel fills interval sets only at the end of a commit, when rules
        are in force already (nft_set_commit_update), and queries of that moment would not be taken."""
        if self._settings.dns.foreign == "Answer" or not spec.name.startswith("resolvers"):
            return spec
        return replace(spec, kind=replace(spec.kind, flags=0))

    def _node_elements(self) -> Iterator[tuple[str, Iterable[bytes]]]:
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
                yield f"{stem}{family.number}", interval_elements(blocks_of(blocks, family.length))
        for family in () if foreign else (IPV4, IPV6):
            own = dict.fromkeys(server for server in servers if len(server) == family.length)
            yield f"resolvers{family.number}", map(element, own)
        yield PORTED.name, [element(bytes((protocol,))) for protocol in PORTED_PROTOCOLS]

    def _chain_message(self, chain: Chain) -> Message:
        parts = [string(1, self._table), string(3, chain.name)]
        if chain.hook is not None:
            hook = nested(4, be32(1, chain.hook.number), be32(2, chain.hook.priority & 0xFFFFFFFF))
            parts += [hook, be32(5, NF_ACCEPT), string(7, "filter")]
        if chain.comment:
            parts.append(blob(12, user_data(COMMENT, chain.comment)))
        return Message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, b"".join(parts), f"create chain {chain.name}")


def _is_ours(facts: TableFacts | None) -> bool:
    return facts is not None and facts.comment.startswith(OURS)
