"""`egressd suggest`: from audit files to ConfigMaps, and the loop suggest, check, simulate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from authoring_samples import API, dns, flow
from click.testing import CliRunner, Result
from e2e.shop import Shop, ask, open_shop

from egressd.cli import main
from egressd.lab import eventually

NOW = b"".join([dns("a.example", "192.0.2.1"), flow("198.51.100.7", 123, 17), dns("b.example", pod=API)])
OLD = dns("old.example", time=1e8)


def run(*arguments: object, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture
def audit(tmp_path: Path) -> Path:
    """An audit file with one rotated file and lines that are none."""
    (tmp_path / "audit.jsonl").write_bytes(NOW + b"half a li")
    (tmp_path / "audit.jsonl.1").write_bytes(b"\xff\n" + OLD)
    return tmp_path / "audit.jsonl"


def test_the_loop(audit: Path, tmp_path: Path) -> None:
    """What is suggested passes `check`, and `simulate` finds nothing newly denied."""
    result = run("suggest", "--audit", audit)
    assert result.exit_code == 0
    assert "2 policies for 2 workloads" in result.stderr
    (tmp_path / "shop.yaml").write_text(result.stdout)
    checked = run("check", tmp_path / "shop.yaml")
    assert (checked.exit_code, checked.stdout) == (0, "")
    assert run("simulate", tmp_path / "shop.yaml", "--audit", audit).exit_code == 0


def test_rotated_files_and_since(audit: Path) -> None:
    """FILE.1 is read too; --since leaves the old out, in both spellings."""
    assert "old.example" in run("suggest", "--audit", audit).stdout
    since = run("suggest", "--audit", audit, "--since", "2000-01-01T00:00:00Z")
    assert "old.example" not in since.stdout
    assert "a.example" in since.stdout
    assert run("suggest", "--audit", audit, "--since", "1d").exit_code == 1
    assert run("suggest", "--audit", audit, "--since", "soon").exit_code == 2


def test_namespace_stdin_and_mode(audit: Path) -> None:
    """One namespace; records from a pipe; Audit written into the policies."""
    assert run("suggest", "--audit", audit, "--namespace", "other").exit_code == 1
    result = run("suggest", "--audit", "-", "--mode", "Audit", stdin=NOW)
    assert result.stdout.count("    mode: Audit\n") == 2


def test_settings_say_what_is_inside(audit: Path, tmp_path: Path) -> None:
    """And where the audit file is."""
    config = tmp_path / "egressd.yaml"
    config.write_text(f"cluster_domains: [example]\naudit: {{file: {audit}}}\n")
    result = run("suggest", "--config", config)
    assert "a.example" not in result.stdout
    assert "nothing outside the cluster was seen of shop Deployment/api" in result.stderr


def test_a_missing_file_is_told() -> None:
    """Exit code 3, and what to do."""
    result = run("suggest", "--audit", "/nonexistent/audit.jsonl")
    assert result.exit_code == 3
    assert "name an audit file with --audit" in result.stderr


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Shop]:
    """A running daemon that knows pods and what is inside its cluster, and has seen two queries."""
    inside = {"cluster_domains": ["corp.example"], "in_cluster": "Allow"}
    with open_shop(tmp_path, inside) as shop:
        for name in ("db.shop.svc.corp.example", "api.example.com"):
            shop.node.dns.zone.add(name, "A", "203.0.113.50")
            ask(shop.web, name)
            shop.dns_record(shop.web, name)
        eventually(Path(shop.daemon.settings["admin"]["socket"]).exists, what="the admin socket")
        yield shop


def test_the_daemon_knows_what_records_do_not_hold(node: Shop, tmp_path: Path) -> None:
    """Without --pods and --config, labels and what is inside the cluster come from the running daemon."""
    audit, place = node.daemon.audit_file, ("--socket", node.daemon.settings["admin"]["socket"])
    told = run("suggest", "--audit", audit, *place)
    assert told.exit_code == 0, told.stderr
    assert "podSelector: {matchLabels: {app: web}}" in told.stdout
    assert "corp.example" not in told.stdout
    alone = run("suggest", "--audit", audit, "--socket", tmp_path / "nobody")
    assert "serviceAccounts: [web]" in alone.stdout
    assert "db.shop.svc.corp.example" in alone.stdout
    (tmp_path / "shop.yaml").write_text(told.stdout)
    replayed = run("simulate", tmp_path / "shop.yaml", "--audit", audit, *place)
    assert (replayed.exit_code, replayed.stderr) == (0, "")
    guessed = run("simulate", tmp_path / "shop.yaml", "--audit", audit, "--socket", tmp_path / "nobody")
    assert "the labels of 1 pods are not known" in guessed.stderr
