"""dnslib beside our wire format: it reads what we write, and we read what it writes (fixtures only; never hot)."""

from __future__ import annotations

import dnslib
import pytest

from egressd.wire import denial, loop_option, read_answer, read_query, upstream_query


@pytest.mark.parametrize("dnssec_ok", [False, True])
@pytest.mark.parametrize("option", [b"", loop_option(b"0123456789ab")], ids=["bare", "loop"])
def test_dnslib_reads_our_queries(dnssec_ok: bool, option: bytes) -> None:
    """Our own query as dnslib understands it: question, size 1232, DO as asked, and the loop option."""
    flags = "do" if dnssec_ok else ""
    asked = dnslib.DNSRecord.question("api.example.com", "AAAA")
    asked.add_ar(dnslib.EDNS0(flags=flags, udp_len=4096))
    written = dnslib.DNSRecord.parse(upstream_query(read_query(bytes(asked.pack())), 4711, options=option))
    (opt,) = written.ar
    assert (written.header.id, str(written.q.qname), written.q.qtype) == (4711, "api.example.com.", 28)
    assert (opt.edns_len, opt.edns_do) == (1232, int(dnssec_ok))
    assert [(each.code, each.data) for each in opt.rdata] == ([(65313, b"0123456789ab")] if option else [])


def test_we_read_what_dnslib_writes() -> None:
    """An answer with a CNAME chain and two addresses, compressed by dnslib."""
    asked = dnslib.DNSRecord.question("www.example.com")
    answer = asked.reply()
    answer.add_answer(*dnslib.RR.fromZone("www.example.com. 60 CNAME edge.cdn.example."))
    answer.add_answer(*dnslib.RR.fromZone("edge.cdn.example. 5 A 192.0.2.1\nedge.cdn.example. 9 A 192.0.2.2"))
    found = read_answer(bytes(answer.pack()), read_query(bytes(asked.pack())))
    assert (found.addresses, found.cnames, found.ttl) == ((b"\xc0\0\2\1", b"\xc0\0\2\2"), ("edge.cdn.example",), 5)


def test_dnslib_reads_our_denial() -> None:
    """A denial is NXDOMAIN with an extended error (option 15, RFC 8914) that dnslib finds in place."""
    asked = dnslib.DNSRecord.question("cdn.example")
    asked.add_ar(dnslib.EDNS0(udp_len=1232))
    written = dnslib.DNSRecord.parse(denial(read_query(bytes(asked.pack())), 7, 3, 17, "no rule"))
    (opt,) = written.ar
    assert (written.header.id, written.header.rcode) == (7, 3)
    assert [(each.code, each.data) for each in opt.rdata] == [(15, b"\0\x11no rule")]
