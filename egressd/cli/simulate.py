"""`egressd simulate`: recorded queries and flows, judged by policies that are not yet applied."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import click

from egressd.cli import EXIT_NO
from egressd.cli._daemon import Daemon, daemon_options, output_option
from egressd.cli._files import print_data, read_all, settings_of, sources
from egressd.cli._inside import cluster_facts
from egressd.cli._past import from_option, seen_in
from egressd.cli._pods import labelled, pods_option
from egressd.cli._records import audit_option, since_option
from egressd.cli._table import table, width

if TYPE_CHECKING:
    from egressd.authoring import Known, Outcome, Replay
    from egressd.model import Policy
    from egressd.schema import Manifest, Problem

__all__ = ["command"]

BY_NAME: Final = "history keeps no addresses: flows under a name were judged by the name alone (--audit FILE has both)"
MOST: Final = 20
"""Examples of each kind of change in a table."""


@click.command(
    "simulate",
    epilog="Example: egressd simulate policies/ --audit audit.jsonl --pods pods.yaml "
    "(kubectl get pods,ns -A -o yaml > pods.yaml)",
)
@click.argument("policies", nargs=-1, required=True, metavar="POLICY…")
@audit_option
@from_option
@pods_option
@since_option
@click.option("--enforce", is_flag=True, help="Judge policies in Audit mode as if they were enforced.")
@click.option("--namespace", "-n", default="default", show_default=True, help="Namespace of bare policy documents.")
@daemon_options
@output_option
def command(
    *,
    policies: tuple[str, ...],
    audit: tuple[str, ...],
    source: str,
    pods: tuple[str, ...],
    since: float,
    enforce: bool,
    namespace: str,
    daemon: Daemon,
    config: str | None,
    output: str,
) -> None:
    """Replay audit records against policies: what would newly be denied, or newly be allowed.

    The policies given are all that count, so name those that stay in force, too. Records hold no labels: --pods
    gives them, or the running daemon; of a pod that neither knows, a policy's podSelector is taken to match, with a
    warning. --config, or the daemon, says what is inside the cluster. Records of pods that none of the policies
    selects are counted and not compared; so are search-list noise and names that do not exist. Exit code 1 if
    anything that went through would be denied, or if a policy is invalid.
    """
    from egressd.authoring import Change, Replay
    from egressd.model import Mode

    settings = settings_of(config)
    found = _policies(policies, namespace, settings.policy_namespace)
    if enforce:
        found = [replace(policy, mode=Mode.ENFORCE) for policy in found]
    facts = cluster_facts(settings, config, daemon)
    replay = Replay(found, facts, _known(pods, daemon), settings.policy_namespace)
    for seen in seen_in(source, daemon, audit, settings.audit.file, since):
        replay.add(seen)
    if source == "history":
        click.echo(BY_NAME, err=True)
    if output == "table":
        for line in _told(replay):
            click.echo(line)
    else:
        print_data(_data(replay), output)
    for warning in _warnings(replay):
        click.echo(f"warning: {warning}", err=True)
    if replay.counts[Change.NEWLY_DENIED]:
        sys.exit(EXIT_NO)


def _policies(paths: tuple[str, ...], namespace: str, policy_namespace: str) -> list[Policy]:
    """The policies in the files; problems go to stderr, and any error ends it: half a set proves nothing."""
    from egressd.schema import has_errors

    found: dict[str, Policy] = {}
    said: list[Problem] = []
    for source, manifests, problems in read_all(sources(paths)):
        said += problems
        for number, manifest in enumerate(manifests):
            name = f"{namespace}/{source.stem}" + (f"[{number + 1}]" if number else "")
            policies, more = _policies_of(manifest, name, policy_namespace)
            found |= policies
            said += more
    for problem in said:
        click.echo(str(problem), err=True)
    if has_errors(said):
        click.echo("nothing was replayed: correct the policies first", err=True)
        sys.exit(EXIT_NO)
    if not found:
        raise click.UsageError("there is no policy in these files")
    return list(found.values())


def _policies_of(manifest: Manifest, name: str, policy_namespace: str) -> tuple[dict[str, Policy], list[Problem]]:
    """The policies of one object; `name` is what a bare document is called."""
    from egressd.schema import BarePolicy, ConfigMapObject, bare_policy, check_configmap

    if isinstance(manifest, ConfigMapObject):
        return check_configmap(manifest, policy_namespace)
    if not isinstance(manifest, BarePolicy):
        return {}, []
    namespace = name.partition("/")[0]
    policy, problems = bare_policy(manifest, name=name, namespace=namespace, policy_namespace=policy_namespace)
    return ({name: policy} if policy else {}), problems


def _known(paths: tuple[str, ...], daemon: Daemon) -> Known:
    """The labels of pods and namespaces."""
    from egressd.authoring import Known

    found = labelled(paths, daemon)
    workloads: dict[tuple[str, str], Mapping[str, str]] = {}
    for identity, labels in found.pods:
        if identity.workload:
            workloads.setdefault((identity.namespace, identity.workload), labels)
    return Known({str(identity): labels for identity, labels in found.pods}, workloads, found.namespaces)


# --------------------------------------------------------------------------------------------- printing


def _told(replay: Replay) -> Iterator[str]:
    """The counts, then the most frequent changes of each kind."""
    from egressd.authoring import Change

    rows = [(change.value, f"{replay.counts[change]:,}") for change in Change]
    yield from table(("RECORDS", "COUNT"), rows, width())
    for change in Change:
        found = [(outcome, count) for outcome, count in replay.changes.most_common() if outcome.change is change]
        if not found:
            continue
        yield ""
        shown = [
            (str(count), f"{one.namespace} {one.workload}", one.destination, one.before, _after(one))
            for one, count in found[:MOST]
        ]
        head = (change.value.upper(), "WORKLOAD", "DESTINATION", "BEFORE", "AFTER")
        yield from table(head, shown, width())
        if len(found) > MOST:
            yield f"… and {len(found) - MOST} more (-o json shows all)"


def _after(outcome: Outcome) -> str:
    rule = f' "{outcome.rule}" of {outcome.policy}' if outcome.policy else ""
    return f"{outcome.after} ({outcome.reason}{rule})"


def _data(replay: Replay) -> dict[str, Any]:
    """For `-o json`: counts by kind of change, and every change, the most frequent first."""
    from egressd.authoring import Change

    changes = [{**_fields(outcome), "count": count} for outcome, count in replay.changes.most_common()]
    counts = {_key(change.value): replay.counts[change] for change in Change}
    return {"counts": counts, "changes": changes, "warnings": list(_warnings(replay))}


def _fields(outcome: Outcome) -> dict[str, str]:
    return {**outcome._asdict(), "change": _key(outcome.change.value)}


def _key(text: str) -> str:
    return text.replace(" ", "_").replace("-", "_")


def _warnings(replay: Replay) -> Iterator[str]:
    if replay.guessed:
        pods = ", ".join(sorted(replay.guessed)[:5]) + (" …" if len(replay.guessed) > 5 else "")
        yield (
            f"the labels of {len(replay.guessed)} pods are not known ({pods}): policies with a podSelector were taken "
            "to select them, by namespace and service account alone; give their manifests with --pods"
        )
    if replay.dropped:
        yield f"{replay.dropped:,} queries have no record of their own: they could not be replayed"
    if not sum(replay.counts.values()):
        yield "there was no record to replay"
