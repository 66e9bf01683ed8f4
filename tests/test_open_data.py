"""Logs with what a newer version has written: event types, fields, kinds and words that this one does not know.

Whatever reads such a log passes over what it does not know, and gives everything else as if that were not there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from asking import Listener, ask
from client_faces import FACES, use
from driving import Chat, chatting, data, decoded, ends
from held_store import quiet
from legato import (
    AgentError,
    Finish,
    Legato,
    Refusal,
    Thinking,
    ToolArguments,
    ToolCall,
    ToolReady,
    ToolResult,
    ToolStarted,
    Usage,
)
from legato.agent import Agent
from legato.store.memory import MemoryStore
from legato.store.sqlite import SQLiteStore
from legato.testing import Driver, FakeClock
from live_server import serving
from raw_log import append_raw, canonical

Logged = list[dict[str, Any]]

CLIENTS = ["legato", "python-0.8.1", "python-0.7.2", "python-0.6.6", "python-0.5.0",
           "typescript-0.11.4", "typescript-0.9.0", "typescript-0.7.7", "typescript-0.6.0"]  # fmt: skip
ODD: dict[str, dict[str, Any]] = {
    "empty": {},
    "nested": {"a": {"b": [{"c": None}, [[]], {"": 1}]}, "ключ": "значение", "n": 1e300},
    "large": {"text": "x" * 100_000, "list": list(range(5_000))},
    "familiar": {"id": "t1", "part": 0, "step": 1, "start": 0, "text": "intruder", "name": "intruder",
                 "arguments": "{", "output": 1, "success": False, "code": "intruder", "message": {"id": "x"},
                 "partial": {}, "role": "user", "to": "", "run": "s~1", "agent": "intruder", "metadata": 7},
}  # fmt: skip
"""Data of event types from the future."""
TYPES = ["future.thing", "run.paused", "run.stopped", "text.replaced", "tool.progress", "message.edited",
         "session.archived", "permission.withdrawn", "x"]  # fmt: skip
"""Such types; some look like those that are known."""


# Logs -----------------------------------------------------------------------------------------------------------------


async def thorough(turn: Any) -> AsyncIterator[Any]:
    """Uses every kind of part, and fails if it is told to."""
    yield Thinking("What is ")
    yield Thinking("asked?")
    yield "Let me "
    yield "see. "
    yield ToolCall("t1", "look")
    yield ToolArguments("t1", '{"at":')
    yield ToolArguments("t1", '"tea"}')
    yield ToolReady("t1")
    yield ToolStarted("t1", "Looking")
    yield ToolResult("t1", {"found": ["tea.md"]})
    await turn.notify("Found", "It is there.", wait=False)
    yield "Tea is "
    yield "hot. 🎵"
    yield Refusal("No more.")
    yield Usage(input_tokens=3, output_tokens=4)
    if turn.message.text == "fail":
        raise AgentError("No.", code="no")


async def recorded(*said: str, agent: Any = thorough) -> Logged:
    """The log of a session in which these messages were answered."""
    async with chatting(None, agent, store=MemoryStore(clock=FakeClock())) as chat:
        for text in said:
            await chat.said(text)
        return await canonical(chat.driver, chat.session)


@asynccontextmanager
async def stored(log: Logged, store: Any = None) -> AsyncIterator[Chat]:
    """An application with this log, stored event by event."""
    store = MemoryStore(clock=FakeClock()) if store is None else store
    session = next(event["run"] for event in log if event["run"]).partition("~")[0]
    app = Legato(store, agents=[thorough])
    app.drain_on_signal = False
    app.grace = 0.0
    async with Driver(app) as driver:
        for event in log:
            await append_raw(store, session, event["type"], event["data"], event["run"])
        yield Chat(app, driver, session)


def runs_of(log: Logged) -> list[str]:
    return [event["run"] for event in log if event["type"] == "message.created" and event["run"]]


def strewn(log: Logged, type: str, odd: dict[str, Any]) -> Logged:
    """``log`` with an event of this type after each of its events: of the session, and of each run that is open."""
    mixed: Logged = []
    open_runs: list[str] = []
    for event in log:
        mixed.append(event)
        if event["type"] == "message.created" and event["run"]:
            open_runs.append(event["run"])
        elif event["type"] in ("run.completed", "run.failed", "run.cancelled"):
            open_runs.remove(event["run"])
        mixed += [{"type": type, "data": odd, "run": run} for run in (None, *open_runs)]
    return mixed


# Views ----------------------------------------------------------------------------------------------------------------


def without_places(body: bytes) -> list[tuple[str, str]]:
    """The frames of a stream without their ids, and without what is the reader's own."""
    return [(message.event, message.data) for message in decoded(body) if message.event != "connected"]


async def mix_stream(chat: Chat, client: str, last_run: str, last: str | None = None) -> Any:
    """The stream of the Mix dialect up to the end of a run: its frames, with ids."""
    query = f"client={client}" if last is not None else f"from=start&client={client}"
    async with asyncio.timeout(30), chat.stream(query, last=last) as stream:
        assert stream.status == 200
        async for message in stream.messages():
            if ends(last_run)(message):
                break
        assert stream.error is None
        return [message for message in decoded(stream.body) if message.event not in ("connected", "heartbeat")]


async def get(chat: Chat, target: str) -> Any:
    answer = await chat.driver.request("GET", target)
    assert answer.status == 200, target
    assert answer.error is None
    return answer.json()


async def whole_stream(chat: Chat, method: str, target: str) -> bytes:
    async with asyncio.timeout(30):
        answer = await chat.driver.request(method, target)
    assert (answer.status, answer.error) == (200, None)
    return answer.body


def stripped(value: Any) -> Any:
    """Without times of the last write and places in lists, which depend on how many events there are."""
    if isinstance(value, dict):
        return {name: stripped(each) for name, each in value.items() if name not in ("updatedAt", "next_cursor")}
    return [stripped(each) for each in value] if isinstance(value, list) else value


async def views(chat: Chat, log: Logged) -> dict[str, Any]:
    """All that the dialects show of the log, by name; what differs only by offsets is left out."""
    session, runs = chat.session, runs_of(log)
    asked = [event["data"]["id"] for event in log if event["type"] == "message.created" and event["run"]]
    seen: dict[str, Any] = {}
    for client in CLIENTS:
        frames = await mix_stream(chat, client, runs[-1])
        seen[f"mix {client}"] = [(frame.event, frame.data) for frame in frames]
    for target in (f"/{session}", "", f"/{session}/messages", f"/{session}/export"):
        seen[f"sessions{target}"] = stripped(await get(chat, f"/api/sessions{target}"))
    seen["history"] = stripped(await get(chat, "/api/messages/history"))
    for run in runs:
        seen[f"response {run}"] = await get(chat, f"/v1/responses/resp_{run}")
        seen[f"items {run}"] = await get(chat, f"/v1/responses/resp_{run}/input_items")
        body = await whole_stream(chat, "GET", f"/v1/responses/resp_{run}?stream=true")
        seen[f"response stream {run}"] = body
        for after in range(body.count(b"sequence_number")):
            target = f"/v1/responses/resp_{run}?stream=true&starting_after={after}"
            seen[f"response stream {run} after {after}"] = await whole_stream(chat, "GET", target)
    for message in asked:
        target = f"/api/sdk/chat/{session}/messages/{message}/query/stream"
        body = await whole_stream(chat, "POST", target)
        seen[f"deva stream {message}"] = without_places(body.partition(b"\n")[2])
    seen["thread"] = stripped(await get(chat, f"/api/sdk/chat/{session}"))
    seen["thread messages"] = stripped(await get(chat, f"/api/sdk/chat/{session}/messages"))
    rows = (await get(chat, f"/api/inspect/sessions/{session}/wire?limit=500&dialects=mix/legato,responses,chat"))[
        "rows"
    ]
    for dialect in ("responses", "chat"):
        seen[f"inspector {dialect}"] = [row["wire"][dialect] for row in rows if dialect in row["wire"]]
    seen["inspector mix"] = [
        without_places(row["wire"]["mix/legato"].encode()) for row in rows if "mix/legato" in row["wire"]
    ]
    return seen


def compare(seen: dict[str, Any], plain: dict[str, Any]) -> None:
    assert list(seen) == list(plain)
    for name, view in plain.items():
        assert seen[name] == view, name


# Types ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type", "odd"), [*[("future.thing", odd) for odd in ODD], *[(type, "familiar") for type in TYPES[1:]]]
)
async def test_an_unknown_type_is_passed_over_by_every_view(type: str, odd: str) -> None:
    """Strewn over two turns, of the session and within its runs: every dialect shows what it shows without it."""
    log = await recorded("one", "fail")
    async with stored(log) as chat:
        plain = await views(chat, log)
    mixed = strewn(log, type, ODD[odd])
    async with stored(mixed) as chat:
        compare(await views(chat, mixed), plain)


@pytest.mark.parametrize("odd", ODD)
async def test_an_unknown_type_is_shown_as_it_is_by_the_canonical_log(odd: str) -> None:
    """On every page of it, and in the inspector's outline and rows."""
    log = strewn(await recorded("one"), "future.thing", ODD[odd])
    async with stored(log) as chat:
        shown = await canonical(chat.driver, chat.session)
        assert [(each["type"], each["data"], each["run"]) for each in shown] == [
            (each["type"], each["data"], each["run"]) for each in log
        ]
        outline = (await get(chat, f"/api/inspect/sessions/{chat.session}"))["outline"]
        assert "future.thing" in json.dumps(outline)
        page = await get(chat, f"/api/inspect/sessions/{chat.session}/wire?limit=500&dialects=mix/legato,deva")
        assert [row["type"] for row in page["rows"]] == [each["type"] for each in log]
        assert all(not row["wire"] for row in page["rows"] if row["type"] == "future.thing")


@pytest.mark.parametrize("client", CLIENTS)
async def test_a_stream_is_resumed_at_every_offset_around_an_unknown_type(client: str) -> None:
    """Also at the offset of an event that the reader was never sent: it gets exactly what follows."""
    log = strewn(await recorded("one", "two"), "future.thing", ODD["nested"])
    async with stored(log) as chat:
        whole = await mix_stream(chat, client, runs_of(log)[-1])
        end = int(whole[-1].id or 0)
        for offset in range(end):
            rest = await mix_stream(chat, client, runs_of(log)[-1], str(offset))
            assert rest == [frame for frame in whole if int(frame.id or 0) > offset]


@pytest.mark.parametrize("dialect", ["mix", "deva"])
async def test_a_stream_is_cut_at_every_byte_around_an_unknown_type(dialect: str) -> None:
    """Resumed with its own last id, it is the uncut stream."""

    async def apart(turn: Any) -> AsyncIterator[str]:
        yield "re "
        await turn.stored()  # else what comes in the same round is one piece
        yield "one"

    log = strewn(await recorded("one", agent=apart), "future.thing", {})
    run = runs_of(log)[0]
    message = next(event["data"]["id"] for event in log if event["run"])
    async with stored(log) as chat:

        async def read(last: str | None, cut: int | None = None) -> list[Any]:
            headers = {} if last is None else {"last-event-id": last}
            if dialect == "mix":
                stream = chat.driver.stream(
                    f"/stream?sessionId={chat.session}&from=start&client=legato", headers=headers, cut_after=cut
                )
            else:
                target = f"/api/sdk/chat/{chat.session}/messages/{message}/query/stream"
                stream = chat.driver.stream(target, method="POST", headers=headers, cut_after=cut)
            frames = []
            async with asyncio.timeout(30), stream:
                async for each in stream.messages():
                    frames.append(each)
                    if dialect == "mix" and ends(run)(each):
                        break
                assert stream.error is None
            return [(each.event, each.data, each.id) for each in frames if each.event != "connected"]

        whole = await read(None)
        assert len(whole) >= 4
        for cut in range(1, 1_500, 7):
            first = await read(None, cut)
            rest = [] if first == whole else await read(first[-1][2] if first else None)
            assert [*first, *rest] == whole


def injecting(store: Any, odd: dict[str, Any]) -> Any:
    """An agent that stores an event of an unknown type after everything that it says."""

    async def odd_agent(turn: Any) -> AsyncIterator[Any]:
        async def inject() -> None:
            await turn.stored()
            await append_raw(store, turn.session, "future.thing", odd, turn.run)
            await append_raw(store, turn.session, "session.archived", odd)

        await inject()
        async for item in thorough(turn):
            yield item
            await inject()

    return odd_agent


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_live_equals_replay_with_unknown_types_in_between(odd: str, kind: str, tmp_path: Path) -> None:
    """Readers of every dialect that were there while it was said have what those get who come later."""
    store: Any = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "odd.db")
    app = Legato(store, agents=[Agent(injecting(store, ODD[odd]), name="odd")])
    async with chatting(app) as chat:
        live = {client: asyncio.create_task(chat.follow("0", f"client={client}", until=is_end)) for client in CLIENTS}
        await quiet()
        create = {"input": "one", "conversation": chat.session, "stream": True}
        async with asyncio.timeout(60):
            told = await chat.driver.request("POST", "/v1/responses", json=create)
            assert (told.status, told.error) == (200, None)
            assert told.body.endswith(b"data: [DONE]\n\n")
            response = json.loads(decoded(told.body)[0].data)["response"]["id"]
            assert await whole_stream(chat, "GET", f"/v1/responses/{response}?stream=true") == told.body
            run = response.removeprefix("resp_")
            outcomes = await asyncio.gather(*live.values(), return_exceptions=True)
            assert [each for each in outcomes if isinstance(each, BaseException)] == []
            for client, task in live.items():
                frames = [frame for frame in task.result() if frame.event not in ("connected", "heartbeat")]
                assert frames == await mix_stream(chat, client, run, "0")
                said = "".join(data(frame)["content"] for frame in frames if frame.event == "content")
                assert said == "Let me see. Tea is hot. 🎵No more."
            body = {"model": "odd", "messages": [{"role": "user", "content": "one"}], "stream": True}
            chunks = await chat.driver.request("POST", "/v1/chat/completions", json=body)
            assert (chunks.status, chunks.error) == (200, None)
            deltas = [json.loads(frame.data)["choices"] for frame in decoded(chunks.body)[:-1]]
            said = "".join(choice["delta"].get("content") or "" for choices in deltas for choice in choices)
            assert said == "Let me see. Tea is hot. 🎵"


def is_end(message: Any) -> bool:
    return message.event in ("complete", "error")


async def test_a_run_is_driven_whatever_stands_in_its_log() -> None:
    """Before it starts, while it waits behind another, and for its next attempt, which goes on where the last stood."""
    store, listener = MemoryStore(), Listener()
    go = listener.hold("one")
    agents = [Agent(listener, name="agent", on_crash="retry")]
    app = Legato(store, agents=agents)
    async with chatting(app) as chat:
        first = (await chat.send("one")).json()["runId"]
        second = (await chat.send("two")).json()["runId"]
        await quiet()
        for run in (None, first, second):
            await append_raw(store, chat.session, "future.thing", ODD["familiar"], run)
        await quiet()
        session = chat.session
    go.set()
    async with chatting(Legato(store, agents=agents)) as chat:
        chat.session = session
        await chat.follow("0", until=ends(second))
        messages = await get(chat, f"/api/sessions/{session}/messages")
        assert [(each["role"], each.get("status")) for each in messages] == [
            ("user", None), ("assistant", "completed"), ("user", None), ("assistant", "completed"),
        ]  # fmt: skip
        assert listener.told["two"][0] == "one"


@pytest.mark.parametrize("odd", ODD)
async def test_a_session_with_unknown_types_is_used_like_any_other(odd: str) -> None:
    """It is forked, rewound, answered anew, continued and deleted."""
    log = strewn(await recorded("one", "two"), "message.edited", ODD[odd])
    async with stored(log) as chat:
        first, _, second, *_ = await get(chat, f"/api/sessions/{chat.session}/messages")
        fork = await chat.post("/fork", {"messageIndex": 1})
        assert fork.status == 201
        copied = await get(chat, f"/api/sessions/{fork.json()['id']}/messages")
        assert [each["userInput"] for each in copied][:1] == ["one"]
        status, response = await ask(chat.driver, "more", previous_response_id=f"resp_{runs_of(log)[-1]}")
        assert (status, response["status"]) == (200, "completed")
        last = [each for each in await get(chat, f"/api/sessions/{chat.session}/messages") if each["role"] == "user"][
            -1
        ]
        again = await chat.post(f"/messages/{last['id']}/retry")
        assert again.status == 202
        await chat.follow(again.json()["cursor"], until=ends(again.json()["runId"]))
        assert (await chat.post("/rewind", {"messageId": second["id"]})).status == 200
        assert [each["id"] for each in await get(chat, f"/api/sessions/{chat.session}/messages")][-1] == second["id"]
        assert first["userInput"] == "one"
        assert (await chat.driver.request("DELETE", f"/api/sessions/{chat.session}")).status == 204


# Fields and words -----------------------------------------------------------------------------------------------------


async def test_unknown_fields_of_known_types_change_no_view() -> None:
    """Every event has some: what an older version shows of it is what it showed before."""
    log = await recorded("one", "fail")
    async with stored(log) as chat:
        plain = await views(chat, log)
    richer = [{**event, "data": {**event["data"], "futureField": {"a": [1]}, "more": None}} for event in log]
    async with stored(richer) as chat:
        compare(await views(chat, richer), plain)


def changed(log: Logged, type: str, **fields: Any) -> Logged:
    """``log`` with these fields in every event of the type."""
    found = [event for event in log if event["type"] == type]
    assert found
    return [{**event, "data": {**event["data"], **fields}} if event in found else event for event in log]


def with_parts(log: Logged, *parts: dict[str, Any]) -> Logged:
    """``log`` whose whole messages have further parts."""
    richer = []
    for event in log:
        for field in ("message", "partial"):
            if isinstance(event["data"].get(field), dict):
                whole = event["data"][field]
                parted = {**whole, "parts": [*parts, *whole["parts"], *parts], "future": 1}
                event = {**event, "data": {**event["data"], field: parted}}
        richer.append(event)
    return richer


WORDS: dict[str, Callable[[Logged], Logged]] = {
    "finish reason": lambda log: changed(log, "run.completed", finish_reason="moonrise"),
    "notification kind": lambda log: changed(log, "notification.created", kind="celebration"),
    "notification response": lambda log: changed(log, "notification.created", response="emoji"),
    "usage": lambda log: changed(log, "run.completed", usage={"input_tokens": 3, "joules": {"cpu": 1}}),
    "failure code": lambda log: changed(log, "run.failed", code="solar_flare", detail={"deep": [{}]}),
    "tool output": lambda log: changed(log, "tool.completed", output=[{"type": "hologram", "data": [None]}]),
    "part": lambda log: with_parts(log, {"type": "image", "step": 1, "url": "data:,"}, {"type": "x", "step": 2}),
    "kind of call": lambda log: changed(log, "tool_call.started", kind="computer"),
    "metadata": lambda log: changed(log, "message.created", metadata={"future": {"a": 1}, "tools": 7, "store": "?"}),
    "session metadata": lambda log: changed(log, "session.created", metadata={"future": 1}, kind="room"),
    "rewind": lambda log: [
        *log[:-1],
        log[-1],
        {"type": "session.rewound", "data": {"to": "nobody", "branch": 3}, "run": None},
    ],
}
"""Logs with a word or a kind that nobody knows."""


@pytest.mark.parametrize("word", WORDS)
async def test_an_unknown_word_breaks_no_view(word: str) -> None:
    """All views are there, and the texts of the conversation are what they are."""
    log = WORDS[word](await recorded("one", "fail"))
    async with stored(log) as chat:
        seen = await views(chat, log)
        messages = seen[f"sessions/{chat.session}/messages"]
        assert [each["userInput"] for each in messages if each["role"] == "user"] == ["one", "fail"]
        for run in runs_of(log):
            assert seen[f"response {run}"]["output"]
        assert seen[f"response {runs_of(log)[0]}"]["status"] == "completed"
        for client in CLIENTS:
            said = [json.loads(frame)["content"] for name, frame in seen[f"mix {client}"] if name == "content"]
            assert "".join(said) == "Let me see. Tea is hot. 🎵No more." * 2


@pytest.mark.parametrize("reason", ["moonrise", "stop ", "STOP"])
async def test_a_finish_reason_that_nobody_knows_is_an_answer(reason: str) -> None:
    """An agent may give any: who has a closed list is told something of it, all others the word itself."""

    async def agent(turn: Any) -> AsyncIterator[Any]:
        yield "said"
        yield Finish(reason)

    async with chatting(None, agent) as chat:
        status, response = await ask(chat.driver, "one")
        assert (status, response["status"]) == (200, "completed")
        body = {"model": "agent", "messages": [{"role": "user", "content": "one"}]}
        chat_answer = (await chat.driver.request("POST", "/v1/chat/completions", json=body)).json()
        known = ("stop", "length", "tool_calls", "content_filter", "function_call")
        assert chat_answer["choices"][0]["finish_reason"] in known
        run = response["id"].removeprefix("resp_")
        chat.session = response["conversation"]["id"]
        frames = await mix_stream(chat, "legato", run)
        assert json.loads(frames[-1].data)["finishReason"] == reason


# Clients --------------------------------------------------------------------------------------------------------------


def read_until_end(c: Any, **asked: Any) -> Any:
    """The events of a stream to the end of its run, from either face of the client."""
    opening = c.streaming.stream_events(reconnect=False, **asked)
    if hasattr(opening, "__aiter__"):

        async def go() -> list[Any]:
            seen: list[Any] = []
            async with opening as events:
                async for event in events:
                    seen.append(event)
                    if event.event in ("complete", "error"):
                        break
            return seen

        return go()
    seen: list[Any] = []
    with opening as events:
        for event in events:
            seen.append(event)
            if event.event in ("complete", "error"):
                break
    return seen


def plain(events: list[Any]) -> list[Any]:
    return [(event.event, event.id, event.data) for event in events if event.event not in ("connected", "heartbeat")]


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("word", ["future.thing", *WORDS])
def test_our_client_reads_what_is_newer_than_it(face: str, word: str) -> None:
    """From every offset on, live events follow: nothing is missing, doubled or a reason to stop."""
    log = asyncio.run(recorded("one"))
    if word in ("failure code",):
        log = asyncio.run(recorded("fail"))
    log = strewn(WORDS[word](log) if word in WORDS else log, "future.thing", ODD["familiar"])
    session = runs_of(log)[0].partition("~")[0]
    store = MemoryStore()

    async def fill() -> None:
        for event in log:
            await append_raw(store, session, event["type"], event["data"], event["run"])

    asyncio.run(fill())
    with serving(Legato(store, agents=[thorough])) as url:
        whole = use(face, url, lambda c: read_until_end(c, session_id=session, from_="start"))
        assert whole[-1].event in ("complete", "error")
        said = "".join(event.data.content for event in whole if event.event == "content")
        assert said == "Let me see. Tea is hot. 🎵No more."
        for offset in range(1, int(whole[-1].id)) if word == "future.thing" else ():
            rest = use(face, url, lambda c, at=offset: read_until_end(c, session_id=session, last_event_id=str(at)))
            assert plain(rest) == [event for event in plain(whole) if int(event[1]) > offset]
        page = use(face, url, lambda c: c.sessions.events(session))
        assert [event.type for event in page.events] == [event["type"] for event in log][: len(page.events)]
        assert use(face, url, lambda c: c.messages.list(session))
