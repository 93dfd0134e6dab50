"""The project's own files agree: version, locks, entry points, samples, README; and none tells of a machine."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import egressd

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("requirements.lock", "requirements-dev.lock")

NOT_OURS = {".git", ".venv", "build", "dist", "__pycache__"}
"""Folders of a checkout that hold nothing of the project; so do the tools' own `.NAME_cache` and `.hypothesis`."""


def files(folder: Path = ROOT) -> Iterator[Path]:
    """Every file below `folder` that a commit could take."""
    for entry in sorted(folder.iterdir()):
        if entry.name in NOT_OURS or re.fullmatch(r"\..*_cache|\.hypothesis|.*\.egg-info", entry.name):
            continue
        if entry.is_dir() and not entry.is_symlink():
            yield from files(entry)
        elif entry.is_file():
            yield entry


def locked(name: str) -> dict[str, tuple[str, str]]:
    """Of each package of a lock file: its version, and the text that belongs to it."""
    parts = re.split(r"^(?=[a-zA-Z0-9])", (ROOT / name).read_text(), flags=re.MULTILINE)[1:]
    pins = [(re.match(r"([\w.-]+)==(\S+)", part), part) for part in parts]
    return {canonicalize_name(pin[1]): (pin[2], part) for pin, part in pins if pin}


def requirements(profile: str) -> list[Requirement]:
    """What pyproject.toml asks for: the runtime and build requirements, and for the dev lock those of `dev` too."""
    project = PYPROJECT["project"]
    texts = [*PYPROJECT["build-system"]["requires"], *project["dependencies"]]
    if profile == "requirements-dev.lock":
        texts += project["optional-dependencies"]["dev"]
    return [Requirement(text) for text in texts]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Ask make about the Makefile, without doing anything."""
    return subprocess.run(
        ["make", "--no-print-directory", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_version_is_said_once() -> None:
    """The package and pyproject.toml give the same version."""
    assert egressd.__version__ == PYPROJECT["project"]["version"]


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_covers_the_requirements(lock: str) -> None:
    """Each requirement of pyproject.toml is pinned to a version that it allows."""
    pins = locked(lock)
    for requirement in requirements(lock):
        version, _ = pins.get(canonicalize_name(requirement.name), ("", ""))
        assert version, f"{requirement} is not in {lock}: run `make lock`"
        assert requirement.specifier.contains(version), f"{lock} has {version} for {requirement}: run `make lock`"


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_is_pinned_by_hash(lock: str) -> None:
    """Every line of a lock is a pin with hashes, a hash or a comment, so that nothing else can be installed."""
    for line in (ROOT / lock).read_text().splitlines():
        assert re.fullmatch(r"#.*| +#.*|[\w.-]+==\S+( ; .*)? \\| +--hash=sha256:[0-9a-f]{64}( \\)?", line), line
    for name, (_, text) in locked(lock).items():
        assert "--hash=sha256:" in text, f"{lock} has no hash for {name}"


def test_locks_agree() -> None:
    """The development lock holds all of the runtime lock, in the same versions."""
    runtime, development = (locked(lock) for lock in LOCKS)
    assert {name: pin for name, (pin, _) in runtime.items()}.items() <= {
        name: pin for name, (pin, _) in development.items()
    }.items()


def test_requirements_are_bounded() -> None:
    """A runtime requirement has a lower and an upper bound: a new major version is a decision."""
    for text in PYPROJECT["project"]["dependencies"]:
        operators = {specifier.operator for specifier in Requirement(text).specifier}
        assert ">=" in operators, text
        assert operators & {"<", "<=", "=="}, text


@pytest.mark.parametrize("name", sorted(PYPROJECT["project"]["scripts"]))
def test_entry_point_loads(name: str) -> None:
    """What the installed program of that name calls exists."""
    module, _, attribute = PYPROJECT["project"]["scripts"][name].partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_no_file_names_a_machine_or_a_registry() -> None:
    """Nothing in the checkout depends on, or tells of, the machine it was made on or the hosts it was fetched from."""
    traces = [
        r"(?<![\w.])/(?:work|opt|home|root)/(?:main|shared|brief|pypi|wheels|\.\w+)",
        r"/tmp/(?:brief|bash_jobs)",
        r"pypi" + r"\.org|python" + r"hosted\.org|deb\.debian" + r"\.org|npm" + r"js\.org",
        r"--(?:extra-)?index" + r"-url|--find" + r"-links",
    ]
    pattern = re.compile("|".join(traces))
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in files()
        if path != Path(__file__).resolve() and (match := pattern.search(path.read_bytes().decode("latin-1")))
    ]
    assert not found


def test_license_is_the_one_declared() -> None:
    """LICENSE holds the Apache License 2.0 whole, as pyproject.toml declares."""
    text = (ROOT / "LICENSE").read_text()
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_default_settings_file_is_valid() -> None:
    """config/egressd.yaml, the commented default, is accepted and says what egressd assumes without it."""
    schema = importlib.import_module("egressd.schema")
    environ = {"NODE_NAME": "n1"}
    assert schema.load_settings(str(ROOT / "config/egressd.yaml"), environ, {}) == schema.load_settings(
        None, environ, {}
    )


def test_every_target_explains_itself() -> None:
    """`make` alone lists the targets that a person calls."""
    shown = make().stdout
    for target in ("demo", "test", "lint", "fmt", "bench", "lock", "clean"):
        assert re.search(rf"^make {target} ", shown, re.MULTILINE), shown


def test_commands_of_the_readme_exist() -> None:
    """Each `make TARGET` of the README is a target, and each `egressd VERB` a verb."""
    readme = (ROOT / "README.md").read_text()
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", readme, re.DOTALL))
    targets = set(re.findall(r"\bmake ([a-z]+)\b", code))
    assert {"demo", "test"} <= targets
    for target in sorted(targets):
        done = make("--dry-run", target)
        assert done.returncode == 0, f"make {target}: {done.stderr}"
    cli = importlib.import_module("egressd.cli")
    for verb in sorted(set(re.findall(r"(?:^|[`$ /])egressd ([a-z]+)\b", code, re.MULTILINE))):
        assert verb in cli.main.commands, f"README shows `egressd {verb}`"


@pytest.mark.parametrize("script", [".ci/run", ".ci/bootstrap"])
def test_scripts_stop_at_the_first_failure(script: str) -> None:
    """The shell scripts are executable, well-formed, and end when a step fails."""
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    assert "\nset -euo pipefail\n" in path.read_text()
    subprocess.run(["bash", "-n", str(path)], check=True)
