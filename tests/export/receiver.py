"""A small OTLP/HTTP collector: takes what is posted, decodes it, and answers as it is told to."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric

__all__ = ["Receiver", "receiving", "values"]

REQUESTS: Final[dict[str, Any]] = {"/v1/logs": ExportLogsServiceRequest, "/v1/metrics": ExportMetricsServiceRequest}


def values(attributes: Any) -> dict[str, Any]:
    """Attributes as plain values."""
    return {each.key: _value(each.value) for each in attributes}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    return getattr(value, kind)


@dataclass
class Receiver:
    """What came, and how to answer: `script` has (status, headers) of the next answers, then it is 200."""

    url: str = ""
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    """Path, headers and decoded message of each request."""
    script: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    rejected: int = 0
    """Records that it says it left out."""
    hangs: threading.Event = field(default_factory=threading.Event)
    """While set, requests get no answer until `released`."""
    released: threading.Event = field(default_factory=threading.Event)

    def taken(self, path: str) -> list[Any]:
        """The messages of one path that were answered 200."""
        return [
            message for where, headers, message in list(self.requests) if where == path and "x-refused" not in headers
        ]

    def records(self) -> list[LogRecord]:
        """Every log record that was taken, in order."""
        return [
            record
            for message in self.taken("/v1/logs")
            for of_resource in message.resource_logs
            for of_scope in of_resource.scope_logs
            for record in of_scope.log_records
        ]

    def metrics(self) -> dict[str, Metric]:
        """The metrics of the last set that was taken, by name."""
        (of_resource,) = self.taken("/v1/metrics")[-1].resource_metrics
        (of_scope,) = of_resource.scope_metrics
        return {metric.name: metric for metric in of_scope.metrics}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, listener: socket.socket, receiver: Receiver) -> None:
        super().__init__(listener.getsockname(), _Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        self.receiver = receiver


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        receiver = self.server.receiver
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if receiver.hangs.is_set():
            receiver.released.wait(60)
        status, more = receiver.script.pop(0) if receiver.script else (200, {})
        headers = {key.lower(): value for key, value in self.headers.items()} | (
            {} if status == 200 else {"x-refused": ""}
        )
        receiver.requests.append((self.path, headers, REQUESTS[self.path].FromString(gzip.decompress(body))))
        answer = ExportLogsServiceResponse()
        if receiver.rejected:
            answer.partial_success.rejected_log_records = receiver.rejected
        self.send_response(status)
        for key, value in {**more, "Content-Length": str(len(answer.SerializeToString()))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(answer.SerializeToString())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class says so
        """Nothing on the terminal."""


@contextmanager
def receiving(listener: socket.socket | None = None) -> Iterator[Receiver]:
    """A receiver on a listening socket, by default one of this namespace's loopback."""
    listener = listener or socket.create_server(("127.0.0.1", 0))
    receiver = Receiver(f"http://127.0.0.1:{listener.getsockname()[1]}")
    server = _Server(listener, receiver)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
