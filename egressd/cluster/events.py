"""What egressd tells the cluster: Events beside the objects they are about, once each, and never in anyone's way.

The name of an Event about a refused ConfigMap is made of that object's uid and version, so that of all the nodes that
refuse it the first one writes the Event and the others meet 409 AlreadyExists. Events that cannot be written are
counted and dropped: they are a courtesy, the log and the metrics are the record.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from egressd.cluster.client import Api, ApiError
from egressd.cluster.track import backoff

__all__ = ["About", "Events", "event_body"]

COMPONENT: Final = "egressd"
MAX_MESSAGE: Final = 1024
"""Characters of an Event's message that the API server takes (pkg/apis/core/validation/events.go, NoteLengthLimit)."""
MAX_NAME: Final = 253
WAITING: Final = 256
"""Events waiting to be written; more are dropped."""
TRIES: Final = 5
CONFLICT: Final = 409


@dataclass(frozen=True, slots=True)
class About:
    """The object that an Event is about. `version` is empty where the Event is not about one state of it."""

    kind: str
    namespace: str
    name: str
    uid: str
    version: str = ""


def event_body(about: About, reason: str, message: str, node: str, *, now: float, once: str = "") -> dict[str, Any]:
    """A core/v1 Event of type Warning. `once` and the object make its name; `now` in seconds since the epoch."""
    text = "\n".join([about.uid or f"{about.namespace}/{about.name}", about.version, reason, once])
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    time = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    involved = {"kind": about.kind, "namespace": about.namespace, "name": about.name, "apiVersion": "v1"}
    involved |= {"uid": about.uid} if about.uid else {}
    involved |= {"resourceVersion": about.version} if about.version else {}
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": about.namespace, "name": f"{about.name[: MAX_NAME - 17].rstrip('.-')}.{digest}"},
        "involvedObject": involved,
        "type": "Warning",
        "reason": reason,
        "message": message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…",
        "source": {"component": COMPONENT, "host": node},
        "reportingComponent": COMPONENT,
        "reportingInstance": node,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


class Events:
    """Takes Events from the event loop and writes them one by one. `say` takes one line of text."""

    def __init__(self, api: Api, say: Callable[[str], None]) -> None:
        self.dropped = 0
        self._api = api
        self._say = say
        self._waiting: asyncio.Queue[dict[str, Any]] = asyncio.Queue(WAITING)
        self._complaint = ""

    def put(self, body: dict[str, Any]) -> None:
        """Have an Event written some time soon; never waits."""
        try:
            self._waiting.put_nowait(body)
        except asyncio.QueueFull:
            self.dropped += 1

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            body = await self._waiting.get()
            try:
                await self._write(body)
                self._complaint = ""
            except ApiError as error:
                self.dropped += 1
                self._complain(error.message)

    async def _write(self, body: dict[str, Any]) -> None:
        path = f"/api/v1/namespaces/{body['metadata']['namespace']}/events"
        for failures in range(1, TRIES + 1):
            try:
                await self._api.post(path, body)
            except ApiError as error:
                if error.status == CONFLICT:
                    return  # another node, or an earlier life of this one, has said it
                hopeless = 400 <= error.status < 500 and error.status not in {401, 429}
                if hopeless or failures == TRIES:
                    raise
                await asyncio.sleep(backoff(failures, random.random(), error.retry_after))  # noqa: S311 - spreads load
            else:
                return

    def _complain(self, message: str) -> None:
        if message != self._complaint:
            self._complaint = message
            self._say(f"cluster: an Event could not be written: {message}")
