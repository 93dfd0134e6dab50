"""What fuzzing found, and what it began with, run again through each target: a bug found once stays mended."""

from __future__ import annotations

import pytest

from fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_corpus_is_survived(target: Target) -> None:
    """Every input kept for a target gives a value or the reader's one error."""
    for path in target.inputs():
        target.run(path.read_bytes())
    target.run(b"")


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
def test_corpus_is_there(target: Target) -> None:
    """A missing folder would let the test above pass for nothing, and the fuzzer begin from nothing."""
    assert len(target.inputs()) >= 3
