"""`egressd simulate`: the table, the data, the warnings and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from authoring_samples import WEB, dns
from click.testing import CliRunner, Result

from egressd.cli import main

POLICY = """\
subject: {podSelector: {matchLabels: {app: web}}}
allow: [{to: [a.example], ports: [443/TCP]}]
"""
LINES = [dns("a.example"), dns("b.example"), dns("b.example"), dns("a.example", verdict="denied", reason="no-rule")]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A policy, records of one pod, and its manifest."""
    (tmp_path / "web.yaml").write_text(POLICY)
    (tmp_path / "audit.jsonl").write_bytes(b"".join(LINES))
    (tmp_path / "pods.yaml").write_text(
        f"kind: Pod\nmetadata: {{name: {WEB.name}, namespace: shop, labels: {{app: web}}}}\n"
    )
    return tmp_path


def simulate(world: Path, *more: object) -> Result:
    return run("simulate", world / "web.yaml", "-n", "shop", "--audit", world / "audit.jsonl", *more)


def test_the_table(world: Path) -> None:
    """Counts, then examples; exit code 1, for something is newly denied."""
    result = simulate(world, "--pods", world / "pods.yaml")
    assert result.exit_code == 1
    assert result.stderr == ""
    assert (
        result.stdout
        == """\
RECORDS           COUNT
newly denied      2
newly would-deny  0
newly allowed     1
unchanged         1
unselected        0
left out          0

NEWLY DENIED  WORKLOAD             DESTINATION  BEFORE                AFTER
2             shop Deployment/web  b.example    allowed (unselected)  denied (no-rule)

NEWLY ALLOWED  WORKLOAD             DESTINATION  BEFORE            AFTER
1              shop Deployment/web  a.example    denied (no-rule)  allowed (rule "allow[0]" of shop/web)
"""
    )


def test_data(world: Path) -> None:
    """`-o json`: counts, changes and warnings."""
    data = json.loads(simulate(world, "-o", "json").stdout)
    assert data["counts"]["newly_denied"] == 2
    assert data["changes"][0] == {
        "change": "newly_denied", "event": "dns", "namespace": "shop", "workload": "Deployment/web",
        "destination": "b.example", "before": "allowed (unselected)", "after": "denied", "reason": "no-rule",
        "policy": "", "rule": "", "count": 2,
    }  # fmt: skip
    assert "by namespace and service account alone" in data["warnings"][0]


def test_a_guess_is_told(world: Path) -> None:
    """Without manifests, a podSelector is taken to match, and stderr says so."""
    assert "warning: the labels of 1 pods are not known (shop/web-0)" in simulate(world).stderr


def test_audit_policies_deny_nothing_unless_asked(world: Path) -> None:
    """Exit code 0; with --enforce 1."""
    (world / "web.yaml").write_text("mode: Audit\n" + POLICY)
    assert simulate(world).exit_code == 0
    assert simulate(world, "--enforce").exit_code == 1


def test_an_invalid_policy_stops_it(world: Path) -> None:
    """Exit code 1 with the place; without any policy it is wrong usage."""
    (world / "web.yaml").write_text("allows: []\n" + POLICY)
    result = simulate(world)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "web.yaml:1:1: error: unknown field 'allows'" in result.stderr
    (world / "web.yaml").write_text("kind: Pod\nmetadata: {name: a}\n")
    assert simulate(world).exit_code == 2
