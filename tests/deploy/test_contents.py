"""What the manifests carry: settings that egressd accepts, policies that it accepts, a README that is true."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from egressd.cli import main
from egressd.schema import load_settings
from egressd.settings import Settings, Source

from .rendering import DEPLOY, FOLDERS, ROOT, manifests, one, tool, variables

AGENTS = [folder for folder in FOLDERS if folder not in {"uninstall", "samples"}]


def settings_of(folder: str, tmp_path: Path) -> Settings:
    """What the daemon makes of ConfigMap and variables on a node."""
    data = one(manifests(folder), "ConfigMap", "egressd-settings")["data"]
    assert list(data) == ["egressd.yaml"]
    file = tmp_path / "egressd.yaml"
    file.write_text(data["egressd.yaml"])
    fields = {"NODE_NAME": "n1", "POD_NAME": "egressd-x2x4z", "HOST_IP": "192.0.2.7"}
    environ = dict(fields)
    for name, value in variables(folder).items():
        environ[name] = re.sub(r"\$\((\w+)\)", lambda found: fields[found[1]], value)
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 192.0.2.53\n")
    return load_settings(str(file), environ, {}, resolv_conf=str(resolv_conf))


@pytest.mark.parametrize("folder", AGENTS)
def test_settings_are_accepted(folder: str, tmp_path: Path) -> None:
    """egressd takes the settings of every overlay: the cluster as source, this node, a socket of this pod."""
    settings = settings_of(folder, tmp_path)
    assert settings.source == Source(kind="kubernetes")
    assert settings.node == "n1"
    assert settings.policy_namespace == "egressd-system"
    assert settings.admin.socket == "/run/egressd/egressd-x2x4z.sock"
    listen = "192.0.2.7:9477" if folder == "overlays/monitoring" else "127.0.0.1:9477"
    assert settings.admin.listen == listen


def test_settings_write_where_the_pod_may(tmp_path: Path) -> None:
    """Audit file, history and socket lie in the folders that are mounted to be written."""
    settings = settings_of("base", tmp_path)
    written = (settings.audit.file, settings.history.file, settings.admin.socket)
    assert [str(Path(file).parent) for file in written] == ["/var/log/egressd", "/var/lib/egressd", "/run/egressd"]


def test_settings_differ_from_the_defaults_only_where_a_cluster_does(tmp_path: Path) -> None:
    """Source, socket and mark bits are the cluster's; all else is what egressd does anyway."""
    found, default = settings_of("base", tmp_path), Settings(node="n1")
    firewall = replace(found.firewall, intercept_mark=default.firewall.intercept_mark)
    firewall = replace(firewall, answer_mark=default.firewall.answer_mark)
    dns = replace(found.dns, upstreams=default.dns.upstreams)
    same = replace(found, source=default.source, admin=default.admin, firewall=firewall, dns=dns)
    assert same == default


@pytest.mark.parametrize(
    ("who", "bits"),
    [
        ("the AWS VPC CNI", 0x80),
        ("the portmap plugin", 0x2000),
        ("kube-proxy", 0xC000),
        ("kube-router and k3s", 0x30000),
        ("Tailscale", 0xFF0000),
        ("Calico", 0xFFFF0000),
    ],
)
def test_marks_are_nobody_elses(who: str, bits: int, tmp_path: Path) -> None:
    """The packet mark bits are clear of those that others on a node use."""
    firewall = settings_of("base", tmp_path).firewall
    assert not (firewall.intercept_mark | firewall.answer_mark) & bits, who


@pytest.mark.parametrize(("overlay", "names"), [("calico", ("cali*",)), ("aws-vpc-cni", ("eni*",))])
def test_overlays_tell_pods_by_interface(overlay: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """Where a node's pods have no range of their own, they are told by their interfaces' names."""
    assert settings_of(f"overlays/{overlay}", tmp_path).pod_interfaces == names


# ---------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize("file", ["samples/guardrails.yaml", "samples/shop-web.yaml", "components/observe/policy.yaml"])
def test_policies_pass_the_check(file: str) -> None:
    """`egressd check` has neither error nor warning for a policy that we hand out."""
    result = CliRunner().invoke(main, ["check", str(DEPLOY / file)])
    assert (result.exit_code, result.stdout) == (0, "")
    assert "1 valid policy " in result.stderr


@pytest.mark.parametrize("folder", ["samples", "overlays/observe"])
def test_policies_are_found(folder: str, tmp_path: Path) -> None:
    """As rendered, each ConfigMap with a policy carries the label by which egressd finds it, and passes still."""
    found = [each for each in manifests(folder) if "policy.yaml" in each.get("data", {})]
    assert found
    assert all(each["metadata"]["labels"]["egressd.io/policy"] == "true" for each in found)
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all(found))
    result = CliRunner().invoke(main, ["check", str(file)])
    assert (result.exit_code, result.stdout) == (0, "")


def test_observing_stops_nothing() -> None:
    """All that the overlay adds is one policy, for the pods of all namespaces, in Audit mode and without a deny."""
    base = {(each["kind"], each["metadata"]["name"]) for each in manifests("base")}
    added = [each for each in manifests("overlays/observe") if (each["kind"], each["metadata"]["name"]) not in base]
    assert [each["metadata"]["name"] for each in added] == ["observe"]
    policy = yaml.safe_load(added[0]["data"]["policy.yaml"])
    assert policy == {"subject": {"namespaceSelector": {}}, "mode": "Audit", "allow": []}


# ------------------------------------------------------------------------------------------------ README


README = (DEPLOY / "README.md").read_text()


def test_readme_names_what_there_is() -> None:
    """Each path of the README exists, and each overlay is told of."""
    for path in set(re.findall(r"`?((?:deploy|config)/[\w./-]*\w)", README)):
        assert (ROOT / path).exists(), path
    for path in set(re.findall(r"\]\(([^)#:]+)\)", README)):
        assert (DEPLOY / path).exists(), path
    for overlay in (path.name for path in (DEPLOY / "overlays").iterdir()):
        assert f"overlays/{overlay}" in README


def test_readme_removal_is_the_manifest() -> None:
    """The commands of removal use the file that is there, before the settings that it reads are deleted."""
    removal = README.partition("## Remove it")[2].partition("\n## ")[0]
    steps = [
        "delete daemonset egressd",
        "apply -f deploy/uninstall.yaml",
        "rollout status",
        "delete -f deploy/install.yaml",
    ]
    places = [removal.find(step) for step in steps]
    assert -1 not in places
    assert places == sorted(places)


def test_kubectl_takes_every_folder() -> None:
    """The kubectl that renders is the one that the lock says, so that what is tested is what is applied."""
    said = tool("kubectl", "version", "--client")
    assert "v1.37." in said.stdout
