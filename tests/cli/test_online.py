"""`status`, `audit`, `top` and `explain` as programs, asking the running daemon: output, formats, exit codes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, CompletedProcess

import pytest
import yaml
from e2e.shop import API4, Shop, addresses, ask, open_shop, rcode

from egressd.lab import eventually

RULES = "allow:\n- name: api\n  to: [api.example.com]\n  ports: [80/TCP]\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A running node where `web` has asked for a name it may have and for one it may not."""
    with open_shop(tmp_path_factory.mktemp("shop")) as made:
        made.policy("shop/web", RULES)
        eventually(Path(made.daemon.settings["admin"]["socket"]).exists, what="the admin socket")
        ask(made.web, "api.example.com")
        ask(made.web, "denied.example")
        ask(made.free, "api.example.com")
        made.dns_record(made.free, "api.example.com")
        eventually(lambda: '"total": 3' in egressd(made, "status", "-o", "json").stdout, what="counters")
        yield made


def arguments(shop: Shop, *verb: str) -> list[str]:
    return [
        "env",
        "COLUMNS=80",
        sys.executable,
        "-m",
        "egressd",
        *verb,
        "--socket",
        shop.daemon.settings["admin"]["socket"],
    ]


def egressd(shop: Shop, *verb: str) -> CompletedProcess[str]:
    """Run a verb on the node."""
    return shop.node.run(arguments(shop, *verb))


def test_status(shop: Shop) -> None:
    """A table within 80 columns, the same as data, exit code 0."""
    shown = egressd(shop, "status")
    assert shown.returncode == 0, shown.stderr
    assert "queries   3: 2 allowed, 1 denied" in shown.stdout
    assert "shop/web    Enforce  True      True        1      1" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    data = json.loads(egressd(shop, "status", "-o", "json").stdout)
    assert data == data | {"node": "n1", "ready": True}
    assert yaml.safe_load(egressd(shop, "status", "-o", "yaml").stdout)["policy_list"][-1]["name"] == "shop/web"


def test_audit(shop: Shop) -> None:
    """Filters as the daemon has them; records as they are with -o json; exit code 1 where none matches."""
    shown = egressd(shop, "audit", "--pod", "shop/web-0", "--verdict", "denied")
    assert shown.returncode == 0
    assert shown.stdout.endswith("denied      no-rule    shop/web-0 denied.example A → NXDOMAIN\n")
    records = [json.loads(line) for line in egressd(shop, "audit", "-o", "json", "--since", "1h").stdout.splitlines()]
    assert records == [*shop.daemon.records()]
    assert egressd(shop, "audit", "--name", "*.nowhere.example").returncode == 1
    wrong = egressd(shop, "audit", "--pod", "web-0")
    assert (wrong.returncode, "NAMESPACE/NAME" in wrong.stderr) == (2, True)


def test_audit_follows(shop: Shop) -> None:
    """With --follow a record is there as soon as it happens, also in a pipe."""
    with shop.node.popen(arguments(shop, "audit", "-f", "--limit", "1", "--event", "dns"), stdout=PIPE) as process:
        assert process.stdout is not None
        assert "api.example.com" in process.stdout.readline()
        ask(shop.web, "followed.example")
        assert "shop/web-0 followed.example A → NXDOMAIN" in process.stdout.readline()
        process.terminate()


def test_top(shop: Shop) -> None:
    """One table of what is asked while it looks, and of what was asked just before."""
    command = arguments(shop, "top", "--once", "--interval", "2")
    with shop.node.popen(command, stdout=PIPE) as process:
        assert process.stdout is not None
        while process.poll() is None:
            ask(shop.web, "top.example")
        text = process.stdout.read()
    assert process.returncode == 0
    assert "RATE/S" in text
    assert re.search(r"denied +shop/web-0 +top\.example\n", text)
    again = egressd(shop, "top", "--once", "--interval", "0.2", "--window", "3600").stdout
    assert re.search(r"denied +shop/web-0 +top\.example\n", again)


def test_explain_a_name(shop: Shop) -> None:
    """The verdict with live grants, who else knows the address, and what to write; exit code 1 for a denial."""
    shown = egressd(shop, "explain", "--pod", "shop/web-0", "--to", "api.example.com:443")
    assert shown.returncode == 1
    assert "443/TCP is not among its ports (80/TCP)" in shown.stdout
    assert f"{API4}    shop/free-0  api.example.com" in shown.stdout
    assert "  - {to: [api.example.com], ports: [443/TCP]}" in shown.stdout
    assert "in ConfigMap web in namespace shop" in shown.stdout


def test_the_advice_works(shop: Shop) -> None:
    """The line of YAML, put where it says, allows the name."""
    advice = json.loads(egressd(shop, "explain", "--pod", "shop/web-0", "--to", "wanted.example", "-o", "json").stdout)
    assert advice["verdict"] == "denied"
    shop.policy("shop/web", f"{RULES}{advice['allow']['yaml']}\n")
    after = egressd(shop, "explain", "--pod", "shop/web-0", "--to", "wanted.example", "-o", "json")
    assert (after.returncode, json.loads(after.stdout)["verdict"]) == (0, "allowed")
    assert json.loads(after.stdout)["allow"] is None
    shop.policy("shop/web", RULES)


def test_explain_a_name_that_lies(shop: Shop) -> None:
    """A name that is allowed but led where no name may lead: what the pod saw, kept or not, is told, and what helps."""
    zone = shop.node.dns.zone
    zone.add("lie.partner.example", "A", "169.254.169.254")
    zone.add("inner.partner.example", "A", "192.168.7.7", ttl=0)
    shop.policy("shop/web", f'{RULES}- name: partner\n  to: ["*.partner.example"]\n  ports: [80/TCP]\n')
    for name in ("lie.partner.example", "inner.partner.example"):
        assert rcode(ask(shop.web, name)) == "NXDOMAIN"
    shown = egressd(shop, "explain", "--pod", "shop/web-0", "--to", "lie.partner.example:80")
    assert shown.returncode == 1
    text = " ".join(shown.stdout.split())
    assert re.search(r"its answer \(\d+ s old\) pointed to 169\.254\.169\.254 \(link-local\): withheld", text)
    assert "verdict: denied (rebinding); the name is allowed, its answer is withheld: the pod is told NXDOMAIN" in text
    assert "no rule can allow it: 169.254.169.254 is link-local" in text

    asked = ("explain", "--pod", "shop/web-0", "--to", "inner.partner.example", "-o", "json")
    advice = json.loads(egressd(shop, *asked).stdout)
    assert (advice["verdict"], advice["reason"]) == ("denied", "rebinding")
    assert any("an earlier answer pointed to 192.168.7.7 (private)" in step for step in advice["steps"])
    line = advice["allow"]["yaml"]
    assert line == "- {to: [inner.partner.example], ports: [80/TCP], allowPrivate: true}"
    shop.policy("shop/web", f"{RULES}{line}\n")
    assert egressd(shop, *asked).returncode == 0
    assert addresses(ask(shop.web, "inner.partner.example")) == ["192.168.7.7"]
    shop.policy("shop/web", RULES)


def test_explain_an_address(shop: Shop) -> None:
    """An address that no rule names is allowed by the grant of the name that led there, and only on its ports."""
    shown = egressd(shop, "explain", "--pod", "shop/web-0", "--to", f"{API4}:80")
    assert shown.returncode == 0
    assert f"{API4} is known to the pod as api.example.com" in shown.stdout
    assert "a grant is alive: api.example.com led there" in shown.stdout
    assert 'verdict: allowed (rule) by rule "api" of shop/web' in shown.stdout
    other = egressd(shop, "explain", "--pod", "shop/web-0", "--to", f"{API4}:443")
    assert other.returncode == 1
    assert "no grant is alive that opens 443/TCP" in other.stdout
    assert egressd(shop, "explain", "--pod", "shop/web-0", "--to", "198.51.100.1").returncode == 1


def test_explain_a_stranger(shop: Shop) -> None:
    """A pod that is not there, and a destination that is none, are wrong usage."""
    nobody = egressd(shop, "explain", "--pod", "shop/nobody", "--to", "a.example")
    assert (nobody.returncode, "no pod shop/nobody on node n1" in nobody.stderr) == (2, True)
    assert "in its namespace there is shop/free-0, shop/other-0, shop/web-0" in nobody.stderr
    assert egressd(shop, "explain", "--pod", "shop/web-0", "--to", "a:0").returncode == 2


def test_explain_an_unselected_pod(shop: Shop) -> None:
    """What no policy selects is allowed everything."""
    shown = egressd(shop, "explain", "--pod", "shop/free-0", "--to", "anything.example")
    assert shown.returncode == 0
    assert "verdict: allowed (unselected)" in shown.stdout
