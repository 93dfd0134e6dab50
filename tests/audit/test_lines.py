"""Audit lines: whatever the strings, a line is valid JSON that says exactly what the record said."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressd.audit import Renderer
from egressd.audit.lines import MAX_KEPT, PROTOCOL_TEXT
from egressd.model import DnsRecord, FlowRecord, PodIdentity, PolicyRecord, Reason, Verdict
from egressd.wire import rcode_text, type_text

POD = PodIdentity("shop", "web-0", "5c1b", "web", "Deployment/web")
POD_IP = ip_address("192.0.2.5").packed
SERVER = ip_address("192.0.2.53").packed
ANSWER = (ip_address("198.51.100.1").packed, ip_address("2001:db8::1").packed)
TIME = 1_795_352_400.123456
ALLOWED = DnsRecord(
    time=TIME,
    client=POD_IP,
    pod=POD,
    name="api.example.com",
    qtype=1,
    transport="udp",
    server=SERVER,
    port=41233,
    verdict=Verdict.ALLOWED,
    reason=Reason.RULE,
    policy="shop/web-egress",
    rule="object-storage",
    rcode=0,
    addresses=ANSWER,
    cnames=("cdn.example",),
    ttl=5,
    cached=False,
    granted=ANSWER[:1],
    latency_us=812,
)
FLOW = FlowRecord(
    time=TIME,
    client=POD_IP,
    pod=POD,
    destination=ANSWER[0],
    port=443,
    protocol=6,
    names=("cdn.example",),
    verdict=Verdict.DENIED,
    reason=Reason.NO_RULE,
    policy="",
    rule="",
    packets=3,
)
ADDRESSES = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
PODS = st.none() | st.builds(PodIdentity, *[st.text()] * 5)
TIMES = st.integers(0, 4_000_000_000_000_000).map(lambda microseconds: microseconds / 1_000_000)


def _text(address: bytes) -> str:
    return str(ip_address(address)) if len(address) == 4 else _v6(address)


def _v6(address: bytes) -> str:
    spelled = ip_address(address)
    mapped = getattr(spelled, "ipv4_mapped", None)
    return f"::ffff:{mapped}" if mapped is not None else str(spelled)


def _same_addresses(found: list[str], wanted: tuple[bytes, ...]) -> bool:
    return [ip_address(text) for text in found] == [ip_address(address) for address in wanted]


def test_an_allowed_query_is_spelled_as_the_interface_page_spells_it() -> None:
    """Every field, in the order of interface.md."""
    assert Renderer("n1").dns_line(ALLOWED) == (
        b'{"time":"2026-11-22T13:00:00.123456Z","event":"dns","node":"n1",'
        b'"pod":{"namespace":"shop","name":"web-0","uid":"5c1b","ip":"192.0.2.5","service_account":"web",'
        b'"workload":"Deployment/web"},'
        b'"query":{"name":"api.example.com","type":"A","transport":"udp","server":"192.0.2.53","port":41233},'
        b'"verdict":"allowed","reason":"rule","policy":"shop/web-egress","rule":"object-storage",'
        b'"response":{"rcode":"NOERROR","addresses":["198.51.100.1","2001:db8::1"],"cnames":["cdn.example"],"ttl":5,'
        b'"cached":false},"granted":["198.51.100.1"],"latency_us":812}\n'
    )


def test_a_flow_is_spelled_as_the_interface_page_spells_it() -> None:
    """Every field of a flow record, in the order of interface.md; no rule decided, so none is named."""
    assert Renderer("n1").flow_line(FLOW) == (
        b'{"time":"2026-11-22T13:00:00.123456Z","event":"flow","node":"n1",'
        b'"pod":{"namespace":"shop","name":"web-0","uid":"5c1b","ip":"192.0.2.5","service_account":"web",'
        b'"workload":"Deployment/web"},'
        b'"destination":{"ip":"198.51.100.1","port":443,"protocol":"tcp","names":["cdn.example"]},'
        b'"verdict":"denied","reason":"no-rule","packets":3}\n'
    )


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            PolicyRecord(TIME, "shop/web-egress", "updated"),
            b'"event":"policy","policy":"shop/web-egress","change":"updated"}\n',
        ),
        (
            PolicyRecord(TIME, "shop/web-egress", "refused", 'a.yaml:3:1: error: "to"'),
            b'"event":"policy","policy":"shop/web-egress","change":"refused","error":"a.yaml:3:1: error: \\"to\\""}\n',
        ),
        (PolicyRecord(TIME, "", "refused", "x"), b'"event":"policy","change":"refused","error":"x"}\n'),
    ],
)
def test_policy_records_name_policy_and_error_where_there_is_one(record: PolicyRecord, line: bytes) -> None:
    """A policy record has no node, and leaves out what it does not have."""
    assert Renderer("n1").policy_line(record) == b'{"time":"2026-11-22T13:00:00.123456Z",' + line


def test_dropped_records_are_a_record() -> None:
    """What was lost is said as a record of its own."""
    line = Renderer("n1").dropped_line(7, TIME)
    assert line == b'{"time":"2026-11-22T13:00:00.123456Z","event":"audit","node":"n1","dropped":7}\n'


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"rcode": -1}, ["response"]),
        ({"granted": ()}, ["granted"]),
        ({"policy": "", "rule": ""}, ["policy", "rule"]),
        ({}, ["search", "aggregated"]),
    ],
)
def test_fields_that_do_not_apply_are_absent(changes: dict[str, Any], absent: list[str]) -> None:
    """Nothing is spelled null, empty or false for want of a value."""
    line = json.loads(Renderer("n1").dns_line(ALLOWED._replace(**changes)))
    assert not [key for key in absent if key in line]


def test_a_query_without_a_name_has_neither_name_nor_type() -> None:
    """A malformed query is recorded with what is known of it: who sent it, whereto, and why it was refused."""
    bare = ALLOWED._replace(name="", qtype=0, pod=None, rcode=-1, ttl=-1, reason=Reason.MALFORMED, granted=())
    line = json.loads(Renderer("n1").dns_line(bare))
    assert line["query"] == {"transport": "udp", "server": "192.0.2.53", "port": 41233}
    assert line["pod"] == {"ip": "192.0.2.5"}
    assert line["reason"] == "malformed"


def test_a_flow_without_ports_has_none() -> None:
    """ICMP has no port, and an unnamed protocol is its number."""
    renderer = Renderer("n1")
    icmp = json.loads(renderer.flow_line(FLOW._replace(protocol=58, port=-1, names=())))
    assert icmp["destination"] == {"ip": "198.51.100.1", "protocol": "icmpv6", "names": []}
    assert json.loads(renderer.flow_line(FLOW._replace(protocol=47)))["destination"]["protocol"] == "47"


@given(
    st.builds(
        DnsRecord,
        time=TIMES,
        client=ADDRESSES,
        pod=PODS,
        name=st.text(),
        qtype=st.integers(0, 65_535),
        transport=st.sampled_from(["udp", "tcp"]),
        server=ADDRESSES,
        port=st.integers(0, 65_535),
        verdict=st.sampled_from(Verdict),
        reason=st.sampled_from(Reason),
        policy=st.text(),
        rule=st.text(),
        rcode=st.integers(-1, 4095),
        addresses=st.lists(ADDRESSES, max_size=4).map(tuple),
        cnames=st.lists(st.text(), max_size=3).map(tuple),
        ttl=st.integers(-1, 2**31),
        cached=st.booleans(),
        granted=st.lists(ADDRESSES, max_size=4).map(tuple),
        latency_us=st.integers(0),
        search=st.booleans(),
        aggregated=st.integers(0),
    ),
    st.text(),
)
def test_any_dns_record_round_trips(record: DnsRecord, node: str) -> None:
    """Any strings at all give one line of valid JSON that reads back as the record."""
    data = Renderer(node).dns_line(record)
    assert data.count(b"\n") == 1
    line = json.loads(data)
    assert (line["event"], line["node"], line["verdict"], line["reason"]) == (
        "dns",
        node,
        record.verdict,
        record.reason,
    )
    assert (line.get("policy", ""), line.get("rule", "")) == (record.policy, record.rule)
    assert (line["latency_us"], line.get("search", False)) == (record.latency_us, record.search)
    assert line.get("aggregated", 0) == record.aggregated
    assert line["query"].get("name", "") == record.name
    assert line["query"].get("type", "") == (type_text(record.qtype) if record.name else "")
    assert (line["query"]["transport"], line["query"]["port"]) == (record.transport, record.port)
    assert _same_addresses([line["query"]["server"], line["pod"]["ip"]], (record.server, record.client))
    assert _same_addresses(line.get("granted", []), record.granted)
    if record.rcode < 0:
        assert "response" not in line
    else:
        response = line["response"]
        assert (response["rcode"], response["cached"]) == (rcode_text(record.rcode), record.cached)
        assert (tuple(response["cnames"]), response.get("ttl", -1)) == (record.cnames, record.ttl)
        assert _same_addresses(response["addresses"], record.addresses)


@given(PODS, ADDRESSES, st.lists(st.text(), max_size=3), st.integers(0, 255), st.integers(-1, 65_535), TIMES)
def test_any_flow_record_round_trips(
    pod: PodIdentity | None, address: bytes, names: list[str], protocol: int, port: int, time: float
) -> None:
    """Any pod and any names give one line of valid JSON that reads back as the record."""
    record = FLOW._replace(pod=pod, destination=address, names=tuple(names), protocol=protocol, port=port, time=time)
    line = json.loads(Renderer("n1").flow_line(record))
    fields = ("namespace", "name", "uid", "service_account", "workload")
    assert {key: line["pod"].get(key, "") for key in fields} == {key: getattr(pod, key, "") for key in fields}
    assert _same_addresses([line["destination"]["ip"]], (address,))
    assert (line["destination"]["names"], line["destination"].get("port", -1)) == (names, port)
    assert line["destination"]["protocol"] == PROTOCOL_TEXT.get(protocol, str(protocol))
    read = datetime.strptime(line["time"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert abs(read.timestamp() - time) < 0.000_002


@given(st.text(), st.text(), st.sampled_from(["updated", "refused", "deleted"]))
def test_any_policy_record_round_trips(policy: str, error: str, change: str) -> None:
    """Error texts quote what people wrote, so they hold anything."""
    line = json.loads(Renderer("n1").policy_line(PolicyRecord(TIME, policy, change, error)))
    assert (line.get("policy", ""), line.get("error", ""), line["change"]) == (policy, error, change)


def test_an_address_that_changes_hands_is_rendered_anew() -> None:
    """What is kept of a pod by its address never outlives the pod."""
    renderer = Renderer("n1")
    other = PodIdentity("shop", "web-1")
    named = [json.loads(renderer.dns_line(ALLOWED._replace(pod=pod)))["pod"].get("name") for pod in (POD, other, None)]
    assert named == ["web-0", "web-1", None]


def test_the_tables_of_rendered_parts_are_bounded() -> None:
    """More pods, rules, servers, types, rcodes than the tables hold: lines are right, and no table passes its bound."""
    renderer = Renderer("n1")
    for number in range(MAX_KEPT + 10):
        address, server = number.to_bytes(4, "big"), number.to_bytes(16, "big")
        pod = PodIdentity("shop", f"web-{number}")
        answered = ALLOWED._replace(client=address, pod=pod, addresses=(address, server), rcode=number % 4096)
        line = json.loads(renderer.dns_line(answered._replace(server=server, qtype=number, rule=str(number))))
        assert (line["pod"]["name"], line["rule"]) == (f"web-{number}", str(number))
        assert line["response"]["addresses"] == [_text(address), _text(server)]
    tables = [table for table in vars(renderer).values() if isinstance(table, dict)]
    assert len(tables) == 5
    assert max(map(len, tables)) <= MAX_KEPT


def test_a_line_is_the_same_at_once_and_by_its_form() -> None:
    """What is rendered whole is what its form gives at the same time, port and latency."""
    renderer = Renderer("n1")
    for record in (ALLOWED, ALLOWED._replace(search=True, rcode=-1), ALLOWED._replace(name="", aggregated=7)):
        form = renderer.dns_form(record)
        assert renderer.dns_line(record) == renderer.dns_again(form, record.time, record.port, record.latency_us)


def test_the_seconds_of_two_lines_are_their_own() -> None:
    """The kept spelling of a second is used for that second only, backwards too."""
    renderer = Renderer("n1")
    times = [json.loads(renderer.dropped_line(1, time))["time"] for time in (TIME, TIME + 1, TIME)]
    assert times == ["2026-11-22T13:00:00.123456Z", "2026-11-22T13:00:01.123456Z", "2026-11-22T13:00:00.123456Z"]


# ---------------------------------------------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("change", "alike"),
    [
        ({"time": TIME + 86_400, "port": 1, "latency_us": 7, "ttl": 0, "cached": True}, True),
        ({"qtype": 28, "transport": "tcp", "cnames": (), "granted": ()}, True),
        ({"name": "other.example"}, False),
        ({"pod": PodIdentity("shop", "web-0", "5c1b", "web", "Deployment/other")}, False),
        ({"verdict": Verdict.WOULD_DENY}, False),
        ({"reason": Reason.UNSELECTED}, False),
        ({"policy": "shop/other"}, False),
        ({"rule": "other"}, False),
        ({"rcode": 3}, False),
        ({"addresses": ANSWER[:1]}, False),
        ({"search": True}, False),
    ],
)
def test_lines_of_one_kind(change: dict[str, Any], alike: bool) -> None:
    """A kind is what history does not tell apart; it is the same whenever it is made."""
    renderer = Renderer("n1")
    kind = renderer.dns_form(ALLOWED)[3]
    assert kind == Renderer("n1").dns_form(ALLOWED)[3] != 0
    assert (renderer.dns_form(ALLOWED._replace(**change))[3] == kind) is alike


def test_a_record_of_many_has_no_kind() -> None:
    """It counts for more than one."""
    assert Renderer("n1").dns_form(ALLOWED._replace(aggregated=5))[3] == 0
