"""Pods, policies and subjects as the data path holds them, and the one transaction each change becomes.

An edition (all updates of one change) is staged, comes apart into parts that no pod can tell from the whole, and each
part is taken to the kernel first and to the look-up tables after: what the tables say is open, is open. What takes
long, the judges, is built before: a part changes hands at once. If the kernel refuses a change, the whole state is
written anew on the next tick.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from egressd.agent.editions import Key, Move, Part, divided, whole
from egressd.exchange import LastKnown, Party
from egressd.grants import UNSELECTED_SUBJECT, Admission, Ledger
from egressd.kernel import Change, PodElement
from egressd.model import ANY_PORT, OnRevoke, Policy, Ports, Reason, Subject, Verdict
from egressd.policy import ClusterFacts, Judge, Plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Set as AbstractSet

    from egressd.grants import Permit
    from egressd.link import PodEntry, Update
    from egressd.names import Name

__all__ = ["Moved", "Roster", "SubjectState"]

log = logging.getLogger("egressd.agent")


@dataclass(slots=True)
class SubjectState:
    """One subject: its number in the kernel, its judge, its plan and the addresses of the pods it holds for."""

    number: int
    key: Key
    judge: Judge
    plan: Plan
    addresses: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class _Pod:
    entry: PodEntry
    party: Party
    key: Key


@dataclass(slots=True)
class Moved:
    """Pods whose live connections a change may have cost their sanction, by address; those that are gone lose all."""

    cut: set[bytes] = field(default_factory=set)
    gone: set[bytes] = field(default_factory=set)


FIRST_SUBJECT: Final = UNSELECTED_SUBJECT + 1


class Roster:
    """The world of this node. One writer: the agent's event loop."""

    def __init__(self, facts: ClusterFacts, ledger: Ledger, known: LastKnown, *, intercept_all: bool) -> None:
        self.parties: dict[bytes, Party] = {}
        self.subjects: dict[Key, SubjectState] = {}
        self.policies: dict[str, Policy] = {}
        self._pods: dict[bytes, _Pod] = {}
        self._by_uid: dict[tuple[str, str, str], Party] = {}
        self._facts = facts
        self._ledger = ledger
        self._known = known
        self._intercept_all = intercept_all
        self._next = FIRST_SUBJECT
        self._kin: dict[bytes, tuple[bytes, ...]] = {}
        self._staged: dict[str, Policy | None] = {}
        self._moves: dict[bytes, PodEntry | None] = {}
        self._built: dict[Key, tuple[Judge, Plan]] = {}

    # --------------------------------------------------------------------------------------- change

    def stage(self, update: Update) -> None:
        """Keep a slice of an edition, or all of it, in mind; nothing changes yet, and what is so already is dropped."""
        for policy in update.policies:
            self._staged.pop(policy.name, None)
            if self.policies.get(policy.name) != policy:
                self._staged[policy.name] = policy
        for entry in update.pods:
            self._moves.pop(entry.address, None)
            pod = self._pods.get(entry.address)
            if pod is None or pod.entry != entry:
                self._moves[entry.address] = entry
        self._staged |= dict.fromkeys(update.gone_policies)
        self._moves |= dict.fromkeys(update.gone_pods)

    def unstage(self) -> None:
        """The rest of the edition will not come."""
        self._staged, self._moves = {}, {}

    def parts(self) -> list[Part]:
        """All of the edition is here: take its policies, and say what is to be built and changed, part by part.

        A subject goes by what its policies were until the part that it is in is changed.
        """
        staged, moves = self._staged, self._moves
        self.unstage()
        for name, policy in staged.items():
            if policy is None:
                self.policies.pop(name, None)
            else:
                self.policies[name] = policy
        edited = [key for key in self.subjects if not staged.keys().isdisjoint(key)] if staged else []
        return divided([self._move(address, entry) for address, entry in moves.items()], edited)

    def _move(self, address: bytes, entry: PodEntry | None) -> Move:
        """What ties an address to others: the pod that has it, the one that gets it, and the subjects of both."""
        ties: list[object] = []
        pod = self._pods.get(address)
        if pod is not None:
            ties += [pod.key, _uid(pod.entry)] if pod.key else [_uid(pod.entry)]
        if entry is not None:
            key = self._key(entry)
            ties += [key, _uid(entry)] if key else [_uid(entry)]
        return Move(address, tuple(ties), entry)

    def _key(self, entry: PodEntry) -> Key:
        return tuple(name for name in entry.policies if name in self.policies)

    def build(self, part: Part) -> Iterator[None]:
        """Make the judges that a part needs, one a step: `change` then has them at hand."""
        placed = {entry.address: self._key(entry) for entry in part.pods}
        leaving = placed.keys() | set(part.gone)
        wanted = {key for key in placed.values() if key and (key not in self.subjects or key in part.subjects)}
        wanted |= {key for key in part.subjects if self.subjects[key].addresses - leaving}
        for key in sorted(wanted):
            self._built[key] = self._make(key)
            yield

    def _make(self, key: Key) -> tuple[Judge, Plan]:
        judge = Judge(Subject(tuple(self.policies[name] for name in key if name in self.policies)), self._facts)
        return judge, judge.plan()

    def plan(self, update: Update, now: float) -> tuple[Change, Moved]:
        """An update as one change, however long that takes."""
        self.stage(update)
        return self.change(whole(self.parts()), now)

    def change(self, part: Part, now: float) -> tuple[Change, Moved]:
        """Take in a part; returns what the kernel must do and whose connections may have lost their sanction."""
        change, moved = Change(), Moved()
        self._kin.clear()
        for address in part.gone:
            self._remove(address, change, moved)
        before = {entry.address: self._place(entry, change, moved) for entry in part.pods}
        self._rejudge(part.subjects, change, moved, now)
        self._carry_over(before, change, now)
        self._drop_empty(change)
        self._built.clear()
        return change, moved

    def _remove(self, address: bytes, change: Change, moved: Moved) -> None:
        pod = self._pods.pop(address, None)
        if pod is None:
            return
        self._leave(pod, address)
        del self.parties[address]
        uid = _uid(pod.entry)
        if not any(other.party is pod.party for other in self._pods.values()):
            self._by_uid.pop(uid, None)
        self._known.forget(address)
        change.gone_pods.append(address)
        moved.gone.add(address)

    def _leave(self, pod: _Pod, address: bytes) -> None:
        state = self.subjects.get(pod.key)
        if state is not None:
            state.addresses.discard(address)

    def _place(self, entry: PodEntry, change: Change, moved: Moved) -> int | None:
        """Put a pod where its policies say. Returns the subject's number it comes from, None if it is new or stays."""
        address, identity, uid = entry.address, entry.identity, _uid(entry)
        old = self._pods.get(address)
        if old is not None and old.entry == entry:
            return None
        if old is not None and old.party is not self._by_uid.get(uid):
            self._remove(address, change, moved)  # the address is another pod's now: it inherits nothing
            change.gone_pods.remove(address)
            old = None
        key = self._key(entry)
        party = self._by_uid.get(uid)
        if party is None:
            party = self._by_uid[uid] = Party(identity)
        party.identity = identity
        came_from = None
        if old is not None:
            self._leave(old, address)
            came_from = old.party.subject
            moved.cut.add(address)
        self._pods[address] = _Pod(entry, party, key)
        self._join(key, address, change)
        change.pods.append(self._element(address))
        return came_from

    def _join(self, key: Key, address: bytes, change: Change) -> None:
        if not key:
            return
        state = self.subjects.get(key)
        if state is None:
            state = self.subjects[key] = SubjectState(self._next, key, *(self._built.get(key) or self._make(key)))
            self._next += 1
            change.subjects[state.number] = state.plan
        state.addresses.add(address)

    def _element(self, address: bytes) -> PodElement:
        pod = self._pods[address]
        state = self.subjects.get(pod.key)
        bypass = pod.entry.exempt or not (self._intercept_all or pod.key)
        return PodElement(address, state.number if state else None, bypass, str(pod.entry.identity))

    def _rejudge(self, edited: Iterable[Key], change: Change, moved: Moved, now: float) -> None:
        """Subjects whose policies were edited keep their number and the grants that still stand.

        The kernel need not hear of an edit that only names had a part in: they are no business of its rules.
        """
        for key in edited:
            state = self.subjects[key]
            if state.number in change.subjects or not state.addresses:
                continue  # made by this same change; or its pods have just moved away, and it goes
            before = state.plan
            state.judge, state.plan = self._built.get(key) or self._make(key)
            if state.plan != before:
                change.subjects[state.number] = state.plan
            self._settle(change, self._ledger.review(state.number, permit(state.judge), now))
            moved.cut |= state.addresses

    def _carry_over(self, before: dict[bytes, int | None], change: Change, now: float) -> None:
        """Pods that came from another subject bring the grants that their new policies permit."""
        routes = set()
        for address, source in before.items():
            state = self.subjects.get(self._pods[address].key)
            if source is not None and state is not None and state.number != source:
                routes.add((source, state.number, state.key))
        for source, target, key in sorted(routes):
            writes = self._ledger.copy(source, target, permit(self.subjects[key].judge), now)
            self._settle(change, Admission(writes, []))

    def _settle(self, change: Change, admission: Admission) -> None:
        change.grants.extend(admission.writes)
        change.gone_grants.extend(admission.gone)

    def _drop_empty(self, change: Change) -> None:
        for key, state in list(self.subjects.items()):
            if not state.addresses:
                del self.subjects[key]
                self._ledger.forget(state.number)
                if change.subjects.pop(state.number, None) is None:
                    change.gone_subjects.add(state.number)
                change.grants = [write for write in change.grants if write.subject != state.number]
                change.gone_grants = [element for element in change.gone_grants if element.subject != state.number]

    # -------------------------------------------------------------------------------- after the kernel

    def settle(self, change: Change, moved: Moved) -> list[bytes]:
        """The kernel has it: let the look-ups follow. Returns addresses that were unknown before."""
        self._kin.clear()
        fresh = []
        for element in change.pods:
            pod = self._pods.get(element.address)
            if pod is not None and element.address not in self.parties:
                self.parties[element.address] = pod.party
                fresh.append(element.address)
        for address in (*moved.cut, *(element.address for element in change.pods)):
            if (pod := self._pods.get(address)) is not None:
                state = self.subjects.get(pod.key)
                pod.party.subject = state.number if state else UNSELECTED_SUBJECT
                pod.party.judge = state.judge if state else None
        return fresh

    def renumber(self, taken: AbstractSet[int]) -> None:
        """Give every subject a number that is none of `taken`, which an earlier run gave to its own.

        Instances of both runs are in the table for a moment, and a packet of that moment must not be judged by another
        pod's policies. Before the first grant, as the ledger goes by these numbers.
        """
        count = len(self.subjects)
        first = max(taken) + 1 if taken and min(taken) < FIRST_SUBJECT + count else FIRST_SUBJECT
        for number, state in enumerate(self.subjects.values(), first):
            state.number = number
        self._next = first + count
        for pod in self._pods.values():
            state_of_pod = self.subjects.get(pod.key)
            pod.party.subject = state_of_pod.number if state_of_pod else UNSELECTED_SUBJECT

    def whole(self, now: float) -> Change:
        """Everything there is, for a table that has nothing."""
        change = Change()
        for state in self.subjects.values():
            change.subjects[state.number] = state.plan
        change.pods = [self._element(address) for address in self._pods]
        for state in self.subjects.values():
            change.grants += self._ledger.rewrite(state.number, now)
        return change

    def drains(self, address: bytes) -> bool:
        """Whether live connections of this pod may finish: only if every enforced policy of it says so."""
        pod = self._pods.get(address)
        state = self.subjects.get(pod.key) if pod else None
        if state is None:
            return False
        return all(policy.on_revoke is OnRevoke.DRAIN for policy in state.judge.subject.policies)

    def sanctions(self, pod: bytes, destination: bytes, protocol: int, port: int, now: float) -> bool:
        """Whether a live flow is still allowed: by address, by a live grant, or by a name it was learned by."""
        party = self.parties.get(pod)
        if party is None:
            return False
        judge = party.judge
        if judge is None or not judge.enforced:
            return True
        if self._ledger.opens(party.subject, destination, protocol, port, now):
            return True
        names = [name for address in self._siblings(pod) for name in self._known.names_for(address, destination)]
        verdict = judge.judge_destination(names, destination, protocol, port).verdict
        return verdict in (Verdict.ALLOWED, Verdict.WOULD_DENY)

    def denies(self, pod: bytes, destination: bytes, protocol: int, port: int) -> bool:
        """Whether a deny rule closes this address, by whatever name it was reached."""
        party = self.parties.get(pod)
        judge = party.judge if party else None
        if judge is None or not judge.enforced:
            return False
        return judge.judge_address(destination, protocol, port).reason is Reason.DENY_RULE

    def _siblings(self, address: bytes) -> tuple[bytes, ...]:
        """All addresses of the same pod: it asks over one family for addresses of both."""
        found = self._kin.get(address)
        if found is None:
            party = self.parties.get(address)
            found = self._kin[address] = tuple(other for other, its in self.parties.items() if its is party)
        return found

    def stale(self, policies: set[str], pods: set[bytes]) -> tuple[tuple[str, ...], tuple[bytes, ...]]:
        """Policies and pods that a control side that has said everything did not mention."""
        return tuple(self.policies.keys() - policies), tuple(self._pods.keys() - pods)

    def counts(self) -> dict[str, int]:
        selected = sum(party.judge is not None for party in self._by_uid.values())
        return {
            "pods": len(self._by_uid),
            "selected": selected,
            "policies": len(self.policies),
            "subjects": len(self.subjects),
        }

    def pods(self) -> Iterable[tuple[PodEntry, Party]]:
        """Every address with its entry and its party."""
        return ((pod.entry, pod.party) for pod in self._pods.values())

    def addresses(self) -> Iterable[bytes]:
        return self._pods.keys()


def _uid(entry: PodEntry) -> tuple[str, str, str]:
    identity = entry.identity
    return identity.namespace, identity.name, identity.uid


def permit(judge: Judge) -> Permit:
    """What today's policies let a name open of an address, as the ledger asks it."""

    def ports(name: Name, address: bytes) -> Ports:
        decision = judge.judge_name(name)
        if not decision.ports or judge.admissible(address, decision) is not None:
            return ()
        return judge.grant_ports(address, decision)

    return ports


def permit_everything(_name: Name, _address: bytes) -> Ports:
    """Unselected pods: all that they learned stays theirs to use."""
    return ANY_PORT
