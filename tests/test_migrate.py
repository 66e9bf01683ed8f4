"""``legato migrate``: all sessions of a store in another one, the same to the byte, whatever stops it on the way."""

# ruff: noqa: ASYNC221  # a test has its event loop for itself

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from facts import draft
from legato.errors import Conflict, InvalidInput, StoreBusy
from legato.event import Draft, Event
from legato.log import READ_LIMIT, Log, Portable, Store
from legato.store.memory import MemoryStore
from legato.store.moving import fingerprint, move, portable
from opening import opened
from processes import finished, running
from test_sqlite import DELETED, begin, message, text
from test_toys import SIMPLE

MANY = 40
SESSIONS = MANY + 3
"""With those that are not like the others."""


async def fill(store: Store) -> None:
    """Sessions of each kind: long, short, with runs that wait, with keys, deleted."""
    long = await begin(store, "long")
    for number in range(5):
        await long.append(*[text(f"{number} {part} ") for part in range(300)])
    await long.append(text("x" * 20_000), draft("x.of_later", {"any": ["thing", None]}, "r"))
    lease = await store.acquire("long", "r", owner="somebody", ttl=1_000.0)
    await long.append(text("fenced"), lease=lease, once="key")
    await store.release(lease)
    await (await begin(store, "gone")).append(DELETED)
    await Log(store, "mine").append(draft("session.created", {"title": "\u2028", "owner": "me"}))
    for number in range(MANY):
        log = await begin(store, f"s{number}")
        await log.append(message("next"), text(str(number)), once=f"send:{number}")


def digests(output: str) -> list[str]:
    return re.findall(r"sha256-sum ([0-9a-f]{64})", output)


async def everything(store: Portable) -> dict[str, tuple[object, list[Event]]]:
    return {
        record.session: (record, [event async for event in Log(store, record.session).all()])
        async for record in store.records()
    }


async def test_there_and_back_is_the_same(tmp_path: Path) -> None:
    """By the command, from file to file and back: the same digest on both sides, three times, and the same events."""
    async with opened(tmp_path / "a.db") as store:
        await fill(store)
        before = await everything(store)
    told = []
    for source, target in [("a", "b"), ("b", "c"), ("a", "c")]:
        done = finished("legato", "migrate", f"sqlite:///{source}.db", f"sqlite:///{target}.db", cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        told.append(done.stdout)

    assert len({digest for each in told for digest in digests(each)}) == 1
    assert [len(digests(each)) for each in told] == [2, 2, 2]
    assert [int(re.findall(r"(\d+) of the sessions were there", each)[0]) for each in told] == [0, 0, SESSIONS]
    assert f"{SESSIONS} sessions (1 deleted)" in told[0]
    async with opened(tmp_path / "c.db") as store:
        assert await everything(store) == before
        log = Log(store, "long")
        last = (await store.info("long")).head
        assert (await log.append(text("not again"), once="key")).repeated
        taken = await store.acquire("long", "r", owner="another", ttl=1.0)
        assert taken.epoch == 2
        assert [event.offset for event in (await log.append(text("on"), lease=taken)).events] == [last + 1]
    counted = apsw.Connection(str(tmp_path / "c.db")).execute("SELECT count(*) FROM session WHERE deleted = 2")
    assert list(counted) == [(0,)]


KILLED = """
import asyncio, os, signal, sys
from legato.store.moving import move
from legato.store.sqlite import SQLiteStore

where, count = sys.argv[3], int(sys.argv[4])

async def main():
    source, target = SQLiteStore(sys.argv[1]), SQLiteStore(sys.argv[2])
    await source.open()
    await target.open()
    before, calls = getattr(SQLiteStore, where), 0

    async def deadly(self, *arguments, **options):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return await before(self, *arguments, **options)

    setattr(SQLiteStore, where, deadly)
    await move(source, target)

asyncio.run(main())
"""


@pytest.mark.parametrize(("where", "count"), [("read", 3), ("record", 60), ("adopt", 20), ("read", 2 * SESSIONS)])
async def test_a_kill_on_the_way_is_made_good(where: str, count: int, tmp_path: Path) -> None:
    """Wherever the process is killed: what is there then is whole, and the same command brings the rest."""
    async with opened(tmp_path / "a.db") as store:
        await fill(store)
        before = await everything(store)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, "a.db", "b.db", where, str(count)], cwd=tmp_path, capture_output=True, text=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    async with opened(tmp_path / "b.db") as store:
        some = await everything(store)
    assert some.items() <= before.items()
    async with opened(tmp_path / "a.db") as source, opened(tmp_path / "b.db") as target:
        moved = await move(source, target)
        assert (moved.found, moved.source) == (len(some), moved.target)
        assert await everything(target) == before


async def test_a_target_with_something_else_is_refused() -> None:
    """Sessions that the source does not have, unless they may be there; and in any case one that differs."""
    source, target = MemoryStore(), MemoryStore()
    await begin(source)
    await begin(target, "other")
    with pytest.raises(Conflict, match=r"'other'.*does not have"):
        await move(source, target)
    assert await target.read("s", 0) == []
    moved = await move(source, target, merge=True)
    assert (moved.source.sessions, moved.target.sessions, moved.found) == (1, 1, 0)

    await Log(source, "s").append(text("more"))
    for merge in (False, True):
        with pytest.raises(Conflict, match=r"'s'" if merge else "'other'"):
            await move(source, target, merge=merge)


async def test_each_difference_is_seen() -> None:
    """One delta, a key, an epoch, a deletion more: each makes another fingerprint."""
    store = MemoryStore()
    log = await begin(store)
    seen = set()

    async def look() -> None:
        record = await store.record("s")
        assert record is not None
        seen.add((await fingerprint(store, record)).number())

    await look()
    await look()
    assert len(seen) == 1
    await log.append(text())
    await look()
    await log.append(text(), once="key")
    await look()
    await store.acquire("s", "r", owner="o", ttl=1.0)
    await look()
    await log.append(DELETED)
    await look()
    assert len(seen) == 5


async def test_a_source_that_is_in_use_is_refused() -> None:
    """One whose runs go on, before anything is moved."""
    source, target = MemoryStore(), MemoryStore()
    await begin(source, "another")
    await Log(source, "another").append(*[message(f"waits {number}") for number in range(READ_LIMIT)])
    await begin(source)
    await source.acquire("s", "r", owner="a server", ttl=60.0)
    with pytest.raises(StoreBusy, match="stop its servers"):
        await move(source, target)
    assert await everything(target) == {}


class ServedStore(MemoryStore):
    """Somebody appends to it before the read of this number."""

    def __init__(self) -> None:
        super().__init__()
        self.reads, self.at, self.draft = 0, 0, text()

    async def read(self, session: str, after: int, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        self.reads += 1
        if self.reads == self.at:
            await self.append(session, [self.draft])
        return await super().read(session, after, limit=limit, deltas=deltas)


@pytest.mark.parametrize("there", [False, True], ids=["new", "there before"])
@pytest.mark.parametrize("what", [text(), DELETED], ids=["more", "deleted"])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_a_source_that_is_written_to_meanwhile_is_said_to_be(at: int, what: Draft, there: bool) -> None:
    """Before a session is read, between its pages, once another one has been; whether it is taken or compared."""
    source, target = ServedStore(), MemoryStore()
    await begin(source)
    await begin(source, "z")
    if there:
        await move(source, target)
    source.reads, source.at, source.draft = 0, at, what
    with pytest.raises(StoreBusy, match="written to meanwhile"):
        await move(source, target)
    assert source.reads >= at


async def test_stores_that_cannot_are_named() -> None:
    """As one of somebody who has left the optional verbs out."""
    with pytest.raises(InvalidInput, match="SimpleStore has no records"):
        portable(SIMPLE.SimpleStore("unused.db"))


async def test_what_the_source_cannot_read_is_told(tmp_path: Path) -> None:
    """An event whose JSON is damaged is marked so, there and here, and counted."""
    async with opened(tmp_path / "a.db") as store:
        await begin(store)
    broken = apsw.Connection(str(tmp_path / "a.db"))
    broken.execute("UPDATE event SET data = 'no json' WHERE \"offset\" = 2")
    broken.close()
    done = finished("legato", "migrate", "sqlite:///a.db", "sqlite:///b.db", cwd=tmp_path)

    assert done.returncode == 0
    assert "1 event(s) were damaged" in done.stdout
    assert len(set(digests(done.stdout))) == 1


def test_it_says_what_is_wrong(tmp_path: Path) -> None:
    """A server at work, a file that is not there, the same store twice, a memory: one line, and nothing is made."""
    agent = tmp_path / "agent.py"
    agent.write_text('async def agent(turn):\n    yield "Hello."\n')
    with running("legato", "serve", "agent.py", "--port", "0", "--store", "sqlite:///a.db", cwd=tmp_path):
        locked = finished("legato", "migrate", "sqlite:///a.db", "sqlite:///b.db", cwd=tmp_path)
    assert (locked.returncode, "is open in process" in locked.stdout) == (1, True)
    for source, target, said in [
        ("sqlite:///none.db", "sqlite:///b.db", "no file none.db"),
        ("sqlite:///a.db", "sqlite:///a.db", "the same store"),
        ("sqlite:///a.db", "sqlite:///./a.db", "which is this one"),
        ("sqlite:///a.db", "memory:", "a store in memory"),
        ("memory:", "sqlite:///b.db", "a store in memory"),
        ("sqlite:///a.db", "nothing", "A store is"),
    ]:
        done = finished("legato", "migrate", source, target, cwd=tmp_path)
        assert done.returncode in (1, 2)
        assert said in done.stdout
        assert len(done.stdout.strip().splitlines()) == 1
    assert not (tmp_path / "none.db").exists()
    assert not (tmp_path / "b.db").exists()
