"""Rules and routes against a real kernel, each test in a network namespace of its own; `ip` is the witness."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from egressd.errors import EnvironmentProblem
from egressd.kernel.routes import Routes, install_routes, remove_routes
from egressd.lab.syscalls import NEW_MOUNT, NEW_NET, unshare
from egressd.settings import Dns, Settings

SETTINGS = Settings()
FOREIGN = replace(SETTINGS, dns=Dns(foreign="Answer"))
V4 = socket.inet_pton(socket.AF_INET, "192.0.2.53")
OTHER = socket.inet_pton(socket.AF_INET, "192.0.2.54")
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::53")


def apart(body: Callable[[], None]) -> None:
    """Run `body` in a child process with a new network namespace; its failure becomes ours."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        report = b""
        try:
            os.close(reader)
            unshare(NEW_MOUNT | NEW_NET)
            ip("link set lo up")
            body()
        except BaseException:  # whatever it is, the parent shall print it
            report = traceback.format_exc().encode()
        os.write(writer, report[-60_000:])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        failure = pipe.read().decode()
    os.waitpid(child, 0)
    if failure:
        pytest.fail(failure)


def ip(arguments: str) -> None:
    """Run `ip` to set the scene."""
    subprocess.run(["ip", *arguments.split()], check=True)


def rules(family: str) -> list[str]:
    """Lines of `ip rule` that name our table."""
    text = subprocess.run(["ip", family, "rule"], check=True, capture_output=True, text=True).stdout
    return [" ".join(line.split()) for line in text.splitlines() if "20053" in line]


def routes(family: str) -> list[str]:
    """Lines of `ip route` in our table."""
    command = ["ip", family, "route", "show", "table", "20053"]
    text = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    return [" ".join(line.split()[:4]) for line in text.splitlines()]


def test_installs_one_rule_per_server_and_one_route_per_family() -> None:
    """A server of each family gives its rule, narrowed to it, and the local default route."""

    def body() -> None:
        install_routes(SETTINGS, [V4, V6])
        assert rules("-4") == ["64: from all to 192.0.2.53 fwmark 0x20000/0x20000 lookup 20053"]
        assert rules("-6") == ["64: from all to 2001:db8::53 fwmark 0x20000/0x20000 lookup 20053"]
        assert routes("-4") == ["local default dev lo"]
        assert routes("-6") == ["local default dev lo"]

    apart(body)


def test_repeating_changes_nothing() -> None:
    """Installing twice leaves what installing once left."""

    def body() -> None:
        for _ in range(3):
            install_routes(SETTINGS, [V4, V4, V6])
        assert (len(rules("-4")), len(rules("-6")), len(routes("-4")), len(routes("-6"))) == (1, 1, 1, 1)

    apart(body)


def test_a_changed_server_list_moves_the_rules() -> None:
    """Rules of servers no longer listed go, those still listed stay, and a family without servers keeps nothing."""

    def body() -> None:
        install_routes(SETTINGS, [V4, V6])
        install_routes(SETTINGS, [OTHER, V4])
        assert {line.split()[4] for line in rules("-4")} == {"192.0.2.53", "192.0.2.54"}
        assert rules("-6") == []
        assert routes("-6") == []

    apart(body)


def test_foreign_answer_needs_rules_for_every_destination() -> None:
    """With `dns.foreign: Answer` the rules of both families name no destination; turned off, they are narrow again."""

    def body() -> None:
        install_routes(SETTINGS, [V4])
        install_routes(FOREIGN, [V4])
        install_routes(FOREIGN, [V4])
        assert rules("-4") == ["65: from all fwmark 0x20000/0x20000 lookup 20053"]
        assert rules("-6") == ["65: from all fwmark 0x20000/0x20000 lookup 20053"]
        install_routes(SETTINGS, [V4])
        assert rules("-4") == ["64: from all to 192.0.2.53 fwmark 0x20000/0x20000 lookup 20053"]

    apart(body)


def test_removal_leaves_others_alone() -> None:
    """Removing deletes exactly ours, twice without complaint, and not a rule of somebody else's in the same place."""

    def body() -> None:
        ip("rule add fwmark 0x1/0x1 lookup 99 priority 64")
        ip("rule add fwmark 0x4/0x4 lookup 20053 priority 70")
        before = rules("-4")
        install_routes(SETTINGS, [V4, V6])
        remove_routes(SETTINGS)
        remove_routes(SETTINGS)
        assert rules("-4") == before
        assert rules("-6") == []
        assert routes("-4") == routes("-6") == []
        everything = subprocess.run(["ip", "rule"], check=True, capture_output=True, text=True).stdout
        assert "lookup 99" in everything

    apart(body)


def test_runs_inside_a_running_event_loop() -> None:
    """The agent may repair the rules while its loop runs."""

    def body() -> None:
        async def main() -> None:
            install_routes(SETTINGS, [V4])

        asyncio.run(main())
        assert len(rules("-4")) == 1

    apart(body)


def test_a_marked_packet_to_the_server_is_local() -> None:
    """The kernel's own look-up delivers a marked packet to the server locally, and only that one."""

    def body() -> None:
        ip("link add d0 type veth peer d1")
        ip("link set d0 up")
        ip("link set d1 up")
        ip("addr add 198.51.100.1/24 dev d0")
        ip("route add default via 198.51.100.2")
        install_routes(SETTINGS, [V4])
        ask = ["ip", "route", "get", "192.0.2.53", "from", "198.51.100.7", "iif", "d0", "mark"]
        assert "local" in subprocess.run([*ask, "0x20000"], check=True, capture_output=True, text=True).stdout
        for other in ([*ask, "0x40000"], [*ask[:3], "192.0.2.54", *ask[4:], "0x20000"]):
            forwarded = subprocess.run(other, check=False, capture_output=True, text=True).stdout
            assert "local" not in forwarded.split()

    apart(body)


def test_missing_ipv6_matters_only_where_it_is_asked_for() -> None:
    """With IPv6 disabled, foreign mode goes on with IPv4; a server that has an IPv6 address is a problem."""

    def body() -> None:
        for where in ("all", "lo"):
            with open(f"/proc/sys/net/ipv6/conf/{where}/disable_ipv6", "w") as file:  # noqa: PTH123 - a sysctl
                file.write("1")
        install_routes(FOREIGN, [V4])
        assert len(rules("-4")) == 1
        with pytest.raises(EnvironmentProblem, match="IPv6"):
            install_routes(SETTINGS, [V6])

    apart(body)


def test_missing_rights_are_explained() -> None:
    """Without CAP_NET_ADMIN the error names it."""

    def body() -> None:
        os.setresuid(65534, 65534, 65534)
        with pytest.raises(EnvironmentProblem, match="CAP_NET_ADMIN"):
            install_routes(SETTINGS, [V4])

    apart(body)


@pytest.mark.parametrize("settings", [SETTINGS, FOREIGN], ids=["narrow", "foreign"])
def test_put_back_is_what_was_installed(settings: Settings) -> None:
    """What is missing comes back exactly as it was, what is there is there once; nothing need be opened for it."""

    def body() -> None:
        install_routes(settings, [V4, V6])
        before = [rules(family) + routes(family) for family in ("-4", "-6")]
        assert all(before)
        kept = Routes(settings, [V4, V6])
        kept.put_back()
        assert [rules(family) + routes(family) for family in ("-4", "-6")] == before
        for family in ("-4", "-6"):
            ip(f"{family} rule del table 20053")
            ip(f"{family} route flush table 20053")
        kept.put_back()
        assert [rules(family) + routes(family) for family in ("-4", "-6")] == before
        install_routes(settings, [V4, V6])
        assert [rules(family) + routes(family) for family in ("-4", "-6")] == before
        kept.close()

    apart(body)


def test_put_back_says_what_is_wrong() -> None:
    """A family that is in use and was disabled is an error, one that is not in use is none."""

    def body() -> None:
        kept, foreign = Routes(SETTINGS, [V6]), Routes(FOREIGN, [V4])
        disabled = Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        disabled.write_text("1")
        with pytest.raises(EnvironmentProblem, match="IPv6 is disabled"):
            kept.put_back()
        foreign.put_back()
        disabled.write_text("0")
        kept.put_back()
        assert routes("-6") == ["local default dev lo"]

    apart(body)


def test_without_a_descriptor_the_remedy_is_said() -> None:
    """Out of file descriptors is not told as a lack of rights."""

    def body() -> None:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, most))
        with pytest.raises(EnvironmentProblem, match="open files"):
            Routes(SETTINGS, [V4])
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    apart(body)
