"""`egressd demo` from end to end: it tells everything, everything is as told, and nothing is left behind."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from egressd.cli import main
from egressd.cli import tour as tour_module
from egressd.cli.tour import guide as guide_module
from egressd.cli.tour.chapters import CHAPTERS, Chapter
from egressd.cli.tour.guide import Guide, Ran
from egressd.cli.tour.page import Page
from egressd.cli.tour.stage import Stage
from egressd.lab import eventually, run_private

README = (Path(__file__).parents[2] / "README.md").read_text()
PATIENCE_S = 90.0
DEMO = [sys.executable, "-m", "egressd", "demo"]
TOKEN = "DEMO_TEST_TOKEN"
"""A variable that every process of one demo inherits."""


def traces() -> tuple[str, ...]:
    """What the demo could leave behind: rules, routing rules, named namespaces, interfaces, mounts."""
    programs = (["nft", "list", "ruleset"], ["ip", "rule"], ["ip", "netns", "list"], ["ip", "-o", "link"])
    outputs = [subprocess.run(program, capture_output=True, text=True, check=True).stdout for program in programs]
    return (*outputs, Path("/proc/self/mountinfo").read_text(), str(sorted(Path("/run").rglob("*"))))


def running(token: str) -> list[str]:
    """Command lines of the processes of one demo."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{TOKEN}={token}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


def run(argv: list[str], token: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, TOKEN: token}
    return subprocess.run(argv, check=False, capture_output=True, text=True, timeout=PATIENCE_S, env=environment)


@dataclass
class Terminal:
    """The demo on a terminal of 80 columns."""

    process: subprocess.Popen[bytes]
    descriptor: int
    token: str
    text: str = ""

    def read_until(self, words: str) -> None:
        """Read what it prints until `words` came."""
        deadline = time.monotonic() + PATIENCE_S
        while words not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.descriptor], [], [], 1.0)[0]:
                more = self._read()
                assert more, self.text
                self.text += more

    def end(self) -> int:
        """Read the rest and return the exit code."""
        while more := self._read():
            self.text += more
        return self.process.wait(PATIENCE_S)

    def _read(self) -> str:
        try:
            return os.read(self.descriptor, 65536).decode(errors="replace")
        except OSError:  # EIO: nobody has the terminal open any more
            return ""

    def press_ctrl_c(self) -> None:
        os.write(self.descriptor, b"\x03")


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    """A demo that stays, started on a terminal as a shell would; afterwards nothing of it may be left."""
    before, token = traces(), uuid.uuid4().hex
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (25, 80))
    process = subprocess.Popen(
        ["setsid", "--ctty", *DEMO],  # becomes the demo: the terminal's Ctrl-C reaches it and its children
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**os.environ, TOKEN: token, "TERM": "xterm-256color", "COLUMNS": "80"},
    )
    os.close(slave)
    yield Terminal(process, master, token)
    process.kill()
    process.wait()
    eventually(lambda: not running(token), 20, what="all processes gone")
    os.close(master)
    assert traces() == before


def test_the_whole_tour_in_a_pipe() -> None:
    """Exit code 0, every chapter told, every check as told, plain text of 80 columns, and the machine as before."""
    before, token = traces(), uuid.uuid4().hex
    done = run([*DEMO, "--exit"], token)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    told = re.findall(r"^ ?\d+  (.+?) ─+$", done.stdout, re.MULTILINE)
    assert told == [*(chapter.title for chapter in CHAPTERS), "What the kernel knows"]
    assert re.search(r"^    All \d+ checks went as told\.$", done.stdout, re.MULTILINE)
    assert "✗" not in done.stdout
    assert "\x1b" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert running(token) == []
    assert traces() == before


def test_the_story_has_what_it_should(terminal: Terminal) -> None:
    """All verdicts and reasons of the story come from real records; the node then stays, and others can join it."""
    terminal.read_until("read the firewall")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", terminal.text).replace("\r\n", "\n")
    assert plain != terminal.text
    summary = plain.partition("Summary")[2]
    rows = [line.split()[1:] for line in summary.splitlines() if line.startswith("    ✓")]
    assert {(pod, verdict, reason) for pod, _, verdict, reason in rows} >= {
        ("shop/web-0", "allowed", "rule"),
        ("shop/web-0", "denied", "no-rule"),
        ("shop/web-0", "denied", "rebinding"),
        ("shop/report-x7k2p", "denied", "deny-rule"),
        ("payments/api-0", "denied", "no-rule"),
        ("dev/trial-0", "would-deny", "no-rule"),
        ("legacy/batch-0", "allowed", "unselected"),
    }
    command = re.search(r"nsenter -a -t \d+ curl .*", plain)
    assert command is not None
    visit = run(command[0].split(), terminal.token)
    assert "Could not resolve host: paste.example" in visit.stderr
    walk(plain, command[0].split(), terminal.token)
    page = re.search(r"http://127\.0\.0\.1:\d+/", plain)
    assert page is not None
    assert "<title>egressd</title>" in run(["curl", "-sS", "--noproxy", "*", page[0]], terminal.token).stdout
    terminal.press_ctrl_c()
    assert terminal.end() == 0


def walk(plain: str, visit: list[str], token: str) -> None:
    """The path of somebody who has never seen it, from a denied name to an allowed one, by what the page says alone."""
    place = re.search(r"export (EGRESSD_ADMIN__SOCKET=\S+)", plain)
    file = re.search(r"\$\{EDITOR:-vi\} (\S+)", plain)
    assert place is not None
    assert file is not None

    def said(verb: str) -> tuple[int, str]:
        assert f"egressd {verb}" in plain, verb
        argv = ["env", place[1], "COLUMNS=80", sys.executable, "-m", "egressd", *verb.split()]
        done = run(argv, token)
        assert max(map(len, done.stdout.splitlines())) <= 80
        return done.returncode, done.stdout

    assert "what was denied, and why: egressd audit --verdict denied" in said("status")[1]
    first = said("audit --verdict denied")[1].splitlines()[0]
    assert first[8:] == " denied      no-rule    shop/web-0 paste.example A → NXDOMAIN"
    assert first[8:] in README, "the README shows what audit says"
    code, steps = said("explain --pod shop/web-0 --to paste.example:80")
    assert code == 1
    assert steps in README, "the README shows what explain says"
    line = steps.splitlines()[-1]
    with Path(file[1]).open("a") as policy:
        policy.write(f"  {line}\n")
    eventually(lambda: said("explain --pod shop/web-0 --to paste.example:80")[0] == 0, what="the policy in force")
    assert run(visit, token).stdout == "paste.example is 203.0.113.66 port 80, you are 10.244.1.2\n"


def test_ctrl_c_in_the_middle(terminal: Terminal) -> None:
    """Ctrl-C ends it at once, with a word and without a traceback."""
    terminal.read_until("A policy edit")
    terminal.press_ctrl_c()
    assert terminal.end() == 128 + signal.SIGINT
    assert "interrupted" in terminal.text
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle(terminal: Terminal, number: signal.Signals) -> None:
    """Killed in the middle, it takes the daemon, the downloads and every rule with it (the fixture looks)."""
    terminal.read_until("both are receiving")
    assert len(running(terminal.token)) >= 7  # outer, first, tour, daemon and its control side, two downloads
    terminal.process.send_signal(number)
    terminal.process.wait(PATIENCE_S)
    eventually(lambda: not running(terminal.token), 20, what="all processes gone")


def test_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not root is told what to do."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result = CliRunner().invoke(main, ["demo", "--exit"])
    assert result.exit_code == 3
    assert "sudo egressd demo" in result.output


def test_without_clients(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Where curl and dig are missing, their packages are named."""
    monkeypatch.setenv("PATH", str(tmp_path))
    result = CliRunner().invoke(main, ["demo", "--exit"])
    assert result.exit_code == 3
    assert "curl and dig" in result.output
    assert "apt-get install curl bind9-dnsutils" in result.output


def test_help() -> None:
    """Help has an example and the one option."""
    result = CliRunner().invoke(main, ["demo", "--help"])
    assert result.exit_code == 0
    assert "Example: egressd demo --exit" in result.output


def test_a_tour_that_goes_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """One claim that is not so makes the exit code 1."""
    lie = Chapter("A lie", "It is told as it is.", lambda guide: guide.check("the moon shines", right=False))
    monkeypatch.setattr(tour_module, "CHAPTERS", (lie,))
    monkeypatch.setattr(tour_module, "kernel_view", lambda _: None)
    assert run_private(lambda: tour_module.tour(stay=False, processes=-1)) == 1
    monkeypatch.setattr(tour_module, "CHAPTERS", ())
    assert run_private(lambda: tour_module.tour(stay=False, processes=-1)) == 0


def test_a_daemon_that_does_not_start(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """What the daemon said goes to standard error, and neither a chapter is told nor Ctrl-C waited for."""

    class Misconfigured(Stage):
        def __init__(self) -> None:
            super().__init__()
            self.daemon.settings["no_such_setting"] = 1

    monkeypatch.setattr(tour_module, "Stage", Misconfigured)
    monkeypatch.setattr(tour_module, "_tell", lambda _: 0)
    assert run_private(lambda: tour_module.tour(stay=True, processes=-1)) == 1
    assert "no_such_setting" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------ the guide


class Records(Stage):
    """A stage that has audit records and nothing else."""

    def __init__(self, *records: dict[str, Any]) -> None:
        self._records = list(records)

    def records(self) -> list[dict[str, Any]]:
        return self._records


def record(verdict: str, reason: str, time: str = "2026-01-01T00:00:05.000000Z") -> dict[str, Any]:
    return {
        "time": time,
        "event": "dns",
        "pod": {"namespace": "shop", "name": "web-0"},
        "query": {"name": "a.example", "type": "A", "port": 1},
        "verdict": verdict,
        "reason": reason,
    }


ASKED = Ran("shop/web-0", "dig a.example", 0, "", "2026-01-01T00:00:00.000000Z", 0.0)


@pytest.mark.parametrize(
    ("records", "surprises"),
    [
        ([record("denied", "no-rule")], 0),
        ([record("denied", "rebinding"), record("denied", "no-rule")], 0),
        ([record("denied", "rebinding")], 1),
        ([record("allowed", "rule") | {"policy": "shop/web", "rule": "web"}], 1),
        ([record("denied", "no-rule") | {"policy": "shop/web", "rule": "web"}], 1),
        ([record("denied", "no-rule", "2025-12-31T23:59:59.999999Z")], 1),
        ([record("denied", "no-rule") | {"pod": {"namespace": "shop", "name": "web-1"}}], 1),
        ([record("denied", "no-rule") | {"query": {"name": "b.example", "type": "A"}}], 1),
        ([], 1),
    ],
    ids=["as told", "among others", "reason", "verdict", "rule", "too old", "pod", "name", "none"],
)
def test_records_are_held_against_what_is_told(
    monkeypatch: pytest.MonkeyPatch, records: list[dict[str, Any]], surprises: int
) -> None:
    """Only a record of the very pod and destination, after the attempt, that decides as told, makes a claim true."""
    monkeypatch.setattr(guide_module, "PATIENCE_S", 0.0)
    guide = Guide(Records(*records), Page())
    guide.why(ASKED, "a.example", "denied", "no-rule")
    assert (guide.checks, len(guide.surprises)) == (1, surprises)
    assert [found.right for found in guide.findings] == [not surprises]


def test_a_false_claim_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """What is not so is marked as such and remembered."""
    guide = Guide(Records(), Page())
    guide.check("the sun shines", right=True)
    guide.check("the moon shines", right=0)
    assert guide.surprises == ["the moon shines"]
    assert capsys.readouterr().out == "    ✓ the sun shines\n    ✗ the moon shines\n"


def test_page_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an output without Unicode, plain signs stand for ours, and nothing fails."""
    octets = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(octets, encoding="ascii"))
    page = Page()
    page.chapter("Heading", "text … ü")
    page.check("so it is", right=True)
    page.audit({"name": "ü"}, right=False)
    text = octets.getvalue().decode("ascii")
    assert re.search(r"^ 1  Heading -+$", text, re.MULTILINE)
    assert "    + so it is" in text
    assert '    ! audit {"name": "\\u00fc"}' in text


def test_page_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Long lines are wrapped under their own beginning; a line to copy never is."""
    monkeypatch.setenv("COLUMNS", "40")
    page = Page()
    page.output(["\tan indented line that is too long for one"])
    page.hint("copy", "a command that is quite a bit longer than forty columns")
    assert capsys.readouterr().out.splitlines() == [
        "        an indented line that is too",
        "          long for one",
        "    copy",
        "      a command that is quite a bit longer than forty columns",
    ]
