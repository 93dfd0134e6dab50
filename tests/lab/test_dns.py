"""The lab's DNS server says exactly what its zone is told, misbehaves on request, and remembers every query."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import dns.exception
import dns.flags
import dns.message
import dns.query
import dns.rcode
import dns.rdatatype
import pytest

from egressd.lab import DnsServer, Query, Sections, Space, message, name_wire, pool, svcb
from egressd.lab.rdata import rdata, type_number

SERVER = "10.96.0.10"


@pytest.fixture
def server() -> Iterator[DnsServer]:
    """A server in a space of its own, on two addresses."""
    with Space("dns") as space:
        made = DnsServer(space, [SERVER, "fd00:10:96::10", "127.0.0.1"])
        yield made
        made.close()


def ask(
    server: DnsServer, name: str, qtype: str = "A", *, tcp: bool = False, edns: bool = False
) -> dns.message.Message:
    """Ask from inside the server's space, and parse the answer with dnspython."""
    query = dns.message.make_query(name, qtype, use_edns=edns, payload=1232)
    way = dns.query.tcp if tcp else dns.query.udp
    return server._space.call(lambda: way(query, "127.0.0.1", timeout=10))


def texts(answer: dns.message.Message) -> list[str]:
    return [f"{dns.rdatatype.to_text(rrset.rdtype)} {item.to_text()}" for rrset in answer.answer for item in rrset]


@pytest.mark.parametrize(
    ("qtype", "value", "text"),
    [
        ("A", "203.0.113.10", "203.0.113.10"),
        ("AAAA", "2001:db8::10", "2001:db8::10"),
        ("CNAME", "other.example", "other.example."),
        ("NS", "ns.example", "ns.example."),
        ("PTR", "host.example", "host.example."),
        ("MX", "10 mail.example", "10 mail.example."),
        ("SRV", "0 5 443 host.example", "0 5 443 host.example."),
        ("TXT", "some text", '"some text"'),
        ("SOA", "ns.example admin.example 1 2 3 4 5", "ns.example. admin.example. 1 2 3 4 5"),
        ("HTTPS", svcb(1, ".", {1: b"\x02h2", 4: bytes([203, 0, 113, 10])}), '1 . alpn="h2" ipv4hint="203.0.113.10"'),
        ("TYPE65280", b"\x01\x02\x03", "\\# 3 010203"),
    ],
)
def test_every_type(server: DnsServer, qtype: str, value: str | bytes, text: str) -> None:
    """A record of any type arrives as dnspython would write it, with its TTL, over UDP and TCP."""
    server.zone.add("api.example.com", qtype, value, ttl=77)
    for tcp in (False, True):
        answer = ask(server, "api.example.com", qtype, tcp=tcp)
        (rrset,) = answer.answer
        assert rrset.ttl == 77
        assert [item.to_text() for item in rrset] == [text]
        assert rrset.name.to_text() == "api.example.com."


def test_chain(server: DnsServer) -> None:
    """A CNAME chain comes whole, in order, owners compressed."""
    server.zone.add("www.example.com", "CNAME", "edge.cdn.example")
    server.zone.add("edge.cdn.example", "CNAME", "host.cdn.example")
    server.zone.add("host.cdn.example", "A", "203.0.113.10", "203.0.113.11")
    answer = ask(server, "www.example.com")
    assert texts(answer) == [
        "CNAME edge.cdn.example.",
        "CNAME host.cdn.example.",
        "A 203.0.113.10",
        "A 203.0.113.11",
    ]
    assert ask(server, "www.example.com", "AAAA").rcode() == dns.rcode.NOERROR
    server.zone.remove("host.cdn.example")
    assert ask(server, "www.example.com").rcode() == dns.rcode.NXDOMAIN


def test_rotation(server: DnsServer) -> None:
    """A rotating name hands out its pool slice by slice, around and around, per family."""
    server.zone.rotate("s3.example.com", [*pool("203.0.113.0/24", 4), "2001:db8::1"], count=2)
    seen = [texts(ask(server, "s3.example.com")) for _ in range(3)]
    assert seen[0] == ["A 203.0.113.1", "A 203.0.113.2"]
    assert seen[1] == ["A 203.0.113.3", "A 203.0.113.4"]
    assert seen[2] == seen[0]
    assert texts(ask(server, "s3.example.com", "AAAA")) == ["AAAA 2001:db8::1"]


def test_many_addresses(server: DnsServer) -> None:
    """120 addresses do not fit in a datagram: truncated, then whole by TCP."""
    server.zone.add("many.example.com", "A", *pool("203.0.113.0/24", 120))
    short = ask(server, "many.example.com", edns=True)
    assert short.flags & dns.flags.TC
    assert not short.answer
    assert len(texts(ask(server, "many.example.com", tcp=True))) == 120


def test_negative(server: DnsServer) -> None:
    """An unknown name is NXDOMAIN, a missing type is empty; both with the SOA that negative caching needs."""
    server.zone.add("api.example.com", "A", "203.0.113.10")
    for name, qtype, rcode in (("no.example", "A", dns.rcode.NXDOMAIN), ("api.example.com", "MX", dns.rcode.NOERROR)):
        answer = ask(server, name, qtype)
        assert (answer.rcode(), answer.answer) == (rcode, [])
        assert answer.authority[0].rdtype == dns.rdatatype.SOA


def test_wildcard_and_case(server: DnsServer) -> None:
    """A wildcard covers deeper names, and the question comes back in the client's letters."""
    server.zone.add("*.cdn.example", "A", "203.0.113.10")
    answer = ask(server, "A.b.CDN.example")
    assert texts(answer) == ["A 203.0.113.10"]
    assert answer.question[0].name.to_text() == "A.b.CDN.example."
    assert ask(server, "cdn.example").rcode() == dns.rcode.NXDOMAIN


def test_changes_take_effect(server: DnsServer) -> None:
    """A name asked before and changed since is answered anew."""
    for address in ("203.0.113.10", "203.0.113.11"):
        server.zone.add("api.example.com", "A", address)
        assert texts(ask(server, "api.example.com")) == [f"A {address}"]


def test_behaviours(server: DnsServer) -> None:
    """Codes, drops, truncation, EDNS refusal and scripts do what they say."""
    server.zone.add("api.example.com", "A", "203.0.113.10")
    server.zone.behave("api.example.com", rcode=2)
    assert ask(server, "api.example.com").rcode() == dns.rcode.SERVFAIL
    server.zone.behave("api.example.com", truncate=True)
    assert ask(server, "api.example.com").flags & dns.flags.TC
    server.zone.behave("api.example.com", no_edns=True)
    assert ask(server, "api.example.com", edns=True).rcode() == dns.rcode.FORMERR
    assert texts(ask(server, "api.example.com")) == ["A 203.0.113.10"]
    server.zone.behave("api.example.com", script=lambda query: [message(query, Sections(5, 0, 0, b""))])
    assert ask(server, "api.example.com").rcode() == dns.rcode.REFUSED
    server.zone.behave("api.example.com", drop=1)
    query = dns.message.make_query("api.example.com", "A")
    with pytest.raises(dns.exception.Timeout):
        server._space.call(lambda: dns.query.udp(query, "127.0.0.1", timeout=0.3))
    assert texts(ask(server, "api.example.com")) == ["A 203.0.113.10"]
    with pytest.raises(ValueError, match="cleverly"):
        server.zone.behave("api.example.com", forge=("cleverly",))


def collect(server: DnsServer, count: int) -> list[tuple[str, int, bytes]]:
    """Send one query from an unconnected socket to the server and take what comes: address, port, message."""
    query = dns.message.make_query("api.example.com", "A", id=0x1234).to_wire()
    with server._space.socket(kind=socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(query, (SERVER, 53))
        return [(peer[0], peer[1], data) for data, peer in (client.recvfrom(4096) for _ in range(count))]


@pytest.mark.parametrize(
    ("kind", "forgeries"),
    [("wrong-id", 3), ("wrong-question", 1), ("wrong-port", 1), ("wrong-address", 1), ("garbage", 1)],
)
def test_forgeries(server: DnsServer, kind: str, forgeries: int) -> None:
    """A forger's messages come first and differ from the truth in just what their name says."""
    server._space.run(["ip", "route", "add", "local", "10.96.0.0/24", "dev", "lo"], check=True)
    server.zone.add("api.example.com", "A", "203.0.113.10")
    server.zone.behave("api.example.com", forge=(kind,), delay_s=0.05)
    *false, (address, port, true) = collect(server, forgeries + 1)
    assert (address, port) == (SERVER, 53)
    assert texts(dns.message.from_wire(true)) == ["A 203.0.113.10"]
    for other_address, other_port, data in false:
        differences = {
            "wrong-address": other_address != SERVER,
            "wrong-port": other_port != 53,
            "wrong-id": data[:2] != true[:2],
        }
        assert {name for name, differs in differences.items() if differs} <= {kind}
        if kind == "wrong-question":
            assert dns.message.from_wire(data).question[0].name.to_text() == "forged.api.example.com."
        elif kind == "garbage":
            with pytest.raises(dns.exception.DNSException):
                dns.message.from_wire(data)
        else:
            assert differences[kind]
            assert texts(dns.message.from_wire(data)) == ["A 198.51.100.66"]


def test_seen(server: DnsServer) -> None:
    """Every query is remembered with who, what and how, until told to forget."""
    server.zone.add("api.example.com", "A", "203.0.113.10")
    ask(server, "API.example.com", edns=True)
    ask(server, "missing.example.com", "AAAA", tcp=True)
    first, second = server.seen
    assert isinstance(first, Query)
    assert (first.name, first.qtype, first.transport, first.edns, first.udp_size) == (
        "api.example.com",
        1,
        "udp",
        True,
        1232,
    )
    assert first.case == name_wire("API.example.com")
    assert (second.name, second.qtype, second.transport) == ("missing.example.com", 28, "tcp")
    assert server.names() == ["api.example.com", "missing.example.com"]
    server.forget()
    assert not server.seen


def test_stop_and_start(server: DnsServer) -> None:
    """A stopped server is a closed port; started again it answers from the same zone."""
    server.zone.add("api.example.com", "A", "203.0.113.10")
    server.close()
    server.close()
    with pytest.raises(OSError, match="refused"):
        ask(server, "api.example.com", tcp=True)
    server.start()
    assert texts(ask(server, "api.example.com")) == ["A 203.0.113.10"]


def test_junk_is_dropped(server: DnsServer) -> None:
    """Octets that are no query neither kill the server nor get an answer."""
    with server._space.socket(kind=socket.SOCK_DGRAM) as client:
        for junk in (b"", b"x", bytes(12), bytes(5) + b"\x01" + bytes(6) + b"\xc0", b"\xff" * 600):
            client.sendto(junk, ("127.0.0.1", 53))
    server.zone.add("api.example.com", "A", "203.0.113.10")
    assert texts(ask(server, "api.example.com")) == ["A 203.0.113.10"]
    assert server.names() == ["api.example.com"]


def test_long_and_odd_names() -> None:
    """Escapes, long texts and numeric types are written as zone files have them."""
    assert name_wire("a\\046b.example") == b"\x03a.b\x07example\x00"
    assert name_wire(".") == b"\x00"
    assert rdata(16, "x" * 300) == b"\xff" + b"x" * 255 + b"\x2d" + b"x" * 45
    assert (type_number("TYPE65280"), type_number("HTTPS"), type_number(99)) == (65280, 65, 99)
