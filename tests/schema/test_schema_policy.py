"""Policy documents: what is accepted and compiled, what is refused, where, and in which words."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest

from egressd.model import ANY_PORT, Action, Block, DnsMode, LabelRequirement, Mode, OnRevoke, Policy, PortSpan
from egressd.names import ROOT, Name, Pattern
from egressd.schema import Problem, has_errors, json_schema, read_policy
from egressd.schema.problem import MAX_PROBLEMS, Origin
from egressd.schema.words import read_block

EXAMPLE = """\
subject:
  podSelector:
    matchLabels: {app: web}
    matchExpressions:
    - {key: tier, operator: In, values: [front, edge]}
  serviceAccounts: [web, web-canary]
mode: Enforce
dns: Filter
onRevoke: Cut
allow:
- name: object-storage
  to: [s3.amazonaws.com, "*.s3.amazonaws.com"]
  ports: [443/TCP]
- to: [203.0.113.0/24, "2001:db8::/32", 198.51.100.7]
  ports: [5432/TCP, 8000-8100/TCP, 53/UDP]
- to: ["*.corp.example"]
  allowPrivate: true
deny:
- to: ["uploads.s3.amazonaws.com", 203.0.113.66]
"""


def read(text: str, namespace: str = "shop", **more: Any) -> tuple[Policy | None, list[Problem]]:
    """Read a document of the policy shop/test."""
    return read_policy(
        text, name="shop/test", namespace=namespace, policy_namespace="egressd-system", file="p.yaml", **more
    )


def good(text: str, namespace: str = "shop") -> Policy:
    """The policy of a document without any problem."""
    policy, problems = read(text, namespace)
    assert not problems
    assert policy is not None
    return policy


def places(text: str, namespace: str = "shop") -> list[tuple[int, int, str]]:
    """Line, column and message of every error of a document that is refused."""
    policy, problems = read(text, namespace)
    assert policy is None
    assert all(problem.severity == "error" and problem.file == "p.yaml" for problem in problems)
    return [(problem.line, problem.column, problem.message) for problem in problems]


def only(text: str, namespace: str = "shop") -> str:
    """The message of the one error of a document."""
    [(_, _, message)] = places(text, namespace)
    return message


# ------------------------------------------------------------------------------------------- accepted


def test_the_example_of_the_design_compiles() -> None:
    """Every field of policy.md's example arrives in the model."""
    policy, problems = read(EXAMPLE)
    assert [(p.line, p.severity) for p in problems] == [(12, "warning")]
    assert policy is not None
    assert (policy.mode, policy.dns, policy.on_revoke) == (Mode.ENFORCE, DnsMode.FILTER, OnRevoke.CUT)
    assert policy.subject.pods.labels == (("app", "web"),)
    assert policy.subject.pods.expressions == (LabelRequirement("tier", "In", ("front", "edge")),)
    assert policy.subject.service_accounts == ("web", "web-canary")
    assert policy.subject.namespaces is None
    assert [rule.name for rule in policy.allow] == ["object-storage", "allow[1]", "allow[2]"]
    assert [rule.line for rule in (*policy.allow, *policy.deny)] == [11, 14, 16, 19]
    storage, addresses, corp = policy.allow
    assert storage.patterns == (
        Pattern(Name("s3.amazonaws.com")),
        Pattern(Name("s3.amazonaws.com"), wildcard=True),
    )
    assert storage.ports == (PortSpan(6, 6, 443, 443),)
    assert addresses.blocks == tuple(map(read_block, ("203.0.113.0/24", "2001:db8::/32", "198.51.100.7")))
    assert addresses.ports == (PortSpan(6, 6, 5432, 5432), PortSpan(6, 6, 8000, 8100), PortSpan(17, 17, 53, 53))
    assert corp.allow_private
    assert corp.ports == ANY_PORT
    [deny] = policy.deny
    assert (deny.name, deny.action) == ("deny[0]", Action.DENY)


@pytest.mark.parametrize("text", ["{}", "allow: []", "subject: {}", "subject: {podSelector: {}}", "mode: Enforce"])
def test_a_policy_without_rules_or_subject_is_legal(text: str) -> None:
    """It selects every pod of its namespace and denies them everything."""
    policy = good(text)
    assert policy == Policy("shop/test", "shop")


def test_modes_are_read() -> None:
    """The other value of every choice."""
    policy = good("{mode: Audit, dns: Resolve, onRevoke: Drain}")
    assert (policy.mode, policy.dns, policy.on_revoke) == (Mode.AUDIT, DnsMode.RESOLVE, OnRevoke.DRAIN)


def test_cluster_policies_select_namespaces() -> None:
    """In the policy namespace an absent selector is an empty one, which selects all of them."""
    plain = good("{}", "egressd-system").subject.namespaces
    assert plain is not None
    assert plain.labels == ()
    chosen = good("subject: {namespaceSelector: {matchLabels: {team: a}}}", "egressd-system").subject.namespaces
    assert chosen is not None
    assert chosen.labels == (("team", "a"),)


@pytest.mark.parametrize(
    ("entry", "spans"),
    [
        ("443/TCP", [(6, 6, 443, 443)]),
        ("443/tcp", [(6, 6, 443, 443)]),
        ("8000-8100/UDP", [(17, 17, 8000, 8100)]),
        ("443", [(6, 6, 443, 443), (17, 17, 443, 443), (132, 132, 443, 443)]),
        ('"443"', [(6, 6, 443, 443), (17, 17, 443, 443), (132, 132, 443, 443)]),
        ("80-90", [(6, 6, 80, 90), (17, 17, 80, 90), (132, 132, 80, 90)]),
        ('"*/TCP"', [(6, 6, 0, 65535)]),
        ('"*/ICMP"', [(1, 1, 0, 65535), (58, 58, 0, 65535)]),
        ("1/SCTP", [(132, 132, 1, 1)]),
        ("65535/TCP", [(6, 6, 65535, 65535)]),
        ("443/TCP, 443/TCP, 444/TCP", [(6, 6, 443, 444)]),
    ],
)
def test_ports_become_spans(entry: str, spans: list[tuple[int, int, int, int]]) -> None:
    """Protocols in any case, ranges, numbers and text, joined to disjoint spans."""
    [rule] = good(f"allow: [{{to: [a.example], ports: [{entry}]}}]").allow
    assert rule.ports == tuple(PortSpan(*span) for span in spans)


def test_peers_are_told_apart() -> None:
    """Names, wildcards, everything, addresses and blocks; in any case, with a trailing dot, in Unicode."""
    names = 'A.Example., "*.b.example", "*", _dmarc.example, bücher.example'
    [rule] = good(f'allow: [{{to: [{names}, 192.0.2.1, 192.0.2.0/24, "::1"]}}]').allow
    assert [str(pattern) for pattern in rule.patterns] == [
        "a.example",
        "*.b.example",
        "*",
        "_dmarc.example",
        "xn--bcher-kva.example",
    ]
    assert rule.patterns[2] == Pattern(ROOT, wildcard=True)
    packed = [ipaddress.ip_network(text) for text in ("192.0.2.1", "192.0.2.0/24", "::1")]
    assert [tuple(block) for block in rule.blocks] == [
        (net.network_address.packed, net.broadcast_address.packed) for net in packed
    ]
    assert isinstance(rule.blocks[0], Block)


# -------------------------------------------------------------------------------------------- refused


def test_all_errors_of_a_document_come_at_once_in_reading_order() -> None:
    """Seven mistakes, seven errors, each at its key or value."""
    text = """\
subject:
  podSelector:
    matchLabels: {app: no}
mode: enforce
allows: []
allow:
- name: x
  to: api.example.com
  port: [443/TCP]
- to: [10.0.0.5/8, ok.example]
  ports: [0/TCP]
- ports: [443/TCP]
"""
    assert places(text) == [
        (3, 24, '`no` is read as a boolean, where text is expected; quote it: "no"'),
        (4, 7, "'enforce' is none of Enforce, Audit; did you mean 'Enforce'?"),
        (5, 1, "unknown field 'allows'; did you mean 'allow'?"),
        (8, 7, "expected a list; write [api.example.com]"),
        (9, 3, "unknown field 'port'; did you mean 'ports'?"),
        (10, 8, "'10.0.0.5/8' has bits set behind its prefix; write 10.0.0.0/8, or 10.0.0.5 for the one address"),
        (11, 11, "'0/TCP': port 0 does not exist; ports are 1 to 65535"),
        (12, 3, "'to' is missing: list domain names, *.patterns, IP addresses or CIDR blocks"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "the document is empty"),
        ("# only a comment\n", "the document is empty"),
        ("~", "the document is empty"),
        ("[]", "a policy is a mapping"),
        ("text", "a policy is a mapping"),
        ("allow: []\n---\ndeny: []\n", "a second document; put each policy under a key of its own"),
        ("allow:\n", "expected a list, found nothing"),
        ("mode:\n", "expected text, found nothing"),
        ("subject: {namespaceSelector: }", "expected a mapping, found nothing"),
        ("rules: []", "unknown field 'rules'; known here: subject, mode, dns, onRevoke, allow, deny"),
        ("allow: [{to: []}]", "'to' must not be empty; list at least one"),
        (
            "allow: [{to: [a.example], ports: []}]",
            "'ports' must not be empty; leave the field out, or list at least one",
        ),
        ("subject: {serviceAccounts: []}", "'serviceAccounts' must not be empty"),
        ("subject: {serviceAccounts: [shop/web]}", "'shop/web' is not an object's name"),
        ("deny: [{to: [a.example], allowPrivate: true}]", "unknown field 'allowPrivate'; known here: name, to, ports"),
        ("allow: [{to: [a.example], allowPrivate: yes}]", "expected true or false, found `yes`"),
        ("allow: [{to: [a.example], name: ''}]", "'' is not a rule's name"),
        ('allow: [{to: [a.example], name: "a\\nb"}]', "is not a rule's name"),
        ("allow: [{to: [a.example], name: 1.0}]", '`1.0` is read as a number, where text is expected; quote it: "1.0"'),
        (
            "allow: [{to: [a.example], name: x}, {to: [b.example], name: x}]",
            "rule name 'x' is taken by the rule at line 1",
        ),
        ("{allow: [{to: [a.example], name: x}], deny: [{to: [b.example], name: x}]}", "rule name 'x' is taken"),
        ("allow: [{to: [a.example], name: 'allow[1]'}, {to: [b.example]}]", "rule name 'allow[1]' is taken"),
        ("{mode: Audit, mode: Enforce}", "'mode' is written twice in one mapping"),
    ],
)
def test_refused_documents(text: str, says: str) -> None:
    """One mistake each."""
    assert says in only(text)


@pytest.mark.parametrize(
    ("peer", "says"),
    [
        ('"api-*.example.com"', "write '*.example.com' (every name under example.com) or list the names"),
        ('"www.*.com"', "write '*.com'"),
        ("10.0.0.0/33", "is not an IP address or CIDR block"),
        ("10.0.0.256", "is not an IP address or CIDR block"),
        ("1.2.3", "is not an IP address or CIDR block"),
        ("2001:db8::1/32", "write 2001:db8::/32, or 2001:db8::1 for the one address"),
        ("10.0.0.0/255.0.0.0", "write the length of the prefix instead of a mask: 10.0.0.0/8"),
        ('"10.*"', "write a CIDR block such as 192.0.2.0/24"),
        ("192.0.2.1-192.0.2.9", "write a range of addresses as CIDR blocks"),
        ('"::ffff:192.0.2.1"', "is IPv4 written as IPv6; write 192.0.2.1/32"),
        ('"fe80::1%eth0"', "is not an IP address or CIDR block"),
        ('"https://api.example.com/v1"', "is a URL; write the host's name alone: 'api.example.com'"),
        ('"api.example.com:443"', "holds a port; write 'api.example.com' here and [443/TCP] under 'ports'"),
        ('"[2001:db8::1]:443"', "holds a port; write '2001:db8::1' here and [443/TCP] under 'ports'"),
        ("api.example.com/v1", "a name has no '/'"),
        ('" api.example.com"', "has spaces around it; write 'api.example.com'"),
        ("''", "a name must not be empty"),
        ("a..example", "has an empty label"),
        ("-a.example", "is not a domain name"),
        ('"*.*.example"', "'*' may only be the whole first label"),
        ("[a.example]", "expected text, found a list"),
        ("{a: b}", "expected text, found a mapping"),
        ("no", 'quote it: "no"'),
        ("1.0", 'quote it: "1.0"'),
        ("~", "expected text, found nothing"),
    ],
)
def test_refused_peers_say_what_to_write(peer: str, says: str) -> None:
    """Each refusal points at the peer and gives the right spelling."""
    [(line, column, message)] = places(f"allow:\n- to: [ok.example, {peer}]\n")
    assert (line, column) == (2, 20)
    assert says in message


@pytest.mark.parametrize(
    ("port", "says"),
    [
        ("0", "port 0 does not exist; ports are 1 to 65535"),
        ("65536/TCP", "port 65536 does not exist"),
        ("90-80/TCP", "the range runs backwards; write 80-90"),
        ("8/ICMP", "ICMP has no ports; write */ICMP"),
        ("8/ICMPv6", "ICMP has no ports; write */ICMP"),
        ('"*/ICMPv6"', "ICMP means ICMPv6 too; write */ICMP"),
        ("443/HTTP", "'HTTP' is none of TCP, UDP, SCTP, ICMP"),
        ("443/TPC", "did you mean 'TCP'?"),
        ("https", "ports have no names here; write 443/TCP"),
        ("tcp", "write */TCP for every port of it"),
        ("tcp/443", "write 443/TCP"),
        ('"443:tcp"', "write 443/TCP"),
        ('"*"', "leave 'ports' out for every port of every protocol"),
        ("-3", "is not a port; write 443/TCP"),
        ("0443", "is not a port; write 443/TCP"),
        ("1.5", "is not a port; write 443/TCP"),
        ("true", "read as a boolean"),
        ("[443]", "expected text, found a list"),
    ],
)
def test_refused_ports_say_what_to_write(port: str, says: str) -> None:
    """Each refusal points at the entry and gives the right spelling."""
    [(line, column, message)] = places(f"allow:\n- to: [a.example]\n  ports: [{port}]\n")
    assert (line, column) == (3, 11)
    assert says in message


@pytest.mark.parametrize(
    ("selector", "place", "says"),
    [
        ('matchLabels: {"bad key!": x}', (1, 39), "is not a label key"),
        ('matchLabels: {"a/b/c": x}', (1, 39), "is not a label key"),
        ('matchLabels: {"A.b/c": x}', (1, 39), "lower-case DNS name"),
        ("matchLabels: {a: -b}", (1, 42), "is not a label value"),
        ("matchLabels: {a: " + "x" * 64 + "}", (1, 42), "is not a label value"),
        ("matchLabels: {a: 1}", (1, 42), 'quote it: "1"'),
        ("matchLabels: {1: a}", (1, 39), 'quote it: "1"'),
        ("matchLabels: [a]", (1, 38), "expected a mapping, found a list"),
        ("matchExpressions: [{key: a, operator: in, values: [b]}]", (1, 63), "did you mean 'In'?"),
        ("matchExpressions: [{key: a, operator: In}]", (1, 44), "needs 'values' with at least one value"),
        ("matchExpressions: [{key: a, operator: NotIn, values: []}]", (1, 78), "needs 'values'"),
        ("matchExpressions: [{key: a, operator: Exists, values: [b]}]", (1, 79), "takes no 'values'"),
        ("matchExpressions: [{operator: Exists}]", (1, 44), "'key' is missing: the label that is looked at"),
        ("matchExpressions: [{key: a}]", (1, 44), "'operator' is missing: In, NotIn, Exists or DoesNotExist"),
        ("matchLabel: {a: b}", (1, 25), "did you mean 'matchLabels'?"),
    ],
)
def test_selectors_are_checked_as_kubernetes_does(selector: str, place: tuple[int, int], says: str) -> None:
    """Keys, values, operators and what belongs to them, at their places."""
    [(line, column, message)] = places(f"subject: {{podSelector: {{{selector}}}}}")
    assert says in message
    assert (line, column) == place


def test_namespace_selectors_are_for_the_policy_namespace() -> None:
    """A team cannot write rules for other teams."""
    [(line, column, message)] = places("subject:\n  namespaceSelector: {}\n")
    assert (line, column) == (2, 3)
    assert "cluster policies, in namespace 'egressd-system'" in message


# ------------------------------------------------------------------------------------------- warnings


@pytest.mark.parametrize("pattern", ["*.com", "*.co.uk", "*.github.io", "*.ck"])
def test_wildcards_under_public_suffixes_draw_a_warning(pattern: str) -> None:
    """They sanction strangers; the policy stays valid."""
    policy, [problem] = read(f'allow:\n- to: [a.example, "{pattern}"]\n')
    assert policy is not None
    assert (problem.severity, problem.line, problem.column) == ("warning", 2, 19)
    assert pattern in problem.message


@pytest.mark.parametrize("pattern", ["*", "*.example.com", "com", "*.cluster.local", "*.internal", "*.www.ck"])
def test_other_patterns_draw_none(pattern: str) -> None:
    """Everything, ordinary wildcards, private domains, and names that are no wildcards."""
    assert read(f'allow: [{{to: ["{pattern}"]}}]')[1] == []


def test_deny_rules_draw_no_suffix_warning() -> None:
    """To deny strangers is no mistake."""
    assert read('deny: [{to: ["*.com"]}]')[1] == []


# ---------------------------------------------------------------------------------------------- other


def test_warnings_come_with_the_errors() -> None:
    """A refused document still tells what else is odd, as far as it can be read."""
    policy, problems = read('allow: [{to: ["*.com"], name: a}, {to: [b.example], name: a}]')
    assert policy is None
    assert sorted(problem.severity for problem in problems) == ["error", "warning"]


def test_origins_move_places() -> None:
    """A document inside another file has its problems there."""
    _, [exact] = read("mode: x\n", origin=Origin(10, 4))
    assert (exact.line, exact.column) == (10, 11)
    _, [folded] = read("\nmode: x\n", origin=Origin(10, 4, exact=False))
    assert (folded.line, folded.column) == (10, 5)
    assert "(line 2, column 7 of this text)" in folded.message


def test_problems_are_bounded() -> None:
    """A hostile document does not make us write a book, and still counts as refused."""
    policy, problems = read("allow:\n" + "- to: [no]\n" * 5000)
    assert policy is None
    assert len(problems) == MAX_PROBLEMS + 1
    assert "more from here on" in problems[-1].message
    assert has_errors(problems)


def test_documents_have_a_greatest_size() -> None:
    """A ConfigMap holds no more either."""
    assert "at most 1048576 are read" in only("#" * 1_048_577)


# --------------------------------------------------------------------------------------------- schema


def fits(schema: dict[str, Any], value: Any, whole: dict[str, Any]) -> bool:
    """As much of JSON Schema as ours uses."""
    if "$ref" in schema:
        return fits(whole["$defs"][schema["$ref"].rpartition("/")[2]], value, whole)
    if "anyOf" in schema:
        return any(fits(choice, value, whole) for choice in schema["anyOf"])
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    if type(value) is not kinds[schema["type"]]:
        return False
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        more = schema.get("additionalProperties", True)
        return all(name in value for name in schema.get("required", [])) and all(
            fits(fields[name], inner, whole) if name in fields else isinstance(more, dict) and fits(more, inner, whole)
            for name, inner in value.items()
        )
    if isinstance(value, list):
        return len(value) >= schema.get("minItems", 0) and all(fits(schema["items"], item, whole) for item in value)
    if isinstance(value, str):
        return value in schema.get("enum", [value]) and bool(re.search(schema.get("pattern", ""), value))
    return True


def test_the_json_schema_takes_the_example_and_refuses_mistakes() -> None:
    """The published schema says the same as the checks, as far as structure goes."""
    import yaml

    schema = json_schema()
    example = yaml.safe_load(EXAMPLE)
    assert fits(schema, example, schema)
    assert fits(schema, {}, schema)
    mistakes: list[dict[str, Any]] = [
        {"allows": []},
        {"mode": "enforce"},
        {"allow": [{}]},
        {"allow": [{"to": []}]},
        {"allow": [{"to": ["a.example"], "ports": ["https!"]}]},
        {"subject": {"podSelector": {"matchLabels": {"a": 1}}}},
        {"subject": {"podSelector": {"matchExpressions": [{"key": "a", "operator": "in"}]}}},
    ]
    for wrong in mistakes:
        assert not fits(schema, wrong, schema), wrong


def test_the_sample_policies_are_all_valid() -> None:
    """What we ship as samples draws not even a warning."""
    from egressd.schema import ConfigMapObject, policies_of, read_manifests

    folder = Path(__file__).parents[2] / "config" / "policies"
    names: list[str] = []
    for path in sorted(folder.glob("*.yaml")):
        manifests, problems = read_manifests(path.read_text(), path.name)
        assert not problems
        for manifest in manifests:
            assert isinstance(manifest, ConfigMapObject)
            policies, problems, refused = policies_of(manifest, "egressd-system")
            assert not problems
            assert not refused
            names += policies
    assert len(names) >= 4
    assert len(set(names)) == len(names)
