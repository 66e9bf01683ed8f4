"""The floating chat in a real browser, on a page of another origin: the example, as it stands."""

from __future__ import annotations

import contextlib
import functools
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from browser import Server
from node_packages import package
from pages import AXE, GLASS, rest, wait_for

pytest_plugins = ["page_fixtures"]

EXAMPLES = Path(__file__).parent.parent / "examples"


@contextlib.contextmanager
def elsewhere(folder: Path = EXAMPLES) -> Iterator[str]:
    """The examples, or other pages, on an origin of their own, as the command in the example has it."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def shop(browser: Browser, server: Server) -> Iterator[Page]:
    """The example's page, just as it stands."""
    with opened(browser, server, EXAMPLES, "/intercom.html") as page:
        yield page


@contextlib.contextmanager
def opened(browser: Browser, server: Server, folder: Path, path: str) -> Iterator[Page]:
    """A page of a folder, without errors; its server's well-known port leads to ours."""
    errors: list[str] = []
    with elsewhere(folder) as url, browser.new_context(base_url=url, viewport={"width": 900, "height": 720}) as context:
        context.set_default_timeout(60_000)
        context.on("weberror", lambda error: errors.append(str(error.error)))

        def lead(route: Route) -> None:
            route.continue_(url=route.request.url.replace("http://127.0.0.1:8088", server.url))

        context.route("http://127.0.0.1:8088/**", lead)
        page = context.new_page()
        page.goto(path)
        yield page
        assert errors == []


def intercom_end(page: Page) -> None:
    expect(page.locator("legato-intercom .turn").last.get_by_role("button", name="Copy answer")).to_be_visible()


def test_intercom_on_another_origin(shop: Page, shoot: Callable[[Page, str], None]) -> None:
    """The button opens a dialog that has the focus; an answer comes; Escape closes it, and the focus goes back."""
    launcher = shop.locator("#launcher")
    expect(launcher).to_have_attribute("aria-label", "Open the chat")
    shoot(shop, "intercom-closed")
    launcher.click()
    expect(shop.get_by_role("dialog", name="guide")).to_be_visible()
    expect(launcher).to_have_attribute("aria-expanded", "true")
    expect(shop.locator("#message")).to_be_focused()
    shop.keyboard.type("How is tea made?")
    shop.keyboard.press("Enter")
    expect(shop.locator(".prose strong", has_text="Tea").last).to_be_visible()
    intercom_end(shop)
    shoot(shop, "intercom")

    shop.keyboard.press("Escape")

    expect(shop.get_by_role("dialog")).to_be_hidden()
    expect(launcher).to_be_focused()
    expect(launcher).to_have_attribute("aria-expanded", "false")
    shop.reload()
    launcher.click()
    expect(shop.locator(".question")).to_have_text("How is tea made?")
    expect(shop.locator(".prose strong", has_text="Tea").last).to_be_visible()


AROUND = [
    "* { all: unset !important; }",
    "body { transform: translateX(40px) scale(0.9); filter: blur(1px); }",
    "body { contain: strict; overflow: clip; height: 0; opacity: 0.1; }",
    "legato-intercom { display: block; contain: strict; width: 0; height: 0; transform: scale(0.2); }",
    "h1 { position: fixed; inset: 0; margin: 0; z-index: 2147483647; }",
    "html { writing-mode: vertical-rl; }",
]


def test_nothing_around_it_moves_or_covers_it(shop: Page) -> None:
    """Whatever the page makes of its ancestors, the button and the dialog stand where they stood, and take clicks."""
    shop.emulate_media(reduced_motion="reduce")
    expect(shop.locator("#launcher")).to_be_visible()
    shop.locator("legato-intercom").evaluate("intercom => intercom.open()")  # a mouse would make the button grow
    look = """() => ["#launcher", "#panel"].map(css => {
        const element = document.querySelector("legato-intercom").shadowRoot.querySelector(css);
        const { x, y, width, height } = element.getBoundingClientRect();
        const hit = document.elementFromPoint(x + width / 2, y + height / 2);
        return [x, y, width, height, hit.localName];
    })"""
    before = shop.evaluate(look)
    for css in AROUND:
        style = shop.add_style_tag(content=css)
        assert shop.evaluate(look) == before, css
        style.evaluate("style => style.remove()")
    shop.add_style_tag(content="body { zoom: 2; }")
    x, y, width, height, _ = shop.evaluate(look)[1]
    assert min(x, y, 900 - x - width, 720 - y - height) >= 0


def cancel(server: Server, session: str | None) -> None:
    """End what is being answered, from elsewhere."""
    httpx2.post(f"{server.url}/api/sessions/{session}/cancel", json={}).raise_for_status()


def test_intercom_says_what_happened_meanwhile(shop: Page, server: Server) -> None:
    """Closed, its button says that an answer is being given, also on the next page, and then that there is one."""
    launcher = shop.locator("#launcher")
    launcher.click()
    shop.locator("#message").fill("/long 2000")
    shop.locator("#message").press("Enter")
    expect(shop.locator(".prose")).to_contain_text("note-5")
    session = shop.locator("legato-chat").get_attribute("session")
    shop.keyboard.press("Escape")
    expect(launcher).to_have_attribute("aria-label", re.compile("an answer is being given"))
    shop.reload()
    expect(launcher).to_have_attribute("aria-label", re.compile("an answer is being given"))

    cancel(server, session)

    expect(launcher).to_have_attribute("aria-label", re.compile("there is a new answer"))

    launcher.click()
    expect(shop.locator(".turn")).to_contain_text("Stopped.")
    shop.keyboard.press("Escape")
    expect(launcher).to_have_attribute("aria-label", "Open the chat")


def test_intercom_says_what_ended_between_two_pages(shop: Page, server: Server) -> None:
    """An answer that ended while no page of the shop was open is a new answer on the next one."""
    shop.locator("#launcher").click()
    shop.locator("#message").fill("/long 2000")
    shop.locator("#message").press("Enter")
    expect(shop.locator(".prose")).to_contain_text("note-5")
    shop.keyboard.press("Escape")
    shop.wait_for_function("() => Object.values(localStorage).some((each) => JSON.parse(each).running)")
    session = shop.locator("legato-chat").get_attribute("session")
    address = shop.url
    shop.goto("about:blank")
    cancel(server, session)
    wait_for(lambda: any(event["type"] == "run.cancelled" for event in server.events(str(session))))

    shop.goto(address)

    expect(shop.locator("#launcher")).to_have_attribute("aria-label", re.compile("there is a new answer"))


def test_intercom_of_nobody(shop: Page) -> None:
    """A name that no agent has is an error in the dialog, which can still be closed."""
    shop.locator("legato-intercom").evaluate("each => (each.username = 'nobody')")
    shop.locator("#launcher").click()

    expect(shop.get_by_role("alert").filter(has_text="nobody")).to_have_text("There is nobody called “nobody” here.")
    expect(shop.locator("#message")).to_be_hidden()
    shop.keyboard.press("Escape")
    expect(shop.get_by_role("dialog")).to_be_hidden()


@pytest.mark.parametrize("now", ["another agent", "another server"])
def test_intercom_asks_for_the_agent_of_now(shop: Page, now: str) -> None:
    """What comes late of what was asked before, be it no answer, changes nothing."""
    held: list[Route] = []
    others = {"status": "ok", "agents": ["somebody"]}

    def answer(route: Route) -> None:
        if not held:
            held.append(route)
        else:
            route.fulfill(json=others, headers={"access-control-allow-origin": "*"})

    shop.route("**/health", answer)
    shop.locator("#launcher").click()
    wait_for(lambda: shop.wait_for_timeout(10) or bool(held))

    change = "username = 'nobody'" if now == "another agent" else "baseUrl = 'http://127.0.0.1:8088/other'"
    shop.locator("legato-intercom").evaluate(f"each => (each.{change})")
    alone = shop.get_by_role("alert").filter(has_text="There is nobody called")
    expect(alone).to_be_visible()
    if now == "another agent":
        with shop.expect_event("requestfailed"):
            held[0].abort()
    else:
        with shop.expect_event("requestfinished"):
            held[0].fallback()
    shop.evaluate("() => new Promise(requestAnimationFrame)")

    expect(alone).to_be_visible()
    expect(shop.locator("#message")).to_be_hidden()


def test_intercom_begins_anew(shop: Page) -> None:
    """A visitor can leave the old conversation behind."""
    shop.locator("#launcher").click()
    shop.locator("#message").fill("/long 10")
    shop.locator("#message").press("Enter")
    intercom_end(shop)

    shop.get_by_role("button", name="New chat").click()

    expect(shop.locator(".turn")).to_have_count(0)
    shop.reload()
    shop.locator("#launcher").click()
    expect(shop.locator("#message")).to_be_focused()
    expect(shop.locator(".turn")).to_have_count(0)


def test_intercom_of_the_readme(browser: Browser, server: Server, tmp_path: Path) -> None:
    """The README's two lines of HTML are a chat on any page; without a name the server's first agent answers."""
    (lines,) = re.findall(r"```html\n(.*?)```", (EXAMPLES.parent / "README.md").read_text("utf-8"), re.DOTALL)
    (tmp_path / "any.html").write_text(f"<!doctype html>\n<title>Any page</title>\n{lines}", encoding="utf-8")
    with opened(browser, server, tmp_path, "/any.html") as page:
        page.locator("#launcher").click()
        page.locator("#message").fill("How is tea made?")
        page.locator("#message").press("Enter")
        expect(page.locator(".prose strong", has_text="Tea").last).to_be_visible()
        intercom_end(page)


def test_intercom_of_another_agent(shop: Page) -> None:
    """Each name has a conversation of its own: another name does not go on with the old one, and the first is kept."""
    shop.locator("#launcher").click()
    shop.locator("#message").fill("/long 10")
    shop.locator("#message").press("Enter")
    intercom_end(shop)

    shop.locator("legato-intercom").evaluate("each => (each.username = '')")

    expect(shop.locator(".turn")).to_have_count(0)
    expect(shop.locator("legato-chat")).to_have_js_property("agent", "")
    shop.locator("legato-intercom").evaluate("each => (each.username = 'guide')")
    expect(shop.locator(".question")).to_have_text("/long 10")


def test_intercom_is_not_covered_by_a_keyboard(shop: Page) -> None:
    """Its head and its field are in what is left of a telephone, upright or on its side, and of a tablet."""
    shop.add_init_script(GLASS)
    shop.reload()
    shop.locator("#launcher").click()
    expect(shop.locator("#message")).to_be_focused()
    rest(shop)
    parts = [shop.locator("#panel"), shop.locator("#panel > header"), shop.locator("legato-intercom #form")]
    for width, height in ((390, 844), (740, 360), (900, 720)):
        shop.set_viewport_size({"width": width, "height": height})
        for above, below in ((0, 160), (60, 100)):
            shop.evaluate(f"cover({above}, {below})")
            for part in parts:
                box = part.bounding_box()
                assert box is not None
                assert above <= box["y"] < box["y"] + box["height"] <= height - below


def test_intercom_fills_a_phone(shop: Page, shoot: Callable[[Page, str], None]) -> None:
    """On a narrow screen the dialog is the screen, and axe-core has no complaint, open or closed."""
    axe = (package(AXE) / "node_modules" / "axe-core" / "axe.min.js").read_text()
    shop.set_viewport_size({"width": 320, "height": 640})
    shop.add_script_tag(content=axe)
    for _ in range(2):
        found = shop.evaluate("() => axe.run('legato-intercom', {resultTypes: ['violations']})")["violations"]
        assert [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found] == []
        if not shop.get_by_role("dialog").is_visible():
            shop.locator("#launcher").click()
            expect(shop.locator("#message")).to_be_focused()
            rest(shop)
    assert {"x": 0, "y": 0, "width": 320, "height": 640} == shop.locator("#panel").bounding_box()
    shoot(shop, "intercom-320")
    shop.set_viewport_size({"width": 740, "height": 360})  # a telephone on its side: as much of it as there is
    assert {"x": 340, "y": 0, "width": 400, "height": 360} == shop.locator("#panel").bounding_box()
    shop.set_viewport_size({"width": 320, "height": 640})
    shop.get_by_role("button", name="Close the chat").first.click()
    expect(shop.get_by_role("dialog")).to_be_hidden()


def test_each_part_has_a_name_outside() -> None:
    """What the docs name can be styled: in the chat by itself, and in the one within the floating chat."""
    docs = (EXAMPLES.parent / "docs/browser.md").read_text()
    told, own = re.search(r"Parts: (.*?); of\s+the Intercom also (.*?)\.\n", docs, re.DOTALL).groups()  # type: ignore[union-attr]
    program = (EXAMPLES.parent / "src/legato/web/intercom.js").read_text()
    exported = "".join(re.findall(r'"(.*?)"', re.search(r"const PARTS = (.*?);\n", program, re.DOTALL)[1]))  # type: ignore[index]

    assert exported.split(", ") == re.findall(r"`(\w+)`", told)
    assert set(re.findall(r'part: "(\w+)"', program)) <= {*re.findall(r"`(\w+)`", own), "problem"}
