"""A store that was put back from a backup: what readers had of what was lost is not taken for what came instead."""

# a test has its event loop for itself

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from driving import decoded, echo
from facts import draft
from held_store import HeldStore, having, quiet
from legato.agent import Agent, Turn
from legato.client.resume import Resume
from legato.server.app import Legato
from legato.store import sqlite_file
from legato.store.memory import MemoryStore
from legato.store.sqlite import SQLiteStore
from legato.testing import Driver, FakeClock
from opening import opened

CREATED = draft("session.created", {"title": "t"})


def said(name: str) -> Any:
    return draft("message.created", {"id": name, "role": "user", "text": name})


def back_up(path: Path) -> Path:
    """By SQLite's own means, while the file is open."""
    copy = path.with_name("backup.db")
    to, source = apsw.Connection(str(copy)), apsw.Connection(str(path))
    with to.backup("main", source, "main") as backup:
        backup.step()
    to.close()
    source.close()
    return copy


def restore(path: Path, copy: Path) -> None:
    copy.replace(path)


@contextlib.asynccontextmanager
async def restored(tmp_path: Path, **options: Any) -> AsyncIterator[tuple[SQLiteStore, str]]:
    """A store with events 1 to 3 from before a backup, and 4 and 5 in the place of 4 to 6, which were lost; and the
    incarnation in which those were seen."""
    path = tmp_path / "log.db"
    async with opened(path, **options) as store:
        seen = store.incarnation
        await store.append("s", [CREATED, said("2"), said("3")])
        copy = back_up(path)
        await store.append("s", [said("4"), said("5"), said("6")])
    restore(path, copy)
    async with opened(path, **options) as store:
        await store.append("s", [said("4 again"), said("5 again")])
        yield store, seen


@pytest.mark.parametrize(("offset", "held"), [(0, True), (1, True), (3, True), (4, False), (5, False), (6, False)])
@pytest.mark.parametrize("clock", ["runs", "stands"])
async def test_what_was_lost_is_known(tmp_path: Path, offset: int, held: bool, clock: str) -> None:
    """Up to the backup a cursor goes on; within what was rewritten, and beyond, it does not."""
    options = {"clock": FakeClock()} if clock == "stands" else {}
    async with restored(tmp_path, **options) as (store, seen):
        assert held == await store.holds(seen, "s", offset)
        assert await store.holds(store.incarnation, "s", offset)


async def test_starts_lose_nothing(tmp_path: Path) -> None:
    """A cursor of any earlier start is good, whatever was written since."""
    seen: list[tuple[str, int]] = []
    for number in range(5):
        async with opened(tmp_path / "log.db") as store:
            await store.append("s", [CREATED if number == 0 else said(str(number))])
            seen.append((store.incarnation, number + 1))
            for incarnation, offset in seen:
                assert await store.holds(incarnation, "s", offset)
    assert 5 == len({incarnation for incarnation, _ in seen})


async def test_what_a_lost_incarnation_said(tmp_path: Path) -> None:
    """One that began after the backup is not in the file: none of its cursors is known to be good."""
    path = tmp_path / "log.db"
    async with opened(path) as store:
        await store.append("s", [CREATED, said("2")])
        copy = back_up(path)
    async with opened(path) as store:
        lost = store.incarnation
        await store.append("s", [said("3")])
    restore(path, copy)
    async with opened(path) as store:
        assert not await store.holds(lost, "s", 1)
        await store.append("s", [said("3 again")])
        assert not await store.holds(lost, "s", 3)


async def test_twice_restored(tmp_path: Path) -> None:
    """What was written between the two is lost as well."""
    path = tmp_path / "log.db"
    async with opened(path) as store:
        first = store.incarnation
        await store.append("s", [CREATED])
        copy = back_up(path)
        await store.append("s", [said("a2")])
    later = []
    for name in ("b", "c"):
        (tmp_path / "again.db").write_bytes(copy.read_bytes())
        restore(path, tmp_path / "again.db")
        async with opened(path) as store:
            await store.append("s", [said(f"{name}2"), said(f"{name}3")])
            later.append(store.incarnation)
    second, last = later
    async with opened(path) as store:
        assert [True, False] == [await store.holds(first, "s", offset) for offset in (1, 2)]
        assert [False, False] == [await store.holds(second, "s", offset) for offset in (1, 2)]
        assert [True, True] == [await store.holds(last, "s", offset) for offset in (1, 3)]


async def test_few_incarnations_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file does not grow by being opened; the oldest are forgotten, and that is a reset."""
    monkeypatch.setattr(sqlite_file, "OPENINGS", 3)
    names = []
    for _ in range(5):
        async with opened(tmp_path / "log.db") as store:
            await store.append(f"s{len(names)}", [CREATED])
            names.append(store.incarnation)
            assert store._connection.execute("SELECT count(*) FROM opening").fetchone()[0] <= 3
    async with opened(tmp_path / "log.db") as store:
        assert [False, True] == [await store.holds(names[0], "s0", 1), await store.holds(names[4], "s4", 1)]


async def test_a_memory_that_is_gone() -> None:
    """Nothing of one is another's, also under the same ids."""
    one, other = MemoryStore(), MemoryStore()
    for store in (one, other):
        await store.append("s", [CREATED])
    assert [True, False] == [await one.holds(each.incarnation, "s", 1) for each in (one, other)]


# On the wire


async def head(driver: Driver, target: str, method: str = "GET", **headers: str) -> tuple[int, Any, Any]:
    """The status and what a stream says of the cursor."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    async with driver.stream(target, method=method, headers=named) as stream:
        return stream.status, stream.headers.get("legato-cursor"), stream.headers.get("legato-incarnation")


@pytest.mark.parametrize(
    ("cursor", "told"),
    [("1", "exact"), ("3", "exact"), ("4", "reset"), ("5", "reset"), ("6", "reset"), ("99", "reset")],
)
async def test_a_reader_of_what_was_lost_begins_anew(tmp_path: Path, cursor: str, told: str) -> None:
    """Who says where the cursor is from is told so; who does not can be told only of what lies beyond the end."""
    async with restored(tmp_path) as (_, seen):
        pass
    app = Legato(f"sqlite:///{tmp_path / 'log.db'}", agents=[echo])
    async with Driver(app) as driver:
        status, answer, now = await head(driver, "/stream?sessionId=s", last_event_id=cursor, legato_incarnation=seen)
        assert (200, told) == (status, answer)
        assert now == app.store.incarnation  # type: ignore[attr-defined]
        assert now != seen
        _, plain, _ = await head(driver, "/stream?sessionId=s", last_event_id=cursor)
        assert plain == ("exact" if int(cursor) <= 5 else "reset")
        _, again, _ = await head(driver, "/stream?sessionId=s", last_event_id="5", legato_incarnation=now)
        assert again == "exact"


@pytest.mark.parametrize("odd", ["", "x", "x" * 5_000, "ü", "\x00"[:0], "a b", "'; DROP TABLE opening; --"])
async def test_incarnations_that_nobody_had(tmp_path: Path, odd: str) -> None:
    """Whatever stands there is no more than unknown."""
    app = Legato(f"sqlite:///{tmp_path / 'log.db'}", agents=[echo])
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        status, answer, _ = await head(driver, "/stream?sessionId=s", last_event_id="1", legato_incarnation=odd)
        assert (200, "reset" if odd else "exact") == (status, answer)


async def test_a_threads_answer_that_was_lost(tmp_path: Path) -> None:
    """A cursor of Deva's, too: the answer comes from its start."""
    path = tmp_path / "log.db"
    app = Legato(f"sqlite:///{path}", agents=[echo])
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sdk/chat", json={"id": "t"})
        message = (await driver.request("POST", "/api/sdk/chat/t/messages", json={"text": "hello"})).json()["id"]
        url = f"/api/sdk/chat/t/messages/{message}/query/stream"
        whole = await driver.request("POST", url)
        cursor = decoded(whole.body)[0].id or ""
        seen = whole.headers["legato-incarnation"]
        assert "exact" == (await head(driver, url, "POST", last_event_id=cursor, legato_incarnation=seen))[1]
        assert "reset" == (await head(driver, url, "POST", last_event_id=cursor, legato_incarnation="lost"))[1]


@pytest.mark.parametrize("deltas", [1, 40])
async def test_a_clock_that_is_set_back_a_little_deceives_nobody(tmp_path: Path, deltas: int) -> None:
    """What came last before the next opening are deltas, which move no session's time: they count all the same."""
    clock, path = FakeClock(), tmp_path / "log.db"
    async with opened(path, clock=clock) as store:
        seen = store.incarnation
        await store.append("s", [CREATED, draft("message.created", {"id": "m", "role": "user", "text": "x"}, "r")])
        clock.advance(0.6)
        for start in range(deltas):
            await store.append("s", [draft("text.delta", {"part": 0, "step": 1, "start": start, "text": "x"}, "r")])
    clock.advance(-0.5)
    async with opened(path, clock=clock) as store:
        assert await store.holds(seen, "s", 2 + deltas)


class Plain:
    """A store that knows of no incarnations, as another one may not."""

    def __init__(self) -> None:
        self._store = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        if name in ("incarnation", "holds"):
            raise AttributeError(name)
        return getattr(self._store, name)


async def test_stores_that_know_of_none() -> None:
    """Nothing is said of it, and nothing is asked."""
    app = Legato(Plain(), agents=[echo])  # type: ignore[arg-type]
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        told = await head(driver, "/stream?sessionId=s", last_event_id="1", legato_incarnation="any")
        assert (200, "exact", None) == told


# The client


def event(id: int, name: str = "content") -> bytes:
    return f"event: {name}\ndata: {{}}\nid: {id}\n\n".encode()


def test_a_client_says_where_its_cursor_is_from() -> None:
    """That of the connection on which it came; after a reset the old one until something has come of the new."""
    resume = Resume()
    assert {} == resume.connect()
    resume.opened("exact", "one")
    resume.receive(event(1, "connected"))
    resume.receive(event(5))
    assert {"last-event-id": "5", "legato-incarnation": "one"} == resume.connect()
    resume.opened("reset", "two")
    assert {"last-event-id": "5", "legato-incarnation": "one"} == resume.connect()  # nothing came
    resume.opened("reset", "two")
    resume.receive(event(2, "connected"))
    assert {"last-event-id": "2", "legato-incarnation": "two"} == resume.connect()
    resume.opened("exact", None)  # an older server, or another store
    resume.receive(event(3))
    assert {"last-event-id": "3"} == resume.connect()


# While it is open


@pytest.mark.parametrize("on_crash", ["fail", "retry", "resume"])
async def test_a_store_that_loses_the_end_of_a_log_while_it_is_open(on_crash: Any) -> None:
    """As a failover to a replica does that was behind. Readers are cut off and told, and nobody goes on from what is
    not there: neither the agent nor what is kept in memory."""
    store = MemoryStore()
    attempts: list[int] = []
    go = asyncio.Event()

    async def counts(turn: Turn) -> AsyncIterator[str]:
        attempts.append(turn.attempt)
        said = "".join(event.data["text"] for event in turn.events if event.type == "text.delta")
        for word in ("one ", "two ", "three ")[len(said.split()) if on_crash == "resume" else 0 :]:
            yield word
            await turn.stored()
        await go.wait()
        yield "end"

    app = Legato(store, agents=[Agent(counts, on_crash=on_crash)])
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        sent = (await driver.request("POST", "/api/sessions/s/messages", json={"text": "hi"})).json()
        async with asyncio.timeout(30), driver.stream("/stream?sessionId=s&client=legato") as stream:
            was = stream.headers["legato-incarnation"]
            async for message in stream.messages():
                last = message.id
                if "three" in message.data:
                    break
            log = store._logs["s"]
            cut = next(place for place, event in enumerate(log.events) if "two" in getattr(event.fact, "text", ""))
            log.events = log.events[:cut]
            log.state = msgspec.structs.replace(log.state, head=cut, whole=min(log.state.whole, cut))
            store.incarnation = "another"
            go.set()
            store.doorbell.forget()
            assert [message async for message in stream.messages() if message.event != "heartbeat"] == []

        _, told, now = await head(driver, "/stream?sessionId=s", last_event_id=last, legato_incarnation=was)
        assert (told, now) == ("reset", "another")
        seen = []
        async with asyncio.timeout(30), driver.stream("/stream?sessionId=s&client=legato&from=start") as stream:
            async for message in stream.messages():
                seen.append(message)
                if message.event in ("complete", "error"):
                    break
        texts = [json.loads(message.data)["content"] for message in seen if message.event == "content"]
        if on_crash == "fail":
            assert (texts, seen[-1].event, attempts) == (["one "], "error", [1])
        else:
            again = ["two ", "three ", "end"] if on_crash == "resume" else ["one ", "two ", "three ", "end"]
            assert ("".join(texts), seen[-1].event) == ("one " + "".join(again), "complete")
            assert attempts == [1, 2]
        messages = (await driver.request("GET", "/api/sessions/s/messages")).json()
        assert len(messages) == 2
        assert sent["runId"] not in (await store.info("s")).runs


@pytest.mark.parametrize("on_crash", ["fail", "resume"])
async def test_an_agent_that_has_ended_before_its_words_are_stored(on_crash: Any) -> None:
    """While the store was away, and came back as another one: the run is not taken for a whole one."""
    store = HeldStore()
    attempts: list[int] = []

    async def counts(turn: Turn) -> AsyncIterator[str]:
        attempts.append(turn.attempt)
        said = "".join(event.data["text"] for event in turn.events if event.type == "text.delta")
        for word in ("one ", "two ", "three ")[len(said.split()) :]:
            yield word
            await asyncio.sleep(0)

    app = Legato(store, agents=[Agent(counts, on_crash=on_crash)])
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        store.fail(having("text.delta"))
        await driver.request("POST", "/api/sessions/s/messages", json={"text": "hi"})
        await quiet()
        assert attempts == [1]
        store.inner.incarnation = "another"
        store.doorbell.forget()
        store.mend()
        async with asyncio.timeout(30), driver.stream("/stream?sessionId=s&client=legato&from=start") as stream:
            seen = []
            async for message in stream.messages():
                seen.append(message)
                if message.event in ("complete", "error"):
                    break
        text = "".join(json.loads(message.data)["content"] for message in seen if message.event == "content")
        if on_crash == "fail":
            assert (seen[-1].event, attempts) == ("error", [1])
        else:
            assert (text, seen[-1].event, attempts) == ("one two three ", "complete", [1, 2])


async def test_a_loss_while_a_stream_begins() -> None:
    """Wherever it falls between the look at the cursor and the first read, nobody is told that what is gone goes on."""
    store = MemoryStore()
    async with Driver(Legato(store, agents=[echo])) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        info, calls, loses_at = store.info, 0, 0

        async def loses(session: str) -> Any:
            nonlocal calls
            calls += 1
            found = await info(session)
            if calls == loses_at:
                store.incarnation += "'"
                store.doorbell.forget()
            return found

        store.info = loses  # type: ignore[method-assign]
        while calls >= loses_at:
            calls, loses_at = 0, loses_at + 1
            was = store.incarnation
            status, told, now = await head(driver, "/stream?sessionId=s", last_event_id="1", legato_incarnation=was)
            assert (status, told) == ((200, "exact") if store.incarnation == was else (503, None)), now
        assert loses_at > 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "hello"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
    ],
)
async def test_a_message_that_waits_for_a_failover(path: str, body: dict[str, Any]) -> None:
    """It is stored in what has come, and its stream begins there."""
    store = MemoryStore()
    async with Driver(Legato(store, agents=[echo])) as driver:
        append = store.append

        def late(*given: Any, **named: Any) -> Any:
            store.append = append  # type: ignore[method-assign]
            store.incarnation += "'"
            store.doorbell.forget(lost=False)
            return append(*given, **named)

        store.append = late  # type: ignore[method-assign]
        response = await driver.request("POST", path, json={"model": "echo", "stream": True, **body})
        assert response.status == 200, response.text
        assert "hello" in response.text
