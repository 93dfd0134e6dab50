"""The running daemon, asked through its unix socket; standard library alone, so that a verb answers at once."""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, Final
from urllib.parse import urlencode

import click

from egressd.errors import EgressError, EnvironmentProblem
from egressd.settings import Admin

__all__ = ["Daemon", "Refusal", "daemon_options", "output_option"]

TIMEOUT_S: Final = 10.0
VARIABLE: Final = "EGRESSD_ADMIN__SOCKET"


class Refusal(EgressError):
    """The daemon said no: `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__("localhost")
        self._path = path
        self._patience = timeout

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(self._path)
        self.sock.settimeout(self._patience)


class Daemon:
    """A daemon by the path of its socket. Everything raises `EnvironmentProblem` when it cannot be asked."""

    def __init__(self, path: str) -> None:
        self.path = path

    def get(self, endpoint: str, **query: str | int | None) -> dict[str, Any]:
        """The JSON value that an endpoint answers. Raises `Refusal` for a problem document."""
        with closing(self._open(TIMEOUT_S)) as connection:
            value: dict[str, Any] = json.loads(self._answer(connection, endpoint, query).read())
            return value

    def lines(self, endpoint: str, *, patient: bool, **query: str | int | None) -> Iterator[bytes]:
        """The lines that an endpoint answers, as they come; `patient`: however long that takes."""
        with closing(self._open(None if patient else TIMEOUT_S)) as connection:
            response = self._answer(connection, endpoint, query)
            try:
                while line := response.readline():
                    yield line
            except (OSError, http.client.HTTPException):
                return  # the daemon ended: so do the records

    def _open(self, timeout: float | None) -> _Connection:
        connection = _Connection(self.path, timeout)
        try:
            connection.connect()
        except PermissionError:
            raise EnvironmentProblem(f"{self.path} may not be opened", "use sudo: only root may ask") from None
        except OSError as error:
            said = "there is none" if isinstance(error, FileNotFoundError) else str(error.strerror or error)
            remedy = f"start it with `egressd run`, or name its socket with --socket (or {VARIABLE})"
            raise EnvironmentProblem(f"no daemon answers at {self.path} ({said})", remedy) from None
        return connection

    def _answer(
        self, connection: _Connection, endpoint: str, query: Mapping[str, str | int | None]
    ) -> http.client.HTTPResponse:
        given = {key: str(value) for key, value in query.items() if value is not None}
        try:
            connection.request("GET", f"{endpoint}?{urlencode(given)}" if given else endpoint)
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            remedy = "see its log; `egressd run` starts it"
            raise EnvironmentProblem(f"the daemon at {self.path} did not answer ({error})", remedy) from None
        if response.status != http.client.OK:
            problem = json.loads(response.read() or b"{}")
            raise Refusal(problem.get("detail") or problem.get("title") or response.reason, response.status)
        return response


def daemon_options(function: Any) -> Any:
    """Adds --socket and --config to a verb; it gets `daemon`."""

    def chosen(context: click.Context, _parameter: click.Parameter, value: str | None) -> Daemon:
        if value is not None:
            return Daemon(value)
        config = context.params.get("config")
        if config is not None:
            from egressd.cli._files import settings_of

            return Daemon(settings_of(config).admin.socket)
        return Daemon(os.environ.get(VARIABLE) or Admin().socket)

    function = click.option(
        "--socket",
        "daemon",
        metavar="PATH",
        callback=chosen,
        help=f"The daemon's socket; default: ${VARIABLE}, admin.socket of --config, {Admin().socket}.",
    )(function)
    return click.option(
        "--config",
        type=click.Path(exists=True, dir_okay=False),
        is_eager=True,
        help="Settings file, for admin.socket.",
    )(function)


def output_option(function: Any) -> Any:
    """Adds --output to a verb."""
    choices = click.Choice(["table", "json", "yaml"])
    return click.option("--output", "-o", type=choices, default="table", help="How to print.")(function)
