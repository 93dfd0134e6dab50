"""The Prometheus operator's objects and the dashboard: their structure, their expressions, and the metrics in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from egressd.telemetry.table import GAUGE, HISTOGRAM, Metric, sample_names
from egressd.telemetry.table import METRICS as TABLE

from .rendering import DEPLOY, Manifest, agent_spec, manifests, one, tool, variables

METRICS = {metric.name: metric for metric in TABLE}
NONE = Metric("", "", "")
FOLDER = "overlays/monitoring"
FROM_PROMETHEUS = {"node", "job", "le"}
"""Labels that scraping adds, or that every histogram has."""
COUNTING = {"rate", "increase"}


def dashboard() -> dict[str, Any]:
    """The dashboard, out of its ConfigMap."""
    (text,) = one(manifests(FOLDER), "ConfigMap", "egressd-dashboard")["data"].values()
    found: dict[str, Any] = json.loads(text)
    return found


def alerts() -> list[dict[str, Any]]:
    """The alerting rules of all groups."""
    groups = one(manifests(FOLDER), "PrometheusRule", "egressd")["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """Every expression, by where it stands; Grafana's variables replaced as Grafana does."""
    found = {rule["alert"]: rule["expr"] for rule in alerts()}
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            text = re.sub(r"\$__(rate_interval|range)\b", "5m", target["expr"]).replace("$node", "n1")
            found[f"{panel['title']}/{target['refId']}"] = text
    return found


def uses(text: str) -> Iterator[tuple[str, str]]:
    """The metrics of an expression, each with its matchers."""
    yield from re.findall(r"\b([a-z_]+)(?=[{\[ )]|$)(?:\{([^}]*)\})?", text)


def family(name: str) -> str:
    """The metric that a time series belongs to."""
    base = name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
    return base if METRICS.get(base, NONE).kind == HISTOGRAM else name


def ours(text: str) -> list[tuple[str, str]]:
    """The metrics of egressd in an expression."""
    return [(name, matchers) for name, matchers in uses(text) if name.startswith("egressd_")]


def test_expressions_are_promql() -> None:
    """Prometheus' grammar takes every expression of alerts and dashboard, and not a broken one."""
    program = "import json, sys, promql_parser; [promql_parser.parse(text) for text in json.loads(sys.argv[1])]"
    texts = list(expressions().values())
    assert len(texts) > 25
    good = tool("python", "-c", program, json.dumps(texts))
    assert good.returncode == 0, good.stderr
    assert tool("python", "-c", program, json.dumps(["rate(egressd_ready[5m)"])).returncode != 0


def test_metrics_are_those_that_are_served() -> None:
    """Every metric used is in the daemon's own table, and none is asked for a label that it does not have."""
    for place, text in expressions().items():
        assert ours(text) or place == "EgressdDown"
        for name, matchers in ours(text):
            assert name in sample_names(), (place, name)
            labels = set(re.findall(r"(\w+)[=!]", matchers))
            for grouping in re.findall(r"\bby \(([^)]*)\)", text):
                labels |= set(grouping.replace(" ", "").split(","))
            assert labels <= FROM_PROMETHEUS.union(METRICS[family(name)].labels), (place, name)


def test_label_values_are_those_that_are_served() -> None:
    """Where the table lists a label's values, matchers ask for one of them."""
    for place, text in expressions().items():
        for name, matchers in ours(text):
            metric = METRICS[family(name)]
            known = {value for part in metric.parts for value in part.labels}
            for label, values in re.findall(r'(\w+)=~?"([^"]*)"', matchers):
                assert label == "node" or not known or set(values.split("|")) <= known, (place, name, label)


def test_counters_are_counted_and_gauges_are_not() -> None:
    """rate() and increase() stand around counters and histograms alone, and around each of them."""
    for place, text in expressions().items():
        counted = {name for call, name in re.findall(r"\b(\w+)\((\w+)(?:\{[^}]*\})?\[", text) if call in COUNTING}
        for name, _ in ours(text):
            assert (METRICS[family(name)].kind != GAUGE) == (name in counted), (place, name)


def test_labels_that_a_summary_names_are_kept() -> None:
    """A label in an alert's text is one that its expression still has."""
    for rule in alerts():
        kept = FROM_PROMETHEUS.union(*(METRICS[family(name)].labels for name, _ in ours(rule["expr"])))
        for grouping in re.findall(r"\bby \(([^)]*)\)", rule["expr"]):
            kept &= set(grouping.replace(" ", "").split(","))
        kept = set() if re.search(r"\b(max|sum|count)\(", rule["expr"]) else kept
        assert set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"])) <= kept, rule["alert"]


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_alert(rule: Manifest) -> None:
    """An alert has a severity, says what is wrong, and what it means or where to look."""
    assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert re.fullmatch(r"Egressd[A-Z]\w+", rule["alert"])
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert re.fullmatch(r"[1-9]\d*[mh]", rule.get("for", "1m"))
    assert set(rule["annotations"]) == {"summary", "description"}
    assert len(rule["annotations"]["description"]) > 40


def test_alert_names_are_unique() -> None:
    """No two alerts share a name."""
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names)) > 8


def test_podmonitor_reaches_what_the_pods_serve() -> None:
    """It selects the daemon's pods by labels they carry, and asks the port that the daemon is told to listen on."""
    found = manifests(FOLDER)
    spec = one(found, "PodMonitor", "egressd")["spec"]
    labels = one(found, "DaemonSet", "egressd")["spec"]["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    (endpoint,) = spec["podMetricsEndpoints"]
    assert not {"port", "portNumber", "targetPort"} & set(endpoint), "the container declares none"
    assert endpoint["path"] == "/metrics"
    keep, *replaced = endpoint["relabelings"]
    assert (keep["action"], keep["regex"]) == ("keep", agent_spec(FOLDER)["containers"][0]["name"])
    port = variables(FOLDER)["EGRESSD_ADMIN__LISTEN"].rpartition(":")[2]
    addresses = [each for each in replaced if each["targetLabel"] == "__address__"]
    scraped = {
        host: [re.sub(rf"^(?:{each['regex']})$", each["replacement"].replace("$1", r"\1"), host) for each in addresses]
        for host in ("192.0.2.7", "2001:db8::7")
    }
    assert f"192.0.2.7:{port}" in scraped["192.0.2.7"]
    assert f"[2001:db8::7]:{port}" in scraped["2001:db8::7"]
    assert {"targetLabel": "node"}.items() <= replaced[-1].items()


def test_dashboard() -> None:
    """Panels have a title, a description and a place of their own on the grid; Grafana's sidecar finds them."""
    configmap = one(manifests(FOLDER), "ConfigMap", "egressd-dashboard")
    assert configmap["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert len(yaml.safe_dump(configmap)) < 1024 * 1024
    taken: set[tuple[int, int]] = set()
    panels = dashboard()["panels"]
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert grid["x"] + grid["w"] <= 24
        assert not cells & taken
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)


def test_clusters_without_the_operator_can_install() -> None:
    """install.yaml has no kind that only a CRD brings."""
    assert "monitoring.coreos.com" not in (DEPLOY / "install.yaml").read_text()
