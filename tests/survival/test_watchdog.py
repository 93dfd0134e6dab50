"""A loop that stands still ends the process, with the place it stands at; a process that was stopped goes on."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

PROGRAM = """
import asyncio, re, sys, time
from egressd.agent.watchdog import Watchdog

async def main():
    watchdog = Watchdog(stall_s=1.0, look_s=0.1)
    watchdog.start()
    for _ in range(30):
        watchdog.beat()
        print("beat", flush=True)
        await asyncio.sleep(0.1)
        {trouble}
    watchdog.stop()

asyncio.run(main())
"""


def start(trouble: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{trouble}", trouble)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


ENDS = (1, -signal.SIGPROF)
"""By the thread, by the timer."""
TROUBLES = {
    "waiting": ("time.sleep(60)", ENDS[:1]),
    "spinning": ("while True: pass", ENDS),
    "spinning and holding the interpreter": ("re.match('(a+)+$', 'a' * 60 + 'b')", ENDS[1:]),
}


@pytest.mark.parametrize(("trouble", "codes"), TROUBLES.values(), ids=TROUBLES.keys())
def test_a_stalled_loop_ends_the_process(trouble: str, codes: tuple[int, ...]) -> None:
    """Whether it waits or spins, the process ends and says where."""
    with start(trouble) as process:
        _, errors = process.communicate(timeout=30)
        assert process.returncode in codes
        assert "most recent call first" in errors
        assert "main" in errors


def test_a_stopped_process_goes_on() -> None:
    """The time in which nothing of the process ran does not count."""
    with start("pass") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(3.0)
        process.send_signal(signal.SIGCONT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, "")
