"""`egressd explain`: the verdict for one pod and one destination, step by step; from the daemon, or from manifests."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click

from egressd.cli import EXIT_NO
from egressd.cli._daemon import Daemon, Refusal, daemon_options, output_option
from egressd.cli._files import print_data, read_all, settings_of, sources
from egressd.cli._table import table, width
from egressd.errors import EnvironmentProblem, InvalidName
from egressd.model import Subject, Verdict

if TYPE_CHECKING:
    from egressd.model import Policy
    from egressd.policy import Explanation, Judge
    from egressd.schema import PodObject
    from egressd.schema.target import Target
    from egressd.settings import Settings

__all__ = ["command", "told"]

WRONG: Final = (400, 404)
"""Statuses that say the question was wrong: no such pod, no destination."""
MOST: Final = 20
"""Grants and sharers in a table."""


@click.command(
    "explain",
    epilog="Example: egressd explain --pod shop/web-0 --to s3.example:443/tcp; "
    "without a daemon: … --policies policies/ --pods pods.yaml",
)
@click.option("--pod", required=True, metavar="NS/NAME", help="The pod that asks.")
@click.option("--to", required=True, metavar="NAME-or-IP[:PORT[/PROTO]]", help="Where to; IPv6 as [2001:db8::1]:443.")
@click.option("--policies", multiple=True, metavar="PATH", help="Offline: policies, file or folder; may be repeated.")
@click.option("--pods", multiple=True, metavar="PATH", help="Offline: Pods and Namespaces; may be repeated.")
@daemon_options
@output_option
def command(
    daemon: Daemon, config: str | None, output: str, pod: str, to: str, policies: tuple[str, ...], pods: tuple[str, ...]
) -> None:
    """Say whether a pod may reach a destination, and which policy and rule decided.

    Asks the running daemon, which knows the live grants and what the name led to, too; with --policies and --pods it
    answers from files, and --config then says what is inside the cluster. Without a port: some port. Without a
    protocol: TCP. A bare policy document counts as one of the pod's namespace. Exit code 0 if the destination is
    allowed (also where an Audit policy would deny it), 1 if it is denied.
    """
    if bool(policies) != bool(pods):
        raise click.UsageError("answering from files takes both --policies PATH and --pods PATH")
    verdict = _offline(pod, to, policies, pods, config, output) if policies else _online(daemon, pod, to, output)
    if verdict not in {Verdict.ALLOWED, Verdict.WOULD_DENY}:
        sys.exit(EXIT_NO)


# ------------------------------------------------------------------------------------------------------ online


def _online(daemon: Daemon, pod: str, to: str, output: str) -> str:
    try:
        answer = daemon.get("/api/v1/explain", pod=pod, to=to)
    except EnvironmentProblem as problem:
        remedy = f"{problem.remedy}; or answer from files, with --policies PATH and --pods PATH"
        raise EnvironmentProblem(problem.message, remedy) from None
    except Refusal as refusal:
        if refusal.status not in WRONG:
            raise
        raise click.UsageError(refusal.message) from None
    if output == "table":
        for line in told(answer, width()):
            click.echo(line)
    else:
        print_data(answer, output)
    return str(answer["verdict"])


def told(answer: dict[str, Any], columns: int) -> Iterator[str]:
    """The daemon's answer as text: the steps, what is open now, who else knows the addresses, and what to write."""
    for number, step in enumerate(answer["steps"], 1):
        yield from textwrap.wrap(f"{number:2}. {step}", columns, subsequent_indent="    ", break_long_words=False)
    yield ""
    grants, shared, allow = answer["grants"], answer["shared"], answer["allow"]
    alive = [(each["name"], each["address"], each["ports"], f"{each['remaining_s']:.0f} s") for each in grants[:MOST]]
    yield from table(("GRANT", "ADDRESS", "PORTS", "LEFT"), alive, columns) or ["no grant is alive"]
    if len(grants) > MOST:
        yield f"… and {len(grants) - MOST} more (-o json shows all)"
    if shared:
        yield ""
        rows = [(each["address"], each["pod"], ", ".join(each["names"])) for each in shared[:MOST]]
        yield from table(("SHARED ADDRESS", "POD", "KNOWN AS"), rows, columns)
    if allow:
        yield ""
        yield from ([f"to allow it ({allow['note']}):", f"  {allow['yaml']}"] if allow["yaml"] else [allow["note"]])


# ----------------------------------------------------------------------------------------------------- offline


def _offline(
    pod: str, to: str, policies: tuple[str, ...], pods: tuple[str, ...], config: str | None, output: str
) -> str:
    from egressd.schema.target import parse_target

    try:
        target = parse_target(to)
    except (ValueError, InvalidName) as error:
        raise click.BadParameter(str(error), param_hint="--to") from None
    world = _World(settings_of(config), pod.partition("/")[0])
    world.read([*policies, *pods])
    explanation = world.explain(pod, target)
    _print(explanation, output)
    return explanation.decision.verdict


def _print(explanation: Explanation, output: str) -> None:
    decision = explanation.decision
    if output == "table":
        for number, step in enumerate(explanation.steps, 1):
            click.echo(f"{number:2}. {step}")
        return
    data: dict[str, Any] = {
        "verdict": str(decision.verdict),
        "reason": str(decision.reason),
        "policy": decision.policy,
        "rule": decision.rule,
        "steps": list(explanation.steps),
        "grants": [],
    }
    print_data(data, output)


@dataclass(slots=True)
class _World:
    """What the manifests say: policies, pods, namespaces."""

    settings: Settings
    namespace: str
    policies: dict[str, Policy] = field(default_factory=dict)
    pods: dict[str, PodObject] = field(default_factory=dict)
    namespaces: dict[str, dict[str, str]] = field(default_factory=dict)

    def read(self, paths: Iterable[str]) -> None:
        """Take in all files; what is wrong goes to stderr, and what is refused plays no part."""
        from egressd.schema import BarePolicy, ConfigMapObject, NamespaceObject, PodObject, bare_policy, policies_of

        where = self.settings.policy_namespace
        for source, manifests, problems in read_all({found.shown: found for found in sources(paths)}.values()):
            said = list(problems)
            for manifest in manifests:
                if isinstance(manifest, ConfigMapObject):
                    policies, more, _ = policies_of(manifest, where)
                    self.policies |= policies
                    said += more
                elif isinstance(manifest, BarePolicy):
                    name = f"{self.namespace}/{source.stem}"
                    policy, more = bare_policy(manifest, name=name, namespace=self.namespace, policy_namespace=where)
                    self.policies |= {name: policy} if policy else {}
                    said += more
                elif isinstance(manifest, PodObject):
                    self.pods[str(manifest.identity)] = manifest
                elif isinstance(manifest, NamespaceObject):
                    self.namespaces[manifest.name] = dict(manifest.labels)
            for problem in said:
                click.echo(str(problem), err=True)

    def explain(self, pod: str, target: Target) -> Explanation:
        """Explain the verdict for a pod of this world. Raises `UsageError` for one that is not in it."""
        from egressd.policy import ClusterFacts, Judge, select

        found = self.pods.get(pod)
        if found is None:
            known = ", ".join(sorted(self.pods)[:5]) or "none"
            raise click.BadParameter(f"no pod {pod!r} in the files; there is {known}", param_hint="--pod")
        settings, identity = self.settings, found.identity
        chosen = select(
            self.policies.values(),
            identity.namespace,
            self.namespaces.get(identity.namespace, {}),
            found.labels,
            identity.service_account,
            settings.policy_namespace,
        )
        facts = ClusterFacts(settings.cluster_cidrs, settings.cluster_domains, settings.in_cluster == "Enforce")
        return _explained(Judge(Subject(chosen), facts), target, found.host_network)


_HOST_NETWORK: Final = "the pod uses the node's network (hostNetwork), and is never filtered"


def _explained(judge: Judge, target: Target, host_network: bool) -> Explanation:
    from egressd.policy import UNSELECTED, Explanation
    from egressd.policy.narrow import narrowed

    if host_network:
        return Explanation(UNSELECTED, (_HOST_NETWORK, "verdict: allowed (unselected)"))
    if target.name is None:
        return judge.explain_address(target.address, target.protocol, target.port)
    whole = judge.explain_name(target.name)
    return narrowed(judge, whole, target.protocol, target.port) if target.asked else whole
