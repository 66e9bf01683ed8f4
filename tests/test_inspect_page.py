"""The inspector in a real browser, against a real server with real readers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from browser import Server, browsing, serving
from facts import draft
from legato.sse import HEARTBEAT
from legato.store.sqlite import SQLiteStore
from node_packages import package

AXE = "axe-core@4.14.1"
COLUMNS = ("mix/python-0.8.1", "responses", "chat", "deva")
# Speaks, then asks and waits: so what a test does next meets a run that goes on.
AGENT = """
import asyncio
from legato import Agent, Thinking, ToolCall, ToolResult, ToolStarted

async def talk(turn):
    text = turn.message.text
    if text == "fail":
        raise RuntimeError("This was asked for.")
    if turn.attempt == 1:
        yield Thinking("What is asked?")
        yield "One moment. "
        yield ToolCall("t1", "look", '{"for":"tea"}')
        yield ToolStarted("t1", "Looking")
        yield ToolResult("t1", {"found": ["tea.md"]})
        for number in range(80 if text == "big" else 3):
            yield f"word-{number} " * (300 if text == "big" else 1)
            await turn.stored()  # else some of them are stored as one
    if text == "slow":
        await asyncio.sleep(2)  # the last word and the end are one place in the picture then
    elif text != "short":
        await turn.ask_permission("go", "Go on?")
    yield "Done."

agent = Agent(talk, on_crash="resume")
"""

expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    agent = tmp_path / "talk.py"
    agent.write_text(AGENT)
    with serving(tmp_path, target=agent) as server:
        yield server


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A page that may not report an error, nor ask another host."""
    errors: list[str] = []
    with browser.new_context(base_url=server.url, viewport={"width": 1440, "height": 1000}) as context:
        context.set_default_timeout(60_000)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        context.on("request", lambda r: None if r.url.startswith(server.url) else errors.append(r.url))
        context.on("console", lambda m: errors.append(m.text) if "Content Security Policy" in m.text else None)
        yield context.new_page()
    assert errors == []


@pytest.fixture
def shoot(tmp_path: Path) -> Callable[[Page, str], None]:
    """Takes a picture into the folder that LEGATO_SCREENSHOTS names, else into the test's own."""
    folder = Path(os.environ.get("LEGATO_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png", animations="disabled") and None


def post(server: Server, path: str, body: Any = None) -> dict[str, Any]:
    answer = httpx2.post(server.url + path, json=body).raise_for_status()
    return dict(answer.json())


def begin(server: Server, text: str = "hello", title: str = "") -> tuple[str, str]:
    """A session with one message; its id and the run's."""
    session = post(server, "/api/sessions", {"title": title})["id"]
    return session, post(server, f"/api/sessions/{session}/messages", {"text": text})["runId"]


def grant(server: Server, session: str) -> None:
    """Answer what the agent asks, once it has asked."""
    wait_for(lambda: "permission.requested" in kinds(server, session))
    asked = next(event for event in server.events(session) if event["type"] == "permission.requested")
    post(server, f"/api/permissions/{asked['data']['id']}/grant")  # type: ignore[index]


def kinds(server: Server, session: str) -> list[Any]:
    return [event["type"] for event in server.events(session)]


def wait_for(condition: Callable[[], bool]) -> None:
    """Return when another process has come so far; the bound is a safety net."""
    for _ in range(6_000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came so far")


@contextlib.contextmanager
def reading(server: Server, path: str, *, takes: bool = True) -> Iterator[None]:
    """A reader on a socket of its own; one that does not take anything, if not ``takes``."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # before connecting, or it counts for nothing
    connection.connect((host, int(port)))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def take() -> None:
        with contextlib.suppress(OSError):
            while connection.recv(65536):
                pass

    if takes:
        threading.Thread(target=take, daemon=True).start()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def chosen(page: Page, offset: int, column: str) -> str:
    """The whole text of a chosen event in a column; empty where the dialect is silent."""
    row = page.locator(f"[data-offset='{offset}'][aria-selected=true]")
    cell = row.locator(f"[data-dialect='{column}']")
    expect(cell).to_have_count(1)
    return "".join(cell.locator("pre").all_text_contents())


# What goes on ---------------------------------------------------------------------------------------------------------


def test_a_log_is_seen_growing(page: Page, server: Server, shoot: Callable[[Page, str], None]) -> None:
    """What is stored appears by itself, row by row, and the page says what the agent does."""
    session, _ = begin(server, title="A chat")
    page.goto("/inspect")
    expect(page.locator("#sessions [aria-current]")).to_contain_text("A chat")
    expect(page.locator("#agent .big")).to_have_text("Waits for an answer")
    expect(page.locator("[data-type='permission.requested'] .said")).to_have_text("go: Go on?")
    assert "run.completed" not in kinds(server, session)

    grant(server, session)

    expect(page.locator("[data-type='run.completed']")).to_be_visible()
    expect(page.locator("#agent .big")).to_have_text("Idle: it is done")
    expect(page.locator("#store .big")).to_have_text(f"{len(server.events(session))} events")
    shoot(page, "inspect-done")


def test_a_session_that_begins_while_one_looks(page: Page, server: Server) -> None:
    """An empty server explains itself; its first session is shown as soon as it is there, by what was said."""
    page.goto("/inspect")
    expect(page.locator("#nothing")).to_be_visible()

    begin(server, "short")

    expect(page.locator("#sessions [aria-current]")).to_contain_text("short")
    expect(page.locator("[data-type='run.completed']")).to_be_visible()
    expect(page.locator("#nothing")).to_be_hidden()


def test_figures_are_shown_while_somebody_looks(page: Page, server: Server) -> None:
    """Those of what has happened, and they go on; closed, they are not asked for."""
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/inspect")
    expect(page.locator("#facts li").first).to_be_visible()
    assert not [url for url in asked if url.endswith("/measures")]
    page.locator("#measures summary").click()
    row = page.locator("#measures tr", has_text="answers_total").filter(has_text="inspectMeasures, 200")
    expect(row.locator("td").last).to_have_text(re.compile("[2-9]"))
    expect(page.locator("#measures tr", has_text="runs_ended_total")).to_have_count(0)


def test_a_reader_comes_and_goes(page: Page, server: Server) -> None:
    """Its flag says who it is and where; the page itself is no reader."""
    session, run = begin(server)
    page.goto(f"/inspect?session={session}")
    expect(page.locator("#watchers .big")).to_have_text("Nobody reads")

    with reading(server, f"/stream?sessionId={session}&from=start&client=python-0.8.1"):
        expect(page.locator(".flags li")).to_have_text(re.compile(r"^Reader \d+ \(Mix · python-0\.8\.1\): up to date$"))
        with reading(server, f"/v1/responses/resp_{run}?stream=true"):
            expect(page.locator(".flags li")).to_have_count(2)
            expect(page.locator(".flags")).to_contain_text("Responses")
            expect(page.locator("#watchers .big")).to_have_text("2, up to date")

    expect(page.locator(".flags li")).to_have_count(0)
    expect(page.locator("#watchers .big")).to_have_text("Nobody reads")


def test_a_stalled_reader_is_seen_behind(page: Page, server: Server, shoot: Callable[[Page, str], None]) -> None:
    """Its cursor stays where it stopped, and the page says so, also from another session, from where it leads there."""
    session, _ = begin(server, "big")
    other, _ = begin(server, "short")
    wait_for(lambda: "permission.requested" in kinds(server, session))
    page.goto(f"/inspect?session={session}")

    with reading(server, f"/stream?sessionId={session}&from=start&client=python-0.8.1", takes=False):
        flag = page.locator(".flags li[data-state=stalled]")
        expect(flag).to_have_text(re.compile(r"at \d+, \d+ behind, takes nothing for"))
        expect(page.locator("#watchers .big")).to_have_text(re.compile(r"^1, \d+ behind$"))
        shoot(page, "inspect-stalled")
        page.goto(f"/inspect?session={other}")
        page.locator(".trouble", has_text="has taken nothing for").click()
        expect(page).to_have_url(re.compile(session))

    expect(page.locator(".trouble", has_text="has taken nothing for")).to_have_count(0)


def test_a_run_that_failed(page: Page, server: Server) -> None:
    """Is told, and leads to the event that says why."""
    session, _ = begin(server, "fail")
    page.goto(f"/inspect?session={session}")

    page.locator(".trouble", has_text="The last run failed.").click()

    expect(page.locator("[aria-selected=true]")).to_have_attribute("data-type", "run.failed")
    expect(page.locator("#agent .big")).to_have_text("Idle: it failed")


def test_the_server_is_killed_and_started_again(page: Page, server: Server, shoot: Callable[[Page, str], None]) -> None:
    """The page says that it is gone, goes on by itself, and shows the second attempt."""
    session, _ = begin(server)
    page.goto(f"/inspect?session={session}")
    expect(page.locator("[data-type='permission.requested']")).to_be_visible()

    server.kill()
    expect(page.locator("#health")).to_contain_text("does not answer")
    server.start()

    expect(page.locator("#health")).to_contain_text("Up for")
    expect(page.locator(".trouble", has_text="attempt 2 of the run")).to_be_visible()
    shoot(page, "inspect-attempts")
    grant(server, session)
    expect(page.locator("[data-type='run.completed']")).to_be_visible()
    expect(page.locator("#run")).to_contain_text("Run 1: completed, 2 attempts")


def test_rows_that_cannot_be_read(page: Page, server: Server) -> None:
    """The page says so, and shows them as soon as they can be, in their columns."""
    session, _ = begin(server, "short")
    failing = {"error": {"code": 500, "message": "The store is on strike.", "type": "internal_error", "reason": "test"}}
    page.route("**/wire?*", lambda route: route.fulfill(status=500, json=failing))

    page.goto(f"/inspect?session={session}")

    expect(page.locator("#refusal")).to_have_text("Some events cannot be read: The store is on strike.")
    page.unroute("**/wire?*")
    expect(page.locator("[data-type='run.completed']")).to_be_visible()
    expect(page.locator("#refusal")).to_be_hidden()

    # What comes late stands in its columns, also where others have been chosen meanwhile, and these again.
    length = len(server.events(session))
    held: list[Route] = []
    page.route(re.compile(r"/wire\?after=[1-9]"), lambda route: route.continue_() if held else held.append(route))
    post(server, f"/api/sessions/{session}/messages", {"text": "short"})
    wait_for(lambda: page.wait_for_timeout(10) or bool(held))
    column = page.get_by_role("checkbox", name="Responses")
    with page.expect_response("**/wire?after=0*"):
        column.uncheck()
    expect(page.locator("[data-offset] [data-dialect='chat']").first).to_be_visible()
    column.check()
    with page.expect_response("**/wire?*"):
        held[0].continue_()

    wait_for(lambda: len(server.events(session)) == 2 * length - 1)
    ends = page.locator("[data-type='run.completed']")
    expect(ends.locator("[data-dialect='responses']")).to_contain_text(["response.output_text.done"] * 2)
    expect(page.locator(f"#event-{length} .type")).to_have_text("run.completed")


# The wire forms -------------------------------------------------------------------------------------------------------


def test_the_columns_are_what_the_endpoints_send(page: Page, server: Server) -> None:
    """Event by event, what the page shows of a run is what readers of each dialect got, byte for byte."""
    asked = {"model": "talk", "stream": True, "messages": [{"role": "user", "content": "short"}]}
    chat = httpx2.post(server.url + "/v1/chat/completions", json=asked).content.removeprefix(HEARTBEAT)
    found = re.search(rb"chatcmpl-(([\w.-]+)~\w+)", chat)
    assert found is not None
    run, session = found[1].decode(), found[2].decode()
    responses = server.get(f"/v1/responses/resp_{run}?stream=true").content.removeprefix(HEARTBEAT)
    deva = httpx2.post(f"{server.url}/api/sdk/chat/{session}/messages/{run}~u/query/stream").content
    events = server.events(session)
    with httpx2.stream("GET", f"{server.url}/stream?sessionId={session}&from=start&client=python-0.8.1") as stream:
        mix = b""
        for piece in stream.iter_bytes():
            mix += piece
            if f"id: {len(events)}\n".encode() in mix:
                break

    page.goto(f"/inspect?session={session}&event=1")
    shown = dict.fromkeys(COLUMNS, "")
    for offset in range(1, len(events) + 1):
        for column in COLUMNS:
            shown[column] += chosen(page, offset, column)
        page.locator("[role=grid]").press("ArrowDown")

    assert shown["responses"].encode() == responses
    assert shown["chat"].encode() == chat
    assert shown["deva"].encode() == re.sub(rb"^:\nretry: \d+\n", b"", deva)  # without its own first lines
    assert shown["mix/python-0.8.1"].encode() == mix.partition(b"\n\n")[2]  # without its own first frame


def test_the_same_fact_is_marked_in_every_column(page: Page, server: Server) -> None:
    """What a piece of text says is marked in each dialect's form; columns come and go."""
    session, _ = begin(server, "short")
    page.goto(f"/inspect?session={session}")
    words = page.locator("[data-type='text.delta']", has_text="Done.")
    words.locator(".said").click()

    expect(page.locator("[aria-selected=true] mark")).to_have_text(["Done."] * (1 + len(COLUMNS)))
    page.get_by_label("Mix, Legato's own").check()
    page.get_by_role("checkbox", name="Responses").uncheck()
    expect(page.locator("[aria-selected=true] [data-dialect]")).to_have_count(5)
    expect(page.locator("[aria-selected=true] [data-dialect='mix/legato'] mark")).to_have_text("Done.")


# Finding one's way ----------------------------------------------------------------------------------------------------


def test_an_event_has_an_address(page: Page, server: Server) -> None:
    """A chosen event is in the URL, and the URL leads to it."""
    session, _ = begin(server, "short")
    page.goto(f"/inspect?session={session}&event=4")
    expect(page.locator("[aria-selected=true]")).to_have_attribute("data-offset", "4")

    page.locator("[data-offset='6'] .said").click()

    expect(page).to_have_url(re.compile(r"event=6$"))
    page.reload()
    expect(page.locator("[aria-selected=true]")).to_have_attribute("data-offset", "6")


def test_a_click_in_the_picture_finds_the_event(page: Page, server: Server) -> None:
    """The tip says what is there, and the log goes to it."""
    session, _ = begin(server, "slow")
    page.goto(f"/inspect?session={session}")
    expect(page.locator("[data-type='run.completed']")).to_be_visible()
    picture = page.locator("#timeline canvas")
    box = picture.bounding_box()
    assert box is not None

    x = box["width"] - 20
    picture.hover(position={"x": x, "y": 150})
    expect(page.locator(".tip")).to_contain_text(re.compile(r"text\.delta|run\.completed"))
    while "run.completed" in page.locator(".tip").inner_text():  # on a busy machine that has a place of its own
        x -= 4
        assert x > 0
        picture.hover(position={"x": x, "y": 150})
        page.evaluate("() => new Promise(requestAnimationFrame)")
    expect(page.locator(".tip")).to_contain_text("text.delta")
    picture.click(position={"x": x, "y": 150})

    expect(page.locator("[aria-selected=true]")).to_have_attribute("data-type", "text.delta")
    expect(page.locator("[aria-selected=true] pre").first).to_contain_text("Done.")


def test_by_keyboard_alone(page: Page, server: Server) -> None:
    """The picture is a slider over events, the log a grid; both tell where one is."""
    session, _ = begin(server, "short")
    last = len(server.events(session))
    page.goto(f"/inspect?session={session}")
    expect(page.locator("[data-type='run.completed']")).to_be_visible()
    last = len(server.events(session))
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()

    slider = page.get_by_role("slider", name="Events in time")
    slider.focus()
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuenow", "2")
    page.keyboard.press("ArrowRight")
    expect(slider).to_have_attribute("aria-valuetext", re.compile(r"^Event 3, run\.started, "))
    grid = page.get_by_role("grid")
    grid.focus()
    page.keyboard.press("End")
    expect(grid).to_have_attribute("aria-activedescendant", f"event-{last}")
    expect(page.locator(f"#event-{last}")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Escape")
    expect(page.locator("[aria-selected=true]")).to_have_count(0)
    page.get_by_role("button", name="Follow the newest").press("Enter")
    expect(grid).to_be_focused()


def test_an_unknown_session(page: Page) -> None:
    """Says so."""
    page.goto("/inspect?session=nothing-here")
    expect(page.locator("#refusal")).to_have_text("This session is not there, or not any more.")


def test_several_runs(page: Page, server: Server) -> None:
    """The picture is of one run or of all; the log is of all."""
    session, first = begin(server, "short")
    post(server, f"/api/sessions/{session}/messages", {"text": "short"})
    wait_for(lambda: kinds(server, session).count("run.completed") == 2)
    page.goto(f"/inspect?session={session}")
    second = [place + 1 for place, kind in enumerate(kinds(server, session)) if kind == "message.created"][1]
    expect(page.locator("#span")).to_contain_text(f"events {second} to")

    page.locator("#run").select_option(first)
    expect(page.locator("[aria-selected=true]")).to_have_attribute("data-offset", "2")
    expect(page.locator("#span")).to_contain_text("events 2 to")
    page.locator("#run").select_option("all")
    expect(page.locator("#span")).to_contain_text("events 1 to")


# A long log -----------------------------------------------------------------------------------------------------------

LONG = 100_000


def fill(path: Path) -> None:
    """A session with one run of a hundred thousand pieces, written past the server."""

    async def write() -> None:
        store = SQLiteStore(path, durability="normal")
        await store.open()
        run = "long~abc123"
        message = {"id": f"{run}~u", "role": "user", "text": "Talk"}
        await store.append(
            "long", [draft("session.created", {"title": "Long"}), draft("message.created", message, run)]
        )
        lease = await store.acquire("long", run, owner="test", ttl=1000.0)
        await store.append("long", [draft("run.started", {"agent": "talk", "attempt": 1}, run)], lease=lease)
        for start in range(0, LONG, 2_000):
            pieces = [
                draft("text.delta", {"part": 0, "step": 1, "start": 5 * at, "text": "word "}, run)
                for at in range(start, start + 2_000)
            ]
            await store.append("long", pieces, lease=lease)
        whole = {"id": f"{run}~a1", "text": "word", "parts": [{"type": "text", "step": 1, "text": "word " * LONG}]}
        ended = {"message": whole, "finish_reason": "stop"}
        await store.append("long", [draft("run.completed", ended, run)], lease=lease)
        await store.close()

    # In a thread: Playwright keeps an event loop in this one.
    thread = threading.Thread(target=lambda: asyncio.run(write()))
    thread.start()
    thread.join()


def test_a_hundred_thousand_events(browser: Browser, tmp_path: Path, shoot: Callable[[Page, str], None]) -> None:
    """All of them are in the picture, a few rows in the page, and any of them is a click away."""
    fill(tmp_path / "chat.db")
    with serving(tmp_path) as server, browser.new_context(base_url=server.url) as context:
        page = context.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto("/inspect?session=long")
        expect(page.locator("#span")).to_contain_text("events 2 to 100,004")
        expect(page.locator("[data-offset='100004'] .said")).to_contain_text("stop")
        assert page.locator("[data-offset]").count() < 60

        page.locator("#timeline canvas").click(position={"x": 500, "y": 150})

        offset = page.locator("[aria-selected=true]").get_attribute("data-offset")
        assert offset is not None
        assert 1_000 < int(offset) < 99_000
        assert f'"sequence_number":{int(offset)}' in chosen(page, int(offset), "responses")
        shoot(page, "inspect-long")
        assert sum("/wire?" in url for url in asked) < 10
        page.locator("[role=grid]").press("Home")
        expect(page.locator("#event-1")).to_contain_text("session.created")


# The page as a page ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_wide_in_both_themes(
    browser: Browser, server: Server, shoot: Callable[[Page, str], None], scheme: str
) -> None:
    """Nothing is wider than the page, down to 320 pixels, and axe finds nothing to object to."""
    axe = (package(AXE) / "node_modules" / "axe-core" / "axe.min.js").read_text()
    session, _ = begin(server, "big", title="A title that is rather long, " * 4)
    wait_for(lambda: "permission.requested" in kinds(server, session))
    with (
        browser.new_context(base_url=server.url, color_scheme=scheme, bypass_csp=True) as context,  # type: ignore[arg-type]
        reading(server, f"/stream?sessionId={session}&from=start", takes=False),
    ):
        page = context.new_page()
        page.goto(f"/inspect?session={session}&event=5")
        expect(page.locator(".trouble").first).to_be_visible()
        expect(page.locator("[aria-selected=true] pre").first).to_be_visible()
        page.evaluate(axe)
        for width, height in ((1440, 1000), (320, 640)):
            page.set_viewport_size({"width": width, "height": height})
            expect(page.locator("[aria-selected=true] pre").first).to_be_visible()
            shoot(page, f"inspect-{scheme}-{width}")
            assert width == page.evaluate("document.documentElement.scrollWidth")
            found = page.evaluate("() => axe.run({resultTypes: ['violations']})")["violations"]
            assert [(each["id"], [node["html"] for node in each["nodes"]][:3]) for each in found] == []


def test_those_who_want_no_motion_get_none(browser: Browser, server: Server) -> None:
    """Flags and dots stay still, and so does the picture between two answers of the server."""
    session, _ = begin(server)
    with (
        browser.new_context(base_url=server.url, reduced_motion="reduce") as context,
        reading(server, f"/stream?sessionId={session}"),
    ):
        page = context.new_page()
        page.goto(f"/inspect?session={session}")
        expect(page.locator(".flags li")).to_have_count(1)
        for selector in (".flags li", ".dot"):
            style = page.locator(selector).first.evaluate(
                "each => [getComputedStyle(each).animationName, getComputedStyle(each).transitionDuration]"
            )
            assert style == ["none", "0s"]
