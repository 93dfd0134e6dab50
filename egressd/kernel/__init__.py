"""The kernel side: one nf_tables table, one template, and policies, pods and grants as data in it.

Everything is said over one netlink socket in hand-packed messages. Each change takes effect in one atomic transaction,
which is complete when the call returns; where it needs sets or instances that no packet may meet half filled, another
one has prepared them (change.py). kernel.md is the law; template.py is the part to audit. Nothing here is safe to
call from two threads.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import egressd.kernel.library  # noqa: F401 - before any part of pyroute2

# isort: split
from pyroute2.netlink import NLM_F_CREATE
from pyroute2.netlink.nfnetlink.nftsocket import NFPROTO_IPV4, NFPROTO_IPV6, NFT_MSG_DELTABLE, NFT_MSG_NEWTABLE

from egressd.errors import EnvironmentProblem, KernelError
from egressd.kernel.bridge.table import BridgeTable
from egressd.kernel.change import Change, ChangeWriter, Steps
from egressd.kernel.comments import COMMENT, INSTANCE, user_data
from egressd.kernel.compare import difference, rules_of
from egressd.kernel.elements import GrantWriter, SetHeaders, element, renew_elements
from egressd.kernel.netlink import Channel, Message, Refused, be32, blob, pack_batch, string
from egressd.kernel.node import HEARTBEAT, NodeWriter
from egressd.kernel.probe import missing, refuse_kernel
from egressd.kernel.sets import split_name
from egressd.kernel.state import (
    NODE,
    Installed,
    LiveGrant,
    PodElement,
    Snapshot,
    TableFacts,
    chains_of,
    installed,
    sets_of,
    snapshot,
    table_facts,
)
from egressd.kernel.template import subject_chain
from egressd.kernel.verdicts import records_all

if TYPE_CHECKING:
    from egressd.grants import Element
    from egressd.settings import Settings

__all__ = ["SCHEMA", "Change", "Kernel", "LiveGrant", "PodElement", "Snapshot"]

log = logging.getLogger("egressd.kernel")

OURS: Final = "egressd schema "
SCHEMA: Final = f"{OURS}1"
"""Comment of the table: whose it is, and of which version."""
REINSTALL: Final = "install the table again"
HEARTBEAT_MS: Final = 3000
INSTALL_TRIES: Final = 3
"""Once more without the flags of an owner, and once more if the table went away between looking and writing."""
RESYNC: Final = frozenset({errno.ENOENT, errno.EEXIST, errno.EBUSY})
"""Errors that mean: the table is not what we believe."""
OWNER, PERSIST = 0x2, 0x4
OWNED: Final = OWNER | PERSIST
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
        local = settings.in_cluster == "Allow"
        self._changes = ChangeWriter(self._table, self._headers, local=local, recorded=records_all(settings))
        self._grants = GrantWriter(self._headers)
        self._state = Installed()
        beats = [element(bytes((family,)), lifetime_ms=HEARTBEAT_MS) for family in (NFPROTO_IPV4, NFPROTO_IPV6)]
        self.bridge = BridgeTable(lambda: self._channel, self._table, self._table_message)
        self._beats = list(renew_elements(self._headers.named("heartbeat"), beats))
        self._beat = pack_batch(self._beats)

    def install(self, change: Change | None = None, *, beating: bool = False) -> None:
        """Create the table with its chains, node-level sets and, if given, a first `change`; all of it or nothing.

        A table of ours that is there already changes over in one transaction. One of another schema, or one that this
        socket cannot own, is deleted and written anew in one; then alone is there an instant in which address ranges
        do not count yet. `beating`: interception is on from the start, so that no query passes by between two
        versions. Raises `EnvironmentProblem` without the right to, on a kernel that lacks a feature (each is named),
        and if the table of that name is somebody else's.
        """
        for _ in range(INSTALL_TRIES):
            try:
                self._state = self._write(change or Change(), beating=beating)
            except Refused as error:
                if error.errno == errno.ENOENT:
                    continue  # it went away after we looked
                if error.errno not in UNSUPPORTED or not self._flags:
                    raise self._diagnose(error) from error
                self._flags = 0
            else:
                return
            finally:
                self._changes.follow(self._state)
        raise KernelError("the table was taken away while it was being written", errno.EAGAIN)

    def _write(self, change: Change, *, beating: bool) -> Installed:
        facts = self._check_ours()
        if facts is not None and self._usable(facts):
            try:
                return self._change_over(change, beating=beating, there=True)
            except Refused as error:
                log.info("the table cannot be changed over (%s): it is deleted and written anew", error)
        return self._change_over(change, beating=beating, there=False, deleted=facts is not None)

    def _change_over(self, change: Change, *, beating: bool, there: bool, deleted: bool = False) -> Installed:
        """`there`: into the table that is there. `deleted`: that one goes first, which needs a single transaction."""
        sets = sets_of(self._channel, self._table) if there else {}
        chains = chains_of(self._channel, self._table) if there else {}
        before = Installed()
        for name in sets:
            before.meet(name)
        state = Installed(generations=before.generations)
        mark = struct.pack("BB", INSTANCE, len(self._instance)) + self._instance
        node = NodeWriter(self._settings, self._headers, state.generation(NODE), mark)
        state.node = node.names
        self._changes.follow(state)
        known = {number: chains.get(subject_chain(number)) for number in change.subjects}
        taken = before.subjects.keys() | {number for number, chain in known.items() if chain or not there}
        staying = {number for number, chain in known.items() if chain and chain.says(change.subjects[number].comment)}
        steps = self._changes.steps(change, state, renew=True, taken=taken, staying=staying)
        bindings = self.bridge.carried(state.pods)
        stage = [self._table_message(NFT_MSG_NEWTABLE), *node.stage(), *steps.stage]
        clear = node.clear(sets, chains, {subject_chain(number) for number in staying}) if there else ()
        flip = [*clear, *node.flip(sets), *steps.flip]
        if beating:
            flip += [Message(*body, "begin the heartbeat") for body in self._beats]
        flip += self.bridge.anew(bindings)
        if deleted:
            self._channel.transact([self._table_message(NFT_MSG_DELTABLE), *stage, *flip])
        else:
            undo = [*steps.undo, *node.unstage()] if there else [self._table_message(NFT_MSG_DELTABLE)]
            self._transact(Steps(stage, flip, undo))
        self.bridge.wrote(bindings)
        self._base = node.rules
        return state

    def _usable(self, facts: TableFacts) -> bool:
        """Whether the table can stay: of this schema, and ours to own, or not owned where it need not be."""
        owned = facts.owner == self.port or facts.flags == PERSIST
        return facts.comment == SCHEMA and (owned if self._flags else not facts.flags & OWNER)

    def apply(self, change: Change) -> None:
        """Make a change, all of it or, raising `KernelError`, nothing of it. Its grants may be there already.

        Where the table turns out not to be what was last written, it is read back and the change tried once more.
        """
        state = self._state.copy()
        try:
            self._transact(self._changes.steps(change, state))
            self._state = state
        except Refused as error:
            if error.errno not in RESYNC:
                raise
            self._state = self._read_installed()
            self._changes.follow(self._state)
            state = self._state.copy()
            self._transact(self._changes.steps(change, state, renew=True))
            self._state = state
        finally:
            self._changes.follow(self._state)

    def _transact(self, steps: Steps) -> None:
        """Stage, then flip. What was staged for a flip that did not happen goes again, and nothing has changed."""
        if steps.stage:
            self._channel.transact(steps.stage)
        if not steps.flip:
            return
        try:
            self._channel.transact(steps.flip)
        except KernelError:
            if steps.stage and steps.undo:
                self._take_back(steps.undo)
            raise

    def _take_back(self, messages: Sequence[Message]) -> None:
        """What stays nobody refers to; the next installation takes it out."""
        try:
            self._channel.transact(messages)
        except KernelError as error:
            log.warning("what was prepared for a change that failed stays in the table: %s", error)

    def program(self, elements: Sequence[Element]) -> None:
        """Write grants in one transaction: the hot path. After it each lives for its full lifetime from now.

        Raises `KernelError` with ETIMEDOUT where the kernel took them, but later than `grants.program_timeout`.
        """
        if not elements:
            return
        started = time.monotonic()
        self._program(elements)
        took = time.monotonic() - started
        if took > self._settings.grants.program_timeout:
            raise KernelError(f"{len(elements)} grants were acknowledged only after {took:.3g} s", errno.ETIMEDOUT)

    def _program(self, elements: Sequence[Element]) -> None:
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
        if self._facts() is None:
            return False
        sets = sets_of(self._channel, self._table)
        return sets.get(HEARTBEAT, self._instance) != self._instance

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
        found.node = self._state.node
        for subject, names in found.subjects.items():
            if len({split_name(name)[0] for name in names if name.startswith("grant")}) < sum(
                name.startswith("grant") for name in names
            ):
                raise KernelError(f"there are two sets for the same grants of subject {subject}", errno.EIO, REINSTALL)
        return found

    # ----------------------------------------------------------------------------------------- installing

    def _facts(self) -> TableFacts | None:
        """Whose the table is, None if there is none. Raises `EnvironmentProblem` without the right to look."""
        try:
            return table_facts(self._channel, self._table)
        except KernelError as error:
            raise self._diagnose(error) from error

    def _check_ours(self) -> TableFacts | None:
        """The table, None if there is none; one that is not ours is an `EnvironmentProblem`."""
        facts = self._facts()
        if facts is None:
            return None
        if not _is_ours(facts):
            raise EnvironmentProblem(
                f"a table inet {self._table} is there already, and egressd did not make it",
                f"choose another name with firewall.table, or delete it: nft delete table inet {self._table}",
            )
        self._check_owner(facts)
        return facts

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
        """Create (or, where it is there, own) or delete the table."""
        if kind == NFT_MSG_DELTABLE:
            return Message(kind, 0, string(1, self._table), f"delete table inet {self._table}")
        flags = be32(2, self._flags) if self._flags else b""
        body = string(1, self._table) + flags + blob(6, user_data(COMMENT, SCHEMA))
        return Message(kind, NLM_F_CREATE, body, f"create table inet {self._table}")


def _is_ours(facts: TableFacts | None) -> bool:
    return facts is not None and facts.comment.startswith(OURS)
