"""The last good version of a policy on disk: what is kept, and what is not believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from egressd.control import lastgood
from egressd.control.lastgood import FILE, LastGood
from egressd.control.world import World, digest
from egressd.schema import POLICY_LABEL, ConfigMapObject, Problem, manifest, read_policy
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
    LastGood(settings(tmp_path)).keep({policy.name: policy}, {})
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
    LastGood(settings(tmp_path)).keep({}, {})
    (tmp_path / "lib" / FILE).chmod(0o666)
    assert LastGood(settings(tmp_path)).recall() == {}


def test_no_place_to_write(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where the folder cannot be made, the daemon goes on and says so."""
    (tmp_path / "lib").write_text("a file")
    LastGood(settings(tmp_path)).keep({}, {})
    assert "cannot be kept" in capfd.readouterr().err


def test_the_same_text_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start takes a policy from memory where its document is the very text; an edit of it is read."""
    text = TEXT.strip()
    configmap = ConfigMapObject("shop", "web", {POLICY_LABEL: "true"}, {"policy.yaml": text})
    world = World(settings(tmp_path))
    world.replace({"a": [configmap]})
    LastGood(settings(tmp_path)).keep(world.policies, world.texts)
    again = LastGood(settings(tmp_path))
    memory = again.recall()
    read: list[str] = []

    def reading(text: str, **_: object) -> tuple[None, list[Problem]]:
        read.append(text)
        return None, []

    monkeypatch.setattr(manifest, "read_policy", reading)
    started = World(settings(tmp_path), memory, again.texts)
    started.replace({"a": [configmap]})
    started.forget()
    assert (started.policies, dict(started.texts), read) == (world.policies, dict(world.texts), [])
    started.replace({"a": [replace(configmap, data={"policy.yaml": text + "\n# edited"})]})
    assert read == [text + "\n# edited"]


def test_another_program_reads_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An upgrade may read a text otherwise: only the last good versions are taken over."""
    policy, _ = read_policy(TEXT, name="shop/web", namespace="shop", policy_namespace="egressd-system")
    assert policy is not None
    LastGood(settings(tmp_path)).keep({policy.name: policy}, {policy.name: digest(TEXT)})
    monkeypatch.setattr(lastgood, "_reader", lambda: "another")
    other = LastGood(settings(tmp_path))
    assert (other.recall(), dict(other.texts)) == ({policy.name: policy}, {})
