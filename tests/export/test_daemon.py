"""The export of the running daemon: from a pod's query to the collector, and to nobody's harm."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.shop import API4, Shop, addresses, ask, open_shop

from egressd.lab import eventually

from .receiver import Receiver, receiving, values

RULES = "allow:\n- name: api\n  to: [api.example.com]\n"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[tuple[Shop, Receiver]]:
    """A node with a policy, a collector beside the daemon, and the export on; the daemon is not started yet."""
    with (
        open_shop(tmp_path, start=False) as shop,
        receiving(shop.node.call(socket.create_server, ("127.0.0.1", 0))) as receiver,
    ):
        shop.daemon.settings["otlp"] = {"endpoint": receiver.url, "interval": "1s"}
        shop.policy("shop/web", RULES)
        yield shop, receiver


def test_records_and_metrics_of_a_node(stage: tuple[Shop, Receiver]) -> None:
    """A query and a refused one are log records with the names of the conventions; metrics count them."""
    shop, receiver = stage
    shop.daemon.start()
    ask(shop.web, "api.example.com")
    ask(shop.web, "denied.example")

    def arrived() -> dict[str, dict[str, object]]:
        found = [(record, values(record.attributes)) for record in receiver.records()]
        return {
            told["dns.question.name"]: told | {"severity": record.severity_text}
            for record, told in found
            if "dns.question.name" in told
        }

    eventually(lambda: {"api.example.com", "denied.example"} <= arrived().keys(), what="the records", timeout=20)
    allowed, denied = arrived()["api.example.com"], arrived()["denied.example"]
    assert (allowed["egressd.verdict"], allowed["severity"], allowed["dns.answers"]) == ("allowed", "INFO", [API4])
    assert (denied["egressd.verdict"], denied["severity"]) == ("denied", "WARN")
    assert (denied["k8s.namespace.name"], denied["k8s.pod.name"]) == ("shop", "web-0")

    def counted() -> dict[str, int]:
        metrics = receiver.metrics() if receiver.taken("/v1/metrics") else {}
        points = metrics["egressd_dns_queries_total"].sum.data_points if "egressd_dns_queries_total" in metrics else []
        return {values(point.attributes)["verdict"]: point.as_int for point in points}

    eventually(lambda: counted() == {"allowed": 1, "denied": 1}, what="metrics", timeout=20)
    written = {line for line in shop.daemon.audit_file.read_text().splitlines() if '"dns"' in line}
    assert written <= {record.body.string_value for record in receiver.records()}


def test_collector_that_hangs(stage: tuple[Shop, Receiver]) -> None:
    """Names are answered and records written as ever, and the daemon ends in time, with its file whole."""
    shop, receiver = stage
    receiver.hangs.set()
    shop.daemon.start()
    for _ in range(50):
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
    assert shop.daemon.stop(timeout=20) == 0
    assert len(shop.daemon.records("dns")) == 50
    assert not receiver.records()


def test_without_the_extra(stage: tuple[Shop, Receiver], tmp_path: Path) -> None:
    """With an endpoint and no library the daemon does not start: exit code 3, and the command that helps."""
    shop, _ = stage
    shadow = tmp_path / "shadow" / "opentelemetry"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("")
    config = tmp_path / "settings.yaml"
    config.write_text(json.dumps(shop.daemon.settings))
    argv = ["env", f"PYTHONPATH={shadow.parent}", sys.executable, "-m", "egressd", "run", "--config", str(config)]
    done: subprocess.CompletedProcess[str] = shop.node.run(argv)
    assert done.returncode == 3, done.stderr
    assert "pip install 'egressd[otlp]'" in done.stderr


def test_reload(stage: tuple[Shop, Receiver]) -> None:
    """SIGHUP turns the export on; an endpoint that is none leaves everything as it was."""
    shop, receiver = stage
    endpoint = shop.daemon.settings.pop("otlp")
    shop.daemon.start()
    file = shop.daemon.folder / "egressd.yaml"
    ask(shop.web, "before.example")
    shop.dns_record(shop.web, "before.example")

    def reload(otlp: dict[str, str]) -> None:
        file.write_text(json.dumps(shop.daemon.settings | {"otlp": otlp}))
        shop.daemon.signal(signal.SIGHUP)

    def heard(name: str) -> bool:
        ask(shop.web, name)
        return any(name in record.body.string_value for record in receiver.records())

    reload(endpoint)
    eventually(lambda: heard("after.example"), what="a record at the collector", timeout=30)
    assert not any("before.example" in record.body.string_value for record in receiver.records())
    reload({"endpoint": "nowhere"})
    eventually(lambda: "is not a collector's URL" in shop.daemon.log(), what="the complaint", timeout=30)
    eventually(lambda: heard("still.example"), what="a record at the collector", timeout=30)
