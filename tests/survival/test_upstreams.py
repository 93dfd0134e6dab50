"""A resolver that comes back is not run over, and while it is away what is known goes on."""

from __future__ import annotations

import time
from pathlib import Path

from e2e.shop import API4

from survival.stand import Load, stand

NAMES = [f"n{number}.example.com" for number in range(50)]


def test_no_herd_after_an_outage(tmp_path: Path) -> None:
    """Under 300 queries/s for 50 names with short TTLs: none fails during 3 s without upstream, and on its return
    each name is asked a few times, not once for every query that came meanwhile."""
    with stand(tmp_path) as shop:
        for name in NAMES:
            shop.node.dns.zone.add(name, "A", API4, ttl=1)
        load = Load(shop.web, 300, 8.0, NAMES)
        time.sleep(2.5)
        shop.node.dns.close()
        time.sleep(3.0)
        shop.node.dns.forget()
        shop.node.dns.start()
        time.sleep(1.0)
        asked = len(shop.node.dns.seen.copy())
        found = load.end()
        assert (found["lost"], found["refused"]) == ([], [])
        assert asked < 4 * len(NAMES)
