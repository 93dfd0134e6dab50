"""A real folder and real inotify: every way in which people and programs change files is seen, and nothing twice."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from egressd import directory
from egressd.directory import MAX_DEPTH, SETTLE, Folder, Reading
from egressd.errors import EnvironmentProblem

TIMEOUT = 20.0
"""Seconds a change may take on a busy machine; on an idle one it is about 0.1."""


def manifest(*names: str) -> str:
    """Namespaces as a file of manifests."""
    return "".join(f"---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n" for name in names)


def names(reading: Reading) -> list[str] | None:
    """The names of the objects in a reading, or None where it has none to give."""
    return None if reading.objects is None else [getattr(thing, "name", "?") for thing in reading.objects]


def spelled(folder: Folder, readings: list[Reading]) -> dict[str, list[str] | None]:
    """Readings by file name relative to the folder."""
    return {os.path.relpath(reading.file, folder.path): names(reading) for reading in readings}


def scan(folder: Folder, now: float = 0.0) -> dict[str, list[str] | None]:
    """Scan, and spell what differs."""
    return spelled(folder, folder.scan(now))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path))


# ------------------------------------------------------------------------------------------------ one scan


def test_the_first_scan_reads_everything_and_the_next_nothing(folder: Folder, tmp_path: Path) -> None:
    """Sub-folders included; other suffixes and hidden files are not manifests."""
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "a.yaml").write_text(manifest("one", "two"))
    (tmp_path / "sub" / "b.yml").write_text(manifest("three"))
    (tmp_path / "sub" / "deep" / "c.json").write_text('{"kind": "Namespace", "metadata": {"name": "four"}}')
    (tmp_path / "notes.txt").write_text("no manifest")
    (tmp_path / ".hidden.yaml").write_text(manifest("five"))
    assert scan(folder) == {"a.yaml": ["one", "two"], "sub/b.yml": ["three"], "sub/deep/c.json": ["four"]}
    assert scan(folder) == {}


@pytest.mark.parametrize("how", ["write", "rename", "append", "same size and times"])
def test_an_edit_is_seen(folder: Folder, tmp_path: Path, how: str) -> None:
    """In place, by a rename over the file, or so fast that size and times stay the same."""
    file = tmp_path / "a.yaml"
    file.write_text(manifest("one"))
    scan(folder)
    if how == "write":
        file.write_text(manifest("changed"))
    elif how == "append":
        with file.open("a") as stream:
            stream.write(manifest("two"))
    else:
        other = tmp_path / "a.yaml~"
        other.write_text(manifest("two"))
        if how == "rename":
            other.replace(file)
        else:
            with file.open("r+") as stream:
                stream.write(manifest("two"))
    wanted = {"write": ["changed"], "append": ["one", "two"]}.get(how, ["two"])
    assert scan(folder) == {"a.yaml": wanted}
    assert scan(folder) == {}


def test_a_file_is_read_twice_before_its_signature_is_believed(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writes within one tick of the file system's clock leave equal signatures; the second is seen all the same."""
    monkeypatch.setattr(directory, "_signature", lambda _status: (1, 2, 3))
    file = tmp_path / "a.yaml"
    file.write_text(manifest("one"))
    assert scan(folder) == {"a.yaml": ["one"]}
    file.write_text(manifest("two"))
    assert scan(folder) == {"a.yaml": ["two"]}


def test_a_touched_file_is_nothing_new(folder: Folder, tmp_path: Path) -> None:
    """Equal content is equal, whatever its times and inode say."""
    file = tmp_path / "a.yaml"
    file.write_text(manifest("one"))
    scan(folder)
    os.utime(file, (1, 1))
    assert scan(folder) == {}
    shutil.copy(file, tmp_path / "copy")
    (tmp_path / "copy").replace(file)
    assert scan(folder) == {}


def test_a_file_that_is_gone_has_no_objects(folder: Folder, tmp_path: Path) -> None:
    """Deleted, moved out of sight, or its folder removed."""
    for name in ("a/1.yaml", "b.yaml", "c.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(manifest("one"))
    scan(folder)
    shutil.rmtree(tmp_path / "a")
    (tmp_path / "b.yaml").unlink()
    (tmp_path / "c.yaml").rename(tmp_path / "c.yaml.off")
    assert scan(folder) == {"a/1.yaml": [], "b.yaml": [], "c.yaml": []}
    assert scan(folder) == {}


@pytest.mark.parametrize(
    ("broken", "line"),
    [(b"kind: Namespace\nmetadata: {name: [}\n", 2), (b"kind: Namespace\n# \xff\n", 2), (b"\xfe", 1)],
    ids=["yaml", "utf-8", "utf-8 at once"],
)
def test_a_broken_file_keeps_its_last_good_objects(folder: Folder, tmp_path: Path, broken: bytes, line: int) -> None:
    """It is told once, with the place, and read again as soon as it changes."""
    file = tmp_path / "a.yaml"
    file.write_text(manifest("one"))
    scan(folder)
    file.write_bytes(broken)
    (reading,) = folder.scan(0.0)
    assert reading.objects is None
    assert (reading.problems[0].file, reading.problems[0].line, reading.problems[0].severity) == (
        str(file),
        line,
        "error",
    )
    assert folder.scan(1.0) == []
    file.write_text(manifest("one", "two"))
    assert scan(folder) == {"a.yaml": ["one", "two"]}


def test_a_file_broken_from_the_start_gives_what_can_be_read(folder: Folder, tmp_path: Path) -> None:
    """With nothing to keep, the good objects of a file are better than none: no policy means no filter."""
    file = tmp_path / "a.yaml"
    file.write_text(manifest("one") + "---\nkind: Namespace\nmetadata: {name: -wrong-}\n")
    (reading,) = folder.scan(0.0)
    assert names(reading) == ["one"]
    assert [problem.severity for problem in reading.problems] == ["error"]
    file.write_text(manifest("one", "two"))
    assert scan(folder) == {"a.yaml": ["one", "two"]}
    file.write_text(manifest("three") + "---\nkind: Namespace\nmetadata: {name: -wrong-}\n")
    assert scan(folder) == {"a.yaml": None}


def test_an_emptied_file_is_waited_for(folder: Folder, tmp_path: Path) -> None:
    """A shell's `>` empties a file long before the program has written: its objects stay meanwhile."""
    file = tmp_path / "a.yaml"
    file.write_text(manifest("one"))
    scan(folder, 0.0)
    file.write_text("")
    assert scan(folder, 10.0) == {}
    assert scan(folder, 10.0 + SETTLE / 2) == {}
    file.write_text(manifest("two"))
    assert scan(folder, 10.0 + SETTLE / 2) == {"a.yaml": ["two"]}
    file.write_text("\n")
    assert scan(folder, 20.0) == {}
    assert scan(folder, 20.0 + 2 * SETTLE) == {"a.yaml": []}


def test_a_link_to_nothing_and_a_ring_of_links_end(folder: Folder, tmp_path: Path) -> None:
    """Links are followed, to a depth."""
    (tmp_path / "a.yaml").write_text(manifest("one"))
    (tmp_path / "nowhere.yaml").symlink_to(tmp_path / "missing")
    (tmp_path / "ring").symlink_to(tmp_path)
    found = scan(folder)
    assert set(map(tuple, filter(None, found.values()))) == {("one",)}
    assert len(found) == MAX_DEPTH + 1


def test_a_file_that_is_no_file_is_passed_over(folder: Folder, tmp_path: Path) -> None:
    """Opening a pipe would hang."""
    os.mkfifo(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").mkdir()
    assert scan(folder) == {}


def test_too_large_a_file_is_refused_once(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on one file is told, and told again only when it was lifted in between."""
    monkeypatch.setattr(directory, "MAX_FILE", 100)
    file = tmp_path / "a.yaml"
    file.write_text(manifest("one") + "#" * 100)
    (reading,) = folder.scan(0.0)
    assert reading.objects is None
    assert "larger than 100 octets" in str(reading.problems[0])
    assert folder.scan(1.0) == []
    file.write_text(manifest("one"))
    assert scan(folder) == {"a.yaml": ["one"]}


def test_too_many_files_lose_nothing(folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound, files are not read; those that are known stay."""
    (tmp_path / "a.yaml").write_text(manifest("one"))
    scan(folder)
    monkeypatch.setattr(directory, "MAX_FILES", 2)
    for number in range(5):
        (tmp_path / f"more{number}.yaml").write_text(manifest("more"))
    readings = folder.scan(0.0)
    assert "more than 2 files" in str(readings[0].problems[0])
    assert all(names(reading) != [] for reading in readings)


def test_a_bare_policy_is_pointed_out(folder: Folder, tmp_path: Path) -> None:
    """A policy document that no ConfigMap holds would be silently without effect."""
    (tmp_path / "a.yaml").write_text("subject: {}\nallow: []\n")
    (reading,) = folder.scan(0.0)
    (warning,) = [problem for problem in reading.problems if problem.severity == "warning"]
    assert "without a ConfigMap" in warning.message


def test_a_folder_that_is_not_there_is_an_environment_problem(tmp_path: Path) -> None:
    """At the start it is an error that says what to do."""
    with pytest.raises(EnvironmentProblem, match=r"No such file.*source\.path"):
        Folder(str(tmp_path / "missing")).check()
    Folder(str(tmp_path)).check()


def test_a_folder_that_vanishes_keeps_its_objects(tmp_path: Path) -> None:
    """A volume that is gone for a moment is no reason to forget who is who; it is told once."""
    (tmp_path / "objects").mkdir()
    (tmp_path / "objects" / "a.yaml").write_text(manifest("one"))
    folder = Folder(str(tmp_path / "objects"))
    assert scan(folder) == {"a.yaml": ["one"]}
    (tmp_path / "objects").rename(tmp_path / "away")
    (reading,) = folder.scan(0.0)
    assert (reading.file, reading.objects) == (folder.path, None)
    assert "cannot be listed: No such file" in str(reading.problems[0])
    assert folder.scan(1.0) == []
    (tmp_path / "away").rename(tmp_path / "objects")
    assert scan(folder) == {}


def test_what_may_not_be_read_keeps_its_objects(tmp_path: Path) -> None:
    """Without capabilities even uid 0 meets permissions: a file and a folder of someone else's, then given back."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.yaml").write_text(manifest("one"))
    (tmp_path / "sub" / "b.yaml").write_text(manifest("two"))
    code = f"""
import os
from egressd.control import privileges
from egressd.directory import Folder
privileges.drop()
folder = Folder({str(tmp_path)!r})
def scan():
    print([(os.path.basename(r.file), r.objects and len(r.objects), [p.message for p in r.problems])
           for r in folder.scan(0.0)])
scan()
os.chmod({str(tmp_path / "a.yaml")!r}, 0)
os.chmod({str(tmp_path / "sub")!r}, 0)
scan()
scan()
os.chmod({str(tmp_path / "a.yaml")!r}, 0o600)
os.chmod({str(tmp_path / "sub")!r}, 0o700)
scan()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    folder = "('sub', None, ['cannot be listed: Permission denied'])"
    file = "('a.yaml', None, ['cannot be read: Permission denied'])"
    assert done.stdout.splitlines() == ["[('a.yaml', 1, []), ('b.yaml', 1, [])]", f"[{folder}, {file}]", "[]", "[]"]


# ------------------------------------------------------------------------------------------------- watching


async def _soon(
    folder: Folder, changes: AsyncGenerator[list[Reading], None], count: int = 1
) -> dict[str, list[str] | None]:
    """What the next changes say, until `count` files have spoken."""
    found: dict[str, list[str] | None] = {}
    async with asyncio.timeout(TIMEOUT):
        while len(found) < count:
            found |= spelled(folder, await anext(changes))
    return found


def _watched(tmp_path: Path, change: Callable[[], None], wanted: dict[str, list[str] | None]) -> None:
    """Watch the folder, change it, and see that exactly `wanted` is told."""

    async def life() -> None:
        folder = Folder(str(tmp_path))
        async with aclosing(folder.changes()) as changes:
            await anext(changes)
            await asyncio.sleep(0.3)  # for inotify to be armed: this test is about events, not about the slow re-scan
            await asyncio.to_thread(change)
            assert await _soon(folder, changes, len(wanted)) == wanted

    asyncio.run(life())


def test_an_edit_is_noticed_by_inotify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any polling, a write in place is told."""
    monkeypatch.setattr(directory, "POLL", 60.0)
    monkeypatch.setattr(directory, "RESCAN", 60.0)
    (tmp_path / "a.yaml").write_text(manifest("one"))
    _watched(tmp_path, lambda: _write(tmp_path / "a.yaml", manifest("two")), {"a.yaml": ["two"]})


def test_an_editor_that_renames_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most editors write another file and rename it over the old one: no moment without objects is told."""
    monkeypatch.setattr(directory, "POLL", 60.0)
    monkeypatch.setattr(directory, "RESCAN", 60.0)
    (tmp_path / "a.yaml").write_text(manifest("one"))

    def edit() -> None:
        _write(tmp_path / ".a.yaml.swp", manifest("two"))
        (tmp_path / "a.yaml").rename(tmp_path / "a.yaml~")
        (tmp_path / ".a.yaml.swp").rename(tmp_path / "a.yaml")

    _watched(tmp_path, edit, {"a.yaml": ["two"]})


def test_a_mounted_configmap_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kubelet writes a new folder and swaps the link `..data` to it (pkg/volume/util/atomic_writer.go)."""
    monkeypatch.setattr(directory, "POLL", 60.0)
    monkeypatch.setattr(directory, "RESCAN", 60.0)

    def publish(version: str, *held: str) -> None:
        (tmp_path / f"..{version}").mkdir()
        _write(tmp_path / f"..{version}" / "a.yaml", manifest(*held))
        (tmp_path / "..data_tmp").symlink_to(f"..{version}")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    publish("v1", "one")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    _watched(tmp_path, lambda: publish("v2", "one", "two"), {"a.yaml": ["one", "two"]})


def test_deletion_and_new_sub_folders_are_noticed(tmp_path: Path) -> None:
    """A file that goes and one that comes in a folder made with it."""
    (tmp_path / "a.yaml").write_text(manifest("one"))

    def change() -> None:
        (tmp_path / "a.yaml").unlink()
        (tmp_path / "new" / "sub").mkdir(parents=True)
        _write(tmp_path / "new" / "sub" / "b.yaml", manifest("two"))

    _watched(tmp_path, change, {"a.yaml": [], "new/sub/b.yaml": ["two"]})


def test_an_edit_behind_a_link_is_found_by_the_slow_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """inotify does not follow a link to a file elsewhere; the re-scan does."""
    monkeypatch.setattr(directory, "RESCAN", 0.5)
    (tmp_path / "objects").mkdir()
    (tmp_path / "real.yaml").write_text(manifest("one"))
    (tmp_path / "objects" / "a.yaml").symlink_to(tmp_path / "real.yaml")
    _watched(tmp_path / "objects", lambda: _write(tmp_path / "real.yaml", manifest("two")), {"a.yaml": ["two"]})


def test_without_inotify_the_folder_is_polled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Used-up inotify limits are told once, as a warning, and edits still take effect."""

    class Refused:
        def __init__(self, *_paths: object, **_options: object) -> None: ...

        def __aiter__(self) -> Refused:
            return self

        async def __anext__(self) -> set[object]:
            raise OSError(24, "OS file watch limit reached")

    monkeypatch.setattr(directory, "awatch", Refused)
    monkeypatch.setattr(directory, "RESCAN", 60.0)
    (tmp_path / "a.yaml").write_text(manifest("one"))

    async def life() -> None:
        folder = Folder(str(tmp_path))
        told: list[Reading] = []
        async with aclosing(folder.changes()) as changes, asyncio.timeout(TIMEOUT):
            await anext(changes)
            _write(tmp_path / "a.yaml", manifest("two"))
            while len(told) < 2:
                told += await anext(changes)
            _write(tmp_path / "a.yaml", manifest("three"))
            told += await anext(changes)
        warnings = [str(problem) for reading in told for problem in reading.problems]
        assert len(warnings) == 1
        assert "warning: cannot be watched" in warnings[0]
        assert [names(reading) for reading in told if reading.objects] == [["two"], ["three"]]

    asyncio.run(life())


def test_a_replaced_folder_is_watched_again(tmp_path: Path) -> None:
    """When the folder itself is swapped for another, its files count and its later edits are noticed."""
    objects, fresh = tmp_path / "objects", tmp_path / "fresh"
    for path, name in ((objects, "one"), (fresh, "two")):
        path.mkdir()
        _write(path / "a.yaml", manifest(name))

    async def life() -> None:
        folder = Folder(str(objects))
        async with aclosing(folder.changes()) as changes:
            await anext(changes)
            objects.rename(tmp_path / "old")
            fresh.rename(objects)
            assert await _soon(folder, changes) == {"a.yaml": ["two"]}
            _write(objects / "a.yaml", manifest("three"))
            assert await _soon(folder, changes) == {"a.yaml": ["three"]}

    asyncio.run(life())


def test_a_poke_makes_it_look_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever re-reads settings need not wait for a change of a file."""
    monkeypatch.setattr(directory, "RESCAN", 60.0)

    async def life() -> None:
        folder = Folder(str(tmp_path))
        async with aclosing(folder.changes()) as changes, asyncio.timeout(TIMEOUT):
            assert await anext(changes) == []
            folder.poke()
            assert await anext(changes) == []

    asyncio.run(life())


def _write(file: Path, text: str) -> None:
    file.write_text(text)
