"""Rule R3: a stream cut at any byte and resumed with its own cursor is the uncut stream.

One session with everything in it is recorded through the server; then its body is cut at every byte. A cut inside a
frame leaves the cursor of the frame before, so the reader is given that event again, whole, and nothing twice. What a
server says to a cursor does not depend on where in the frame behind it the cut was: so each cursor is resumed once, and
a real connection is cut at some of the places.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from driving import Chat, Gate, data, decoded, ends, lines, logged  # noqa: F401  # each test once under each server
from legato.agent import Turn
from legato.bounds import Limits
from legato.errors import AgentError
from legato.event import EVENTS
from legato.log import Store, Subscription
from legato.part import Opaque, Usage
from legato.server.app import Legato
from legato.sse import Decoder, SSEMessage
from legato.store.memory import MemoryStore
from legato.store.sqlite import SQLiteStore
from legato.testing import Driver
from legato.yields import Checkpoint, Refusal, Text, Thinking, ToolArguments, ToolCall, ToolResult, ToolStarted

CLIENTS = ("legato", "python-0.8.1", "python-0.6.4")
STORES = ("memory", "sqlite")
SESSION = "s"
# Everything that a decoder, a splitter of lines or a counter of characters might stumble over.
TEXT = ("é\r\n\r\ndata: x\n", "\u2028\u2029\x85\x0b🎵", "e\u0301\x00", "\rid: 9\n\n")


async def everything(turn: Turn) -> AsyncIterator[Any]:
    """Plays what the message asks for."""
    match turn.message.text:
        case "think":
            yield Thinking("Hm\n")
            for piece in TEXT:
                yield Text(piece)
            yield Opaque("model", {"sealed": "é"})
            yield Usage(input_tokens=3, output_tokens=4)
        case "tools":
            yield ToolCall("c1", "Bash")
            yield ToolArguments("c1", '{"a":')
            yield ToolArguments("c1", '"é"}')
            yield ToolStarted("c1", "Looking")
            yield ToolResult("c1", output={"files": []})
            yield ToolCall("c2", "Read", "{}")
            yield ToolResult("c2", output="no", success=False)
            yield "It is "
        case "refuse":
            yield "I "
            yield Refusal("cannot\r\n")
            yield Refusal("🎵")
        case "ask":
            granted = await turn.ask_permission("Bash", "Lists.", path="/", params={"a": 1})
            answer = await turn.notify("Q", "Which?", kind="question", response="choice", choices=["a", "b"], wait=True)
            yield f"{granted} {answer.value if answer else ''}"
        case "fail":
            yield "I"
            raise AgentError("No.", code="no")
        case "wait":
            yield "on"
            await asyncio.Event().wait()
        case "bye":
            yield Checkpoint({"said": 0})
            yield "Bye."


async def record(chat: Chat) -> None:
    """Talk until every kind of event is in the log; the last is one that every client knows."""
    for text in ("think", "tools", "refuse", "ask", "fail", "wait"):
        answer = (await chat.send(text)).json()
        async with asyncio.timeout(30), chat.stream("client=legato", last=answer["cursor"]) as stream:
            async for message in stream.messages():
                await react(chat, text, message)
                if ends(answer["runId"])(message):
                    break
    items = f"/v1/conversations/{chat.session}/items"
    assert (await chat.driver.request("POST", items[:-6], json={"metadata": {"é": "🎵"}})).status == 200
    last = (await chat.driver.request("GET", f"{items}?order=asc")).json()["data"][0]["id"]
    assert (await chat.driver.request("DELETE", f"{items}/{last}")).status == 200
    first = (await chat.get("/messages")).json()[0]["id"]
    assert (await chat.driver.request("DELETE", f"/v1/responses/resp_{answer['runId']}")).status == 200
    assert (await chat.post("/rewind", {"messageId": first})).status == 200
    runner = chat.app.life.runner
    limits, runner.limits = runner.limits, Limits(concurrent_runs=0)
    answer = (await chat.send("bye")).json()
    runner.limits = limits
    runner.wake(chat.session)
    await chat.follow(answer["cursor"], until=ends(answer["runId"]))


async def react(chat: Chat, text: str, message: SSEMessage) -> None:
    asked = data(message).get("id")
    if message.event == "permission":
        assert (await chat.driver.request("POST", f"/api/permissions/{asked}/grant")).status == 200
    elif message.event == "notification":
        answer = {"type": "choice", "value": "b"}
        assert (await chat.driver.request("POST", f"/api/notifications/{asked}/respond", json=answer)).status == 204
    elif text == "wait" and message.event == "content":
        assert (await chat.post("/cancel")).json() == {"cancelled": True}


def new_store(kind: str, folder: Path) -> Store:
    return MemoryStore() if kind == "memory" else SQLiteStore(folder / "log.db", durability="normal")


@asynccontextmanager
async def serving(store: Store, agent: Any = everything) -> AsyncIterator[Chat]:
    app = Legato(store, agents=[agent])
    app.drain_on_signal = False
    app.grace = 0.0
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": SESSION, "title": "🎼"})
        yield Chat(app, driver, SESSION)


async def whole(chat: Chat, client: str) -> bytes:
    """The uncut body, from the start to the frame of the last event."""
    last = str((await chat.get("/events")).json()["head"])
    async with asyncio.timeout(30), chat.stream(f"from=start&client={client}") as stream:
        while decoded(stream.body)[-1:] == [] or decoded(stream.body)[-1].id != last:
            assert await stream.read()
        return stream.body


async def cut(chat: Chat, client: str, size: int) -> tuple[list[SSEMessage], str]:
    """What a reader has after ``size`` bytes, and the cursor it is left with."""
    decoder = Decoder()
    messages: list[SSEMessage] = []
    async with chat.stream(f"from=start&client={client}", cut_after=size) as stream:
        async for chunk in stream:
            messages += decoder.feed(chunk)
    return messages, decoder.last_event_id


async def rest(chat: Chat, client: str, cursor: str, last: str) -> list[SSEMessage]:
    """What a reader gets who comes back with ``cursor``, up to the event ``last``."""
    decoder = Decoder()
    messages: list[SSEMessage] = []
    async with asyncio.timeout(30), chat.stream(f"from=start&client={client}", last=cursor or None) as stream:
        assert stream.headers["legato-cursor"] == "exact"
        while decoder.last_event_id != last:
            chunk = await stream.read()
            assert chunk
            messages += decoder.feed(chunk)
    return messages


async def test_the_recording_has_every_kind_of_event(tmp_path: Path) -> None:
    """But for the deletion, after which there is nothing to resume."""
    async with serving(new_store("memory", tmp_path)) as chat:
        await record(chat)
        events = (await chat.get("/events")).json()["events"]
    assert set(EVENTS) - {"session.deleted"} == {event["type"] for event in events}


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_stream_cut_at_any_byte_and_resumed_is_the_uncut_stream(client: str, kind: str, tmp_path: Path) -> None:
    """For every byte of the body: what came before the cut and what comes after it are the whole, once."""
    async with serving(new_store(kind, tmp_path)) as chat:
        await record(chat)
        body = await whole(chat, client)
        uncut = logged(decoded(body))
        last = uncut[-1].id

        async def resumed(cursor: str) -> list[SSEMessage]:
            return logged(await rest(chat, client, cursor, last))

        await cut_everywhere(body, uncut, logged, resumed)
        for size in spread(len(body), 40):
            before, cursor = await cut(chat, client, size)
            after = await rest(chat, client, cursor, last)
            assert uncut == logged(before) + logged(after), f"cut after {size} bytes"


async def cut_everywhere(
    body: bytes,
    uncut: list[SSEMessage],
    kept: Callable[[list[SSEMessage]], list[SSEMessage]],
    resume: Callable[[str], Awaitable[list[SSEMessage]]],
) -> None:
    """For every byte, and the end: what a reader has by then and what its cursor gives it are the whole, once."""
    resumed: dict[str, list[SSEMessage]] = {}
    decoder = Decoder()
    before: list[SSEMessage] = []
    for size in range(len(body) + 1):
        before += decoder.feed(body[size - 1 : size]) if size else []
        cursor = decoder.last_event_id
        if cursor not in resumed:
            resumed[cursor] = await resume(cursor)
        assert uncut == kept(before) + resumed[cursor], f"cut after {size} bytes"
    assert {message.id for message in uncut} < set(resumed)


def spread(size: int, count: int) -> list[int]:
    """Some of the places to cut at, to the last byte."""
    return [size * place // count for place in range(count + 1)]


@pytest.mark.parametrize("client", CLIENTS)
async def test_the_server_may_restart_between_the_cut_and_the_resume(client: str, tmp_path: Path) -> None:
    """The cursor is good in the next life of the server, and the bytes are the same ones."""
    async with serving(new_store("sqlite", tmp_path)) as chat:
        await record(chat)
        body = await whole(chat, client)
    uncut = logged(decoded(body))
    for size in spread(len(body), 12):
        async with serving(new_store("sqlite", tmp_path)) as chat:
            before, cursor = await cut(chat, client, size)
        async with serving(new_store("sqlite", tmp_path)) as chat:
            after = await rest(chat, client, cursor, uncut[-1].id)
        assert uncut == logged(before) + logged(after), f"cut after {size} bytes"


async def test_a_run_that_a_restart_interrupts_ends_once_for_a_reader_that_comes_back(tmp_path: Path) -> None:
    """The stream of the first life ends without an error; the second life's goes on to the run's one end."""
    gate = Gate()
    gate.let("one ", "two ")
    seen: list[SSEMessage] = []
    async with serving(new_store("sqlite", tmp_path), gate) as chat:
        await chat.send()
        stream = chat.stream("from=start&client=legato")
        async with asyncio.timeout(30), stream:
            async for message in stream.messages():
                seen.append(message)
                if message.event == "content" and data(message)["content"].endswith("two "):
                    break
            reading = asyncio.create_task(collect(stream))
            await chat.app.stop()
            seen += await reading
            assert not stream.cut
    async with serving(new_store("sqlite", tmp_path), gate) as chat:
        body = await whole(chat, "legato")
        if seen[-1].id != decoded(body)[-1].id:
            seen += await rest(chat, "legato", seen[-1].id, decoded(body)[-1].id)
    assert logged(decoded(body)) == logged(seen)
    assert [data(message)["type"] for message in seen if message.event == "error"] == ["interrupted"]


async def collect(stream: Any) -> list[SSEMessage]:
    return [message async for message in stream.messages()]


WORDS = ("Hel", "lo\r\n\r\n", Thinking("\u2028"), ToolCall("c", "Bash", "{}"), ToolResult("c", "🎵"), "end")


async def speak(chat: Chat, gate: Gate) -> None:
    """Let the agent say one word after another, each when the last one is in the log."""
    info = await chat.app.store.info(chat.session)
    with Subscription(chat.app.store, chat.session, info.head) as subscription:
        for word in WORDS:
            gate.let(word)
            await subscription.next()
        gate.close()


async def cut_and_resumed(chat: Chat, client: str, size: int) -> list[SSEMessage]:
    """What a reader has in the end who is cut off after ``size`` bytes and comes back at once."""
    before, cursor = await cut(chat, client, size)
    if before and before[-1].event == "complete":
        return before
    query = f"from=start&client={client}"
    return before + await chat.follow(cursor or None, query, until=lambda message: message.event == "complete")


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("client", CLIENTS)
async def test_a_reader_may_be_cut_and_come_back_while_the_answer_is_given(
    client: str, kind: str, tmp_path: Path
) -> None:
    """A second reader, never cut, sees the same; wherever in the answer the first one lost its connection."""
    gates: dict[str, Gate] = {}

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        async for word in gates[turn.session](turn):
            yield word

    async with serving(new_store(kind, tmp_path), agent) as chat:
        size, length = 0, 1
        while size <= length:  # one session for each place to cut at
            session = f"s{size:05}"
            gates[session] = Gate()
            await chat.driver.request("POST", "/api/sessions", json={"id": session})
            one = Chat(chat.app, chat.driver, session)
            await one.send()
            async with asyncio.timeout(30):
                seen, uncut, _ = await asyncio.gather(
                    cut_and_resumed(one, client, size),
                    one.follow(query=f"from=start&client={client}", until=lambda message: message.event == "complete"),
                    speak(one, gates[session]),
                )
            assert logged(uncut) == logged(seen), f"cut after {size} bytes"
            assert [message.id for message in logged(seen)] == sorted({m.id for m in logged(seen)}, key=int)
            length = len(await whole(one, client))
            size += 7


# The answers of the Deva dialect --------------------------------------------------------------------------------------


class Answer:
    """One message's answer as a Deva client reads it."""

    def __init__(self, chat: Chat, message: str) -> None:
        self._chat = chat
        self._target = f"/api/sdk/chat/{chat.session}/messages/{message}/query/stream"

    def stream(self, last: str = "", **options: Any) -> Any:
        headers = {"last-event-id": last} if last else {}
        return self._chat.driver.stream(self._target, method="POST", headers=headers, **options)

    async def read(self, last: str = "") -> tuple[list[SSEMessage], bytes]:
        """All frames after a cursor, and their bytes."""
        async with asyncio.timeout(30), self.stream(last) as stream:
            assert stream.headers["legato-cursor"] == "exact"
            while await stream.read():
                pass
            assert not stream.cut
            return frames(stream.body), stream.body

    async def rest(self, cursor: str) -> list[SSEMessage]:
        return (await self.read(cursor))[0]

    async def cut(self, size: int) -> tuple[list[SSEMessage], str]:
        """What a reader has after ``size`` bytes, and the cursor it is left with."""
        decoder = Decoder()
        messages: list[SSEMessage] = []
        async with self.stream(cut_after=size) as stream:
            async for chunk in stream:
                messages += decoder.feed(chunk)
        return without_retry(messages), decoder.last_event_id


def frames(body: bytes) -> list[SSEMessage]:
    return without_retry(decoded(body))


def without_retry(messages: list[SSEMessage]) -> list[SSEMessage]:
    """The time to wait is drawn for each connection."""
    return [SSEMessage(data=message.data, event=message.event, id=message.id) for message in messages]


async def asked(chat: Chat) -> list[str]:
    """The ids of all messages that have a run."""
    events = (await chat.get("/events")).json()["events"]
    return [event["data"]["id"] for event in events if event["type"] == "message.created"]


@pytest.mark.parametrize("kind", STORES)
async def test_an_answer_cut_at_any_byte_and_resumed_is_the_uncut_answer(kind: str, tmp_path: Path) -> None:
    """In the Deva dialect: whole, failed and stopped answers, also between two frames of one event."""
    async with serving(new_store(kind, tmp_path)) as chat:
        await record(chat)
        ends = []
        for message in await asked(chat):
            answer = Answer(chat, message)
            uncut, body = await answer.read()
            ends.append(uncut[-1].event)
            await cut_everywhere(body, uncut, without_retry, answer.rest)
            for size in spread(len(body), 12):
                before, cursor = await answer.cut(size)
                after, _ = await answer.read(cursor)
                assert uncut == before + after, f"cut after {size} bytes"
    assert set(ends) == {"response_message", "error"}


async def test_the_server_may_restart_between_the_cut_and_the_rest_of_an_answer(tmp_path: Path) -> None:
    """The same frames, in the next life of the server."""
    async with serving(new_store("sqlite", tmp_path)) as chat:
        await record(chat)
        whole = {message: await Answer(chat, message).read() for message in await asked(chat)}
    for place in range(13):
        cuts = {}
        async with serving(new_store("sqlite", tmp_path)) as chat:
            for message, (_, body) in whole.items():
                cuts[message] = await Answer(chat, message).cut(len(body) * place // 12)
        async with serving(new_store("sqlite", tmp_path)) as chat:
            for message, (before, cursor) in cuts.items():
                after, _ = await Answer(chat, message).read(cursor)
                assert whole[message][0] == before + after


async def test_an_answer_may_be_cut_and_read_on_while_it_is_given(tmp_path: Path) -> None:
    """Wherever in the answer the reader lost its connection, and with one beside it that never did."""
    gates: dict[str, Gate] = {}

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        async for word in gates[turn.session](turn):
            yield word

    async def cut_and_resumed(answer: Answer, size: int) -> list[SSEMessage]:
        before, cursor = await answer.cut(size)
        return before if before and before[-1].event == "response_message" else before + (await answer.read(cursor))[0]

    async with serving(new_store("memory", tmp_path), agent) as chat:
        size, length = 0, 1
        while size <= length:  # one session for each place to cut at
            session = f"s{size:05}"
            gates[session] = Gate()
            await chat.driver.request("POST", "/api/sessions", json={"id": session})
            one = Chat(chat.app, chat.driver, session)
            answer = Answer(one, (await one.send()).json()["messageId"])
            async with asyncio.timeout(30):
                seen, (uncut, body), _ = await asyncio.gather(
                    cut_and_resumed(answer, size), answer.read(), speak(one, gates[session])
                )
            assert uncut == seen, f"cut after {size} bytes"
            length = len(body)
            size += 7
