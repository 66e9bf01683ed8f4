"""The library that Deva's SDK streams with, unmodified, in Node.js and in Chromium, against a real server process.

Around it are the request and the handlers of Deva's documentation (``realsdk/deva_hook.mjs``). Whatever the library
does by itself, the message is answered once, and the text that the user sees only ever grows.
"""

from __future__ import annotations

import http.server
import json
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page

from browser import browsing, node
from legato.torture.ports import free_port
from live_server import cutting
from node_packages import package
from processes import Server, running
from realsdk.deva_agents import WORDS

LIBRARY = "@microsoft/fetch-event-source@2.0.1"
REALSDK = Path(__file__).parent / "realsdk"
SHORT = ["One é🎵\n\n", "One é🎵\n\ntwo ", 'One é🎵\n\ntwo "three"']
WALK = "".join(WORDS)
States = list[dict[str, Any]]


def serve(store: str = "memory:", port: str = "0") -> Any:
    agent = f"{REALSDK / 'deva_agents.py'}:agent"
    return running("legato", "serve", agent, "--port", port, "--store", store, "--grace", "0")


class Thread:
    """A thread on the server, as this test looks at it from outside."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.id = str(httpx2.post(f"{url}/api/sdk/chat").json()["id"])

    def send(self, text: str) -> str:
        return str(httpx2.post(f"{self.url}/api/sdk/chat/{self.id}/messages", json={"text": text}).json()["id"])

    def path(self, message: str) -> str:
        return f"/api/sdk/chat/{self.id}/messages/{message}/query/stream"

    def read(self, message: str) -> str:
        """The whole answer, from an uncut connection."""
        return httpx2.post(self.url + self.path(message), timeout=60).raise_for_status().text

    def events(self) -> list[dict[str, Any]]:
        answer = httpx2.get(f"{self.url}/api/sessions/{self.id}/events?limit=1000").json()
        return list(answer["events"])

    def generations(self) -> int:
        """How often an agent was asked, attempts after a crash not counted."""
        return sum(event["type"] == "message.created" for event in self.events())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serve() as server:
        yield server


@pytest.fixture
def thread(server: Server) -> Thread:
    return Thread(server.url)


def options(thread: Thread, message: str, url: str = "") -> dict[str, str]:
    return {"baseUrl": url or thread.url, "threadId": thread.id, "messageId": message}


def read(thread: Thread, message: str, *, mode: str = "read", url: str = "", left: str = "") -> States:
    """All states of the hook in Node.js."""
    return states(start(thread, message, mode=mode, url=url, left=left))


def start(thread: Thread, message: str, *, mode: str = "read", url: str = "", left: str = "") -> subprocess.Popen[str]:
    arguments = [str(package(LIBRARY)), mode, json.dumps({**options(thread, message, url), "left": left})]
    command = [node(), str(REALSDK / "deva_driver.mjs"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def states(process: subprocess.Popen[str]) -> States:
    try:
        said, wrong = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0, wrong
    return list(json.loads(said))


def grows(seen: States, whole: str) -> None:
    """The text was only ever added to, and is whole in the end."""
    texts = [state["message"]["text"] for state in seen]
    assert [text for text in texts if not whole.startswith(text)] == []
    assert sorted(texts, key=len) == texts
    assert texts[-1] == whole
    last = seen[-1]
    assert (last["isDone"], last["isStreaming"], last["error"]) == (True, False, None)
    assert last["message"]["author_type"] == "BOT"


# Node.js --------------------------------------------------------------------------------------------------------------


def test_the_documented_handlers_read_an_answer(thread: Thread) -> None:
    """Piece by piece, then the whole message in the documented form; a second reading gives the same."""
    message = thread.send("short")
    seen = read(thread, message)
    assert [state["message"]["text"] for state in seen] == [*SHORT, SHORT[-1]]
    whole = seen[-1]["message"]
    assert {name: type(whole[name]).__name__ for name in ("id", "persona_id", "thread_id", "created_at")} == {
        "id": "str", "persona_id": "str", "thread_id": "str", "created_at": "int",
    }  # fmt: skip
    assert read(thread, message)[-1] == seen[-1]
    assert thread.generations() == 1


def test_an_answer_that_fails_is_an_error_after_its_text(thread: Thread) -> None:
    """Read again it is the same failure; only an explicit retry asks the agent again."""
    message = thread.send("fail")
    seen = read(thread, message)
    assert seen[-1]["message"]["text"] == "".join(WORDS[:3])
    assert json.loads(seen[-1]["error"]) == {"code": "no", "message": "No.", "retryable": True}
    assert (seen[-1]["isDone"], read(thread, message)[-1], thread.generations()) == (True, seen[-1], 1)
    httpx2.post(f"{thread.url}/api/sdk/chat/{thread.id}/messages/{message}/retry").raise_for_status()
    assert (read(thread, message)[-1], thread.generations()) == (seen[-1], 2)


@pytest.mark.parametrize("mode", ["hide", "twice", "leave"])
def test_what_a_user_does_in_between_costs_nothing(thread: Thread, mode: str, tmp_path: Path) -> None:
    """The tab hidden and shown again, a component mounted twice, away and back: one answer, its text in one piece."""
    left = str(tmp_path / "left")
    message = thread.send(f"until {left}" if mode == "leave" else "walk")
    grows(read(thread, message, mode=mode, left=left), WALK)
    assert thread.generations() == 1


class Cuts:
    """Lets each connection through up to a place in its answer; where that is, is measured with the same request.

    Args:
        server: the one behind.
        beyond: of the second frame, how much comes too: a share of it.

    Attributes:
        cursors: what the connections began with.
    """

    def __init__(self, server: Server, *, beyond: float = 0.0) -> None:
        self._server = server
        self._beyond = beyond
        self.cursors: list[str] = []

    def __call__(self, request: bytes) -> int | None:
        if not request.startswith(b"POST"):
            return None  # the browser's preflight
        found = re.search(rb"\r\nlast-event-id: (\S+)", request, re.IGNORECASE)
        self.cursors.append(found[1].decode() if found else "")
        answer = self._raw(request)
        border = answer.index(b"\n\n", answer.index(b"\r\n\r\n") + 4) + 2
        second = answer.find(b"\n\n", border) + 2
        return border + (int((second - border) * self._beyond) if second > border else 0)

    def _raw(self, request: bytes) -> bytes:
        host, port = self._server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            return b"".join(iter(lambda: connection.recv(65536), b""))


def ids(answer: str) -> list[str]:
    return re.findall(r"^id: (.*)$", answer, re.MULTILINE)


@pytest.mark.parametrize("beyond", [0.0, 0.2, 0.7])
def test_a_drop_after_every_frame(server: Server, thread: Thread, beyond: float) -> None:
    """The library comes back to each next frame, also when half of that one had come already."""
    message = thread.send("short")
    whole = ids(thread.read(message))
    cuts = Cuts(server, beyond=beyond)
    with cutting(server.url, cuts, announced=False) as proxy:
        seen = read(thread, message, url=proxy)
    assert [state["message"]["text"] for state in seen] == [*SHORT, SHORT[-1]]
    assert cuts.cursors == ["", *whole[:-1]]
    assert thread.generations() == 1


def test_drops_while_the_answer_is_given(server: Server, thread: Thread) -> None:
    """After so many bytes each time, wherever that is."""
    sizes = iter(range(500, 5000, 130))
    with cutting(server.url, lambda _: next(sizes, None), announced=False) as proxy:
        message = thread.send("walk")
        seen = read(thread, message, url=proxy)
    assert seen[-1]["message"]["text"] == WALK
    assert thread.generations() == 1


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_server_that_ends_in_the_middle(end: signal.Signals, tmp_path: Path) -> None:
    """Killed, or told to stop so that another one can be deployed, while the library goes on trying: it does not take
    the end of the stream for the end of the answer, and the text goes on where it stopped."""
    store = f"sqlite:///{tmp_path / 'l.db'}"
    port = str(free_port())
    with serve(store, port) as server:
        thread = Thread(server.url)
        message = thread.send("stand")
        process = start(thread, message)
        while sum(event["type"] == "text.delta" for event in thread.events()) < 10:
            pass
        server.process.send_signal(end)
        server.stopped()
    with serve(store, port):
        grows(states(process), WALK)
        assert thread.generations() == 1
        assert [event["data"]["attempt"] for event in thread.events() if event["type"] == "run.started"] == [1, 2]


# Chromium -------------------------------------------------------------------------------------------------------------

PAGE = b"""<!doctype html><title>Deva</title><script type="module">
import { fetchEventSource } from '/library/index';
import { read } from '/deva_hook.mjs';

const later = window.setTimeout; // the library waits for a second or more before it comes back; here, for a moment
window.setTimeout = (callback, delay) => later(callback, Math.min(delay, 20));
let hidden = false; // a page without a window cannot be hidden otherwise
Object.defineProperty(document, 'hidden', { get: () => hidden });
window.show = (shown) => {
  hidden = !shown;
  document.dispatchEvent(new Event('visibilitychange'));
};
window.states = [];
window.readAnswer = (options, enough) =>
  read(fetchEventSource, { accessToken: 'token', ...options, rendered: (state) => window.states.push(state) }, enough);
</script>"""


class Files(http.server.BaseHTTPRequestHandler):
    """The page, its hook, and the library as npm has it: ES modules that import each other without an ending."""

    def do_GET(self) -> None:
        name = self.path.strip("/")
        library = package(LIBRARY) / "node_modules/@microsoft/fetch-event-source/lib/esm"
        if name == "":
            self._answer("text/html", PAGE)
        elif name == "deva_hook.mjs":
            self._answer("text/javascript", (REALSDK / name).read_bytes())
        elif re.fullmatch(r"library/\w+", name):
            self._answer("text/javascript", (library / f"{name.removeprefix('library/')}.js").read_bytes())
        else:
            self.send_error(404)

    def _answer(self, type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-type", type)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def site() -> Iterator[str]:
    """The address of the page: another origin than the API's."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{files.server_port}"
        files.shutdown()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    package(LIBRARY)
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with site() as address, browser.new_context() as context:
        context.set_default_timeout(60_000)
        page = context.new_page()
        page.goto(address)
        page.wait_for_function("window.readAnswer !== undefined")
        yield page


READ = "options => readAnswer(options)"


def test_a_browser_on_another_origin(page: Page, thread: Thread) -> None:
    """Preflight included, the documented handlers read the answer."""
    message = thread.send("short")
    seen = page.evaluate(READ, options(thread, message))
    assert [state["message"]["text"] for state in seen] == [*SHORT, SHORT[-1]]


def test_a_drop_after_every_frame_in_a_browser(page: Page, server: Server, thread: Thread) -> None:
    """The cursor's header passes the preflight, and the library comes back to the next frame.

    What a broken connection has brought, Chromium may throw away; then the library asks for it once more.
    """
    message = thread.send("short")
    whole = ids(thread.read(message))
    cuts = Cuts(server, beyond=0.5)
    with cutting(server.url, cuts, announced=False) as proxy:
        seen = page.evaluate(READ, options(thread, message, proxy))
    assert [state["message"]["text"] for state in seen] == [*SHORT, SHORT[-1]]
    assert list(dict.fromkeys(cuts.cursors)) == ["", *whole[:-1]]
    assert thread.generations() == 1


def test_a_tab_that_is_hidden_and_shown(page: Page, thread: Thread) -> None:
    """The library lets go of the stream and asks for it anew, which costs nothing and doubles nothing."""
    message = thread.send("walk")
    page.evaluate("options => void (window.answer = readAnswer(options))", options(thread, message))
    for count in (3, 9, 15):
        page.wait_for_function("count => states.length >= count", arg=count)
        page.evaluate("show(false)")
        there = thread.events()[-1]["offset"]
        while thread.events()[-1]["offset"] == there and thread.events()[-1]["type"] != "run.completed":
            pass
        page.evaluate("show(true)")
    grows(page.evaluate("answer"), WALK)
    assert thread.generations() == 1


def test_two_tabs_and_one_that_comes_back(page: Page, browser: Browser, thread: Thread) -> None:
    """One reads on, one walks away at the first word and opens the answer again."""
    message = thread.send("walk")
    page.evaluate("options => void (window.answer = readAnswer(options))", options(thread, message))
    with browser.new_context() as context:
        other = context.new_page()
        other.goto(page.url)
        other.wait_for_function("window.readAnswer !== undefined")
        other.evaluate("options => readAnswer(options, () => true)", options(thread, message))
        grows(other.evaluate(READ, options(thread, message)), WALK)
    grows(page.evaluate("answer"), WALK)
    assert thread.generations() == 1


def test_a_server_that_dies_under_a_browser(page: Page, tmp_path: Path) -> None:
    """Killed in the middle and started again: the text on the page goes on."""
    store = f"sqlite:///{tmp_path / 'l.db'}"
    port = str(free_port())
    with serve(store, port) as server:
        thread = Thread(server.url)
        message = thread.send("stand")
        page.evaluate("options => void (window.answer = readAnswer(options))", options(thread, message))
        page.wait_for_function("states.length >= 10")
        server.process.send_signal(signal.SIGKILL)
        server.stopped()
    with serve(store, port):
        grows(page.evaluate("answer"), WALK)
        assert thread.generations() == 1
