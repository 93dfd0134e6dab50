"""The template: every chain and rule of the table, to be read beside the schema of kernel.md; verdicts.py is its end.

`base_chains` is the node's part, created once; `subject_rules` is one instance. A rule is a comment, which nft prints,
and its phrases in nft's order. What is said with a family is said twice, for IPv4 and IPv6. `accept` ends one base
chain only: it means "not denied by us".

Choices made here. `when_down: Block` drops the rule that lets queries to resolvers pass while nobody intercepts;
interception stays bound to the heartbeat, so that queries are then refused at once and do not vanish into a hung
process. `foreign: Answer` puts every address into the set of resolvers and changes no rule. A deny rule also closes
addresses of the node itself; what no rule names there stays open (`in_cluster: Allow`). Port 53 is never let through
merely because it is in the cluster: another resolver would be a way around. A spoofed source is looked for in new
flows only. What an established packet passes is kept short: a port, a mark, whether anything at all is revoked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from egressd.errors import EnvironmentProblem
from egressd.kernel.chains import Chain, Hook, Rule
from egressd.kernel.chains import rule as _rule
from egressd.kernel.chains import twice as _twice
from egressd.kernel.expr import (
    ACCEPT,
    ADDRESS_LOCAL,
    COUNTER,
    DADDR,
    DADDR_SADDR,
    DROP,
    ELSEWHERE,
    ENDPOINT,
    ESTABLISHED,
    IPV4,
    IPV6,
    LINK_DISCOVERY,
    LOOPBACK,
    NOT_ONLY_SYN,
    NOT_TCP,
    NOTRACK,
    ON_LINK,
    ONLY_SYN,
    ORIGINAL,
    SADDR,
    SADDR_DADDR,
    TCP,
    UDP,
    Family,
    add_to,
    any_dport,
    destination_prefix,
    dport,
    family_in,
    goto,
    interface,
    jump,
    limit,
    log,
    mark_has,
    mark_set,
    matches,
    over_rate,
    protocol_is,
    tproxy,
    vmap,
)
from egressd.kernel.sets import grant_set, plan_sets
from egressd.kernel.verdicts import ALLOWED, DENIED, EVENT_BURST, EVENTS_PER_SECOND, REPORT, REPORTED, verdict_chains

if TYPE_CHECKING:
    from egressd.policy import Plan
    from egressd.settings import Settings

__all__ = [
    "FLOODING",
    "FORGOTTEN",
    "PREROUTING",
    "base_chains",
    "subject_chain",
    "subject_rules",
]

PREROUTING, OUTPUT = 0, 3
"""NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT."""
RAW: Final = -300
"""Before conntrack (-200)."""
BEFORE_NAT: Final = -150
"""Between conntrack and destination NAT (-100)."""
FLOOD: Final = 4
"""So many times a pod's budget of queries and more are dropped, SYNs of queries over TCP among them. Clearly above it:
what people see is the budget's answer and record; this is for what would fill our sockets."""
FLOOD_RATE_MAX: Final = 100_000_000
"""Above a tenth of the clock's resolution a limit means nothing (nft_limit.c counts nanoseconds)."""
FLOODING, FORGOTTEN = "flooding", "forgotten"
"""Chains, and the words of their reports."""
CUT: Final = "cut"
FORGOTTEN_PER_SECOND: Final = 500
INTERFACE_MAX: Final = 15
"""Characters of an interface's name (IFNAMSIZ less the NUL)."""

LINK_MULTICAST4: Final = b"\xe0\x00\x00"
"""224.0.0.0/24, which no router forwards (RFC 5771 section 4)."""
LINK_MULTICAST6: Final = b"\xff\x02"
"""ff02::/16 (RFC 4291 section 2.7)."""
LINK_LOCAL6: Final = b"\xfe\x80"
"""fe80::/16, the part of fe80::/10 that is in use (RFC 4291 section 2.5.6)."""
BROADCAST: Final = b"\xff\xff\xff\xff"


NO_NAMES: Final[Mapping[str, str]] = MappingProxyType({})
"""Every set under its stem."""


def base_chains(settings: Settings, names: Mapping[str, str] = NO_NAMES) -> tuple[Chain, ...]:
    """The node's chains. `names`: what interval sets are called that do not have their stem's name (sets.py).

    Raises `EnvironmentProblem` for an interface pattern that nothing can have.
    """
    group = settings.firewall.log_group
    return (
        _intercept(),
        _queries(settings, names),
        _intercepted(settings),
        _flooding(group),
        _answers(settings.firewall.answer_mark),
        _egress(settings, names),
        _cut(),
        _forgotten(group),
        *verdict_chains(settings),
    )


# -------------------------------------------------------------------------------------------------- queries


def _intercept() -> Chain:
    return Chain(
        "intercept",
        "DNS queries of pods are taken here, before conntrack and NAT",
        (_rule("", any_dport(53), goto("queries")),),
        Hook(PREROUTING, RAW),
    )


def _queries(settings: Settings, names: Mapping[str, str]) -> Chain:
    def resolvers(f: Family) -> str:
        return _name(names, f"resolvers{f.number}")

    return Chain(
        "queries",
        "whose queries are taken, and to which servers",
        (
            _rule("nobody answers now: queries pass on", family_in("heartbeat", negated=True), ACCEPT),
            *_twice(
                lambda f: _rule(
                    "to servers we do not answer for", matches(f, DADDR, resolvers(f), negated=True), ACCEPT
                )
            ),
            *_twice(
                lambda f: _rule("pods whose DNS is not intercepted", matches(f, SADDR, f"bypass{f.number}"), ACCEPT)
            ),
            *_twice(_spoofed),
            *_twice(lambda f: _rule("a pod", matches(f, SADDR, f"known{f.number}"), goto("intercepted"))),
            *_unknown_sources(settings, names, "a pod not known yet: its query waits", "intercepted"),
        ),
    )


def _intercepted(settings: Settings) -> Chain:
    mark, budgets = settings.firewall.intercept_mark, settings.budgets
    rate = min(FLOOD * budgets.queries_per_second_per_pod, FLOOD_RATE_MAX)
    burst = min(FLOOD * budgets.burst_per_pod, FLOOD_RATE_MAX)

    def take(protocol: int) -> Callable[[Family], Rule]:
        return lambda f: _rule("", dport(protocol, 53), tproxy(f, 53), mark_set(mark), NOTRACK, ACCEPT)

    def over(what: bytes) -> Callable[[Family], Rule]:
        return lambda f: _rule("", what, over_rate(f, SADDR, f"pace{f.number}", rate, burst), goto("flooding"))

    return Chain(
        "intercepted",
        "to our socket with the address asked; passed on if there is none, or it is neither UDP nor TCP",
        (*_twice(over(protocol_is(UDP))), *_twice(over(ONLY_SYN)), *_twice(take(UDP)), *_twice(take(TCP))),
    )


def _flooding(group: int) -> Chain:
    """Where the budgets' SERVFAIL is too good an answer: it would cost all other pods their place in the queue."""

    def known(f: Family) -> Rule:
        return _rule("", matches(f, SADDR, f"flooding{f.number}"), DROP)

    def fresh(f: Family) -> Rule:
        bound, event = limit(EVENTS_PER_SECOND, EVENT_BURST), log(FLOODING, group)
        return _rule("", bound, add_to(f, SADDR, f"flooding{f.number}"), event, DROP)

    every = _rule("queries dropped", COUNTER)
    return Chain(
        FLOODING, "reported once a minute, and dropped", (every, *_twice(known), *_twice(fresh), _rule("", DROP))
    )


def _answers(mark: int) -> Chain:
    rule = _rule("answers to intercepted queries are as untracked as these", mark_has(mark), NOTRACK, ACCEPT)
    return Chain("answers", "", (rule,), Hook(OUTPUT, RAW))


def _unknown_sources(settings: Settings, names: Mapping[str, str], comment: str, target: str) -> tuple[Rule, ...]:
    """Sources that are a pod's though no pod is known by them: by the node's ranges, or by interface."""
    if settings.pod_interfaces:
        patterns = [_checked(pattern) for pattern in settings.pod_interfaces]
        return tuple(_rule(comment, interface(pattern), goto(target)) for pattern in patterns)
    return _twice(lambda f: _rule(comment, matches(f, SADDR, _name(names, f"unidentified{f.number}")), goto(target)))


def _name(names: Mapping[str, str], stem: str) -> str:
    return names.get(stem, stem)


def _checked(pattern: str) -> str:
    stem = pattern.removesuffix("*")
    if not stem or "*" in stem or not stem.isascii() or len(pattern) > INTERFACE_MAX:
        remedy = 'write a name or how names begin, such as "eni*", of at most 15 characters'
        raise EnvironmentProblem(f"pod_interfaces: no interface is matched by {pattern!r}", remedy)
    return pattern


# --------------------------------------------------------------------------------------------------- egress


def _egress(settings: Settings, names: Mapping[str, str]) -> Chain:
    rules = (
        _rule("queries taken by chain intercept", mark_has(settings.firewall.intercept_mark), ACCEPT),
        _rule("some flows are cut", NOT_TCP, family_in("revoking"), jump(CUT)),
        *(_queries_afresh(names) if settings.dns.when_down == "Block" else ()),
        _rule("judged when it was new", ESTABLISHED, ACCEPT),
        _rule("the node talks to itself", LOOPBACK, ACCEPT),
        *_twice(
            lambda f: _rule(
                "no mid-stream pick-up towards a pod",
                matches(f, DADDR, f"known{f.number}"),
                NOT_ONLY_SYN,
                goto(FORGOTTEN),
            )
        ),
        *_twice(_spoofed),
        *_link(),
        *(_resolvers(names) if settings.dns.when_down == "Bypass" else ()),
        *_twice(lambda f: _rule("", vmap(f, SADDR, f"pods{f.number}"))),
        *_unknown_sources(settings, names, "a pod not known yet", "unidentified"),
    )
    return Chain("egress", "every packet of a pod, before NAT", rules, Hook(PREROUTING, BEFORE_NAT))


def _cut() -> Chain:
    """Passed only while anything is revoked: two look-ups for each packet that is not TCP's."""
    return Chain(CUT, "revoked pairs, and whatever else", (*_twice(_cut_outward), *_twice(_cut_inward)))


def _forgotten(group: int) -> Chain:
    """A packet towards a pod that belongs to no connection the kernel knows: cut, or forgotten by `conntrack -F`.

    Let through, it would make an entry the wrong way round, in which the pod may answer for ever. So it is reported:
    where the pod may still open that connection, we put the entry back as it was (enforcement.py), and what the other
    end repeats finds it.
    """
    report = _rule(
        "reported: it may have been forgotten", limit(FORGOTTEN_PER_SECOND, EVENT_BURST), log(FORGOTTEN, group)
    )
    return Chain(FORGOTTEN, "of no connection that is known: dropped", (report, _rule("", DROP)))


def _spoofed(f: Family) -> Rule:
    return _rule("a pod's address from where the pod is not", matches(f, SADDR, f"known{f.number}"), ELSEWHERE, DROP)


def _queries_afresh(names: Mapping[str, str]) -> tuple[Rule, ...]:
    """A query that nobody took is one, though its flow began when queries passed on (`when_down: Bypass`)."""
    comment = "a query nobody took: judged afresh, whatever conntrack says"

    def judge(protocol: int) -> Callable[[Family], Rule]:
        def one(f: Family) -> Rule:
            resolvers = matches(f, DADDR, _name(names, f"resolvers{f.number}"))
            return _rule(comment, resolvers, dport(protocol, 53), vmap(f, SADDR, f"pods{f.number}"))

        return one

    return (*_twice(judge(UDP)), *_twice(judge(TCP)))


def _cut_outward(f: Family) -> Rule:
    revoked = matches(f, SADDR_DADDR, f"revoked{f.number}")
    return _rule("cut: judged afresh, whatever conntrack says", revoked, vmap(f, SADDR, f"pods{f.number}"))


def _cut_inward(f: Family) -> Rule:
    revoked = matches(f, DADDR_SADDR, f"revoked{f.number}")
    return _rule("cut: the other end does not open it again", revoked, ORIGINAL, DROP)


def _link() -> tuple[Rule, ...]:
    """Never judged: what keeps a link working, and stays on it."""
    discovery = "neighbour and router discovery"
    return (
        _rule("multicast on the link", destination_prefix(IPV4, LINK_MULTICAST4), ACCEPT),
        _rule("multicast on the link", destination_prefix(IPV6, LINK_MULTICAST6), ACCEPT),
        _rule("DHCP", destination_prefix(IPV4, BROADCAST), dport(UDP, 67), ACCEPT),
        _rule(discovery, LINK_DISCOVERY, destination_prefix(IPV6, LINK_LOCAL6), ACCEPT),
        _rule(discovery, LINK_DISCOVERY, ON_LINK, ACCEPT),
        _rule(discovery, LINK_DISCOVERY, ADDRESS_LOCAL, ACCEPT),
    )


def _resolvers(names: Mapping[str, str]) -> tuple[Rule, ...]:
    def reach(protocol: int) -> Callable[[Family], Rule]:
        comment = "reached while nobody intercepts"
        return lambda f: _rule(
            comment, matches(f, DADDR, _name(names, f"resolvers{f.number}")), dport(protocol, 53), ACCEPT
        )

    return (*_twice(reach(UDP)), *_twice(reach(TCP)))


# --------------------------------------------------------------------------------------------------- instance


def subject_chain(subject: int) -> str:
    return f"subject-{subject}"


def subject_rules(
    subject: int, plan: Plan, names: Mapping[str, str] = NO_NAMES, *, local: bool, recorded: bool = False
) -> tuple[Rule, ...]:
    """The instance of one subject: a rule for each set its plan needs.

    `names`: as in `base_chains`. `local`: the node's own addresses are open. `recorded`: what is let through is
    reported, too.
    """
    allowed = goto(ALLOWED) if recorded else ACCEPT
    denied = goto(DENIED if plan.enforced else REPORTED)
    ways = {"deny": denied, "report": jump(REPORT), "allow": allowed}
    comments = {"deny": "deny rules", "report": "what Audit policies would deny", "allow": "allow rules: addresses"}
    _, rule_sets = plan_sets(subject, plan)
    stems = {spec.name for spec in rule_sets}

    def by_address(use: str) -> list[Rule]:
        return [
            _rule(comments[use], matches(f, key, _name(names, stem)), ways[use])
            for f in (IPV4, IPV6)
            for key, suffix in ((ENDPOINT, ""), (DADDR, "-any"))
            if (stem := f"{use}{f.number}-{subject}{suffix}") in stems
        ]

    granted = [
        _rule(
            "allow rules: names",
            matches(f, DADDR if kind == "any" else ENDPOINT, _name(names, grant_set(f.number, subject, kind))),
            allowed,
        )
        for f in (IPV4, IPV6)
        for kind in ("port", "any", "range")
        if kind in plan.grants
    ]
    return (
        *by_address("deny"),
        *by_address("report"),
        *granted,
        *by_address("allow"),
        _rule("another resolver would be a way around", dport(UDP, 53), denied),
        _rule("another resolver would be a way around", dport(TCP, 53), denied),
        *_twice(lambda f: _rule("in the cluster", matches(f, DADDR, _name(names, f"cluster{f.number}")), allowed)),
        *([_rule("this node", ADDRESS_LOCAL, allowed)] if local else []),
        _rule("", denied),
    )
