"""The guide runs a pod's program, shows what it printed and why, and holds each claim against what really happened.

Nothing is taken on trust: a claim is true of a program's output, of the lab's own notes on who arrived where, or of a
record in the daemon's audit file, or it is told as false and the tour's exit code says so.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from egressd.cli.tour.page import Page
from egressd.cli.tour.stage import Stage

__all__ = ["Finding", "Guide", "Ran"]

PATIENCE_S: Final = 10.0
"""For programs to end and records to be written; ordinarily a fraction of a second."""
POLL_S: Final = 0.02
WHY: Final = ("event", "query", "destination", "verdict", "reason", "policy", "rule", "granted")
"""The fields of a record that say what was decided and why."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A program that ran in a pod. `code` is -1 if it had to be stopped."""

    pod: str
    line: str
    code: int
    output: str
    """Standard output and standard error."""
    started: str
    """Time as audit records write it."""

    def says(self, *parts: str) -> bool:
        """Whether every part is in its output."""
        return all(part in self.output for part in parts)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the summary: who reached for what, and what became of it."""

    pod: str
    to: str
    verdict: str
    reason: str
    right: bool


@dataclass(slots=True)
class Guide:
    """Tells one tour. Whoever goes differently than told is in `surprises`."""

    stage: Stage
    page: Page
    findings: list[Finding] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    checks: int = 0

    # ------------------------------------------------------------------------------------ programs

    def run(self, pod: str, line: str, keep: Sequence[str] = ("",)) -> Ran:
        """Run a command line in a pod and show the lines of its output that contain one of `keep`."""
        self.page.command(pod, line)
        started = now_text()
        try:
            done = self.stage.pod(pod).run(shlex.split(line), PATIENCE_S)
        except subprocess.TimeoutExpired:
            ran = Ran(pod, line, -1, f"(no end after {PATIENCE_S:g} s: stopped)", started)
        else:
            ran = Ran(pod, line, done.returncode, done.stdout + done.stderr, started)
        shown = [text for text in ran.output.splitlines() if text.strip() and any(part in text for part in keep)]
        self.page.output(shown or ran.output.splitlines()[-4:])
        return ran

    # -------------------------------------------------------------------------------------- claims

    def check(self, sentence: str, right: object) -> bool:
        """Claim something; `right` says whether it is so."""
        self.checks += 1
        self.page.check(sentence, right=bool(right))
        if not right:
            self.surprises.append(sentence)
        return bool(right)

    def why(self, ran: Ran, to: str, verdict: str, reason: str, rule: str = "", *, whole: bool = False) -> None:
        """Claim that the audit record of what `ran` did about a name or an address says so, and show the record.

        `rule` is `POLICY RULE` where one decided. `whole`: show every field.
        """
        wanted = (verdict, reason, rule)
        record = self._record(ran.pod, to, ran.started, wanted)
        if record is not None:
            self.page.audit(record if whole else {key: record[key] for key in WHY if key in record})
        right = self.check(f"the audit record says {_words(wanted)}", record is not None and _decision(record) == wanted)
        seen = _decision(record) if record is not None else ("no record", "", "")
        self.findings.append(Finding(ran.pod, to, seen[0], seen[1], right))

    def _record(self, pod: str, to: str, since: str, wanted: tuple[str, str, str]) -> dict[str, Any] | None:
        """The record looked for, else one of the same pod and destination, else None."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = [record for record in self.stage.records() if _is_about(record, pod, to, since)]
            for record in found:
                if _decision(record) == wanted:
                    return record
            if time.monotonic() > deadline:
                return found[0] if found else None
            time.sleep(POLL_S)

    # ----------------------------------------------------------------------------------- witnesses

    def arrived(self, address: str, pod: str) -> bool:
        """Whether anything of a pod came through to an address of the internet."""
        source = self.stage.pod(pod).v4
        return any(contact.source == source for contact in self.stage.node.internet.reached(address))

    def asked_upstream(self, name: str) -> bool:
        """Whether the upstream DNS server ever saw a question for a name."""
        return name in self.stage.node.dns.names()


def now_text() -> str:
    """The present moment as audit records write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _is_about(record: dict[str, Any], pod: str, to: str, since: str) -> bool:
    who, query, destination = (record.get(key, {}) for key in ("pod", "query", "destination"))
    return (
        record["time"] >= since
        and f"{who.get('namespace')}/{who.get('name')}" == pod
        and to in {query.get("name"), destination.get("ip")}
        and query.get("type", "A") == "A"
    )


def _decision(record: dict[str, Any]) -> tuple[str, str, str]:
    rule = f"{record['policy']} {record['rule']}" if "policy" in record and "rule" in record else ""
    return record["verdict"], record["reason"], rule


def _words(wanted: Iterable[str]) -> str:
    verdict, reason, rule = wanted
    return f"{verdict}: {reason} {rule}".rstrip()
