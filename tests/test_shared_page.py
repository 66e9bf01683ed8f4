"""The chat page of who did not begin the chat: it says whose it is, what may be done there, and shows its files."""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2
import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from browser import ARGS, chromium
from legato import Legato
from legato.auth import APIKeys
from legato.auth.keys import add_key, new_key
from legato.server import mix
from legato.store.memory import MemoryStore
from live_server import serving
from pictures import png

ALLOWED: dict[str, tuple[str, ...]] = {
    "watcher": ("read",),
    "partner": ("read", "send", "answer"),
}
"""What others may do to a session of the owner's."""


class Stage(NamedTuple):
    """A server with a session of the owner's, in which the agent asks something."""

    url: str
    session: str
    keys: dict[str, str]


def may(caller: Any, session: Any, action: str) -> bool:
    return session.owner == caller.subject or action in ALLOWED.get(caller.subject, ())


async def agent(turn: Any) -> Any:
    if turn.message.text != "What is this?":
        yield f"You said {turn.message.text}."
        return
    yield "Let me look. "
    yield "Yes." if await turn.ask_permission("Eyes", "Look at the picture?") else "No."


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    store, keys = MemoryStore(), {}
    for name in ("owner", *ALLOWED):
        keys[name], kept = new_key(name)
        asyncio.run(add_key(store, kept))
    app = Legato(store, agents=[agent], auth=APIKeys(), may=may, shared=lambda caller: ["owner"])
    app.drain_on_signal = False
    with serving(app) as url, httpx2.Client(base_url=url, trust_env=False) as client:
        client.headers["authorization"] = f"Bearer {keys['owner']}"
        session = client.post("/v1/conversations", json={}).json()["id"]
        picture = f"data:image/png;base64,{base64.b64encode(png(60, 40)).decode()}"
        content = [{"type": "input_text", "text": "What is this?"}, {"type": "input_image", "image_url": picture}]
        body = {"conversation": session, "input": [{"role": "user", "content": content}], "background": True}
        client.post("/v1/responses", json=body).raise_for_status()
        yield Stage(url, session, keys)
        client.post(f"/api/sessions/{session}/cancel", json={})  # else the server would wait for the answer


@pytest.fixture(scope="module")
def context(stage: Stage) -> Iterator[BrowserContext]:
    # After the stage: while Playwright lives, this thread has an event loop, in which no other can run.
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGS, timeout=120_000)
        with browser.new_context() as context:
            yield context
        browser.close()


@contextlib.contextmanager
def visiting(context: BrowserContext, stage: Stage, who: str, session: str = "") -> Iterator[Page]:
    context.clear_cookies()
    page = context.new_page()
    signed = page.request.post(f"{stage.url}/api/auth/sign-in", data={"token": stage.keys[who]})
    assert signed.ok
    page.goto(f"{stage.url}/?session={session or stage.session}")
    yield page
    page.close()


@pytest.mark.parametrize("who", [*ALLOWED])
def test_one_sees_whose_it_is_and_what_one_may(context: BrowserContext, stage: Stage, who: str) -> None:
    """Nothing is offered that would be refused, and what is missing is said; a picture comes with the cookie."""
    allowed = ALLOWED[who]
    with visiting(context, stage, who) as page:
        expect(page.locator("#list .fine")).to_have_text("owner")
        expect(page.locator("#message")).to_be_visible(visible="send" in allowed)
        expect(page.locator("#stop")).to_be_visible(visible="cancel" in allowed)
        expect(page.get_by_role("button", name="Allow")).to_be_visible(visible="answer" in allowed)
        expect(page.locator(".ask").get_by_text("Others are to answer this.")).to_be_visible(
            visible="answer" not in allowed
        )
        expect(page.locator("#list button")).to_have_count(int("change" in allowed))
        rest = "" if "send" in allowed else " You may read it, and not write in it."
        expect(page.locator("#whose")).to_have_text(f"A chat of owner.{rest}")
        expect(page.get_by_role("article", name="owner", exact=True)).to_contain_text("What is this?")
        picture = page.get_by_role("img", name="Image")
        expect(picture).to_be_visible()
        assert 60 == picture.evaluate("async (each) => (await each.decode(), each.naturalWidth)")


def named(page: Page, names: dict[str, str], who: str) -> None:
    """Each question is named by who wrote it: for ears always, for eyes where that is another."""
    for text, name in names.items():
        article = page.get_by_role("article", name="You" if name == who else name, exact=True).filter(has_text=text)
        expect(article).to_be_visible()
        shown = page.locator(".turn", has=article).locator(".who:visible")
        expect(shown).to_have_text([] if name == who else [name])


def test_each_message_has_its_writers_name(context: BrowserContext, stage: Stage) -> None:
    """As it comes, after a reload, and when it is answered anew."""

    def say(who: str, text: str, conversation: str) -> None:
        headers = {"authorization": f"Bearer {stage.keys[who]}"}
        body = {"conversation": conversation, "input": text}
        httpx2.post(f"{stage.url}/v1/responses", json=body, headers=headers).raise_for_status()

    headers = {"authorization": f"Bearer {stage.keys['owner']}"}
    session = httpx2.post(f"{stage.url}/api/sessions", json={}, headers=headers).json()["id"]
    names = {"first": "owner", "second": "partner", "third": "owner"}
    for text, who in names.items():
        say(who, text, session)
    with visiting(context, stage, "partner", session) as page:
        named(page, names, "partner")
    with visiting(context, stage, "owner", session) as page:
        named(page, names, "owner")
        page.locator("#message").fill("fourth")
        page.locator("#message").press("Enter")
        names |= {"fourth": "owner", "fifth": "partner"}
        expect(page.locator(".answer", has_text="fourth")).to_be_visible()
        say("partner", "fifth", session)
        named(page, names, "owner")
        page.get_by_role("button", name="Regenerate").click()
        with page.expect_response("**/retry"):
            page.get_by_role("button", name="Replace").click()
        expect(page.locator(".answer", has_text="fifth")).to_be_visible()
        page.reload()
        named(page, names, "owner")


def test_a_history_of_several_pages(context: BrowserContext, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is shown from its beginning once somebody looks there, wherever the server cuts it, and each once."""
    monkeypatch.setattr(mix, "PAGE_BYTES", 1)  # a message a page, so between question and answer, too
    with httpx2.Client(base_url=stage.url, headers={"authorization": f"Bearer {stage.keys['owner']}"}) as client:
        session = client.post("/api/sessions", json={}).json()["id"]
        for number in range(4):
            body = {"conversation": session, "input": f"number {number}"}
            client.post("/v1/responses", json=body).raise_for_status()
    with visiting(context, stage, "owner", session) as page:
        expect(page.locator(".question:visible")).to_have_text([f"number {number}" for number in range(4)])
        expect(page.locator(".answer")).to_have_text([f"You said number {number}." for number in range(4)])
        expect(page.locator("#earlier")).to_be_hidden()


def test_a_picture_that_could_not_be_read_is_tried_again(context: BrowserContext, stage: Stage) -> None:
    """Also where it was moved meanwhile."""
    context.route("**/blobs/*", lambda route: route.abort())
    with visiting(context, stage, "owner") as page:
        file = page.locator("legato-file")
        expect(file).to_contain_text("could not be loaded")
        context.unroute("**/blobs/*")
        file.evaluate("(each) => each.parentNode.append(each)")
        expect(file.locator("img")).to_be_visible()
