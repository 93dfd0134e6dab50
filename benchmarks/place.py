"""A node of network namespaces: two pods, the node between them and a fast upstream.

Namespaces have no names: each is held by one sleeping process, and all processes started here die with the benchmark
(PR_SET_PDEATHSIG), so nothing can be left behind, not even after a kill.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = [
    "DNSMASQ",
    "NODE",
    "POD_CIDR",
    "SELECTED",
    "UNSELECTED",
    "UPSTREAM",
    "WIDE",
    "WIDE_NAMES",
    "WIDE_ZONE",
    "BenchmarkError",
    "Place",
]

NODE = "10.244.0.1"
POD_CIDR = "10.244.0.0/24"
SELECTED = "10.244.0.5"
"""The pod that a policy selects."""
UNSELECTED = "10.244.0.6"
UPSTREAM = "192.0.2.53"
UPSTREAM_GATEWAY = "192.0.2.1"

ALLOWED_RANGE = "198.18.0.0,198.18.255.255"  # RFC 2544: addresses set aside for benchmarks
OTHER_RANGE = "198.19.0.0,198.19.255.255"
DENIED_RANGE = "198.19.0.0,198.19.255.255"
WIDE_ZONE = "four.allowed.bench.example"
"""Names with four addresses each, as those of a large store or a CDN."""
WIDE = 4
WIDE_NAMES = 16_384
"""As many as the first range has quadruples of addresses; and twice as many elements take `nft` so long to list that
the next transaction interrupts it, and it begins anew."""

DNSMASQ = [
    *("dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"),
    *("--pid-file=", "--user=root", "--group=root"),  # a change of user or group would clear PR_SET_PDEATHSIG
]


class BenchmarkError(Exception):
    """The benchmark could not be set up, or what it measured is not what it meant to measure."""


class Place:
    """The namespaces, from `with` to its end; each is named `node`, `upstream` or by its pod's address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._holders: dict[str, int] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            for name in ("node", "upstream", SELECTED, UNSELECTED):
                self._hold(name)
            self._wire()
            self._start_upstream()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, where: str, *command: str, check: bool = True) -> str:
        """Output of a command that ends by itself, run in namespace `where`."""
        done = subprocess.run(self._inside(where, command), capture_output=True, text=True, timeout=300, check=False)
        if check and done.returncode:
            raise BenchmarkError(f"{' '.join(command)} in {where} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def start(
        self, where: str, command: Sequence[str], log: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """A long-running process in namespace `where`; its output goes to file `log`. End it with `stop`."""
        with (self.folder / log).open("wb") as output:
            return subprocess.Popen(
                self._inside(where, command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    @staticmethod
    def stop(process: subprocess.Popen[bytes], patience: float = 15.0) -> None:
        """Ask a process to end, and make it after `patience` seconds."""
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _inside(self, where: str, command: Sequence[str]) -> list[str]:
        enter = ["nsenter", f"--net=/proc/{self._holders[where]}/ns/net", "--"] if where in self._holders else []
        return [*enter, "setpriv", "--pdeathsig", "KILL", "--", *command]

    def _hold(self, name: str) -> None:
        holder = self.start(name, ["unshare", "--net", "--", "sleep", "infinity"], f"hold-{name}.log")
        self._stack.callback(self.stop, holder)
        own = Path("/proc/self/ns/net").readlink()
        for _ in range(500):  # 5 s: until the child has left our namespace
            if holder.poll() is not None:
                raise BenchmarkError("cannot make network namespaces here; run as root with the right to unshare")
            if Path(f"/proc/{holder.pid}/ns/net").readlink() != own:
                break
            time.sleep(0.01)
        else:
            raise BenchmarkError("a new network namespace did not come up within 5 s")
        self._holders[name] = holder.pid
        self.run(name, "ip", "link", "set", "lo", "up")

    def _wire(self) -> None:
        self.run("node", "sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        for number, pod in enumerate((SELECTED, UNSELECTED)):
            self._veth(f"pod{number}", pod)
            self.run("node", "ip", "address", "add", f"{NODE}/32", "dev", f"pod{number}")
            self.run("node", "ip", "route", "add", f"{pod}/32", "dev", f"pod{number}")
            self.run(pod, "ip", "address", "add", f"{pod}/32", "dev", "eth0")
            self.run(pod, "ip", "route", "add", NODE, "dev", "eth0", "scope", "link")
            self.run(pod, "ip", "route", "add", "default", "via", NODE)
        self._veth("uplink", "upstream")
        self.run("node", "ip", "address", "add", f"{UPSTREAM_GATEWAY}/24", "dev", "uplink")
        self.run("upstream", "ip", "address", "add", f"{UPSTREAM}/24", "dev", "eth0")
        self.run("upstream", "ip", "route", "add", "default", "via", UPSTREAM_GATEWAY)

    def _veth(self, name: str, place: str) -> None:
        peer = ["peer", "name", "eth0", "netns", str(self._holders[place])]
        self.run("node", "ip", "link", "add", name, "type", "veth", *peer)
        self.run("node", "ip", "link", "set", name, "up")
        self.run(place, "ip", "link", "set", "eth0", "up")

    def _start_upstream(self) -> None:
        """Answers n-0 … n-65535 of each zone, each with an address of its own, out of thin air and in C; and n-0 …
        n-16383 of another with four, from a file, in an order that changes with each answer."""
        zones = {"allowed": ALLOWED_RANGE, "other": OTHER_RANGE, "denied": DENIED_RANGE}
        command = [*DNSMASQ, "--cache-size=0", "--local-ttl=300", f"--listen-address={UPSTREAM}"]
        command += [f"--synth-domain={zone}.bench.example,{span},n-*" for zone, span in zones.items()]
        command += ["--local=/bench.example/", f"--addn-hosts={self._write_wide()}"]
        process = self.start("upstream", command, "upstream.log")
        self._stack.callback(self.stop, process)
        question = ["dig", f"@{UPSTREAM}", "n-0.other.bench.example", "+time=1", "+tries=1"]
        for _ in range(50):
            if "status: NOERROR" in self.run("node", *question, check=False):
                return
            time.sleep(0.1)
        raise BenchmarkError(f"the upstream does not answer: {(self.folder / 'upstream.log').read_text()}")

    def _write_wide(self) -> Path:
        """Addresses and names of the zone with four of each, as hosts(5) has them."""
        file = self.folder / "hosts"
        first = int.from_bytes(socket.inet_aton("198.18.0.0"), "big")
        with file.open("w") as lines:
            for number in range(WIDE * WIDE_NAMES):
                address = socket.inet_ntoa((first + number).to_bytes(4, "big"))
                lines.write(f"{address} n-{number // WIDE}.{WIDE_ZONE}\n")
        return file
