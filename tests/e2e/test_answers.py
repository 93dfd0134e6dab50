"""What comes back is the upstream's own: every type, every size; and what others say in its name changes nothing."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence

import dns.flags
import pytest

from e2e.shop import Record, Shop, addresses, ask, dial, error_of, open_shop, raw, rcode, spoofer
from egressd.lab import SERVICES, UPSTREAMS, WIRINGS, Query, Sections, eventually, message, name_wire, svcb
from egressd.lab.zone import FORGERIES

FALSE = "198.51.100.66"
TYPES = {"A": 1, "PTR": 12, "MX": 15, "TXT": 16, "AAAA": 28, "SRV": 33, "HTTPS": 65, "NULL": 10, "ODD": 65280}


@pytest.fixture(scope="module", params=WIRINGS)
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A running node of each wiring; `web` may ask for *.example.com and reverse names."""
    with open_shop(tmp_path_factory.mktemp("shop"), wiring=request.param) as made:
        made.policy("shop/web", 'allow:\n- to: ["*.example.com", "*.in-addr.arpa"]\n  ports: [80/TCP]\n')
        yield made


def question(name: str, qtype: str) -> bytes:
    """A query without EDNS, as octets."""
    return b"\x5a\x5a\x01\x00\0\x01\0\0\0\0\0\0" + name_wire(name) + struct.pack("!HH", TYPES[qtype], 1)


@pytest.mark.parametrize(
    ("name", "qtype", "values"),
    [
        ("txt.example.com", "TXT", ["v=spf1 -all", "second " + "x" * 300]),
        ("_https._tcp.example.com", "SRV", ["0 5 443 one.example.com", "10 5 8443 two.example.com"]),
        ("10.113.0.203.in-addr.arpa", "PTR", ["api.example.com"]),
        ("mail.example.com", "MX", ["10 mx.example.com"]),
        ("null.example.com", "NULL", [b"\0\xff\x80 any octets"]),
        ("odd.example.com", "ODD", [bytes(range(256)), b""]),
        ("svc.example.com", "HTTPS", [svcb(1, ".", {1: b"\x02h2", 5: b"ech config", 65400: b"private"})]),
    ],
)
def test_byte_for_byte(shop: Shop, name: str, qtype: str, values: list[str | bytes]) -> None:
    """Records of every type, known or not, arrive as the upstream sent them, and grant nothing."""
    shop.node.dns.zone.add(name, TYPES[qtype], *values)
    query = question(name, qtype)
    got = raw(shop.web, query)
    assert got == raw(shop.node, query, UPSTREAMS[0])
    assert struct.unpack_from("!H", got, 6)[0] == len(values)
    assert "granted" not in shop.dns_record(shop.web, name)


def test_an_answer_of_4_kilobytes(shop: Shop) -> None:
    """What does not fit a datagram is truncated, and the client's own second try over TCP gets all of it."""
    shop.node.dns.zone.add("large.example.com", "TXT", "y" * 4000)
    first = ask(shop.web, "large.example.com", "TXT")
    assert first.flags & dns.flags.TC
    assert not first.answer
    whole = ask(shop.web, "large.example.com", "TXT", tcp=True)
    assert len(whole.to_wire()) > 4000
    shown = shop.web.run(["dig", "+short", "TXT", "large.example.com"], check=True).stdout
    assert shown.count("y") == 4000
    assert shop.dns_record(shop.web, "large.example.com")["verdict"] == "allowed"


@pytest.mark.parametrize("size", [512, 1232, 4096])
def test_client_sizes(shop: Shop, size: int) -> None:
    """No answer over UDP is larger than what the client said it takes."""
    shop.node.dns.zone.add(f"sized{size}.example.com", "TXT", "z" * (size - 150))
    shop.node.dns.zone.add(f"over{size}.example.com", "TXT", "z" * (size + 100))
    fits = shop.web.run(["dig", "+ignore", f"+bufsize={size}", "TXT", f"sized{size}.example.com"]).stdout
    over = shop.web.run(["dig", "+ignore", f"+bufsize={size}", "TXT", f"over{size}.example.com"]).stdout
    assert " tc " not in fits.replace(";", " ;")
    assert "zzz" in fits
    assert " tc" in over
    assert "zzz" not in over


def test_hints_are_granted(shop: Shop) -> None:
    """Addresses in HTTPS records open as those of A and AAAA records do."""
    hints = {4: socket.inet_aton("203.0.113.90"), 6: socket.inet_pton(socket.AF_INET6, "2001:db8::90")}
    shop.node.dns.zone.add("hints.example.com", "HTTPS", svcb(1, ".", hints))
    assert rcode(ask(shop.web, "hints.example.com", "HTTPS")) == "NOERROR"
    assert (dial(shop.web, "203.0.113.90"), dial(shop.web, "2001:db8::90")) == ("open", "open")


def test_records_beside_the_question_grant_nothing(shop: Shop) -> None:
    """An answer that also carries addresses of other names opens those of the question alone."""
    stranger = name_wire("stranger.example") + struct.pack("!HHIH", 1, 1, 60, 4) + socket.inet_aton(FALSE)
    own = struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton("203.0.113.91")

    def script(query: Query) -> Sequence[bytes]:
        return [message(query, Sections(0, 2, 0, own + stranger))]

    shop.node.dns.zone.behave("beside.example.com", script=script)
    answer = ask(shop.web, "beside.example.com")
    assert rcode(answer) == "NOERROR"
    assert (dial(shop.web, "203.0.113.91"), dial(shop.web, FALSE)) == ("open", "refused")


@pytest.mark.parametrize("forgery", FORGERIES)
def test_forged_answers(shop: Shop, forgery: str) -> None:
    """An answer with a wrong ID, question, port or address that comes first is not believed and opens nothing."""
    name, true = f"{forgery}.example.com", "203.0.113.92"
    shop.node.dns.zone.add(name, "A", true)
    shop.node.dns.zone.behave(name, forge=(forgery,), forged=FALSE, delay_s=0.2)
    assert addresses(ask(shop.web, name)) == [true]
    assert (dial(shop.web, true), dial(shop.web, FALSE)) == ("open", "refused")
    assert FALSE not in str(shop.dns_record(shop.web, name))


def test_a_pod_that_spoofs_the_upstream(shop: Shop) -> None:
    """A pod that answers in the upstream's name, and has to guess ID or port, is not believed however often it does."""
    name, true = "spoofed.example.com", "203.0.113.93"
    shop.node.dns.zone.add(name, "A", true)
    told = []

    def script(query: Query) -> Sequence[bytes]:
        lie = message(query, Sections(0, 1, 0, struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(FALSE)))
        with spoofer(shop.other, UPSTREAMS[0], 53) as liar:
            for step in range(1, 2000):
                liar.sendto(struct.pack("!H", query.ident ^ step) + lie[2:], (query.source, query.source_port))
                liar.sendto(lie, (query.source, 1024 + (query.source_port - 1024 + step) % 64000))
        told.append(query)
        return [message(query, shop.node.dns.zone.sections(query.case, query.name, query.qtype))]

    shop.node.dns.zone.behave(name, script=script)
    assert addresses(ask(shop.web, name)) == [true]
    assert told
    assert (dial(shop.web, true), dial(shop.web, FALSE)) == ("open", "refused")


def test_a_pod_that_spoofs_the_service(shop: Shop) -> None:
    """A pod that knows port and ID and answers another one in the DNS server's name opens nothing by it."""
    with shop.web.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking, spoofer(shop.other, SERVICES[0], 53) as liar:
        asking.settimeout(2)
        asking.bind((shop.web.v4, 0))
        query = question("anything.example.com", "A")
        lie = query[:2] + b"\x81\x80\0\x01\0\x01\0\0\0\0" + query[12:] + struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4)
        liar.sendto(lie + socket.inet_aton(FALSE), asking.getsockname())
        with contextlib.suppress(TimeoutError):
            assert asking.recv(4096)[-4:] == socket.inet_aton(FALSE)
    assert dial(shop.web, FALSE) == "refused"


def test_retry_and_failure(shop: Shop) -> None:
    """A lost datagram is asked for again; an upstream that never answers is SERVFAIL with the reason."""
    shop.node.dns.zone.add("lossy.example.com", "A", "203.0.113.96")
    shop.node.dns.zone.behave("lossy.example.com", drop=1)
    assert addresses(ask(shop.web, "lossy.example.com")) == ["203.0.113.96"]
    shop.node.dns.zone.behave("dead.example.com", drop=1000)
    answer = ask(shop.web, "dead.example.com", timeout=15)
    assert (rcode(answer), error_of(answer)[0] in {22, 23}) == ("SERVFAIL", True)
    assert shop.dns_record(shop.web, "dead.example.com")["reason"] == "upstream-failed"


@pytest.mark.parametrize(
    "octets",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x12", id="one-octet"),
        pytest.param(b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0", id="no-question"),
        pytest.param(b"\x12\x34\x01\x00\0\x02\0\0\0\0\0\0" + b"\1a\0\0\1\0\1" * 2, id="two-questions"),
        pytest.param(b"\x12\x34\x81\x80\0\x01\0\0\0\0\0\0\1a\0\0\1\0\1", id="a-response"),
        pytest.param(b"\x12\x34\x29\x00\0\x01\0\0\0\0\0\0\1a\0\0\1\0\1", id="an-update"),
        pytest.param(b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\xc0\x0c\0\1\0\1", id="pointer-to-itself"),
        pytest.param(b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0" + b"\x3f" + b"a" * 20, id="cut-off"),
        pytest.param(b"\x12\x34\x01\x00\0\x01\xff\xff\0\0\0\0\1a\0\0\1\0\1", id="false-counts"),
        pytest.param(b"\xff" * 600, id="ones"),
        pytest.param(b"\0" * 5000, id="too-large"),
    ],
)
def test_malformed_queries(shop: Shop, octets: bytes) -> None:
    """Octets that are no query get FORMERR, NOTIMP or silence and a record; whoever asks next is answered."""
    seen = len(malformed(shop))
    try:
        answer = raw(shop.web, octets, timeout=0.3)
    except TimeoutError:
        answer = b""
    assert answer == b"" or (answer[:2] == octets[:2] and answer[3] & 15 in {1, 4})
    eventually(lambda: len(malformed(shop)) > seen, what="a record")
    record = malformed(shop)[-1]
    assert (record["verdict"], record["pod"]["name"], record["query"]["transport"]) == ("denied", "web-0", "udp")
    assert addresses(ask(shop.web, "api.example.com")) == ["203.0.113.10"]


def malformed(shop: Shop) -> list[Record]:
    return [record for record in shop.daemon.records("dns") if record["reason"] == "malformed"]


def test_malformed_streams(shop: Shop) -> None:
    """A TCP client that sends rubbish, stops in the middle, or hangs up harms nobody."""
    for octets in (b"\0\0", b"\xff\xff" + b"x" * 100, b"\0\x20half", b"\0\x0c" + b"\xff" * 12, b""):
        with shop.web.socket() as opened:
            opened.settimeout(2)
            opened.connect((SERVICES[0], 53))
            opened.sendall(octets)
    assert addresses(ask(shop.web, "api.example.com", tcp=True)) == ["203.0.113.10"]
    assert "Traceback" not in shop.daemon.log()
