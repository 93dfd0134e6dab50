"""What the kernel refuses is not answered, and what it could not be told is told again.

Real queries go through the real exchange to the real kernel, which is made to fail: a set that is full, a privilege
that is gone, another owner of the table, a socket that loses or lacks room. Where no kernel can be made to fail at
will, the socket is a wrapper. The witness of what is open is `nft`.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import dns.rcode
import pytest
from e2e.shop import open_shop
from test_exchange import POD, Bench, Client
from test_exchange import rule as allow_rule

from egressd.agent.enforcement import Enforcement
from egressd.agent.roster import Roster
from egressd.errors import KernelError
from egressd.exchange import LastKnown
from egressd.grants import Element, Ledger
from egressd.kernel import Change, Kernel, PodElement
from egressd.kernel.sets import SetSpec, plan_sets
from egressd.lab import Space
from egressd.link import PodEntry, Update
from egressd.model import Address, Block, LabelSelector, PodIdentity, Policy, SubjectSelector
from egressd.policy import ClusterFacts, Plan
from egressd.settings import Dns, Firewall, Grants, Settings, Upstream

NAMES = [f"n{number}.s3.example" for number in range(4)]
ADDRESSES = [f"203.0.113.{7 + number}" for number in range(4)]
SETTINGS = Settings(dns=Dns(upstreams=(Upstream(bytes((10, 96, 0, 10))),)))
NOBODY = 65534
BLOCK = Block(Address(bytes((198, 51, 100, 0))), Address(bytes((198, 51, 100, 255))))


class Node(Bench):
    """The exchange's bench with a table in the kernel of a network namespace in place of its own list."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        super().__init__()
        self.nft = Kernel(settings)
        judge = self.party.judge
        assert judge is not None
        self.change = Change(subjects={1: judge.plan()}, pods=[PodElement(POD, 1, False, "shop/web-0")])
        self.nft.install(self.change)

    def program(self, elements: Sequence[Element]) -> None:
        self.batches.append(len(elements))
        self.nft.program(elements)

    def ask(self, *numbers: int) -> list[str]:
        """Ask for these names at once, so that their answers come together; the rcodes."""
        clients: list[Client] = [self.query(NAMES[number]) for number in numbers]
        self.exchange.deliver([self.made(f"{NAMES[number]} 60 A {ADDRESSES[number]}") for number in numbers])
        return [dns.rcode.to_text(client.answer.rcode()) for client in clients]

    def reasons(self) -> list[str]:
        return [str(record.reason) for record in self.records]


def open_addresses() -> set[int]:
    """Which of ADDRESSES are open, as `nft` prints the grants."""
    command = ["nft", "list", "table", "inet", "egressd"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = "".join(re.findall(r"set grant\S+ \{.*?\n\t\}", text, re.DOTALL))
    return {number for number, address in enumerate(ADDRESSES) if re.search(rf"{re.escape(address)}\b", found)}


@pytest.fixture
def space() -> Iterator[Space]:
    """An empty network namespace."""
    with Space("faults") as made:
        yield made


@contextmanager
def without_rights() -> Iterator[None]:
    """As another user, without capabilities, until the end."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


# ------------------------------------------------------------------------------------------------- of the kernel


def test_a_full_set(space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENFILE: of four answers that come together two find room; the others are SERVFAIL, until there is room."""

    def small(subject: int, plan: Plan) -> tuple[list[SetSpec], list[SetSpec]]:
        grants, rules = plan_sets(subject, plan)
        return [replace(spec, kind=replace(spec.kind, size=2)) for spec in grants], rules

    monkeypatch.setattr("egressd.kernel.change.plan_sets", small)

    def run() -> None:
        node = Node()
        assert node.ask(0, 1, 2, 3) == ["NOERROR", "NOERROR", "SERVFAIL", "SERVFAIL"]
        assert node.reasons() == ["rule", "rule", "program-failed", "program-failed"]
        assert open_addresses() == {0, 1}
        assert node.ask(2, 0) == ["SERVFAIL", "NOERROR"], "a neighbour whose grant is there is not harmed"
        given = [element for element in node.ledger.rewrite(1, node.now) if element.comment == NAMES[0]]
        node.nft.apply(Change(gone_grants=given))
        assert node.ask(2) == ["NOERROR"]
        assert open_addresses() == {1, 2}
        node.nft.close()

    space.call(run)


def test_a_privilege_that_is_gone(space: Space) -> None:
    """EPERM: nothing is answered that is not open, denials go on, what is open stays, and it works again after."""

    def run() -> None:
        node = Node()
        assert node.ask(0) == ["NOERROR"]
        with without_rights():
            assert node.ask(1, 2) == ["SERVFAIL", "SERVFAIL"]
            assert node.ask(0) == ["NOERROR"], "it is open, and needs no write"
            denied = node.query("unknown.example")
            with pytest.raises(KernelError) as error:
                node.nft.apply(Change(gone_subjects={1}, gone_pods=[POD]))
        assert error.value.errno == errno.EPERM
        assert denied.answer.rcode() == dns.rcode.NXDOMAIN
        assert node.reasons() == ["rule", "program-failed", "program-failed", "rule", "no-rule"]
        assert open_addresses() == {0}
        assert node.nft.difference() == ""
        assert node.ask(1, 2) == ["NOERROR", "NOERROR"]
        assert open_addresses() == {0, 1, 2}
        node.nft.close()

    space.call(run)


def test_another_owner_of_the_table(space: Space) -> None:
    """A table that somebody else owns takes nothing of ours, and no answer is given."""

    def run() -> None:
        node = Node()
        other = Kernel(SETTINGS, owner=True)
        other.install(node.change)
        assert node.ask(0, 1) == ["SERVFAIL", "SERVFAIL"]
        assert open_addresses() == set()
        other.close()
        node.nft.install(node.change)
        assert node.ask(0, 1) == ["NOERROR", "NOERROR"]
        assert open_addresses() == {0, 1}
        node.nft.close()

    space.call(run)


def test_a_receive_buffer_that_overflows(space: Space) -> None:
    """ENOBUFS: the acknowledgement is lost; the outcome is unknown and the grants are written again, or no answer."""

    def run() -> None:
        node = Node()
        channel = node.nft._channel
        channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        overflow(channel._socket)
        assert node.ask(0, 1) == ["NOERROR", "NOERROR"]
        assert open_addresses() == {0, 1}
        assert len(node.batches) == 3, "the batch, and each answer on its own"
        node.nft.close()

    space.call(run)


def overflow(netlink: socket.socket) -> None:
    """Fill the receive buffer with answers nobody reads (NFT_MSG_GETGEN), until one is lost."""
    question = bytes.fromhex("14000000100a01000100000000000000") + bytes(4)
    for _ in range(200):
        netlink.send(question)


def test_a_batch_larger_than_the_socket_takes(space: Space) -> None:
    """EMSGSIZE: a send buffer without room for all answers of a batch holds each of them."""

    def run() -> None:
        node = Node()
        node.nft._channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        names = [f"{'a' * 60}.{number}.{'b' * 60}.s3.example" for number in range(100)]
        clients = [node.query(name) for name in names]
        node.exchange.deliver([node.made(f"{name} 60 A 203.0.113.7") for name in names])
        assert {client.answer.rcode() for client in clients} <= {dns.rcode.NOERROR, dns.rcode.SERVFAIL}
        answered = [client for client in clients if client.answer.rcode() == dns.rcode.NOERROR]
        assert (open_addresses() == {0}) == bool(answered)
        node.nft.close()

    space.call(run)


# ------------------------------------------------------------------------------------------------- of time and answers


def test_an_acknowledgement_that_comes_too_late(space: Space) -> None:
    """`grants.program_timeout`: what the kernel took later than that is SERVFAIL, for all that waited together."""

    def run() -> None:
        node = Node(replace(SETTINGS, grants=Grants(program_timeout=0.0)))
        assert node.ask(0, 1) == ["SERVFAIL", "SERVFAIL"]
        assert node.reasons() == ["program-failed", "program-failed"]
        assert node.batches == [2], "not tried again one by one, which would take as long"
        node.nft._settings = SETTINGS
        assert node.ask(0, 1) == ["NOERROR", "NOERROR"]
        assert open_addresses() == {0, 1}
        node.nft.close()

    space.call(run)


class Deaf:
    """A socket that hears nothing of the kernel for some reads; everything else is the socket's own."""

    def __init__(self, real: socket.socket, error: OSError) -> None:
        self._real, self._error = real, error

    def recv(self, *_: int) -> bytes:
        raise self._error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


LOSSES: dict[str, Callable[[], OSError]] = {
    "no acknowledgement": BlockingIOError,
    "ENOBUFS": lambda: OSError(errno.ENOBUFS, "No buffer space available"),
    "ENOMEM": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
}


@pytest.mark.parametrize("make", LOSSES.values(), ids=LOSSES.keys())
def test_an_acknowledgement_that_never_comes(space: Space, make: Callable[[], OSError]) -> None:
    """Whatever is lost on the way back: SERVFAIL while it lasts, though the kernel may have taken the grant."""

    def run() -> None:
        node = Node()
        channel: Any = node.nft._channel
        program = node.nft.program

        def deaf(elements: Sequence[Element]) -> None:
            channel._socket = Deaf(channel._socket, make())
            program(elements)

        node.nft.program = deaf  # type: ignore[method-assign]  # the fault is between this call and the kernel
        assert node.ask(0, 1) == ["SERVFAIL", "SERVFAIL"]
        assert node.reasons() == ["program-failed", "program-failed"]
        node.nft.program = program  # type: ignore[method-assign]
        assert node.ask(0, 1) == ["NOERROR", "NOERROR"]
        assert open_addresses() == {0, 1}
        node.nft.close()

    space.call(run)


def test_no_socket_to_be_had(space: Space) -> None:
    """EMFILE just when a socket must be opened again: SERVFAIL and no more, and it is opened with the next answer."""

    def run() -> None:
        node = Node()
        channel: Any = node.nft._channel
        channel._socket = Deaf(channel._socket, OSError(errno.ENOBUFS, "No buffer space available"))
        _, most = limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
        try:
            assert node.ask(0, 1) == ["SERVFAIL", "SERVFAIL"]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert node.reasons() == ["program-failed", "program-failed"]
        assert node.ask(0, 1) == ["NOERROR", "NOERROR"]
        assert open_addresses() == {0, 1}
        node.nft.close()

    space.call(run)


# ------------------------------------------------------------------------------------------------- changes, start


def test_a_change_that_was_refused_is_made_when_it_can_be(space: Space) -> None:
    """A policy edit that the kernel refuses leaves the old rules whole, is counted, and is in force after the fault."""

    def run() -> None:
        held, ledger, known = [0.0], Ledger(), LastKnown()
        roster = Roster(ClusterFacts(), ledger, known, intercept_all=True)
        settings = replace(SETTINGS, firewall=Firewall(owner=False))
        node = Enforcement(settings, (bytes((10, 96, 0, 10)),), roster, ledger, known, lambda: held[0], lambda: None)
        pod = PodEntry(POD, PodIdentity("shop", "web-0", "1"), ("shop/web",), False)

        def update(*policies: Policy) -> None:
            change, moved = roster.plan(Update(policies=policies, pods=(pod,)), held[0])
            node.apply(change)
            roster.settle(change, moved)

        web = Policy("shop/web", "shop", SubjectSelector(LabelSelector()))
        node.kernel.install()
        node._holding = True
        update(replace(web, allow=(allow_rule("a.example"),)))
        before = subject_rules()
        with without_rights():
            update(replace(web, allow=(replace(allow_rule(), blocks=(BLOCK,)),)))
            assert node.counters["change"] == 1
            assert node.damage
            assert not node.tick(held[0])
        assert subject_rules() == before
        held[0] += 1.0
        assert node.tick(held[0])
        assert node.damage == ""
        assert "@allow4-1" in subject_rules()
        node._holding = False
        node.kernel.close()

    space.call(run)


def subject_rules() -> str:
    """The instance of subject 1 as `nft` prints it."""
    command = ["nft", "list", "chain", "inet", "egressd", "subject-1"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_strangers_table_of_our_name(tmp_path: Path) -> None:
    """The start ends with exit code 3, says whose name it is and what to do, and leaves the table alone."""
    with open_shop(tmp_path, start=False) as shop:
        shop.node.run(["nft", "add", "table", "inet", "egressd"], check=True)
        shop.daemon.start(wait=False)
        assert shop.daemon.process is not None
        assert shop.daemon.process.wait(20) == 3
        assert "egressd did not make it" in shop.daemon.log()
        assert "firewall.table" in shop.daemon.log()
        assert shop.node.run(["nft", "list", "tables"]).stdout.strip() == "table inet egressd"
