"""Answers understood once: what an upstream says again in the same words, but for the ID, is the answer it was."""

from __future__ import annotations

from typing import Final

from egressd.memo import Memo
from egressd.wire import Answer, Question, read_answer

__all__ = ["Understood"]

ANSWERS: Final = 1024
"""Remembered per generation: 1.5 MiB of answers, of 512 octets at most, as nearly all are."""
LARGEST: Final = 512


class Understood:
    """Reads answers, each of at most `max_records` records."""

    __slots__ = ("_last", "_max_records")

    def __init__(self, max_records: int) -> None:
        self._max_records = max_records
        self._last: Memo[bytes, Answer] = Memo(ANSWERS, slow=True)

    def read(self, data: bytes, question: Question) -> Answer:
        """The answer that `data` hold, which may be the very one of last time. Raises `WireError` (`read_answer`)."""
        last = self._last.get(question.key)
        if last is not None and len(last.data) == len(data) and last.data[2:] == data[2:]:
            return last
        answer = read_answer(data, question, self._max_records)
        if len(data) <= LARGEST:
            self._last.put(question.key, answer)
        return answer
