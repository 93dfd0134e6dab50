"""The template: every chain and rule of the table, to be read beside the schema of kernel.md.

`base_chains` is the node's part, created once; `subject_rules` is one instance. A rule is a comment, which nft prints,
and its phrases in nft's order. What is said with a family is said twice, for IPv4 and IPv6. `accept` ends one base
chain only: it means "not denied by us".

Choices made here. `when_down: Block` drops the rule that lets queries to resolvers pass while nobody intercepts;
interception stays bound to the heartbeat, so that queries are then refused at once and do not vanish into a hung
process. `foreign: Answer` puts every address into the set of resolvers and changes no rule. A deny rule also closes
addresses of the node itself; what no rule names there stays open (`in_cluster: Allow`). Port 53 is never let through
merely because it is in the cluster: another resolver would be a way around. A spoofed source is looked for in new
flows only: established traffic costs one rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from egressd.errors import EnvironmentProblem
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
    NOT_ONLY_SYN,
    NOT_TCP,
    NOTRACK,
    ON_LINK,
    ORIGINAL,
    REJECT,
    RESET,
    RETURN,
    SADDR,
    SADDR_DADDR,
    SEEN_ENDPOINT,
    SEEN_PROTOCOL,
    TCP,
    UDP,
    Family,
    add_to,
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
    protocol_in,
    protocol_is,
    tproxy,
    vmap,
)
from egressd.kernel.sets import grant_set, plan_sets

if TYPE_CHECKING:
    from egressd.policy import Plan
    from egressd.settings import Settings

__all__ = ["PREROUTING", "Chain", "Hook", "Rule", "base_chains", "subject_chain", "subject_rules"]

PREROUTING, OUTPUT = 0, 3
"""NF_INET_PRE_ROUTING and NF_INET_LOCAL_OUT."""
RAW: Final = -300
"""Before conntrack (-200)."""
BEFORE_NAT: Final = -150
"""Between conntrack and destination NAT (-100)."""
EVENTS_PER_SECOND, EVENT_BURST = 1000, 2000
"""Bound of log events of each kind: a reader takes a hundred times as many."""
INTERFACE_MAX: Final = 15
"""Characters of an interface's name (IFNAMSIZ less the NUL)."""

LINK_MULTICAST4: Final = b"\xe0\x00\x00"
"""224.0.0.0/24, which no router forwards (RFC 5771 section 4)."""
LINK_MULTICAST6: Final = b"\xff\x02"
"""ff02::/16 (RFC 4291 section 2.7)."""
LINK_LOCAL6: Final = b"\xfe\x80"
"""fe80::/16, the part of fe80::/10 that is in use (RFC 4291 section 2.5.6)."""
BROADCAST: Final = b"\xff\xff\xff\xff"


class Rule(NamedTuple):
    comment: str
    expressions: bytes


class Hook(NamedTuple):
    number: int
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    name: str
    comment: str
    rules: tuple[Rule, ...]
    hook: Hook | None = None


def _rule(comment: str, *phrases: bytes) -> Rule:
    return Rule(comment, b"".join(phrases))


def _twice(make: Callable[[Family], Rule]) -> tuple[Rule, Rule]:
    return make(IPV4), make(IPV6)


def base_chains(settings: Settings) -> tuple[Chain, ...]:
    """The node's chains. Raises `EnvironmentProblem` for an interface pattern that nothing can have."""
    group = settings.firewall.log_group
    return (
        _intercept(),
        _queries(settings),
        _intercepted(settings.firewall.intercept_mark),
        _answers(settings.firewall.answer_mark),
        _egress(settings),
        _judged("denied", "reported once a minute, and refused", group, goto("refuse")),
        Chain("reported", "what only Audit policies would deny", (_rule("", jump("report")), _rule("", ACCEPT))),
        _judged("report", "reported once a minute, and judged on", group, RETURN, prefix="reported"),
        _judged("unidentified", "a pod not known yet: dropped, so that it tries again", group, DROP),
        _refuse(reject=settings.firewall.reject),
    )


# -------------------------------------------------------------------------------------------------- queries


def _intercept() -> Chain:
    return Chain(
        "intercept",
        "DNS queries of pods are taken here, before conntrack and NAT",
        (
            _rule("", dport(UDP, 53), goto("queries")),
            _rule("", dport(TCP, 53), goto("queries")),
        ),
        Hook(PREROUTING, RAW),
    )


def _queries(settings: Settings) -> Chain:
    return Chain(
        "queries",
        "whose queries are taken, and to which servers",
        (
            _rule("nobody answers now: queries pass on", family_in("heartbeat", negated=True), ACCEPT),
            *_twice(
                lambda f: _rule(
                    "to servers we do not answer for", matches(f, DADDR, f"resolvers{f.number}", negated=True), ACCEPT
                )
            ),
            *_twice(
                lambda f: _rule("pods whose DNS is not intercepted", matches(f, SADDR, f"bypass{f.number}"), ACCEPT)
            ),
            *_twice(_spoofed),
            *_twice(lambda f: _rule("a pod", matches(f, SADDR, f"known{f.number}"), goto("intercepted"))),
            *_unknown_sources(settings, "a pod not known yet: its query waits", "intercepted"),
        ),
    )


def _intercepted(mark: int) -> Chain:
    def take(protocol: int) -> Callable[[Family], Rule]:
        return lambda f: _rule("", dport(protocol, 53), tproxy(f, 53), mark_set(mark), NOTRACK, ACCEPT)

    return Chain(
        "intercepted",
        "to our socket with the address asked; passed on if there is none",
        (*_twice(take(UDP)), *_twice(take(TCP))),
    )


def _answers(mark: int) -> Chain:
    rule = _rule("answers to intercepted queries are as untracked as these", mark_has(mark), NOTRACK, ACCEPT)
    return Chain("answers", "", (rule,), Hook(OUTPUT, RAW))


def _unknown_sources(settings: Settings, comment: str, target: str) -> tuple[Rule, ...]:
    """Sources that are a pod's though no pod is known by them: by the node's ranges, or by interface."""
    if settings.pod_interfaces:
        patterns = [_checked(pattern) for pattern in settings.pod_interfaces]
        return tuple(_rule(comment, interface(pattern), goto(target)) for pattern in patterns)
    return _twice(lambda f: _rule(comment, matches(f, SADDR, f"unidentified{f.number}"), goto(target)))


def _checked(pattern: str) -> str:
    stem = pattern.removesuffix("*")
    if not stem or "*" in stem or not stem.isascii() or len(pattern) > INTERFACE_MAX:
        remedy = 'write a name or how names begin, such as "eni*", of at most 15 characters'
        raise EnvironmentProblem(f"pod_interfaces: no interface is matched by {pattern!r}", remedy)
    return pattern


# --------------------------------------------------------------------------------------------------- egress


def _egress(settings: Settings) -> Chain:
    rules = (
        _rule("the node talks to itself", interface("lo"), ACCEPT),
        _rule("queries taken by chain intercept", mark_has(settings.firewall.intercept_mark), ACCEPT),
        *_twice(_cut_outward),
        *_twice(_cut_inward),
        _rule("judged when it was new", ESTABLISHED, ACCEPT),
        *_twice(
            lambda f: _rule(
                "no mid-stream pick-up towards a pod", matches(f, DADDR, f"known{f.number}"), NOT_ONLY_SYN, DROP
            )
        ),
        *_twice(_spoofed),
        *_link(),
        *(_resolvers() if settings.dns.when_down == "Bypass" else ()),
        *_twice(lambda f: _rule("", vmap(f, SADDR, f"pods{f.number}"))),
        *_unknown_sources(settings, "a pod not known yet", "unidentified"),
    )
    return Chain("egress", "every packet of a pod, before NAT", rules, Hook(PREROUTING, BEFORE_NAT))


def _spoofed(f: Family) -> Rule:
    return _rule("a pod's address from where the pod is not", matches(f, SADDR, f"known{f.number}"), ELSEWHERE, DROP)


def _cut_outward(f: Family) -> Rule:
    revoked = matches(f, SADDR_DADDR, f"revoked{f.number}")
    return _rule("cut: judged afresh, whatever conntrack says", NOT_TCP, revoked, vmap(f, SADDR, f"pods{f.number}"))


def _cut_inward(f: Family) -> Rule:
    revoked = matches(f, DADDR_SADDR, f"revoked{f.number}")
    return _rule("cut: the other end does not open it again", NOT_TCP, revoked, ORIGINAL, DROP)


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


def _resolvers() -> tuple[Rule, ...]:
    def reach(protocol: int) -> Callable[[Family], Rule]:
        comment = "reached while nobody intercepts"
        return lambda f: _rule(comment, matches(f, DADDR, f"resolvers{f.number}"), dport(protocol, 53), ACCEPT)

    return (*_twice(reach(UDP)), *_twice(reach(TCP)))


# --------------------------------------------------------------------------------------------------- verdicts


def _judged(name: str, comment: str, group: int, way: bytes, prefix: str = "") -> Chain:
    """One event a flow and minute; the rest is counted in the set. All go the same `way` in the end."""

    def known(f: Family) -> tuple[Rule, Rule]:
        n = f.number
        return (
            _rule("", protocol_in("ported"), matches(f, SEEN_ENDPOINT, f"seen{n}"), way),
            _rule("", protocol_in("ported", negated=True), matches(f, SEEN_PROTOCOL, f"seen{n}-any"), way),
        )

    def fresh(f: Family) -> tuple[Rule, Rule]:
        n, bound, event = f.number, limit(EVENTS_PER_SECOND, EVENT_BURST), log(prefix or name, group)
        return (
            _rule("", protocol_in("ported"), bound, add_to(f, SEEN_ENDPOINT, f"seen{n}"), event),
            _rule("", protocol_in("ported", negated=True), bound, add_to(f, SEEN_PROTOCOL, f"seen{n}-any"), event),
        )

    return Chain(name, comment, (*known(IPV4), *known(IPV6), *fresh(IPV4), *fresh(IPV6), _rule("", way)))


def _refuse(*, reject: bool) -> Chain:
    rules = (
        _rule("", protocol_is(TCP), COUNTER, RESET),
        _rule("", COUNTER, REJECT),
    )
    silent = (_rule("firewall.reject: false", COUNTER, DROP),)
    return Chain("refuse", "programs shall fail at once, not time out", rules if reject else silent)


# --------------------------------------------------------------------------------------------------- instance


def subject_chain(subject: int) -> str:
    return f"subject-{subject}"


def subject_rules(subject: int, plan: Plan, *, local: bool) -> tuple[Rule, ...]:
    """The instance of one subject: a rule for each set its plan needs. `local`: the node's own addresses are open."""
    denied = goto("denied" if plan.enforced else "reported")
    ways = {"deny": denied, "report": jump("report"), "allow": ACCEPT}
    comments = {"deny": "deny rules", "report": "what Audit policies would deny", "allow": "allow rules: addresses"}
    _, rule_sets = plan_sets(subject, plan)
    names = {spec.name for spec in rule_sets}

    def by_address(use: str) -> list[Rule]:
        return [
            _rule(comments[use], matches(f, key, name), ways[use])
            for f in (IPV4, IPV6)
            for key, suffix in ((ENDPOINT, ""), (DADDR, "-any"))
            if (name := f"{use}{f.number}-{subject}{suffix}") in names
        ]

    granted = [
        _rule(
            "allow rules: names",
            matches(f, DADDR if kind == "any" else ENDPOINT, grant_set(f.number, subject, kind)),
            ACCEPT,
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
        *_twice(lambda f: _rule("in the cluster", matches(f, DADDR, f"cluster{f.number}"), ACCEPT)),
        *([_rule("this node", ADDRESS_LOCAL, ACCEPT)] if local else []),
        _rule("", denied),
    )
