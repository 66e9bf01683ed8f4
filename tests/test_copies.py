"""Copies of sessions: made in pieces, seen whole or not at all, whatever ends them on the way."""

# a test has its event loop for itself

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from driving import echo
from facts import draft
from legato import copies as copies_module
from legato.caller import NOBODY
from legato.errors import SessionExists, SessionNotFound, StoreError, StoreFull
from legato.event import Draft, Event
from legato.log import build
from legato.server.app import Legato
from legato.store import sqlite_file
from legato.store.memory import MemoryStore
from legato.store.sqlite import SQLiteStore
from legato.testing import Driver

NET = 30.0
CREATED = draft("session.created", {"title": "t", "agent": "a"})


def said(number: int, size: int = 10) -> Draft:
    return draft("message.created", {"id": f"m{number}", "role": "user", "text": f"{number} " + "x" * size})


async def pieces(*given: Sequence[Draft] | Exception) -> AsyncIterator[Sequence[Draft]]:
    for each in given:
        if isinstance(each, Exception):
            raise each
        yield each


@contextlib.asynccontextmanager
async def opened(kind: str, folder: Path) -> AsyncIterator[Any]:
    store: Any = MemoryStore() if kind == "memory" else SQLiteStore(folder / "log.db")
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Any]:
    async with opened(request.param, tmp_path) as store:
        yield store


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    async with opened("sqlite", tmp_path) as store:
        yield store


def ids(events: Sequence[Event]) -> list[Any]:
    return [event.data.get("id") for event in events]


async def nothing_is_there(store: Any, session: str) -> None:
    assert not await store.read(session, 0)
    assert session not in [info.session for info in (await store.sessions()).infos]
    with pytest.raises(SessionNotFound):
        await store.info(session)


# The store


async def test_what_is_built_is_a_session(store: Any) -> None:
    """It has dense offsets, times that do not fall, a place in the list, and goes on as any other."""
    await store.append("before", [CREATED])
    await build(store, "s", pieces([CREATED], [said(1), said(2)], [said(3)]))
    events = await store.read("s", 0)
    assert [1, 2, 3, 4] == [event.offset for event in events]
    assert [None, "m1", "m2", "m3"] == ids(events)
    assert sorted(event.at for event in events) == [event.at for event in events]
    info = await store.info("s")
    assert (4, "t", "a", []) == (info.head, info.created.title, info.created.agent, info.open_runs)
    assert info.created_at == events[0].at
    assert info.updated_at >= events[-1].at
    assert ["s", "before"] == [each.session for each in (await store.sessions()).infos]
    assert info == (await store.sessions()).infos[0]
    assert [5] == [event.offset for event in (await store.append("s", [said(4)], head=4)).events]
    with pytest.raises(SessionExists):
        await store.append("s", [CREATED])


async def test_it_is_seen_when_it_is_whole(file: SQLiteStore) -> None:
    """Not before, by whatever way one asks."""

    async def looked() -> AsyncIterator[Sequence[Draft]]:
        yield [CREATED]
        for number in range(3):
            await nothing_is_there(file, "s")
            assert 0 < len(list(file._connection.execute("SELECT 1 FROM event")))
            yield [said(number)]
        await nothing_is_there(file, "s")

    await build(file, "s", looked())
    assert 4 == len(await file.read("s", 0))


@pytest.mark.parametrize("before", [0, 1, 2])
async def test_what_ends_on_the_way_leaves_nothing(store: Any, before: int) -> None:
    """An error of what is copied, after any number of pieces; and the id is free again."""
    given = [[CREATED], [said(1)], [said(2)]][:before]
    with pytest.raises(RuntimeError, match="gone"):
        await build(store, "s", pieces(*given, RuntimeError("gone")))
    await nothing_is_there(store, "s")
    await store.append("s", [CREATED])
    if isinstance(store, SQLiteStore):
        assert [(1,)] == list(store._connection.execute("SELECT count(*) FROM event"))
        assert [(1,)] == list(store._connection.execute("SELECT count(*) FROM session"))


@pytest.mark.parametrize("there", ["before", "meanwhile", "deleted"])
async def test_an_id_that_is_taken(store: Any, there: str) -> None:
    """Refused; and what has it is as it was."""

    async def go() -> AsyncIterator[Sequence[Draft]]:
        yield [CREATED]
        if there == "meanwhile":
            await store.append("s", [CREATED])
        yield [said(1)]

    if there != "meanwhile":
        await store.append("s", [CREATED])
    if there == "deleted":
        await store.append("s", [draft("session.deleted", {})])
    with pytest.raises(SessionExists):
        await build(store, "s", go())
    assert 1 == len(await store.read("s", 0))
    if isinstance(store, SQLiteStore):
        await store.append("other", [CREATED])
        assert [(2,)] == list(store._connection.execute("SELECT count(*) FROM event"))


@pytest.mark.parametrize(
    "wrong",
    [
        [draft("message.created", {"id": "m", "role": "user", "text": "x"}, "run")],
        [draft("session.deleted", {})],
        [CREATED],
        [],
    ],
    ids=["a run", "an end", "a second beginning", "nothing"],
)
async def test_what_no_session_is_built_of(file: SQLiteStore, wrong: list[Draft]) -> None:
    """Refused, and nothing is left."""
    with pytest.raises((ValueError, SessionExists)):
        await build(file, "s", pieces([CREATED], wrong))
    await nothing_is_there(file, "s")


async def test_two_at_the_same_time(file: SQLiteStore) -> None:
    """Under one id one of them wins, whole; under others both are there, and appends between them."""

    async def slowly(name: str) -> AsyncIterator[Sequence[Draft]]:
        yield [CREATED]
        for number in range(5):
            await asyncio.sleep(0)
            await file.append("other", [said(number)])
            yield [draft("message.created", {"id": f"{name}{number}", "role": "user", "text": name})]

    await file.append("other", [CREATED])
    first, second, _ = await asyncio.gather(
        *[build(file, name, slowly(str(place))) for place, name in enumerate(["s", "s", "t"])], return_exceptions=True
    )
    assert 1 == sum(isinstance(each, SessionExists) for each in (first, second))
    won = "0" if first is None else "1"
    assert [None, *(f"{won}{n}" for n in range(5))] == ids(await file.read("s", 0))
    assert [None, *(f"2{n}" for n in range(5))] == ids(await file.read("t", 0))
    assert 16 == len(await file.read("other", 0))


async def test_a_full_disk_on_the_way(file: SQLiteStore) -> None:
    """Nothing is left that could be seen, and all is free again when there is room."""
    await file.append("other", [CREATED])
    file._connection.pragma("max_page_count", file._connection.pragma("page_count") + 20)
    with pytest.raises(StoreFull):
        await build(file, "s", pieces([CREATED], *[[said(number, 20_000)] for number in range(20)]))
    await nothing_is_there(file, "s")
    file._connection.pragma("max_page_count", 1_000_000)
    await file.append("other", [said(1)])
    assert 2 == len(await file.read("other", 0))
    assert [(2,)] == list(file._connection.execute("SELECT count(*) FROM event"))


async def test_cancelled_on_the_way(file: SQLiteStore) -> None:
    """The same for who is cancelled between two pieces."""
    reached = asyncio.Event()

    async def held() -> AsyncIterator[Sequence[Draft]]:
        yield [CREATED]
        yield [said(1)]
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(build(file, "s", held()))
    await asyncio.wait_for(reached.wait(), NET)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await file.append("other", [CREATED])
    await nothing_is_there(file, "s")
    assert [(1,)] == list(file._connection.execute("SELECT count(*) FROM event"))


KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, sys.argv[2])
import test_copies
from legato.log import build
from legato.store.sqlite import SQLiteStore

async def pieces():
    yield [test_copies.CREATED]
    for number in range(3):
        yield [test_copies.said(number)]
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.open()
    await store.append("other", [test_copies.CREATED])
    await build(store, "s", pieces())

asyncio.run(main())
"""


async def test_killed_on_the_way(tmp_path: Path) -> None:
    """The next start finds nothing of it, and clears away what there was."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, str(tmp_path / "log.db"), str(Path(__file__).parent)
    )
    assert -signal.SIGKILL == await process.wait()
    async with opened("sqlite", tmp_path) as store:
        await nothing_is_there(store, "s")
        assert [(1,)] == list(store._connection.execute("SELECT count(*) FROM event"))
        await build(store, "s", pieces([CREATED], [said(1)]))
        assert 2 == len(await store.read("s", 0))


async def test_a_store_that_is_closed_on_the_way(tmp_path: Path) -> None:
    """It is told, and the next start finds nothing."""

    async def closing(store: SQLiteStore) -> AsyncIterator[Sequence[Draft]]:
        yield [CREATED]
        await store.close()
        yield [said(1)]

    async with opened("sqlite", tmp_path) as store:
        with pytest.raises(StoreError):
            await build(store, "s", closing(store))
    async with opened("sqlite", tmp_path) as store:
        await nothing_is_there(store, "s")
        assert 0 == sqlite_file.value(store._connection, "SELECT count(*) FROM session")


# What callers ask for


class Counted:
    """How many bytes an event loop is given to hold at once, by each append and each piece."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = 0
        self.count = 0
        copies = copies_module.Copies.drafts

        async def counted(of: Any, source: str, entries: Any, *into: Any) -> Any:
            drafts = await copies(of, source, entries, *into)
            self.most = max(self.most, sum(len(draft.fact.text) for draft in drafts))
            self.count += 1
            return drafts

        monkeypatch.setattr(copies_module.Copies, "drafts", counted)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_large_fork_is_made_in_pieces(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is small, and the copy is what it was when it was made at once."""
    counted = Counted(monkeypatch)
    app = Legato("memory:" if kind == "memory" else f"sqlite:///{tmp_path / 'log.db'}", agents=[echo])
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s", "title": "T"})
        for number in range(40):
            await app.store.append("s", [said(number, 200_000)])
        await app.store.append("s", [draft("session.rewound", {"to": "m37"})])
        forks = await asyncio.gather(
            *[
                driver.request("POST", "/api/sessions/s/fork", json={"messageIndex": 37, "id": f"f{number}"})
                for number in range(4)
            ]
        )
        assert [201] * 4 == [fork.status for fork in forks]
        assert counted.most <= copies_module.COPY_BYTES
        assert counted.count >= 4 * 7
        source = await app.sessions.history(NOBODY, "s")
        for number in range(4):
            copy = await app.sessions.history(NOBODY, f"f{number}")
            assert [(m.id, m.role, m.text) for m in source[:38]] == [(m.id, m.role, m.text) for m in copy]
            info = await app.store.info(f"f{number}")
            assert ("s", 39) == (info.created.forked_from, info.head)
        again = await driver.request("POST", "/api/sessions/s/fork", json={"messageIndex": 37, "id": "f1"})
        assert 409 == again.status


async def test_a_large_branch_is_made_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that goes on from an earlier one of a large conversation; the same key, the same response."""
    monkeypatch.setattr(copies_module, "COPY_BYTES", 1_000)
    app = Legato(f"sqlite:///{tmp_path / 'log.db'}", agents=[echo])
    async with Driver(app) as driver:
        previous: str | None = None
        answers = []
        for number in range(5):
            body = {"input": f"{number} " + "x" * 500, **({"previous_response_id": previous} if previous else {})}
            answers.append((await driver.request("POST", "/v1/responses", json=body)).json())
            previous = answers[-1]["id"]
        counted = Counted(monkeypatch)
        body = {"input": "branch", "previous_response_id": answers[2]["id"]}
        for _ in range(2):
            branch = await driver.request("POST", "/v1/responses", json=body, headers={"idempotency-key": "k"})
            assert 200 == branch.status
            assert "You said: branch" in branch.text
        assert counted.most <= 1_100
        assert counted.count >= 3
        assert 2 == len((await app.store.sessions()).infos)
        said = await app.sessions.history(NOBODY, (await app.store.sessions()).infos[0].session)
        assert 8 == len(said)


async def test_a_source_that_is_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not found, and there is no half of a copy."""
    monkeypatch.setattr(copies_module, "COPY_BYTES", 100)
    app = Legato(f"sqlite:///{tmp_path / 'log.db'}", agents=[echo])
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        for number in range(5):
            await app.store.append("s", [said(number, 100)])
        copies = copies_module.Copies.drafts
        calls = []

        async def deleting(of: Any, source: str, entries: Any, *into: Any) -> Any:
            calls.append(source)
            if len(calls) == 3:
                await app.sessions.delete(NOBODY, source)
            return await copies(of, source, entries, *into)

        monkeypatch.setattr(copies_module.Copies, "drafts", deleting)
        fork = await driver.request("POST", "/api/sessions/s/fork", json={"messageIndex": 4, "id": "f"})
        assert 404 == fork.status
        await nothing_is_there(app.store, "f")
