"""What a PostgreSQL store does to keep little: old deltas in few rows, read as before, and nothing that was deleted."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from databases import shared_postgres
from legato.errors import SessionExists, StoreLost
from legato.event import CallDelta, Draft, Event, OtherFact, RunCompleted, RunStarted, SessionDeleted, TextDelta
from legato.log import Log, Store, Subscription, Thinning
from legato.testing.place import SAID

psycopg = pytest.importorskip("psycopg", reason="needs legato[postgres]")
from legato.store.postgres_link import Link, sever  # noqa: E402
from legato.store.postgres_moving import sweep  # noqa: E402
from legato.store.postgres_packs import PACK_EVENTS, TAKE  # noqa: E402
from legato.store.postgres_sql import SWEPT_EVENTS  # noqa: E402
from test_postgres import NET, begin, message, opened, reach, text, url  # noqa: E402

_numbers = itertools.count()
ODD = ["word ", 'nul \0 "quoted" \\u0000 ', "[", "\u2028\ufffe", "\U0001f680", ""]


class Table:
    """The rows of a place, as the database has them."""

    def __init__(self, place: str) -> None:
        address, _, query = place.partition("?")
        self.schema = dict(each.split("=") for each in query.split("&"))["schema"]
        self.conn = psycopg.connect(address, autocommit=True)

    def ask(self, statement: str) -> Any:
        """The first value that a statement gives."""
        return self.conn.execute(statement.replace("event", f"{self.schema}.event")).fetchone()[0]

    def rows(self) -> int:
        """Of events."""
        return int(self.ask("SELECT count(*) FROM event"))


@pytest.fixture
def place() -> str:
    return url(shared_postgres(), f"packs_{next(_numbers)}")


@pytest.fixture
def table(place: str) -> Iterator[Table]:
    found = Table(place)
    yield found
    found.conn.close()


def done(run: str) -> Draft:
    return Draft(RunCompleted("stop", SAID), run)


async def say(store: Store, session: str, count: int, run: str = "r") -> None:
    """An answer of so many pieces, with a call in it, and one that is too large to be packed."""
    pieces = [Draft(TextDelta(0, 0, number, f"{number} {ODD[number % len(ODD)]}"), run) for number in range(count)]
    half = count // 2
    calls = [Draft(CallDelta(1, 0, "c", number, f"{number}"), run) for number in range(5)]
    large = [Draft(TextDelta(2, 0, 0, "x" * 5_000), run)]
    for some in (pieces[:half], calls, large, [Draft(OtherFact("x.y", {"a": 1}), run)], pieces[half:], [done(run)]):
        await store.append(session, some)


async def everything(store: Store, session: str = "s") -> list[tuple[Event, bytes]]:
    return [(event, event.json) async for event in Log(store, session).all()]


async def pack(store: Any, session: str = "s", limit: int = 400) -> int:
    """Have all of a log packed; how many were."""
    changed, after = 0, 0
    while after is not None:
        step: Thinning = await store.thin(session, after, limit)
        changed, after = changed + step.changed, step.after
    return changed


async def test_what_is_packed_is_read_as_it_was(place: str, table: Table) -> None:
    """Byte for byte, from every cursor and in pages of every length; also by who remembers nothing of it, and by who
    reads on meanwhile."""
    async with opened(place, place) as (here, there):
        await begin(here)
        await say(here, "s", 1_100)
        before = await everything(here)
        rows = table.rows()
        with Subscription(there, "s", 100, heartbeat=NET) as reader:
            seen = list(await reader.next())
            assert await pack(here) == 1_105
            here._others.forget()
            there._others.forget()
            while seen[-1].offset < len(before):
                seen += await reader.next()
        assert [(event, event.json) for event in seen] == before[100:]
        assert table.rows() < rows // 50
        for store in (here, there):
            assert await everything(store) == before
        for after in (*range(0, len(before), 53), len(before) - 1):
            for limit in (1, 60, 499):
                there._others.forget()
                page = await there.read("s", after, limit=limit)
                assert [(event, event.json) for event in page] == before[after : after + limit]
        whole = [event for event, _ in before if not event.fact.delta]
        assert await there.read("s", 0, deltas=False) == whole
        assert await pack(there) == 0


async def test_runs_that_are_open_stay_as_they_are(place: str, table: Table) -> None:
    """What is said now is not packed, and it goes on behind what is; a page that ends with the log is remembered."""
    async with opened(place, place) as (here, there):
        lease = await begin(here)
        await say(here, "s", 300)
        await here.append("s", [message("r2"), Draft(RunStarted("a", 1), "r2")])
        lease = await here.acquire("s", "r2", owner="me", ttl=30)
        await here.append(
            "s", [Draft(TextDelta(0, 0, 0, "a"), "r2"), Draft(TextDelta(0, 0, 1, "b"), "r2")], lease=lease
        )
        assert await pack(there) == 305
        there._others.forget()
        with Subscription(there, "s", 300, heartbeat=NET) as reader:
            seen = list(await reader.next())
            await here.append("s", [Draft(TextDelta(0, 0, 2, "c"), "r2")], lease=lease)
            while seen[-1].offset < (await here.info("s")).head:
                seen += await reader.next()
        assert seen == [event for event, _ in await everything(here)][300:]
        await here.append("s", [done("r2")], lease=lease)
        assert await pack(here, limit=10_000) == 3


async def test_two_who_pack_at_the_same_time(place: str, table: Table) -> None:
    """With pages that end in different places."""
    async with opened(place, place, place) as stores:
        await begin(stores[0])
        await say(stores[0], "s", 900)
        before = await everything(stores[0])
        packed = await asyncio.gather(
            *[pack(store, limit=limit) for store, limit in zip(stores, (70, 130, 301), strict=True)]
        )
        assert sum(packed) == 905
        stores[2]._others.forget()
        assert await everything(stores[2]) == before


@pytest.mark.parametrize("first", ["pack", "deletion"])
async def test_a_session_that_is_deleted_meanwhile(first: str, place: str, table: Table) -> None:
    """Nothing of it is left, whoever comes first."""
    async with opened(place, place) as (here, there):
        await begin(here)
        await say(here, "s", 600)

        async def delete() -> None:
            await there.append("s", [Draft(SessionDeleted())])

        doing: list[asyncio.Task[Any]] = []
        with table.conn.transaction():  # until both wait for the session, one behind the other
            table.conn.execute(f"SELECT FROM {table.schema}.session FOR UPDATE")
            for what in (lambda: pack(here), delete) if first == "pack" else (delete, lambda: pack(here)):
                doing.append(asyncio.create_task(what()))  # type: ignore[arg-type]
                await reach(lambda: table.ask("SELECT count(*) FROM pg_locks WHERE NOT granted") >= len(doing))
        await asyncio.gather(*doing)
        assert table.rows() == 1
        assert await pack(here) == 0
        here._others.forget()
        assert [event.type for event in await here.read("s", 0)] == ["session.deleted"]


async def test_a_link_that_breaks_in_the_middle(place: str, table: Table, monkeypatch: Any) -> None:
    """Nothing has happened, and the next time it is done."""
    async with opened(place) as (store,):
        await begin(store)
        await say(store, "s", 300)
        before = await everything(store)
        execute = Link.execute

        async def once(link: Link, conn: Any, statement: str, params: Any = ()) -> Any:
            done = await execute(link, conn, statement, params)
            if statement == TAKE:
                monkeypatch.undo()
                sever(conn)
            return done

        monkeypatch.setattr(Link, "execute", once)
        with pytest.raises(StoreLost):
            await pack(store)
        rows = table.rows()
        store._others.forget()
        assert await everything(store) == before
        assert await pack(store) == 305
        store._others.forget()
        assert await everything(store) == before
        assert table.rows() < rows // 10


async def test_a_pack_that_is_damaged(place: str, table: Table) -> None:
    """Costs what was in it, and nothing else."""
    async with opened(place) as (store,):
        await begin(store)
        await say(store, "s", 2 * PACK_EVENTS)
        await pack(store)
        last = table.ask("SELECT min(\"offset\") FROM event WHERE type = ''")
        table.conn.execute(f"UPDATE {table.schema}.event SET data = '[half' WHERE \"offset\" = {last}")
        store._others.forget()
        events = [event async for event in Log(store, "s").all()]
        assert [event.offset for event in events] == [1, 2, 3, *range(last, (await store.info("s")).head + 1)]


async def test_what_is_kept_does_not_grow_with_what_was(place: str, table: Table) -> None:
    """The room of what was packed, or deleted, is used again."""
    sizes = []
    async with opened(place) as (store,):
        for number in range(6):
            session = f"s{number}"
            await begin(store, session)
            await say(store, session, 2_000)
            if number == 0:
                loose = table.ask("SELECT pg_relation_size('event')")
            await pack(store, session, 2_000)
            table.conn.execute(f"VACUUM {table.schema}.event")  # as autovacuum does
            sizes.append(table.ask("SELECT pg_relation_size('event')"))
            if number == 3:
                await store.append("s0", [Draft(SessionDeleted())])
        packs = "FROM event WHERE type = ''"
        stored, said = (
            table.ask(f"SELECT sum(pg_column_size(data)) {packs}"),
            table.ask(f"SELECT sum(octet_length(data)) {packs}"),
        )
    assert sizes[-1] < 1.2 * loose
    assert stored < said / 6


async def test_long_sessions_are_taken_away_some_at_a_time(place: str, table: Table, monkeypatch: Any) -> None:
    """Nobody has to wait for that, and nobody sees what is left meanwhile; whichever node does it."""
    monkeypatch.setattr("legato.store.postgres.SWEEP_SECONDS", NET)
    async with opened(place, place) as (here, there):
        lease = await begin(here)
        for first in range(0, 2 * SWEPT_EVENTS, 2_000):
            await here.append("s", [text("r", "x", first + number) for number in range(2_000)], lease=lease)
        await begin(here, "other")
        with Subscription(there, "s", 1_000, heartbeat=NET) as reader:
            await there.read("s", 0)
            await here.append("s", [Draft(SessionDeleted())])
            assert table.rows() > 2 * SWEPT_EVENTS
            for store in (here, there):
                for after in (0, 700, 2 * SWEPT_EVENTS + 3):
                    assert [event.type for event in await store.read("s", after)] == ["session.deleted"]
            assert [event.type for event in await reader.next()] == ["session.deleted"]
        with pytest.raises(SessionExists):
            await begin(there)
        assert await here.thin("s", 0, 100) == (0, None)
        while await asyncio.gather(sweep(here._link), sweep(there._link)) != [False, False]:
            pass
        assert table.rows() == 1 + 3
        assert [event.type for event in await there.read("s", 0)] == ["session.deleted"]
        assert (await there.info("other")).head == 3


async def test_the_store_sweeps_by_itself(place: str, table: Table, monkeypatch: Any) -> None:
    """Also what a process before it has left, and after the database was away."""
    async with opened(place) as (store,):
        lease = await begin(store)
        for first in range(0, SWEPT_EVENTS, 2_500):
            await store.append("s", [text("r", "x", first + number) for number in range(2_500)], lease=lease)
        await store.append("s", [Draft(SessionDeleted())])
    assert table.rows() > SWEPT_EVENTS
    tries: list[int] = []
    ready = Link._ready

    async def away(link: Link) -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise psycopg.OperationalError("away")
        return await ready(link)

    monkeypatch.setattr(Link, "_ready", away)
    monkeypatch.setattr("legato.store.postgres.SWEEP_SECONDS", 0.01)
    async with opened(place):
        await reach(lambda: table.rows() == 1)


async def test_a_connection_that_has_died_meanwhile(place: str, table: Table) -> None:
    """What lay idle is tried before it is relied on."""
    async with opened(place) as (store,):
        await begin(store)
        await say(store, "s", 100)
        await everything(store)
        await store.thin("none", 0, 1)
        [idle] = [conn.info.backend_pid for conn in store._link._readers]
        table.conn.execute("SELECT pg_terminate_backend(%s)", (idle,))
        await reach(lambda: not table.ask(f"SELECT count(*) FROM pg_stat_activity WHERE pid = {idle}"))
        assert await pack(store) == 105
