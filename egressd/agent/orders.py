"""What the control side says, carried out: settings, editions of the world, questions.

An edition comes in slices and comes into force in parts (roster.py); each step here is a short one (turns.py). Nothing
of it is in force before all of it is here, and the control side hears of it when it is in the kernel.
"""

from __future__ import annotations

import logging
import time
from dataclasses import fields
from typing import TYPE_CHECKING, Protocol

from egressd import link
from egressd.agent.roster import Moved

if TYPE_CHECKING:
    from collections.abc import Iterator

    from egressd.agent.answers import Answers
    from egressd.agent.child import Child
    from egressd.agent.editions import Part
    from egressd.agent.enforcement import Enforcement
    from egressd.agent.garbage import Frost
    from egressd.agent.roster import Roster
    from egressd.agent.turns import Work
    from egressd.exchange import Exchange
    from egressd.settings import Settings

__all__ = ["Orders", "Place"]

log = logging.getLogger("egressd.agent")


class Place(Protocol):
    """Where orders are carried out: what they need of the daemon."""

    settings: Settings
    roster: Roster
    enforcement: Enforcement
    exchange: Exchange
    answers: Answers
    child: Child
    frost: Frost
    serving: bool

    def begin(self) -> None:
        """The world is known."""


class Orders:
    """One conversation after another with a control side."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._policies: set[str] = set()
        self._pods: set[bytes] = set()
        """What was mentioned since `Ready`."""
        self._heard = self._carried_out = 0

    def hear(self, message: link.Down) -> Work:
        """Carry out a message; what takes longer is returned as steps."""
        place = self._place
        if isinstance(message, link.Update):
            self._heard += 1
            self._policies.update(policy.name for policy in message.policies)
            self._pods.update(entry.address for entry in message.pods)
            place.roster.stage(message)
            return () if message.more else self._change(self._heard)
        if isinstance(message, link.Synced):
            return self._synced()
        if isinstance(message, link.Ready):
            self.lost()
            self._heard = self._carried_out = 0
            self._resettle(message.settings)
        elif isinstance(message, link.Ask):
            place.child.send(place.answers.answer(message))
        elif isinstance(message, link.Refused):
            log.error("the control side refuses the settings; the last good ones stay in force")
        return ()

    def lost(self) -> None:
        """The control side ended, or begins anew: what it had not said to the end is void."""
        self._policies, self._pods = set(), set()
        self._place.roster.unstage()

    def confirm(self) -> None:
        """Tell the control side how much of what it said is in the kernel, if that is what it should be."""
        if self._place.serving and not self._place.enforcement.damage:
            self._place.child.send(link.Applied(self._carried_out))

    def _synced(self) -> Iterator[None]:
        """All was said: what was not mentioned is no more."""
        gone_policies, gone_pods = self._place.roster.stale(self._policies, self._pods)
        self._place.roster.stage(link.Update(gone_policies=gone_policies, gone_pods=gone_pods))
        yield from self._change(self._heard)
        self._place.begin()
        if self._place.serving:
            self._place.child.settled()

    def _resettle(self, settings: Settings) -> None:
        """Settings came again (a new control side, SIGHUP): what differs is said, and taken at the next start."""
        mine = self._place.settings
        differing = [f.name for f in fields(settings) if getattr(settings, f.name) != getattr(mine, f.name)]
        if differing:
            log.warning("settings changed: %s; restart egressd to take them", ", ".join(differing))

    def _change(self, updates: int) -> Iterator[None]:
        """Bring what is staged into force, a part at a time; so many updates are carried out then.

        Connections are looked through once at the end, or before where that takes long: a look costs the same for any
        number of pods.
        """
        place, moved = self._place, Moved()
        for part in place.roster.parts():
            yield from place.roster.build(part)
            self._take(part, moved)
            place.frost.keep()
            yield
        if place.serving:
            place.enforcement.cuts.cut(moved, time.monotonic())
            place.frost.check()
        self._carried_out = updates
        self.confirm()

    def _take(self, part: Part, moved: Moved) -> None:
        """A part, all at once: to the kernel first, then to the look-ups."""
        place, now = self._place, time.monotonic()
        change, its = place.roster.change(part, now)
        if not place.serving:
            place.roster.settle(change, its)
            return
        place.enforcement.apply(change)
        fresh = place.roster.settle(change, its)
        place.enforcement.cuts.owe(its, now)
        moved.cut |= its.cut
        moved.gone |= its.gone
        place.exchange.learned(fresh)
