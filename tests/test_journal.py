"""The SQLite store's journal: where deltas are, when they are packed, and that nobody can see it."""

# ruff: noqa: ASYNC220  # a test has its event loop for itself

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facts import draft
from legato.errors import StoreCorrupt, StoreError
from legato.event import DELTAS, Draft, Event, SessionCreated, SessionDeleted
from legato.log import Log
from legato.store import sqlite_file, sqlite_journal, sqlite_requests, sqlite_writer
from legato.store.memory import MemoryStore
from legato.store.sqlite import SQLiteStore
from legato.store.sqlite_journal import PACK_EVENTS, PACK_LIMIT
from processes import bounded

CREATED = Draft(SessionCreated())
DELETED = Draft(SessionDeleted())


def message(run: str = "r") -> Draft:
    return draft("message.created", {"text": "hello"}, run)


def tool() -> Draft:
    return draft("tool.started", {"id": "c"}, "r")


def text(text: str = "x") -> Draft:
    return draft("text.delta", {"part": 0, "step": 0, "start": 0, "text": text}, "r")


@pytest.fixture(autouse=True)
def nothing_is_tidied(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a test may use the writer's connection."""
    monkeypatch.setattr(sqlite_writer, "TIDY_SECONDS", 1_000.0)


@contextlib.asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[SQLiteStore]:
    """A store whose tail cache holds next to nothing, so that most reads go to the disk."""
    store = SQLiteStore(path, durability="normal", tail_events=1, tail_bytes=1, **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    async with opened(tmp_path / "log.db") as store:
        yield store


async def begin(store: SQLiteStore, *sessions: str) -> None:
    for session in sessions:
        await store.append(session, [CREATED, message()])


async def say(store: SQLiteStore, session: str, count: int) -> None:
    for number in range(count):
        await store.append(session, [text(f"{session} {number}")])


def count(store: SQLiteStore, what: str) -> int:
    return int(sqlite_file.value(store._connection, f"SELECT count(*) FROM {what}"))


def offsets(events: list[Event]) -> list[int]:
    return [event.offset for event in events]


async def everything(store: SQLiteStore, session: str) -> list[Event]:
    return [event async for event in Log(store, session).all()]


# What is where


async def test_many_deltas_are_one_row(store: SQLiteStore) -> None:
    """No delta is a row by itself; each 32 offsets are packed once they are all there, the rest is in the journal."""
    await begin(store, "s")
    await say(store, "s", 5 * PACK_EVENTS)

    assert 0 == count(store, "event WHERE delta")
    assert 5 <= count(store, "pack") <= 6
    assert [2 + 5 * PACK_EVENTS] == offsets(await store.read("s", 1 + 5 * PACK_EVENTS))
    assert len(store._journal.after("s")) < PACK_EVENTS


async def test_sessions_are_packed_at_different_times(store: SQLiteStore) -> None:
    """Sessions that speak in step are not all packed in one commit."""
    sessions = [f"s{number}" for number in range(PACK_EVENTS)]
    await begin(store, *sessions)
    packs = []
    for _ in range(PACK_EVENTS):
        await asyncio.gather(*[store.append(session, [text()]) for session in sessions])
        packs.append(count(store, "pack"))

    steps = [after - before for before, after in zip([0, *packs], packs, strict=False)]
    assert (PACK_EVENTS, 1) == (sum(steps), max(steps))


async def test_many_at_once_are_packed_at_once(store: SQLiteStore) -> None:
    """What would be packed in the same commit is not put into the journal first; a pack has a bound."""
    await begin(store, "s")
    await store.append("s", [text(str(number)) for number in range(3 * PACK_LIMIT + 5)])

    assert (0, 4) == (count(store, "journal"), count(store, "pack"))
    assert 2 + 3 * PACK_LIMIT + 5 == len(await everything(store, "s"))


async def test_large_deltas_are_events(store: SQLiteStore) -> None:
    """Who reads one small delta does not read large ones with it."""
    await begin(store, "s")
    await store.append("s", [text("a"), text("x" * sqlite_requests.PACKED_BYTES), text("b")])

    assert (1, [2, 4]) == (count(store, "event WHERE delta"), [record[0] - 1 for record in store._journal.after("s")])
    assert [1, 2, 3, 4, 5] == offsets(await everything(store, "s"))


async def test_the_journal_is_bounded(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long others speak, one delta of a session that has nothing more to say does not keep their rows."""
    monkeypatch.setattr(sqlite_journal, "JOURNAL_BYTES", 20_000)
    monkeypatch.setattr(sqlite_journal, "JOURNAL_PIECE", 2_000)
    await begin(store, "quiet", "loud")
    await say(store, "quiet", 1)
    for _ in range(20):
        await say(store, "loud", 30)
        assert sqlite_file.value(store._connection, "SELECT sum(length(data)) FROM journal") < 25_000

    assert [] == store._journal.after("quiet")
    assert [1, 2, 3] == offsets(await everything(store, "quiet"))
    assert list(range(1, 603)) == offsets(await everything(store, "loud"))


async def test_deletion_removes_the_words(store: SQLiteStore) -> None:
    """Those that are packed, those that are in the journal among others', and those of the same moment."""
    await begin(store, "s", "other")
    await say(store, "other", 1)
    await store.append("s", [text("secret")] * 50)
    await asyncio.gather(store.append("s", [text("secret")]), store.append("other", [text("kept")]))
    deleting = [store.append("s", [text("secret")]), store.append("s", [DELETED])]
    await asyncio.gather(*deleting, store.append("other", [text("kept")]))

    for table in ("event", "pack", "journal"):
        assert not [data for (data,) in store._connection.execute(f"SELECT data FROM {table}") if "secret" in str(data)]
    assert [55] == offsets(await store.read("s", 0))
    assert ["other 0", "kept", "kept"] == [event.data["text"] for event in await store.read("other", 2)]


async def test_after_a_restart(tmp_path: Path) -> None:
    """The writer goes on with what was not packed, and with nothing else, though the journal has that, too."""
    async with opened(tmp_path / "log.db") as store:
        await begin(store, "s", "other")
        await say(store, "other", 3)
        await say(store, "s", PACK_EVENTS + 10)
        before = [store._journal.after(session) for session in ("s", "other")]
        assert 10 < count(store, "journal") - len(before[0])
    async with opened(tmp_path / "log.db") as store:
        assert before == [store._journal.after(session) for session in ("s", "other")]
        await say(store, "s", PACK_EVENTS)
        assert list(range(1, 2 * PACK_EVENTS + 13)) == offsets(await store.read("s", 0))


async def test_a_backup_is_complete(store: SQLiteStore, tmp_path: Path) -> None:
    """What SQLite copies while the store is open has every delta, packed or not."""
    await begin(store, "s")
    await say(store, "s", PACK_EVENTS + 7)
    copy = apsw.Connection(str(tmp_path / "copy.db"))
    reader = sqlite_file.connect(str(tmp_path / "log.db"), write=False)
    with copy.backup("main", reader, "main") as backup:
        backup.step()
    copy.close()
    reader.close()
    async with opened(tmp_path / "copy.db") as other:
        assert await everything(store, "s") == await everything(other, "s")
        assert (await store.info("s")).head == (await other.info("s")).head


# While a page is read


class Between:
    """Lets something happen when a reader has looked at the journal, and not yet at the disk; once."""

    def __init__(self, store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._after = store._journal.after
        self._loop = asyncio.get_running_loop()
        self.looks = 0
        self.then: Callable[[], Coroutine[Any, Any, Any]] | None = None
        monkeypatch.setattr(store._journal, "after", self.after)

    def after(self, session: str) -> Any:
        found = self._after(session)
        self.looks += 1
        then, self.then = self.then, None
        if then is not None:
            asyncio.run_coroutine_threadsafe(then(), self._loop).result(30)
        return found


async def test_packed_meanwhile(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was seen in the journal and is packed when the disk is read is given out once."""
    await begin(store, "s")
    await say(store, "s", 20)
    between = Between(store, monkeypatch)
    between.then = lambda: say(store, "s", PACK_EVENTS)
    events = await store.read("s", 0)

    assert count(store, "pack")
    assert list(range(1, len(events) + 1)) == offsets(events)
    assert 22 <= len(events)


async def test_stored_meanwhile(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page ends before a delta that came too late for the look at the journal, though what follows is on the disk."""
    await begin(store, "s")
    await say(store, "s", 2)
    between = Between(store, monkeypatch)

    async def then() -> None:
        await store.append("s", [text(), tool()])

    between.then = then
    assert [3, 4] == offsets(await store.read("s", 2))
    assert [5, 6] == offsets(await store.read("s", 4))
    assert 2 == between.looks


async def test_stored_meanwhile_at_the_head(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing comes before the gap, the page is read again."""
    await begin(store, "s")
    await say(store, "s", 2)
    between = Between(store, monkeypatch)

    async def then() -> None:
        await store.append("s", [text(), tool()])

    between.then = then
    store._tail.forget("s")
    store._looks.pop("s")  # as of one that nobody has asked for of late
    assert [5, 6] == offsets(await store.read("s", 4))
    assert 2 == between.looks


async def test_committed_and_not_filed(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """So it is when the disk has a commit that the writer has not filed yet: the reader waits for it."""
    await begin(store, "s")
    await say(store, "s", 2)
    filed, committed, go_on = store._journal.filed, asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def hold(filing: Any) -> None:
        loop.call_soon_threadsafe(committed.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(30)
        filed(filing)

    monkeypatch.setattr(store._journal, "filed", hold)
    appending = store.append("s", [text(), tool()])
    await committed.wait()
    store._tail.forget("s")
    store._looks.pop("s")  # as of one that nobody has asked for of late
    reading = asyncio.create_task(store.read("s", 4))
    listing = asyncio.create_task(store.sessions())
    await asyncio.sleep(0.1)  # time to find it torn; if it is too short, the test is weaker, but does not fail
    assert not reading.done()
    go_on.set()

    assert [5, 6] == offsets(await reading)
    assert 6 == (await listing).infos[0].head
    await appending


async def test_who_stands_at_the_head_asks_no_disk(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session whose tail was let go, heartbeat by heartbeat: what it looks like is known without."""
    await begin(store, "s")
    await say(store, "s", 2)
    store._tail.forget("s")
    between = Between(store, monkeypatch)
    for deltas in (True, False):
        assert [] == await store.read("s", 4, deltas=deltas) == store.peek("s", 4, deltas=deltas)
    assert 0 == between.looks
    assert store.peek("s", 3) is None
    assert [4] == offsets(await store.read("s", 3))


async def test_who_only_looks_writes_nothing(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However old the journal is, so it also succeeds on a full disk."""
    await begin(store, "s")
    await begin(store, "t")
    await say(store, "s", 2)
    monkeypatch.setattr(sqlite_journal, "JOURNAL_BYTES", 0)
    before = store._connection.total_changes()
    store._looks.clear()
    assert 4 == (await store.info("s")).head
    assert before == store._connection.total_changes()
    await say(store, "t", 1)  # with the next delta it is packed
    assert before < store._connection.total_changes()
    assert 0 == store._journal.head("s")


async def test_deleted_meanwhile(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session that is deleted while it is read only the tombstone is told."""
    await begin(store, "s")
    await say(store, "s", 3)
    between = Between(store, monkeypatch)

    async def then() -> None:
        await store.append("s", [DELETED])

    between.then = then
    assert [6] == offsets(await store.read("s", 3))


async def test_heads_while_packing(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of sessions never tells less of a log than was visible before."""
    await begin(store, "s")
    await say(store, "s", 20)
    heads = store._journal.heads
    loop = asyncio.get_running_loop()

    def between() -> Any:
        found = heads()
        asyncio.run_coroutine_threadsafe(say(store, "s", PACK_EVENTS), loop).result(30)
        return found

    monkeypatch.setattr(store._journal, "heads", between)
    assert 22 <= (await store.sessions()).infos[0].head <= 22 + PACK_EVENTS


# When something goes wrong


async def test_a_failed_commit_files_nothing(store: SQLiteStore) -> None:
    """The journal in memory is as it was, and goes on from there; also when it would have been packed."""
    await begin(store, "s", "other")
    await say(store, "s", 20)
    before = store._journal.after("s")
    store._connection.set_commit_hook(lambda: True)
    for drafts in ([text()], [text()] * 40, [DELETED]):
        with pytest.raises(StoreError):
            await store.append("s", drafts)
    store._connection.set_commit_hook(None)

    assert before == store._journal.after("s")
    await store.append("s", [text()])
    assert list(range(1, 24)) == offsets(await everything(store, "s"))


async def test_a_pack_that_is_gone(store: SQLiteStore) -> None:
    """A log with a hole is told of as damage when a reader comes to it, and does not keep him waiting."""
    await begin(store, "s")
    await store.append("s", [text()] * 2 * PACK_LIMIT)
    await store.append("s", [tool()])
    store._connection.execute("DELETE FROM pack WHERE last = (SELECT min(last) FROM pack)")
    with pytest.raises(StoreCorrupt, match="offset 2 are gone"):
        await everything(store, "s")


async def test_a_damaged_journal(tmp_path: Path) -> None:
    """A file whose journal cannot be read is not opened: its offsets would be given again."""
    async with opened(tmp_path / "log.db") as store:
        await begin(store, "s")
        await say(store, "s", 1)
        store._connection.execute("UPDATE journal SET data = x'c1'")
    with pytest.raises(StoreCorrupt, match=r"damaged.*log\.db"):
        await SQLiteStore(tmp_path / "log.db").open()
    assert not store._lock._file


TALKER = """
import asyncio, sys
from legato.event import Draft, MessageCreated, SessionCreated, TextDelta, ToolBegun
from legato.store import sqlite_journal
from legato.store.sqlite import SQLiteStore

sqlite_journal.PACK_EVENTS, sqlite_journal.JOURNAL_BYTES, sqlite_journal.JOURNAL_PIECE = 5, 2_000, 500

async def speak(store, session, pause):
    while True:
        head = (await store.info(session)).head
        drafts = [Draft(TextDelta(0, 1, head + 1, "x"), "r"), Draft(TextDelta(0, 1, head + 2, "x"), "r")]
        if head % 7 == 0:
            drafts[0] = Draft(ToolBegun(str(head + 1), "n", ""), "r")
        appended = await store.append(session, drafts)
        print(session, appended.events[-1].offset, flush=True)
        await asyncio.sleep(pause)

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.open()
    for number in range(5):
        if not await store.read(f"s{number}", 0):
            await store.append(f"s{number}", [Draft(SessionCreated()), Draft(MessageCreated("m", "user", "go"), "r")])
    await asyncio.gather(*[speak(store, f"s{number}", number / 200) for number in range(5)])

asyncio.run(main())
"""


async def test_killed_while_packing(tmp_path: Path) -> None:
    """Killed again and again between journal and packs, the file has all that was acknowledged, each at its offset."""
    path = tmp_path / "log.db"
    told = dict.fromkeys([f"s{number}" for number in range(5)], 2)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", TALKER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        with bounded(process, "150 lines"):
            lines = [process.stdout.readline() for _ in range(150)]
        process.kill()
        lines += process.communicate()[0].splitlines()
        told |= {line.split()[0]: int(line.split()[1]) for line in lines if len(line.split()) == 2}
        async with opened(path) as store:
            for session, offset in told.items():
                events = await everything(store, session)
                assert list(range(1, len(events) + 1)) == offsets(events)
                assert offset <= len(events) == (await store.info(session)).head
                places = [int(event.data.get("start", event.data.get("id"))) for event in events[2:]]
                assert list(range(3, len(events) + 1)) == places
            assert count(store, "pack")
            assert sqlite_file.value(store._connection, "SELECT coalesce(sum(length(data)), 0) FROM journal") < 4_000


# All together

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "a", "b", "d"]),
        st.lists(st.sampled_from(["text", "text", "text", "large", "tool"]), min_size=1, max_size=9),
        st.sampled_from(["", "", "", "", "", "open again", "fail", "delete", "key"]),
    ),
    max_size=40,
)


@given(steps=STEPS, block=st.integers(1, 8), bound=st.integers(0, 400), piece=st.integers(1, 300))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_nobody_can_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list, block: int, bound: int, piece: int
) -> None:
    """Whatever is said, deleted, failed and begun anew: every page is what the memory store gives."""
    monkeypatch.setattr(sqlite_journal, "PACK_EVENTS", block)
    monkeypatch.setattr(sqlite_journal, "PACK_LIMIT", 2 * block)
    monkeypatch.setattr(sqlite_journal, "JOURNAL_BYTES", bound)
    monkeypatch.setattr(sqlite_journal, "JOURNAL_PIECE", piece)
    monkeypatch.setattr(sqlite_requests, "PACKED_BYTES", 100)
    path = tmp_path / "any.db"
    for each in tmp_path.glob("any.db*"):
        each.unlink()

    async def go() -> None:
        model = MemoryStore()
        store = SQLiteStore(path, durability="normal", tail_events=1, tail_bytes=1)
        await store.open()
        deleted: set[str] = set()
        kinds = {"text": text, "large": lambda: text("x" * 100), "tool": tool}
        for number, (session, said, then) in enumerate(steps):
            if session in deleted:
                continue
            drafts = [kinds[kind]() for kind in said]
            if not (await model.read(session, 0, limit=1)):
                drafts = [CREATED, message(), *drafts]
            if then == "fail":
                store._connection.set_commit_hook(lambda: True)
                with pytest.raises(StoreError):
                    await store.append(session, drafts)
                store._connection.set_commit_hook(None)
            if then == "delete":
                drafts.append(DELETED)
                deleted.add(session)
            once = f"key {number}" if then == "key" else None
            await model.append(session, drafts, once=once)
            stored = await store.append(session, drafts, once=once)
            if then == "open again":
                await store.close()
                await store.open()
            if once is not None:
                again = await store.append(session, drafts, once=once)
                assert (True, stored.events) == (again.repeated, again.events)
            await same(store, model, session)
        for session in "abcd":
            await same(store, model, session)
        heads = {info.session: info.head for info in (await store.sessions()).infos}
        assert {info.session: info.head for info in (await model.sessions()).infos} == heads
        await store.close()

    async def same(store: SQLiteStore, model: MemoryStore, session: str) -> None:
        wanted = [(event.offset, event.type, event.json or event.data) for event in await model.read(session, 0)]
        for after in range(0, len(wanted) + 2, 3):
            found = [(event.offset, event.type, event.data) for event in await everything_after(store, session, after)]
            whole = [each.offset for each in await store.read(session, after, deltas=False)]
            assert [(offset, type) for offset, type, _ in wanted if offset > after] == [each[:2] for each in found]
            assert [each[0] for each in wanted if each[0] > after and each[1] not in DELTAS] == whole

    async def everything_after(store: SQLiteStore, session: str, after: int) -> list[Event]:
        return [event async for event in Log(store, session).all(after)]

    asyncio.run(go())
