"""One connection to an API server: raw JSON over the session of the `kubernetes` client, one error for all that fails.

Where the server is and who we are comes from `kubernetes.aio` (in-cluster, or a kubeconfig). Bodies are handed on as
bytes: nothing here is decoded into that package's models (kubernetes.md, Decisions). Whatever goes wrong, on the wire
or by the server's own word, is one `ApiError`; anything else that escapes is a bug.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

import msgspec
from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientPayloadError,
    ClientResponse,
    ClientTimeout,
    ServerDisconnectedError,
)

from egressd.errors import EgressError, EnvironmentProblem
from egressd.settings import Source

__all__ = ["Api", "ApiError", "Parameters"]

Parameters = Mapping[str, str]

CONNECT_S: Final = 5.0
"""Seconds until a connection must stand."""
ANSWER_S: Final = 60.0
"""Seconds for one answer as a whole: a page of 500 objects of 1 MiB is the largest."""
SILENCE_S: Final = 90.0
"""Seconds a watch may be silent: bookmarks come each 60 s, and a half-open connection says nothing at all."""
MAX_LINE: Final = 16 * 1024 * 1024
"""Octets of one line of a watch: a ConfigMap holds 1 MiB, and JSON may write each octet as six."""
MAX_BODY: Final = 512 * 1024 * 1024
"""Octets of one answer: 500 ConfigMaps of 1 MiB, the fullest page there can be."""
USER_AGENT: Final = "egressd"


@cache
def _library() -> tuple[Any, Any]:
    """The modules `kubernetes.aio.client` and `kubernetes.aio.config`.

    `import kubernetes` would also bring its blocking client: 7 MiB and a tenth of a second on every node, for nothing.
    An empty package of that name, with the same folder, leads to the asyncio half alone.
    """
    found = find_spec("kubernetes")
    if "kubernetes" not in sys.modules and found is not None:
        package = ModuleType("kubernetes")
        package.__path__ = list(found.submodule_search_locations or ())
        sys.modules["kubernetes"] = package
    return import_module("kubernetes.aio.client"), import_module("kubernetes.aio.config")


class ApiError(EgressError):
    """The API server did not do what it was asked. `status` is HTTP's, 0 where the connection failed.

    `retry_after` is what the server asked for, in seconds, or None.
    """

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class _Status(msgspec.Struct):
    message: str | None = ""
    reason: str | None = ""


class _Login:
    """One ApiClient and how many answers are being read from it; a retired one is closed behind the last."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.users = 0
        self.retired = False

    async def leave(self) -> None:
        self.users -= 1
        await self.retire(self.retired)

    async def retire(self, retired: bool = True) -> None:
        self.retired = retired
        if self.retired and not self.users:
            await self.client.close()


class Api:
    """An API server as the settings name it. One event loop at a time; `close` it there."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._login: _Login | None = None
        self._opening = asyncio.Lock()

    async def check(self) -> None:
        """Raise `EnvironmentProblem` when the settings lead to no API server at all; asks it nothing."""
        try:
            await self._configuration()
        except ApiError as error:
            remedy = "run it in a pod with a service account, or set source.kubeconfig"
            raise EnvironmentProblem(error.message, remedy) from None

    async def get(self, path: str, parameters: Parameters | None = None) -> bytes:
        """The body of an answer to GET. Raises `ApiError`."""
        timeout = ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
        async with self._answer("GET", path, parameters or {}, timeout) as response:
            body: bytes = await response.read()
            return body

    async def post(self, path: str, body: Mapping[str, Any]) -> None:
        """POST an object; the answer's body is dropped. Raises `ApiError`."""
        timeout = ClientTimeout(total=ANSWER_S, sock_connect=CONNECT_S)
        async with self._answer("POST", path, {}, timeout, body) as response:
            await response.read()

    @asynccontextmanager
    async def watch(self, path: str, parameters: Parameters) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The lines of a watch, as they come, until the server ends it. Raises `ApiError`."""
        timeout = ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        async with self._answer("GET", path, parameters, timeout) as response:
            yield _lines(response)

    async def close(self) -> None:
        """Close every connection; a later request opens new ones."""
        login, self._login = self._login, None
        if login is not None:
            await login.retire()

    # ------------------------------------------------------------------------------------------- requests

    @asynccontextmanager
    async def _answer(
        self, method: str, path: str, query: Parameters, patience: ClientTimeout, body: Mapping[str, Any] | None = None
    ) -> AsyncGenerator[ClientResponse]:
        """An answer whose status is a good one, its body yet to be read; every failure inside is an `ApiError`."""
        login = await self._logged_in()
        login.users += 1
        response: ClientResponse | None = None
        try:
            response = await self._request(login.client, method, path, query, patience, body)
            if not 200 <= response.status < 300:
                raise await _refusal(response)
            yield response
        except ApiError as error:
            if error.status == 401:
                await self._renew(login)
            raise
        except ssl.SSLError as error:
            await self._renew(login)  # the cluster's CA may have been changed beside us
            raise ApiError(f"TLS with the API server failed: {error}") from error
        except (ClientError, TimeoutError, OSError, EOFError) as error:
            if isinstance(error.__cause__, ssl.SSLError):
                await self._renew(login)
            raise ApiError(_said(error)) from error
        finally:
            if response is not None:
                response.close()
            await login.leave()

    @staticmethod
    async def _request(
        client: Any, method: str, path: str, query: Parameters, patience: ClientTimeout, body: Mapping[str, Any] | None
    ) -> ClientResponse:
        method, url, headers, data, _ = await client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = await client.rest_client.request(method, url, headers=headers, body=data, _request_timeout=patience)
        response: ClientResponse = answer.response
        return response

    # ---------------------------------------------------------------------------------------------- login

    async def _logged_in(self) -> _Login:
        async with self._opening:
            if self._login is None:
                configuration = await self._configuration()
                try:
                    client = _library()[0].ApiClient(configuration)
                except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
                    raise ApiError(f"the API server's certificates cannot be used: {error}") from error
                client.user_agent = USER_AGENT
                self._login = _Login(client)
            return self._login

    async def _renew(self, failed: _Login) -> None:
        """Have the next request read token and certificates again; what is being read from the old ones goes on."""
        if self._login is failed:
            self._login = None
            await failed.retire()

    async def _configuration(self) -> Any:
        client, config = _library()
        configuration = client.Configuration()
        if self._source.kubeconfig and not os.access(self._source.kubeconfig, os.R_OK):
            raise ApiError(f"source.kubeconfig: {self._source.kubeconfig} is not a file that can be read")
        try:
            if self._source.kubeconfig:
                await config.load_kube_config(
                    self._source.kubeconfig, self._source.context or None, configuration, persist_config=False
                )
            else:
                config.load_incluster_config(configuration)
        except config.ConfigException as error:
            raise ApiError(f"there is no way to the API server: {str(error).rstrip('.')}") from error
        except Exception as error:  # a file that is no kubeconfig may end in anything inside the package
            raise ApiError(
                f"{self._source.kubeconfig or 'the service account'} cannot be used: {_line(error)}"
            ) from error
        return configuration


async def _refusal(response: ClientResponse) -> ApiError:
    """What a Status body says (kubernetes.md: 401 and 403 are plain Status JSON, also for a watch)."""
    status = _Status()
    with suppress(msgspec.MsgspecError):
        status = msgspec.json.decode(await response.read(), type=_Status)
    text = " ".join((status.message or response.reason or "no reason given").split())[:300]
    return ApiError(f"HTTP {response.status}: {text}", response.status, _retry_after(response))


def _retry_after(response: ClientResponse) -> float | None:
    """Seconds (RFC 9110 section 10.2.3; the API server never writes a date)."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() and len(text) < 6 else None


async def _lines(response: ClientResponse) -> AsyncIterator[bytes]:
    """Cut what comes into lines. A line cut short by the end is an error: the connection was lost."""
    pending = bytearray()
    async for chunk in response.content.iter_any():
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            yield bytes(pending + chunk[start:end])
            pending.clear()
            start = end + 1
        pending += chunk[start:]
        if len(pending) > MAX_LINE:
            raise ApiError(f"the API server sent a line of more than {MAX_LINE} octets")
    if pending.strip():
        raise ApiError("the API server's answer ended in the middle of a line")


def _said(error: BaseException) -> str:
    """An error of the network in one short line that is the same for the same cause."""
    if isinstance(error, TimeoutError):
        return "the API server does not answer"
    if isinstance(error, ClientConnectorError):
        return f"no connection to the API server at {error.host}:{error.port}: {_reason(error)}"
    if isinstance(error, (ClientPayloadError, ServerDisconnectedError, ConnectionError)):
        return "the API server broke the connection off"
    return f"the connection to the API server failed: {str(error) or type(error).__name__}"


def _reason(error: ClientConnectorError) -> str:
    """Asyncio puts the address, and of several attempts all of them, into its own text; the number says why."""
    number = error.os_error.errno
    return os.strerror(number) if number and number > 0 else str(error.os_error)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
