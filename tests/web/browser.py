"""Headless Chromium (a Debian package; .ci/bootstrap says what else), driven by its DevTools protocol over a pipe.

A pipe needs no port, so the browser may live in any network namespace. What is sent is JSON ended by a zero octet,
and comes back likewise. Everything waits; nothing is timed.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from egressd.lab import Space, eventually

__all__ = ["Browser", "Page", "start"]

PATIENCE_S: Final = 30.0
CHUNK: Final = 1 << 20
FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",  # Chromium as root insists on it; what it loads here is ours
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
KEYS: Final = {
    "Enter": (13, "\r"),
    "Escape": (27, ""),
    "Tab": (9, ""),
    "ArrowDown": (40, ""),
    "ArrowUp": (38, ""),
    "ArrowLeft": (37, ""),
    "ArrowRight": (39, ""),
    "Home": (36, ""),
    "End": (35, ""),
    "/": (191, "/"),
}
"""Keys as the browser numbers them, and the text that they type."""

SHIM: Final = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Becomes the browser, with the two ends of the pipes under the numbers that it expects."""

Popen = Callable[..., "subprocess.Popen[Any]"]


class Browser:
    """A running browser. One thread."""

    def __init__(self, process: subprocess.Popen[Any], read: int, write: int) -> None:
        self.process = process
        self._read, self._write = read, write
        self._buffer = b""
        self._last = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self.pages: dict[str, Page] = {}

    def send(self, method: str, session: str = "", **parameters: Any) -> Any:
        """Do something and return what comes of it; events that come meanwhile go to their pages."""
        self._last += 1
        wanted = self._last
        message = {"id": wanted, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while wanted not in self._answers:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the browser does not answer {method}")
            self.pump(1.0)
        answer = self._answers.pop(wanted)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def pump(self, timeout_s: float) -> None:
        """Read what the browser has to say."""
        if not select.select([self._read], [], [], timeout_s)[0]:
            return
        data = os.read(self._read, CHUNK)
        if not data:
            raise RuntimeError(f"the browser ended with exit code {self.process.wait()}")
        *messages, self._buffer = (self._buffer + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif message.get("sessionId") in self.pages:
                self.pages[message["sessionId"]].happened(message["method"], message["params"])

    def open(self, url: str, **shape: Any) -> Page:
        """A new page; `shape` as for `Page.shape`."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.send(f"{domain}.enable")
        page.shape(**shape)
        page.go(url)
        return page


class Page:
    """One page, and everything that its console said."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target
        self.console: list[str] = []
        """Errors and warnings: exceptions, `console.error`, what the browser itself complains about (CSP too)."""
        self.asked: list[str] = []
        """The address of every request."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._browser.send("Target.closeTarget", targetId=self._target)
        self._browser.pages.pop(self._session)

    def send(self, method: str, **parameters: Any) -> Any:
        return self._browser.send(method, self._session, **parameters)

    def happened(self, method: str, event: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            self.console.append(f"exception: {details.get('exception', {}).get('description', details['text'])}")
        elif method == "Runtime.consoleAPICalled" and event["type"] in {"error", "warning", "assert"}:
            self.console.append(f"console: {event['args']}")
        elif method == "Log.entryAdded" and event["entry"]["level"] in {"error", "warning"}:
            entry = event["entry"]
            self.console.append(f"{entry['source']}: {entry['text']} {entry.get('url', '')}")
        elif method == "Network.requestWillBeSent":
            self.asked.append(event["request"]["url"])

    # --------------------------------------------------------------------------------------------- how it is seen

    def shape(self, width: int = 1280, height: int = 800, *, dark: bool = False, scale: float = 1) -> None:
        """The size of the window, and what the system's colours are."""
        mobile = width < 600
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile
        )
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        self.send("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    # ------------------------------------------------------------------------------------------- what is done to it

    def go(self, url: str) -> None:
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What an expression is worth; a promise is waited for. Raises `RuntimeError` with the page's own error."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']['exception'].get('description')}")
        return result["result"].get("value")

    def wait(self, expression: str, timeout: float = PATIENCE_S) -> Any:
        """Wait until an expression is true, and return it."""
        try:
            found = f"((found) => found instanceof Node || found)({expression})"
            return eventually(lambda: self.value(found), timeout, what=expression)
        except TimeoutError as late:
            late.add_note(f"console: {self.console}")
            late.add_note(f"page: {self.value('document.body.innerText')[:2000]}")
            raise

    def text(self, selector: str) -> str:
        """The text of an element that is there, or will be."""
        found: str = self.wait(f"document.querySelector({json.dumps(selector)})?.innerText || ''")
        return found

    def count(self, selector: str) -> int:
        found: int = self.value(f"document.querySelectorAll({json.dumps(selector)}).length")
        return found

    def click(self, selector: str, containing: str = "") -> None:
        """Click with the mouse on the middle of the first such element (that contains a text), once it is seen."""
        element = (
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".find((each) => each.innerText.includes({json.dumps(containing)}) && each.getClientRects().length)"
        )
        self.wait(f"Boolean({element})")
        script = f"(() => {{ const found = {element}; found?.scrollIntoView({{block: 'nearest'}});"
        script += " const box = found.getBoundingClientRect();"
        script += " return [box.x + box.width / 2, box.y + Math.min(box.height / 2, 20)]; })()"
        x, y = self.value(script)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def key(self, *names: str) -> None:
        """Press keys, one after the other."""
        for name in names:
            code, text = KEYS[name]
            common = {"key": name, "code": name, "windowsVirtualKeyCode": code}
            self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **common)
            self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        """Type into whatever has the focus."""
        self.send("Input.insertText", text=text)

    def held(self) -> str:
        """What has the focus: tag, class and text."""
        found: str = self.value(
            "(({tagName, className, innerText, ariaLabel}) => `${tagName} ${className} ${ariaLabel ?? innerText}`)"
            "(document.activeElement)"
        )
        return found


@contextlib.contextmanager
def start(folder: Path, space: Space | None = None) -> Iterator[Browser]:
    """A browser in a space, or here; `folder` becomes its home."""
    own = Path(sys.executable).parent
    program = shutil.which("chromium", path=f"{os.environ['PATH']}:{own}")
    if program is None:
        raise RuntimeError("chromium is missing: apt-get install chromium")
    popen: Popen = space.popen if space else subprocess.Popen
    to_read, to_write = os.pipe(), os.pipe()
    ends = (to_write[0], to_read[1])
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in ends]  # out of the way of 3 and 4
    process = popen(
        [sys.executable, "-ISc", SHIM, *map(str, theirs), program, *FLAGS, f"--user-data-dir={folder}"],
        env={**os.environ, "HOME": str(folder)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=theirs,
    )
    for descriptor in (*ends, *theirs):
        os.close(descriptor)
    browser = Browser(process, to_read[0], to_write[1])
    try:
        yield browser
    finally:
        with contextlib.suppress(OSError):
            browser.send("Browser.close")
        for descriptor in (to_read[0], to_write[1]):
            os.close(descriptor)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
