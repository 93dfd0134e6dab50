"""Settings: every form, every source, precedence, and errors with their places."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path

import pytest

from egressd import settings as s
from egressd.model import LabelSelector
from egressd.names import Name
from egressd.schema import SettingsError, load_settings, options, read_settings, resolvers_of
from egressd.schema.words import read_block
from egressd.settings import Settings, Upstream


def good(text: str, environ: dict[str, str] | None = None, flags: dict[str, object] | None = None) -> Settings:
    """Settings without any problem."""
    settings, problems = read_settings(text, "s.yaml", environ or {}, flags or {})
    assert problems == []
    assert settings is not None
    return settings


def bad(text: str, environ: dict[str, str] | None = None, flags: dict[str, object] | None = None) -> list[str]:
    """The problems of settings that are refused."""
    settings, problems = read_settings(text, "s.yaml", environ or {}, flags or {})
    assert settings is None
    return [str(problem) for problem in problems]


def four(text: str) -> bytes:
    """Packed IPv4."""
    return socket.inet_aton(text)


# --------------------------------------------------------------------------------------------- forms


def test_nothing_written_gives_the_defaults() -> None:
    """An empty file, a comment, an empty mapping, no file at all."""
    for text in ("", "# nothing\n", "{}", "---\n"):
        assert good(text) == Settings()


def test_the_shipped_settings_are_the_defaults() -> None:
    """config/egressd.yaml documents what the code does."""
    text = (Path(__file__).parents[2] / "config" / "egressd.yaml").read_text()
    assert good(text) == Settings()
    commented = "\n".join(
        line.replace("# ", "", 1) if line.lstrip().startswith("# ") and ": " in line and line[-1] in "]n12" else line
        for line in text.splitlines()
        if not line.startswith("# ")
        or line[2:].split(":")[0] in {"node", "pod_cidrs", "pod_interfaces", "cluster_cidrs"}
    )
    assert good(commented).pod_interfaces == ("eni*", "cali*", "veth*")


def test_the_sections_have_exactly_the_fields_of_the_settings() -> None:
    """A field added on one side is missed on the other."""
    pairs: dict[type[options.Section], type] = {
        options.Options: s.Settings,
        options.SourcePart: s.Source,
        options.DnsPart: s.Dns,
        options.CachePart: s.Cache,
        options.GrantsPart: s.Grants,
        options.BudgetsPart: s.Budgets,
        options.AuditPart: s.Audit,
        options.HistoryPart: s.History,
        options.AdminPart: s.Admin,
    }
    for part, section in pairs.items():
        assert set(part.model_fields) == {field.name for field in dataclasses.fields(section)}
    firewall = {field.name for field in dataclasses.fields(s.Firewall)}
    marks = {f"{name}_mark" for name in options.MarksPart.model_fields}
    assert set(options.FirewallPart.model_fields) - {"marks"} | marks == firewall


def test_every_section_is_laid_onto_its_defaults() -> None:
    """What is not written keeps its default, field by field."""
    settings = good(
        """\
node: n1
source: {path: /srv/objects}
pod_cidrs: [10.244.1.0/24, "fd00:10:244:1::/64"]
cluster_domains: [cluster.local., Corp.Example]
in_cluster: Enforce
unknown_wait: 500ms
dns:
  {foreign: Answer, servers: [10.96.0.10], exempt: {matchLabels: {dns: "yes"}}, cache: {bytes: 100MB, serve_stale: 0s}}
grants: {min: 1.5m, total: 7}
firewall: {marks: {answer: 0x8}, reject: false}
budgets: {tcp_idle: 1h}
audit: {file: "", max_size: 1GiB}
admin: {listen: "[::1]:9477"}
"""
    )
    base = Settings()
    assert settings == dataclasses.replace(
        base,
        node="n1",
        source=s.Source(path="/srv/objects"),
        pod_cidrs=(read_block("10.244.1.0/24"), read_block("fd00:10:244:1::/64")),
        cluster_domains=(Name("cluster.local"), Name("corp.example")),
        in_cluster="Enforce",
        unknown_wait=0.5,
        dns=dataclasses.replace(
            base.dns,
            foreign="Answer",
            servers=(four("10.96.0.10"),),
            exempt=s.Exempt("kube-system", LabelSelector((("dns", "yes"),))),
            cache=s.Cache(bytes=100_000_000, serve_stale=0.0),
        ),
        grants=s.Grants(min=90.0, total=7),
        firewall=s.Firewall(answer_mark=8, reject=False),
        budgets=s.Budgets(tcp_idle=3600.0),
        audit=s.Audit(file="", max_size=1 << 30),
        admin=s.Admin(listen="[::1]:9477"),
    )


@pytest.mark.parametrize(
    ("text", "upstream"),
    [
        ("192.0.2.1", Upstream(four("192.0.2.1"))),
        ("192.0.2.1:5353", Upstream(four("192.0.2.1"), 5353)),
        ("2001:db8::1", Upstream(socket.inet_pton(socket.AF_INET6, "2001:db8::1"))),
        ("[2001:db8::1]:5353", Upstream(socket.inet_pton(socket.AF_INET6, "2001:db8::1"), 5353)),
        ("udp://192.0.2.1", Upstream(four("192.0.2.1"))),
        ("TCP://192.0.2.1:54", Upstream(four("192.0.2.1"), 54, "tcp")),
        ("tls://192.0.2.1", Upstream(four("192.0.2.1"), 853, "tls", "192.0.2.1")),
        ("tls://192.0.2.1#dns.example", Upstream(four("192.0.2.1"), 853, "tls", "dns.example")),
        ("tls://192.0.2.1:8853#DNS.example.", Upstream(four("192.0.2.1"), 8853, "tls", "dns.example")),
        ("tls://[2001:DB8::1]", Upstream(socket.inet_pton(socket.AF_INET6, "2001:db8::1"), 853, "tls", "2001:db8::1")),
        ("https://192.0.2.1/q#dns.example", Upstream(four("192.0.2.1"), 443, "https", "dns.example", "/q")),
        ("https://192.0.2.1", Upstream(four("192.0.2.1"), 443, "https", "192.0.2.1", "/dns-query")),
    ],
)
def test_upstreams_have_many_forms(text: str, upstream: Upstream) -> None:
    """Addresses, ports, schemes; a name only where a certificate proves it."""
    assert good(f"dns: {{upstreams: ['{text}']}}").dns.upstreams == (upstream,)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("node: 5", "s.yaml:1:7: error: `5` is read as a number, where text is expected"),
        ("nodes: x", "s.yaml:1:1: error: unknown field 'nodes'; did you mean 'node'?"),
        ("dns: {upstream: [192.0.2.1]}", "s.yaml:1:7: error: unknown field 'upstream'; did you mean 'upstreams'?"),
        ("dns:", "expected a mapping, found nothing"),
        ("[]", "settings are one mapping"),
        ("node: a\n---\nnode: b", "s.yaml:3:1: error: a second document"),
        ("node: [", "this is not YAML"),
        ("unknown_wait: 5", "'5': a duration needs a unit; write 5s for seconds"),
        ("unknown_wait: 5 minutes", "the units are ms, s, m, h and d"),
        ("unknown_wait: -5s", "is not a duration"),
        ("unknown_wait: 1.5", "'1.5': a duration needs a unit"),
        ("unknown_wait: 400d", "too long"),
        ("dns: {cache: {bytes: 32}}", "is not a size"),
        ("dns: {cache: {bytes: 32mib}}", "did you mean 'MiB'?"),
        ("dns: {cache: {size: '5'}}", "expected a whole number, found '5'"),
        ("dns: {cache: {size: -1}}", "-1 is out of range"),
        ("dns: {foreign: deny}", "'deny' is none of Deny, Answer; did you mean 'Deny'?"),
        ("dns: {upstreams: [dns.example]}", "a resolver goes by its address"),
        ("dns: {upstreams: ['tls://dns.example']}", "write tls://ADDRESS#dns.example"),
        ("dns: {upstreams: ['https://dns.example/q']}", "write https://ADDRESS#dns.example"),
        ("dns: {upstreams: ['tls://192.0.2.1#192.0.2.2']}", "'#192.0.2.2' is an address; a name goes there"),
        ("dns: {ca_file: ca.pem}", "'ca.pem' is not an absolute path"),
        ("dns: {upstreams: ['dot://192.0.2.1']}", "unknown scheme 'dot'"),
        ("dns: {upstreams: ['192.0.2.1:0']}", "'0' is not a port"),
        ("dns: {upstreams: ['tcp://192.0.2.1/x']}", "only https:// has a path"),
        ("dns: {upstreams: ['192.0.2.1#x']}", "only tls:// and https:// verify a name"),
        ("dns: {upstreams: ['http ://']}", "is not a resolver"),
        ("dns: {servers: ['192.0.2.1:53']}", "is not an IP address"),
        ("firewall: {marks: {intercept: '0x30000'}}", "is not one bit of 32"),
        ("firewall: {marks: {intercept: 0}}", "is not one bit of 32"),
        ("firewall: {marks: {intercept: x}}", "is not a packet mark"),
        ("firewall: {marks: {intercept: '0x40000'}}", "s.yaml:1:19: error: the marks 'intercept' and 'answer' must be"),
        ("firewall: {route_table: 254}", "s.yaml:1:25: error: route table 254 is the system's own"),
        ("firewall: {reject: yes}", "expected true or false, found 'yes'"),
        ("firewall: {table: 'a b'}", "is not a table's name"),
        ("pod_cidrs: [10.0.0.1/8]", "s.yaml:1:13: error: '10.0.0.1/8' has bits set behind its prefix"),
        ("pod_interfaces: ['a*b']", "is not an interface's name"),
        ("cluster_domains: ['*.local']", "write 'local'"),
        ("policy_namespace: A", "is not a namespace"),
        ("source: {path: ''}", "a source of kind 'directory' needs a path"),
        ("audit: {file: audit.jsonl}", "is not an absolute path"),
        ("admin: {socket: ''}", "is not a socket's path"),
        ("admin: {listen: '9477'}", "has no port"),
        ("admin: {listen: '::1:9477'}", "write [::1]:9477"),
        ("admin: {listen: 'localhost:9477'}", "is not an IP address"),
    ],
)
def test_mistakes_are_refused_at_their_place(text: str, says: str) -> None:
    """One mistake, one problem, with what to write."""
    [problem] = bad(text)
    assert says in problem


def test_all_mistakes_are_told_at_once() -> None:
    """Of the file, of variables and of flags."""
    problems = bad(
        "grants: {min: 5}\nbudgets: 7\n",
        {"EGRESSD_DNS__CACHE__SIZE": "many", "EGRESSD_DSN__FOREIGN": "Deny", "EGRESSD_BUDGETS__IN_FLIGHT": "5"},
        {"policy_namespace": "A", "grant.min": "1s"},
    )
    assert {problem.partition(" error: ")[0] for problem in problems} == {
        "s.yaml:1:15:",
        "s.yaml:2:10:",
        "EGRESSD_DSN__FOREIGN:",
        "--grant-min:",
        "EGRESSD_DNS__CACHE__SIZE:",
        "--policy-namespace:",
    }
    assert len(problems) == 6


# ------------------------------------------------------------------------------------------- sources


def test_flag_over_variable_over_file_over_default() -> None:
    """Each source hides the next."""
    file = "grants: {min: 1s, grace: 1s, per_name: 1}"
    environ = {"EGRESSD_GRANTS__MIN": "2s", "EGRESSD_GRANTS__GRACE": "2s"}
    grants = good(file, environ, {"grants.min": "3s", "grants.total": None}).grants
    assert grants == s.Grants(min=3.0, grace=2.0, per_name=1, total=Settings().grants.total)


def test_variables_have_text_for_every_type() -> None:
    """Lists by commas or YAML, mappings as YAML, numbers and booleans by their look, text as it is."""
    settings = good(
        "",
        {
            "EGRESSD_NODE": "5",
            "EGRESSD_DNS__UPSTREAMS": "192.0.2.1, tls://192.0.2.2",
            "EGRESSD_POD_CIDRS": '[10.0.0.0/8, "fd00::/8"]',
            "EGRESSD_POD_INTERFACES": "",
            "EGRESSD_FIREWALL__REJECT": "false",
            "EGRESSD_FIREWALL__MARKS__INTERCEPT": "0x8",
            "EGRESSD_BUDGETS__IN_FLIGHT": "7",
            "EGRESSD_AUDIT__FILE": "",
            "EGRESSD_AUDIT__FLOWS": "All",
            "EGRESSD_DNS__EXEMPT": "{namespace: dns}",
            "EGRESSD_DNS__EXEMPT__MATCHLABELS": "{a: b}",
            "OTHER": "x",
        },
    )
    assert settings.node == "5"
    assert [upstream.scheme for upstream in settings.dns.upstreams] == ["udp", "tls"]
    assert settings.pod_cidrs == (read_block("10.0.0.0/8"), read_block("fd00::/8"))
    assert settings.pod_interfaces == ()
    assert settings.firewall == s.Firewall(intercept_mark=8, reject=False)
    assert settings.budgets.in_flight == 7
    assert (settings.audit.file, settings.audit.flows) == ("", "All")
    assert settings.dns.exempt == s.Exempt("dns", LabelSelector((("a", "b"),)))


def test_variables_of_a_service_named_egressd_are_not_settings() -> None:
    """Kubernetes sets them in every container of the namespace."""
    names = [
        "EGRESSD_SERVICE_HOST",
        "EGRESSD_SERVICE_PORT",
        "EGRESSD_SERVICE_PORT_METRICS",
        "EGRESSD_PORT",
        "EGRESSD_PORT_9477_TCP",
        "EGRESSD_PORT_9477_TCP_ADDR",
        "EGRESSD_ADMIN_SERVICE_HOST",
    ]
    assert good("", dict.fromkeys(names, "tcp://10.96.0.1:9477")) == Settings()


def test_unreadable_lists_in_variables_are_told() -> None:
    """With the variable's name."""
    assert bad("", {"EGRESSD_POD_CIDRS": "[10.0.0.0/8"}) == [
        "EGRESSD_POD_CIDRS: error: '[10.0.0.0/8' is not a list or mapping in YAML"
    ]


def test_flags_take_lists_and_values() -> None:
    """As click gives them; what was not given is None or empty."""
    flags: dict[str, object] = {"dns.upstreams": ("192.0.2.1", "192.0.2.2"), "pod_cidrs": (), "audit.stdout": True}
    settings = good("", None, flags)
    assert len(settings.dns.upstreams) == 2
    assert settings.audit.stdout


# ------------------------------------------------------------------------------------------- machine


def test_the_node_fills_in_what_is_not_said(tmp_path: Path) -> None:
    """Its name from NODE_NAME, else its own; its resolvers from resolv.conf."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("# x\nsearch a.example\nnameserver 192.0.2.53 # y\nnameserver fe80::1%eth0\nnameserver ::1\n")
    settings = load_settings(None, {"NODE_NAME": "n7"}, {}, resolv_conf=str(resolv))
    assert settings.node == "n7"
    assert settings.dns.upstreams == (Upstream(four("192.0.2.53")), Upstream(b"\0" * 15 + b"\1"))
    assert load_settings(None, {}, {}, resolv_conf=str(resolv)).node == socket.gethostname()
    file = tmp_path / "s.yaml"
    file.write_text("node: n1\ndns: {upstreams: [192.0.2.1]}\n")
    settings = load_settings(str(file), {"NODE_NAME": "n7"}, {}, resolv_conf="/nonexistent")
    assert (settings.node, settings.dns.upstreams) == ("n1", (Upstream(four("192.0.2.1")),))


def test_without_any_resolver_the_setting_is_asked_for(tmp_path: Path) -> None:
    """Rather than to guess one."""
    for name in ("missing", "empty"):
        path = tmp_path / name
        if name == "empty":
            path.touch()
        with pytest.raises(SettingsError, match=r"set dns\.upstreams"):
            load_settings(None, {}, {}, resolv_conf=str(path))


def test_unreadable_files_are_settings_errors(tmp_path: Path) -> None:
    """Missing, a folder, not UTF-8, or too large."""
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"node: \xe9\n")
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 5_000_000)
    for path in (tmp_path / "missing.yaml", tmp_path, latin, large):
        with pytest.raises(SettingsError) as caught:
            load_settings(str(path), {}, {})
        assert str(path) in str(caught.value)


def test_a_settings_error_holds_every_problem() -> None:
    """As values and in its text, one a line."""
    with pytest.raises(SettingsError) as caught:
        load_settings(None, {"EGRESSD_NODE": "", "EGRESSD_IN_CLUSTER": "x"}, {})
    assert len(caught.value.problems) == 2
    assert len(str(caught.value).splitlines()) == 2


def test_resolv_conf_lines_that_are_no_servers_are_ignored() -> None:
    """Whatever they hold, and doubles are one."""
    text = (
        "nameserver\nnameserver x\n;nameserver 192.0.2.9\nnameserver 192.0.2.1\nnameserver 192.0.2.1\noptions ndots:5\n"
    )
    assert resolvers_of(text) == (Upstream(four("192.0.2.1")),)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("collector:4318", "is not a collector's URL; write http://HOST:4318"),
        ("ftp://collector.example", "is not a collector's URL"),
        ("http://", "is not a collector's URL"),
        ("http://collector.example:0", "is not a collector's URL"),
        ("http://[2001:db8::1", "is not a collector's URL"),
        ("http://user:hush@collector.example", "no user, query or fragment"),
        ("ftp://user:hush@collector.example", "no user, query or fragment"),
        ("http://collector.example/?key=hush", "OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_collector_urls_hold_no_secret(text: str, complaint: str) -> None:
    """What is no base URL is refused with the right spelling, and a secret in it is not quoted."""
    (problem,) = bad(f'otlp: {{endpoint: "{text}"}}')
    assert complaint in problem
    assert "hush" not in problem


def test_otlp() -> None:
    """An endpoint loses its last slash; metrics come no more often than the data path speaks."""
    found = good('otlp: {endpoint: "https://[2001:db8::1]:4318/otlp/", logs: false, interval: 1s}').otlp
    assert found == s.Otlp("https://[2001:db8::1]:4318/otlp", logs=False, interval=1.0)
    (problem,) = bad("otlp: {interval: 500ms}")
    assert problem == "s.yaml:1:18: error: metrics can be sent once a second at most"
