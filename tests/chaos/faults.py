"""The faults, each a plain action on the stage that lasts until it is over, in one table with what must not happen.

`keeps` says what a fault may not cost: look-ups, connections to known names, connections that are open. That nothing
denied gets through holds for every fault. An action returns a note for the table, and accuses us where a promise that
it can see itself was broken.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from chaos import edits
from chaos.load import TRY_S
from chaos.means import clock_steps, disk_full, disk_slow, flush_conntrack, no_descriptors, rename_interface
from chaos.resolvers import (
    closed,
    dead,
    flapping,
    hostile_answers,
    lying,
    one_dead,
    refusing,
    slow,
    truncating,
)
from chaos.stage import ATTACK_S, OUTAGE_S, Stage

__all__ = ["ALL", "FAULTS", "KNOWN", "LIVE", "LOOKUPS", "Fault", "rotation"]

HANG_S: Final = 5.0
ROUTE_TABLE: Final = "20053"
SCATTERED: Final = 100_000
"""Denied tuples, more than `seen-denied4` holds (65,536)."""
PATIENCE_S: Final = 8.0
RETRIED_S: Final = TRY_S + 0.5

Action = Callable[[Stage], str | None]


@dataclass(frozen=True)
class Fault:
    """`about` is what the table says of it; `keeps` what it may not cost."""

    name: str
    about: str
    action: Action
    keeps: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What the daemon has to run with for it, beside what it always runs with."""
    exposed: bool = False
    """Whether the kernel enforces nothing until it is mended, as what enforces is gone."""
    bypass: bool = True
    """Whether denied names may resolve while nobody intercepts."""
    rest_s: float = 0.0
    """At least so long after it nothing else may strike: both tries of a look-up must not fall into two faults."""


# ------------------------------------------------------------------------------------------- our processes


def nothing(_: Stage) -> None:
    pass


def kill(stage: Stage) -> None:
    starts = stage.starts
    stage.supervisor.kill()
    stage.settled(starts)


def hang(stage: Stage) -> str:
    held = stage.daemon.process
    assert held is not None
    held.send_signal(signal.SIGSTOP)
    time.sleep(HANG_S)
    held.send_signal(signal.SIGCONT)
    time.sleep(0.2)
    stage.settled()
    return "" if stage.daemon.process is held else "the process was replaced"


def kill_block(stage: Stage) -> str:
    """With `when_down: Block` nobody resolves what we do not, while we are down.

    Queries passed on while the daemon was started with this setting are connections that live on: they go first.
    """
    for protocol in ("udp", "tcp"):
        stage.node.run(["conntrack", "-D", "-p", protocol, "--dport", "53"])
    starts = stage.starts
    stage.supervisor.kill_for(OUTAGE_S)
    stage.settled(starts)
    return ""


def upgrade(stage: Stage) -> str:
    note = stage.supervisor.upgrade()
    stage.settled()
    return note


def restart(stage: Stage) -> None:
    starts = stage.starts
    stage.supervisor.restart()
    stage.settled(starts)


def _children(stage: Stage, number: signal.Signals) -> list[int]:
    pids = stage.daemon.children()
    for pid in pids:
        stage.tell(pid, number)
    return pids


def control_kill(stage: Stage) -> str:
    return "" if _children(stage, signal.SIGKILL) else "there was no control side"


def control_hang(stage: Stage) -> None:
    _children(stage, signal.SIGSTOP)
    time.sleep(HANG_S)
    _children(stage, signal.SIGCONT)


# ---------------------------------------------------------------------------------------------- interference

MARK: Final = "was written anew"
"""What the daemon says of a table that it mended."""
OWNED: Final = (
    "flush ruleset",
    "delete table inet egressd",
    "delete chain inet egressd egress",
    "flush chain inet egressd egress",
    "flush map inet egressd pods4",
)


def owned(stage: Stage) -> str:
    """Another program's hand on a table that the kernel lets only its owner write to."""
    for command in OWNED:
        said = stage.nft(command)
        if command != OWNED[0] and "not permitted" not in said:
            stage.accuse(f"{command}: {said or 'it was let'}")
    return ""


def _mended(stage: Stage, *lines: str) -> str:
    """Another program's hand on a table that anybody may write to, and how long it took us to put it right."""
    before, began = stage.said(MARK), time.monotonic()
    complaint = stage.nft(*lines)
    if complaint:
        return stage.accuse(f"not done: {complaint}")
    while stage.said(MARK) == before and time.monotonic() < began + PATIENCE_S:
        time.sleep(0.01)
    seconds = time.monotonic() - began
    note = f"mended in {seconds:.2f} s"
    return note if seconds <= stage.options.within_s else stage.accuse(note)


def flush_ruleset(stage: Stage) -> str:
    return _mended(stage, "flush ruleset")


def delete_table(stage: Stage) -> str:
    return _mended(stage, "delete table inet egressd")


def flush_chain(stage: Stage) -> str:
    return _mended(stage, f"flush chain inet egressd {stage.dice.choice(['egress', 'intercept', 'denied'])}")


def delete_chain(stage: Stage) -> str:
    return _mended(stage, "delete chain inet egressd egress")


def delete_rule(stage: Stage) -> str:
    """One rule, whichever: chosen by the dice among those of the chains that judge."""
    chain = stage.dice.choice(["egress", "queries", "intercepted", "denied"])
    listed = stage.node.run(["nft", "-j", "-a", "list", "chain", "inet", "egressd", chain], timeout=60).stdout
    handles = [entry["rule"]["handle"] for entry in json.loads(listed)["nftables"] if "rule" in entry]
    return _mended(stage, f"delete rule inet egressd {chain} handle {stage.dice.choice(handles)}")


def delete_elements(stage: Stage) -> str:
    """One pod of the map, all of `known4`, and the heartbeat."""
    pod = stage.dice.choice(stage.pods["web"])
    return _mended(
        stage,
        f"delete element inet egressd pods4 {{ {pod.v4} }}",
        "flush set inet egressd known4",
        "flush set inet egressd heartbeat",
    )


def delete_grants(stage: Stage) -> str:
    """The grants of one subject that has some: to empty an empty set is no event."""
    listed = stage.node.run(["nft", "-j", "list", "table", "inet", "egressd"], timeout=60).stdout
    sets = [entry["set"] for entry in json.loads(listed)["nftables"] if "set" in entry]
    grants = sorted(each["name"] for each in sets if each["name"].startswith("grant") and each.get("elem"))
    return _mended(stage, f"flush set inet egressd {stage.dice.choice(grants)}")


def foreign_rules(stage: Stage) -> str:
    """Another tool comes with a table of its own in the same hook, marks packets, and goes."""
    first = stage.nft(
        "add table inet other",
        "add chain inet other c { type filter hook prerouting priority -149; }",
        "add rule inet other c meta mark set meta mark | 0x1000",
    )
    time.sleep(1.0)
    return first or stage.nft("delete table inet other")


def remove_rules(stage: Stage) -> None:
    for family in ("-4", "-6"):
        stage.node.run(["ip", family, "rule", "del", "table", ROUTE_TABLE])


def remove_routes(stage: Stage) -> None:
    for family in ("-4", "-6"):
        stage.node.run(["ip", family, "route", "flush", "table", ROUTE_TABLE])


def scatter(stage: Stage) -> str:
    """More denied tuples than the kernel has room for; it takes them at a limited rate."""
    note = stage.attack("scatter", ATTACK_S, SCATTERED)
    listed = stage.node.run(["nft", "-j", "list", "set", "inet", "egressd", "seen-denied4"], timeout=60).stdout
    held = sum(len(entry["set"].get("elem", ())) for entry in json.loads(listed)["nftables"] if "set" in entry)
    return f"{note}, {held} in the set"


# --------------------------------------------------------------------------------------------------- floods


def flood(stage: Stage) -> str:
    return stage.attack("flood", ATTACK_S)


def full_speed(stage: Stage) -> str:
    return stage.attack("speed", ATTACK_S)


def crowd(stage: Stage) -> str:
    return stage.attack("crowd", ATTACK_S, stage.options.crowd)


def slow_clients(stage: Stage) -> str:
    return stage.attack("slow", ATTACK_S, 32)


def datagrams(stage: Stage) -> str:
    return stage.attack("datagrams", ATTACK_S, stage.options.seed)


LOOKUPS, KNOWN, LIVE = "look-ups", "known", "live"
"""What a fault may not cost: look-ups that fail, connections to known names, connections that are open."""
ALL: Final = (LOOKUPS, KNOWN, LIVE)
HELD: Final = (KNOWN, LIVE)
OPEN: Final = {"firewall": {"owner": False}}
"""As on a kernel before 6.9: other programs can change the table."""
BLOCK: Final = {"dns": {"when_down": "Block"}}


def _anew(name: str, about: str, action: Action) -> Fault:
    """While there is no table, nothing is refused: what got through in that time is told apart, and cut."""
    return Fault(name, f"{about}, not owned", action, HELD, OPEN, exposed=True)


FAULTS: Final = {
    fault.name: fault
    for fault in (
        Fault("nothing", "load alone", nothing, ALL),
        Fault("kill", "kill -9 of the data path", kill, ALL, rest_s=RETRIED_S),
        Fault(
            "kill-block",
            f"the same, down for {OUTAGE_S:g} s, when_down: Block",
            kill_block,
            HELD,
            BLOCK,
            bypass=False,
            rest_s=RETRIED_S,
        ),
        Fault("hang", f"SIGSTOP of the data path for {HANG_S:g} s", hang, HELD, rest_s=RETRIED_S),
        Fault("upgrade", "a second egressd run beside the first", upgrade, ALL),
        Fault("restart", "SIGTERM, start", restart, HELD, rest_s=RETRIED_S),
        Fault("resettle", "the same, for settings that other faults want", restart, (LIVE,)),
        Fault("control-kill", "kill -9 of the control side", control_kill, ALL),
        Fault("control-hang", f"SIGSTOP of the control side for {HANG_S:g} s", control_hang, ALL),
        Fault("edit", "a rule comes and goes, with live connections", edits.come_and_go, ALL),
        Fault("edits", "twenty edits of rules in a row", edits.twenty, ALL),
        Fault("owned", "nft flush and delete, owned table", owned, ALL),
        _anew("flush-ruleset", "nft flush ruleset", flush_ruleset),
        _anew("delete-table", "nft delete table", delete_table),
        _anew("delete-chain", "nft delete chain egress", delete_chain),
        _anew("flush-chain", "nft flush chain", flush_chain),
        _anew("delete-rule", "a rule deleted", delete_rule),
        _anew("delete-elements", "a pod, known pods and heartbeat deleted", delete_elements),
        Fault("delete-grants", "grants of a subject flushed, not owned", delete_grants, (LIVE,), OPEN),
        Fault("foreign-rules", "another tool's table comes and goes", foreign_rules, ALL),
        Fault("conntrack-flush", "conntrack -F", flush_conntrack, ALL),
        Fault("remove-rules", "ip rules deleted", remove_rules, ALL),
        Fault("remove-routes", "local routes flushed", remove_routes, ALL),
        Fault("rename", "a pod's interface renamed, and back", rename_interface, ALL),
        Fault("scatter", "datagrams to 100,000 denied destinations", scatter, ALL),
        Fault("upstream-dead", f"upstreams silent for {OUTAGE_S:g} s", dead, HELD),
        Fault("upstream-closed", f"upstreams' ports closed for {OUTAGE_S:g} s", closed, HELD),
        Fault("upstream-one-dead", f"one of two upstreams silent for {OUTAGE_S:g} s", one_dead, ALL),
        Fault("upstream-slow", "answers take 1 s", slow, HELD),
        Fault("upstream-lying", "forged answers before each true one", lying, ALL),
        Fault("upstream-refusing", "REFUSED to everything", refusing, HELD),
        Fault("upstream-truncating", "every UDP answer truncated", truncating, HELD),
        Fault("upstream-flapping", "silent and back, four times", flapping, HELD),
        Fault("flood", "random subdomains from one pod", flood, ALL),
        Fault("full-speed", "one pod at full speed", full_speed, ALL),
        Fault("crowd", "thousands of TCP connections from one pod", crowd, ALL),
        Fault("slow-clients", "slow TCP readers and writers", slow_clients, ALL),
        Fault("datagrams", "0-byte, 64 KB and garbage datagrams", datagrams, ALL),
        Fault("hostile-answers", "pointer bombs, huge and malformed answers", hostile_answers, ALL),
        Fault("disk-full", "no room for audit records", disk_full, ALL),
        Fault("disk-slow", "audit records are written slowly", disk_slow, ALL),
        Fault("no-descriptors", "RLIMIT_NOFILE reached", no_descriptors, HELD),
        Fault("clock", "the wall clock steps by an hour, both ways", clock_steps, ALL),
    )
}


def rotation(names: Sequence[str], seed: int) -> Iterator[str]:
    """Every fault once a round, for ever, in an order that the seed decides; those that want the daemon to run with
    the same settings in a row, as each change of them is a restart."""
    dice = random.Random(seed)
    while True:
        groups: dict[str, list[str]] = {}
        for name in dice.sample(list(names), len(names)):
            groups.setdefault(repr(FAULTS[name].settings), []).append(name)
        for group in dice.sample(list(groups.values()), len(groups)):
            yield from group
