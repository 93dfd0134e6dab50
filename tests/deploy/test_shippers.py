"""The samples for Vector and Fluent Bit: their parts fit together, and what they read is what egressd writes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from export.test_requests import DNS, FLOW, RENDERER, WHEN

from egressd.audit.lines import Renderer
from egressd.model import PolicyRecord
from egressd.settings import Audit

from .rendering import DEPLOY

LINES = [
    RENDERER.dns_line(DNS),
    RENDERER.flow_line(FLOW),
    RENDERER.policy_line(PolicyRecord(WHEN, "shop/web", "refused", "line 3")),
    Renderer("n1").dropped_line(3, WHEN),
]
RECORDS: list[dict[str, Any]] = [json.loads(line) for line in LINES]
FIELDS = {key for record in RECORDS for key in record}


def sample(name: str) -> dict[str, Any]:
    """A sample, read."""
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "shippers" / name).read_text())
    return found


def test_vector_reads_all_that_is_rotated() -> None:
    """The audit file and its rotated ones, known by their first line, which no two of them share."""
    source = sample("vector.yaml")["sources"]["egressd_audit"]
    file = Audit().file
    assert source["include"] == [file, f"{file}.*"]
    assert source["fingerprint"]["strategy"] == "checksum"
    assert source["max_line_bytes"] > 64 * 1024


def test_vector_is_connected() -> None:
    """Each part's inputs are parts that exist, and the source leads to the sink."""
    config = sample("vector.yaml")
    parts = {**config["sources"], **config["transforms"], **config["sinks"]}
    fed = {name: part.get("inputs", []) for name, part in parts.items()}
    assert all(one in parts for inputs in fed.values() for one in inputs)
    assert fed == {"egressd_audit": [], "egressd_records": ["egressd_audit"], "egressd_out": ["egressd_records"]}


def test_vector_remaps_fields_that_are_written() -> None:
    """Every field that the program reads is one of a record, or one that it made itself or Vector hands it."""
    program = sample("vector.yaml")["transforms"]["egressd_records"]["source"]
    made = set(re.findall(r"^\s*\.(\w+) =", program, re.MULTILINE)) | set(re.findall(r"\{ \.(\w+) =", program))
    read = set(re.findall(r"(?<![\w.])\.(\w+)", program)) - made
    assert read - {"message"} <= FIELDS
    assert {"time", "verdict", "change"} <= read
    verdicts = set(re.findall(r'"([a-z-]+)"', program)) - {"warning", "info", "error", "refused"}
    assert verdicts == {"denied", "would-deny", "would-allow"}


def test_fluent_bit_is_connected() -> None:
    """The input has its parser, and every output takes what the input is tagged with."""
    config = sample("fluent-bit.yaml")
    (tail,) = config["pipeline"]["inputs"]
    assert tail["path"] == Audit().file
    assert "*" not in tail["path"]
    assert tail["parser"] in {parser["name"] for parser in config["parsers"]}
    assert {output["match"] for output in config["pipeline"]["outputs"]} == {tail["tag"]}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: str(record["event"]))
def test_time_is_understood(record: dict[str, Any]) -> None:
    """The time of every kind of record is read to the microsecond by the format that Fluent Bit is given."""
    (parser,) = sample("fluent-bit.yaml")["parsers"]
    assert parser["format"] == "json"
    text = record[parser["time_key"]]
    moment = datetime.strptime(text, parser["time_format"].replace("%L", "%f")).replace(tzinfo=UTC)
    assert moment.timestamp() == WHEN


@pytest.mark.parametrize("name", ["vector.yaml", "fluent-bit.yaml"])
def test_destination_is_a_variable(name: str) -> None:
    """Where records go is said by variables alone, and no secret stands in the sample."""
    text = (DEPLOY / "shippers" / name).read_text()
    assert "${EGRESSD_SINK" in text
    assert not re.search("token|password|authorization", text, re.IGNORECASE)
