"""The tools of .venv/tools, and the manifests as they reach a cluster: rendered by kubectl's own kustomize."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
TOOLS: Final = ROOT / ".venv" / "tools" / "bin"
OVERLAYS: Final = tuple(sorted(path.name for path in (DEPLOY / "overlays").iterdir()))
FOLDERS: Final = ("base", "uninstall", "samples", *(f"overlays/{name}" for name in OVERLAYS))
"""Everything that is meant to be applied."""

Manifest = dict[str, Any]


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one of the tools to its end."""
    program = TOOLS / name
    assert program.exists(), f"{program} is missing: run .ci/bootstrap dev"
    return subprocess.run([program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


@cache
def rendered(folder: str) -> str:
    """The text that `kubectl apply -k deploy/FOLDER` would send."""
    done = tool("kubectl", "kustomize", DEPLOY / folder)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def manifests(folder: str) -> list[Manifest]:
    """The same, read; a fresh copy each time."""
    return list(yaml.safe_load_all(rendered(folder)))


def one(found: list[Manifest], kind: str, name: str) -> Manifest:
    """The one manifest of that kind and name."""
    matching = [each for each in found if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    assert len(matching) == 1, f"{kind} {name}: {len(matching)} found"
    return matching[0]


def agent_spec(folder: str = "base") -> Manifest:
    """The pod spec of the daemon."""
    spec: Manifest = one(manifests(folder), "DaemonSet", "egressd")["spec"]["template"]["spec"]
    return spec


def agent(folder: str = "base") -> Manifest:
    """The daemon's container."""
    (container,) = agent_spec(folder)["containers"]
    found: Manifest = container
    return found


def variables(folder: str = "base") -> dict[str, str]:
    """The daemon's environment, as far as it is written out."""
    return {each["name"]: each["value"] for each in agent(folder)["env"] if "value" in each}
