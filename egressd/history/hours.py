"""The last day once more, by hours, so that the map can show the last one: a table beside that of days, with bounds of
its own.

It is written with the same sums as the days' table, each under the hour in which it was seen last: those of one flush
are a few seconds old. What it lacks (a file of an older release, rows that had to go) is answered by days, so it gives
way first where the file is full. Belongs to `store`; raises `sqlite3.Error`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Final

from egressd.history.observation import Key, Sums

__all__ = ["HOUR_S", "KEPT", "Hours"]

HOUR_S: Final = 3600
KEPT: Final = 25
"""Hours that there is something of: this one, and the whole day before it."""
PART: Final = 4
"""One part in so many of `max_rows` may be hours' rows, on top of those of days."""
PRUNED: Final = 4096
"""Rows deleted in one step."""

_SCHEMA: Final = (
    """
CREATE TABLE IF NOT EXISTS hours (
  hour INTEGER NOT NULL, namespace TEXT NOT NULL, workload TEXT NOT NULL, name TEXT NOT NULL, verdict TEXT NOT NULL,
  reason TEXT NOT NULL, policy TEXT NOT NULL, rule TEXT NOT NULL, search INTEGER NOT NULL, event TEXT NOT NULL,
  port INTEGER NOT NULL, protocol TEXT NOT NULL, service_account TEXT NOT NULL, answer TEXT NOT NULL,
  first_seen INTEGER NOT NULL, last_seen INTEGER NOT NULL, count INTEGER NOT NULL, packets INTEGER NOT NULL,
  PRIMARY KEY (hour, namespace, workload, name, verdict, reason, policy, rule, search, event, port, protocol,
    service_account, answer)
) WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS hour_rows (hour INTEGER PRIMARY KEY, rows INTEGER NOT NULL)",
    """
CREATE TRIGGER IF NOT EXISTS counted_by_hour AFTER INSERT ON hours BEGIN
  INSERT OR IGNORE INTO hour_rows VALUES (new.hour, 0);
  UPDATE hour_rows SET rows = rows + 1 WHERE hour = new.hour;
END""",
)
_ADD: Final = f"""
INSERT INTO hours VALUES ({", ".join("?" * 18)})
ON CONFLICT DO UPDATE SET first_seen = min(first_seen, excluded.first_seen),
  last_seen = max(last_seen, excluded.last_seen), count = count + excluded.count, packets = packets + excluded.packets
"""  # noqa: S608 - nothing but question marks is put in
_BORDER: Final = """
SELECT namespace, workload, name FROM hours WHERE hour = ? ORDER BY hour, namespace, workload, name LIMIT 1 OFFSET ?
"""


class Hours:
    """The table of hours in one open database. Whoever calls has begun a transaction wherever something is written."""

    def __init__(self, connection: sqlite3.Connection, max_rows: int) -> None:
        self._connection = connection
        self._max_rows = max(max_rows // PART, 1)

    def create(self, now: float) -> None:
        """Make the table, where there is none; it is whole from now on."""
        for statement in _SCHEMA:
            self._connection.execute(statement)
        self._connection.execute("INSERT OR IGNORE INTO facts VALUES ('hours', ?)", (int(now),))

    def begin(self, since: float) -> None:
        """What was before was not written here."""
        self._connection.execute("UPDATE facts SET value = max(value, ?) WHERE name = 'hours'", (int(since),))

    def add(self, sums: Mapping[Key, Sums]) -> None:
        """Add sums to those of their hours."""
        rows = [(more.last_seen // HOUR_S, *key[1:], *more) for key, more in sums.items()]
        self._connection.executemany(_ADD, rows)

    @property
    def rows(self) -> dict[int, int]:
        """Rows of each hour since the epoch, the newest first."""
        return dict(self._connection.execute("SELECT hour, rows FROM hour_rows ORDER BY hour DESC"))

    @property
    def over(self) -> bool:
        """Whether there is more than may be kept."""
        rows = self.rows
        return len(rows) > KEPT or sum(rows.values()) > self._max_rows

    def forget_some(self) -> bool:
        """Delete some rows of the oldest hour, which is whole no more; false where there is none."""
        hour = min(self.rows, default=None)
        if hour is None:
            return False
        border = self._connection.execute(_BORDER, (hour, PRUNED)).fetchone()
        rest = " AND (namespace, workload, name) <= (?, ?, ?)" if border else ""
        statement = f"DELETE FROM hours WHERE hour = ?{rest}"  # noqa: S608 - ours
        deleted = self._connection.execute(statement, (hour, *(border or ()))).rowcount
        if border and deleted:
            self._connection.execute("UPDATE hour_rows SET rows = rows - ? WHERE hour = ?", (deleted, hour))
        else:
            self._connection.execute("DELETE FROM hour_rows WHERE hour = ?", (hour,))
        self.begin((hour + 1) * HOUR_S)
        return True
