"""Whether the table is still what was written: names and numbers, told apart in a few milliseconds.

The watch (watch.py) reports each foreign change as it happens; this is the second look, for what a report lost on the
way would have said. It compares chains and how many rules each has, the sets of each instance, and pods with their
verdicts. Contents of rules and address sets are left to the watch.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from pyroute2.netlink.nfnetlink.nftsocket import NFT_MSG_GETCHAIN, NFT_MSG_GETRULE

from egressd.kernel.netlink import Channel, attributes, string
from egressd.kernel.state import Installed, installed, plain_addresses
from egressd.kernel.template import subject_chain

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["difference", "rules_of"]


def rules_of(channel: Channel, table: str) -> dict[str, int]:
    """Rules in each chain of the table. Raises `KernelError`."""
    found: Counter[str] = Counter()
    for kind, chain_attribute in ((NFT_MSG_GETCHAIN, 3), (NFT_MSG_GETRULE, 2)):
        for body in channel.dump(kind, string(1, table)):
            seen = dict(attributes(body))
            if seen.get(1, b"") == table.encode() + b"\0":
                found[seen.get(chain_attribute, b"").rstrip(b"\0").decode(errors="replace")] += kind == NFT_MSG_GETRULE
    return dict(found)


def difference(channel: Channel, table: str, state: Installed, base: Mapping[str, int]) -> str:
    """What differs from `state` and the rules of the `base` chains, in words; empty if nothing does.

    Raises `KernelError`, with ENOENT where the table or one of its sets is gone.
    """
    rules = rules_of(channel, table)
    expected = dict(base) | {subject_chain(subject): count for subject, count in state.rules.items()}
    for chain in sorted(expected.keys() | rules.keys()):
        if expected.get(chain) != rules.get(chain):
            return f"chain {chain} has {_count(rules.get(chain))}, not {_count(expected.get(chain))}"
    found = installed(channel, table)
    if found.subjects != state.subjects:
        return "the sets of an instance differ"
    if found.node != state.node:
        return "the sets of the node differ"
    if found.pods.keys() != state.pods.keys() or any(
        pod.subject != state.pods[address].subject or pod.bypass != state.pods[address].bypass
        for address, pod in found.pods.items()
    ):
        return "the pods differ"
    return "" if plain_addresses(channel, table, "known") == state.pods.keys() else "the addresses of pods differ"


def _count(rules: int | None) -> str:
    return "no such chain" if rules is None else f"{rules} rules"
