"""The security of the installation, asserted on what is rendered: least rights towards the node and the API server."""

from __future__ import annotations

import re
from typing import Any

import pytest

from .rendering import FOLDERS, Manifest, agent, agent_spec, manifests, one, variables

AGENTS = [folder for folder in FOLDERS if folder not in {"uninstall", "samples"}]
NAMESPACE = "egressd-system"
WRITABLE = {"/run/egressd", "/var/log/egressd", "/var/lib/egressd"}

in_every_overlay = pytest.mark.parametrize("folder", AGENTS)


@in_every_overlay
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hostNetwork", True),
        ("hostPID", None),
        ("hostIPC", None),
        ("shareProcessNamespace", None),
        ("dnsPolicy", "Default"),
        ("priorityClassName", "system-node-critical"),
        ("tolerations", [{"operator": "Exists"}]),
        ("nodeSelector", {"kubernetes.io/os": "linux"}),
        ("serviceAccountName", "egressd"),
        ("automountServiceAccountToken", True),
        ("enableServiceLinks", False),
        ("initContainers", None),
        ("securityContext", {"runAsUser": 0, "runAsGroup": 0, "seccompProfile": {"type": "RuntimeDefault"}}),
    ],
)
def test_pod(folder: str, field: str, value: Any) -> None:
    """The pod has what the daemon needs of the node, and no more."""
    assert agent_spec(folder).get(field) == value


@in_every_overlay
def test_container_rights(folder: str) -> None:
    """No capability but the two that are needed, no way to gain others, nothing of the image writable, uid 0."""
    assert agent(folder)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "privileged": False,
        "readOnlyRootFilesystem": True,
        "runAsUser": 0,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_BIND_SERVICE"]},
    }


@in_every_overlay
def test_writable_places(folder: str) -> None:
    """Three folders of the node and a small /tmp in memory; the settings cannot be written."""
    volumes = {each["name"]: each for each in agent_spec(folder)["volumes"]}
    mounts = {each["mountPath"]: each for each in agent(folder)["volumeMounts"]}
    assert set(mounts) == WRITABLE | {"/etc/egressd", "/tmp"}
    assert {each["name"] for each in mounts.values()} == set(volumes)
    for path in WRITABLE:
        assert volumes[mounts[path]["name"]]["hostPath"] == {"path": path, "type": "DirectoryOrCreate"}
    assert volumes["tmp"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Mi"}
    assert mounts["/etc/egressd"]["readOnly"] is True
    assert volumes["settings"]["configMap"]["name"] == "egressd-settings"


@in_every_overlay
def test_update_never_leaves_a_node_alone(folder: str) -> None:
    """The new pod comes before the old one goes; no port keeps the two apart; ready means this very process."""
    spec = one(manifests(folder), "DaemonSet", "egressd")["spec"]
    assert spec["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": "10%", "maxUnavailable": 0},
    }
    assert spec["minReadySeconds"] >= 10
    container = agent(folder)
    assert "ports" not in container
    assert container["readinessProbe"]["exec"]["command"][-2:] == ["/opt/egressd/probe.py", "/readyz"]
    assert variables(folder)["EGRESSD_ADMIN__SOCKET"] == "/run/egressd/$(POD_NAME).sock"
    longest = len("/run/egressd/egressd-abcde.sock")
    assert longest <= 107, "unix(7), sun_path"


@in_every_overlay
def test_probes(folder: str) -> None:
    """Liveness asks the TCP address that the daemon listens on; it gives a hung one more time than readiness does."""
    container = agent(folder)
    live, ready = container["livenessProbe"], container["readinessProbe"]
    listens_elsewhere = "EGRESSD_ADMIN__LISTEN" in variables(folder)
    host = {} if listens_elsewhere else {"host": "127.0.0.1"}
    assert live["httpGet"] == {**host, "port": 9477, "path": "/healthz"}
    assert live["failureThreshold"] * live["periodSeconds"] > ready["failureThreshold"] * ready["periodSeconds"]


@in_every_overlay
def test_variables_are_defined_before_they_are_used(folder: str) -> None:
    """$(NAME) in a variable is filled in only from those above it."""
    seen: set[str] = set()
    for each in agent(folder)["env"]:
        assert set(re.findall(r"\$\((\w+)\)", each.get("value", ""))) <= seen
        seen.add(each["name"])
    assert {"NODE_NAME", "POD_NAME"} <= seen


@in_every_overlay
def test_resources(folder: str) -> None:
    """Requests for both, a limit for memory alone: a CPU limit would throttle every pod's DNS."""
    resources = agent(folder)["resources"]
    assert set(resources["requests"]) == {"cpu", "memory"}
    assert set(resources["limits"]) == {"memory"}


@in_every_overlay
def test_namespace(folder: str) -> None:
    """The namespace admits the daemon, and says so to all three modes of Pod Security."""
    labels = one(manifests(folder), "Namespace", NAMESPACE)["metadata"]["labels"]
    levels = {key: value for key, value in labels.items() if key.startswith("pod-security.kubernetes.io/")}
    assert levels == {f"pod-security.kubernetes.io/{mode}": "privileged" for mode in ("enforce", "audit", "warn")}


# -------------------------------------------------------------------------------------------------- RBAC


def roles(folder: str) -> list[Manifest]:
    """Every role that is installed."""
    return [each for each in manifests(folder) if each["kind"] in {"Role", "ClusterRole"}]


@in_every_overlay
def test_rbac_is_what_is_used(folder: str) -> None:
    """Reading for what identities and policies are made of, writing for Events alone, and nothing beside it."""
    granted = {
        (role["metadata"].get("namespace", "*"), group, resource, verb)
        for role in roles(folder)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    watched = [("*", "", "pods"), ("*", "", "namespaces"), ("*", "", "configmaps")]
    watched += [("kube-system", "", "services"), ("kube-system", "discovery.k8s.io", "endpointslices")]
    assert granted == {(*each, verb) for each in watched for verb in ("list", "watch")} | {
        ("*", "", "nodes", "get"),
        ("*", "networking.k8s.io", "servicecidrs", "list"),
        ("*", "", "events", "create"),
    }


@in_every_overlay
def test_rbac_has_no_back_door(folder: str) -> None:
    """No wildcard, no secret, no URL, no aggregation: rules name what they open."""
    for role in roles(folder):
        assert "aggregationRule" not in role
        for rule in role["rules"]:
            assert set(rule) == {"apiGroups", "resources", "verbs"}
            everything = rule["apiGroups"] + rule["resources"] + rule["verbs"]
            assert not {"*", "secrets", "impersonate", "escalate", "bind"} & set(everything)
            assert not any("/" in resource for resource in rule["resources"])


@in_every_overlay
def test_rbac_binds_our_account_alone(folder: str) -> None:
    """Each role is bound once, to the daemon's account, whose token only the daemon's pods ask for."""
    found = manifests(folder)
    bindings = [each for each in found if each["kind"] in {"RoleBinding", "ClusterRoleBinding"}]
    assert len(bindings) == len(roles(folder))
    bound = {each["roleRef"]["name"]: each["subjects"] for each in bindings}
    account = [{"kind": "ServiceAccount", "name": "egressd", "namespace": NAMESPACE}]
    assert bound == {role["metadata"]["name"]: account for role in roles(folder)}
    assert one(found, "ServiceAccount", "egressd")["automountServiceAccountToken"] is False


# ----------------------------------------------------------------------------------------------- removal


def test_removal_has_fewer_rights() -> None:
    """The cleanup needs no token and no port; only the step that changes the kernel has a capability."""
    spec = one(manifests("uninstall"), "DaemonSet", "egressd-cleanup")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in spec
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    containers = spec["initContainers"] + spec["containers"]
    added = {each["name"]: each["securityContext"]["capabilities"].get("add") for each in containers}
    assert added == {"kernel": ["NET_ADMIN"], "files": None, "done": None}
    for each in containers:
        context = each["securityContext"]
        assert context["capabilities"]["drop"] == ["ALL"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)


def test_removal_reaches_everything_that_was_installed() -> None:
    """It goes to the same nodes, reads the same settings, and empties every folder that the daemon writes."""
    spec = one(manifests("uninstall"), "DaemonSet", "egressd-cleanup")["spec"]["template"]["spec"]
    installed = agent_spec()
    for field in ("hostNetwork", "tolerations", "nodeSelector", "priorityClassName"):
        assert spec[field] == installed[field]
    assert [each for each in spec["volumes"] if "emptyDir" not in each] == [
        each for each in installed["volumes"] if "emptyDir" not in each
    ]
    kernel, files = spec["initContainers"]
    assert kernel["args"] == ["cleanup", "--config", "/etc/egressd/egressd.yaml"]
    assert {each["mountPath"] for each in files["volumeMounts"]} == WRITABLE
    assert all(path in files["args"][0] for path in WRITABLE)
