"""`egressd convert`: other projects' policies with domain names into egressd's, and what could not be carried over."""

from __future__ import annotations

import sys
from collections import Counter

import click

from egressd.cli import EXIT_NO
from egressd.cli._files import settings_of, sources

__all__ = ["command"]


@click.command(
    "convert",
    epilog="Example: egressd convert cilium/ > policies.yaml; egressd check policies.yaml; "
    "kubectl get cnp -A -o yaml | egressd convert -",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("--strict", is_flag=True, help="Exit code 1 if anything could not be carried over as it was.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Settings file, for policy_namespace.")
def command(files: tuple[str, ...], strict: bool, config: str | None) -> None:
    """Turn other projects' policies into egressd's, as ConfigMaps on stdout.

    Reads CiliumNetworkPolicy (and Clusterwide), Calico's NetworkPolicy and GlobalNetworkPolicy with domains, Antrea's
    FQDN rules, GKE's FQDNNetworkPolicy, OVN's EgressFirewall and Kubernetes' ClusterNetworkPolicy. What could not be
    carried over, or means something else here, is told on stderr with file and line and in comments; a rule that
    would open more without what is lost is left out. Exit code 0 also with warnings, 1 with --strict; 1 if a file
    cannot be read.
    """
    from egressd.authoring import comment, page_text
    from egressd.authoring.convert import convert

    policy_namespace = settings_of(config).policy_namespace
    taken: set[tuple[str, str]] = set()
    told: Counter[str] = Counter()
    for source in sources(files):
        try:
            source_text = source.read().decode()
        except (OSError, UnicodeDecodeError) as error:
            click.echo(f"{source.shown}: error: cannot be read: {error}", err=True)
            told["error"] += 1
            continue
        pages, remarks = convert(source_text, source.shown, policy_namespace, taken)
        for page in pages:
            click.echo(page_text(page), nl=False)
        written = {text for page in pages for text in page.said}
        for remark in remarks:
            told[remark.severity] += 1
            if (text := f"{source.shown}:{remark.line}: {remark.message}") not in written:
                click.echo(f"# {comment(text)}")
            click.echo(f"{source.shown}:{remark.line}: {remark.severity}: {remark.message}", err=True)
    click.echo(_summary(len(taken), told["warning"]), err=True)
    if told["error"] or (strict and told["warning"]):
        sys.exit(EXIT_NO)


def _summary(policies: int, warnings: int) -> str:
    ending = "" if warnings == 1 else "s"
    return f"{policies or 'no'} polic{'y' if policies == 1 else 'ies'}, {warnings or 'no'} warning{ending}"
