"""Whose word counts: objects come under the key of their source, and each name has one object that counts.

Values in, values out. A key is whatever replaces its objects as a whole: a file of a folder, or one object of an API
server. Where two sources speak of one object, the pod created later counts, otherwise the greater key, so that the
result depends on what is said now and never on the order in which it was said.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from egressd.schema import ConfigMapObject, Manifest, NamespaceObject, PodObject

__all__ = ["Id", "Objects", "born"]


class Id(NamedTuple):
    """What an object is called; `namespace` is empty for a Namespace."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def identify(manifest: Manifest) -> Id | None:
    """Name an object; None for what no cluster knows (a policy without a ConfigMap)."""
    match manifest:
        case ConfigMapObject():
            return Id("ConfigMap", manifest.namespace, manifest.name)
        case PodObject():
            return Id("Pod", manifest.identity.namespace, manifest.identity.name)
        case NamespaceObject():
            return Id("Namespace", "", manifest.name)
    return None


def born(pod: PodObject) -> tuple[float, str, str, str]:
    """Orders pods by creation, and those of one second in some fixed way. A pod of unknown age is the oldest."""
    try:
        created = datetime.fromisoformat(pod.created)
    except ValueError:
        age = float("-inf")
    else:
        age = (created if created.tzinfo else created.replace(tzinfo=UTC)).timestamp()
    return age, pod.identity.uid, pod.identity.namespace, pod.identity.name


class Objects:
    """Every object of every source."""

    def __init__(self) -> None:
        self._sources: dict[str, dict[Id, Manifest]] = {}
        self._claims: dict[Id, dict[str, Manifest]] = {}

    def replace(self, key: str, manifests: Iterable[Manifest]) -> set[Id]:
        """Put `manifests` in place of what `key` held, and return the names whose objects differ from before."""
        before = self._sources.pop(key, {})
        after = {name: manifest for manifest in manifests if (name := identify(manifest)) is not None}
        if after:
            self._sources[key] = after
        changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        for name in changed:
            claims = self._claims.setdefault(name, {})
            claims.pop(key, None)
            if name in after:
                claims[key] = after[name]
            if not claims:
                del self._claims[name]
        return changed

    @property
    def sources(self) -> dict[str, Sequence[Manifest]]:
        """What each key holds."""
        return {key: list(held.values()) for key, held in self._sources.items()}

    def counting(self, name: Id) -> tuple[str, Manifest] | None:
        """The object that counts for a name, with the key of its source."""
        claims = self._claims.get(name)
        return max(claims.items(), key=_rank) if claims else None

    def others(self, name: Id, counting: str) -> list[str]:
        """The other sources that speak of a name, sorted."""
        return sorted(self._claims.get(name, {}).keys() - {counting})


def _rank(claim: tuple[str, Manifest]) -> tuple[tuple[float, str, str, str], str]:
    key, manifest = claim
    return (born(manifest) if isinstance(manifest, PodObject) else (0.0, "", "", "")), key
