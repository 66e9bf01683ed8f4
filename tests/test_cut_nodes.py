"""Rule R3 over two nodes: a stream of one, cut at any byte, and read on at another, is the uncut stream.

For each store, and each dialect whose streams can be resumed. A session with every kind of event is recorded at one
node. What a reader has after a cut is told by its bytes alone, and so is the cursor that is left; so every byte is
tried, and the other node is asked once for each cursor. Some cuts are made for real.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from driving import Chat, Gate, decoded, logged
from legato.agent import Turn
from legato.event import Event
from legato.log import Log, Store
from legato.server.app import Legato
from legato.sse import Decoder, SSEMessage
from legato.store import open_store
from legato.store.memory import MemoryStore
from legato.store.sqlite import SQLiteStore
from legato.testing import Driver
from test_folds import body_of
from test_live_equals_replay import CLIENTS, Answer, cut, everything, frames, record, rest, speak, spread, whole
from test_migrate_stores import DATABASES

STORES = ("memory", "sqlite", "postgresql", "valkey")
STEP = {"memory": 23, "sqlite": 41, "postgresql": 197, "valkey": 197}
"""Bytes between two cuts of answers that are being given; each takes a session of its own."""


class Node:
    """A store for one process as a second one would see it: nothing but what is stored is shared."""

    peek = None

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def open(self) -> None:
        """It has been, once for both."""

    async def close(self) -> None:
        """It will be, once for both."""

    async def read(self, *args: Any, **kwargs: Any) -> list[Event]:
        events = await self._inner.read(*args, **kwargs)
        return [Event(event.fact, event.offset, event.at, event.run, event.json) for event in events]


@contextlib.asynccontextmanager
async def stores(kind: str, folder: Any) -> AsyncIterator[tuple[Any, Any]]:
    """Stores for two nodes, which keep the same. Of those for many processes each has one of its own."""
    if kind in DATABASES:
        url = DATABASES[kind](re.sub("[^a-z0-9]", "_", f"t_{folder.name.lower()}")[:40])
        yield open_store(url), open_store(url)
        return
    inner: Any = MemoryStore() if kind == "memory" else SQLiteStore(folder / "log.db", durability="normal")
    await inner.open()
    try:
        yield Node(inner), Node(inner)
    finally:
        await inner.close()


@contextlib.asynccontextmanager
async def nodes(kind: str, folder: Any, agent: Any = everything) -> AsyncIterator[tuple[Chat, Chat]]:
    """One session, at two nodes; the first has made it."""
    async with contextlib.AsyncExitStack() as stack:
        chats = []
        for store in await stack.enter_async_context(stores(kind, folder)):
            app = Legato(store, agents=[agent])
            app.drain_on_signal = False
            app.grace = 0.0
            chats.append(Chat(app, await stack.enter_async_context(Driver(app)), "s"))
        await chats[0].driver.request("POST", "/api/sessions", json={"id": "s", "title": "🎼"})
        yield chats[0], chats[1]


def cuts(body: bytes, only: Callable[[list[SSEMessage]], list[SSEMessage]]) -> Iterator[tuple[int, str]]:
    """What a cut leaves, at each byte: how many messages have been read, and the cursor. Each but once."""
    decoder, read = Decoder(), 0
    seen = {(0, "")}
    yield 0, ""
    for place in range(len(body)):
        read += len(only(decoder.feed(body[place : place + 1])))
        left = read, decoder.last_event_id
        if left not in seen:
            seen.add(left)
            yield left


@pytest.mark.parametrize("kind", STORES)
async def test_each_dialect_goes_on_at_another_node(kind: str, tmp_path: Any) -> None:
    """From each cursor that a cut can leave, over Mix and our own, Deva and the Responses API."""
    async with nodes(kind, tmp_path) as (here, there):
        await record(here)
        for client in CLIENTS:
            body = await whole(here, client)
            uncut = logged(decoded(body))
            assert logged(decoded(await whole(there, client))) == uncut
            for read, cursor in cuts(body, logged):
                after = logged(await rest(there, client, cursor, uncut[-1].id))
                assert uncut[:read] + after == uncut, (client, read)
            for size in spread(len(body), 12):
                before, cursor = await cut(here, client, size)
                assert logged(before) + logged(await rest(there, client, cursor, uncut[-1].id)) == uncut
        asked = [event async for event in Log(here.app.store, "s").all() if event.type == "message.created"]
        for message in [event.data["id"] for event in asked]:
            answer, at_other = Answer(here, message), Answer(there, message)
            uncut, body = await answer.read()
            assert frames((await at_other.read())[1]) == uncut
            for read, cursor in cuts(body, frames_of):
                assert uncut[:read] + (await at_other.read(cursor))[0] == uncut, (message, read)
            before, cursor = await answer.cut(len(body) // 2)
            assert before + (await at_other.read(cursor))[0] == uncut
        assert sum([await response_goes_on(here, there, event.run) for event in asked if event.run]) >= 5


def frames_of(messages: list[SSEMessage]) -> list[SSEMessage]:
    return messages


async def response_goes_on(here: Chat, there: Chat, run: str) -> bool:
    """Whether there is such a response; then each of its cursors has been tried."""
    target = f"/v1/responses/resp_{run}?stream=true"
    if (await here.driver.request("GET", f"/v1/responses/resp_{run}")).status == 404:
        return False
    body = await body_of(here, target)
    assert await body_of(there, target) == body
    parts = body.split(b"\n\n")
    last = max(json.loads(message.data)["sequence_number"] for message in decoded(body) if message.data != "[DONE]")
    for number in range(last):
        assert await body_of(there, f"{target}&starting_after={number}") == b"\n\n".join(parts[number + 1 :])
    return True


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("client", CLIENTS[:2])
async def test_an_answer_that_is_given_at_one_node_is_read_on_at_another(client: str, kind: str, tmp_path: Any) -> None:
    """While it is given: wherever the reader was cut off at the node of the run, the other goes on live."""
    gates: dict[str, Gate] = {}

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        async for word in gates[turn.session](turn):
            yield word

    async def cut_and_resumed(one: Chat, other: Chat, size: int) -> list[SSEMessage]:
        before, cursor = await cut(one, client, size)
        if before and before[-1].event == "complete":
            return before
        query = f"from=start&client={client}"
        return before + await other.follow(cursor or None, query, until=lambda message: message.event == "complete")

    async with nodes(kind, tmp_path, agent) as (here, there):
        size, length = 0, 1
        while size <= length:
            session = f"s{size:05}"
            gates[session] = Gate()
            await here.driver.request("POST", "/api/sessions", json={"id": session})
            one, other = Chat(here.app, here.driver, session), Chat(there.app, there.driver, session)
            await one.send()
            async with asyncio.timeout(30):
                seen, _ = await asyncio.gather(cut_and_resumed(one, other, size), speak(one, gates[session]))
            body = await whole(one, client)
            assert logged(decoded(body)) == logged(seen), f"cut after {size} bytes"
            length = len(body)
            size += STEP[kind]
