"""Where objects come from, made alike: a folder of manifests or a cluster, behind one protocol.

The rest of the control side knows no other difference between the two than what stands here.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from egressd.directory import Folder
from egressd.schema import Manifest, Problem
from egressd.settings import Settings

if TYPE_CHECKING:
    from egressd.cluster import Cluster

__all__ = ["ClusterSource", "FolderSource", "Said", "Source", "open_source"]


class Said(NamedTuple):
    """What a source says at one moment: the objects that each key holds now, where that changed.

    `servers` are the addresses that serve DNS to us, None where that did not change. `complaints` are about what
    could not be read at all, by key; what is wrong inside a policy is found later.
    """

    objects: dict[str, Sequence[Manifest]]
    servers: frozenset[bytes] | None = None
    complaints: tuple[tuple[Problem, ...], ...] = ()


class Source(Protocol):
    async def prepare(self, settings: Settings) -> Settings | None:
        """Settings with the gaps filled that only the source can fill; waits for it. None: poked before that."""

    def changes(self) -> AsyncGenerator[Said, None]:
        """The first time all there is, then every change. Closed and called again it goes on where it was."""

    def poke(self) -> None:
        """Have `prepare` or `changes` return now."""

    @property
    def facts(self) -> tuple[str, ...]:
        """What the source told of the cluster, one sentence each."""

    @property
    def ailments(self) -> tuple[str, ...]:
        """Why we may be behind the source; empty while all is well."""

    def refused(self, namespace: str, configmap: str, message: str) -> None:
        """Tell people that policies of a ConfigMap were refused."""

    def denied(self, namespace: str, pod: str, uid: str, message: str) -> None:
        """Tell people that a pod was denied something."""

    async def close(self) -> None:
        """Let go of it; before the event loop ends."""


class FolderSource:
    """`source: directory`."""

    facts: tuple[str, ...] = ()
    ailments: tuple[str, ...] = ()

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    async def prepare(self, settings: Settings) -> Settings | None:
        return settings

    async def changes(self) -> AsyncGenerator[Said, None]:
        changes = self._folder.changes()
        try:
            async for readings in changes:
                yield Said(
                    {reading.file: reading.objects for reading in readings if reading.objects is not None},
                    complaints=tuple(reading.problems for reading in readings if reading.problems),
                )
        finally:
            await changes.aclose()

    def poke(self) -> None:
        self._folder.poke()

    def refused(self, namespace: str, configmap: str, message: str) -> None:
        """The log has it, and nobody else reads a folder."""

    def denied(self, namespace: str, pod: str, uid: str, message: str) -> None:
        """The audit records have it."""

    async def close(self) -> None:
        """Nothing is open between two scans."""


class ClusterSource:
    """`source: kubernetes`."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def prepare(self, settings: Settings) -> Settings | None:
        return await self._cluster.prepare(settings)

    async def changes(self) -> AsyncGenerator[Said, None]:
        changes = self._cluster.changes()
        try:
            async for batch in changes:
                yield Said(dict(batch.objects), batch.servers)
        finally:
            await changes.aclose()

    def poke(self) -> None:
        self._cluster.poke()

    @property
    def facts(self) -> tuple[str, ...]:
        return self._cluster.facts.notes if self._cluster.facts else ()

    @property
    def ailments(self) -> tuple[str, ...]:
        return self._cluster.ailments

    def refused(self, namespace: str, configmap: str, message: str) -> None:
        self._cluster.refused(namespace, configmap, message)

    def denied(self, namespace: str, pod: str, uid: str, message: str) -> None:
        self._cluster.denied(namespace, pod, uid, message)

    async def close(self) -> None:
        await self._cluster.close()


def open_source(settings: Settings) -> Source:
    """The source that the settings name. Raises `EnvironmentProblem` when it cannot be used. Not in an event loop."""
    if settings.source.kind == "kubernetes":
        from egressd.cluster import Cluster  # half a second and 20 MiB that a folder does without

        cluster = Cluster(settings)
        cluster.check()
        return ClusterSource(cluster)
    folder = Folder(settings.source.path)
    folder.check()
    return FolderSource(folder)
