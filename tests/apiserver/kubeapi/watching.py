"""One watch of the small API server: what it sends, in which order, and how it ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from kubeapi.selectors import Refusal
from kubeapi.store import RESOURCES, Change, Object, Store

__all__ = ["Watcher"]

BEFORE_END_S = 2.0
"""Seconds before its end that a watch gets its last bookmark."""


class Watcher:
    """Raises `Refusal` when it is made for a version that is no number, or asked for initial events the wrong way."""

    def __init__(
        self, store: Store, resource: str, namespace: str, query: Mapping[str, str], chosen: Callable[[Object], bool]
    ) -> None:
        self.wake = asyncio.Event()
        self._store = store
        self._resource = resource
        self._namespace = namespace
        self._chosen = chosen
        self._bookmarks = query.get("allowWatchBookmarks") in {"1", "true"}
        self._initial = query.get("sendInitialEvents") in {"1", "true"}
        self._timeout = float(query.get("timeoutSeconds") or 1800)
        text = query.get("resourceVersion", "")
        if text and not text.isdecimal():
            raise Refusal(500, "InternalError", f"Internal error occurred: invalid resource version {text!r}")
        if self._initial and query.get("resourceVersionMatch") != "NotOlderThan":
            message = "sendInitialEvents: Forbidden: resourceVersionMatch is required"
            raise Refusal(422, "Invalid", message)
        self._version = int(text or 0)
        self._told = self._version

    async def run(self, write: Callable[[bytes], Awaitable[None]], bookmark_s: float) -> None:
        """Send events until the timeout; return to end in good order."""
        end = time.monotonic() + self._timeout
        if 0 < self._version < self._store.compacted:
            await write(_line("ERROR", _expired(self._version)))
            return
        for line in self._beginning():
            await write(line)
        next_bookmark = time.monotonic() + bookmark_s
        last_bookmark = end - BEFORE_END_S
        while (now := time.monotonic()) < end:
            for line in self._news():
                await write(line)
            if self._bookmarks and self._moved() and (now >= next_bookmark or now >= last_bookmark):
                await write(self._bookmark())
                last_bookmark = last_bookmark if now < last_bookmark else end
            if now >= next_bookmark:
                next_bookmark = now + bookmark_s
            due = min(end, next_bookmark, last_bookmark if now < last_bookmark else end)
            await self._wait(due - now)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.wake.wait(), max(0.001, seconds))
        except TimeoutError:
            return
        finally:
            self.wake.clear()

    def _beginning(self) -> list[bytes]:
        """Synthetic ADDED for all there is, where no version, 0 or initial events were asked for."""
        if self._version and not self._initial:
            return []
        with self._store.lock:
            things = [thing for thing in self._store.all(self._resource, self._namespace) if self._chosen(thing)]
            self._version = self._store.revision
        lines = [self._event("ADDED", thing) for thing in things]
        if self._initial:
            lines.append(self._bookmark({"k8s.io/initial-events-end": "true"}))
        self._told = self._version
        return lines

    def _news(self) -> list[bytes]:
        with self._store.lock:
            changes = self._store.since(self._version)
            self._version = max(self._version, self._store.revision)
        lines = [line for change in changes if change.resource == self._resource for line in self._lines(change)]
        if lines:
            self._told = self._version
        return lines

    def _lines(self, change: Change) -> list[bytes]:
        """Objects that come to match are ADDED; those that stop matching DELETED, old content and new version."""
        was = change.before is not None and self._chosen(change.before)
        now = change.after is not None and self._chosen(change.after)
        if now and change.after is not None:
            return [self._event("MODIFIED" if was else "ADDED", change.after)]
        if was and change.before is not None:
            metadata = change.before["metadata"] | {"resourceVersion": str(change.revision)}
            return [self._event("DELETED", change.before | {"metadata": metadata})]
        return []

    def _event(self, kind: str, thing: Object) -> bytes:
        resource = RESOURCES[self._resource]
        return _line(kind, {"kind": resource.kind, "apiVersion": resource.version, **thing})

    def _moved(self) -> bool:
        return self._version > self._told

    def _bookmark(self, annotations: dict[str, str] | None = None) -> bytes:
        self._told = self._version
        metadata: dict[str, Any] = {"resourceVersion": str(self._version)}
        return self._event("BOOKMARK", {"metadata": metadata | ({"annotations": annotations} if annotations else {})})


def _line(kind: str, thing: Object) -> bytes:
    return json.dumps({"type": kind, "object": thing}).encode() + b"\n"


def _expired(version: int) -> Object:
    message = f"too old resource version: {version}"
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return status | {"message": message, "reason": "Expired", "code": 410}
