"""The node under test: pods of several identities with their load, the daemon and who restarts it, and the witnesses.

Who may go where is one table (`IDENTITIES`), from which policies, names, loads and the judgement of what arrives in
the internet are all made: a contact that the table does not allow got through, whoever thought so or not.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from chaos.load import Task
from chaos.tally import Phase, add_records, read_records
from egressd.lab import SERVICES, UPSTREAMS, Contact, Daemon, Node, Pod, eventually, intercepts, pool
from egressd.lab.syscalls import mount

__all__ = ["FORGED", "IDENTITIES", "RESTART_S", "SERVED", "Identity", "Options", "Stage", "rotation"]

PROGRAMS: Final = {"PYTHONPATH": str(Path(__file__).parent.parent)}
"""Variables of the programs that pods run: where this package is."""
NAMES: Final = 10
"""Known names of an identity."""
FRESH_POOL: Final = 8192
"""Addresses that fresh names turn through: more than are granted at any one time."""
RESTART_S: Final = 0.5
"""After its end the daemon is started again in this time, as a kubelet does at first."""
AUDIT_DISK: Final = "24m"
POLL_S: Final = 0.02
SAMPLE_S: Final = 0.2
HAND_OVER_S: Final = 20.0
"""The old process of an upgrade has this long to end by itself."""
SERVED: Final = (UPSTREAMS[0], UPSTREAMS[2])
"""The upstreams that the daemon asks."""
FORGED: Final = "198.51.100.66"
"""Where lying upstreams lead; nobody may go there."""
NOWHERE: Final = "192.0.2.7"
"""Where denied names lead; nobody may go there."""


@dataclass(frozen=True)
class Identity:
    """Pods under one policy. `number` makes their addresses; `judged` says whether anything is denied to them."""

    name: str
    number: int
    pods: int
    mode: str = "Enforce"
    blocks: tuple[str, ...] = ()
    """CIDR rules, on port 80."""

    @property
    def selected(self) -> bool:
        return bool(self.mode)

    @property
    def judged(self) -> bool:
        return self.mode == "Enforce"

    @property
    def names(self) -> list[str]:
        return [f"n{index}.{self.name}.example" for index in range(NAMES)]

    def v4(self, index: int) -> str:
        return f"203.0.113.{NAMES * self.number + index}"

    def v6(self, index: int) -> str:
        return f"2001:db8:{self.number:x}::{index:x}"

    @property
    def fresh(self) -> list[str]:
        return pool(f"2001:db8:f{self.number:x}::/64", FRESH_POOL)

    @property
    def policy(self) -> str:
        blocks = "".join(f"- to: [{block}]\n  ports: [80/TCP]\n" for block in self.blocks)
        return (
            f"subject: {{podSelector: {{matchLabels: {{app: {self.name}}}}}}}\nmode: {self.mode}\nallow:\n"
            f"- to: ['*.{self.name}.example']\n  ports: [80/TCP, 7/TCP]\n{blocks}"
        )

    def sanctions(self, contact: Contact) -> bool:
        """Whether the policy can ever have allowed this contact."""
        if not self.judged:
            return True
        address = ipaddress.ip_address(contact.destination)
        named = address in self._addresses or address in ipaddress.ip_network(f"2001:db8:f{self.number:x}::/64")
        block = any(address in ipaddress.ip_network(block) for block in self.blocks)
        return contact.protocol == "tcp" and ((contact.port in (80, 7) and named) or (contact.port == 80 and block))

    @property
    def _addresses(self) -> set[ipaddress.IPv4Address | ipaddress.IPv6Address]:
        both = [*(self.v4(index) for index in range(NAMES)), *(self.v6(index) for index in range(NAMES))]
        return {ipaddress.ip_address(address) for address in both}


IDENTITIES: Final = (
    Identity("web", 1, 3),
    Identity("job", 2, 2, blocks=("198.51.100.0/26",)),
    Identity("watched", 3, 1, mode="Audit"),
    Identity("free", 4, 1, mode=""),
    Identity("flood", 5, 1),
)
"""The last one's pod has no load of its own: it is the hostile one."""


@dataclass(frozen=True)
class Options:
    """How a run is made. `rate` is look-ups a second over all pods; `crowd` open TCP connections of the crowd."""

    seed: int = 1
    wiring: str = "p2p"
    rate: float = 1000.0
    crowd: int = 10_000
    settings: dict[str, Any] = field(default_factory=dict)


class Supervisor:
    """Keeps the daemon running; the only one who starts and ends it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.ends: list[int] = []
        """Exit codes of ends that were not asked for."""
        self._wanted = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def start(self) -> None:
        self.daemon.start()
        self._wanted.set()
        self._thread.start()

    def close(self) -> None:
        self._wanted.clear()
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(POLL_S):
            process = self.daemon.process
            if self._wanted.is_set() and process is not None and process.poll() is not None:
                self.ends.append(process.returncode)
                time.sleep(RESTART_S)
                self.daemon.start(wait=False)

    def kill(self) -> None:
        """SIGKILL; it is started again as after any other end."""
        self.daemon.signal(signal.SIGKILL)

    def restart(self) -> None:
        """SIGTERM, wait, start."""
        self._wanted.clear()
        try:
            self.daemon.stop()
        except subprocess.TimeoutExpired:
            self.daemon.kill()
        self.daemon.start(wait=False)
        self._wanted.set()

    def upgrade(self) -> str:
        """Start a second one beside the first, and wait until one of them has ended."""
        self._wanted.clear()
        old = self.daemon.process
        assert old is not None
        self.daemon.start(wait=False)
        new = self.daemon.process
        assert new is not None
        deadline = time.monotonic() + HAND_OVER_S
        while old.poll() is None and new.poll() is None and time.monotonic() < deadline:
            time.sleep(POLL_S)
        note = ""
        if new.poll() is not None:
            note = f"the new process ended with {new.returncode}: no hand-over"
            self.daemon.process = old if old.poll() is None else new
        elif old.poll() is None:
            note = f"the old process did not end in {HAND_OVER_S:g} s: it was told to"
            old.terminate()
            old.wait(HAND_OVER_S)
        self._wanted.set()
        return note


@dataclass
class Sample:
    """Resident memory at one time, MiB: of the data path (of two processes, the larger) and of its children."""

    time: float
    data: float
    control: float


class Stage:
    """Everything of one run. As a context manager it takes all of it down."""

    def __init__(self, folder: Path, options: Options) -> None:
        self.options = options
        self.dice = random.Random(options.seed)
        self.folder = folder
        self.disk = folder / "audit"
        self.disk.mkdir()
        self._stack = contextlib.ExitStack()
        mount("tmpfs", str(self.disk), f"size={AUDIT_DISK}")  # before the node takes its copy of the mounts
        self._stack.callback(lambda: subprocess.run(["umount", str(self.disk)], check=False))
        self.node = self._stack.enter_context(Node(options.wiring))
        self.identity_of: dict[str, Identity] = {}
        """By address of a pod."""
        self.pods: dict[str, list[Pod]] = {}
        self._wire()
        self.daemon = self._stack.enter_context(Daemon(self.node, folder, self._settings()))
        self._put_objects()
        self.supervisor = Supervisor(self.daemon)
        self._stack.callback(self.supervisor.close)
        self.phases: list[Phase] = []
        self.samples: list[Sample] = []
        self.trespasses: list[Contact] = []
        self._loads: list[subprocess.Popen[str]] = []
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._stack.close()

    # ---------------------------------------------------------------------------------------------- building

    @property
    def mallory(self) -> Pod:
        """The hostile pod."""
        return self.pods["flood"][0]

    def _wire(self) -> None:
        zone, node = self.node.dns.zone, self.node
        for identity in IDENTITIES:
            for index, name in enumerate(identity.names):
                zone.add(name, "A", identity.v4(index))
                zone.add(name, "AAAA", identity.v6(index))
            zone.rotate(f"*.fresh.{identity.name}.example", identity.fresh, count=1)
            labels = {"app": identity.name}
            self.pods[identity.name] = [
                node.add_pod(f"shop/{identity.name}-{n}", labels=labels) for n in range(identity.pods)
            ]
            for pod in self.pods[identity.name]:
                self.identity_of |= {pod.v4: identity, pod.v6: identity}
        zone.add("*.denied.example", "A", NOWHERE)
        zone.rotate("*.flood.example", IDENTITIES[-1].fresh, count=1)
        zone.add("big.flood.example", "AAAA", *IDENTITIES[-1].fresh[:200])
        for port in (80, 81):
            node.internet.serve_http(port)
        node.internet.serve_tcp_echo(7)
        node.internet.serve_udp_echo(7)

    def _settings(self) -> dict[str, Any]:
        given: dict[str, Any] = {
            "dns": {"upstreams": list(SERVED)},
            "audit": {"file": str(self.disk / "audit.jsonl"), "max_size": "4MiB", "keep": 2},
        }
        for key, value in self.options.settings.items():
            given[key] = {**given.get(key, {}), **value} if isinstance(value, dict) else value
        return given

    def _put_objects(self) -> None:
        self.daemon.put_pods()
        for identity in IDENTITIES:
            if identity.selected:
                self.daemon.put_policy(f"shop/{identity.name}", identity.policy)

    # ------------------------------------------------------------------------------------------------- life

    def start(self) -> None:
        """Start the daemon, the load and the witnesses."""
        self.supervisor.start()
        loaded = [(identity, pod) for identity in IDENTITIES[:-1] for pod in self.pods[identity.name]]
        for number, (identity, pod) in enumerate(loaded):
            task = self._task(identity, number, self.options.rate / len(loaded))
            argv = [sys.executable, "-m", "chaos.load", json.dumps(asdict(task))]
            self._loads.append(pod.popen(argv, env=PROGRAMS))
        for work in (self._watch_memory, self._watch_contacts):
            thread = threading.Thread(target=work, name=work.__name__, daemon=True)
            thread.start()
            self._stack.callback(thread.join)
        self._stack.callback(self._closing.set)

    def _task(self, identity: Identity, number: int, lookups: float) -> Task:
        foreign = next(other for other in IDENTITIES if other.judged and other is not identity)
        denied: list[tuple[str, int]] = [
            (NOWHERE, 80),
            (foreign.v4(number % NAMES), 80),
            (foreign.v6(number % NAMES), 80),
            (identity.v4(number % NAMES), 81),
            (identity.v6(number % NAMES), 81),
            ("2001:db8:dead::1", 80),
            ("198.51.100.200", 80),
        ]
        return Task(
            out=str(self.folder / f"load-{number}"),
            server=SERVICES[number % 2],
            seed=1000 * self.options.seed + number,
            lookups=lookups,
            names=identity.names,
            fresh=f"fresh.{identity.name}.example",
            denied_name="denied.example" if identity.judged else "",
            denied=denied if identity.judged else [],
            denied_udp=[(NOWHERE, 7), (identity.v4(0), 7), ("2001:db8:dead::1", 7)] if identity.judged else [],
        )

    def strike(self, fault: str, action: Callable[[Stage], str | None], calm_s: float) -> Phase:
        """One phase: the fault, and a time after it. Its counts are there after `finish`."""
        if self.phases:
            self.phases[-1].ended = time.monotonic()
        phase = Phase(fault, time.monotonic())
        self.phases.append(phase)
        phase.note = action(self) or ""
        time.sleep(calm_s)
        return phase

    def finish(self) -> list[Phase]:
        """End the load, wait for what is in flight, and count."""
        self.phases[-1].ended = time.monotonic()
        for load in self._loads:
            load.terminate()
        for load in self._loads:
            _, errors = load.communicate(timeout=60)
            if load.returncode or errors:
                raise RuntimeError(f"a load failed ({load.returncode}): {errors[-2000:]}")
        for file in sorted(self.folder.glob("load-*")):
            add_records(self.phases, read_records(file.read_bytes()))
        self._add_witnesses()
        return self.phases

    def _add_witnesses(self) -> None:
        for phase in self.phases:
            during = [sample for sample in self.samples if phase.began <= sample.time < phase.ended]
            phase.data_rss = max((sample.data for sample in during), default=0.0)
            phase.control_rss = max((sample.control for sample in during), default=0.0)
            seen = [contact for contact in self.trespasses if phase.began <= contact.time < phase.ended]
            phase.contacts_through = len(seen)
            if seen:
                phase.last_trouble = max(phase.last_trouble, seen[-1].time)

    # ------------------------------------------------------------------------------------------- witnesses

    def _watch_memory(self) -> None:
        while not self._closing.wait(SAMPLE_S):
            process = self.daemon.process
            if process is None or process.poll() is not None:
                continue
            children = self.daemon.children()
            control = max((resident(pid) for pid in children), default=0.0)
            self.samples.append(Sample(time.monotonic(), resident(process.pid), control))

    def memory(self) -> float:
        """Resident memory of the data path by now, MiB."""
        process = self.daemon.process
        return resident(process.pid) if process is not None else 0.0

    def _watch_contacts(self) -> None:
        contacts = self.node.internet.contacts
        while not self._closing.wait(POLL_S):
            while contacts:
                contact = contacts.popleft()
                identity = self.identity_of.get(contact.source)
                if identity is None or not identity.sanctions(contact):
                    self.trespasses.append(contact)

    # --------------------------------------------------------------------------------------- what faults use

    def nft(self, *lines: str) -> str:
        """Another program's hand on the firewall. Returns what it complained of."""
        done = self.node.run(["nft", "-f", "-"], stdin="\n".join(lines), timeout=60)
        return done.stderr.strip().splitlines()[0] if done.returncode else ""

    def attack(self, mode: str, seconds: float, number: int = 0) -> str:
        """Let the hostile pod loose, and say what came of it."""
        argv = [sys.executable, "-m", "chaos.attack", mode, SERVICES[0], str(seconds), str(number)]
        done = self.mallory.run(argv, timeout=seconds + 60, env=PROGRAMS)
        if done.returncode:
            raise RuntimeError(f"the attack {mode} failed: {done.stderr[-2000:]}")
        return ", ".join(f"{count} {what}" for what, count in json.loads(done.stdout).items())

    def tell(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to a child of the daemon; one that has ended meanwhile needs none."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def records_come(self, timeout: float = 5.0) -> bool:
        """Whether anything more is written to the audit file."""
        file = self.disk / "audit.jsonl"
        since = time.time_ns()
        with contextlib.suppress(TimeoutError):
            return eventually(lambda: file.exists() and file.stat().st_mtime_ns > since, timeout)
        return False

    def intercepts(self) -> bool:
        return intercepts(self.node)

    def settled(self, timeout: float = 30.0) -> None:
        """Wait until DNS is intercepted (again)."""
        eventually(self.intercepts, timeout, what=f"interception\n{self.daemon.log()}")


def resident(pid: int) -> float:
    """Resident memory of a process in MiB; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def rotation(faults: Sequence[str], seed: int, rounds: int) -> list[str]:
    """Every fault once a round, in an order that the seed decides."""
    dice = random.Random(seed)
    return [name for _ in range(rounds) for name in dice.sample(list(faults), len(faults))]
