"""`egressd sandbox` before and after its command runs: what is allowed, who is asked for names, what is summed up."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from egressd.cli import main
from egressd.cli._allowed import policy_of_allows, policy_of_file, rule_of
from egressd.cli._denials import MAX_KEPT, MAX_TOLD, Denials
from egressd.cli._resolvers import machine_resolvers, other_lines, stated_resolvers
from egressd.errors import EnvironmentProblem
from egressd.lab.sandbox.addresses import candidates
from egressd.schema import read_policy

RULES = {
    "api.example.com": {"to": ["api.example.com"]},
    "api.example.com:443": {"to": ["api.example.com"], "ports": ["443"]},
    "*.example.com:443/TCP,8000-8100/udp": {"to": ["*.example.com"], "ports": ["443/TCP", "8000-8100/udp"]},
    "*": {"to": ["*"]},
    "203.0.113.0/24:5432": {"to": ["203.0.113.0/24"], "ports": ["5432"]},
    "2001:db8::1": {"to": ["2001:db8::1"]},
    "[2001:db8::1]": {"to": ["2001:db8::1"]},
    "[2001:db8::/32]:53/UDP": {"to": ["2001:db8::/32"], "ports": ["53/UDP"]},
    "192.0.2.1:*/ICMP": {"to": ["192.0.2.1"], "ports": ["*/ICMP"]},
}


@pytest.mark.parametrize("text", RULES)
def test_allow_is_read_as_a_policy_would_be(text: str) -> None:
    """PEER[:PORTS] is a rule of a policy, and that policy is a good one."""
    assert rule_of(text) == RULES[text]
    document, warnings = policy_of_allows([text], private=True)
    policy, problems = read_policy(document, name="sandbox/allow", namespace="sandbox", policy_namespace="system")
    assert (policy is not None, problems, warnings) == (True, [], [])
    assert policy is not None
    assert policy.allow[0].allow_private


REFUSED = {
    "https://api.example.com/x": "write the host's name alone: 'api.example.com'",
    "www.*.com": "'*' may only be the whole first label",
    "api.example.com:https": "write 443/TCP",
    "api.example.com:": "is not a port",
    "api.example.com:443,": "is not a port",
    "203.0.113.7/24": "has bits set behind its prefix",
    "": "must not be empty",
    "[2001:db8::1": "is not an IP address",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_wrong_allow_says_what_to_write(text: str) -> None:
    """What a policy refuses is refused, with the same words."""
    with pytest.raises(click.BadParameter) as refusal:
        rule_of(text)
    assert REFUSED[text] in refusal.value.message


def test_a_wrong_allow_is_wrong_usage() -> None:
    """Exit code 2, and the option is named."""
    result = CliRunner().invoke(main, ["sandbox", "--allow", "a.*.example", "--", "true"])
    assert (result.exit_code, "--allow" in result.output) == (2, True), result.output


def test_a_wildcard_over_strangers_draws_a_warning() -> None:
    """As in a policy."""
    _, warnings = policy_of_allows(["*.com:443", "api.example.com"], private=False)
    assert ["public suffix" in warning for warning in warnings] == [True]


def test_a_policy_file_selects_the_command(tmp_path: Path) -> None:
    """The subject, even one of a cluster policy, is left out; all else stays."""
    file = tmp_path / "web.yaml"
    file.write_text(
        "subject:\n  namespaceSelector: {}\n  podSelector: {matchLabels: {app: web}}\n"
        "mode: Audit\nallow:\n- name: web\n  to: [api.example.com]\n  ports: [443/TCP, 8080]\n"
    )
    document, problems = policy_of_file(str(file), "sandbox")
    assert problems == []
    assert json.loads(document) == {
        "mode": "Audit",
        "allow": [{"name": "web", "to": ["api.example.com"], "ports": ["443/TCP", 8080]}],
    }


@pytest.mark.parametrize(
    ("content", "place"),
    [(b"allows: []\n", ":1:1: error:"), (b"\xff\n", ": error: is not UTF-8"), (None, ": error: cannot be read")],
)
def test_a_bad_policy_file_ends_with_its_place(tmp_path: Path, content: bytes | None, place: str) -> None:
    """Exit code 2 and FILE:LINE:COLUMN, as `check` says it; the command is not run."""
    file = tmp_path / "policy.yaml"
    if content is not None:
        file.write_bytes(content)
    result = CliRunner().invoke(main, ["sandbox", "--policy", str(file), "--", "touch", str(tmp_path / "ran")])
    assert (result.exit_code, f"{file}{place}" in result.output) == (2, True), result.output
    assert not (tmp_path / "ran").exists()


def test_only_root_makes_sandboxes() -> None:
    """Exit code 3, and what to do about it."""
    argv = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-m", "egressd", "sandbox", "true"]
    ran = subprocess.run(argv, check=False, capture_output=True, text=True, env={**os.environ, "HOME": "/nonexistent"})
    assert (ran.returncode, "run it as root" in ran.stderr) == (3, True), ran.stderr


# ------------------------------------------------------------------------------------------- resolvers


def test_resolvers_are_those_behind_the_loopback(tmp_path: Path) -> None:
    """systemd-resolved's own file stands in for its 127.0.0.53; without one, the remedy is `--dns`."""
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("nameserver 127.0.0.53\noptions edns0\nsearch corp.example\n")
    assert other_lines(stub) == "options edns0\nsearch corp.example\n"
    with pytest.raises(EnvironmentProblem, match="--dns ADDRESS"):
        machine_resolvers([stub, real])
    real.write_text("nameserver 192.0.2.53\nnameserver 2001:db8::53\n")
    assert machine_resolvers([stub, real]) == ["192.0.2.53", "2001:db8::53"]


def test_stated_resolvers() -> None:
    """Any form of `dns.upstreams`, but nothing on loopback, which is the command's own there."""
    texts = ["192.0.2.53", "tls://192.0.2.54#dns.example", "[2001:db8::53]:5353"]
    assert stated_resolvers(texts) == texts
    for wrong in ("127.0.0.1", "dns.example"):
        with pytest.raises(click.BadParameter, match=wrong):
            stated_resolvers([wrong])


# --------------------------------------------------------------------------------------------- summary


def dns(name: str, reason: str = "no-rule", **fields: Any) -> bytes:
    record = {"event": "dns", "query": {"name": name}, "verdict": "denied", "reason": reason} | fields
    return json.dumps(record).encode()


def flow(ip: str, protocol: str = "tcp", names: tuple[str, ...] = (), packets: int = 1, **there: int) -> bytes:
    destination = {"ip": ip, "protocol": protocol, "names": names, **there}
    record = {"event": "flow", "destination": destination, "verdict": "denied", "reason": "no-rule", "packets": packets}
    return json.dumps(record).encode()


SUMMARIES = {
    "name": ([dns("a.example"), dns("a.example")], "a.example  2 queries  --allow a.example"),
    "wildcard-like": ([dns("a b.example")], "a b.example  1 query  --allow 'a b.example'"),
    "address": ([flow("192.0.2.1", port=443, packets=3)], "192.0.2.1:443/tcp  3 packets  --allow 192.0.2.1:443/TCP"),
    "IPv6": (
        [flow("2001:db8::1", "udp", port=53)],
        "[2001:db8::1]:53/udp  1 packet  --allow '[2001:db8::1]:53/UDP'",
    ),
    "named": (
        [flow("192.0.2.1", names=("a.example",), port=22)],
        "a.example (192.0.2.1):22/tcp  1 packet  --allow a.example:22/TCP",
    ),
    "ICMP": ([flow("192.0.2.1", "icmp")], "192.0.2.1/icmp  1 packet  --allow '192.0.2.1:*/ICMP'"),
    "rebinding": (
        [dns("a.example", "rebinding")],
        "a.example  1 query  --allow a.example --allow-private (it answers with a private address)",
    ),
    "deny rule": ([dns("a.example", "deny-rule", rule="r")], "a.example  1 query  (denied by rule r of the policy)"),
    "other": ([dns("a.example", "unknown-pod")], "a.example  1 query  (unknown-pod)"),
    "flood": ([dns("", aggregated=40)], "other names  40 queries"),
}


@pytest.mark.parametrize("case", SUMMARIES)
def test_summary(case: str) -> None:
    """What, how often, and the option that would allow it."""
    records, line = SUMMARIES[case]
    denials = Denials()
    for record in records:
        denials.take(record)
    assert list(denials.lines()) == ["denied:", f"  {line}"]


def test_audited_denials_are_told_apart() -> None:
    """What a policy in mode Audit let through has a heading of its own."""
    denials = Denials()
    denials.take(dns("a.example", verdict="would-deny"))
    denials.take(dns("long.b.example"))
    assert list(denials.lines()) == [
        "denied:",
        "  long.b.example  1 query  --allow long.b.example",
        "would be denied, were it not for mode: Audit:",
        "  a.example       1 query  --allow a.example",
    ]


def test_nothing_denied_is_nothing_said() -> None:
    """Allowed records, names made by a search list, other events and what is no record make no summary."""
    denials = Denials()
    denials.take(b"half a record")
    denials.take(dns("a.example.corp.example", search=True))
    denials.take(json.dumps({"event": "policy", "policy": "sandbox/allow", "change": "updated"}).encode())
    denials.take(json.dumps({"event": "dns", "query": {"name": "a.example"}, "verdict": "allowed"}).encode())
    assert list(denials.lines()) == []


def test_a_flood_of_names_is_summed_up_in_bounded_space() -> None:
    """However many destinations there are, a bounded number is kept and told, and the rest is said to be there."""
    denials = Denials()
    for number in range(MAX_KEPT + 50):
        denials.take(dns(f"n{number}.example"))
    lines = list(denials.lines())
    assert len(lines) == 1 + MAX_TOLD + 1
    assert lines[-1].strip().startswith(f"and more than {MAX_KEPT - MAX_TOLD} others")


# ------------------------------------------------------------------------------------------- addresses


def test_addresses_overlap_with_nothing_in_use() -> None:
    """Where a route covers one pool, the next is taken; two numbers never share an address."""
    taken = [ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("172.31.253.0/29")]
    number, (four, six) = next(candidates(taken))
    assert (number, str(four.block), four.machine, four.command) == (
        33, "172.31.253.8/29", "172.31.253.9", "172.31.253.14"
    )  # fmt: skip
    assert ipaddress.ip_address(six.command) in six.cage
    everything = [side.block for _, sides in islice(candidates([]), 200) for side in sides]
    assert len(everything) == len(set(everything)) == 256
    assert list(candidates([ipaddress.ip_network("0.0.0.0/1"), ipaddress.ip_network("128.0.0.0/1")])) == []


# ------------------------------------------------------------------------------------------ forwarding

FORWARDING = """
import sys
from pathlib import Path
from egressd.lab.sandbox.forwarding import Forwarding

note, switch = Path(sys.argv[1]), Path(sys.argv[2])
with Forwarding(note, switch) as first:
    with Forwarding(note, switch) as second:
        print(first.changed, second.changed, switch.read_text())
    print(switch.read_text(), note.exists())
print(switch.read_text(), note.exists())
"""


@pytest.mark.parametrize(
    ("noted", "before", "said"),
    [
        (None, "0", ["True", "False", "1", "1", "True", "0", "False"]),
        (None, "1", ["False", "False", "1", "1", "False", "1", "False"]),
        ("0", "1", ["False", "False", "1", "1", "True", "0", "False"]),
    ],
    ids=["off", "on", "left on by one that was killed with its keeper"],
)
def test_the_last_sandbox_puts_forwarding_back(tmp_path: Path, noted: str | None, before: str, said: list[str]) -> None:
    """Forwarding that was off is on while any sandbox lives; a note says how it was, and goes with the last one."""
    note, switch = tmp_path / "note", tmp_path / "switch"
    switch.write_text(before)
    if noted is not None:
        note.write_text(noted)
    argv = [sys.executable, "-c", FORWARDING, str(note), str(switch)]
    ran = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=60)
    assert ran.stdout.split() == said, ran.stderr
