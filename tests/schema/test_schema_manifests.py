"""Files of manifests: ConfigMaps with exact places, Pods, Namespaces, lists, JSON."""

from __future__ import annotations

import json
import socket
from typing import TypeVar

import pytest

from egressd.model import PodIdentity
from egressd.schema import (
    BarePolicy,
    ConfigMapObject,
    Manifest,
    NamespaceObject,
    PodObject,
    bare_policy,
    check_configmap,
    policies_of,
    policy_name,
    read_manifests,
)

Kind = TypeVar("Kind")

CONFIGMAP = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: web-egress
  namespace: shop
  labels: {egressd.io/policy: "true"}
data:
"""


def objects(text: str) -> list[Manifest]:
    """The objects of a file without any problem."""
    found, problems = read_manifests(text, "m.yaml")
    assert problems == []
    return found


def one(text: str, kind: type[Kind]) -> Kind:
    """The only object of a file without any problem."""
    [found] = objects(text)
    assert isinstance(found, kind)
    return found


def pod(text: str) -> PodObject:
    """A Pod of the given metadata, spec and status."""
    return one("kind: Pod\n" + text, PodObject)


# ----------------------------------------------------------------------------------------- ConfigMaps


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ("  policy.yaml: |\n    allow: []\n    mode: x\n", (10, 11)),
        ("  policy.yaml: |-\n\n\n      # comment\n      mode: x\n", (12, 13)),
        ("  policy.yaml: |2   # two columns\n      mode: x\n", (9, 13)),
        ("  policy.yaml: |+\n   mode: x\n\n\n", (9, 10)),
        ("  policy.yaml: >\n    mode: x\n", (8, 16)),
        ('  policy.yaml: "mode: x"\n', (8, 16)),
        ("  policy.yaml: 'mode: x'\n", (8, 16)),
        ('  ? policy.yaml\n  : "mode: x"\n', (9, 5)),
    ],
)
def test_problems_point_into_the_file_that_holds_the_document(data: str, place: tuple[int, int]) -> None:
    """Literal blocks give the very place, other scalars their start."""
    text = CONFIGMAP + data
    policies, [problem], refused = policies_of(one(text, ConfigMapObject), "egressd-system")
    assert policies == {}
    assert refused == {"shop/web-egress"}
    assert (problem.file, problem.line, problem.column) == ("m.yaml", *place)
    assert "'x' is none of Enforce, Audit" in problem.message


def test_places_survive_dos_line_ends_and_wide_characters() -> None:
    """Columns count characters, and a line end of two characters is one."""
    text = (CONFIGMAP + "  policy.yaml: |\n    # é漢😀\n    allow: [{to: [é.example], name: ''}]\n").replace(
        "\n", "\r\n"
    )
    _, [problem], _ = policies_of(one(text, ConfigMapObject), "egressd-system")
    assert (problem.line, problem.column) == (10, 37)


def test_keys_become_policies_with_their_names() -> None:
    """policy.yaml is the ConfigMap's name, other keys are added to it, and keys of other kinds are ignored."""
    text = CONFIGMAP + "  policy.yaml: 'allow: []'\n  extra.yml: '{}'\n  README.md: '['\n"
    policies, problems, refused = policies_of(one(text, ConfigMapObject), "egressd-system")
    assert list(policies) == ["shop/web-egress", "shop/web-egress/extra.yml"]
    assert {policy.name for policy in policies.values()} == set(policies)
    assert {policy.namespace for policy in policies.values()} == {"shop"}
    assert not problems
    assert not refused
    assert policy_name("shop", "x", "policy.yml") == "shop/x"


def test_one_bad_key_does_not_refuse_the_others() -> None:
    """Each document is judged by itself."""
    text = CONFIGMAP + "  policy.yaml: 'allows: []'\n  extra.yml: '{}'\n"
    policies, _, refused = policies_of(one(text, ConfigMapObject), "egressd-system")
    assert list(policies) == ["shop/web-egress/extra.yml"]
    assert refused == {"shop/web-egress"}


def test_two_spellings_of_one_policy_are_refused() -> None:
    """policy.yaml and policy.yml would have the same name."""
    text = CONFIGMAP + "  policy.yaml: '{}'\n  policy.yml: '{}'\n"
    policies, [problem], refused = policies_of(one(text, ConfigMapObject), "egressd-system")
    assert policies == {}
    assert refused == {"shop/web-egress"}
    assert (problem.line, problem.column, problem.severity) == (9, 3, "error")


def test_configmaps_without_the_label_hold_no_policies() -> None:
    """`check` says so where it looks like a mistake, and judges the policies all the same."""
    bare = CONFIGMAP.replace('  labels: {egressd.io/policy: "true"}\n', "")
    configmap = one(bare + "  policy.yaml: |\n    allows: []\n    subject: {}\n", ConfigMapObject)
    assert policies_of(configmap, "egressd-system") == ({}, [], set())
    _, problems = check_configmap(configmap, "egressd-system")
    assert [(problem.line, problem.severity) for problem in problems] == [(1, "warning"), (8, "error")]
    assert 'needs the label egressd.io/policy: "true"' in problems[0].message
    other = one(bare + "  prometheus.yaml: 'scrape_configs: []'\n", ConfigMapObject)
    assert check_configmap(other, "egressd-system") == ({}, [])


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (CONFIGMAP.replace('"true"', "true") + "  a: b\n", 6, 'quote it: "true"'),
        (CONFIGMAP + "  policy.yaml:\n    allow: []\n", 9, "write '|' after the key"),
        (CONFIGMAP + '  "a b": c\n', 8, "'a b' is not a key"),
        (CONFIGMAP.replace("web-egress", "Web") + "  a: b\n", 4, "'Web' is not an object's name"),
        (CONFIGMAP.replace("shop", "a.b") + "  a: b\n", 5, "'a.b' is not a namespace"),
        ("kind: ConfigMap\n", 1, "'metadata' is missing"),
        ("kind: ConfigMap\nmetadata: {}\n", 2, "'name' is missing"),
        ("kind: Pod\nmetadata: {name: a}\nstatus: {podIP: 192.0.2.300}\n", 3, "is not an IP address"),
        ("kind: Pod\nmetadata: {name: a, labels: {a: 1}}\n", 2, 'quote it: "1"'),
    ],
)
def test_objects_with_errors_are_left_out(text: str, line: int, says: str) -> None:
    """The others of the file are returned."""
    found, [problem] = read_manifests(text + "---\nkind: Namespace\nmetadata: {name: ok}\n", "m.yaml")
    assert found == [NamespaceObject("ok", {})]
    assert problem.line == line
    assert says in problem.message


# ----------------------------------------------------------------------------------------------- pods


def test_a_pod_arrives_with_all_that_identifies_it() -> None:
    """Metadata, spec and status, with unknown fields ignored, odd values in them included."""
    found = pod(
        """\
apiVersion: v1
metadata:
  name: web-7d4b9c-x2x
  namespace: shop
  uid: 5b0c
  creationTimestamp: 2026-01-01T00:00:00Z
  labels: {app: web, pod-template-hash: 7d4b9c}
  annotations: {a: 1, no: 1.0}
  ownerReferences:
  - {kind: Node, name: n1}
  - {apiVersion: apps/v1, kind: ReplicaSet, name: web-7d4b9c, controller: true}
spec: {nodeName: n1, serviceAccountName: web, containers: [{args: [no]}]}
status:
  phase: Running
  podIP: 10.244.0.5
  podIPs: [{ip: 10.244.0.5}, {ip: "fd00::5"}]
"""
    )
    assert found == PodObject(
        identity=PodIdentity("shop", "web-7d4b9c-x2x", "5b0c", "web", "Deployment/web"),
        labels={"app": "web", "pod-template-hash": "7d4b9c"},
        addresses=(socket.inet_aton("10.244.0.5"), socket.inet_pton(socket.AF_INET6, "fd00::5")),
        node="n1",
        host_network=False,
        finished=False,
        created="2026-01-01T00:00:00Z",
    )


def test_a_bare_pod_has_kubernetes_defaults() -> None:
    """Namespace and service account `default`, no address yet; null means absent."""
    found = pod("metadata: {name: a, creationTimestamp: null, labels: null}\nspec: {hostNetwork: true}\nstatus: {}\n")
    assert found.identity == PodIdentity("default", "a", "", "default", "")
    assert found.addresses == ()
    assert found.host_network
    assert found.created == ""


@pytest.mark.parametrize(
    ("phase", "finished"),
    [("Pending", False), ("Running", False), ("Succeeded", True), ("Failed", True), ("Unknown", False)],
)
def test_finished_pods_are_told(phase: str, finished: bool) -> None:
    """They no longer own their addresses."""
    assert pod(f"metadata: {{name: a}}\nstatus: {{phase: {phase}}}\n").finished is finished


@pytest.mark.parametrize(
    ("owner", "workload"),
    [
        ("kind: ReplicaSet, name: web-7d4, controller: true", "Deployment/web"),
        ("kind: ReplicaSet, name: other, controller: true", "ReplicaSet/other"),
        ("kind: Job, name: report-29400120, controller: true", "CronJob/report"),
        ("kind: Job, name: report-2940012, controller: true", "Job/report-2940012"),
        ("kind: Job, name: import, controller: true", "Job/import"),
        ("kind: StatefulSet, name: db, controller: true", "StatefulSet/db"),
        ("kind: DaemonSet, name: log, controller: false", ""),
    ],
)
def test_the_workload_is_the_owner_a_person_would_name(owner: str, workload: str) -> None:
    """ReplicaSets fold into Deployments, Jobs with a due minute into CronJobs."""
    found = pod(f"metadata: {{name: a, labels: {{pod-template-hash: 7d4}}, ownerReferences: [{{{owner}}}]}}\n")
    assert found.identity.workload == workload


# ------------------------------------------------------------------------------------- files and lists


def test_lists_are_opened() -> None:
    """Lists of kubectl and of the API, whose items carry no kind."""
    text = """\
kind: List
items:
- {kind: Namespace, metadata: {name: a}}
- {kind: Service, metadata: 5}
---
kind: NamespaceList
items:
- {metadata: {name: b, labels: {team: x}}}
"""
    assert objects(text) == [NamespaceObject("a", {}), NamespaceObject("b", {"team": "x"})]


def test_other_kinds_are_ignored_whatever_they_hold() -> None:
    """Tags, odd keys and duplicates of objects that are not ours are not our business."""
    assert objects("kind: Thing\na: !Ref b\na: 1\nno: {1: 2}\n---\n---\ntext\n---\n- list\n") == []


def test_json_is_read_with_places() -> None:
    """As kubectl writes it; also with escapes beyond the BMP, and tabs."""
    data = {"policy.yaml": "mode: x # \U0001f600", "back": "\\ud83d\\ude00"}
    labels = {"egressd.io/policy": "true"}
    text = json.dumps(
        {"kind": "ConfigMap", "metadata": {"name": "web", "namespace": "shop", "labels": labels}, "data": data},
        indent="\t",
    )
    configmap = one(text, ConfigMapObject)
    assert configmap.data == data
    _, [problem], _ = policies_of(configmap, "egressd-system")
    assert problem.line == next(n for n, line in enumerate(text.splitlines(), 1) if "policy.yaml" in line)


def test_bare_policies_are_told_from_other_documents() -> None:
    """A document without kind that has a policy's fields, or nearly, is one for `check`."""
    bare = one("subject: {}\nallows: []\n", BarePolicy)
    policy, [problem] = bare_policy(bare, name="default/x", namespace="default", policy_namespace="egressd-system")
    assert policy is None
    assert (problem.file, problem.line, problem.column) == ("m.yaml", 2, 1)
    assert one("alow: []\n", BarePolicy)
    assert objects("replicas: 5\nimage: {}\n") == []
    assert objects("apiVersion: v1\nallow: []\n") == []


def test_syntax_errors_keep_the_documents_before_them() -> None:
    """And say where they are."""
    found, [problem] = read_manifests("kind: Namespace\nmetadata: {name: a}\n---\n\tx: [\n", "m.yaml")
    assert found == [NamespaceObject("a", {})]
    assert (problem.line, problem.severity) == (4, "error")
    assert "indent with spaces" in problem.message
