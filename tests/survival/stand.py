"""What the survival tests share: a shop whose names are known, a steady stream of queries, what a person would see."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from e2e.shop import FOR_WEB, NOTHING, Shop, addresses, ask, dial, open_shop, rcode

from egressd.lab import SERVICES, Pod, eventually

LOAD = Path(__file__).with_name("queries.py")
ALLOW = 'allow:\n- to: ["*.example.com"]\n'
OPEN_TO_NFT: dict[str, Any] = {"firewall": {"owner": False}}
"""As on a kernel before 6.9: other programs can change the table."""

__all__ = ["ALLOW", "FOR_WEB", "NOTHING", "OPEN_TO_NFT", "Load", "addresses", "allowed", "closed", "mended", "stand"]


@contextlib.contextmanager
def stand(folder: Path, settings: Mapping[str, Any] | None = None, *, rules: str = ALLOW) -> Iterator[Shop]:
    """A running shop where `web` may reach *.example.com and has asked for api.example.com."""
    with open_shop(folder, settings, start=False) as shop:
        shop.daemon.put_policy("shop/web", FOR_WEB + rules)
        shop.daemon.start()
        assert addresses(ask(shop.web, "api.example.com"))
        yield shop


class Load:
    """Queries from a pod, `rate` a second for `seconds`; `end` waits for the last and tells what came of them."""

    def __init__(self, pod: Pod, rate: int, seconds: float, names: list[str], *, tcp: int = 0) -> None:
        argv = [sys.executable, str(LOAD), SERVICES[0], str(rate), str(seconds), str(tcp), *names]
        self._program = pod.popen(argv)

    def end(self) -> dict[str, Any]:
        try:
            out, errors = self._program.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._program.kill()
            raise
        assert self._program.returncode == 0, errors
        found: dict[str, Any] = json.loads(out)
        return found


def allowed(shop: Shop) -> bool:
    """Whether the allowed name resolves, and its address can be reached."""
    return rcode(ask(shop.web, "api.example.com")) == "NOERROR" and dial(shop.web, "203.0.113.10") == "open"


def closed(shop: Shop) -> bool:
    """Whether what no rule allows is refused."""
    return dial(shop.web, "192.0.2.1", timeout=1.0) != "open"


def mended(shop: Shop, what: str = "was written anew", *, within: float = 1.0) -> None:
    """Wait until the daemon says that it put something right; `TimeoutError` after a second."""
    eventually(lambda: what in shop.daemon.log(), within, what=f"{what!r} in the log")
