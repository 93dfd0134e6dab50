"""What an earlier run of the daemon left in the kernel: grants are taken over where today's policies still say so."""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

from egressd.agent.roster import permit
from egressd.errors import InvalidName, KernelError
from egressd.names import Name, parse_name

if TYPE_CHECKING:
    from egressd.agent.roster import Roster
    from egressd.grants import Ledger
    from egressd.kernel import Kernel

__all__ = ["restore_grants"]

log = logging.getLogger("egressd.agent")


def restore_grants(kernel: Kernel, roster: Roster, ledger: Ledger, now: float) -> int:
    """Read grants back and remember those that a subject of the same policies may still have. Returns how many.

    An element's comment is the name it was given for; a name that was cut to fit, or an unreadable table, costs its
    grants and nothing else: the next answer gives them again.
    """
    try:
        snapshot = kernel.read_back()
    except KernelError as error:
        if error.errno != errno.ENOENT:
            log.warning("nothing is taken over from an earlier run: %s", error)
        return 0
    keys = {number: tuple(comment.split()) for number, comment in snapshot.subjects.items()}
    restored = 0
    for grant in snapshot.grants:
        state = roster.subjects.get(keys.get(grant.subject, ()))
        name = _name(grant.comment)
        if state is None or name is None or grant.remaining_ms <= 0:
            continue
        ports = permit(state.judge)(name, grant.address)
        if ports:
            ledger.restore(state.number, name, grant.address, ports, now + grant.remaining_ms / 1000, now)
            restored += 1
    return restored


def _name(comment: str) -> Name | None:
    try:
        return parse_name(comment)
    except InvalidName:
        return None
