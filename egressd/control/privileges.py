"""What the control side gives up before it reads anything that others wrote: every capability, for good.

It stays uid 0, so that it reads what root may read and its files belong to root, but it holds no capability, can
regain none by executing a program (bounding set, no_new_privs), and dies with its parent. The numbers are those of
include/uapi/linux/prctl.h and include/uapi/linux/capability.h, the same on every architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from pathlib import Path
from typing import Final

from egressd.errors import EnvironmentProblem

__all__ = ["LAST_WORDS_S", "drop", "follow_parent"]

LAST_WORDS_S: Final = 5
"""Seconds the control side may take to write its last lines once nobody needs it."""

_PR_SET_PDEATHSIG: Final = 1
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_MAX_CAPABILITIES: Final = 64
"""Capabilities that version 3 of the interface can carry; the kernel ends the loop earlier."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop() -> None:
    """Drop every capability. Call it before the first thread: capabilities belong to threads.

    Raises `EnvironmentProblem` if any is left after all.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(_MAX_CAPABILITIES):
        try:
            _prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            # EINVAL: past the last one. EPERM: no CAP_SETPCAP, and no_new_privs has closed that way already
            # (security/commoncap.c, cap_bprm_creds_from_file).
            if error.errno not in {errno.EINVAL, errno.EPERM}:
                raise
            break
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    none = (_Data * 2)()
    if _libc.capset(ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), none) != 0:
        raise EnvironmentProblem(f"capabilities cannot be dropped: {os.strerror(ctypes.get_errno())}")
    _check()


def follow_parent() -> None:
    """End with the parent: by the closed link as a rule, at the latest `LAST_WORDS_S` seconds after its death.

    The grace lets records that the parent still sent reach the disk. Terminal signals are the parent's business.
    """
    for ignored in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    parent = os.getppid()

    def parent_died(_number: int, _frame: object) -> None:
        if os.getppid() != parent:
            signal.alarm(LAST_WORDS_S)  # SIGALRM is left at its default: it ends the process

    signal.signal(signal.SIGUSR1, parent_died)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1)


def _prctl(option: int, argument: int) -> None:
    zero = ctypes.c_ulong(0)
    if _libc.prctl(ctypes.c_int(option), ctypes.c_ulong(argument), zero, zero, zero) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}, {argument}): {os.strerror(number)}")


def _check() -> None:
    status = Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    held = [field for field in ("CapInh", "CapPrm", "CapEff", "CapAmb") if int(fields[field], 16)]
    if held or fields["NoNewPrivs"] != "1":
        raise EnvironmentProblem(
            f"the control side still holds capabilities: {', '.join(held) or 'no_new_privs unset'}"
        )
