"""The YAML reader: marks, YAML 1.1's readings, budgets."""

from __future__ import annotations

import pytest

from egressd.schema.problem import Fault
from egressd.schema.tree import MAX_DEPTH, MAX_EXPANDED, Odd, compose, place, plain, reading


def read(text: str, *, strict: bool = True) -> tuple[object, list[str]]:
    """The plain value of a one-document text, and the messages."""
    nodes, faults = compose(text)
    value, _ = plain(nodes[0], faults, size=len(text), strict=strict) if nodes else (None, False)
    return value, [fault.message for fault in faults]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("plain", "plain"),
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("0", 0),
        ("-12", -12),
        ("443", 443),
        ("0x1bb", 443),
        ("no", Odd("no", "a boolean")),
        ("On", Odd("On", "a boolean")),
        ("1.0", Odd("1.0", "a number")),
        ("0443", Odd("0443", "a number")),
        ("1:30", Odd("1:30", "a number")),
        ("1_000", Odd("1_000", "a number")),
        ("1e3", Odd("1e3", "a number")),
        (".inf", Odd(".inf", "a number")),
        ("9" * 30, Odd("9" * 30, "a number")),
        ("2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z"),
        ("192.0.2.1", "192.0.2.1"),
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("443/TCP", "443/TCP"),
        ("nowhere", "nowhere"),
        ("2001:db8::1", "2001:db8::1"),
    ],
)
def test_plain_scalars_are_read_as_yaml_does_or_kept_as_odd(text: str, value: object) -> None:
    """What YAML 1.1 would change into something else than written is marked, never converted."""
    assert reading(text) == value
    assert type(reading(text)) is type(value)


def test_quoted_scalars_are_always_text() -> None:
    """Quotes, blocks and the !!str tag switch all reading off."""
    value, faults = read("a: 'no'\nb: \"1.0\"\nc: |-\n  5\nd: !!str 5\n")
    assert value == {"a": "no", "b": "1.0", "c": "5", "d": "5"}
    assert not faults


def test_positions_are_those_of_keys_and_values() -> None:
    """Lines and columns count from 1, in characters."""
    nodes, _ = compose("allow:\n- to: [é, x.example]\n  name: n\n")
    assert place(nodes[0], ("allow", 0, "to", 1)) == (2, 11)
    assert place(nodes[0], ("allow", 0, "name"), key=True) == (3, 3)
    assert place(nodes[0], ("allow", 0, "name")) == (3, 9)
    assert place(nodes[0], ("allow", 0, "ports")) == (2, 3)
    assert place(nodes[0], ("allow", 7)) == (1, 1)


def test_anchors_aliases_and_merges_work() -> None:
    """Ordinary use of them gives what YAML says; own keys win over merged ones, and earlier merges over later."""
    value, faults = read("base: &b {x: 1, y: 2}\nother: &o {x: 7, z: 3}\nuse: {<<: [*b, *o], y: 9}\nagain: *b\n")
    assert value == {
        "base": {"x": 1, "y": 2},
        "other": {"x": 7, "z": 3},
        "use": {"y": 9, "x": 1, "z": 3},
        "again": {"x": 1, "y": 2},
    }
    assert not faults


def test_merged_keys_have_places() -> None:
    """A fault in a merged value points at where it is written."""
    nodes, _ = compose("base: &b {x: 1}\nuse: {<<: *b}\n")
    assert place(nodes[0], ("use", "x")) == (1, 14)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "'a' is written twice in one mapping"),
        ("{no: 1}", '`no` is not text as a key; quote it: "no"'),
        ("? [a]\n: 1\n", "a key must be text, not a list or a mapping"),
        ("a: !x 1\n", "tag '!x' has no meaning here; remove it"),
        ("a: *b\n", "alias *b has no anchor before it; quote text that begins with '*', as in \"*.example.com\""),
        ("a: &a [*a]\n", "an alias inside its own anchor never ends; write the value out"),
        ("a: {<<: 5}\n", "'<<' takes a mapping, or a list of mappings"),
        ("[" * 5000, f"nested more than {MAX_DEPTH} levels deep"),
        ("- " * 5000, f"nested more than {MAX_DEPTH} levels deep"),
        ("a: \x07\n", "this is not YAML: character U+0007 is not allowed in it"),
        ("a: \ud800\n", "this is not YAML: character U+D800 is not allowed in it"),
    ],
)
def test_what_is_refused_says_why(text: str, message: str) -> None:
    """Each refusal has its own sentence."""
    assert message in read(text)[1]


def test_aliases_are_expanded_against_a_budget() -> None:
    """A billion laughs end in an error, long before a billion."""
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n" for i in range(12)
    )
    _, faults = read(bomb)
    assert faults == [f"aliases expand to more than {MAX_EXPANDED} values; write them out"]


def test_aliases_cannot_nest_deeper_than_text() -> None:
    """Depth counts after expansion, so that recursion stays bounded."""
    chain = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [[[*a{i - 1}]]]\n" for i in range(1, 200))
    _, faults = read(chain)
    assert any("levels deep" in fault for fault in faults)


def test_documents_before_a_syntax_error_are_kept() -> None:
    """One broken document does not hide those before it."""
    nodes, faults = compose("a: 1\n---\nb: 2\n---\nc: [\n")
    assert len(nodes) == 2
    assert faults == [Fault(6, 1, "this is not YAML: while parsing a flow node: did not find expected node content")]


def test_keys_are_taken_as_written_in_objects_of_others() -> None:
    """Kubernetes turns such keys into text; only documents that people write for us must quote them."""
    assert read("{no: 1, 5: x}", strict=False) == ({"no": 1, "5": "x"}, [])
