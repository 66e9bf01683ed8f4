"""The inspector's operations: who reads, what runs, and the wire forms, beside what the real endpoints send."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from driving import Chat, Gate, chatting, ends, named, reason
from facts import draft
from held_store import quiet
from legato import Text, Thinking, ToolCall, ToolResult, ToolStarted
from legato.dialect.responses import ResponseEncoder
from legato.event import Event
from legato.server import inspect
from legato.server.app import Legato
from legato.sse import HEARTBEAT


async def busy(turn: Any) -> AsyncIterator[Any]:
    """Uses every kind of part."""
    yield Thinking("What is ")
    yield Thinking("asked?")
    yield "Let me see. "
    yield ToolCall("t1", "look", '{"at":"tea"}')
    yield ToolStarted("t1", "Looking")
    yield ToolResult("t1", {"found": ["tea.md"]})
    yield Text("Tea ist heiß. 🎵")


async def inspected(chat: Chat, query: str = "") -> dict[str, Any]:
    answer = await chat.driver.request("GET", f"/api/inspect/sessions/{chat.session}{query}")
    assert answer.status == 200
    return dict(answer.json())


async def server(chat: Chat) -> dict[str, Any]:
    answer = await chat.driver.request("GET", "/api/inspect")
    assert answer.status == 200
    return dict(answer.json())


async def wire(chat: Chat, dialects: str, *, limit: int = 100) -> list[dict[str, Any]]:
    """All rows, read page by page."""
    rows: list[dict[str, Any]] = []
    after: int | None = 0
    while after is not None:
        target = f"/api/inspect/sessions/{chat.session}/wire?dialects={dialects}&limit={limit}&after={after}"
        answer = await chat.driver.request("GET", target)
        assert answer.status == 200
        rows += answer.json()["rows"]
        after = answer.json()["next"]
    return rows


def said(rows: list[dict[str, Any]], dialect: str, run: str | None = None) -> bytes:
    """What a dialect's column holds, of one run or of all."""
    return "".join(row["wire"].get(dialect, "") for row in rows if run in (None, row["run"])).encode()


async def sent(chat: Chat, method: str, target: str, body: bytes = b"") -> bytes:
    """All that a stream that ends by itself was answered with, behind the line that opens it."""
    async with asyncio.timeout(30), chat.driver.stream(target, method=method, body=body) as stream:
        return b"".join([chunk async for chunk in stream]).removeprefix(HEARTBEAT)


def asked(model: str) -> bytes:
    """The body of a request for chunks."""
    return json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "tea"}]}).encode()


# Wire forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 7, 500])
async def test_responses_column_is_the_real_stream(limit: int) -> None:
    """Byte for byte, whatever the size of the pages, for each of two runs in one session."""
    async with chatting(None, busy) as chat:
        runs = [(await chat.said(text)).json()["runId"] for text in ("one", "two")]
        rows = await wire(chat, "responses", limit=limit)

        for run in runs:
            real = await sent(chat, "GET", f"/v1/responses/resp_{run}?stream=true")
            assert real == said(rows, "responses", run)
            assert real.endswith(b"[DONE]\n\n")


@pytest.mark.parametrize("limit", [1, 3, 500])
async def test_chat_column_is_the_real_stream(limit: int) -> None:
    """The bytes that the request was answered with."""
    async with chatting(None, busy) as chat:
        real = await sent(chat, "POST", "/v1/chat/completions", asked("busy"))
        run = re.search(rb"chatcmpl-([\w.~-]+)", real)
        assert run is not None
        chat.session = run[1].decode().partition("~")[0]

        assert real == said(await wire(chat, "chat", limit=limit), "chat")


@pytest.mark.parametrize("client", ["legato", "python-0.8.1", "python-0.5.0", "typescript-0.11.4", "typescript-0.7.7"])
async def test_mix_column_is_the_real_stream(client: str) -> None:
    """All that a reader from the start is sent, but for its own first frame."""
    async with chatting(None, busy) as chat:
        run = (await chat.said()).json()["runId"]
        async with chat.stream(f"from=start&client={client}") as stream:
            async for message in stream.messages():
                if ends(run)(message):
                    break
            real = stream.body

        first, _, rest = real.partition(b"\n\n")
        assert b"event: connected" in first
        assert rest == said(await wire(chat, f"mix/{client}", limit=3), f"mix/{client}")


@pytest.mark.parametrize("limit", [1, 3, 500])
async def test_deva_column_is_the_real_stream(limit: int) -> None:
    """All frames of the answer, without the stream's own first lines."""
    async with chatting(None, busy) as chat:
        message = (await chat.said()).json()["messageId"]
        real = await sent(chat, "POST", f"/api/sdk/chat/{chat.session}/messages/{message}/query/stream")

        opening = re.match(rb"retry: \d+\n", real)
        assert opening is not None
        assert real[opening.end() :] == said(await wire(chat, "deva", limit=limit), "deva")


async def test_columns_side_by_side() -> None:
    """A row has the stored event and its form in each dialect that is not silent about it."""
    async with chatting(None, busy) as chat:
        await chat.said()
        rows = await wire(chat, "mix/legato,responses,chat,mix/legato")
        events = (await chat.get("/events")).json()["events"]

        assert events == [{name: row[name] for name in ("offset", "type", "run", "at", "data")} for row in rows]
        call = next(row for row in rows if row["type"] == "tool_call.started")
        assert {"mix/legato", "responses"} == set(call["wire"])  # a chat has no form for what ran here
        assert rows[0]["type"] == "session.created"
        assert {"mix/legato"} == set(rows[0]["wire"])


async def test_columns_of_runs_that_overlap() -> None:
    """A message that waits behind a run is in its place, and no run's fold gets another's events."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        first = (await chat.send("one")).json()["runId"]
        second = (await chat.send("two")).json()
        gate.let("a", "b")
        gate.close()
        gate.let("c")
        gate.close()
        await chat.follow(second["cursor"], until=ends(second["runId"]))
        rows = await wire(chat, "responses", limit=2)

        for run in (first, second["runId"]):
            assert said(rows, "responses", run) == await sent(chat, "GET", f"/v1/responses/resp_{run}?stream=true")


async def test_looking_leaves_nothing_in_the_cache() -> None:
    """Bytes in a dialect that nobody reads are not kept with the event."""
    async with chatting(None, busy) as chat:
        await chat.said()
        await wire(chat, "mix/typescript-0.7.7")

        events = await chat.app.store.read(chat.session, 0)
        assert all("typescript-0.7.7" not in event.wire for event in events)


async def test_a_page_costs_no_reader_s_work_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The folds are those of the readers: no event is folded twice, whoever asks for it, and as often as they ask."""
    folded: list[int] = []
    encode = ResponseEncoder.encode

    def counting(self: ResponseEncoder, event: Event) -> bytes:
        folded.append(event.offset)
        return encode(self, event)

    monkeypatch.setattr(ResponseEncoder, "encode", counting)
    async with chatting(None, busy) as chat:
        run = (await chat.said()).json()["runId"]
        rows = await wire(chat, "responses", limit=2)

        assert folded == [row["offset"] for row in rows if row["run"] == run]
        await wire(chat, "responses", limit=2)  # from the beginning again
        await sent(chat, "GET", f"/v1/responses/resp_{run}?stream=true")
        assert folded == [row["offset"] for row in rows if row["run"] == run]


async def test_a_page_of_long_answers_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends when it is large; there is at least one row in it, and nothing is left out."""
    monkeypatch.setattr(inspect, "PAGE_BYTES", 1)
    async with chatting(None, busy) as chat:
        run = (await chat.said()).json()["runId"]
        answer = await chat.driver.request("GET", f"/api/inspect/sessions/{chat.session}/wire?dialects=mix/legato")
        assert len(answer.json()["rows"]) == 1
        rows = await wire(chat, "responses")
        assert said(rows, "responses", run) == await sent(chat, "GET", f"/v1/responses/resp_{run}?stream=true")


# Readers --------------------------------------------------------------------------------------------------------------


async def test_a_reader_comes_and_goes() -> None:
    """It is told with its dialect, its cursor and what it has been sent, and no more once it has left."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        message = (await chat.send()).json()
        async with chat.stream("client=python-0.8.1", last=message["cursor"]) as stream:
            gate.let("one ", "two ")
            async for message in stream.messages():
                if "two " in message.data:
                    break
            head = (await inspected(chat))["session"]["head"]
            (reader,) = (await inspected(chat))["readers"]
            assert (reader["session"], reader["dialect"]) == (chat.session, "mix/python-0.8.1")
            assert reader["cursor"] == head
            assert reader["bytes"] == len(stream.body)
            assert reader["waiting"] == 0

        await stream.finished()
        after = await inspected(chat)
        assert (after["readers"], after["reading"], after["session"]["readers"]) == ([], 0, 0)
        gate.close()


async def test_readers_of_other_dialects() -> None:
    """Each is told by its own name, and their numbers differ."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        run = (await chat.send()).json()["runId"]
        answer = f"/api/sdk/chat/{chat.session}/messages/{run}~u/query/stream"
        async with (
            chat.driver.stream(f"/v1/responses/resp_{run}?stream=true"),
            chat.driver.stream(answer, method="POST"),
            chat.stream(),
        ):
            readers = (await inspected(chat))["readers"]

            assert {"responses", "deva", "mix/python-0.8.1"} == {reader["dialect"] for reader in readers}
            assert len({reader["number"] for reader in readers}) == 3
            body = asked(next(iter(chat.app.agents)))
            async with chat.driver.stream("/v1/chat/completions", method="POST", body=body):
                assert (await server(chat))["streams"] == 4
        gate.close()


async def test_a_reader_that_takes_nothing_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cursor stays where it stopped reading while the log grows; the server names it as stalled."""
    monkeypatch.setattr(inspect, "STALLED", 0.0)
    gate = Gate()
    async with chatting(None, gate) as chat:
        message = (await chat.send()).json()
        async with chat.stream(last=message["cursor"], buffer=1000):
            for _ in range(20):
                gate.let("word " * 100)
                await quiet()  # else they would be stored as fewer
            await chat.follow(message["cursor"], until=lambda each: '"start":9500' in each.data)
            seen = await inspected(chat)
            (reader,) = seen["readers"]
            assert reader["cursor"] < seen["session"]["head"]
            assert reader["waiting"] > 0
            assert [each["number"] for each in (await server(chat))["stalled"]] == [reader["number"]]
        gate.close()


async def test_many_readers_are_counted_and_the_slowest_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer has room for some readers: those that are furthest behind."""
    monkeypatch.setattr(inspect, "READERS", 1)
    async with chatting() as chat:
        await chat.said()
        async with chat.stream("from=2"), chat.stream("from=start") as slow, chat.stream():
            async for _ in slow.messages():
                break
            seen = await inspected(chat)

            assert seen["reading"] == 3
            assert len(seen["readers"]) == 1


# Runs, sessions, the server -------------------------------------------------------------------------------------------


async def test_runs_that_have_not_ended() -> None:
    """The one that is driven here, and those that wait behind it."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        first, second = [(await chat.send(text)).json() for text in ("one", "two")]
        await chat.follow(first["cursor"], until=named("run_started"))
        seen = await inspected(chat)

        assert [run["run"] for run in seen["runs"]] == [first["runId"], second["runId"]]
        driven, waiting = seen["runs"]
        assert (driven["started"], driven["here"], driven["epoch"]) == (True, True, 1)
        assert 0 < driven["lease"] <= 15
        assert (waiting["started"], waiting["here"], waiting["lease"]) == (False, False, None)
        about = await server(chat)
        assert about["running"] == 1
        assert [run["run"] for run in about["openRuns"]] == [first["runId"], second["runId"]]
        gate.close()
        gate.close()


async def test_the_server_tells_what_it_is(tmp_path: Any) -> None:
    """Its store with what that tells of itself, its agents, its sessions; never where files are."""
    async with chatting(store=f"sqlite:///{tmp_path}/chat.db") as chat:
        await chat.said()
        about = await server(chat)

        assert about["store"]["kind"] == "sqlite"
        assert about["store"]["durability"] == "full"
        assert about["agents"] == ["echo"]
        assert not about["draining"]
        (listed,) = about["sessions"]
        assert (listed["id"], listed["title"], listed["runs"]) == (chat.session, "A chat", 0)
        assert str(tmp_path) not in repr(about)


async def test_a_store_that_tells_nothing() -> None:
    """Is named by its class."""
    async with chatting() as chat:
        assert (await server(chat))["store"] == {"kind": "memory"}


# Outlines -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 4, 5000])
async def test_an_outline_is_the_log_in_columns(limit: int) -> None:
    """Page by page it says of each event what the canonical log says."""
    async with chatting(None, busy) as chat:
        await chat.said()
        events = (await chat.get("/events")).json()["events"]
        seen: list[tuple[str, str | None]] = []
        sizes: list[int] = []
        after: int | None = 0
        while after is not None:
            page = (await inspected(chat, f"?limit={limit}&after={after}"))["outline"]
            assert page["after"] == after == len(seen)
            for type_, run in zip(page["type"], page["run"], strict=True):
                seen.append((page["types"][type_], None if run < 0 else page["runs"][run]))
            sizes += page["size"]
            after = page["next"]

        assert seen == [(event["type"], event["run"]) for event in events]
        assert sizes == [len(e["data"].get("text", "")) if e["type"].endswith(".delta") else 0 for e in events]


async def test_an_outline_beyond_the_end_is_empty() -> None:
    """There is nothing to tell, and no next page."""
    async with chatting() as chat:
        page = (await inspected(chat, "?after=900"))["outline"]
        assert (page["type"], page["next"]) == ([], None)


# Exposure, and what cannot be used ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("dialects=morse", "morse"),
        ("dialects=mix/nobody-1.2.3", "nobody"),
        ("dialects=" + ",".join(f"mix/python-0.8.{n}" for n in range(9)), "8"),
        ("after=-1", "after"),
        ("after=x", "after"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
    ],
)
async def test_bad_input(query: str, word: str) -> None:
    """400, and the answer names what was wrong."""
    async with chatting() as chat:
        answer = await chat.driver.request("GET", f"/api/inspect/sessions/{chat.session}/wire?{query}")

        assert reason(answer) == (400, "bad_request", "invalid_input")
        assert word in answer.json()["error"]["message"]


async def test_an_unknown_session() -> None:
    """404, as everywhere; a deleted one too."""
    async with chatting() as chat:
        await chat.app.store.append(chat.session, [draft("session.deleted", {})])
        for session in ("nobody", chat.session, "%2e%2e", "%00", "%ff"):
            for path in ("", "/wire?dialects=responses"):
                answer = await chat.driver.request("GET", f"/api/inspect/sessions/{session}{path}")
                assert answer.status == 404, session


async def test_without_pages_there_is_no_inspector() -> None:
    """``page=False`` turns off the page and its operations."""
    app = Legato("memory:", agents=[busy], page=False)
    async with chatting(app) as chat:
        for path in ("/inspect", "/api/inspect", f"/api/inspect/sessions/{chat.session}"):
            assert (await chat.driver.request("GET", path)).status == 404
