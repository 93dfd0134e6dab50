"""A change of pods, subjects and grants as messages, in the order the kernel needs, in one transaction or two.

The kernel fills interval sets at the very end of a commit, when the rules of the same transaction are in force already
(nft_set_commit_update in nf_tables_api.c), and a chain that is new in it is empty for a packet that entered a moment
before. So what packets must not meet half made is *staged*: new address sets are filled, and whole new instances
written, by a first transaction that no packet can notice, as nothing refers to them yet. The second, the *flip*, is
the change as packets see it: before it every packet is judged by what was, after it by what is to be.

What refers goes before what is referred to, and comes after it: pods leave, then instances; instances come, then
pods. Of a replaced instance the rules are made anew, and those address sets whose contents differ; its grant sets
stay, grants and all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, NamedTuple

from pyroute2.netlink import NLM_F_APPEND, NLM_F_CREATE
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELCHAIN,
    NFT_MSG_DELRULE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
)

from egressd.kernel.chains import Rule
from egressd.kernel.comments import COMMENT, user_data
from egressd.kernel.elements import (
    Body,
    GrantWriter,
    SetHeaders,
    add_elements,
    delete_elements,
    element,
    endpoint,
    interval_elements,
    renew_elements,
)
from egressd.kernel.expr import IPV4, IPV6, NF_ACCEPT, NFT_GOTO, verdict_data
from egressd.kernel.netlink import Message, blob, nested, string
from egressd.kernel.sets import SetSpec, create_set, delete_set, grant_set, named, plan_sets, rule_set, split_name
from egressd.kernel.state import Installed, PodElement
from egressd.kernel.template import subject_chain, subject_rules
from egressd.kernel.verdicts import ALLOWED

if TYPE_CHECKING:
    from egressd.grants import Element
    from egressd.policy import Plan

__all__ = ["Change", "ChangeWriter", "Steps", "rule_message"]

REVOKED_MS: Final = 600_000
"""How long a cut flow's other end is kept from opening it again: longer than any UDP conntrack entry or retry lives."""
REVOKING_MS: Final = REVOKED_MS + 60_000
"""How long packets are held against the revoked pairs: longer than any of these."""


@dataclass(slots=True)
class Change:
    """What is to be different, all at once. A subject in both `gone_subjects` and `subjects` begins anew."""

    subjects: dict[int, Plan] = field(default_factory=dict)
    """Instances to create or replace; a replaced one keeps its grants. A subject's comment is fixed for its life."""
    gone_subjects: set[int] = field(default_factory=set)
    pods: list[PodElement] = field(default_factory=list)
    """Addresses to add or to point elsewhere."""
    gone_pods: list[bytes] = field(default_factory=list)
    grants: list[Element] = field(default_factory=list)
    gone_grants: list[Element] = field(default_factory=list)
    revoked: list[tuple[bytes, bytes]] = field(default_factory=list)
    """(pod, destination) pairs whose live flows end."""
    pardoned: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Pairs revoked before, whose flows may live again."""


class Steps(NamedTuple):
    """A change as transactions: what is staged (often nothing), the flip, and what takes the staged away again."""

    stage: list[Message]
    flip: list[Message]
    undo: list[Message]


def rule_message(table: str, chain: str, rule: Rule) -> Message:
    """The message that appends a rule to a chain."""
    comment = [blob(7, user_data(COMMENT, rule.comment))] if rule.comment else []
    body = b"".join((string(1, table), string(2, chain), nested(4, rule.expressions), *comment))
    about = f"add rule {rule.comment!r} to chain {chain}" if rule.comment else f"add a rule to chain {chain}"
    return Message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body, about)


def _said(messages: Iterable[Body], about: str) -> Iterator[Message]:
    return (Message(kind, flags, body, about) for kind, flags, body in messages)


class ChangeWriter:
    """Turns changes into messages.

    `local` says whether the node's own addresses are open (`in_cluster: Allow`), `recorded` whether what is let
    through is reported, too (`audit.flows: All`).
    """

    def __init__(self, table: str, headers: SetHeaders, *, local: bool, recorded: bool = False) -> None:
        self._table = table
        self._headers = headers
        self._grants = GrantWriter(headers)
        self._local = local
        self._recorded = recorded

    def steps(
        self,
        change: Change,
        state: Installed,
        *,
        renew: bool = False,
        taken: AbstractSet[int] = frozenset(),
        staying: AbstractSet[int] = frozenset(),
    ) -> Steps:
        """The change as transactions; `state` becomes what stands after them.

        `renew`: every grant may be there already. `taken`: numbers of subjects that something in the table has names
        of, which is not in `state` and goes in the flip; of those `staying` the chain is emptied only.
        """
        out = Steps([], [], [])
        pods = {pod.address: pod for pod in change.pods}
        leaving = [state.pods.pop(address) for address in {*change.gone_pods, *pods} if address in state.pods]
        out.flip.extend(self._remove_pods(leaving))
        for subject in sorted(change.gone_subjects):
            out.flip.extend(self._remove_subject(subject, state, again=subject in change.subjects))
        out.flip.extend(
            _said(self._grants.withdraw(self._standing(change.gone_grants, state.subjects)), "delete grants")
        )
        fresh: set[str] = set()
        for subject, plan in sorted(change.subjects.items()):
            anew = subject in taken or subject in change.gone_subjects
            fresh |= self._place_subject(subject, plan, state, out, anew=anew, emptied=subject in staying)
        out.flip.extend(self._add_pods(pods.values()))
        state.pods.update(pods)
        self._add_grants(change, fresh, out, renew=renew)
        out.flip.extend(self._pardon(change.pardoned))
        out.flip.extend(self._revoke(change.revoked))
        return out

    def follow(self, state: Installed) -> None:
        """This stands in the table, whatever steps were last asked for."""
        self._headers.follow_all(state.subjects)

    # ------------------------------------------------------------------------------------------------- pods

    def _sets_of(self, pod: PodElement) -> list[str]:
        n = 4 if len(pod.address) == 4 else 6
        return [f"pods{n}", f"known{n}", *([f"bypass{n}"] if pod.bypass else [])]

    def _remove_pods(self, pods: Iterable[PodElement]) -> Iterator[Message]:
        """Out of the map, and out of the plain sets as well if another hand emptied them: add, delete."""
        by_set: dict[str, list[bytes]] = {}
        for pod in pods:
            for name in self._sets_of(pod):
                by_set.setdefault(name, []).append(element(pod.address))
        for name, entries in by_set.items():
            header = self._headers.named(name)
            if not name.startswith("pods"):
                yield from _said(add_elements(header, entries), f"delete pods from {name}")
            yield from _said(delete_elements(header, entries), f"delete pods from {name}")

    def _add_pods(self, pods: Iterable[PodElement]) -> Iterator[Message]:
        by_set: dict[str, list[bytes]] = {}
        for pod in pods:
            for name in self._sets_of(pod):
                data = self._verdict(pod) if name.startswith("pods") else b""
                by_set.setdefault(name, []).append(element(pod.address, data=data, comment=pod.comment))
        for name, entries in by_set.items():
            yield from _said(add_elements(self._headers.named(name), entries), f"add pods to {name}")

    def _verdict(self, pod: PodElement) -> bytes:
        if pod.subject is None:
            return verdict_data(2, NFT_GOTO, ALLOWED) if self._recorded else verdict_data(2, NF_ACCEPT)
        return verdict_data(2, NFT_GOTO, subject_chain(pod.subject))

    # --------------------------------------------------------------------------------------------- subjects

    def _chain(self, subject: int) -> bytes:
        return string(1, self._table) + string(3, subject_chain(subject))

    def _flush(self, subject: int) -> Message:
        chain = subject_chain(subject)
        return Message(NFT_MSG_DELRULE, 0, string(1, self._table) + string(2, chain), f"flush chain {chain}")

    def _create_chain(self, subject: int, plan: Plan) -> Message:
        comment = blob(12, user_data(COMMENT, plan.comment)) if plan.comment else b""
        body = self._chain(subject) + comment
        return Message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, body, f"create chain {subject_chain(subject)}")

    def _delete_chain(self, subject: int) -> list[Message]:
        body, about = self._chain(subject), f"delete chain {subject_chain(subject)}"
        return [self._flush(subject), Message(NFT_MSG_DELCHAIN, 0, body, about)]

    def _remove_subject(self, subject: int, state: Installed, *, again: bool) -> Iterator[Message]:
        """`again`: it comes back, and its new sets must not have the names of the old."""
        names = state.subjects.pop(subject, None)
        state.rules.pop(subject, None)
        if not again:
            state.generations.pop(subject, None)
        self._headers.follow(subject, ())
        if names is None:
            return
        yield from self._delete_chain(subject)
        yield from (self._delete_set(name, state) for name in sorted(names))

    def _delete_set(self, name: str, state: Installed) -> Message:
        state.contents.pop(name, None)
        return delete_set(self._table, name)

    def _place_subject(
        self, subject: int, plan: Plan, state: Installed, out: Steps, *, anew: bool, emptied: bool
    ) -> set[str]:
        """Returns the names of the sets that are new and staged. `anew`, `emptied`: see `steps`."""
        standing = state.subjects.get(subject)
        contents = self._contents(subject, plan)
        specs, kept = self._sets(subject, plan, state, contents)
        whole = standing is None and not anew  # nothing refers to it: all of it is staged
        rest = out.stage if whole else out.flip
        if standing is None:
            rest.extend([] if emptied else [self._create_chain(subject, plan)])
        else:
            rest.append(self._flush(subject))
            rest.extend(self._delete_set(name, state) for name in sorted(standing - kept))
        staged = set()
        for spec in specs:
            early = whole or spec.interval
            (out.stage if early else out.flip).append(create_set(self._table, spec))
            staged |= {spec.name} if early else set()
            packed = contents.get(split_name(spec.name)[0], [])
            out.stage.extend(
                _said(add_elements(self._headers.named(spec.name), packed), f"add addresses to {spec.name}")
            )
            if packed:
                state.contents[spec.name] = _digest(packed)
        state.subjects[subject] = kept | {spec.name for spec in specs}
        self._headers.follow(subject, state.subjects[subject])
        names = {split_name(name)[0]: name for name in state.subjects[subject]} | state.node
        rules = subject_rules(subject, plan, names, local=self._local, recorded=self._recorded)
        rest.extend(rule_message(self._table, subject_chain(subject), rule) for rule in rules)
        state.rules[subject] = len(rules)
        out.undo.extend(self._delete_chain(subject) if whole else ())
        out.undo.extend(delete_set(self._table, name) for name in sorted(staged))
        return staged

    def _sets(
        self, subject: int, plan: Plan, state: Installed, contents: dict[str, list[bytes]]
    ) -> tuple[list[SetSpec], set[str]]:
        """The sets to create, and the names of those that stay: of grants, and of the very same addresses."""
        standing = {split_name(name)[0]: name for name in state.subjects.get(subject, ())}
        kept = set()
        new = []
        for spec in (spec for specs in plan_sets(subject, plan) for spec in specs):
            name = standing.get(spec.name, "")
            packed = contents.get(spec.name)
            if name and (packed is None or state.contents.get(name) == _digest(packed)):
                kept.add(name)
            else:
                new.append(spec)
        if any(spec.interval for spec in new):
            generation = state.generation(subject)
            new = [replace(spec, name=named(spec.name, generation)) if spec.interval else spec for spec in new]
        return new, kept

    def _contents(self, subject: int, plan: Plan) -> dict[str, list[bytes]]:
        """The elements of the address sets, by stem."""
        entries: dict[str, list[bytes]] = {}
        for use, intervals in (("deny", plan.deny), ("report", plan.report), ("allow", plan.allow)):
            for first, last, span in intervals:
                n = 4 if len(first) == 4 else 6
                into = entries.setdefault(rule_set(use, n, subject, ported=span is not None), [])
                if span is None:
                    into += interval_elements([(first, last)])
                else:
                    start = endpoint(first, span.first_protocol, span.first_port)
                    into.append(element(start, end=endpoint(last, span.last_protocol, span.last_port)))
        return entries

    # ----------------------------------------------------------------------------------------------- grants

    def _standing(self, grants: Sequence[Element], subjects: dict[int, set[str]]) -> list[Element]:
        """Those whose set is there; the others left with it."""
        stems = {grant.subject: {split_name(name)[0] for name in subjects.get(grant.subject, ())} for grant in grants}
        return [grant for grant in grants if _set_of(grant) in stems[grant.subject]]

    def _add_grants(self, change: Change, fresh: set[str], out: Steps, *, renew: bool) -> None:
        """Grants for sets that are staged, and other wide ranges, which are in interval sets, are staged too.

        But not a range of an address some other range of which goes: two that overlap cannot both be there. It is
        one set then, and the kernel puts its new contents in place of the old at once.
        """
        if not change.grants:
            return
        giving_way = {(grant.subject, grant.address) for grant in change.gone_grants if grant.kind == "range"}
        early: list[Element] = []
        late: list[Element] = []
        withdrawn: list[Element] = []
        fresh_stems = {split_name(name)[0] for name in fresh}
        for grant in change.grants:
            if _set_of(grant) in fresh_stems:
                early.append(grant)
            elif grant.kind == "range" and not grant.refresh and (grant.subject, grant.address) not in giving_way:
                early.append(grant)
                withdrawn.append(grant)
            else:
                late.append(grant)
        for grants, step in ((early, out.stage), (late, out.flip)):
            step.extend(_said(self._grants.write(grants, renew=renew), "add grants") if grants else ())
        out.undo.extend(_said(self._grants.withdraw(withdrawn), "delete grants"))

    def _revoke(self, pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[Message]:
        families = []
        for name, entries in _by_family(pairs).items():
            yield from _said(renew_elements(self._headers.named(name), entries), f"revoke in {name}")
            family = IPV4 if name == "revoked4" else IPV6
            families.append(element(bytes((family.protocol,)), lifetime_ms=REVOKING_MS))
        if families:
            yield from _said(renew_elements(self._headers.named("revoking"), families), "look for revoked pairs")

    def _pardon(self, pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[Message]:
        """Add, delete: gone, whether or not it has run out meanwhile."""
        for name, entries in _by_family(pairs).items():
            header = self._headers.named(name)
            yield from _said((*add_elements(header, entries), *delete_elements(header, entries)), f"pardon in {name}")


def _by_family(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, list[bytes]]:
    """Elements of the sets of revoked pairs, each once."""
    out: dict[str, list[bytes]] = {}
    for pod, destination in dict.fromkeys(pairs):
        name = "revoked4" if len(pod) == 4 else "revoked6"
        out.setdefault(name, []).append(element(pod + destination, lifetime_ms=REVOKED_MS))
    return out


def _set_of(grant: Element) -> str:
    """The stem of its set."""
    return grant_set(4 if len(grant.address) == 4 else 6, grant.subject, grant.kind)


def _digest(entries: Iterable[bytes]) -> bytes:
    """What a set was filled with, to tell whether it is the same again."""
    return blake2b(b"".join(entries), digest_size=16).digest()
