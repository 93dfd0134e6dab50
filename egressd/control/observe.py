"""The control side as the admin API sees it: what is known here, what the data path says, and questions to it.

Nothing here waits for anybody: words of the data path are kept as they come, audit lines are handed on to those who
follow them, and a question has its own few seconds.
"""

from __future__ import annotations

import asyncio
import importlib
import itertools
import time
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from egressd.admin import AwayError, Condition, Exports, Feed
from egressd.history import Keeper
from egressd.link import Answer, Ask, PodEntry, Stats
from egressd.model import Policy
from egressd.schema import Problem
from egressd.settings import Settings

if TYPE_CHECKING:
    from egressd.control.service import Service
    from egressd.telemetry import ControlFacts

__all__ = ["Observe"]

ANSWER_S: Final = 3.0
"""Seconds the data path has to answer; it takes one or two milliseconds."""
MAX_QUESTIONS: Final = 2
"""Questions at a time, so that whoever lists everything never keeps the data path from its queries."""


class Observe:
    """`egressd.admin.Facts` of one running control side. One event loop."""

    def __init__(self, service: Service) -> None:
        self.feed = Feed()
        self.requests: Counter[int] = Counter()
        self.began = time.monotonic()
        self.stats: Stats | None = None
        self.stats_at = 0.0
        self._service = service
        self._say: Callable[[Ask], Awaitable[object]] | None = None
        self._idents = itertools.count(1)
        self._open: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._turn = asyncio.Semaphore(MAX_QUESTIONS)

    async def serve(self, say: Callable[[Ask], Awaitable[object]]) -> None:
        """Serve the admin API until cancelled; `say` puts a question to the data path."""
        self._say = say
        try:
            server = await asyncio.to_thread(importlib.import_module, "egressd.admin.server")
            await server.Server(self).run()
        except Exception:  # a bug here costs the admin API, not the records and the policies
            traceback.print_exc()

    def hear(self, message: Stats | Answer) -> None:
        """Keep what the data path said."""
        if isinstance(message, Stats):
            self.stats, self.stats_at = message, time.monotonic()
            return
        waiting = self._open.pop(message.ident, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(message.body)

    # -------------------------------------------------------------------------------------- egressd.admin.Facts

    async def ask(self, what: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Ask the data path. Raises `AwayError` when it does not answer."""
        if self._say is None:
            raise AwayError("the data path cannot be asked yet")
        async with self._turn:
            ident = next(self._idents)
            answer: asyncio.Future[dict[str, Any]]
            answer = self._open[ident] = asyncio.get_running_loop().create_future()
            saying = asyncio.ensure_future(self._say(Ask(ident, what, dict(arguments))))
            try:
                async with asyncio.timeout(ANSWER_S):
                    await asyncio.shield(saying)  # half a message would be the end of the link
                    return await answer
            except (TimeoutError, ConnectionError):
                raise AwayError(f"the data path has not answered within {ANSWER_S:g} seconds") from None
            finally:
                self._open.pop(ident, None)

    @property
    def settings(self) -> Settings:
        return self._service.settings

    @property
    def synced(self) -> bool:
        return self._service.synced

    @property
    def ailments(self) -> tuple[str, ...]:
        return self._service.ailments

    @property
    def found(self) -> tuple[str, ...]:
        return self._service.facts

    @property
    def conditions(self) -> Mapping[str, Iterable[Condition]]:
        return self._service.conditions

    @property
    def policies(self) -> Mapping[str, Policy]:
        return dict(self._service.world.policies)  # a copy: the world changes in a thread

    @property
    def refused(self) -> Mapping[str, tuple[Problem, ...]]:
        return dict(self._service.world.refused)

    @property
    def pods(self) -> Iterable[PodEntry]:
        return self._service.world.entries

    def labels(self, namespace: str, name: str) -> Mapping[str, str]:
        return self._service.world.labels(namespace, name)

    @property
    def records(self) -> tuple[int, int]:
        return self._service.written

    @property
    def history(self) -> Keeper:
        return self._service.history

    @property
    def exports(self) -> Exports:
        return self._service.exports

    def scraped(self) -> ControlFacts:
        """What /metrics would serve now."""
        scrape = importlib.import_module("egressd.admin.scrape")  # late: prometheus_client takes its time
        facts: ControlFacts = scrape.scrape(self, time.monotonic())
        return facts
