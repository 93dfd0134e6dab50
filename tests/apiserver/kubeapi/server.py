"""The small API server's HTTP side: lists in pages, watches, writes, Status answers, and every way to fail."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from aiohttp import web

from kubeapi.selectors import field_predicate, label_predicate
from kubeapi.store import RESOURCES, Object, Refusal, Resource, Store
from kubeapi.watching import Watcher

__all__ = ["ApiServer", "Request", "kubeconfig"]

GZIP_FROM = 128 * 1024
"""Octets from which a list is compressed (staging/src/k8s.io/apiserver, defaultGzipThresholdBytes)."""
REASONS = {400: "BadRequest", 401: "Unauthorized", 403: "Forbidden", 429: "TooManyRequests", 500: "InternalError"}


class Request(NamedTuple):
    """What a client asked: `watch` requests are noted when they begin."""

    method: str
    path: str
    query: dict[str, str]
    token: str


class _Fault(NamedTuple):
    code: int
    left: int
    path: str
    headers: dict[str, str]


class ApiServer:
    """Serves from the moment it is made, from a thread, until `close`. `listen` makes its socket.

    `tokens` empty: everyone may do everything. Objects are written through `store`, or `put` and `delete` here.
    """

    def __init__(
        self,
        address: tuple[str, int] = ("127.0.0.1", 0),
        *,
        listen: Callable[[tuple[str, int]], socket.socket] = socket.create_server,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.store = Store(self._wake)
        self.tokens: set[str] = set()
        self.requests: list[Request] = []
        self.sent: Counter[str] = Counter()
        """Octets of lists and events sent, by resource."""
        self.bookmark_s = 60.0
        self._listen = listen
        self._tls = tls
        self._faults: list[_Fault] = []
        self._watchers: set[Watcher] = set()
        self._connections: set[asyncio.Transport] = set()
        self._address = address
        self._runner: web.AppRunner | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kubeapi", daemon=True)
        self._thread.start()
        self.start()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self._address[0]}:{self._address[1]}"

    # --------------------------------------------------------------------------------- for tests

    def put(self, resource: str, thing: Object) -> Object:
        return self.store.put(resource, thing)

    def delete(self, resource: str, namespace: str, name: str) -> None:
        self.store.delete(resource, namespace, name)

    def fail(self, code: int, times: int = 1, path: str = "", **headers: str) -> None:
        """Answer the next requests whose path contains `path` with this status."""
        self._faults.append(_Fault(code, times, path, {key.replace("_", "-"): text for key, text in headers.items()}))

    def recover(self) -> None:
        """Forget the faults that are still to come."""
        self._faults.clear()

    def cut(self) -> None:
        """Break every connection in the middle of what it carries (RST); new ones are taken."""
        self._call(self._cut())

    def stop(self) -> None:
        """Break every connection and take no new ones."""
        self._call(self._stop())

    def start(self) -> None:
        """Listen (again), at the same address as before."""
        self._call(self._start())

    def forget_history(self) -> None:
        """As after a restart from a snapshot: all is there, but no watch can go on from where it was."""
        self.store.compact()

    @property
    def watching(self) -> int:
        """Watches that are open now."""
        return len(self._watchers)

    def close(self) -> None:
        self.stop()
        self._call(_end_tasks())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def _wake(self) -> None:
        self._loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        for watcher in self._watchers:
            watcher.wake.set()

    # ------------------------------------------------------------------------------------- life

    async def _start(self) -> None:
        application = web.Application(client_max_size=4 << 20)
        application.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(
            application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True, handle_signals=False
        )
        await self._runner.setup()
        sock = self._listen(self._address)
        self._address = sock.getsockname()[:2]
        await web.SockSite(self._runner, sock, ssl_context=self._tls).start()

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._cut()
            for site in list(self._runner.sites):
                await site.stop()
            await self._cut()
            await self._runner.cleanup()
            self._runner = None

    async def _cut(self) -> None:
        for transport in list(self._connections):
            if not transport.is_closing():
                transport.abort()
        self._connections.clear()
        await asyncio.sleep(0)

    # ---------------------------------------------------------------------------------- answering

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            self._connections.add(request.transport)
        token = request.headers.get("Authorization", "").partition(" ")[2].strip()
        self.requests.append(Request(request.method, request.path, dict(request.query), token))
        try:
            self._refuse(request, token)
            return await self._dispatch(request)
        except Refusal as refusal:
            return _status(refusal)

    def _refuse(self, request: web.Request, token: str) -> None:
        if self.tokens and token not in self.tokens:
            raise Refusal(401, "Unauthorized", "Unauthorized")
        for number, fault in enumerate(self._faults):
            if fault.path in request.path and fault.left > 0:
                self._faults[number] = fault._replace(left=fault.left - 1)
                raise Refusal(
                    fault.code, REASONS.get(fault.code, "Unknown"), f"told to say {fault.code}", **fault.headers
                )

    async def _dispatch(self, request: web.Request) -> web.StreamResponse:
        resource, namespace, name = _target(request.path)
        if request.method == "POST" and not name:
            thing = await request.json()
            if RESOURCES[resource].namespaced:
                thing["metadata"]["namespace"] = namespace
            return web.json_response(_whole(self.store.create(resource, thing), RESOURCES[resource]), status=201)
        if request.method == "PUT" and name:
            return web.json_response(_whole(self.store.update(resource, await request.json()), RESOURCES[resource]))
        if request.method != "GET":
            raise Refusal(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
        if name:
            return web.json_response(_whole(self.store.get(resource, namespace, name), RESOURCES[resource]))
        if request.query.get("watch") in {"1", "true"}:
            return await self._watch(request, resource, namespace)
        return self._list(request, resource, namespace)

    def _list(self, request: web.Request, resource: str, namespace: str) -> web.StreamResponse:
        query = request.query
        chosen = _chooser(query, resource, namespace)
        with self.store.lock:
            version = self._version_of_list(query.get("resourceVersion", ""))
            found = [thing for thing in self.store.all(resource, namespace) if chosen(thing)]
            metadata: dict[str, Any] = {"resourceVersion": str(version)}
            start = self._continued(query["continue"], found) if query.get("continue") else 0
            limit = int(query.get("limit") or 0) or len(found)
            left = len(found) - start - limit
            if left > 0:
                last = found[start + limit - 1]["metadata"]
                metadata |= {"continue": _token(self.store.revision, last), "remainingItemCount": left}
            body = {"kind": f"{RESOURCES[resource].kind}List", "apiVersion": RESOURCES[resource].version}
            text = json.dumps(body | {"metadata": metadata, "items": found[start : start + limit]}).encode()
        self.sent[resource] += len(text)
        headers = {"Content-Type": "application/json"}
        if len(text) >= GZIP_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=gzip.compress(text, 1), headers=headers | {"Content-Encoding": "gzip"})
        return web.Response(body=text, headers=headers)

    def _version_of_list(self, asked: str) -> int:
        if asked not in {"", "0"} and int(asked) > self.store.revision:
            message = f"Too large resource version: {asked}, current: {self.store.revision}"
            raise Refusal(504, "Timeout", message, retryAfterSeconds=1)
        return self.store.revision

    def _continued(self, token: str, found: list[Object]) -> int:
        given = json.loads(base64.b64decode(token))
        if given["revision"] < self.store.compacted:
            fresh = _token(self.store.revision, {"namespace": given["namespace"], "name": given["name"]})
            raise Refusal(410, "Expired", "The provided continue parameter is too old", **{"continue": fresh})
        last = (given["namespace"], given["name"])
        return sum((thing["metadata"].get("namespace", ""), thing["metadata"]["name"]) <= last for thing in found)

    async def _watch(self, request: web.Request, resource: str, namespace: str) -> web.StreamResponse:
        watcher = Watcher(self.store, resource, namespace, request.query, _chooser(request.query, resource, namespace))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        self._watchers.add(watcher)

        async def write(line: bytes) -> None:
            self.sent[resource] += len(line)
            await response.write(line)

        try:
            await watcher.run(write, self.bookmark_s)
        except ConnectionError:
            return response
        finally:
            self._watchers.discard(watcher)
        await response.write_eof()
        return response


async def _end_tasks() -> None:
    """What clients left hanging."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _target(path: str) -> tuple[str, str, str]:
    """Resource, namespace and name of a path."""
    for name, resource in RESOURCES.items():
        if not path.startswith(resource.api + "/"):
            continue
        parts = path.removeprefix(resource.api + "/").split("/")
        if parts[0] == name and len(parts) <= 2:
            return name, "", (parts[1:] or [""])[0]
        if parts[0] == "namespaces" and len(parts) in {3, 4} and parts[2] == name:
            return name, parts[1], (parts[3:] or [""])[0]
    raise Refusal(404, "NotFound", "the server could not find the requested resource")


def _chooser(query: Any, resource: str, namespace: str) -> Callable[[Object], bool]:
    labels = label_predicate(query.get("labelSelector", ""))
    fields = field_predicate(query.get("fieldSelector", ""), resource)
    return lambda thing: namespace in {"", thing["metadata"].get("namespace", "")} and labels(thing) and fields(thing)


def _whole(thing: Object, resource: Resource) -> Object:
    return {"kind": resource.kind, "apiVersion": resource.version, **thing}


def _token(revision: int, last: Object) -> str:
    place = {"revision": revision, "namespace": last.get("namespace", ""), "name": last["name"]}
    return base64.b64encode(json.dumps(place).encode()).decode()


def _status(refusal: Refusal) -> web.Response:
    metadata = {"continue": refusal.details.pop("continue")} if "continue" in refusal.details else {}
    headers = {key: str(text) for key, text in refusal.details.items() if key[0].isupper()}
    details = {key: text for key, text in refusal.details.items() if not key[0].isupper()}
    body: Object = {"kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure"}
    body |= {"message": refusal.message, "reason": refusal.reason, "details": details, "code": refusal.code}
    return web.json_response(body, status=refusal.code, headers=headers)


def kubeconfig(file: Path, url: str, token: str = "", ca: str = "") -> Path:
    """Write a kubeconfig that leads to a server; JSON is YAML."""
    cluster: dict[str, Any] = {"server": url} | ({"certificate-authority": ca} if ca else {})
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": "test", "user": {"token": token} if token else {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    file.write_text(json.dumps(document))
    return file
