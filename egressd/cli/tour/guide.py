"""The guide runs a pod's program, shows what it printed and why, and holds each claim against what really happened.

Nothing is taken on trust: a claim is true of a program's output, of the lab's own notes on who arrived where, or of a
record in the daemon's audit file, or it is told as false and the tour's exit code says so.
"""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from egressd.cli.tour.page import Page
from egressd.cli.tour.stage import Stage

__all__ = ["Finding", "Guide", "Ran", "Record"]

PATIENCE_S: Final = 10.0
"""For programs to end and records to be written; ordinarily a fraction of a second."""
POLL_S: Final = 0.02
WHY: Final = {
    "event": (),
    "query": ("name", "type"),
    "destination": ("ip", "port", "names"),
    "verdict": (),
    "reason": (),
    "policy": (),
    "rule": (),
    "granted": (),
}
"""The fields of a record that say what was decided and why; of some, these parts."""


Record = dict[str, Any]
Decided = tuple[str, str, str]
"""Verdict, reason, and policy and rule with a space between (empty if none decided)."""


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
    at: float
    """The same moment in seconds of the monotonic clock."""

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
    """Tells one tour. What goes differently than told is in `surprises`."""

    stage: Stage
    page: Page
    findings: list[Finding] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    checks: int = 0
    kept: dict[str, Ran] = field(default_factory=dict)
    """What an earlier chapter leaves for a later one to compare with."""

    # ------------------------------------------------------------------------------------ programs

    def run(self, pod: str, line: str, keep: Sequence[str] = ("",)) -> Ran:
        """Run a command line in a pod and show the lines of its output that contain one of `keep`."""
        self.page.command(pod, line)
        started, at = _now(), time.monotonic()
        try:
            done = self.stage.pod(pod).run(shlex.split(line), PATIENCE_S)
        except subprocess.TimeoutExpired:
            ran = Ran(pod, line, -1, f"(no end after {PATIENCE_S:g} s: stopped)", started, at)
        else:
            ran = Ran(pod, line, done.returncode, done.stdout + done.stderr, started, at)
        shown = [text for text in ran.output.splitlines() if text.strip() and any(part in text for part in keep)]
        self.page.output(shown or ran.output.splitlines()[-4:])
        return ran

    # -------------------------------------------------------------------------------------- claims

    def check(self, sentence: str, right: object) -> None:
        """Claim something; `right` says whether it is so."""
        self.checks += 1
        self.page.check(sentence, right=bool(right))
        if not right:
            self.surprises.append(sentence)

    def why(self, ran: Ran, to: str, verdict: str, reason: str, rule: str = "", *, whole: bool = False) -> Record:
        """Claim that the audit record of what `ran` did about a name or an address says so; show and return it.

        `rule` is `POLICY RULE` where one decided. `whole`: show every field. The record is empty if there is none.
        """
        wanted = (verdict, reason, rule)
        record = self._record(ran.pod, to, ran.started, wanted)
        seen = _decision(record) if record else ("no record", "", "")
        right = seen == wanted
        self.checks += 1
        self.page.audit(record if whole else _excerpt(record), right=right)
        if not right:
            self.page.say(f"told was: {_words(wanted)}", "red")
            self.surprises.append(f"{ran.pod} -> {to}: told was {_words(wanted)}, recorded is {_words(seen)}")
        self.findings.append(Finding(ran.pod, to, seen[0], seen[1], right))
        return record

    def _record(self, pod: str, to: str, since: str, wanted: Decided) -> Record:
        """The record looked for, else one of the same pod and destination, else an empty one."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            found = [record for record in self.stage.records() if _is_about(record, pod, to, since)]
            for record in found:
                if _decision(record) == wanted:
                    return record
            if time.monotonic() > deadline:
                return found[0] if found else {}
            time.sleep(POLL_S)

    # ----------------------------------------------------------------------------------- witnesses

    def arrived(self, address: str, pod: str) -> bool:
        """Whether anything of a pod came through to an address of the internet."""
        source = self.stage.pod(pod).v4
        return any(contact.source == source for contact in self.stage.node.internet.reached(address))

    def asked_upstream(self, name: str) -> bool:
        """Whether the upstream DNS server ever saw a question for a name."""
        return name in self.stage.node.dns.names()


def _now() -> str:
    """The present moment as audit records write it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _is_about(record: Record, pod: str, to: str, since: str) -> bool:
    who, query, destination = (record.get(key, {}) for key in ("pod", "query", "destination"))
    return (
        record["time"] >= since
        and f"{who.get('namespace')}/{who.get('name')}" == pod
        and to in {query.get("name"), destination.get("ip")}
        and query.get("type", "A") == "A"
    )


def _excerpt(record: Record) -> Record:
    known = {key: parts for key, parts in WHY.items() if key in record}
    return {
        key: {part: record[key][part] for part in parts if part in record[key]} if parts else record[key]
        for key, parts in known.items()
    }


def _decision(record: Record) -> Decided:
    rule = f"{record['policy']} {record['rule']}" if "policy" in record and "rule" in record else ""
    return record["verdict"], record["reason"], rule


def _words(decided: Decided) -> str:
    return " ".join(decided).rstrip()
