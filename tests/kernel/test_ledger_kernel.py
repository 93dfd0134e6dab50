"""The ledger of grants and the real kernel's sets: after any history the kernel holds what a naive model says, no more.

Histories are answers, time, policy edits, looks that let a bound push grants out, subjects that go and come, restarts
of the daemon and a table taken away.
Every life in the kernel is known as an interval: it began while we were writing, and ends one lifetime later; so the
comparison holds on a machine of any speed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple
from unittest.mock import patch

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from kernel_node import SETTINGS, Space, plan

from egressd.grants import Element, Key, Ledger, expand, ledger
from egressd.kernel import Change, Kernel, PodElement
from egressd.kernel.elements import LIFETIME_MIN_MS
from egressd.model import ANY_PORT, Ports, PortSpan
from egressd.names import Name

MINIMUM_S, GRACE_S, LINGER_S = 0.5, 0.3, 0.2
PER_NAME = 2
JIFFY_S = 0.02
"""The kernel rounds times to its ticks, of 10 ms at the coarsest, when they are written and when they are read."""
LEAST_S = LIFETIME_MIN_MS / 1000
"""What is about to end is written to live so long."""

SUBJECTS = (1, 2)
NAMES = (Name("api.example.com"), Name("cdn.example"), Name("x.example"))
ADDRESSES = (b"\xc0\0\2\1", b"\xc0\0\2\2", bytes.fromhex("20010db8000000000000000000000001"))
HTTPS: Ports = (PortSpan(6, 6, 443, 443),)
BOTH: Ports = (PortSpan(6, 6, 443, 444),)
WIDE: Ports = (PortSpan(6, 6, 8000, 8999),)
MIXED: Ports = (PortSpan(6, 6, 443, 443), PortSpan(6, 6, 8000, 8999), PortSpan(17, 17, 53, 53))
NOTHING: Ports = ()
PORTS = (NOTHING, HTTPS, BOTH, WIDE, MIXED, ANY_PORT)

GrantKey = tuple[int, Name, bytes]


class Life(NamedTuple):
    """When an element ends in the kernel: not before `least`, not after `most`; and the name written beside it."""

    least: float
    most: float
    comment: str


class LedgerOnKernel(RuleBasedStateMachine):
    """The ledger drives the kernel as the agent does; `model` says which grants there are, `lives` what was written."""

    def __init__(self) -> None:
        super().__init__()
        self.space = Space()
        self.linger = patch.object(ledger, "LINGER_S", LINGER_S)
        self.linger.start()
        self.kernel: Kernel | None = None
        self.permits: dict[tuple[int, Name], Ports] = {}
        self.model: dict[GrantKey, tuple[Ports, float]] = {}
        self.lives: dict[Key, Life] = {}

    def teardown(self) -> None:
        if self.kernel is not None:
            self.kernel.close()
        self.linger.stop()
        self.space.close()

    @initialize()
    def begin(self) -> None:
        self.ledger = self._ledger()
        with self.space:
            self.kernel = Kernel(SETTINGS)
            self.kernel.install(self._whole())
        self.permits = {(subject, name): HTTPS for subject in SUBJECTS for name in NAMES}

    # ------------------------------------------------------------------------------------------------- rules

    @rule(
        subject=st.sampled_from(SUBJECTS),
        name=st.sampled_from(NAMES),
        addresses=st.lists(st.sampled_from(ADDRESSES), min_size=1, unique=True),
        ttl=st.sampled_from([0, 0, 1, 3]),
    )
    def answer(self, subject: int, name: Name, addresses: list[bytes], ttl: int) -> None:
        """A name resolves: its addresses are open at least until half of what a new grant would have is over."""
        ports = self.permits[subject, name]
        if not ports:
            return
        now = time.monotonic()
        admission = self.ledger.admit(subject, name, addresses, ports, ttl, now)
        if admission.gone:
            self._apply(Change(gone_grants=admission.gone), now)
        with self._written(admission.writes, now) as kernel:
            kernel.program(admission.writes)
        lifetime = max(ttl, MINIMUM_S) + GRACE_S
        enough = now + max(ttl + GRACE_S / 2, lifetime / 2)
        for address in addresses:
            until = self._model_answer((subject, name, address), ports, now + lifetime, enough)
            self.model[subject, name, address] = ports, until

    def _model_answer(self, key: GrantKey, ports: Ports, until: float, enough: float) -> float:
        subject, _, address = key
        known_ports, known = self.model.get(key, (ports, 0.0))
        if known_ports == ports and known >= enough:
            return known
        ends = [self.lives[subject, kind, address, span].least for kind, span in expand(ports, len(address))]
        assert all(end >= enough - JIFFY_S for end in ends), "an answer whose addresses close too soon"
        return min([until, *ends])

    @rule(
        subject=st.sampled_from(SUBJECTS),
        permits=st.fixed_dictionaries({name: st.sampled_from(PORTS) for name in NAMES}),
    )
    def edit(self, subject: int, permits: dict[Name, Ports]) -> None:
        """Policies change: what they permit no more leaves at once, the rest stays as long as it was to stay."""
        self.permits |= {(subject, name): ports for name, ports in permits.items()}
        now = time.monotonic()
        review = self.ledger.review(subject, lambda name, _: permits[name], now)
        self._apply(Change(subjects={subject: plan()}, grants=review.writes, gone_grants=review.gone), now)
        for (number, name, address), (_, until) in list(self.model.items()):
            if number == subject and until > now and permits[name]:
                self.model[number, name, address] = permits[name], until
            elif number == subject and until > now:
                del self.model[number, name, address]

    @rule(live=st.sets(st.sampled_from(ADDRESSES)))
    def look(self, live: set[bytes]) -> None:
        """Names keep `PER_NAME` addresses and those with a live connection; what leaves is open no more."""
        crowd = self.ledger.crowded()
        if crowd is None:
            return
        now = time.monotonic()
        out = self.ledger.trim(crowd, dict.fromkeys(SUBJECTS, live), now)
        self._apply(Change(grants=out.writes, gone_grants=out.gone), now)
        for subject, name in crowd.names:
            kept = self.ledger._names[subject][name].keys()
            left = {key for key in self.model if key[:2] == (subject, name)} - {(subject, name, each) for each in kept}
            assert live.isdisjoint(address for _, _, address in left)
            assert len(kept) <= PER_NAME or kept <= live
            for key in left:
                del self.model[key]

    @rule(subject=st.sampled_from(SUBJECTS))
    def come_anew(self, subject: int) -> None:
        """The last pod of a subject goes, and another comes: nothing of the first is left."""
        self.ledger.forget(subject)
        now = time.monotonic()
        self._apply(Change(gone_subjects={subject}, subjects={subject: plan()}, pods=[_pod(subject)]), now)
        self.model = {key: value for key, value in self.model.items() if key[0] != subject}
        self.lives = {key: value for key, value in self.lives.items() if key[0] != subject}

    @rule(seconds=st.sampled_from([0.02, 0.1, 0.3, 0.7]))
    def wait(self, seconds: float) -> None:
        """Time passes, and the ledger forgets what has ended for long."""
        time.sleep(seconds)
        self.ledger.expire(time.monotonic())

    @rule()
    def restart(self) -> None:
        """The daemon ends, and another reads the kernel: each element goes on under the name beside it."""
        assert self.kernel is not None
        self.kernel.close()
        self.ledger, self.model = self._ledger(), {}
        with self.space:
            self.kernel = Kernel(SETTINGS)
            snapshot = self.kernel.read_back()
            now = time.monotonic()
            for grant in snapshot.grants:
                name, until = Name(grant.comment), now + grant.remaining_ms / 1000
                ports = self.permits[grant.subject, name]
                assert ports, "a grant that today's policies do not permit survived until now"
                self.ledger.restore(grant.subject, name, grant.address, ports, until, now)
                known = self.model.get((grant.subject, name, grant.address), (ports, 0.0))[1]
                self.model[grant.subject, name, grant.address] = ports, max(known, until)
        assert set(snapshot.subjects) == set(SUBJECTS)
        self._install()

    @rule()
    def lose_the_table(self) -> None:
        """Another program takes the table away: all of it is written anew."""
        assert self.kernel is not None
        with self.space:
            self.kernel.remove()
        self._install()

    # ---------------------------------------------------------------------------------------------- comparing

    @invariant()
    def the_kernel_holds_what_the_model_says(self) -> None:
        """Each live grant's elements are there, as long as they should, and nothing is there that no grant holds."""
        if self.kernel is None:
            return
        with self.space:
            before = time.monotonic()
            snapshot = self.kernel.read_back()
            after = time.monotonic()
        wanted: dict[Key, tuple[float, set[str]]] = {}
        for (subject, name, address), (ports, until) in self.model.items():
            for kind, span in expand(ports, len(address)):
                end, names = wanted.get((subject, kind, address, span), (0.0, set()))
                wanted[subject, kind, address, span] = max(until, end), names | {name}
        held = {grant[:4]: grant for grant in snapshot.grants}
        for key, (until, _) in wanted.items():
            assert until <= after + JIFFY_S or key in held, f"{key} should be open for {until - after:.3f} s more"
        for key, grant in held.items():
            life = self.lives[key]
            remaining = grant.remaining_ms / 1000
            told = f"{key} has {remaining:.3f} s, and was given {life.least - before:.3f} to {life.most - before:.3f}"
            assert before + remaining <= life.most + JIFFY_S, told
            assert after + remaining >= life.least - JIFFY_S, told
            assert grant.comment == life.comment
            assert key in wanted, f"{key} is open and no grant holds it"
            assert wanted[key][0] >= life.least - LEAST_S - JIFFY_S, f"{key} outlives the last of its grants"

    # ------------------------------------------------------------------------------------------------- inside

    def _ledger(self) -> Ledger:
        return Ledger(minimum_s=MINIMUM_S, grace_s=GRACE_S, per_name=PER_NAME)

    def _whole(self) -> Change:
        """What the agent writes to a table that has nothing."""
        now = time.monotonic()
        writes = [element for subject in SUBJECTS for element in self.ledger.rewrite(subject, now)]
        subjects = {subject: plan() for subject in SUBJECTS}
        return Change(subjects=subjects, pods=[_pod(subject) for subject in SUBJECTS], grants=writes)

    def _install(self) -> None:
        now = time.monotonic()
        change = self._whole()
        self.lives = {}
        with self._written(change.grants, now) as kernel:
            kernel.install(change)

    def _apply(self, change: Change, now: float) -> None:
        for element in change.gone_grants:
            self.lives.pop(element[:4], None)
        with self._written(change.grants, now) as kernel:
            kernel.apply(change)

    @contextmanager
    def _written(self, elements: list[Element], now: float) -> Iterator[Kernel]:
        """Whatever is done inside writes these elements: their lives begin between its begin and its end."""
        assert self.kernel is not None
        with self.space:
            yield self.kernel
        done = time.monotonic()
        for element in elements:
            lifetime = max(element.lifetime_ms / 1000, LEAST_S)
            self.lives[element[:4]] = Life(now + lifetime, done + lifetime, element.comment)


def _pod(subject: int) -> PodElement:
    return PodElement(bytes((192, 0, 2, subject)), subject, False, f"shop/web-{subject}")


LedgerOnKernel.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=20,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # histories take real time: shrinking one would take minutes
    suppress_health_check=[HealthCheck.too_slow],
)
TestLedgerOnKernel = LedgerOnKernel.TestCase
