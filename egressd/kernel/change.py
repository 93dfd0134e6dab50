"""A change of pods, subjects and grants as one list of messages, in the order the kernel needs.

What refers goes before what is referred to, and comes after it: pods leave, then instances; instances come, then
pods. Rules and address sets of a replaced instance are made anew; its grant sets stay, grants and all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from pyroute2.netlink import NLM_F_APPEND, NLM_F_CREATE
from pyroute2.netlink.nfnetlink.nftsocket import (
    NFT_MSG_DELCHAIN,
    NFT_MSG_DELRULE,
    NFT_MSG_NEWCHAIN,
    NFT_MSG_NEWRULE,
)

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
from egressd.kernel.expr import NF_ACCEPT, NFT_GOTO, verdict_data
from egressd.kernel.netlink import Message, blob, nested, string
from egressd.kernel.sets import create_set, delete_set, grant_set, plan_sets, rule_set
from egressd.kernel.state import Installed, PodElement
from egressd.kernel.template import Rule, subject_chain, subject_rules

if TYPE_CHECKING:
    from egressd.grants import Element
    from egressd.policy import Plan

__all__ = ["Change", "ChangeWriter", "rule_message"]

REVOKED_MS: Final = 600_000
"""How long a cut flow's other end is kept from opening it again: longer than any UDP conntrack entry or retry lives."""


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


def rule_message(table: str, chain: str, rule: Rule) -> Message:
    """The message that appends a rule to a chain."""
    comment = [blob(7, user_data(COMMENT, rule.comment))] if rule.comment else []
    body = b"".join((string(1, table), string(2, chain), nested(4, rule.expressions), *comment))
    about = f"add rule {rule.comment!r} to chain {chain}" if rule.comment else f"add a rule to chain {chain}"
    return Message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body, about)


def _said(messages: Iterable[Body], about: str) -> Iterator[Message]:
    return (Message(kind, flags, body, about) for kind, flags, body in messages)


class ChangeWriter:
    """Turns changes into messages; `local` says whether the node's own addresses are open (`in_cluster: Allow`)."""

    def __init__(self, table: str, headers: SetHeaders, *, local: bool) -> None:
        self._table = table
        self._headers = headers
        self._grants = GrantWriter(headers)
        self._local = local

    def messages(self, change: Change, state: Installed, *, renew: bool = False) -> list[Message]:
        """One transaction; `state` becomes what stands after it. `renew`: every grant may be there already."""
        pods = {pod.address: pod for pod in change.pods}
        leaving = [state.pods.pop(address) for address in {*change.gone_pods, *pods} if address in state.pods]
        out = list(self._remove_pods(leaving))
        for subject in sorted(change.gone_subjects):
            out += self._remove_subject(subject, state)
        out += _said(self._grants.withdraw(self._standing(change.gone_grants, state.subjects)), "delete grants")
        for subject, plan in sorted(change.subjects.items()):
            out += self._place_subject(subject, plan, state)
        out += self._add_pods(pods.values())
        state.pods.update(pods)
        out += _said(self._grants.write(change.grants, renew=renew), "add grants") if change.grants else ()
        out += self._revoke(change.revoked)
        return out

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
            return verdict_data(2, NF_ACCEPT)
        return verdict_data(2, NFT_GOTO, subject_chain(pod.subject))

    # --------------------------------------------------------------------------------------------- subjects

    def _chain(self, subject: int) -> bytes:
        return string(1, self._table) + string(3, subject_chain(subject))

    def _flush(self, subject: int) -> Message:
        chain = subject_chain(subject)
        return Message(NFT_MSG_DELRULE, 0, string(1, self._table) + string(2, chain), f"flush chain {chain}")

    def _remove_subject(self, subject: int, state: Installed) -> Iterator[Message]:
        names = state.subjects.pop(subject, None)
        state.rules.pop(subject, None)
        self._headers.forget(subject)
        if names is None:
            return
        yield self._flush(subject)
        yield Message(NFT_MSG_DELCHAIN, 0, self._chain(subject), f"delete chain {subject_chain(subject)}")
        yield from (delete_set(self._table, name) for name in sorted(names))

    def _place_subject(self, subject: int, plan: Plan, state: Installed) -> Iterator[Message]:
        standing = state.subjects.get(subject)
        if standing is None:
            comment = blob(12, user_data(COMMENT, plan.comment)) if plan.comment else b""
            body = self._chain(subject) + comment
            yield Message(NFT_MSG_NEWCHAIN, NLM_F_CREATE, body, f"create chain {subject_chain(subject)}")
        else:
            yield self._flush(subject)
        grants, rules = plan_sets(subject, plan)
        kept = (standing or set()) & {spec.name for spec in grants}
        yield from (delete_set(self._table, name) for name in sorted((standing or set()) - kept))
        new = [spec for spec in (*grants, *rules) if spec.name not in kept]
        yield from (create_set(self._table, spec) for spec in new)
        yield from self._addresses(subject, plan)
        rules_now = subject_rules(subject, plan, local=self._local)
        yield from (rule_message(self._table, subject_chain(subject), rule) for rule in rules_now)
        state.rules[subject] = len(rules_now)
        state.subjects[subject] = {spec.name for spec in (*grants, *rules)}

    def _addresses(self, subject: int, plan: Plan) -> Iterator[Message]:
        """The elements of the address sets."""
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
        for name, packed in entries.items():
            yield from _said(add_elements(self._headers.named(name), packed), f"add addresses to {name}")

    # ----------------------------------------------------------------------------------------------- grants

    def _standing(self, grants: Iterable[Element], subjects: dict[int, set[str]]) -> list[Element]:
        """Those whose set is there; the others left with it."""
        return [
            grant
            for grant in grants
            if grant_set(4 if len(grant.address) == 4 else 6, grant.subject, grant.kind)
            in subjects.get(grant.subject, ())
        ]

    def _revoke(self, pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[Message]:
        by_set: dict[str, dict[bytes, bytes]] = {}
        for pod, destination in pairs:
            key = pod + destination
            by_set.setdefault("revoked4" if len(pod) == 4 else "revoked6", {})[key] = element(
                key, lifetime_ms=REVOKED_MS
            )
        for name, entries in by_set.items():
            yield from _said(renew_elements(self._headers.named(name), list(entries.values())), f"revoke in {name}")
