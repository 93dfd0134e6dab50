"""What an earlier run of the daemon left in the kernel: grants are taken over where today's policies still say so."""

from __future__ import annotations

import errno
import logging
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from egressd.agent.roster import permit
from egressd.errors import KernelError
from egressd.kernel.comments import COMMENT_MAX
from egressd.kernel.state import AllowedRange
from egressd.names import MAX_LABEL, ROOT, Name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from egressd.agent.roster import Roster, SubjectState
    from egressd.exchange import LastKnown
    from egressd.grants import Ledger
    from egressd.kernel import Kernel, LiveGrant, Snapshot

__all__ = ["Restored", "restore", "stored_name"]

log = logging.getLogger("egressd.agent")

_LABEL: Final = re.compile(r"(?:[a-z0-9_-]|\\[0-9]{3})+\Z")
"""A label as `names.label_text` spells it: octets other than these are written as three digits."""
_ESCAPE: Final = re.compile(r"\\[0-9]{3}")
_LABELS_MAX: Final = 127
NOTED: Final = 50_000
"""Pairs of pod and address whose names are remembered, less than `LastKnown` holds."""


class Restored(NamedTuple):
    """How many grants were taken over, and which (pod, destination) pairs stay shut."""

    grants: int
    revoked: tuple[tuple[bytes, bytes], ...]
    lapsed: dict[bytes, tuple[AllowedRange, ...]]
    """What each pod could reach when the table was last written, by addresses and by grants that are not taken over."""


def restore(kernel: Kernel, roster: Roster, ledger: Ledger, known: LastKnown, now: float) -> Restored:
    """Read grants back and remember those that a subject of the same policies may still have.

    Subjects are found again by their policies' names, whatever number they had. An element's comment is the name it
    was given for; a name that was cut to fit, or an unreadable table, costs its grants and nothing else: the next
    answer gives them again. Each keeps exactly the time it had left.
    """
    try:
        snapshot = kernel.read_back()
    except KernelError as error:
        if error.errno != errno.ENOENT:
            log.warning("nothing is taken over from an earlier run: %s", error)
        return Restored(0, (), {})
    roster.renumber(snapshot.subjects.keys())
    keys = {number: tuple(comment.split()) for number, comment in snapshot.subjects.items()}
    restored = noted = 0
    lapsed = {number: list(ranges) for number, ranges in snapshot.allowed.items()}
    for grant in snapshot.grants:
        state = roster.subjects.get(keys.get(grant.subject, ()))
        name = stored_name(grant.comment)
        if state is None or name is None or not _take(state, grant, name, ledger, now):
            lapsed[grant.subject].append(AllowedRange(grant.address, grant.address, grant.span))
            continue
        restored += 1
        if noted < NOTED:
            noted += _note(state, name, grant.address, known)
    revoked = tuple(pair for pair in snapshot.revoked if pair[0] in roster.parties)
    return Restored(restored, revoked, _by_pod(snapshot, roster, lapsed))


def _by_pod(
    snapshot: Snapshot, roster: Roster, lapsed: Mapping[int, Sequence[AllowedRange]]
) -> dict[bytes, tuple[AllowedRange, ...]]:
    """Of selected pods that are still the same. Where one went that no policy selected, nothing tells names from
    addresses: what it has open is left alone."""
    return {
        pod.address: tuple(lapsed.get(pod.subject, ()))
        for pod in snapshot.pods
        if pod.subject is not None
        and (party := roster.parties.get(pod.address)) is not None
        and str(party.identity) == pod.comment
    }


def _take(state: SubjectState, grant: LiveGrant, name: Name, ledger: Ledger, now: float) -> bool:
    ports = permit(state.judge)(name, grant.address) if grant.remaining_ms > 0 else ()
    if ports:
        ledger.restore(state.number, name, grant.address, ports, now + grant.remaining_ms / 1000, now)
    return bool(ports)


def _note(state: SubjectState, name: Name, address: bytes, known: LastKnown) -> int:
    """Any pod of the subject may have learned it; what a live connection is judged by once the grant has ended."""
    pods = [pod for pod in state.addresses if len(pod) == len(address)]
    for pod in pods:
        known.note(pod, name, (address,))
    return len(pods)


def stored_name(comment: str) -> Name | None:
    """The canonical name that a comment is; None for anything else, or if it may have been cut."""
    if comment == ROOT:
        return ROOT
    if len(comment) >= COMMENT_MAX:
        return None
    labels = comment.split(".")
    octets = [len(_ESCAPE.sub("x", label)) for label in labels]
    if len(labels) > _LABELS_MAX or max(octets) > MAX_LABEL or sum(octets) + len(labels) > 254:
        return None
    return Name(comment) if all(map(_LABEL.match, labels)) else None
