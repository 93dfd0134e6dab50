"""`egressd check` and the command line around it, run as a program and inside the test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from egressd import __version__
from egressd.cli import SUMMARIES, main

ROOT = Path(__file__).parents[2]
GOOD = "allow: [{to: [api.example.com], ports: [443/TCP]}]\n"
CONFIGMAP = """\
kind: ConfigMap
metadata:
  name: web
  namespace: shop
  labels: {egressd.io/policy: "true"}
data:
  policy.yaml: |
    mode: enforce
"""


def run(*arguments: object, stdin: str | bytes | None = None) -> Result:
    """Run the command line, with stdout and stderr apart."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=stdin)


# --------------------------------------------------------------------------------------------- check


def test_the_samples_pass() -> None:
    """Exit code 0, nothing on stdout, a summary on stderr."""
    result = run("check", ROOT / "config" / "policies")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no errors, no warnings" in result.stderr


def test_errors_are_lines_with_places(tmp_path: Path) -> None:
    """FILE:LINE:COLUMN: severity: message, on stdout; exit code 1."""
    file = tmp_path / "web.yaml"
    file.write_text(CONFIGMAP)
    result = run("check", file)
    assert result.exit_code == 1
    assert result.stdout == f"{file}:8:11: error: 'enforce' is none of Enforce, Audit; did you mean 'Enforce'?\n"
    assert result.stderr == "0 valid policies in 1 file, 1 error, no warnings\n"


@pytest.mark.parametrize("output", ["json", "yaml"])
def test_data_for_editors(output: str, tmp_path: Path) -> None:
    """The same as a list of objects."""
    file = tmp_path / "web.yaml"
    file.write_text(CONFIGMAP)
    result = run("check", "-o", output, file)
    assert result.exit_code == 1
    [problem] = yaml.safe_load(result.stdout)
    assert problem == {
        "file": str(file),
        "line": 8,
        "column": 11,
        "severity": "error",
        "message": "'enforce' is none of Enforce, Audit; did you mean 'Enforce'?",
    }
    assert output != "json" or json.loads(result.stdout) == [problem]
    assert run("check", "-o", "json", ROOT / "config" / "policies").stdout == "[]\n"


def test_warnings_alone_pass(tmp_path: Path) -> None:
    """Exit code 0."""
    file = tmp_path / "web.yaml"
    file.write_text('allow: [{to: ["*.com"]}]\n')
    result = run("check", file)
    assert result.exit_code == 0
    assert f"{file}:1:15: warning: '*.com' covers everyone" in result.stdout
    assert "1 valid policy in 1 file, no errors, 1 warning" in result.stderr


def test_standard_input_is_a_file() -> None:
    """`-`, also for a bare document."""
    assert run("check", "-", stdin=GOOD).exit_code == 0
    result = run("check", "-", stdin="alow: []\n")
    assert result.exit_code == 1
    assert result.stdout == "<stdin>:1:1: error: unknown field 'alow'; did you mean 'allow'?\n"


def test_folders_are_searched(tmp_path: Path) -> None:
    """All manifests in them and below, but nothing hidden, and nothing else."""
    for name, text in {
        "a.yaml": GOOD,
        "sub/b.yml": GOOD,
        "sub/c.json": '{"alow": []}',
        "d.txt": "alow: []",
        ".git/e.yaml": "alow: []",
        "values.yaml": "replicas: 1",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    result = run("check", tmp_path)
    assert result.stdout.splitlines() == [
        f"{tmp_path}/sub/c.json:1:2: error: unknown field 'alow'; did you mean 'allow'?"
    ]
    assert "2 valid policies in 4 files" in result.stderr


def test_the_namespace_of_bare_policies_is_told(tmp_path: Path) -> None:
    """Namespace selectors are legal in the policy namespace, which is a setting."""
    policy = tmp_path / "p.yaml"
    policy.write_text("subject: {namespaceSelector: {}}\n")
    assert run("check", policy).exit_code == 1
    assert run("check", "-n", "egressd-system", policy).exit_code == 0
    config = tmp_path / "config"
    config.write_text("policy_namespace: guard\n")
    assert run("check", "-n", "egressd-system", "--config", config, policy).exit_code == 1
    assert run("check", "-n", "guard", "--config", config, policy).exit_code == 0


def test_files_without_policies_are_noticed(tmp_path: Path) -> None:
    """When they were named, since then a policy was expected; and ConfigMaps without the label."""
    file = tmp_path / "x.yaml"
    file.write_text("kind: Service\n")
    assert "there is no policy in it" in run("check", file).stdout
    assert run("check", tmp_path).stdout == ""
    file.write_text(CONFIGMAP.replace('"true"', '"yes"').replace("enforce", "Enforce"))
    result = run("check", file)
    assert result.exit_code == 0
    assert "will be ignored: it needs the label" in result.stdout


def test_a_policy_that_is_there_twice_is_noticed(tmp_path: Path) -> None:
    """Only one of them can be in force."""
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(CONFIGMAP.replace("enforce", "Enforce"))
    result = run("check", tmp_path)
    assert result.exit_code == 0
    assert f"policy shop/web is also at {tmp_path}/a.yaml:1" in result.stdout


def test_files_that_cannot_be_decoded_are_errors(tmp_path: Path) -> None:
    """With the octet."""
    file = tmp_path / "x.yaml"
    file.write_bytes(b"allow: \xff\n")
    result = run("check", file)
    assert result.exit_code == 1
    assert "octet 8 is not UTF-8" in result.stdout


def test_wrong_usage(tmp_path: Path) -> None:
    """Exit code 2: no file, a missing file, wrong settings."""
    assert run("check").exit_code == 2
    assert run("check", tmp_path / "missing.yaml").exit_code == 2
    config = tmp_path / "config"
    config.write_text("policy_namespace: A\n")
    result = run("check", "--config", config, tmp_path)
    assert result.exit_code == 2
    assert f"{config}:1:19: error: 'A' is not a namespace" in result.stderr


def test_the_schema_is_printed() -> None:
    """For editors."""
    result = run("check", "--schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["title"] == "egressd policy"


# -------------------------------------------------------------------------------------- command line


def test_help_lists_the_verbs_that_exist() -> None:
    """With a line each, and an example."""
    result = run("--help")
    assert result.exit_code == 0
    assert "Example: egressd check" in result.stdout
    folder = ROOT / "egressd" / "cli"
    for verb, summary in SUMMARIES.items():
        assert ((folder / f"{verb}.py").exists()) == (summary in result.stdout)


@pytest.mark.parametrize("verb", ["check", "explain"])
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    """interface.md, Command line."""
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"Example: egressd {verb}" in result.stdout


def test_near_verbs_are_suggested() -> None:
    """Exit code 2."""
    result = run("chek")
    assert result.exit_code == 2
    assert "Did you mean 'check'?" in result.stderr


def test_the_program_runs_as_a_module() -> None:
    """`python -m egressd`."""
    done = subprocess.run(
        [sys.executable, "-m", "egressd", "--version"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == f"egressd {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    """Neither pydantic nor yaml nor kubernetes nor pyroute2, so that it answers at once, and `run` stays small."""
    code = (
        "import sys\nfrom egressd.cli import main\nmain(['--help'], standalone_mode=False)\n"
        "import egressd.cli.check, egressd.cli.explain\n"
        "heavy = {'pydantic', 'yaml', 'publicsuffixlist', 'pyroute2', 'aiohttp', 'rich'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
