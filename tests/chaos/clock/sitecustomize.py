"""A wall clock that can be put forward and back under one program, while the machine's own stays as it is.

Python imports this before the program, where PYTHONPATH leads here. `time.time`, the only wall clock that egressd
reads, then differs from the machine's by the seconds that the file CHAOS_CLOCK holds (a double in the machine's byte
order).
"""

from __future__ import annotations

import mmap
import os
import struct
import time

if "CHAOS_CLOCK" in os.environ:
    with open(os.environ["CHAOS_CLOCK"], "rb") as _file:  # noqa: PTH123 - nothing else is imported this early
        _offset = mmap.mmap(_file.fileno(), 8, prot=mmap.PROT_READ)
    _real = time.time

    def _time() -> float:
        """Seconds since the epoch, as this program is made to believe."""
        seconds: float = struct.unpack("=d", _offset)[0]
        return _real() + seconds

    time.time = _time
