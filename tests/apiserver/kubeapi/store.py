"""The objects of the small API server and every change of them: what etcd is to a real one. Safe for threads."""

from __future__ import annotations

import copy
import itertools
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

from kubeapi.selectors import Refusal

__all__ = ["RESOURCES", "Change", "Refusal", "Resource", "Store"]

Object = dict[str, Any]
Key = tuple[str, str, str]


class Resource(NamedTuple):
    api: str
    """Path in front of the resource or its namespace."""
    version: str
    kind: str
    namespaced: bool = True


RESOURCES = {
    "pods": Resource("/api/v1", "v1", "Pod"),
    "namespaces": Resource("/api/v1", "v1", "Namespace", namespaced=False),
    "nodes": Resource("/api/v1", "v1", "Node", namespaced=False),
    "configmaps": Resource("/api/v1", "v1", "ConfigMap"),
    "services": Resource("/api/v1", "v1", "Service"),
    "events": Resource("/api/v1", "v1", "Event"),
    "endpointslices": Resource("/apis/discovery.k8s.io/v1", "discovery.k8s.io/v1", "EndpointSlice"),
    "servicecidrs": Resource("/apis/networking.k8s.io/v1", "networking.k8s.io/v1", "ServiceCIDR", namespaced=False),
}


class Change(NamedTuple):
    """One write: the object before and after it (None: there was, or is, none), and its revision."""

    revision: int
    resource: str
    before: Object | None
    after: Object | None


class Store:
    """`wake` is called after every write, from whatever thread wrote."""

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self.lock = threading.RLock()
        self.revision = 1000
        self.compacted = 1000
        """Revisions up to this one are forgotten."""
        self.changes: list[Change] = []
        self._objects: dict[Key, Object] = {}
        self._wake = wake
        self._numbers = itertools.count(1)

    def get(self, resource: str, namespace: str, name: str) -> Object:
        with self.lock:
            found = self._objects.get((resource, namespace, name))
            if found is None:
                raise Refusal(404, "NotFound", f'{resource} "{name}" not found')
            return found

    def all(self, resource: str, namespace: str = "") -> list[Object]:
        """In the order of their keys, as etcd keeps them."""
        with self.lock:
            keys = sorted(key for key in self._objects if key[0] == resource and namespace in {"", key[1]})
            return [self._objects[key] for key in keys]

    def create(self, resource: str, thing: Object) -> Object:
        """As POST: 409 AlreadyExists for a name that is taken."""
        with self.lock:
            key = self._key(resource, thing)
            if key in self._objects:
                raise Refusal(409, "AlreadyExists", f'{resource} "{key[2]}" already exists')
            made = copy.deepcopy(thing)
            made["metadata"].setdefault("uid", str(uuid.UUID(int=next(self._numbers), version=4)))
            made["metadata"].setdefault("creationTimestamp", datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))
            return self._write(key, resource, None, made)

    def update(self, resource: str, thing: Object) -> Object:
        """As PUT: 409 Conflict where a `resourceVersion` is given that is no longer the present one."""
        with self.lock:
            key = self._key(resource, thing)
            old = self.get(*key)
            given = thing["metadata"].get("resourceVersion")
            if given and given != old["metadata"]["resourceVersion"]:
                raise Refusal(409, "Conflict", f'Operation cannot be fulfilled on {resource} "{key[2]}"')
            new = copy.deepcopy(thing)
            for field in ("uid", "creationTimestamp"):
                new["metadata"].setdefault(field, old["metadata"][field])
            same = new | {"metadata": new["metadata"] | {"resourceVersion": ""}} == old | {
                "metadata": old["metadata"] | {"resourceVersion": ""}
            }
            return old if same else self._write(key, resource, old, new)

    def put(self, resource: str, thing: Object) -> Object:
        """Create or update."""
        with self.lock:
            exists = self._key(resource, thing) in self._objects
            return self.update(resource, thing) if exists else self.create(resource, thing)

    def delete(self, resource: str, namespace: str, name: str) -> None:
        """A pod bound to a node goes in three steps: marked, marked with grace 0, gone."""
        with self.lock:
            old = self.get(resource, namespace, name)
            key = (resource, namespace, name)
            if resource == "pods" and old.get("spec", {}).get("nodeName"):
                for grace in (30, 0):
                    new = copy.deepcopy(old)
                    new["metadata"] |= {
                        "deletionTimestamp": "2026-11-22T13:00:00Z",
                        "deletionGracePeriodSeconds": grace,
                    }
                    old = self._write(key, resource, old, new)
            self._write(key, resource, old, None)

    def compact(self) -> None:
        """Forget every change so far, except for those who watch already."""
        with self.lock:
            self.compacted = self.revision

    def since(self, revision: int) -> list[Change]:
        with self.lock:
            return [change for change in self.changes if change.revision > revision]

    def _key(self, resource: str, thing: Object) -> Key:
        metadata = thing["metadata"]
        if RESOURCES[resource].namespaced:
            return resource, metadata.setdefault("namespace", "default"), metadata["name"]
        return resource, "", metadata["name"]

    def _write(self, key: Key, resource: str, before: Object | None, after: Object | None) -> Object:
        self.revision += 1
        if after is None:
            self._objects.pop(key)
        else:
            after["metadata"]["resourceVersion"] = str(self.revision)
            after.pop("kind", None)
            after.pop("apiVersion", None)
            self._objects[key] = after
        self.changes.append(Change(self.revision, resource, before, after))
        self._wake()
        return after or {}
