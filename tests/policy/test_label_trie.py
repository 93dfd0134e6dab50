"""The label trie against `Pattern.matches`, which is the reference."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from policy_samples import NAMES, names, patterns

from egressd.names import ROOT, Name, Pattern, parse_pattern
from egressd.policy.trie import LabelTrie

labels = st.sampled_from(["a", "b", "c", "x\\046y", "_dmarc"])
deep_names = st.lists(labels, min_size=1, max_size=6).map(lambda parts: Name(".".join(parts)))
deep_patterns = st.builds(Pattern, deep_names, st.booleans())


def closeness(pattern: Pattern) -> tuple[bool, int]:
    """What makes one matching pattern closer than another: exact first, then the longer wildcard."""
    return (not pattern.wildcard, -1 if pattern.name == ROOT else len(pattern.name.split(".")))


def trie_of(members: list[Pattern]) -> LabelTrie[Pattern]:
    trie: LabelTrie[Pattern] = LabelTrie()
    for pattern in members:
        trie.add(pattern, (pattern,))
    return trie


@given(
    st.lists(st.one_of(patterns, deep_patterns, st.just(Pattern(ROOT))), max_size=12, unique=True),
    st.one_of(names, deep_names),
)
def test_finds_what_the_patterns_match_closest_first(members: list[Pattern], name: Name) -> None:
    """The trie finds exactly the patterns that match, the most specific first."""
    found = [pattern for level in trie_of(members).levels(name) for pattern in level]
    expected = sorted((p for p in members if p.matches(name)), key=closeness, reverse=True)
    assert found == expected


@given(
    st.lists(st.one_of(patterns, deep_patterns), max_size=12),
    st.one_of(names, deep_names),
    st.one_of(names, deep_names),
)
def test_one_place_one_answer(members: list[Pattern], one: Name, other: Name) -> None:
    """Names that stop at the same place are matched by the same patterns, so decisions may be kept by place."""
    trie = trie_of(members)
    if trie.place(one) == trie.place(other):
        assert trie.levels(one) == trie.levels(other)


def test_values_of_one_pattern_keep_their_order() -> None:
    """Rules that share a pattern are found in the order they were added."""
    trie: LabelTrie[int] = LabelTrie()
    for pattern in (parse_pattern("*.example"), parse_pattern("a.example")):
        for number in (1, 2, 3):
            trie.add(pattern, (number,))
    assert trie.levels(Name("a.example")) == [(1, 2, 3), (1, 2, 3)]


def test_a_long_question_stops_where_the_patterns_stop() -> None:
    """A name of a hundred labels under a wildcard ends at the wildcard's node: random sub-domains need no memory."""
    trie = trie_of([parse_pattern("*.example")])
    places = {trie.place(Name(f"{'x.' * 100}{number}.example")) for number in range(50)}
    assert len(places) == 1


def test_the_root_is_matched_by_the_star_alone() -> None:
    """`*` matches every name, the root too; `*.example` and names do not."""
    star = parse_pattern("*")
    trie = trie_of([star, *(Pattern(name, True) for name in NAMES if name != ROOT)])
    assert trie.levels(ROOT) == [(star,)]
