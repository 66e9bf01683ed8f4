"""One stream for all tabs, in a real browser: HTTP/1.1, six connections for a host, eight tabs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from browser import browsing
from legato import Legato
from live_server import serving

BEGIN = """
async (session) => {
  const { SharedStream } = await import("/web/shared.js");
  window.seen = [];
  window.states = [];
  window.stream = new SharedStream(`/stream?sessionId=${session}&client=legato`, {
    event: (name, data, id) => {
      if (name === "content") window.seen.push([Number(id), data.content]);
    },
    state: (state) => window.states.push(state),
  });
  void window.stream.follow();
}
"""

LEADS = """
async () => {
  const held = await navigator.locks.request(`me ${Math.random()}`, async (mine) => {
    const { held } = await navigator.locks.query();
    const me = held.find(({ name }) => name === mine.name).clientId;
    return held.filter(({ clientId }) => clientId === me).map(({ name }) => name);
  });
  return held.some((name) => name.startsWith("legato.stream"));
}
"""


async def counting(turn: Any) -> AsyncIterator[str]:
    """Counts as far as it is told to, for long enough that tabs can come and go."""
    for number in range(1, int(turn.message.text) + 1):
        yield f"{number} "
        await asyncio.sleep(0.01)


@pytest.fixture
def app() -> Legato:
    app = Legato("memory:", agents=[counting], heartbeat=1.0)
    app.drain_on_signal = False
    return app


@pytest.fixture
def url(app: Legato) -> Iterator[str]:
    with serving(app) as url:
        yield url


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser, url: str) -> Iterator[BrowserContext]:
    with browser.new_context(base_url=url, bypass_csp=True) as context:
        context.set_default_timeout(60_000)
        yield context


@pytest.fixture
def session(url: str) -> str:
    return str(httpx2.post(url + "/api/sessions", json={"title": "Tabs"}).json()["id"])


@pytest.fixture
def ask(url: str, session: str) -> Callable[[int], None]:
    def ask(count: int) -> None:
        httpx2.post(f"{url}/api/sessions/{session}/messages", json={"text": str(count)}).raise_for_status()

    return ask


def tab(context: BrowserContext, session: str) -> Page:
    page = context.new_page()
    page.goto("/health")
    page.evaluate(BEGIN, session)
    return page


def wait_for(page: Page, count: int) -> None:
    page.wait_for_function("count => window.seen.length >= count", arg=count)


def only(app: Legato, pages: list[Page], count: int) -> None:
    """Wait until the server has so many streams; the pages' events are handled meanwhile."""
    for _ in range(600):
        if len(app.streams) == count:
            return
        pages[0].wait_for_timeout(50)
    raise AssertionError(f"{len(app.streams)} streams are open, not {count}")


def texts(page: Page) -> list[str]:
    seen = page.evaluate("window.seen")
    offsets = [offset for offset, _ in seen]
    assert offsets == sorted(set(offsets))
    return "".join(text for _, text in seen).split()


def numbers(count: int) -> list[str]:
    return [str(number) for number in range(1, count + 1)]


def leader(pages: list[Page]) -> Page:
    """The one that leads, once there is one: after another has closed, it takes a moment."""
    for _ in range(600):
        leading = [page for page in pages if page.evaluate(LEADS)]
        if len(leading) == 1:
            return leading[0]
        pages[0].wait_for_timeout(50)
    raise AssertionError(f"{len(leading)} tabs lead")


def test_eight_tabs_one_connection(
    app: Legato, context: BrowserContext, session: str, ask: Callable[[int], None]
) -> None:
    """All tabs have all of an answer, over one connection; also those that come while it is written."""
    pages = [tab(context, session) for _ in range(5)]
    only(app, pages, 1)
    ask(300)
    wait_for(pages[0], 20)
    pages += [tab(context, session) for _ in range(3)]
    only(app, pages, 1)
    for page in pages:
        page.wait_for_function("() => window.seen.map(([, text]) => text).join('').endsWith(' 300 ')")

    assert [texts(page) for page in pages] == [numbers(300)] * 8
    only(app, pages, 1)


def test_the_leader_is_closed_in_the_middle(
    app: Legato, context: BrowserContext, session: str, ask: Callable[[int], None]
) -> None:
    """Twice: another tab goes on where it was, and no tab misses or repeats anything."""
    pages = [tab(context, session) for _ in range(8)]
    only(app, pages, 1)
    ask(400)
    for count in (30, 120):
        wait_for(pages[0], count)
        leading = leader(pages)
        pages.remove(leading)
        leading.close()
    for page in pages:
        page.wait_for_function("() => window.seen.map(([, text]) => text).join('').endsWith(' 400 ')")

    assert [texts(page) for page in pages] == [numbers(400)] * 6
    only(app, pages, 1)


def test_the_leader_hangs(app: Legato, context: BrowserContext, session: str, ask: Callable[[int], None]) -> None:
    """A tab that does nothing any more is replaced as soon as somebody looks at another; when it wakes, it follows."""
    pages = [tab(context, session) for _ in range(3)]
    only(app, pages, 1)
    leading = leader(pages)
    others = [page for page in pages if page is not leading]
    # Its JavaScript stands still, as in a debugger; the lock stays its own, and nobody tells the others.
    debugger = context.new_cdp_session(leading)
    debugger.send("Debugger.enable")
    debugger.send("Runtime.evaluate", {"expression": "setTimeout(() => { debugger; }, 0)"})
    ask(200)
    others[0].evaluate("window.stream.wake()")
    for page in others:
        page.wait_for_function("() => window.seen.map(([, text]) => text).join('').endsWith(' 200 ')")
    debugger.send("Debugger.resume")
    debugger.send("Debugger.disable")
    leading.wait_for_function("() => window.seen.map(([, text]) => text).join('').endsWith(' 200 ')")

    assert [texts(page) for page in pages] == [numbers(200)] * 3
    assert leader(pages) in others
    only(app, others, 1)
