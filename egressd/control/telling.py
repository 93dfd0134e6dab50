"""What of the world the data path is told: pods, and of the policies those that select a pod of this node.

All others are nobody's business there; in a large cluster they are the most. One that comes to select a pod is told
together with the pod, and one that selects none any more is said to be gone. Values in, values out.
"""

from __future__ import annotations

from egressd.control.world import World
from egressd.link import Update

__all__ = ["Telling"]


class Telling:
    """What a data path has been told; `everything` begins anew."""

    def __init__(self) -> None:
        self._told: frozenset[str] = frozenset()

    def everything(self, world: World) -> Update:
        """All that a data path must know that knows nothing yet."""
        self._told = _selecting(world)
        everything = world.everything()
        policies = tuple(policy for policy in everything.policies if policy.name in self._told)
        return Update(policies=policies, pods=everything.pods)

    def change(self, world: World, update: Update) -> Update:
        """What of a change of the world is to be told; nothing at all is an empty update."""
        before, self._told = self._told, _selecting(world)
        edited = {policy.name for policy in update.policies}
        return Update(
            policies=tuple(world.policies[name] for name in sorted(self._told & edited | self._told - before)),
            gone_policies=tuple(sorted(before - self._told)),
            pods=update.pods,
            gone_pods=update.gone_pods,
        )


def _selecting(world: World) -> frozenset[str]:
    return frozenset(name for entry in world.entries for name in entry.policies)
