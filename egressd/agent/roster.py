"""Pods, policies and subjects as the data path holds them, and the one transaction each change becomes.

`Roster.apply` takes an update of the control side to the kernel first and to the look-up tables after: what the
tables say is open, is open. If the kernel refuses a change, the whole state is written anew on the next tick.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from egressd.exchange import LastKnown, Party
from egressd.grants import UNSELECTED_SUBJECT, Admission, Ledger
from egressd.kernel import Change, PodElement
from egressd.model import ANY_PORT, OnRevoke, Policy, Ports, Reason, Subject, Verdict
from egressd.policy import ClusterFacts, Judge

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    from egressd.grants import Permit
    from egressd.link import PodEntry, Update
    from egressd.names import Name

__all__ = ["Moved", "Roster", "SubjectState"]

log = logging.getLogger("egressd.agent")

Key = tuple[str, ...]


@dataclass(slots=True)
class SubjectState:
    """One subject: its number in the kernel, its judge, and the addresses of the pods it holds for."""

    number: int
    key: Key
    judge: Judge
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

    # --------------------------------------------------------------------------------------- change

    def plan(self, update: Update, now: float) -> tuple[Change, Moved]:
        """Take in an update; returns what the kernel must do and whose connections may have lost their sanction."""
        change, moved = Change(), Moved()
        self._kin.clear()
        edited = self._take_policies(update)
        for address in update.gone_pods:
            self._remove(address, change, moved)
        before = {entry.address: self._place(entry, change, moved) for entry in update.pods}
        self._rejudge(edited, change, moved, now)
        self._carry_over(before, change, now)
        self._drop_empty(change)
        return change, moved

    def _take_policies(self, update: Update) -> set[str]:
        edited = set()
        for policy in update.policies:
            if self.policies.get(policy.name) != policy:
                self.policies[policy.name] = policy
                edited.add(policy.name)
        for name in update.gone_policies:
            if self.policies.pop(name, None) is not None:
                edited.add(name)
        return edited

    def _remove(self, address: bytes, change: Change, moved: Moved) -> None:
        pod = self._pods.pop(address, None)
        if pod is None:
            return
        self._leave(pod, address)
        del self.parties[address]
        identity = pod.entry.identity
        uid = (identity.namespace, identity.name, identity.uid)
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
        address, identity = entry.address, entry.identity
        uid = (identity.namespace, identity.name, identity.uid)
        old = self._pods.get(address)
        if old is not None and old.entry == entry:
            return None
        if old is not None and old.party is not self._by_uid.get(uid):
            self._remove(address, change, moved)  # the address is another pod's now: it inherits nothing
            change.gone_pods.remove(address)
            old = None
        key = tuple(name for name in entry.policies if name in self.policies)
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
            subject = Subject(tuple(self.policies[name] for name in key))
            state = self.subjects[key] = SubjectState(self._next, key, Judge(subject, self._facts))
            self._next += 1
            change.subjects[state.number] = state.judge.plan()
        state.addresses.add(address)

    def _element(self, address: bytes) -> PodElement:
        pod = self._pods[address]
        state = self.subjects.get(pod.key)
        bypass = pod.entry.exempt or not (self._intercept_all or pod.key)
        return PodElement(address, state.number if state else None, bypass, str(pod.entry.identity))

    def _rejudge(self, edited: set[str], change: Change, moved: Moved, now: float) -> None:
        """Subjects whose policies were edited keep their number and the grants that still stand."""
        for state in self.subjects.values():
            if state.number in change.subjects or edited.isdisjoint(state.key):
                continue
            policies = tuple(self.policies[name] for name in state.key if name in self.policies)
            if not policies:
                continue  # its pods are being moved away by this same update
            state.judge = Judge(Subject(policies), self._facts)
            change.subjects[state.number] = state.judge.plan()
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

    def settle(self, change: Change) -> list[bytes]:
        """The kernel has it: let the look-ups follow. Returns addresses that were unknown before."""
        self._kin.clear()
        fresh = []
        for element in change.pods:
            pod = self._pods.get(element.address)
            if pod is not None and element.address not in self.parties:
                self.parties[element.address] = pod.party
                fresh.append(element.address)
        for pod in self._pods.values():
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
            change.subjects[state.number] = state.judge.plan()
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
