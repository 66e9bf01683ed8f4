"""``legato gc``: what a store's file has free is given back, with a server at work or without one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import apsw
import pytest

from legato.errors import InvalidInput, StoreError, StoreLocked
from legato.store.sqlite_gc import collect
from opening import opened
from processes import finished
from test_backup import everything, sessions, speaking
from test_sqlite import begin

BYTES = 4_000_000


def leave_free(path: Path) -> None:
    """Let the file have free pages that no server knows of."""
    other = apsw.Connection(str(path))
    other.set_busy_timeout(10_000)
    other.execute("CREATE TABLE waste (data BLOB)")
    other.execute("INSERT INTO waste VALUES (zeroblob(?))", (BYTES,))
    other.execute("DROP TABLE waste")
    other.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
    other.close()


def free(path: Path) -> int:
    connection = apsw.Connection(str(path))
    try:
        return int(connection.pragma("freelist_count"))  # type: ignore[arg-type]
    finally:
        connection.close()


async def made(path: Path) -> None:
    async with opened(path) as store:
        await begin(store)


async def test_it_gives_back_while_a_server_writes(tmp_path: Path) -> None:
    """Piece by piece: whoever appends meanwhile loses nothing, and the server misses nothing of its file."""
    path = tmp_path / "chat.db"
    async with opened(path) as store:
        over = asyncio.Event()
        writing = asyncio.create_task(speaking(store, "s", over))
        leave_free(path)
        while not await sessions(store) or (await store.info("s")).head < 100:  # noqa: ASYNC110
            await asyncio.sleep(0)
        done = await asyncio.to_thread(finished, "legato", "gc", "--store", "sqlite:///chat.db", cwd=tmp_path)
        at = (await store.info("s")).head
        while (await store.info("s")).head < at + 100:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert store.trouble is None
        over.set()
        count = await writing
        texts = [getattr(event.fact, "text", "") for event in await everything(store, "s")]
        assert [text for text in texts if text.endswith(" ")] == [f"{number} " for number in range(1, count + 1)]
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.partition(": ")[2].partition(" bytes")[0].replace(",", "")) > BYTES // 2
    assert free(path) == 0


@pytest.mark.parametrize("url", ["sqlite:///chat.db", "sqlite:///./chat.db?durability=normal", "SQLITE:///chat.db"])
async def test_it_gives_back_without_a_server(tmp_path: Path, url: str) -> None:
    """And says how much; a second time there is nothing to do."""
    path = tmp_path / "chat.db"
    await made(path)
    leave_free(path)
    before = path.stat().st_size
    done = finished("legato", "gc", "--store", url, cwd=tmp_path)
    assert (done.returncode, path.stat().st_size < before - BYTES // 2) == (0, True)
    given = before - path.stat().st_size
    assert f"{given:,} bytes given back, {path.stat().st_size:,} left" in done.stdout
    assert collect(path).before == collect(path).after
    async with opened(path) as store:
        assert (await store.info("s")).head == 2


async def test_a_file_of_an_early_version_is_written_anew_when_no_server_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one has, it says what to do, and changes nothing."""
    monkeypatch.setattr("legato.store.sqlite_file.REWRITE_BYTES", 0)
    path = tmp_path / "chat.db"
    await made(path)
    other = apsw.Connection(str(path))
    other.pragma("auto_vacuum", 0)
    other.execute("VACUUM")
    other.close()
    leave_free(path)
    async with opened(path):
        with pytest.raises(StoreLocked, match=r"Stop the server first: .* is open in process"):
            collect(path)
    assert free(path) > 0
    found = collect(path)
    assert found.before - found.after > BYTES // 2
    assert free(path) == 0
    async with opened(path) as store:
        assert (await store.info("s")).head == 2


async def test_it_does_not_wait_for_ever_for_who_reads_what_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that there is a rest, and the server's own work goes on later."""
    monkeypatch.setattr("legato.store.sqlite_gc.PATIENCE_SECONDS", 0.2)
    path = tmp_path / "chat.db"
    await made(path)
    reader = apsw.Connection(str(path))
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM event").fetchall()
    leave_free(path)
    assert (await asyncio.to_thread(collect, path)).rest
    reader.close()
    assert not collect(path).rest


def test_what_is_no_store_is_left_alone(tmp_path: Path) -> None:
    """No file, a file of somebody else, no database, and stores without a file."""
    (tmp_path / "text.db").write_bytes(b"this is no database at all" * 100)
    other = apsw.Connection(str(tmp_path / "other.db"))
    other.execute("CREATE TABLE mine (x)")
    other.close()
    with pytest.raises(InvalidInput, match="There is no file"):
        collect(tmp_path / "none.db")
    for name in ("text.db", "other.db"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(StoreError):
            collect(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    for url in ("memory:", "sqlite:", "postgresql://x", "chat.db", "sqlite:///"):
        done = finished("legato", "gc", "--store", url, cwd=tmp_path)
        assert (done.returncode, "sqlite:///FILE" in done.stdout) == (2, True)
    assert finished("legato", "gc", cwd=tmp_path).returncode == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.db", "text.db"]
