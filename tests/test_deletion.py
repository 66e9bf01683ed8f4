"""What is deleted from a SQLite store is in no byte of its files, which are nobody else's to read, and grow smaller."""

# ruff: noqa: ASYNC110  # a test has its event loop for itself

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest

from facts import draft
from legato.event import Draft
from legato.store import sqlite_file, sqlite_journal
from legato.store.sqlite import SQLiteStore
from opening import opened

NET = 30.0
CREATED = draft("session.created", {"title": "t"})
DELETED = draft("session.deleted", {})
SUFFIXES = ("", "-wal", "-shm", ".lock")


def message(text: str = "hello", run: str | None = "r") -> Draft:
    return draft("message.created", {"id": "m", "role": "user", "text": text}, run)


def text(text: str = "x", run: str = "r") -> Draft:
    return draft("text.delta", {"part": 0, "step": 0, "start": 0, "text": text}, run)


def found(path: Path, word: str) -> list[str]:
    """The files that hold it. They are read by another process: closing one here would let go of SQLite's locks."""
    files = [str(each) for each in path.parent.iterdir() if each.name.startswith(path.name)]
    grep = subprocess.run(["grep", "-lFa", word, *files], capture_output=True, text=True)
    return [Path(line).name for line in grep.stdout.splitlines()]


async def tidied(store: SQLiteStore) -> None:
    async with asyncio.timeout(NET):
        while store._writer is None or store._writer._tidy_at is not None:
            await asyncio.sleep(0.01)


async def fill(store: SQLiteStore, session: str, word: str) -> None:
    """The word in all that a store has of a session: events, deltas that are packed and not, large ones, keys."""
    await store.append(session, [CREATED, message(f"{word}.message")], once=f"{word}.key")
    await store.append(session, [draft("tool.completed", {"id": "c", "name": "n", "output": f"{word}.tool"}, "r")])
    for number in range(3 * sqlite_journal.PACK_EVENTS + 1):
        await store.append(session, [text(f"{word}.delta{number}")])
    await store.append(session, [text(f"{word}.large" + "x" * 10_000)])
    await store.append(session, [message(f"{word}.huge" + "x" * 300_000, None)])


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "among others"])
async def test_what_is_deleted_is_in_no_byte(tmp_path: Path, busy: bool) -> None:
    """Soon after, while the store is open: not in the file, nor in what stands beside it; all else is."""
    path = tmp_path / "log.db"
    async with opened(path) as store:
        await asyncio.gather(fill(store, "s", "SECRET"), fill(store, "o", "KEPT"))
        assert found(path, "SECRET")
        others = asyncio.create_task(speak(store) if busy else asyncio.sleep(0))
        await store.append("s", [DELETED])
        await tidied(store)
        assert not found(path, "SECRET")
        others.cancel()
        for word in ("message", "tool", "delta0", "delta90", "large", "huge"):
            assert found(path, f"KEPT.{word}"), word


async def speak(store: SQLiteStore) -> None:
    while True:
        await store.append("o", [text("KEPT")])


async def test_what_was_deleted_one_after_the_other(tmp_path: Path) -> None:
    """Nothing of a session is left where others were moved to and fro."""
    path = tmp_path / "log.db"
    async with opened(path, durability="normal") as store:
        for number in range(8):
            await asyncio.gather(*[fill(store, f"s{number}.{each}", f"W{number}.{each}.") for each in range(3)])
            await store.append(f"s{number}.1", [DELETED])
        await tidied(store)
        for number in range(8):
            assert not found(path, f"W{number}.1.")
            assert found(path, f"W{number}.2.")


@pytest.mark.parametrize("others", [0, 1], ids=["alone", "beside another"])
@pytest.mark.parametrize("unpacked", [0, 1, 5])
async def test_however_much_of_it_was_packed(tmp_path: Path, unpacked: int, others: int) -> None:
    """The rows in which deltas came are emptied, also when all that is in them has been packed; and whoever reads after
    a restart finds what was deleted, and nothing of it."""
    path = tmp_path / "log.db"
    async with opened(path) as store:
        for number in range(others):
            await store.append(f"o{number}", [CREATED, message(), text("KEPT")])
        await store.append("s", [CREATED, message(), text("SECRET")])
        while store._journal.after("s"):
            await store.append("s", [text("SECRET")])
        for _ in range(unpacked):
            await store.append("s", [text("SECRET")])
        tombstone = (await store.append("s", [DELETED])).events
        await tidied(store)
        assert not found(path, "SECRET")
    async with opened(path) as store:
        assert await store.read("s", 0) == tombstone
        assert not store._journal.after("s")


async def test_what_an_early_version_has_left(tmp_path: Path) -> None:
    """It did not empty the rows in which deltas came if all in them was packed; then a deleted session was damaged."""
    path = tmp_path / "log.db"
    async with opened(path) as store:
        await store.append("s", [CREATED, message()])
        while len(await store.read("s", 2)) < 5 or store._journal.after("s"):
            await store.append("s", [text("SECRET")])
        rows = list(store._connection.execute("SELECT * FROM journal"))
        tombstone = (await store.append("s", [DELETED])).events
    connection = apsw.Connection(str(path))
    connection.executemany("INSERT OR IGNORE INTO journal VALUES (?, ?)", rows)
    connection.close()
    async with opened(path) as store:
        assert await store.read("s", 0) == tombstone
        await store.append("o", [CREATED, message(), text("KEPT")])
        await store.append("o", [DELETED])
        await tidied(store)
        assert not found(path, "SECRET")


async def test_what_was_deleted_just_before_the_end(tmp_path: Path) -> None:
    """A store that is closed at once is as tidy."""
    path = tmp_path / "log.db"
    async with opened(path) as store:
        await fill(store, "s", "SECRET")
        await store.append("s", [DELETED])
    assert not found(path, "SECRET")
    assert ["log.db", "log.db.lock"] == sorted(os.listdir(tmp_path))


KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, sys.argv[2])
import test_deletion
from legato.store import sqlite_writer
from legato.store.sqlite import SQLiteStore

sqlite_writer.TIDY_SECONDS = 1000.0

async def main():
    store = SQLiteStore(sys.argv[1])
    await store.open()
    await test_deletion.fill(store, "s", "SECRET")
    await test_deletion.fill(store, "o", "KEPT")
    await store.append("s", [test_deletion.DELETED])
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


async def test_killed_before_it_was_tidy(tmp_path: Path) -> None:
    """The next start does what was left, also if nothing is deleted then."""
    path = tmp_path / "log.db"
    killed = await asyncio.create_subprocess_exec(sys.executable, "-c", KILLED, str(path), str(Path(__file__).parent))
    assert -signal.SIGKILL == await killed.wait()
    assert found(path, "SECRET")
    async with opened(path) as store:
        await tidied(store)
        assert not found(path, "SECRET")
        assert found(path, "KEPT")


async def test_who_still_reads_what_is_old_holds_up_nobody(tmp_path: Path) -> None:
    """A backup that reads on keeps what it reads; appends go on, and the rest is done when it has ended."""
    path = tmp_path / "log.db"
    async with opened(path) as store:
        await fill(store, "s", "SECRET")
        await fill(store, "o", "KEPT")
        backup = apsw.Connection(str(path))
        backup.execute("BEGIN")
        assert backup.execute("SELECT count(*) FROM event").fetchone()
        await store.append("s", [DELETED])
        for _ in range(200):
            await store.append("o", [text()])
        assert store._writer is not None
        assert store._writer._tidy_at is not None
        backup.execute("COMMIT")
        backup.close()
        await tidied(store)
        assert not found(path, "SECRET")


async def test_the_file_grows_smaller_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a deleted session took is given back, some pages at a time, with the appends of others in between."""
    steps: list[int] = []
    tidy = sqlite_file.tidy

    def counted(connection: apsw.Connection) -> bool:
        before = connection.pragma("page_count")
        done = tidy(connection)
        steps.append(before - connection.pragma("page_count"))
        return done

    monkeypatch.setattr("legato.store.sqlite_writer.tidy", counted)
    path = tmp_path / "log.db"
    async with opened(path) as store:
        await fill(store, "o", "KEPT")
        await fill(store, "s", "SECRET")
        for _ in range(20):
            await store.append("s", [message("x" * 200_000, None)])
        before = path.stat().st_size
        others = asyncio.create_task(speak(store))
        await store.append("s", [DELETED])
        await tidied(store)
        others.cancel()
        assert path.stat().st_size < before / 2
    assert len(steps) > 5
    assert max(steps) <= sqlite_file.TIDY_PAGES + 1  # and perhaps a page that said where they were


# Who may read the files


def modes(path: Path) -> dict[str, int]:
    return {suffix: stat.S_IMODE(os.stat(f"{path}{suffix}").st_mode) for suffix in SUFFIXES}


@pytest.fixture(params=[0o022, 0o000, 0o077])
def mask(request: pytest.FixtureRequest) -> Any:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


async def test_new_files_are_for_nobody_else(tmp_path: Path, mask: int) -> None:
    """Whatever the process's mask is."""
    path = tmp_path / "log.db"
    async with opened(path) as store:
        await store.append("s", [CREATED])
        assert dict.fromkeys(SUFFIXES, 0o600) == modes(path)


@pytest.mark.parametrize(("before", "after"), [(0o644, 0o600), (0o666, 0o600), (0o600, 0o600), (0o640, 0o640)])
async def test_files_that_all_can_read_are_no_longer(tmp_path: Path, before: int, after: int) -> None:
    """As earlier versions have made them; what was given to a group alone stays its."""
    path = tmp_path / "log.db"
    async with opened(path) as store:
        await store.append("s", [CREATED])
    for suffix in ("", ".lock"):
        os.chmod(f"{path}{suffix}", before)
    async with opened(path) as store:
        await store.append("t", [CREATED])
        assert dict.fromkeys(SUFFIXES, after) == modes(path)


# Files of earlier versions


def grown(path: Path) -> None:
    """A file as earlier versions made it: without the means of growing smaller in pieces."""
    other = apsw.Connection(str(path))
    other.pragma("auto_vacuum", 0)
    other.execute("VACUUM")
    other.close()


async def test_a_file_of_an_earlier_version_can_be_made_smaller(tmp_path: Path) -> None:
    """It is rewritten when it is opened."""
    path = tmp_path / "log.db"
    async with opened(path) as store:
        await fill(store, "s", "SECRET")
        await fill(store, "o", "KEPT")
    grown(path)
    async with opened(path) as store:
        assert 0 < len(await store.read("s", 0))
        before = path.stat().st_size
        await store.append("s", [DELETED])
        await tidied(store)
        assert not found(path, "SECRET")
        assert path.stat().st_size < before * 3 / 4


async def test_a_large_file_of_an_earlier_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is not rewritten at the start, which would take long; what is deleted from then on is overwritten."""
    monkeypatch.setattr(sqlite_file, "REWRITE_BYTES", 1_000)
    path = tmp_path / "log.db"
    async with opened(path):
        pass
    grown(path)
    async with opened(path) as store:
        await fill(store, "s", "SECRET")
        await fill(store, "o", "KEPT")
        assert any("does not grow smaller" in record.message for record in caplog.records)
        await store.append("s", [DELETED])
        await tidied(store)
        assert not found(path, "SECRET")
        assert found(path, "KEPT")
