"""What the admin API says when it cannot answer: problem documents (RFC 9457), one shape for every refusal."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec
from aiohttp import web

from egressd.errors import EgressError

__all__ = ["MEDIA_TYPE", "HttpProblem", "ProblemDocument", "document"]

MEDIA_TYPE: Final = "application/problem+json"


class ProblemDocument(msgspec.Struct, omit_defaults=True):
    """`type` is about:blank (section 4.2.1): the status says what kind of problem it is, `detail` what it is."""

    title: str
    status: int
    type: str = "about:blank"
    detail: str = ""
    parameter: str = ""
    """The query parameter that is wrong."""
    reasons: list[dict[str, str]] = []
    """Why the daemon is not ready: `reason` and `detail` of each."""


class HttpProblem(EgressError):
    """Raised by an endpoint that refuses; becomes a problem document."""

    def __init__(self, status: int, detail: str, **more: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.more = more


def document(status: int, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> web.Response:
    """The response for a problem."""
    body = msgspec.json.encode(ProblemDocument(HTTPStatus(status).phrase, status, detail=detail, **more))
    return web.Response(body=body, status=status, content_type=MEDIA_TYPE, headers=headers)
