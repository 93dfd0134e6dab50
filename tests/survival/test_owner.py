"""Where the kernel can protect the table (owner and persist, Linux 6.9), it does, and nobody is locked out by it."""

from __future__ import annotations

import sys
from pathlib import Path

from e2e.shop import API4, Shop, dial

from egressd.lab import eventually
from survival.stand import allowed, closed, stand

REFUSED = "Operation not permitted"


def cleanup(shop: Shop) -> tuple[int, str]:
    """`egressd cleanup`: exit code and complaints."""
    config = shop.daemon.folder / "egressd.yaml"
    done = shop.node.run([sys.executable, "-m", "egressd", "cleanup", "--config", str(config)])
    return done.returncode, done.stderr


def test_an_owned_table(tmp_path: Path) -> None:
    """A flush passes it by and changes are refused; left behind it enforces, is taken over, and can be cleaned up."""
    with stand(tmp_path) as shop:
        assert "flags owner" in shop.grants()
        shop.node.run(["nft", "flush", "ruleset"], check=True)
        assert closed(shop)
        for command in ("delete table inet egressd", "flush chain inet egressd egress"):
            assert REFUSED in shop.node.run(["nft", command]).stderr
        code, complaint = cleanup(shop)
        assert (code, "still running" in complaint) == (3, True)
        shop.daemon.kill()
        assert closed(shop)
        assert dial(shop.web, API4) == "open"
        shop.daemon.start()
        eventually(lambda: "1 grants taken over" in shop.daemon.log(), what="the next one ready")
        assert "flags owner" in shop.grants()
        assert allowed(shop)
        shop.daemon.kill()
        assert cleanup(shop) == (0, "")
        assert "egressd" not in shop.node.run(["nft", "list", "tables"]).stdout
        eventually(lambda: not closed(shop), what="everything open")
