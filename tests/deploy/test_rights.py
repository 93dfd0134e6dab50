"""The daemon with the rights of its container and no others: capabilities, no_new_privs, read-only root, seccomp."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Self

import pytest

from egressd.lab import Daemon, Node, eventually, intercepts

from .rendering import agent, manifests

SECCOMP = """
import ctypes, errno, os, struct, sys
# What the default profiles of container runtimes refuse, of the system calls that libraries here try: io_uring (EPERM)
# and clone3 (ENOSYS, so that libc falls back to clone). The numbers are the same on every architecture.
refused = {425: errno.EPERM, 426: errno.EPERM, 427: errno.EPERM, 435: errno.ENOSYS}
steps = [(0x20, 0, 0, 0)]  # the system call's number
for number, code in refused.items():
    steps += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | code)]  # SECCOMP_RET_ERRNO
steps.append((0x06, 0, 0, 0x7FFF0000))  # SECCOMP_RET_ALLOW
code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
program = struct.pack("@HP", len(steps), ctypes.addressof(code))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(22, 2, ctypes.c_char_p(program), 0, 0) == 0, os.strerror(ctypes.get_errno())  # PR_SET_SECCOMP
os.execv(sys.argv[1], sys.argv[1:])
"""

READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro / && shift && exec "$@"'


class Confined(Daemon):
    """The daemon as the DaemonSet starts it: `capabilities` alone, and only its own folder writable."""

    capabilities: tuple[str, ...] = ()

    def start(self, timeout: float = 30.0, *, wait: bool = True) -> Self:
        file = self.folder / "egressd.yaml"
        file.write_text(json.dumps(self.settings))
        kept = ",".join(["-all", *(f"+{name.lower()}" for name in self.capabilities)])
        rights = ["setpriv", f"--bounding-set={kept}", "--inh-caps=-all", "--no-new-privs"]
        run = [sys.executable, "-m", "egressd", "run", "--config", str(file)]
        mounts = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", str(self.folder)]
        environ = ["env", "PYTHONDONTWRITEBYTECODE=1"]
        with self.log_file.open("a") as log:
            argv = [*mounts, *rights, *environ, sys.executable, "-c", SECCOMP, *run]
            self.process = self.node.popen(argv, stdout=log, stderr=log)
        if wait:
            self._wait_ready(self.process, timeout)
        return self


def bits(capabilities: Iterable[str]) -> int:
    """Capabilities as /proc shows them (include/uapi/linux/capability.h)."""
    return sum(1 << {"NET_BIND_SERVICE": 10, "NET_ADMIN": 12}[name] for name in capabilities)


def rights_of(pid: int) -> dict[str, str]:
    """What a process may do, as the kernel says."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    return {name: fields[name] for name in ("CapEff", "NoNewPrivs", "Seccomp")}


def test_the_daemon_works_with_the_rights_of_its_container(node_p2p: Node, tmp_path: Path) -> None:
    """It intercepts, denies, grants and records with what the manifest gives it, on a root it cannot write to."""
    node_p2p.dns.zone.add("api.example.com", "A", "203.0.113.10")
    node_p2p.internet.serve_http(80)
    pod = node_p2p.add_pod("shop/web-0", labels={"app": "web"})
    with Confined(node_p2p, tmp_path) as daemon:
        daemon.capabilities = tuple(agent()["securityContext"]["capabilities"]["add"])
        daemon.put_pods()
        daemon.put_policy("shop/web-egress", "allow:\n- to: [api.example.com]\n")
        daemon.start()
        said = pod.run(["curl", "-sS", "-4", "http://api.example.com/"], check=True).stdout
        assert said.startswith("api.example.com is 203.0.113.10 port 80")
        assert "status: NXDOMAIN" in pod.run(["dig", "other.example.com"], check=True).stdout
        assert pod.run(["curl", "-sS", "http://203.0.113.99/"]).returncode == 7
        daemon.wait_record(lambda record: record["event"] == "flow" and record["verdict"] == "denied")
        assert daemon.process is not None
        agent_rights, control_rights = rights_of(daemon.process.pid), rights_of(daemon.children()[0])
        assert agent_rights == {"CapEff": f"{bits(daemon.capabilities):016x}", "NoNewPrivs": "1", "Seccomp": "2"}
        assert control_rights == agent_rights | {"CapEff": "0" * 16}
        daemon.remove("policy-shop-web-egress")
        eventually(lambda: pod.run(["curl", "-sS", "http://203.0.113.99/"], check=False).returncode != 7)


@pytest.mark.parametrize("missing", agent()["securityContext"]["capabilities"]["add"])
def test_no_capability_is_given_in_vain(missing: str, node_p2p: Node, tmp_path: Path) -> None:
    """Without any one of them it does not come to intercept, and says what is not permitted."""
    with Confined(node_p2p, tmp_path) as daemon:
        given = agent()["securityContext"]["capabilities"]["add"]
        daemon.capabilities = tuple(name for name in given if name != missing)
        daemon.put_pods()
        daemon.start(wait=False)
        eventually(lambda: "permitted" in daemon.log(), timeout=60)
        assert not intercepts(node_p2p)


# ------------------------------------------------------------------------------------------------------ removal


def test_removal_leaves_nothing_in_the_kernel(node_p2p: Node, tmp_path: Path) -> None:
    """The step `kernel` of the cleanup, with its own rights, removes table, rules and routes that the daemon left."""
    pod = manifests("uninstall")[0]["spec"]["template"]["spec"]
    step = pod["initContainers"][0]
    kept = ",".join(["-all", *(f"+{name.lower()}" for name in step["securityContext"]["capabilities"]["add"])])
    before = traces(node_p2p)
    with Daemon(node_p2p, tmp_path) as daemon:
        daemon.put_pods()
        daemon.start()
        daemon.stop()
    assert traces(node_p2p) != before
    arguments = [word.replace("/etc/egressd", str(tmp_path)) for word in step["args"]]
    rights = ["setpriv", f"--bounding-set={kept}", "--inh-caps=-all", "--no-new-privs"]
    node_p2p.run([*rights, sys.executable, "-m", "egressd", *arguments], check=True)
    assert traces(node_p2p) == before


def traces(node: Node) -> list[str]:
    """What `nft` and `ip` show of tables, routing rules and routes."""
    commands = ["nft list tables", "ip rule", "ip -6 rule", "ip route show table all", "ip -6 route show table all"]
    return [node.run(command.split(), check=True).stdout for command in commands]


def test_removal_leaves_no_file(tmp_path: Path) -> None:
    """The step `files` empties the three folders, whatever is in them, and follows no link out of them."""
    script = manifests("uninstall")[0]["spec"]["template"]["spec"]["initContainers"][1]["args"][0]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    for folder in ("run/egressd", "var/lib/egressd", "var/log/egressd"):
        (tmp_path / folder / "deeper").mkdir(parents=True)
        (tmp_path / folder / "deeper" / "file").touch()
        (tmp_path / folder / "file").touch()
        (tmp_path / folder / "link").symlink_to(elsewhere)
        assert f'"/{folder}"' in script
        script = script.replace(f'"/{folder}"', f'"{tmp_path / folder}"')
    subprocess.run([sys.executable, "-I", "-c", script], check=True)
    assert [
        path.name for folder in ("run", "var/lib", "var/log") for path in (tmp_path / folder / "egressd").iterdir()
    ] == []
    assert (elsewhere / "kept").exists()
