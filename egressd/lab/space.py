"""A `Space` is one host of the lab: network, mount and host-name namespaces, held by descriptors and nothing else.

Namespaces belong to threads, not to processes: whatever is to happen inside is done by a fresh thread that first
moves there (`call`, `popen`, `thread`), or, for sockets alone, by the calling thread moved for a moment (`entered`).
A program started from such a thread is simply born inside, which costs about a millisecond and no helper program.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from egressd.errors import EnvironmentProblem
from egressd.lab import syscalls, world

__all__ = ["Space"]

T = TypeVar("T")

_FOLDER: Final = Path("/run/lab")
_numbers = itertools.count(1)

SYSCTLS: Final = {
    "net/ipv6/conf/all/disable_ipv6": "0",
    "net/ipv6/conf/default/disable_ipv6": "0",
    "net/ipv6/conf/default/accept_dad": "0",  # addresses are usable at once
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/ping_group_range": "0 2147483647",
}
"""What every space is told first, whatever the machine's defaults."""

_LEAKY: Final = ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy", "res_options", "localdomain")
"""Variables of the machine that would change what a pod's program does (compared in lower case)."""

NSSWITCH: Final = "passwd: files\ngroup: files\nhosts: files dns\n"


class Space:
    """One host: `run` programs in it, open sockets in it, call functions in it. Close it, or leave it to the process.

    `files` are texts shown in place of existing files of the machine, in this space only (`/etc/resolv.conf`).
    Raises `EnvironmentProblem` outside a private world (`world.run_private`, `world.enter_private`).
    """

    def __init__(self, name: str, files: Mapping[str, str] | None = None) -> None:
        if not world.is_private():
            raise EnvironmentProblem(f"{name} would be made on the host itself", "enter a private world first")
        self.name = name
        self.environment = _environment()
        """Variables of the programs started here."""
        self._folder = _FOLDER / f"{next(_numbers)}"
        self._folder.mkdir(parents=True)
        self._kinds: dict[int, int] = {}
        self._programs: list[subprocess.Popen[Any]] = []
        self._in_thread(lambda: self._make(files or {}), enter=False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------------------ programs

    def popen(
        self,
        argv: Sequence[str | os.PathLike[str]],
        *,
        stdin: int | None = subprocess.DEVNULL,
        stdout: Any = subprocess.PIPE,
        stderr: Any = subprocess.PIPE,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> subprocess.Popen[str]:
        """Start a program here, with this space's files; `env` is added to `environment`. It dies with the space."""

        def start() -> subprocess.Popen[str]:
            if world.child_namespace() >= 0:
                syscalls.set_namespace(world.child_namespace(), syscalls.NEW_PID)
            return subprocess.Popen(  # noqa: S603 - the lab runs what its caller wrote; no shell
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env={**self.environment, **(env or {})},
                cwd=cwd,
                pass_fds=pass_fds,
                text=True,
                errors="replace",
            )

        program = self._in_thread(start)
        self._programs = [running for running in self._programs if running.poll() is None]
        self._programs.append(program)
        return program

    def run(
        self,
        argv: Sequence[str | os.PathLike[str]],
        timeout: float = 20.0,
        *,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end, `stdin` being what it reads; return its code, `stdout` and `stderr`.

        Raises `subprocess.TimeoutExpired` (the program is killed), and with `check` `CalledProcessError`.
        """
        with self.popen(argv, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE, env=env) as program:
            try:
                stdout, stderr = program.communicate(stdin, timeout)
            except BaseException:
                program.kill()
                raise
        result = subprocess.CompletedProcess(program.args, program.returncode, stdout, stderr)
        if check and result.returncode:
            failure = subprocess.CalledProcessError(result.returncode, result.args, stdout, stderr)
            failure.add_note(stderr)
            raise failure
        return result

    # ----------------------------------------------------------------------------------- functions

    def call(self, function: Callable[..., T], /, *arguments: Any) -> T:
        """Call a function in a fresh thread inside this space (network, files, host name); return what it returns."""
        return self._in_thread(lambda: function(*arguments))

    def thread(self, function: Callable[[], object]) -> threading.Thread:
        """Start a thread that lives in this space and runs `function`."""
        ready: Future[None] = Future()

        def body() -> None:
            try:
                self._enter()
            except BaseException as error:
                ready.set_exception(error)
                return
            ready.set_result(None)
            function()

        started = threading.Thread(target=body, name=f"lab {self.name}", daemon=True)
        started.start()
        ready.result()
        return started

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Put the calling thread into this space's network for a `with` block, to open sockets; a few microseconds.

        Sockets stay where they were opened. Don't await and don't start threads inside.
        """
        here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.set_namespace(self._kinds[syscalls.NEW_NET], syscalls.NEW_NET)
            try:
                yield
            finally:
                syscalls.set_namespace(here, syscalls.NEW_NET)
        finally:
            os.close(here)

    def move_in(self) -> None:
        """Put the calling thread here for good (network, files, host name): for a process that was forked for it."""
        self._enter()

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """Open a socket in this space."""
        with self.entered():
            return socket.socket(family, kind, protocol)

    # ---------------------------------------------------------------------------------- the kernel

    def sysctl(self, name: str, value: str) -> None:
        """Set a network sysctl of this space: `net.ipv4.ip_forward` or `net/ipv4/…` where a part has a dot."""
        path = Path("/proc/sys") / (name if "/" in name else name.replace(".", "/"))
        with self.entered():
            path.write_text(value)

    def counters(self) -> dict[str, int]:
        """The kernel's counters here: /proc/net/netstat and snmp, as `TcpExt.TCPSynRetrans`, `Udp.InDatagrams`."""
        with self.entered():
            texts = [Path(f"/proc/thread-self/net/{file}").read_text() for file in ("netstat", "snmp")]
        lines = [line.split() for text in texts for line in text.splitlines()]
        found = {}
        for names, values in zip(lines[::2], lines[1::2], strict=True):
            group = names[0].rstrip(":")
            found.update({f"{group}.{name}": int(value) for name, value in zip(names[1:], values[1:], strict=True)})
        return found

    def write_file(self, path: str, text: str) -> None:
        """Change one of the `files` given at the start; programs see it at once."""
        self._backing(path).write_text(text)

    def close(self) -> None:
        """Kill the programs started here and let go of the namespaces; the kernel takes them down. Idempotent."""
        for program in self._programs:
            if program.poll() is None:
                program.kill()
                program.wait()
            for stream in (program.stdin, program.stdout, program.stderr):
                if stream is not None:
                    stream.close()
        self._programs.clear()
        for descriptor in self._kinds.values():
            os.close(descriptor)
        self._kinds.clear()
        shutil.rmtree(self._folder, ignore_errors=True)

    # ------------------------------------------------------------------------------------- inside

    def _in_thread(self, function: Callable[[], T], *, enter: bool = True) -> T:
        result: Future[T] = Future()

        def body() -> None:
            try:
                if enter:
                    self._enter()
                result.set_result(function())
            except BaseException as error:
                result.set_exception(error)

        threading.Thread(target=body, name=f"lab {self.name}", daemon=True).start()
        return result.result()

    def _enter(self) -> None:
        if not self._kinds:
            raise RuntimeError(f"{self.name} is closed")
        folder = Path.cwd()
        syscalls.unshare(syscalls.NEW_FS)
        for kind, descriptor in self._kinds.items():
            syscalls.set_namespace(descriptor, kind)
        os.chdir(folder)

    def _make(self, files: Mapping[str, str]) -> None:
        """Make the namespaces from inside the thread that enters them first."""
        syscalls.unshare(syscalls.NEW_NET | syscalls.NEW_MOUNT | syscalls.NEW_UTS)
        syscalls.private_mounts()
        socket.sethostname(self.name)
        for path, text in files.items():
            self._backing(path).write_text(text)
            syscalls.bind(str(self._backing(path)), path)
        for name, value in SYSCTLS.items():
            if (file := Path("/proc/sys", name)).exists():
                file.write_text(value)
        syscalls.loopback_up()
        for kind, file_name in ((syscalls.NEW_MOUNT, "mnt"), (syscalls.NEW_NET, "net"), (syscalls.NEW_UTS, "uts")):
            self._kinds[kind] = os.open(f"/proc/thread-self/ns/{file_name}", os.O_RDONLY | os.O_CLOEXEC)

    def _backing(self, path: str) -> Path:
        return self._folder / path.strip("/").replace("/", "-")

    @property
    def network(self) -> int:
        """Descriptor of the network namespace, for netlink's `net_ns_fd`."""
        return self._kinds[syscalls.NEW_NET]


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.lower() not in _LEAKY}
