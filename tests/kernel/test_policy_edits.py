"""While policies are edited and the table is written anew, every packet is judged by what was or by what is to be.

A pod sends datagrams to two addresses without a pause. Chains of another table, before and behind the one that judges,
count them and swallow what comes through, so that each is a new flow.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from datagrams import PORT
from kernel_node import (
    API4,
    API6,
    EMPTY,
    OTHER4,
    OTHER6,
    PODS,
    SERVICE4,
    WEB4,
    KernelNode,
    grant,
    interval,
    listing,
    packed,
    plan,
    port,
    world,
)

from egressd.errors import KernelError
from egressd.kernel import Change, PodElement
from egressd.kernel.netlink import Channel
from egressd.kernel.sets import named, split_name
from egressd.model import PortSpan
from egressd.policy import Plan

ALLOWED, DENIED = (API4, API6), (OTHER4, OTHER6)
EDITS = 80
INSTALLATIONS = 30
WIDE = PortSpan(17, 17, 3000, 5000)


@pytest.fixture
def node() -> Iterator[KernelNode]:
    """A node with two pods and a world outside."""
    with KernelNode() as made:
        yield made


def edit(number: int, span: PortSpan | None) -> Plan:
    """The subnets are allowed, DENIED are denied, and a number of further addresses differs from edit to edit."""
    more = tuple(interval(f"203.0.113.{2 * n}") for n in range(number % 3 * 20))
    allow = (interval("198.51.100.0", "198.51.100.255"), interval("2001:db8:2::", "2001:db8:2::ffff"), *more)
    return plan(allow=allow, deny=tuple(interval(address, address, span) for address in DENIED))


@contextmanager
def datagrams(node: KernelNode) -> Iterator[None]:
    """The pod sends; at the end all that was allowed must have come through, and nothing else."""
    families = [("ip6" if ":" in address else "ip", address) for address in (*ALLOWED, *DENIED)]
    lines = [f"{family} daddr {address} udp dport {PORT} counter" for family, address in families]
    before = "; ".join(f'{line} comment "{n} sent"' for n, line in enumerate(lines))
    behind = "; ".join(f'{line} drop comment "{n} through"' for n, line in enumerate(lines))
    text = f"""table inet witness {{
        chain before {{ type filter hook prerouting priority -160; {before}; }};
        chain behind {{ type filter hook prerouting priority -140; {behind}; }}; }}"""
    subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)
    program = [sys.executable, str(Path(__file__).with_name("datagrams.py")), *ALLOWED, *DENIED]
    with node.web:
        sender = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert sender.stdout is not None
        assert sender.stdout.readline() == b"begun\n"
        yield
    finally:
        sender.communicate()
    counts = counters()
    for n, address in enumerate((*ALLOWED, *DENIED)):
        sent, through = counts[f"{n} sent"], counts[f"{n} through"]
        assert sent > 100, f"nothing was shown: {sent} datagrams to {address}"
        wanted = sent if address in ALLOWED else 0
        assert through == wanted, f"{through} of {sent} datagrams to {address} came through, not {wanted}"


def counters() -> dict[str, int]:
    """What the witness counted."""
    command = ["nft", "list", "table", "inet", "witness"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {found[2]: int(found[1]) for found in re.finditer(r'packets (\d+) .*comment "([^"]+)"', text)}


def sets() -> dict[str, str]:
    """The address sets of subjects that the table has, and the elements of each."""
    found = re.finditer(r"\tset ((?:allow|deny|report)\S+) \{(.*?)\n\t\}", listing(), re.DOTALL)
    return {one[1]: one[2].partition("elements = ")[2] for one in found}


# ---------------------------------------------------------------------------------------------- no packet notices


@pytest.mark.parametrize("span", [port(17, PORT), None], ids=["ports", "all ports"])
def test_an_edit_is_never_met_half_made(node: KernelNode, span: PortSpan | None) -> None:
    """Address rules that allow and deny count without a pause while they are replaced."""
    kernel = node.install(world(edit(0, span)))
    kernel.program([grant(1, address) for address in DENIED])
    with datagrams(node):
        for number in range(EDITS):
            kernel.apply(Change(subjects={1: edit(number, span)}))
            time.sleep(0.001)
    assert all(split_name(name)[1] > 1 for name in sets() if name.startswith("allow4"))


def test_a_pod_that_changes_its_subject_is_never_between_the_two(node: KernelNode) -> None:
    """The instance that a pod comes to is whole before the pod does, the one it leaves until it has."""
    kernel = node.install(world(edit(0, None)))
    with datagrams(node):
        for number in range(2, EDITS):
            change = Change(
                subjects={number + 1: edit(number, None)},
                gone_subjects={number if number > 2 else 1},
                pods=[PodElement(pod.address, number + 1, False, pod.comment) for pod in PODS[:2]],
            )
            kernel.apply(change)
            time.sleep(0.001)


def test_grants_that_move_to_ranges_stay_open(node: KernelNode) -> None:
    """An edit that widens a rule's ports takes the narrow grant out when the wide one is in force."""
    kernel = node.install(world(plan()))
    narrow = [grant(1, address, port(17, PORT)) for address in ALLOWED]
    wide = [grant(1, address, WIDE) for address in ALLOWED]
    kernel.program(narrow)
    with datagrams(node):
        for _ in range(EDITS):
            kernel.apply(Change(subjects={1: plan()}, grants=wide, gone_grants=narrow))
            kernel.apply(Change(subjects={1: plan()}, grants=narrow, gone_grants=wide))


@pytest.mark.parametrize("renumbered", [False, True], ids=["mended", "restarted"])
@pytest.mark.parametrize("span", [port(17, PORT), None], ids=["ports", "all ports"])
def test_a_new_installation_is_never_met_half_made(node: KernelNode, span: PortSpan | None, renumbered: bool) -> None:
    """A table that is written anew, by the same process or by the next with subjects of its own numbers."""
    kernel = node.install(whole(0, span))
    with datagrams(node):
        for number in range(INSTALLATIONS):
            if renumbered:
                kernel.close()
                kernel = node.make()
            kernel.install(whole(number % 2 * 10 if renumbered else 0, span), beating=True)
            time.sleep(0.001)
    assert kernel.difference() == ""
    assert len(kernel.read_back().subjects) == 2


def whole(base: int, span: PortSpan | None) -> Change:
    """The world with subjects `base + 1` and `base + 2`; IPv6 goes by grants."""
    web = replace(edit(0, span), allow=(interval("198.51.100.0", "198.51.100.255"),))
    change = Change(subjects={base + 1: web, base + 2: EMPTY})
    change.pods = [PodElement(pod.address, (pod.subject or 0) + base, False, pod.comment) for pod in PODS]
    change.grants = [grant(base + 1, API6, WIDE)]
    return change


# ------------------------------------------------------------------------------------------------- names and failures


def test_unchanged_sets_stay(node: KernelNode) -> None:
    """An edit makes anew what it changes: a set with the same addresses keeps its name, elements and all."""
    kernel = node.install(world(edit(0, None)))
    assert set(sets()) == {"allow4-1-any", "allow6-1-any", "deny4-1-any", "deny6-1-any"}
    kernel.apply(Change(subjects={1: edit(1, None)}))
    assert set(sets()) == {"allow4-1-any.g1", "allow6-1-any", "deny4-1-any", "deny6-1-any"}
    generation = kernel._channel.generation()
    kernel.apply(Change(subjects={1: edit(1, None)}))
    assert kernel._channel.generation() == generation + 1, "nothing was staged"
    assert kernel.difference() == ""
    kernel.apply(Change(subjects={1: plan()}))
    assert sets() == {}
    kernel.apply(Change(subjects={1: edit(1, None)}))
    assert set(sets()) == {"allow4-1-any.g2", "allow6-1-any.g2", "deny4-1-any.g2", "deny6-1-any.g2"}


def test_a_flip_that_fails_leaves_the_old_instance_whole(node: KernelNode) -> None:
    """What was staged for it is gone again, new instances and wide grants too, and the next change is made."""
    kernel = node.install(world(edit(0, None)))
    before, generation = listing(), kernel._channel.generation()
    change = Change(
        subjects={1: edit(1, None), 3: edit(2, port(17, PORT))},
        pods=[PodElement(packed("192.0.2.7"), 99, False, "shop/impossible")],
        grants=[grant(3, API4), grant(1, API4, WIDE)],
    )
    with pytest.raises(KernelError, match="add pods to pods4"):
        kernel.apply(change)
    assert listing() == before
    assert kernel._channel.generation() > generation, "something was staged, and taken back"
    assert kernel.difference() == ""
    change.pods = [PodElement(packed("192.0.2.7"), 3, False, "shop/possible")]
    kernel.apply(change)
    kernel.program([grant(1, API6, WIDE), grant(3, API6)])
    assert {one[:3] for one in kernel.read_back().grants} == {
        (3, "any", packed(API4)),
        (1, "range", packed(API4)),
        (1, "range", packed(API6)),
        (3, "any", packed(API6)),
    }


def test_what_a_dead_process_had_staged_goes_with_the_next_start(node: KernelNode) -> None:
    """A process that dies between the two transactions leaves sets nobody refers to: they enforce nothing, spoil
    nothing that is read back, and the next installation takes them out."""
    kernel = node.install(world(edit(0, None)))
    kernel.program([grant(1, API4, WIDE)])
    state = kernel._state.copy()
    change = Change(subjects={1: edit(1, None), 5: edit(2, None)}, grants=[grant(5, API4)])
    kernel._channel.transact(kernel._changes.steps(change, state).stage)
    kernel.close()
    heir = node.make()
    found = heir.read_back()
    assert set(found.subjects) == {1, 2, 5}
    assert {one[:3] for one in found.grants} == {(1, "range", packed(API4)), (5, "any", packed(API4))}
    heir.install(world(edit(0, None)))
    assert heir.difference() == ""
    assert set(heir.read_back().subjects) == {1, 2}
    assert {split_name(name)[0] for name in sets()} == {"allow4-1-any", "allow6-1-any", "deny4-1-any", "deny6-1-any"}
    assert node.tcp(node.web, API4) == "open"
    assert node.tcp(node.web, OTHER4) == "refused"


def test_another_generation_is_printed_loaded_and_taken_over(node: KernelNode) -> None:
    """A table that was edited and installed again prints, loads, reads back and works as any other."""
    kernel = node.install(world(edit(0, None)))
    change = world(edit(1, port(17, PORT)))
    change.grants = [grant(1, API4, WIDE, comment="wide.example.com")]
    kernel.install(change)
    kernel.program([grant(1, API6, WIDE, comment="more.example.com")])
    first = listing()
    assert "set grant4-1-range.g1 {" in first
    assert "ip daddr @cluster4.g1 accept" in first
    kernel.close()
    subprocess.run(["nft", "delete", "table", "inet", "egressd"], check=True)
    subprocess.run(["nft", "-f", "-"], input=first, text=True, check=True)
    again = node.make()
    assert {one.comment for one in again.read_back().grants} == {"wide.example.com", "more.example.com"}
    again.install(change)
    assert again.difference() == ""
    assert node.tcp(node.web, SERVICE4) == "open"
    assert re.findall(r"set cluster4\S* ", listing()) == ["set cluster4.g2 "]


def test_a_table_that_cannot_be_changed_over_is_written_anew(node: KernelNode) -> None:
    """Another hand made of it what no transaction of ours expects: it goes whole, and ours comes."""
    kernel = node.install(world(edit(0, None)))
    harm = (
        "delete chain inet egressd answers",
        "add chain inet egressd answers { type filter hook forward priority 5; }",
        "add chain inet egressd strange",
        "add rule inet egressd queries jump strange",
        "add map inet egressd odd { type ipv4_addr : verdict; elements = { 192.0.2.1 : goto strange }; }",
        "add counter inet egressd number",
    )
    for line in harm:
        subprocess.run(["nft", *line.split(" ", 3)[:3], line.split(" ", 3)[3]], check=True)
    assert kernel.difference() != ""
    kernel.install(world(edit(0, None)))
    assert kernel.difference() == ""
    assert node.tcp(node.web, API4) == "open"
    assert node.tcp(node.web, OTHER4) == "refused"
    assert not kernel.usurped()


def test_who_wrote_the_table_last_is_known(node: KernelNode) -> None:
    """Another run of the daemon that writes into the same table is noticed by the first, and not the other way."""
    first = node.install(world(EMPTY))
    assert not first.usurped()
    second = node.make()
    second.install(world(EMPTY))
    assert first.usurped()
    assert not second.usurped()
    with pytest.raises(KernelError):
        first.apply(Change(gone_subjects={77}, pods=[PodElement(packed(WEB4), 77, False, "")]))


def test_names_of_generations() -> None:
    """Stem and generation are told apart, and no other name has a generation."""
    for stem in ("allow4-3", "grant6-17-range", "cluster4"):
        for generation in (0, 1, 42):
            assert split_name(named(stem, generation)) == (stem, generation)
    for odd in ("pods4", "allow4-3.g", "allow4-3.gx", ".g7", "allow4-3.g٣"):
        assert split_name(odd) == (odd, 0)


def test_the_kernel_is_left_alone_where_nothing_is_staged(node: KernelNode) -> None:
    """A pod that joins an instance, a grant, a revocation: one transaction each."""
    kernel = node.install(world(edit(0, None)))
    channel: Channel = kernel._channel
    for change in (
        Change(pods=[PodElement(packed("192.0.2.7"), 1, False, "shop/web-1")]),
        Change(grants=[grant(1, API4)]),
        Change(revoked=[(packed(WEB4), packed(API4))]),
        Change(gone_pods=[packed("192.0.2.7")], gone_grants=[grant(1, API4)]),
    ):
        before = channel.generation()
        kernel.apply(change)
        assert channel.generation() == before + 1
