"""What the admin API needs of the control side, and what follows from it for the probes.

Everything is there already when somebody asks; only `ask` goes to the data path, and never for a scrape or a probe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from egressd.admin.feed import Feed
from egressd.history import Keeper
from egressd.link import PodEntry, Stats
from egressd.model import Policy
from egressd.schema import Problem
from egressd.settings import Settings

__all__ = ["REASONS", "AwayError", "Condition", "Exports", "Facts", "alive", "unready"]

FRESH_S: Final = 5.0
"""Seconds without a word of the data path, which speaks each second, after which it counts as away."""
HUNG_S: Final = 30.0
"""Seconds after which it counts as hung for good, so that whoever watches over us should start us again."""

REASONS: Final = ("data-path-away", "not-synced", "source-away", "upstreams-failing", "kernel-refused")
"""Why /readyz may say no."""


class AwayError(Exception):
    """The data path does not answer."""


class Condition(Protocol):
    """One condition of a policy, as Kubernetes puts it (KEP-1623)."""

    @property
    def type(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def since(self) -> float: ...


class Exports(Protocol):
    """What became of the records that were to be exported."""

    sent: int
    failures: int
    """Requests that were not taken."""
    dropped: dict[str, int]
    """Records, by why."""


class Facts(Protocol):
    """The control side as the admin API sees it; used from its event loop alone."""

    feed: Feed
    requests: Counter[int]
    """Answers given, by HTTP status."""
    began: float
    """When the control side began, monotonic seconds."""
    stats: Stats | None
    """What the data path said last, and when (monotonic)."""
    stats_at: float

    @property
    def settings(self) -> Settings: ...
    @property
    def synced(self) -> bool:
        """Whether the whole world was told to the data path at least once."""

    @property
    def ailments(self) -> tuple[str, ...]:
        """Why we may be behind the source of objects."""

    @property
    def found(self) -> tuple[str, ...]:
        """What the source told of the cluster, one sentence each."""

    @property
    def conditions(self) -> Mapping[str, Iterable[Condition]]: ...
    @property
    def policies(self) -> Mapping[str, Policy]:
        """Those in force, by name."""

    @property
    def refused(self) -> Mapping[str, tuple[Problem, ...]]:
        """What is wrong with those whose latest text is refused."""

    @property
    def pods(self) -> Iterable[PodEntry]: ...
    def labels(self, namespace: str, name: str) -> Mapping[str, str]:
        """Labels of a pod."""

    @property
    def records(self) -> tuple[int, int]:
        """Audit records written, and lost on the way to the disk."""

    @property
    def exports(self) -> Exports: ...
    @property
    def history(self) -> Keeper: ...

    async def ask(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the data path. Raises `AwayError`."""


# --------------------------------------------------------------------------------------------------- readiness


def alive(facts: Facts, now: float) -> bool:
    """Whether the data path lives: it has said something within `HUNG_S`, or we are not there for as long."""
    return now - max(facts.began, facts.stats_at if facts.stats else 0.0) < HUNG_S


def unready(facts: Facts, now: float) -> dict[str, str]:
    """Why the daemon is not ready: the reasons that hold now, with what is behind each; none when it is."""
    found: dict[str, str] = {}
    stats = facts.stats if facts.stats is not None and now - facts.stats_at < FRESH_S else None
    if stats is None:
        found["data-path-away"] = "the data path has said nothing for some seconds; it starts, or it hangs"
    if not facts.synced or (stats is not None and not stats.serving):
        found["not-synced"] = "the policies and pods of this node are not all known and in the kernel yet"
    if facts.ailments:
        found["source-away"] = "; ".join(facts.ailments)
    if stats is not None and stats.upstreams and not any(upstream.healthy for upstream in stats.upstreams):
        listed = ", ".join(upstream.upstream for upstream in stats.upstreams)
        found["upstreams-failing"] = f"no upstream answers: {listed}"
    if stats is not None and stats.refused:
        found["kernel-refused"] = stats.refused
    return found
