"""Pages end where they have enough bytes, whatever was asked for; and what lists show of a session is short."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from driving import chatting, echo
from facts import draft
from legato.event import Draft, SessionCreated
from legato.server import deva as deva_routes
from legato.server import mix as mix_routes
from legato.server.app import Legato
from legato.store import sqlite, sqlite_known, sqlite_reading
from legato.store.sqlite import SQLiteStore
from legato.testing import Driver

LARGE = 1_000_000


def said(number: int, size: int = LARGE, role: str = "user") -> Draft:
    return draft("message.created", {"id": f"m{number}", "role": role, "text": f"{number} " + "x" * size})


@contextlib.asynccontextmanager
async def driven(store: Any = "memory:", **options: Any) -> AsyncIterator[tuple[Legato, Driver]]:
    app = Legato(store, agents=[echo], **options)
    async with Driver(app) as driver:
        yield app, driver


@contextlib.asynccontextmanager
async def full(count: int = 12, size: int = LARGE, store: Any = "memory:") -> AsyncIterator[tuple[Legato, Driver]]:
    """A session of large messages."""
    async with driven(store) as (app, driver):
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        for number in range(count):
            await app.store.append("s", [said(number, size, "assistant" if number % 2 else "user")])
        yield app, driver


async def walked(driver: Driver, url: str, header: str = "legato-next") -> list[list[Any]]:
    """All pages, as a client goes from one to the next."""
    pages = []
    cursor: str | None = ""
    while cursor is not None:
        page = await driver.request("GET", url + (f"{'&' if '?' in url else '?'}cursor={cursor}" if cursor else ""))
        assert (page.status, len(page.body) < 16 * LARGE) == (200, True)
        pages.append(page.json())
        cursor = page.headers.get(header)
    return pages


STORES = ["memory", "sqlite"]


def place(kind: str, folder: Path) -> str:
    return "memory:" if kind == "memory" else f"sqlite:///{folder / 'log.db'}"


# Lists of sessions


@pytest.mark.parametrize("kind", STORES)
async def test_a_list_shows_the_beginning_of_a_first_message(kind: str, tmp_path: Path) -> None:
    """200 characters of it, also of each session by itself, in an export and after a fork."""
    async with full(2, store=place(kind, tmp_path)) as (_, driver):
        for url in ("/api/sessions", "/api/sessions/s", "/api/sessions/s/export"):
            got = (await driver.request("GET", url)).json()
            one = got[0] if isinstance(got, list) else got
            assert one["firstUserMessage"] == "0 " + "x" * 198
            assert (one["userMessageCount"], one["assistantMessageCount"]) == (1, 1)
        fork = await driver.request("POST", "/api/sessions/s/fork", json={"messageIndex": 1})
        assert len(fork.body) < 2_000


async def test_a_summary_holds_nothing_else_of_the_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is made, no more than a page of the log is held, however long the log is."""
    from legato.dialect import mix_api

    kept: list[int] = []
    take = mix_api.take_brief

    def counted(messages: list[Any], event: Any) -> None:
        take(messages, event)
        kept.append(sum(len(message.text) for message in messages))

    monkeypatch.setattr(mix_api, "take_brief", counted)
    async with full(12) as (_, driver):
        await driver.request("GET", "/api/sessions/s")
    assert max(kept) <= 12 * 200


async def test_pages_of_sessions_end_with_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where what begins sessions is large, a page has fewer of them, and leads on to the rest; each comes once."""
    monkeypatch.setattr(sqlite_reading, "PAGE_BYTES", 3 * LARGE)
    store = SQLiteStore(tmp_path / "log.db")
    await store.open()
    for number in range(10):
        await store.append(f"s{number}", [Draft(SessionCreated("t", metadata={"prompt": "x" * LARGE}))])
    pages = [await store.sessions(limit=100)]
    while pages[-1].next is not None:
        pages.append(await store.sessions(limit=100, after=pages[-1].next))
    assert [2, 2, 2, 2, 2] == [len(page.infos) for page in pages]
    assert [f"s{n}" for n in reversed(range(10))] == [info.session for page in pages for info in page.infos]
    one = await store.sessions(limit=1)
    assert (1, True) == (len(one.infos), one.next is not None)
    assert ([], None) == await store.sessions(limit=0)
    await store.close()


async def test_what_begins_sessions_is_remembered_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of ten thousand sessions, however large it is."""
    monkeypatch.setattr(sqlite, "LOOKS_BYTES", 3 * LARGE)
    monkeypatch.setattr(sqlite_known, "KNOWN_BYTES", 3 * LARGE)
    store = SQLiteStore(tmp_path / "log.db")
    await store.open()
    for number in range(10):
        await store.append(f"s{number}", [Draft(SessionCreated("t", metadata={"prompt": "x" * LARGE}))])
        await store.append(f"s{number}", [said(number, 1)])
    assert store._writer is not None
    assert store._writer._memory is not None
    assert len(store._looks) <= 3
    assert len(store._writer._memory.sessions) <= 3
    for number in range(10):
        assert LARGE == len((await store.info(f"s{number}")).created.metadata["prompt"])  # type: ignore[index]
        assert [3] == [event.offset for event in (await store.append(f"s{number}", [said(0, 1)])).events]
    await store.close()


# Messages


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("query", ["", "?limit=5", "?limit=10000"])
async def test_messages_come_in_pages(kind: str, query: str, tmp_path: Path) -> None:
    """The newest first page; `Legato-Next` leads to older ones. In the end all have come, once, in order."""
    async with full(store=place(kind, tmp_path)) as (_, driver):
        pages = await walked(driver, f"/api/sessions/s/messages{query}")
        assert len(pages) >= 12 * LARGE // mix_routes.PAGE_BYTES
        assert [f"m{n}" for n in range(12)] == [each["id"] for page in reversed(pages) for each in page]
        assert all(0 < len(page) <= 5 for page in pages)


async def test_small_messages_are_one_page() -> None:
    """As they have always been."""
    async with full(100, 10) as (_, driver):
        [page] = await walked(driver, "/api/sessions/s/messages")
        assert 100 == len(page)


@pytest.mark.parametrize("cursor", ["x", "1", "999", "-1", "0", "%00", "9" * 40])
async def test_cursors_that_are_no_pages(cursor: str) -> None:
    """Refused, in both forms."""
    async with full(3, 10) as (_, driver):
        for url in ("/api/sessions/s/messages", "/api/sdk/chat/s/messages"):
            assert 400 == (await driver.request("GET", f"{url}?cursor={cursor}")).status


async def test_one_message_larger_than_a_page_is_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody stands still."""
    monkeypatch.setattr(mix_routes, "PAGE_BYTES", 10)
    monkeypatch.setattr(deva_routes, "PAGE_BYTES", 10)
    async with full(4, 100) as (_, driver):
        assert [1] * 4 == [len(page) for page in await walked(driver, "/api/sessions/s/messages")]
        page = (await driver.request("GET", "/api/messages/history")).json()
        assert ["m3"] == [each["id"] for each in page]


@pytest.mark.parametrize("kind", STORES)
async def test_the_history_of_large_messages(kind: str, tmp_path: Path) -> None:
    """It ends early, and goes on behind what has come."""
    async with full(store=place(kind, tmp_path)) as (app, driver):
        await driver.request("POST", "/api/sessions", json={"id": "other"})
        await app.store.append("other", [said(99)])
        seen: list[str] = []
        while page := (await driver.request("GET", f"/api/messages/history?limit=1000&offset={len(seen)}")).json():
            assert len(page) <= 1 + mix_routes.PAGE_BYTES // LARGE
            seen += [each["id"] for each in page]
        assert ["m99", *(f"m{n}" for n in reversed(range(12)))] == seen


async def test_a_threads_messages_come_in_pages() -> None:
    """The newest first; an answer says what it answers, also where that is on the page before."""
    async with full() as (_, driver):
        seen: list[Any] = []
        cursor = ""
        while cursor is not None:
            page = (await driver.request("GET", f"/api/sdk/chat/s/messages?limit=100{cursor}")).json()
            assert len(page["items"]) <= 1 + deva_routes.PAGE_BYTES // LARGE
            seen += page["items"]
            cursor = f"&cursor={page['next_cursor']}" if page["next_cursor"] else None  # type: ignore[assignment]
        assert [f"m{n}" for n in reversed(range(12))] == [each["id"] for each in seen]
        for each in seen:
            answers = each["in_reply_to"] and each["in_reply_to"]["id"]
            assert answers == (f"m{int(each['id'][1:]) - 1}" if each["author_type"] == "BOT" else None)


async def test_threads_with_retries_and_rewinds() -> None:
    """Whatever was taken back is on no page, and who answered is known on each."""
    async with chatting(None, echo) as chat:
        for number in range(4):
            sent = (await chat.said(f"hello {number}")).json()
        await chat.driver.request("POST", f"/api/sessions/{chat.session}/messages/{sent['messageId']}/retry")
        pages: list[Any] = []
        while len(pages) != 8 or pages[0]["author_type"] != "BOT":
            pages, cursor = [], ""
            while cursor is not None:
                got = (
                    await chat.driver.request("GET", f"/api/sdk/chat/{chat.session}/messages?limit=3{cursor}")
                ).json()
                pages += got["items"]
                cursor = f"&cursor={got['next_cursor']}" if got["next_cursor"] else None  # type: ignore[assignment]
            await asyncio.sleep(0)
        texts = [f"{said}hello {number}" for number in reversed(range(4)) for said in ("You said: ", "")]
        assert texts == [each["text"] for each in pages]
        assert {"echo", "user"} == {each["persona_id"] for each in pages}


# The canonical log, and exports


@pytest.mark.parametrize("kind", STORES)
async def test_pages_of_the_log_end_with_bytes(kind: str, tmp_path: Path) -> None:
    """``next`` goes on behind the last event of the page."""
    async with full(store=place(kind, tmp_path)) as (_, driver):
        offsets: list[int] = []
        after: int | None = 0
        while after is not None:
            page = (await driver.request("GET", f"/api/sessions/s/events?limit=1000&after={after}")).json()
            assert 0 < len(page["events"]) <= 6
            offsets += [event["offset"] for event in page["events"]]
            after = page["next"]
        assert list(range(1, 14)) == offsets


async def test_an_export_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no pages, so it is refused before anything is read."""
    monkeypatch.setattr(mix_routes, "EXPORT_BYTES", 1_000)
    async with full(4, 1_000) as (_, driver):
        refused = await driver.request("GET", "/api/sessions/s/export")
        assert (413, "too_large") == (refused.status, refused.json()["error"]["reason"])


async def test_the_inspector_looks_for_runs_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it needs of a long log to fold a page is a message for each run on that page."""
    from legato.server import inspect

    given: list[int] = []
    located = inspect.located

    def counted(session: str, run: str, events: Any) -> Any:
        given.append(len(events))
        return located(session, run, events)

    monkeypatch.setattr(inspect, "located", counted)
    async with chatting(None, echo) as chat:
        for number in range(5):
            await chat.said(f"hello {number}")
        head = (await chat.app.store.info(chat.session)).head
        url = f"/api/inspect/sessions/{chat.session}/wire?dialects=responses&after={head - 3}"
        rows = (await chat.driver.request("GET", url)).json()["rows"]
    assert any(row["wire"] for row in rows)
    assert [2] == given
