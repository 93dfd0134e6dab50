"""Policies edited under load: what is still sanctioned never notices, what is not any more ends within a second."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import Final

from chaos.identities import IDENTITIES, LENT_NAME
from chaos.stage import PROGRAMS, Stage
from egressd.lab import SERVICES

__all__ = ["come_and_go", "twenty"]

OPEN_S: Final = 10.0
ENDED_S: Final = 3.0
EDITED: Final = ("web", "job")
LENT_RULE: Final = f"- to: [{LENT_NAME}]\n  ports: [80/TCP, 7/TCP]\n"
TWENTY: Final = 20


def come_and_go(stage: Stage) -> str:
    """A rule is added, connections are opened by it, and it is taken away again."""
    pod = stage.pods["web"][0]
    stage.lend()
    _write(stage, "web", LENT_RULE)
    argv = [sys.executable, "-m", "chaos.held", SERVICES[0], LENT_NAME]
    held = pod.popen(argv, stdin=subprocess.PIPE, env=PROGRAMS)
    try:
        assert held.stdout is not None
        if not held.stdout.readline():
            raise RuntimeError(f"the connections did not open: {held.communicate()[1][-2000:]}")
        time.sleep(0.5)
        _write(stage, "web")
        edited = time.monotonic()
        stage.lend(until=edited + stage.options.within_s)
        time.sleep(ENDED_S)
        held.send_signal(signal.SIGTERM)
        told = json.loads(held.communicate(timeout=30)[0])
    finally:
        held.kill()
    if told["again"] == "open":
        stage.accuse("what was revoked can be opened again")
    seconds = max(told["last"]) - edited
    note = f"revoked connections ended after {max(seconds, 0.0):.2f} s"
    return note if seconds <= stage.options.within_s else stage.accuse(note)


def twenty(stage: Stage) -> None:
    """Rules about names and about addresses come and go; none that anybody needs."""
    for number in range(TWENTY):
        extra = f"- to: [198.51.100.{128 + number}, gone{number}.example]\n  ports: [{8000 + number}/TCP]\n"
        for name in EDITED:
            _write(stage, name, extra if number % 2 else "")
        time.sleep(0.25)
    for name in EDITED:
        _write(stage, name)


def _write(stage: Stage, name: str, extra: str = "") -> None:
    identity = next(identity for identity in IDENTITIES if identity.name == name)
    stage.daemon.put_policy(f"shop/{name}", identity.policy + extra)
