"""The sockets of the admin API, and what every request goes through.

A unix socket that root alone may open, and a TCP address if the settings name one. Neither ever stops the daemon: an
address that is taken, by the daemon that this one replaces as a rule, is tried again until it is free.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import stat
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware

from egressd.admin import page
from egressd.admin.endpoints import ENDPOINTS, Endpoint
from egressd.admin.facts import Facts
from egressd.admin.parameters import read
from egressd.admin.problem import HttpProblem, document

__all__ = ["Server"]

RETRY_S: Final = 2.0
SAY_EVERY_S: Final = 60.0
"""Seconds between two complaints about the same address."""
SHUTDOWN_S: Final = 0.1
"""Seconds that those who follow get at the end; the last records wait for the same process."""
MAX_LINE: Final = 8190
"""Octets of a request line or header."""
HEADERS: Final = {
    "Server": "egressd",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""On every answer. There are no CORS headers: no other origin may read anything."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """The admin API of one daemon. `facts` is what it tells of."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._unix: tuple[Path, int] | None = None

    async def run(self) -> None:
        """Serve until cancelled."""
        settings = self._facts.settings.admin
        unix = _runner(self._facts, names=None)
        tcp = _runner(self._facts, names={self._facts.settings.node, *_hosts(settings.listen)})
        await unix.setup()
        await tcp.setup()
        serving = [asyncio.create_task(self._persist(settings.socket, lambda: self._serve_unix(unix, settings.socket)))]
        if settings.listen:
            serving.append(
                asyncio.create_task(self._persist(settings.listen, lambda: _serve_tcp(tcp, settings.listen)))
            )
        try:
            await asyncio.gather(*serving)
            await asyncio.Event().wait()
        finally:
            for task in serving:
                task.cancel()
            self._leave_unix()
            await asyncio.gather(unix.cleanup(), tcp.cleanup())

    async def _persist(self, address: str, serve: Callable[[], Awaitable[None]]) -> None:
        said = float("-inf")
        while True:
            try:
                await serve()
            except OSError as error:
                if time.monotonic() - said >= SAY_EVERY_S:
                    said = time.monotonic()
                    text = f"egressd: admin: {address}: {error.strerror or error}; trying again"
                    print(text, file=sys.stderr, flush=True)
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _serve_unix(self, runner: web.AppRunner, path: str) -> None:
        sock = self._bound_unix(Path(path))
        await web.SockSite(runner, sock).start()

    def _bound_unix(self, place: Path) -> socket.socket:
        """Bind beside the place and move into it, so that there always is a socket somebody listens at."""
        place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        draft = place.with_name(f".{os.getpid()}")
        with suppress(FileNotFoundError):
            draft.unlink()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            os.fchmod(sock.fileno(), stat.S_IRUSR | stat.S_IWUSR)  # bind gives the socket's file this mode (unix(7))
            folder = os.open(place.parent, os.O_PATH | os.O_CLOEXEC)
            try:
                sock.bind(f"/proc/self/fd/{folder}/{draft.name}")  # whatever the folder's name, this fits sun_path
            finally:
                os.close(folder)
            sock.listen(128)
            draft.replace(place)
        except OSError:
            sock.close()
            raise
        self._unix = place, place.stat().st_ino
        return sock

    def _leave_unix(self) -> None:
        """Remove the socket's file, unless it is another daemon's by now."""
        if self._unix is not None:
            place, inode = self._unix
            with suppress(OSError):
                if place.stat().st_ino == inode:
                    place.unlink()


async def _serve_tcp(runner: web.AppRunner, listen: str) -> None:
    host, _, port = listen.rpartition(":")
    await web.TCPSite(runner, host.strip("[]"), int(port), reuse_address=True).start()


def _hosts(listen: str) -> set[str]:
    return {listen.rpartition(":")[0].strip("[]")} - {""}


# ----------------------------------------------------------------------------------------------------- requests


def _runner(facts: Facts, names: set[str] | None) -> web.AppRunner:
    """The application; `names` are the host names that a request may be addressed to, None: any."""
    app = web.Application(middlewares=[_refusals(facts), _addressed(names)])
    for endpoint in ENDPOINTS:
        app.router.add_get(endpoint.path, _bound(endpoint, facts), name=endpoint.name)
    for path in page.parts().keys() - {endpoint.path for endpoint in ENDPOINTS}:
        app.router.add_get(path, page.serve)
    return web.AppRunner(
        app,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_S,
        keepalive_timeout=30.0,
        max_line_size=MAX_LINE,
        max_field_size=MAX_LINE,
    )


def _bound(endpoint: Endpoint, facts: Facts) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        values = read(request.query, endpoint.parameters)
        return await endpoint.handler(request, facts, values)

    return handle


def _refusals(facts: Facts) -> Middleware:
    """Turns every refusal into a problem document, sets the headers of every answer, and counts it."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        response: web.StreamResponse
        try:
            response = await handler(request)
        except HttpProblem as problem:
            response = document(problem.status, problem.message, **problem.more)
        except web.HTTPMethodNotAllowed as refusal:
            allowed = ", ".join(sorted(refusal.allowed_methods))
            detail = f"{request.method} is not possible here: everything is read-only"
            response = document(405, detail, headers={"Allow": allowed})
        except web.HTTPNotFound:
            listed = ", ".join(endpoint.path for endpoint in ENDPOINTS)
            response = document(404, f"there is nothing at {request.path[:200]}; there is {listed}")
        except web.HTTPException as refusal:
            response = document(refusal.status, refusal.reason)
        facts.requests[response.status] += 1
        if not response.prepared:
            response.headers.update({key: value for key, value in HEADERS.items() if key not in response.headers})
        return response

    return middleware


def _addressed(names: set[str] | None) -> Middleware:
    """Refuses requests whose Host is a name that is not ours: a web page that had its own name point here (DNS
    rebinding) could otherwise read everything. Addresses cannot be made to point elsewhere."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if names is not None and not _ours(request.headers.get("Host", ""), names):
            host = request.headers.get("Host", "")[:100]
            raise HttpProblem(421, f"{host!r} is not a name of this server; ask for its address, or for localhost")
        return await handler(request)

    return middleware


def _ours(host: str, names: set[str]) -> bool:
    bare = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else host
    bare = bare.strip("[]").lower().removesuffix(".")
    if bare == "localhost" or bare in {name.lower() for name in names}:
        return True
    try:
        ipaddress.ip_address(bare)
    except ValueError:
        return False
    return True
