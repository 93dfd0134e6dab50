"""`egressd explain` from files: verdicts, exit codes, and what --to may look like."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from egressd.cli import main
from egressd.errors import InvalidName
from egressd.names import Name
from egressd.schema.target import Target, parse_target

POLICIES = """\
kind: ConfigMap
metadata: {name: web, namespace: shop, labels: {egressd.io/policy: "true"}}
data:
  policy.yaml: |
    subject: {podSelector: {matchLabels: {app: web}}}
    allow:
    - name: api
      to: [api.example.com]
      ports: [443/TCP]
    - to: [192.0.2.0/24, "2001:db8::/32"]
      ports: [5432/TCP, "*/ICMP"]
    deny:
    - to: [192.0.2.66]
---
kind: ConfigMap
metadata: {name: guard, namespace: egressd-system, labels: {egressd.io/policy: "true"}}
data:
  policy.yaml: |
    subject: {namespaceSelector: {matchLabels: {team: audited}}}
    mode: Audit
    allow: [{to: [api.example.com], ports: [443/TCP]}]
"""
PODS = """\
kind: List
items:
- {kind: Pod, metadata: {name: web-0, namespace: shop, labels: {app: web}}}
- {kind: Pod, metadata: {name: free, namespace: shop}}
- {kind: Pod, metadata: {name: host, namespace: shop, labels: {app: web}}, spec: {hostNetwork: true}}
- {kind: Pod, metadata: {name: job, namespace: batch}}
- {kind: Namespace, metadata: {name: batch, labels: {team: audited}}}
"""


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with policies and pods."""
    (tmp_path / "policies.yaml").write_text(POLICIES)
    (tmp_path / "pods.yaml").write_text(PODS)
    return tmp_path


def explain(world: Path, pod: str, to: str, *more: str) -> Result:
    """Ask about a pod of the world."""
    files = ["--policies", str(world / "policies.yaml"), "--pods", str(world / "pods.yaml")]
    return CliRunner().invoke(main, ["explain", "--pod", pod, "--to", to, *files, *more])


@pytest.mark.parametrize(
    ("pod", "to", "verdict", "reason", "rule"),
    [
        ("shop/web-0", "api.example.com", "allowed", "rule", "api"),
        ("shop/web-0", "API.Example.com.:443", "allowed", "rule", "api"),
        ("shop/web-0", "api.example.com:443/tcp", "allowed", "rule", "api"),
        ("shop/web-0", "api.example.com/tcp", "allowed", "rule", "api"),
        ("shop/web-0", "api.example.com:80", "denied", "no-rule", ""),
        ("shop/web-0", "api.example.com:443/udp", "denied", "no-rule", ""),
        ("shop/web-0", "www.example.com", "denied", "no-rule", ""),
        ("shop/web-0", "192.0.2.1:5432", "allowed", "rule", "allow[1]"),
        ("shop/web-0", "192.0.2.1", "allowed", "rule", "allow[1]"),
        ("shop/web-0", "192.0.2.1/icmp", "allowed", "rule", "allow[1]"),
        ("shop/web-0", "[2001:db8::1]/icmp", "allowed", "rule", "allow[1]"),
        ("shop/web-0", "2001:db8::1", "allowed", "rule", "allow[1]"),
        ("shop/web-0", "[2001:db8::1]:5432/tcp", "allowed", "rule", "allow[1]"),
        ("shop/web-0", "[2001:db8::1]:443/tcp", "denied", "no-rule", ""),
        ("shop/web-0", "192.0.2.66:5432", "denied", "deny-rule", "deny[0]"),
        ("shop/free", "anything.example", "allowed", "unselected", ""),
        ("shop/host", "anything.example", "allowed", "unselected", ""),
        ("batch/job", "api.example.com:443", "allowed", "rule", "api"),
        ("batch/job", "api.example.com:80", "would-deny", "no-rule", ""),
        ("batch/job", "www.example.com", "would-deny", "no-rule", ""),
    ],
)
def test_verdicts_and_exit_codes(world: Path, pod: str, to: str, verdict: str, reason: str, rule: str) -> None:
    """0 for what goes through, an Audit policy's objections included; 1 for what is denied."""
    result = explain(world, pod, to, "-o", "json")
    found = json.loads(result.stdout)
    assert (found["verdict"], found["reason"]) == (verdict, reason)
    if rule != "api" or pod == "shop/web-0":
        assert found["rule"] == rule
    assert found["grants"] == []
    assert found["steps"][-1].startswith(f"verdict: {verdict} ({reason})")
    assert result.exit_code == (1 if verdict == "denied" else 0)


def test_the_steps_are_printed(world: Path) -> None:
    """A numbered list that ends in the verdict; the same as YAML."""
    result = explain(world, "shop/web-0", "api.example.com")
    assert result.stdout.startswith(" 1. policy shop/web")
    assert "verdict: allowed (rule)" in result.stdout.splitlines()[-1]
    data = yaml.safe_load(explain(world, "shop/web-0", "api.example.com", "-o", "yaml").stdout)
    assert data["policy"] == "shop/web"


def test_settings_say_what_is_in_the_cluster(world: Path) -> None:
    """`in_cluster: Enforce` judges it like the rest."""
    config = world / "settings"
    config.write_text("cluster_cidrs: [198.51.100.0/24]\n")
    assert "in-cluster" in explain(world, "shop/web-0", "198.51.100.7:80", "--config", str(config)).stdout
    assert "in-cluster" in explain(world, "shop/web-0", "db.shop.svc.cluster.local:80").stdout
    config.write_text("cluster_cidrs: [198.51.100.0/24]\nin_cluster: Enforce\n")
    assert explain(world, "shop/web-0", "198.51.100.7:80", "--config", str(config)).exit_code == 1


def test_bare_policies_count_for_the_namespace_of_the_pod(world: Path) -> None:
    """And what is refused is told on stderr and plays no part."""
    (world / "policies.yaml").write_text("deny: [{to: [api.example.com]}]\n")
    assert explain(world, "shop/free", "api.example.com").exit_code == 1
    (world / "policies.yaml").write_text("denies: [{to: [api.example.com]}]\n")
    result = explain(world, "shop/free", "api.example.com")
    assert result.exit_code == 0
    assert "unknown field 'denies'" in result.stderr


def test_wrong_usage(world: Path) -> None:
    """Exit code 2, with what is wrong."""
    result = explain(world, "shop/web-9", "api.example.com")
    assert result.exit_code == 2
    assert "no pod 'shop/web-9' in the files" in result.stderr
    assert explain(world, "shop/web-0", "a..example").exit_code == 2
    assert explain(world, "shop/web-0", "a.example:0").exit_code == 2


def test_without_files_a_daemon_is_needed() -> None:
    """Exit code 3, with what to do."""
    result = CliRunner().invoke(main, ["explain", "--pod", "shop/web-0", "--to", "a.example"])
    assert result.exit_code == 3
    assert "--policies PATH and --pods PATH" in result.stderr


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("a.example", Target(Name("a.example"), b"", -1, 6, asked=False)),
        ("a.example:53/UDP", Target(Name("a.example"), b"", 53, 17, asked=True)),
        ("a.example:*", Target(Name("a.example"), b"", -1, 6, asked=False)),
        ("192.0.2.1/icmp", Target(None, socket.inet_aton("192.0.2.1"), -1, 1, asked=True)),
        ("::1", Target(None, b"\0" * 15 + b"\1", -1, 6, asked=False)),
        ("[::1]:1/sctp", Target(None, b"\0" * 15 + b"\1", 1, 132, asked=True)),
        ("[::1]/icmp", Target(None, b"\0" * 15 + b"\1", -1, 58, asked=True)),
    ],
)
def test_destinations_are_parsed(text: str, target: Target) -> None:
    """Names and addresses, ports and protocols in any case."""
    assert parse_target(text) == target


@pytest.mark.parametrize(
    "text", ["", ":443", "a:b", "a.example:70000", "a.example/http", "192.0.2.300", "[::1", "::1%lo"]
)
def test_other_destinations_are_refused(text: str) -> None:
    """With what to write."""
    with pytest.raises((ValueError, InvalidName)):
        parse_target(text)
