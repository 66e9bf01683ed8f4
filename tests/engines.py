"""Browsers of three engines behind one face: Chromium, Firefox and WebKitGTK, which is Safari's engine.

Firefox is asked by WebDriver BiDi, which it speaks itself; WebKit by WebDriver, through Debian's ``WebKitWebDriver``.
(The packages that would do both take a driver for Firefox that no registry has.)
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx2
from websockets.sync.client import ClientConnection, connect

from browser import browsing
from legato.torture.ports import free_port
from machine import program

PREFERENCES = {
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "datareporting.policy.dataSubmissionEnabled": False,
    "extensions.update.enabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "remote.prefs.recommended": True,
    "toolkit.telemetry.enabled": False,
}
FINISHED = "(async () => {{ {body} }})()"


class Engine(Protocol):
    """A browser with one page.

    Attributes:
        name: ``chromium``, ``firefox`` or ``webkit``.
    """

    name: str

    def open(self, url: str) -> None:
        """Go there, and wait until it is loaded."""
        ...

    def run(self, body: str) -> Any:
        """What the body of an async function returns, as JSON."""
        ...

    def wheel(self, x: int, y: int, by: int) -> None:
        """Turn the wheel at this place of the page, by so many pixels downwards."""
        ...

    def type(self, text: str) -> None:
        """Press the keys of a text; a newline is Enter."""
        ...

    def size(self, width: int, height: int) -> None:
        """Give the page about so many pixels."""
        ...

    def shoot(self) -> bytes:
        """What is to be seen, as PNG."""
        ...


class Chromium:
    """See ``Engine``. By Playwright."""

    name = "chromium"

    def __init__(self, browser: Any, dark: bool) -> None:
        self.page = browser.new_page(color_scheme="dark" if dark else "light")

    def open(self, url: str) -> None:
        """See ``Engine``."""
        self.page.goto(url)

    def run(self, body: str) -> Any:
        """See ``Engine``."""
        return self.page.evaluate(FINISHED.format(body=body))

    def wheel(self, x: int, y: int, by: int) -> None:
        """See ``Engine``."""
        self.page.mouse.move(x, y)
        self.page.mouse.wheel(0, by)

    def type(self, text: str) -> None:
        """See ``Engine``."""
        for letter in text:
            self.page.keyboard.press("Enter" if letter == "\n" else letter)

    def size(self, width: int, height: int) -> None:
        """See ``Engine``."""
        self.page.set_viewport_size({"width": width, "height": height})

    def shoot(self) -> bytes:
        """See ``Engine``."""
        shot: bytes = self.page.screenshot()
        return shot


def _keys(text: str) -> list[dict[str, Any]]:
    """The actions that press the keys of a text."""
    values = ["\ue007" if letter == "\n" else letter for letter in text]
    pressed = [{"type": kind, "value": value} for value in values for kind in ("keyDown", "keyUp")]
    return [{"type": "key", "id": "keys", "actions": pressed}]


def _wheel(x: int, y: int, by: int) -> list[dict[str, Any]]:
    turned = {"type": "scroll", "x": x, "y": y, "deltaX": 0, "deltaY": by}
    return [{"type": "wheel", "id": "wheel", "actions": [turned]}]


class Firefox:
    """See ``Engine``. By WebDriver BiDi."""

    name = "firefox"

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self.ask("session.new", capabilities={})
        self._context = self.ask("browsingContext.getTree")["contexts"][0]["context"]

    def ask(self, method: str, **params: Any) -> Any:
        """What a command gives."""
        id = next(self._ids)
        self._socket.send(json.dumps({"id": id, "method": method, "params": params}))
        while (answer := json.loads(self._socket.recv(timeout=60))).get("id") != id:
            pass
        assert answer["type"] == "success", answer
        return answer["result"]

    def open(self, url: str) -> None:
        """See ``Engine``."""
        self.ask("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def run(self, body: str) -> Any:
        """See ``Engine``."""
        expression = f"{FINISHED.format(body=body)}.then((value) => JSON.stringify(value ?? null))"
        target = {"context": self._context}
        answer = self.ask(
            "script.evaluate", expression=expression, target=target, awaitPromise=True, userActivation=True
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    def act(self, actions: list[dict[str, Any]]) -> None:
        """Do something with keys and pointers."""
        self.ask("input.performActions", context=self._context, actions=actions)

    def wheel(self, x: int, y: int, by: int) -> None:
        """See ``Engine``."""
        self.act(_wheel(x, y, by))

    def type(self, text: str) -> None:
        """See ``Engine``."""
        self.act(_keys(text))

    def size(self, width: int, height: int) -> None:
        """See ``Engine``."""
        self.ask("browsingContext.setViewport", context=self._context, viewport={"width": width, "height": height})

    def shoot(self) -> bytes:
        """See ``Engine``."""
        return base64.b64decode(self.ask("browsingContext.captureScreenshot", context=self._context)["data"])

    def printed(self) -> bytes:
        """The page on paper, as PDF."""
        return base64.b64decode(self.ask("browsingContext.print", context=self._context)["data"])


class WebKit:
    """See ``Engine``. By WebDriver."""

    name = "webkit"

    def __init__(self, driver: httpx2.Client, browser: str) -> None:
        self._driver = driver
        options = {"binary": browser, "args": ["--automation"]}
        capabilities = {"alwaysMatch": {"webkitgtk:browserOptions": options}}
        self._session = self.ask("POST", "/session", capabilities=capabilities)["sessionId"]
        self.ask("POST", f"/session/{self._session}/timeouts", script=60_000)

    def ask(self, method: str, path: str, **body: Any) -> Any:
        """What a command gives."""
        answer = self._driver.request(method, path, json=body if method == "POST" else None)
        assert answer.is_success, answer.text
        return answer.json()["value"]

    def _do(self, command: str, **body: Any) -> Any:
        return self.ask("POST", f"/session/{self._session}/{command}", **body)

    def open(self, url: str) -> None:
        """See ``Engine``."""
        self._do("url", url=url)

    def run(self, body: str) -> Any:
        """See ``Engine``."""
        script = (
            "const done = arguments[arguments.length - 1];"
            f"{FINISHED.format(body=body)}.then("
            "(value) => done({value: value ?? null}), (error) => done({error: String(error)}));"
        )
        answer = self._do("execute/async", script=script, args=[])
        assert "error" not in answer, answer
        return answer["value"]

    def wheel(self, x: int, y: int, by: int) -> None:
        """See ``Engine``."""
        self._do("actions", actions=_wheel(x, y, by))

    def type(self, text: str) -> None:
        """See ``Engine``."""
        self._do("actions", actions=_keys(text))

    def size(self, width: int, height: int) -> None:
        """See ``Engine``."""
        self._do("window/rect", width=width, height=height)

    def shoot(self) -> bytes:
        """See ``Engine``."""
        return base64.b64decode(self.ask("GET", f"/session/{self._session}/screenshot"))

    def close(self) -> None:
        """Close its window."""
        self.ask("DELETE", f"/session/{self._session}")


PATIENCE = 60.0
"""Seconds; a safety net."""


@contextlib.contextmanager
def _process(*command: str, said: str = "()", env: dict[str, str] | None = None) -> Iterator[str]:
    """A process, from when it has said this until it is ended: what it said, by the first group of the expression."""
    with (
        tempfile.NamedTemporaryFile() as output,  # a pipe that nobody reads would hold it up
        subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(env or {})}) as process,
    ):
        try:
            until = time.monotonic() + PATIENCE
            while not (found := re.search(said, text := Path(output.name).read_text(errors="replace"), re.MULTILINE)):
                assert process.poll() is None, f"It ended before it could be asked anything: {text}"
                assert time.monotonic() < until, f"It cannot be asked anything: {text}"
                time.sleep(0.02)
            yield found[1]
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


@contextlib.contextmanager
def chromium(*, dark: bool = False) -> Iterator[Chromium]:
    """Chromium, with a profile of its own."""
    with browsing() as browser:
        yield Chromium(browser, dark)


@contextlib.contextmanager
def firefox(*, dark: bool = False, **preferences: Any) -> Iterator[Firefox]:
    """Firefox, with a profile of its own; ``preferences`` have ``__`` for dots. Skips the test if there is none."""
    path = program("firefox-esr", "firefox-esr", "firefox")
    wanted = {**PREFERENCES, "layout.css.prefers-color-scheme.content-override": 0 if dark else 1}
    wanted |= {name.replace("__", "."): value for name, value in preferences.items()}
    with tempfile.TemporaryDirectory(prefix="legato-firefox-", ignore_cleanup_errors=True) as profile:
        lines = (f"user_pref({json.dumps(name)}, {json.dumps(value)});\n" for name, value in wanted.items())
        (Path(profile) / "user.js").write_text("".join(lines), "utf-8")
        command = (path, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port=0", "about:blank")
        settings = {"HOME": profile, "MOZ_HEADLESS_WIDTH": "1280", "MOZ_HEADLESS_HEIGHT": "800"}
        with (
            _process(*command, said=r"BiDi listening on (ws://\S+)\n", env=settings) as address,
            connect(f"{address}/session", max_size=None, open_timeout=PATIENCE, ping_interval=None) as socket,
        ):
            yield Firefox(socket)


@contextlib.contextmanager
def webkit() -> Iterator[WebKit]:
    """WebKitGTK's small browser on a screen that nobody sees. Skips the test if there is none to have."""
    path = program("webkit2gtk-driver", "WebKitWebDriver")
    screen = program("xvfb", "Xvfb")
    browsers = sorted(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"))
    assert browsers, "The package of WebKit has no MiniBrowser."
    port = free_port()
    shown = ("-displayfd", "1", "-screen", "0", "1600x1200x24", "-nolisten", "tcp")
    with (
        _process(screen, *shown, said=r"^(\d+)\n") as number,
        _process(path, f"--port={port}", env={"DISPLAY": f":{number}", "LIBGL_ALWAYS_SOFTWARE": "1"}),
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=90) as driver,
    ):
        until = time.monotonic() + PATIENCE
        while True:
            try:
                driver.get("/status")
                break
            except httpx2.TransportError:
                assert time.monotonic() < until, "WebKitWebDriver does not answer."
                time.sleep(0.05)
        browser = WebKit(driver, str(browsers[-1]))
        yield browser
        browser.close()
