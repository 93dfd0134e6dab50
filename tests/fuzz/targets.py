"""What is fuzzed: each target takes any octets and holds one reader to its promise; one that raises has found a bug.

Promises are those of the readers' docstrings: a value or their one error, and what a value then stands for. The same
functions replay the corpus under pytest, without a fuzzer.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from multidict import MultiDict

from egressd import link
from egressd.admin import parameters
from egressd.admin.problem import HttpProblem
from egressd.errors import InvalidName, KernelError, LinkError, WireError
from egressd.kernel import conntrack, netlink, nflog, state
from egressd.kernel.comments import read_comment
from egressd.kernel.netlink import Channel
from egressd.names import parse_pattern
from egressd.schema import (
    BarePolicy,
    ConfigMapObject,
    bare_policy,
    has_errors,
    policies_of,
    read_manifests,
    read_policy,
    read_settings,
    resolvers_of,
)
from egressd.wire import Question, denial, header_error, read_answer, read_query, reply, upstream_query

__all__ = ["CORPUS", "TARGETS", "Target"]

CORPUS: Final = Path(__file__).parent.parent / "corpus"


@dataclass(frozen=True)
class Target:
    """`run` is fed any octets. `seeds` are folders of the corpus to begin with; findings go to `fuzz/NAME`."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[str, ...] = ()
    longest: int = 4096
    """Octets of an input."""

    @property
    def findings(self) -> Path:
        return CORPUS / "fuzz" / self.name

    def folders(self) -> list[Path]:
        """Where inputs lie, of those that exist."""
        return [folder for folder in (*(CORPUS / seed for seed in self.seeds), self.findings) if folder.is_dir()]

    def inputs(self) -> list[Path]:
        """Every input kept, in order."""
        return [path for folder in self.folders() for path in sorted(folder.iterdir()) if path.suffix != ".md"]


def _promise(kept: bool) -> None:
    if not kept:
        raise AssertionError("the reader's error is not the one promised")


# ------------------------------------------------------------------------------------------------------ DNS


def wire_query(data: bytes) -> None:
    """The gate: a question that can be asked, shared and denied, or an error that can be answered."""
    try:
        asked = read_query(data)
    except WireError as error:
        if error.rcode is not None:
            _promise(len(header_error(data, error.rcode)) in (12, 23))  # with an OPT record for BADVERS
        return
    assert read_query(upstream_query(asked, 7)).key == asked.key
    answer = denial(asked, 7, 3, 15, "blocked by policy")
    assert len(answer) <= asked.udp_size
    assert answer[12 : 12 + len(asked.raw)] == asked.raw


def _question() -> Question:
    labels = b"\3www\7example\0"
    return read_query(b"\0\7\1\0\0\1\0\0\0\0\0\1" + labels + b"\0\1\0\1\0\0\x29\x04\xd0\0\0\0\0\0\0")


QUESTION: Final = _question()


def wire_answer(data: bytes) -> None:
    """An answer as it came; or, so that the fuzzer need not find the question, the records behind it."""
    _hold_answer(data)
    if len(data) > 8:
        head = b"\0\7" + bytes((data[0] | 0x80, data[1])) + b"\0\1\0" + bytes((data[2],))
        _hold_answer(head + b"\0" + bytes((data[3] & 7, 0, data[4] & 3)) + QUESTION.raw + data[5:])


def _hold_answer(data: bytes) -> None:
    try:
        answer = read_answer(data, QUESTION)
    except WireError:
        return
    assert all(len(address) in (4, 16) for address in answer.addresses)
    for udp in (True, False):
        out = reply(answer, QUESTION, 9, udp=udp, age=7)
        assert len(out) <= (QUESTION.udp_size if udp else 65535)
    withheld = frozenset(answer.addresses[::2])
    rest = read_answer(reply(answer, QUESTION, 9, udp=False, withheld=withheld), QUESTION)
    assert not withheld & set(rest.addresses)


# --------------------------------------------------------------------------------------------------- policies


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def policy(data: bytes) -> None:
    """A policy or problems, each with a place."""
    read, problems = read_policy(_text(data), name="a/b", namespace="a", policy_namespace="a")
    assert (read is None) == has_errors(problems)
    assert all(problem.line >= 1 and problem.column >= 1 and problem.message for problem in problems)


def manifests(data: bytes) -> None:
    """Objects, and the policies in them."""
    found, _ = read_manifests(_text(data), "f.yaml")
    for manifest in found:
        if isinstance(manifest, ConfigMapObject):
            policies, _, refused = policies_of(manifest, "a")
            assert not set(policies) & refused
        elif isinstance(manifest, BarePolicy):
            bare_policy(manifest, name="a/b", namespace="a", policy_namespace="a")


def settings(data: bytes) -> None:
    """Settings from a file and from a variable, and resolv.conf."""
    text = _text(data)
    for environ in ({}, {"EGRESSD_DNS__UPSTREAMS": text}, {"EGRESSD_POD_CIDRS": text}):
        read, problems = read_settings("" if environ else text, "s.yaml", environ, {})
        assert (read is None) == bool(problems)
    resolvers_of(text)
    with contextlib.suppress(InvalidName):
        parse_pattern(text)


# ---------------------------------------------------------------------------------------------------- netlink


def nflog_report(data: bytes) -> None:
    """Messages as read from the socket, and the packet in each; also the octets as a packet by themselves."""
    packets = [dict(netlink.attributes(payload[4:])) for _, payload in nflog._messages(data)]
    for prefix, packet in [(found.get(10, b""), found.get(9, b"")) for found in packets] + [(data[:16], data)]:
        try:
            report = nflog.read_report(prefix, packet)
        except KernelError as error:
            _promise(error.errno == errno.EBADMSG)
            continue
        assert len(report.source) == len(report.destination)
        assert -1 <= report.port <= 65535


def conntrack_entry(data: bytes) -> None:
    """An entry of the connection table."""
    try:
        entry = conntrack.read_entry(data)
    except KernelError as error:
        _promise(error.errno == errno.EBADMSG)
        return
    assert len(entry.source) == len(entry.destination)


def netlink_messages(data: bytes) -> None:
    """Attributes, whatever they hold; acknowledgements; comments in user data."""
    for _, value in netlink.attributes(data):
        assert len(value) <= len(data)
    for _ in netlink._messages(data):
        pass
    if len(data) >= 36:  # the kernel sends no shorter nlmsgerr
        netlink._read_errors(data, [])
    read_comment(data)


class _Dumps:
    """Answers each dump with the next slice of the input, cut where the input says."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def dump(self, _kind: int, _body: bytes) -> list[bytes]:
        bodies = []
        count, self._data = self._data[:1], self._data[1:]
        for _ in range(count[0] & 3 if count else 0):
            length = self._data[0] if self._data else 0
            bodies.append(self._data[1 : 1 + length])
            self._data = self._data[1 + length :]
        return bodies


def kernel_state(data: bytes) -> None:
    """Subjects, pods and grants from dumps of anything: values or `KernelError`."""
    for read in (state.snapshot, state.installed):
        with contextlib.suppress(KernelError):
            read(cast("Channel", _Dumps(data)), "egressd")


# ------------------------------------------------------------------------------------------------ our own ends


def link_frames(data: bytes) -> None:
    """Frames in either direction, in one piece and in two."""
    for direction in (link.Down, link.Up):
        whole = repr(_frames(direction, [data]))  # not the values: NaN equals nothing
        assert whole == repr(_frames(direction, [data[: len(data) // 2], data[len(data) // 2 :]]))


def _frames(direction: Any, pieces: list[bytes]) -> list[Any] | None:
    frames = link.Frames(direction)
    try:
        return [message for piece in pieces for message in frames.feed(piece)]
    except LinkError:
        return None


PARAMETERS: Final = (
    parameters.pod(),
    parameters.name(),
    parameters.destination(),
    parameters.since(),
    parameters.verdict(),
    parameters.number("limit", "how many", 100, 1, 1000),
    parameters.flag("search", "with search noise"),
)


def admin_parameters(data: bytes) -> None:
    """Query parameters: values, or a problem document with status 400."""
    text = _text(data)
    given = MultiDict(pair.partition("=")[::2] for pair in text.split("&"))
    for offered in (given, *(MultiDict({parameter.name: text, "to": "a.example"}) for parameter in PARAMETERS)):
        try:
            read = parameters.read(offered, PARAMETERS)
        except HttpProblem as problem:
            _promise(problem.status == 400 and len(str(problem)) < 4000)
        else:
            assert read.keys() == {parameter.name for parameter in PARAMETERS}


TARGETS: Final = {
    target.name: target
    for target in (
        Target("wire-query", wire_query, ("wire",), 600),
        Target("wire-answer", wire_answer, ("wire",)),
        Target("policy", policy, ("policy",)),
        Target("manifests", manifests, ("policy",)),
        Target("settings", settings, ("policy",)),
        Target("nflog", nflog_report, (), 1024),
        Target("conntrack", conntrack_entry, (), 1024),
        Target("netlink", netlink_messages, (), 1024),
        Target("kernel-state", kernel_state, (), 1024),
        Target("link", link_frames, (), 2048),
        Target("admin", admin_parameters, (), 600),
    )
}
