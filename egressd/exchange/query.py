"""One question on its way, who asked it, and the parts that the exchange is put together from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from egressd.compiled import mypyc_attr
from egressd.policy import UNSELECTED

if TYPE_CHECKING:
    from egressd.exchange.known import LastKnown
    from egressd.exchange.parties import Party
    from egressd.exchange.store import Refresh
    from egressd.grants import Element, Ledger
    from egressd.model import DnsRecord
    from egressd.wire import Question

__all__ = ["Client", "Parts", "Query"]


class Client(Protocol):
    """One query's way back. Addresses are packed; `server` is the address that the client asked."""

    @property
    def address(self) -> bytes: ...
    @property
    def port(self) -> int: ...
    @property
    def server(self) -> bytes: ...
    @property
    def transport(self) -> str:
        """`udp` or `tcp`."""

    def send(self, data: bytes) -> None:
        """Answer with one whole message. Never raises: what cannot be sent is dropped and counted."""

    def post(self, data: bytes) -> None:
        """The same, but the answer may wait for `Parts.flush`, so that those of one batch leave together."""


def _nothing() -> None:
    """For those who keep nothing back."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What the exchange is made of besides itself."""

    parties: dict[bytes, Party]
    """Pods by address, kept up to date by the owner."""
    ledger: Ledger
    known: LastKnown
    ask: Callable[[Question, Query | Refresh], None]
    """Ask upstream; the answer comes back through `Exchange.deliver`."""
    program: Callable[[Sequence[Element]], None]
    """Write grant elements, acknowledged; raises `KernelError`."""
    loop_option: bytes
    """The EDNS option in our own queries (`wire.loop_option`): one that a pod sends has come back."""
    withdraw: Callable[[Sequence[Element]], None]
    """Take elements out of the kernel that a bound pushed out of the ledger."""
    record: Callable[[DnsRecord], None]
    """Put a record into the audit log."""
    form: Callable[[DnsRecord], Any]
    """The form of a record, whatever that is: what makes of it a record at another time."""
    repeat: Callable[[Any, float, int, int], None]
    """Put a record of that form into the log, by its time (seconds since the epoch), the client's port, and the latency
    in microseconds."""
    clock: Callable[[], float]
    """Monotonic seconds."""
    wall: Callable[[], float]
    """Seconds since the epoch, for records alone."""
    flush: Callable[[], None] = _nothing
    """A batch is done: what was asked and posted meanwhile may go."""


@mypyc_attr(acyclic=True)
class Query:
    """One question: who asked what, what was decided and by which policies, and when it began (monotonic)."""

    decision = UNSELECTED
    finished = False
    tail = b""
    """What the pod sent, behind the ID, where the same was asked before."""

    def __init__(self, client: Client, ident: int, question: Question, party: Party, started: float) -> None:
        self.client = client
        self.ident = ident
        self.question = question
        self.party = party
        self.judge = party.judge
        self.started = started

    def decide(self) -> None:
        """Judge the name by the policies that select the pod now."""
        self.judge = judge = self.party.judge
        self.decision = UNSELECTED if judge is None else judge.judge_name(self.question.name)
