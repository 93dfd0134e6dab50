"""The table as a database: transactions, refreshing, reading back, other programs' hands, rights and features."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from kernel_node import (
    API4,
    EMPTY,
    JOB4,
    PODS,
    SETTINGS,
    WEB4,
    WEB6,
    KernelNode,
    Space,
    block,
    grant,
    interval,
    listing,
    packed,
    plan,
    port,
    world,
)

from egressd.errors import EnvironmentProblem, KernelError
from egressd.kernel import Change, Kernel, PodElement
from egressd.kernel.netlink import Channel, Refused
from egressd.kernel.probe import FEATURES, Feature, missing
from egressd.kernel.sets import delete_set
from egressd.model import Address, PortSpan
from egressd.policy import Interval


@pytest.fixture
def space() -> Iterator[Space]:
    """An empty network namespace, entered."""
    made = Space()
    with made:
        yield made
    made.close()


@pytest.fixture
def kernel(space: Space) -> Iterator[Kernel]:
    """An installed table in a namespace of its own."""
    made = Kernel(SETTINGS)
    made.install()
    yield made
    made.close()


def nft(*words: str) -> str:
    """Run `nft`, the witness and the stranger."""
    return subprocess.run(["nft", *words], capture_output=True, text=True, check=True).stdout


def elements(name: str) -> str:
    """The elements of a set as `nft` prints them, or nothing."""
    kind = "map" if name.startswith("pods") else "set"
    found = re.search(r"elements = \{(.*?)\}", nft("list", kind, "inet", "egressd", name), re.DOTALL)
    return found.group(1) if found else ""


# ------------------------------------------------------------------------------------------------- install


def test_install_replaces_our_table_and_no_other(space: Space) -> None:
    """Installing again begins anew; a stranger's table of the same name is left alone, with a remedy."""
    kernel = Kernel(SETTINGS)
    kernel.install()
    kernel.apply(world(EMPTY))
    kernel.install()
    assert "subject-1" not in listing()
    kernel.remove()
    kernel.remove()
    assert nft("list", "tables") == ""
    nft("add", "table", "inet", "egressd")
    with pytest.raises(EnvironmentProblem, match="egressd did not make it; choose another name"):
        kernel.install()
    kernel.remove()
    assert nft("list", "tables") == "table inet egressd\n"
    kernel.close()


def test_install_with_a_change_is_one_transaction(space: Space) -> None:
    """The new table comes with its pods and grants, or, if the change is impossible, not at all."""
    kernel = Kernel(SETTINGS)
    change = world(plan())
    change.grants = [grant(1, API4)]
    kernel.install(change)
    assert API4 in elements("grant4-1-any")
    with pytest.raises(KernelError):
        kernel.install(Change(pods=[PodElement(packed(WEB4), 77, False, "")]))
    assert API4 in elements("grant4-1-any")
    kernel.close()


def test_without_the_right_to_it_says_what_is_missing(space: Space) -> None:
    """Another user gets an EnvironmentProblem that names the capability."""

    def body() -> None:
        os.setgid(65534)
        os.setuid(65534)
        kernel = Kernel(SETTINGS)
        for action in (kernel.install, kernel.remove):
            with pytest.raises(EnvironmentProblem, match=r"CAP_NET_ADMIN.*run it as root"):
                action()
        with pytest.raises(KernelError) as error:
            kernel.heartbeat()
        assert error.value.errno == errno.EPERM

    in_child(body)


def in_child(body: Callable[[], None]) -> None:
    """Run `body` in a process of its own; its failure becomes ours."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        report = b""
        try:
            body()
        except BaseException:  # whatever it is, the parent shall print it
            report = traceback.format_exc().encode()
        os.write(writer, report[-60_000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        failure = pipe.read()
    os.waitpid(child, 0)
    if failure:
        pytest.fail(failure)


def test_missing_features_are_named(space: Space) -> None:
    """The trial transaction says which expression the kernel does not know, and leaves nothing behind."""
    channel = Channel()
    assert missing(channel) == []
    unknown = FEATURES[0].expressions.replace(b"tproxy\0", b"nosuch\0")
    features = (FEATURES[2], Feature("time travel", "nft_nosuch", "CONFIG_NOSUCH", unknown), FEATURES[4])
    assert missing(channel, features) == ["time travel (module nft_nosuch, CONFIG_NOSUCH)"]
    assert nft("list", "ruleset") == ""
    channel.close()


def test_an_impossible_interface_pattern_is_refused(space: Space) -> None:
    """`pod_interfaces` takes names and beginnings of names only."""
    for pattern in ("*", "e*h", "much-too-long-name*", ""):
        kernel = Kernel(replace(SETTINGS, pod_interfaces=(pattern,)))
        with pytest.raises(EnvironmentProblem, match="pod_interfaces"):
            kernel.install()
        kernel.close()


def test_overlapping_blocks_are_merged(space: Space) -> None:
    """Interval sets refuse overlaps: settings that overlap or touch become one range."""
    blocks = (
        block("203.0.113.0", "203.0.113.127"),
        block("203.0.113.64", "203.0.113.200"),
        block("203.0.113.201", "203.0.113.255"),
    )
    kernel = Kernel(replace(SETTINGS, cluster_cidrs=(*blocks, block("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"))))
    kernel.install()
    assert elements("cluster4").strip() == "203.0.113.0/24"
    assert elements("cluster6").strip() == "::/0"
    kernel.close()


# --------------------------------------------------------------------------------------------------- apply


def test_a_thousand_changes_count_together(kernel: Kernel) -> None:
    """One impossible change among a thousand leaves everything as before; without it, all are made."""
    kernel.apply(world(plan()))
    before = listing()
    change = Change(
        subjects={number: plan(allow=(interval(API4, API4, port(6, number)),)) for number in range(10, 310)},
        pods=[PodElement(bytes((192, 0, 2, n)), 10 + n, False, f"shop/pod-{n}") for n in range(10, 200)],
        grants=[grant(n, API4, port(6, 443)) for n in range(10, 310)],
        gone_pods=[packed(WEB6)],
        gone_subjects={2},
        revoked=[(packed(WEB4), bytes((198, 51, 100, n))) for n in range(200)],
    )
    change.pods[95] = PodElement(packed("192.0.2.250"), 9999, False, "shop/impossible")
    change.pods += [replace(PODS[2], subject=10), replace(PODS[3], subject=10)]
    with pytest.raises(KernelError, match="add pods to pods4") as error:
        kernel.apply(change)
    assert error.value.errno == errno.ENOENT
    assert listing() == before
    change.pods[95] = PodElement(packed("192.0.2.250"), 309, False, "shop/possible")
    kernel.apply(change)
    snapshot = kernel.read_back()
    assert len(snapshot.subjects) == 301
    assert len(snapshot.grants) == 300
    assert {pod.address: pod.subject for pod in snapshot.pods}[packed("192.0.2.250")] == 309


def test_a_wide_plan(kernel: Kernel) -> None:
    """5,000 address ranges with and without ports, both families, fit into one change."""

    def nth(n: int, length: int, last: bool) -> bytes:
        low = n * 16 + (11 if last else 0)
        return (
            bytes((198, 18)) + low.to_bytes(4, "big")[-2:]
            if length == 4
            else packed("2001:db8::")[:12] + low.to_bytes(4, "big")
        )

    spans = (PortSpan(6, 6, 443, 443), None)
    allow = tuple(
        Interval(nth(n, length, last=False), nth(n, length, last=True), span)
        for span in spans
        for length in (4, 16)
        for n in range(1250)
    )
    kernel.apply(Change(subjects={1: plan(allow=allow)}))
    assert len(allow) == 5000
    assert elements("allow4-1-any").count("-") == 1250
    assert elements("allow6-1").count(" . tcp . 443") == 1250


def test_an_interval_may_reach_the_last_address(kernel: Kernel) -> None:
    """Ranges from the first and to the last address there is."""
    whole = (
        interval("0.0.0.0", "255.255.255.255"),
        interval("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", PortSpan(0, 255, 0, 65535)),
    )
    kernel.apply(Change(subjects={1: plan(allow=whole)}))
    assert elements("allow4-1-any").strip() == "0.0.0.0/0"
    assert elements("allow6-1").strip() == "::/0 . 0-255 . 0-65535"


def test_a_replaced_instance_keeps_its_grants(kernel: Kernel) -> None:
    """New rules and new address sets, of the next generation, the same grants; sets that the plan needs no more are
    gone, and come back empty."""
    kernel.apply(world(plan(allow=(interval(API4),), deny=(interval(API4, API4, port(6, 25)),))))
    kernel.program([grant(1, API4, port(6, 443), comment="kept.example"), grant(1, API4)])
    kernel.apply(Change(subjects={1: plan(grants=frozenset({"port"}), deny=(interval(API4, API4, port(6, 26)),))}))
    assert "kept.example" in elements("grant4-1")
    assert "tcp . 26" in elements("deny4-1.g1")
    names = re.findall(r"set (\S+-1\S*) \{", listing())
    assert sorted(names) == ["deny4-1.g1", "grant4-1", "grant6-1"]
    kernel.apply(Change(subjects={1: plan()}))
    assert "kept.example" in elements("grant4-1")
    assert elements("grant4-1-any") == ""


def test_a_gone_instance_leaves_nothing(kernel: Kernel) -> None:
    """Pods, chain and sets go together; a subject both gone and placed begins anew; gone things may go again."""
    kernel.apply(world(plan(allow=(interval(API4),))))
    kernel.program([grant(1, API4)])
    kernel.apply(Change(gone_subjects={1}, subjects={1: plan()}, pods=list(PODS[:2]), gone_grants=[grant(1, API4)]))
    assert elements("grant4-1-any") == ""
    everything = Change(
        gone_subjects={1, 2, 77}, gone_pods=[pod.address for pod in PODS] * 2, gone_grants=[grant(1, API4)]
    )
    kernel.apply(everything)
    kernel.apply(everything)
    assert "subject-" not in listing()
    assert kernel.read_back().pods == ()


def test_a_pod_is_pointed_elsewhere_without_a_gap(kernel: Kernel) -> None:
    """Delete and add of one address in one batch: the map, known4 and bypass4 stay in step."""
    kernel.apply(world(EMPTY))
    kernel.apply(Change(pods=[PodElement(packed(WEB4), 2, True, "shop/web-0")]))
    kernel.apply(Change(pods=[PodElement(packed(JOB4), None, False, "shop/job-0")], gone_pods=[packed(WEB6)]))
    assert f'{WEB4} comment "shop/web-0" : goto subject-2' in elements("pods4")
    assert f'{JOB4} comment "shop/job-0" : accept' in elements("pods4")
    assert elements("bypass4").strip() == f'{WEB4} comment "shop/web-0"'
    assert WEB6 not in elements("known6")


def test_grants_of_a_change_may_be_there_already(kernel: Kernel) -> None:
    """A change that adds a live grant as if it were new is made nevertheless, and renews it."""
    kernel.apply(world(plan()))
    kernel.program([grant(1, API4, ms=20_000, comment="old.example")])
    kernel.apply(Change(grants=[grant(1, API4, ms=90_000, comment="new.example")]))
    (kept,) = kernel.read_back().grants
    assert kept.remaining_ms > 80_000
    assert kept.comment == "new.example"


def test_an_empty_change_is_nothing(kernel: Kernel) -> None:
    """No message, no transaction."""
    before = listing()
    kernel.apply(Change())
    kernel.program([])
    assert listing() == before


def test_strangers_hands_are_survived(kernel: Kernel) -> None:
    """What another program deleted is noticed, read back, and the change made; a deleted table is said to be gone."""
    kernel.apply(world(plan()))
    nft("delete", "element", "inet", "egressd", "pods4", "{", WEB4, "}")
    nft("delete", "element", "inet", "egressd", "known4", "{", WEB4, "}")
    kernel.apply(Change(gone_pods=[packed(WEB4)], pods=[replace(PODS[1], subject=2)]))
    assert "goto subject-2" in elements("pods6")
    nft("delete", "element", "inet", "egressd", "known4", "{", JOB4, "}")
    kernel.apply(Change(pods=[replace(PODS[2], subject=1)]))
    assert JOB4 in elements("known4")
    nft("flush", "chain", "inet", "egressd", "subject-1")
    nft("delete", "set", "inet", "egressd", "grant4-1")
    kernel.apply(Change(subjects={1: plan(), 3: plan()}, gone_subjects={2}, gone_pods=[pod.address for pod in PODS]))
    assert set(kernel.read_back().subjects) == {1, 3}
    nft("flush", "ruleset")
    with pytest.raises(KernelError, match="install the table again") as error:
        kernel.apply(Change(subjects={4: plan()}))
    assert error.value.errno == errno.ENOENT
    with pytest.raises(KernelError, match="install the table again") as error:
        kernel.heartbeat()
    assert error.value.errno == errno.ENOENT
    with pytest.raises(KernelError):
        kernel.program([grant(1, API4)])
    kernel.install()
    kernel.apply(world(plan()))
    kernel.program([grant(1, API4)])


# ------------------------------------------------------------------------------------------------- program


@pytest.mark.parametrize("span", [None, port(6, 443), PortSpan(6, 6, 8000, 8100)], ids=["any", "port", "range"])
@pytest.mark.parametrize("address", [API4, "2001:db8:2::10"], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("refresh", [False, True], ids=["fresh", "refresh"])
@pytest.mark.parametrize("count", [1, 3])
def test_writing_a_live_grant_again_renews_it(
    kernel: Kernel, span: PortSpan | None, address: str, refresh: bool, count: int
) -> None:
    """Whatever the caller believed, afterwards the grant lives for its new lifetime, with its new comment."""
    kernel.apply(Change(subjects={1: plan(), 2: plan(), 3: plan()}))
    for ms, comment in ((40_000, "first.example"), (40_000, "same.example"), (90_000, "last.example")):
        batch = [grant(n, address, span, ms=ms, comment=comment, refresh=refresh) for n in range(1, count + 1)]
        kernel.program(batch)
        found = kernel.read_back().grants
        assert {one.comment for one in found} == {comment}
        assert len(found) == count
        assert all(ms - 10_000 < one.remaining_ms <= ms for one in found)
        assert {(one.address, one.span) for one in found} == {(packed(address), span)}


def test_a_grant_that_is_said_twice_in_a_batch(kernel: Kernel) -> None:
    """The last word counts, whatever was believed of each."""
    kernel.apply(Change(subjects={1: plan()}))
    for first in (False, True):
        for second in (False, True):
            ms = 50_000 if second else 30_000
            kernel.program([grant(1, API4, refresh=first), grant(1, API4, ms=ms, refresh=second)])
            (kept,) = kernel.read_back().grants
            assert ms - 10_000 < kept.remaining_ms <= ms


def test_a_lifetime_of_nothing_is_not_for_ever(kernel: Kernel) -> None:
    """A lifetime of 0 ms ends soon; without one an element would be permanent."""
    kernel.apply(Change(subjects={1: plan()}))
    kernel.program([grant(1, API4, ms=0)])
    deadline = time.monotonic() + 30
    while kernel.read_back().grants:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_four_thousand_grants_in_one_transaction(kernel: Kernel) -> None:
    """A large batch over many sets is atomic; a subject that does not exist undoes all of it."""
    kernel.apply(Change(subjects={number: plan() for number in range(1, 9)}))
    batch = [grant(n % 8 + 1, f"198.51.{n >> 8}.{n & 255}", port(6, 443), comment="a" * 100) for n in range(4095)]
    with pytest.raises(KernelError, match="4096 grants, the first for a") as error:
        kernel.program([*batch, grant(99, API4)])
    assert error.value.errno == errno.ENOENT
    assert kernel.read_back().grants == ()
    kernel.program([*batch, grant(1, API4)])
    assert len(kernel.read_back().grants) == 4096
    kernel.program([one._replace(refresh=True) for one in batch])
    assert len(kernel.read_back().grants) == 4096


def test_expired_grants_do_not_spoil_a_batch(kernel: Kernel) -> None:
    """Renewing and withdrawing grants that have just run out always works."""
    kernel.apply(Change(subjects={1: plan()}))
    batch = [grant(1, f"198.51.100.{n}", ms=250) for n in range(200)]
    for _ in range(10):
        kernel.program(batch)
        time.sleep(0.24)
        kernel.program([one._replace(refresh=True) for one in batch])
        time.sleep(0.24)
        kernel.apply(Change(gone_grants=batch))
        assert kernel.read_back().grants == ()


def test_overlapping_ranges_are_the_callers_error(kernel: Kernel) -> None:
    """Two different ranges of one address may not overlap in one set: nothing changes, and it is said."""
    kernel.apply(Change(subjects={1: plan()}))
    kernel.program([grant(1, API4, PortSpan(6, 6, 8000, 8100), comment="one.example")])
    with pytest.raises(KernelError, match=r"two\.example of subject 1"):
        kernel.program([grant(1, API4, PortSpan(6, 6, 8050, 8200), comment="two.example")])
    assert [one.comment for one in kernel.read_back().grants] == ["one.example"]


def test_a_lost_outcome_is_an_error_and_not_the_end(space: Space) -> None:
    """Answers that overflow the socket make the outcome unknown: that is said, and the next transaction is clean."""
    channel = Channel()
    channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    impossible = delete_set("nowhere", "nothing")
    with pytest.raises(KernelError, match="the outcome of a transaction is unknown"):
        channel.transact([impossible] * 2000)
    with pytest.raises(Refused, match="refused to delete set nothing: No such file or directory") as error:
        channel.transact([impossible])
    assert error.value.refusals[0].place == 0
    channel.close()


# ------------------------------------------------------------------------------- heartbeat, reading back


def test_packets_are_held_against_revoked_pairs_as_long_as_there_are_any(kernel: Kernel) -> None:
    """The family of a revoked pair is marked with it, and longer than it lives; the other family is not."""
    kernel.apply(world(plan()))
    assert "elements" not in nft("list", "set", "inet", "egressd", "revoking")
    kernel.apply(Change(revoked=[(packed(WEB6), packed("2001:db8:2::10"))]))
    lives = {name: re.findall(r"timeout (\d+)m ", elements(name)) for name in ("revoked4", "revoked6", "revoking")}
    assert lives == {"revoked4": [], "revoked6": ["10"], "revoking": ["11"]}
    assert "ipv6" in elements("revoking")
    assert "ipv4" not in elements("revoking")


def test_the_heartbeat_lapses_by_itself(kernel: Kernel) -> None:
    """Each beat gives both families three seconds; without one they are gone."""
    for _ in range(3):
        kernel.heartbeat()
        assert re.fullmatch(r" ipv4 timeout 3s expires \w+, ipv6 timeout 3s expires \w+ ", elements("heartbeat"))
    deadline = time.monotonic() + 30
    while elements("heartbeat"):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_what_was_written_is_read_back(kernel: Kernel) -> None:
    """Subjects, pods and grants, comments longer than nft's and letters that nft cannot quote included."""
    long = " ".join(f"namespace-{n}/policy" for n in range(11))
    change = Change(
        subjects={1: plan(comment=long), 2: plan(comment="shop/web egressd-system/baseline")},
        pods=[PodElement(packed(WEB4), 1, True, "shop/web-0"), PodElement(packed(WEB6), None, False, 'a "b"\n')],
    )
    kernel.apply(change)
    name = ("l" * 62 + ".") * 3 + "e" * 50
    grants = [
        grant(1, API4, port(17, 53), comment=name),
        grant(1, API4, PortSpan(6, 6, 1, 65535), comment="*.example"),
        grant(2, "2001:db8:2::10", comment=r"\001\200.example"),
    ]
    kernel.program(grants)
    found = kernel.read_back()
    assert len(long) > 200
    assert len(name) > 200
    assert found.subjects == {1: long, 2: "shop/web egressd-system/baseline"}
    assert set(found.pods) == {change.pods[0], PodElement(packed(WEB6), None, False, "a 'b' ")}
    assert {one[:4]: one.comment for one in found.grants} == {one[:4]: one.comment for one in grants}
    assert all(50_000 < one.remaining_ms <= 60_000 for one in found.grants)


def test_there_is_nothing_to_read_back_without_a_table(space: Space) -> None:
    """Reading back says so with ENOENT."""
    kernel = Kernel(SETTINGS)
    with pytest.raises(KernelError) as error:
        kernel.read_back()
    assert error.value.errno == errno.ENOENT
    kernel.close()


# --------------------------------------------------------------------------------------------- nft's print


def test_nft_prints_and_reloads_everything() -> None:
    """The printed table, loaded into an empty namespace, prints the same again, elements and comments included."""
    with KernelNode() as node:
        span = PortSpan(6, 17, 1000, 2000)
        rules = (
            interval(API4),
            interval("2001:db8::", "2001:db8::77", span),
            interval("198.51.100.0", "198.51.100.9", span),
        )
        full = plan(comment="shop/web egressd-system/baseline", allow=rules, deny=rules, report=rules)
        kernel = node.install(world(full, replace(EMPTY, enforced=False)))
        kernel.program(
            [
                grant(1, API4, port(6, 443), comment="api.example.com"),
                grant(1, "2001:db8:2::10", port(17, 443), comment="x" * 253),
                grant(1, API4, comment='quote " and \n line'),
                grant(1, "2001:db8:2::10", span, comment="ä" * 128),
            ]
        )
        kernel.apply(Change(revoked=[(packed(WEB4), packed(API4))]))
        kernel.heartbeat()
        assert node.tcp(node.job, API4) == "open"
        assert not node.ping(node.web, API4)
        first = listing()
    again = Space()
    with again:
        subprocess.run(["nft", "-f", "-"], input=first, text=True, check=True)
        second = listing()
        reloaded = Kernel(SETTINGS)
        assert reloaded.read_back().subjects[1] == "shop/web egressd-system/baseline"
        reloaded.install()
        reloaded.close()
    again.close()
    assert _still(second) == _still(first)
    assert 'comment "api.example.com"' in first
    assert f"{WEB4} . {API4} . icmp counter packets" in first


def _still(text: str) -> str:
    """A listing without what passes: remaining lifetimes, and the order of hash sets."""
    return "\n".join(map(_sorted_elements, re.sub(r" expires \w+", "", text).splitlines()))


def _sorted_elements(line: str) -> str:
    found = re.fullmatch(r"(\s*elements = \{ )(.*)( \})", line)
    return found.group(1) + ", ".join(sorted(found.group(2).split(", "))) + found.group(3) if found else line


def test_resolvers_are_the_servers_that_settings_name(space: Space) -> None:
    """`dns.servers` wins over the upstreams' addresses, and each server lands in the set of its family."""
    kernel = Kernel(replace(SETTINGS, dns=replace(SETTINGS.dns, servers=(Address(packed("192.0.2.53")),))))
    kernel.install()
    assert elements("resolvers4").strip() == "192.0.2.53"
    assert elements("resolvers6") == ""
    kernel.close()
