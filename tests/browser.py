"""Open a page in headless Chromium and ask it what it sees; speaks the DevTools protocol over a websocket.

Not a test module: helpers for those that have a page. Needs the `chromium` package of Debian, or Chrome.
"""

import base64
import contextlib
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
START = 60.0  # [s] on a busy machine
LOOK = """(async () => {
  window.scrollTo(0, document.body.scrollHeight);
  const images = [...document.images];
  images.forEach(i => i.loading = 'eager');
  await Promise.all(images.map(i => i.decode().catch(() => null)));
  const videos = [...document.querySelectorAll('video')];
  window.scrollTo(0, 0);
  return JSON.stringify({
    images: images.length,
    unloaded: images.filter(i => !i.complete || i.naturalWidth === 0).map(i => i.alt)
      .concat(videos.filter(v => v.error).map(v => 'video')),
    width: document.documentElement.scrollWidth,
    height: document.documentElement.scrollHeight,
    dark: matchMedia('(prefers-color-scheme: dark)').matches,
    background: getComputedStyle(document.body).backgroundColor,
  });
})()"""


@dataclass(frozen=True)
class Seen:
    """What the browser found on a page."""

    errors: list[str]  # of the console, of scripts, and of anything that was asked for over the network
    images: int
    unloaded: list[str]  # what could not be decoded
    document_width: int  # [px]
    height: int  # [px]
    dark: bool
    background: str


def find_browser() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


def check_page(page: Path, *, width: int, dark: bool, picture: Path | None = None) -> Seen:
    """Open the page at a width and in a colour scheme; `picture` also saves a screenshot of all of it."""
    with tab(width=width) as opened:
        return opened.look(page, width, dark, picture)


@contextlib.contextmanager
def tab(*, width: int) -> "Iterator[Tab]":
    """A tab of a browser of its own, which ends with the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [
            str(find_browser()), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--hide-scrollbars", "--no-first-run", "--mute-audio", "--remote-debugging-port=0",
            f"--user-data-dir={profile}", f"--window-size={width},900", "about:blank",
        ]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = _port(Path(profile), process)
            with connect(_target(port), max_size=2**28, open_timeout=START) as pipe:
                yield Tab(pipe)
        finally:
            process.terminate()
            process.wait(20)


def _port(profile: Path, process: "subprocess.Popen[bytes]") -> int:
    deadline = time.monotonic() + START
    file = profile / "DevToolsActivePort"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the browser ended with status {process.returncode}")
        if file.is_file() and file.read_text().strip():
            return int(file.read_text().split()[0])
        time.sleep(0.05)
    raise RuntimeError("the browser did not open its port")


def _target(port: int) -> str:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=START) as answer:
        return next(t["webSocketDebuggerUrl"] for t in json.load(answer) if t["type"] == "page")


class Navigated(RuntimeError):
    """The page was left while it was asked something."""


class Tab:
    """One tab: commands and the events that came meanwhile."""

    def __init__(self, pipe: ClientConnection) -> None:
        self.pipe, self.number = pipe, 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.pipe.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.pipe.recv(timeout=120))
            if message.get("id") == self.number:
                if "navigated" in message.get("error", {}).get("message", ""):
                    raise Navigated(method)
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def wait_for(self, method: str) -> None:
        while not any(e.get("method") == method for e in self.events):
            self.events.append(json.loads(self.pipe.recv(timeout=120)))

    def look(self, page: Path, width: int, dark: bool, picture: Path | None) -> Seen:
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._size(width, 900)
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("Page.loadEventFired")
        answer = self.call("Runtime.evaluate", expression=LOOK, awaitPromise=True, returnByValue=True)
        found = json.loads(answer["result"]["value"])
        if picture is not None:
            self._size(width, min(found["height"], 16_000))
            shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=False)
            picture.write_bytes(base64.b64decode(shot["data"]))
        return Seen(
            self.errors,
            found["images"],
            found["unloaded"],
            found["width"],
            found["height"],
            found["dark"],
            found["background"],
        )

    def open(self, page: Path) -> None:
        """Go to a page on disk and wait until it is loaded; errors of every page are in `errors`."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def write(self, selector: str, text: str) -> None:
        """Click into a field and type."""
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.ask(f"document.querySelector({json.dumps(selector)}).focus()")
        for letter in text:
            self.call("Input.dispatchKeyEvent", type="keyDown", text=letter, key=letter)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=letter)

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_until(self, expression: str, seconds: float = START) -> None:
        """Until a JavaScript expression is true; fails after so many seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(Navigated):
                if self.ask(f"Boolean({expression})"):
                    return
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}")

    @property
    def errors(self) -> list[str]:
        """Of the console, of scripts, and of anything that was asked for over the network."""
        return [e for e in map(_error, self.events) if e]

    def _size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)


def _error(event: dict[str, Any]) -> str:
    """The sentence of an event that is an error, else ""."""
    method, p = event.get("method"), event.get("params", {})
    if method == "Log.entryAdded" and p["entry"]["level"] in ("error", "warning"):
        return str(p["entry"]["text"])
    if method == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert"):
        return str(p["args"])
    if method == "Runtime.exceptionThrown":
        return str(p["exceptionDetails"].get("text"))
    if method == "Network.loadingFailed":
        return f"loading failed: {p.get('errorText')}"
    if method == "Network.requestWillBeSent" and not p["request"]["url"].startswith(("data:", "file:")):
        return f"asked for {p['request']['url'][:120]}"
    return ""
