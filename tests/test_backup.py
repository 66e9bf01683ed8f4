"""``legato backup``: a copy of what a store is at one moment, while it is written to."""

from __future__ import annotations

import asyncio
import stat
import sys
from pathlib import Path

import apsw
import pytest

from legato.errors import InvalidInput, StoreError
from legato.event import Event
from legato.log import Store
from legato.store.sqlite import SQLiteStore
from legato.store.sqlite_backup import backup
from processes import finished
from test_cli import SAFETY
from test_sqlite import begin, message, text

RUNS = 8


async def speaking(store: Store, session: str, over: asyncio.Event) -> int:
    """Append to a session without end; how many events its log has then."""
    appended = await begin(store, session)
    number = 0
    while not over.is_set():
        number += 1
        await appended.append(text(f"{number} "))
    return number


async def test_a_backup_under_load_ends_and_is_whole(tmp_path: Path) -> None:
    """While each session is written to without a pause: what it has of each is a beginning of its log."""
    store = SQLiteStore(str(tmp_path / "chat.db"))
    await store.open()
    over = asyncio.Event()
    writing = [asyncio.create_task(speaking(store, f"s{n}", over)) for n in range(RUNS)]
    while len(await sessions(store)) < RUNS or (await store.info("s0")).head < 300:  # noqa: ASYNC110
        await asyncio.sleep(0)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "legato", "backup", str(tmp_path / "copy.db"), "--store", f"sqlite:///{tmp_path}/chat.db"
    )
    assert await asyncio.wait_for(process.wait(), SAFETY) == 0
    over.set()
    await asyncio.gather(*writing)

    copy = SQLiteStore(str(tmp_path / "copy.db"))
    await copy.open()
    for session in [f"s{n}" for n in range(RUNS)]:
        head = (await copy.info(session)).head
        whole, copied = await everything(store, session), await everything(copy, session)
        assert head == len(copied) >= 2
        assert [event.json for event in copied] == [event.json for event in whole[: len(copied)]]
        assert len(whole) >= len(copied)
    await copy.close()
    await store.close()
    assert list(apsw.Connection(str(tmp_path / "copy.db")).execute("PRAGMA integrity_check")) == [("ok",)]
    assert stat.S_IMODE((tmp_path / "copy.db").stat().st_mode) == 0o600


async def sessions(store: Store) -> set[str]:
    return {info.session for info in (await store.sessions(limit=100)).infos}


async def everything(store: Store, session: str) -> list[Event]:
    found: list[Event] = []
    while page := await store.read(session, len(found)):
        found += page
    return found


async def test_a_store_without_a_server_is_copied_and_stays_as_it_is(tmp_path: Path) -> None:
    """And the copy can be served."""
    store = SQLiteStore(str(tmp_path / "chat.db"))
    await store.open()
    await (await begin(store)).append(message("q"))
    await store.close()
    before = (tmp_path / "chat.db").read_bytes()

    done = finished("legato", "backup", "copy.db", "--store", "sqlite:///chat.db", cwd=tmp_path)

    assert (done.returncode, done.stdout.split(":")[0]) == (0, "copy.db")
    assert (tmp_path / "chat.db").read_bytes() == before
    copy = SQLiteStore(str(tmp_path / "copy.db"))
    await copy.open()
    assert len(await copy.read("s", 0)) == 3
    await copy.close()


def test_a_backup_replaces_nothing_and_says_what_is_wrong(tmp_path: Path) -> None:
    """No file, a file that is there, a folder that is not, and what is no database."""
    (tmp_path / "there.db").write_bytes(b"mine")
    (tmp_path / "text.db").write_bytes(b"this is no database at all" * 100)
    with pytest.raises(InvalidInput, match="There is no file"):
        backup(tmp_path / "none.db", tmp_path / "copy.db")
    with pytest.raises(InvalidInput, match="there already"):
        backup(tmp_path / "text.db", tmp_path / "there.db")
    with pytest.raises(StoreError):
        backup(tmp_path / "text.db", tmp_path / "nowhere" / "copy.db")
    with pytest.raises(StoreError):
        backup(tmp_path / "text.db", tmp_path / "copy.db")
    for store in ("memory:", "sqlite:", "postgresql://x", "chat.db"):
        done = finished("legato", "backup", "copy.db", "--store", store, cwd=tmp_path)
        assert (done.returncode, "sqlite:///FILE" in done.stdout) == (2, True)

    assert (tmp_path / "there.db").read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.db", "there.db"]
