"""`egressd check`: everything that is wrong with policies, before a cluster sees them."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from egressd.cli import EXIT_NO
from egressd.cli._files import Source, print_data, read_all, settings_of, sources

if TYPE_CHECKING:
    from egressd.model import Policy
    from egressd.schema import Manifest, Problem

__all__ = ["command"]


@click.command("check", epilog="Example: egressd check config/policies; kubectl get cm -A -o yaml | egressd check -")
@click.argument("files", nargs=-1, metavar="FILE…")
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Settings file, for policy_namespace.")
@click.option("--namespace", "-n", default="default", show_default=True, help="Namespace of bare policy documents.")
@click.option("--output", "-o", type=click.Choice(["table", "json", "yaml"]), default="table", help="How to print.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of a policy document, and do nothing else.")
def command(files: tuple[str, ...], config: str | None, namespace: str, output: str, schema: bool) -> None:
    """Validate policies: documents, ConfigMaps, folders of them, or '-' for standard input.

    Prints FILE:LINE:COLUMN: error: what is wrong, and what to write instead. Exit code 1 if there is any error,
    0 with warnings alone.
    """
    from egressd.schema import has_errors, json_schema

    if schema:
        click.echo(json.dumps(json_schema(), indent=2))
        return
    if not files:
        raise click.UsageError("name a file or a folder, or '-' for standard input")
    checker = _Checker(settings_of(config).policy_namespace, namespace)
    for source, manifests, problems in read_all(sources(files)):
        checker.take(source, manifests, problems)
    if output == "table":
        for problem in checker.problems:
            click.echo(str(problem))
    else:
        print_data([problem._asdict() for problem in checker.problems], output)
    click.echo(checker.summary(), err=True)
    if has_errors(checker.problems):
        sys.exit(EXIT_NO)


class _Checker:
    """Gathers problems over all files, and notices policies that are there twice."""

    def __init__(self, policy_namespace: str, namespace: str) -> None:
        self.policy_namespace = policy_namespace
        self.namespace = namespace
        self.problems: list[Problem] = []
        self.places: dict[str, str] = {}
        self.files = 0
        self.bare = 0

    def take(self, source: Source, manifests: list[Manifest], problems: list[Problem]) -> None:
        """Judge the policies of one file."""
        from egressd.schema import Problem

        self.files += 1
        self.bare = 0
        known = len(self.places)
        found = list(problems)
        for manifest in manifests:
            policies, more, line, column = self._judge(source, manifest)
            found += more
            for name in policies:
                if first := self.places.get(name):
                    message = f"policy {name} is also at {first}; only one of them can be in force"
                    found.append(Problem(source.shown, line, column, "warning", message))
                self.places.setdefault(name, f"{source.shown}:{line}")
        if source.named and not found and len(self.places) == known:
            message = "there is no policy in it: neither a policy document nor a ConfigMap that holds one"
            found.append(Problem(source.shown, 0, 0, "warning", message))
        self.problems += sorted(found, key=lambda problem: (problem.line, problem.column))

    def _judge(self, source: Source, manifest: Manifest) -> tuple[dict[str, Policy], list[Problem], int, int]:
        from egressd.schema import BarePolicy, ConfigMapObject, bare_policy, check_configmap

        if isinstance(manifest, ConfigMapObject):
            policies, problems = check_configmap(manifest, self.policy_namespace)
            return policies, problems, manifest.line, manifest.column
        if not isinstance(manifest, BarePolicy):
            return {}, [], 0, 0
        self.bare += 1
        name = f"{self.namespace}/{source.stem}" + (f"[{self.bare}]" if self.bare > 1 else "")
        policy, problems = bare_policy(
            manifest, name=name, namespace=self.namespace, policy_namespace=self.policy_namespace
        )
        return ({name: policy} if policy else {}), problems, manifest.node.line, manifest.node.column

    def summary(self) -> str:
        """`5 valid policies in 2 files, 1 error, no warnings`."""
        errors = sum(problem.severity == "error" for problem in self.problems)
        counts = [_count(errors, "error"), _count(len(self.problems) - errors, "warning")]
        good = len(self.places)
        return f"{good} valid polic{'y' if good == 1 else 'ies'} in {_count(self.files, 'file')}, {', '.join(counts)}"


def _count(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
