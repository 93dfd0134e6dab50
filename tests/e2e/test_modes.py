"""Settings and policy modes, each on a running node of its own kind."""

from __future__ import annotations

import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from e2e.shop import (
    API4,
    API6,
    ECHO,
    FOR_OTHER,
    NOTHING,
    Shop,
    addresses,
    ask,
    dial,
    error_of,
    open_shop,
    raw,
    rcode,
    send_udp,
    spoofer,
)
from egressd.lab import CLUSTER_CIDRS, SERVICES, UPSTREAMS, DnsServer, Pod, Space, eventually, name_wire

ALLOW = 'allow:\n- to: ["*.example.com"]\n'
FOREIGN = "192.0.2.53"
FOREIGN6 = "2001:db8::53"


def foreign_server(shop: Shop) -> DnsServer:
    """A DNS server on the internet that says something else about api.example.com."""
    space: Space = shop.node.internet
    server = DnsServer(space, [FOREIGN, FOREIGN6])
    server.zone.add("api.example.com", "A", "203.0.113.99")
    return server


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize("server", [FOREIGN, FOREIGN6])
def test_foreign_resolvers_are_refused(tmp_path: Path, server: str, *, tcp: bool) -> None:
    """`dns.foreign: Deny`: an enforced pod that asks another server is refused at once, an unselected one is not."""
    with open_shop(tmp_path) as shop:
        other = foreign_server(shop)
        shop.policy("shop/web", ALLOW)
        way = dial if tcp else send_udp
        assert way(shop.web, server, 53, timeout=10) == "refused"
        assert other.names() == []
        record = shop.flow_record(shop.web, server, 53)
        assert (record["verdict"], record["reason"]) == ("denied", "foreign-resolver")
        assert addresses(ask(shop.free, "api.example.com", server=server, tcp=tcp)) == ["203.0.113.99"]
        other.close()


def test_foreign_resolvers_are_answered(tmp_path: Path) -> None:
    """`dns.foreign: Answer`: queries to any server are answered in its name, and the server never sees them."""
    with open_shop(tmp_path, {"dns": {"foreign": "Answer"}}) as shop:
        other = foreign_server(shop)
        shop.policy("shop/web", ALLOW)
        for server in (FOREIGN, FOREIGN6, *SERVICES):
            for tcp in (False, True):
                assert addresses(ask(shop.web, "api.example.com", server=server, tcp=tcp)) == [API4]
                assert rcode(ask(shop.web, "denied.cdn.example", server=server, tcp=tcp)) == "NXDOMAIN"
        assert other.names() == []
        assert dial(shop.web, API4) == "open"
        assert shop.dns_record(shop.web, "api.example.com")["query"]["server"] == FOREIGN
        other.close()


def test_intercept_selected(tmp_path: Path) -> None:
    """`dns.intercept: Selected`: pods without a policy speak to the server itself."""
    with open_shop(tmp_path, {"dns": {"intercept": "Selected"}}) as shop:
        shop.policy("shop/web", ALLOW)
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
        assert addresses(ask(shop.free, "api.example.com")) == [API4]
        assert {query.source for query in shop.node.dns.seen if query.source == shop.free.v4} == {shop.free.v4}
        shop.dns_record(shop.web, "api.example.com")
        assert not [record for record in shop.daemon.records("dns") if record["pod"].get("name") == "free-0"]


def test_exempt_pods(tmp_path: Path) -> None:
    """Pods that serve DNS to us speak to their upstream undisturbed, and never come back to us."""
    exempt = {"namespace": "kube-system", "matchLabels": {"k8s-app": "kube-dns"}}
    with open_shop(tmp_path, {"dns": {"exempt": exempt}}) as shop:
        coredns = shop.node.add_pod("kube-system/coredns-0", labels={"k8s-app": "kube-dns"})
        impostor = shop.node.add_pod("shop/coredns-0", labels={"k8s-app": "kube-dns"})
        shop.daemon.put_pods()
        shop.policy("shop/web", ALLOW)
        eventually(lambda: dial(impostor, "192.0.2.1") == "open", what="the pods known")
        assert addresses(ask(coredns, "api.example.com")) == [API4]
        assert addresses(ask(impostor, "api.example.com")) == [API4]
        sources = {query.source for query in shop.node.dns.seen}
        assert coredns.v4 in sources
        assert impostor.v4 not in sources


def test_a_pod_known_late(tmp_path: Path) -> None:
    """The first query of a pod that is not known yet waits for it and is then judged by its policies."""
    with open_shop(tmp_path, {"unknown_wait": "8s"}) as shop:
        shop.policy("shop/web", ALLOW)
        late = shop.node.add_pod("shop/late-0", labels={"app": "web"})
        assert dial(late, API4, timeout=0.3) == "silence"  # dropped, so that it tries again
        found: list[str] = []
        asking = [
            threading.Thread(target=lambda: found.extend(addresses(ask(late, "api.example.com")))),
            threading.Thread(target=lambda: found.append(rcode(ask(late, "denied.cdn.example", tcp=True)))),
        ]
        for thread in asking:
            thread.start()
        time.sleep(0.5)
        assert found == []
        shop.daemon.put_pods()
        for thread in asking:
            thread.join()
        assert sorted(found) == [API4, "NXDOMAIN"]
        assert dial(late, API4) == "open"
        assert dial(late, "192.0.2.1") == "refused"


def test_a_pod_never_known(tmp_path: Path) -> None:
    """A source that stays unknown is denied after the wait, and gets nowhere."""
    with open_shop(tmp_path, {"unknown_wait": "500ms"}) as shop:
        stranger = shop.node.add_pod("shop/stranger-0")
        answer = ask(stranger, "api.example.com")
        assert (rcode(answer), error_of(answer)[0]) == ("NXDOMAIN", 18)
        assert (dial(stranger, API4, timeout=0.5), send_udp(stranger, API4, timeout=0.5)) == ("silence", "silence")
        record = shop.daemon.wait_record(lambda r: r["reason"] == "unknown-pod" and r["event"] == "dns")
        assert (record["pod"], record["verdict"]) == ({"ip": stranger.v4}, "denied")
        flow = shop.daemon.wait_record(lambda r: r["event"] == "flow" and r["pod"]["ip"] == stranger.v4)
        assert (flow["verdict"], flow["reason"]) == ("denied", "unknown-pod")
        assert "api.example.com" not in shop.node.dns.names()


@pytest.mark.parametrize("setting", ["Allow", "Enforce"])
def test_in_cluster(tmp_path: Path, setting: str) -> None:
    """In-cluster names and addresses are open, or with `in_cluster: Enforce` judged like any other."""
    with open_shop(tmp_path, {"in_cluster": setting}) as shop:
        zone = shop.node.dns.zone
        zone.add("db.shop.svc.cluster.local", "A", shop.free.v4)
        zone.add("cache.shop.svc.cluster.local", "A", shop.other.v4)
        shop.policy(
            "shop/web", "allow:\n- to: [db.shop.svc.cluster.local]\n  ports: [5432/TCP]\n  allowPrivate: true\n"
        )
        enforced = setting == "Enforce"
        with serving(shop.free, 5432), serving(shop.free, 5433), serving(shop.other, 5432):
            assert addresses(ask(shop.web, "db.shop.svc.cluster.local")) == [shop.free.v4]
            assert rcode(ask(shop.web, "cache.shop.svc.cluster.local")) == ("NXDOMAIN" if enforced else "NOERROR")
            assert dial(shop.web, shop.free.v4, 5432) == "open"
            assert dial(shop.web, shop.free.v4, 5433) == ("refused" if enforced else "open")
            assert dial(shop.web, shop.other.v4, 5432) == ("refused" if enforced else "open")
            assert dial(shop.other, shop.web.v4, 5432) == "refused"  # nobody listens
        assert CLUSTER_CIDRS[0].startswith("10.244.")


def serving(pod: Pod, port: int) -> socket.socket:
    """A listening socket in a pod."""
    opened = pod.socket(socket.AF_INET)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    opened.bind((pod.v4, port))
    opened.listen(64)
    return opened


def test_audit_mode(tmp_path: Path) -> None:
    """A pod that only Audit policies select is untouched, and everything that would be denied is told."""
    with open_shop(tmp_path) as shop:
        shop.node.dns.zone.add("denied.cdn.example", "A", "203.0.113.70")
        shop.policy("shop/web", "mode: Audit\n" + ALLOW)
        assert addresses(ask(shop.web, "denied.cdn.example")) == ["203.0.113.70"]
        assert (dial(shop.web, "203.0.113.70"), dial(shop.web, "192.0.2.1"), send_udp(shop.web, "192.0.2.2")) == (
            "open",
            "open",
            "open",
        )
        name = shop.dns_record(shop.web, "denied.cdn.example", verdict="would-deny")
        assert name["reason"] == "no-rule"
        by_name = shop.flow_record(shop.web, "203.0.113.70", verdict="would-deny")
        assert by_name["destination"]["names"] == ["denied.cdn.example"]
        assert shop.flow_record(shop.web, "192.0.2.1", 80)["verdict"] == "would-deny"
        assert shop.flow_record(shop.web, "192.0.2.2", ECHO)["destination"]["protocol"] == "udp"
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
        assert shop.dns_record(shop.web, "api.example.com")["verdict"] == "allowed"
        assert dial(shop.web, API4) == "open"
        time.sleep(0.4)
        assert not [r for r in shop.daemon.records("flow") if r["destination"]["ip"] == API4]


def test_audit_beside_enforce(tmp_path: Path) -> None:
    """An Audit policy that would allow more than what is enforced says so, and opens nothing."""
    with open_shop(tmp_path) as shop:
        shop.node.dns.zone.add("more.cdn.example", "A", "203.0.113.71")
        shop.policy("shop/web", ALLOW)
        shop.policy("shop/trial", "mode: Audit\nallow:\n- to: [more.cdn.example]\n")
        answer = ask(shop.web, "more.cdn.example")
        assert (rcode(answer), error_of(answer)[0]) == ("NXDOMAIN", 17)
        assert "shop/trial (Audit) would" in error_of(answer)[1]
        assert shop.dns_record(shop.web, "more.cdn.example")["verdict"] == "would-allow"
        assert dial(shop.web, "203.0.113.71") == "refused"


def test_resolve(tmp_path: Path) -> None:
    """`dns: Resolve`: every name resolves, and only addresses of allowed names are open."""
    with open_shop(tmp_path) as shop:
        shop.node.dns.zone.add("any.cdn.example", "A", "203.0.113.72")
        shop.policy("shop/web", "dns: Resolve\n" + ALLOW)
        assert addresses(ask(shop.web, "any.cdn.example")) == ["203.0.113.72"]
        assert dial(shop.web, "203.0.113.72") == "refused"
        assert shop.flow_record(shop.web, "203.0.113.72")["destination"]["names"] == ["any.cdn.example"]
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
        assert dial(shop.web, API4) == "open"


@pytest.mark.parametrize(
    ("setting", "code", "shown"), [("NXDOMAIN", "NXDOMAIN", 2), ("REFUSED", "REFUSED", 2), ("NODATA", "NOERROR", 2)]
)
def test_deny_rcode(tmp_path: Path, setting: str, code: str, shown: int) -> None:
    """How a denial is spelt is a setting; glibc takes each for "not known"."""
    with open_shop(tmp_path, {"dns": {"deny_rcode": setting}}) as shop:
        shop.policy("shop/web", NOTHING)
        for tcp in (False, True):
            answer = ask(shop.web, "denied.cdn.example", tcp=tcp)
            assert (rcode(answer), addresses(answer), error_of(answer)[0]) == (code, [], 17)
        assert shop.dns_record(shop.web, "denied.cdn.example")["response"]["rcode"] == code
        assert shop.web.run(["getent", "ahostsv4", "denied.cdn.example"], timeout=30).returncode == shown
        assert "denied.cdn.example" not in shop.node.dns.names()


def test_deny_rules(tmp_path: Path) -> None:
    """Deny wins wherever it is written: a cluster policy is a guardrail, a name in the middle of a chain included."""
    with open_shop(tmp_path) as shop:
        zone = shop.node.dns.zone
        zone.add("bad.example.com", "A", "203.0.113.73")
        zone.add("leads.example.com", "CNAME", "tracker.example.net")
        zone.add("tracker.example.net", "A", "203.0.113.74")
        zone.add("covered.example.com", "A", "203.0.113.200", "203.0.113.75")
        shop.policy("shop/web", ALLOW)
        shop.policy(
            "egressd-system/guard",
            "deny:\n- {name: evil, to: [bad.example.com, tracker.example.net, 203.0.113.192/26]}\n",
            "",
        )
        answer = ask(shop.web, "bad.example.com")
        assert error_of(answer) == (17, "egressd: bad.example.com is denied by rule evil of egressd-system/guard")
        assert rcode(ask(shop.web, "leads.example.com")) == "NXDOMAIN"
        assert shop.dns_record(shop.web, "leads.example.com")["reason"] == "deny-rule"
        assert addresses(ask(shop.web, "covered.example.com")) == ["203.0.113.75"]
        assert dial(shop.web, "203.0.113.200") == "refused"
        assert shop.flow_record(shop.web, "203.0.113.200")["reason"] == "deny-rule"


def test_rate_limit(tmp_path: Path) -> None:
    """A pod past its budget gets SERVFAIL with a reason; other pods are answered."""
    budgets = {"queries_per_second_per_pod": 5, "burst_per_pod": 20}
    with open_shop(tmp_path, {"budgets": budgets}) as shop:
        shop.policy("shop/web", ALLOW)
        codes = [rcode(ask(shop.web, "api.example.com")) for _ in range(60)]
        assert codes[:15] == ["NOERROR"] * 15
        assert codes.count("SERVFAIL") > 10
        assert rcode(ask(shop.other, "api.example.com")) == "NOERROR"
        assert shop.dns_record(shop.web, "api.example.com", reason="rate-limit")["verdict"] == "denied"
        eventually(lambda: rcode(ask(shop.web, "api.example.com")) == "NOERROR", what="the budget filled again")


def test_too_many_denied_names(tmp_path: Path) -> None:
    """Random subdomains are all denied; past the budget of names the records stop, and nothing reaches the upstream."""
    with open_shop(tmp_path, {"budgets": {"denied_names_per_pod_per_minute": 20}}) as shop:
        shop.policy("shop/web", NOTHING)
        for number in range(100):
            assert rcode(ask(shop.web, f"random-{number}.cdn.example")) == "NXDOMAIN"
        assert rcode(ask(shop.other, "api.example.com")) == "NOERROR"
        shop.dns_record(shop.other, "api.example.com")
        assert len([r for r in shop.daemon.records("dns") if r["pod"].get("name") == "web-0"]) == 20
        assert not [name for name in shop.node.dns.names() if name.endswith("cdn.example")]


def test_several_policies(tmp_path: Path) -> None:
    """Policies add up: what any of them allows is allowed; pods with the same policies share what was learned."""
    with open_shop(tmp_path) as shop:
        twin = shop.node.add_pod("shop/web-1", labels={"app": "web"})
        shop.daemon.put_pods()
        shop.node.dns.zone.add("second.cdn.example", "A", "203.0.113.80")
        shop.policy("shop/web", ALLOW)
        shop.policy("shop/more", "allow:\n- to: [second.cdn.example]\n")
        shop.policy("shop/other", ALLOW, FOR_OTHER)
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
        assert addresses(ask(shop.web, "second.cdn.example")) == ["203.0.113.80"]
        assert dial(twin, "203.0.113.80") == "open"
        assert dial(shop.other, "203.0.113.80") == "refused"


@pytest.mark.parametrize("family", [4, 6])
def test_spoofed_pods(tmp_path: Path, family: int) -> None:
    """Packets and queries with another pod's address are dropped where the pod is not: nothing is reached or asked."""
    with open_shop(tmp_path) as shop:
        reach, server = (API4, SERVICES[0]) if family == 4 else (API6, SERVICES[1])
        qtype = "A" if family == 4 else "AAAA"
        shop.policy("shop/web", ALLOW)
        shop.policy("shop/other", NOTHING, FOR_OTHER)
        assert addresses(ask(shop.web, "api.example.com", qtype)) == [reach]
        for victim in (shop.web, shop.free):
            with spoofer(shop.other, victim.v4 if family == 4 else victim.v6) as liar:
                liar.sendto(b"hello", (reach, ECHO))
                wire = name_wire("spoofed.example.com") + struct.pack("!HH", 1, 1)
                liar.sendto(b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0" + wire, (server, 53))
        assert send_udp(shop.web, reach) == "open"
        assert rcode(ask(shop.web, "last.example.com")) == "NXDOMAIN"
        assert [contact.source for contact in shop.node.internet.reached(reach, ECHO)] == [
            shop.web.v4 if family == 4 else shop.web.v6
        ]
        assert "last.example.com" in shop.node.dns.names()
        assert "spoofed.example.com" not in shop.node.dns.names()
        assert UPSTREAMS[0] == shop.node.dns.seen[-1].server


def test_queries_in_flight(tmp_path: Path) -> None:
    """A pod may have so many questions open at once; one more is SERVFAIL, and other pods' are taken."""
    with open_shop(tmp_path, {"budgets": {"in_flight_per_pod": 10}}) as shop:
        zone = shop.node.dns.zone
        zone.add("*.example.com", "A", API4)
        zone.behave("*", delay_s=1.0)
        shop.policy("shop/web", ALLOW)
        codes: list[str] = []
        asking = [
            threading.Thread(target=lambda n=number: codes.append(rcode(ask(shop.web, f"slow{n}.example.com"))))
            for number in range(30)
        ]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert (codes.count("SERVFAIL"), codes.count("NOERROR")) == (20, 10)
        assert rcode(ask(shop.other, "api.example.com")) == "NOERROR"


def test_a_loop_is_recognised(tmp_path: Path) -> None:
    """An upstream that asks us its question again, by way of a pod that is not exempt, is told so and reported."""
    with open_shop(tmp_path) as shop:
        shop.policy("shop/web", ALLOW)
        shop.node.dns.zone.behave("loop.example.com", script=lambda query: [raw(shop.free, query.data)])
        answer = ask(shop.web, "loop.example.com", timeout=15)
        assert rcode(answer) == "SERVFAIL"
        record = shop.dns_record(shop.free, "loop.example.com")
        assert (record["verdict"], record["reason"]) == ("denied", "upstream-failed")
        assert shop.node.dns.names().count("loop.example.com") < 10
        assert addresses(ask(shop.web, "api.example.com")) == [API4]
