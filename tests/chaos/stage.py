"""The node under test: pods of several identities with their load, the daemon and who restarts it, and the witnesses.

A contact in the internet that the table of identities does not allow got through, whoever thought so or not.
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
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from chaos.identities import IDENTITIES, LENT, LENT_NAME, NAMES, NOWHERE, Identity
from chaos.load import Task
from chaos.supervisor import POLL_S, Supervisor
from chaos.tally import Phase, add_records, read_records
from egressd.lab import SERVICES, UPSTREAMS, Contact, Daemon, Node, Pod, eventually, intercepts
from egressd.lab.syscalls import mount

if TYPE_CHECKING:
    from chaos.faults import Fault

__all__ = ["ATTACK_S", "OUTAGE_S", "PROGRAMS", "SERVED", "Options", "Stage", "merged"]

CLOCK: Final = Path(__file__).parent / "clock"
PROGRAMS: Final = {"PYTHONPATH": str(Path(__file__).parent.parent)}
"""Variables of the programs that pods run: where this package is."""
OUTAGE_S: Final = 4.0
ATTACK_S: Final = 5.0
AUDIT_DISK: Final = "24m"
SAMPLE_S: Final = 0.2
RESETTLED_S: Final = 5.5
SERVED: Final = (UPSTREAMS[0], UPSTREAMS[2])
"""The upstreams that the daemon asks."""


@dataclass(frozen=True)
class Options:
    """How a run is made. `rate` is look-ups a second over all pods; `crowd` open TCP connections of the crowd."""

    seed: int = 1
    wiring: str = "p2p"
    rate: float = 1000.0
    crowd: int = 10_000
    settings: dict[str, Any] = field(default_factory=dict)
    within_s: float = 1.0
    """Seconds in which damage is to be mended and what is revoked to end."""


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
        self.clock = folder / "clock"
        """By how many seconds the daemon's wall clock is wrong (clock/sitecustomize.py)."""
        self.clock.write_bytes(bytes(8))
        self.node = self._stack.enter_context(Node(options.wiring))
        self.node.environment |= {
            "CHAOS_CLOCK": str(self.clock),
            "PYTHONPATH": f"{CLOCK}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
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
        self._base = self.daemon.settings
        self._asked: Mapping[str, Any] = {}
        """Settings beside those, as the last fault wanted them."""
        self._lent_until = 0.0
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
        zone.add(LENT_NAME, "A", LENT[0])
        zone.add(LENT_NAME, "AAAA", LENT[1])
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
        return merged(given, self.options.settings)

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
            blocks=[str(next(ipaddress.ip_network(block).hosts())) for block in identity.blocks],
            denied_name="denied.example" if identity.judged else "",
            denied=denied if identity.judged else [],
            denied_udp=[(NOWHERE, 7), (identity.v4(0), 7), ("2001:db8:dead::1", 7)] if identity.judged else [],
        )

    def strike(self, fault: Fault, calm_s: float) -> Phase:
        """One phase: the fault, and a time after it. Its counts are there after `finish`."""
        self._resettle(fault.settings)
        phase = self._begin(fault.name, self.options.within_s if fault.exposed else 0.0)
        phase.note = fault.action(self) or ""
        time.sleep(max(calm_s, fault.rest_s))
        return phase

    def _begin(self, fault: str, exposed_s: float = 0.0) -> Phase:
        now = time.monotonic()
        if self.phases:
            self.phases[-1].ended = now
        self.phases.append(Phase(fault, now, exposed_s=exposed_s))
        return self.phases[-1]

    def _resettle(self, settings: Mapping[str, Any]) -> None:
        """Have the daemon run with these settings beside its own; a restart, and counted as one."""
        if settings == self._asked:
            return
        self._asked = settings
        self.daemon.settings = merged(self._base, settings)
        self._begin("resettle")
        starts = self.starts
        self.supervisor.restart()
        self.settled(starts)
        time.sleep(RESETTLED_S)

    def accuse(self, what: str) -> str:
        """A promise was broken in the present phase; returns the same words."""
        self.phases[-1].accusations.append(what)
        return what

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
            sure = phase.began + phase.exposed_s
            early = [contact for contact in self.trespasses if phase.began <= contact.time < sure]
            phase.contacts_exposed = len(early)
            seen = [contact for contact in self.trespasses if sure <= contact.time < phase.ended]
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
                lent = contact.destination in LENT and contact.time < self._lent_until
                if identity is None or not (lent or identity.sanctions(contact)):
                    self.trespasses.append(contact)

    def lend(self, until: float = float("inf")) -> None:
        """From now on until then (monotonic seconds) the addresses of `LENT_NAME` may be reached."""
        self._lent_until = until

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

    def said(self, what: str) -> int:
        """How often the daemon has said this so far."""
        return self.daemon.log_file.read_text().count(what)

    def reload(self) -> None:
        """SIGHUP: settings are read and the audit file is opened again."""
        self.daemon.signal(signal.SIGHUP)

    def records_come(self, timeout: float = 5.0) -> bool:
        """Whether anything more is written to the audit file."""
        file = self.disk / "audit.jsonl"
        since = time.time_ns()
        with contextlib.suppress(TimeoutError):
            return eventually(lambda: file.exists() and file.stat().st_mtime_ns > since, timeout)
        return False

    def intercepts(self) -> bool:
        return intercepts(self.node)

    @property
    def starts(self) -> int:
        """How often a daemon began to serve."""
        return self.said("INFO: ready:")

    def settled(self, beyond: int = 0, timeout: float = 60.0) -> None:
        """Wait until DNS is intercepted (again), where `beyond` starts are told by a daemon that came after them: a
        heartbeat outlives its process for some seconds."""
        eventually(
            lambda: self.starts > beyond and self.intercepts(), timeout, what=f"interception\n{self.daemon.log()}"
        )


def resident(pid: int) -> float:
    """Resident memory of a process in MiB; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Settings laid over others, one mapping deep."""
    both = dict(below)
    for key, value in above.items():
        both[key] = {**both.get(key, {}), **value} if isinstance(value, Mapping) else value
    return both
