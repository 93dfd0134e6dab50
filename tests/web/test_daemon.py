"""The page of the running daemon: real traffic of real pods, seen in a browser on the node."""

from __future__ import annotations

import contextlib
import functools
import http.client
import re
import socket
from collections.abc import Iterator

import pytest
from e2e.shop import Shop, ask, dial, open_shop

from egressd.admin import page as served_page
from egressd.lab import eventually
from web.browser import Browser, Page, start

URL = "http://127.0.0.1:9477/"
RULES = "allow:\n- to: [api.example.com]\n  ports: [80/TCP]\n"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """A node where `web` has asked for two names and met a closed address, and one policy is refused."""
    with open_shop(tmp_path_factory.mktemp("shop")) as made:
        made.policy("shop/web", RULES)
        made.daemon.put_policy("shop/bad", "allow:\n- to: [api.*.example.com]\n")
        ask(made.web, "api.example.com")
        ask(made.web, "denied.example")
        dial(made.web, "198.51.100.9", 443)
        made.dns_record(made.web, "denied.example")
        made.flow_record(made.web, "198.51.100.9")
        yield made


@pytest.fixture(scope="module")
def browser(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A browser on the node, whose 127.0.0.1 is the daemon's."""
    with start(tmp_path_factory.mktemp("browser"), shop.node) as started:
        yield started


@contextlib.contextmanager
def opened(browser: Browser, view: str) -> Iterator[Page]:
    """A page at a view; at the end nothing may have gone wrong in it."""
    with browser.open(URL + view) as page:
        yield page
        assert page.console == []


def test_map_of_real_traffic(shop: Shop, browser: Browser) -> None:
    """What the pod asked for and tried is there, told apart, and stays current by itself."""
    with opened(browser, "#map?workload=shop/Pod/web-0") as page:
        page.wait("document.querySelectorAll('.map-right .map-row').length === 3")
        detail = page.text(".view-map .detail")
        assert "api.example.com" in detail
        assert "denied.example" in detail
        assert "198.51.100.9" in detail
        assert "443/TCP" in detail
        assert "allow[0] of shop/web" in detail
        ask(shop.web, "later.example")
        page.wait("document.querySelector('.view-map .detail').innerText.includes('later.example')")
        page.click(".edges a", "Explain")
        page.wait("document.querySelector('.view-explain .steps')")


def test_live_log(shop: Shop, browser: Browser) -> None:
    """A query shows up while one looks, with its verdict; one click away is the proof and the line to add."""
    with opened(browser, "#log") as page:
        page.wait("document.querySelector('.view-log .t-body').innerText.includes('api.example.com')")
        ask(shop.web, "live.example")
        page.wait("document.querySelector('.view-log .t-body').innerText.includes('live.example')")
        page.click(".view-log .t-row", "live.example")
        page.click(".view-log .detail a", "Explain")
        page.wait("document.querySelector('.view-explain .verdict')")
        assert "denied" in page.text(".verdict")
        assert page.text(".allow pre") == "- {to: [live.example]}"
        assert "ConfigMap web in namespace shop" in page.text(".allow")


def test_policies_and_grants(shop: Shop, browser: Browser) -> None:
    """Conditions, faults with their place, rules and their use; the grant that the look-up gave, counting down."""
    with opened(browser, "#policies") as page:
        page.wait("document.querySelectorAll('.card').length >= 2")
        bad = page.text("[data-policy='shop/bad']")
        assert "Accepted: no" in bad
        assert "'*.example.com'" in bad
        assert re.search(r":\d+:\d+ error", bad)
        good = page.text("[data-policy='shop/web']")
        assert "api.example.com" in good
        assert "shop/web-0" in good
        page.wait("/\\t1\\t/.test(document.querySelector('[data-policy=\"shop/web\"] .rules').innerText)")
        ask(shop.web, "api.example.com")
        page.click("#tabs a", "Grants")
        page.wait("document.querySelector('.view-grants .t-body')?.innerText.includes('203.0.113.10')")
        assert "shop/web" in page.text(".view-grants .t-body")
        assert "n1" in page.text("#node")
        assert page.text("#ready") == "ready"


def test_the_daemon_is_started_anew(shop: Shop, browser: Browser) -> None:
    """Killed and started again: the page says so meanwhile and goes on by itself."""
    with browser.open(URL) as page:
        page.wait("document.querySelectorAll('.map-row').length > 2")
        shop.daemon.kill()
        page.wait("document.querySelector('#banner').innerText.includes('has not answered')")
        shop.daemon.start()
        page.wait("document.querySelector('#banner').hidden && document.querySelector('#ready').innerText === 'ready'")
        assert all(line.startswith("network:") for line in page.console), page.console


def reached(opened: socket.socket, place: str) -> bool:
    return opened.connect_ex(place) == 0


def test_both_sockets_serve_the_page(shop: Shop) -> None:
    """Every part comes over the unix socket too, with the headers that bind a browser; and nothing else does."""
    place = shop.daemon.settings["admin"]["socket"]
    for path, part in served_page.parts().items():
        with contextlib.closing(http.client.HTTPConnection("localhost")) as connection:
            connection.sock = socket.socket(socket.AF_UNIX)
            eventually(functools.partial(reached, connection.sock, place), what="the admin socket")
            connection.request("GET", path)
            answer = connection.getresponse()
            assert (answer.status, answer.read()) == (200, part.body)
            assert answer.headers["Content-Type"] == f"{part.media_type}; charset=utf-8"
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'; ")
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/static/", "/static/../__init__.py", "/static/%2e%2e/__init__.py", "/static/none.js"):
        text = shop.node.run(["curl", "-s", "--path-as-is", "-o", "/dev/null", "-w", "%{http_code}", URL[:-1] + path])
        assert text.stdout == "404", path
