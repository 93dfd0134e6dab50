"""Flow records of the real daemon: what was let through where `audit.flows: All`, and how many packets there were."""

from __future__ import annotations

import socket
from collections import Counter
from pathlib import Path

from e2e.shop import API4, API6, ECHO, FOR_OTHER, FOR_WEB, Shop, addresses, ask, dial, open_shop, send_udp
from egressd.lab import SERVICES, Pod, eventually

ALLOW = "allow:\n- name: api\n  to: [api.example.com]\n- name: host\n  to: [192.0.2.1]\n"
ALL = {"audit": {"flows": "All"}}
CDN4 = "198.51.100.9"


def packets(shop: Shop) -> Counter[tuple[str, str, int]]:
    """The packets of all flow records, by verdict, address and port."""
    found: Counter[tuple[str, str, int]] = Counter()
    for record in shop.daemon.records("flow"):
        to = record["destination"]
        found[record["verdict"], to["ip"], to.get("port", -1)] += record["packets"]
    return found


def datagrams(pod: Pod, address: str, port: int, count: int) -> None:
    """Datagrams of one flow that nobody answers; refusals of earlier ones are taken off the socket."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with pod.socket(family, socket.SOCK_DGRAM) as opened:
        opened.connect((address, port))
        for _ in range(count):
            opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            opened.send(b"hello")


def test_what_is_let_through_is_recorded(tmp_path: Path) -> None:
    """TCP, UDP and ping by name, by address, in the cluster and without a policy: name, policy and rule of each."""
    with open_shop(tmp_path, ALL) as shop:
        shop.policy("shop/web", ALLOW)
        for qtype, address in (("A", API4), ("AAAA", API6)):
            assert addresses(ask(shop.web, "api.example.com", qtype)) == [address]
            assert dial(shop.web, address) == "open"
            assert send_udp(shop.web, address) == "open"
            ping = "icmpv6" if ":" in address else "icmp"
            shop.web.run(["ping", "-c", "1", "-W", "5", address], check=True)
            for port, protocol in ((80, "tcp"), (ECHO, "udp"), (None, ping)):
                record = shop.flow_record(shop.web, address, port, verdict="allowed")
                assert record["destination"]["protocol"] in {protocol, "tcp", "udp", ping}
                assert record["destination"]["names"] == ["api.example.com"]
                assert (record["reason"], record["policy"], record["rule"]) == ("rule", "shop/web", "api")
                assert record["packets"] == 1
        shop.daemon.wait_record(
            lambda record: record["destination"]["protocol"] == "icmpv6" and record["verdict"] == "allowed"
        )
        assert dial(shop.web, "192.0.2.1") == "open"
        assert shop.flow_record(shop.web, "192.0.2.1", 80)["rule"] == "host"
        assert dial(shop.web, shop.other.v4) in {"open", "refused"}
        assert shop.flow_record(shop.web, shop.other.v4, 80, verdict="allowed")["reason"] == "in-cluster"
        assert addresses(ask(shop.free, "api.example.com")) == [API4]
        assert dial(shop.free, API4) == "open"
        free = shop.flow_record(shop.free, API4, 80)
        assert (free["verdict"], free["reason"]) == ("allowed", "unselected")
        assert free["destination"]["names"] == ["api.example.com"]


def test_sums_of_packets_and_the_setting_over_restarts(tmp_path: Path) -> None:
    """`packets` adds up to what was sent, allowed or denied; a restart with the other setting records none, or all."""
    with open_shop(tmp_path, ALL) as shop:
        shop.policy("shop/web", ALLOW)
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
        datagrams(shop.web, API4, 9, 40)
        datagrams(shop.web, CDN4, 9, 30)
        datagrams(shop.web, "192.0.2.1", 9, 1)
        shop.flow_record(shop.web, API4, 9)
        shop.flow_record(shop.web, CDN4, 9)
        shop.flow_record(shop.web, "192.0.2.1", 9)
        assert shop.daemon.stop() == 0
        sums = {("allowed", API4, 9): 40, ("denied", CDN4, 9): 30, ("allowed", "192.0.2.1", 9): 1}
        assert packets(shop) == sums

        shop.daemon.settings["audit"].pop("flows")
        shop.daemon.start()
        eventually(lambda: "goto allowed" not in shop.grants(), what="the table of the new settings")
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
        assert dial(shop.web, "192.0.2.1") == "open"
        assert dial(shop.free, API4) == "open"
        datagrams(shop.web, CDN4, 9, 5)
        eventually(lambda: packets(shop)["denied", CDN4, 9] > 30, what="the denied flow")
        assert shop.daemon.stop() == 0
        assert packets(shop) == sums | {("denied", CDN4, 9): 35}

        shop.daemon.settings["audit"]["flows"] = "All"
        shop.daemon.start()
        eventually(lambda: "goto allowed" in shop.grants(), what="the table of the new settings")
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
        assert dial(shop.web, "192.0.2.1") == "open"
        assert shop.flow_record(shop.web, "192.0.2.1", 80)["verdict"] == "allowed"


def test_audit_only_pods(tmp_path: Path) -> None:
    """A pod that only Audit policies select: what they would deny is would-deny, the rest allowed; all is counted."""
    with open_shop(tmp_path, ALL) as shop:
        shop.policy("shop/other", "mode: Audit\n" + ALLOW, FOR_OTHER)
        shop.policy("shop/web", "mode: Audit\n" + ALLOW, FOR_WEB)
        assert addresses(ask(shop.other, "api.example.com")) == [API4]
        assert dial(shop.other, API4) == "open"
        datagrams(shop.other, CDN4, 9, 12)
        record = shop.flow_record(shop.other, API4, 80)
        assert (record["verdict"], record["policy"], record["rule"]) == ("allowed", "shop/other", "api")
        record = shop.flow_record(shop.other, CDN4, 9)
        assert (record["verdict"], record["reason"]) == ("would-deny", "no-rule")
        assert shop.daemon.stop() == 0
        assert packets(shop) == {("allowed", API4, 80): 1, ("would-deny", CDN4, 9): 12}


def test_a_repaired_table_still_records(tmp_path: Path) -> None:
    """Somebody deletes the table: what is written anew reports what is let through as before."""
    with open_shop(tmp_path, ALL | {"firewall": {"owner": False}}) as shop:
        shop.policy("shop/web", ALLOW)
        assert dial(shop.web, "192.0.2.1") == "open"
        shop.flow_record(shop.web, "192.0.2.1", 80)
        shop.node.run(["nft", "delete", "table", "inet", "egressd"], check=True)
        eventually(lambda: "chain allowed" in shop.node.run(["nft", "list", "ruleset"]).stdout, what="the table again")
        assert dial(shop.web, "192.0.2.1") == "open"
        eventually(lambda: packets(shop)["allowed", "192.0.2.1", 80] == 2, what="the second flow")
        assert addresses(ask(shop.web, "api.example.com", server=SERVICES[0])) == [API4]


def test_a_verdict_that_changes_is_recorded_at_once(tmp_path: Path) -> None:
    """A flow that was recorded as let through a moment ago is recorded as denied once a policy closes it."""
    with open_shop(tmp_path, ALL) as shop:
        shop.policy("shop/web", "allow:\n- to: [192.0.2.1]\n")
        assert dial(shop.web, "192.0.2.1") == "open"
        shop.flow_record(shop.web, "192.0.2.1", 80, verdict="allowed")
        shop.policy("shop/web", "allow:\n- to: [192.0.2.2]\n")
        assert dial(shop.web, "192.0.2.1") == "refused"
        assert shop.flow_record(shop.web, "192.0.2.1", 80, verdict="denied")["reason"] == "no-rule"
