"""What the kernel is told of a subject says the same as `judge_address`."""

from __future__ import annotations

import pytest
from hypothesis import given
from policy_samples import BLOCKS, CLUSTER_ENFORCED, POINTS, facts, judge_of, packed, policy_sets, world

from egressd.model import ANY_PORT, Mode, Policy, PortSpan, Reason, Verdict, address_text
from egressd.names import Name
from egressd.policy import WIDE_RANGE, ClusterFacts, Interval, contains, intersect, ports_text


def neighbours(address: bytes) -> set[bytes]:
    """The address and those beside it."""
    number, octets = int.from_bytes(address), len(address)
    return {n.to_bytes(octets) for n in (number - 1, number, number + 1) if 0 <= n < 256**octets}


BORDERS = sorted({near for block in BLOCKS for edge in block for near in neighbours(edge)})


def covers(boxes: tuple[Interval, ...], address: bytes, protocol: int, port: int) -> bool:
    return any(
        len(box.first) == len(address)
        and box.first <= address <= box.last
        and (box.span is None or contains((box.span,), protocol, port))
        for box in boxes
    )


@given(policy_sets, facts)
def test_boxes_say_what_judge_address_says(members: list[Policy], where: ClusterFacts) -> None:
    """Deny boxes, then allow boxes, then the cluster: at every border and every kind of port, the same verdict."""
    judge = judge_of(*members, facts=where)
    plan = judge.plan()
    for address in BORDERS:
        for protocol, port in POINTS[::3]:
            decision = judge.judge_address(address, protocol, port)
            inside = not where.enforce and any(
                block.first <= address <= block.last for block in where.cidrs if len(block.first) == len(address)
            )
            denied = covers(plan.deny, address, protocol, port)
            passes = not denied and (covers(plan.allow, address, protocol, port) or inside)
            if plan.enforced:
                assert passes is (decision.verdict in (Verdict.ALLOWED, Verdict.WOULD_DENY))
            else:
                assert passes is (decision.verdict is Verdict.ALLOWED)
            if covers(plan.report, address, protocol, port):
                assert decision.verdict in (Verdict.WOULD_DENY, Verdict.DENIED)


@given(policy_sets)
def test_boxes_are_disjoint_and_merged(members: list[Policy]) -> None:
    """Interval sets refuse overlaps: no two boxes share a point; and none could be joined with its neighbour."""
    plan = judge_of(*members).plan()
    for boxes in (plan.allow, plan.deny, plan.report):
        for i, one in enumerate(boxes):
            for other in boxes[i + 1 :]:
                if len(one.first) != len(other.first):
                    continue
                apart = one.last < other.first or other.last < one.first
                spans = [ANY_PORT if box.span is None else (box.span,) for box in (one, other)]
                assert apart or intersect(*spans) == ()
                if one.span == other.span:
                    assert int.from_bytes(one.last) + 1 != int.from_bytes(other.first)


@given(policy_sets)
def test_grant_sets_suffice(members: list[Policy]) -> None:
    """Whatever any name opens fits into the grant sets that the plan asks for."""
    judge = judge_of(*members)
    kinds = judge.plan().grants
    for name in ("a.example", "a.b.example", "a.a.b.example", "a.test", "b.a.cluster.local", "x.y", "example"):
        decision = judge.judge_name(Name(name))
        for opened in (decision.ports, decision.private_ports):
            if opened == ANY_PORT:
                assert "any" in kinds
                continue
            for span in opened:
                narrow = span.first_protocol == span.last_protocol and span.last_port - span.first_port < WIDE_RANGE
                assert ("port" if narrow else "range") in kinds


def spelled(boxes: tuple[Interval, ...]) -> list[str]:
    return [
        f"{address_text(box.first)}-{address_text(box.last)} {ports_text((box.span,)) if box.span else 'any'}"
        for box in boxes
    ]


@pytest.mark.parametrize(
    ("policies", "boxes"),
    [
        pytest.param("s/p: allow a.example", [], id="names-need-no-boxes"),
        pytest.param("s/p: allow 203.0.113.0/24", ["203.0.113.0-203.0.113.255 any"], id="no-ports"),
        pytest.param(
            "s/p: allow 203.0.113.0/25 203.0.113.128/25", ["203.0.113.0-203.0.113.255 any"], id="neighbours-merge"
        ),
        pytest.param(
            "s/p: allow 203.0.113.0/24 [443/TCP]; allow 203.0.113.7 [443/TCP]",
            ["203.0.113.0-203.0.113.255 443/TCP"],
            id="contained-is-swallowed",
        ),
        pytest.param(
            "s/p: allow 203.0.113.0/30 [443/TCP]; allow 203.0.113.1",
            ["203.0.113.0-203.0.113.0 443/TCP", "203.0.113.1-203.0.113.1 any", "203.0.113.2-203.0.113.3 443/TCP"],
            id="any-drops-the-others",
        ),
        pytest.param(
            "s/p: allow 203.0.113.0/30 [443/TCP]; allow 203.0.113.0/31 [80/TCP]",
            ["203.0.113.0-203.0.113.1 80/TCP", "203.0.113.0-203.0.113.3 443/TCP"],
            id="a-span-runs-on-beside-others",
        ),
        pytest.param(
            "s/p: allow 0.0.0.0/0 ::/0 [53/UDP]",
            ["0.0.0.0-255.255.255.255 53/UDP", "::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 53/UDP"],
            id="whole-families",
        ),
        pytest.param("s/p: | s/q audit: allow 203.0.113.0/24", [], id="audited-opens-nothing"),
    ],
)
def test_allow_boxes(policies: str, boxes: list[str]) -> None:
    """Blocks become as few boxes as need be."""
    assert spelled(judge_of(*world(policies)).plan().allow) == boxes


@pytest.mark.parametrize(
    ("policies", "kinds"),
    [
        pytest.param("s/p: allow 203.0.113.0/24", set(), id="no-names"),
        pytest.param("s/p: allow a.example [443/TCP]", {"port"}, id="port"),
        pytest.param("s/p: allow a.example [1000-1015/TCP]", {"port"}, id="sixteen-ports"),
        pytest.param("s/p: allow a.example [1000-1016/TCP]", {"port", "range"}, id="seventeen-ports"),
        pytest.param("s/p: allow a.example", {"any"}, id="any"),
        pytest.param("s/p: allow a.example; allow b.example [443/TCP]", {"any", "port"}, id="any-and-port"),
        pytest.param("s/p: allow a.example [1-10/TCP]; allow * [11-20/TCP]", {"port", "range"}, id="may-join"),
        pytest.param("s/p: allow a.example; deny * [25/TCP]", {"any", "port", "range"}, id="deny-cuts-any"),
        pytest.param("s/p: allow a.example [443/TCP]; deny * [25/TCP]", {"port"}, id="deny-cuts-ports"),
        pytest.param("s/p: deny a.example", set(), id="deny-alone"),
        pytest.param("s/p: allow a.example [443/TCP] | s/q audit: allow b.example", {"port"}, id="audited-beside"),
        pytest.param("s/q audit: allow b.example", {"any"}, id="audited-alone"),
    ],
)
def test_grant_kinds(policies: str, kinds: set[str]) -> None:
    """Only the grant sets that the rules can need exist."""
    assert judge_of(*world(policies)).plan().grants == kinds


def test_comment_and_modes() -> None:
    """The comment names the policies; a plan of Audit policies alone is one as if they were enforced."""
    mixed = judge_of(*world("shop/web: allow 203.0.113.0/24 | sys/base audit: deny 203.0.113.66 [25/TCP]")).plan()
    assert (mixed.comment, mixed.enforced) == ("shop/web sys/base", True)
    assert mixed.deny == ()
    assert mixed.report == (Interval(packed("203.0.113.66"), packed("203.0.113.66"), PortSpan(6, 6, 25, 25)),)
    alone = judge_of(*world("sys/base audit: allow 203.0.113.0/24; deny 203.0.113.66")).plan()
    assert (alone.enforced, alone.report) == (False, ())
    assert spelled(alone.deny) == ["203.0.113.66-203.0.113.66 any"]
    assert spelled(alone.allow) == ["203.0.113.0-203.0.113.255 any"]


def test_a_thousand_blocks() -> None:
    """A large block list is planned whole: every other address of a /21, none merged, none lost."""
    text = " ".join(f"198.51.{100 + n // 128}.{n % 128 * 2}" for n in range(1000))
    plan = judge_of(*world(f"s/p: deny {text} | s/q audit:")).plan()
    assert len(plan.deny) == 1000
    judge = judge_of(*world(f"s/p: deny {text}"), facts=CLUSTER_ENFORCED)
    assert judge.judge_address(packed("198.51.100.254"), 6, 443).reason is Reason.DENY_RULE
    assert judge.judge_address(packed("198.51.100.253"), 6, 443).reason is Reason.NO_RULE
    assert judge.subject.policies[0].mode is Mode.ENFORCE
