"""The faults, each a plain action on the stage that lasts until it is over, in one table with what must not happen.

`lossless`: during it no look-up may fail, no allowed connection to a known name be refused, no live connection be cut.
That nothing denied gets through holds for every fault. What strikes with another program's hand says in its note if
the kernel did not let it.
"""

from __future__ import annotations

import itertools
import json
import random
import resource
import signal
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from chaos.stage import FORGED, SERVED, Stage
from egressd.lab import Query, Sections, message, name_wire

__all__ = ["FAULTS", "Fault"]

HANG_S: Final = 5.0
OUTAGE_S: Final = 4.0
ATTACK_S: Final = 5.0
ROUTE_TABLE: Final = "20053"
SCATTERED: Final = 100_000
"""Denied tuples, more than `seen4` holds (65,536)."""

Action = Callable[[Stage], str | None]


@dataclass(frozen=True)
class Fault:
    """`about` is what the table says of it; `lossless` what is asked of us."""

    name: str
    about: str
    action: Action
    lossless: bool = False


# ------------------------------------------------------------------------------------------- our processes


def nothing(_: Stage) -> None:
    pass


def kill(stage: Stage) -> None:
    stage.supervisor.kill()
    time.sleep(0.2)
    stage.settled()


def hang(stage: Stage) -> str:
    held = stage.daemon.process
    assert held is not None
    held.send_signal(signal.SIGSTOP)
    time.sleep(HANG_S)
    held.send_signal(signal.SIGCONT)
    time.sleep(0.2)
    stage.settled()
    return "" if stage.daemon.process is held else "the process was replaced"


def upgrade(stage: Stage) -> str:
    note = stage.supervisor.upgrade()
    stage.settled()
    return note


def restart(stage: Stage) -> None:
    stage.supervisor.restart()
    stage.settled()


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


def flush_ruleset(stage: Stage) -> str:
    return stage.nft("flush ruleset")


def delete_table(stage: Stage) -> str:
    return stage.nft("delete table inet egressd")


def flush_chain(stage: Stage) -> str:
    return stage.nft(f"flush chain inet egressd {stage.dice.choice(['egress', 'intercept', 'denied'])}")


def delete_chain(stage: Stage) -> str:
    return stage.nft("delete chain inet egressd egress")


def delete_elements(stage: Stage) -> str:
    """One pod of the map, all of `resolvers4`, and the heartbeat."""
    pod = stage.dice.choice(stage.pods["web"])
    complaints = [
        stage.nft(line)
        for line in (
            f"delete element inet egressd pods4 {{ {pod.v4} }}",
            "flush set inet egressd resolvers4",
            "flush set inet egressd known4",
            "flush set inet egressd heartbeat",
        )
    ]
    return next((complaint for complaint in complaints if complaint), "")


def delete_grants(stage: Stage) -> str:
    """The grants of one subject."""
    listed = stage.node.run(["nft", "-j", "list", "sets", "inet"], timeout=60).stdout
    names = [entry["set"]["name"] for entry in json.loads(listed)["nftables"] if "set" in entry]
    grants = sorted(name for name in names if name.startswith("grant"))
    return stage.nft(f"flush set inet egressd {stage.dice.choice(grants)}") if grants else "there were none"


def foreign_rules(stage: Stage) -> str:
    """Another tool comes with a table of its own in the same hook, marks packets, and goes."""
    first = stage.nft(
        "add table inet other",
        "add chain inet other c { type filter hook prerouting priority -149; }",
        "add rule inet other c meta mark set meta mark | 0x1000",
    )
    time.sleep(1.0)
    return first or stage.nft("delete table inet other")


def flush_conntrack(stage: Stage) -> None:
    stage.node.run(["conntrack", "-F"], check=True)


def remove_rules(stage: Stage) -> None:
    for family in ("-4", "-6"):
        stage.node.run(["ip", family, "rule", "del", "table", ROUTE_TABLE])


def remove_routes(stage: Stage) -> None:
    for family in ("-4", "-6"):
        stage.node.run(["ip", family, "route", "flush", "table", ROUTE_TABLE])


def scatter(stage: Stage) -> str:
    """More denied tuples than the kernel has room for; it takes them at a limited rate."""
    note = stage.attack("scatter", ATTACK_S, SCATTERED)
    listed = stage.node.run(["nft", "-j", "list", "set", "inet", "egressd", "seen4"], timeout=60).stdout
    held = sum(len(entry["set"].get("elem", ())) for entry in json.loads(listed)["nftables"] if "set" in entry)
    return f"{note}, {held} in the set"


# ------------------------------------------------------------------------------------------------ upstreams


def dead(stage: Stage) -> None:
    _misbehave(stage, drop=1 << 40)


def closed(stage: Stage) -> None:
    stage.node.dns.close()
    time.sleep(OUTAGE_S)
    stage.node.dns.start()


def one_dead(stage: Stage) -> None:
    stage.node.run(["ip", "route", "add", "blackhole", SERVED[0]], check=True)
    time.sleep(OUTAGE_S)
    stage.node.run(["ip", "route", "del", "blackhole", SERVED[0]], check=True)


def slow(stage: Stage) -> None:
    _misbehave(stage, delay_s=1.0)


def lying(stage: Stage) -> None:
    _misbehave(stage, forge=("wrong-id", "wrong-question", "wrong-port", "wrong-address", "garbage"), forged=FORGED)


def refusing(stage: Stage) -> None:
    _misbehave(stage, rcode=5)


def truncating(stage: Stage) -> None:
    _misbehave(stage, truncate=True)


def flapping(stage: Stage) -> None:
    for _ in range(4):
        _misbehave(stage, seconds=OUTAGE_S / 8, drop=1 << 40)
        time.sleep(OUTAGE_S / 8)


def _misbehave(stage: Stage, seconds: float = OUTAGE_S, **how: object) -> None:
    zone = stage.node.dns.zone
    zone.behave("*", **how)  # type: ignore[arg-type]  # keyword arguments of `behave`, by name
    time.sleep(seconds)
    zone.behave("*")


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


def hostile_answers(stage: Stage) -> str:
    zone = stage.node.dns.zone
    dice = random.Random(stage.options.seed)

    def answer(query: Query) -> Sequence[bytes]:
        if query.name.endswith("hostile.example"):
            return [bomb(query, dice.randrange(len(BOMBS)))]
        return [message(query, zone.sections(query.case, query.name, query.qtype))]

    zone.behave("*", script=answer)
    try:
        return stage.attack("hostile", ATTACK_S)
    finally:
        zone.behave("*")


def bomb(query: Query, number: int) -> bytes:
    """An answer to exactly this question that no reader should fall for, or get lost in."""
    answers, octets = BOMBS[number](query)
    return message(query, Sections(0, answers, 0, octets))


def _record(data: bytes, kind: int = 28, owner: bytes = b"\xc0\x0c", ttl: int = 300) -> bytes:
    return owner + struct.pack("!HHIH", kind, 1, ttl, len(data)) + data


def _end(query: Query) -> int:
    """Offset of the first record."""
    return 12 + len(query.case) + 4


def _pointer_chain(query: Query) -> tuple[int, bytes]:
    """An owner made of pointers to pointers."""
    start = _end(query)
    hops = b"".join((0xC000 | (start + 2 * n)).to_bytes(2, "big") for n in range(200))
    return 1, hops + _record(bytes(16))


def _pointer_to_itself(query: Query) -> tuple[int, bytes]:
    return 1, _record(bytes(16), owner=(0xC000 | _end(query)).to_bytes(2, "big"))


def _long_chain(query: Query) -> tuple[int, bytes]:
    """Forty CNAMEs, and then an address."""
    names = [query.case, *(name_wire(f"c{n}.hostile.example") for n in range(40))]
    links = [_record(after, 5, before) for before, after in itertools.pairwise(names)]
    return 41, b"".join(links) + _record(bytes(16), owner=names[-1])


def _many(_: Query) -> tuple[int, bytes]:
    """Two thousand addresses."""
    return 2000, b"".join(_record(b"\x20\x01\x0d\xb8" + n.to_bytes(12, "big")) for n in range(2000))


BOMBS: Final[tuple[Callable[[Query], tuple[int, bytes]], ...]] = (
    _pointer_chain,
    _pointer_to_itself,
    _long_chain,
    _many,
    lambda _: (65535, b""),
    lambda _: (1, b"\xc0\x0c\0\x1c\0\1\0\0\0\1\xff\xff" + bytes(16)),
    lambda _: (1, _record(bytes(16), ttl=1 << 31)),
    lambda _: (1, bytes(60_000)),
    lambda _: (1, _record(bytes(5))),
)


# ------------------------------------------------------------------------------------------ the node's means


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


FAULTS: Final = {
    fault.name: fault
    for fault in (
        Fault("nothing", "load alone", nothing, lossless=True),
        Fault("kill", "kill -9 of the data path", kill, lossless=True),
        Fault("hang", f"SIGSTOP of the data path for {HANG_S:g} s", hang),
        Fault("upgrade", "a second egressd run beside the first", upgrade, lossless=True),
        Fault("restart", "SIGTERM, start", restart),
        Fault("control-kill", "kill -9 of the control side", control_kill, lossless=True),
        Fault("control-hang", f"SIGSTOP of the control side for {HANG_S:g} s", control_hang, lossless=True),
        Fault("flush-ruleset", "nft flush ruleset", flush_ruleset),
        Fault("delete-table", "nft delete table", delete_table),
        Fault("delete-chain", "nft delete chain egress", delete_chain),
        Fault("flush-chain", "nft flush chain", flush_chain),
        Fault("delete-elements", "a pod, resolvers, known pods and heartbeat deleted", delete_elements),
        Fault("delete-grants", "grants of a subject flushed", delete_grants),
        Fault("foreign-rules", "another tool's table comes and goes", foreign_rules, lossless=True),
        Fault("conntrack-flush", "conntrack -F", flush_conntrack),
        Fault("remove-rules", "ip rules deleted", remove_rules),
        Fault("remove-routes", "local routes flushed", remove_routes),
        Fault("scatter", "datagrams to 100,000 denied destinations", scatter, lossless=True),
        Fault("upstream-dead", f"upstreams silent for {OUTAGE_S:g} s", dead),
        Fault("upstream-closed", f"upstreams' ports closed for {OUTAGE_S:g} s", closed),
        Fault("upstream-one-dead", f"one of two upstreams silent for {OUTAGE_S:g} s", one_dead),
        Fault("upstream-slow", "answers take 1 s", slow),
        Fault("upstream-lying", "forged answers before each true one", lying),
        Fault("upstream-refusing", "REFUSED to everything", refusing),
        Fault("upstream-truncating", "every UDP answer truncated", truncating),
        Fault("upstream-flapping", "silent and back, four times", flapping),
        Fault("flood", "random subdomains from one pod", flood),
        Fault("full-speed", "one pod at full speed", full_speed),
        Fault("crowd", "thousands of TCP connections from one pod", crowd),
        Fault("slow-clients", "slow TCP readers and writers", slow_clients),
        Fault("datagrams", "0-byte, 64 KB and garbage datagrams", datagrams),
        Fault("hostile-answers", "pointer bombs, huge and malformed answers", hostile_answers),
        Fault("disk-full", "no room for audit records", disk_full, lossless=True),
        Fault("no-descriptors", "RLIMIT_NOFILE reached", no_descriptors),
    )
}
