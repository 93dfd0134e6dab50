"""What happens to the node itself: its disk, its descriptors, its clock, its connection table, its interfaces."""

from __future__ import annotations

import os
import resource
import struct
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from chaos.stage import OUTAGE_S, Stage

__all__ = ["clock_steps", "disk_full", "disk_slow", "flush_conntrack", "no_descriptors", "rename_interface"]

STEPS_S: Final = (3600.0, -3600.0, 0.0)
"""The wall clock is put forward by an hour, then behind by one, then right again."""
SIP: Final = 4096
SIP_S: Final = 0.05
"""A slow disk takes so many octets at so many seconds' distance: far less than what is written."""


def disk_full(stage: Stage) -> str:
    filler = stage.disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1 << 16))
        except OSError:
            pass
        time.sleep(OUTAGE_S)
    filler.unlink()
    return "" if stage.records_come() else "no record was written after the disk had room again"


def no_descriptors(stage: Stage) -> str:
    process = stage.daemon.process
    assert process is not None
    used = len(list(Path(f"/proc/{process.pid}/fd").iterdir()))
    before = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (used, before[1]))  # the hard limit could not be put back
    note = stage.attack("crowd", OUTAGE_S, 100)
    if process.poll() is None:
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, before)
    return note


def disk_slow(stage: Stage) -> str:
    """The audit file becomes a pipe that hardly anybody reads, and then a file again."""
    file = stage.disk / "audit.jsonl"
    over = threading.Event()
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    reading = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    reader = threading.Thread(target=_sip, args=(reading, over), daemon=True)
    reader.start()
    try:
        stage.reload()
        time.sleep(OUTAGE_S)
    finally:
        file.unlink()
        over.set()  # from here on it reads fast, until nobody writes any more
        stage.reload()
        come = stage.records_come(15.0)
        reader.join()
    return "" if come else stage.accuse("no record was written after the disk was fast again")


def _sip(reading: int, over: threading.Event) -> None:
    deadline = 0.0
    while not deadline or time.monotonic() < deadline:
        over.wait(SIP_S)
        if over.is_set() and not deadline:
            deadline = time.monotonic() + 10.0
        with suppress(BlockingIOError):
            if not os.read(reading, 1 << 16 if deadline else SIP) and deadline:
                break
    os.close(reading)


def clock_steps(stage: Stage) -> None:
    """What the daemon takes for the wall clock (clock/sitecustomize.py) jumps, while time goes on as ever."""
    for offset in STEPS_S:
        with stage.clock.open("r+b") as file:  # in place: the daemon has it mapped
            file.write(struct.pack("=d", offset))
        time.sleep(OUTAGE_S / 2)


def flush_conntrack(stage: Stage) -> None:
    stage.node.run(["conntrack", "-F"], check=True)


def rename_interface(stage: Stage) -> None:
    """The node's end of a pod's wire gets another name, and its own back."""
    interface = stage.dice.choice(stage.pods["web"]).interface
    for old, new in ((interface, "renamed0"), ("renamed0", interface)):
        stage.node.run(["ip", "link", "set", old, "name", new], check=True)
        time.sleep(1.0)
