"""The requests of one node, ready to be sent, and the collector to send them to. Importing it takes a third of a
second, so that only a thread does, and only where an endpoint is set."""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping
from typing import Final

from egressd import __version__
from egressd.export import logs, metrics
from egressd.export.collector import Collector
from egressd.telemetry import ControlFacts, readings

__all__ = ["Collector", "Requests", "gzipped"]

GZIP: Final = 16 + zlib.MAX_WBITS
"""What zlib calls gzip's container."""


class Requests:
    """Makes the bodies of requests. Takes its time over them: for a thread."""

    def __init__(self, node: str, attributes: Mapping[str, str]) -> None:
        self._resource = logs.resource(node, __version__, attributes)

    def logs(self, lines: bytes) -> bytes:
        """Audit lines as log records."""
        return gzipped(logs.request(lines, self._resource, __version__, time.time_ns()))

    def metrics(self, facts: ControlFacts) -> bytes:
        """Everything that /metrics would serve."""
        return gzipped(metrics.request(readings(facts), self._resource, __version__, time.time_ns()))


def gzipped(body: bytes) -> bytes:
    """The body as it travels: a tenth, at the least effort."""
    packer = zlib.compressobj(1, zlib.DEFLATED, GZIP)
    return packer.compress(body) + packer.flush()
