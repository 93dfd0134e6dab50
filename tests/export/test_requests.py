"""What goes out: records and metrics as the collector reads them, and what the variables say."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from prometheus_client.parser import text_string_to_metric_families
from telemetry.test_metrics import facts, full

from egressd.audit import Renderer
from egressd.errors import EnvironmentProblem
from egressd.export import check
from egressd.export import logs as log_requests
from egressd.export import metrics as metric_requests
from egressd.export.access import Access
from egressd.model import DnsRecord, FlowRecord, PodIdentity, PolicyRecord, Reason, Verdict
from egressd.settings import Otlp
from egressd.telemetry import exposition, readings

from .receiver import values

POD = PodIdentity("shop", "web-0", "6f1c", "web", "Deployment/web")
CLIENT = bytes((10, 244, 0, 5))
FAR = bytes((198, 51, 100, 2))
RENDERER = Renderer("n1")
WHEN = 1_763_816_400.25
DNS = DnsRecord(
    time=WHEN,
    client=CLIENT,
    pod=POD,
    name="api.example.com",
    qtype=1,
    transport="udp",
    server=bytes((10, 96, 0, 10)),
    port=41233,
    verdict=Verdict.ALLOWED,
    reason=Reason.RULE,
    policy="shop/web",
    rule="api",
    rcode=0,
    addresses=(FAR,),
    cnames=("edge.example",),
    ttl=5,
    cached=False,
    granted=(FAR,),
    latency_us=812,
)
FLOW = FlowRecord(
    time=WHEN,
    client=CLIENT,
    pod=POD,
    destination=FAR,
    port=443,
    protocol=6,
    names=("api.example.com",),
    verdict=Verdict.DENIED,
    reason=Reason.NO_RULE,
    policy="",
    rule="",
    packets=3,
)


def sent(*lines: bytes) -> list[LogRecord]:
    """The log records that a collector reads out of a request for the lines."""
    told_by = log_requests.resource("n1", "0.1.0", {})
    message = ExportLogsServiceRequest.FromString(log_requests.request(b"".join(lines), told_by, "0.1.0", 7))
    return list(message.resource_logs[0].scope_logs[0].log_records)


def test_dns_record() -> None:
    """Of a query: body, times, event, severity, and every field under its name, workload by its kind."""
    line = RENDERER.dns_line(DNS)
    (record,) = sent(line)
    assert json.loads(record.body.string_value) == json.loads(line)
    assert (record.time_unix_nano, record.observed_time_unix_nano) == (1_763_816_400_250_000_000, 7)
    assert (record.event_name, record.severity_text) == ("egressd.dns", "INFO")
    assert values(record.attributes) == {
        "k8s.namespace.name": "shop",
        "k8s.pod.name": "web-0",
        "k8s.pod.uid": "6f1c",
        "k8s.deployment.name": "web",
        "egressd.service_account": "web",
        "egressd.workload": "Deployment/web",
        "source.address": "10.244.0.5",
        "source.port": 41233,
        "server.address": "10.96.0.10",
        "network.transport": "udp",
        "dns.question.name": "api.example.com",
        "egressd.question.type": "A",
        "dns.answers": ["198.51.100.2"],
        "egressd.response.rcode": "NOERROR",
        "egressd.response.cnames": ["edge.example"],
        "egressd.response.ttl": 5,
        "egressd.response.cached": False,
        "egressd.verdict": "allowed",
        "egressd.reason": "rule",
        "egressd.policy": "shop/web",
        "egressd.rule": "api",
        "egressd.granted": ["198.51.100.2"],
        "egressd.latency_us": 812,
    }


def test_flow_record() -> None:
    """Of a flow: the destination in the semantic conventions' names, and a warning where it was denied."""
    (record,) = sent(RENDERER.flow_line(FLOW))
    found = values(record.attributes)
    assert (record.event_name, record.severity_text) == ("egressd.flow", "WARN")
    assert found["destination.address"] == "198.51.100.2"
    assert (found["destination.port"], found["network.transport"]) == (443, "tcp")
    assert (found["egressd.destination.names"], found["egressd.packets"]) == (["api.example.com"], 3)


@pytest.mark.parametrize(
    ("line", "severity"),
    [
        (RENDERER.dns_line(DNS._replace(verdict=Verdict.WOULD_DENY)), "WARN"),
        (RENDERER.dns_line(DNS._replace(verdict=Verdict.WOULD_ALLOW)), "WARN"),
        (RENDERER.policy_line(PolicyRecord(WHEN, "shop/web", "updated", "")), "INFO"),
        (RENDERER.policy_line(PolicyRecord(WHEN, "shop/web", "refused", "line 3")), "ERROR"),
        (RENDERER.dropped_line(5, WHEN), "WARN"),
        (b"no record at all\xff\n", ""),
    ],
    ids=["would-deny", "would-allow", "updated", "refused", "dropped", "odd"],
)
def test_severity(line: bytes, severity: str) -> None:
    """Severity follows verdict or event; a line that is no record is sent as it is."""
    (record,) = sent(line)
    assert record.severity_text == severity
    assert record.body.string_value.startswith(line[:16].decode())


def test_every_field_has_a_name() -> None:
    """No field of a record is without its attribute, but for those that time, event and resource stand for."""
    lines = [
        RENDERER.dns_line(DNS._replace(search=True, aggregated=4)),
        RENDERER.flow_line(FLOW),
        RENDERER.policy_line(PolicyRecord(WHEN, "shop/web", "refused", "line 3")),
        RENDERER.dropped_line(5, WHEN),
    ]
    elsewhere = {"time", "event", "node"}
    for line in lines:
        for key, value in json.loads(line).items():
            if isinstance(value, dict):
                assert set(value) <= set(log_requests.FIELDS[key]), key
            else:
                assert key in elsewhere or key in log_requests.FIELDS[""], key


def test_metrics_are_those_that_are_scraped() -> None:
    """Every series of a scrape is in the request, under its name, with its labels and its value."""
    said = facts(full())
    told_by = log_requests.resource("n1", "0.1.0", {})
    body = metric_requests.request(readings(said), told_by, "0.1.0", 9)
    metrics = ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics[0].metrics
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for metric in metrics:
        for point in [*metric.gauge.data_points, *metric.sum.data_points]:
            assert point.time_unix_nano == 9
            value = point.as_int if point.WhichOneof("value") == "as_int" else point.as_double
            found[metric.name, frozenset(values(point.attributes).items())] = value
        for point in metric.histogram.data_points:
            below = 0
            for bound, count in zip(
                [*(f"{each:g}" for each in point.explicit_bounds), "+Inf"], point.bucket_counts, strict=True
            ):
                below += count
                found[f"{metric.name}_bucket", frozenset({("le", bound)})] = below
            found[f"{metric.name}_sum", frozenset()] = point.sum
            found[f"{metric.name}_count", frozenset()] = point.count
    scraped = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition(said).decode())
        for sample in family.samples
    }
    assert found == scraped


def test_counters_have_a_beginning() -> None:
    """Counters and the histogram are cumulative sums since their process began; durations have their unit."""
    body = metric_requests.request(readings(facts(full())), log_requests.resource("n1", "0.1.0", {}), "0.1.0", 9)
    metrics = {
        m.name: m for m in ExportMetricsServiceRequest.FromString(body).resource_metrics[0].scope_metrics[0].metrics
    }
    queries = metrics["egressd_dns_queries_total"].sum
    assert queries.is_monotonic
    assert queries.aggregation_temporality == metric_requests.CUMULATIVE
    assert {point.start_time_unix_nano for point in queries.data_points} == {1_700_000_000_000_000_000}
    assert metrics["egressd_cpu_seconds_total"].unit == metrics["egressd_dns_query_duration_seconds"].unit == "s"
    assert (metrics["egressd_cache_bytes"].unit, metrics["egressd_ready"].unit) == ("By", "")


# --------------------------------------------------------------------------------------------------- variables


def test_variables() -> None:
    """Headers by signal, the more special ones counting, and attributes of the resource, percent-decoded."""
    access = Access.read(
        {
            "OTEL_EXPORTER_OTLP_HEADERS": "Authorization=Basic%20c2VjcmV0, x-tenant = a",
            "OTEL_EXPORTER_OTLP_LOGS_HEADERS": "x-tenant=b",
            "OTEL_RESOURCE_ATTRIBUTES": "k8s.cluster.name=blue,service.name=filter",
        }
    )
    assert access.headers["metrics"] == {"authorization": "Basic c2VjcmV0", "x-tenant": "a"}
    assert access.headers["logs"]["x-tenant"] == "b"
    told = values(log_requests.resource("n1", "0.1.0", access.attributes).attributes)
    assert told["k8s.cluster.name"] == "blue"
    assert (told["service.name"], told["k8s.node.name"]) == ("filter", "n1")
    assert "c2VjcmV0" not in repr(access)


@pytest.mark.parametrize(
    "text", ["secret-without-key", "=secret", "a b=secret", "x=secret%0d%0aHost: other", "x=s%C3%A9cret"]
)
def test_odd_headers_are_refused(text: str) -> None:
    """What cannot be a header stops the start, and the error does not quote it."""
    with pytest.raises(EnvironmentProblem) as caught:
        check(Otlp("http://192.0.2.1:4318"), {"OTEL_EXPORTER_OTLP_HEADERS": f"ok=1,{text}"})
    assert "OTEL_EXPORTER_OTLP_HEADERS: entry 2" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_certificates_are_read_at_the_start() -> None:
    """A certificate that is not there stops the start of an export over TLS, and of no other."""
    environ = {"OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere/ca.pem"}
    check(Otlp("http://192.0.2.1:4318"), environ)
    with pytest.raises(EnvironmentProblem, match="OTEL_EXPORTER_OTLP_CERTIFICATE"):
        check(Otlp("https://192.0.2.1:4318"), environ)


def test_nothing_is_imported_unless_it_is_wanted() -> None:
    """Starting the control side imports no part of the extra; without it an endpoint is refused, with the remedy."""
    program = """
import sys
import egressd.control
assert not [name for name in sys.modules if name.startswith(("opentelemetry", "google.protobuf", "aiohttp"))]
sys.modules["opentelemetry"] = None
from egressd.export import check
from egressd.settings import Otlp
check(Otlp(), {})
try:
    check(Otlp("http://192.0.2.1:4318"), {})
except Exception as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'egressd[otlp]'" in done.stdout


def test_settings_say_what_is_sent() -> None:
    """Without an endpoint nothing else of `otlp` is looked at."""
    check(replace(Otlp(), logs=False, metrics=False), {"OTEL_EXPORTER_OTLP_HEADERS": "broken"})
