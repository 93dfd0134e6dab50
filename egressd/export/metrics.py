"""What /metrics serves as an OTLP request: values in, bytes out; no clock, no socket.

Names are those of Prometheus, so that the dashboard and the alert rules hold whichever way the numbers came. Counters
become monotonic sums and the histogram one with explicit bounds, all cumulative since the process began.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric as Made
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from egressd.export.logs import SCOPE, fill
from egressd.telemetry import Reading
from egressd.telemetry.table import COUNTER, HISTOGRAM

__all__ = ["UNITS", "request"]

UNITS: Final[Mapping[str, str]] = {"_seconds": "s", "_bytes": "By"}
"""Units (UCUM) by the end of a name, without `_total`. Others have none: "1" would make "_ratio" of a gauge."""
CUMULATIVE: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE


def request(readings: Iterable[Reading], told_by: Resource, version: str, now_ns: int) -> bytes:
    """The body of one request with every reading; `now_ns` is when they were taken."""
    made = ExportMetricsServiceRequest()
    of_resource = made.resource_metrics.add()
    of_resource.resource.CopyFrom(told_by)
    of_scope = of_resource.scope_metrics.add()
    of_scope.scope.name, of_scope.scope.version = SCOPE, version
    for reading in readings:
        _metric(of_scope.metrics.add(), reading, now_ns)
    body: bytes = made.SerializeToString()
    return body


def _metric(made: Made, reading: Reading, now_ns: int) -> None:
    metric = reading.metric
    made.name, made.description = metric.name, metric.help
    stem = metric.name.removesuffix("_total")
    made.unit = next((unit for end, unit in UNITS.items() if stem.endswith(end)), "")
    if metric.kind == HISTOGRAM:
        _histogram(made, reading, now_ns)
        return
    points = made.gauge.data_points
    if metric.kind == COUNTER:
        made.sum.is_monotonic, made.sum.aggregation_temporality = True, CUMULATIVE
        points = made.sum.data_points
    for labels, value, since in reading.samples:
        point = points.add()
        _place(point, metric.labels, labels, since if metric.kind == COUNTER else 0.0, now_ns)
        if isinstance(value, int):
            point.as_int = int(value)
        else:
            point.as_double = value


def _histogram(made: Made, reading: Reading, now_ns: int) -> None:
    made.histogram.aggregation_temporality = CUMULATIVE
    for labels, total, since in reading.samples:
        point = made.histogram.data_points.add()
        _place(point, reading.metric.labels, labels, since, now_ns)
        point.sum, point.count = total, sum(reading.buckets)
        point.explicit_bounds.extend(reading.bounds)
        point.bucket_counts.extend(reading.buckets)


def _place(point: Any, names: tuple[str, ...], values: tuple[str, ...], since: float, now_ns: int) -> None:
    """Labels and times of a point."""
    for name, value in zip(names, values, strict=True):
        fill(point.attributes.add(), name, value)
    point.start_time_unix_nano, point.time_unix_nano = int(since * 1e9), now_ns
