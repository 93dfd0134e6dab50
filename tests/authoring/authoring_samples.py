"""Audit lines as the daemon writes them, and the way from lines to suggested policies, for the tests of authoring."""

from __future__ import annotations

import socket

from egressd.audit.lines import Renderer
from egressd.authoring import Evidence, Pods, Replay, Wanted, page_text, read_line, suggest
from egressd.authoring.replay import Known
from egressd.model import DnsRecord, FlowRecord, PodIdentity, Policy, Reason, Verdict
from egressd.policy import ClusterFacts
from egressd.policy.addresses import cidr
from egressd.schema import ConfigMapObject, Problem, check_configmap, read_manifests

FACTS = ClusterFacts(cidrs=(cidr("10.244.0.0/16"), cidr("10.96.0.0/12")))
WEB = PodIdentity("shop", "web-0", "u1", "web", "Deployment/web")
API = PodIdentity("shop", "api-0", "u2", "web", "Deployment/api")
JOB = PodIdentity("batch", "job-0", "u3", "", "")
VERDICTS = {verdict.value: verdict for verdict in Verdict}
RCODES = {"NOERROR": 0, "NXDOMAIN": 3, "SERVFAIL": 2}


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def dns(
    name: str,
    *addresses: str,
    pod: PodIdentity = WEB,
    verdict: str = "allowed",
    reason: str = "unselected",
    rcode: str = "NOERROR",
    search: bool = False,
    time: float = 1e9,
) -> bytes:
    """The line of one query."""
    answer = tuple(map(packed, addresses))
    return Renderer("n1").dns_line(
        DnsRecord(
            time, packed("10.244.0.5"), pod, name, 1, "udp", packed("10.96.0.10"), 4000, VERDICTS[verdict],
            Reason(reason), "", "", RCODES[rcode], answer, (), 5, False, (), 800, search,
        )
    )  # fmt: skip


def flow(
    address: str,
    port: int,
    protocol: int = 6,
    *names: str,
    pod: PodIdentity = WEB,
    verdict: str = "would-deny",
    reason: str = "no-rule",
) -> bytes:
    """The line of one flow."""
    return Renderer("n1").flow_line(
        FlowRecord(
            1e9, packed("10.244.0.5"), pod, packed(address), port, protocol, names, VERDICTS[verdict], Reason(reason),
            "", "", 1,
        )
    )  # fmt: skip


def suggested(
    lines: list[bytes],
    *,
    fold: int = 0,
    denied: bool = False,
    facts: ClusterFacts = FACTS,
    mode: str = "",
    pods: Pods | None = None,
) -> str:
    """The text of all suggested policies."""
    evidence = Evidence(facts, denied=denied)
    for line in lines:
        if seen := read_line(line):
            evidence.add(seen)
    return "".join(page_text(page) for page in suggest(evidence, Wanted(fold, mode, pods=pods or {})))


def compiled(text: str) -> tuple[dict[str, Policy], list[Problem]]:
    """The policies in a text of ConfigMaps, as `egressd check` reads them."""
    manifests, problems = read_manifests(text, "suggested.yaml")
    policies: dict[str, Policy] = {}
    for manifest in manifests:
        assert isinstance(manifest, ConfigMapObject)
        found, more = check_configmap(manifest, "egressd-system")
        policies |= found
        problems += more
    return policies, problems


def replayed(
    lines: list[bytes], policies: dict[str, Policy], facts: ClusterFacts = FACTS, known: Known | None = None
) -> Replay:
    """The records, judged by the policies."""
    replay = Replay(policies.values(), facts, known or Known(), "egressd-system")
    for line in lines:
        if seen := read_line(line):
            replay.add(seen)
    return replay
