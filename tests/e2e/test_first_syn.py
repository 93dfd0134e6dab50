"""The promise in numbers: what an answer names is open before the answer arrives, every time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from e2e.shop import Shop, open_shop
from egressd.lab import SERVICES, pool

LOOKUPS = 10_000
BUDGETS = {"queries_per_second_per_pod": 1_000_000, "burst_per_pod": 1_000_000}
LOAD = Path(__file__).with_name("load.py")


@pytest.mark.parametrize("cache", [50_000, 0], ids=["cached", "uncached"])
def test_every_first_syn_connects(tmp_path: Path, cache: int) -> None:
    """10,000 look-ups of rotating names, grants ending and beginning all the while: no SYN is refused or sent twice."""
    settings = {"budgets": BUDGETS, "grants": {"min": "1s", "grace": "1s"}, "dns": {"cache": {"size": cache}}}
    with open_shop(tmp_path, settings) as shop:
        prepare(shop)
        before = shop.web.counters()
        run = shop.web.run([sys.executable, LOAD, SERVICES[0], str(LOOKUPS)], timeout=100, check=True)
        after = shop.web.counters()
        done = json.loads(run.stdout)
        assert done == {"lookups": LOOKUPS, "connected": LOOKUPS, "failures": []}
        assert after["TcpExt.TCPSynRetrans"] - before["TcpExt.TCPSynRetrans"] == 0
        assert after["Tcp.AttemptFails"] - before["Tcp.AttemptFails"] == 0
        assert after["Tcp.ActiveOpens"] - before["Tcp.ActiveOpens"] == LOOKUPS


def prepare(shop: Shop) -> None:
    """Fifty names rotate through 700 IPv4 addresses, as S3 does; any other name leads to two of 20,000 IPv6 ones."""
    zone = shop.node.dns.zone
    addresses = [address for block in ("203.0.113", "198.51.100", "192.0.2") for address in pool(f"{block}.0/24", 240)]
    for number in range(50):
        start = number * 14
        zone.rotate(f"s{number}.rotating.example", addresses[start:] + addresses[:start], count=8, ttl=1)
    zone.rotate("*.fresh.example", pool("2001:db8:1::/64", 20_000), count=2, ttl=1)
    shop.policy("shop/web", 'allow:\n- to: ["*.rotating.example", "*.fresh.example"]\n  ports: [80/TCP]\n')
