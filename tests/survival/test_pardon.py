"""What was cut and is allowed again is a flow like any other; what was edited while nobody looked ends at the start."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e.shop import API4, API6, ECHO, NOTHING, Shop, ask, connect, dial, echoes, family_of, rcode

from egressd.lab import Pod, eventually
from survival.stand import ALLOW, FOR_WEB, stand

DRAIN = "onRevoke: Drain\n"
RANGE4, DENIED4, NAMED4 = "198.51.100.77", "203.0.113.78", "203.0.113.79"
"""Addresses of the world outside, whose test servers listen on all of them."""


WENT_BY = {RANGE4: False, DENIED4: False, "203.0.113.80": False, NAMED4: True, "203.0.113.10": True}
"""Connections, and whether they live after the start."""


@contextmanager
def datagrams(pod: Pod, address: str) -> Iterator[socket.socket]:
    """A UDP flow to the echo server."""
    with pod.socket(family_of(address), socket.SOCK_DGRAM) as opened:
        opened.settimeout(0.5)
        opened.connect((address, ECHO))
        yield opened


def alive(flow: socket.socket) -> bool:
    """Whether the flow carries a datagram there and back."""
    try:
        flow.send(b"hello")
        return flow.recv(100) == b"hello"
    except OSError:
        return False


def revoked(shop: Shop) -> str:
    """What `nft` prints of the pairs that are kept shut."""
    listed = shop.grants()
    return "".join(part.partition("\n\t}")[0] for part in listed.split("\tset ") if part.startswith("revoked"))


@pytest.mark.parametrize("address", [API4, API6])
def test_a_flow_that_is_allowed_again_may_drain(tmp_path: Path, address: str) -> None:
    """Cut, allowed again, and then drained: the live flow goes on, though its addresses were kept shut before."""
    with stand(tmp_path) as shop:
        kind = "AAAA" if ":" in address else "A"
        assert rcode(ask(shop.web, "api.example.com", kind)) == "NOERROR"
        with datagrams(shop.web, address) as flow:
            assert alive(flow)
            shop.policy("shop/web", NOTHING)
            eventually(lambda: address in revoked(shop), what="the cut")
            assert not alive(flow)
            shop.policy("shop/web", DRAIN + ALLOW)
            eventually(lambda: rcode(ask(shop.web, "api.example.com", kind)) == "NOERROR", what="the rule again")
            eventually(lambda: address not in revoked(shop), what="the pardon")
            eventually(lambda: alive(flow), what="the flow again")
            shop.policy("shop/web", DRAIN + NOTHING)
            eventually(lambda: dial(shop.web, address) == "refused", what="the edit in force")
            assert alive(flow)


def test_what_was_edited_away_meanwhile_is_cut_at_the_start(tmp_path: Path) -> None:
    """Connections by an address rule, against a new deny rule and by a live grant end; what may have gone by a name
    whose grant had ended, and what is still allowed, goes on."""
    rules = f'allow:\n- to: ["*.example.com", {RANGE4}, 203.0.113.0/28]\n'
    with stand(tmp_path, {"grants": {"min": "1s", "grace": "0s"}}, rules=rules) as shop:
        zone = shop.node.dns.zone
        zone.add("ended.example.com", "A", NAMED4, ttl=1)
        zone.add("denied.example.com", "A", DENIED4, ttl=600)
        zone.add("withdrawn.example.com", "A", "203.0.113.80", ttl=600)
        for name in ("ended", "denied", "withdrawn"):
            assert rcode(ask(shop.web, f"{name}.example.com")) == "NOERROR"
        live = {address: connect(shop.web, address, ECHO) for address in WENT_BY}
        eventually(lambda: dial(shop.web, NAMED4) == "refused", what="the end of the grant")
        shop.daemon.kill()
        shop.daemon.put_policy(
            "shop/web",
            FOR_WEB
            + f"allow:\n- to: [ended.example.com, denied.example.com, 203.0.113.0/28]\ndeny:\n- to: [{DENIED4}]\n",
        )
        assert all(echoes(flow) for flow in live.values())
        shop.daemon.start()
        eventually(lambda: shop.daemon.log().count("ready:") == 2, what="the next one ready")
        eventually(lambda: RANGE4 in revoked(shop) or not echoes(live[RANGE4]), what="the cut")
        assert {address: echoes(flow) for address, flow in live.items()} == WENT_BY
        for flow in live.values():
            flow.close()
