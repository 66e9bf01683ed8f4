"""Chromium on a stranger's page: it gets nothing from the default server, and nothing of a signed-in user's.

The stranger is another site (a name of its own), a page in a sandbox, a page of a name that was rebound to the server,
and another server on the user's own machine. What they send does reach ours, which is looked at: it is the server that
refuses, and not the browser alone. And the sign-in of the pages themselves: by a key, and out again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from browser import ARGS, chromium
from legato import Legato
from legato.auth import APIKeys
from legato.auth.keys import add_key, new_key
from legato.store.memory import MemoryStore
from live_server import serving

SECRET = "the tea is in the attic"

ATTACKS = (Path(__file__).parent / "web" / "stranger.js").read_text("utf-8")


class Recorder:
    """What a server is asked, and how it answers."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.seen: list[tuple[str, str, int, str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def note(message: Any) -> None:
            if message["type"] == "http.response.start":
                origin = dict(scope["headers"]).get(b"origin", b"").decode()
                self.seen.append((scope["method"], scope["path"], message["status"], origin))
            await send(message)

        await self.app(scope, receive, note if scope["type"] == "http" else send)


class Target(NamedTuple):
    """A server with a session of somebody's.

    Attributes:
        key: what signs its owner in; "" of an open server.
        asked: how often its agent was.
    """

    url: str
    recorder: Recorder
    store: MemoryStore
    session: str
    key: str
    asked: list[str]

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0


def serve(signed: bool) -> Iterator[Target]:
    store, asked = MemoryStore(), []

    async def agent(turn: Any) -> str:
        asked.append(turn.message.text)
        return SECRET

    app = Legato(store, agents=[agent], auth=APIKeys() if signed else None)
    app.drain_on_signal = False
    recorder, key = Recorder(app), ""
    if signed:
        import asyncio

        key, kept = new_key("alice")
        asyncio.run(add_key(store, kept))
    with serving(recorder) as url:
        headers = {"authorization": f"Bearer {key}"} if signed else {}
        with httpx2.Client(base_url=url, headers=headers, trust_env=False) as client:
            session = client.post("/api/sessions", json={"title": SECRET}).json()["id"]
            client.post(f"/api/sessions/{session}/messages", json={"text": "hello"})
            while not any(
                message["role"] == "assistant" for message in client.get(f"/api/sessions/{session}/messages").json()
            ):
                pass
        yield Target(url, recorder, store, session, key, asked)


@pytest.fixture(scope="module")
def opened() -> Iterator[Target]:
    yield from serve(signed=False)


@pytest.fixture(scope="module")
def signed() -> Iterator[Target]:
    yield from serve(signed=True)


@pytest.fixture(scope="module")
def stranger() -> Iterator[str]:
    """Pages of somebody else, at any name that leads here."""

    box = '<iframe sandbox="allow-scripts" srcdoc="<body></body>"></iframe>'

    def page(request: Any) -> HTMLResponse:
        return HTMLResponse(f"<title>Stranger</title><body>{box if 'box' in request.url.query else ''}</body>")

    with serving(Starlette(routes=[Route("/{path:path}", page)])) as url:
        yield url


@pytest.fixture(scope="module")
def browser(opened: Target, signed: Target, stranger: str) -> Iterator[Browser]:
    """In which ``evil.test`` is the stranger's, and ``rebound.test`` leads to wherever its port does."""
    port = urlsplit(stranger).port
    rules = f"--host-resolver-rules=MAP evil.test:80 127.0.0.1:{port}, MAP rebound.test 127.0.0.1"
    # What Chromium itself keeps from loopback is to reach the server here.
    unguarded = "--disable-features=LocalNetworkAccessChecks,PrivateNetworkAccessSendPreflights,PrivateNetworkAccess"
    path = chromium()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=[*ARGS, rules, unguarded], timeout=120_000)
        yield browser
        browser.close()


def sign_in(context: BrowserContext, target: Target) -> None:
    page = context.new_page()
    page.goto(target.url)
    page.get_by_label("Your key").fill(target.key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_text("Signed in as alice")).to_be_visible()
    page.close()


def stranger_at(context: BrowserContext, where: str, target: Target, stranger: str) -> Any:
    """Where a stranger's script runs: a page, or a frame in it."""
    page = context.new_page()
    if where == "rebound":
        url = f"http://rebound.test:{target.port}/"
        # What the page was before its name led elsewhere.
        page.route(url, lambda route: route.fulfill(body="<body></body>", content_type="text/html"))
        page.goto(url)
        page.unroute(url)
        return page
    if where == "another server of this machine":
        page.goto(stranger)
        return page
    page.goto("http://evil.test/?box" if where == "sandbox" else "http://evil.test/")
    return page.frames[1] if where == "sandbox" else page


def heads(target: Target) -> dict[str, int]:
    return {session: log.state.head for session, log in target.store._logs.items()}


WHERE = ["another site", "sandbox", "rebound", "another server of this machine"]


@pytest.mark.parametrize(
    ("kind", "where"),
    # Pages on this machine may call an open server, as docs/deploy.md says.
    [("signed in", where) for where in WHERE] + [("default", where) for where in WHERE[:3]],
)
def test_a_strangers_page_gets_nothing(
    browser: Browser, opened: Target, signed: Target, stranger: str, kind: str, where: str
) -> None:
    """Reads nothing, changes nothing, begins nothing; whatever it tries, with cookies or without."""
    target = signed if kind == "signed in" else opened
    with browser.new_context() as context:
        if target.key:
            sign_in(context, target)
        script = stranger_at(context, where, target, stranger)
        before, asked = heads(target), len(target.asked)
        target.recorder.seen.clear()
        base = f"http://rebound.test:{target.port}" if where == "rebound" else target.url
        credentials = "include" if target.key else "omit"
        got = script.evaluate(ATTACKS, {"base": base, "session": target.session, "credentials": credentials})
        assert len(got) > 60
        assert SECRET not in json.dumps(got)
        assert target.session not in [text.partition(": ")[2] for text in got]
        assert not [text for text in got if ": 2" in text], got

        assert heads(target) == before
        assert len(target.asked) == asked
        # A page on this machine may ask whether it may call.
        reached = {each for each in target.recorder.seen if each[1] != "/" and each[0] != "OPTIONS"}
        assert len(reached) > 15
        assert {status for _, _, status, _ in reached} <= {400, 401, 403, 405, 415, 421}, reached


def test_a_stranger_signs_nobody_out(browser: Browser, signed: Target, stranger: str) -> None:
    """After all of it the page is the user's still."""
    with browser.new_context() as context:
        sign_in(context, signed)
        script = stranger_at(context, "another server of this machine", signed, stranger)
        script.evaluate(
            "base => fetch(base + '/api/auth/sign-out', { method: 'POST', mode: 'no-cors', credentials: 'include' })"
            ".catch(() => null)",
            signed.url,
        )
        page = context.new_page()
        page.goto(signed.url)
        expect(page.get_by_text("Signed in as alice")).to_be_visible()


# Our own pages --------------------------------------------------------------------------------------------------------


def test_the_page_signs_in_and_out(browser: Browser, signed: Target) -> None:
    """A wrong key is said so; no script finds the right one; a chat works; and after signing out nothing does."""
    errors: list[str] = []
    with browser.new_context() as context:
        context.on("weberror", lambda error: errors.append(str(error.error)))
        page = context.new_page()
        page.goto(signed.url)
        page.get_by_label("Your key").fill("nonsense")
        page.get_by_role("button", name="Sign in").click()
        expect(page.get_by_role("alert")).to_contain_text("no key")
        page.get_by_label("Your key").fill(signed.key)
        page.keyboard.press("Enter")
        expect(page.get_by_text("Signed in as alice")).to_be_visible()
        expect(page.get_by_role("link", name=SECRET)).to_be_visible()
        everywhere = "document.cookie + JSON.stringify({ ...localStorage }) + JSON.stringify({ ...sessionStorage })"
        assert signed.key not in page.evaluate(f"{everywhere} + document.documentElement.outerHTML")
        [cookie] = context.cookies()
        assert (cookie["name"], cookie["httpOnly"], cookie["sameSite"]) == ("legato", True, "Lax")

        page.get_by_role("textbox").fill("and now?")
        page.get_by_role("textbox").press("Enter")
        expect(page.get_by_text(SECRET).last).to_be_visible()

        page.get_by_role("link", name="Signed in as alice").click()
        expect(page.get_by_text("This key is good for: answer, cancel, read, send.")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_label("Your key")).to_be_visible()
        page.goto(signed.url)
        expect(page.get_by_label("Your key")).to_be_visible()
        assert context.cookies() == []
        assert errors == []


TICKETS = (Path(__file__).parent / "web" / "tickets.js").read_text("utf-8")


def test_an_event_source_is_let_in_by_a_ticket(browser: Browser, signed: Target) -> None:
    """Once for each; and goes on where it was with the next one."""
    with browser.new_context() as context:
        page: Page = context.new_page()
        page.goto(f"{signed.url}/docs")
        got = page.evaluate(TICKETS, {"session": signed.session, "token": signed.key})
        assert got == ["complete", 2, signed.session, 2]
