"""Lines summed up in memory: what is read of a record, and what becomes of a flood."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressd.audit import Renderer
from egressd.history.folding import PER_DOMAIN, PER_WORKLOAD, PORTS_PER_NAME, Folding
from egressd.history.observation import Key, Sums
from egressd.history.pending import MAX_KEYS, Pending
from egressd.model import Block, DnsRecord, PodIdentity, Reason, Verdict
from egressd.policy.addresses import cidr

from .lines import DAY, SOURCE, WEB, dns, flow


def summed(*lines: bytes, cluster: tuple[Block, ...] = ()) -> dict[Key, Sums]:
    """What a few lines come to."""
    pending = Pending(Folding())
    pending.guard(cluster)
    pending.feed(b"".join(lines))
    return pending.take()


def test_a_query() -> None:
    """Everything that makes it alike, with first and last second and how often."""
    found = summed(dns("api.example.com", time=DAY + 7.5), dns("api.example.com", time=DAY + 3), dns("b.example"))
    key = Key(
        20_000, "shop", "Deployment/web", "api.example.com", "allowed", "rule", "shop/web", "api", False, "dns", -1, "",
        "web", "",
    )  # fmt: skip
    assert found[key] == Sums(int(DAY) + 3, int(DAY) + 7, 2, 0)
    assert len(found) == 2


def test_a_flow() -> None:
    """By its first name, else by its address, with port, protocol and the sum of its packets."""
    found = summed(
        flow("192.0.2.1", 443, "cdn.example", packets=3), flow("192.0.2.1", 443, packets=2), flow("192.0.2.1")
    )
    assert {(key.name, key.port, key.protocol, sums.number, sums.packets) for key, sums in found.items()} == {
        ("cdn.example", 443, "tcp", 1, 3),
        ("192.0.2.1", 443, "tcp", 2, 3),
    }


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (dns("a.example", addresses=(bytes((198, 51, 100, 7)),)), ""),
        (dns("a.example", addresses=(bytes((198, 51, 100, 7)), bytes((10, 0, 0, 1)))), "private"),
        (dns("a.example", addresses=(bytes((203, 0, 113, 1)),)), "private"),
        (dns("a.example", rcode=3), "absent"),
        (dns("a.example", rcode=3, verdict=Verdict.DENIED, reason=Reason.NO_RULE), ""),
    ],
    ids=["ordinary", "one of them private", "of the cluster", "no such name", "denied"],
)
def test_answers(line: bytes, answer: str) -> None:
    """What suggestions need of an answer: that there was none, or that it was not ordinary."""
    ((key, _),) = summed(line, cluster=(cidr("203.0.113.0/24"),)).items()
    assert key.answer == answer


def test_pods_without_an_owner() -> None:
    """They are their own workload."""
    ((key, _),) = summed(dns("a.example", pod=PodIdentity("shop", "lone"))).items()
    assert (key.workload, key.service_account) == ("Pod/lone", "")


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"{}\n",
        b"[1]\n",
        b"\xff\xfe\n",
        dns("a.example", pod=None),
        dns("a.example")[:-20] + b"\n",
        dns("a.example").replace(b"allowed", b"aloud"),
        dns("a.example").replace(b"2024", b"yore"),
        flow("192.0.2.1").replace(b'"packets":1', b'"packets":-1'),
        flow("192.0.2.1").replace(b'"packets":1', b'"packets":99999999999999999999999999'),
        b'{"time":"2024-10-04T00:00:00.000000Z","event":"policy","policy":"shop/web","change":"updated"}\n',
    ],
)
def test_what_is_no_observation(line: bytes) -> None:
    """It is passed over, and so is nothing that comes with it."""
    assert summed(line) == {}
    assert [sums.number for sums in summed(dns("b.example"), line, dns("b.example")).values()] == [2]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_any_octets(lines: list[bytes]) -> None:
    """No line stops the control side."""
    assert isinstance(summed(b"\n".join(lines)), dict)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda some: st.lists(some)))
def test_any_values(value: object) -> None:
    """Neither does a record with anything in its fields."""
    record = json.loads(dns("a.example"))
    for field in record:
        assert isinstance(summed(json.dumps(record | {field: value}).encode() + b"\n"), dict)


# -------------------------------------------------------------------------------------------------- lines by kind

OTHER = PodIdentity("shop", "other-0", "u2", "web", "Deployment/other")
QUERIES = st.builds(
    DnsRecord,
    time=st.integers(-3, 3).map(lambda half: DAY + half / 2),
    client=st.just(SOURCE),
    pod=st.sampled_from([None, WEB, OTHER]),
    name=st.sampled_from(["", "a.example", "b.example"]),
    qtype=st.sampled_from([1, 28]),
    transport=st.sampled_from(["udp", "tcp"]),
    server=st.just(SOURCE),
    port=st.integers(1024, 1026),
    verdict=st.sampled_from(Verdict),
    reason=st.sampled_from(Reason),
    policy=st.sampled_from(["", "shop/web"]),
    rule=st.sampled_from(["", "api"]),
    rcode=st.sampled_from([-1, 0, 3]),
    addresses=st.sampled_from([(), (bytes((10, 0, 0, 1)),), (bytes((198, 51, 100, 7)),)]),
    cnames=st.just(()),
    ttl=st.integers(0, 2),
    cached=st.booleans(),
    granted=st.just(()),
    latency_us=st.integers(0, 2),
    search=st.booleans(),
    aggregated=st.sampled_from([0, 0, 5]),
)


def by_kind(records: Sequence[DnsRecord], size: int) -> Pending:
    """Records fed as the data path sends them, in batches, with the kind of each line."""
    renderer, pending = Renderer("n1"), Pending(Folding())
    for start in range(0, len(records), size):
        batch = records[start : start + size]
        lines = b"".join(map(renderer.dns_line, batch))
        pending.feed(lines, [renderer.dns_form(record)[3] for record in batch])
    return pending


@given(st.lists(QUERIES, max_size=30), st.integers(1, 7))
def test_what_is_counted_by_kind(records: list[DnsRecord], size: int) -> None:
    """It comes to what decoding every line comes to, on the right day; seen last when its batch ends, at the latest."""
    records.sort(key=lambda record: record.time)
    pending = by_kind(records, size)
    found, expected = pending.take(), summed(*map(Renderer("n1").dns_line, records))
    assert pending.taken == sum(sums.number for sums in expected.values())
    assert {key: (sums.first_seen, sums.number) for key, sums in found.items()} == {
        key: (sums.first_seen, sums.number) for key, sums in expected.items()
    }
    assert all(expected[key].last_seen <= sums.last_seen <= DAY + 1.5 for key, sums in found.items())


def test_a_kind_is_decoded_once_between_two_flushes() -> None:
    """What it says counts afresh after a flush, and after the cluster's blocks have changed."""
    line = dns("a.example", addresses=(bytes((203, 0, 113, 1)),))
    pending = Pending(Folding())
    pending.feed(line, (7,))
    pending.feed(line.replace(b"allowed", b"aloud") * 3, (7, 7, 7))  # no observation, if it were decoded
    ((key, sums),) = pending.take().items()
    assert (key.answer, sums.number) == ("", 4)
    pending.feed(line, (7,))
    pending.guard((cidr("203.0.113.0/24"),))
    pending.feed(line, (7,))
    assert {key.answer: sums.number for key, sums in pending.take().items()} == {"": 1, "private": 1}


def test_kinds_are_bounded() -> None:
    """A flood of them is counted all the same."""
    pending = Pending(Folding())
    lines = b"".join(dns(f"r{number}.tunnel.example") for number in range(1000))
    for start in range(1, 2 * MAX_KEYS, 1000):
        pending.feed(lines, range(start, start + 1000))
    pending.feed(dns("api.example"), (2 * MAX_KEYS,))
    assert sum(sums.number for sums in pending.take().values()) == pending.taken > 2 * MAX_KEYS


# ------------------------------------------------------------------------------------------------------- floods


def test_random_names_under_one_domain() -> None:
    """So many are kept one by one, the others are one row of the domain; none is lost, and others do not suffer."""
    lines = [dns(f"r{number}.tunnel.example") for number in range(PER_DOMAIN + 50)]
    found = summed(*lines, dns("api.example.com"), dns("r0.tunnel.example"))
    counts = {key.name: sums.number for key, sums in found.items()}
    assert counts["*.tunnel.example"] == 50
    assert counts["r0.tunnel.example"] == 2
    assert counts["api.example.com"] == 1
    assert len(counts) == PER_DOMAIN + 2


def test_random_domains() -> None:
    """A workload that asks for ever new domains ends up with one row for them all."""
    lines = [dns(f"d{number}.example") for number in range(PER_WORKLOAD + 500)]
    found = {key.name: sums.number for key, sums in summed(*lines).items()}
    assert len(found) == PER_WORKLOAD + 1
    assert found["*"] == 500


def test_a_suffix_of_strangers_is_no_domain() -> None:
    """Names under a public suffix are counted for each who registered one."""
    lines = [dns(f"a.r{number}.co.uk") for number in range(PER_DOMAIN + 1)]
    assert all(not key.name.startswith("*") for key in summed(*lines))


def test_a_scan_of_ports_and_of_addresses() -> None:
    """Ports of one address become port 0, addresses their block."""
    ports = summed(*(flow("198.51.100.1", port) for port in range(1, PORTS_PER_NAME + 11)))
    assert ports.keys() >= {next(iter(ports))._replace(port=0)}
    assert sum(sums.number for key, sums in ports.items() if key.port == 0) == 10
    swept = summed(*(flow(f"198.51.{number // 250}.{number % 250}") for number in range(PER_DOMAIN + 5)))
    assert {key.name: sums.number for key, sums in swept.items()}["198.51.0.0/16"] == 5


def test_a_new_day_begins_anew() -> None:
    """Budgets are for a day; a clock that is put back does not leave them spent."""
    pending = Pending(Folding(total=2))
    for day in (0, 1, -5):
        for number in range(3):
            pending.feed(dns(f"d{number}.example", time=DAY + day * 86_400))
    names = [key.name for key in pending.take()]
    assert sorted(names) == ["*"] * 3 + ["d0.example"] * 3 + ["d1.example"] * 3


def test_memory_is_bounded() -> None:
    """However many workloads there are: what has no room loses its name, then counts as dropped; nothing is hidden."""
    pending = Pending(Folding())
    number = 2 * MAX_KEYS + 1000
    for start in range(0, number, 1000):
        pods = (PodIdentity("shop", f"p{one}") for one in range(start, start + 1000))
        pending.feed(b"".join(dns("a.example", pod=pod) for pod in pods))
    assert len(pending) <= 2 * MAX_KEYS
    assert pending.dropped == pending.taken - sum(sums.number for sums in pending.take().values()) > 0


def test_aggregated_denials_count() -> None:
    """A record that stands for many without a name is many, without a name."""
    ((key, sums),) = summed(dns("", verdict=Verdict.DENIED, reason=Reason.NO_RULE, aggregated=17)).items()
    assert (key.name, sums.number) == ("*", 17)
