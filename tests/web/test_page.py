"""The page with a scripted daemon: every view, keyboard, hostile names, crowds, floods, and a daemon that goes away."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from egressd.admin import page as served_page
from egressd.admin import shapes
from egressd.lab import eventually
from web.browser import Browser, Page, start
from web.scripted import NASTY, Scripted, crowd, few, hostile, record, served, status

ROWS = "document.querySelectorAll('.view-log .t-body .t-row').length"
NOT_SHOWN = 2000
"""Rows that the log keeps at most (log.js)."""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests here: to start it takes longer than most of them."""
    with start(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def small() -> Iterator[Scripted]:
    """A daemon of a small node."""
    with served(few) as made:
        yield made


def quiet(page: Page) -> None:
    """Nothing went wrong in the page, and it asked nobody but the daemon."""
    assert page.console == []
    assert page.asked
    hosts = {url.split("/")[2] for url in page.asked if not url.startswith("data:")}
    assert len(hosts) == 1, hosts


# -------------------------------------------------------------------------------------------------------- files


def test_parts_are_ours_and_whole() -> None:
    """Each file that the page refers to is served; none refers to another host, and no text becomes markup."""
    parts = served_page.parts()
    texts = {path: part.body.decode() for path, part in parts.items()}
    for path, text in texts.items():
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "eval(", "document.write", "new Function"):
            assert word not in text, path
        links = [chunk.split('"')[0] for chunk in text.split('"https://')[1:] + text.split('"http://')[1:]]
        assert set(links) <= {"www.w3.org/2000/svg"}, path
    index = texts["/"]
    for chunk in index.split('="/static/')[1:]:
        assert f"/static/{chunk.split(chr(34))[0]}" in parts
    assert " style=" not in index
    assert " on" + "click=" not in index


def test_modules_agree() -> None:
    """Every name that a module imports is used there, and exported where it comes from."""
    texts = {path.removeprefix("/static/"): part.body.decode() for path, part in served_page.parts().items()}
    for file, text in texts.items():
        for names, source in re.findall(r'^import \{([^}]*)\} from "\./([^"]+)"', text, re.MULTILINE):
            for name in filter(None, map(str.strip, names.split(","))):
                assert len(re.findall(rf"\b{name}\b", text)) > 1, f"{file} does not use {name}"
                assert re.search(rf"^export (async )?(const|function|class|let) {name}\b", texts[source], re.MULTILINE)


@pytest.mark.parametrize(
    ("path", "shape"),
    [
        ("status", shapes.Status),
        ("pods", shapes.Pods),
        ("map", shapes.Map),
        ("policies", shapes.Policies),
        ("grants", shapes.Grants),
        ("explain", shapes.Explained),
    ],
)
def test_the_script_tells_what_a_daemon_would(small: Scripted, path: str, shape: type[msgspec.Struct]) -> None:
    """What the scripted daemon answers has the types of the real one's answers."""
    answer = small.explained if path == "explain" else small.answers[path]
    assert list(strangers(answer, msgspec.inspect.type_info(shape))) == []


def strangers(value: Any, kind: Any) -> Iterator[str]:
    """Fields of a scripted answer that the real one has not."""
    if isinstance(kind, msgspec.inspect.UnionType):
        kind = next(each for each in kind.types if not isinstance(each, msgspec.inspect.NoneType))
    if isinstance(value, list):
        for each in value:
            yield from strangers(each, kind.item_type)
    elif isinstance(value, dict):
        known = {field.encode_name: field.type for field in kind.fields}
        for name, each in value.items():
            if name in known:
                yield from strangers(each, known[name])
            else:
                yield name


# --------------------------------------------------------------------------------------------------- each view


def test_map(browser: Browser, small: Scripted) -> None:
    """Rows, lines, filter, verdicts, noise, focus on a workload and on a name, and Back."""
    with browser.open(small.url) as page:
        page.wait("document.querySelectorAll('.map-row').length === 13")
        assert page.text(".map-left .map-title") == "4 workloads"
        assert page.value("document.querySelectorAll('.map-lines .base path').length") > 4
        page.click(".check", "noise")
        page.wait("document.querySelectorAll('.map-right .map-row').length === 11")
        page.click(".check", "noise")
        page.click(".toggle", "allowed")
        page.wait(
            "![...document.querySelectorAll('.map-right .map-row')].some((each) => each.innerText.includes('cdn'))"
        )
        assert "verdict=denied" in page.value("location.hash")
        page.click(".toggle", "allowed")
        page.click(".filter")
        page.type("bank")
        page.wait("document.querySelectorAll('.map-row').length === 2")
        page.key("Escape")
        page.wait("document.querySelectorAll('.map-row').length === 13")
        page.click(".map-left .map-row", "web")
        detail = page.text(".view-map .detail")
        assert "telemetry.vendor.example" in detail
        assert "only asked for" in detail
        assert "asked for, and used" in detail
        assert "4,210 queries, 310 connections" in detail
        page.click(".view-map .detail .link", "api.example.com")
        page.wait("document.querySelectorAll('.map-right .map-row').length === 1")
        page.value("history.back()")
        page.wait("document.querySelectorAll('.map-right .map-row').length === 4")
        page.click(".view-map .detail a", "Explain")
        page.wait("document.querySelector('.view-explain .verdict')")
        quiet(page)


def test_a_link_shows_what_was_seen(browser: Browser, small: Scripted) -> None:
    """The address alone brings back view, filter, time, verdicts and focus."""
    with browser.open(f"{small.url}#map?since=today&verdict=denied&workload=shop/Deployment/web") as page:
        page.wait("document.querySelectorAll('.map-right .map-row').length === 2")
        assert page.text(".segments [aria-pressed=true]") == "today"
        assert any(re.search(r"map\?since=[0-9-]+T00(:|%3A)00(:|%3A)00Z", url) for url in page.asked)
        quiet(page)


def test_the_last_hour(browser: Browser, small: Scripted) -> None:
    """The map looks back to the beginning of the hour before, and never asks for a whole day instead."""
    with browser.open(small.url) as page:
        page.click(".segments button", "1h")
        page.wait("location.hash === '#map?since=1h'")
        page.wait("document.querySelectorAll('.map-right .map-row').length > 0")
        asked = [url for url in page.asked if re.search(r"map\?since=[0-9-]+T[0-2][0-9](:|%3A)00(:|%3A)01Z", url)]
        assert asked
        quiet(page)


def test_history_off(browser: Browser) -> None:
    """Where there is no history the map says so, and how to turn it on; it comes as soon as there is one."""
    with served(few) as made:
        made.problems["map"] = (503, "history is off")
        with browser.open(made.url) as page:
            page.wait("document.querySelector('.view-map .empty').innerText.includes('history.file')")
            del made.problems["map"]
            page.wait("document.querySelectorAll('.map-row').length === 13")
            assert all(line.startswith("network:") for line in page.console)


def test_log(browser: Browser, small: Scripted) -> None:
    """Records come, are filtered, held and gone on with, and one is looked at and explained."""
    with browser.open(f"{small.url}#log") as page:
        page.wait(f"{ROWS} > 10")
        assert page.value("document.querySelector('.view-log .t-body .t-row').innerText").startswith("13:00:59")
        page.click(".view-log .toggle", "allowed")
        page.wait(
            "![...document.querySelectorAll('.view-log .t-row .badge')].some((each) => each.innerText === 'allowed')"
        )
        page.click(".view-log .toggle", "allowed")
        page.click(".view-log .button", "Pause")
        small.say([record(3000, "denied", reason="deny-rule")])
        page.wait("document.querySelector('.view-log .toolbar .button').innerText === 'Go on (1 new)'")
        assert "deny-rule" not in page.text(".view-log .table")
        page.click(".view-log .button", "Go on")
        page.wait("document.querySelector('.view-log .table').innerText.includes('deny-rule')")
        page.click(".view-log .t-row", "host-3000")
        assert "host-3000.example.com" in page.text(".view-log .detail")
        assert "query.transport" in page.text(".view-log .detail")
        page.click(".view-log .detail a", "Explain")
        page.wait("location.hash.includes('host-3000.example.com')")
        quiet(page)


def test_policies(browser: Browser, small: Scripted) -> None:
    """What is wrong comes first, with its place; rules have peers, ports, uses; a filter narrows them down."""
    with browser.open(f"{small.url}#policies") as page:
        page.wait("document.querySelectorAll('.card').length === 4")
        first = page.text(".card")
        assert "shop/broken" in first
        assert "policy.yaml:4:8 error" in first
        assert "Accepted: no" in first
        page.click(".view-policies .filter")
        page.type("partner")
        page.wait("document.querySelectorAll('.card').length === 1")
        text = page.text(".card")
        for words in (
            "shop/egress",
            "*.partner.example",
            "443/TCP, 8443/TCP",
            "1,204",
            "never",
            "shop/web-2",
            "line 9",
        ):
            assert words in text
        quiet(page)


def test_grants(browser: Browser, small: Scripted) -> None:
    """Grants count down by themselves, are filtered, and asked for by pod."""
    with browser.open(f"{small.url}#grants") as page:
        page.wait("document.querySelectorAll('.view-grants .t-body .t-row').length === 4")
        last = "document.querySelector('.view-grants .t-body .c-left').innerText"
        before = page.value(last)
        page.wait(f"{last} !== {json.dumps(before)}")
        page.click(".view-grants .filter")
        page.type("ledger")
        page.wait("document.querySelectorAll('.view-grants .t-body .t-row').length === 1")
        page.wait("document.querySelector('.view-grants select').options.length === 6")
        page.value(
            "(() => { const select = document.querySelector('.view-grants select'); select.value = 'payments/api-0';"
            " select.dispatchEvent(new Event('change')); })()"
        )
        eventually(
            lambda: page.value("0") == 0 and any("pod=payments" in url for url in page.asked), what="the question"
        )
        quiet(page)


def test_explain(browser: Browser, small: Scripted) -> None:
    """The form asks, the proof is shown step by step, and the line that would allow it can be copied."""
    with browser.open(f"{small.url}#explain") as page:
        page.wait("document.querySelectorAll('#pods option').length === 5")
        page.click("#explain-pod")
        page.type("shop/web-0")
        page.key("Tab")
        page.type("2001:db8::10")
        page.key("Tab")
        page.type("443")
        page.key("Enter")
        page.wait("document.querySelector('.verdict')")
        assert any("to=%5B2001%3Adb8%3A%3A10%5D%3A443%2Ftcp" in url for url in page.asked)
        assert page.count(".steps li") == 5
        assert "denied" in page.text(".verdict")
        assert "payments/api-0" in page.text(".shared")
        assert page.text(".allow pre") == "- {to: [telemetry.vendor.example], ports: [443/TCP]}"
        page.click(".allow .button")
        page.wait("document.querySelector('.allow .button').innerText === 'Copied'")
        quiet(page)


def test_a_problem_is_told(browser: Browser) -> None:
    """What explain refuses is told in its own words."""
    with served(few) as made:
        made.problems["explain"] = (404, "there is no pod shop/nobody on node n1")
        with browser.open(f"{made.url}#explain?pod=shop/nobody&to=a.example") as page:
            assert page.text(".problem") == "there is no pod shop/nobody on node n1"


# ----------------------------------------------------------------------------------------------------- the head


def test_header_and_theme(browser: Browser, small: Scripted) -> None:
    """Node, version, counters and reasons; light and dark by the system and by choice, which stays."""
    with browser.open(small.url, dark=True) as page:
        assert page.text("#node") == "worker-3.fra1"
        assert "21/34 pods" in page.text("#counters")
        colour = "getComputedStyle(document.body).backgroundColor"
        dark = page.value(colour)
        page.click("#theme")
        page.wait(f"{colour} !== {json.dumps(dark)}")
        page.go(f"{small.url}?again")
        page.wait("document.documentElement.dataset.theme === 'light'")
        page.click("#theme")
        page.click("#theme")
        page.wait("!document.documentElement.dataset.theme")
        page.wait("document.querySelector('#ready').innerText === 'ready'")
        page.click("#ready")
        assert "udp://10.96.0.10:53" in page.text("#condition")
        quiet(page)


def test_not_ready(browser: Browser) -> None:
    """Reasons stand in a banner, in the daemon's own words, until they are gone."""
    with served(few) as made:
        why = [{"reason": "source-away", "detail": "the API server does not answer"}]
        made.answers["status"] = status(ready=False, reasons=why)
        with browser.open(made.url) as page:
            assert "source-away (the API server does not answer)" in page.text("#banner")
            made.answers["status"] = status()
            page.wait("document.querySelector('#banner').hidden")
            quiet(page)


def test_a_daemon_that_goes_away(browser: Browser) -> None:
    """A banner says so; when the daemon is back all goes on by itself, the log too, and nothing is there twice."""
    with served(few) as made, browser.open(f"{made.url}#log") as page:
        page.wait(f"{ROWS} > 10")
        port = int(made.url.split(":")[2].strip("/"))
        made.leave()
        page.wait("document.querySelector('#banner').innerText.includes('has not answered')")
        made.lines.append(record(3599, "denied"))
        made.serve(port)
        page.wait("document.querySelector('#banner').hidden")
        page.wait("document.querySelector('.view-log .t-body').innerText.includes('host-3599')")
        listed = page.text(".view-log .t-body")
        assert listed.count("host-58.example.com") == 1
        assert all(line.startswith("network:") for line in page.console), page.console


# ---------------------------------------------------------------------------------------------------- keyboard


def test_keyboard_alone(browser: Browser, small: Scripted) -> None:
    """From the first key to an explanation without a mouse: tabs, filter, rows, focus, and back."""
    with browser.open(small.url) as page:
        page.wait("document.querySelectorAll('.map-row').length === 13")
        page.key("Tab")
        assert "skip" in page.held()
        page.key("Tab", "ArrowRight")
        page.wait("location.hash === '#log'")
        page.key("ArrowLeft")
        page.wait("location.hash === '#map'")
        page.key("/")
        assert page.held().startswith("INPUT filter")
        page.type("web")
        page.wait("location.hash.includes('q=web')")
        page.key("Escape", "Escape")
        page.wait("document.activeElement === document.body && !location.hash.includes('q=')")
        page.value("document.querySelector('.map-left .map-row').focus()")
        page.key("ArrowDown", "ArrowDown", "ArrowDown")
        assert "web, Deployment in shop" in page.held()
        assert page.count(".map-lines .over path") > 0
        page.key("ArrowRight")
        assert "api.example.com" in page.held()
        page.key("ArrowLeft", "End", "Enter")
        page.wait("location.hash.includes('workload=')")
        page.wait("document.querySelector('.map-row[aria-pressed=true]') === document.activeElement")
        page.key("Escape")
        page.wait("!location.hash.includes('workload=')")
        quiet(page)


def test_tables_by_keyboard(browser: Browser, small: Scripted) -> None:
    """Arrows walk through the rows, which stay in view, and Enter opens one; a reader of the screen is told which."""
    with browser.open(f"{small.url}#log") as page:
        page.wait(f"{ROWS} > 10")
        page.value("document.querySelector('.view-log .table').focus()")
        page.key(*["ArrowDown"] * 4, "Enter")
        shown = page.text(".view-log .detail h2")
        active = "document.getElementById(document.activeElement.getAttribute('aria-activedescendant')).innerText"
        assert shown in page.value(active)
        page.key("End")
        assert page.value("document.querySelector('.view-log .table').scrollTop") > 0
        page.key("Escape")
        page.wait("document.querySelector('.view-log .detail').hidden")
        quiet(page)


# ------------------------------------------------------------------------------------- what nobody is to bring down


@pytest.mark.parametrize("view", ["map", "log", "policies", "grants", "explain?pod=shop/web-0&to=a.example"])
def test_hostile_names_are_text(browser: Browser, view: str) -> None:
    """Markup in names, pods, rules and steps is shown as it is; nothing of it becomes an element or runs."""
    with served(hostile) as made, browser.open(made.url + "#" + view) as page:
        page.wait(f"document.querySelector('main').innerText.includes({json.dumps(NASTY)})")
        page.wait(f"document.querySelector('#node').innerText.includes({json.dumps(NASTY)})")
        if view == "map":
            page.click(".map-right .map-row", "onerror")
            assert NASTY in page.text(".view-map .detail h2")
        if view == "log":
            page.click(".view-log .t-body .t-row")
            assert NASTY in page.text(".view-log .detail")
        assert page.value("window.owned") is None
        assert page.count("img, script:not([src]), [onerror], [onload]") == 0
        assert page.value("[...document.links].every((each) => each.origin === location.origin)")
        quiet(page)


def test_the_policy_of_the_page_is_enforced(browser: Browser, small: Scripted) -> None:
    """Even if a hole were made, the browser lets no text become markup, no script run and nobody else be asked."""
    with browser.open(small.url) as page:
        for attempt in (
            "document.body.innerHTML = '<b>'",
            "fetch('http://192.0.2.1/')",
            "import('data:text/javascript,1')",
        ):
            with pytest.raises(RuntimeError):
                page.value(attempt)
        assert any("Content Security Policy" in line for line in page.console)


def test_a_crowd(browser: Browser) -> None:
    """200 workloads and 2,000 names: put together by domain, bounded in elements, and found by filter and focus."""
    with served(crowd) as made, browser.open(made.url) as page:
        page.wait("document.querySelectorAll('.map-row').length > 100")
        assert page.text(".map-right .map-title") == "2,000 names"
        assert "… and 140 more workloads" in page.text(".map-left .map-more")
        assert page.count("*") < 6000
        assert 0 < page.count(".map-lines .base path") < 60
        page.click(".map-left .map-more")
        page.wait("document.querySelectorAll('.map-left .map-row').length === 120")
        page.click(".map-right .map-row.is-group")
        page.wait("location.hash.includes('group=domain-')")
        page.wait("document.querySelectorAll('.map-right .is-group').length === 0")
        page.click(".chip", "Whole map")
        page.click(".filter")
        page.type("service-199")
        page.wait("document.querySelector('.map-left .map-title').innerText === '1 workload'")
        page.go(f"{made.url}?2#grants")
        page.wait("document.querySelector('.view-grants .rate')?.innerText === '2,000 grants'")
        assert page.count(".view-grants .t-row") < 60
        page.go(f"{made.url}?3#policies")
        page.wait("document.querySelectorAll('.card').length === 104")
        quiet(page)


def test_a_flood_of_records(browser: Browser) -> None:
    """However many records come, the document stays small, the latest are shown, and the rate is told."""
    with served(few) as made, browser.open(f"{made.url}#log") as page:
        page.wait(f"{ROWS} > 10")
        elements = page.count("*")
        for batch in range(20):
            made.say([record(number) for number in range(batch * 500, batch * 500 + 500)])
            assert page.count("*") < elements + 600
        page.wait("document.querySelector('.view-log .t-body').innerText.includes('host-9999.example')")
        assert page.value("document.querySelector('.view-log .table').ariaRowCount") == str(NOT_SHOWN + 1)
        assert page.count("*") < elements + 600
        page.wait("document.querySelector('.view-log .rate').innerText.includes('records/s')")
        quiet(page)


# ------------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("width", [360, 390, 768, 1280, 3840])
def test_nothing_is_wider_than_the_window(browser: Browser, width: int) -> None:
    """From a small telephone to a wall of screens, no view is cut off at the side."""
    with served(crowd) as made, browser.open(made.url, width=width, height=844) as page:
        page.wait("document.querySelectorAll('.map-row').length > 100")
        for view in ("map", "log", "policies", "grants", "explain?pod=shop/web-0&to=a.example"):
            page.value(f"location.hash = {json.dumps(view)}")
            page.wait(f"document.querySelector('#view-{view.partition('?')[0]}')?.hidden === false")
            assert page.value("document.documentElement.scrollWidth") <= width, view
        quiet(page)


CONTRAST = """
(() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const paint = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
    .getContext('2d', {willReadFrequently: true});
  const rgba = (colour) => { paint.clearRect(0, 0, 1, 1); paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data]; };
  const ground = (element) => { for (let at = element; at; at = at.parentElement) {
    const found = rgba(getComputedStyle(at).backgroundColor); if (found[3] === 255) return found; }
    return [255, 255, 255]; };
  const bad = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
    if (!own || !element.getClientRects().length) continue;
    const [one, two] = [light(rgba(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) bad.push(`${ratio.toFixed(2)} ${element.className} ${element.textContent.slice(0, 30)}`);
  }
  return bad;
})()
"""


@pytest.mark.parametrize("dark", [False, True])
def test_contrast(browser: Browser, small: Scripted, *, dark: bool) -> None:
    """Every text of every view has a contrast of at least 4.5 to its ground (WCAG 2.2, 1.4.3), light and dark."""
    with browser.open(small.url, dark=dark) as page:
        for view in (
            "map?workload=shop/Deployment/web",
            "log",
            "policies",
            "grants",
            "explain?pod=shop/web-0&to=a.example",
        ):
            page.value(f"location.hash = {json.dumps(view)}")
            name = view.partition("?")[0]
            page.wait(f"document.querySelector('#view-{name}')?.hidden === false")
            page.wait(f"document.querySelector('#view-{name} :is(.map-row, .t-body .t-row, .card, .verdict)')")
            assert page.value(CONTRAST) == [], view
        quiet(page)
