"""`egressd suggest`: from what was seen, the smallest readable policy per workload, ready to apply."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from egressd.cli import EXIT_NO
from egressd.cli._daemon import Daemon, daemon_options
from egressd.cli._files import settings_of
from egressd.cli._inside import cluster_facts
from egressd.cli._past import from_option, seen_in
from egressd.cli._pods import labelled, pods_option
from egressd.cli._records import audit_option, since_option

if TYPE_CHECKING:
    from egressd.authoring import Evidence

__all__ = ["command"]


@click.command(
    "suggest",
    epilog="Example: egressd suggest --namespace shop --since 7d --audit audit.jsonl > shop.yaml; "
    "egressd check shop.yaml; egressd simulate shop.yaml --audit audit.jsonl; kubectl apply -f shop.yaml",
)
@click.option("--namespace", "-n", default="", metavar="NAMESPACE", help="Workloads of one namespace.")
@since_option
@audit_option
@from_option
@click.option("--fold", type=click.IntRange(min=2), default=None, metavar="N", help="N siblings become a wildcard.")
@click.option("--include-denied", is_flag=True, help="Allow what was denied, too.")
@click.option("--mode", type=click.Choice(["Enforce", "Audit"]), default="Enforce", show_default=True)
@pods_option
@daemon_options
def command(
    *,
    namespace: str,
    since: float,
    audit: tuple[str, ...],
    source: str,
    fold: int | None,
    include_denied: bool,
    mode: str,
    pods: tuple[str, ...],
    daemon: Daemon,
    config: str | None,
) -> None:
    """Write a policy for each workload of the audit records, as ConfigMaps on stdout.

    What went through is allowed, by name where there was one, with its ports where flow records tell all of them.
    Names inside the cluster (as --config or the running daemon says), search-list noise, names that do not exist and
    what was denied are left out. A policy selects by the labels that tell the workload from the others of its
    namespace, as far as --pods or the running daemon knows its pods, for records hold no labels; else by service
    account. Wildcards only with --fold, never over a public suffix. Exit code 1 if there is nothing to suggest.
    """
    from egressd.authoring import Evidence, Wanted, gathered, page_text, suggest

    settings = settings_of(config)
    facts = cluster_facts(settings, config, daemon)
    evidence = Evidence(facts, denied=include_denied, namespace=namespace)
    for seen in seen_in(source, daemon, audit, settings.audit.file, since):
        evidence.add(seen)
    known = gathered(labelled(pods, daemon).pods)
    wanted = Wanted(fold or 0, "Audit" if mode == "Audit" else "", settings.policy_namespace, known)
    written = 0
    for page in suggest(evidence, wanted):
        written += 1
        click.echo(page_text(page), nl=False)
    _tell(evidence, written)
    if not written:
        sys.exit(EXIT_NO)


def _tell(evidence: Evidence, written: int) -> None:
    """On stderr: what was made, and what was left out of it."""
    silent = [f"{one.namespace} {one.name}" for one in evidence.workloads.values() if not (one.names or one.addresses)]
    policies = f"{written or 'no'} polic{'y' if written == 1 else 'ies'}"
    click.echo(
        f"{policies} for {len(evidence.workloads)} workload{'' if len(evidence.workloads) == 1 else 's'}", err=True
    )
    if silent:
        click.echo(f"nothing outside the cluster was seen of {', '.join(sorted(silent))}", err=True)
    for why, number in sorted(evidence.left_out.items()):
        click.echo(f"left out: {number:,} records {why}", err=True)
