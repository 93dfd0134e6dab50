"""What the data path answers when the admin API asks: pods, grants page by page, and what an explanation needs."""

from __future__ import annotations

from collections import Counter

import dns.message
import dns.rrset
import pytest

from egressd.agent.answers import GRANTS_PAGE, PODS_PAGE, Answers
from egressd.agent.roster import Roster
from egressd.exchange import LastKnown
from egressd.exchange.store import Store
from egressd.grants import Ledger
from egressd.link import Ask, PodEntry, Update
from egressd.model import Action, PodIdentity, Policy, PortSpan, Rule
from egressd.names import Name, parse_pattern
from egressd.policy import ClusterFacts
from egressd.settings import Cache
from egressd.wire import read_answer, read_query

WEB, API, FREE = (bytes((10, 244, 1, last)) for last in (5, 6, 7))
WEB6 = bytes(15) + b"\5"
TARGET = bytes((203, 0, 113, 7))
NAME = Name("api.example.com")
HTTPS = (PortSpan(6, 6, 443, 443),)
NOW = 100.0


def policy(name: str) -> Policy:
    rule = Rule("allow[0]", Action.ALLOW, (parse_pattern("*.example.com"),), ports=HTTPS)
    return Policy(name, "shop", allow=(rule,))


@pytest.fixture
def node() -> tuple[Roster, Ledger, LastKnown, Answers]:
    """Two pods with a subject each, one without; all three know the same address."""
    ledger, known = Ledger(), LastKnown()
    roster = Roster(ClusterFacts(), ledger, known, intercept_all=True)
    web, api = PodIdentity("shop", "web-0", "u1"), PodIdentity("shop", "api-0", "u2")
    pods = (
        PodEntry(WEB, web, ("shop/web",)),
        PodEntry(WEB6, web, ("shop/web",)),
        PodEntry(API, api, ("shop/api",)),
        PodEntry(FREE, PodIdentity("shop", "free-0", "u3")),
    )
    change, moved = roster.plan(Update(policies=(policy("shop/web"), policy("shop/api")), pods=pods), NOW)
    roster.settle(change, moved)
    for address, name in ((WEB, NAME), (API, Name("cdn.example.com")), (FREE, NAME)):
        known.note(address, name, (TARGET,))
        ledger.admit(roster.parties[address].subject, name, [TARGET], HTTPS, 5, NOW)
    return roster, ledger, known, Answers(roster, ledger, known, lambda: NOW, lambda _: [])


Fixture = tuple[Roster, Ledger, LastKnown, Answers]


def test_pods(node: Fixture) -> None:
    """Each pod once, with all its addresses and its policies."""
    body = node[3].answer(Ask(7, "pods")).body
    assert body["next"] is None
    told = {pod["name"]: (pod["addresses"], pod["policies"], pod["enforced"]) for pod in body["pods"]}
    assert told == {
        "web-0": ([WEB, WEB6], ["shop/web"], True),
        "api-0": ([API], ["shop/api"], True),
        "free-0": ([FREE], [], False),
    }


def test_pods_page_by_page(node: Fixture) -> None:
    """More pods than fit one answer come in several, none twice and none left out."""
    roster, _, _, answers = node
    many = [PodEntry(bytes((10, 245, n >> 8, n & 255)), PodIdentity("many", f"p{n}", f"m{n}")) for n in range(600)]
    change, moved = roster.plan(Update(pods=tuple(many)), NOW)
    roster.settle(change, moved)
    start: int | None = 0
    names: list[str] = []
    while start is not None:
        body = answers.answer(Ask(1, "pods", {"start": start})).body
        assert len(body["pods"]) <= PODS_PAGE
        names += [pod["name"] for pod in body["pods"]]
        start = body["next"]
    assert len(names) == len(set(names)) == 603


def test_grants_page_by_page(node: Fixture) -> None:
    """Grants of all subjects, in bounded pages, none twice; those of unselected pods are nobody's business."""
    roster, ledger, _, answers = node
    for subject in (roster.parties[WEB].subject, roster.parties[API].subject):
        for number in range(700):
            ledger.admit(
                subject, Name(f"n{number}.example.com"), [bytes((198, 51, number >> 8, number & 255))], HTTPS, 5, NOW
            )
    start: object = (0, 0)
    seen = []
    while start is not None:
        body = answers.answer(Ask(1, "grants", {"start": start})).body
        assert len(body["grants"]) <= GRANTS_PAGE
        seen += [tuple(grant[:3]) for grant in body["grants"]]
        start = body["next"]
    assert len(seen) == len(set(seen)) == 1402


def test_grants_of_a_name(node: Fixture) -> None:
    """One name's grants, with what is left of their time."""
    body = node[3].answer(Ask(1, "grants", {"name": NAME})).body
    assert [(grant[1], grant[2], grant[3], grant[4]) for grant in body["grants"]] == [(NAME, TARGET, HTTPS, 90.0)]


def test_explain_a_name(node: Fixture) -> None:
    """The verdict in force, the grants of the name, and who else knows their addresses by which names."""
    body = node[3].answer(Ask(1, "explain", {"namespace": "shop", "name": "web-0", "to": NAME})).body
    assert body["known"]
    assert body["verdict"] == "allowed"
    assert [grant[2] for grant in body["grants"]] == [TARGET]
    assert {(each["pod"], *each["names"]) for each in body["shared"]} == {
        ("shop/api-0", "cdn.example.com"),
        ("shop/free-0", NAME),
    }


def test_explain_tells_the_last_answers(node: Fixture) -> None:
    """Those that are kept, with what was on the way and their age; else what this pod learned by the name."""
    roster, ledger, known, answers = node
    asked = Ask(1, "explain", {"namespace": "shop", "name": "web-0", "to": NAME})
    metadata = bytes((169, 254, 169, 254))
    known.note(API, NAME, (bytes((10, 0, 0, 9)),))
    known.note(WEB6, NAME, (metadata,))
    assert answers.answer(asked).body["answers"] == [{"addresses": [metadata, TARGET], "cnames": [], "age_s": -1}]

    store = Store(Cache(), Counter())
    for address, when, dnssec in (("203.0.113.7", NOW, False), ("169.254.169.254", NOW + 3, True)):
        query = dns.message.make_query("API.example.com", "A", want_dnssec=dnssec)
        reply = dns.message.make_response(query)
        reply.answer.append(dns.rrset.from_text("api.example.com.", 5, "IN", "CNAME", "x.example."))
        reply.answer.append(dns.rrset.from_text("x.example.", 5, "IN", "A", address))
        question = read_query(query.to_wire())
        store.keep(question, read_answer(reply.to_wire(), question), when)
    told = Answers(roster, ledger, known, lambda: NOW, lambda name: store.last(name, NOW + 10)).answer(asked).body
    assert told["answers"] == [{"addresses": [metadata], "cnames": ["x.example"], "age_s": 7}]


def test_explain_an_address(node: Fixture) -> None:
    """The names by which the pod knows it, and the grants that open it, from whichever of its addresses it asked."""
    body = node[3].answer(Ask(1, "explain", {"namespace": "shop", "name": "web-0", "address": TARGET})).body
    assert body["names"] == [NAME]
    assert [grant[:3] for grant in body["grants"]] == [(node[0].parties[WEB].subject, NAME, TARGET)]


def test_explain_a_stranger(node: Fixture) -> None:
    """A pod that is not there is said to be unknown."""
    assert node[3].answer(Ask(1, "explain", {"namespace": "x", "name": "y", "to": NAME})).body == {"known": False}


@pytest.mark.parametrize(
    ("what", "arguments"),
    [
        ("weather", {}),
        ("pods", {"start": "x"}),
        ("grants", {"start": 3}),
        ("explain", {}),
        ("explain", {"namespace": 1}),
    ],
)
def test_what_is_not_understood(node: Fixture, what: str, arguments: dict[str, object]) -> None:
    """It is answered with an error, under the same number: nothing of the control side's can end the data path."""
    answer = node[3].answer(Ask(9, what, arguments))
    assert answer.ident == 9
    assert "error" in answer.body
