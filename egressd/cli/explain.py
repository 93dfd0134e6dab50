"""`egressd explain`: the verdict for one pod and one destination, step by step, from manifests alone."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

import click

from egressd.cli import EXIT_NO
from egressd.cli._files import print_data, read_all, settings_of, sources
from egressd.errors import EnvironmentProblem, InvalidName
from egressd.model import PROTOCOLS, Reason, Subject, Verdict
from egressd.names import Name, parse_name

if TYPE_CHECKING:
    from egressd.model import Policy
    from egressd.policy import Explanation, Judge
    from egressd.schema import PodObject
    from egressd.settings import Settings

__all__ = ["Target", "command", "parse_target"]

_TARGET: Final = re.compile(
    r"(?:\[(?P<v6>[^\]]*)\]|(?P<host>[^\[\]:/]*))(?::(?P<port>[0-9]{1,5}|\*))?(?:/(?P<protocol>[A-Za-z0-9]+))?\Z"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A destination as asked for: a name or a packed address, a port (-1: some port) and a protocol number."""

    name: Name | None
    address: bytes
    port: int
    protocol: int
    asked: bool
    """Whether a port or a protocol was given at all."""


def parse_target(text: str) -> Target:
    """Read NAME-or-IP[:PORT[/PROTO]]; IPv6 with a port goes in brackets. Raises `ValueError`, `InvalidName`."""
    from egressd.schema import read_address

    if text.count(":") > 1 and not text.startswith("["):
        return Target(None, read_address(text), -1, PROTOCOLS["TCP"][0], asked=False)
    found = _TARGET.match(text)
    if not found or not (found["v6"] or found["host"]):
        raise ValueError(f"{text!r} is no destination; write NAME-or-IP[:PORT[/PROTO]], IPv6 as [2001:db8::1]:443/tcp")
    host = found["v6"] or found["host"]
    port = -1 if found["port"] in {None, "*"} else int(found["port"])
    if port == 0 or port > 65535:
        raise ValueError(f"port {port} does not exist; ports are 1 to 65535")
    asked = port >= 0 or found["protocol"] is not None
    if found["v6"] or re.fullmatch("[0-9.]+", host):
        address = read_address(host)
        return Target(None, address, port, _protocol(found["protocol"], len(address) == 16), asked)
    return Target(parse_name(host), b"", port, _protocol(found["protocol"], six=False), asked)


def _protocol(text: str | None, six: bool) -> int:
    upper = (text or "TCP").upper()
    if upper not in PROTOCOLS:
        raise ValueError(f"protocol {text!r} is none of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[upper][-1 if six else 0]


# ---------------------------------------------------------------------------------------------- the verb


@click.command(
    "explain",
    epilog="Example: egressd explain --pod shop/web-0 --to s3.example:443/tcp --policies policies/ --pods pods.yaml",
)
@click.option("--pod", required=True, metavar="NS/NAME", help="The pod that asks.")
@click.option("--to", required=True, metavar="NAME-or-IP[:PORT[/PROTO]]", help="Where to; IPv6 as [2001:db8::1]:443.")
@click.option("--policies", multiple=True, metavar="PATH", help="Policies: file or folder; may be repeated.")
@click.option("--pods", multiple=True, metavar="PATH", help="Pods and Namespaces: file or folder; may be repeated.")
@click.option("--config", type=click.Path(exists=True, dir_okay=False), help="Settings file, for what is in-cluster.")
@click.option("--output", "-o", type=click.Choice(["table", "json", "yaml"]), default="table", help="How to print.")
def command(
    pod: str, to: str, policies: tuple[str, ...], pods: tuple[str, ...], config: str | None, output: str
) -> None:
    """Say whether a pod may reach a destination, and which policy and rule decided.

    Without a port: some port. Without a protocol: TCP. A bare policy document counts as one of the pod's namespace.
    Exit code 0 if the destination is allowed (also where an Audit policy would deny it), 1 if it is denied.
    """
    if not policies or not pods:
        raise EnvironmentProblem(
            "no daemon to ask: this version has no admin socket yet",
            "answer from files instead, with --policies PATH and --pods PATH",
        )
    try:
        target = parse_target(to)
    except (ValueError, InvalidName) as error:
        raise click.BadParameter(str(error), param_hint="--to") from None
    settings = settings_of(config)
    world = _World(settings, pod.partition("/")[0])
    world.read([*policies, *pods])
    explanation = world.explain(pod, target)
    _print(explanation, output)
    if explanation.decision.verdict not in {Verdict.ALLOWED, Verdict.WOULD_DENY}:
        sys.exit(EXIT_NO)


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

    if host_network:
        return Explanation(UNSELECTED, (_HOST_NETWORK, "verdict: allowed (unselected)"))
    if target.name is None:
        return judge.explain_address(target.address, target.protocol, target.port)
    whole = judge.explain_name(target.name)
    return _narrowed(judge, whole, target) if target.asked else whole


def _narrowed(judge: Judge, whole: Explanation, target: Target) -> Explanation:
    """The explanation of a name for one port of it: a name that is allowed may still have that port closed."""
    from egressd.policy import Explanation, contains, ports_text
    from egressd.policy.ports import point

    decision = whole.decision
    if decision.reason is not Reason.RULE or decision.verdict not in {Verdict.ALLOWED, Verdict.WOULD_DENY}:
        return whole
    asked, opened = ports_text(point(target.protocol, target.port)), ports_text(decision.ports)
    *steps, verdict = whole.steps
    steps.append(verdict.replace("verdict:", "the name itself:", 1))
    if contains(decision.ports, target.protocol, target.port):
        by = f' by rule "{decision.rule}" of {decision.policy}'
        said = (f"{asked} is among its ports ({opened})", f"verdict: {decision.verdict} ({decision.reason}){by}")
        return Explanation(decision, (*steps, *said))
    closed = replace(
        decision,
        verdict=Verdict.DENIED if judge.enforced else Verdict.WOULD_DENY,
        reason=Reason.NO_RULE,
        policy="",
        rule="",
        ports=(),
    )
    said = (f"{asked} is not among its ports ({opened})", f"verdict: {closed.verdict} ({closed.reason})")
    return Explanation(closed, (*steps, *said))
