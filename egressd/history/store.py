"""The file of history: one SQLite database, bounded in rows and octets, the oldest day pruned first.

The only home of sqlite3 beside `hours` and `reading`. Everything here blocks as long as the disk does and belongs to
one thread at a time; every failure is a `sqlite3.Error` or an `OSError`, and `book` knows what becomes of it.

WAL (https://sqlite.org/wal.html), so that a reader and a writer, or two daemons during a hand-over, never wait for
each other's disk; `synchronous = NORMAL`, so that a power cut may cost the last seconds but never the file.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from egressd.history.hours import HOUR_S, Hours
from egressd.history.observation import DAY_S, Key, Sums, Use

__all__ = ["BATCH", "BUSY_S", "VERSION", "ForeignFile", "Store"]

VERSION: Final = 1
PAGE: Final = 4096
BATCH: Final = 512
"""Rows of one transaction: each may touch a page of its own, so the log grows by 2 MiB at most before it is emptied."""
LOG: Final = 6 * 1024 * 1024
"""Octets of `max_bytes` kept free for the write-ahead log and its index."""
LEAST: Final = 1024 * 1024
"""Octets below which a database is of no use."""
BUSY_S: Final = 1.0
"""Seconds to wait for another daemon's transaction."""
CACHE_KIB: Final = 2048
PRUNED: Final = 4096
"""Rows deleted in one transaction."""
ROOM: Final = 0.9
"""Part of the rows and pages that is left after pruning."""
MAX_USES: Final = 100_000
"""Rules whose use is remembered, those of policies that are gone included."""
MAX_PEERS: Final = 200_000
"""Peers of policies of which it is remembered since when they are there."""

_SCHEMA: Final = (
    """
CREATE TABLE observations (
  day INTEGER NOT NULL, namespace TEXT NOT NULL, workload TEXT NOT NULL, name TEXT NOT NULL, verdict TEXT NOT NULL,
  reason TEXT NOT NULL, policy TEXT NOT NULL, rule TEXT NOT NULL, search INTEGER NOT NULL, event TEXT NOT NULL,
  port INTEGER NOT NULL, protocol TEXT NOT NULL, service_account TEXT NOT NULL, answer TEXT NOT NULL,
  first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL, count INTEGER NOT NULL, packets INTEGER NOT NULL,
  PRIMARY KEY (day, namespace, workload, name, verdict, reason, policy, rule, search, event, port, protocol,
    service_account, answer)
) WITHOUT ROWID""",
    "CREATE TABLE days (day INTEGER PRIMARY KEY, rows INTEGER NOT NULL)",
    """
CREATE TRIGGER counted AFTER INSERT ON observations BEGIN
  INSERT OR IGNORE INTO days VALUES (new.day, 0);
  UPDATE days SET rows = rows + 1 WHERE day = new.day;
END""",
    """
CREATE TABLE uses (
  policy TEXT NOT NULL, rule TEXT NOT NULL, count INTEGER NOT NULL, last_seen INTEGER NOT NULL,
  PRIMARY KEY (policy, rule)
) WITHOUT ROWID""",
    """
CREATE TABLE peers (
  policy TEXT NOT NULL, peer TEXT NOT NULL, since INTEGER NOT NULL, PRIMARY KEY (policy, peer)
) WITHOUT ROWID""",
    "CREATE TABLE facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
)
_ADD: Final = f"""
INSERT INTO observations VALUES ({", ".join("?" * 18)})
ON CONFLICT DO UPDATE SET first_seen = min(first_seen, excluded.first_seen),
  last_seen = max(last_seen, excluded.last_seen), count = count + excluded.count, packets = packets + excluded.packets
"""  # noqa: S608 - nothing but question marks is put in
_ADD_USE: Final = """
INSERT INTO uses VALUES (?, ?, ?, ?)
ON CONFLICT DO UPDATE SET count = count + excluded.count, last_seen = max(last_seen, excluded.last_seen)
"""


class ForeignFile(sqlite3.DatabaseError):
    """A database, but none that this version can use."""


class Store:
    """One open database; `path` None: in memory, gone when it is closed. Raises `sqlite3.Error` and `OSError`."""

    def __init__(self, path: Path | None, max_rows: int, max_bytes: int, now: float) -> None:
        self._max_rows = max_rows
        usable = max(max_bytes, LEAST)
        self._max_pages = max(usable - LOG, usable // 2) // PAGE
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))  # its log gets the same mode
        self.path = path
        self.hurried = False
        """Whether questions are to end now; set by another thread."""
        self.inode = path.stat().st_ino if path is not None else 0
        place = ":memory:" if path is None else str(path)
        self.connection = sqlite3.connect(place, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self.connection.text_factory = _text
        self._hours = Hours(self.connection, max_rows)
        try:
            self._prepare(now)
        except BaseException:
            self.connection.close()
            raise

    def _prepare(self, now: float) -> None:
        run = self.connection.execute
        for pragma in (
            f"page_size = {PAGE}",
            "auto_vacuum = INCREMENTAL",  # heeded while the file is empty
            "journal_mode = WAL",
            "synchronous = NORMAL",
            f"cache_size = -{CACHE_KIB}",
            f"wal_autocheckpoint = {BATCH}",
            f"journal_size_limit = {LOG // 2}",
            "trusted_schema = OFF",
        ):
            run(f"PRAGMA {pragma}").fetchall()
        if self._number("PRAGMA user_version") == 0:
            with self._transaction():
                self._create(now)
        if self._number("PRAGMA user_version") != VERSION:
            raise ForeignFile(f"it is not of version {VERSION}")
        run(f"PRAGMA max_page_count = {self._max_pages}").fetchall()
        if "hours" not in self.facts:
            with self._transaction():
                self._hours.create(now)
        self._number("SELECT value FROM facts WHERE name = 'begun'")

    def _create(self, now: float) -> None:
        """Make the tables, unless another daemon has just done so."""
        if self._number("PRAGMA user_version"):
            return
        if self._number("SELECT count(*) FROM sqlite_schema"):
            raise ForeignFile("it is the database of another program")
        for statement in _SCHEMA:
            self.connection.execute(statement)
        self.connection.execute("INSERT INTO facts VALUES ('begun', ?)", (int(now),))
        self.connection.execute(f"PRAGMA user_version = {VERSION}")

    def close(self) -> None:
        """Close it; what was written stays."""
        self.connection.close()

    # ---------------------------------------------------------------------------------------------------- facts

    @property
    def rows(self) -> int:
        """Observations there are."""
        return self._number("SELECT coalesce(sum(rows), 0) FROM days")

    @property
    def octets(self) -> int:
        """Size on the disk, the log included; in memory what the pages take."""
        if self.path is None:
            return self._number("PRAGMA page_count") * PAGE
        files = (self.path, Path(f"{self.path}-wal"), Path(f"{self.path}-shm"))
        return sum(file.stat().st_size for file in files if file.exists())

    @property
    def days(self) -> list[int]:
        """Days of which there is something, the newest first."""
        return [day for (day,) in self.connection.execute("SELECT day FROM days ORDER BY day DESC")]

    @property
    def facts(self) -> dict[str, int]:
        """Since when nothing lacks (`begun`), allowed flows are recorded (`flows`), hours are whole (`hours`); in s."""
        return dict(self.connection.execute("SELECT name, value FROM facts"))

    def hours_since(self, since: float) -> list[int] | None:
        """The hours of which there is something, from a time in seconds on, the newest first; None where some lack.

        What begins with a day is told by days: that is less to read.
        """
        facts = self.facts
        if since % DAY_S == 0 or facts["hours"] > max(since, facts["begun"]):
            return None
        return [hour for hour in self._hours.rows if hour >= since // HOUR_S]

    @property
    def uses(self) -> dict[tuple[str, str], Use]:
        """How often each rule decided, by policy and rule."""
        found = self.connection.execute("SELECT policy, rule, count, last_seen FROM uses")
        return {(policy, rule): Use(count, last) for policy, rule, count, last in found}

    @property
    def peers(self) -> dict[tuple[str, str], int]:
        """Since when each peer of each policy is known, in seconds."""
        found = self.connection.execute("SELECT policy, peer, since FROM peers")
        return {(policy, peer): since for policy, peer, since in found}

    def _number(self, statement: str, *values: object) -> int:
        row = self.connection.execute(statement, values).fetchone()
        if row is None or not isinstance(row[0], int):
            raise ForeignFile(f"it has no answer to {statement}")
        return row[0]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self.connection.in_transaction:
                self.connection.rollback()
            raise
        self.connection.commit()

    # -------------------------------------------------------------------------------------------------- writing

    def write(self, sums: dict[Key, Sums], *, hourly: bool = True) -> None:
        """Add sums to what is there, in several transactions; what is written is taken out of `sums`.

        Not `hourly`: those are of whole days, and of hours nothing is known before now.
        """
        keys = sorted(sums)
        for start in range(0, len(keys), BATCH):
            batch = keys[start : start + BATCH]
            self._add({key: sums[key] for key in batch}, hourly=hourly)
            for key in batch:
                del sums[key]
            self._prune()

    def _add(self, sums: Mapping[Key, Sums], *, hourly: bool) -> None:
        used: dict[tuple[str, str], Use] = {}
        for key, (_, last, count, _) in sums.items():
            if key.policy:
                before = used.get((key.policy, key.rule), Use(0, 0))
                used[key.policy, key.rule] = Use(before.number + count, max(before.last_seen, last))
        with self._transaction():
            self.connection.executemany(_ADD, [(*key, *more) for key, more in sums.items()])
            self.connection.executemany(_ADD_USE, [(*rule, *use) for rule, use in used.items()])
            if hourly:
                self._hours.add(sums)
            else:
                self._hours.begin(max(more.last_seen for more in sums.values()) + 1)

    def know(self, peers: Mapping[str, Iterable[str]], now: float) -> None:
        """These are the peers of all policies now: those that were not there are new, those that are gone are not.

        Policy by policy: a thousand of them have tens of thousands of peers, which need not be in memory together.
        """
        run, run_all = self.connection.execute, self.connection.executemany
        with self._transaction():
            present = [policy for (policy,) in run("SELECT DISTINCT policy FROM peers")]
            run_all("DELETE FROM peers WHERE policy = ?", [(policy,) for policy in present if policy not in peers])
            room = MAX_PEERS - self._number("SELECT count(*) FROM peers")
            for policy, all_of_it in peers.items():
                wanted = set(all_of_it)
                known = {peer for (peer,) in run("SELECT peer FROM peers WHERE policy = ?", (policy,))}
                gone, new = known - wanted, sorted(wanted - known)[: room + len(known - wanted)]
                run_all("DELETE FROM peers WHERE policy = ? AND peer = ?", [(policy, peer) for peer in gone])
                run_all("INSERT INTO peers VALUES (?, ?, ?)", [(policy, peer, int(now)) for peer in new])
                room += len(gone) - len(new)
            run(
                "DELETE FROM uses WHERE (policy, rule) IN "
                "(SELECT policy, rule FROM uses ORDER BY last_seen DESC LIMIT -1 OFFSET ?)",
                (MAX_USES,),
            )

    def note_flows(self, recorded: bool, now: float) -> None:
        """Whether allowed flows are recorded from now on, too."""
        if recorded == ("flows" in self.facts):
            return
        with self._transaction():
            if recorded:
                self.connection.execute("INSERT INTO facts VALUES ('flows', ?)", (int(now),))
            else:
                self.connection.execute("DELETE FROM facts WHERE name = 'flows'")

    # -------------------------------------------------------------------------------------------------- pruning

    def _prune(self) -> None:
        """Delete the oldest while there is too much. Each step deletes something, so it ends."""
        while self._hours.over:
            with self._transaction():
                self._hours.forget_some()
        if not self._over(1.0):
            return
        while self._over(ROOM) and (days := self.days):
            with self._transaction():
                if self._full(ROOM) and self._hours.forget_some():
                    continue
                begun = self._delete_some(days[-1], last=len(days) == 1)
                self.connection.execute(
                    "UPDATE facts SET value = max(value, ?) WHERE name = 'begun'", (begun,)
                )  # from here on nothing is missing
        self.connection.execute(f"PRAGMA incremental_vacuum({BATCH})").fetchall()

    def _over(self, part: float) -> bool:
        return self.rows > self._max_rows * part or self._full(part)

    def _full(self, part: float) -> bool:
        pages = self._number("PRAGMA page_count") - self._number("PRAGMA freelist_count")
        return pages > self._max_pages * ROOM * part

    def _delete_some(self, day: int, *, last: bool) -> int:
        """Delete a few thousand rows of a day, of the last one those not seen for longest; returns what it begins."""
        if last:
            number = max(min(PRUNED, self.rows // 10), 1)
            found = self._row("SELECT last_seen FROM observations WHERE day = ? ORDER BY last_seen", day, number - 1)
            border: Sequence[object] = found or (0,)
            deleted = self._delete("day = ? AND last_seen <= ?", day, *border)
            begun = int(border[0]) + 1 if isinstance(border[0], int) else 0
        else:
            order = "day, namespace, workload, name"
            found = self._row(
                f"SELECT namespace, workload, name FROM observations WHERE day = ? ORDER BY {order}",  # noqa: S608 - ours
                day,
                PRUNED,
            )
            rest = " AND (namespace, workload, name) <= (?, ?, ?)" if found else ""
            deleted = self._delete(f"day = ?{rest}", day, *(found or ()))
            begun = (day + 1) * DAY_S
        if deleted and found:
            self.connection.execute("UPDATE days SET rows = rows - ? WHERE day = ?", (deleted, day))
        else:
            self.connection.execute("DELETE FROM days WHERE day = ?", (day,))
        return begun

    def _row(self, statement: str, day: int, skipped: int) -> Sequence[object] | None:
        row: Sequence[object] | None = self.connection.execute(
            f"{statement} LIMIT 1 OFFSET ?", (day, skipped)
        ).fetchone()
        return row

    def _delete(self, condition: str, *values: object) -> int:
        return self.connection.execute(f"DELETE FROM observations WHERE {condition}", values).rowcount  # noqa: S608 - ours


def _text(octets: bytes) -> str:
    """Text of a file that may be broken."""
    return octets.decode(errors="replace")
