"""Answers that need not be asked for: kept per question, not per pod, and behind every verdict (dns.md, Cache).

What is kept is the upstream's answer as it was read; each pod that gets it is judged, granted and recorded afresh.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from egressd.cache import Entry, TtlCache
from egressd.compiled import mypyc_attr
from egressd.wire import Answer

if TYPE_CHECKING:
    from egressd.names import Name
    from egressd.settings import Cache
    from egressd.wire import Question

__all__ = ["Kept", "Refresh", "Store", "failed"]

MAX_TTL_S: Final = 86_400
"""Longest an answer is kept, whatever its TTL says (RFC 8767 section 4 asks for a bound of this order)."""
MAX_NEGATIVE_TTL_S: Final = 3_600
"""Longest that a name is remembered not to exist (RFC 2308 section 5: one to three hours)."""

ADDRESS_TYPES: Final = (1, 28, 65)
"""A, AAAA and HTTPS (RFC 9460, whose hints are addresses)."""

NOERROR: Final = 0
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
REFUSED: Final = 5


class Refresh(NamedTuple):
    """A question that is asked for the cache alone, so that a popular name is there when its TTL ends."""

    question: Question


@mypyc_attr(acyclic=True)
class Kept:
    """An answer: how old it is, whether it is past its TTL, and where it is kept, unless it came just now."""

    __slots__ = ("age", "answer", "entry", "stale")

    def __init__(
        self, answer: Answer, age: int = 0, *, stale: bool = False, entry: Entry[Answer] | None = None
    ) -> None:
        self.answer = answer
        self.age = age
        self.stale = stale
        self.entry = entry


class Store:
    """The cache as the exchange uses it."""

    def __init__(self, settings: Cache, counters: Counter[str]) -> None:
        self._cache: TtlCache[bytes, Answer] = TtlCache(settings.size, settings.bytes, settings.serve_stale)
        self._counters = counters
        self._on = settings.size > 0

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def octets(self) -> int:
        return self._cache.octets

    def find(self, question: Question, now: float) -> tuple[Kept | None, bool]:
        """A fresh answer, if there is one, and whether it should be asked for anew meanwhile."""
        if not self._on:
            return None, False
        entry = self._cache.get(question.key, now)
        if entry is None:
            self._counters["cache_misses"] += 1
            return None, False
        self._counters["cache_hits"] += 1
        return Kept(entry.value, entry.age(now), entry=entry), entry.worth_refreshing(now)

    def hit(self, entry: Entry[Answer]) -> None:
        """An answer that `find` gave before was given again."""
        entry.hit()
        self._counters["cache_hits"] += 1

    def stale(self, question: Question, now: float) -> Kept | None:
        """What may be served although nobody answers (RFC 8767)."""
        entry: Entry[Answer] | None = self._cache.stale(question.key, now)
        if entry is None:
            return None
        fresh = entry.expires > now
        return Kept(entry.value, entry.age(now), stale=not fresh, entry=entry)

    def last(self, name: Name, now: float) -> list[tuple[Answer, int]]:
        """The latest answers about a name that led to addresses, one for each type, and their age in seconds; expired
        ones too, as long as they are kept. For explanations: nobody counts as having asked."""
        labels = [label.encode() for label in name.split(".")]
        wire = b"".join([*(bytes((len(label),)) + label for label in labels), b"\0"])
        found = []
        for qtype in ADDRESS_TYPES:
            asked = wire + qtype.to_bytes(2) + b"\0\1"
            entries = [entry for flags in range(8) if (entry := self._cache.peek(asked + bytes((flags,)))) is not None]
            if entries:
                entry = max(entries, key=lambda one: one.stored)
                found.append((entry.value, entry.age(now)))
        return found

    def keep(self, question: Question, answer: Answer | Any, now: float) -> None:
        """Keep what upstream said, for as long as it says."""
        if self._on and isinstance(answer, Answer):
            self._cache.put(question.key, answer, len(answer.data), _lifetime(answer), now)

    def expire(self, now: float) -> None:
        """Drop what is too old for anything. Call it about once a second."""
        self._cache.expire(now)


def failed(answer: Answer | Any) -> bool:
    """Whether this is no answer, so that a stale one is better (RFC 8767 section 4)."""
    return not isinstance(answer, Answer) or answer.rcode in (SERVFAIL, REFUSED)


def _lifetime(answer: Answer) -> int:
    """Seconds an answer may be kept; 0 for what says nothing lasting (errors, truncated or without TTL)."""
    if answer.truncated or answer.rcode not in (NOERROR, NXDOMAIN):
        return 0
    if answer.rcode == NXDOMAIN or answer.negative_ttl >= 0:
        negative = min(answer.negative_ttl, MAX_NEGATIVE_TTL_S)
        return negative if answer.ttl < 0 else min(negative, answer.ttl)
    return min(answer.ttl, MAX_TTL_S)
