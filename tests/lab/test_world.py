"""The private world: what is made in it is seen nowhere else and does not outlive its maker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from egressd.errors import EnvironmentProblem
from egressd.lab import Space, enter_private, eventually, is_private, run_private, world

PROGRAM = """
import subprocess, sys, time
from egressd.lab import Node, run_private

def main():
    node = Node("bridge")
    pod = node.add_pod("shop/web-0")
    node.run(["nft", "add", "table", "inet", "left-behind"], check=True)
    subprocess.run(["nft", "add", "table", "inet", "left-behind"], check=True)
    subprocess.run(["ip", "netns", "add", "left-behind"], check=True)
    waiting = ["sh", "-c", "sleep 1000; true", sys.argv[1]]
    pod.popen(waiting)
    subprocess.Popen(["setsid", *waiting])
    print("ready", flush=True)
    time.sleep(1000)

raise SystemExit(run_private(main))
"""


def traces() -> tuple[str, ...]:
    """What one could leave behind: rules, named namespaces, interfaces, mounts."""
    programs = (["nft", "list", "ruleset"], ["ip", "netns", "list"], ["ip", "-o", "link"])
    outputs = [subprocess.run(program, capture_output=True, text=True, check=True).stdout for program in programs]
    return (*outputs, Path("/proc/self/mountinfo").read_text())


def running(token: str) -> list[str]:
    """Processes with a word on their command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if token.encode() in words:
            found.append(folder.name)
    return found


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_nothing_is_left(number: signal.Signals) -> None:
    """Killed in whatever way, the outer process takes every process, rule, namespace and mount with it."""
    token, before = uuid.uuid4().hex, traces()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, token], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "ready\n"
    eventually(lambda: len(running(token)) == 5, what="outer, first, main, and the two that wait")
    if number == signal.SIGINT:
        os.killpg(program.pid, number)  # as a terminal does
    else:
        program.send_signal(number)
    assert program.wait(20) != 0
    eventually(lambda: not running(token), what="all processes gone")
    assert traces() == before
    program.stdout.close()


@pytest.mark.parametrize(
    ("main", "code"),
    [
        (lambda: 7, 7),
        (lambda: None, 0),
        (["sh", "-c", "exit 9"], 9),
        (["sh", "-c", "kill -9 $$"], 128 + 9),
        (lambda: sys.exit(4), 4),
        (lambda: 1 // 0, 1),
        (["/nonexistent"], 1),
    ],
    ids=["value", "none", "program", "killed", "exit", "exception", "no program"],
)
def test_exit_codes(main: world.Main, code: int) -> None:
    """The exit code of what ran comes out, also for signals and exceptions."""
    assert run_private(main) == code


def test_private_views(tmp_path: Path) -> None:
    """Inside there is only loopback, up; an empty /run; PIDs counted from 1; and the file system is the same."""
    looks = "ip -o link | wc -l; ls /run; ls -d /proc/[0-9]* | wc -l; ping -c1 -W1 127.0.0.1 >&2; echo $?"
    assert run_private(["sh", "-c", f"({looks}) >{tmp_path}/out"]) == 0
    links, run, processes, ping = (tmp_path / "out").read_text().split()
    assert (links, run, ping) == ("1", "netns", "0")
    assert int(processes) <= 6


def test_orphans_are_reaped() -> None:
    """A world of many orphans ends with its main program, not with them."""
    assert run_private(["sh", "-c", "for i in 1 2 3 4 5; do (sleep 0.01 &); done; sleep 0.1; exit 5"]) == 5


def test_pytest_is_private() -> None:
    """The session's own process has a network of its own, and says so."""
    assert is_private()
    assert [name for _, name in socket.if_nameindex()] == ["lo"]
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    assert any(mount[4] == "/run" and mount[mount.index("-") + 1] == "tmpfs" for mount in mounts)
    parent = Path(f"/proc/{os.getppid()}/ns/mnt")
    assert Path("/proc/self/ns/mnt").readlink() != parent.readlink(), "mounts of its own, not those of who started it"


def test_programs_of_a_killed_pytest_die() -> None:
    """What `enter_private` and then a space started dies with a killed process."""
    token = uuid.uuid4().hex
    script = (
        "import sys, time; from egressd.lab import Space, enter_private; enter_private(); space = Space('web-0')\n"
        "waiting = ['sh', '-c', 'sleep 1000; true', sys.argv[1]]\n"
        "space.popen(waiting); space.popen(['setsid', *waiting]); time.sleep(1000)"
    )
    program = subprocess.Popen([sys.executable, "-c", script, token])
    eventually(lambda: len(running(token)) == 4, what="outer, first, and the two that wait")
    program.kill()
    program.wait()
    eventually(lambda: not running(token), what="all processes gone")


def test_a_space_outside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is built on the host itself by mistake."""
    monkeypatch.setattr(world, "_state", world._State())
    with pytest.raises(EnvironmentProblem, match="private world"):
        Space("web-0")


def test_without_rights() -> None:
    """Who may not make namespaces is told what to do, with an error of ours."""
    script = (
        "import os; from egressd.lab import enter_private, run_private\n"
        "os.setuid(65534)\n"
        "for attempt in (enter_private, lambda: run_private(['true'])):\n"
        "    try: attempt()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert told.count("EnvironmentProblem") == 2
    assert told.count("run as root") == 2


def test_enter_private_again() -> None:
    """Worlds nest: a process that is in one may enter another."""

    def main() -> int:
        enter_private()
        with Space("web-0") as space:
            return 0 if space.run(["true"]).returncode == 0 else 1

    assert run_private(main) == 0
