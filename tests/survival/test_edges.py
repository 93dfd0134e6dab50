"""What cannot be enforced is not promised, and what the kernel refuses is not answered."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from e2e.shop import API4, ECHO, FOR_WEB, NOTHING, ask, connect, dial, open_shop, rcode

from egressd.agent.recovery import stored_name
from egressd.errors import KernelError
from egressd.kernel import SCHEMA, Kernel
from egressd.kernel.watch import names_table
from egressd.lab import Space, eventually
from egressd.names import label_text
from egressd.settings import Dns, Settings, Upstream
from survival.stand import ALLOW, stand


def test_ipvs_is_refused(tmp_path: Path) -> None:
    """kube-proxy in IPVS mode takes packets before us: the start ends with exit code 3 and says so."""
    with open_shop(tmp_path, start=False) as shop:
        shop.node.run(["ip", "link", "add", "kube-ipvs0", "type", "veth"], check=True)
        shop.daemon.start(wait=False)
        assert shop.daemon.process is not None
        assert shop.daemon.process.wait(20) == 3
        assert "IPVS mode" in shop.daemon.log()


def test_without_rights(tmp_path: Path) -> None:
    """Root without CAP_NET_ADMIN: exit code 3, and the capability named."""
    with open_shop(tmp_path) as shop:
        shop.daemon.stop()
        config = str(tmp_path / "egressd.yaml")
        argv = ["capsh", "--drop=cap_net_admin", "--", "-c", f"exec {sys.executable} -m egressd run --config {config}"]
        done = shop.node.run(argv)
        assert done.returncode == 3
        assert "CAP_NET_ADMIN" in done.stderr


def test_an_older_schema_is_replaced_in_one_transaction() -> None:
    """A table of an earlier version goes and today's comes in a single commit: no packet meets neither."""
    with Space("migration") as space:
        old = 'table inet egressd { comment "egressd schema 0"; chain c { type filter hook prerouting priority 0; }; }'
        space.run(["nft", "-f", "-"], stdin=old, check=True)
        settings = Settings(dns=Dns(upstreams=(Upstream(bytes((192, 0, 2, 53))),)))

        def replace() -> int:
            kernel = Kernel(settings)
            before = kernel._channel.generation()
            kernel.install(beating=True)
            after = kernel._channel.generation()
            assert kernel.difference() == ""
            kernel.close()
            return after - before

        assert space.call(replace) == 1
        listed = space.run(["nft", "list", "table", "inet", "egressd"]).stdout
        assert SCHEMA in listed
        assert "chain c " not in listed


def test_a_closed_kernel_gives_no_answer() -> None:
    """A socket that is gone is an error like any other, never a success."""
    with Space("closed") as space:

        def use() -> None:
            kernel = Kernel(Settings(dns=Dns(upstreams=(Upstream(bytes((192, 0, 2, 53))),))))
            kernel.install()
            kernel.close()
            with pytest.raises(KernelError):
                kernel.heartbeat()

        space.call(use)


NAMES = {
    "plain": ("api.example.com", True),
    "odd octets": (label_text(b'a"b.c\x00\xff ') + ".example.com", True),
    "root": (".", True),
    "the longest that is kept": (".".join(["a" * 62] * 3 + ["b" * 59]), True),
    "may have been cut": (".".join(["a" * 62] * 3 + ["b" * 60]), False),
    "nothing": ("", False),
    "an empty label": ("a..example", False),
    "another alphabet": ("café.example", False),
    "a label too long": ("a" * 64 + ".example", False),
}


@pytest.mark.parametrize(("comment", "good"), NAMES.values(), ids=NAMES.keys())
def test_names_of_comments(comment: str, good: bool) -> None:
    """A comment gives the very name that was written there, or none."""
    assert stored_name(comment) == (comment if good else None)


@pytest.mark.parametrize("data", [b"", b"\0" * 15, b"\xff" * 64, b"\x10\0\0\0" * 8, b"\0" * 64])
def test_reports_of_any_octets(data: bytes) -> None:
    """What the kernel reports is read without an error, whatever it is."""
    assert not names_table(data, b"egressd\0")


def test_a_cut_outlives_a_restart(tmp_path: Path) -> None:
    """What was revoked stays shut in both directions when the daemon is killed and started again."""
    with stand(tmp_path) as shop:
        with connect(shop.web, API4, ECHO):
            shop.policy("shop/web", NOTHING)
            eventually(lambda: "revoked" in shop.grants() and shop.web.v4 in revoked(shop.grants()), what="the cut")
        shop.daemon.kill()
        shop.daemon.start()
        eventually(lambda: shop.daemon.log().count("ready:") == 2, what="the next one ready")
        assert shop.web.v4 in revoked(shop.grants())
        assert dial(shop.web, API4) == "refused"


def revoked(listing: str) -> str:
    """The set `revoked4` as nft prints it."""
    return listing.partition("set revoked4 {")[2].partition("}\n")[0]


def test_a_broken_document_keeps_its_last_meaning_over_restarts(tmp_path: Path) -> None:
    """A policy whose document is broken while the daemon starts is in force as it was last good."""
    with stand(tmp_path) as shop:
        shop.daemon.stop()
        shop.daemon.put_policy("shop/web", FOR_WEB + ALLOW.replace("allow", "allows"))
        shop.daemon.start()
        eventually(lambda: shop.daemon.log().count("ready:") == 2, what="the next one ready")
        assert rcode(ask(shop.web, "api.example.com")) == "NOERROR"
        assert rcode(ask(shop.web, "denied.example")) == "NXDOMAIN"
        assert dial(shop.web, "192.0.2.1") == "refused"
        eventually(lambda: "allows" in shop.daemon.log(), what="the complaint")
