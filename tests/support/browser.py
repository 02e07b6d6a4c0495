"""A real Chromium, driven over its debugging protocol: pages, keys, screenshots, a virtual authenticator. Not a test.

One browser without a profile of its own for each test module; `page()` opens a tab. Where no Chromium is installed, tests
that ask for one are skipped and say so.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest

T = TypeVar("T")
CALL_TIMEOUT_S = 60.0
START_TIMEOUT_S = 60.0
LOOK_TIMEOUT_S = 60.0


def chromium() -> str:
    """The browser's path; skips the test where there is none."""
    text = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if text is None:
        pytest.skip("needs a Chromium: apt-get install chromium")
    return text


class Browser:
    """One headless browser process; `close` ends it. Mutable: the tabs that were opened."""

    def __init__(self) -> None:
        command = chromium()
        self._profile = Path(tempfile.mkdtemp(prefix="fh-browser-"))
        environment = {**os.environ, "HOME": str(self._profile)}
        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
            "--disable-dev-shm-usage", f"--user-data-dir={self._profile}", "--remote-debugging-port=0", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(
            [command, *options], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._port = self._wait_port()
        self._pages: list[Page] = []

    def _wait_port(self) -> int:
        path, until_s = self._profile / "DevToolsActivePort", time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < until_s:
            if path.exists() and (lines := path.read_text().splitlines()):
                return int(lines[0])
            assert self._process.poll() is None, "the browser ended"
            time.sleep(0.1)
        raise TimeoutError("the browser did not start")

    @property
    def pid(self) -> int:
        """Of its first process, which leads the group of all of them."""
        return self._process.pid

    def run(self, work: Any) -> Any:
        """Run a coroutine in the browser's loop to its end."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(CALL_TIMEOUT_S)

    def page(self, url: str = "about:blank", **size: Any) -> Page:
        """Open a tab."""
        page = Page(self, self._port)
        page.resize(**size) if size else None
        page.go(url)
        self._pages.append(page)
        return page

    def close(self) -> None:
        """End the browser and everything it started."""
        for page in self._pages:
            page.close()
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()
        shutil.rmtree(self._profile, ignore_errors=True)


class Page:
    """One tab. Mutable: its connection, and what its console said."""

    def __init__(self, browser: Browser, port: int) -> None:
        self._browser, self._number = browser, 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self.said: list[str] = []
        self._browser.run(self._connect(port))
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    async def _connect(self, port: int) -> None:
        self._session = aiohttp.ClientSession()
        async with self._session.put(f"http://127.0.0.1:{port}/json/new?about:blank") as answer:
            target = await answer.json(content_type=None)
        self._socket = await self._session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0)
        self._reader = asyncio.run_coroutine_threadsafe(self._read(), self._browser.loop)

    def close(self) -> None:
        """Close the tab's connection; the browser's end takes the tab."""

        async def close() -> None:
            await self._socket.close()
            await self._session.close()

        self._browser.run(close())

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._waiting.pop(said["id"]).set_result(said)
            elif said["method"] == "Log.entryAdded":
                self.said.append(said["params"]["entry"]["text"])
            elif said["method"] == "Runtime.exceptionThrown":
                self.said.append(str(said["params"]["exceptionDetails"].get("exception", {}).get("description")))

    def call(self, method: str, **parameters: Any) -> Any:
        """Call the debugging protocol."""

        async def ask() -> Any:
            self._number += 1
            answer = self._waiting[self._number] = self._browser.loop.create_future()
            await self._socket.send_json({"id": self._number, "method": method, "params": parameters})
            return await answer

        said = self._browser.run(ask())
        assert "error" not in said, (method, said)
        return said["result"]

    def js(self, expression: str) -> Any:
        """Evaluate an expression (awaited) as the person's own doing."""
        entry = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in entry, entry["exceptionDetails"]
        return entry["result"].get("value")

    def go(self, url: str) -> None:
        """Load a page; one that differs behind the # alone is loaded all the same."""
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def resize(self, width: int = 1440, height: int = 900, *, dark: bool = False) -> None:
        """Set the window's size and the person's palette; nothing moves, so that no colour is looked at on its way.

        No bar to scroll by takes room: a picture is of the page without it, and would be cut where it stood.
        """
        self.call("Emulation.setScrollbarsHidden", hidden=True)
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        value = "dark" if dark else "light"
        self.call("Emulation.setEmulatedMedia", features=[
            {"name": "prefers-color-scheme", "value": value}, {"name": "prefers-reduced-motion", "value": "reduce"}
        ])  # fmt: skip

    def until(self, expression: str, timeout_s: float = LOOK_TIMEOUT_S) -> Any:
        """Wait until an expression holds; return what it gives."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            if entry := self.js(expression):
                return entry
            time.sleep(0.05)
        raise AssertionError(f"never held: {expression}\n{self.text()}\n{self.said}")

    def text(self) -> str:
        """All text that the page shows."""
        return str(self.js("document.body ? document.body.innerText : ''"))

    def has(self, text: str, timeout_s: float = LOOK_TIMEOUT_S) -> None:
        """Wait until the page shows a text."""
        self.until(f"document.body.innerText.includes({json.dumps(text)})", timeout_s)

    def key(self, name: str, *, shift: bool = False, text: str = "") -> None:
        """Press one key: Tab, Enter, Space, or a letter."""
        codes = {"Tab": 9, "Enter": 13, "Space": 32, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38}
        typed = {"Enter": "\r", "Space": " "}.get(name, text)
        common = {
            "key": " " if name == "Space" else name, "code": name, "windowsVirtualKeyCode": codes.get(name, 0),
            "modifiers": 8 if shift else 0,
        }  # fmt: skip
        self.call("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": typed} if typed else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def tab_to(self, words: str, presses_max: int = 80) -> None:
        """Press Tab until what has the focus says `words`; nothing else is touched."""
        for _ in range(presses_max):
            self.key("Tab")
            if words in str(self.js("(document.activeElement || {}).innerText || ''")):
                return
        raise AssertionError(f"Tab never reached {words!r}: {self.text()}")

    def picture(self, path: Path) -> Path:
        """Keep a picture of the whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 4000), "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path

    def authenticator(self, *, verified: bool = True) -> str:
        """Put a virtual authenticator into the browser, as a laptop has one; return its id."""
        self.call("WebAuthn.enable")
        options = {
            "protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True,
            "isUserVerified": verified, "automaticPresenceSimulation": True,
        }  # fmt: skip
        return str(self.call("WebAuthn.addVirtualAuthenticator", options=options)["authenticatorId"])


def wait_for(look: Callable[[], T], what: str, timeout_s: float = 30.0) -> T:
    """Wait until `look` gives something."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        if answer := look():
            return answer
        time.sleep(0.1)
    raise AssertionError(f"never: {what}")
