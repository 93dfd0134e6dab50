"""History of the running daemon: from a query to the map, to what is stale, and to a rule's last use; bad files too."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from e2e.shop import API4, Shop, ask, dial, open_shop

from egressd.lab import eventually

from .test_api import get

RULES = """allow:
- name: api
  to: [api.example.com, "*.example.com", never.example]
  ports: [80/TCP]
- to: [198.51.100.0/24]
- to: [gone.example]
deny:
- to: [denied.example]
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A running node: `web` has asked and dialled, `free` has asked."""
    with open_shop(tmp_path_factory.mktemp("shop")) as made:
        made.policy("shop/web", RULES)
        for name in ("api.example.com", "api.example.com", "denied.example", "unknown.example"):
            ask(made.web, name)
        assert dial(made.web, API4) == "open"
        assert dial(made.web, "203.0.113.99") == "refused"
        made.flow_record(made.web, "203.0.113.99")
        ask(made.free, "api.example.com")
        for name in (EXPANSION, "missing.shop.svc.cluster.local"):
            ask(made.free, name)
        made.dns_record(made.free, "missing.shop.svc.cluster.local")
        yield made


EXPANSION = "api.example.com.svc.cluster.local"


def edges(shop: Shop, query: str = "") -> dict[tuple[str, str, str], dict[str, Any]]:
    """The map, by workload, name and verdict."""
    found = get(shop, f"/api/v1/map{query}").json["edges"]
    return {(edge["workload"], edge["name"], edge["verdict"]): edge for edge in found}


def test_map(shop: Shop) -> None:
    """What was asked is there at once, with the rule that decided; what was refused without a name, by its address."""
    found = edges(shop, "?since=1h&namespace=shop")
    api = found["Pod/web-0", "api.example.com", "allowed"]
    assert (api["queries"], api["reason"], api["policy"], api["rule"]) == (2, "rule", "shop/web", "api")
    assert found["Pod/free-0", "api.example.com", "allowed"]["reason"] == "unselected"
    assert found["Pod/web-0", "denied.example", "denied"]["reason"] == "deny-rule"
    refused = found["Pod/web-0", "203.0.113.99", "denied"]
    assert (refused["queries"], refused["flows"], refused["ports"]) == (0, 1, ["80/TCP"])
    assert not refused["search"]
    assert api["first_seen"] <= api["last_seen"] <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    assert edges(shop, "?namespace=nowhere") == {}
    assert get(shop, "/api/v1/map?limit=1").json["truncated"]


def test_map_knows_search_noise(shop: Shop) -> None:
    """A name in the cluster that does not exist and begins with another one asked for was a search list's; of a pod
    that no policy selects, too. Any other that does not exist was meant."""
    found = edges(shop)
    assert found["Pod/free-0", EXPANSION, "allowed"]["reason"] == "unselected"
    assert found["Pod/free-0", EXPANSION, "allowed"]["search"]
    assert not found["Pod/free-0", "missing.shop.svc.cluster.local", "allowed"]["search"]
    assert not found["Pod/free-0", "api.example.com", "allowed"]["search"]


def test_history(shop: Shop) -> None:
    """The same by day, with filters."""
    found = get(shop, "/api/v1/history?name=*.example.com&workload=Pod/web-0&since=1d").json
    (one,) = found["observations"]
    assert one["day"] == one["last_seen"][:10]
    assert (one["count"], one["service_account"], one["event"], one["port"]) == (2, "web", "dns", -1)
    assert not found["truncated"]
    assert get(shop, "/api/v1/history?verdict=denied&event=flow").json["observations"][0]["protocol"] == "tcp"
    assert get(shop, "/api/v1/history?until=2000-01-01").json["observations"] == []
    wrong = get(shop, "/api/v1/history?workload=web")
    assert (wrong.status, wrong.json["parameter"]) == (400, "workload")


def test_rules_know_their_use(shop: Shop) -> None:
    """How often each rule of a policy decided, and when last."""
    policies = get(shop, "/api/v1/policies").json["policies"]
    rules = next(policy for policy in policies if policy["name"] == "shop/web")["rules"]
    used = {rule["name"]: (rule["uses"], rule["last_used"][:2]) for rule in rules}
    assert used == {"deny[0]": (1, "20"), "api": (2, "20"), "allow[1]": (0, ""), "allow[2]": (0, "")}


def test_stale(shop: Shop) -> None:
    """What nothing has used, and what nobody can tell; a history that is shorter than asked says so."""
    found = get(shop, "/api/v1/stale?since=30d&namespace=shop").json
    assert found["node"] == "n1"
    assert found["since"] < found["observed_since"]
    assert [(one["rule"], one["pattern"], one["state"]) for one in found["unused"]] == [
        ("api", "*.example.com", "shadowed"),
        ("api", "never.example", "unused"),
        ("allow[1]", "", "unobserved"),
        ("allow[2]", "", "unused"),
    ]


def test_metrics(shop: Shop) -> None:
    """The history's size, and that nothing went wrong."""
    text = get(shop, "/metrics").body.decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("egressd_history"))
    assert float(values["egressd_history_rows"]) >= 5
    assert float(values["egressd_history_bytes"]) > 4096
    assert float(values["egressd_history_records_total"]) >= 6
    assert float(values["egressd_history_failures_total"]) == 0


# ------------------------------------------------------------------------------------------------ good and bad days


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Shop]:
    """A node of its own, to be broken."""
    with open_shop(tmp_path) as made:
        made.policy("shop/web", RULES)
        yield made


def test_it_outlives_daemon_and_control_side(lone: Shop) -> None:
    """A killed control side loses nothing that was on the disk, a stopped daemon nothing at all."""
    ask(lone.web, "api.example.com")
    lone.dns_record(lone.web, "api.example.com")
    key = ("Pod/web-0", "api.example.com", "allowed")
    eventually(lambda: edges(lone)[key]["queries"] == 1, what="the query in the map")  # and so on the disk
    for child in lone.daemon.children():
        os.kill(child, signal.SIGKILL)
    eventually(lambda: _asked(lone, key) == 1, timeout=30.0, what="the map of the next control side")
    ask(lone.web, "api.example.com")
    eventually(lambda: _asked(lone, key) == 2, what="one more")
    ask(lone.web, "api.example.com")
    assert lone.daemon.stop() == 0
    lone.daemon.start()
    eventually(lambda: _asked(lone, key) == 3, timeout=30.0, what="the map of the next daemon")
    place = Path(lone.daemon.settings["history"]["file"])
    assert place.stat().st_mode & 0o777 == 0o600


def test_an_upgrade(lone: Shop) -> None:
    """Old and new process share the file while the one hands over to the other; every query is counted once."""
    key = ("Pod/web-0", "api.example.com", "allowed")
    for _ in range(20):
        ask(lone.web, "api.example.com")
    old = lone.daemon.process
    lone.daemon.start(wait=False)
    asked = 20
    while old is not None and old.poll() is None:
        ask(lone.web, "api.example.com")
        asked += 1
    for _ in range(20):
        ask(lone.web, "api.example.com")
    eventually(lambda: _asked(lone, key) == asked + 20, timeout=30.0, what=f"{asked + 20} queries in the map")
    assert "history" not in lone.daemon.log()


def _asked(shop: Shop, key: tuple[str, str, str]) -> int:
    try:
        return int(edges(shop)[key]["queries"])
    except (OSError, KeyError, ValueError):
        return 0


def test_a_broken_file_costs_history_alone(lone: Shop) -> None:
    """The daemon starts on garbage, is ready, answers, says so once and counts it."""
    assert lone.daemon.stop() == 0
    place = Path(lone.daemon.settings["history"]["file"])
    place.write_bytes(os.urandom(30_000))
    lone.daemon.start()
    eventually(lambda: get(lone, "/readyz").status == 200, timeout=30.0)
    ask(lone.web, "api.example.com")
    eventually(lambda: _asked(lone, ("Pod/web-0", "api.example.com", "allowed")) == 1, timeout=30.0)
    assert place.with_name("history.db.corrupt").exists()
    assert lone.daemon.log().count("is no history") == 1
    assert "egressd_history_failures_total 1.0" in get(lone, "/metrics").body.decode()


def test_history_off(tmp_path: Path) -> None:
    """Without a file there is none, and that is what is said; all else is as ever."""
    with open_shop(tmp_path, {"history": {"file": ""}}) as shop:
        shop.policy("shop/web", RULES)
        ask(shop.web, "api.example.com")
        for path in ("history", "map", "stale"):
            answer = get(shop, f"/api/v1/{path}")
            assert (answer.status, "history is off" in answer.json["detail"]) == (503, True)
        assert get(shop, "/api/v1/policies").json["policies"][-1]["rules"][0]["uses"] == 0
        eventually(lambda: get(shop, "/readyz").status == 200, timeout=30.0)
        assert not list(tmp_path.glob("history*"))
