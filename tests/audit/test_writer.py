"""The audit file: appended, rotated, reopened, and no failure of the disk ever raises or tears a line."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from egressd.audit import Writer
from egressd.audit.writer import REPORT_EVERY
from egressd.settings import Audit


class Said:
    """What a writer complained of, and a clock to hand it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.now = 1000.0


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def make(tmp_path: Path, said: Said) -> Callable[..., Writer]:
    """Build a writer of `audit.jsonl` in the test's folder."""

    def build(**settings: object) -> Writer:
        values: dict[str, object] = {"file": str(tmp_path / "log" / "audit.jsonl"), **settings}
        return Writer(Audit(**values), say=said.lines.append, clock=lambda: said.now)  # type: ignore[arg-type] # a table of fields

    return build


def test_lines_are_appended_to_a_file_that_only_its_owner_writes(make: Callable[..., Writer], tmp_path: Path) -> None:
    """The folder is made, the file has mode 0640, and lines of an earlier run stay."""
    for number in range(3):
        writer = make()
        assert writer.write(f'{{"n":{number}}}\n'.encode(), 1)
        writer.close()
    file = tmp_path / "log" / "audit.jsonl"
    assert file.read_text() == '{"n":0}\n{"n":1}\n{"n":2}\n'
    assert file.stat().st_mode & 0o777 == 0o640


def test_rotation_by_size_keeps_as_many_files_as_asked(make: Callable[..., Writer], tmp_path: Path) -> None:
    """Before a file would grow past its size it becomes FILE.1, FILE.1 becomes FILE.2, and the oldest goes."""
    writer = make(max_size=20, keep=2)
    for letter in "abcdefg":
        assert writer.write(letter.encode() * 9 + b"\n", 1)
    found = {path.name: path.read_text().replace("\n", "")[::9] for path in (tmp_path / "log").iterdir()}
    assert found == {"audit.jsonl": "g", "audit.jsonl.1": "ef", "audit.jsonl.2": "cd"}


def test_rotation_goes_on_after_a_restart(make: Callable[..., Writer], tmp_path: Path) -> None:
    """The size of what is there already counts."""
    for letter in "abc":
        writer = make(max_size=20, keep=1)
        writer.write(letter.encode() * 9 + b"\n", 1)
        writer.close()
    assert (tmp_path / "log" / "audit.jsonl").read_bytes() == b"c" * 9 + b"\n"
    assert (tmp_path / "log" / "audit.jsonl.1").stat().st_size == 20


def test_keeping_no_old_file_keeps_none(make: Callable[..., Writer], tmp_path: Path) -> None:
    """With keep 0 a full file is simply begun anew."""
    writer = make(max_size=15, keep=0)
    for letter in "abc":
        writer.write(letter.encode() * 9 + b"\n", 1)
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["audit.jsonl"]
    assert (tmp_path / "log" / "audit.jsonl").read_bytes() == b"c" * 9 + b"\n"


def test_a_batch_larger_than_a_file_is_written_whole(make: Callable[..., Writer], tmp_path: Path) -> None:
    """Lines of one batch are never spread over two files."""
    writer = make(max_size=10, keep=3)
    batch = b"x" * 30 + b"\n"
    assert writer.write(batch, 1)
    assert writer.write(batch, 1)
    assert (tmp_path / "log" / "audit.jsonl.1").read_bytes() == batch
    assert (tmp_path / "log" / "audit.jsonl").read_bytes() == batch


def test_a_reopened_file_is_the_one_that_has_the_name_now(make: Callable[..., Writer], tmp_path: Path) -> None:
    """As after logrotate moved the file away and sent SIGHUP."""
    writer = make()
    writer.write(b"before\n", 1)
    file = tmp_path / "log" / "audit.jsonl"
    file.rename(tmp_path / "moved")
    writer.write(b"still\n", 1)
    writer.reopen()
    writer.write(b"after\n", 1)
    assert (tmp_path / "moved").read_bytes() == b"before\nstill\n"
    assert file.read_bytes() == b"after\n"


def test_a_file_that_cannot_be_opened_is_said_once_a_minute_and_tried_again(
    make: Callable[..., Writer], tmp_path: Path, said: Said
) -> None:
    """Lost records are counted; the first batch after the repair is written."""
    blocked = tmp_path / "log"
    blocked.write_text("a file where a folder should be")
    writer = make()
    assert not writer.write(b"1\n2\n", 2)
    assert not writer.write(b"3\n", 1)
    assert len(said.lines) == 1
    assert "audit.jsonl" in said.lines[0]
    said.now += REPORT_EVERY
    assert not writer.write(b"4\n", 1)
    assert len(said.lines) == 2
    assert "4 records" in said.lines[1]
    blocked.unlink()
    assert writer.write(b"5\n", 1)
    assert (blocked / "audit.jsonl").read_bytes() == b"5\n"


def test_a_disk_that_fills_up_never_leaves_half_a_line(make: Callable[..., Writer], tmp_path: Path, said: Said) -> None:
    """A write that fits only in part is taken back; the file goes on as soon as there is room."""
    writer = make()
    assert writer.write(b"whole\n", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
        assert not writer.write(b"too long\n", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert writer.write(b"again\n", 1)
    assert (tmp_path / "log" / "audit.jsonl").read_bytes() == b"whole\nagain\n"
    assert len(said.lines) == 1


def test_a_full_device_is_counted_and_said(make: Callable[..., Writer], said: Said) -> None:
    """/dev/full refuses every write; it is no regular file and is neither rotated nor cut."""
    writer = make(file="/dev/full", max_size=1)
    assert not writer.write(b"lost\n", 1)
    assert "No space left on device" in said.lines[0]


def test_a_failed_rotation_lets_the_file_grow(make: Callable[..., Writer], tmp_path: Path, said: Said) -> None:
    """Too long is better than lost."""
    writer = make(max_size=10, keep=1)
    writer.write(b"12345678\n", 1)
    (tmp_path / "log" / "audit.jsonl.1").mkdir()
    assert writer.write(b"abcdefgh\n", 1)
    assert (tmp_path / "log" / "audit.jsonl").read_bytes() == b"12345678\nabcdefgh\n"
    assert "rotation" in said.lines[0]


def _run(code: str, stdout: int) -> subprocess.CompletedProcess[str]:
    text = f"from egressd.audit import Writer\nfrom egressd.settings import Audit\n{code}"
    return subprocess.run(
        [sys.executable, "-c", text], stdout=stdout, stderr=subprocess.PIPE, text=True, check=True, timeout=60
    )


def test_standard_output_gets_the_lines_too(tmp_path: Path) -> None:
    """With `stdout: true` both outputs get every line; without a file, standard output alone."""
    file = tmp_path / "audit.jsonl"
    done = _run(f"Writer(Audit(file={str(file)!r}, stdout=True)).write(b'line\\n', 1)", subprocess.PIPE)
    assert (done.stdout, file.read_text()) == ("line\n", "line\n")
    done = _run("print(Writer(Audit(file='', stdout=True)).write(b'line\\n', 1), flush=True)", subprocess.PIPE)
    assert done.stdout == "line\nTrue\n"


def test_a_broken_standard_output_is_said_and_the_file_goes_on(tmp_path: Path) -> None:
    """A closed pipe must not end the audit trail on the disk."""
    file = tmp_path / "audit.jsonl"
    reading, writing = os.pipe()
    os.close(reading)
    done = _run(f"Writer(Audit(file={str(file)!r}, stdout=True)).write(b'line\\n', 1)", writing)
    os.close(writing)
    assert file.read_text() == "line\n"
    assert "standard output: Broken pipe" in done.stderr
