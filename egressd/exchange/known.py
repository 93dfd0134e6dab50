"""By which names pods came to know addresses.

It makes a refused packet explain itself, and tells a live connection that is still sanctioned from one that is not,
long after its grant ended. Sans-IO.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import islice
from typing import TYPE_CHECKING, Final

from egressd.compiled import mypyc_attr

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from egressd.names import Name

__all__ = ["LastKnown"]

NAMES: Final = 4
"""Names of one address, of one pod and of all of them together: the latest."""
RECALLED: Final = 16_384
"""About a millisecond's worth."""


@mypyc_attr(acyclic=True)
class _Learned:
    """Who learned one address, by which names, the latest name first; nearly always it is one pod."""

    __slots__ = ("anyones", "names", "others", "pod")

    def __init__(self, pod: bytes, names: tuple[Name, ...]) -> None:
        self.pod = pod
        """Who learned it first; empty when that pod is gone."""
        self.names = names
        self.others: dict[bytes, tuple[Name, ...]] | None = None
        """The names of other pods, where there are any."""
        self.anyones = names

    def of(self, pod: bytes) -> tuple[Name, ...]:
        """The names of one pod."""
        if pod == self.pod:
            return self.names
        return self.others.get(pod, ()) if self.others is not None else ()

    def pods(self) -> list[tuple[bytes, tuple[Name, ...]]]:
        """Every pod that learned it, and its names."""
        first = [(self.pod, self.names)] if self.pod else []
        return first + list(self.others.items()) if self.others is not None else first

    def put(self, pod: bytes, names: tuple[Name, ...]) -> None:
        if pod == self.pod:
            self.names = names
        else:
            if self.others is None:
                self.others = {}
            self.others[pod] = names

    def forget(self, pod: bytes) -> int:
        """Returns how many pods that were: one or none. What any pod knew stays."""
        if pod == self.pod:
            self.pod, self.names = b"", ()
            return 1
        if self.others is not None and pod in self.others:
            del self.others[pod]
            return 1
        return 0


class LastKnown:
    """The names, by address and pod. Bounded: at most `size` pairs and addresses; what no pod has come to know for
    longest is out first (in an OrderedDict: to find its oldest entry, a dict walks past the places of all that left
    before)."""

    def __init__(self, size: int = 65_536) -> None:
        self._size = size
        self._pairs = 0
        self._addresses: OrderedDict[bytes, _Learned] = OrderedDict()

    def note(self, pod: bytes, name: Name, addresses: tuple[bytes, ...]) -> None:
        """`name` resolved to these addresses for the pod with this address."""
        table = self._addresses
        for address in addresses:
            learned = table.get(address)
            if learned is None:
                table[address] = _Learned(pod, (name,))
                self._pairs += 1
            else:
                own = learned.of(pod)
                if name in own:
                    continue
                self._add(learned, address, pod, own, name)
            while len(table) > self._size or self._pairs > self._size:
                _, oldest = table.popitem(last=False)
                self._pairs -= len(oldest.pods())

    def _add(self, learned: _Learned, address: bytes, pod: bytes, own: tuple[Name, ...], name: Name) -> None:
        if not own:
            self._pairs += 1
            self._addresses.move_to_end(address)
        learned.put(pod, (name, *own[: NAMES - 1]))
        if name not in learned.anyones:
            learned.anyones = (name, *learned.anyones[: NAMES - 1])

    def names_for(self, pod: bytes, address: bytes) -> tuple[Name, ...]:
        """Names by which this pod learned the address, the latest first."""
        learned = self._addresses.get(address)
        return learned.of(pod) if learned is not None else ()

    def names(self, pod: bytes, address: bytes) -> tuple[Name, ...]:
        """The same or, where this pod asked for none, the names by which any pod of the node learned it."""
        learned = self._addresses.get(address)
        return learned.of(pod) or learned.anyones if learned is not None else ()

    def addresses_for(self, pods: Collection[bytes], name: Name) -> list[bytes]:
        """Addresses that these pods learned by this name, each once for each pod, among the latest `RECALLED`."""
        latest = islice(reversed(self._addresses.items()), RECALLED)
        return [
            address for address, learned in latest for pod, names in learned.pods() if pod in pods and name in names
        ]

    def entries(self) -> Iterator[tuple[tuple[bytes, bytes], tuple[Name, ...]]]:
        """Everything known: (pod, address) and names."""
        for address, learned in self._addresses.items():
            for pod, names in learned.pods():
                yield (pod, address), names

    def forget(self, pod: bytes) -> None:
        """The pod is gone; its address may be another's tomorrow."""
        for learned in self._addresses.values():
            self._pairs -= learned.forget(pod)
