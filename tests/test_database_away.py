"""Nodes whose database is restarted, lies behind pgbouncer, or fails over to a replica that was behind: what may be
lost is what docs/deploy.md says, and whoever has seen it is told (R10).

``LEGATO_AWAY=1 pytest tests/test_database_away.py`` tries each way of a restart, and the whole contract of stores
behind pgbouncer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from databases import Postgres, pgbouncer, postgres, shared_postgres
from driving import Chat, data
from legato.agent import Agent, Turn
from legato.event import Draft, SessionCreated
from legato.log import Log, Store
from legato.server.app import Legato
from legato.sse import Decoder
from legato.store import open_store
from legato.testing import STORE_CHECKS, Driver
from legato.transcript import fold

psycopg = pytest.importorskip("psycopg", reason="needs legato[postgres]")
postgres_store = pytest.importorskip("legato.store.postgres")

SAFETY = 60.0
ALL = "LEGATO_AWAY" in os.environ
"""Whether to try all ways of a restart, and the whole contract behind pgbouncer; else some."""
WAYS = [("direct", signal.SIGINT), ("pgbouncer", signal.SIGQUIT)]
if ALL:
    WAYS += [("direct", signal.SIGQUIT), ("pgbouncer", signal.SIGINT)]
WORDS = 40


async def counting(turn: Turn) -> AsyncIterator[str]:
    """Says the message, and counts; in a further attempt from where it was."""
    words = [turn.message.text, *map(str, range(WORDS))]
    for word in words[fold(turn.events).text().count(" ") :]:
        yield word + " "
        await asyncio.sleep(0.02)


def answer(text: str) -> str:
    return " ".join([text, *map(str, range(WORDS))]) + " "


@contextlib.asynccontextmanager
async def nodes(url: str, count: int = 2) -> AsyncIterator[list[Chat]]:
    """One session at nodes with a store each."""
    async with contextlib.AsyncExitStack() as stack:
        chats = []
        for _ in range(count):
            app = Legato(open_store(url), agents=[Agent(counting, name="agent", on_crash="resume")], heartbeat=0.5)
            app.drain_on_signal, app.grace = False, 0.0
            chats.append(Chat(app, await stack.enter_async_context(Driver(app)), "s"))
        assert (await chats[0].driver.request("POST", "/api/sessions", json={"id": "s"})).status == 201
        yield chats


async def watch(chat: Chat, wanted: str, begun: asyncio.Event) -> tuple[str, list[int]]:
    """Read on, however often the stream ends or is refused, until so much has been said; text and ids.

    Begins anew where it is told to, as clients do.
    """
    text, ids, cursor, incarnation = "", list[int](), "", ""
    while True:
        headers = {"last-event-id": cursor} | ({"legato-incarnation": incarnation} if incarnation else {})
        async with chat.stream("client=legato&from=start", headers=headers) as stream:
            decoder = Decoder(last_event_id=cursor)
            if stream.headers.get("legato-cursor") == "reset":
                text, ids = "", []
            async for chunk in stream:
                if stream.status != 200:
                    continue
                incarnation = stream.headers["legato-incarnation"]
                for message in decoder.feed(chunk):
                    if message.event in ("connected", "heartbeat"):
                        continue
                    assert message.event != "error", message.data
                    ids.append(int(message.id))
                    text += data(message)["content"] if message.event == "content" else ""
                    if len(text) > 20:
                        begun.set()
                    if message.event == "complete" and len(text) >= len(wanted):
                        return text, ids
            cursor = decoder.last_event_id
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(("way", "how"), WAYS, ids=lambda each: getattr(each, "name", each))
async def test_a_restart_of_the_database_is_missed_by_nobody(way: str, how: signal.Signals) -> None:
    """In the middle of an answer that is read at both nodes: it goes on, whole, without an error."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgres(fsync="on"))
        url = server.url()
        if way == "pgbouncer":
            port = await asyncio.to_thread(stack.enter_context, pgbouncer(server))
            url = f"{url.replace(str(server.port), str(port))}?pooler=transaction"
        async with asyncio.timeout(SAFETY), nodes(url) as chats:
            begun = asyncio.Event()
            readers = [asyncio.create_task(watch(chat, answer("hi"), begun)) for chat in chats]
            await chats[0].send("hi")
            await begun.wait()
            await asyncio.to_thread(server.restart, how)
            for reader in readers:
                text, ids = await reader
                assert text == answer("hi")
                assert ids == sorted(set(ids))
            while (status := (await chats[1].send("again")).status) == 503:  # noqa: ASYNC110  # not back yet for it
                await asyncio.sleep(0.1)
            assert status == 202


async def test_who_reads_after_a_restart_knows_of_it_first() -> None:
    """So that no reader is given what comes after a loss as if it went on from what is lost. Whoever else could notice
    the restart is kept from it."""
    with postgres(fsync="on") as server:
        url = server.url()
        writing, reading = postgres_store.PostgresStore(url), postgres_store.PostgresStore(url)
        for store in (writing, reading):
            await store.open()
        try:
            await Log(writing, "s").append(Draft(SessionCreated("s")))
            assert len(await reading.read("s", 0)) == 1
            write, _, listen, _ = reading._tasks
            for task in (write, listen):
                task.cancel()
            await asyncio.gather(write, listen, return_exceptions=True)
            before = reading.incarnation
            await asyncio.to_thread(server.restart)
            async with asyncio.timeout(SAFETY):
                await Log(writing, "t").append(Draft(SessionCreated("t")))
            assert writing.incarnation != before
            assert len(await reading.read("t", 0)) == 1
            assert reading.incarnation == writing.incarnation
        finally:
            for store in (writing, reading):
                await store.close()


@pytest.mark.parametrize("listen", ["server", "none"])
async def test_the_contract_behind_pgbouncer(listen: str) -> None:
    """Of what is new it is told by the server itself, or looks for it."""
    server = shared_postgres()
    checks = STORE_CHECKS[:: 1 if ALL and listen == "server" else 7]
    with pgbouncer(server) as port:
        base = server.url().replace(str(server.port), str(port))
        heard = "none" if listen == "none" else server.url()

        def make(name: str, clock: Callable[[], float]) -> Store:
            schema = f"{listen[0]}_{name.lower()}"[:40]
            found: Store = postgres_store.PostgresStore(
                f"{base}?pooler=transaction&schema={schema}&listen={heard}", clock=clock
            )
            return found

        for check in checks:
            await check(make)


# A failover -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[tuple[Postgres, Postgres]]:
    """A server and its replica."""
    with postgres(fsync="on") as first, first.replica() as second:
        yield first, second


def ask(server: Postgres, query: str, *values: Any) -> Any:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        return connection.execute(query, values).fetchone()[0]


def catch_up(first: Postgres, second: Postgres) -> None:
    """Wait until the replica has all that the server has."""
    position = ask(first, "SELECT pg_current_wal_lsn()::text")
    until = time.monotonic() + SAFETY
    while not ask(second, "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn", position):
        assert time.monotonic() < until, position


async def told(chat: Chat, cursor: str, incarnation: str) -> str:
    """What a reader with this cursor is told of it."""
    headers = {"legato-incarnation": incarnation}
    async with chat.stream("client=legato", last=cursor, headers=headers) as stream:
        assert stream.status == 200
        return stream.headers["legato-cursor"]


async def available(chat: Chat, incarnation: str) -> None:
    """Wait until this node has found the new server."""
    store: Any = chat.app.store
    while store.incarnation == incarnation or store.trouble is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.02)


async def said(chat: Chat, text: str) -> tuple[str, str]:
    """Send, and read to the end of the answer: the run, and the cursor then."""
    sent = (await chat.send(text)).json()
    seen = await chat.follow(sent["cursor"], until=lambda message: message.event == "complete")
    return sent["runId"], seen[-1].id


@pytest.mark.parametrize("level", ["asynchronous", "synchronous"])
async def test_a_failover_loses_what_it_may_and_each_reader_is_told(
    level: str, pair: tuple[Postgres, Postgres]
) -> None:
    """To a replica that was behind: what had not come there is gone, for every dialect. To one that commits wait for:
    nothing is."""
    first, second = pair
    lost = level == "asynchronous"
    url = f"postgresql://legato:secret@127.0.0.1:{first.port},127.0.0.1:{second.port}/postgres"
    async with asyncio.timeout(SAFETY), nodes(url) as chats:
        here, there = chats
        kept_run, kept = await said(here, "kept")
        if lost:
            await asyncio.to_thread(catch_up, first, second)
            second.stop()
        else:
            with psycopg.connect(first.url(), autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                connection.execute("SELECT pg_reload_conf()")
            while ask(second, "SELECT status FROM pg_stat_wal_receiver") != "streaming":  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        run, last = await said(here, "perhaps")
        was = here.app.sessions.incarnation
        before = (await here.get("/events")).json()["events"]
        streams = [chat.stream("client=legato", last=last) for chat in chats]
        async with streams[0], streams[1]:
            first.stop(signal.SIGQUIT)
            if lost:
                await asyncio.to_thread(second.start)
            await asyncio.to_thread(second.promote)
            for chat in chats:
                await available(chat, was)
            for stream in streams:  # whoever has followed is cut off, and comes back with their cursor
                async for _ in stream:
                    pass
        gone = {"legato-incarnation": was}
        for chat in chats:
            assert await told(chat, kept, was) == "exact"
            assert await told(chat, last, was) == ("reset" if lost else "exact")
            missing = 404 if lost else 200
            for target in (f"/v1/responses/resp_{run}", f"/v1/responses/resp_{run}?stream=true&starting_after=3"):
                assert (await chat.driver.request("GET", target, headers=gone)).status == missing
            assert (await chat.driver.request("GET", f"/v1/responses/resp_{kept_run}")).status == 200
        _, new = await said(there, "new")  # whose offsets those had that are lost
        after = (await there.get("/events")).json()["events"]
        for chat in chats:
            assert await told(chat, last, was) == ("reset" if lost else "exact")
            assert await told(chat, new, there.app.sessions.incarnation) == "exact"
            seen = await chat.follow(kept, "client=legato", until=lambda message: message.id == new)
            ids = [int(message.id) for message in seen if message.event not in ("connected", "heartbeat")]
            assert ids == sorted(set(ids))
        texts = [event["data"]["text"] for event in after if event["type"] == "message.created"]
        assert texts == (["kept", "new"] if lost else ["kept", "perhaps", "new"])
        common = int(kept) if lost else int(last)
        assert after[:common] == before[:common]
