"""Any text gives a value or problems: held to it by a corpus of hostile files and by hypothesis."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from egressd.errors import InvalidName
from egressd.model import Policy
from egressd.schema import (
    BarePolicy,
    ConfigMapObject,
    SettingsError,
    bare_policy,
    check_configmap,
    has_errors,
    load_settings,
    policies_of,
    read_manifests,
    read_policy,
    read_settings,
    resolvers_of,
)
from egressd.schema.problem import MAX_PROBLEMS
from egressd.schema.tree import Odd, compose, plain, reading
from egressd.schema.units import read_upstream
from egressd.schema.words import read_peer, read_spans

CORPUS = Path(__file__).parents[1] / "corpus" / "policy"
FILES = sorted(CORPUS.iterdir())

# What policies are made of, so that random texts get beyond the first line.
VOCABULARY = (
    "subject podSelector matchLabels matchExpressions key operator values In NotIn Exists namespaceSelector "
    "serviceAccounts mode Enforce Audit dns Filter Resolve onRevoke Cut Drain allow deny name to ports allowPrivate "
    "true no on 1.0 ~ 443/TCP 80-90 *.example.com * a.example 192.0.2.0/24 2001:db8::/32 kind ConfigMap Pod Namespace "
    "List items metadata labels data policy.yaml spec status podIPs podIP ip phase ownerReferences egressd.io/policy "
    "upstreams grants min firewall marks intercept 0x20000 60s 32MiB tls://dns.example &a *a << !!str | > |2 ' \" [ ] "
    "{ } , : - ? # %"
)
WORDS = st.sampled_from([*VOCABULARY.split(), "\t", "\r\n", "\u2028", "\u0085", "\ufeff", "\U0001f600", "\ud800", "\0"])
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(
        st.one_of(WORDS, st.sampled_from(["\n", "\n  ", "\n    ", " ", ": ", "- ", "\n- ", "\n---\n"])), max_size=40
    ).map("".join),
    st.binary(max_size=100).map(lambda data: data.decode("utf-8", "surrogateescape")),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS.filter(str.isprintable), st.dates()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(WORDS.filter(str.isprintable), inner, max_size=5)
    ),
    max_leaves=12,
)


def hold(text: str) -> None:
    """Put a text through every reader, and hold each to its promise."""
    policy, problems = read_policy(text, name="a/b", namespace="a", policy_namespace="a")
    assert (policy is None) == has_errors(problems)
    assert policy is None or isinstance(policy, Policy)
    assert len(problems) <= MAX_PROBLEMS + 1
    lines = text.count("\n") + text.count("\r") + text.count("\u2028") + text.count("\u2029") + text.count("\x85") + 1
    assert all(1 <= problem.line <= lines + 1 and problem.column >= 1 and problem.message for problem in problems)
    manifests, _ = read_manifests(text, "f.yaml")
    for manifest in manifests:
        if isinstance(manifest, ConfigMapObject):
            policies, _, refused = policies_of(manifest, "a")
            assert not set(policies) & refused
            check_configmap(manifest, "a")
        elif isinstance(manifest, BarePolicy):
            bare_policy(manifest, name="a/b", namespace="a", policy_namespace="a")
    read, problems = read_settings(text, "s.yaml", {}, {})
    assert (read is None) == bool(problems)
    resolvers_of(text)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.name))
def test_the_corpus_gives_values_or_problems(path: Path, tmp_path: Path) -> None:
    """Bombs, deep nesting, tabs, binary, huge keys and the like, decoded in three ways, and as a settings file."""
    data = path.read_bytes()
    for codec in ("utf-8", "latin-1", "utf-16"):
        hold(data.decode(codec, "replace"))
    hold(data.decode("utf-8", "surrogateescape"))
    file = tmp_path / "s.yaml"
    file.write_bytes(data)
    with contextlib.suppress(SettingsError):
        assert load_settings(str(file), {"EGRESSD_DNS__UPSTREAMS": "192.0.2.1"}, {}).node


def test_the_corpus_is_there() -> None:
    """A missing folder would let the test above pass for nothing."""
    assert len(FILES) >= 30


@given(TEXTS)
@settings(max_examples=400, deadline=None)
@example("? \n")
@example("%")
@example("&a : *a")
def test_any_text_gives_a_value_or_problems(text: str) -> None:
    """Random texts, random words of policies, random octets."""
    hold(text)


@given(VALUES)
@settings(max_examples=300, deadline=None)
def test_any_structure_gives_a_value_or_problems(value: object) -> None:
    """Well-formed YAML of the wrong shapes."""
    hold(yaml.safe_dump(value, allow_unicode=True))


@given(VALUES, st.sampled_from(["EGRESSD_DNS", "EGRESSD_POD_CIDRS", "EGRESSD_GRANTS__MIN", "EGRESSD_FIREWALL__MARKS"]))
@settings(max_examples=200, deadline=None)
def test_any_variable_gives_a_value_or_problems(value: object, name: str) -> None:
    """Variables and flags of every shape."""
    text = yaml.safe_dump(value, allow_unicode=True, default_flow_style=True)
    for environ, flags in (({name: text}, {}), ({}, {name.removeprefix("EGRESSD_").lower(): value})):
        read, problems = read_settings("dns: {foreign: Deny}", "s.yaml", environ, flags)
        assert (read is None) == bool(problems)


@given(st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=4).map("".join)))
@settings(max_examples=500, deadline=None)
def test_any_word_gives_a_value_or_a_value_error(text: str) -> None:
    """Peers, ports and resolvers refuse with nothing but `ValueError` or `InvalidName`, which `Reads` turns into it."""
    for read in (read_peer, read_spans, read_upstream):
        with contextlib.suppress(ValueError, InvalidName):
            assert read(text)


@pytest.mark.parametrize("unit", ["é", "a.", "*", "*.", "1-", "1", "xn--", ":", "é.", "[", "://", "'", "\U0001f600"])
def test_huge_words_are_refused_in_few_words(unit: str) -> None:
    """No message repeats a hostile input at length, wherever it stands."""
    word = '"' + unit * 20_000 + '"'
    rule = f"{{to: [{word}], ports: [{word}], name: {word}}}"
    text = f"allow: [{rule}]\nmode: {word}\nsubject: {{serviceAccounts: [{word}]}}"
    policy, problems = read_policy(text, name="a/b", namespace="a", policy_namespace="a")
    assert policy is None
    text = f"dns: {{upstreams: [{word}], servers: [{word}]}}\ncluster_domains: [{word}]"
    read, more = read_settings(text, "s.yaml", {}, {})
    assert read is None
    assert all(len(problem.message) < 400 for problem in (*problems, *more))


# PyYAML writes `08` without quotes, for YAML 1.1 has no such octal; others read a number there, so we refuse it.
CLEAR = st.text().filter(lambda text: not isinstance(reading(text), Odd))


@given(
    st.recursive(
        st.one_of(CLEAR, st.integers(-(10**17), 10**17), st.booleans(), st.none()),
        lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(CLEAR, inner, max_size=4)),
        max_leaves=20,
    )
)
@settings(max_examples=300, deadline=None)
def test_the_reader_agrees_with_pyyaml_on_what_pyyaml_writes(value: object) -> None:
    """Plain structures survive a round trip, whatever their texts look like, or nearly."""
    text = yaml.safe_dump(value, allow_unicode=False)
    nodes, faults = compose(text)
    assert not faults
    assert plain(nodes[0], faults, size=len(text)) == (value, True)
    assert not faults
