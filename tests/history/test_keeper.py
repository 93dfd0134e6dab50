"""History as the control side has it: whatever the order of things, the same sums as a plain counter."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from egressd.history import Filter, Keeper
from egressd.history.folding import Folding
from egressd.history.pending import Pending
from egressd.history.reading import observations
from egressd.history.store import Store
from egressd.model import Action, Policy, Reason, Rule, Verdict
from egressd.names import parse_pattern
from egressd.settings import History

from .lines import DAY, dns, everything, flow, kept

DECIDED: Final[dict[str, Any]] = {
    "verdict": Verdict.ALLOWED,
    "reason": Reason.RULE,
    "policy": "shop/web",
    "rule": "api",
}


# ------------------------------------------------------------------------------------------------------- sums

STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(("a.example", "b.example", "*x")), st.integers(0, 3), st.sampled_from(list(Verdict))),
        st.sampled_from(("ask", "map", "reopen", "forsake")),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None)
@given(STEPS)
def test_like_a_counter(steps: list[tuple[str, int, Verdict] | str]) -> None:
    """Whatever the order of lines, writes, questions, and questions that nobody waits for: the sums are true."""
    model: Counter[tuple[int, str, str]] = Counter()

    async def play(keeper: Keeper) -> None:
        for step in steps:
            if step == "ask":
                assert await everything(keeper) == model
            elif step == "map":
                found, _ = await keeper.edges(Filter(), 1000)
                assert sum(traffic.queries for traffic in found.values()) == model.total()
            elif step == "reopen":
                await keeper.reopen(History(str(file), max_rows=model.total() + 1000))
            elif step == "forsake":
                asyncio.get_running_loop().call_soon(asyncio.create_task(keeper.uses()).cancel)
                await asyncio.sleep(0)
            else:
                assert isinstance(step, tuple)
                name, day, verdict = step
                keeper.feed(dns(name, time=DAY + 86_400 * day, verdict=verdict))
                model[day, name, str(verdict)] += 1

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "history.db")
        kept(file, play)
        assert kept(file, everything) == model


def test_it_outlives_the_process(tmp_path: Path) -> None:
    """What was there at the end is there at the next beginning, in a file for root alone."""
    file = tmp_path / "new" / "history.db"

    async def first(keeper: Keeper) -> None:
        keeper.feed(dns("a.example") + dns("b.example"))

    kept(file, first)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert not Path(f"{file}-wal").exists()
    assert kept(file, everything) == {(0, "a.example", "allowed"): 1, (0, "b.example", "allowed"): 1}


def test_filters(tmp_path: Path) -> None:
    """By time, namespace, workload, name or pattern, verdict, event; with a limit."""
    store = Store(tmp_path / "history.db", 1000, 1 << 24, DAY)
    pending = Pending(Folding())
    pending.feed(
        dns("a.example.com", time=DAY + 10)
        + dns("b.a.example.com", time=DAY + 90_000)
        + dns("xa.example.com", time=DAY + 90_001, verdict=Verdict.DENIED, reason=Reason.NO_RULE)
        + flow("192.0.2.1", 443, "a.example.com", time=DAY + 90_002)
    )
    store.write(pending.take())

    def names(wanted: Filter) -> list[str]:
        return [one.key.name for one in observations(store, wanted, 100)[0]]

    whole = ["a.example.com", "b.a.example.com", "xa.example.com", "a.example.com"]
    assert names(Filter()) == whole
    assert names(Filter(since=DAY + 11)) == whole[:3]
    assert names(Filter(until=DAY + 11)) == whole[3:]
    assert names(Filter(name=parse_pattern("a.example.com"))) == ["a.example.com"] * 2
    assert names(Filter(name=parse_pattern("*.a.example.com"))) == ["b.a.example.com"]
    assert names(Filter(name=parse_pattern("*"))) == whole
    assert names(Filter(verdict="denied", event="dns")) == ["xa.example.com"]
    assert names(Filter(workload="Deployment/web", namespace="shop")) == whole
    assert names(Filter(namespace="other")) == []
    assert [len(part) for part in observations(store, Filter(), 2)[:1]] == [2]
    assert observations(store, Filter(), 2)[1]
    store.close()


def test_edges_over_days(tmp_path: Path) -> None:
    """Queries and flows of several days are one edge, with its ports; past the limit the newest are told."""

    async def play(keeper: Keeper) -> None:
        for day in range(3):
            when = DAY + day * 86_400
            keeper.feed(dns("a.example", time=when) * 2)
            keeper.feed(flow("192.0.2.1", 443 + day, "a.example", time=when, packets=5, **DECIDED))
        keeper.feed(dns("old.example", time=DAY - 86_400))
        found, more = await keeper.edges(Filter(), 10)
        assert (sorted(edge.name for edge in found), more) == (["a.example", "old.example"], False)
        traffic = next(traffic for edge, traffic in found.items() if edge.name == "a.example")
        assert (traffic.queries, traffic.flows, traffic.packets) == (6, 3, 15)
        assert traffic.ports == {(443, "tcp"), (444, "tcp"), (445, "tcp")}
        assert (traffic.first_seen, traffic.last_seen) == (int(DAY), int(DAY) + 2 * 86_400)
        found, more = await keeper.edges(Filter(), 1)
        assert ([(edge.name, one.queries) for edge, one in found.items()], more) == ([("a.example", 6)], True)

    kept(tmp_path / "history.db", play)


def test_uses_of_rules(tmp_path: Path) -> None:
    """How often each rule decided, and when last."""

    async def play(keeper: Keeper) -> None:
        keeper.feed(dns("a.example", time=DAY) + dns("b.example", time=DAY + 9) + dns("c.example", rule="other"))
        keeper.feed(dns("d.example", policy="", rule="", reason=Reason.UNSELECTED))
        assert await keeper.uses() == {("shop/web", "api"): (2, int(DAY) + 9), ("shop/web", "other"): (1, int(DAY))}

    kept(tmp_path / "history.db", play)


def test_since_when_peers_are_there(tmp_path: Path) -> None:
    """A peer is as old as its first mention, wherever it moves in its policy; one that is gone is forgotten."""
    moments, now = iter([DAY, DAY + 10, DAY + 20]), [DAY]

    def policy(*names: str) -> Policy:
        patterns = tuple(map(parse_pattern, names))
        return Policy("shop/web", "shop", allow=(Rule(f"allow[{len(names)}]", Action.ALLOW, patterns),))

    async def play(keeper: Keeper) -> list[dict[str, int]]:
        found = []
        for names in (("a.example",), ("b.example", "a.example"), ("b.example",)):
            now[0] = next(moments)
            keeper.know([policy(*names)], (), flows=len(names) == 2)
            span = await keeper.survey(0, (), lambda _: None)
            assert span is not None
            assert span.flows == (DAY + 10 if len(names) == 2 else None)
            found.append({peer: since - int(DAY) for (_, peer), since in span.peers.items()})
        return found

    assert kept(tmp_path / "history.db", play, clock=lambda: now[0]) == [
        {"allow a.example": 0},
        {"allow a.example": 0, "allow b.example": 10},
        {"allow b.example": 10},
    ]


def test_peers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for so many peers; those of policies that are gone make room for others."""
    monkeypatch.setattr("egressd.history.store.MAX_PEERS", 5)
    store = Store(tmp_path / "history.db", 1000, 1 << 20, DAY)

    def known() -> Counter[str]:
        return Counter(policy for policy, _ in store.peers)

    store.know({"a": ["1", "2", "3"], "b": ["1", "2", "3"]}, DAY)
    assert known() == {"a": 3, "b": 2}
    store.know({"b": ["2", "3", "4"], "c": ["1", "1", "2", "3"]}, DAY + 1)
    assert known() == {"b": 3, "c": 2}
    assert store.peers["b", "2"] == DAY
    assert store.peers["b", "4"] == DAY + 1
    store.close()


def test_when_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the third look where there is little, at the first where there is much, or news of the policies."""
    monkeypatch.setattr("egressd.history.keeper.LOOK_S", 0.01)
    monkeypatch.setattr("egressd.history.keeper.LOOKS", 1_000_000)
    monkeypatch.setattr("egressd.history.keeper.MANY", 3)
    file = tmp_path / "history.db"

    def written() -> list[object]:
        with sqlite3.connect(file) as other:
            found = [
                *other.execute("SELECT name FROM observations ORDER BY name"),
                *other.execute("SELECT * FROM peers"),
            ]
        other.close()
        return found

    async def until(number: int) -> None:
        while not file.exists() or len(written()) < number:  # noqa: ASYNC110 - the file is another one's
            await asyncio.sleep(0.01)

    async def play(keeper: Keeper) -> None:
        resting, rest = asyncio.Event(), keeper._rest

        async def told() -> None:
            resting.set()
            await rest()

        monkeypatch.setattr(keeper, "_rest", told)
        await resting.wait()
        keeper.feed(dns("a.example"))
        await asyncio.sleep(0.1)
        assert written() == []
        keeper.feed(dns("b.example") + dns("c.example"))
        await until(3)
        keeper.feed(dns("d.example"))
        rule = Rule("api", Action.ALLOW, (parse_pattern("e.example"),))
        keeper.know([Policy("shop/web", "shop", allow=(rule,))], (), flows=False)
        await until(5)

    kept(file, play)
    assert len(written()) == 5
