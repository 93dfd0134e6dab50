"""The ends of a judgement, a part of the template: chains that report a flow and refuse it, let it through, or go on.

Each reports one event a flow and minute (NFLOG), and counts the flow's packets in an element of the sets `seen…`,
which live for that minute (flows.py reads them). What is past the bound of events goes the same way, counted apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from egressd.kernel.chains import Chain, Rule, rule
from egressd.kernel.expr import (
    ACCEPT,
    COUNTER,
    DROP,
    IPV4,
    IPV6,
    REJECT,
    RESET,
    RETURN,
    SEEN_ENDPOINT,
    SEEN_PROTOCOL,
    TCP,
    Family,
    add_to,
    goto,
    jump,
    limit,
    log,
    matches,
    protocol_in,
    protocol_is,
)
from egressd.kernel.sets import SEEN

if TYPE_CHECKING:
    from egressd.settings import Settings

__all__ = [
    "ALLOWED",
    "DENIED",
    "EVENTS_PER_SECOND",
    "EVENT_BURST",
    "REPORT",
    "REPORTED",
    "records_all",
    "reporting_chains",
    "verdict_chains",
]

EVENTS_PER_SECOND, EVENT_BURST = 1000, 2000
"""Bound of log events of each kind: a reader takes many times as many."""
ALLOWED_PER_SECOND, ALLOWED_BURST = 500, 1000
"""The same for flows that are let through: within a minute they take half of their set."""
DENIED: Final = "denied"
"""Refused; as REPORTED and ALLOWED the name of a chain and the word of its events."""
REPORTED: Final = "reported"
"""Let through, though Audit policies would deny it; REPORT says so and lets the judgement go on."""
REPORT: Final = "report"
ALLOWED: Final = "allowed"
"""Let through: with `audit.flows: All`, the chain in which all ways out of an instance end; else there is none."""
UNIDENTIFIED: Final = "unidentified"


def records_all(settings: Settings) -> bool:
    """Whether flows that are let through are reported, too."""
    return settings.audit.flows == "All"


def reporting_chains(settings: Settings) -> tuple[str, ...]:
    """The chains that write events; the last rule of each counts the packets that no event tells of."""
    return (DENIED, REPORT, UNIDENTIFIED, *([ALLOWED] if records_all(settings) else []))


def verdict_chains(settings: Settings) -> tuple[Chain, ...]:
    """All ways a judgement ends, but for `accept`."""
    group = settings.firewall.log_group
    often, seldom = limit(EVENTS_PER_SECOND, EVENT_BURST), limit(ALLOWED_PER_SECOND, ALLOWED_BURST)
    denied, reported, unidentified, allowed = (log(word, group) for word in (DENIED, REPORTED, UNIDENTIFIED, ALLOWED))
    return (
        _judged(DENIED, "reported once a minute, and refused", DENIED, often, denied, goto("refuse")),
        Chain(REPORTED, "what only Audit policies would deny", (rule("", jump(REPORT)), rule("", ACCEPT))),
        _judged(REPORT, "reported once a minute, and judged on", REPORTED, often, reported, RETURN),
        _judged(UNIDENTIFIED, "a pod not known yet: dropped, to try again", UNIDENTIFIED, often, unidentified, DROP),
        *(
            [_judged(ALLOWED, "reported once a minute, and let through", ALLOWED, seldom, allowed, ACCEPT)]
            if records_all(settings)
            else []
        ),
        _refuse(reject=settings.firewall.reject),
    )


def _judged(name: str, comment: str, word: str, bound: bytes, event: bytes, way: bytes) -> Chain:
    """One event a flow and minute; the rest is counted in the word's set. All go the same `way` in the end.

    The last rule takes what is past the bound or found the set full, which breaks a rule at its `add`: nothing told
    of it, so it is counted there.
    """

    stem = SEEN[word]

    def known(f: Family) -> tuple[Rule, Rule]:
        n = f.number
        return (
            rule("", protocol_in("ported"), matches(f, SEEN_ENDPOINT, f"{stem}{n}"), way),
            rule("", protocol_in("ported", negated=True), matches(f, SEEN_PROTOCOL, f"{stem}{n}-any"), way),
        )

    def fresh(f: Family) -> tuple[Rule, Rule]:
        n = f.number
        return (
            rule("", protocol_in("ported"), bound, add_to(f, SEEN_ENDPOINT, f"{stem}{n}"), event, way),
            rule(
                "", protocol_in("ported", negated=True), bound, add_to(f, SEEN_PROTOCOL, f"{stem}{n}-any"), event, way
            ),
        )

    unreported = rule("past the bound of reports", COUNTER, way)
    return Chain(name, comment, (*known(IPV4), *known(IPV6), *fresh(IPV4), *fresh(IPV6), unreported))


def _refuse(*, reject: bool) -> Chain:
    rules = (
        rule("", protocol_is(TCP), COUNTER, RESET),
        rule("", COUNTER, REJECT),
    )
    silent = (rule("firewall.reject: false", COUNTER, DROP),)
    return Chain("refuse", "programs shall fail at once, not time out", rules if reject else silent)
