"""What the tests of the pages need from the machine: Chromium, Node.js, and a server in a process of its own."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, sync_playwright

from legato.torture.ports import free_port
from machine import program
from processes import bounded

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")

ARGS = [
    "--no-sandbox",  # as root, and in containers, Chromium starts only without it; the pages are our own
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def chromium() -> str:
    """The path of Chromium, installed first where that needs no password. Skips the test if there is none to have."""
    return program("chromium", *CHROMIUM)


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Chromium while the block runs; for fixtures of a module, since Playwright keeps an event loop in this thread."""
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGS, timeout=120_000)
        yield browser
        browser.close()


def node() -> str:
    """The path of Node.js 20 or newer. Skips the test if there is none."""
    found = shutil.which("node")
    version = subprocess.run([found, "--version"], capture_output=True, text=True).stdout if found else ""
    if found is None or not (match := re.match(r"v(\d+)", version)) or int(match[1]) < 20:
        pytest.skip(
            f"Node.js 20 or newer is missing (found {version.strip() or 'none'}); on Debian: apt install nodejs"
        )
    return found


class Server:
    """``legato serve`` in a process of its own, to be killed and started again on the same port and store.

    Args:
        folder: for its store and its log.
        target: the agent file to serve; the guide, with one small document, if None.
        pace: pieces per second of the guide.
    """

    def __init__(self, folder: Path, *, target: Path | None = None, pace: float = 100) -> None:
        self._store = f"sqlite:///{folder / 'chat.db'}"
        self._log = folder / "server.log"
        self._port = free_port()  # nobody else takes it while it is killed
        self._process: subprocess.Popen[str] | None = None
        docs = folder / "docs"
        docs.mkdir(exist_ok=True)
        (docs / "tea.md").write_text("# Tea\n\n**Tea** is made with `water`; see [more](https://tea.test/).\n")
        self._what = [str(target)] if target else ["--docs", str(docs), "--pace", str(pace)]
        self.url = ""
        self.start()

    def start(self) -> None:
        """Start it, and wait until it has said where it listens."""
        command = [
            sys.executable,
            "-m",
            "legato",
            "serve",
            *self._what,
            "--port",
            str(self._port),
            "--store",
            self._store,
        ]
        with self._log.open("a") as log:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._process.stdout is not None
        with bounded(self._process, "address of the server", self._log.read_text):
            for line in self._process.stdout:
                if match := re.search(r"http://[\d.]+:\d+", line):
                    self.url = match[0]
                    return
        raise AssertionError(f"The server did not start:\n{self._log.read_text()}")

    def kill(self) -> None:
        """End it at once (SIGKILL): it has no time for anything."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def get(self, path: str) -> httpx2.Response:
        """An answer of the server."""
        return httpx2.get(self.url + path).raise_for_status()

    def events(self, session: str) -> list[dict[str, object]]:
        """The session's whole log."""
        events: list[dict[str, object]] = []
        after = 0
        while True:
            page = self.get(f"/api/sessions/{session}/events?limit=1000&after={after}").json()
            events += page["events"]
            if page["next"] is None:
                return events
            after = page["next"]

    def text(self, session: str) -> str:
        """What the agent has said in the session, by its log: all pieces of all answers."""
        return "".join(event["data"]["text"] for event in self.events(session) if event["type"] == "text.delta")  # type: ignore[index,misc]


@contextlib.contextmanager
def serving(folder: Path, *, target: Path | None = None, pace: float = 100) -> Iterator[Server]:
    """A server while the block runs."""
    server = Server(folder, target=target, pace=pace)
    try:
        yield server
    finally:
        server.kill()
