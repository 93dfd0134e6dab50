"""Padding of our own queries: always a multiple of 128 octets, and otherwise the query that it was."""

from __future__ import annotations

import dns.edns
import dns.message
import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressd.wire import loop_option, padded_query, read_query, upstream_query

LABEL = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=1, max_size=60)


@given(
    st.lists(LABEL, min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from(["A", "AAAA", "HTTPS"]),
    st.binary(max_size=12),
)
def test_padding_changes_the_length_alone(labels: list[str], dnssec_ok: bool, qtype: str, token: bytes) -> None:
    """Whatever is asked: dnspython reads the same query, with one option more, all zeros."""
    asked = dns.message.make_query(".".join(labels), qtype, use_edns=0, want_dnssec=dnssec_ok)
    question = read_query(asked.to_wire())
    options = loop_option(token) if token else b""
    padded = padded_query(question, 4711, options)
    assert len(padded) % 128 == 0
    assert len(padded) - len(upstream_query(question, 4711, True, options)) <= 128 + 3
    plain, full = (dns.message.from_wire(each) for each in (upstream_query(question, 4711, True, options), padded))
    assert (full.id, full.flags, full.ednsflags, full.question) == (
        plain.id,
        plain.flags,
        plain.ednsflags,
        plain.question,
    )
    assert [(option.otype, option.to_wire()) for option in full.options[:-1]] == [
        (option.otype, option.to_wire()) for option in plain.options
    ]
    padding = full.options[-1]
    assert padding.otype == dns.edns.OptionType.PADDING
    assert not any(padding.to_wire() or b"")


@pytest.mark.parametrize("size", range(1, 61))
def test_our_reader_takes_what_we_pad(size: int) -> None:
    """Every remainder of the length: the padded query passes our own gate, and asks the same."""
    question = read_query(dns.message.make_query("a" * size + ".example.com", "A", use_edns=0).to_wire())
    assert read_query(padded_query(question, 1)).key == question.key
