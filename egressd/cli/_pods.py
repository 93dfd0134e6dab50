"""Labels of pods and namespaces, for verbs that read records, which hold none: from manifests, else from the daemon."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from egressd.cli._daemon import Daemon, Refusal
from egressd.cli._files import read_all, sources
from egressd.errors import EnvironmentProblem

if TYPE_CHECKING:
    from egressd.model import PodIdentity

__all__ = ["Labelled", "labelled", "pods_option"]

MOST = 10_000
"""Pods asked for: all of a node, many times over."""


class Labelled(NamedTuple):
    pods: list[tuple[PodIdentity, Mapping[str, str]]]
    namespaces: dict[str, Mapping[str, str]]


def pods_option(function: Any) -> Any:
    """Adds --pods to a verb; it gets `pods`."""
    return click.option(
        "--pods",
        multiple=True,
        metavar="PATH",
        help="Pods and Namespaces, for their labels; may be repeated. Default: the running daemon's, if there is one.",
    )(function)


def labelled(paths: tuple[str, ...], daemon: Daemon) -> Labelled:
    """What manifests say; without any, what a daemon says, if one answers (it tells nothing of namespaces)."""
    if paths:
        return _read(paths)
    from egressd.model import PodIdentity

    found: list[tuple[PodIdentity, Mapping[str, str]]] = []
    with suppress(EnvironmentProblem, Refusal):
        for pod in daemon.get("/api/v1/pods", limit=MOST)["pods"]:
            who = (pod[field] for field in ("namespace", "name", "uid", "service_account", "workload"))
            found.append((PodIdentity(*who), pod["labels"]))
    return Labelled(found, {})


def _read(paths: tuple[str, ...]) -> Labelled:
    from egressd.schema import NamespaceObject, PodObject

    found = Labelled([], {})
    for _, manifests, problems in read_all(sources(paths)):
        for problem in problems:
            click.echo(str(problem), err=True)
        for manifest in manifests:
            if isinstance(manifest, PodObject):
                found.pods.append((manifest.identity, manifest.labels))
            elif isinstance(manifest, NamespaceObject):
                found.namespaces[manifest.name] = manifest.labels
    return found
