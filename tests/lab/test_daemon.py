"""Starting and watching the daemon: files written for it, readiness told by the kernel alone, records read back."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from egressd.lab import Daemon, Node, eventually, intercepts

HEARTBEAT = "table inet egressd { set heartbeat { typeof meta nfproto; flags timeout; timeout 1m; }; }"


def test_intercepts(node_p2p: Node) -> None:
    """A heartbeat counts only with an element in it; no table and an empty set are no heartbeat."""
    assert not intercepts(node_p2p)
    node_p2p.run(["nft", "-f", "-"], stdin=HEARTBEAT, check=True)
    assert not intercepts(node_p2p)
    node_p2p.run(["nft", "add", "element", "inet", "egressd", "heartbeat", "{ ipv4, ipv6 }"], check=True)
    assert intercepts(node_p2p)
    assert not intercepts(node_p2p, "other")


def test_objects(node_p2p: Node, tmp_path: Path) -> None:
    """Objects are ordinary manifests, one file each, replaced whole and removed by name."""
    daemon = Daemon(node_p2p, tmp_path)
    node_p2p.add_pod("shop/web-0", labels={"app": "web"}, service_account="web")
    daemon.put_pods()
    daemon.put_policy("shop/web-egress", "allow:\n- to: [api.example.com]\n")
    pod, namespace = json.loads((daemon.objects / "pods.yaml").read_text())["items"]
    assert (pod["kind"], pod["spec"]["nodeName"], pod["metadata"]["labels"]) == ("Pod", "n1", {"app": "web"})
    assert (namespace["kind"], namespace["metadata"]["name"]) == ("Namespace", "shop")
    (policy,) = json.loads((daemon.objects / "policy-shop-web-egress.yaml").read_text())["items"]
    assert policy["metadata"]["labels"] == {"egressd.io/policy": "true"}
    daemon.remove("policy-shop-web-egress")
    assert [path.name for path in daemon.objects.iterdir()] == ["pods.yaml"]


def test_settings_are_laid_over_defaults(node_p2p: Node, tmp_path: Path) -> None:
    """A test says only what it wants different."""
    daemon = Daemon(node_p2p, tmp_path, {"dns": {"foreign": "Answer"}, "in_cluster": "Enforce"})
    assert daemon.settings["dns"] == {**daemon.defaults()["dns"], "foreign": "Answer"}
    assert daemon.settings["in_cluster"] == "Enforce"
    assert daemon.settings["pod_cidrs"] == daemon.defaults()["pod_cidrs"]


def test_records(node_p2p: Node, tmp_path: Path) -> None:
    """Whole lines are records; half a line is not one yet; waiting finds what `wanted` is true of."""
    daemon = Daemon(node_p2p, tmp_path)
    assert daemon.records() == []
    first, second = {"event": "policy", "change": "updated"}, {"event": "dns", "verdict": "denied"}
    daemon.audit_file.write_text(f"{json.dumps(first)}\n{json.dumps(second)}\n" + '{"event": "dn')
    assert daemon.records() == [first, second]
    assert daemon.records("dns") == [second]
    assert daemon.wait_record(lambda record: record["verdict"] == "denied") == second
    with pytest.raises(TimeoutError, match="among 2"):
        daemon.wait_record(lambda record: record["verdict"] == "allowed", timeout=0.1)


def test_a_daemon_that_ends_is_reported(node_p2p: Node, tmp_path: Path) -> None:
    """Settings that stop the start are told at once, with what the daemon wrote."""
    daemon = Daemon(node_p2p, tmp_path, {"no_such_setting": 1})
    with pytest.raises(RuntimeError, match="exit code"):
        daemon.start()
    assert daemon.log()


def test_children_and_signals(node_p2p: Node, tmp_path: Path) -> None:
    """A test finds the daemon's child processes, stops the daemon, and sees its exit code; killing it works too."""
    daemon = Daemon(node_p2p, tmp_path)
    with pytest.raises(RuntimeError, match="never started"):
        daemon.stop()
    parent = ["sh", "-c", "trap 'exit 5' TERM; sleep 1000 & while :; do wait; done"]
    daemon.process = node_p2p.popen(parent)
    (child,) = eventually(daemon.children)
    os.kill(child, signal.SIGKILL)
    eventually(lambda: child not in daemon.children())
    assert daemon.stop() == 5
    assert daemon.children() == []
    daemon.process = node_p2p.popen(["sleep", "1000"])
    daemon.kill()
    assert daemon.process.returncode == -signal.SIGKILL


def test_eventually() -> None:
    """Waiting returns what was waited for, or says what did not come."""
    turns = iter([0, 0, 7])
    assert eventually(lambda: next(turns)) == 7
    with pytest.raises(TimeoutError, match="the moon"):
        eventually(lambda: False, timeout=0.05, what="the moon")
