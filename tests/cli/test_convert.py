"""`egressd convert`: ConfigMaps on stdout, remarks on stderr and in comments, exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from egressd.cli import main

POLICY = """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  endpointSelector: {matchLabels: {app: web}}
  egress:
  - toFQDNs:
    - matchName: api.example.com
    - matchPattern: "api-*.example.com"
    toPorts: [{ports: [{port: "443", protocol: TCP}]}]
"""


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "web.yaml").write_text(POLICY)
    return tmp_path / "web.yaml"


def test_a_policy_and_what_it_lost(file: Path, tmp_path: Path) -> None:
    """Golden; the line of the source on stderr; exit code 0; and it passes `check`."""
    result = run("convert", file)
    assert result.exit_code == 0
    assert f"{file}:9: warning: 'api-*.example.com' is not carried over" in result.stderr
    assert "1 policy, 1 warning\n" in result.stderr
    assert f"# {file}:9: 'api-*.example.com'" in result.stdout
    assert result.stdout.endswith("""\
    subject:
      podSelector:
        matchLabels:
          app: web
    allow:
    - to:
      - api.example.com
      ports: [443/TCP]
""")
    (tmp_path / "out.yaml").write_text(result.stdout)
    checked = run("check", tmp_path / "out.yaml")
    assert (checked.exit_code, checked.stdout) == (0, "")


def test_strict(file: Path) -> None:
    """Exit code 1 where anything was lost, 0 where nothing was."""
    assert run("convert", "--strict", file).exit_code == 1
    file.write_text(POLICY.replace('    - matchPattern: "api-*.example.com"\n', ""))
    assert run("convert", "--strict", file).exit_code == 0


def test_what_is_refused_whole_leaves_a_comment() -> None:
    """On stdout too, where no policy is left to hold it."""
    result = run("convert", "-", stdin="apiVersion: v1\nkind: Service\n")
    assert result.exit_code == 0
    assert result.stdout == "# <stdin>:1: Service of v1 is not converted: it is none of the known policies\n"
    assert "no policies, 1 warning" in result.stderr


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Exit code 1 for no text, 2 for no file."""
    (tmp_path / "bad.yaml").write_bytes(b"\xff")
    assert run("convert", tmp_path / "bad.yaml").exit_code == 1
    assert run("convert", tmp_path / "none.yaml").exit_code == 2
