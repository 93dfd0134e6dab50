"""`stale`, and `suggest` and `simulate` from history: whole screens, and the verbs against the running daemon."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import yaml
from authoring_samples import compiled
from click.testing import CliRunner
from e2e.shop import Shop, ask, open_shop

from egressd.authoring.seen import Dropped, Flow, Query
from egressd.cli import main
from egressd.cli._daemon import Daemon
from egressd.cli._past import seen_in
from egressd.cli.stale import lines
from egressd.lab import eventually


def unused(policy: str, rule: str, pattern: str, state: str, last_used: str = "", note: str = "") -> dict[str, str]:
    return locals()


FOUND: dict[str, Any] = {
    "node": "n1",
    "since": "2026-10-23T13:00:00Z",
    "observed_since": "2026-11-20T08:30:00Z",
    "unused": [
        unused("egressd-system/guardrails", "deny[0]", "", "unused"),
        unused("shop/old", "", "", "unused", "2026-11-21T09:00:00Z", "selects no pod"),
        unused("shop/web-egress", "object-storage", "*.s3.example.com", "shadowed", "", "another decides"),
        unused("shop/web-egress", "ranges", "203.0.113.0/24", "unobserved", "", "flows unknown"),
    ],
}
SCREEN = """\
node n1, since 2026-11-20T08:30:00Z
history begins 2026-11-20T08:30:00Z, later than 2026-10-23T13:00:00Z

STATE       POLICY             RULE            PATTERN           NOTE
unused      egressd-system/g…  deny[0]         (all)             never seen
unused      shop/old           (all)           (all)             selects no pod
shadowed    shop/web-egress    object-storage  *.s3.example.com  another decides
unobserved  shop/web-egress    ranges          203.0.113.0/24    flows unknown

another decides: seen, but another rule or a closer pattern decided
flows unknown: allowed flows were not always recorded (audit.flows: All)
selects no pod: no pod of this node is selected by the policy now
"""


def test_screen() -> None:
    """What is told fits a terminal, and is whole in a pipe."""
    assert "\n".join(lines(FOUND, 80)) + "\n" == SCREEN
    assert "…" not in "\n".join(lines(FOUND, 10_000))


def test_nothing_stale() -> None:
    """That is said too."""
    assert list(lines(FOUND | {"unused": [], "observed_since": FOUND["since"]}, 80)) == [
        "node n1, since 2026-10-23T13:00:00Z",
        "",
        "every rule and pattern was used",
    ]


# -------------------------------------------------------------------------------------------- history, day by day


def observation(day: int, name: str, **fields: Any) -> dict[str, Any]:
    time = f"2026-11-{day:02d}T13:00:00Z"
    base = {
        "day": time[:10],
        "namespace": "shop",
        "workload": "Deployment/web",
        "service_account": "web",
        "event": "dns",
        "name": name,
        "folded": False,
        "port": -1,
        "protocol": "",
        "verdict": "allowed",
        "reason": "rule",
        "policy": "",
        "rule": "",
        "search": False,
        "answer": "",
        "first_seen": time,
        "last_seen": time,
        "count": 3,
        "packets": 0,
    }
    return base | fields


class Past(Daemon):
    """A daemon whose history holds these observations, and answers at most `part` at a time."""

    def __init__(self, part: int, *observations: dict[str, Any]) -> None:
        super().__init__("/nonexistent")
        self.part = part
        self.observations = sorted(observations, key=lambda one: (one["day"], one["name"]), reverse=True)

    def get(self, endpoint: str, **query: str | int | None) -> dict[str, Any]:
        assert endpoint == "/api/v1/history"
        until = str(query["until"] or "9")
        found = [one for one in self.observations if one["first_seen"] <= until]
        return {"observations": found[: self.part], "truncated": len(found) > self.part}


@pytest.mark.parametrize("part", [3, 4, 5, 6, 100])
def test_history_in_parts(part: int) -> None:
    """However much comes at a time, each observation is read once."""
    past = Past(part, *(observation(day, f"n{number}.example") for day in range(1, 8) for number in range(3)))
    found = list(seen_in("history", past, (), "", 0.0))
    names = [(one.time, one.name) for one in found if isinstance(one, Query)]
    assert len(names) == len(set(names)) == 21


def test_a_day_that_is_too_large(capsys: pytest.CaptureFixture[str]) -> None:
    """It is cut, the others are not, and that is said."""
    past = Past(3, *(observation(day, f"n{number}.example") for day in (1, 2) for number in range(2 + 3 * (day == 2))))
    found = list(seen_in("history", past, (), "", 0.0))
    assert len(found) == 5
    assert "history holds more than could be read of 2026-11-02" in capsys.readouterr().err


def test_observations_as_seen() -> None:
    """Names that do not exist, private answers, flows with and without names, and what has lost its name."""
    tcp = {"event": "flow", "port": 443, "protocol": "tcp"}
    past = Past(
        100,
        observation(6, "a.example", answer="absent"),
        observation(5, "b.example", answer="private"),
        observation(4, "cdn.example", **tcp),
        observation(3, "198.51.100.7", **tcp),
        observation(2, "*.tunnel.example", folded=True, count=900),
        observation(1, "x.example", reason="rate-limit", verdict="denied"),
        observation(1, "lone.example", workload="Pod/lone"),
    )
    absent, private, named, bare, folded, lone = seen_in("history", past, (), "", 0.0)
    assert isinstance(absent, Query)
    assert (absent.absent, absent.times, absent.pod.name, absent.pod.workload) == (True, 3, "", "Deployment/web")
    assert isinstance(private, Query)
    assert private.addresses[0][0] == 10
    assert isinstance(named, Flow)
    assert (named.names, named.port, named.protocol) == (("cdn.example",), 443, 6)
    assert isinstance(bare, Flow)
    assert (bare.names, bare.address) == ((), bytes((198, 51, 100, 7)))
    assert isinstance(folded, Dropped)
    assert folded.number == 900
    assert isinstance(lone, Query)
    assert (lone.pod.name, lone.pod.workload) == ("lone", "")


def test_files_and_history_at_once() -> None:
    """It is not guessed which was meant."""
    result = CliRunner().invoke(main, ["suggest", "--from", "history", "--audit", "audit.jsonl"])
    assert result.exit_code == 2
    assert "--from history reads none" in result.stderr


def test_audit_files_that_begin_late(tmp_path: Path) -> None:
    """They are used, and history is mentioned."""
    from authoring_samples import dns

    (tmp_path / "audit.jsonl").write_bytes(dns("a.example", "198.51.100.1"))
    result = CliRunner().invoke(main, ["suggest", "--audit", str(tmp_path / "audit.jsonl"), "--since", "2000-01-01"])
    assert result.exit_code == 0
    assert "the audit files begin 2001-09-09T01:46:40Z; --from history may reach further back" in result.stderr


# ------------------------------------------------------------------------------------------- the running daemon

RULES = "allow:\n- name: api\n  to: [api.example.com, never.example]\n  ports: [80/TCP]\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A running node without an audit file, where `web` and `free` have asked."""
    with open_shop(tmp_path_factory.mktemp("shop"), {"audit": {"file": "", "stdout": False}}) as made:
        made.policy("shop/web", RULES)
        eventually(Path(made.daemon.settings["admin"]["socket"]).exists, what="the admin socket")
        for _ in range(3):
            ask(made.web, "api.example.com")
        ask(made.free, "api.example.com")
        ask(made.web, "denied.example")
        status = ("status", "-o", "json")
        eventually(lambda: json.loads(egressd(made, *status).stdout)["queries"]["total"] >= 5, what="counters")
        yield made


def egressd(shop: Shop, *verb: str) -> CompletedProcess[str]:
    """Run a verb on the node."""
    place = shop.daemon.settings["admin"]["socket"]
    return shop.node.run(["env", "COLUMNS=80", sys.executable, "-m", "egressd", *verb, "--socket", place])


def test_stale(shop: Shop) -> None:
    """The table, the same as data, and exit codes: 1 with something stale, 0 without, 2 for a wrong time."""
    shown = egressd(shop, "stale", "--namespace", "shop")
    assert shown.returncode == 1
    assert "unused  shop/web  api   never.example  never seen" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    data = json.loads(egressd(shop, "stale", "-n", "shop", "-o", "json").stdout)
    assert [one["pattern"] for one in data["unused"]] == ["never.example"]
    assert yaml.safe_load(egressd(shop, "stale", "-n", "shop", "-o", "yaml").stdout)["unused"] == data["unused"]
    assert egressd(shop, "stale", "-n", "nowhere").returncode == 0
    wrong = egressd(shop, "stale", "--since", "soon")
    assert (wrong.returncode, "write 90s" in wrong.stderr) == (2, True)


def test_suggest_and_simulate(shop: Shop, tmp_path: Path) -> None:
    """No log, and yet: a policy for each workload with true counts, which denies nothing that went through."""
    suggested = egressd(shop, "suggest", "--from", "history", "--since", "7d")
    assert suggested.returncode == 0, suggested.stderr
    policies, problems = compiled(suggested.stdout)
    assert sorted(policies) == ["shop/suggested-pod-free-0", "shop/suggested-pod-web-0"]
    assert not problems
    assert "3 queries" in suggested.stdout
    assert "denied.example" not in suggested.stdout
    file = tmp_path / "shop.yaml"
    file.write_text(suggested.stdout)
    assert egressd(shop, "simulate", str(file), "--from", "history").returncode == 0
    file.write_text(suggested.stdout.replace("api.example.com", "other.example"))
    replayed = egressd(shop, "simulate", str(file), "--from", "history", "-o", "json")
    assert replayed.returncode == 1
    assert json.loads(replayed.stdout)["counts"]["newly_denied"] == 4
    assert replayed.stderr.count("judged by the name alone") == 1


def test_history_off(tmp_path: Path) -> None:
    """Exit code 3, and what to do."""
    with open_shop(tmp_path, {"history": {"file": ""}}) as made:
        eventually(Path(made.daemon.settings["admin"]["socket"]).exists, what="the admin socket")
        shown = egressd(made, "stale")
        assert (shown.returncode, "set history.file" in shown.stderr) == (3, True)
