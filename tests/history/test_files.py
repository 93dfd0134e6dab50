"""The file of history: bounded on the disk whatever comes, and never in the way when it is bad."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from egressd.history import Filter, Keeper, Key, Sums, Trace
from egressd.history.book import Book
from egressd.history.folding import PER_DOMAIN, Folding
from egressd.history.hours import HOUR_S, KEPT, PART
from egressd.history.pending import Pending
from egressd.history.reading import edges, observations, survey
from egressd.history.store import PRUNED, Store
from egressd.settings import History

from .lines import DAY, FIRST, all_of, dns, everything, kept, many

# -------------------------------------------------------------------------------------------------------- bounds


def test_rows_are_bounded(tmp_path: Path) -> None:
    """The oldest day goes first, what is kept is whole, and since when it is whole is known."""
    store = Store(tmp_path / "history.db", 3 * PRUNED, 1 << 28, DAY)
    for day in range(8):
        store.write(many(PRUNED, day))
        assert store.rows <= 3 * PRUNED
        assert store.rows == store.connection.execute("SELECT count(*) FROM observations").fetchone()[0]
    begun = store.facts["begun"]
    assert survey(store, 0.0, {"rule"}, 60.0, lambda _: None) == begun > DAY
    seen = observations(store, Filter(), 50_000)[0]
    whole = Counter(one.key.day for one in seen if one.key.day * 86_400 >= begun)
    assert set(whole.values()) == {PRUNED}
    assert max(whole) == FIRST + 7
    store.close()


def test_one_day_that_is_too_much(tmp_path: Path) -> None:
    """Where there is but one day, what was not seen for longest goes."""
    store = Store(tmp_path / "history.db", 1000, 1 << 28, DAY)
    store.write(many(3000, 0))
    late = {key: sums._replace(last_seen=sums.last_seen + 50) for key, sums in many(1, 0, "late").items()}
    store.write(late)
    store.write(many(500, 0, "more"))
    assert 0 < store.rows <= 1000
    assert "late0.example" in {one.key.name for one in observations(store, Filter(), 2000)[0]}
    store.close()


def test_octets_are_bounded(tmp_path: Path) -> None:
    """A flood of long names ends at the bound, the write-ahead log included, and the newest is there."""
    bound = 16 * 1024 * 1024
    store = Store(tmp_path / "history.db", 10_000_000, bound, DAY)
    for day in range(10):
        store.write(many(8000, day, prefix="x" * 180))
        assert store.octets <= bound
    assert store.days[0] == FIRST + 9
    assert store.rows > 8000
    store.close()


def test_a_flood_of_names_is_a_handful_of_rows(tmp_path: Path) -> None:
    """A hundred thousand names of one workload under one domain cost its budget of rows, and every one is counted."""
    book = Book(History(str(tmp_path / "history.db")))
    pending = Pending(Folding())
    line = dns("zzz.tunnel.example")
    for start in range(0, 100_000, 10_000):
        pending.feed(b"".join(line.replace(b"zzz", b"r%d" % one) for one in range(start, start + 10_000)))
        assert book.write(pending.take()) == {}
    assert book.rows == PER_DOMAIN + 1
    found = all_of(book)
    assert sum(one.sums.number for one in found) == 100_000
    book.close()


# ----------------------------------------------------------------------------------------------------- bad files


def _garbage(file: Path) -> None:
    file.write_bytes(os.urandom(20_000))


def _half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2 // 4096 * 4096])


def _holes(file: Path) -> None:
    octets = bytearray(file.read_bytes())
    octets[4096:] = b"\x55" * (len(octets) - 4096)
    file.write_bytes(octets)


def _folder(file: Path) -> None:
    file.unlink()
    (file / "in it").mkdir(parents=True)


def _of_another(file: Path) -> None:
    file.unlink()
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE others (x)")
    other.close()


def _of_tomorrow(file: Path) -> None:
    with sqlite3.connect(file) as other:
        other.execute("PRAGMA user_version = 77")
    other.close()


DAMAGE = [_garbage, _half, _holes, _folder, _of_another, _of_tomorrow]


@pytest.mark.parametrize("spoil", DAMAGE)
def test_a_bad_file_is_set_aside(
    tmp_path: Path, spoil: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """A new one is begun and takes what comes; it is said once and counted, and the bad one is still there."""
    file = tmp_path / "history.db"

    async def fill(keeper: Keeper) -> None:
        for number in range(3000):
            keeper.feed(dns(f"n{number}.d{number % 30}.example"))

    async def go_on(keeper: Keeper) -> None:
        keeper.feed(dns("new.example"))
        counts = await everything(keeper)
        assert counts[0, "new.example", "allowed"] == 1
        assert len(counts) == 1
        assert keeper.counts.failures == 1
        keeper.feed(dns("new.example"))
        await keeper.uses()

    kept(file, fill)
    spoil(file)
    kept(file, go_on)
    assert Path(f"{file}.corrupt").exists()
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "and a new one is begun" in said
    assert kept(file, everything) == {(0, "new.example", "allowed"): 2}


def test_two_bad_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot even be set aside is left alone: history is kept in memory."""
    file = tmp_path / "history.db"
    file.mkdir()
    (tmp_path / "history.db.corrupt" / "full").mkdir(parents=True)

    async def play(keeper: Keeper) -> None:
        keeper.feed(dns("a.example"))
        assert await everything(keeper) == {(0, "a.example", "allowed"): 1}
        keeper.feed(dns("a.example"))
        assert await everything(keeper) == {(0, "a.example", "allowed"): 2}

    kept(file, play)
    assert "cannot be set aside" in capsys.readouterr().err


def test_a_file_that_is_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A running daemon begins a new one."""
    file = tmp_path / "history.db"

    async def play(keeper: Keeper) -> None:
        keeper.feed(dns("old.example"))
        await keeper.uses()
        file.unlink()
        keeper.feed(dns("new.example"))
        assert await everything(keeper) == {(0, "new.example", "allowed"): 1}

    kept(file, play)
    assert file.exists()
    assert "is gone; a new one is begun" in capsys.readouterr().err


def test_a_disk_that_takes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """History goes on in memory, and moves to the file when the disk is back; said once each."""
    now = [0.0]
    blocked = tmp_path / "blocked"
    blocked.write_text("no folder")
    book = Book(History(str(blocked / "history.db")), clock=lambda: DAY, monotonic=lambda: now[0])

    def feed(*names: str) -> dict[str, int]:
        pending = Pending(Folding())
        pending.feed(b"".join(map(dns, names)))
        assert book.write(pending.take()) == {}
        found = all_of(book)
        return {one.key.name: one.sums.number for one in found}

    assert feed("a.example") == {"a.example": 1}
    assert feed("a.example", "b.example") == {"a.example": 2, "b.example": 1}
    now[0] += 100
    assert feed("b.example") == {"a.example": 2, "b.example": 2}
    blocked.unlink()
    assert feed("c.example")["b.example"] == 2
    assert not blocked.exists()
    now[0] += 100
    assert feed("c.example") == {"a.example": 2, "b.example": 2, "c.example": 2}
    assert (blocked / "history.db").exists()
    assert book.failures == 2
    book.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "history is kept in memory meanwhile" in said[0]
    assert "can be written again" in said[1]


def test_a_full_disk(tmp_path: Path) -> None:
    """No octet is left on the file system: nothing raises, questions are answered, and nothing is lost for good."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    assert os.spawnvp(os.P_WAIT, "mount", mounted) == 0
    try:
        now = [0.0]
        book = Book(History(str(folder / "history.db")), clock=lambda: DAY, monotonic=lambda: now[0])
        assert book.write(many(10, 0)) == {}
        ballast = folder / "ballast"
        with pytest.raises(OSError, match="No space"):
            ballast.write_bytes(bytes(8 << 20))
        left = book.write(many(4000, 1))
        found = all_of(book)
        assert len(found) + len(left) >= 4000
        assert book.failures
        ballast.unlink()
        now[0] += 100
        assert book.write({**left, **many(10, 2)}) == {}
        found = all_of(book)
        assert Counter(one.key.day - FIRST for one in found) == {0: 10, 1: 4000, 2: 10}
        book.close()
    finally:
        assert os.spawnvp(os.P_WAIT, "umount", ["umount", str(folder)]) == 0


def test_two_daemons(tmp_path: Path) -> None:
    """During a hand-over both write to one file, in turn, and neither loses anything."""
    first, second = (Book(History(str(tmp_path / "history.db"))) for _ in range(2))
    for number in range(20):
        assert (first, second)[number % 2].write(many(5, 0, f"n{number % 4}-")) == {}
    found = all_of(first)
    assert sum(one.sums.number for one in found) == 100
    first.close()
    assert second.write(many(1, 0, "last")) == {}
    second.close()


def test_another_daemon_that_does_not_let_go(tmp_path: Path) -> None:
    """What cannot be written now is written later; the file is not to blame."""
    file = tmp_path / "history.db"
    book = Book(History(str(file)))
    assert book.write(many(1, 0)) == {}
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    left = book.write(many(3, 0, "late"))
    assert len(left) == 3
    other.rollback()
    other.close()
    assert book.write(left) == {}
    assert (book.rows, book.failures) == (4, 0)
    book.close()


def test_a_question_that_takes_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in time, says that there is more, and a survey says since when it saw everything."""
    store = Store(tmp_path / "history.db", 100_000, 1 << 28, DAY)
    for day in range(3):
        store.write(many(2000, day))
    monkeypatch.setattr("egressd.history.reading.ANSWER_S", 0.0)
    monkeypatch.setattr("egressd.history.reading.STEPS", 100)
    assert observations(store, Filter(), 10_000)[1]
    monkeypatch.setattr("egressd.history.reading.ANSWER_S", 60.0)
    assert not observations(store, Filter(), 10_000)[1]
    store.hurried = True  # the daemon ends
    assert observations(store, Filter(), 10_000)[1]
    store.hurried = False
    seen: list[Trace] = []
    assert survey(store, 0.0, {"rule"}, 0.0, seen.append) > DAY
    assert len(seen) < 2000
    seen.clear()
    assert survey(store, 0.0, {"rule"}, 60.0, seen.append) == DAY
    assert len(seen) == 2000
    assert {one.last_seen for one in seen} == {int(DAY) + 2 * 86_400 + 2}
    assert survey(store, 0.0, {"deny-rule"}, 60.0, seen.append) == DAY
    assert len(seen) == 2000
    store.close()


# ---------------------------------------------------------------------------------------------------------- hours


def seen(name: str, hour: float, number: int = 1) -> dict[Key, Sums]:
    """So many queries for a name, that many hours after the first midnight."""
    ((key, _),) = many(1, int(hour // 24)).items()
    second = int(DAY + hour * HOUR_S)
    return {key._replace(name=name): Sums(second, second, number, 0)}


def counted(store: Store, since_hour: float) -> dict[str, int]:
    """Queries by name on the map since so many hours after the first midnight."""
    found, more = edges(store, Filter(since=DAY + since_hour * HOUR_S), 1000)
    assert not more
    return {edge.name: traffic.queries for edge, traffic in found.items()}


def test_the_last_hour(tmp_path: Path) -> None:
    """The map of a time within the last day counts what was in its hours; since a midnight, or longer ago, days."""
    store = Store(tmp_path / "history.db", 1_000_000, 1 << 28, DAY)
    for hour in (1.0, 22.5, 23.5, 24.5):
        store.write(seen("a.example", hour))
    store.write(seen("b.example", 1.0, 5))
    assert counted(store, 23.1) == {"a.example": 2}
    assert counted(store, 24.0) == {"a.example": 1}
    assert counted(store, 22.0) == {"a.example": 3}
    assert counted(store, 0.5) == {"a.example": 4, "b.example": 5}
    store.write(seen("a.example", 24.6))
    assert counted(store, 24.5) == {"a.example": 2}
    store.close()


def test_hours_are_bounded(tmp_path: Path) -> None:
    """Those of the last day stay; what they lack is told by days."""
    store = Store(tmp_path / "history.db", 1_000_000, 1 << 28, DAY)
    for hour in range(60):
        store.write(seen("a.example", hour + 0.5))
    assert len(store.hours_since(DAY + 36 * HOUR_S) or ()) == KEPT - 1
    assert counted(store, 36.1) == {"a.example": 24}
    assert store.hours_since(DAY + 30.5 * HOUR_S) is None
    assert counted(store, 30.5) == {"a.example": 24 + 12}
    store.close()


def test_rows_of_hours_are_bounded(tmp_path: Path) -> None:
    """They are a part of `max_rows`, and never cost a day its rows; what lacks is told by days."""
    store = Store(tmp_path / "history.db", PART * PRUNED, 1 << 28, DAY)
    for hour in range(3):
        store.write(many(PRUNED, 0, f"h{hour}-"))
        assert store.connection.execute("SELECT count(*) FROM hours").fetchone()[0] <= PRUNED
    assert store.rows == 3 * PRUNED
    assert store.hours_since(DAY + 1) is None
    store.close()


def test_a_full_file_gives_up_hours_first(tmp_path: Path) -> None:
    """Days go when that is not enough."""
    store = Store(tmp_path / "history.db", 10_000_000, 16 * 1024 * 1024, DAY)
    for day in range(3):
        store.write(many(8000, day, prefix="x" * 180))
    assert store.rows == 3 * 8000
    assert store.connection.execute("SELECT count(*) FROM hours").fetchone()[0] < 3 * 8000
    store.close()


def test_a_file_of_an_older_release(tmp_path: Path) -> None:
    """It gets the table of hours, whole from then on; what it has stays, and is told by days."""
    file = tmp_path / "history.db"
    store = Store(file, 1_000_000, 1 << 28, DAY)
    store.write(seen("a.example", 1.0))
    for what in ("TRIGGER counted_by_hour", "TABLE hours", "TABLE hour_rows"):
        store.connection.execute(f"DROP {what}")
    store.connection.execute("DELETE FROM facts WHERE name = 'hours'")
    store.close()
    store = Store(file, 1_000_000, 1 << 28, DAY + 2.5 * HOUR_S)
    store.write(seen("a.example", 3.0))
    assert counted(store, 0.5) == {"a.example": 2}
    assert counted(store, 2.6) == {"a.example": 1}
    store.close()


def test_hours_in_memory_are_not_those_of_the_file(tmp_path: Path) -> None:
    """What was kept in memory while the disk was away is told by days."""
    now, blocked = [0.0], tmp_path / "blocked"
    blocked.write_text("no folder")
    book = Book(History(str(blocked / "history.db")), clock=lambda: DAY, monotonic=lambda: now[0])

    def asked(since_hour: float) -> dict[str, int]:
        nothing: dict[str, int] = {}
        return book.read(lambda store: counted(store, since_hour), nothing)

    assert book.write(seen("a.example", 1.0, 3)) == {}
    assert asked(0.5) == {"a.example": 3}
    blocked.unlink()
    now[0] += 100
    assert book.write(seen("a.example", 2.0)) == {}
    assert asked(0.5) == {"a.example": 4}
    assert asked(1.5) == {"a.example": 1}
    book.close()
