"""The last good version of a policy on disk: what is kept, and what is not believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from egressd.control.lastgood import FILE, LastGood
from egressd.schema import read_policy
from egressd.settings import History, Settings

TEXT = """
subject: {podSelector: {matchLabels: {app: web}}}
allow:
- {to: [api.example.com, "*.cdn.example", 203.0.113.0/24, "2001:db8::/32"], ports: [443/TCP]}
"""


def settings(folder: Path) -> Settings:
    return Settings(history=History(file=str(folder / "lib" / "history.db")))


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    """A policy with names and addresses is the same after a restart; its file is for root alone."""
    policy, problems = read_policy(TEXT, name="shop/web", namespace="shop", policy_namespace="egressd-system")
    assert policy is not None, problems
    LastGood(settings(tmp_path)).keep({policy.name: policy})
    assert LastGood(settings(tmp_path)).recall() == {policy.name: policy}
    assert (tmp_path / "lib" / FILE).stat().st_mode & 0o777 == 0o600
    elsewhere = replace(settings(tmp_path), policy_namespace="other")
    assert LastGood(elsewhere).recall() == {}


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version":1}', b"\xff" * 100, b"[" * 100_000])
def test_a_corrupt_file_is_as_good_as_none(tmp_path: Path, damage: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """Any octets give no policy and a line that says so."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / FILE).write_bytes(damage)
    assert LastGood(settings(tmp_path)).recall() == {}
    assert "are not taken over" in capfd.readouterr().err


def test_a_file_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    """Group or world may write it: ignored."""
    LastGood(settings(tmp_path)).keep({})
    (tmp_path / "lib" / FILE).chmod(0o666)
    assert LastGood(settings(tmp_path)).recall() == {}


def test_no_place_to_write(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where the folder cannot be made, the daemon goes on and says so."""
    (tmp_path / "lib").write_text("a file")
    LastGood(settings(tmp_path)).keep({})
    assert "cannot be kept" in capfd.readouterr().err
