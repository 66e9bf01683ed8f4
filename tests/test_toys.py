"""What others add to Legato is small: a dialect in 60 lines, a store in 200, and nothing of the server is changed.

Both are examples, and the pages about writing one have their code. A store for many processes takes 240 lines, with
what the house has for those.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from driving import Chat, Gate, chatting, decoded, reason
from legato.event import Draft, Event, MessageCreated, SessionCreated, SessionUpdated
from legato.log import Store, Subscription
from legato.server.app import Legato
from legato.store import group
from legato.store.moving import pages
from legato.testing import (
    EMBEDDED_STORE_CHECKS,
    PATIENCE,
    STORE_CHECKS,
    ASGIStream,
    StoreCheck,
    check_dialect,
    check_store,
)
from legato.yields import Checkpoint, Refusal, Thinking, ToolCall, ToolReady, ToolResult
from test_docs import FENCE

ROOT = Path(__file__).parent.parent


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LINES: Any = example("dialect_lines")
SIMPLE: Any = example("store_sqlite3")
SHARED: Any = example("store_shared")
for each in (SIMPLE, SHARED):
    each.SCHEMA += "PRAGMA synchronous = OFF;"  # which is most of the time that they take


def written(text: str) -> list[str]:
    """The lines that have something on them."""
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("name", "page", "most"),
    [("dialect_lines", "writing-a-dialect", 60), ("store_sqlite3", "writing-a-store", 200)],
)
def test_the_examples_are_small_and_stand_in_their_pages(name: str, page: str, most: int) -> None:
    """The page's first blocks of code, put together, are the example."""
    lines = written((ROOT / "examples" / f"{name}.py").read_text("utf-8"))
    blocks = FENCE.findall((ROOT / "docs" / f"{page}.md").read_text("utf-8"))
    shown = [line for language, code in blocks if language == "python" for line in written(code)]

    assert len(lines) <= most
    assert shown[: len(lines)] == lines


# The dialect ----------------------------------------------------------------------------------------------------------


async def talker(turn: Any) -> AsyncIterator[Any]:
    """Everything that an agent can say, in pieces that do not end where lines do."""
    yield Thinking("Hm.\n")
    for piece in ("One\nTw", "o", "\n\nThree\r\n\u2028", "é\U0001f680", "\n"):
        yield piece
        await turn.stored()  # else they would be stored as fewer
    yield ToolCall("c", "look")
    yield ToolReady("c")
    yield ToolResult("c", "there\n")
    yield Checkpoint({"at": 1})
    yield "Fo"
    yield Refusal("ur.\nNo more")


ANSWER = [["One"], ["Two", "", "Three\r"], ["\u2028é\U0001f680"], ["Four."], ["No more"]]


@asynccontextmanager
async def lines(*agents: Any) -> AsyncIterator[Chat]:
    app = Legato("memory:", agents=agents or [talker], dialects=[LINES.LINES])
    async with chatting(app) as chat:
        yield chat


async def say(chat: Chat, text: str = "Go", **headers: str) -> str:
    """Send it; where its answer is to be read."""
    sent = await chat.driver.request("POST", "/lines", json={"text": text}, headers=headers)
    assert sent.status == 202
    return str(sent.json()["answer"])


async def told(chat: Chat, target: str, last: str | None = None, **options: Any) -> tuple[ASGIStream, bytes]:
    """An answer as far as it is read, and its bytes but for those that tell how long to wait."""
    headers = {} if last is None else {"last-event-id": last}
    async with chat.driver.stream(target, headers=headers, **options) as stream:
        async for _ in stream:
            pass
        body = stream.body
    retry, _, rest = body.partition(b"\n")
    assert retry.startswith(b"retry: "[: len(retry)])
    return stream, rest


def data(body: bytes) -> list[Any]:
    return [json.loads(message.data) for message in decoded(body)]


async def log_of(chat: Chat, target: str) -> list[Event]:
    return await chat.app.store.read(target.removeprefix("/lines/").partition("~")[0], 0)


async def test_lines_come_whole() -> None:
    """Whatever the pieces were; the last line with the end, whose name says which."""
    async with lines() as chat:
        stream, body = await told(chat, await say(chat))
        assert data(body) == ANSWER
        assert [message.event for message in decoded(body)] == ["lines"] * 4 + ["run.completed"]
        assert (stream.status, stream.headers["legato-cursor"]) == (200, "exact")


async def test_lines_come_live() -> None:
    """Each as soon as it is whole."""
    gate = Gate()
    async with lines(gate) as chat, chat.driver.stream(await say(chat)) as stream:
        messages = stream.messages()
        for words, line in ((("a", "b\n"), "ab"), (("c\n",), "c")):
            gate.let(*words)
            assert json.loads((await anext(messages)).data) == [line]
        gate.let("d")
        gate.close()
        assert [json.loads(message.data) async for message in messages] == [["d"]]


async def test_lines_keep_the_rules_of_frames() -> None:
    """And a copy of the fold goes on as the fold does, wherever it was made."""
    async with lines() as chat:
        target = await say(chat)
        await told(chat, target)
        events = await log_of(chat, target)
    check_dialect(lambda: LINES.LinesFold().encode, events)
    fold = LINES.LinesFold()
    frames = [fold.encode(event) for event in events]
    for place in range(len(events)):
        one = LINES.LinesFold()
        before = [one.encode(event) for event in events[:place]]
        copy = one.copy()
        one.encode(events[-1])
        assert before + [copy.encode(event) for event in events[place:]] == frames


async def test_lines_go_on_after_a_cut_at_any_byte() -> None:
    """With the id of the last frame that came whole, the bytes are those of the uncut stream."""
    async with lines() as chat:
        target = await say(chat)
        stream, whole = await told(chat, target)
        for size in range(len(stream.body)):
            _, part = await told(chat, target, cut_after=size)
            kept = part[: part.rfind(b"\n\n") + 2] if b"\n\n" in part else b""
            last = next((message.id for message in reversed(decoded(kept))), None)
            _, rest = await told(chat, target, last)
            assert kept + rest == whole, size


async def test_lines_of_a_cursor_from_elsewhere() -> None:
    """It is not skipped in silence: the answer comes from its start, and the head says so."""
    async with lines() as chat:
        target = await say(chat)
        _, whole = await told(chat, target)
        for last in ("1", "0", "999"):
            stream, body = await told(chat, target, last)
            assert (stream.headers["legato-cursor"], body) == ("reset", whole)


async def test_lines_are_sent_once() -> None:
    """The same key and line, the same answer; the same key and another line is refused."""
    async with lines() as chat:
        key = {"idempotency-key": "k"}
        assert await say(chat, **key) == await say(chat, **key)
        refused = await chat.driver.request("POST", "/lines", json={"text": "Else"}, headers=key)
        assert (refused.status, refused.json()[0]) == (409, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("method", "target", "headers", "body", "status", "code"),
    [
        ("GET", "/lines/s~r", {}, b"", 404, "run_not_found"),
        ("GET", "/lines/%00", {}, b"", 404, "session_not_found"),
        ("GET", "/lines/s~r", {"last-event-id": "x"}, b"", 400, "cursor_invalid"),
        ("POST", "/lines", {}, b"[]", 400, "invalid_input"),
        ("POST", "/lines", {}, b'{"text": " "}', 400, "invalid_input"),
        ("POST", "/lines", {}, b'{"text": "' + b"x" * 4_194_304 + b'"}', 413, "too_large"),
        ("DELETE", "/lines/s~r", {}, b"", 405, "method_not_allowed"),
        ("GET", "/lines", {}, b"", 405, "method_not_allowed"),
        ("GET", "/lines/s/r", {}, b"", 404, "no_such_route"),
    ],
)
async def test_lines_have_errors_of_their_own(
    method: str, target: str, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    """In the dialect's form, whoever refuses; those of others keep theirs."""
    async with lines() as chat:
        refused = await chat.driver.request(method, target, body=body, headers=headers)
        assert (refused.status, refused.json()[0]) == (status, code)
        assert [str, str] == [type(each) for each in refused.json()]
        assert ("allow" in refused.headers) == (status == 405)
        assert reason(await chat.driver.request("GET", "/api/sessions/none"))[0] == 404


async def test_lines_of_a_session_that_is_deleted() -> None:
    """The stream ends, and its last frame says why."""
    gate = Gate()
    async with lines(gate) as chat:
        target = await say(chat)
        async with chat.driver.stream(target) as stream:
            messages = stream.messages()
            gate.let("a\n")
            assert (await anext(messages)).event == "lines"
            session = target.removeprefix("/lines/").partition("~")[0]
            assert (await chat.driver.request("DELETE", f"/api/sessions/{session}")).status == 204
            assert [message.event async for message in messages] == ["session.deleted"]
        assert (await chat.driver.request("GET", target)).json()[0] == "run_not_found"


async def test_lines_are_counted_and_inspected() -> None:
    """Its readers are among the open streams, and its frames beside the events."""
    gate = Gate()
    async with lines(gate) as chat:
        target = await say(chat)
        session = target.removeprefix("/lines/").partition("~")[0]
        inspect = f"/api/inspect/sessions/{session}"
        async with chat.driver.stream(target) as stream:
            gate.let("a\nb")
            await anext(stream.messages())
            readers = (await chat.driver.request("GET", inspect)).json()["readers"]
            assert [reader["dialect"] for reader in readers] == ["lines"]
        gate.close()
        _, body = await told(chat, target)
        rows = (await chat.driver.request("GET", f"{inspect}/wire?dialects=lines")).json()["rows"]
        assert "".join(row["wire"].get("lines", "") for row in rows).encode() == body


async def test_lines_are_documented() -> None:
    """Its routes are in the application's document."""
    async with lines() as chat:
        document = (await chat.driver.request("GET", "/openapi.json")).json()
        post, get = document["paths"]["/lines"]["post"], document["paths"]["/lines/{run}"]["get"]
        assert (post["operationId"], get["operationId"]) == ("sayLine", "getLines")
        assert {"200", "400", "401", "403", "404", "421", "429", "500", "503"} == set(get["responses"])
        assert "text/event-stream" in get["responses"]["200"]["content"]
        assert {"202", "400", "401", "403", "408", "409", "413", "415", "421", "500", "503", "507"} == set(
            post["responses"]
        )
        assert "Line" in document["components"]["schemas"]


# The store ------------------------------------------------------------------------------------------------------------

_: Callable[[str], Store] = SIMPLE.SimpleStore


@pytest.mark.parametrize("check", [*STORE_CHECKS, *EMBEDDED_STORE_CHECKS], ids=lambda check: check.name)
async def test_the_store_keeps_the_contract(check: StoreCheck, tmp_path: Path) -> None:
    """``legato.testing.check_store``, rule by rule."""
    await check(lambda name, clock: SIMPLE.SimpleStore(str(tmp_path / f"{name}.db"), clock=clock))


async def test_a_server_on_the_store_answers_and_comes_back(tmp_path: Path) -> None:
    """What was said in one life is there in the next."""
    path = str(tmp_path / "chat.db")
    app = Legato(SIMPLE.SimpleStore(path), agents=[talker])
    async with chatting(app) as chat:
        await chat.said("One")
        before = (await chat.get("/messages")).json()
    app = Legato(SIMPLE.SimpleStore(path), agents=[talker])
    async with chatting(app) as again:
        again.session = chat.session
        assert (await again.get("/messages")).json() == before
        await again.said("Two")
        after = (await again.get("/messages")).json()
        assert [message["userInput"] for message in after][::2] == ["One", "Two"]


async def test_a_second_process_cannot_open_the_store(tmp_path: Path) -> None:
    """It would write with leases of its own."""
    store = SIMPLE.SimpleStore(str(tmp_path / "chat.db"))
    await store.open()
    other = SIMPLE.SimpleStore(str(tmp_path / "chat.db"))
    with pytest.raises(SIMPLE.StoreError, match="locked"):
        await other.open()
    await store.close()


# The shared store -----------------------------------------------------------------------------------------------------


def test_the_shared_store_is_small() -> None:
    """Its page says how small, and names it."""
    lines = written((ROOT / "examples" / "store_shared.py").read_text("utf-8"))
    page = (ROOT / "docs" / "writing-a-store.md").read_text("utf-8")

    assert len(lines) <= 240
    assert "(../examples/store_shared.py)" in page
    assert "in 240 lines" in page


async def test_the_shared_store_keeps_the_contract(tmp_path: Path) -> None:
    """All rules of stores that several processes use."""
    await check_store(lambda name, clock: SHARED.SharedStore(str(tmp_path / f"{name}.db"), clock=clock), shared=True)


async def test_the_shared_store_looks_whether_it_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing is stored; and what finds no fault makes none."""
    looks = 0
    look = SHARED.SharedStore._idle

    async def counted(*given: Any) -> None:
        nonlocal looks
        await look(*given)
        looks += 1

    monkeypatch.setattr(SHARED.SharedStore, "_idle", counted)
    monkeypatch.setattr(group, "IDLE_SECONDS", 0.001)
    monkeypatch.setattr(group, "PATIENCE", 0.0)
    store = SHARED.SharedStore(str(tmp_path / "chat.db"))
    await store.open()
    try:
        while looks < 3:
            await asyncio.sleep(0.001)
            assert store.trouble is None
    finally:
        await store.close()


async def test_two_processes_share_the_store(tmp_path: Path) -> None:
    """Both append to one log, under the same keys; each reads what the other has stored; and a run is one's."""
    async with AsyncExitStack() as stack:
        both = [SHARED.SharedStore(str(tmp_path / "chat.db")) for _ in range(2)]
        for store in both:
            await store.open()
            stack.push_async_callback(store.close)
        one, other = both
        await one.append("s", [Draft(SessionCreated()), Draft(MessageCreated("m", "user", "Go"), "s~r")])
        with Subscription(other, "s", after=2, heartbeat=PATIENCE) as reader:
            given: list[Event] = []
            drafts = [[Draft(SessionUpdated({"number": number}))] for number in range(40)]
            said = await asyncio.gather(
                *(store.append("s", each, once=f"{each[0].fact.metadata}") for each in drafts for store in both)
            )
            while len(given) < len(drafts):
                given += await reader.next()
        assert [event.offset for event in given] == list(range(3, 43))
        assert sorted(done.repeated for done in said) == [False] * 40 + [True] * 40
        leases = [await store.claim(owner=f"{store}", ttl=60.0, limit=1) for store in both]
        assert [len(each) for each in leases] == [1, 0]
        logs = [[event async for page in pages(store, "s") for event in page] for store in both]
        assert logs[0] == logs[1]
        assert len(logs[0]) == 42
