"""Audit lines for the tests of history, as the daemon writes them, and a keeper that runs for a while."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from egressd.audit import Renderer
from egressd.history import Filter, Keeper, Key, Observation, Sums
from egressd.history.book import Book
from egressd.history.reading import observations
from egressd.model import DnsRecord, FlowRecord, PodIdentity, Reason, Verdict
from egressd.settings import History

__all__ = ["DAY", "FIRST", "WEB", "all_of", "dns", "everything", "flow", "kept", "many"]

FIRST = 20_000
"""A day, and its first second."""
DAY = FIRST * 86_400.0
WEB = PodIdentity("shop", "web-0", "u1", "web", "Deployment/web")
SOURCE = bytes((10, 244, 0, 5))

T = TypeVar("T")


def dns(
    name: str,
    *,
    pod: PodIdentity | None = WEB,
    time: float = DAY,
    verdict: Verdict = Verdict.ALLOWED,
    reason: Reason = Reason.RULE,
    policy: str = "shop/web",
    rule: str = "api",
    rcode: int = 0,
    addresses: tuple[bytes, ...] = (),
    search: bool = False,
    aggregated: int = 0,
) -> bytes:
    """The line of one query."""
    return Renderer("n1").dns_line(
        DnsRecord(
            time, SOURCE, pod, name, 1, "udp", SOURCE, 4000, verdict, reason, policy, rule, rcode, addresses, (), 5,
            False, (), 800, search, aggregated,
        )
    )  # fmt: skip


def flow(
    address: str,
    port: int = 443,
    *names: str,
    pod: PodIdentity | None = WEB,
    time: float = DAY,
    verdict: Verdict = Verdict.DENIED,
    reason: Reason = Reason.NO_RULE,
    policy: str = "",
    rule: str = "",
    packets: int = 1,
) -> bytes:
    """The line of one flow over TCP to an IPv4 address."""
    destination = bytes(map(int, address.split(".")))
    return Renderer("n1").flow_line(
        FlowRecord(time, SOURCE, pod, destination, port, 6, names, verdict, reason, policy, rule, packets)
    )


def kept(file: Path, play: Callable[[Keeper], Awaitable[T]], *, clock: Callable[[], float] = lambda: DAY) -> T:
    """Have `play` use a keeper while it runs."""

    async def run() -> T:
        keeper = Keeper(History(str(file)), clock=clock)
        running = asyncio.create_task(keeper.run())
        try:
            return await play(keeper)
        finally:
            keeper.close()
            await running

    return asyncio.run(run())


def many(number: int, day: int, prefix: str = "n") -> dict[Key, Sums]:
    """So many different observations of one day."""
    second = (FIRST + day) * 86_400
    rest = ("allowed", "rule", "shop/web", "api", False, "dns", -1, "", "web", "")
    return {
        Key(FIRST + day, "shop", "Deployment/web", f"{prefix}{one}.example", *rest): Sums(second, second + day, 1, 0)
        for one in range(number)
    }


async def everything(keeper: Keeper) -> dict[tuple[int, str, str], int]:
    """Counts by day, name and verdict."""
    found, truncated = await keeper.observations(Filter(), 10_000)
    assert not truncated
    counts: Counter[tuple[int, str, str]] = Counter()
    for key, sums in found:
        counts[key.day - FIRST, key.name, key.verdict] += sums.number
    return dict(counts)


def all_of(book: Book) -> list[Observation]:
    """Everything that a book holds."""
    nothing: tuple[list[Observation], bool] = [], True
    found, truncated = book.read(lambda store: observations(store, Filter(), 50_000), nothing)
    assert not truncated
    return found
