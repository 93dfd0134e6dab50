"""What is read of the API's objects is what the manifests of a folder would say, and nothing else."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest
from kubeapi.objects import configmap, endpointslice, namespace, pod, service

from egressd.cluster.objects import CONFIGMAPS, NAMESPACES, PODS, SERVICES, SLICES, Kind, packed
from egressd.schema import ConfigMapObject, PodObject, policies_of, read_manifests


def value(kind: Kind[Any], thing: dict[str, Any]) -> Any:
    return kind.value(kind.one.decode(json.dumps(thing)))


REPLICASET = [{"kind": "ReplicaSet", "name": "web-5d4f", "controller": True, "apiVersion": "apps/v1", "uid": "x"}]
JOB = [{"kind": "Job", "name": "report-28912345", "controller": True}]


@pytest.mark.parametrize(
    ("changes", "workload"),
    [
        ({}, ""),
        ({"ownerReferences": REPLICASET, "labels": {"pod-template-hash": "5d4f"}}, "Deployment/web"),
        ({"ownerReferences": REPLICASET}, "ReplicaSet/web-5d4f"),
        ({"ownerReferences": JOB}, "CronJob/report"),
        ({"ownerReferences": [{"kind": "Job", "name": "report", "controller": True}]}, "Job/report"),
        ({"ownerReferences": [{"kind": "DaemonSet", "name": "log", "controller": None}]}, ""),
    ],
)
@pytest.mark.parametrize("addresses", [(), ("10.244.1.2",), ("10.244.1.2", "fd00:10:244:1::2")])
def test_a_pod_is_read_as_from_a_folder(changes: dict[str, Any], workload: str, addresses: tuple[str, ...]) -> None:
    """The few fields decoded here and the checked manifest there give one and the same pod."""
    thing = pod("shop/web-0", *addresses, labels={"app": "web"})
    thing["metadata"] |= {"uid": "u1", "creationTimestamp": "2026-11-22T13:00:00Z", **changes}
    found = value(PODS, thing)
    (expected,), problems = read_manifests(json.dumps({"apiVersion": "v1", "kind": "Pod", **thing}), "pod.json")
    assert not problems
    assert isinstance(expected, PodObject)
    assert found == expected
    assert found.identity.workload == workload


@pytest.mark.parametrize(
    ("thing", "host_network", "finished"),
    [
        (pod("shop/a", "192.0.2.9", hostNetwork=True), True, False),
        (pod("shop/a", "10.244.1.2", phase="Succeeded"), False, True),
        (pod("shop/a", "10.244.1.2", phase="Failed"), False, True),
    ],
)
def test_pods_that_are_no_subjects_say_so(thing: dict[str, Any], host_network: bool, finished: bool) -> None:
    """Host network and end are carried along; judging them is the world's."""
    found = value(PODS, thing)
    assert (found.host_network, found.finished) == (host_network, finished)


def test_absent_and_null_fields_are_alike() -> None:
    """The API writes `null` where Go has an empty map or list."""
    thing = {"metadata": {"name": "a", "namespace": "shop", "labels": None, "ownerReferences": None}}
    found = value(PODS, thing | {"spec": {"nodeName": "n1"}, "status": {"podIPs": None}})
    assert (found.labels, found.addresses, found.identity.service_account) == ({}, (), "default")


def test_problems_of_a_configmap_name_it_and_its_key() -> None:
    """There is no file to point into: the place is a line of the key's own text."""
    found = value(CONFIGMAPS, configmap("shop/web", "subject: {}\nallows: []\n"))
    assert isinstance(found, ConfigMapObject)
    _, problems, refused = policies_of(found, "egressd-system")
    assert refused == {"shop/web"}
    assert str(problems[0]).startswith("configmap shop/web[policy.yaml]:2:1: error: ")


def test_namespaces_have_their_labels() -> None:
    """Nothing else of them is of interest."""
    found = value(NAMESPACES, namespace("shop", {"team": "a"}))
    assert found.labels == {"kubernetes.io/metadata.name": "shop", "team": "a"}


def test_the_addresses_of_a_dns_service_and_of_its_endpoints() -> None:
    """A Service without port 53 serves no DNS, a headless one has no address; endpoints count, ready or not."""
    both = ("10.96.0.10", "fd00:10:96::10")
    assert value(SERVICES, service("kube-system/dns", both, {})) == frozenset(packed(both))
    assert value(SERVICES, service("kube-system/metrics", both, {}, port=9153)) == frozenset()
    assert value(SERVICES, service("kube-system/headless", ["None"], {})) == frozenset()
    thing = endpointslice("kube-system/dns-x", "dns", ["10.244.1.3", "10.244.2.3"])
    thing["endpoints"][1]["conditions"] = {"ready": False, "terminating": True}
    thing["endpoints"].append({"addresses": None})
    assert value(SLICES, thing) == frozenset({ip_address("10.244.1.3").packed, ip_address("10.244.2.3").packed})


def test_what_is_no_address_is_passed_over() -> None:
    """A status may hold anything."""
    assert packed(["10.244.1.2", "", "None", "fe80::1%eth0", "10.244.1.2"]) == (ip_address("10.244.1.2").packed,)
