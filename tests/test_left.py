"""What is only read is worked on while somebody waits for it; what changes something is done, whoever leaves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from driving import chatting, data, ends
from facts import draft
from held_store import quiet
from legato.server import adaptor
from legato.server.dialects import DIALECTS
from legato.store.memory import MemoryStore
from legato.testing import ASGIStream

NET = 30.0
ASKS = ("info", "read", "sessions", "open_runs", "claim")


class Stuck:
    """A store that gives no answer while ``stuck``.

    Attributes:
        asked: set when it was asked meanwhile.
        ended: how many of those who waited were cancelled.
        count: how often it was asked in all.
    """

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.stuck = False
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self.ended = self.count = 0
        self.each: Callable[[], None] = lambda: None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if name == "peek":
            raise AttributeError(name)
        return self._slow(found) if name in ASKS else found

    def _slow(self, ask: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def slow(*args: Any, **options: Any) -> Any:
            self.count += 1
            self.each()
            if self.stuck:
                self.asked.set()
                try:
                    await self.go.wait()
                except asyncio.CancelledError:
                    self.ended += 1
                    raise
            return await ask(*args, **options)

        return slow


async def left(stream: ASGIStream, when: asyncio.Event) -> bool:
    """Ask, and leave at this moment; whether it came."""
    asking = asyncio.create_task(stream.__aenter__())
    coming = asyncio.create_task(when.wait())
    await asyncio.wait([asking, coming], return_when=asyncio.FIRST_COMPLETED)
    came = when.is_set()
    coming.cancel()
    await quiet()
    stream.disconnect()
    with suppress(RuntimeError):
        await asking
    return came


READS = [each for dialect in DIALECTS for each in dialect.operations if each.method == "GET"]
OF_NO_SESSION = ("health", "live", "ready", "models", "model", "system_info", "personas", "nothing")
"""Handlers that ask the store for nothing."""


@pytest.mark.parametrize("operation", READS, ids=lambda each: each.path)
async def test_work_for_who_has_left_ends(operation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every route that reads, wherever it waits for the store."""
    monkeypatch.setattr(adaptor, "LONG", 0.0)
    store = Stuck()
    async with chatting(store=store) as chat, asyncio.timeout(NET):
        run = (await chat.said()).json()["runId"]
        await quiet()
        names = {"response_id": f"resp_{run}", "model": "echo", "messageId": f"{run}~u"}
        path = re.sub(r"\{(\w+)\}", lambda name: names.get(name[1], chat.session), operation.path)
        store.stuck = True
        stream = chat.driver.stream(f"{path}?sessionId={chat.session}")
        came = await left(stream, store.asked)
        await stream.finished()
        if operation.path != "/health/ready":  # which asks by itself, for a second at most
            assert store.ended == came
        assert came or operation.handler.__name__ in OF_NO_SESSION
        store.stuck = False
        store.go.set()
        assert (await chat.get()).status == 200


async def test_what_changes_something_is_done_though_who_asked_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is stored and answered, wherever its request was when it went."""
    monkeypatch.setattr(adaptor, "LONG", 0.0)
    store = Stuck()
    async with chatting(store=store) as chat, asyncio.timeout(NET):
        store.stuck = True
        target = f"/api/sessions/{chat.session}/messages"
        asking = left(chat.driver.stream(target, method="POST", body=b'{"text": "hello"}'), store.asked)
        leaving = asyncio.create_task(asking)
        await store.asked.wait()
        await quiet()
        store.stuck = False
        store.go.set()
        assert await leaving
        message = await chat.follow("0", until=lambda message: message.event == "user_message_created")
        assert store.ended == 0
        await chat.follow("0", until=ends(data(message[-1])["runId"]))


async def test_a_history_of_many_sessions_ends_with_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for nothing, since all of it is in memory: others go on all the same, and who leaves is noticed."""
    monkeypatch.setattr(adaptor, "LONG", 0.0)
    monkeypatch.setattr("legato.server.request.TURN", 0.0)
    store = Stuck()
    async with chatting(store=store) as chat, asyncio.timeout(NET):
        for number in range(500):
            said = draft("message.created", {"id": f"m{number}", "role": "user", "text": "x"})
            await store.append(f"s{number}", [draft("session.created", {}), said])
        await quiet()
        before = store.count
        whole = await chat.driver.request("GET", "/api/messages/history?limit=1000&offset=0")
        assert (whole.status, len(whole.json())) == (200, 500)
        all_of_it = store.count - before
        store.count, some = 0, asyncio.Event()
        store.each = lambda: some.set() if store.count > 50 else None
        stream = chat.driver.stream("/api/messages/history?limit=1000&offset=0")
        asking = asyncio.create_task(stream.__aenter__())
        await some.wait()
        stream.disconnect()
        with suppress(RuntimeError):
            await asking
        await stream.finished()
        assert store.count < all_of_it / 2


@pytest.mark.parametrize(("limit", "skip"), [(1, 0), (50, 0), (7, 11), (1000, 0), (1000, 30), (5, 1000)])
async def test_a_history_of_all_sessions_has_the_newest_first(limit: int, skip: int) -> None:
    async with chatting() as chat:
        times = []
        for number in range(12):
            for turn in range(5):
                drafts = [draft("message.created", {"id": f"m{number}.{turn}", "role": "user", "text": "x"})]
                if not turn:
                    drafts.insert(0, draft("session.created", {}))
                stored = await chat.app.store.append(f"s{(number * 7) % 12}", drafts)
                times.append((stored.events[-1].at, f"m{number}.{turn}"))
        found = (await chat.driver.request("GET", f"/api/messages/history?limit={limit}&offset={skip}")).json()
        assert [each["id"] for each in found] == [id for _, id in sorted(times, reverse=True)][skip : skip + limit]
