"""Chromium, on a page of another origin: what it may read, and with cookies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from browser import browsing
from legato import Caller, Legato
from live_server import serving


async def greet(turn: Any) -> AsyncIterator[str]:
    """Says who asks."""
    yield f"Hello, {turn.caller.subject}."


def by_cookie(scope: Any) -> Caller:
    """What a proxy that signs users in does, in short."""
    cookies = b"; ".join(value for name, value in scope["headers"] if name == b"cookie").decode()
    return Caller(next((each[5:] for each in cookies.split("; ") if each.startswith("user=")), ""))


ASK = """
async (base) => {
    const { LegatoCore, createSession, sendMessage, streamEvents } = await import(`${base}/web/client.js`);
    const withCookies = (url, init) => fetch(url, { ...init, credentials: "include" });
    const core = new LegatoCore({ baseUrl: base, fetch: withCookies });
    const session = await createSession(core, {});
    const sent = await sendMessage(core, { sessionId: session.id, text: "Hello" });
    let text = "";
    for await (const event of streamEvents(core, { sessionId: session.id, lastEventId: sent.cursor })) {
        if (event.event === "content") text += event.data.content;
        if (event.event === "complete") break;
    }
    const native = await new Promise((resolve) => {
        const url = `${base}/stream?sessionId=${session.id}&client=legato&from=start`;
        const stream = new EventSource(url, { withCredentials: true });
        stream.addEventListener("content", (event) => { stream.close(); resolve(JSON.parse(event.data).content); });
        stream.addEventListener("error", () => { stream.close(); resolve("lost"); });
    });
    return [text, native];
}
"""

READ = """
async (base) => {
    const read = (credentials) => fetch(`${base}/api/sessions`, { credentials })
        .then(({ status }) => status, ({ name }) => name);
    return [await read("omit"), await read("include")];
}
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[str]:
    """A page of another origin, of the same site, so that its cookies are the server's too."""
    page = Starlette(routes=[Route("/", lambda request: HTMLResponse("<title>Elsewhere</title>"))])
    with serving(page) as url:
        yield url.replace("127.0.0.1", "localhost")


def asked(chromium: Browser, elsewhere: str, cors: Any, script: str) -> Any:
    app = Legato("memory:", agents=[greet], cors=cors, identify=by_cookie)
    app.drain_on_signal = False
    with serving(app) as url, chromium.new_context() as context:
        page = context.new_page()
        page.goto(elsewhere)
        page.evaluate("document.cookie = 'user=ada'")
        return page.evaluate(script, url.replace("127.0.0.1", "localhost"))


def test_a_site_that_is_named_reads_with_cookies(chromium: Browser, elsewhere: str) -> None:
    """By the client of the docs, and by a browser's own EventSource."""
    assert asked(chromium, elsewhere, elsewhere, ASK) == ["Hello, ada.", "Hello, ada."]


@pytest.mark.parametrize("cors", [None, "*", "https://app.example"])
def test_no_other_reads_with_cookies(chromium: Browser, elsewhere: str, cors: Any) -> None:
    """Though it may call: as any page may, or any on this machine."""
    assert asked(chromium, elsewhere, cors, READ) == [200, "TypeError"]
