"""`egressd sandbox` on a machine of the lab: what its command reaches, what it cannot undo, what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from egressd.kernel.netlink import Channel
from egressd.lab import UPSTREAMS, Node, eventually
from egressd.lab.sandbox.obstacle import obstacle
from egressd.lab.space import NSSWITCH

SANDBOX = [sys.executable, "-m", "egressd", "sandbox"]
PATIENCE_S = 60.0
STRANGER = "198.51.100.9"
"""An address that no name leads to."""
ALLOWED = ["--allow", "api.example.com:80"]
OK = "api.example.com is 203.0.113.10 port 80, you are 100.64.0.2"
"""What the allowed server says: the machine's own address is all it sees."""


@pytest.fixture
def machine() -> Iterator[Node]:
    """A machine with an internet and a DNS server, that forwards nothing, as a desktop; afterwards it is as it was."""
    with Node("p2p", name="desktop") as made:
        for name, address in {
            "api.example.com": "203.0.113.10",
            "paste.example": "203.0.113.66",
            "partner.example": "10.1.2.3",
        }.items():
            made.dns.zone.add(name, "A", address)
        made.internet.serve_http(80)
        made.internet.serve_http(8080)
        made.sysctl("net.ipv4.ip_forward", "0")
        made.sysctl("net.ipv6.conf.all.forwarding", "0")
        before = traces(made)
        yield made
        assert traces(made) == before


def traces(machine: Node) -> list[str]:
    """What a sandbox could leave behind on a machine."""
    programs = (
        ["ip", "-o", "link"],
        ["ip", "-o", "-4", "addr"],
        ["ip", "route", "show", "table", "all"],
        ["ip", "-6", "route"],
        ["ip", "rule"],
        ["nft", "list", "ruleset"],
        ["cat", *(f"/proc/sys/net/{name}" for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"))],
        ["find", "/run", "-not", "-path", "/run/lab/*"],
    )
    return [machine.run(program, check=True).stdout for program in programs]


def sandbox(machine: Node, options: list[str], *command: str) -> subprocess.CompletedProcess[str]:
    return machine.run([*SANDBOX, *options, "--", *command], PATIENCE_S)


def shell(machine: Node, options: list[str], script: str) -> dict[str, int]:
    """Run lines of a shell in a sandbox; return the exit code of each."""
    steps = [line.strip() for line in script.strip().splitlines()]
    program = "\n".join(f"({step}) >/dev/null 2>&1; echo {number} $?" for number, step in enumerate(steps))
    ran = sandbox(machine, options, "sh", "-c", program)
    assert ran.returncode == 0, ran.stderr
    codes = dict(line.split() for line in ran.stdout.splitlines())
    return {step: int(codes[str(number)]) for number, step in enumerate(steps)}


def test_reaches_what_is_allowed_and_is_told_what_was_not(machine: Node, tmp_path: Path) -> None:
    """An allowed name is reached; a name, an address and a port that are not are refused at once, and summed up."""
    before, audit = traces(machine), tmp_path / "audit.jsonl"
    script = f"""
    cat; ulimit -n
    curl -sS http://api.example.com/
    curl -sS -m 20 http://paste.example/; echo name $?
    curl -sS -m 20 http://{STRANGER}/; echo address $?
    curl -sS -m 20 http://api.example.com:8080/; echo port $?
    grep -c nameserver /etc/resolv.conf; cat /etc/nsswitch.conf; pwd; echo $SPECIAL
    exit 7
    """
    (tmp_path / "yaml.py").write_text("raise SystemExit('code of the folder was run by the filter')")
    argv = ["prlimit", "--nofile=99:9999", "env", "-C", str(tmp_path), sys.executable, "-P", "-m", "egressd", "sandbox"]
    ran = machine.run(
        [*argv, *ALLOWED, "--audit", str(audit), "--", "sh", "-c", script],
        PATIENCE_S,
        stdin="from standard input\n",
        env={"SPECIAL": "kept"},
    )
    assert ran.returncode == 7, ran.stderr
    nsswitch = NSSWITCH.splitlines()
    expected = ["from standard input", "99", OK, "name 6", "address 7", "port 7", "1", *nsswitch, str(tmp_path), "kept"]
    assert ran.stdout.splitlines() == expected
    summary = [line.split("egressd: ")[1].split() for line in ran.stderr.splitlines() if line.startswith("egressd: ")]
    assert "IPv4 forwarding is switched on while this runs" in ran.stderr
    assert ["paste.example", "2", "queries", "--allow", "paste.example"] in summary
    assert [f"{STRANGER}:80/tcp", "1", "packet", "--allow", f"{STRANGER}:80/TCP"] in summary
    port = "api.example.com (203.0.113.10):8080/tcp 1 packet --allow api.example.com:8080/TCP"
    assert port.split() in summary
    assert not machine.internet.reached(STRANGER)
    assert "paste.example" not in machine.dns.names()
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    verdicts = {(record["query"]["name"], record["verdict"]) for record in records if record["event"] == "dns"}
    assert verdicts == {("api.example.com", "allowed"), ("paste.example", "denied")}
    assert [record["destination"]["port"] for record in records if record["event"] == "flow"] == [80, 8080]
    assert traces(machine) == before


def test_everything_is_closed_by_default(machine: Node) -> None:
    """Without a rule nothing is reached: no name, no address, not the machine's loopback or its other addresses."""
    with machine.entered():
        servers = [socket.create_server((address, port)) for address, port in (("127.0.0.1", 8000), ("0.0.0.0", 8001))]
    script = f"""
    curl -m 20 http://api.example.com/
    curl -m 20 http://{STRANGER}/
    curl -m 20 http://127.0.0.1:8000/
    curl -m 20 http://100.64.0.2:8001/
    curl -m 20 http://100.127.53.1:8001/
    curl -m 20 http://100.127.53.2:8001/
    dig +time=1 +tries=1 @{UPSTREAMS[0]} api.example.com
    dig +time=1 +tries=1 +tcp @{UPSTREAMS[0]} api.example.com
    """
    codes = shell(machine, [], script)
    assert all(code in {6, 7, 9} for code in codes.values()), codes
    assert not machine.dns.names()
    for server in servers:
        server.close()


def test_the_cage_cannot_be_undone(machine: Node) -> None:
    """Root in a sandbox enters no other namespace and changes no rule, route, mount or setting.

    It sees no process outside, and a user namespace of its own brings nothing that leads out.
    """
    script = f"""
    nsenter -t 1 -n true
    nsenter --net=/proc/1/ns/net true
    nsenter -t 1 -m true
    unshare -n true
    unshare -m true
    nft list ruleset
    nft flush ruleset
    ip link add dummy0 type dummy
    ip addr add 192.0.2.77/32 dev eth0
    ip route replace default via 100.127.53.2
    mount -t tmpfs none /mnt
    umount /proc
    umount /etc/resolv.conf
    echo 1 > /proc/sys/net/ipv4/ip_forward
    echo x > /proc/sys/kernel/core_pattern
    ! grep -Eq '^[^ ]+ /sys [^ ]+ ro' /proc/mounts
    echo b > /proc/sysrq-trigger
    {sys.executable} -c 'import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)'
    {sys.executable} -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)'
    test -e /proc/{os.getpid()}/ns
    test -e /run/sandbox/objects
    unshare -Urn curl -m 5 http://{STRANGER}/
    unshare -Urmn mount -o remount,bind,rw /proc/sys
    unshare -Urmpf mount -t proc proc /proc
    setpriv --reuid=1000 --regid=1000 --clear-groups unshare -Urn curl -m 5 http://{STRANGER}/
    setpriv --reuid=1000 --regid=1000 --clear-groups unshare -Urm mount -o remount,bind,rw /proc/sys
    setpriv --reuid=1000 --regid=1000 --clear-groups unshare -Urmpf mount -t proc proc /proc
    ! grep -Eq 'CapBnd:.*00000000000404fb' /proc/self/status
    ! grep -Eq 'NoNewPrivs:.*1' /proc/self/status
    """
    codes = shell(machine, ["--allow", "0.0.0.0/0"], script)
    assert [step for step, code in codes.items() if code == 0] == []


EXIT_CODES = """
import os, sys
from egressd.lab import Space, run_private
from egressd.lab.sandbox.cage import Caller, start
from egressd.lab.world import exit_code

def codes():
    cage = Space("cage")
    for command in (["no-such-program"], ["/etc/passwd"], ["sh", "-c", "kill -9 $$"], ["sh", "-c", "exit 7"]):
        print(exit_code(os.waitpid(start(cage, command, Caller.here()), 0)[1]), flush=True)

sys.exit(run_private(codes))
"""


def test_exit_codes(machine: Node) -> None:
    """A command that is not there gives 127, one that cannot be run 126, one killed by signal n 128 + n."""
    ran = machine.run([sys.executable, "-c", EXIT_CODES], PATIENCE_S)
    assert ran.stdout.split() == ["127", "126", str(128 + signal.SIGKILL), "7"], ran.stderr
    assert "egressd: /etc/passwd: Permission denied" in ran.stderr


def test_sigterm_is_handed_on(machine: Node) -> None:
    """SIGTERM reaches the command, which ends in its own way; the summary still comes."""
    script = f"trap 'exit 5' TERM; curl -s http://{STRANGER}/; echo ready; while :; do sleep 0.1; done"
    process = machine.popen([*SANDBOX, "sh", "-c", script])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    _, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 5
    assert f"--allow {STRANGER}:80/TCP" in stderr


def test_ctrl_c_goes_to_the_command(machine: Node) -> None:
    """Ctrl-C on the terminal interrupts the command; the filter stays up for what the command still does."""
    master, slave = pty.openpty()
    script = "trap 'curl -sS http://api.example.com/; exit 9' INT; tty; echo ready; while :; do sleep 0.1; done"
    heeded = ["env", "--default-signal=INT"]  # a shell cannot trap what was ignored before it, as in the background
    argv = [*heeded, "setsid", "--ctty", "--wait", *SANDBOX, *ALLOWED, "sh", "-c", script]
    process = machine.popen(argv, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    text = ""
    with contextlib.suppress(OSError):  # EIO: nobody has the terminal open any more
        while more := os.read(master, 4096).decode():
            asked, text = "ready" in text, text + more
            if not asked and "ready" in text:
                os.write(master, b"\x03")
    os.close(master)
    assert (process.wait(PATIENCE_S), OK in text, "not a tty" in text) == (9, True, False), text


def test_kill_9_leaves_nothing(machine: Node) -> None:
    """After a kill -9 the command ends, and the machine's interfaces, rules, routes and settings are as before."""
    before = traces(machine)
    process = machine.popen([*SANDBOX, "sh", "-c", "echo ready; sleep 600"])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert traces(machine) != before
    process.kill()
    assert process.stdout.read() == ""  # everybody who had it open is gone
    eventually(lambda: traces(machine) == before, PATIENCE_S, what="nothing is left")


def daemon_of(token: str) -> int:
    """The PID of the daemon of the sandbox that was started with this variable."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"run" in words and f"TOKEN={token}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                return int(folder.name)
    raise AssertionError("the daemon does not run")


def test_without_its_filter_everything_stays_closed(machine: Node) -> None:
    """Where the daemon is killed, that is told, and nothing that was closed opens; the command goes on."""
    token = uuid.uuid4().hex
    script = f"echo ready; read x; curl -m 2 http://api.example.com/; curl -m 20 http://{STRANGER}/; echo $?"
    process = machine.popen([*SANDBOX, *ALLOWED, "sh", "-c", script], stdin=subprocess.PIPE, env={"TOKEN": token})
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(daemon_of(token), signal.SIGKILL)
    assert process.stderr is not None
    while "the filter ended" not in (line := process.stderr.readline()):
        assert line, "nothing was told"
    stdout, _ = process.communicate("\n", timeout=PATIENCE_S)
    assert (stdout, process.returncode) == ("7\n", 0)


def test_two_at_once(machine: Node) -> None:
    """Sandboxes do not meet: each has its own rules, and the first to end takes nothing from the other."""
    first = machine.popen(
        [*SANDBOX, *ALLOWED, "sh", "-c", "echo ready; read x; curl -sS http://api.example.com/"], stdin=subprocess.PIPE
    )
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    second = sandbox(
        machine,
        ["--allow", "paste.example"],
        "sh",
        "-c",
        "curl -sS http://paste.example/; curl -sS http://api.example.com/",
    )
    assert "paste.example is 203.0.113.66" in second.stdout
    assert second.returncode == 6
    stdout, stderr = first.communicate("\n", timeout=PATIENCE_S)
    assert (stdout.strip(), first.returncode) == (OK, 0), stderr


def test_ipv6_and_a_resolver_of_ones_own(machine: Node) -> None:
    """Where the machine forwards IPv6, that is open as far as allowed; `--dns` stands in for a resolver on loopback."""
    machine.write_file("/etc/resolv.conf", "nameserver 127.0.0.53\n")
    refused = sandbox(machine, [], "true")
    assert (refused.returncode, "--dns ADDRESS" in refused.stderr) == (3, True), refused.stderr
    machine.sysctl("net.ipv6.conf.all.forwarding", "1")
    options = ["--dns", UPSTREAMS[0], "--allow", "[2001:db8::10]:80", *ALLOWED]
    script = """
    curl -m 20 http://api.example.com/
    curl -m 20 http://[2001:db8::10]/
    curl -m 20 http://[2001:db8::11]/
    """
    codes = list(shell(machine, options, script).values())
    machine.sysctl("net.ipv6.conf.all.forwarding", "0")
    assert codes == [0, 0, 7]


def test_a_policy_file(machine: Node, tmp_path: Path) -> None:
    """A policy written for pods is tried with a command: its subject does not matter, `mode: Audit` stops nothing."""
    file = tmp_path / "policy.yaml"
    file.write_text(
        "subject:\n  podSelector: {matchLabels: {app: web}}\nmode: Audit\nallow:\n- to: [api.example.com]\n"
    )
    ran = sandbox(machine, ["--policy", str(file)], "sh", "-c", "curl -sS http://paste.example/")
    assert (ran.returncode, "paste.example is 203.0.113.66" in ran.stdout) == (0, True), ran.stderr
    assert "egressd: would be denied, were it not for mode: Audit:" in ran.stderr
    file.write_text("allow:\n- to: [partner.example]\ndeny:\n- name: never\n  to: [paste.example]\n")
    ran = sandbox(
        machine,
        ["--policy", str(file), "--allow", "paste.example"],
        "sh",
        "-c",
        "curl -s http://partner.example/; curl -s http://paste.example",
    )
    assert "--allow partner.example --allow-private" in ran.stderr
    assert "(denied by rule never of the policy)" in ran.stderr


DROPPING = "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }\n}"


def test_a_firewall_that_drops_what_is_forwarded_is_noticed(machine: Node) -> None:
    """As Docker sets one up; with a rule for sandboxes nothing is said."""

    def look() -> str:
        channel = Channel()
        try:
            return obstacle(channel)
        finally:
            channel.close()

    assert machine.call(look) == ""
    machine.run(["nft", "-f", "-"], stdin=DROPPING, check=True)
    assert machine.call(look) == "chain FORWARD of table ip filter"
    machine.run(["nft", "add", "rule", "ip", "filter", "FORWARD", "iifname", "egressd*", "accept"], check=True)
    assert machine.call(look) == ""
    machine.run(["nft", "flush", "ruleset"], check=True)
