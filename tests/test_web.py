"""The pages in a real browser against a real server, and their modules in Node.js."""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect
from pygments.lexers import JavascriptLexer
from pygments.token import Comment

from browser import Server, node, serving
from legato.server.pages import uncommented
from live_server import cutting
from pages import GLASS, count, said, send, session, stored, wait_for, wait_for_end, wait_for_words

pytest_plugins = ["page_fixtures"]

HERE = Path(__file__).parent
SLOW_AGENT = """
import asyncio

async def agent(turn):
    for number in range(1, 1000):
        yield f"step-{number} "
        await asyncio.sleep(0.02)
"""

# A conversation -------------------------------------------------------------------------------------------------------


def test_the_answer_grows_as_it_comes(page: Page, server: Server) -> None:
    """A sent message is shown at once, and its answer piece by piece."""
    send(page, "/long 2000")

    expect(page.locator(".question")).to_have_text("/long 2000")
    wait_for_words(page, 5)
    early = said(page)
    expect(page.locator("#stop")).to_be_visible()
    wait_for_words(page, len(early.split()) + 5)
    page.locator("#stop").click()
    wait_for_end(page)
    assert said(page).startswith(early)
    assert len(early) < len(said(page))
    assert stored(server, page) == said(page)


def test_an_answer_is_markdown(page: Page) -> None:
    """Bold, code and links of an answer are elements; a link opens elsewhere and tells nobody where it came from."""
    send(page, "How is tea made?")
    wait_for_end(page)

    expect(page.locator(".prose strong", has_text="Tea").last).to_be_visible()
    expect(page.locator(".prose code", has_text="water")).to_be_visible()
    link = page.locator(".prose a", has_text="more")
    expect(link).to_have_attribute("href", "https://tea.test/")
    expect(link).to_have_attribute("rel", re.compile("noopener"))


def test_thinking_and_tools_are_collapsed(page: Page) -> None:
    """They can be opened, and show what was thought, asked and answered."""
    send(page, "/tools")
    wait_for_end(page)

    tools = page.locator("details.tool")
    expect(tools).to_have_count(2)
    assert all(not tool.evaluate("each => each.open") for tool in tools.all())
    tools.first.locator("summary").click()
    expect(tools.first.locator("pre").first).to_contain_text('"folder": "documents"')
    expect(tools.first.locator("pre").last).to_contain_text("tea.md")


def test_reload_in_the_middle(page: Page, server: Server) -> None:
    """After a reload in the middle of an answer the page shows what it showed, and all the rest, once."""
    send(page, "/long 10")
    wait_for_end(page)
    send(page, "/long 300")
    wait_for_words(page, 20)

    page.reload()

    wait_for_words(page, 20)
    expect(page.locator(".turn")).to_have_count(2)
    wait_for_end(page)
    assert stored(server, page) == said(page)


def test_reload_after_the_end(page: Page) -> None:
    """History looks like what was streamed; a failure stays one."""
    for text in ("How is tea made?", "/tools", "/permission"):
        send(page, text)
        if text == "/permission":
            page.get_by_role("button", name="Allow").click()
        wait_for_end(page)
    before = page.locator(".answer").all_inner_texts()[:2]
    send(page, "/fail")
    wait_for_end(page)
    answers = page.locator(".prose").all_inner_texts()

    page.reload()

    expect(page.locator(".turn")).to_have_count(4)
    wait_for_end(page)
    assert before == page.locator(".answer").all_inner_texts()[:2]
    assert answers == page.locator(".prose").all_inner_texts()
    expect(page.locator(".turn").last.locator(".error")).to_be_visible()


def test_a_second_tab_is_in_step(page: Page, context: BrowserContext, server: Server) -> None:
    """A tab that is opened in the middle shows the same, and a message sent in it comes to the first, too."""
    send(page, "/long 200")
    wait_for_words(page, 20)
    other = context.new_page()
    other.goto(page.url)
    wait_for_words(other, 20)
    wait_for_end(other)
    wait_for_end(page)
    assert said(page) == said(other) == stored(server, page)

    send(other, "/long 20")

    expect(page.locator(".question")).to_have_text(["/long 200", "/long 20"])
    expect(page.locator(".prose").last).to_contain_text("note-20")
    wait_for_end(page)
    wait_for_end(other)
    assert said(page) == said(other) == stored(server, page)


def test_a_turn_that_ends_between_stream_and_history(page: Page, context: BrowserContext, server: Server) -> None:
    """The stream is opened while a turn runs, and the history read when it has ended: it is there once, and whole."""
    send(page, "/long 100")
    wait_for_words(page, 5)
    other = context.new_page()

    def hold(route: Route) -> None:
        wait_for_end(page)
        route.continue_()

    other.route("**/api/sessions/*/messages?*", hold, times=1)
    other.goto(page.url)

    wait_for_end(other)
    expect(other.locator(".turn")).to_have_count(1)
    assert stored(server, page) == said(other)


def test_stop(page: Page, context: BrowserContext) -> None:
    """The stop button ends the run, for a second tab as well, and what was said stays."""
    send(page, "/long 2000")
    wait_for_words(page, 5)
    other = context.new_page()
    other.goto(page.url)
    wait_for_words(other, 5)

    other.locator("#stop").click()

    for each in (page, other):
        expect(each.locator(".turn")).to_contain_text("Stopped.")
        expect(each.locator("#stop")).to_be_hidden()
        expect(each.locator(".prose").last).to_have_attribute("aria-busy", "false")  # all of it is shown
    assert said(page) == said(other)
    assert "note-5" in said(page)
    send(page, "/long 10")
    expect(page.locator(".prose").last).to_contain_text("note-10")


def test_a_waiting_message_is_answered_in_its_turn(page: Page, server: Server) -> None:
    """A message can be sent while an answer is being given; it says that it waits, also after a reload."""
    send(page, "/long 2000")
    wait_for_words(page, 5)
    send(page, "/long 15")
    expect(page.locator(".turn").last).to_contain_text("Waiting")

    page.reload()

    expect(page.locator(".turn").last).to_contain_text("Waiting")
    page.locator("#stop").click()
    expect(page.locator(".prose").last).to_contain_text("note-15 ", use_inner_text=False)
    wait_for_end(page)
    expect(page.locator(".question")).to_have_text(["/long 2000", "/long 15"])
    assert stored(server, page) == said(page)


def test_a_failed_run_says_why_and_can_be_retried(page: Page, context: BrowserContext, server: Server) -> None:
    """An error is shown with its message under what was said before it; a retry answers the same message anew."""
    send(page, "/fail")
    expect(page.locator(".error")).to_contain_text("This failure was asked for with /fail.")
    expect(page.locator(".error")).to_have_attribute("role", "alert")
    assert "What was said before it is kept." in said(page)
    other = context.new_page()
    other.goto(page.url)
    expect(other.locator(".error")).to_be_visible()

    other.get_by_role("button", name="Retry").click()

    wait_for(lambda: count(server, page, "run.failed") == 2)
    for each in (page, other):
        expect(each.locator(".error")).to_have_count(1)
        wait_for_end(each)
        expect(each.locator(".question")).to_have_text(["/fail"])
        expect(each.locator(".prose")).to_have_count(1)


def test_regenerate(page: Page, server: Server) -> None:
    """The last answer is taken back, and the same message answered by a new run; earlier ones stay as they are."""
    send(page, "/tools")
    wait_for_end(page)
    send(page, "/long 30")
    wait_for_end(page)
    expect(page.get_by_role("button", name="Regenerate")).to_have_count(1)
    page.locator("details.tool summary").first.click()
    first, last = (page.locator(".turn").nth(at).element_handle() for at in (0, 1))

    page.get_by_role("button", name="Regenerate").click()
    page.get_by_role("button", name="Replace").click()

    expect(page.locator("#message")).to_be_focused()
    wait_for(lambda: count(server, page, "run.completed") == 3)
    page.wait_for_function("turn => !turn.isConnected", arg=last)  # the page has heard of it, too
    wait_for_end(page)
    expect(page.locator(".question")).to_have_text(["/tools", "/long 30"])
    assert said(page).count("note-30") == 1
    assert page.evaluate("([a, b]) => a === b", [first, page.locator(".turn").first.element_handle()])
    assert page.locator("details.tool").first.evaluate("each => each.open")


# Questions of the agent -----------------------------------------------------------------------------------------------


def test_a_permission_answered_in_another_tab(page: Page, context: BrowserContext) -> None:
    """The buttons go away everywhere once the first answer is given."""
    send(page, "/permission")
    expect(page.get_by_role("button", name="Allow")).to_be_visible()
    other = context.new_page()
    other.goto(page.url)

    other.get_by_role("button", name="Allow").click()

    for each in (page, other):
        expect(each.locator(".ask")).to_contain_text("Allowed.")
        expect(each.get_by_role("button", name="Allow")).to_have_count(0)
        wait_for_end(each)
        assert "Permission was granted" in said(each)


def test_a_permission_denied(page: Page) -> None:
    """Deny is told to the agent."""
    send(page, "/permission")
    page.get_by_role("button", name="Deny").click()

    expect(page.locator(".ask")).to_contain_text("Denied.")
    wait_for_end(page)
    assert "Permission was denied" in said(page)


def test_a_notification_with_choices(page: Page) -> None:
    """A question of the agent is shown with its choices, after a reload too."""
    send(page, "/notify")
    expect(page.locator(".ask")).to_contain_text("Which note comes next?")
    page.reload()

    page.get_by_role("button", name="re", exact=True).click()

    expect(page.locator(".ask")).to_contain_text("Answered: re")
    wait_for_end(page)
    assert "You chose re." in said(page)


# More than one tab ----------------------------------------------------------------------------------------------------


def test_two_tabs_that_send_at_once(page: Page, context: BrowserContext) -> None:
    """Each shows its own message at once, and both have the log's order as soon as it tells; so has Regenerate."""
    send(page, "/long 10")
    wait_for_end(page)
    other = context.new_page()
    other.goto(page.url)
    wait_for_end(other)
    held: list[Route] = []
    page.route(
        "**/api/sessions/*/messages",
        lambda route: held.append(route) if route.request.method == "POST" else route.fallback(),
    )

    send(page, "mine, first here")
    send(other, "the other's")
    expect(page.locator(".question")).to_have_text(["/long 10", "the other's", "mine, first here"])
    while not held:  # Playwright tells of it only while it is waited for
        page.wait_for_timeout(20)
    held[0].continue_()

    for each in (page, other):
        expect(each.locator(".question")).to_have_text(["/long 10", "the other's", "mine, first here"])
        wait_for_end(each)
        expect(each.locator(".turn").last.get_by_role("button", name="Regenerate")).to_have_count(1)
        expect(each.get_by_role("button", name="Regenerate")).to_have_count(1)


def test_a_message_of_a_tab_that_was_closed(browser: Browser, server: Server) -> None:
    """It was on its way, and had not arrived: the next tab brings it, and its chat with it."""
    with browser.new_context(base_url=server.url) as context:
        page = context.new_page()
        page.route(
            "**/api/sessions**", lambda route: route.abort() if route.request.method == "POST" else route.fallback()
        )
        page.goto("/")
        send(page, "do not forget me")
        expect(page.locator(".turn")).to_contain_text("Sending")
        page.close()

        later = context.new_page()
        later.goto("/")
        later.get_by_role("link", name="do not forget me").click()

        wait_for_end(later)
        expect(later.locator(".question")).to_have_text(["do not forget me"])
        later.wait_for_function("() => Object.keys(localStorage).length === 0")


def ninety_chats(server: Server) -> None:
    with httpx2.Client(base_url=server.url) as client:
        for number in range(90):
            client.post("/api/sessions", json={"title": f"chat {number:02}"})


def test_the_list_stays_as_far_as_it_was_opened(browser: Browser, server: Server) -> None:
    """Whatever changes in it; and a chat that is further down has its name all the same."""
    ninety_chats(server)
    with browser.new_context(base_url=server.url) as context:
        page = context.new_page()
        page.goto("/")
        links = page.locator("#list a")
        expect(links).to_have_count(40)
        page.get_by_role("button", name="Older chats").click()
        expect(links).to_have_count(80)
        changed = "new BroadcastChannel('legato').postMessage('sessions')"
        with page.expect_response("**/api/sessions?limit=40&before=*"):
            page.evaluate(changed)
        expect(links).to_have_count(80)

        links.nth(70).locator("..").get_by_role("button").focus()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(links.nth(70)).to_be_focused()
        page.get_by_role("button", name="Older chats").click()
        page.get_by_role("link", name="chat 03").click()
        page.reload()
        expect(page.locator("#title")).to_have_text("chat 03")


def test_lists_that_are_asked_for_together_come_one_after_the_other(browser: Browser, server: Server) -> None:
    """Something changes while older chats are on their way: they come, and stay."""
    ninety_chats(server)
    with browser.new_context(base_url=server.url) as context:
        page = context.new_page()
        page.goto("/")
        expect(page.locator("#list a")).to_have_count(40)
        further, anew = re.compile(r"/api/sessions\?limit=40&before="), re.compile(r"/api/sessions\?limit=40$")
        held: list[Route] = []

        def come(number: int) -> Route:
            while len(held) < number:
                page.wait_for_timeout(20)
            return held[-1]

        page.route(further, lambda route: route.continue_() if held else held.append(route))
        page.get_by_role("button", name="Older chats").click()
        older = come(1)
        page.route(anew, lambda route: held.append(route))
        page.evaluate("new BroadcastChannel('legato').postMessage('sessions')")
        older.continue_()
        expect(page.locator("#list a")).to_have_count(80)
        with page.expect_response(further):
            come(2).continue_()
        expect(page.locator("#list a")).to_have_count(80)


def test_what_went_wrong_in_another_chat_is_not_told_in_this_one(unlucky: Page, server: Server) -> None:
    """Where the answer to what was asked there comes late."""
    page = unlucky
    send(page, "/long 2000")
    expect(page.locator("#stop")).to_be_visible()
    held: list[Route] = []
    page.route("**/cancel", lambda route: held.append(route))
    page.locator("#stop").click()
    while not held:
        page.wait_for_timeout(20)
    page.get_by_role("button", name="New chat").click()
    refused = {"error": {"code": 403, "message": "Not you.", "type": "x", "reason": "x"}}
    with page.expect_response("**/cancel"):
        held[0].fulfill(status=403, json=refused)
    page.locator("#message").fill("something")  # by then it has been told

    expect(page.locator("#problem")).to_be_hidden()
    page.go_back()
    expect(page.locator("#stop")).to_be_enabled()


# Fingers, keys and ears -----------------------------------------------------------------------------------------------


def test_enter_on_glass_begins_a_line(browser: Browser, server: Server) -> None:
    """There is no Shift on a phone's keyboard; the button sends."""
    with browser.new_context(base_url=server.url, has_touch=True, is_mobile=True) as context:
        page = context.new_page()
        page.goto("/")
        field = page.locator("#message")
        expect(field).to_have_attribute("enterkeyhint", "enter")
        page.locator("legato-chat").evaluate("each => (each.style.fontSize = '12px')")
        expect(field).to_have_css("font-size", "16px")  # else Safari enlarges the page
        field.press_sequentially("one\ntwo")
        expect(field).to_have_value("one\ntwo")
        page.get_by_role("button", name="Send").tap()
        expect(page.locator(".question")).to_have_text("one\ntwo")


def test_a_keyboard_that_covers_the_page_leaves_the_chat_in_sight(browser: Browser, server: Server) -> None:
    """All of it is above the keyboard, wherever the browser has moved the page to; a bar or a pinch moves nothing."""
    with browser.new_context(base_url=server.url, viewport={"width": 390, "height": 844}, has_touch=True) as context:
        page = context.new_page()
        page.add_init_script(GLASS)
        page.goto("/")
        expect(page.locator("#ideas button").first).to_be_visible()  # the last that comes, and it has its place
        edges = "[document.body, document.querySelector('#chat').shadowRoot.querySelector('#form')].map((each) =>"
        edges += " each.getBoundingClientRect()).map(({ top, bottom }) => [top, bottom])"
        whole = page.evaluate(edges)
        for covered, top, bottom in (("0, 300", 0, 544), ("120, 180", 120, 664), ("300, 0", 300, 844)):
            page.evaluate(f"cover({covered})")
            body, form = page.evaluate(edges)
            assert (body, body[0] < form[0], form[1] < bottom) == ([top, bottom], True, True)
            assert page.evaluate("document.documentElement.scrollHeight") == 844
        for seen in ("0, 60", "0, 0", "100, 300, 2"):
            page.evaluate(f"cover({seen})")
            assert page.evaluate(edges) == whole


def test_copying_where_there_is_no_clipboard(browser: Browser, server: Server) -> None:
    """Over plain http browsers hide it; what is copied is the same."""
    with browser.new_context(base_url=server.url, permissions=["clipboard-read"]) as context:
        plain, reading = context.new_page(), context.new_page()
        plain.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
        # What the button says then stays until it has been seen.
        plain.add_init_script(
            "const set = setTimeout;"
            "window.setTimeout = (act, wait, ...rest) => wait === 1500 || set(act, wait, ...rest)"
        )
        plain.goto("/")
        send(plain, "/long 3")
        wait_for_end(plain)
        plain.bring_to_front()
        copy = plain.get_by_role("button", name="Copy answer")
        copy.click()
        expect(plain.get_by_role("button", name="Copied")).to_be_focused()
        reading.goto("/")
        reading.bring_to_front()
        assert "note-3" in reading.evaluate("navigator.clipboard.readText()")


def test_the_field_is_two_keys_away(page: Page) -> None:
    """However many chats and answers there are; and it has the focus after a suggestion."""
    page.get_by_role("button", name="What is Legato?").click()
    expect(page.locator("#message")).to_be_focused()
    wait_for_end(page)
    skip = page.get_by_role("link", name="Skip to the message field")
    assert page.evaluate("document.querySelector('a, button, input, textarea, [tabindex]').id") == "skip"
    skip.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_be_focused()
    page.locator("#scroll").focus()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_be_focused()


# Bad networks ---------------------------------------------------------------------------------------------------------


def test_a_send_whose_answer_is_lost(unlucky: Page, server: Server) -> None:
    """A message whose answer never came is sent again under the same key, so it is in the log once."""
    keys: list[str | None] = []

    def lose(route: Route) -> None:
        keys.append(route.request.headers.get("idempotency-key"))
        if len(keys) == 1:
            route.abort()  # it never reached the server
        elif len(keys) == 2:
            route.fetch()
            route.abort()  # it did, and the answer was lost
        else:
            route.continue_()

    unlucky.route(
        "**/api/sessions/*/messages", lambda route: lose(route) if route.request.method == "POST" else route.continue_()
    )
    send(unlucky, "/long 10")
    wait_for_end(unlucky)

    expect(unlucky.locator(".turn")).to_have_count(1)
    unlucky.wait_for_function("() => !Object.keys(localStorage).some((name) => name.startsWith('legato.outbox.'))")
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert sum(event["type"] == "message.created" for event in server.events(session(unlucky))) == 1


def test_connections_that_are_cut(browser: Browser, server: Server) -> None:
    """A stream that is cut in the middle of a frame goes on from its cursor: nothing is lost, doubled or wrong."""
    allowances = iter([900, 1107, 1411])  # bytes of each answer, together fewer than there are of words and heads alone

    def allowance(request: bytes) -> int | None:
        return next(allowances, None) if request.startswith(b"GET /stream") else None

    with cutting(server.url, allowance) as url, browser.new_context(base_url=url) as context:
        page = context.new_page()
        page.goto("/")
        send(page, "/long 250")
        wait_for_end(page)

        assert next(allowances, None) is None
        assert stored(server, page) == said(page)


def test_the_network_is_away_for_a_while(browser: Browser, server: Server) -> None:
    """Offline, and with the open connections cut, the page says so quietly; back again, it goes on by itself."""
    away = threading.Event()
    cut = threading.Event()

    def allowance(request: bytes) -> int | None:
        if away.is_set():
            return 0
        return 3000 if request.startswith(b"GET /stream") and not cut.is_set() else None

    with cutting(server.url, allowance) as url, browser.new_context(base_url=url) as context:
        page = context.new_page()
        page.goto("/")
        away.clear()
        send(page, "/long 500")
        wait_for_words(page, 10)
        away.set()  # what is open ends after its 3000 bytes, and nothing new comes through
        context.set_offline(True)
        expect(page.locator("#notice")).to_contain_text("Reconnecting")
        page.wait_for_timeout(2000)  # it tries again and again
        expect(page.locator("#notice")).to_contain_text("Reconnecting")
        expect(page.locator(".error")).to_have_count(0)
        before = said(page)
        cut.set()
        away.clear()
        context.set_offline(False)

        expect(page.locator("#notice")).to_be_hidden()
        wait_for_end(page)
        assert said(page).startswith(before)
        assert stored(server, page) == said(page)


def test_a_refused_message_is_given_back(unlucky: Page) -> None:
    """What the server does not take stands in the field again, with the reason."""
    refusal = {"error": {"code": 413, "message": "Too long for a test.", "type": "validation_error"}}
    unlucky.route("**/api/sessions/*/messages", lambda route: route.fulfill(status=413, json=refusal), times=1)
    unlucky.locator("#message").fill("Hello")
    unlucky.locator("#message").press("Enter")

    expect(unlucky.locator("#problem")).to_have_text("Not sent: Too long for a test.")
    expect(unlucky.locator("#message")).to_have_value("Hello")
    expect(unlucky.locator(".turn")).to_have_count(0)

    # So does all that was sent to a chat that cannot begin, whichever is open by then.
    held: list[Route] = []
    for leaves in (False, True):
        held.clear()
        unlucky.goto("/")
        unlucky.route("**/api/sessions", lambda route: held.append(route), times=1)
        for text in ("one", "two"):
            unlucky.locator("#message").fill(text)
            unlucky.locator("#message").press("Enter")
        while not held:
            unlucky.wait_for_timeout(20)
        if leaves:
            unlucky.get_by_role("button", name="New chat").click()
            unlucky.locator("#message").fill("three")
        held[0].fulfill(status=413, json=refusal)
        expect(unlucky.locator("#message")).to_have_value("one\n\ntwo" + "\n\nthree" * leaves)
        expect(unlucky.locator("#problem")).to_have_text("" if leaves else "Not sent: Too long for a test.")
        expect(unlucky.locator(".turn")).to_have_count(0)
        assert "session=" not in unlucky.url
        unlucky.locator("#message").fill("")


@pytest.mark.parametrize("how", ["redirect", "page", "refusal"])
def test_whoever_is_signed_out_is_told_and_loses_nothing(
    unlucky: Page, server: Server, how: str, shoot: Callable[[Page, str], None]
) -> None:
    """Something before the server asks to sign in. The page says so, offers it, and keeps the message; once the
    sign-in is there again, the message goes out, once."""
    send(unlucky, "hello")
    wait_for_end(unlucky)
    signed_in: list[bool] = []
    html = "<title>Sign in</title>"

    def gate(route: Route) -> None:
        if signed_in or route.request.method == "GET":
            route.fallback()
        elif how == "redirect":
            route.fulfill(status=302, headers={"location": f"{server.url}/login"})
        else:
            route.fulfill(status=200 if how == "page" else 403, content_type="text/html", body=html)

    unlucky.route("**/api/sessions/*/messages", gate)
    unlucky.route("**/login", lambda route: route.fulfill(content_type="text/html", body=html))
    send(unlucky, "still there?")
    again = unlucky.get_by_role("button", name="Sign in again")
    expect(again).to_be_visible()
    shoot(unlucky, f"signed-out-{how}")
    signed_in.append(True)
    again.click()

    expect(unlucky.locator(".turn")).to_have_count(2)
    wait_for_end(unlucky)
    expect(again).to_be_hidden()
    expect(unlucky.locator(".question")).to_have_text(["hello", "still there?"])
    assert sum(event["type"] == "message.created" for event in server.events(session(unlucky))) == 2


def test_the_server_is_killed_and_started_again(
    browser: Browser, tmp_path: Path, shoot: Callable[[Page, str], None]
) -> None:
    """The page says that it reconnects, and goes on by itself; the guide finishes its answer, with nothing missing."""
    with serving(tmp_path) as server, browser.new_context(base_url=server.url) as context:
        page = context.new_page()
        page.goto("/")
        send(page, "/long 600")
        wait_for_words(page, 30)

        server.kill()

        expect(page.locator("#notice")).to_be_visible()
        expect(page.locator("#notice")).to_contain_text("Reconnecting")
        before = said(page)
        shoot(page, "reconnecting")
        server.start()
        expect(page.locator("#notice")).to_be_hidden()
        wait_for_end(page)
        assert said(page).startswith(before)
        assert stored(server, page) == said(page)
        assert said(page).endswith("note-599 note-600")


def test_a_run_that_died_with_its_server(browser: Browser, tmp_path: Path, shoot: Callable[[Page, str], None]) -> None:
    """A run that cannot be taken up again ends with an error; what came stays, and the next message is answered."""
    agent = tmp_path / "slow.py"
    agent.write_text(SLOW_AGENT)
    with serving(tmp_path, target=agent) as server, browser.new_context(base_url=server.url) as context:
        page = context.new_page()
        page.goto("/")
        send(page, "Go")
        wait_for_words(page, 20)
        server.kill()
        expect(page.locator("#notice")).to_be_visible()

        server.start()

        expect(page.locator(".error")).to_contain_text("The server stopped while the answer was being given.")
        expect(page.locator("#notice")).to_be_hidden()
        wait_for_end(page)
        shoot(page, "interrupted")
        assert stored(server, page) == said(page)
        send(page, "Again")
        wait_for_words(page, 20)
        page.locator("#stop").click()
        expect(page.locator(".turn").last).to_contain_text("Stopped.")


# The page as a page ---------------------------------------------------------------------------------------------------


def test_enter_sends_but_not_while_composing(page: Page) -> None:
    """Enter sends, Shift+Enter makes a line, and the Enter that ends an input method's composition does neither."""
    field = page.locator("#message")
    field.fill("one")
    field.press("Shift+Enter")
    field.press_sequentially("two")
    field.dispatch_event("keydown", {"key": "Enter", "isComposing": True, "bubbles": True, "cancelable": True})
    expect(field).to_have_value("one\ntwo")
    expect(page.locator(".turn")).to_have_count(0)

    field.press("Enter")

    expect(field).to_have_value("")
    expect(page.locator(".question")).to_have_text("one\ntwo")
    wait_for_end(page)


def test_drafts_are_kept(page: Page) -> None:
    """What was typed is there after a reload, each chat having its own."""
    page.locator("#message").fill("a new thought")
    page.reload()
    expect(page.locator("#message")).to_have_value("a new thought")
    send(page, "/long 10")
    wait_for_end(page)
    page.locator("#message").fill("half of an ans")

    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#message")).to_have_value("")
    page.go_back()

    expect(page.locator("#message")).to_have_value("half of an ans")
    expect(page.locator(".prose")).to_contain_text("note-10")


def test_the_list_of_chats(page: Page, context: BrowserContext) -> None:
    """A chat is listed by its first message, can be opened from there, and deleted after a question, for every tab."""
    send(page, "/long 11")
    wait_for_end(page)
    mine = page.locator(f"#list [data-id='{session(page)}']")
    expect(mine).to_contain_text("/long 11")
    other = context.new_page()
    other.goto("/")
    other.locator(f"#list [data-id='{session(page)}'] a").click()
    expect(other.locator(".prose")).to_contain_text("note-11")

    mine.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Keep it").click()
    expect(mine).to_be_visible()
    mine.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()

    expect(mine).to_have_count(0)
    expect(page.locator(".turn")).to_have_count(0)
    expect(other.locator("#problem")).to_have_text("This chat has been deleted.")


def test_a_chat_is_deleted_while_it_is_answered(unlucky: Page, server: Server) -> None:
    """Nothing looks as if it went on, and what one sends then is a draft again, with the reason."""
    send(unlucky, "/long 2000")
    wait_for_words(unlucky, 5)
    expect(unlucky.locator("#stop")).to_be_visible()

    httpx2.delete(f"{server.url}/api/sessions/{session(unlucky)}").raise_for_status()

    expect(unlucky.locator("#problem")).to_have_text("This chat has been deleted.")
    expect(unlucky.locator("#stop")).to_be_hidden()
    expect(unlucky.locator("legato-chat [aria-busy=true]")).to_have_count(0)
    unlucky.locator("#message").fill("and more")
    unlucky.locator("#message").press("Enter")
    expect(unlucky.locator("#problem")).to_contain_text("Not sent")
    expect(unlucky.locator("#message")).to_have_value("and more")
    expect(unlucky.locator(".question")).to_have_text(["/long 2000"])


def test_scrolling_up_stops_the_following(page: Page) -> None:
    """The page follows the text until the reader goes up; the button brings the reader back."""
    page.set_viewport_size({"width": 700, "height": 400})
    send(page, "/long 1200")
    wait_for_words(page, 400)
    page.mouse.move(350, 200)
    page.mouse.wheel(0, -150)
    expect(page.locator("#latest")).to_be_visible()
    # A wheel's way may take some frames.
    place = page.locator("#scroll").evaluate("""async each => {
        let [place, frames] = [each.scrollTop, 0];
        for (; frames < 20; frames += 1) {
            await new Promise(requestAnimationFrame);
            if (each.scrollTop !== place) [place, frames] = [each.scrollTop, 0];
        }
        return place;
    }""")
    wait_for_words(page, 700)
    assert place == page.locator("#scroll").evaluate("each => each.scrollTop")

    page.locator("#latest").click()

    expect(page.locator("#latest")).to_be_hidden()
    wait_for_words(page, 900)
    below = "each => each.scrollHeight - each.clientHeight - each.scrollTop < 2"  # but for what has just been put in
    page.wait_for_function(below, arg=page.locator("#scroll").element_handle())
    page.locator("#stop").click()
    wait_for_end(page)


def test_a_screen_reader_hears_steps_not_tokens(page: Page) -> None:
    """The growing text is in no live region; the end is said once."""
    page.evaluate("""() => {
        window.heard = [];
        const status = document.querySelector('legato-chat').shadowRoot.querySelector('[role=status]');
        new MutationObserver(() => heard.push(status.textContent)).observe(status, {childList: true});
    }""")
    send(page, "/long 100")
    wait_for_end(page)

    assert page.locator("[aria-live] .prose, [role=log] .prose, [role=status] .prose").count() == 0
    assert ["Generating the answer.", "The answer is complete."] == page.evaluate("heard")


def test_the_keyboard_reaches_everything(page: Page) -> None:
    """On a narrow page the list opens, closes by Escape, and the focus goes along."""
    page.set_viewport_size({"width": 320, "height": 640})
    expect(page.locator("#chats")).to_be_hidden()  # the way from the wide page, which shows it, is over
    page.locator("#menu").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="New chat")).to_be_focused()
    expect(page.locator("#menu")).to_have_attribute("aria-expanded", "true")

    page.keyboard.press("Escape")

    expect(page.locator("#menu")).to_be_focused()
    expect(page.get_by_role("button", name="New chat")).to_be_hidden()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="New chat")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name="New chat")).to_be_hidden()
    expect(page.locator("#menu")).to_have_attribute("aria-expanded", "false")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_wide_in_both_themes(
    browser: Browser, server: Server, shoot: Callable[[Page, str], None], scheme: str
) -> None:
    """Nothing is wider than the page, down to 320 pixels, whatever an answer holds."""
    with browser.new_context(base_url=server.url, color_scheme=scheme) as context:  # type: ignore[arg-type]
        page = context.new_page()
        page.goto("/")
        expect(page.locator("#ideas button").or_(page.locator(".empty")).first).to_be_visible()
        shoot(page, f"{scheme}-empty")
        send(page, "How is tea made? " + "longword" * 30)
        wait_for_end(page)
        for text in ("/tools", "/permission"):
            send(page, text)
            if text == "/permission":
                expect(page.get_by_role("button", name="Allow")).to_be_visible()
            else:
                wait_for_end(page)
        for width, height in ((1100, 760), (320, 640)):
            page.set_viewport_size({"width": width, "height": height})
            shoot(page, f"{scheme}-{width}")
            assert width == page.evaluate("document.documentElement.scrollWidth")
            assert page.locator("#scroll").evaluate("each => each.scrollWidth <= each.clientWidth")
        page.get_by_role("button", name="Deny").click()
        wait_for_end(page)


def test_an_unknown_chat(unlucky: Page, server: Server) -> None:
    """An address of a chat that is not there says so."""
    unlucky.goto(f"{server.url}/?session=nothing-here")

    expect(unlucky.locator("#problem")).to_have_text("This chat does not exist any more.")


# The API reference, and the modules by themselves ---------------------------------------------------------------------


def test_the_reference_shows_every_operation(
    context: BrowserContext, server: Server, shoot: Callable[[Page, str], None]
) -> None:
    """Each operation stands there with its parameters, answers and a command to try, and each schema."""
    api = server.get("/openapi.json").json()
    page = context.new_page()
    page.goto("/docs")

    operations = [(method, path) for path, item in api["paths"].items() for method in item]
    expect(page.locator(".operation")).to_have_count(len(operations))
    for method, path in operations:
        title = re.compile(rf"^{method.upper()}\s+{re.escape(path)}$")
        expect(page.locator(".operation h3").filter(has_text=title)).to_have_count(1)
    expect(page.locator(".schema")).to_have_count(len(api["components"]["schemas"]))
    expect(page.locator("#op-sendMessage pre")).to_contain_text(
        f"curl -X POST '{server.url}/api/sessions/<id>/messages'"
    )
    page.set_viewport_size({"width": 320, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    shoot(page, "docs")


def test_modules_in_node() -> None:
    """The decoder, the stream and the fold pass their own tests."""
    tests = sorted(str(path) for path in (HERE / "web").glob("*.test.mjs"))
    run = subprocess.run([node(), "--test", *tests], capture_output=True, text=True, timeout=300)

    assert run.returncode == 0, run.stdout[max(run.stdout.find("\nnot ok"), 0) :][:8000]
    assert re.search(r"^# pass [1-9]", run.stdout, re.MULTILINE)


WEB = HERE.parent / "src/legato/web"
MARKUP = (
    r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|parseFromString|createContextualFragment|document\.write|eval\("
)


def loaded(name: str, found: set[str] | None = None) -> set[str]:
    """The modules that a module brings along, itself included."""
    found = {name} if found is None else found | {name}
    for each in re.findall(r'^(?:import|export) .*?"\./(.+)";$', (WEB / name).read_text(), re.MULTILINE):
        found |= set() if each in found else loaded(each, found)
    return found


def test_the_pages_bring_no_code_of_others() -> None:
    """No build, no third party: modules that load each other only; and one place where HTML is put in, sanitized."""
    for path in WEB.glob("*.js"):
        if path.name in ("react.js", "react-chat.js"):  # for those who have React
            continue
        imports = re.findall(r'^(?:import|export) .*?"(.+)";$', path.read_text(), re.MULTILINE)
        assert set(imports) <= {f"./{other.name}" for other in WEB.glob("*.js")}, path.name
        assert (path.name == "prose.js") == bool(re.search(MARKUP, path.read_text())), path.name
    assert 1 == len(re.findall(MARKUP, (WEB / "prose.js").read_text()))
    for page in WEB.glob("*.html"):
        assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=|https?://", page.read_text()), page.name


def test_what_is_left_out_of_programs_is_comments_alone() -> None:
    """Each line keeps its number, and the words that are no comment stand as they stood."""

    def words(program: str) -> str:
        tokens = JavascriptLexer().get_tokens(program)
        text = "".join(value for kind, value in tokens if kind not in Comment)
        return "".join(re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL).split())  # in the style sheets, too

    for path in WEB.glob("*.js"):
        written = path.read_text()
        program = uncommented(written)
        assert (path.name, words(program), program.count("\n")) == (path.name, words(written), written.count("\n"))
    assert uncommented('/** a\n * b **/\n  // c\nlet d = "// e"; // f\n') == '\n\n\nlet d = "// e";\n'
    assert uncommented('/** @type {"a*b"} */ let a; // b\'s\n') == "let a;\n"
    for whole in ('let a = " // b";\n', "let a = `// b // c`;\n", 'let a = "/*" + b + "*/";\n', 'a = "http://b";\n'):
        assert uncommented(whole) == whole


def test_programs_are_asked_for_once(server: Server) -> None:
    first = httpx2.get(f"{server.url}/web/page.js")
    again = httpx2.get(f"{server.url}/web/page.js", headers={"if-none-match": first.headers["etag"]})
    head = httpx2.head(f"{server.url}/web/page.js", headers={"accept-encoding": "identity"})

    assert (first.status_code, again.status_code, again.content) == (200, 304, b"")
    assert first.text == uncommented((WEB / "page.js").read_text())
    assert (head.content, int(head.headers["content-length"])) == (b"", len(first.content))
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"


def test_the_chat_page_is_light(page: Page, server: Server) -> None:
    """At most 150 kB of programs, and 80 kB on the wire in all; and what we think."""
    modules = loaded("page.js")
    names = "[...new Set(performance.getEntriesByType('resource').map((each) => each.name))]"
    # Some are loaded by others, after the page has been.
    page.wait_for_function(f"{names}.filter((each) => each.endsWith('.js')).length >= {len(modules)}")
    seen: set[str] = set(page.evaluate(names))
    files = {name: url for url in seen if (name := url.partition("/web/")[2])}
    wire = decoded = 0
    # Measured here: what a browser says of its cache varies, and a list of chats is none of the page's.
    for name, url in {"": f"{server.url}/", **files}.items():
        with httpx2.stream("GET", url, headers={"accept-encoding": "gzip"}) as response:
            response.read()
            wire += response.num_bytes_downloaded
            decoded += len(response.content) if name.endswith(".js") else 0

    assert {name for name in files if name.endswith(".js")} == modules
    assert all(url.startswith(server.url) for url in seen)
    assert decoded == sum(len(uncommented((WEB / name).read_text()).encode()) for name in modules)
    assert 100_000 < decoded < 150_000
    assert 40_000 < wire < 80_000
