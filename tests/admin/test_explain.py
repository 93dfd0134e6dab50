"""What an explanation makes of a name's answers: withheld addresses are told, and what would help, if anything."""

from __future__ import annotations

import ipaddress
from typing import Any, Final

import pytest

from egressd.admin.explain import explain
from egressd.admin.shapes import Explained
from egressd.model import Action, Mode, Policy, PortSpan, Rule
from egressd.names import parse_pattern
from egressd.policy.addresses import cidr, special
from egressd.schema.target import parse_target
from egressd.settings import Dns, Settings

HTTPS: Final = (PortSpan(6, 6, 443, 443),)
NAME: Final = "lie.partner.example"
METADATA: Final = "169.254.169.254"
PRIVATE: Final = "10.9.8.7"
GOOD: Final = "203.0.113.10"


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


def policy(**changes: Any) -> Policy:
    """A policy that allows names of the partner on HTTPS."""
    allow = Rule("partner", Action.ALLOW, (parse_pattern("*.partner.example"),), ports=HTTPS)
    return Policy("shop/web", "shop", **({"allow": (allow,)} | changes))


def barring(*blocks: str, ports: tuple[PortSpan, ...] = (PortSpan(0, 255, 0, 65535),)) -> Rule:
    return Rule("never", Action.DENY, (), tuple(map(cidr, blocks)), ports=ports)


def ask(to: str, *answers: tuple[str, ...], by: Policy | None = None, age_s: int = 12, **told: Any) -> Explained:
    """Explain a destination for a pod with one policy, whose name led to these answers."""
    found = by or policy()
    body = {
        "pod": {"namespace": "shop", "policies": [found.name]},
        "verdict": "allowed",
        "names": [],
        "grants": [],
        "shared": [],
        "answers": [{"addresses": [*map(packed, one)], "cnames": ["cdn.example"], "age_s": age_s} for one in answers],
    }
    settings = Settings(cluster_cidrs=(cidr("10.244.0.0/16"),), dns=Dns(deny_rcode="REFUSED"))
    return explain(settings, {found.name: found}, parse_target(to), body | told)


def test_withheld_and_no_remedy() -> None:
    """A name that led to the metadata server: denied as the pod sees it, and no rule can help."""
    found = ask(NAME, (METADATA,))
    assert (found.verdict, found.reason, found.policy, found.rule) == ("denied", "rebinding", "shop/web", "partner")
    assert found.steps[-3].startswith('the rules alone: allowed (rule) by rule "partner" of shop/web')
    assert found.steps[-2:] == [
        "its answer (12 s old) pointed to 169.254.169.254 (link-local): withheld, reason rebinding",
        "verdict: denied (rebinding); the name is allowed, its answer is withheld: the pod is told REFUSED",
    ]
    assert found.allow is not None
    assert found.allow.yaml == ""
    assert found.allow.note == (
        "no rule can allow it: 169.254.169.254 is link-local, and no name may ever lead there; "
        f"look at who answers for {NAME}"
    )


@pytest.mark.parametrize("to", [NAME, f"{NAME}:443"])
def test_a_private_address_can_be_allowed(to: str) -> None:
    """The line says allowPrivate, for the ports that the name has; with it the answer is allowed."""
    found = ask(to, (PRIVATE,), age_s=-1)
    assert (found.verdict, found.reason) == ("denied", "rebinding")
    assert "an earlier answer pointed to 10.9.8.7 (private): withheld, reason rebinding" in found.steps
    assert found.allow is not None
    assert found.allow.yaml == f"- {{to: [{NAME}], ports: [443/TCP], allowPrivate: true}}"
    assert found.allow.note.startswith("add it under `allow:` in ConfigMap web in namespace shop, if whoever answers")

    more = Rule("more", Action.ALLOW, (parse_pattern(NAME),), ports=HTTPS, allow_private=True)
    better = policy(allow=(*policy().allow, more))
    assert (ask(to, (PRIVATE,), by=better).verdict, ask(to, (METADATA,), by=better).verdict) == ("allowed", "denied")


def test_withheld_in_part() -> None:
    """Where some addresses remain the name is allowed, and the others are told; at most four of an answer."""
    found = ask(NAME, (GOOD, METADATA), (*(f"10.9.8.{n}" for n in range(6)),))
    assert (found.verdict, found.reason, found.allow) == ("allowed", "rule", None)
    assert found.steps[-8].endswith("169.254.169.254 (link-local): withheld, reason rebinding")
    assert found.steps[-3:-1] == ["2 more of its addresses fare alike", "the other 1 of 8 addresses may be had"]
    assert found.steps[-1].startswith("verdict: allowed (rule)")


def test_nothing_withheld() -> None:
    """An ordinary answer, or none, changes nothing."""
    assert ask(NAME, (GOOD,)) == ask(NAME)
    assert ask(NAME).verdict == "allowed"


def test_a_deny_rule_on_the_address() -> None:
    """An address that a deny rule covers is withheld, and the rule is named: it is what has to change."""
    found = ask(NAME, (GOOD,), by=policy(deny=(barring("203.0.113.0/24"),)))
    assert (found.verdict, found.reason, found.rule) == ("denied", "deny-rule", "never")
    assert found.steps[-2].endswith(f'pointed to {GOOD}: withheld, reason deny-rule (rule "never" of shop/web)')
    assert found.allow is not None
    assert found.allow.note == 'deny wins over every allow rule: change rule "never" of shop/web itself'


def test_a_deny_rule_on_a_port_of_the_address() -> None:
    """The address is given, but the port asked for is closed there; another port stays open."""
    both = (PortSpan(6, 6, 80, 80), *HTTPS)
    allow = Rule("partner", Action.ALLOW, (parse_pattern("*.partner.example"),), ports=both)
    found = policy(allow=(allow,), deny=(barring("203.0.113.0/24", ports=HTTPS),))
    closed = ask(f"{NAME}:443", (GOOD,), by=found)
    assert (closed.verdict, closed.reason) == ("denied", "deny-rule")
    assert f"pointed to {GOOD}, where 443/TCP is closed: reason deny-rule" in closed.steps[-2]
    assert closed.steps[-1] == 'verdict: denied (deny-rule) by rule "never" of shop/web'
    assert [ask(to, (GOOD,), by=found).verdict for to in (f"{NAME}:80", NAME)] == ["allowed", "allowed"]


def test_a_name_of_the_cluster_that_leads_outside() -> None:
    """An ExternalName opens nothing itself: what it leads to needs a rule, unless it stays inside."""
    name = "db.shop.svc.cluster.local:443"
    outside = ask(name, (GOOD,))
    assert (outside.verdict, outside.reason) == ("denied", "no-rule")
    assert f"pointed to {GOOD}, where 443/TCP is closed: reason no-rule" in outside.steps[-2]
    assert outside.allow is not None
    assert outside.allow.yaml == "- {to: [db.shop.svc.cluster.local], ports: [443/TCP]}"
    assert (ask(name, ("10.244.0.9",)).verdict, ask(name, (METADATA,)).verdict) == ("allowed", "denied")
    allow = Rule("cdn", Action.ALLOW, (parse_pattern("cdn.example"),), ports=HTTPS)
    assert ask(name, (GOOD,), by=policy(allow=(allow,))).verdict == "allowed"
    other = ask(name.replace("443", "80"), (GOOD,), by=policy(allow=(allow,)))
    assert (other.verdict, other.reason) == ("denied", "no-rule")


def test_a_private_address_has_ports_of_its_own() -> None:
    """A private address is open on the ports of rules with allowPrivate alone."""
    http = (PortSpan(6, 6, 80, 80),)
    inner = Rule("inner", Action.ALLOW, (parse_pattern(NAME),), ports=http, allow_private=True)
    found = policy(allow=(*policy().allow, inner))
    assert ask(f"{NAME}:80", (PRIVATE,), by=found).verdict == "allowed"
    closed = ask(f"{NAME}:443", (PRIVATE,), by=found)
    assert (closed.verdict, closed.reason) == ("denied", "rebinding")
    assert f"pointed to {PRIVATE} (private), where 443/TCP is closed: reason rebinding" in closed.steps[-2]
    assert closed.steps[-1] == "verdict: denied (rebinding)"


def test_a_denied_name_on_the_way() -> None:
    """A CNAME that a deny rule names denies the answer, and says which way it went."""
    deny = Rule("no-cdn", Action.DENY, (parse_pattern("cdn.example"),))
    found = ask(NAME, (GOOD,), by=policy(deny=(deny,)))
    assert (found.verdict, found.reason, found.rule) == ("denied", "deny-rule", "no-cdn")
    assert "led over cdn.example to 203.0.113.10, and that way is denied: withheld" in found.steps[-2]


def test_audited() -> None:
    """With Audit policies alone nothing is withheld, not even in part: it is reported."""
    found = ask(NAME, (GOOD, METADATA), by=policy(mode=Mode.AUDIT))
    assert (found.verdict, found.reason) == ("would-deny", "rebinding")
    assert any("it would be withheld, reason rebinding" in step for step in found.steps)
    assert found.steps[-1].endswith("it goes through, the audited policies would stop it")


def test_the_address_itself() -> None:
    """An address that a name led to is explained as one that no name may lead to, not by a missing look-up."""
    found = ask(METADATA, names=[NAME])
    assert any("it is link-local, and none of its names may lead there (rebinding)" in step for step in found.steps)
    other = ask(GOOD, names=[NAME])
    assert any("a new look-up of an allowed name would give one" in step for step in other.steps)


@pytest.mark.parametrize(
    ("address", "word"),
    [
        ("127.0.0.1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("255.255.255.255", "broadcast"),
        ("10.244.0.9", "inside the cluster"),
        ("10.1.0.9", "private"),
        ("2001:db8::1", "ordinary"),
    ],
)
def test_words_for_addresses(address: str, word: str) -> None:
    """What is special about an address has a word; an IPv4 address inside an IPv6 one counts."""
    assert special(packed(address), (cidr("10.244.0.0/16"),))[1] == word
