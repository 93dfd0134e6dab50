"""How packets of recorded flows are told: once each, in time, within bounds, whatever the kernel answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest

from egressd.agent import packets as module
from egressd.agent.packets import BATCH, MARGIN_S, POD_MAX, UNREPORTED_EVERY_S, Packets
from egressd.errors import KernelError
from egressd.kernel.flows import Count, FlowCounters, FlowKey, flow_key
from egressd.kernel.nflog import Report
from egressd.model import FlowRecord, Reason, Verdict

POD, API = bytes((10, 244, 1, 5)), bytes((203, 0, 113, 7))


def event(port: int = 443, pod: bytes = POD) -> Report:
    return Report("denied", pod, API, 6, port)


class Kernel:
    """Counters as the kernel would have them: packets so far, and when the element ends."""

    def __init__(self) -> None:
        self.now = 0.0
        self.elements: dict[FlowKey, tuple[int, float]] = {}
        self.reads: list[int] = []
        self.lost: int | KernelError = 0
        self.fails = False
        self.closed = False

    def put(self, report: Report, packets: int, ends: float) -> None:
        key = flow_key(report)
        assert key is not None
        self.elements[key] = (packets, ends)

    def read(self, keys: Sequence[FlowKey]) -> list[Count | None]:
        self.reads.append(len(keys))
        if self.fails:
            raise KernelError("nobody answers", 5)
        found = [self.elements.get(key) for key in keys]
        return [Count(one[0], one[1] - self.now) if one and one[1] > self.now else None for one in found]

    def unreported(self) -> int:
        if isinstance(self.lost, KernelError):
            raise self.lost
        return self.lost

    def close(self) -> None:
        self.closed = True


class Scene:
    """Packets with a clock of the test's, and what they told."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.told: list[FlowRecord] = []
        self.spent = 0.0
        self.packets = Packets(self.told.append, lambda: 1e9 + self.kernel.now, lambda: self.spent)
        self.packets.begin(cast("FlowCounters", self.kernel))

    def follow(self, report: Report, packets: int = 1, lifetime: float = 60.0) -> None:
        """A flow is reported now; its element has so many packets."""
        now = self.kernel.now
        self.kernel.put(report, packets, now + lifetime)
        record = FlowRecord(
            now,
            report.source,
            None,
            API,
            report.port,
            6,
            ("api.example.com",),
            Verdict.DENIED,
            Reason.NO_RULE,
            "",
            "",
            1,
        )
        self.packets.follow(report, record, now)

    def pass_time(self, until: float) -> None:
        """Ticks of a tenth of a second."""
        while self.kernel.now < until:
            self.kernel.now = round(self.kernel.now + 0.1, 1)
            self.packets.tick(self.kernel.now)

    @property
    def counts(self) -> list[tuple[int, int]]:
        return [(record.port, record.packets) for record in self.told]


@pytest.fixture
def scene() -> Scene:
    """Nothing followed yet."""
    return Scene()


def test_the_rest_is_told_before_the_element_ends(scene: Scene) -> None:
    """Two looks: half way, and just before the end; what was counted until then is one record, its own time on it."""
    scene.follow(event())
    scene.pass_time(45)
    assert scene.counts == []
    scene.kernel.put(event(), 57, 60.0)
    scene.pass_time(60)
    assert scene.counts == [(443, 56)]
    (record,) = scene.told
    assert 1e9 + 60 - MARGIN_S <= record.time < 1e9 + 60
    assert (record.names, record.verdict, record.reason) == (("api.example.com",), Verdict.DENIED, Reason.NO_RULE)
    assert len(scene.kernel.reads) == 2
    assert len(scene.packets) == 0


def test_a_single_packet_has_no_second_record(scene: Scene) -> None:
    """There is no rest to tell."""
    scene.follow(event())
    scene.pass_time(61)
    assert scene.told == []
    assert len(scene.packets) == 0


def test_a_flow_that_goes_on_begins_anew(scene: Scene) -> None:
    """Its next element has its own report; each minute's rest is told once."""
    scene.follow(event(), 10)
    scene.pass_time(60)
    scene.follow(event(), 20)
    scene.pass_time(121)
    assert scene.counts == [(443, 9), (443, 19)]


def test_an_element_that_went_early(scene: Scene) -> None:
    """The table was written anew: what the first look saw is told, at the next report of the flow or the next look."""
    for port in (1, 2):
        scene.follow(event(port), 8)
    scene.pass_time(31)
    scene.kernel.elements.clear()
    scene.follow(event(1), 3)
    assert scene.counts == [(1, 7)]
    scene.pass_time(92)
    assert sorted(scene.counts) == [(1, 2), (1, 7), (2, 7)]


def test_another_element_in_its_place(scene: Scene) -> None:
    """An element that should have ended but did not is the next one's: its packets are not this flow's."""
    scene.follow(event(), 5)
    scene.pass_time(40)
    scene.kernel.put(event(), 1000, 119.0)
    scene.pass_time(61)
    assert scene.counts == [(443, 4)]


def test_an_element_about_to_end_at_the_first_look(scene: Scene) -> None:
    """There is no second look then."""
    scene.follow(event(), 5, lifetime=30.1)
    scene.pass_time(31)
    assert scene.counts == [(443, 4)]
    assert len(scene.kernel.reads) == 1


def test_a_kernel_that_does_not_answer(scene: Scene) -> None:
    """What is known is told, and the flow is forgotten."""
    scene.follow(event(), 5)
    scene.pass_time(31)
    scene.kernel.fails = True
    scene.pass_time(61)
    assert scene.counts == [(443, 4)]
    assert len(scene.packets) == 0


def test_flows_without_a_port_are_not_followed(scene: Scene) -> None:
    """Nothing could be looked up."""
    record = FlowRecord(0.0, POD, None, API, -1, 6, (), Verdict.DENIED, Reason.NO_RULE, "", "", 1)
    scene.packets.follow(event(-1), record, 0.0)
    assert len(scene.packets) == 0


def test_one_pod_takes_a_part_of_the_room(scene: Scene) -> None:
    """A pod that scans ports does not cost others their counts; what is not followed is counted."""
    for port in range(POD_MAX + 5):
        scene.follow(event(port))
    assert len(scene.packets) == POD_MAX
    assert scene.packets.counters["unfollowed"] == 5
    scene.follow(event(443, bytes((10, 244, 1, 6))), 3)
    assert len(scene.packets) == POD_MAX + 1
    scene.pass_time(61)
    assert len(scene.packets) == 0
    scene.follow(event(443), 2)
    assert len(scene.packets) == 1


def test_all_pods_together_are_bounded(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound flows are recorded, not followed."""
    monkeypatch.setattr(module, "FLOWS_MAX", 3)
    for last in range(5):
        scene.follow(event(443, bytes((10, 244, 1, last))))
    assert len(scene.packets) == 3
    assert scene.packets.counters["unfollowed"] == 2


def test_a_turn_takes_no_more_than_its_budget(scene: Scene) -> None:
    """Many flows due at once are looked at in batches, over several turns where the clock says so."""
    for port in range(3 * BATCH):
        scene.follow(event(port))
    scene.kernel.now = 30.0
    scene.packets.tick(30.0)
    assert scene.kernel.reads == [BATCH] * 3
    read = scene.kernel.read

    def slowly(keys: Sequence[FlowKey]) -> list[Count | None]:
        scene.spent += 1.0
        return read(keys)

    scene.kernel.read = slowly  # type: ignore[method-assign] # a kernel that takes a second a batch
    scene.kernel.now = 60 - MARGIN_S
    scene.packets.tick(scene.kernel.now)
    assert scene.kernel.reads == [BATCH] * 4
    scene.packets.finish(scene.kernel.now)
    assert scene.kernel.reads == [BATCH] * 5
    assert len(scene.packets) == 0


def test_the_end_tells_what_is_known(scene: Scene) -> None:
    """The daemon ends or hands over: a last look, and everything is told and forgotten."""
    for port in (1, 2, 3):
        scene.follow(event(port), 10 * port)
    scene.packets.finish(1.0)
    assert scene.counts == [(1, 9), (2, 19), (3, 29)]
    assert scene.kernel.closed
    assert len(scene.packets) == 0
    scene.packets.tick(100.0)
    scene.packets.finish(100.0)
    assert len(scene.told) == 3


def test_unreported_packets_are_added_up(scene: Scene) -> None:
    """Across tables that count from nothing again, and a kernel that does not answer now."""
    seen = []
    for lost in (0, 5, 7, 2, KernelError("no table", 2), 4):
        scene.kernel.lost = lost
        scene.pass_time(scene.kernel.now + UNREPORTED_EVERY_S + 0.1)
        seen.append(scene.packets.counters["unreported"])
    assert seen == [0, 5, 7, 9, 9, 11]
    scene.packets.begin(cast("FlowCounters", scene.kernel))
    scene.packets.finish(scene.kernel.now)
    assert scene.packets.counters["unreported"] == 15
