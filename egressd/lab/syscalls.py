"""The few system calls that Python 3.11 does not offer: namespaces, mounts, death signals. Nothing else calls libc.

Each is one call that either succeeds or raises `EnvironmentProblem`, with the kernel's reason and, for lack of rights,
what to do about it. Numbers are those of include/uapi/linux/sched.h, mount.h and prctl.h.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from egressd.errors import EnvironmentProblem

__all__ = [
    "NEW_FS",
    "NEW_IPC",
    "NEW_MOUNT",
    "NEW_NET",
    "NEW_PID",
    "NEW_UTS",
    "bind",
    "die_with_parent",
    "keep_capabilities",
    "loopback_up",
    "mount",
    "private_mounts",
    "read_only",
    "set_namespace",
    "unshare",
]

NEW_FS: Final = 0x0000_0200
"""CLONE_FS: an own working directory and root, per thread; entering a mount namespace requires it."""
NEW_MOUNT: Final = 0x0002_0000
NEW_UTS: Final = 0x0400_0000
NEW_IPC: Final = 0x0800_0000
NEW_PID: Final = 0x2000_0000
NEW_NET: Final = 0x4000_0000

_MS_READ_ONLY: Final = 1 | 2 | 4 | 8
"""MS_RDONLY, and with it MS_NOSUID, MS_NODEV and MS_NOEXEC: how kernel file systems are mounted anyway."""
_MS_REMOUNT: Final = 32
_MS_BIND: Final = 4096
_MS_REC: Final = 16384
_MS_PRIVATE: Final = 1 << 18
_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x2008_0522
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 1
_AS_ROOT: Final = "run as root with CAP_SYS_ADMIN and CAP_NET_ADMIN (sudo, or a privileged container)"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result == 0:
        return
    code = ctypes.get_errno()
    raise EnvironmentProblem(
        f"cannot {what}: {os.strerror(code)}", _AS_ROOT if code in {errno.EPERM, errno.EACCES} else ""
    )


def unshare(flags: int) -> None:
    """Move the calling thread into new namespaces (`NEW_PID`: only the children it starts afterwards)."""
    _check(_libc.unshare(flags), "make a namespace")


def set_namespace(descriptor: int, kind: int) -> None:
    """Move the calling thread into the namespace behind an open /proc/…/ns file (`NEW_PID`: only its children)."""
    _check(_libc.setns(descriptor, kind), "enter a namespace")


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    words = [word.encode() if word else None for word in (source, target, kind)]
    result = _libc.mount(*words, ctypes.c_ulong(flags), options.encode() or None)
    _check(result, f"mount {kind or source} on {target}")


def mount(kind: str, target: str, options: str = "") -> None:
    """Mount a kernel file system (`tmpfs`, `proc`)."""
    _mount(kind, target, kind, 0, options)


def bind(source: str, target: str) -> None:
    """Show the file `source` in place of the file `target`, in this mount namespace only."""
    _mount(source, target, "", _MS_BIND, "")


def private_mounts() -> None:
    """Keep every later mount of this mount namespace from being seen elsewhere."""
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE, "")


def die_with_parent(signal_number: int) -> None:
    """Ask the kernel for a signal when the thread that started this process ends (prctl(2), PR_SET_PDEATHSIG)."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "set the parent-death signal")


def read_only(target: str) -> None:
    """Let nobody in this mount namespace write below `target`, be it a mount or a path in one."""
    _mount(target, target, "", _MS_BIND, "")
    _mount("none", target, "", _MS_BIND | _MS_REMOUNT | _MS_READ_ONLY, "")


def keep_capabilities(kept: AbstractSet[int]) -> None:
    """Give up, in this process and for good in all it will start, every capability but `kept` (capabilities(7)).

    They leave the bounding set, so that executing a program as root brings none of them back, and no_new_privs makes
    set-user-ID programs ordinary ones.
    """
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for number in range(last + 1):
        if number not in kept:
            _check(_libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0), "give up a capability")
    _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), "give up ambient capabilities")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "give up set-user-ID programs")
    lines = Path("/proc/self/status").read_text().splitlines()
    held = next(int(line.split()[1], 16) for line in lines if line.startswith("CapPrm:"))
    mask = held & sum(1 << number for number in kept)
    low, high = mask & 0xFFFF_FFFF, mask >> 32
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)), "give up capabilities")


def loopback_up() -> None:
    """Set `lo` up in the calling thread's network namespace (netdevice(7), SIOCSIFFLAGS)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("16sH", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
