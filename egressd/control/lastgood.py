"""The last good version of every policy, on disk: a document that is broken while we start keeps what it last meant.

One JSON file beside the history, replaced in one step, mode 0600. It is a memory, not a source: a policy is taken from
it only where its document is there and refused (policy.md, Bad input), or is the very text that the same program read
it from before, which makes a start with 1,000 policies a second shorter. A file that is missing, too large, not ours
to trust or not understood is as good as none, and is said to be so.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from egressd import model, names, schema
from egressd.model import Policy
from egressd.policy import ports
from egressd.settings import Settings

__all__ = ["FILE", "LastGood"]

FILE: Final = "policies.json"
MAX_OCTETS: Final = 256 * 1024 * 1024
"""Octets that are read: some hundred policies of the largest kind, a hundred thousand ordinary ones."""


class _Document(msgspec.Struct, frozen=True):
    """`home` is the policy namespace that the policies were read with: in another one they mean something else."""

    version: int
    home: str
    policies: tuple[Policy, ...]
    reader: str = ""
    """What read the policies (`_reader`)."""
    texts: dict[str, str] = {}
    """Digests of the texts that they were read from (`world.digest`), by policy."""


VERSION: Final = 1


class LastGood:
    """The file of one daemon. Neither method raises; give `keep` a thread."""

    texts: Mapping[str, str] = {}
    """What the policies that were recalled were read from; empty where another program may read it otherwise."""

    def __init__(self, settings: Settings) -> None:
        self._home = settings.policy_namespace
        self._path = Path(settings.history.file).with_name(FILE) if settings.history.file else None
        self._kept: dict[str, Policy] | None = None

    def recall(self) -> dict[str, Policy]:
        """The policies that were in force last, by name."""
        if self._path is None:
            return {}
        try:
            document = msgspec.json.decode(self._read(self._path), type=_Document)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:  # MsgspecError is a ValueError
            _say(f"{self._path}: last good policies are not taken over: {error}")
            return {}
        if document.version != VERSION or document.home != self._home:
            return {}
        self.texts = document.texts if document.reader and document.reader == _reader() else {}
        return {policy.name: policy for policy in document.policies}

    def keep(self, policies: Mapping[str, Policy], texts: Mapping[str, str]) -> None:
        """Write down what is in force now, if it is not what was written last."""
        if self._path is None or self._kept == policies:
            return
        kept = dict(policies)
        document = _Document(VERSION, self._home, tuple(kept[name] for name in sorted(kept)), _reader(), dict(texts))
        draft = self._path.with_name(f"{FILE}.{os.getpid()}.draft")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._write(draft, msgspec.json.encode(document))
            draft.replace(self._path)
        except OSError as error:
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            _say(f"{self._path}: last good policies cannot be kept for a restart: {error.strerror or error}")
        self._kept = kept

    @staticmethod
    def _read(path: Path) -> bytes:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.geteuid() or status.st_mode & 0o022:
                raise PermissionError(1, "others may write to it")
            if status.st_size > MAX_OCTETS:
                raise OSError(27, f"it has {status.st_size} octets, at most {MAX_OCTETS} are read")
            return file.read(MAX_OCTETS)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        number = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(number)


@cache
def _reader() -> str:
    """Tells one program that reads policies from another: its sources, and the versions of what it reads with."""
    known = hashlib.blake2b(f"{sys.version} {schema.READ_WITH}".encode(), digest_size=16)
    files = [*Path(schema.__file__).parent.glob("*.py"), *(Path(str(each.__file__)) for each in (model, names, ports))]
    try:
        for file in sorted(files):
            known.update(file.read_bytes())
    except OSError:
        return ""
    return known.hexdigest()


def _say(text: str) -> None:
    print(f"egressd: {text}", file=sys.stderr, flush=True)
