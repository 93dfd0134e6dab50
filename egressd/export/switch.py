"""The export as the control side has it: off until settings name a collector, and from then on as the latest say."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from egressd.errors import EgressError, EnvironmentProblem
from egressd.export.access import Access
from egressd.export.counts import Counts
from egressd.export.exporter import Exporter
from egressd.link import Lines
from egressd.settings import Otlp, Settings

if TYPE_CHECKING:
    from egressd.telemetry import ControlFacts

__all__ = ["Export", "check"]


def check(otlp: Otlp, environ: Mapping[str, str]) -> None:
    """Raise `EnvironmentProblem` where a collector is named but cannot be spoken to from here."""
    if not otlp.endpoint:
        return
    try:
        found = importlib.util.find_spec("opentelemetry.proto") is not None
    except ModuleNotFoundError:  # nothing of opentelemetry at all
        found = False
    if not found:
        raise EnvironmentProblem(
            f"otlp.endpoint is {otlp.endpoint}, but the library for OTLP is not installed",
            "pip install 'egressd[otlp]', or leave otlp.endpoint empty",
        )
    access = Access.read(environ)
    if otlp.endpoint.startswith("https:"):
        access.context()


class Export:
    """The export of one control side. One event loop; `facts` is asked for every set of metrics."""

    def __init__(self, facts: Callable[[], ControlFacts], environ: Mapping[str, str] = os.environ) -> None:
        self.counts = Counts()
        self._facts = facts
        self._environ = environ
        self._settings = Settings()
        self._exporter: Exporter | None = None
        self._running: asyncio.Task[None] | None = None

    def put(self, lines: Lines) -> None:
        """Take a batch of audit lines; never waits."""
        if self._exporter is not None:
            self._exporter.put(lines)

    async def take(self, settings: Settings) -> None:
        """Export as these settings say, which `check` has passed; where nothing has changed, go on as before."""
        if (settings.otlp, settings.node) == (self._settings.otlp, self._settings.node):
            return
        await self.close()
        self._settings = settings
        if settings.otlp.endpoint:
            access = Access.read(self._environ)
            self._exporter = Exporter(settings, access, self.counts, self._facts)
            self._running = asyncio.create_task(self._run(self._exporter))

    async def _run(self, exporter: Exporter) -> None:
        try:
            await exporter.run()
        except EgressError as error:
            print(f"egressd: otlp: {error}", file=sys.stderr, flush=True)
        except Exception:  # a bug here costs the export, not the records and the policies
            traceback.print_exc()
        self._exporter = None

    async def close(self) -> None:
        """Send what is left, as far as two seconds allow, and end."""
        exporter, running, self._exporter, self._running = self._exporter, self._running, None, None
        if exporter is not None and running is not None:
            await exporter.finish(running)
