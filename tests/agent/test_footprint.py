"""The data path stays small: what it imports, and what it keeps of policies."""

from __future__ import annotations

import subprocess
import sys

import pytest

from egressd.link import Down, Frames, Update, encode
from egressd.model import Action, Policy, PortSpan, Rule

HEAVY = {
    *("aiohttp", "google", "idna", "kubernetes", "prometheus_client", "publicsuffixlist", "pydantic", "rich"),
    *("sqlite3", "typing_inspection", "unittest", "watchfiles", "yaml"),
}


def python(program: str) -> str:
    """What a program prints that runs in an interpreter of its own."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_data_path_imports_nothing_heavy() -> None:
    """From the command line to the event loop: no library of the control side, and of pyroute2 only what it uses."""
    names = python(
        "import sys, uvloop, egressd.cli.run, egressd.agent, egressd.agent.daemon\nprint(*sorted(sys.modules))"
    ).split()
    assert "egressd.kernel.routes" in names
    assert not HEAVY & {name.partition(".")[0] for name in names}
    assert not [name for name in names if name.startswith(("pyroute2.ndb", "pyroute2.ipdb", "pyroute2.iproute"))]
    assert len([name for name in names if name.startswith("pyroute2")]) < 60


def test_the_control_side_imports_what_its_source_needs() -> None:
    """With a folder as source neither kubernetes nor the kernel's side; the API's server comes later, in a thread."""
    names = {name.partition(".")[0] for name in python("import sys, egressd.control; print(*sys.modules)").split()}
    assert not names & {"kubernetes", "aiohttp", "prometheus_client", "pyroute2", "uvloop", "opentelemetry", "google"}


@pytest.mark.parametrize(
    "program",
    [
        pytest.param("import egressd.kernel; from pyroute2.iproute import IPRoute; IPRoute", id="ours first"),
        pytest.param("import pyroute2, egressd.kernel; pyroute2.IPRoute", id="theirs first"),
    ],
)
def test_all_of_pyroute2_can_still_be_had(program: str) -> None:
    """Part by part where the kernel's side was imported first, whole where it was there before."""
    assert python(f"{program}; print('yes')") == "yes"


def test_rules_that_say_the_same_share_it() -> None:
    """Policies come over the link with one value for equal ports, and one for equal names; they are what was sent."""

    def policy(number: int) -> Policy:
        rules = tuple(
            Rule(f"allow[{place}]", Action.ALLOW, ports=(PortSpan(6, 6, 443, 443), PortSpan(17, 17, 443, 443)))
            for place in range(2)
        )
        return Policy(f"shop/p{number}", "shop", allow=rules, deny=(Rule("never", Action.DENY),))

    update = Update(policies=(policy(0), policy(1)))
    (found,) = Frames(Down).feed(encode(update))
    assert found == update
    rules = [rule for each in found.policies for rule in each.allow]
    assert len({id(rule.ports) for rule in rules}) == 1
    assert len({id(rule.name) for rule in rules}) == 2
