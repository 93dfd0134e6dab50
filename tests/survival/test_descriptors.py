"""No file descriptor left: said once, names go on resolving, and everything is as before when there are some again."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

from e2e.shop import API4, Shop, addresses, ask, dial

from egressd.lab import eventually
from survival.stand import Load, stand

GONE, BACK = "no file descriptor is left", "there are file descriptors again"
WARM_UP = 400
"""Questions upstream that open all 32 sockets of a pool but with a probability of one in ten thousand."""


@contextlib.contextmanager
def exhausted(shop: Shop) -> Iterator[None]:
    """The daemon can open nothing more."""
    process = shop.daemon.process
    assert process is not None
    before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    used = 1 + max(int(entry.name) for entry in Path(f"/proc/{process.pid}/fd").iterdir())
    holes = set(range(used)) - {int(entry.name) for entry in Path(f"/proc/{process.pid}/fd").iterdir()}
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (min(holes, default=used), before[1]))
    try:
        eventually(lambda: GONE in shop.daemon.log(), what="the word")
        yield
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)


def test_new_names_resolve(tmp_path: Path) -> None:
    """Ports to upstreams are used for longer; nothing is denied that was allowed, nothing opened that was not."""
    with stand(tmp_path) as shop:
        shop.node.dns.zone.add("*.example.com", "A", API4)
        warm = Load(shop.web, 200, WARM_UP / 200, [f"w{n}.example.com" for n in range(WARM_UP)])
        assert warm.end()["lost"] == []
        with exhausted(shop):
            for number in range(20):
                assert addresses(ask(shop.web, f"n{number}.example.com")) == [API4]
            assert dial(shop.web, API4) == "open"
            assert dial(shop.web, "192.0.2.1", timeout=1.0) != "open"
            shop.node.run(["ip", "rule", "del", "pref", "64", "to", "10.96.0.10"], check=True)
            eventually(lambda: "putting them back" in shop.daemon.log(), what="the rule put back")
        eventually(lambda: BACK in shop.daemon.log(), what="the second word")
        assert shop.daemon.log().count(GONE) == 1
        assert "Traceback" not in shop.daemon.log()


def test_the_control_side_comes_back(tmp_path: Path) -> None:
    """Where it cannot be started for lack of a descriptor, it is as soon as there is one."""
    with stand(tmp_path) as shop:
        (first,) = shop.daemon.children()
        with exhausted(shop):
            os.kill(first, signal.SIGKILL)
            eventually(lambda: "cannot be started" in shop.daemon.log(), 20.0, what="the complaint")
        eventually(lambda: shop.daemon.children() not in ([], [first]), 20.0, what="another control side")
        shop.settle()
        assert "Traceback" not in shop.daemon.log()
