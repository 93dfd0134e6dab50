"""The control side as a process of its own, over a real socket pair: what it says, what it writes, how it ends."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from egressd import link
from egressd.link import Frames, Lines, Ready, Refused, Reload, Synced, Update, encode
from egressd.settings import Settings

TIMEOUT = 30.0
"""Seconds anything may take on a busy machine."""
POD = """
---
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
status: {podIPs: [{ip: 192.0.2.5}]}
"""


def configmap(name: str, *peers: str, broken: bool = False) -> str:
    """A ConfigMap with one policy that selects every pod of its namespace."""
    allow = "allows" if broken else "allow"
    return f"""---
kind: ConfigMap
metadata:
  name: {name}
  namespace: shop
  labels: {{egressd.io/policy: "true"}}
data:
  policy.yaml: |
    subject: {{}}
    {allow}:
    - to: {json.dumps(list(peers))}
"""


class Control:
    """A control side started as the data path starts it, and everything it has said."""

    def __init__(self, folder: Path, *arguments: str, environ: dict[str, str] | None = None) -> None:
        self.objects = folder / "objects"
        self.objects.mkdir(exist_ok=True)
        self.audit = folder / "log" / "audit.jsonl"
        self.config = folder / "egressd.yaml"
        if not self.config.exists():
            self.configure()
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.link.settimeout(TIMEOUT)
        command = [sys.executable, "-m", "egressd.control", "--fd", str(theirs.fileno()), "--config", str(self.config)]
        with theirs, (folder / "stderr").open("ab") as stderr:
            self.process = subprocess.Popen(
                [*command, *arguments],
                pass_fds=[theirs.fileno()],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **(environ or {})},
            )
        self._stderr = folder / "stderr"
        self._frames = Frames(link.Down)
        self._heard: list[Any] = []

    def configure(self, **settings: Any) -> None:
        """Write the settings file; JSON is YAML."""
        values = {
            "node": "n1",
            "source": {"kind": "directory", "path": str(self.objects)},
            "dns": {"upstreams": ["192.0.2.53"]},
            "audit": {"file": str(self.audit)},
            "history": {"file": str(self.config.with_name("history.db"))},
            **settings,
        }
        self.config.write_text(json.dumps(values))

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def hear(self) -> Any:
        """The next message, or None at the end."""
        while not self._heard:
            data = self.link.recv(1 << 16)
            if not data:
                return None
            self._heard += self._frames.feed(data)
        return self._heard.pop(0)

    def world(self) -> tuple[Settings, list[Update]]:
        """`Ready`, the updates up to `Synced`."""
        ready = self.hear()
        assert isinstance(ready, Ready), self.stderr
        updates = []
        while isinstance(message := self.hear(), Update):
            updates.append(message)
        assert isinstance(message, Synced)
        return ready.settings, updates

    def silent(self, seconds: float) -> bool:
        """Whether nothing is said for a while."""
        return not self._heard and not select.select([self.link], [], [], seconds)[0]

    def say(self, *messages: link.Up) -> None:
        self.link.sendall(b"".join(map(encode, messages)))

    def end(self) -> int:
        """Hang up; the exit code."""
        self.link.close()
        return self.process.wait(TIMEOUT)

    def records(self) -> list[dict[str, Any]]:
        """The audit file."""
        return [json.loads(line) for line in self.audit.read_text().splitlines()] if self.audit.exists() else []

    def status(self) -> dict[str, str]:
        """/proc/PID/status of the process, by field."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def until(condition: Callable[[], object]) -> None:
    """Wait until something holds; fail when it never does."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Control]]:
    """Start control sides that are gone when the test is over."""
    started: list[Control] = []

    def begin(*arguments: str, environ: dict[str, str] | None = None) -> Control:
        started.append(Control(tmp_path, *arguments, environ=environ))
        return started[-1]

    yield begin
    for control in started:
        control.link.close()
        control.process.kill()
        control.process.wait(TIMEOUT)
        control.process.communicate()


def patterns(update: Update) -> list[str]:
    return [str(pattern) for policy in update.policies for rule in policy.allow for pattern in rule.patterns]


# ------------------------------------------------------------------------------------------------ what it says


def test_it_says_settings_then_the_world_then_changes(start: Callable[..., Control], tmp_path: Path) -> None:
    """The whole conversation: Ready, Updates, Synced, and one Update for each later change."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "all.yaml").write_text(configmap("web", "api.example.com") + POD)
    control = start()
    settings, updates = control.world()
    assert (settings.node, settings.source.path) == ("n1", str(control.objects))
    assert [patterns(update) for update in updates] == [["api.example.com"]]
    assert [(str(e.identity), e.policies) for e in updates[0].pods] == [("shop/web-0", ("shop/web",))]
    (control.objects / "all.yaml").write_text(configmap("web", "cdn.example") + POD)
    update = control.hear()
    assert (patterns(update), update.pods) == (["cdn.example"], ())
    (control.objects / "all.yaml").unlink()
    assert control.hear() == Update(gone_policies=("shop/web",), gone_pods=(bytes((192, 0, 2, 5)),))
    assert control.end() == 0
    assert [(r["policy"], r["change"]) for r in control.records()] == [
        ("shop/web", "updated"),
        ("shop/web", "updated"),
        ("shop/web", "deleted"),
    ]


def test_settings_come_from_file_variables_and_flags(start: Callable[..., Control]) -> None:
    """Flag over variable over file, as `egressd run` hands them on."""
    given = {"EGRESSD_NODE": "variable", "EGRESSD_UNKNOWN_WAIT": "3s"}
    control = start("--set", "node=flag", "--set", "dns.upstreams=192.0.2.54,192.0.2.55", environ=given)
    settings, updates = control.world()
    assert (settings.node, settings.unknown_wait, updates) == ("flag", 3.0, [])
    assert [upstream.address[-1] for upstream in settings.dns.upstreams] == [54, 55]


def test_a_large_world_comes_in_bounded_updates(start: Callable[..., Control], tmp_path: Path) -> None:
    """1,000 policies are said a few at a time, before the pods that name them, and as one change."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "pod.yaml").write_text(POD)
    (tmp_path / "objects" / "all.yaml").write_text("".join(configmap(f"p{n}", "api.example.com") for n in range(1000)))
    updates = start().world()[1]
    assert [len(update.policies) for update in updates] == [4] * 250 + [0]
    assert [update.more for update in updates] == [True] * 250 + [False]
    assert [len(entry.policies) for entry in updates[-1].pods] == [1000]


def test_a_broken_file_and_a_refused_policy_keep_what_was_good(start: Callable[..., Control], tmp_path: Path) -> None:
    """Nothing is said to the data path; standard error and the audit trail say what is wrong, once."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "web.yaml").write_text(configmap("web", "api.example.com"))
    (tmp_path / "objects" / "pod.yaml").write_text(POD)
    control = start()
    control.world()
    (control.objects / "web.yaml").write_text(configmap("web", "api.example.com", broken=True))
    (control.objects / "pod.yaml").write_text("kind: Pod\nmetadata: {name: [\n")
    until(lambda: [r["change"] for r in control.records()].count("refused") == 2)
    (control.objects / "web.yaml").touch()
    assert control.silent(1.0)
    lines = control.stderr.splitlines()
    assert len([line for line in lines if line.startswith(f"{control.objects}/web.yaml:10:5: error: ")]) == 1
    assert len(lines) == 2
    refused = [record for record in control.records() if record["change"] == "refused"]
    assert {record.get("policy") for record in refused} == {"shop/web", None}
    assert all(str(control.objects) in record["error"] for record in refused)
    (control.objects / "web.yaml").write_text(configmap("web", "cdn.example"))
    assert patterns(control.hear()) == ["cdn.example"]


# --------------------------------------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("settings", "arguments", "code", "said"),
    [
        ("nodes: n1\n", [], 2, "egressd.yaml:1:1: error: "),
        ("audit: {max_size: [}\n", [], 2, "egressd.yaml:1:"),
        ("{}", ["--config", "/nonexistent/egressd.yaml"], 2, "/nonexistent/egressd.yaml"),
        ("{}", ["--set", "grants.min=soon"], 2, "'soon' is not a duration"),
        ("source: {path: /nonexistent/objects}\n", [], 3, "the folder /nonexistent/objects cannot be read"),
        ("source: {kind: kubernetes}\n", [], 3, "there is no way to the API server"),
    ],
)
def test_settings_that_cannot_be_used_stop_the_start(
    start: Callable[..., Control], tmp_path: Path, settings: str, arguments: list[str], code: int, said: str
) -> None:
    """The reason is on standard error with its place; the data path hears only the exit code."""
    (tmp_path / "egressd.yaml").write_text(settings)
    control = start(*arguments, environ={"EGRESSD_DNS__UPSTREAMS": "192.0.2.53"})
    assert control.hear() == Refused(code)
    assert control.hear() is None
    assert control.process.wait(TIMEOUT) == code
    assert said in control.stderr


def test_wrong_arguments_are_wrong_usage(start: Callable[..., Control]) -> None:
    """As of any program: exit code 2, and the link is closed without a word."""
    control = start("--set", "node")
    assert control.hear() is None
    assert control.process.wait(TIMEOUT) == 2
    assert "is not SETTING=VALUE" in control.stderr


# ---------------------------------------------------------------------------------------------- what it writes


def test_lines_reach_file_and_standard_output_in_order(start: Callable[..., Control], tmp_path: Path) -> None:
    """Every line that was sent before the link closed is written, however many are on the way."""
    (tmp_path / "objects").mkdir()
    control = start("--set", "audit.stdout=true")
    control.world()
    total = 20_000
    lines = [f'{{"n":{number}}}\n'.encode() for number in range(total)]
    output: list[bytes] = []
    assert control.process.stdout is not None
    reading = threading.Thread(target=lambda stream: output.append(stream.read()), args=[control.process.stdout])
    reading.start()
    control.say(*(Lines(b"".join(lines[i : i + 100]), 100) for i in range(0, total, 100)))
    assert control.end() == 0
    reading.join(TIMEOUT)
    assert control.audit.read_bytes() == output[0] == b"".join(lines)


def test_a_disk_that_refuses_is_told_in_the_log_once_it_takes_again(start: Callable[..., Control]) -> None:
    """What was lost meanwhile is a record of its own."""
    control = start()
    control.world()
    control.audit.parent.write_text("a file where a folder should be")
    control.say(Lines(b'{"n":1}\n{"n":2}\n', 2))
    until(lambda: "cannot write" in control.stderr)
    control.audit.parent.unlink()
    control.say(Lines(b'{"n":3}\n', 1))
    assert control.end() == 0
    kept, dropped = control.records()
    assert kept == {"n": 3}
    assert (dropped["event"], dropped["node"], dropped["dropped"]) == ("audit", "n1", 2)


def test_reload_reads_settings_and_says_the_world_again(start: Callable[..., Control], tmp_path: Path) -> None:
    """SIGHUP as the data path passes it on: another node name, another folder, another audit file."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "all.yaml").write_text(
        configmap("web", "api.example.com") + POD.replace("status", "spec: {nodeName: n2}\nstatus")
    )
    control = start()
    settings, updates = control.world()
    assert (settings.node, updates) == ("n1", []), "a policy that selects nobody here is not said"
    control.configure(node="n2")
    control.say(Reload())
    settings, (update,) = control.world()
    assert (settings.node, [str(entry.identity) for entry in update.pods]) == ("n2", ["shop/web-0"])
    (tmp_path / "other").mkdir()
    control.configure(source={"path": str(tmp_path / "other")}, audit={"file": str(tmp_path / "second.jsonl")})
    control.say(Reload())
    assert control.world()[1] == []
    control.say(Lines(b"{}\n", 1))
    (tmp_path / "other" / "new.yaml").write_text(configmap("web", "cdn.example") + POD)
    assert patterns(control.hear()) == ["cdn.example"]
    assert control.end() == 0
    assert (tmp_path / "second.jsonl").read_bytes().startswith(b"{}\n")


def test_reload_reopens_the_audit_file(start: Callable[..., Control]) -> None:
    """After logrotate moved it away, lines go to a new one; those sent before are in the old one."""
    control = start()
    control.world()
    control.say(Lines(b'{"n":1}\n', 1))
    until(control.records)
    moved = control.audit.with_suffix(".old")
    control.audit.rename(moved)
    control.say(Lines(b'{"n":2}\n', 1), Reload())
    control.world()
    control.say(Lines(b'{"n":3}\n', 1))
    assert control.end() == 0
    assert moved.read_bytes() == b'{"n":1}\n{"n":2}\n'
    assert control.records() == [{"n": 3}]


def test_reload_of_wrong_settings_keeps_the_old_ones(start: Callable[..., Control], tmp_path: Path) -> None:
    """A typing error at SIGHUP is told, and is no reason to stop."""
    control = start()
    settings, _ = control.world()
    for wrong in ("nodes: n1\n", "source: {path: /nonexistent/objects}\ndns: {upstreams: [192.0.2.53]}\n"):
        control.config.write_text(wrong)
        control.say(Reload())
        assert control.world() == (settings, [])
    assert "egressd.yaml:1:1: error: " in control.stderr
    assert "/nonexistent/objects cannot be read" in control.stderr
    (control.objects / "new.yaml").write_text(configmap("web", "cdn.example") + POD)
    assert patterns(control.hear()) == ["cdn.example"]


def test_reload_keeps_what_only_memory_holds(start: Callable[..., Control], tmp_path: Path) -> None:
    """Neither a broken file's last good objects nor a refused policy's last good version are lost by a reload."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "web.yaml").write_text(configmap("web", "api.example.com"))
    (tmp_path / "objects" / "pod.yaml").write_text(POD)
    control = start()
    _, before = control.world()
    (control.objects / "pod.yaml").write_text("kind: [\n")
    (control.objects / "web.yaml").write_text(configmap("web", "api.example.com", broken=True))
    until(lambda: [r["change"] for r in control.records()].count("refused") == 2)
    control.say(Reload())
    assert control.world()[1] == before
    control.configure(node="n2")
    control.say(Reload())
    assert control.world()[1] == before


# ------------------------------------------------------------------------------------------------- how it ends


def test_it_holds_no_capability_and_can_gain_none(start: Callable[..., Control]) -> None:
    """Not it, not one of its threads: uid 0 in name only."""
    control = start()
    control.world()
    status = control.status()
    assert status["Uid"].split() == ["0"] * 4
    for task in Path(f"/proc/{control.process.pid}/task").iterdir():
        fields = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        held = {field: int(fields[field], 16) for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        assert held == dict.fromkeys(held, 0)
        assert fields["NoNewPrivs"] == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_to_the_process_group_do_not_end_it(start: Callable[..., Control], number: signal.Signals) -> None:
    """Ctrl-C reaches it too, but the data path says when it ends: records of the last moment still count."""
    control = start()
    control.world()
    control.process.send_signal(number)
    control.say(Lines(b"{}\n", 1))
    until(control.records)
    assert control.process.poll() is None
    assert control.end() == 0


def test_it_ends_in_the_middle_of_a_large_world(start: Callable[..., Control], tmp_path: Path) -> None:
    """A data path that hangs up without reading what it is told is no error."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "all.yaml").write_text(
        "".join(configmap(f"p{n}", "api.example.com") for n in range(3000)) + POD
    )
    control = start()
    assert isinstance(control.hear(), Ready)
    until(lambda: select.select([control.link], [], [], 0)[0])
    assert control.end() == 0


def test_words_it_does_not_understand_end_it(start: Callable[..., Control]) -> None:
    """The two are parts of one release: a broken frame is a bug, told and answered with exit code 1."""
    control = start()
    control.world()
    control.link.sendall(b"\xff\xff\xff\xff")
    assert control.hear() is None
    assert control.process.wait(TIMEOUT) == 1
    assert "a frame of 4294967295 octets" in control.stderr


PARENT = """
import socket, subprocess, sys, time
from egressd.link import Lines, encode
ours, theirs = socket.socketpair()
command = [sys.executable, "-m", "egressd.control", "--fd", str(theirs.fileno()), "--config", sys.argv[1]]
child = subprocess.Popen(command, pass_fds=[theirs.fileno()])
theirs.close()
ours.recv(1)
for number in range(100):
    ours.sendall(encode(Lines(b"{}\\n", 1)))
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("leaked", [False, True], ids=["link closed", "link held open by another process"])
def test_it_dies_with_its_parent(start: Callable[..., Control], leaked: bool) -> None:
    """Killed without a chance to say good-bye, the data path takes the control side along, but not the records."""
    control = start()
    control.world()
    command = [sys.executable, "-c", PARENT, str(control.config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        held = _take_descriptors(parent.pid) if leaked else []
        pidfd = os.pidfd_open(child)
        parent.kill()
    gone = select.select([pidfd], [], [], TIMEOUT)[0]
    os.close(pidfd)
    for descriptor in held:
        os.close(descriptor)
    assert gone
    assert control.audit.read_bytes() == b"{}\n" * 100


def _take_descriptors(pid: int) -> list[int]:
    """Hold every socket of a process open, as a forgotten fork of it would."""
    pidfd = os.pidfd_open(pid)
    held = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if entry.readlink().name.startswith("socket:"):
                held.append(_libc.syscall(_PIDFD_GETFD, pidfd, int(entry.name), 0))
    os.close(pidfd)
    assert held
    assert min(held) >= 0
    return held


_libc = ctypes.CDLL(None, use_errno=True)
_PIDFD_GETFD = 438
