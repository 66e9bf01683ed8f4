"""What others do to the file of a SQLite store while it is open: move it, cut it, lock it; and disks that refuse."""

# ruff: noqa: ASYNC110, ASYNC221, ASYNC240  # a test has its event loop for itself

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec import UNSET

from driving import echo
from facts import draft
from legato.errors import StoreBusy, StoreCorrupt, StoreError, StoreFull, StoreLocked, StoreLost, StoreReadOnly
from legato.event import Draft
from legato.log import Log
from legato.server.app import Legato
from legato.server.dialects import DIALECTS
from legato.store import sqlite, sqlite_troubles, sqlite_writer
from legato.store.lock import FileLock
from legato.store.sqlite import SQLiteStore
from legato.store.sqlite_errors import store_error
from legato.testing import Driver
from opening import opened
from processes import EXAMPLES, bounded, running

NET = 30.0
CREATED = draft("session.created", {"title": "t"})


def message(run: str = "r") -> Draft:
    return draft("message.created", {"text": "hello"}, run)


def text(text: str = "x", run: str = "r") -> Draft:
    return draft("text.delta", {"part": 0, "step": 0, "start": 0, "text": text}, run)


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
async def store(folder: Path) -> AsyncIterator[SQLiteStore]:
    async with opened(folder / "log.db") as store:
        await Log(store, "s").append(CREATED, message())
        yield store


@pytest.fixture(autouse=True)
def looks_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """No two tests differ by how long ago the last look was."""
    monkeypatch.setattr(sqlite_troubles, "LOOK_SECONDS", 0.0)
    for module in (sqlite_troubles, sqlite_writer):
        monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)


async def until(condition: Callable[[], bool]) -> None:
    """A safety net around what comes without being asked for."""
    async with asyncio.timeout(NET):
        while not condition():
            await asyncio.sleep(0.01)


# The file is not where it was


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def move(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).rename(folder / f"{name}.moved") and None


def replace(name: str) -> Callable[[Path], None]:
    def swap(folder: Path) -> None:
        shutil.copy(folder / name, folder / "other")
        (folder / "other").replace(folder / name)

    return swap


def cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def remove_all(folder: Path) -> None:
    shutil.rmtree(folder)


def move_folder(folder: Path) -> None:
    folder.rename(folder.with_name("moved"))


NAMES = ["log.db", "log.db-wal", "log.db-shm"]
LOSSES = {
    **{f"{kind} {name}": do(name) for kind, do in [("rm", remove), ("mv", move), ("cp", replace)] for name in NAMES},
    "empty": cut("log.db", 0),
    "cut to a head": cut("log.db", 100),
    "cut to a page": cut("log.db", 4096),
    "empty log": cut("log.db-wal", 0),
    "cut log": cut("log.db-wal", 4100),
    "rm -r": remove_all,
    "mv folder": move_folder,
}


async def checkpointed(store: SQLiteStore) -> None:
    """Let the file have pages beside those of the write-ahead log."""
    other = apsw.Connection(store._path)
    other.pragma("user_version")
    assert other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)[0] > 0
    other.close()


@pytest.mark.parametrize("loss", LOSSES)
async def test_what_is_gone_is_noticed_before_the_next_commit(store: SQLiteStore, folder: Path, loss: str) -> None:
    """Nothing is acknowledged that the next start would not find; what was committed is read on."""
    await checkpointed(store)
    await store.append("s", [text("before")])
    LOSSES[loss](folder)
    with pytest.raises(StoreLost) as caught:
        await store.append("s", [text("after")])

    assert (503, "store_lost") == (caught.value.status, caught.value.code)
    assert isinstance(store.trouble, StoreLost)
    assert 3 == (await store.info("s")).head == (await store.read("s", 0))[-1].offset


@pytest.mark.parametrize("loss", [*(f"{how} {name}" for how in ("rm", "mv") for name in NAMES), "rm -r", "empty"])
async def test_what_is_gone_is_noticed_while_nothing_is_stored(
    store: SQLiteStore, folder: Path, loss: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Without any append, and said once."""
    await checkpointed(store)
    await until(lambda: store._writer is not None and store._writer._troubles._looked_at > 0)
    LOSSES[loss](folder)
    await until(lambda: store.trouble is not None)
    with pytest.raises(StoreLost):
        await store.append("s", [text()])

    assert 1 == sum("nothing can be stored for now (" in record.message for record in caplog.records)


@pytest.mark.parametrize("name", [*NAMES, ""])
async def test_what_is_put_back_goes_on(folder: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Also the whole folder. All that was acknowledged, before and after, is there at the next start."""
    async with opened(folder / "log.db") as store:
        await Log(store, "s").append(CREATED, message(), text("1"))
        place = folder / name if name else folder
        place.rename(place.with_name("moved"))
        with pytest.raises(StoreLost):
            await store.append("s", [text("2")])
        place.with_name("moved").rename(place)
        await until(lambda: store.trouble is None)
        await store.append("s", [text("3")])
        assert any("can be written again" in record.message for record in caplog.records)
    async with opened(folder / "log.db") as store:
        texts = [getattr(event.fact, "text", "") for event in await store.read("s", 0)]
        assert ["", "hello", "1", "3"] == texts


@pytest.mark.parametrize("how", [remove, move, replace])
async def test_a_lock_that_was_removed_is_made_again(
    store: SQLiteStore, folder: Path, how: Callable[[str], Callable[[Path], None]]
) -> None:
    """Nothing is lost with it, so the store goes on; and nobody else can open the file."""
    how("log.db.lock")(folder)
    await store.append("s", [text()])
    assert store.trouble is None
    assert str(os.getpid()) == (folder / "log.db.lock").read_text().split()[0]
    with pytest.raises(StoreLocked):
        await SQLiteStore(folder / "log.db").open()
    (folder / "log.db.lock").unlink()
    await store.append("s", [text()])


async def test_a_lock_that_another_has_meanwhile(store: SQLiteStore, folder: Path) -> None:
    """Two would write with leases of their own, so the first one stops."""
    (folder / "log.db.lock").unlink()
    other = FileLock(str(folder / "log.db"))
    other.acquire()
    with pytest.raises(StoreLost, match="lock"):
        await store.append("s", [text()])
    other.release()
    await until(lambda: store.trouble is None)
    await store.append("s", [text()])


@pytest.mark.parametrize("mode", ["TRUNCATE", "RESTART"])
async def test_a_log_that_grows_smaller_in_order_is_not_cut(
    store: SQLiteStore, folder: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite cuts it itself when all of it is in the file, or when it has grown too long."""
    store._connection.pragma("journal_size_limit", 100_000)
    await store.append("s", [text("x" * 1_000_000)])
    before = (folder / "log.db-wal").stat().st_size
    other = apsw.Connection(str(folder / "log.db"))
    other.pragma("user_version")
    other.wal_checkpoint(mode=getattr(apsw, f"SQLITE_CHECKPOINT_{mode}"))
    other.close()
    await store.append("s", [text()])
    await store.append("s", [text()])
    assert (folder / "log.db-wal").stat().st_size < before
    assert store.trouble is None


async def test_a_file_that_grows_smaller_in_order_is_not_cut(store: SQLiteStore, folder: Path) -> None:
    """Another program may give back what is free: the file is whole then."""
    await store.append("s", [text("x" * 1_000_000)])
    await checkpointed(store)
    await store.append("s", [draft("session.deleted", {})])
    before = (folder / "log.db").stat().st_size
    other = apsw.Connection(str(folder / "log.db"))
    other.execute("VACUUM")
    other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    other.close()
    assert (folder / "log.db").stat().st_size < before

    await store.append("t", [CREATED])
    assert store.trouble is None


# Another program has the write lock


class Stuck:
    """Another program that holds the write lock from now until it is told to end."""

    def __init__(self, path: Path) -> None:
        code = (
            "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); "
            "db.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout
        with bounded(self._process, "lock of another program"):
            assert b"locked\n" == self._process.stdout.readline()

    def end(self) -> None:
        self._process.communicate()


@pytest.fixture
def stuck(store: SQLiteStore, folder: Path) -> Iterator[Stuck]:
    stuck = Stuck(folder / "log.db")
    yield stuck
    with contextlib.suppress(ValueError):
        stuck.end()


READS: dict[str, Callable[[SQLiteStore], Awaitable[Any]]] = {
    "read": lambda store: store.read("s", 0),
    "read without deltas": lambda store: store.read("s", 0, deltas=False),
    "info": lambda store: store.info("s"),
    "info of nobody": lambda store: store.info("t"),
    "sessions": lambda store: store.sessions(),
    "open runs": lambda store: store.open_runs(),
}


@pytest.mark.parametrize("read", READS)
async def test_reads_do_not_wait_for_a_stuck_writer(
    store: SQLiteStore, stuck: Stuck, read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an append waits for the lock, and its patience has no end, whoever only reads is answered."""
    monkeypatch.setattr(sqlite_troubles, "BUSY_SECONDS", 10 * NET)
    append = store.append("s", [text()])
    await until(lambda: store._writer is not None and bool(store._writer._held))
    store._tail.forget("s")
    store._looks.clear()
    async with asyncio.timeout(NET):
        with contextlib.suppress(Exception) if read.endswith("nobody") else contextlib.nullcontext():
            assert await READS[read](store)

    assert not append.done()
    stuck.end()
    assert [3] == [event.offset for event in (await append).events]


async def test_appends_wait_for_a_short_lock_and_keep_their_order(
    store: SQLiteStore, stuck: Stuck, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What has come while the lock was there is stored when it is gone, in the order in which it came; and the log says
    nothing of it, as of each `legato gc`."""
    monkeypatch.setattr(sqlite_troubles, "BUSY_SECONDS", NET)
    store_patience = [store.append("s", [text(str(number))]) for number in range(3)]
    await until(lambda: store._writer is not None and bool(store._writer._held))
    assert store.trouble is None  # a short lock is no trouble
    later = store.append("s", [text("3")])
    stuck.end()
    await asyncio.gather(*store_patience, later)
    assert [record.message for record in caplog.records] == []

    assert ["0", "1", "2", "3"] == [getattr(event.fact, "text", "") for event in await store.read("s", 2)]


async def test_appends_are_refused_while_the_lock_stays(
    store: SQLiteStore, stuck: Stuck, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that have waited, then all others at once; and they are stored again when the lock is gone."""
    monkeypatch.setattr(sqlite_troubles, "BUSY_SECONDS", 0.2)
    threads = threading.active_count()
    for _ in range(3):
        refused = await asyncio.gather(*[store.append("s", [text()]) for _ in range(50)], return_exceptions=True)
        assert {(StoreBusy, 503, "store_busy")} == {(type(e), e.status, e.code) for e in refused}  # type: ignore[union-attr]
    assert isinstance(store.trouble, StoreBusy)
    assert threading.active_count() <= threads + sqlite.READERS
    assert 1 == sum("nothing can be stored for now (" in record.message for record in caplog.records)

    stuck.end()
    await until(lambda: store.trouble is None)
    assert [3] == [event.offset for event in (await store.append("s", [text()])).events]


async def test_closing_does_not_wait_for_a_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What still waits then is refused."""
    monkeypatch.setattr(sqlite_troubles, "BUSY_SECONDS", 10 * NET)
    async with opened(folder / "log.db") as store:
        await Log(store, "s").append(CREATED, message())
        stuck = Stuck(folder / "log.db")
        append = store.append("s", [text()])
        await until(lambda: store._writer is not None and bool(store._writer._held))
        async with asyncio.timeout(NET):
            await store.close()
    with pytest.raises(StoreBusy):
        await append
    stuck.end()


# What callers are told


@pytest.mark.parametrize("kind", ["lost", "locked"])
async def test_a_server_that_can_store_nothing_is_not_ready(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not ready, and each message is refused with 503, a code and a time to try again; what is stored is read."""
    monkeypatch.setattr(sqlite_troubles, "BUSY_SECONDS", 0.05)
    path = folder / "log.db"
    app = Legato(f"sqlite:///{path}", agents=[echo])
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        if kind == "lost":
            path.rename(folder / "moved")
            back = lambda: (folder / "moved").rename(path) and None  # noqa: E731
        else:
            back = Stuck(path).end
        for url, body in [
            ("/api/sessions/s/messages", {"text": "hello"}),
            ("/stream/s/message", {"content": "hello"}),
            ("/v1/responses", {"input": "hello"}),
            ("/api/sdk/chat/s/messages", {"text": "hello"}),
            ("/api/sessions", {}),
        ]:
            refused = await driver.request("POST", url, json=body)
            assert 503 == refused.status, url
            assert f"store_{'busy' if kind == 'locked' else 'lost'}" in refused.text, url
            assert refused.headers["retry-after"]
        ready = await driver.request("GET", "/ready")
        assert (503, "store") == (ready.status, ready.json()["status"])
        assert f"store_{'busy' if kind == 'locked' else 'lost'}" == ready.json()["reason"]
        assert 200 == (await driver.request("GET", "/health")).status
        assert 200 == (await driver.request("GET", "/api/sessions/s")).status
        assert ["s"] == [each["id"] for each in (await driver.request("GET", "/api/sessions")).json()]

        back()
        await until(lambda: app.sessions.trouble is None)
        assert 200 == (await driver.request("GET", "/ready")).status
        sent = await driver.request("POST", "/api/sessions/s/messages", json={"text": "hello"})
        assert sent.status in (200, 202)


OPERATIONS = [operation for dialect in DIALECTS for operation in dialect.operations]
ANY = {
    "id": "new", "title": "a title", "content": "hello", "text": "hello", "input": "hello", "model": "echo",
    "messages": [{"role": "user", "content": "hello"}], "items": [{"role": "user", "content": "hello"}],
    "metadata": {"a": "b"}, "type": "acknowledge", "provider": "x", "message": "hello", "stream": False,
}  # fmt: skip
"""A body that most routes that take one can use."""


@pytest.mark.parametrize("error", [StoreBusy, StoreFull, StoreLost, StoreReadOnly])
async def test_what_all_requests_meet_is_told_once(
    error: type[StoreError], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line for all that are refused within a while, not one for each; what is something else has its own."""
    app = Legato("memory:", agents=[echo])
    met: StoreError = error("in the way")

    async def refuse(*_: Any, **__: Any) -> None:
        raise met

    async with Driver(app) as driver:
        monkeypatch.setattr(app.store, "append", refuse)
        for path in ("/api/sessions", "/v1/conversations", "/v1/responses", "/api/sessions/"):
            assert (await driver.request("POST", path, json={"input": "x"} if "resp" in path else {})).status >= 404
        met = StoreCorrupt("damaged")
        assert (await driver.request("POST", "/api/sessions", json={})).status == 500
    told = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert told == [
        "1 request(s) failed, the last POST /api/sessions: in the way",
        "1 request(s) failed, the last POST /api/sessions: damaged",
    ]


async def test_no_route_takes_a_lock_for_a_failure_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another program has the file, each route of each dialect reads, or says 503 and when to try again; none of
    them 500, and none waits."""
    monkeypatch.setattr(sqlite_troubles, "BUSY_SECONDS", 0.05)
    app = Legato(f"sqlite:///{folder / 'log.db'}", agents=[echo])
    refused: set[str] = set()
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        await driver.request("POST", "/stream/s/message", json={"content": "hello"})
        response = (await driver.request("POST", "/v1/responses", json={"input": "hello"})).json()
        message = (await driver.request("GET", "/api/sessions/s/messages")).json()[0]["id"]
        stuck = Stuck(folder / "log.db")
        for operation in OPERATIONS:
            names = {"messageId": message, "run": response["id"], "response_id": response["id"]}
            names["id"] = response["id"] if "responses" in operation.path else "s"
            path = re.sub(r"{(\w+)}", lambda match, names=names: names.get(match[1], "s"), operation.path)  # type: ignore[misc]
            if operation.stream is not None and operation.method == "GET":
                continue  # which is open as long as it is read
            fields = {**ANY, "messageId": message, "messageIndex": 0}
            if "responses" in operation.path:
                del fields["text"]  # which is settings there
            body = fields if operation.method in ("POST", "PUT", "PATCH") else UNSET
            async with asyncio.timeout(NET):
                answer = await driver.request(operation.method, path, json=body)
            assert answer.status not in (500, 502, 507), (operation.id, answer.text)
            if answer.status == 503:
                assert "store_busy" in answer.text, operation.id
                assert answer.headers["retry-after"], operation.id
                assert str(folder) not in answer.text, operation.id
                refused.add(operation.id)
            assert operation.method != "GET" or answer.status != 503 or operation.probe, operation.id
        stuck.end()
    assert refused >= {
        *("createSession", "deleteSession", "rewindSession", "forkSession", "sendMessage", "sendStreamingMessage"),
        *("retryMessage", "createThread", "createThreadMessage", "retryAnswer"),
        *("createResponse", "deleteResponse", "createChatCompletion", "createConversation"),
    }


async def test_an_answer_outlives_a_lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an agent says while another program has the lock is stored when it is gone, once and in order."""
    monkeypatch.setattr(sqlite_troubles, "BUSY_SECONDS", 0.05)
    go_on = asyncio.Event()
    path = folder / "log.db"

    async def agent(turn: Any) -> AsyncIterator[str]:
        yield "one "
        await turn.stored()
        go_on.set()
        await asyncio.sleep(0)
        yield "two"

    app = Legato(f"sqlite:///{path}", agents=[agent])
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        await driver.request("POST", "/stream/s/message", json={"content": "hello"})
        await asyncio.wait_for(go_on.wait(), NET)
        stuck = Stuck(path)
        await asyncio.sleep(0.2)
        stuck.end()
        async with asyncio.timeout(NET):
            while len(found := (await driver.request("GET", "/api/sessions/s/messages")).json()) < 2:
                await asyncio.sleep(0.05)
    assert ("one two", "completed") == (found[1]["assistantResponse"], found[1]["status"])


# Readiness: what the disk takes


class Disk:
    """A disk of its own, and what can be done to it.

    Attributes:
        folder: on it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fill(self) -> None:
        """With what somebody else writes."""
        with contextlib.suppress(OSError), open(self.folder / "others", "ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def empty(self) -> None:
        (self.folder / "others").unlink()


@pytest.fixture
def disk(small_disk: Path) -> Disk:
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    return Disk(small_disk)


@pytest.mark.parametrize("written", [False, True], ids=["idle", "written to"])
async def test_a_server_is_not_ready_while_its_disk_takes_nothing(
    disk: Disk, written: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Whether somebody has tried to store something or not; with one word of why, and no path; and it is ready again
    by itself."""
    app = Legato(f"sqlite:///{disk.folder}/log.db", agents=[echo])
    app.drain_on_signal = False
    async with Driver(app) as driver:
        await driver.request("POST", "/api/sessions", json={"id": "s"})
        disk.fill()
        while written and (await driver.request("POST", "/api/sessions", json={})).status == 201:
            pass
        await until(lambda: app.sessions.trouble is not None)
        ready = await driver.request("GET", "/ready")
        assert (503, {"status": "store", "reason": "store_full"}) == (ready.status, ready.json())
        assert ready.headers["retry-after"]
        assert 200 == (await driver.request("GET", "/health")).status
        assert 200 == (await driver.request("GET", "/api/sessions/s")).status
        disk.empty()
        await until(lambda: app.sessions.trouble is None)
        assert 200 == (await driver.request("GET", "/ready")).status
        assert 201 == (await driver.request("POST", "/api/sessions", json={})).status
    assert 1 == sum("nothing can be stored for now (" in record.message for record in caplog.records)
    assert 1 == sum("can be written again" in record.message for record in caplog.records)
    assert not list(disk.folder.glob("*probe*"))


NUMBERS = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO]


@pytest.mark.parametrize("number", NUMBERS)
async def test_a_commit_that_the_disk_refuses_is_remembered_until_it_takes_something(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A quota and an error of the disk are told by nothing but the attempt."""
    writer = store._writer
    assert writer is not None

    def refuse(*args: Any) -> int:
        raise OSError(number, "refused")

    def fail(rows: list[Any]) -> None:
        raise apsw.exception_for(apsw.SQLITE_IOERR_WRITE)

    with monkeypatch.context() as failing:
        failing.setattr("legato.store.sqlite_errors.os.write", refuse)
        failing.setattr(writer, "_write_all", fail)
        with pytest.raises(StoreError) as caught:
            await store.append("s", [text()])
        await asyncio.sleep(0.2)  # some looks later
        assert type(caught.value) is type(store.trouble)
    await until(lambda: store.trouble is None)
    await store.append("s", [text()])


async def test_a_file_system_that_has_become_read_only_is_noticed(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an error of the disk, though nothing is to be stored. (What is in use cannot be remounted by a test.)"""
    found = os.statvfs(store._path)

    def refuse(*args: Any) -> int:
        raise OSError(errno.EROFS, "read only")

    with monkeypatch.context() as failing:
        failing.setattr("legato.store.sqlite_errors.os.open", refuse)
        failing.setattr(
            "legato.store.sqlite_errors.os.statvfs",
            lambda path: os.statvfs_result((*found[:8], found.f_flag | os.ST_RDONLY, found.f_namemax)),
        )
        await until(lambda: isinstance(store.trouble, StoreReadOnly))
    await until(lambda: store.trouble is None)


@pytest.mark.parametrize("looks", ["trouble", "_keep_lock"])
@pytest.mark.parametrize(
    "error", [apsw.IOError("disk I/O error"), OSError(errno.EIO, "I/O error"), RuntimeError("odd")]
)
async def test_a_look_that_fails_ends_nothing(
    store: SQLiteStore, looks: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is raised by looking at the file: what is to be stored is refused, and not left waiting for ever; who
    only asks is answered; and it is stored when the look is good again, also if nothing was asked meanwhile. It is
    told once, however often it is looked."""
    assert store._writer is not None
    writer = store._writer
    looked = threading.Semaphore(0)

    def fail() -> str:
        looked.release()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(writer._troubles._watch, looks, fail)
        for _ in range(4):
            assert await asyncio.to_thread(looked.acquire, timeout=NET)  # while nothing is asked
        assert [record.levelname for record in caplog.records].count("ERROR") == 1
        async with asyncio.timeout(NET):
            with pytest.raises(StoreError):
                await store.append("s", [text("refused")])
            assert (await store.info("s")).head == 2
    async with asyncio.timeout(NET):
        while True:
            with contextlib.suppress(StoreError):
                await store.append("s", [text("after")])
                break
            await asyncio.sleep(0.01)
    assert (await store.info("s")).head == 3


async def test_a_look_that_fails_spares_nobody_the_next(store: SQLiteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even who comes at once: nothing is known of the file then."""
    assert store._writer is not None
    troubles = store._writer._troubles

    def fail() -> str:
        raise RuntimeError("odd")

    monkeypatch.setattr(sqlite_troubles, "LOOK_SECONDS", 1e6)
    with monkeypatch.context() as patch:
        patch.setattr(troubles._watch, "trouble", fail)
        troubles._looked_at = -1e6
        for _ in range(2):
            with pytest.raises(StoreError):
                await store.append("s", [text("refused")])
    assert (await store.info("s")).head == 2


async def test_a_lock_that_nobody_waits_for_is_noticed_too(store: SQLiteStore, stuck: Stuck) -> None:
    """A server to which nothing is sent is not ready either while another program has its file."""
    await until(lambda: isinstance(store.trouble, StoreBusy))
    stuck.end()
    await until(lambda: store.trouble is None)


def test_a_served_file_is_missed(tmp_path: Path) -> None:
    """A server by itself, whose file is removed: within seconds it says so, aloud and at ``/ready``."""
    import httpx2

    store = tmp_path / "chat.db"
    with running(
        "legato", "serve", str(EXAMPLES / "agent.py"), "--port", "0", "--store", f"sqlite:///{store}"
    ) as server:
        assert 200 == httpx2.get(f"{server.url}/ready").status_code
        store.unlink()
        assert server.said("nothing can be stored")
        assert 503 == httpx2.get(f"{server.url}/ready").status_code
        assert 503 == httpx2.post(f"{server.url}/api/sessions", json={}).status_code


# Opening


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KB of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    except FileNotFoundError:
        pytest.skip("There is no mount here; on Debian: apt-get install mount")
    if done.returncode:
        pytest.skip("This user may mount nothing; run the tests as root.")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("pages", range(15))
async def test_a_full_disk_at_the_start_is_called_so(small_disk: Path, pages: int) -> None:
    """However little room there is, and whichever file is the one that finds none."""
    (small_disk / "others").write_bytes(bytes((16 - pages) * 4096))
    with pytest.raises(StoreFull, match=r"disk is full.*Make room"):
        await SQLiteStore(small_disk / "log.db").open()
    assert not list(small_disk.glob("*probe*"))


async def test_a_disk_that_is_for_reading_only(small_disk: Path) -> None:
    """Whether the file is there already or not."""
    (small_disk / "old.db").write_bytes(b"")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for name in ("old.db", "new.db"):
        with pytest.raises(StoreReadOnly, match="file system cannot be written"):
            await SQLiteStore(small_disk / name).open()


@pytest.mark.parametrize(
    ("place", "words"),
    [("none/log.db", "no folder"), ("folder", "is a folder"), ("file/log.db", "no folder"), ("x" * 300, "too long")],
)
async def test_places_that_are_no_file(tmp_path: Path, place: str, words: str) -> None:
    """The error says what is there instead."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=words):
        await SQLiteStore(tmp_path / place).open()


async def test_a_file_that_another_program_has_locked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start there is some patience, and then an error that says who is waited for."""
    monkeypatch.setattr("legato.store.sqlite_file.BUSY_MS", 10)
    async with opened(folder / "log.db"):
        pass
    stuck = Stuck(folder / "log.db")
    with pytest.raises(StoreBusy, match="Another program has locked the file"):
        await SQLiteStore(folder / "log.db").open()
    stuck.end()
    async with opened(folder / "log.db"):
        pass


@pytest.mark.parametrize(
    ("exc", "error", "words"),
    [
        (apsw.exception_for(apsw.SQLITE_IOERR_SHMMAP), StoreError, "local disk"),
        (apsw.exception_for(apsw.SQLITE_IOERR_SHMOPEN), StoreError, "local disk"),
        (apsw.exception_for(apsw.SQLITE_IOERR_LOCK), StoreError, "local disk"),
        (apsw.exception_for(apsw.SQLITE_PROTOCOL), StoreError, "local disk"),
        (apsw.exception_for(apsw.SQLITE_IOERR_READ), StoreError, "disk has failed"),
        (apsw.exception_for(apsw.SQLITE_BUSY), StoreBusy, "locked"),
        (apsw.exception_for(apsw.SQLITE_FULL), StoreFull, "full"),
        (apsw.exception_for(apsw.SQLITE_READONLY), StoreReadOnly, "written"),
        (apsw.exception_for(apsw.SQLITE_NOTADB), StoreCorrupt, "no database"),
        (OSError(errno.ENOLCK, "no locks"), StoreError, "local disk"),
        (OSError(errno.EDQUOT, "quota"), StoreFull, "quota"),
        (OSError(errno.EMFILE, "many"), StoreError, "ulimit"),
        (OSError(errno.EROFS, "ro"), StoreReadOnly, "file system"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_errors_mean(tmp_path: Path, exc: Exception, error: type[StoreError], words: str) -> None:
    """Each says what is wrong, and of which file."""
    told = store_error(exc, str(tmp_path / "log.db"))
    assert (error, True, True) == (type(told), words in told.message, "log.db" in told.message)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_the_system_is_asked_what_sqlite_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A failed write is told as what the system says of another one beside it."""

    def refuse(*args: Any) -> int:
        raise OSError(number, "refused")

    monkeypatch.setattr("legato.store.sqlite_errors.os.write", refuse)
    told = store_error(apsw.exception_for(apsw.SQLITE_IOERR_WRITE), str(tmp_path / "log.db"))
    assert type(told) is (StoreFull if number in (errno.ENOSPC, errno.EDQUOT) else StoreReadOnly)
    assert not list(tmp_path.iterdir())
