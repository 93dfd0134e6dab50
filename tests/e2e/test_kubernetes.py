"""`source: kubernetes` end to end: a small API server inside the node, the real daemon, namespaces as pods.

What the daemon is told in its settings is no more than the way to the API server: its ranges, resolver and domain it
must find there.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dns.exception
import pytest
from kubeapi import ApiServer, kubeconfig
from kubeapi.objects import configmap, endpointslice, namespace, node, pod, service, servicecidr

from e2e.shop import API4, addresses, ask, dial, rcode
from egressd.lab import CLUSTER_CIDRS, POD_CIDRS, SERVICES, Daemon, Node, Pod, eventually

DNS_LABELS = {"k8s-app": "kube-dns"}
FOR_WEB = "subject: {podSelector: {matchLabels: {app: web}}}\n"
API_RULES = FOR_WEB + "allow:\n- to: [api.example.com]\n"
NOTHING_RULES = FOR_WEB + "allow:\n- to: [nothing.example]\n"
KUBEADM = f"networking:\n  dnsDomain: cluster.local\n  podSubnet: {CLUSTER_CIDRS[0]},{CLUSTER_CIDRS[2]}\n"
APPLIED_S = 1.0
"""Seconds within which a change of the cluster is in force (the issue); a busy machine is given ten of them."""


class Cluster:
    """A node, an API server inside it that describes it, and the daemon (not started yet)."""

    def __init__(self, made: Node, folder: Path, settings: dict[str, Any]) -> None:
        self.node = made
        self.api = ApiServer(("127.0.0.1", 6443), listen=self._listen)
        self._describe()
        self.daemon = Daemon(made, folder, {"source": {"kind": "kubernetes"}, **settings})
        config = kubeconfig(folder / "kubeconfig", self.api.url, token="token-1")
        self.daemon.settings["source"] = {"kind": "kubernetes", "kubeconfig": str(config)}
        for found_out in ("pod_cidrs", "cluster_cidrs", "dns"):
            del self.daemon.settings[found_out]
        self.daemon.settings |= settings
        made.dns.zone.add("api.example.com", "A", API4)
        made.dns.zone.add("other.example.com", "A", "203.0.113.11")
        made.internet.serve_http(80)

    def _listen(self, address: tuple[str, int]) -> socket.socket:
        with self.node.entered():
            return socket.create_server(address)

    def _describe(self) -> None:
        for name in ("shop", "kube-system"):
            self.api.put("namespaces", namespace(name))
        self.api.put("nodes", node(self.node.name, POD_CIDRS))
        self.api.put("services", service("kube-system/kube-dns", SERVICES, DNS_LABELS))
        self.api.put("servicecidrs", servicecidr(CLUSTER_CIDRS[1], CLUSTER_CIDRS[3]))
        self.api.put(
            "configmaps", configmap("kube-system/kubeadm-config", KUBEADM, key="ClusterConfiguration", policy=False)
        )

    def start_pod(self, name: str, *, app: str = "web", status: bool = True, index: int = 0) -> Pod:
        """A pod on the node and its object; without `status` the kubelet has not reported its address yet."""
        made = self.node.add_pod(name, labels={"app": app}, index=index)
        self.api.put("pods", pod(name, *((made.v4, made.v6) if status else ()), labels={"app": app}))
        return made

    def report(self, made: Pod, *, app: str = "web", **fields: Any) -> None:
        """The kubelet reports a pod's address, or somebody labels it."""
        self.api.put("pods", pod(f"{made.namespace}/{made.pod_name}", made.v4, made.v6, labels={"app": app}, **fields))

    def policy(self, name: str, rules: str) -> None:
        self.api.put("configmaps", configmap(name, rules))

    def events(self) -> list[dict[str, Any]]:
        return self.api.store.all("events")

    @property
    def lists_of_pods(self) -> int:
        """How often all pods of the node were asked for."""
        pods = [request for request in self.api.requests if request.path == "/api/v1/pods"]
        return len([request for request in pods if "watch" not in request.query])

    def close(self) -> None:
        self.api.close()


MakeCluster = Callable[..., Cluster]


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[MakeCluster]:
    """A factory of clusters with one node each; everything ends with the test."""
    with contextlib.ExitStack() as stack:

        def make(wiring: str = "p2p", **settings: Any) -> Cluster:
            made = stack.enter_context(Node(wiring))
            cluster = Cluster(made, tmp_path, settings)
            stack.callback(cluster.close)
            stack.enter_context(cluster.daemon)
            return cluster

        yield make


def allowed(made: Pod, name: str = "api.example.com") -> bool:
    """Whether a name resolves for a pod and its address can be reached."""
    answer = ask(made, name)
    return rcode(answer) == "NOERROR" and dial(made, addresses(answer)[0]) == "open"


def within(check: Callable[[], object], what: str) -> float:
    """Wait until something holds; how long it took, in seconds."""
    started = time.monotonic()
    eventually(check, timeout=10 * APPLIED_S, what=what)
    return time.monotonic() - started


def test_cluster_facts_are_found_and_said(make_cluster: MakeCluster) -> None:
    """With nothing but an API server in its settings, the daemon finds resolver, ranges and domain, and names them."""
    cluster = make_cluster()
    web = cluster.start_pod("shop/web-0")
    cluster.policy("shop/web", API_RULES)
    cluster.daemon.start()
    assert allowed(web)
    assert rcode(ask(web, "api.example.com", server=SERVICES[1])) == "NOERROR"
    log = cluster.daemon.log()
    for text in (
        "cluster DNS: Service kube-dns",
        "pods of this node: 10.244.1.0/24, fd00:10:244:1::/64",
        "pods of the cluster: 10.244.0.0/16, fd00:10:244::/48 (kubeadm-config)",
        "services of the cluster: 10.96.0.0/12, fd00:10:96::/112",
        "cluster domain: cluster.local",
    ):
        assert text in log
    record = cluster.daemon.wait_record(lambda record: record["event"] == "dns")
    assert record["pod"]["uid"] == cluster.api.store.get("pods", "shop", "web-0")["metadata"]["uid"]


def test_a_pod_whose_object_comes_after_its_first_query_is_held_and_then_answered(make_cluster: MakeCluster) -> None:
    """The first query of a pod that is not known yet waits for its status, and is then judged as that pod's."""
    cluster = make_cluster()
    cluster.policy("shop/web", API_RULES)
    cluster.daemon.start()
    web = cluster.start_pod("shop/web-0", status=False)
    late = threading.Timer(0.7, lambda: cluster.report(web))
    started = time.monotonic()
    late.start()
    answer = ask(web, "api.example.com")
    assert time.monotonic() - started > 0.6
    assert rcode(answer) == "NOERROR"
    assert dial(web, API4) == "open"
    record = cluster.daemon.wait_record(lambda record: record["event"] == "dns")
    assert (record["verdict"], record["pod"]["name"], record["reason"]) == ("allowed", "web-0", "rule")


def test_a_configmap_is_in_force_within_a_second(make_cluster: MakeCluster) -> None:
    """Applying a policy closes, editing it opens and deleting it lifts it, each within the second."""
    cluster = make_cluster()
    web = cluster.start_pod("shop/web-0")
    cluster.daemon.start()
    assert allowed(web)
    took = []
    cluster.policy("shop/web", NOTHING_RULES)
    took.append(within(lambda: rcode(ask(web, "api.example.com")) == "NXDOMAIN", "the policy closes"))
    cluster.policy("shop/web", API_RULES)
    took.append(within(lambda: rcode(ask(web, "api.example.com")) == "NOERROR", "the policy opens"))
    assert dial(web, API4) == "open"
    assert rcode(ask(web, "other.example.com")) == "NXDOMAIN"
    cluster.api.delete("configmaps", "shop", "web")
    took.append(within(lambda: rcode(ask(web, "other.example.com")) == "NOERROR", "the policy is gone"))
    assert min(took) < APPLIED_S, took


def test_a_bad_edit_keeps_the_last_good_version_and_is_told_once(make_cluster: MakeCluster) -> None:
    """A refused document changes nothing, and its ConfigMap gets one Event that says where and why."""
    cluster = make_cluster()
    web = cluster.start_pod("shop/web-0")
    cluster.policy("shop/web", API_RULES)
    cluster.daemon.start()
    assert allowed(web)
    cluster.policy("shop/web", API_RULES.replace("allow", "allows"))
    (event,) = eventually(cluster.events, what="an Event")
    bad = cluster.api.store.get("configmaps", "shop", "web")["metadata"]
    involved = event["involvedObject"]
    assert (involved["kind"], involved["name"], involved["uid"]) == ("ConfigMap", "web", bad["uid"])
    assert involved["resourceVersion"] == bad["resourceVersion"]
    assert (event["type"], event["reason"], event["metadata"]["namespace"]) == ("Warning", "PolicyRefused", "shop")
    assert "shop/web[policy.yaml]:2:1" in event["message"]
    assert "allow" in event["message"]
    assert allowed(web)
    assert rcode(ask(web, "other.example.com")) == "NXDOMAIN"
    cluster.daemon.wait_record(lambda record: record["event"] == "policy" and record["change"] == "refused")
    cluster.daemon.stop()
    posts = len([request for request in cluster.api.requests if request.method == "POST"])
    cluster.daemon.start()
    eventually(lambda: len([request for request in cluster.api.requests if request.method == "POST"]) > posts)
    assert len(cluster.events()) == 1, "the same refusal by another daemon, or another life of this one, is no news"


def test_a_dns_server_pod_of_the_node_is_not_intercepted(make_cluster: MakeCluster) -> None:
    """What is behind the DNS Service asks its own upstream as itself, though no label marks it; others do not."""
    cluster = make_cluster()
    web, resolver = cluster.start_pod("shop/web-0"), cluster.start_pod("kube-system/resolver-0", app="resolver")
    slices = [
        endpointslice(f"kube-system/kube-dns-{n}", "kube-dns", [a]) for n, a in enumerate((resolver.v4, resolver.v6))
    ]
    for each in slices:
        cluster.api.put("endpointslices", each)
    cluster.daemon.start()

    def source(made: Pod, name: str) -> str:
        cluster.node.dns.zone.add(name, "A", API4)
        assert rcode(ask(made, name)) == "NOERROR"
        return next(query.source for query in cluster.node.dns.seen if query.name == name)

    assert source(resolver, "upstream.example") == resolver.v4
    assert source(web, "through.example") != web.v4
    cluster.api.delete("endpointslices", "kube-system", "kube-dns-0")
    names = iter(f"n{number}.example" for number in range(1000))
    within(lambda: source(resolver, next(names)) != resolver.v4, "it is a pod like any other once it serves no more")


def test_relabelling_selects_otherwise(make_cluster: MakeCluster) -> None:
    """A label of a pod, or of its namespace, changes which policies hold for it, at once."""
    cluster = make_cluster()
    web = cluster.start_pod("shop/web-0")
    cluster.policy("shop/web", NOTHING_RULES)
    guardrail = "subject: {namespaceSelector: {matchLabels: {guarded: 'yes'}}}\ndeny:\n- to: [other.example.com]\n"
    cluster.policy("egressd-system/guardrail", guardrail)
    cluster.daemon.start()
    assert rcode(ask(web, "api.example.com")) == "NXDOMAIN"
    cluster.report(web, app="free")
    within(lambda: rcode(ask(web, "api.example.com")) == "NOERROR", "no policy selects it")
    assert rcode(ask(web, "other.example.com")) == "NOERROR"
    cluster.api.put("namespaces", namespace("shop", {"guarded": "yes"}))
    within(lambda: rcode(ask(web, "other.example.com")) == "NXDOMAIN", "the guardrail selects it")
    cluster.api.put("namespaces", namespace("shop"))
    within(lambda: rcode(ask(web, "other.example.com")) == "NOERROR", "it does no more")
    cluster.report(web)
    within(lambda: rcode(ask(web, "api.example.com")) == "NXDOMAIN", "the first policy selects it again")


def test_an_address_used_again_inherits_nothing(make_cluster: MakeCluster) -> None:
    """A pod that gets the address of a deleted one has its own policies, and none of the grants."""
    cluster = make_cluster()
    web = cluster.start_pod("shop/web-0")
    cluster.policy("shop/web", API_RULES)
    others = "subject: {podSelector: {matchLabels: {app: batch}}}\nallow:\n- to: [nothing.example]\n"
    cluster.policy("shop/batch", others)
    cluster.daemon.start()
    assert allowed(web)
    index = web.index
    cluster.api.delete("pods", "shop", "web-0")
    cluster.node.remove_pod(web)
    batch = cluster.start_pod("shop/batch-0", app="batch", index=index)
    assert batch.v4 == web.v4
    pods = ["nft", "list", "map", "inet", "egressd", "pods4"]
    within(lambda: "shop/batch-0" in cluster.node.run(pods).stdout, "the new pod is known by the address")
    assert rcode(ask(batch, "api.example.com")) == "NXDOMAIN"
    assert dial(batch, API4) != "open"
    record = cluster.daemon.wait_record(lambda record: record["event"] == "dns" and record["verdict"] == "denied")
    assert record["pod"]["name"] == "batch-0"


def test_finished_and_host_network_pods_are_no_subjects(make_cluster: MakeCluster) -> None:
    """A pod that has finished gives its address up while its object is still there; hostNetwork pods have none."""
    cluster = make_cluster(unknown_wait="200ms")
    web = cluster.start_pod("shop/web-0")
    cluster.api.put("pods", pod("shop/host-0", "100.64.0.2", labels={"app": "web"}, hostNetwork=True))
    cluster.policy("shop/web", API_RULES)
    cluster.daemon.start()
    assert allowed(web)
    assert "ready: 1 pods" in cluster.daemon.log()
    cluster.report(web, phase="Succeeded")
    within(lambda: rcode(ask(web, "api.example.com")) == "NXDOMAIN", "nobody is behind the address")
    record = cluster.daemon.wait_record(lambda record: record["event"] == "dns" and record["verdict"] == "denied")
    assert record["reason"] == "unknown-pod"


def test_no_query_fails_while_the_api_server_is_away(make_cluster: MakeCluster) -> None:
    """Ten seconds without API server under DNS load: every query is answered, and changes are caught up."""
    cluster = make_cluster()
    web = cluster.start_pod("shop/web-0")
    cluster.policy("shop/web", API_RULES)
    cluster.daemon.start()
    assert allowed(web)
    failures, asked, stop = [], [0], threading.Event()

    def load() -> None:
        while not stop.wait(0.005):  # well below a pod's own budget of 1,000 queries a second
            asked[0] += 1
            try:
                answer = ask(web, "api.example.com")
            except (OSError, dns.exception.DNSException) as error:
                failures.append(repr(error))
            else:
                if rcode(answer) != "NOERROR":
                    failures.append(rcode(answer))

    loaders = [threading.Thread(target=load) for _ in range(2)]
    for loader in loaders:
        loader.start()
    cluster.api.stop()
    time.sleep(10)
    cluster.policy("shop/more", FOR_WEB + "allow:\n- to: [other.example.com]\n")
    cluster.api.start()
    eventually(lambda: rcode(ask(web, "other.example.com")) == "NOERROR", timeout=30, what="the watch goes on")
    stop.set()
    for loader in loaders:
        loader.join()
    assert not failures, failures[:5]
    assert asked[0] > 500
    eventually(lambda: "the API server answers again" in cluster.daemon.log(), timeout=30, what="a word about it")
    lines = [line for line in cluster.daemon.log().splitlines() if "API server" in line]
    assert len(lines) <= 3, lines
    lists = [
        request for request in cluster.api.requests if request.path == "/api/v1/pods" and "watch" not in request.query
    ]
    assert len(lists) == 1, "the watches went on from where they were"


def test_an_api_server_that_lost_its_history_is_listed_anew(make_cluster: MakeCluster) -> None:
    """After 410 everything is listed again; what vanished is removed, what stayed never notices."""
    cluster = make_cluster(unknown_wait="200ms")
    web, gone = cluster.start_pod("shop/web-0"), cluster.start_pod("shop/web-1")
    cluster.policy("shop/web", API_RULES)
    cluster.daemon.start()
    assert allowed(web)
    assert allowed(gone)
    with web.socket() as kept:
        kept.settimeout(10)
        kept.connect((API4, 80))
        cluster.api.stop()
        cluster.api.delete("pods", "shop", "web-1")
        cluster.policy("shop/more", FOR_WEB + "allow:\n- to: [other.example.com]\n")
        cluster.api.forget_history()
        cluster.api.start()
        eventually(lambda: rcode(ask(web, "other.example.com")) == "NOERROR", timeout=30, what="the list is read anew")
        eventually(lambda: rcode(ask(gone, "api.example.com")) == "NXDOMAIN", what="the pod that vanished is no more")
        kept.sendall(b"GET / HTTP/1.0\r\nHost: api.example.com\r\n\r\n")
        assert kept.recv(100).startswith(b"HTTP/1")
    lists = [
        request for request in cluster.api.requests if request.path == "/api/v1/pods" and "watch" not in request.query
    ]
    assert len(lists) == 2


def test_an_api_server_away_at_the_start_is_waited_for(make_cluster: MakeCluster) -> None:
    """What an earlier run left in the kernel stays in force, it is said why, and all goes on once it is there."""
    cluster = make_cluster()
    web = cluster.start_pod("shop/web-0")
    cluster.policy("shop/web", API_RULES)
    cluster.daemon.start()
    assert allowed(web)
    cluster.daemon.stop()
    cluster.api.stop()
    cluster.daemon.start(wait=False)
    eventually(
        lambda: "no connection to the API server at 127.0.0.1:6443" in cluster.daemon.log(), what="a word about it"
    )
    assert dial(web, API4) == "open", "the grant is still there"
    assert dial(web, "203.0.113.11") != "open", "and so is the rest of the table"
    cluster.api.start()
    eventually(lambda: "ready: 1 pods" in cluster.daemon.log().rpartition("no connection")[2], timeout=30)
    assert allowed(web)


def test_pods_of_other_nodes_cost_nothing_here(make_cluster: MakeCluster) -> None:
    """5,000 pods elsewhere, coming and changing: this node is told nothing of them."""
    cluster = make_cluster()
    web = cluster.start_pod("shop/web-0")
    for number in range(2500):
        address = f"10.244.{2 + number // 250}.{number % 250 + 1}"
        cluster.api.put("pods", pod(f"shop/far-{number}", address, labels={"app": "web"}, node=f"n{2 + number // 250}"))
    cluster.policy("shop/web", API_RULES)
    cluster.daemon.start()
    assert "ready: 1 pods" in cluster.daemon.log()
    for number in range(2500, 5000):
        address = f"10.244.{2 + number // 250}.{number % 250 + 1}"
        cluster.api.put("pods", pod(f"shop/far-{number}", address, labels={"app": "web"}, node=f"n{2 + number // 250}"))
    cluster.policy("shop/more", FOR_WEB + "allow:\n- to: [other.example.com]\n")
    within(lambda: rcode(ask(web, "other.example.com")) == "NOERROR", "what concerns this node comes through")
    requests = [request for request in cluster.api.requests if request.path == "/api/v1/pods"]
    assert all(request.query["fieldSelector"] == "spec.nodeName=n1" for request in requests)
    sent = cluster.api.sent["pods"]
    assert sent < 20_000, f"{sent} octets about pods were sent to this node"


def test_denials_become_events_only_where_that_is_wanted(make_cluster: MakeCluster) -> None:
    """With `events.denials` a pod that is denied something gets one Event, however often it asks."""
    cluster = make_cluster(events={"denials": True})
    web = cluster.start_pod("shop/web-0")
    cluster.policy("shop/web", API_RULES)
    cluster.daemon.start()
    for number in range(5):
        assert rcode(ask(web, f"n{number}.denied.example")) == "NXDOMAIN"
    (event,) = eventually(cluster.events, what="an Event")
    assert (event["involvedObject"]["kind"], event["involvedObject"]["name"]) == ("Pod", "web-0")
    assert event["reason"] == "EgressDenied"
    assert "n0.denied.example (A) was denied" in event["message"]
    cluster.daemon.wait_record(lambda record: record.get("query", {}).get("name") == "n4.denied.example")
    time.sleep(0.5)
    assert len(cluster.events()) == 1
