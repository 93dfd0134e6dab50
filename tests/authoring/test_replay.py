"""Records judged again by other policies: each comes to exactly one change."""

from __future__ import annotations

from dataclasses import replace

import pytest
from authoring_samples import API, FACTS, WEB, dns, flow, replayed
from policy_samples import policy, world

from egressd.authoring import Change, Known
from egressd.model import LabelSelector, Policy, SubjectSelector

REBOUND = dns("a.example", verdict="denied", reason="rebinding")
NOBODY = dns("a.example", pod=replace(WEB, namespace="other"))


def policies(text: str) -> dict[str, Policy]:
    return {one.name: one for one in world(text)}


@pytest.mark.parametrize(
    ("text", "line", "change"),
    [
        ("shop/p: allow a.example", dns("a.example"), Change.UNCHANGED),
        ("shop/p: allow b.example", dns("a.example"), Change.NEWLY_DENIED),
        ("shop/p: allow a.example; deny *", dns("a.example"), Change.NEWLY_DENIED),
        ("shop/p audit: allow b.example", dns("a.example"), Change.NEWLY_WOULD_DENY),
        ("shop/p audit: allow b.example", dns("a.example", verdict="would-deny"), Change.UNCHANGED),
        ("shop/p: allow a.example", dns("a.example", verdict="denied", reason="no-rule"), Change.NEWLY_ALLOWED),
        ("shop/p: allow b.example", dns("a.example", verdict="denied", reason="no-rule"), Change.UNCHANGED),
        ("shop/p: allow b.example", dns("db.shop.svc.cluster.local"), Change.UNCHANGED),
        ("shop/p: allow b.example", dns("a.example.svc.cluster.local", search=True), Change.LEFT_OUT),
        ("shop/p: allow b.example", dns("a.example", rcode="NXDOMAIN"), Change.LEFT_OUT),
        ("shop/p: allow a.example", NOBODY, Change.UNSELECTED),
        ("shop/p: allow a.example", dns("a.example", "10.1.2.3"), Change.NEWLY_DENIED),
        ("shop/p: allow a.example private", dns("a.example", "10.1.2.3"), Change.UNCHANGED),
        ("shop/p: allow a.example", dns("a.example", "10.1.2.3", "192.0.2.1"), Change.UNCHANGED),
        ("shop/p: allow a.example", dns("a.example", verdict="denied", reason="rebinding"), Change.UNCHANGED),
        (
            "shop/p: allow a.example private",
            dns("a.example", verdict="denied", reason="rebinding"),
            Change.NEWLY_ALLOWED,
        ),
        ("shop/p: allow a.example [443/TCP]", flow("192.0.2.1", 443, 6, "a.example"), Change.UNCHANGED),
        ("shop/p: allow a.example [443/TCP]", flow("192.0.2.1", 80, 6, "a.example"), Change.NEWLY_DENIED),
        ("shop/p: allow a.example", flow("10.1.2.3", 80, 6, "a.example"), Change.NEWLY_DENIED),
        ("shop/p: allow a.example", flow("10.1.2.3", 80, 6, "a.example", verdict="denied"), Change.UNCHANGED),
        ("shop/p: allow a.example private", flow("10.1.2.3", 80, 6, "a.example"), Change.UNCHANGED),
        ("shop/p: allow 192.0.2.0/24 [53/UDP]", flow("192.0.2.1", 53, 17), Change.UNCHANGED),
        ("shop/p: allow 192.0.2.0/24", flow("198.51.100.1", 53, 17, verdict="denied"), Change.UNCHANGED),
        ("shop/p: allow 0.0.0.0/0", flow("198.51.100.1", 53, 17, verdict="denied"), Change.NEWLY_ALLOWED),
        ("shop/p: allow b.example", flow("10.244.0.9", 80), Change.UNCHANGED),
    ],
)
def test_changes(text: str, line: bytes, change: Change) -> None:
    """Before and after, for names and flows."""
    replay = replayed([line], policies(text))
    assert replay.counts == {change: 1}


def test_labels_come_from_pods_else_are_taken_to_match() -> None:
    """By pod, by another pod of the workload, else by a guess that is told."""
    selector = SubjectSelector(LabelSelector(labels=(("app", "api"),)))
    labelled = {"shop/p": replace(policy("shop/p"), subject=selector)}
    lines = [dns("a.example"), dns("a.example", pod=API)]
    guessed = replayed(lines, labelled)
    assert guessed.guessed == {"shop/web-0", "shop/api-0"}
    assert guessed.counts == {Change.NEWLY_DENIED: 2}
    known = Known({"shop/web-0": {"app": "web"}}, {("shop", "Deployment/api"): {"app": "api"}})
    told = replayed(lines, labelled, FACTS, known)
    assert told.guessed == set()
    assert told.counts == {Change.UNSELECTED: 1, Change.NEWLY_DENIED: 1}


def test_what_was_dropped_is_counted() -> None:
    """Records that stand for others, and for lost ones."""
    lines = [b'{"time":"","event":"audit","dropped":3}', b'{"event":"dns","aggregated":4,"query":{},"pod":{}}']
    assert replayed(lines, policies("shop/p: allow a.example")).dropped == 7
