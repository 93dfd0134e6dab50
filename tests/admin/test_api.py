"""The admin API of the running daemon: sockets, endpoints, probes under failure, followers, and its own description."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from e2e.shop import API4, Shop, ask, open_shop
from hypothesis import given
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.specs.openapi.checks import positive_data_acceptance

from egressd.lab import eventually

RULES = "allow:\n- to: [api.example.com]\n  ports: [80/TCP]\n"
TCP = "http://127.0.0.1:9477"


class Answer:
    """What the daemon answered on its unix socket."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def connect(shop: Shop, timeout: float = 20.0) -> http.client.HTTPConnection:
    """A connection to the unix socket, which is there a moment after the daemon intercepts."""
    place = Path(shop.daemon.settings["admin"]["socket"])
    eventually(place.exists, what="the admin socket")
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(timeout)
    connection.sock.connect(shop.daemon.settings["admin"]["socket"])
    return connection


def get(shop: Shop, path: str, method: str = "GET") -> Answer:
    with contextlib.closing(connect(shop)) as connection:
        connection.request(method, path)
        return Answer(connection.getresponse())


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A running node: `web` may reach api.example.com on port 80, and has asked for it; one policy is refused."""
    with open_shop(tmp_path_factory.mktemp("shop")) as made:
        made.policy("shop/web", RULES)
        made.daemon.put_policy("shop/bad", "allow:\n- to: [api.*.example.com]\n")
        ask(made.web, "api.example.com")
        ask(made.web, "denied.example")
        ask(made.free, "api.example.com")
        made.dns_record(made.free, "api.example.com")
        eventually(lambda: get(made, "/api/v1/status").json["queries"]["total"] >= 3, what="counters")
        yield made


# -------------------------------------------------------------------------------------------------------- sockets


def test_the_socket_is_roots(shop: Shop) -> None:
    """Nobody else may open it, from the moment it is there."""
    mode = Path(shop.daemon.settings["admin"]["socket"]).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


def curl(shop: Shop, *arguments: str) -> tuple[int, str]:
    """Status and body of a request over TCP from the node."""
    text = shop.node.run(["curl", "-s", "-m", "10", "-w", "\n%{http_code}", *arguments], check=True).stdout
    body, _, status = text.rpartition("\n")
    return int(status), body


def test_tcp_answers_to_its_address_alone(shop: Shop) -> None:
    """A page whose own name points here (DNS rebinding) reads nothing; an address, and localhost, are fine."""
    assert curl(shop, f"{TCP}/readyz") == (200, '{"ready":true}')
    assert curl(shop, "-H", "Host: localhost:9477", f"{TCP}/readyz")[0] == 200
    status, body = curl(shop, "-H", "Host: evil.example:9477", f"{TCP}/api/v1/audit")
    assert status == 421
    assert json.loads(body)["status"] == 421
    assert "denied.example" not in body


def test_no_other_origin_may_read(shop: Shop) -> None:
    """There is no CORS header, whoever asks, and nothing may be cached or sniffed."""
    text = shop.node.run(["curl", "-s", "-i", "-H", "Origin: http://evil.example", f"{TCP}/api/v1/status"]).stdout
    head = text.partition("\r\n\r\n")[0].lower()
    assert "access-control-" not in head
    assert "x-content-type-options: nosniff" in head
    assert "cache-control: no-store" in head
    assert "aiohttp" not in head


# ------------------------------------------------------------------------------------------------------ endpoints


def test_status(shop: Shop) -> None:
    """What the node is, and what it has counted."""
    status = get(shop, "/api/v1/status").json
    assert status["ready"]
    assert (status["node"], status["source"]["kind"]) == ("n1", "directory")
    assert (status["policies"]["refused"], status["pods"] >= 3) == (1, True)
    assert status["queries"]["denied"] >= 1
    assert status["upstreams"][0]["healthy"]


def test_policies_have_conditions(shop: Shop) -> None:
    """A good one is accepted and programmed; a refused one says where in its text, and what to write instead."""
    good, bad = (
        next(p for p in get(shop, "/api/v1/policies").json["policies"] if p["name"] == name)
        for name in ("shop/web", "shop/bad")
    )
    assert {c["type"]: c["status"] for c in good["conditions"]} == {"Accepted": "True", "Programmed": "True"}
    (rule,) = good["rules"]
    assert rule.pop("uses") >= 1
    assert rule.pop("last_used").endswith("Z")
    assert rule == {"name": "allow[0]", "action": "allow", "to": ["api.example.com"], "ports": "80/TCP"} | {
        "allow_private": False,
        "line": 3,
    }
    assert good["pods"] == 1
    assert {c["type"]: c["status"] for c in bad["conditions"]} == {"Accepted": "False", "Programmed": "False"}
    fault = bad["problems"][0]
    assert fault["line"] > 0
    assert fault["column"] > 0
    assert "'*.example.com'" in fault["message"]


def test_pods(shop: Shop) -> None:
    """Pods with their addresses and policies; a namespace narrows them down."""
    web = next(pod for pod in get(shop, "/api/v1/pods?namespace=shop").json["pods"] if pod["name"] == "web-0")
    assert web["addresses"] == [shop.web.v4, shop.web.v6]
    assert (web["policies"], web["enforced"], web["service_account"]) == (["shop/web"], True, "web")
    assert get(shop, "/api/v1/pods?namespace=nowhere").json == {"pods": [], "truncated": False}
    assert get(shop, "/api/v1/pods?limit=1").json["truncated"]


@pytest.mark.parametrize(
    "query", ["", "?pod=shop/web-0", "?name=API.example.com", "?pod=shop/web-0&name=api.example.com"]
)
def test_grants(shop: Shop, query: str) -> None:
    """The grant that the look-up gave, by whichever way it is looked for."""
    grants = get(shop, f"/api/v1/grants{query}").json["grants"]
    assert [(g["name"], g["address"], g["ports"], g["policies"]) for g in grants] == [
        ("api.example.com", API4, "80/TCP", ["shop/web"])
    ]
    assert 0 < grants[0]["remaining_s"] <= 90


def test_grants_of_a_stranger(shop: Shop) -> None:
    """A pod that is not here is a problem, not an empty list."""
    answer = get(shop, "/api/v1/grants?pod=shop/nobody")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/problem+json")
    assert "shop/nobody" in answer.json["detail"]


def test_audit(shop: Shop) -> None:
    """Whole records, one a line, filtered."""
    answer = get(shop, "/api/v1/audit?pod=shop/web-0&verdict=denied")
    records = [json.loads(line) for line in answer.body.splitlines()]
    assert answer.headers["Content-Type"] == "application/x-ndjson"
    assert {record["query"]["name"] for record in records} == {"denied.example"}
    assert get(shop, "/api/v1/audit?name=*.nowhere.example").body == b""


def test_metrics(shop: Shop) -> None:
    """A scrape parses, has counted the queries and names nobody."""
    text = get(shop, "/metrics").body.decode()
    values = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["egressd_dns_queries_total", frozenset({("verdict", "denied"), ("reason", "no-rule")})] >= 1
    assert values["egressd_ready", frozenset()] == 1
    assert values["egressd_resident_memory_bytes", frozenset({("process", "data-path")})] > 1 << 20
    assert "example.com" not in text
    assert shop.web.v4 not in text


def test_what_is_not_there(shop: Shop) -> None:
    """A wrong path and a wrong method are problem documents too."""
    assert get(shop, "/api/v2/status").json["status"] == 404
    answer = get(shop, "/api/v1/status", "DELETE")
    assert (answer.status, answer.json["status"], answer.headers["Allow"]) == (405, 405, "GET, HEAD")
    assert get(shop, "/healthz", "HEAD").status == 200


def test_the_page(shop: Shop) -> None:
    """`/` is a page that may load its own parts and nothing else (tests/web looks at it in a browser)."""
    answer = get(shop, "/")
    assert b"/static/main.js" in answer.body
    assert get(shop, "/static/main.js").headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]


# ------------------------------------------------------------------------------------------------------ following


def follow(connection: http.client.HTTPConnection, query: str) -> http.client.HTTPResponse:
    connection.request("GET", f"/api/v1/audit?follow=1&{query}")
    return connection.getresponse()


def test_following(shop: Shop) -> None:
    """What happens next comes at once, and only what was asked for."""
    with contextlib.closing(connect(shop)) as connection:
        response = follow(connection, "limit=0&verdict=denied")
        ask(shop.web, "api.example.com")
        ask(shop.web, "follow.example")
        assert json.loads(response.readline())["query"]["name"] == "follow.example"


def test_policies_are_followed_too(shop: Shop) -> None:
    """Records that the control side writes itself are among them."""
    with contextlib.closing(connect(shop)) as connection:
        response = follow(connection, "limit=0&event=policy")
        shop.policy(
            "shop/late", "allow: [{to: [late.example]}]\n", "subject: {podSelector: {matchLabels: {app: late}}}\n"
        )
        while (record := json.loads(response.readline()))["policy"] != "shop/late":
            assert record["event"] == "policy"
        assert record["change"] == "updated"


def test_a_follower_who_does_not_read(shop: Shop) -> None:
    """He costs nobody anything: others follow, records are written, the link goes on."""
    with contextlib.closing(connect(shop)) as idle, contextlib.closing(connect(shop)) as keen:
        follow(idle, "limit=10000")
        response = follow(keen, "limit=0&name=*.flood.example")
        for number in range(300):
            ask(shop.web, f"n{number}.flood.example")
        names = [json.loads(response.readline())["query"]["name"] for _ in range(150)]
        assert names == [f"n{number}.flood.example" for number in range(150)]
        shop.dns_record(shop.web, "n150.flood.example")


# -------------------------------------------------------------------------------------------- its own description


def test_openapi_holds(shop: Shop) -> None:
    """Whatever is sent, the daemon answers as its OpenAPI document says, and never with a fault of its own."""
    described = get(shop, "/api/v1/openapi.json").json
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=TCP)
    for found in schema.get_all_operations():
        operation: Any = found
        operation = operation.ok()

        @given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=12,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def holds(case: Any) -> None:
            if isinstance(case.query, dict) and case.query.get("follow") in {"1", 1}:
                case.query["follow"] = "0"  # it would never end
            # a name is more than its length, which is all that the schema says of it
            case.call_and_validate(excluded_checks=[positive_data_acceptance], timeout=20)

        shop.node.call(holds)


# ---------------------------------------------------------------------------------------------------- when it fails


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[Shop]:
    """A node of its own, to be broken."""
    with open_shop(tmp_path) as made:
        made.policy("shop/web", RULES)
        yield made


def reasons(shop: Shop) -> set[str]:
    answer = get(shop, "/readyz")
    return set() if answer.status == 200 else {reason["reason"] for reason in answer.json["reasons"]}


def test_a_stopped_data_path(lone: Shop) -> None:
    """The probe says so, a scrape still answers, a question is refused in time; and all is well when it goes on."""
    lone.daemon.signal(signal.SIGSTOP)
    try:
        eventually(lambda: reasons(lone) == {"data-path-away"}, timeout=20.0)
        began = time.monotonic()
        assert get(lone, "/metrics").status == 200
        assert time.monotonic() - began < 2.0
        assert get(lone, "/api/v1/pods").status == 504
        assert get(lone, "/healthz").status == 200
    finally:
        lone.daemon.signal(signal.SIGCONT)
    eventually(lambda: reasons(lone) == set(), timeout=20.0)
    assert get(lone, "/api/v1/pods").status == 200


def test_failing_upstreams(lone: Shop) -> None:
    """With no upstream that answers the node is not ready, and says which ones it asked."""
    lone.node.dns.close()
    for number in range(8):
        with contextlib.suppress(Exception):
            ask(lone.free, f"u{number}.example", timeout=0.1)
    eventually(lambda: "upstreams-failing" in reasons(lone), timeout=30.0)
    assert "10.244.0.53" in get(lone, "/readyz").json["detail"]


def test_a_new_control_side(lone: Shop) -> None:
    """When the control side is killed its successor serves the same socket, and knows the counters of before."""
    ask(lone.web, "api.example.com")
    eventually(lambda: get(lone, "/api/v1/status").json["queries"]["total"] == 1)
    for child in lone.daemon.children():
        os.kill(child, signal.SIGKILL)

    def back() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            status = get(lone, "/api/v1/status").json
            return bool(status["ready"]) and status["control_restarts"] == 1 and status["queries"]["total"] == 1
        return False

    eventually(back, timeout=30.0)


def test_the_end(lone: Shop) -> None:
    """A daemon that ends does not wait for those who follow, writes its last record, and leaves no socket behind."""
    with contextlib.closing(connect(lone)) as connection:
        response = follow(connection, "limit=0")
        ask(lone.web, "last.example")
        assert b"last.example" in response.readline()
        began = time.monotonic()
        assert lone.daemon.stop() == 0
        assert time.monotonic() - began < 10.0
    assert lone.dns_record(lone.web, "last.example", verdict="denied")
    assert not Path(lone.daemon.settings["admin"]["socket"]).exists()
