"""The policies of one subject, indexed: names by a label trie, addresses by one map of the address space.

A judge is built once from values and never changes; what it remembers is bounded by the policies, since all names that
stop at the same place of the trie share one decision. The law it applies is in `verdict`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from egressd.model import ANY_PORT, Block, Decision, DnsMode, Mode, Ports, Reason, Subject, Verdict
from egressd.names import Name, in_domain
from egressd.policy.addresses import Guard, Kind
from egressd.policy.explain import Context, Explanation, explain_address, explain_name
from egressd.policy.plan import Plan, make_plan
from egressd.policy.ports import Grid, point
from egressd.policy.sweep import AddressSpace
from egressd.policy.trie import LabelTrie, Node
from egressd.policy.verdict import Case, Entry, Outcome, decide, entries_of, judge

__all__ = ["ClusterFacts", "Judge"]


@dataclass(frozen=True)
class ClusterFacts:
    """What the settings say is inside the cluster, and whether it is judged like the rest (`in_cluster: Enforce`)."""

    cidrs: tuple[Block, ...] = ()
    domains: tuple[Name, ...] = (Name("cluster.local"),)
    enforce: bool = False


class Judge:
    """What the policies of one subject say of any destination. Immutable to its callers; no clock, no I/O."""

    __slots__ = (
        "_audits",
        "_below",
        "_blocks",
        "_cluster",
        "_entries",
        "_exact",
        "_grid",
        "_guard",
        "_names",
        "enforced",
        "facts",
        "filters_dns",
        "subject",
    )

    def __init__(self, subject: Subject, facts: ClusterFacts) -> None:
        self.subject = subject
        self.facts = facts
        enforcing = [policy for policy in subject.policies if policy.mode is Mode.ENFORCE]
        self.enforced = bool(enforcing)
        """Whether any policy takes part in the verdict; else nothing is closed, only reported."""
        self.filters_dns = any(policy.dns is DnsMode.FILTER for policy in enforcing)
        """Whether names that are not allowed stay unresolved."""
        self._audits = len(enforcing) < len(subject.policies)
        self._entries = entries_of(subject.policies)
        self._names = _index_names(self._entries, facts.domains)
        self._blocks = AddressSpace((block, entry) for entry in self._entries for block in entry.rule.blocks)
        self._cluster = AddressSpace((block, True) for block in facts.cidrs)
        counting = [entry for entry in self._entries if entry.deny and entry.audited != self.enforced]
        self._guard = Guard(facts.cidrs, counting)
        self._grid = Grid(entry.ports for entry in self._entries if entry.rule.patterns)
        self._exact: dict[Node[Entry], Decision] = {}
        self._below: dict[Node[Entry], Decision] = {}

    # ------------------------------------------------------------------------------------------- names

    def judge_name(self, name: Name) -> Decision:
        """The verdict for a query of this name, of whatever type."""
        node, whole = self._names.place(name)
        known = self._exact if whole else self._below
        decision = known.get(node)
        if decision is None:
            decision = known[node] = self._decide(self._name_case(name))
        return decision

    def explain_name(self, name: Name) -> Explanation:
        """The same decision, with the steps that led to it."""
        return explain_name(name, self._name_case(name), self.judge_name(name), self._context())

    def _name_case(self, name: Name, wanted: Ports = ANY_PORT) -> Case:
        inside = any(in_domain(name, domain) for domain in self.facts.domains)
        entries = tuple(entry for level in self._names.levels(name) for entry in level)
        return Case(entries, wanted, inside, inside and not self.facts.enforce, bool(self.subject.policies))

    # --------------------------------------------------------------------------------------- addresses

    def judge_address(self, address: bytes, protocol: int, port: int) -> Decision:
        """The verdict for an address that is dialled without a name. `port` -1: some port of the protocol."""
        return self._decide(self._address_case(address, protocol, port))

    def explain_address(self, address: bytes, protocol: int, port: int) -> Explanation:
        """The same decision, with the steps that led to it."""
        case = self._address_case(address, protocol, port)
        return explain_address(address, case, self._decide(case), self._context())

    def _context(self) -> Context:
        return Context(self.subject.policies, self._entries, self.filters_dns)

    def judge_destination(self, names: Sequence[Name], address: bytes, protocol: int, port: int) -> Decision:
        """The verdict for a flow: what address rules say, and where none speaks, what the address's names would say.

        One name that is allowed suffices, since any name may have brought the pod there; else a deny rule is told.
        """
        case = self._address_case(address, protocol, port)
        cases = [case, *(self._name_case(name, case.wanted) for name in names)]
        first = _first_to_speak([judge(one.enforced(self.enforced)) for one in cases])
        return decide(first, _first_to_speak([judge(one) for one in cases]), self.filters_dns)

    def _address_case(self, address: bytes, protocol: int, port: int) -> Case:
        inside = bool(self._cluster.at(address))
        entries = self._blocks.at(address)
        wanted = point(protocol, port)
        return Case(entries, wanted, inside, inside and not self.facts.enforce, bool(self.subject.policies))

    def _decide(self, case: Case) -> Decision:
        everything = judge(case)
        counts = judge(case.enforced(self.enforced)) if self._audits else everything
        return decide(counts, everything, self.filters_dns)

    # ------------------------------------------------------------------------------------------ grants

    def admissible(self, address: bytes, decision: Decision) -> Reason | None:
        """Why this address of an answer must be withheld and not granted, or None where it may be had.

        The deny rules that count are those of Enforce policies; where there are none, those of the Audit policies, so
        that what would be withheld can be reported. A decision that opens nothing (`dns: Resolve` and no rule) has
        nothing to withhold.
        """
        if len(address) == 4 and not self._guard.notable[address[0]]:
            return None
        ports, private = decision.ports, decision.private_ports
        if not ports:
            if not self._cluster_name(decision):
                return None
            ports = private = ANY_PORT
        elif decision.allow_private and not private:
            private = ports
        return self._guard.judge(address, ports, private)

    def grant_ports(self, address: bytes, decision: Decision) -> Ports:
        """What a grant of this admissible address opens: at a private address only what `allowPrivate` rules give.

        Cut into pieces that are equal or disjoint for all names of the subject (`Grid`).
        """
        ports = decision.ports
        notable = len(address) != 4 or self._guard.notable[address[0]]
        if notable and decision.private_ports and self._guard.kind(address) is Kind.PRIVATE:
            ports = decision.private_ports
        return self._grid.cut(ports)

    def _cluster_name(self, decision: Decision) -> bool:
        """Whether the name went through because it is inside the cluster: allowed, though no rule opened a port."""
        if decision.verdict is Verdict.WOULD_DENY:
            return self.enforced
        return decision.verdict is Verdict.ALLOWED

    # ------------------------------------------------------------------------------------------ kernel

    def plan(self) -> Plan:
        """What the kernel must know of this subject."""
        return make_plan(self.subject.policies, self._entries, self._blocks)


def _index_names(entries: Iterable[Entry], domains: Iterable[Name]) -> LabelTrie[Entry]:
    """The trie of all patterns, under each the rules in order of `entries`.

    Cluster domains get places too, so that no place is half inside the cluster.
    """
    trie: LabelTrie[Entry] = LabelTrie()
    for entry in entries:
        shared = (entry,)
        for pattern in entry.rule.patterns:
            trie.add(pattern, shared)
    for domain in domains:
        trie.node(domain)
    return trie


def _first_to_speak(outcomes: Sequence[Outcome]) -> Outcome:
    """The address's outcome (the first) unless no rule speaks there: then the first name that is allowed, else denied
    by a deny rule, else still the address's."""
    address, *names = outcomes
    if address.reason is not Reason.NO_RULE:
        return address
    for reason in (Reason.RULE, Reason.IN_CLUSTER, Reason.DENY_RULE):
        for outcome in names:
            if outcome.reason is reason:
                return outcome
    return address
