"""What the data path says when it is asked (link.Ask): plain values, a page at a time, never more than a millisecond or
two of work. What takes longer (rendering, sorting, judging for an explanation) is the asker's to do.

Addresses are packed, ports are spans, times are what is left in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from egressd.link import Answer, Ask
from egressd.names import Name

if TYPE_CHECKING:
    from egressd.agent.roster import Roster
    from egressd.exchange import LastKnown, Party
    from egressd.grants import GrantView, Ledger
    from egressd.model import Ports
    from egressd.wire import Answer as Answered

__all__ = ["GRANTS_PAGE", "PODS_PAGE", "Answers"]

PODS_PAGE: Final = 250
GRANTS_PAGE: Final = 500
"""Grants of one answer, about: names are not cut in two, and one name has 2,048 at most."""
SHARED_ADDRESSES: Final = 8
"""Addresses of which an explanation says who else knows them."""
SHARERS: Final = 50
"""Other pods that it names."""

LEARNED: Final = 256
"""Addresses of a name that it tells where no answer is kept."""

Body = dict[str, Any]
LastAnswers = Callable[["Name"], list[tuple["Answered", int]]]


class Answers:
    """Answers from what the data path holds anyway. `clock` gives monotonic seconds, `last` the answers still kept."""

    def __init__(
        self, roster: Roster, ledger: Ledger, known: LastKnown, clock: Callable[[], float], last: LastAnswers
    ) -> None:
        self._roster = roster
        self._ledger = ledger
        self._known = known
        self._clock = clock
        self._last = last
        self._kinds: dict[str, Callable[[Mapping[str, Any]], Body]] = {
            "pods": self._pods,
            "grants": self._grants,
            "explain": self._explain,
        }

    def answer(self, ask: Ask) -> Answer:
        """The answer to any question; one that is not understood is answered with `error`."""
        kind = self._kinds.get(ask.what)
        if kind is None:
            return Answer(ask.ident, {"error": f"there is no question {ask.what!r}"})
        try:
            return Answer(ask.ident, kind(ask.arguments))
        except (KeyError, TypeError, ValueError) as error:
            return Answer(ask.ident, {"error": f"{ask.what}: {type(error).__name__}: {error}"})

    # ------------------------------------------------------------------------------------------------ pods

    def _pods(self, arguments: Mapping[str, Any]) -> Body:
        """Pods in the order in which they came, from the one numbered `start`; `next` is where to go on, or None."""
        start = int(arguments.get("start", 0))
        addresses = self._addresses()
        page = list(islice(addresses.items(), start, start + PODS_PAGE))
        following = start + PODS_PAGE
        return {
            "pods": [self._pod(party, held) for party, held in page],
            "next": following if following < len(addresses) else None,
        }

    def _addresses(self) -> dict[Party, list[tuple[bytes, bool]]]:
        """Each pod's addresses, and whether its DNS is left alone."""
        found: dict[Party, list[tuple[bytes, bool]]] = {}
        for entry, party in self._roster.pods():
            found.setdefault(party, []).append((entry.address, entry.exempt))
        return found

    def _pod(self, party: Party, held: list[tuple[bytes, bool]]) -> Body:
        identity, judge = party.identity, party.judge
        return {
            "namespace": identity.namespace,
            "name": identity.name,
            "uid": identity.uid,
            "service_account": identity.service_account,
            "workload": identity.workload,
            "addresses": [address for address, _ in held],
            "exempt": any(exempt for _, exempt in held),
            "subject": party.subject,
            "policies": list(judge.subject.key) if judge is not None else [],
            "enforced": judge is not None and judge.enforced,
            "in_flight": party.in_flight,
        }

    # ---------------------------------------------------------------------------------------------- grants

    def _grants(self, arguments: Mapping[str, Any]) -> Body:
        """Live grants from `start` on (a pair, (0, 0) at first) and where to go on; with a `name` those alone."""
        now = self._clock()
        if "name" in arguments:
            name = Name(arguments["name"])
            every = (view for subject in self._ledger.subjects() for view in self._ledger.views(subject, name, now))
            return {"grants": [_grant(view) for view in islice(every, 4 * GRANTS_PAGE)], "next": None}
        subject, index = arguments.get("start", (0, 0))
        views, following = self._ledger.page((int(subject), int(index)), GRANTS_PAGE, now)
        return {"grants": [_grant(view) for view in views], "next": following}

    # --------------------------------------------------------------------------------------------- explain

    def _explain(self, arguments: Mapping[str, Any]) -> Body:
        """What is in force between a pod (`namespace`, `name`) and a destination (`to`, a name, or `address`)."""
        mine = [
            (entry.address, party)
            for entry, party in self._roster.pods()
            if (party.identity.namespace, party.identity.name) == (arguments["namespace"], arguments["name"])
        ]
        if not mine:
            return {"known": False}
        party = mine[0][1]
        own = [address for address, other in mine if other is party]
        if "to" in arguments:
            name = Name(arguments["to"])
            views = self._ledger.views(party.subject, name, self._clock())
            return self._told(party, own, arguments, views, [name]) | {"answers": self._answers(name, own, views)}
        address = bytes(arguments["address"])
        names = self._names(party, own, address)
        views = self._of_address(party.subject, names, address)
        return self._told(party, own, arguments, views, names)

    def _told(
        self, party: Party, own: list[bytes], arguments: Mapping[str, Any], views: list[GrantView], names: list[Name]
    ) -> Body:
        address = arguments.get("address")
        wanted = [bytes(address)] if address is not None else [view.address for view in views]
        judge = party.judge
        decision = judge.judge_name(names[0]) if judge is not None and address is None else None
        return {
            "known": True,
            "pod": self._pod(party, [(each, False) for each in own]),
            "verdict": str(decision.verdict) if decision is not None else "",
            "names": list(names),
            "grants": [_grant(view) for view in views[:GRANTS_PAGE]],
            "shared": list(islice(self._sharers(party, names, wanted), SHARERS)),
        }

    def _answers(self, name: Name, own: list[bytes], views: list[GrantView]) -> list[Body]:
        """What the name led to last: addresses, names on the way, age in seconds. Where no answer is kept (its TTL was
        0) what this pod learned by it, and what is granted: an age of -1."""
        kept = [(answer.addresses, answer.cnames, age) for answer, age in self._last(name)]
        if not any(addresses for addresses, _, _ in kept):
            learned = dict.fromkeys([*self._known.addresses_for(own, name), *(view.address for view in views)])
            kept.append((tuple(islice(learned, LEARNED)), (), -1))
        return [
            {"addresses": list(addresses), "cnames": list(cnames), "age_s": age}
            for addresses, cnames, age in kept
            if addresses
        ]

    def _names(self, party: Party, own: Iterable[bytes], address: bytes) -> list[Name]:
        """Names by which the pod, or one that shares its grants, knows the address; its own first."""
        everyone = [*own, *(entry.address for entry, other in self._roster.pods() if other.subject == party.subject)]
        return list(dict.fromkeys(name for pod in everyone for name in self._known.names_for(pod, address)))

    def _of_address(self, subject: int, names: Iterable[Name], address: bytes) -> list[GrantView]:
        now = self._clock()
        return [view for name in names for view in self._ledger.views(subject, name, now) if view.address == address]

    def _sharers(self, party: Party, names: Iterable[Name], addresses: Iterable[bytes]) -> Iterator[Body]:
        """Who else knows these addresses, and by which names; under `pod` nobody: this pod by other names."""
        mine = set(names)
        for address in list(dict.fromkeys(addresses))[:SHARED_ADDRESSES]:
            for entry, other in self._roster.pods():
                known = self._known.names_for(entry.address, address)
                if other is party:
                    known = tuple(name for name in known if name not in mine)
                if known:
                    yield {"address": address, "pod": str(entry.identity), "names": list(known)}


def _grant(view: GrantView) -> tuple[int, str, bytes, Ports, float]:
    """Subject, name, address, ports, seconds left."""
    return view.subject, view.name, view.address, view.ports, view.remaining_s
