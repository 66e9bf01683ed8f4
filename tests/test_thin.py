"""Thin logs: the same words in fewer pieces, and no reader is given one twice."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asking import ask
from databases import shared_postgres
from legato.event import CallDelta, Draft, Event, Fact, RunStarted, SessionCreated, TextDelta, ThinkingDelta
from legato.retention import Keeper, Retention
from legato.server.app import Legato
from legato.sse import Decoder
from legato.store import open_store
from legato.store.memory import MemoryStore
from legato.store.sqlite import SQLiteStore
from legato.testing import Driver, FakeClock
from legato.thin import THIN_CHARACTERS, says_nothing, thinned
from legato.transcript import fold
from legato.yields import Thinking, ToolCall, ToolResult

DAY = 86_400.0
WORDS = [f"word{number} é😀 " for number in range(400)]


def log_of(*facts: Fact) -> list[Event]:
    return [Event(fact, offset, float(offset), "r") for offset, fact in enumerate(facts, 1)]


pieces = st.lists(
    st.tuples(st.sampled_from([TextDelta, ThinkingDelta, CallDelta, RunStarted]), st.text("aé😀", max_size=5)),
    max_size=60,
)


@given(pieces)
def test_a_thin_log_says_the_same(some: list[tuple[type, str]]) -> None:
    """At the same places, with the same transcript from each place that says something; and once is enough."""
    facts: list[Fact] = []
    part, length, kind_before = -1, 0, None
    for kind, text in some:
        if kind is RunStarted:
            facts.append(RunStarted("a", 1))
            continue
        if not text:
            continue
        if kind is not kind_before:
            part, length, kind_before = part + 1, 0, kind
        more = CallDelta(part, 0, f"c{part}", length, text) if kind is CallDelta else kind(part, 0, length, text)
        facts.append(more)
        length += len(text)
    before = log_of(*facts)
    now = thinned(before)
    assert [(event.offset, event.type, event.run, event.at) for event in now] == [
        (event.offset, event.type, event.run, event.at) for event in before
    ]
    assert [one is two for one, two in zip(thinned(now), now, strict=True)] == [True] * len(now)
    assert said(now) == said(before)
    for place, event in enumerate(now, 1):
        if not says_nothing(event.fact):  # a cursor there can be continued
            assert said(before[:place]) + said(now[place:]) == said(before)
    if not any(kind is CallDelta for kind, _ in some):
        assert fold(now).message("r") == fold(before).message("r")


def said(events: list[Event]) -> str:
    return "".join(getattr(event.fact, "text", "") or getattr(event.fact, "arguments", "") for event in events)


def test_a_piece_is_bounded() -> None:
    """However long the answer is."""
    before = log_of(*(TextDelta(0, 0, 10 * number, "x" * 10) for number in range(1000)))
    now = thinned(before)
    assert [one is two for one, two in zip(thinned(now), now, strict=True)] == [True] * len(now)
    lengths = [len(event.fact.text) for event in now]  # type: ignore[union-attr]
    assert max(lengths) == THIN_CHARACTERS
    assert sum(map(bool, lengths)) == 10_000 // THIN_CHARACTERS


# Readers --------------------------------------------------------------------------------------------------------------


async def agent(turn: Any) -> AsyncIterator[Any]:
    yield Thinking("Let me ")
    await turn.stored()
    yield Thinking("think.")
    for word in WORDS[:100]:
        yield word
        await turn.stored()
    yield ToolCall("c", "look", '{"at": "it"}')
    yield ToolResult("c", "seen")
    for word in WORDS[100:]:
        yield word
        await turn.stored()


STREAMS = {
    "mix": "/stream?sessionId={s}&from=start",
    "mix, our client": "/stream?sessionId={s}&from=start&client=legato",
    "deva": "/api/sdk/chat/{s}/messages/{m}/query/stream",
    "responses": "/v1/responses/resp_{r}?stream=true",
}


def text_in(dialect: str, body: bytes) -> str:
    """The words of the answer, as a reader puts them together."""
    text = ""
    for message in Decoder().feed(body):
        if not message.data.startswith("{"):
            continue
        value = json.loads(message.data)
        if dialect.startswith("mix") and message.event == "content":
            text += value.get("content", value.get("text", ""))
        elif dialect == "deva" and message.event in ("message", "delta", "text"):
            text += str(value.get("delta") or value.get("text") or "")
        elif message.event == "response.output_text.delta":
            text += value["delta"]
    return text


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgres"])
async def test_readers_of_a_thin_log_have_every_word_once(kind: str, tmp_path: Path) -> None:
    """From the start, and from each of their cursors; where one cannot be continued, they are told to begin anew. Where
    pieces are packed, and read as they were, each can be continued."""
    clock = FakeClock(1_000_000.0)
    store: Any = MemoryStore(clock=clock) if kind == "memory" else SQLiteStore(tmp_path / "t.db", clock=clock)
    packed = kind == "postgres"
    if packed:
        pytest.importorskip("psycopg", reason="needs legato[postgres]")
        store = open_store(shared_postgres().url() + "?schema=thin")
        store._clock = clock
    app = Legato(store, agents=[agent], grace=0.0, heartbeat=0.1)
    app.drain_on_signal = False
    whole = "".join(WORDS)
    async with Driver(app) as driver:
        app.runner.clock = clock
        status, made = await ask(driver, "hi")
        assert status == 200
        session, _, run = made["id"].removeprefix("resp_").partition("~")
        run = f"{session}~{run}"
        [asked, _] = (await driver.request("GET", f"/api/sessions/{session}/messages")).json()
        before = {name: await body_of(driver, name, session, asked["id"], run) for name in STREAMS}
        size = sum([len(event.json) async for event in app.sessions.all(NOBODY_, session)]) if kind == "sqlite" else 0
        clock.now += 2 * DAY
        keeper = app.life.keeper
        keeper._clock, keeper._retention = clock, Retention(deltas=DAY)
        assert await keeper.tick()
        assert keeper.thinned > 300
        if packed:
            store._others.forget()
        if kind == "sqlite":
            now = sum([len(event.json) async for event in app.sessions.all(NOBODY_, session)])
            assert now < size
        for name in STREAMS:
            after = await body_of(driver, name, session, asked["id"], run)
            assert text_in(name, after) == text_in(name, before[name]), name
            ids = [message.id for message in Decoder().feed(before[name]) if message.id]
            for cursor in ids[:: max(len(ids) // 12, 1)] if name != "responses" else ("5", "60", "300"):
                had = text_in(name, until(before[name], cursor)) if name != "responses" else ""
                rest, reset = await resumed(driver, name, session, asked["id"], run, cursor)
                got = text_in(name, rest)
                expected = text_in(name, before[name])
                if packed:
                    assert not reset
                    assert had + got == expected or (name == "responses" and got and expected.endswith(got))
                    continue
                assert (got if reset else had + got) == expected or name == "responses", (name, cursor, reset)
                assert name != "responses" or (reset and got == expected)
    assert whole.split()[0] in text_in("responses", before["responses"])


from legato.caller import NOBODY as NOBODY_  # noqa: E402


def until(body: bytes, cursor: str) -> bytes:
    """What a reader has who has this cursor."""
    place = body.index(f"id: {cursor}\n".encode())
    return body[: body.index(b"\n\n", place) + 2]


async def body_of(driver: Driver, name: str, session: str, message: str, run: str, **headers: str) -> bytes:
    return (await resumed(driver, name, session, message, run, None))[0]


async def resumed(
    driver: Driver, name: str, session: str, message: str, run: str, cursor: str | None
) -> tuple[bytes, bool]:
    """What comes from a cursor, up to the end of the answer, and whether the reader is told to begin anew."""
    target = STREAMS[name].format(s=session, m=message, r=run)
    headers = {}
    if cursor is not None:
        if name == "responses":
            target += f"&starting_after={cursor}"
        else:
            headers["last-event-id"] = cursor
    async with driver.stream(target, method="POST" if name == "deva" else "GET", headers=headers) as stream:
        assert stream.status == 200, (name, cursor)
        async for each in stream.messages():
            if each.event in ("complete", "error", "heartbeat"):
                break
        return stream.body, stream.headers.get("legato-cursor") == "reset"


async def test_who_reads_now_is_left_alone() -> None:
    """They would be given the one half as it was, and the other as it is then; later it is done."""
    clock = FakeClock(1_000_000.0)
    store = MemoryStore(clock=clock)
    await store.append("s", [Draft(SessionCreated())])
    read = True
    keeper = Keeper(store, Retention(deltas=DAY), clock, lambda session: read)
    clock.now += 2 * DAY
    asked: list[str] = []

    async def thin(session: str, after: int, limit: int) -> Any:
        from legato.log import Thinning

        asked.append(session)
        return Thinning(0, None)

    store.thin = thin  # type: ignore[method-assign]
    await keeper.tick()
    assert asked == []
    read = False
    await keeper.tick()
    await keeper.tick()
    assert asked == ["s"]  # and once is enough
