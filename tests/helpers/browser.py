"""Headless Chromium, steered through chromedriver's plain HTTP interface (WebDriver)."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
ARROW_DOWN, ARROW_RIGHT, ENTER, TAB = "\ue015", "\ue014", "\ue007", "\ue004"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--window-size=1280,1000",
            "--host-resolver-rules=MAP * ~NOTFOUND")  # fmt: skip


class Browser:
    """One page in a browser that resolves no host name."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"

    def call(self, method: str, path: str, **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self.root + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def open(self, page: Path, profile: Path) -> None:
        options = {"binary": CHROMIUM, "args": [*SWITCHES, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self.call("POST", "/session", capabilities={"alwaysMatch": wanted})
        self.root += f"/session/{session['sessionId']}"
        self.call("POST", "/url", url=page.resolve().as_uri())

    def run(self, script: str) -> Any:
        return self.call("POST", "/execute/sync", script=script, args=[])

    def find(self, selector: str) -> Any:
        return self.call("POST", "/element", using="css selector", value=selector)

    def hover(self, selector: str) -> None:
        move = {"type": "pointerMove", "duration": 0, "origin": self.find(selector), "x": 0, "y": 0}
        self._act({"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move]})

    def click(self, selector: str) -> None:
        self.call("POST", f"/element/{self.find(selector)[ELEMENT]}/click")

    def press(self, *keys: str) -> None:
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._act({"type": "key", "id": "keyboard", "actions": strokes})

    def _act(self, source: dict[str, Any]) -> None:
        self.call("POST", "/actions", actions=[source])

    def console(self) -> list[str]:
        """What the page complained of."""
        entries = self.call("POST", "/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))


@contextmanager
def opened(page: Path, profile: Path) -> Iterator[Browser]:
    """The page in a browser of its own, which ends with the block."""
    assert DRIVER is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    browser = Browser(port)
    try:
        for _ in range(300):
            try:
                if browser.call("GET", "/status")["ready"]:
                    break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        browser.open(page, profile)
        yield browser
    finally:
        try:
            browser.call("DELETE", "")
        except (urllib.error.URLError, ConnectionError):
            pass
        driver.terminate()
        driver.wait(timeout=20)
