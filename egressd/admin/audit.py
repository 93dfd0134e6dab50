"""`/api/v1/audit`: records that were written, then those to come; filtered, bounded, and in nobody's way."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web

from egressd.admin.facts import Facts
from egressd.admin.feed import MAX_FOLLOWERS, Follower
from egressd.admin.problem import HttpProblem
from egressd.admin.trail import Filter, latest

__all__ = ["NDJSON", "serve_audit"]

NDJSON: Final = "application/x-ndjson"
PATIENCE_S: Final = 1.0
"""Seconds of silence after which a follower's connection is looked at."""
SLICE: Final = 128 * 1024
"""Octets written at a time: a slow reader is then noticed early, and a batch is one write as a rule."""

_searching: Final = asyncio.Semaphore(2)
"""Searches at a time; each is a thread that reads whole files."""


async def serve_audit(request: web.Request, facts: Facts, values: dict[str, Any]) -> web.StreamResponse:
    """Records as JSON Lines."""
    wanted = Filter(values["pod"], values["name"], values["verdict"], values["event"], values["since"] or 0.0)
    if not values["follow"]:
        found = await _written(facts, wanted, values["limit"])
        return web.Response(body=b"".join(line + b"\n" for line in found), content_type=NDJSON)
    with facts.feed.follow() as follower:
        if follower is None:
            raise HttpProblem(503, f"{MAX_FOLLOWERS} readers follow already; end one of them, or read the file")
        return await _follow(request, facts, wanted, values["limit"], follower)


async def _written(facts: Facts, wanted: Filter, limit: int) -> list[bytes]:
    """The latest records that match, oldest first."""
    if not limit:
        return []
    audit = facts.settings.audit
    if not audit.file:
        lines = facts.feed.recent.splitlines()
        return [line for line in lines if wanted.takes(line)][-limit:]
    async with _searching:
        search = latest(audit.file, audit.keep, wanted, limit)
        try:
            while (found := await asyncio.to_thread(next, search)) is None:
                pass
        finally:
            search.close()
        return found


async def _follow(
    request: web.Request, facts: Facts, wanted: Filter, limit: int, follower: Follower
) -> web.StreamResponse:
    before = await _written(facts, wanted, limit)
    known, both = set(before), len(follower)  # lines are told first and written then: these batches may be in both
    response = web.StreamResponse(headers={"Content-Type": NDJSON})
    await response.prepare(request)
    await _send(response, b"".join(line + b"\n" for line in before))
    while request.transport is not None and not request.transport.is_closing():
        data, lost = await follower.take(PATIENCE_S)
        if lost:
            await response.write(_lost_line(lost, facts.settings.node))
        if data and both > 0:
            data = b"".join(line + b"\n" for line in data.splitlines() if line not in known)
            both -= 1
        await _send(response, data if wanted.everything else wanted.among(data))
        await asyncio.sleep(0)  # the link comes before any reader
    return response


async def _send(response: web.StreamResponse, data: bytes) -> None:
    for start in range(0, len(data), SLICE):
        await response.write(data[start : start + SLICE])


def _lost_line(count: int, node: str) -> bytes:
    """The record that says how many records this reader lost."""
    now = datetime.fromtimestamp(time.time(), UTC)
    record = {"time": f"{now:%Y-%m-%dT%H:%M:%S.%f}Z", "event": "audit", "node": node, "dropped": count}
    return json.dumps(record, separators=(",", ":")).encode() + b"\n"
