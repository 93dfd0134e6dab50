"""What is inside the cluster, for verbs that read records: as --config says, else as the running daemon found it."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from egressd.cli._daemon import Daemon, Refusal
from egressd.errors import EnvironmentProblem

if TYPE_CHECKING:
    from egressd.policy import ClusterFacts
    from egressd.settings import Settings

__all__ = ["cluster_facts"]


def cluster_facts(settings: Settings, config: str | None, daemon: Daemon) -> ClusterFacts:
    """The facts of `settings`, which are those of the file `config`; without one, those of a daemon that answers."""
    from egressd.names import parse_name
    from egressd.policy import ClusterFacts
    from egressd.schema.words import read_block

    if config is None:
        with suppress(EnvironmentProblem, Refusal):
            inside = daemon.get("/api/v1/status")["inside"]
            cidrs = tuple(map(read_block, inside["cidrs"]))
            return ClusterFacts(cidrs, tuple(map(parse_name, inside["domains"])), inside["in_cluster"] == "Enforce")
    return ClusterFacts(settings.cluster_cidrs, settings.cluster_domains, settings.in_cluster == "Enforce")
