"""The SQLite store: the contract of stores, and what can go wrong with a file, a disk, a process or a thread."""

# ruff: noqa: ASYNC220, ASYNC240  # a test has its event loop for itself

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facts import draft
from held_store import quiet
from legato.doorbell import Bell
from legato.errors import (
    IllegalTransition,
    InvalidInput,
    LeaseHeld,
    RunEnded,
    SessionExists,
    SessionNotFound,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreVersion,
    TooLarge,
)
from legato.event import (
    TERMINAL,
    Draft,
    OtherFact,
    RunCancelled,
    RunCompleted,
    RunStarted,
    Said,
    SessionCreated,
    SessionDeleted,
    ToolCompleted,
)
from legato.log import READ_LIMIT, Appended, Log, SessionInfo, Store, Take
from legato.machine import Lease, RunState
from legato.server.app import Legato
from legato.store import (
    lock,
    open_store,
    sqlite,
    sqlite_file,
    sqlite_journal,
    sqlite_known,
    sqlite_reading,
    sqlite_requests,
    sqlite_writer,
)
from legato.store.sqlite import SQLiteStore
from legato.testing import EMBEDDED_STORE_CHECKS, STORE_CHECKS, Driver, FakeClock, StoreCheck, check_store
from opening import opened
from processes import bounded

CHECKS = [*STORE_CHECKS, *EMBEDDED_STORE_CHECKS]
CREATED = draft("session.created", {"title": "t"})
DELETED = draft("session.deleted", {})
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def message(run: str = "r") -> Draft:
    return draft("message.created", {"text": "hello"}, run)


def text(text: str = "x", run: str = "r") -> Draft:
    return draft("text.delta", {"part": 0, "step": 0, "start": 0, "text": text}, run)


@pytest.fixture(autouse=True)
def nothing_is_tidied(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test may use the writer's connection."""
    monkeypatch.setattr(sqlite_writer, "TIDY_SECONDS", 1_000.0)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    async with opened(tmp_path / "log.db") as store:
        yield store


async def begin(store: Store, session: str = "s") -> Log:
    log = Log(store, session)
    await log.append(CREATED, message())
    return log


class HeldCommits:
    """Keeps the writer in its commit until told otherwise, and counts commits. ``fail`` lets them fail."""

    def __init__(self, store: SQLiteStore) -> None:
        self.count = 0
        self.fail = False
        self.reached = threading.Event()
        self.go_on = threading.Event()
        store._connection.set_commit_hook(self)

    def __call__(self) -> bool:
        self.count += 1
        self.reached.set()
        assert self.go_on.wait(30)
        return self.fail

    async def wait(self) -> None:
        assert await asyncio.to_thread(self.reached.wait, 30)


# The contract


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_contract(check: StoreCheck, tmp_path: Path) -> None:
    """The store keeps the rule that the check is named after."""
    await check(lambda name, clock: SQLiteStore(tmp_path / name, clock=clock))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
async def test_contract_when_cramped(check: StoreCheck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so too with caches that hold nothing and groups of two, that is, mostly from the disk, always packing."""
    monkeypatch.setattr(sqlite_journal, "PACK_EVENTS", 3)
    monkeypatch.setattr(sqlite_journal, "JOURNAL_BYTES", 300)
    monkeypatch.setattr(sqlite_journal, "JOURNAL_PIECE", 100)
    monkeypatch.setattr(sqlite_known, "KNOWN_SESSIONS", 0)
    monkeypatch.setattr(sqlite_writer, "GROUP_REQUESTS", 2)
    monkeypatch.setattr(sqlite, "LOOKS", 0)
    await check(
        lambda name, clock: SQLiteStore(tmp_path / name, durability="normal", clock=clock, tail_events=1, tail_bytes=1)
    )


async def test_check_store(tmp_path: Path) -> None:
    """The whole contract in one call, as others use it."""
    await check_store(lambda name, clock: SQLiteStore(tmp_path / name, clock=clock))


# Visible means durable


async def test_nothing_is_visible_before_the_commit(store: SQLiteStore) -> None:
    """While the commit is under way, no read shows the event and no bell rings; afterwards all do."""
    log = await begin(store)
    bell = Bell()
    store.doorbell.hang("s", bell)
    commits = HeldCommits(store)
    appending = asyncio.create_task(log.append(text()))
    await commits.wait()

    assert 2 == len(await log.read())
    assert not bell._rung
    assert not appending.done()
    commits.go_on.set()
    await appending
    assert 3 == len(await log.read())
    assert bell._rung


async def test_acknowledged_is_on_the_disk(store: SQLiteStore, tmp_path: Path) -> None:
    """When an append returns, another connection finds its event in the file."""
    await begin(store)
    connection = sqlite_file.connect(str(tmp_path / "log.db"), write=False)

    assert [1, 2] == [event.offset for event in sqlite_reading.read_page(connection, "s", 0, 10, True).events]
    connection.close()


async def test_the_disk_never_runs_ahead_of_the_cache(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told of an event by the disk finds it in the next read, though the writer was about to deliver it."""
    log = await begin(store)
    deliver, held, committed = store._deliver, [], asyncio.Event()

    def hold(*group: Any) -> None:
        held.append(group)
        committed.set()

    monkeypatch.setattr(store, "_deliver", hold)
    appending = asyncio.create_task(log.append(text()))
    await committed.wait()
    # Time enough for the disk to answer. If that were too short, a fault would stay hidden, but no test would fail.
    asyncio.get_running_loop().call_later(0.1, lambda: deliver(*held[0]))

    assert 2 == (await store.info("s")).head  # it asks nobody, so it is told nothing
    assert 2 == len(await log.read())
    (info,) = (await store.sessions()).infos
    assert 3 == info.head
    assert [3] == [event.offset for event in await log.read(info.head - 1)]
    assert info == await store.info("s")
    await appending


async def test_a_cancelled_append_is_still_delivered(store: SQLiteStore) -> None:
    """What was being stored when its caller left is stored, visible, and rung for."""
    log = await begin(store)
    bell = Bell()
    store.doorbell.hang("s", bell)
    commits = HeldCommits(store)
    appending = asyncio.create_task(log.append(text()))
    await commits.wait()
    appending.cancel()
    await asyncio.gather(appending, return_exceptions=True)
    commits.go_on.set()

    assert await bell.wait(30)
    assert [3] == [event.offset for event in await log.read(2)]


async def test_an_append_is_the_writers_future(store: SQLiteStore) -> None:
    """An append is under way when the call returns, without a task, and has its errors where it has its events."""
    log = await begin(store)
    told: list[int] = []
    appending = store.append("s", [text()])
    appending.add_done_callback(lambda done: told.extend(event.offset for event in done.result().events))
    refused = [store.append("s", [text(run="unknown")]), store.append("a\0b", [CREATED])]
    done = await asyncio.gather(*refused, return_exceptions=True)

    assert ([3], 3) == (told, len(await log.read()))
    assert [RunEnded, InvalidInput] == [type(error) for error in done]


# Groups


async def test_appends_share_commits(store: SQLiteStore) -> None:
    """All that waits while one commit is under way is committed together."""
    logs = [await begin(store, f"s{number}") for number in range(50)]
    commits = HeldCommits(store)
    first = asyncio.create_task(logs[0].append(text()))
    await commits.wait()
    others = [asyncio.create_task(log.append(text())) for log in logs]
    await asyncio.sleep(0)
    commits.go_on.set()
    await asyncio.gather(first, *others)

    assert 2 == commits.count


async def test_who_has_come_back_is_not_held_up(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions that append as fast as they are answered are committed together, and wait for no clock."""
    logs = [await begin(store, f"s{number}") for number in range(10)]
    monkeypatch.setattr(sqlite_writer, "COMMIT_INTERVAL", 3_600)
    commits = HeldCommits(store)
    commits.go_on.set()

    async def speak(log: Log) -> None:
        for _ in range(5):
            await log.append(text())

    await asyncio.gather(*[speak(log) for log in logs])

    assert 5 <= commits.count <= 10


async def test_busy_sessions_are_waited_for(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a commit of several sessions the next one waits for them, so that others can join it."""
    logs = [await begin(store, f"s{number}") for number in range(10)]
    monkeypatch.setattr(sqlite_writer, "COMMIT_INTERVAL", 3_600)
    commits = HeldCommits(store)
    first = [log.append(text()) for log in logs]
    commits.go_on.set()
    await asyncio.gather(*map(asyncio.ensure_future, first))
    before = commits.count
    early = [asyncio.ensure_future(log.append(text())) for log in logs[:-1]]
    await asyncio.sleep(0.05)
    assert (before, False) == (commits.count, any(each.done() for each in early))
    await asyncio.gather(*early, logs[-1].append(text()))

    assert before + 1 == commits.count


async def test_a_message_and_its_first_word_wait_for_nobody(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While busy sessions are waited for, a message is committed at once, and so is what its run says first; what it
    says then waits as all do."""
    logs = [await begin(store, f"s{number}") for number in range(10)]
    one = Log(store, "one")
    await one.append(CREATED)
    monkeypatch.setattr(sqlite_writer, "COMMIT_INTERVAL", 3_600)

    async def be_busy() -> None:
        await asyncio.gather(*[asyncio.ensure_future(log.append(text())) for log in logs])

    async def append(*drafts: Draft, **options: Any) -> Appended:
        async with asyncio.timeout(30):
            return await store.append("one", drafts, **options)

    await be_busy()
    begun = await append(message(), Draft(RunStarted("a", 1), "r"), take=Take("r", "me", 60))
    await be_busy()
    assert (await append(text(), lease=begun.lease)).events[0].offset == 4
    await be_busy()
    later = asyncio.ensure_future(store.append("one", [text()], lease=begun.lease))
    await asyncio.sleep(0.05)
    assert not later.done()
    await asyncio.gather(later, be_busy())


async def test_a_large_group_is_one_transaction(store: SQLiteStore) -> None:
    """A group that needs several statements is stored whole, or not at all."""
    log = await begin(store)
    drafts = [draft("tool.started", {"id": str(number)}, "r") for number in range(3 * sqlite_file.STATEMENT_ROWS)]
    commits = HeldCommits(store)
    commits.go_on.set()
    commits.fail = True
    with pytest.raises(StoreError):
        await log.append(*drafts)
    assert 2 == (await store.info("s")).head
    commits.fail = False
    await log.append(*drafts)

    assert 2 + len(drafts) == len([event async for event in log.all()])
    assert 2 == commits.count


async def test_a_statement_that_fails_is_rolled_back(store: SQLiteStore) -> None:
    """When a later statement of a group fails, the earlier ones are undone, and the next group is stored."""
    log = await begin(store)
    drafts = [draft("tool.started", {"id": str(number)}, "r") for number in range(3 * sqlite_file.STATEMENT_ROWS)]
    store._connection.execute(
        """CREATE TEMP TRIGGER stop BEFORE INSERT ON main.event WHEN new."offset" = 1000
        BEGIN SELECT RAISE(ABORT, 'stopped'); END"""
    )
    with pytest.raises(StoreError, match="stopped"):
        await log.append(*drafts)
    store._connection.execute("DROP TRIGGER stop")

    assert 2 == len([event async for event in log.all()])
    assert [3] == [event.offset for event in (await log.append(text())).events]


async def test_the_writer_remembers_few_sessions(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many sessions are written, the writer remembers a bounded number."""
    monkeypatch.setattr(sqlite_known, "KNOWN_SESSIONS", 5)
    for number in range(20):
        await begin(store, f"s{number}")

    assert store._writer is not None
    assert store._writer._memory is not None
    assert len(store._writer._memory.sessions) <= 6


async def test_a_failed_commit_fails_its_group_only(store: SQLiteStore) -> None:
    """When a commit fails, all its appends fail and leave nothing; the next ones are stored as if it had not been."""
    log = await begin(store)
    commits = HeldCommits(store)
    commits.fail = True
    commits.go_on.set()
    done = await asyncio.gather(
        log.append(text(), once="key"),
        log.append(message("q")),
        begin(store, "other"),
        store.acquire("s", "r", owner="me", ttl=10),
        return_exceptions=True,
    )
    commits.fail = False

    assert [StoreError] * 4 == [type(error) for error in done]
    assert [2] == [run.offset for run in await store.open_runs()]
    assert [3] == [event.offset for event in (await log.append(text(), once="key")).events]
    assert 1 == (await store.acquire("s", "r", owner="me", ttl=10)).epoch
    await begin(store, "other")


async def test_times_are_a_strict_order(tmp_path: Path) -> None:
    """Appends in one moment of the clock have different times, so that no page of sessions skips one."""
    clock = FakeClock(1000.0)
    async with opened(tmp_path / "log.db", clock=clock) as store:
        await asyncio.gather(*[begin(store, f"s{number}") for number in range(20)])
        times = [info.updated_at for info in (await store.sessions()).infos]

        assert sorted(set(times), reverse=True) == times
        clock.now = 500.0
        assert 500.0 == (await begin(store, "earlier") and (await store.info("earlier")).updated_at)


# Data


def circular() -> dict[str, Any]:
    data: dict[str, Any] = {}
    data["self"] = [data]
    return data


@pytest.mark.parametrize(
    "fact",
    [OtherFact("x", ["no dict"]), OtherFact("x", None)]  # type: ignore[arg-type]
    + [
        fact
        for data in (
            {"a": object()}, {"a": "\ud800"}, {"\ud800": 1}, {("a", "b"): 1}, {"a": {1, 2}.__iter__()}, circular(),
        )
        for fact in (OtherFact("x", data), ToolCompleted("c", "f", "", True, data))
    ],
    ids=["list", "None"] + [
        f"{name}, {kind}"
        for name in ("object", "surrogate", "surrogate in a key", "key", "iterator", "circle")
        for kind in ("unknown", "known")
    ],
)  # fmt: skip
async def test_data_that_is_no_json(store: SQLiteStore, fact: OtherFact | ToolCompleted) -> None:
    """Data that JSON cannot hold is refused to its caller, and stores nothing."""
    log = await begin(store)
    appending, refused = log.append(text("good")), log.append(text(), Draft(fact, "r"))
    done = await asyncio.gather(appending, refused, return_exceptions=True)

    assert InvalidInput is type(done[1])
    assert ["good"] == [event.data["text"] for event in await log.read(2)]


async def test_data_that_is_too_large(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data beyond the bound is refused before it can harm others."""
    log = await begin(store)
    monkeypatch.setattr(sqlite_requests, "MAX_DATA_BYTES", 1_000)
    with pytest.raises(TooLarge):
        await log.append(text("x" * 1_000))


async def test_all_readers_get_what_json_makes_of_data(tmp_path: Path) -> None:
    """The cache gives what the disk will give, and later changes of the caller's dict are not seen."""
    data = {"tuple": (1, 2), "nan": float("nan")}
    async with opened(tmp_path / "log.db") as store:
        log = await begin(store)
        await log.append(Draft(OtherFact("x", data), "r"), Draft(ToolCompleted("c", "f", "", True, data), "r"))
        data["later"] = True
        cached = await log.read()
    async with opened(tmp_path / "log.db") as store:
        read = await Log(store, "s").read()
        assert cached == read
        assert [event.fact for event in cached] == [event.fact for event in read]
        whole = {"tuple": [1, 2], "nan": None}
        assert (whole, OtherFact("x", whole)) == (cached[2].data, cached[2].fact)
        assert ToolCompleted("c", "f", "", True, whole) == cached[3].fact
        assert whole == cached[3].data["output"]


@pytest.mark.parametrize("odd", ["a\0b", "\0", "\udc00"])
async def test_ids_that_are_no_text(store: SQLiteStore, odd: str) -> None:
    """Ids that SQLite would change are refused, and reading such a session finds none."""
    log = await begin(store)
    for doing in (
        store.append(odd, [CREATED]),
        log.append(message(odd)),
        log.append(text(), once=odd),
        log.append(draft(odd, {})),
        store.acquire("s", "r", owner=odd, ttl=1),
        store.claim(owner=odd, ttl=1, limit=1),
        log.append(text(), take=Take("r", odd, 1)),
        log.append(text(), take=Take(odd, "me", 1)),
        store.append("t", [Draft(SessionCreated(owner=odd))]),
    ):
        with pytest.raises(InvalidInput):
            await doing

    await store.renew(owner=odd, ttl=1)
    assert [] == await store.read(odd, 0)
    assert [] == (await store.sessions(owner=odd)).infos
    with pytest.raises(SessionNotFound):
        await store.info(odd)
    assert 2 == (await store.info("s")).head


@given(name=TEXTS.filter(lambda name: "\0" not in name), data=TEXTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_any_id_comes_back(tmp_path: Path, name: str, data: str) -> None:
    """Whatever text a session, run, key or string has, the disk gives it back."""

    async def go(path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        drafts = [CREATED, message(name), text(data, name)]
        async with opened(path, durability="normal") as store:
            stored = await store.append(name, drafts, once=name)
        async with opened(path, durability="normal") as store:
            assert stored.events == await store.read(name, 0)
            assert stored.events == (await store.append(name, drafts, once=name)).events
            assert [(name, [name])] == [
                (info.session, [run.run for run in info.open_runs]) for info in (await store.sessions()).infos
            ]

    asyncio.run(go(tmp_path / "any.db"))


# Reading


async def test_readers_share_events_after_a_restart(tmp_path: Path) -> None:
    """Readers who come at once after a restart get the same objects, so that bytes are encoded once for all."""
    async with opened(tmp_path / "log.db") as store:
        log = await begin(store)
        await log.append(text())
    async with opened(tmp_path / "log.db") as store:
        pages = await asyncio.gather(*[store.read("s", 0) for _ in range(20)])

        assert all(1 == len({id(page[number]) for page in pages}) for number in range(3))
        assert (await store.read("s", 0))[2] is (await store.read("s", 2))[0]


async def test_sessions_are_read_side_by_side(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many readers wait for one session, those of others are not behind them; and each is read once."""
    names = [f"s{number}" for number in range(10)]
    for name in names:
        await begin(store, name)
        store._tail.forget(name)
    asked, go_on, ask = [], asyncio.Event(), store._ask

    async def hold(*query: Any) -> Any:
        asked.append(query)
        await go_on.wait()
        return await ask(*query)

    monkeypatch.setattr(store, "_ask", hold)
    reads = [asyncio.ensure_future(store.read(name, 0)) for name in names for _ in range(5)]
    await quiet()
    assert 10 == len(asked)
    go_on.set()
    assert [[1, 2]] * 50 == [[event.offset for event in await read] for read in reads]
    assert 10 == len(asked)


async def test_what_all_can_see_waits_for_no_commit(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who reads a session from the disk waits for a commit that is under way if it may be about that session."""
    for name in ("s", "other"):
        await begin(store, name)
        store._tail.forget(name)
    deliver, held, committed = store._deliver, [], asyncio.Event()

    def hold(*group: Any) -> None:
        held.append(group)
        committed.set()

    monkeypatch.setattr(store, "_deliver", hold)
    append = asyncio.ensure_future(store.append("s", [text()]))
    await committed.wait()
    blocked = asyncio.ensure_future(store.read("s", 0))

    assert [1, 2] == [event.offset for event in await store.read("other", 0)]
    assert not blocked.done()
    deliver(*held.pop())
    assert [1, 2, 3] == [event.offset for event in await blocked]
    await append


async def test_who_watches_for_others_asks_the_disk_for_nothing(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader without deltas who has seen the last event that is none is at the head, whatever the tail holds."""
    log = await begin(store)
    await log.append(text())
    store._tail.forget("s")
    await log.append(text())
    watched = Watched(store, monkeypatch)

    assert [] == await store.read("s", 2, deltas=False)
    assert [] == watched.asked
    assert [2] == [event.offset for event in await store.read("s", 1, deltas=False)]
    assert ["reader"] == watched.asked


async def test_readers_who_are_behind_share_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever they begin, a block of a long log is read once, and they get the same objects."""
    async with opened(tmp_path / "log.db") as store:
        log = await begin(store)
        await log.append(*[text(str(number)) for number in range(3 * READ_LIMIT)])
    async with opened(tmp_path / "log.db", tail_events=10) as store:
        watched = Watched(store, monkeypatch)
        logs = []
        for after in (0, 1, 7, READ_LIMIT - 1, READ_LIMIT, 2 * READ_LIMIT - 3, 3 * READ_LIMIT):
            logs.append([event async for event in Log(store, "s").all(after)])
            assert list(range(after + 1, 3 * READ_LIMIT + 3)) == [event.offset for event in logs[-1]]
        assert all(logs[0][number] is log[number - after] for log in logs[1:6]
                   for after in [log[0].offset - 1] for number in range(after, 3 * READ_LIMIT))  # fmt: skip
        assert len(watched.asked) <= 4  # three blocks, and the end that follows them


async def test_who_is_just_behind_the_tail_reads_no_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many who are late by a moment do not cost as much as many who are far behind."""
    asked = []

    def read_page(connection: Any, session: str, after: int, *rest: Any) -> Any:
        asked.append(after)
        return sqlite_reading.read_page(connection, session, after, *rest)

    monkeypatch.setattr(sqlite, "read_page", read_page)
    async with opened(tmp_path / "log.db", tail_events=10) as store:
        log = await begin(store)
        await log.append(*[text(str(number)) for number in range(2 * READ_LIMIT - 100)])
        head = 2 * READ_LIMIT - 98
        for after in (head - 50, 3):
            assert after + 1 == (await log.read(after))[0].offset

    assert [head - 50, 0] == asked


async def test_a_block_of_a_deleted_session(tmp_path: Path) -> None:
    """What readers shared is gone with the session, also for one who reads on when the tail has forgotten it."""
    async with opened(tmp_path / "log.db", tail_events=10) as store:
        log = await begin(store)
        await log.append(*[text(str(number)) for number in range(READ_LIMIT)])
        assert READ_LIMIT == len(await log.read())
        await log.append(DELETED)
        store._tail.forget("s")

        assert [READ_LIMIT + 3] == [event.offset for event in await log.read()]


async def test_the_cache_goes_on_from_the_disk(tmp_path: Path) -> None:
    """After a restart, what is appended follows what was read from the disk."""
    async with opened(tmp_path / "log.db") as store:
        await begin(store)
    async with opened(tmp_path / "log.db") as store:
        log = Log(store, "s")
        assert [] == await log.read(2)
        await log.append(text())

        assert [3] == [event.offset for event in await log.read(2)]
        assert [1, 2, 3] == [event.offset for event in await log.read()]


async def test_pages_end_with_large_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page holds so many bytes and no more, but at least one event; the pages join."""
    monkeypatch.setattr(sqlite_reading, "PAGE_BYTES", 10_000)
    async with opened(tmp_path / "log.db") as store:
        log = await begin(store)
        await log.append(*[text("x" * 4_000) for _ in range(5)], text("x" * 50_000), text())
    async with opened(tmp_path / "log.db") as store:
        log = Log(store, "s")

        assert [1, 2, 3, 4, 5] == [event.offset for event in await log.read()]
        assert [3, 4, 5] == [event.offset for event in await log.read(2)]
        assert [8] == [event.offset for event in await log.read(7)]
        assert list(range(1, 10)) == [event.offset async for event in log.all()]


async def test_sessions_that_are_not_there_take_no_room(store: SQLiteStore) -> None:
    """Reading sessions that never were leaves nothing in the cache."""
    await asyncio.gather(*[store.read(f"nowhere {number}", 0) for number in range(20)])

    assert 0 == len(store._tail)


@pytest.mark.parametrize(
    ("sql", "bindings", "index"),
    [
        (sqlite_reading._PAGES[True], ("s", 0, 10), "PRIMARY KEY (session=? AND offset>?)"),
        (sqlite_reading._PAGES[False], ("s", 0, 10), "event_whole (session=? AND offset>?)"),
        (sqlite_reading._PACKS, ("s", 0), "pack_last (session=? AND last>?)"),
        (sqlite_reading._NEWEST, (10, 10), "session_updated (updated_at<?)"),
        (sqlite_reading._NEWEST_OWNED, (10, 10, "me"), "session_owned (owner=? AND updated_at<?)"),
        (sqlite_reading._HEADS, ('["s"]',), "event_whole (session=?)"),
    ],
    ids=["page", "history", "packs", "sessions", "sessions of one", "looks"],
)
async def test_reads_use_an_index(store: SQLiteStore, sql: str, bindings: tuple[Any, ...], index: str) -> None:
    """A page costs the same in a long log as in a short one, also without deltas; no query sorts a log."""
    plan = [row[3] for row in store._connection.execute("EXPLAIN QUERY PLAN " + sql, bindings)]

    assert any(index in step for step in plan), plan
    assert not any("SCAN " + table in step for step in plan for table in ("event", "session", "pack")), plan


# Looks


class Watched:
    """Counts what a store asks the disk, from its readers and from its writer."""

    def __init__(self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        ask, submit = store._ask, store._submit

        async def asking(*query: Any) -> Any:
            self.asked.append("reader")
            return await ask(*query)

        def submitting(request: Any) -> Any:
            if isinstance(request, sqlite_requests.Inform):
                self.asked.append("writer")
            return submit(request)

        monkeypatch.setattr(store, "_ask", asking)
        monkeypatch.setattr(store, "_submit", submitting)


async def on_disk(store: SQLiteStore, session: str) -> SessionInfo | None:
    """What the file says of a session; None if it is not there."""
    infos = [info for info in (await store.sessions()).infos if info.session == session]
    return infos[0] if infos else None


async def told(store: SQLiteStore, session: str) -> SessionInfo | None:
    """What ``info`` says of a session; None if it is not there."""
    try:
        return await store.info(session)
    except SessionNotFound:
        return None


async def test_what_is_known_of_a_session_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``info`` asks the disk once for a session that was not written to since the start, and else never."""
    async with opened(tmp_path / "log.db") as store:
        await begin(store)
    async with opened(tmp_path / "log.db") as store:
        watched = Watched(store, monkeypatch)
        for _ in range(3):
            await store.info("s")
        assert ["writer"] == watched.asked
        log = await begin(store, "new")
        await log.append(text())
        assert 3 == (await store.info("new")).head
        lease = await store.acquire("new", "r", owner="me", ttl=10)
        await store.renew(owner="me", ttl=20)
        await store.release(lease)
        await log.append(DELETED)
        assert None is await told(store, "new")
        assert ["writer"] == watched.asked
        for _ in range(2):
            assert None is await told(store, "nowhere")
        assert ["writer"] * 3 == watched.asked
        assert {"s", "new"} == set(store._looks)


def completed(run: str) -> Draft:
    return Draft(RunCompleted("stop", Said("m", "", [])), run)


Change = Callable[[SQLiteStore], Any]
CHANGES: dict[str, Change] = {
    "a message": lambda store: store.append("s", [message("q")]),
    "a delta": lambda store: store.append("s", [text()]),
    "many deltas": lambda store: store.append("s", [text()] * 1_000),
    "a message with its lease": lambda store: store.append(
        "t", [CREATED, message(), Draft(RunStarted("a", 1), "r")], take=Take("r", "me", 12.3456789)
    ),
    "a new session of somebody": lambda store: store.append("t", [Draft(SessionCreated(owner="me"))]),
    "acquire": lambda store: store.acquire("s", "r", owner="me", ttl=10),
    "claim": lambda store: store.claim(owner="me", ttl=10.00000049, limit=5),
    "renew": lambda store: store.renew(owner="you", ttl=77),
    "release": lambda store: store.release(Lease("held", "r", "you", 1, 0.0)),
    "a release that is late": lambda store: store.release(Lease("held", "r", "you", 7, 0.0)),
    "a beginning": lambda store: store.append("s", [Draft(RunStarted("a", 1), "r")]),
    "a cancel": lambda store: store.append("s", [draft("run.cancel_requested", {}, "r")]),
    "an end": lambda store: store.append("s", [Draft(RunStarted("a", 1), "r"), completed("r")]),
    "an end and the next message": lambda store: store.append(
        "s", [message("q"), Draft(RunStarted("a", 1), "r"), completed("r"), text(run="q")]
    ),
    "a deletion": lambda store: store.append("held", [DELETED]),
    "a session of one moment": lambda store: store.append("t", [CREATED, message(), DELETED]),
    "a refusal": lambda store: store.append("s", [text(run="unknown")]),
    "a key that was used": lambda store: store.append("s", [text()], once="used"),
}


async def changing(store: SQLiteStore) -> None:
    log = await begin(store)
    await log.append(draft("session.rewound", {"to": ""}), once="used")
    await begin(store, "held")
    await store.acquire("held", "r", owner="you", ttl=50)


@pytest.mark.parametrize("known", [10_000, 0], ids=["known", "forgotten"])
@pytest.mark.parametrize("change", CHANGES)
async def test_info_is_right_after_each_change(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, change: str, known: int
) -> None:
    """What is known of a session is what the disk has, whatever was done to it, and as the log says."""
    monkeypatch.setattr(sqlite, "LOOKS", known)
    monkeypatch.setattr(sqlite_known, "KNOWN_SESSIONS", known)
    await changing(store)
    with contextlib.suppress(RunEnded):
        await CHANGES[change](store)
    for name in ("s", "held", "t"):
        info = await told(store, name)
        assert await on_disk(store, name) == info
        events = [event async for event in Log(store, name).all()]
        if info is not None:
            assert (events[0].at, events[-1].offset) == (info.created_at, info.head)
            assert [event.at for event in events if not event.fact.delta][-1] == info.updated_at
        else:
            assert not events or [SessionDeleted()] == [event.fact for event in events]
    infos = [await told(store, name) for name in ("s", "held", "t")]
    assert await store.open_runs() == [run for info in infos if info is not None for run in info.open_runs]


@pytest.mark.parametrize("change", CHANGES)
async def test_what_was_not_committed_was_never_there(store: SQLiteStore, change: str) -> None:
    """Neither before a commit that fails nor after it does ``info`` tell of what was not stored; then all goes on."""
    await changing(store)
    before = {name: await told(store, name) for name in ("s", "held", "t")}
    commits = HeldCommits(store)
    commits.fail = True
    doing = asyncio.ensure_future(CHANGES[change](store))
    if change not in ("a refusal", "a key that was used", "a release that is late"):
        await commits.wait()
    # Not asked of "t": nobody knows it yet, so the answer waits for the commit.
    assert [before["s"], before["held"]] == [await told(store, "s"), await told(store, "held")]
    asked = asyncio.create_task(told(store, "t"))
    await asyncio.sleep(0)
    commits.go_on.set()
    (done,) = await asyncio.gather(doing, return_exceptions=True)
    assert (StoreError is type(done)) == bool(commits.count)
    assert None is await asked
    assert before == {name: await told(store, name) for name in before}
    assert before == {name: await on_disk(store, name) for name in before}
    commits.fail = False
    with contextlib.suppress(RunEnded):
        await CHANGES[change](store)
    assert [await told(store, name) for name in before] == [await on_disk(store, name) for name in before]


async def test_who_asks_fails_with_nobody(tmp_path: Path) -> None:
    """A look at a session is told also when the group that it came with cannot be stored."""
    async with opened(tmp_path / "log.db") as store:
        await begin(store)
        await begin(store, "quiet")
    async with opened(tmp_path / "log.db") as store:
        commits = HeldCommits(store)
        commits.fail = True
        first = asyncio.ensure_future(store.append("s", [text()]))
        await commits.wait()
        others = [store.append("s", [text()]), store.info("quiet"), store.append("s", [text()]), store.info("nowhere")]
        waiting = asyncio.gather(first, *others, return_exceptions=True)
        await asyncio.sleep(0)
        commits.go_on.set()
        done = await waiting

        assert 2 == commits.count
        assert [StoreError, StoreError, SessionInfo, StoreError, SessionNotFound] == [type(each) for each in done]
        assert await on_disk(store, "quiet") == done[2]


@pytest.mark.parametrize("looks", [0, 1, 3])
async def test_few_sessions_are_known(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, looks: int) -> None:
    """However many are asked for at once, each is found, and a bounded number is remembered."""
    monkeypatch.setattr(sqlite, "LOOKS", looks)
    names = [f"s{number}" for number in range(20)]
    for name in names:
        await begin(store, name)
    infos = await asyncio.gather(*[store.info(name) for name in names], *[told(store, name) for name in names])

    assert names * 2 == [info.session for info in infos if info is not None]
    assert len(store._looks) <= looks


async def test_who_is_asked_for_stays_known(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that nobody asks for or writes to are let go of first."""
    monkeypatch.setattr(sqlite, "LOOKS", 3)
    await begin(store, "asked")
    watched = Watched(store, monkeypatch)
    for number in range(10):
        await begin(store, f"s{number}")
        await store.info("asked")

    assert [] == watched.asked


# Runs and leases


@pytest.mark.parametrize("runs", [3, 1_500])
async def test_leases_are_renewed_in_one_commit(store: SQLiteStore, runs: int) -> None:
    """However many; each as the disk has it, and nobody else's."""
    for start in range(0, runs, 500):
        await asyncio.gather(*[begin(store, f"s{number}") for number in range(start, min(start + 500, runs))])
    await begin(store, "other")
    await store.acquire("other", "r", owner="you", ttl=10)
    leases = await store.claim(owner="me", ttl=10, limit=runs)
    commits = HeldCommits(store)
    commits.go_on.set()
    await store.renew(owner="me", ttl=100)

    assert (runs, 1) == (len(leases), commits.count)
    found = await store.open_runs(limit=runs + 1)
    assert {lease.session: lease.epoch for lease in leases} | {"other": 1} == {run.session: run.epoch for run in found}
    assert {"me": runs, "you": 1} == {owner: sum(run.owner == owner for run in found) for owner in ("me", "you")}
    (until,) = {run.expires_at for run in found if run.owner == "me"}
    assert until > max(run.expires_at for run in found if run.owner == "you") + 50
    assert [run for run in found if run.session == "s1"] == (await store.info("s1")).open_runs


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_sessions_take_turns(tmp_path: Path, kind: str) -> None:
    """Whose turn came goes to the end of the line: one long queue does not keep the others waiting."""
    store: Any = open_store("memory:") if kind == "memory" else SQLiteStore(tmp_path / "log.db")
    await store.open()
    await store.append("long", [CREATED, *(message(f"r{number}") for number in range(3))])
    for name in ("b", "a"):
        await store.append(name, [CREATED, message("r")])
    order = []
    while leases := await store.claim(owner="me", ttl=10, limit=1):
        order.append((leases[0].session, leases[0].run))
        drafts = [Draft(RunStarted("a", 1), leases[0].run), completed(leases[0].run)]
        await store.append(leases[0].session, drafts, lease=leases[0])
    await store.close()

    assert [("long", "r0"), ("b", "r"), ("a", "r"), ("long", "r1"), ("long", "r2")] == order


async def test_the_line_after_a_restart(tmp_path: Path) -> None:
    """Who has waited longest for an answer comes first; the names and the ages of the sessions do not matter."""
    async with opened(tmp_path / "log.db") as store:
        for name in ("a", "b", "c"):
            await store.append(name, [CREATED])
        for name in ("b", "c", "a"):
            await store.append(name, [message("r1"), message("r0")])
    async with opened(tmp_path / "log.db") as store:
        leases = await store.claim(owner="me", ttl=10, limit=2)
        leases += await store.claim(owner="me", ttl=10, limit=2)

        assert [("b", "r1"), ("c", "r1"), ("a", "r1")] == [(lease.session, lease.run) for lease in leases]


async def test_a_cancelled_release_is_still_heard(store: SQLiteStore) -> None:
    """Who looks for work is woken also when the one who gave the lease back has left."""
    await begin(store)
    lease = await store.acquire("s", "r", owner="me", ttl=1_000)
    bell = Bell()
    store.doorbell.hang_work(bell)
    commits = HeldCommits(store)
    releasing = asyncio.create_task(store.release(lease))
    await commits.wait()
    releasing.cancel()
    await asyncio.gather(releasing, return_exceptions=True)
    commits.go_on.set()

    assert await bell.wait(30)
    assert [None] == [run.owner for run in await store.open_runs()]


async def test_deltas_set_nobody_to_work(store: SQLiteStore) -> None:
    """Only what can set a run free rings for those who look for one."""
    log = await begin(store)
    bell = Bell()
    store.doorbell.hang_work(bell)
    await log.append(text())
    assert not await bell.wait(0.0)
    await log.append(message("q"))
    assert await bell.wait(0.0)


# Opening and closing


async def test_not_open(tmp_path: Path) -> None:
    """Before ``open`` and after ``close`` all verbs say that the store is not open; ``close`` does nothing."""
    store = SQLiteStore(tmp_path / "log.db")
    await store.close()
    for _ in range(2):
        for doing in (
            store.append("s", [CREATED]),
            store.read("s", 0),
            store.info("s"),
            store.sessions(),
            store.open_runs(),
            store.acquire("s", "r", owner="me", ttl=1),
            store.claim(owner="me", ttl=1, limit=1),
            store.renew(owner="me", ttl=1),
            store.release(Lease("s", "r", "me", 1, 0.0)),
        ):
            with pytest.raises(StoreError, match="not open"):
                await doing
        await store.open()
        await store.close()


async def test_open_twice(store: SQLiteStore) -> None:
    """An open store cannot be opened."""
    with pytest.raises(StoreError, match="open already"):
        await store.open()


async def test_the_same_store_can_be_opened_again(store: SQLiteStore) -> None:
    """After ``close`` the same object can be opened; also when ``close`` is still under way."""
    await begin(store)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    await store.open()

    assert 2 == (await store.info("s")).head
    await closing
    assert 2 == len(await store.read("s", 0))


async def test_opening_again_trusts_the_file(store: SQLiteStore, tmp_path: Path) -> None:
    """What another store wrote while this one was closed is seen when it is opened again."""
    await begin(store)
    await store.close()
    async with opened(tmp_path / "log.db") as other:
        await other.append("s", [text()])
    await store.open()

    assert 3 == len(await store.read("s", 0))
    assert [4] == [event.offset for event in (await store.append("s", [text()])).events]


async def test_close_finishes_what_waits(tmp_path: Path) -> None:
    """Appends that were made before ``close`` are stored and answered."""
    async with opened(tmp_path / "log.db") as store:
        log = await begin(store)
        appending = [asyncio.create_task(log.append(text(str(number)))) for number in range(100)]
        await asyncio.sleep(0)
        await store.close()
        done = await asyncio.gather(*appending)
    async with opened(tmp_path / "log.db") as store:
        assert [appended.events[0] for appended in done] == await store.read("s", 2)


async def test_closing_leaves_one_file(tmp_path: Path) -> None:
    """After ``close`` everything is in the file itself, and no thread is left."""
    async with opened(tmp_path / "log.db") as store:
        await begin(store)
        await store.info("s")

    assert {"log.db", "log.db.lock"} == {path.name for path in tmp_path.iterdir()}
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("legato-sqlite")]
    for thread in threads:  # the one that closed it says so a moment before its own end
        thread.join(30)
    assert not [thread.name for thread in threads if thread.is_alive()]


async def test_a_cancelled_close_goes_on(store: SQLiteStore) -> None:
    """Who is cancelled in ``close`` can call it again to wait for the end."""
    await begin(store)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    await store.close()

    assert store._lock._file is None


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("normal", 1)])
async def test_durability(tmp_path: Path, durability: str, level: int) -> None:
    """``full`` asks the disk at each commit, ``normal`` does not; both write ahead."""
    async with opened(tmp_path / "log.db", durability=durability) as store:
        assert level == store._connection.pragma("synchronous")
        assert "wal" == store._connection.pragma("journal_mode")


def test_unknown_durability(tmp_path: Path) -> None:
    """There is no other durability."""
    with pytest.raises(InvalidInput, match="'full' or 'normal'"):
        SQLiteStore(tmp_path / "log.db", durability="none")


async def test_missing_folder(tmp_path: Path) -> None:
    """A folder that does not exist is named, and not created."""
    with pytest.raises(StoreError, match=r"no folder .*missing"):
        await SQLiteStore(tmp_path / "missing" / "log.db").open()
    assert [] == list(tmp_path.iterdir())


async def test_path_is_a_folder(tmp_path: Path) -> None:
    """A folder is no database."""
    (tmp_path / "log.db").mkdir()
    with pytest.raises(StoreError):
        await SQLiteStore(tmp_path / "log.db").open()


# One process per file


async def test_locked_in_the_same_process(store: SQLiteStore, tmp_path: Path) -> None:
    """A second store on the file is refused, under any name of the file, with the pid and what to do."""
    (tmp_path / "link.db").symlink_to(tmp_path / "log.db")
    for name in ("log.db", "link.db", "../" + tmp_path.name + "/log.db"):
        with pytest.raises(StoreLocked, match=rf"process {os.getpid()}.*PostgreSQL and Redis"):
            await SQLiteStore(tmp_path / name).open()


async def test_the_lock_is_let_go(tmp_path: Path) -> None:
    """After ``close``, and after an ``open`` that failed, the file can be opened."""
    (tmp_path / "log.db").write_bytes(b"no database, but long enough to be looked at" * 100)
    with pytest.raises(StoreCorrupt):
        await SQLiteStore(tmp_path / "log.db").open()
    (tmp_path / "log.db").unlink()
    for _ in range(2):
        async with opened(tmp_path / "log.db"):
            pass


HOLDER = """
import asyncio, sys
from legato.event import Draft, MessageCreated, SessionCreated, TextDelta
from legato.store.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.open()
    await store.append("s", [Draft(SessionCreated()), Draft(MessageCreated("m", "user", "hello"), "r")])
    await store.acquire("s", "r", owner="killed", ttl=3600)
    while True:
        event = (await store.append("s", [Draft(TextDelta(0, 1, 0, "x"), "r")])).events[0]
        print(event.offset, flush=True)

asyncio.run(main())
"""


async def test_killed(tmp_path: Path) -> None:
    """A killed process leaves no lock, no owner, and every event that it had been told was stored."""
    path = tmp_path / "log.db"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        with bounded(process, "20 offsets"):
            told = [int(process.stdout.readline()) for _ in range(20)]
        with pytest.raises(StoreLocked, match=f"process {process.pid}"):
            await SQLiteStore(path).open()
    finally:
        process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        told += [int(line) for line in process.communicate()[0].split()]

    async with opened(path) as store:
        offsets = [event.offset async for event in Log(store, "s").all()]
        assert list(range(1, len(offsets) + 1)) == offsets
        assert set(told) <= set(offsets)
        assert [(None, 1)] == [(run.owner, run.epoch) for run in await store.open_runs()]
        assert [len(offsets) + 1] == [event.offset for event in (await store.append("s", [text()])).events]


def test_lock_without_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no fcntl, msvcrt is asked for a byte far behind the pid; if it refuses, the file is locked."""
    asked: list[tuple[int, int]] = []

    class Msvcrt:
        LK_NBLCK = 2
        taken = False

        @classmethod
        def locking(cls, file: int, mode: int, count: int) -> None:
            asked.append((os.lseek(file, 0, os.SEEK_CUR), count))
            if cls.taken:
                raise PermissionError

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", Msvcrt)
    first, second = (lock.FileLock(str(tmp_path / "log.db")) for _ in range(2))
    first.acquire()
    Msvcrt.taken = True
    with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
        second.acquire()
    first.release()

    assert [(1 << 30, 1)] * 2 == asked


# Disks and files


async def test_disk_full(store: SQLiteStore) -> None:
    """When the disk is full, appends say so and readers read on; when there is room again, so do appends."""
    log = await begin(store)
    pages = store._connection.pragma("page_count")
    store._connection.pragma("max_page_count", pages + 3)
    appends = [log.append(text("x" * 10_000)) for _ in range(100)]
    refused = [
        error for error in await asyncio.gather(*appends, return_exceptions=True) if isinstance(error, Exception)
    ]
    assert refused
    assert all(isinstance(error, StoreFull) and "disk is full" in str(error) for error in refused)

    stored = [event async for event in log.all()]
    assert stored[-1].offset == (await store.info("s")).head
    store._connection.pragma("max_page_count", 1_000_000)
    assert [stored[-1].offset + 1] == [event.offset for event in (await log.append(text())).events]


async def test_disk_full_at_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full when the file is made is a clear error too, and leaves no lock."""

    def connect(path: str, *, write: bool) -> apsw.Connection:
        connection = sqlite_file.connect(path, write=write)
        connection.pragma("max_page_count", 2)
        return connection

    monkeypatch.setattr(sqlite, "connect", connect)
    with pytest.raises(StoreFull):
        await SQLiteStore(tmp_path / "log.db").open()
    monkeypatch.undo()
    async with opened(tmp_path / "log.db") as store:
        await begin(store)


async def test_read_only_while_open(store: SQLiteStore) -> None:
    """When the file cannot be written any more, appends say so, readers read on, and it can become good again."""
    log = await begin(store)
    store._connection.pragma("query_only", True)
    with pytest.raises(StoreReadOnly, match=r"cannot be written.*log\.db"):
        await log.append(text())
    assert 2 == len(await log.read())
    store._connection.pragma("query_only", False)

    assert [3] == [event.offset for event in (await log.append(text())).events]


async def test_read_only_at_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that cannot be written is not opened."""
    async with opened(tmp_path / "log.db") as store:
        await begin(store)
    monkeypatch.setattr(sqlite, "connect", lambda path, write: sqlite_file.connect(path, write=False))
    with pytest.raises(StoreReadOnly, match=r"cannot be written.*log\.db"):
        await SQLiteStore(tmp_path / "log.db").open()


@pytest.mark.parametrize(
    ("number", "error"),
    [("EROFS", StoreReadOnly), ("EACCES", StoreReadOnly), ("ENOSPC", StoreFull), ("EIO", StoreError)],
)
async def test_lock_file_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str, error: type[StoreError]
) -> None:
    """What the system says of the lock file is told in our words."""
    import errno

    def refuse(*args: Any) -> int:
        raise OSError(getattr(errno, number), "refused")

    monkeypatch.setattr(lock.os, "open", refuse)
    with pytest.raises(error) as caught:
        await SQLiteStore(tmp_path / "log.db").open()
    assert error is type(caught.value)


@pytest.mark.parametrize("content", [b"garbage " * 4_000, b"SQLite format 3\0" + b"\xff" * 8_000], ids=["any", "head"])
async def test_garbage(tmp_path: Path, content: bytes) -> None:
    """A file that is no database is refused, and left as it was."""
    (tmp_path / "log.db").write_bytes(content)
    with pytest.raises(StoreCorrupt, match=r"log\.db"):
        await SQLiteStore(tmp_path / "log.db").open()
    assert content == (tmp_path / "log.db").read_bytes()


@pytest.fixture
async def damaged(tmp_path: Path) -> Callable[[Callable[[bytearray], None]], Path]:
    """A file with a good session ``small`` and a session ``large`` of many pages, to be damaged by the function."""
    path = tmp_path / "log.db"
    async with opened(path) as store:
        await begin(store, "small")
        log = await begin(store, "large")
        await log.append(*[text(f"{number:6}" + "x" * 2_000) for number in range(500)])

    def damage(how: Callable[[bytearray], None]) -> Path:
        content = bytearray(path.read_bytes())
        how(content)
        path.write_bytes(content)
        return path

    return damage


async def test_truncated(damaged: Callable[[Callable[[bytearray], None]], Path]) -> None:
    """A file that was cut is told of when it is opened or read, and never answers with a part of the log."""

    def cut(content: bytearray) -> None:
        del content[len(content) // 2 :]

    path = damaged(cut)
    with pytest.raises(StoreCorrupt):
        async with opened(path) as store:
            assert 502 == len([event async for event in Log(store, "large").all()])


async def test_damaged_page(damaged: Callable[[Callable[[bytearray], None]], Path]) -> None:
    """A damaged page fails the reads that need it; the store stays up for all others."""

    def hurt(content: bytearray) -> None:
        for number in (100, 250, 400):  # each in a page of its own
            at = content.index(f"{number:6}".encode() + b"xxx")
            start = at - at % 4096
            content[start : start + 4096] = b"\xa5" * 4096

    async with opened(damaged(hurt)) as store:
        with pytest.raises(StoreCorrupt, match=r"damaged.*log\.db"):
            assert [event async for event in Log(store, "large").all()]
        assert 2 == len(await store.read("small", 0))
        assert [3] == [event.offset for event in (await store.append("small", [text()])).events]


async def test_damaged_data(store: SQLiteStore) -> None:
    """Data that is no JSON any more is shown as damaged, in its place; what stands around it is as it was."""
    await begin(store)
    before = await store.read("s", 0)
    store._connection.execute("""UPDATE event SET data = '{"text": ' WHERE "offset" = 2""")
    store._tail.forget("s")
    after = await store.read("s", 0)

    assert [event.offset for event in after] == [event.offset for event in before]
    assert [event.json == b'{"damaged":true}' for event in after] == [event.offset == 2 for event in before]


async def hurt_session(path: Path) -> None:
    """A file whose session ``bad`` is damaged where it begins; it and ``good`` have an open run."""
    async with opened(path) as store:
        await begin(store, "bad")
        await begin(store, "good")
    connection = apsw.Connection(str(path))
    connection.execute("""UPDATE event SET data = '{"title": ' WHERE session = 1 AND "offset" = 1""")
    connection.close()


async def test_a_damaged_session_harms_no_other(tmp_path: Path) -> None:
    """Whoever comes in one group with it is served, and it goes on itself, since only what it began as is lost."""
    await hurt_session(tmp_path / "log.db")
    async with opened(tmp_path / "log.db") as store:
        first = asyncio.ensure_future(store.append("good", [text()]))
        await asyncio.sleep(0)
        done = await asyncio.gather(
            first,
            store.append("bad", [text()]),
            store.append("good", [text()]),
            store.info("bad"),
            store.info("good"),
            store.acquire("bad", "r", owner="me", ttl=1),
            return_exceptions=True,
        )
        assert [] == [each for each in done if isinstance(each, Exception)]
        assert (3, 4) == ((await store.info("bad")).head, (await store.info("good")).head)
        assert ["good"] == [lease.session for lease in await store.claim(owner="me", ttl=10, limit=1)]
        assert [] == await store.claim(owner="me", ttl=10, limit=1)
        await store.renew(owner="me", ttl=100)
        await begin(store, "new")


async def test_a_damaged_answer_to_a_key(store: SQLiteStore) -> None:
    """What was stored under a key and is damaged is shown as that to who repeats it; the group is stored."""
    log = await begin(store)
    await log.append(message("q"), once="key")
    store._connection.execute("""UPDATE event SET data = '{"text": ' WHERE "offset" = 3""")
    store._tail.forget("s")
    done = await asyncio.gather(
        log.append(text("a")), log.append(message("q"), once="key"), log.append(text("b")), return_exceptions=True
    )

    assert done[1].repeated
    assert [b'{"damaged":true}'] == [event.json for event in done[1].events]
    assert ["a", "b"] == [event.data["text"] for event in await log.read(3)]


# Schema


async def make(path: Path) -> None:
    async with opened(path) as store:
        log = await begin(store)
        await log.append(text())


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Migrations to a later version than ours."""
    later = [*sqlite_file.MIGRATIONS, "ALTER TABLE session ADD COLUMN colour TEXT NOT NULL DEFAULT 'blue'"]
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", later)
    return later


async def test_schema_from_the_future(tmp_path: Path, newer: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a newer version is refused, with both versions, and left as it was."""
    await make(tmp_path / "log.db")
    monkeypatch.undo()
    before = (tmp_path / "log.db").read_bytes()
    now = len(sqlite_file.MIGRATIONS)
    with pytest.raises(StoreVersion, match=f"version {now + 1}.*up to {now}"):
        await SQLiteStore(tmp_path / "log.db").open()
    assert before == (tmp_path / "log.db").read_bytes()


async def test_old_schema_is_migrated(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """A file of an older version is brought to the present one, once, with all that is in it."""
    await make(tmp_path / "log.db")
    newer = request.getfixturevalue("newer")
    for _ in range(2):
        async with opened(tmp_path / "log.db") as store:
            assert [1, 2, 3] == [event.offset for event in await store.read("s", 0)]
            assert len(newer) == store._connection.pragma("user_version")
            assert "blue" == sqlite_file.value(store._connection, "SELECT colour FROM session")


async def test_a_new_file_goes_through_all_migrations(tmp_path: Path, newer: list[str]) -> None:
    """A new file is a file of version 0: its schema is that of a migrated one."""
    await make(tmp_path / "log.db")
    async with opened(tmp_path / "log.db") as store:
        assert len(newer) == store._connection.pragma("user_version")


async def test_a_failed_migration_changes_nothing(
    tmp_path: Path, newer: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When one step of the migration fails, the file stays at its version."""
    monkeypatch.undo()
    await make(tmp_path / "log.db")
    monkeypatch.setattr(sqlite_file, "MIGRATIONS", [*newer, "DROP TABLE once", "CREATE TABLE session (a)"])
    with pytest.raises(StoreError, match="session already exists"):
        await SQLiteStore(tmp_path / "log.db").open()
    monkeypatch.undo()
    async with opened(tmp_path / "log.db") as store:
        assert 3 == len(await store.read("s", 0))
        assert (await store.append("s", [text()], once="key")).events


async def test_the_file_of_another_program(tmp_path: Path) -> None:
    """A database that is not ours is left alone."""
    connection = apsw.Connection(str(tmp_path / "log.db"))
    connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    with pytest.raises(StoreError, match="another program"):
        await SQLiteStore(tmp_path / "log.db").open()


async def test_deletion_removes_the_words(store: SQLiteStore) -> None:
    """Of a deleted session the tables keep its id and one event."""
    log = await begin(store)
    await log.append(text("secret"), once="secret key")
    await begin(store, "other")
    await log.append(DELETED)
    with pytest.raises(RunEnded):
        await store.acquire("s", "r", owner="me", ttl=1)

    rows = list(store._connection.execute('SELECT session, type, "offset" FROM event WHERE session = 1'))
    assert [(1, "session.deleted", 4)] == rows
    for table in ("once", "open_run"):
        counts = list(store._connection.execute(f"SELECT session, count(*) FROM {table} GROUP BY session"))
        assert 1 not in dict(counts)


# Files of old versions

# A file of schema version 1, row by row as the version of that time wrote it before it was killed; only the times, the
# ids of runs and the name of the owner are made up.
SCHEMA_1 = """
    CREATE TABLE session (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        updated_at INTEGER NOT NULL,
        deleted INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX session_updated ON session (updated_at) WHERE NOT deleted;

    CREATE TABLE event (
        session INTEGER NOT NULL,
        "offset" INTEGER NOT NULL,
        at INTEGER NOT NULL,
        type TEXT NOT NULL,
        run TEXT,
        delta INTEGER NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (session, "offset")
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX event_whole ON event (session, "offset") WHERE NOT delta;

    CREATE TABLE once (
        session INTEGER NOT NULL,
        key TEXT NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        PRIMARY KEY (session, key)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE open_run (
        session INTEGER NOT NULL,
        run TEXT NOT NULL,
        "offset" INTEGER NOT NULL,
        started INTEGER NOT NULL,
        owner TEXT,
        epoch INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        PRIMARY KEY (session, run)
    ) STRICT, WITHOUT ROWID;
"""
OLD_AT = 1_750_000_000_000_000
MIX_BEGIN = '"metadata":{"promptMode":"default","sessionType":"main","browserMode":"electron-embedded-browser"}'
OLD_SESSIONS = [(1, "done", 7, 0), (2, "running", 13, 0), (3, "stopping", 20, 0), (4, "gone", 22, 1)]
OLD_EVENTS = [
    (1, 1, 1, "session.created", None, 0, f'{{"title":"Done",{MIX_BEGIN}}}'),
    (1, 2, 2, "message.created", "done~0a", 0,
     '{"id":"done~0a~u","role":"user","text":"Hello?","agent":"speaker","metadata":{"metadata":{"a":1}},"key":"k1"}'),
    (1, 3, 3, "run.started", "done~0a", 0, '{"agent":"speaker","attempt":1}'),
    (1, 4, 4, "thinking.delta", "done~0a", 1, '{"part":0,"step":1,"start":0,"text":"Hm. "}'),
    (1, 5, 5, "text.delta", "done~0a", 1, '{"part":1,"step":1,"start":0,"text":"Good "}'),
    (1, 6, 6, "text.delta", "done~0a", 1, '{"part":1,"step":1,"start":5,"text":"day"}'),
    (1, 7, 7, "run.completed", "done~0a", 0,
     '{"finish_reason":"stop","message":{"id":"done~0a~a1","text":"Good day","parts":[{"type":"thinking","step":1,'
     '"text":"Hm. "},{"type":"text","step":1,"text":"Good day"}]},"usage":{"input_tokens":3,"output_tokens":2}}'),
    (2, 1, 8, "session.created", None, 0, f'{{"title":"Running",{MIX_BEGIN}}}'),
    (2, 2, 9, "message.created", "running~0b", 0,
     '{"id":"running~0b~u","role":"user","text":"Count.","agent":"endless","key":"k2"}'),
    (2, 3, 10, "run.started", "running~0b", 0, '{"agent":"endless","attempt":1}'),
    (2, 4, 13, "message.created", "running~0a", 0, '{"id":"running~0a~u","role":"user","text":"And then?"}'),
    (2, 5, 14, "text.delta", "running~0b", 1, '{"part":0,"step":1,"start":0,"text":"One, "}'),
    (2, 6, 15, "text.delta", "running~0b", 1, '{"part":0,"step":1,"start":5,"text":"two, "}'),
    (3, 1, 16, "session.created", None, 0, f'{{"title":"",{MIX_BEGIN}}}'),
    (3, 2, 17, "message.created", "stopping~0a", 0,
     '{"id":"stopping~0a~u","role":"user","text":"Stop.","agent":"stubborn"}'),
    (3, 3, 18, "run.started", "stopping~0a", 0, '{"agent":"stubborn","attempt":1}'),
    (3, 4, 19, "text.delta", "stopping~0a", 1, '{"part":0,"step":1,"start":0,"text":"I go on"}'),
    (3, 5, 20, "run.cancel_requested", "stopping~0a", 0, "{}"),
    (4, 2, 22, "session.deleted", None, 0, "{}"),
]  # fmt: skip
OLD_ONCE = [(1, "send:k1", 2, 2), (2, "send:k2", 2, 2), (3, "cancel:stopping~0a", 5, 5)]
OLD_RUNS = [
    (2, "running~0a", 4, 0, None, 0, 0),
    (2, "running~0b", 2, 1, "25a76c14a5e4bf8a", 1, 2_000_000_000_000_000),
    (3, "stopping~0a", 2, 1, "25a76c14a5e4bf8a", 3, 2_000_000_000_000_000),
]


@pytest.fixture
def old_file(tmp_path: Path) -> Path:
    """A file of schema version 1 whose process was killed."""
    path = tmp_path / "old.db"
    connection = apsw.Connection(str(path))
    connection.pragma("journal_mode", "wal")
    connection.execute(SCHEMA_1)
    connection.pragma("application_id", 0x4C656761)
    connection.pragma("user_version", 1)
    insert = connection.executemany
    insert("INSERT INTO session VALUES (?,?,?,?)", [(i, name, OLD_AT + at, d) for i, name, at, d in OLD_SESSIONS])
    insert("INSERT INTO event VALUES (?,?,?,?,?,?,?)", [(s, o, OLD_AT + at, *rest) for s, o, at, *rest in OLD_EVENTS])
    insert("INSERT INTO once VALUES (?,?,?,?)", OLD_ONCE)
    insert("INSERT INTO open_run VALUES (?,?,?,?,?,?,?)", OLD_RUNS)
    connection.close()
    return path


def old_log(session: int) -> list[tuple[int, str, str | None, float, Any]]:
    return [
        (offset, type, run, (OLD_AT + at) / 1e6, json.loads(data))
        for id, offset, at, type, run, _, data in OLD_EVENTS
        if id == session
    ]


def test_the_first_schema_is_never_touched() -> None:
    """Files of the first version have been made by it, so it stays as it is."""
    words = [sql.split() for sql in (SCHEMA_1, sqlite_file.MIGRATIONS[0])]

    assert words[0] == words[1]


async def test_an_old_file_reads_as_before(old_file: Path) -> None:
    """All events, of each session, at their offsets and times, with and without deltas; what was deleted is."""
    for _ in range(2):  # the second time it has been brought to the present schema
        async with opened(old_file) as store:
            for id, name, at, deleted in OLD_SESSIONS:
                events = await store.read(name, 0)
                assert old_log(id) == [(e.offset, e.type, e.run, e.at, e.data) for e in events]
                whole = [event for event in events if not event.fact.delta]
                assert whole == await store.read(name, 0, deltas=False)
                assert not any(isinstance(event.fact, OtherFact) for event in events)
                info = await told(store, name)
                if deleted:
                    assert None is info
                    with pytest.raises(SessionExists):
                        await store.append(name, [CREATED])
                else:
                    assert info == await on_disk(store, name)
                    assert info is not None
                    assert (events[-1].offset, (OLD_AT + at) / 1e6, "") == (info.head, info.updated_at, info.owner)
                    assert (events[0].at, events[0].fact) == (info.created_at, info.created)
            assert ["stopping", "running", "done"] == [info.session for info in (await store.sessions()).infos]
            assert 3 == len((await store.sessions(owner="")).infos)
            assert [] == (await store.sessions(owner="me")).infos


async def test_an_old_file_goes_on(old_file: Path) -> None:
    """Deltas that are events by themselves, and after them those that are packed, are one log."""
    async with opened(old_file) as store:
        for number in range(70):
            await store.append("running", [text(str(number), run="running~0b")])
        before = await store.read("running", 0)
    async with opened(old_file) as store:
        assert list(range(1, 77)) == [event.offset for event in before]
        assert before == [event async for event in Log(store, "running").all()]
        assert 2 == sqlite_file.value(store._connection, "SELECT count(*) FROM event WHERE delta AND session = 2")
        assert [77] == [event.offset for event in (await store.append("running", [text(run="running~0b")])).events]
        await store.append("running", [DELETED])
        assert [78] == [event.offset for event in await store.read("running", 0)]


async def test_runs_of_an_old_file_are_in_their_states(old_file: Path) -> None:
    """Waiting, running, and asked to stop; nobody holds them, and their epochs go on."""
    async with opened(old_file) as store:
        runs = {run.run: (run.offset, run.state, run.owner, run.epoch) for run in await store.open_runs()}
        assert {
            "running~0b": (2, RunState.RUNNING, None, 1),
            "running~0a": (4, RunState.QUEUED, None, 0),
            "stopping~0a": (2, RunState.CANCELLING, None, 3),
        } == runs
        assert ["running~0b", "running~0a"] == [run.run for run in (await store.info("running")).open_runs]
        with pytest.raises(LeaseHeld):
            await store.acquire("running", "running~0a", owner="me", ttl=1)
        leases = await store.claim(owner="me", ttl=10, limit=5)
        assert {("running~0b", 2), ("stopping~0a", 4)} == {(lease.run, lease.epoch) for lease in leases}


async def test_runs_of_an_old_file_can_be_ended(old_file: Path) -> None:
    """Each as its state allows; offsets go on after what there was, also over a restart."""
    said = Said("m", "", [])
    async with opened(old_file) as store:
        with pytest.raises(IllegalTransition):
            await store.append("running", [Draft(RunCancelled(said), "running~0b")])
        with pytest.raises(IllegalTransition):
            await store.append("running", [completed("running~0a")])
        offsets = []
        for name, drafts in (
            ("stopping", [Draft(RunCancelled(said), "stopping~0a")]),
            ("running", [text(run="running~0b"), completed("running~0b")]),
            ("running", [Draft(RunStarted("a", 1), "running~0a"), completed("running~0a")]),
        ):
            offsets += [event.offset for event in (await store.append(name, drafts)).events]
        assert [6, 7, 8, 9, 10] == offsets
    async with opened(old_file) as store:
        assert [] == await store.open_runs()
        assert list(range(1, 11)) == [event.offset for event in await store.read("running", 0)]


async def test_keys_of_an_old_file_hold(old_file: Path) -> None:
    """What was stored under a key is found under it, and nothing is stored again."""
    async with opened(old_file) as store:
        for name, key, offset in (
            ("done", "send:k1", 2),
            ("running", "send:k2", 2),
            ("stopping", "cancel:stopping~0a", 5),
        ):
            again = await store.append(name, [message("new")], once=key)
            assert (True, [offset]) == (again.repeated, [event.offset for event in again.events])
            assert again.events == await store.read(name, offset - 1, limit=1)
        assert not (await store.append("done", [message("new")], once="send:k2")).repeated


async def test_an_application_goes_on_with_an_old_file(old_file: Path) -> None:
    """What was interrupted ends, what waited is answered, what was to stop is stopped; and it can be talked to."""

    async def speaker(turn: Any) -> AsyncIterator[str]:
        yield f"{len(turn.history)} before"

    async def endless(turn: Any) -> AsyncIterator[str]:
        yield "never"

    async def stubborn(turn: Any) -> AsyncIterator[str]:
        yield "never"

    app = Legato(f"sqlite:///{old_file}", agents=[speaker, endless, stubborn], page=False)
    app.drain_on_signal = False
    async with Driver(app) as driver, asyncio.timeout(30):

        async def messages(session: str) -> list[str]:
            answer = await driver.request("GET", f"/api/sessions/{session}/messages?client=legato")
            assert 200 == answer.status
            return [message["userInput"] for message in answer.json()]

        async def ended(session: str) -> None:
            while (await driver.request("GET", f"/api/sessions/{session}")).json()["running"]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

        for session in ("running", "stopping"):
            await ended(session)
        assert ["Hello?", "Good day"] == await messages("done")
        again = await driver.request("POST", "/api/sessions/done/messages", headers={"idempotency-key": "k1"},
                                     json={"text": "Hello?", "agent": "speaker", "metadata": {"a": 1}})  # fmt: skip
        assert (202, "done~0a") == (again.status, again.json()["runId"])
        sent = await driver.request("POST", "/api/sessions/done/messages", json={"text": "Again", "agent": "speaker"})
        assert 202 == sent.status
        await ended("done")
        assert ["Hello?", "Good day", "Again", "2 before"] == await messages("done")
        assert ["Count.", "One, two, ", "And then?", "2 before"] == await messages("running")
        assert ["Stop.", "I go on"] == await messages("stopping")
        assert 404 == (await driver.request("GET", "/api/sessions/gone")).status
        ends: dict[str, str] = {}
        for session in ("done", "running", "stopping"):
            page = (await driver.request("GET", f"/api/sessions/{session}/events?limit=1000")).json()["events"]
            assert list(range(1, len(page) + 1)) == [event["offset"] for event in page]
            ends |= {event["run"]: event["type"] for event in page if event["type"] in TERMINAL}
        assert "run.failed" == ends["running~0b"]
        assert "run.completed" == ends["running~0a"]
        assert "run.cancelled" == ends["stopping~0a"]


# URLs


@pytest.mark.parametrize(
    ("url", "path", "durability"),
    [
        ("sqlite:///log.db", "log.db", "full"),
        ("sqlite:///a/b%20c.db?durability=normal", "a/b c.db", "normal"),
        ("sqlite:////var/log.db?durability=full", "/var/log.db", "full"),
    ],
)
def test_url(url: str, path: str, durability: str) -> None:
    """Three slashes and a relative path, four and an absolute one."""
    store = open_store(url)

    assert isinstance(store, SQLiteStore)
    assert (os.path.realpath(path), durability) == (store._path, store._durability)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("mysql://host", "A store is .memory:., .sqlite:///relative.db."),
        ("", "A store is .memory:., .sqlite:///relative.db."),
        ("log.db", "A store is .memory:., .sqlite:///relative.db."),
        ("sqlite:log.db", "three or four slashes"),
        ("sqlite:/var/log.db", "three or four slashes"),
        ("sqlite://host/log.db", "three or four slashes"),
        ("sqlite:///", "three or four slashes"),
        ("sqlite:///%00", "three or four slashes"),
        ("sqlite:///log.db?durability=none", "'full' or 'normal'"),
        ("sqlite:///log.db?cache=1", "option 'durability' only, got 'cache'"),
        ("memory:log", "nothing more"),
    ],
)
def test_wrong_urls(url: str, words: str) -> None:
    """A URL that names no store is refused with what there is."""
    with pytest.raises(InvalidInput, match=words):
        open_store(url)


def test_without_apsw() -> None:
    """Without the package that it needs, the store says how to install it; without the store, nothing needs it."""
    code = (
        "import sys; sys.modules['apsw'] = None\n"
        "from legato.store import open_store\n"
        "open_store('memory:')\n"
        "try: open_store('sqlite:///log.db')\n"
        "except ModuleNotFoundError as exc: print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert ("pip install 'legato[server]'" in done.stdout, done.stderr) == (True, "")
