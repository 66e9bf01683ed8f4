"""The SQLite store: the contract of stores, and what can go wrong with a file, a disk, a process or a thread."""

# ruff: noqa: ASYNC220, ASYNC240  # a test has its event loop for itself

from __future__ import annotations

import asyncio
import contextlib
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
from legato.errors import (
    InvalidInput,
    RunEnded,
    SessionNotFound,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreLocked,
    StoreReadOnly,
    StoreVersion,
    TooLarge,
)
from legato.event import Draft
from legato.log import Bell, Log, Store
from legato.store import lock, open_store, sqlite, sqlite_file, sqlite_writer
from legato.store.sqlite import SQLiteStore
from legato.testing import EMBEDDED_STORE_CHECKS, STORE_CHECKS, FakeClock, StoreCheck, check_store

CHECKS = [*STORE_CHECKS, *EMBEDDED_STORE_CHECKS]
CREATED = draft("session.created", {"title": "t"})
DELETED = draft("session.deleted", {})
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def message(run: str = "r") -> Draft:
    return draft("message.created", {"text": "hello"}, run)


def text(text: str = "x", run: str = "r") -> Draft:
    return draft("text.delta", {"part": 0, "step": 0, "start": 0, "text": text}, run)


@contextlib.asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(path, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


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
    """It does so too with caches that hold nothing and groups of two, that is, mostly from the disk."""
    monkeypatch.setattr(sqlite_writer, "KNOWN_SESSIONS", 0)
    monkeypatch.setattr(sqlite_writer, "GROUP_REQUESTS", 2)
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

    assert [1, 2] == [event.offset for event in sqlite_file.read_page(connection, "s", 0, 10, True).events]
    connection.close()


async def test_the_disk_never_runs_ahead_of_the_cache(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told of an event by the disk finds it in the next read, though the writer was about to deliver it."""
    log = await begin(store)
    deliver, held, committed = store._deliver, [], asyncio.Event()

    def hold(requests: list[Any]) -> None:
        held.append(requests)
        committed.set()

    monkeypatch.setattr(store, "_deliver", hold)
    appending = asyncio.create_task(log.append(text()))
    await committed.wait()
    # Time enough for the disk to answer. If that were too short, a fault would stay hidden, but no test would fail.
    asyncio.get_running_loop().call_later(0.1, lambda: deliver(held[0]))

    head = (await store.info("s")).head
    assert [3] == [event.offset for event in await log.read(head - 1)]
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


async def test_a_large_group_is_one_transaction(store: SQLiteStore) -> None:
    """A group that needs several statements is stored whole, or not at all."""
    log = await begin(store)
    drafts = [text(str(number)) for number in range(3 * sqlite_file.STATEMENT_ROWS)]
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
    drafts = [text(str(number)) for number in range(3 * sqlite_file.STATEMENT_ROWS)]
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
    monkeypatch.setattr(sqlite_writer, "KNOWN_SESSIONS", 5)
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
        times = [info.updated_at for info in await store.sessions()]

        assert sorted(set(times), reverse=True) == times
        clock.now = 500.0
        assert 500.0 == (await begin(store, "earlier") and (await store.info("earlier")).updated_at)


# Data


@pytest.mark.parametrize(
    "data",
    [{"a": object()}, {"a": "\ud800"}, {("a", "b"): 1}, {"a": {1, 2}.__iter__()}, ["no dict"], None],
    ids=["object", "surrogate", "key", "iterator", "list", "None"],
)
async def test_data_that_is_no_json(store: SQLiteStore, data: Any) -> None:
    """Data that JSON cannot hold is refused to its caller, and stores nothing."""
    log = await begin(store)
    appending, refused = log.append(text("good")), log.append(text(), draft("tool.completed", data, "r"))
    done = await asyncio.gather(appending, refused, return_exceptions=True)

    assert InvalidInput is type(done[1])
    assert ["good"] == [event.data["text"] for event in await log.read(2)]


async def test_circular_data(store: SQLiteStore) -> None:
    """Data that contains itself is refused."""
    log = await begin(store)
    data: dict[str, Any] = {}
    data["self"] = data
    with pytest.raises(InvalidInput):
        await log.append(draft("tool.completed", data, "r"))


async def test_data_that_is_too_large(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data beyond the bound is refused before it can harm others."""
    log = await begin(store)
    monkeypatch.setattr(sqlite_writer, "MAX_DATA_BYTES", 1_000)
    with pytest.raises(TooLarge):
        await log.append(text("x" * 1_000))


async def test_all_readers_get_what_json_makes_of_data(tmp_path: Path) -> None:
    """The cache gives what the disk will give, and later changes of the caller's dict are not seen."""
    data = {"tuple": (1, 2), "nan": float("nan")}
    async with opened(tmp_path / "log.db") as store:
        log = await begin(store)
        await log.append(draft("tool.completed", data, "r"))
        data["later"] = True
        cached = await log.read()
    async with opened(tmp_path / "log.db") as store:
        assert cached == await Log(store, "s").read()
        assert {"tuple": [1, 2], "nan": None} == cached[2].data


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
    ):
        with pytest.raises(InvalidInput):
            await doing

    assert [] == await store.read(odd, 0)
    with pytest.raises(SessionNotFound):
        await store.info(odd)
    assert 2 == (await store.info("s")).head


@given(name=TEXTS.filter(lambda name: "\0" not in name), data=TEXTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
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
                (info.session, [run.run for run in info.open_runs]) for info in await store.sessions()
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
        objects = [{id(page[number]) for page in pages} for number in range(3)]

        # As many reads as there are threads may have begun before the first one ended.
        assert all(len(ids) <= sqlite.READERS for ids in objects)
        assert (await store.read("s", 0))[2] is (await store.read("s", 2))[0]


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
    monkeypatch.setattr(sqlite_file, "PAGE_BYTES", 10_000)
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
        (sqlite_file._PAGES[True], ("s", 0, 10), "PRIMARY KEY (session=? AND offset>?)"),
        (sqlite_file._PAGES[False], ("s", 0, 10), "event_whole (session=? AND offset>?)"),
        (sqlite_file._NEWEST, (10, 10), "session_updated (updated_at<?)"),
    ],
    ids=["page", "history", "sessions"],
)
async def test_reads_use_an_index(store: SQLiteStore, sql: str, bindings: tuple[Any, ...], index: str) -> None:
    """A page costs the same in a long log as in a short one, also without deltas; no query sorts a log."""
    plan = [row[3] for row in store._connection.execute("EXPLAIN QUERY PLAN " + sql, bindings)]

    assert any(index in step for step in plan), plan
    assert not any("SCAN event" in step or "SCAN session" in step for step in plan), plan


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
            store.renew(owner="me", ttl=1),
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
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("legato-sqlite")]


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
        with pytest.raises(StoreLocked, match=rf"process {os.getpid()}.*Redis store \(planned\)"):
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
from legato.event import Draft
from legato.store.sqlite import SQLiteStore

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.open()
    await store.append("s", [draft("session.created", {}), draft("message.created", {}, "r")])
    await store.acquire("s", "r", owner="killed", ttl=3600)
    while True:
        event = (await store.append("s", [draft("text.delta", {"text": "x"}, "r")])).events[0]
        print(event.offset, flush=True)

asyncio.run(main())
"""


async def test_killed(tmp_path: Path) -> None:
    """A killed process leaves no lock, no owner, and every event that it had been told was stored."""
    path = tmp_path / "log.db"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
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
    """Data that is no JSON any more is told of as damage."""
    await begin(store)
    store._connection.execute("""UPDATE event SET data = '{"text": ' WHERE "offset" = 2""")
    store._tail.forget("s")
    with pytest.raises(StoreCorrupt):
        await store.read("s", 0)


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
        ("redis://host", "A store is .memory:., .sqlite:///relative.db."),
        ("", "A store is .memory:., .sqlite:///relative.db."),
        ("log.db", "A store is .memory:., .sqlite:///relative.db."),
        ("sqlite:log.db", "three or four slashes"),
        ("sqlite:/var/log.db", "three or four slashes"),
        ("sqlite://host/log.db", "three or four slashes"),
        ("sqlite:///", "three or four slashes"),
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
