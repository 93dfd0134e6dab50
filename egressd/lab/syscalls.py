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
    "loopback_up",
    "mount",
    "private_mounts",
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

_MS_BIND: Final = 4096
_MS_REC: Final = 16384
_MS_PRIVATE: Final = 1 << 18
_PR_SET_PDEATHSIG: Final = 1
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


def loopback_up() -> None:
    """Set `lo` up in the calling thread's network namespace (netdevice(7), SIOCSIFFLAGS)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack_from("16sH", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
