"""The web page: which files there are, as what they are served, and what a browser may do with them.

The page is plain HTML, CSS, SVG and ES modules of our own, in `static`: nothing is built, nothing is asked of another
host, nothing is written. What is served is this fixed list of files, read once; no path of a request is ever looked up.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final, NamedTuple

from aiohttp import web

__all__ = ["HEADERS", "Part", "parts", "serve"]

DIRECTIVES: Final = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    "img-src 'self' data:",
    "frame-ancestors 'none'",
    "base-uri 'none'",
    "form-action 'none'",
    "require-trusted-types-for 'script'",  # text never becomes markup, whoever chose it
    "trusted-types 'none'",
)
HEADERS: Final = {
    "Content-Security-Policy": "; ".join(DIRECTIVES),
    "Cross-Origin-Opener-Policy": "same-origin",
}
"""On every file of the page, beside those that every answer has."""

MEDIA_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
INDEX: Final = "index.html"


class Part(NamedTuple):
    """One file."""

    media_type: str
    body: bytes


@cache
def parts() -> dict[str, Part]:
    """Every file by the path it is served at; `/` is the page itself."""
    found = {}
    for file in (resources.files(__name__) / "static").iterdir():
        media_type = MEDIA_TYPES.get("." + file.name.rpartition(".")[2])
        if media_type is not None:
            found["/" if file.name == INDEX else f"/static/{file.name}"] = Part(media_type, file.read_bytes())
    return found


async def serve(request: web.Request) -> web.Response:
    """The file at the path of the request, which is one of `parts`."""
    part = parts()[request.path]
    return web.Response(body=part.body, content_type=part.media_type, charset="utf-8", headers=HEADERS)
