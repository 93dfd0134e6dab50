"""One collector: a request to it, and what its answer means (OTLP specification 1.x, OTLP/HTTP)."""

from __future__ import annotations

from typing import Final, NamedTuple

import aiohttp
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse

from egressd import __version__
from egressd.export.access import Access

__all__ = ["Collector", "Outcome"]

TIMEOUT_S: Final = 10.0
"""For a whole request: the specification's default."""
MAX_ANSWER: Final = 64 * 1024
"""Octets of an answer that are read."""
MAX_WAIT_S: Final = 60.0
"""The longest a collector may ask us to wait."""
AGAIN: Final = frozenset({429, 502, 503, 504})
"""Statuses after which the same request may be sent again; after any other it may not."""


class Outcome(NamedTuple):
    """What became of a request. `again_s`: it may be tried again after so many seconds; None: never."""

    taken: bool
    again_s: float | None = None
    why: str = ""
    rejected: int = 0
    """Records of it that were not taken."""


class Collector:
    """The collector at a base URL. Make and use it in a running event loop."""

    def __init__(self, endpoint: str, access: Access) -> None:
        self._endpoint = endpoint
        self._access = access
        secure = endpoint.startswith("https:")
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=2, ssl=access.context() if secure else True),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": f"egressd/{__version__}"},
        )

    async def post(self, signal: str, body: bytes) -> Outcome:
        """Send a gzipped request for `logs` or `metrics`; never raises for what a collector or a network does."""
        headers = {
            **self._access.headers.get(signal, {}),
            "Content-Type": "application/x-protobuf",
            "Content-Encoding": "gzip",
        }
        url = f"{self._endpoint}/v1/{signal}"
        try:
            # A redirect would carry the secrets of the headers to who knows whom.
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                return _judged(response.status, response.headers.get("Retry-After", ""), await _answer(response))
        except TimeoutError:
            return Outcome(taken=False, again_s=0.0, why=f"no answer within {TIMEOUT_S:g} s")
        except (aiohttp.ClientError, OSError) as error:
            return Outcome(taken=False, again_s=0.0, why=_cause(error))

    async def close(self) -> None:
        await self._session.close()


async def _answer(response: aiohttp.ClientResponse) -> bytes:
    """The first `MAX_ANSWER` octets."""
    found = bytearray()
    while len(found) < MAX_ANSWER and (more := await response.content.read(MAX_ANSWER - len(found))):
        found += more
    return bytes(found)


def _judged(status: int, retry_after: str, answer: bytes) -> Outcome:
    if 200 <= status < 300:
        return Outcome(taken=True, rejected=_rejected(answer))
    if status in AGAIN:
        wait_s = min(float(retry_after), MAX_WAIT_S) if retry_after.isdecimal() else 0.0
        return Outcome(taken=False, again_s=wait_s, why=f"it answers {status}")
    return Outcome(taken=False, why=f"it answers {status}")


def _rejected(answer: bytes) -> int:
    """How many records a collector left out. Answers for metrics are alike on the wire, field by field."""
    try:
        found = ExportLogsServiceResponse.FromString(answer)
    except DecodeError:  # some answer in JSON, or not at all
        return 0
    return max(0, int(found.partial_success.rejected_log_records))


def _cause(error: Exception) -> str:
    """One line without headers: of an operating system's error its text, else what kind it is."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
