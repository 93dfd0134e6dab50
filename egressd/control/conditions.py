"""How each policy fares, as Kubernetes puts it: conditions `Accepted` and `Programmed`, for the admin API to serve.

`Accepted`: the document as it is now was understood. `Programmed`: the version in force is in this node's kernel; the
data path counts the updates it has carried out, and a policy is programmed when the count has reached its own.
Values in, values out; times are seconds since the epoch, handed in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from egressd.control.world import Step

__all__ = ["Condition", "Conditions"]


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition (KEP-1623): `status` is True, False or Unknown; `since` is when that changed last."""

    type: str
    status: str
    reason: str
    message: str
    since: float


@dataclass(slots=True)
class _State:
    accepted: Condition
    told: int = 0
    """Number of the update that carried the version in force; 0 where none was ever good."""
    programmed_at: float = 0.0


class Conditions:
    """The conditions of every policy there is."""

    def __init__(self) -> None:
        self._policies: dict[str, _State] = {}
        self._done = 0

    def begin(self, policies: list[str], update: int, now: float) -> None:
        """The world was said anew, in updates up to number `update` of a new count."""
        self._done = 0
        for name in policies:
            self._state(name, now).told = update

    def take(self, step: Step, update: int, now: float) -> None:
        """One change of the world; `update` is the number of the last update that tells of it."""
        for news in step.news:
            if news.change == "deleted":
                self._policies.pop(news.policy, None)
            elif news.change == "refused":
                text = "; ".join(str(problem) for problem in news.problems)
                self._accept(news.policy, Condition("Accepted", "False", "Refused", text, now))
            else:
                self._accept(news.policy, Condition("Accepted", "True", "Accepted", "", now))
        for policy in step.update.policies if step.update else ():
            state = self._state(policy.name, now)
            state.told, state.programmed_at = update, now

    def programmed(self, updates: int, now: float) -> None:
        """The data path has carried out so many updates of this count."""
        for state in self._policies.values():
            if self._done < state.told <= updates:
                state.programmed_at = now
        self._done = max(self._done, updates)

    def of(self, policy: str) -> tuple[Condition, ...]:
        """The conditions of one policy; none if there is no such policy."""
        state = self._policies.get(policy)
        return (state.accepted, self._programmed(state)) if state else ()

    def all(self) -> dict[str, tuple[Condition, ...]]:
        """The conditions of every policy, by name."""
        return {name: self.of(name) for name in sorted(self._policies)}

    def _programmed(self, state: _State) -> Condition:
        if not state.told:
            text = "no version of this policy was ever accepted"
            return Condition("Programmed", "False", "NotAccepted", text, state.accepted.since)
        if state.told > self._done:
            return Condition(
                "Programmed", "False", "Pending", "not yet confirmed by the data path", state.programmed_at
            )
        text = "" if state.accepted.status == "True" else "the last good version is in force"
        return Condition("Programmed", "True", "Programmed", text, state.programmed_at)

    def _state(self, name: str, now: float) -> _State:
        accepted = Condition("Accepted", "True", "Accepted", "", now)
        return self._policies.setdefault(name, _State(accepted, programmed_at=now))

    def _accept(self, name: str, condition: Condition) -> None:
        state = self._state(name, condition.since)
        same = state.accepted.status == condition.status
        state.accepted = replace(condition, since=state.accepted.since) if same else condition
