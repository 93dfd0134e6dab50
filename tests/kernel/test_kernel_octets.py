"""Netlink octets: what is read holds for any bytes, what is written fast equals what is written plainly."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egressd.grants import Element
from egressd.kernel.comments import NFT_COMMENT_MAX, USER_DATA_MAX, read_comment, user_data
from egressd.kernel.elements import LIFETIME_MIN_MS, LIST_MAX, bodies, element, endpoint, interval_elements, pack_grant
from egressd.kernel.netlink import attributes, blob, nested, pack_batch
from egressd.kernel.sets import blocks_of, grant_set, parse_instance_set, rule_set
from egressd.model import Address, Block, PortSpan

TEXT = st.text(st.characters(codec="utf-8"), max_size=300)
ADDRESSES = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))


@given(st.binary(max_size=400))
def test_attributes_of_any_bytes(data: bytes) -> None:
    """Any bytes give some attributes, each of them a piece of the input."""
    assert all(value in data for _, value in attributes(data))


@given(st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=50))))
def test_attributes_come_back(pairs: list[tuple[int, bytes]]) -> None:
    """What was packed is read, in order, nested or not."""
    assert list(attributes(b"".join(blob(kind, value) for kind, value in pairs))) == pairs
    ((kind, inner),) = attributes(nested(5, *(blob(kind, value) for kind, value in pairs)))
    assert kind == 5
    assert list(attributes(inner)) == pairs


@given(st.binary(max_size=300))
def test_comments_of_any_bytes(data: bytes) -> None:
    """Any user data gives some text."""
    assert isinstance(read_comment(data), str)


@given(TEXT, st.sampled_from([0, 7]))
def test_comments_fit_and_come_back(text: str, kind: int) -> None:
    """User data stays within its bounds, nft's part too, and what fits is read back but for what cannot be quoted."""
    data = user_data(kind, text)
    assert len(data) <= USER_DATA_MAX
    found = read_comment(data, kind)
    assert not any(sign in found for sign in '"\n\0')
    plain = "".join("'" if c == '"' else " " if ord(c) < 32 or ord(c) == 127 else c for c in text)
    assert plain.startswith(found)
    if len(plain.encode()) <= 240:
        assert found == plain
    if data:
        assert data[1] - 1 <= NFT_COMMENT_MAX
        data[2 : 1 + data[1]].decode()


@given(
    ADDRESSES,
    st.sampled_from([None, PortSpan(6, 6, 443, 443), PortSpan(17, 17, 1, 65535), PortSpan(0, 255, 0, 65535)]),
    st.integers(-5, 2**40),
    TEXT,
)
def test_grants_are_packed_as_elements(address: bytes, span: PortSpan | None, ms: int, comment: str) -> None:
    """The hot path writes the very octets that the general packer writes."""
    lifetime = max(ms, LIFETIME_MIN_MS)
    if span is None:
        kind, expected = "any", element(address, lifetime_ms=lifetime, comment=comment)
    else:
        kind = "port" if span.first_port == span.last_port else "range"
        first = endpoint(address, span.first_protocol, span.first_port)
        end = endpoint(address, span.last_protocol, span.last_port) if kind == "range" else b""
        expected = element(first, end=end, lifetime_ms=lifetime, comment=comment)
    assert pack_grant(Element(1, kind, address, span, ms, comment, False)) == expected


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=200))
def test_lists_are_split_within_their_limit(entries: list[bytes]) -> None:
    """Nothing is lost or reordered, and no list is longer than an attribute holds."""
    found = []
    for body in bodies(b"", entries):
        ((kind, inner),) = attributes(body)
        assert kind == 3
        assert len(inner) <= LIST_MAX
        found.append(inner)
    assert b"".join(found) == b"".join(entries)


def test_a_batch_asks_for_its_last_acknowledgement_only() -> None:
    """Begin, messages numbered from 1, end; the last message alone carries NLM_F_ACK."""
    batch = pack_batch([(12, 0x400, b""), (14, 0, b"\4\0\1\0")])
    headers, offset = [], 0
    while offset < len(batch.data):
        size, kind, flags, sequence = struct.unpack_from("=IHHI", batch.data, offset)
        headers.append((kind, flags, sequence))
        offset += size
    assert headers == [(16, 1, 0), (10 << 8 | 12, 0x401, 1), (10 << 8 | 14, 5, 2), (17, 1, 0)]
    assert batch.last == 2
    with pytest.raises(ValueError, match="without messages"):
        pack_batch([])


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 300)), max_size=30), st.integers(0, 2500))
def test_merged_blocks_cover_the_same_addresses(ranges: list[tuple[int, int]], probe: int) -> None:
    """Merging keeps every address and adds none; the ranges are disjoint, ascending and do not touch."""

    def packed(value: int) -> Address:
        return Address(value.to_bytes(4, "big"))

    blocks = [Block(packed(first), packed(first + size)) for first, size in ranges]
    merged = blocks_of(blocks, 4)
    inside = any(block.first <= packed(probe) <= block.last for block in blocks)
    assert any(first <= packed(probe) <= last for first, last in merged) == inside
    gaps = itertools.pairwise(merged)
    assert all(int.from_bytes(before[1], "big") + 1 < int.from_bytes(after[0], "big") for before, after in gaps)
    assert blocks_of(blocks, 16) == []
    assert len(list(interval_elements(merged))) == 2 * len(merged)


def test_names_of_instance_sets() -> None:
    """Every set of an instance is told from those of the node."""
    names = [grant_set(4, 12, kind) for kind in ("port", "any", "range")]
    names += [rule_set(use, 6, 12, ported=ported) for use in ("allow", "deny", "report") for ported in (True, False)]
    assert names[:4] == ["grant4-12", "grant4-12-any", "grant4-12-range", "allow6-12"]
    assert {parse_instance_set(name) for name in names} == {12}
    assert [parse_instance_set(name) for name in ("pods4", "seen-denied4-any", "grant4-", "grant4-1-more")] == [
        None
    ] * 4
