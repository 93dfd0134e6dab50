"""The port algebra against sets of points, and how it is spelled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_samples import POINTS, SPANS, port_sets, ports

from egressd.model import ANY_PORT, Ports, PortSpan
from egressd.policy import contains, intersect, normalise, ports_text, subtract, union
from egressd.policy.ports import WIDE_RANGE, Grid, point

any_spans = st.builds(
    lambda a, b, c, d: PortSpan(min(a, b), max(a, b), min(c, d), max(c, d)),
    *[st.integers(0, 255)] * 2,
    *[st.integers(0, 65535)] * 2,
)
ports_drawn = st.one_of(port_sets, st.lists(any_spans, max_size=4).map(lambda spans: normalise(spans)))


def probes(*several: Ports) -> list[tuple[int, int]]:
    """Points at, just inside and just outside every edge."""
    spans = [span for one in several for span in one]
    protocols = {p + d for s in spans for p in s[:2] for d in (-1, 0, 1)} & set(range(256)) | {0}
    numbers = {p + d for s in spans for p in s[2:] for d in (-1, 0, 1)} & set(range(65536)) | {0}
    return [(protocol, port) for protocol in protocols for port in numbers]


@given(ports_drawn, ports_drawn)
def test_operations_are_those_of_sets(a: Ports, b: Ports) -> None:
    """Union, intersection and difference agree with membership, point by point."""
    both, either, less = intersect(a, b), union(a, b), subtract(a, b)
    for protocol, port in probes(a, b):
        in_a, in_b = contains(a, protocol, port), contains(b, protocol, port)
        assert contains(both, protocol, port) is (in_a and in_b)
        assert contains(either, protocol, port) is (in_a or in_b)
        assert contains(less, protocol, port) is (in_a and not in_b)


@given(ports_drawn, ports_drawn)
def test_equal_sets_are_equal_values(a: Ports, b: Ports) -> None:
    """However a set came about, its tuple is the same: disjoint and canonical."""
    assert union(subtract(a, b), intersect(a, b)) == a
    assert union(a, b) == union(b, a)
    assert subtract(union(a, b), b) == subtract(a, b)
    assert subtract(a, a) == ()
    assert normalise(reversed(a)) == a


@given(ports_drawn)
def test_spans_are_disjoint_and_ascending(a: Ports) -> None:
    """No two spans share a point, and they come in order."""
    assert list(a) == sorted(a)
    for i, one in enumerate(a):
        assert all(intersect((one,), (other,)) == () for other in a[i + 1 :])


@given(st.lists(st.sampled_from(SPANS), max_size=4), st.sampled_from([6, 17, 1, 200]))
def test_port_minus_one_is_some_port(spans: list[PortSpan], protocol: int) -> None:
    """Port -1 asks whether any port of the protocol is in the set."""
    a = normalise(spans)
    assert contains(a, protocol, -1) is bool(intersect(a, point(protocol, -1)))
    assert contains(a, protocol, -1) is any(s.first_protocol <= protocol <= s.last_protocol for s in spans)


def test_points_cover_every_box() -> None:
    """The shared sample points meet every span of the small world (else the other properties prove nothing)."""
    assert all(any(contains((span,), *one) for one in POINTS) for span in SPANS)


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        pytest.param((), (), id="nothing"),
        pytest.param(((6, 6, 1, 5), (6, 6, 6, 9)), ((6, 6, 1, 9),), id="touching-ranges-join"),
        pytest.param(((6, 6, 80, 80), (7, 7, 80, 80)), ((6, 7, 80, 80),), id="equal-protocols-join"),
        pytest.param(((6, 6, 80, 80), (17, 17, 80, 80)), ((6, 6, 80, 80), (17, 17, 80, 80)), id="apart-stay-apart"),
        pytest.param(((0, 5, 0, 65535), (6, 255, 0, 65535)), ANY_PORT, id="halves-are-everything"),
        pytest.param(((0, 255, 0, 65535), (6, 6, 1, 1)), ANY_PORT, id="everything-swallows"),
    ],
)
def test_canonical_form(spans: tuple[tuple[int, int, int, int], ...], expected: Ports) -> None:
    """Spans that touch become one, in ports and in protocols."""
    assert normalise(PortSpan(*span) for span in spans) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param(ports("443/TCP, 8000-8100/TCP"), "443/TCP, 8000-8100/TCP", id="as-written"),
        pytest.param(ports("*/ICMP"), "*/ICMP", id="icmp-is-both"),
        pytest.param(normalise([PortSpan(58, 58, 0, 65535)]), "*/ICMPv6", id="icmpv6-alone"),
        pytest.param(ports("*/TCP, 53/UDP"), "*/TCP, 53/UDP", id="whole-protocol"),
        pytest.param(ANY_PORT, "any", id="any"),
        pytest.param(subtract(ANY_PORT, ports("25/TCP")), "any but 25/TCP", id="any-but"),
        pytest.param((), "none", id="none"),
        pytest.param((PortSpan(47, 47, 0, 65535),), "*/protocol 47", id="unnamed-protocol"),
        pytest.param((PortSpan(2, 4, 1, 9),), "1-9/protocols 2-4", id="protocol-range"),
    ],
)
def test_text(value: Ports, text: str) -> None:
    """Ports are spelled as a policy would spell them."""
    assert ports_text(value) == text


@given(st.lists(ports_drawn, min_size=1, max_size=4))
def test_grid_cuts_into_equal_or_disjoint_pieces(several: list[Ports]) -> None:
    """Wide pieces of one grid are equal or disjoint, and the pieces of a set make up that set."""
    grid = Grid(several)
    cut = [grid.cut(each) for each in several]
    for whole, pieces in zip(several, cut, strict=True):
        assert normalise(pieces) == normalise(whole)
    wide = {piece for pieces in cut for piece in pieces if piece != ANY_PORT[0] and is_wide(piece)}
    for one in wide:
        assert all(other == one or not intersect((one,), (other,)) for other in wide)


def is_wide(span: PortSpan) -> bool:
    return span.first_protocol != span.last_protocol or span.last_port - span.first_port >= WIDE_RANGE
