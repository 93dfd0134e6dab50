"""Audit lines to an OTLP request: bytes in, bytes out; no clock, no socket.

The body of a log record is the line as it is in the audit file, so nothing is lost; beside it stand its fields as
attributes, under the names of OpenTelemetry's semantic conventions where there are such, else under `egressd.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, SeverityNumber
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

__all__ = ["FIELDS", "SCOPE", "fill", "request", "resource"]

SCOPE: Final = "egressd"

FIELDS: Final[Mapping[str, Mapping[str, str]]] = {
    "": {
        "verdict": "egressd.verdict",
        "reason": "egressd.reason",
        "policy": "egressd.policy",
        "rule": "egressd.rule",
        "latency_us": "egressd.latency_us",
        "granted": "egressd.granted",
        "search": "egressd.search",
        "aggregated": "egressd.aggregated",
        "packets": "egressd.packets",
        "change": "egressd.change",
        "error": "error.message",
        "dropped": "egressd.dropped",
    },
    "pod": {
        "namespace": "k8s.namespace.name",
        "name": "k8s.pod.name",
        "uid": "k8s.pod.uid",
        "ip": "source.address",
        "service_account": "egressd.service_account",
        "workload": "egressd.workload",
    },
    "query": {
        "name": "dns.question.name",
        "type": "egressd.question.type",
        "transport": "network.transport",
        "server": "server.address",
        "port": "source.port",
    },
    "response": {
        "rcode": "egressd.response.rcode",
        "addresses": "dns.answers",
        "cnames": "egressd.response.cnames",
        "ttl": "egressd.response.ttl",
        "cached": "egressd.response.cached",
    },
    "destination": {
        "ip": "destination.address",
        "port": "destination.port",
        "protocol": "network.transport",
        "names": "egressd.destination.names",
    },
}
"""Attributes by the record's part (interface.md, Audit records) and field; "" are its own fields."""

WORKLOADS: Final = {
    "Deployment": "k8s.deployment.name",
    "StatefulSet": "k8s.statefulset.name",
    "DaemonSet": "k8s.daemonset.name",
    "ReplicaSet": "k8s.replicaset.name",
    "Job": "k8s.job.name",
    "CronJob": "k8s.cronjob.name",
}

_INFO: Final = (SeverityNumber.SEVERITY_NUMBER_INFO, "INFO")
_WARN: Final = (SeverityNumber.SEVERITY_NUMBER_WARN, "WARN")
_ERROR: Final = (SeverityNumber.SEVERITY_NUMBER_ERROR, "ERROR")
SEVERITIES: Final = {
    "denied": _WARN,
    "would-deny": _WARN,
    "would-allow": _WARN,  # it was denied (policy.md, Audit)
    "refused": _ERROR,
    "audit": _WARN,
}
"""By verdict, else by what became of a policy, else by event; whatever is not here is for information."""

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def resource(node: str, version: str, attributes: Mapping[str, str]) -> Resource:
    """Who tells: this daemon. `attributes` are others' wishes, which count."""
    told = {"service.name": "egressd", "service.version": version, "service.instance.id": node, "k8s.node.name": node}
    made = Resource()
    for key, value in {**told, **attributes}.items():
        fill(made.attributes.add(), key, value)
    return made


def request(lines: bytes, told_by: Resource, version: str, now_ns: int) -> bytes:
    """The body of one request with every line as a log record; `now_ns` is when they were seen."""
    made = ExportLogsServiceRequest()
    of_resource = made.resource_logs.add()
    of_resource.resource.CopyFrom(told_by)
    of_scope = of_resource.scope_logs.add()
    of_scope.scope.name, of_scope.scope.version = SCOPE, version
    add = of_scope.log_records.add
    for line in lines.splitlines():
        _record(add(), line, now_ns)
    body: bytes = made.SerializeToString()
    return body


def _record(made: LogRecord, line: bytes, now_ns: int) -> None:
    made.observed_time_unix_nano = now_ns
    made.body.string_value = line.decode("utf-8", "replace")
    try:
        record = _decode(line)
    except msgspec.MsgspecError:  # not one of ours, but somebody may still want to read it
        return
    event = str(record.get("event", ""))
    made.time_unix_nano = _nanoseconds(record.get("time"))
    made.event_name = f"egressd.{event}"
    what = record.get("verdict") or record.get("change") or event
    made.severity_number, made.severity_text = SEVERITIES.get(str(what), _INFO)
    add = made.attributes.add
    for part, names in FIELDS.items():
        fields = record.get(part) if part else record
        if isinstance(fields, dict):
            for field, name in names.items():
                if field in fields:
                    fill(add(), name, fields[field])
    kind, _, owner = str(record.get("pod", {}).get("workload", "")).partition("/")
    if kind in WORKLOADS:
        fill(add(), WORKLOADS[kind], owner)


def fill(attribute: Any, key: str, value: object) -> None:
    """Set a KeyValue's key and value."""
    attribute.key = key
    _set(attribute.value, value)


def _set(made: AnyValue, value: object) -> None:
    if isinstance(value, str):
        made.string_value = value
    elif isinstance(value, bool):
        made.bool_value = value
    elif isinstance(value, int):
        made.int_value = value
    elif isinstance(value, list):
        made.array_value.SetInParent()  # an empty list is a list
        for item in value:
            _set(made.array_value.values.add(), item)
    else:
        made.string_value = str(value)


def _nanoseconds(text: object) -> int:
    """RFC 3339 as nanoseconds since the epoch; 0, which is "unknown", where it is none."""
    try:
        moment = datetime.fromisoformat(str(text))
        return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000
    except (ValueError, OverflowError):
        return 0
