"""Where one list+watch stands, and what comes next: the one place that keeps versions and the rules of reconnecting.

Sans-IO: answers of the API server in, changes out; no clock, no socket. The rules are those of kubernetes.md
(Decisions): a clean end goes on at the last version; a loss waits and goes on at the same one; a version that is too
old, or that the server does not know, means listing again and telling only what differs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Generic, TypeVar

import msgspec

from egressd.cluster.client import ApiError
from egressd.cluster.objects import Event, Key, Kind, StatusObject, Thing

__all__ = ["GONE", "Changes", "Track", "backoff"]

GONE: Final = 410
"""HTTP and Status code of a version, or of a page of a list, that the server has forgotten."""
PATIENCE: Final = 4
"""Refusals in a row (not losses of the connection) after which a version is given up and the list read again."""
FIRST_S: Final = 0.2
LONGEST_S: Final = 10.0

Changes = dict[Key, Any]
"""The new value of each object that changed, None for one that is gone."""
T = TypeVar("T", bound=Thing)


def backoff(failures: int, chance: float, asked: float | None = None) -> float:
    """Seconds to wait before the next try, after so many failures in a row.

    From 0.2 to 10 s, doubling, less up to half of it by `chance` (0 to 1), so that a thousand nodes do not come back
    at once; never less than the server asked for, within a minute.
    """
    longest = min(LONGEST_S, FIRST_S * 2.0 ** min(failures - 1, 10))
    wait = max(FIRST_S, longest * (1 - chance / 2))
    return max(wait, min(asked, 60.0) * (1 + chance / 4)) if asked is not None else wait


class Track(Generic[T]):
    """What one watch has seen. `version` is where it goes on, empty while everything is to be listed."""

    def __init__(self, kind: Kind[T]) -> None:
        self.kind = kind
        self.version = ""
        self.listed = False
        """Whether everything was listed at least once."""
        self._known: dict[Key, Key] = {}
        self._refusals = 0

    def known(self, key: Key) -> Key | None:
        """`uid` and `resourceVersion` of an object."""
        return self._known.get(key)

    def take_list(self, items: Iterable[T], version: str) -> Changes:
        """A whole list: what differs from what was known, including what vanished meanwhile."""
        self.version, self.listed, self._refusals = version, True, 0
        present: dict[Key, Key] = {}
        changes: Changes = {}
        for item in items:
            present[item.key] = item.version
            if self._known.get(item.key) != item.version:
                changes[item.key] = self.kind.value(item)
        changes |= dict.fromkeys(self._known.keys() - present.keys())
        self._known = present
        return changes

    def take_line(self, line: bytes) -> Changes:
        """One line of a watch. Raises `ApiError`: code 410 for a version too old, 0 for a line that is no event."""
        try:
            event = msgspec.json.decode(line, type=Event)
            if event.type == "ERROR":
                raise _error(event.object)
            item = self.kind.one.decode(event.object)
        except msgspec.MsgspecError as error:
            raise ApiError(f"the API server sent what is no event: {error}") from None
        self._refusals = 0
        self.version = item.metadata.resource_version or self.version
        match event.type:
            case "ADDED" | "MODIFIED" if self._known.get(item.key) != item.version:
                self._known[item.key] = item.version
                return {item.key: self.kind.value(item)}
            case "DELETED" if self._known.pop(item.key, None) is not None:
                return {item.key: None}
        return {}  # a bookmark, or what was known already

    def failed(self, error: ApiError, *, silent: bool) -> bool:
        """A list or watch failed; `silent`: it was a watch that stood and never brought a line. True: list again now.

        A watch that stays silent past its bookmarks may be waiting for a version that the server, restored from a
        backup, will never reach; only a list tells.
        """
        if error.status == GONE or (silent and isinstance(error.__cause__, TimeoutError)):
            self.version = ""
            return True
        self._refusals = self._refusals + 1 if error.status >= 400 and error.status not in {401, 403, 429} else 0
        if self._refusals >= PATIENCE:
            self.version, self._refusals = "", 0
        return False


def _error(status: msgspec.Raw) -> ApiError:
    found = msgspec.json.decode(status, type=StatusObject)
    return ApiError(f"HTTP {found.code}: {found.message or found.reason}", found.code or 500)
