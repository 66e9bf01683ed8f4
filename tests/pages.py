"""What one does with the chat page: open it where no error may be reported, send, wait, read what it shows."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect

from browser import Server

AXE = "axe-core@4.14.1"
GLASS = """
const view = Object.assign(new EventTarget(), { height: innerHeight, offsetTop: 0, scale: 1 });
Object.defineProperty(window, "visualViewport", { value: view });
window.cover = (above, below, scale = 1) => {
  Object.assign(view, { height: document.documentElement.clientHeight - above - below, offsetTop: above, scale });
  view.dispatchEvent(new Event("resize"));
};
"""
"""A browser in which a keyboard covers the page, and may move it (Safari): `cover` says how much above and below."""


@contextlib.contextmanager
def watching(browser: Browser, server: Server, *, allowed: str = "(none)") -> Iterator[BrowserContext]:
    """A browser of our own; afterwards, no page of it may have reported an error or asked another host."""
    errors: list[str] = []
    foreign: list[str] = []

    def report(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and allowed not in message.text:
            errors.append(message.text)

    def check(request: Request) -> None:
        if not request.url.startswith(server.url):
            foreign.append(request.url)

    with browser.new_context(base_url=server.url) as context:
        context.set_default_timeout(60_000)
        context.on("console", report)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        context.on("request", check)
        yield context
    assert errors == [], errors
    assert foreign == []


def send(page: Page, text: str) -> None:
    page.locator("#message").fill(text)
    page.locator("#message").press("Enter")
    expect(page.locator(".question").last).to_have_text(text)


def session(page: Page) -> str:
    match = re.search(r"session=([\w.-]+)", page.url)
    assert match is not None
    return match[1]


def wait_for_words(page: Page, count: int) -> None:
    page.wait_for_function(
        """count => {
            const turn = document.querySelector('legato-chat').shadowRoot.querySelector('.turn:last-child');
            return (turn?.querySelector('.prose')?.textContent ?? '').split(/\\s+/).length > count;
        }""",
        arg=count,
    )


def wait_for_end(page: Page) -> None:
    expect(page.locator(".turn").last.get_by_role("button", name="Copy answer")).to_be_visible()
    expect(page.locator("#stop")).to_be_hidden()
    expect(page.locator(".prose[aria-busy=true]")).to_have_count(0)


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def rest(page: Page) -> None:
    """Wait until nothing moves any more, but for what always does."""
    page.wait_for_function("""() => {
        const roots = [document, ...[...document.querySelectorAll("*")].map((each) => each.shadowRoot).filter(Boolean)];
        const moving = roots.flatMap((root) => root.getAnimations()).filter((each) => each.playState === "running");
        return moving.every((each) => each.effect.getComputedTiming().endTime === Infinity);
    }""")


def said(page: Page) -> str:
    """What the page shows of all answers, blanks made one."""
    return " ".join(" ".join(page.locator(".prose").all_inner_texts()).split())


def stored(server: Server, page: Page) -> str:
    return " ".join(server.text(session(page)).split())


def count(server: Server, page: Page, type: str) -> int:
    """How many events of a type the page's session has."""
    return sum(event["type"] == type for event in server.events(session(page)))
