"""The export against a real collector: what arrives, and what becomes of records while it is away, slow or unwilling.

Every test ends with the same sum: each record that was put is counted once, as sent or as dropped.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

from egressd.export import Export, exporter
from egressd.export.exporter import MAX_WAITING
from egressd.link import Lines
from egressd.settings import Otlp, Settings
from egressd.telemetry import ControlFacts

from .receiver import Receiver, receiving, values

HEADERS: Final = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20hush"}
LONG_S: Final = 3600.0


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting for the sake of others, and tries in quick succession."""
    monkeypatch.setattr(exporter, "LINGER_S", 0.01)
    monkeypatch.setattr(exporter, "MAX_PAUSE_S", 0.05)
    monkeypatch.setattr(exporter, "FLUSH_S", 60.0)


def batch(first: int, count: int = 1, size: int = 0) -> Lines:
    """Lines that say their number."""
    filler = "x" * size
    lines = [
        f'{{"time":"2026-11-22T13:00:00Z","event":"dns","latency_us":{n},"rule":"{filler}"}}\n'
        for n in range(first, first + count)
    ]
    return Lines("".join(lines).encode(), count)


def settings(url: str, **more: Any) -> Settings:
    return Settings(node="n1", otlp=Otlp(url, **{"interval": LONG_S, **more}))


def facts() -> ControlFacts:
    return ControlFacts("0.1.0", unready={"not-synced": True}, requests={200: 3})


def run(body: Callable[[Export], Coroutine[Any, Any, None]]) -> Export:
    """Run a test's body with an export, and close it."""

    async def whole() -> Export:
        export = Export(facts, HEADERS)
        try:
            await asyncio.wait_for(body(export), 60)
        finally:
            await export.close()
        return export

    return asyncio.run(whole())


async def until(condition: Callable[[], object]) -> None:
    """Wait until it is true; the test's own bound ends it otherwise."""
    while not condition():  # noqa: ASYNC110 - what is waited for happens in threads of the collector, too
        await asyncio.sleep(0.01)


def numbers(receiver: Receiver) -> list[int]:
    return [values(record.attributes)["egressd.latency_us"] for record in receiver.records()]


def refused_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_records_and_metrics_arrive() -> None:
    """In order, once each, with the secret header; the last set of metrics is sent at the end."""
    with receiving() as receiver:

        async def body(export: Export) -> None:
            await export.take(settings(receiver.url))
            for number in range(0, 5000, 100):
                export.put(batch(number, 100))
            await until(lambda: export.counts.sent == 5000)

        export = run(body)
        assert numbers(receiver) == list(range(5000))
        assert {headers["authorization"] for _, headers, _ in receiver.requests} == {"Bearer hush"}
        requests = receiver.metrics()["egressd_admin_requests_total"].sum
        assert [(values(point.attributes), point.as_int) for point in requests.data_points] == [({"code": "200"}, 3)]
    assert set(export.counts.dropped.values()) == {0}


def test_metrics_come_at_their_interval() -> None:
    """More than one set is sent, without any record to go with it."""
    with receiving() as receiver:

        async def body(export: Export) -> None:
            await export.take(settings(receiver.url, interval=0.05, logs=False))
            export.put(batch(0))
            await until(lambda: len(receiver.taken("/v1/metrics")) >= 3)

        export = run(body)
        assert not receiver.records()
    assert (export.counts.sent, sum(export.counts.dropped.values())) == (0, 0)


def test_collector_comes_back(capsys: pytest.CaptureFixture[str]) -> None:
    """While it refuses connections records wait; once it is there they arrive in order, none lost and none twice."""
    port = refused_port()

    async def body(export: Export) -> None:
        await export.take(settings(f"http://127.0.0.1:{port}", metrics=False))
        export.put(batch(0, 10))
        await until(lambda: export.counts.failures >= 2)
        export.put(batch(10, 10))
        with receiving(socket.create_server(("127.0.0.1", port))) as receiver:
            await until(lambda: export.counts.sent == 20)
            assert numbers(receiver) == list(range(20))

    export = run(body)
    assert set(export.counts.dropped.values()) == {0}
    said = capsys.readouterr().err
    assert said.count("does not take them") == 1
    assert "hush" not in said


def test_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many tries a request is dropped and the next one has its turn."""
    monkeypatch.setattr(exporter, "TRIES", 3)
    with receiving() as receiver:
        receiver.script = [(503, {})] * 3

        async def body(export: Export) -> None:
            await export.take(settings(receiver.url, metrics=False))
            export.put(batch(0, 7))
            await until(lambda: export.counts.dropped["given-up"] == 7)
            export.put(batch(7))
            await until(lambda: export.counts.sent == 1)

        export = run(body)
        assert numbers(receiver) == [7]
    assert export.counts.failures == 3


def test_try_again_later() -> None:
    """429 and 503 are tried again, not before the collector's Retry-After; the pause ends with the export."""
    with receiving() as receiver:
        receiver.script = [(429, {"Retry-After": "0"}), (503, {"Retry-After": "soon"}), (503, {"Retry-After": "3600"})]

        async def body(export: Export) -> None:
            await export.take(settings(receiver.url, metrics=False))
            export.put(batch(0, 4))
            await until(lambda: export.counts.failures == 3)
            assert export.counts.sent == 0

        export = run(body)
        assert numbers(receiver) == [0, 1, 2, 3]
    assert export.counts.sent == 4


@pytest.mark.parametrize("status", [400, 401, 404, 500, 307])
def test_refused(status: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What a collector will never take is dropped at once and said; a redirect, too: secrets follow nobody."""
    with receiving() as receiver:
        receiver.script = [(status, {"Location": f"{receiver.url}/v1/metrics"})]

        async def body(export: Export) -> None:
            await export.take(settings(receiver.url, metrics=False))
            export.put(batch(0, 5))
            await until(lambda: export.counts.dropped["refused"] == 5)
            export.put(batch(5, 2))
            await until(lambda: export.counts.sent == 2)

        run(body)
        assert len(receiver.requests) == 2
    assert f"it answers {status}" in capsys.readouterr().err


def test_partial_success() -> None:
    """What a collector says it left out counts as refused, and never more than was sent."""
    with receiving() as receiver:
        receiver.rejected = 3

        async def body(export: Export) -> None:
            await export.take(settings(receiver.url, metrics=False))
            export.put(batch(0, 5))
            await until(lambda: export.counts.sent == 2)
            export.put(batch(5, 2))
            await until(lambda: export.counts.dropped["refused"] == 5)

        export = run(body)
    assert export.counts.sent == 2


def test_slow_collector_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not answer holds a bounded number of octets; the oldest are dropped, nobody waits, and it ends."""
    monkeypatch.setattr(exporter, "FLUSH_S", 0.1)
    with receiving() as receiver:
        receiver.hangs.set()

        async def body(export: Export) -> None:
            await export.take(settings(receiver.url, metrics=False))
            export.put(batch(0))
            running = export._exporter
            assert running is not None
            for number in range(1, 301):
                export.put(batch(number, 1, 100_000))  # 30 MB
                assert running._octets <= MAX_WAITING
                await asyncio.sleep(0)
            assert export.counts.dropped["queue-full"] > 100

        export = run(body)
    assert export.counts.sent + sum(export.counts.dropped.values()) == 301


def test_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a collector that does not answer, closing gives up after its time, and counts what is left."""
    monkeypatch.setattr(exporter, "FLUSH_S", 0.1)
    with receiving() as receiver:
        receiver.hangs.set()

        async def body(export: Export) -> None:
            await export.take(settings(receiver.url))
            export.put(batch(0, 3))
            await asyncio.sleep(0.5)
            export.put(batch(3, 2))

        export = run(body)
    assert export.counts.dropped["given-up"] == 5


def test_end_sends_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records that still wait for company when it ends are sent."""
    monkeypatch.setattr(exporter, "LINGER_S", LONG_S)
    with receiving() as receiver:

        async def body(export: Export) -> None:
            await export.take(settings(receiver.url))
            export.put(batch(0, 3))
            await asyncio.sleep(0)

        export = run(body)
        assert numbers(receiver) == [0, 1, 2]
    assert export.counts.sent == 3


def test_large_batches_are_cut() -> None:
    """A frame of the link makes several requests, each of whole lines and far below what collectors take."""
    with receiving() as receiver:

        async def body(export: Export) -> None:
            await export.take(settings(receiver.url, metrics=False))
            export.put(batch(0, 3000, 1000))
            await until(lambda: export.counts.sent == 3000)

        run(body)
        assert numbers(receiver) == list(range(3000))
        assert len(receiver.requests) > 3
        assert all(message.ByteSize() < 4 << 20 for _, _, message in receiver.requests)


def test_settings_change_while_it_runs() -> None:
    """Another endpoint counts from then on, "" turns it off, and the counts go on; equal settings change nothing."""
    with receiving() as first, receiving() as second:

        async def body(export: Export) -> None:
            export.put(batch(0))  # nobody wants it yet
            await export.take(settings(first.url, metrics=False))
            export.put(batch(1))
            await export.take(settings(first.url, metrics=False))
            await export.take(settings(second.url, metrics=False))
            export.put(batch(2))
            await export.take(settings("", metrics=False))
            export.put(batch(3))

        export = run(body)
        assert (numbers(first), numbers(second)) == ([1], [2])
    assert export.counts.sent == 2


def test_bug_costs_the_export_alone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever fails inside is printed, and whoever hands in records or closes it never hears of it."""

    def fail(_lines: bytes) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(exporter, "_pieces", fail)
    with receiving() as receiver:

        async def body(export: Export) -> None:
            await export.take(settings(receiver.url, metrics=False))
            export.put(batch(0))
            await until(lambda: export._exporter is None)
            export.put(batch(1))

        run(body)
    assert "ZeroDivisionError" in capsys.readouterr().err
