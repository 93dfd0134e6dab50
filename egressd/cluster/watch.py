"""One list+watch that runs for ever: pages in, then lines, and every change told once.

What comes next after each end is `Track`'s to say; here are the requests, the waiting and the words about it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import msgspec

from egressd.cluster.client import Api, ApiError
from egressd.cluster.health import Health
from egressd.cluster.objects import Kind, Thing
from egressd.cluster.track import GONE, Changes, Track, backoff

__all__ = ["PAGE", "Watch", "read_list"]

PAGE: Final = 500
"""Objects of one page of a list."""
WATCH_S: Final = (300, 600)
"""Seconds after which a watch ends cleanly, drawn anew each time: many nodes' watches then never end together."""
STANDS_S: Final = 1.0
"""A watch works once it has brought something, or stood so long. One that ends sooner, even cleanly, has failed: going
on at once would be a busy loop."""


async def read_list(api: Api, kind: Kind[Any]) -> tuple[list[Any], str]:
    """All objects, page by page, and the list's version. Raises `ApiError`.

    A page that the server has forgotten (410) means beginning again, once, and without pages.
    """
    limit = PAGE
    while True:
        items: list[Any] = []
        query = dict(kind.selector) | ({"limit": str(limit)} if limit else {})
        try:
            while True:
                body = await api.get(kind.path, query)
                page = await asyncio.to_thread(kind.page.decode, body)
                items += page.items or []
                if not page.metadata.continue_:
                    return items, page.metadata.resource_version
                query["continue"] = page.metadata.continue_
        except msgspec.MsgspecError as error:
            raise ApiError(f"the API server sent a list that is not understood: {error}") from None
        except ApiError as error:
            if error.status != GONE or "continue" not in query or not limit:
                raise
            limit = 0


class Watch:
    """One kind of object, kept up to date. Its state outlives `run`: run again, it goes on where it was."""

    def __init__(self, api: Api, kind: Kind[Any], tell: Callable[[str, Changes], None], health: Health) -> None:
        self.track: Track[Thing] = Track(kind)
        self._api = api
        self.kind = kind
        self._tell = tell
        self._health = health
        self._failures = 0
        self._open = False
        self._heard = False

    async def run(self) -> None:
        """List, watch, and go on after every end, until cancelled."""
        while True:
            try:
                if not self.track.version:
                    await self._list()
                await self._watch()
            except ApiError as error:
                await self._recover(error)

    async def _list(self) -> None:
        items, version = await read_list(self._api, self.kind)
        self._tell(self.kind.name, self.track.take_list(items, version))

    async def _watch(self) -> None:
        """Watch until the server ends it in good order."""
        self._open = self._heard = False
        query = dict(self.kind.selector) | {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self.track.version,
            "timeoutSeconds": str(random.randint(*WATCH_S)),  # noqa: S311 - spreads load, guards nothing
        }
        async with self._api.watch(self.kind.path, query) as lines:
            self._open = True
            stands = asyncio.get_running_loop().call_later(STANDS_S, self._works)
            try:
                await self._follow(lines)
            finally:
                hasty = not stands.cancelled() and stands.when() > asyncio.get_running_loop().time()
                stands.cancel()
        if hasty and not self._heard:
            raise ApiError("the API server ends every watch at once")

    async def _follow(self, lines: AsyncIterator[bytes]) -> None:
        async for line in lines:
            changes = self.track.take_line(line) if line.strip() else {}
            self._heard = True
            self._works()
            if changes:
                self._tell(self.kind.name, changes)

    def _works(self) -> None:
        self._failures = 0
        self._health.works(self.kind.name)

    async def _recover(self, error: ApiError) -> None:
        self._failures += 1
        relist = self.track.failed(error, silent=self._open and not self._heard)
        self._open = False
        if error.status != GONE:
            self._health.failed(self.kind.name, error.message, self._failures, own=error.status >= 400)
        if relist and self._failures == 1:
            return  # the first time at once: nothing is wrong but our age
        await asyncio.sleep(backoff(self._failures, random.random(), error.retry_after))  # noqa: S311 - as above
