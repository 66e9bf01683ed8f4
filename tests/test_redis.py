"""The Redis store: the contract of stores on Valkey, on a cluster of three, and on Redis where it is installed; and
what several processes, lost answers, restarts and failovers do to it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis._parsers.base import BaseParser

from legato.agent import Agent, Turn
from legato.doorbell import Bell
from legato.errors import InvalidInput, StaleLease, StoreError, StoreFull, StoreLost
from legato.event import (
    CancelRequested,
    Draft,
    Event,
    MessageCreated,
    OtherFact,
    RunCompleted,
    RunStarted,
    Said,
    SessionCreated,
    SessionDeleted,
    SessionUpdated,
    TextDelta,
)
from legato.log import READ_LIMIT, Log, Store, Subscription, Take
from legato.machine import Lease
from legato.server.app import Legato
from legato.store import SCHEMES, open_store, redis_scripts
from legato.store.redis import RedisStore
from legato.store.redis_errors import is_lost, store_error
from legato.testing import PATIENCE, STORE_CHECKS, Driver, StoreCheck
from legato.torture.ports import free_port
from legato.torture.relay import Relay
from valkeys import (
    Valkey,
    ask,
    caught_up,
    kept,
    sentinel,
    shared_redis,
    shared_valkey,
    shared_valkey_cluster,
    valkey,
    valkey_cluster,
)

PLACES: dict[str, Callable[[str], str]] = {
    "valkey": lambda prefix: shared_valkey().url(prefix, "valkey"),
    "cluster": lambda prefix: shared_valkey_cluster()[0].url(prefix, "redis+cluster"),
    "redis": lambda prefix: shared_redis().url(prefix),
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("check", STORE_CHECKS, ids=lambda check: check.name)
async def test_the_contract(kind: str, check: StoreCheck) -> None:
    def make(name: str, clock: Callable[[], float]) -> Store:
        return RedisStore(PLACES[kind](name), clock=clock)

    await check(make)


# URLs -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "redis:host",
        "redis+tcp://host",
        "redis://host:port",
        "redis://host:70000",
        "redis://host/name",
        "redis://host/0?durability=full",
        "redis://host/0?durability=",
        "redis://host/0?replicas=-1",
        "redis://host/0?replicas=10",
        "redis://host/0?prefix=a:b",
        "redis://host/0?prefix={x}",
        "redis://host/0?timeout=3",
        "redis://host/0?ca=/etc/ssl/ca.pem",
        "redis://one,two/0",
        "redis+cluster://host/1",
        "redis+cluster://host/?replicas=1",
        "redis+cluster://host/?reach=one:1",
        "redis://host/0?reach=one:1=two:2",
        "redis+sentinel://host",
        "redis://[::1",
        "redis+cluster://[::1,two",
        "valkey+sentinel://ho[st/name",
        "rediss://host\u2100",
    ],
)
def test_urls_that_are_none(url: str) -> None:
    """They are refused before anything is connected, and the password of one is in no word of it."""
    for each in (url, url.replace("://", "://ann:s3cret@")):
        with pytest.raises(InvalidInput) as refused:
            open_store(each)
        assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("scheme", sorted(scheme for scheme in SCHEMES if "redis" in scheme or "valkey" in scheme))
def test_urls(scheme: str) -> None:
    store = open_store(f"{scheme}://ann:p%40ss@[::1]:7000{'/main' if 'sentinel' in scheme else ''}?prefix=mine-1")
    assert isinstance(store, RedisStore)


@pytest.mark.parametrize("command", [["backup", "new.db"], ["gc"], ["migrate", "sqlite:///no/such/folder.db"]])
def test_no_command_shows_a_password(command: list[str]) -> None:
    store = [*(["--store"] if command[0] != "migrate" else []), "redis://ann:s3cret@127.0.0.1:1/0"]
    done = subprocess.run(
        [sys.executable, "-m", "legato", *command, *store], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize("url", ["reddis://ann:s3cret@host/0", "postgres+x://ann:s3cret@host/0"])
def test_a_password_is_shown_to_nobody(url: str) -> None:
    """Not even where the URL is of no kind that is known."""
    with pytest.raises(InvalidInput) as refused:
        open_store(url)
    assert "s3cret" not in str(refused.value)


# What the server has to be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "options", "said"),
    [
        ({}, {"durability": "always"}, None),
        ({}, {"durability": "everysec"}, None),
        ({"appendfsync": "everysec"}, {"durability": "everysec"}, None),
        ({"appendfsync": "everysec"}, {"durability": "none"}, None),
        ({"appendfsync": "everysec"}, {}, "appendfsync is everysec"),
        ({"appendfsync": "everysec"}, {"durability": "always"}, "CONFIG SET appendfsync always"),
        ({"appendfsync": "no"}, {"durability": "everysec"}, "appendfsync is no"),
        ({"appendonly": "no"}, {"durability": "everysec"}, "appendonly is off"),
        ({"appendonly": "no"}, {}, "appendonly is off"),
        ({"maxmemory": "50mb", "maxmemory-policy": "allkeys-lru"}, {}, "noeviction"),
        ({"maxmemory": "50mb", "maxmemory-policy": "noeviction"}, {"durability": "always"}, None),
    ],
)
async def test_settings_are_looked_at(
    settings: dict[str, str], options: dict[str, str], said: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """What the options want is refused or had; what may be lost without one is a warning."""
    server = shared_settings()
    for name, value in {**server.settings, "maxmemory": "0", "maxmemory-policy": "noeviction", **settings}.items():
        if name != "save":
            server.ask("CONFIG", "SET", name, value)
    store = RedisStore(server.url(**options))
    refused = options and said
    with pytest.raises(StoreError) if refused or "noeviction" in (said or "") else contextlib.nullcontext() as error:
        await store.open()
    await store.close()
    heard = caplog.text + (str(error.value) if error is not None else "")
    assert said in heard if said else not caplog.records


@functools.cache
def shared_settings() -> Valkey:
    """A server whose settings are changed."""
    return kept(valkey())


# Several processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["valkey", "cluster"])
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    """Two stores of one place."""
    async with stores(PLACES[request.param](f"pair-{uuid.uuid4().hex[:8]}"), 2) as (one, two):
        yield one, two


@contextlib.asynccontextmanager
async def stores(url: str, count: int) -> AsyncIterator[list[RedisStore]]:
    found = [RedisStore(url) for _ in range(count)]
    async with contextlib.AsyncExitStack() as stack:
        for store in found:
            await store.open()
            stack.push_async_callback(store.close)
        yield found


def begun(run: str = "r") -> list[Draft]:
    return [Draft(SessionCreated("t")), message(run)]


def message(run: str) -> Draft:
    return Draft(MessageCreated(f"m-{run}", "user", "Hello"), run)


def text(number: int, run: str = "r") -> Draft:
    return Draft(TextDelta(0, 0, number, f"{number} "), run)


async def all_of(store: Store, session: str) -> list[Event]:
    return [event async for event in Log(store, session).all()]


async def test_two_stores_are_one_log(pair: tuple[RedisStore, RedisStore]) -> None:
    """What one has acknowledged the other one reads at once, and both give the same, also while both write."""
    one, two = pair
    await one.append("s", begun())
    for number in range(20):
        writer, reader = (one, two) if number % 2 else (two, one)
        stored = (await writer.append("s", [text(number)])).events[0]
        assert stored == (await reader.read("s", stored.offset - 1))[0]
        assert (await reader.info("s")).head == stored.offset

    async def write(store: RedisStore, who: int) -> None:
        for number in range(30):
            await store.append("s", [text(100 * who + number)])

    await asyncio.gather(*(write(store, who) for who, store in enumerate([one, two, one, two], 1)))
    events = await all_of(one, "s")
    assert events == await all_of(two, "s")
    assert [event.offset for event in events] == list(range(1, 143))
    for who in range(1, 5):
        mine = [e.fact.start for e in events if isinstance(e.fact, TextDelta) and e.fact.start // 100 == who]
        assert mine == [100 * who + number for number in range(30)]


async def test_commits_are_counted(pair: tuple[RedisStore, RedisStore]) -> None:
    """With the requests in each, and the time that it took."""
    one, _ = pair
    await one.append("s", begun())
    lease = await one.acquire("s", "r", owner="me", ttl=300)
    await asyncio.gather(*(one.append("s", [text(number)], lease=lease) for number in range(5)))
    figures = one.figures
    assert figures is not None
    assert figures.commits == figures.seconds.count == figures.sizes.count >= 3
    assert figures.sizes.sum >= 7
    assert (figures.failed, figures.seconds.sum > 0) == (0, True)


async def test_two_stores_claim_each_run_once(pair: tuple[RedisStore, RedisStore]) -> None:
    """And a lease that another store has taken since is stale."""
    one, two = pair
    await asyncio.gather(*(one.append(f"s{n}", begun()) for n in range(12)))
    taken = await asyncio.gather(*(s.claim(owner=o, ttl=300, limit=9) for s, o in ((one, "a"), (two, "b"))))
    assert sorted(lease.session for leases in taken for lease in leases) == sorted(f"s{n}" for n in range(12))
    old = next(lease for leases in taken for lease in leases)
    store, other, owner = (one, two, "b") if old.owner == "a" else (two, one, "a")
    old = await store.acquire(old.session, "r", owner=old.owner, ttl=0.01)
    late: list[Lease] = []
    while not late:
        late = [lease for lease in await other.claim(owner=owner, ttl=30, limit=20) if lease.session == old.session]
    assert late[0].epoch == old.epoch + 1
    await other.append(old.session, [Draft(RunStarted("a", 1), "r")], lease=late[0])
    with pytest.raises(StaleLease):
        await store.append(old.session, [text(0)], lease=old)


async def test_bells_ring_in_other_processes(pair: tuple[RedisStore, RedisStore]) -> None:
    """For what has grown, for what has grown from outside of runs, and for work; not for other sessions."""
    one, two = pair
    await one.append("s", begun())
    await one.append("t", begun())
    lease = await one.acquire("s", "r", owner="a", ttl=30)
    every, outside, other, work = Bell(), Bell(), Bell(), Bell()
    two.doorbell.hang("s", every)
    two.doorbell.hang("s", outside, outside=True)
    two.doorbell.hang("t", other)
    two.doorbell.hang_work(work)
    await settle_bells(two, every, outside, other, work)
    await one.append("s", [text(0)], lease=lease)
    assert await every.wait(PATIENCE)
    assert (await two.read("s", 2))[0].fact == text(0).fact
    assert not await outside.wait(0)
    await one.append("s", [Draft(CancelRequested(), "r")])
    assert await outside.wait(PATIENCE)
    assert not await work.wait(0)
    await one.release(lease)
    assert await work.wait(PATIENCE)
    assert not await other.wait(0)


@pytest.mark.parametrize(
    "drafts",
    [[Draft(SessionCreated(owner="a\0"))], [Draft(SessionCreated()), Draft(OtherFact("\ud800", {}))]],
    ids=["owner", "type"],
)
async def test_text_that_is_none_fails_nobody_else(drafts: list[Draft]) -> None:
    """It is refused before it comes into a group with what others have waiting."""
    async with stores(PLACES["valkey"]("text"), 1) as (store,):
        done = await asyncio.gather(
            store.append("s", drafts), store.append(uuid.uuid4().hex, begun()), return_exceptions=True
        )
        assert [type(each).__name__ for each in done] == ["InvalidInput", "Appended"]


async def test_a_message_that_cannot_be_read(caplog: pytest.LogCaptureFixture) -> None:
    """Is of another version, which may be there while a new one is rolled out: it rings for all that is listened to,
    and the connection stays."""
    async with stores(PLACES["valkey"]("junk"), 2) as (one, two):
        await one.append("s", begun())
        bell, work = Bell(), Bell()
        two.doorbell.hang("s", bell)
        two.doorbell.hang_work(work)
        await settle_bells(two, bell, work)
        two._reader.hear(b"of another version")
        assert await work.wait(0.0)
        assert two._reader.look.is_set()
        shared_valkey().ask("PUBLISH", one._server.channel, b"\x93of another version")
        await settle_bells(two, bell)
        await one.append("s", [text(0)])
        assert await bell.wait(PATIENCE)
        assert "not heard of" not in caplog.text


async def settle_bells(store: RedisStore, *bells: Bell) -> None:
    """What rings for a while after the beginning is over: the store has heard of the sessions that are listened to."""
    async with asyncio.timeout(PATIENCE):
        while not store._reader.hears or store._reader.look.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
    for bell in bells:
        bell.clear()


class Follower:
    """Follows a log as a crowd does: when the bell rings, with what is at hand; else with a read.

    Attributes:
        seen: the offsets of the events that it was given.
        at_hand, reads: how many rings found something at hand, or had to ask.
    """

    def __init__(self, store: RedisStore, session: str, until: int) -> None:
        self.subscription = Subscription(store, session, 0, heartbeat=PATIENCE)
        self.seen: list[int] = []
        self.at_hand = self.reads = 0
        self.over = asyncio.Event()
        self._until = until
        self._reading: asyncio.Task[None] | None = None
        self._again = False
        self.subscription.hang(self)
        self.ring()

    def ring(self) -> None:
        if self._reading is not None:
            self._again = True
        elif (events := self.subscription.peek()) is None:
            self._reading = asyncio.create_task(self._read())
        else:
            self.at_hand += bool(events)
            self._give(events)

    async def _read(self) -> None:
        self.reads += 1
        self._give(await self.subscription.look())
        self._reading = None
        if self._again:
            self._again = False
            self.ring()

    def _give(self, events: list[Event]) -> None:
        if events:
            self.seen += [event.offset for event in events]
            self.subscription.after = events[-1].offset
            if self.subscription.after >= self._until:
                self.over.set()


async def test_readers_follow_from_another_process(pair: tuple[RedisStore, RedisStore]) -> None:
    """Live, each event once and in order; and whoever is at the head finds it at hand."""
    await pair[0].append("s", begun())
    followers = [Follower(store, "s", 202) for store in pair for _ in range(2)]
    for number in range(200):
        await pair[number % 50 == 49].append("s", [text(number)])
    async with asyncio.timeout(PATIENCE):
        for follower in followers:
            await follower.over.wait()
            follower.subscription.take(follower)
            assert follower.seen == list(range(1, 203))
            assert follower.at_hand > follower.reads


async def test_a_cancel_is_heard_among_words(
    pair: tuple[RedisStore, RedisStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes from outside of a run rings for it, also where it has been read already for those who follow all."""
    monkeypatch.setattr("legato.store.redis_reading.POLL_SECONDS", PATIENCE)
    one, two = pair
    await one.append("s", begun())
    lease = await one.acquire("s", "r", owner="me", ttl=300)
    follower, outside = Follower(two, "s", 10_000), Bell()
    two.doorbell.hang("s", outside, outside=True)
    await settle_bells(two, outside)
    for number in range(40):
        outside.clear()
        await asyncio.gather(*(one.append("s", [text(10 * number + piece)], lease=lease) for piece in range(3)))
        await one.append("s", [Draft(CancelRequested(), "r")])
        assert await outside.wait(PATIENCE / 4)
    follower.subscription.take(follower)


async def test_a_lost_bell_costs_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for a message that never came: what is listened to is looked at."""
    monkeypatch.setattr("legato.store.redis_reading.POLL_SECONDS", 0.1)
    async with stores(PLACES["valkey"]("lost-bell"), 2) as (one, two):
        await one.append("s", begun())
        monkeypatch.setattr(two._reader, "hear", lambda data: None)
        with Subscription(two, "s", 2, heartbeat=PATIENCE) as subscription:
            next_one = asyncio.create_task(subscription.next())
            await settle_bells(two)
            await one.append("s", [text(0)])
            assert [event.offset for event in await next_one] == [3]


# Answers that are lost ------------------------------------------------------------------------------------------------


class Cut:
    """A way to a server on which it is chosen what gets through.

    Attributes:
        port: where it is entered.
        lose: how many answers that are to come do not.
        instead: what comes in their place, before the connection ends.
    """

    def __init__(self, port: int) -> None:
        self.lose = 0
        self.lost = 0
        self.instead = b""
        self.open = True
        self._to = port
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Cut:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.cut()

    def lead_to(self, port: int) -> None:
        """From now on to another server."""
        self._to = port
        self.cut()

    def cut(self) -> None:
        """End all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.open:
            writer.transport.abort()
            return
        self._writers.add(writer)  # so that what is cut while it is made leads nowhere
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._writers.add(to_writer)
        asked = b""

        async def answers() -> None:
            while data := await to_reader.read(65536):
                if self.lose and b"EVALSHA" in asked and b"probe" not in asked:
                    self.lose -= 1
                    self.lost += 1
                    writer.write(self.instead)
                    break
                writer.write(data)
            if self.instead:
                writer.close()  # which lets it through
            else:
                writer.transport.abort()

        answering = asyncio.create_task(answers())
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                asked = data
                to_writer.write(data)
        to_writer.transport.abort()
        await asyncio.gather(answering, return_exceptions=True)
        self._writers -= {writer, to_writer}


async def test_a_lost_answer_doubles_nothing() -> None:
    """Whatever the append was: with a key, with a lease taken along, at a head, or none of these; and whatever came in
    the place of the answer."""
    async with Cut(shared_valkey().port) as cut:
        url = f"redis://127.0.0.1:{cut.port}/?prefix=lost-answers"
        async with stores(url, 1) as (store,), stores(PLACES["valkey"]("lost-answers"), 1) as (other,):
            await store.append("s", [Draft(SessionCreated("t"))])
            for number in range(6):
                run = f"r{number}"
                take = Take(run, "me", 30)
                cut.lose = 1 + number % 2
                cut.instead = (b"", b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b":no number\r\n")[number % 3]
                begun = await store.append("s", [message(run), Draft(RunStarted("a", 1), run)], once=run, take=take)
                assert not begun.repeated
                assert begun.lease is not None
                for piece in range(3):
                    cut.lose = 1
                    stored = await store.append("s", [text(piece, run)], lease=begun.lease)
                    assert stored.events == await other.read("s", stored.events[0].offset - 1)
                cut.lose = 1
                end = Draft(RunCompleted("stop", Said("m", "", [])), run)
                await store.append("s", [end], lease=begun.lease, head=begun.events[-1].offset)
            events = await all_of(other, "s")
            assert cut.lost >= 6 * 5
    assert [event.offset for event in events] == list(range(1, 2 + 6 * 6))
    assert [event.fact.start for event in events if isinstance(event.fact, TextDelta)] == [0, 1, 2] * 6
    assert sum(event.fact.terminal for event in events) == 6


async def test_what_others_wrote_meanwhile() -> None:
    """An answer is lost, and another process writes before the append is made again: what became of it is known."""
    async with Cut(shared_valkey().port) as cut, stores(PLACES["valkey"]("meanwhile"), 1) as (other,):
        url = f"redis://127.0.0.1:{cut.port}/?prefix=meanwhile"
        async with stores(url, 1) as (store,):
            await store.append("s", begun())
            for number in range(5):
                cut.lose = 1
                mine = store.append("s", [text(number)])
                async with asyncio.timeout(PATIENCE):
                    while cut.lose:  # noqa: ASYNC110
                        await asyncio.sleep(0)
                theirs = await other.append("s", [text(100 + number)])
                assert (await mine).events[0].offset + 1 == theirs.events[0].offset
            starts = [e.fact.start for e in await all_of(other, "s") if isinstance(e.fact, TextDelta)]
    assert starts == [0, 100, 1, 101, 2, 102, 3, 103, 4, 104]


@pytest.mark.parametrize("way", ["up", "down"])
async def test_a_silent_link_holds_nobody_up_for_ever(way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No packet comes through, and no end. Who sends is told that nobody knows yet; a run waits. What was sent comes
    late, whether it had been done before or not, and nothing is stored twice."""
    monkeypatch.setattr("legato.store.redis_server.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("legato.store.redis_server.CONNECT_SECONDS", 0.5)
    monkeypatch.setattr("legato.store.redis_writer.UNKNOWN_SECONDS", 0.2)
    prefix = f"silent-{way}"
    async with Relay([("127.0.0.1", shared_valkey().port)]) as link:
        through = f"redis://127.0.0.1:{link.port}/?prefix={prefix}"
        async with stores(PLACES["valkey"](prefix), 1) as (other,), stores(through, 1) as (store,):
            await store.append("s", begun())
            await store.append("t", begun())
            lease = await store.acquire("t", "r", owner="me", ttl=300)
            await store.append("t", [Draft(RunStarted("a", 1), "r")], lease=lease)
            link.silence(way)
            sent = store.append("s", [message("r2")], once="key")
            running = store.append("t", [text(0)], lease=lease)
            async with asyncio.timeout(PATIENCE):
                with pytest.raises(StoreLost, match="Nobody knows yet"):
                    await sent
                assert store.trouble is not None
                with pytest.raises(StoreLost):
                    await store.read("s", 0)
                assert not running.over
                if way == "down":
                    assert len(await other.read("s", 0)) == 3
                link.mend()
                assert (await running).events[0].offset == 4
                again = await patiently(lambda: store.append("s", [message("r2")], once="key"))
            assert (again.repeated, again.events[0].offset) == (True, 3)
            assert [event.offset for event in await all_of(other, "s")] == [1, 2, 3]
            assert [event.offset for event in await all_of(other, "t")] == [1, 2, 3, 4]


# Servers that fail ----------------------------------------------------------------------------------------------------


class Forgotten:
    """What a store has said is to be forgotten: each time, whether something was lost."""

    def __init__(self, store: RedisStore) -> None:
        self.times: list[bool] = []
        store.doorbell.hang_forget(self.times.append)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_killed_server_has_what_it_acknowledged() -> None:
    """``kill -9`` in the middle of appends, twice, with appendfsync always: what was told is there, nothing is doubled,
    who waited for an answer is told what became of it, and no cursor is lost."""
    with valkey() as server:
        async with stores(server.url("kept"), 2) as (one, two):
            incarnations = [one.incarnation]
            await one.append("s", begun())
            lease = await one.acquire("s", "r", owner="me", ttl=1_000)
            forgotten = [Forgotten(one), Forgotten(two)]
            told: list[int] = []
            refused: set[int] = set()

            async def write(store: RedisStore, who: int, lease: Lease | None) -> None:
                for number in range(150):
                    try:
                        await store.append("s", [text(1_000 * who + number)], lease=lease)
                        told.append(1_000 * who + number)
                    except StoreError:
                        refused.add(1_000 * who + number)
                        await asyncio.sleep(0.05)

            writers = [asyncio.create_task(write(one, 1, lease)), asyncio.create_task(write(two, 2, None))]
            for goal in (60, 150):
                await until(lambda goal=goal: len(told) > goal)
                server.kill()
                await asyncio.sleep(0.02)
                server.start()
            await asyncio.gather(*writers)
            events = await all_of(two, "s")
            starts = [event.fact.start for event in events if isinstance(event.fact, TextDelta)]
            assert len(starts) == len(set(starts))
            assert set(told) == set(starts)
            assert not refused & set(starts)
            assert [event.offset for event in events] == list(range(1, len(events) + 1))
            await until(lambda: one.trouble is None and one.incarnation == two.incarnation)
            incarnations.append(one.incarnation)
            assert one.incarnation != incarnations[0]
            for offset in (1, 2, 30):
                assert await two.holds(incarnations[0], "s", offset)
            assert not await two.holds("1.another", "s", 1)
            assert all(each.times == [False] * len(each.times) and each.times for each in forgotten)


@contextlib.asynccontextmanager
async def failing_over() -> AsyncIterator[tuple[Cut, Cut, Valkey, Valkey]]:
    """The way to a primary, the way from its replica to it, and both; the replica has what the primary has."""
    with valkey() as primary, valkey() as replica:
        async with Cut(primary.port) as way, Cut(primary.port) as link:
            await asyncio.to_thread(replica.ask, "REPLICAOF", "127.0.0.1", link.port)
            await until(lambda: b"master_link_status:up" in replica.ask("INFO", "replication"))
            yield way, link, primary, replica


def fail_over(way: Cut, primary: Valkey, replica: Valkey) -> None:
    """The replica takes the primary's place."""
    replica.ask("REPLICAOF", "NO", "ONE")
    way.lead_to(replica.port)
    primary.kill()


async def test_a_failover_that_loses_the_end_is_told() -> None:
    """What the replica did not have is gone; cursors that lie in it are lost, all others go on; a run whose words are
    gone is nobody's; and whoever saw nothing of what was lost goes on as before."""
    async with failing_over() as (way, link, primary, replica):
        url = f"redis://127.0.0.1:{way.port}/?prefix=over"
        async with stores(url, 3) as (one, two, bystander):
            forgotten = [Forgotten(store) for store in (one, two, bystander)]
            await one.append("s", begun())
            await one.append("other", begun())
            lease = await one.acquire("s", "r", owner="me", ttl=1_000)
            await one.append("s", [Draft(RunStarted("a", 1), "r")], lease=lease)
            await one.append("s", [text(0)], lease=lease)
            await bystander.read("other", 0)
            await until(lambda: caught_up(primary, replica))
            link.open = False
            link.cut()
            await until(lambda: b"master_link_status:down" in replica.ask("INFO", "replication"))
            lost = await one.append("s", [text(1), text(2)], lease=lease)
            assert len(await two.read("s", 0)) == 6
            seen = two.incarnation
            fail_over(way, primary, replica)
            work = Bell()
            one.doorbell.hang_work(work)
            with pytest.raises(StaleLease):
                await patiently(lambda: one.append("s", [text(3)], lease=lease))
            assert await work.wait(PATIENCE)
            assert [event.offset for event in await two.read("s", 0)] == [1, 2, 3, 4]
            assert [await two.holds(seen, "s", offset) for offset in range(1, 7)] == [True] * 4 + [False] * 2
            (again,) = [taken for taken in await two.claim(owner="you", ttl=30, limit=9) if taken.session == "s"]
            await two.append("s", [text(1), text(9)], lease=again)
            await bystander.read("other", 0)
            assert [await one.holds(seen, "s", offset) for offset in (4, 5, 6)] == [True, False, False]
            assert await one.holds(two.incarnation, "s", 6)
            assert await all_of(one, "s") == await all_of(bystander, "s")
            assert (await all_of(one, "s"))[4:] != lost.events
            assert [each.times for each in forgotten] == [[True], [True], [False]]


async def patiently(doing: Callable[[], Awaitable[Any]]) -> Any:
    """What comes of it once the server can be reached."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await doing()
            except StoreError:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("durability", ["everysec", "always"])
async def test_nothing_is_acknowledged_before_replicas_have_it(
    durability: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With ``replicas=1``, in memory or on disk; while there is none, the store is in trouble."""
    with valkey() as primary, valkey() as replica:
        store = RedisStore(primary.url(replicas=1, durability=durability))
        await store.open()
        storing = store.append("s", begun())
        await until(lambda: store.trouble)
        assert await store.read("s", 0)  # which says nothing of replicas
        assert store.trouble
        assert not storing.over
        replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        async with asyncio.timeout(PATIENCE):
            assert len((await storing).events) == 2
        assert store.trouble is None
        said = [record.message for record in caplog.records]
        assert [sum(words in each for each in said) for words in ("nothing is acknow", "have it again")] == [1, 1]
        asked = b"cmdstat_waitaof" in primary.ask("INFO", "commandstats")
        assert asked is (durability == "always")
        await store.close()


async def test_who_waits_for_replicas_is_told_nothing_by_a_server_that_becomes_one() -> None:
    """What was written may be there, so it is neither acknowledged nor refused before that is known."""
    with valkey() as primary, valkey() as replica:
        store = RedisStore(primary.url(replicas=1))
        await store.open()
        storing = store.append("s", begun())
        await until(lambda: store.trouble)
        primary.ask("REPLICAOF", "127.0.0.1", free_port())  # where nobody is, so that it loses nothing
        await until(lambda: isinstance(store._writer and store._writer.trouble, StoreLost))
        assert not storing.over
        assert isinstance(store.append("t", begun()).error, StoreLost)
        primary.ask("REPLICAOF", "NO", "ONE")
        replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        async with asyncio.timeout(PATIENCE):
            stored = (await storing).events
        await until(lambda: store.trouble is None)
        assert [event.offset for event in await store.read("s", 0)] == [event.offset for event in stored] == [1, 2]
        assert (await store.append("s", [text(0)])).events[0].offset == 3
        await store.close()


async def test_closing_does_not_wait_for_a_dead_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for an answer then is told that nobody knows."""
    monkeypatch.setattr("legato.store.redis.CLOSE_SECONDS", 0.2)
    async with Cut(shared_valkey().port) as cut:
        store = RedisStore(f"redis://127.0.0.1:{cut.port}/?prefix=dead")
        await store.open()
        await store.append("s", begun())
        cut.lose, cut.open = 1, False
        storing = store.append("s", [text(0)])
        await until(lambda: cut.lost)
        async with asyncio.timeout(PATIENCE):
            await store.close()
        with pytest.raises(StoreError, match="before it was known"):
            await storing


@pytest.mark.parametrize("kind", ["gone", "full", "demoted"])
async def test_trouble(kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """While a server takes nothing, everybody is refused at once, and the store says why; then it goes on by itself.
    The log says both, once."""
    monkeypatch.setattr("legato.store.redis_writer.TEND_SECONDS", 0.1)
    with valkey() as server, valkey() as other:
        async with stores(server.url(), 1) as (store,):
            await store.append("s", begun())
            if kind == "gone":
                server.kill()
            elif kind == "full":
                server.ask("CONFIG", "SET", "maxmemory", "1")
            else:
                server.ask("REPLICAOF", "127.0.0.1", other.port)
            await until(lambda: store.trouble)
            error = store.trouble
            assert isinstance(error, StoreFull if kind == "full" else StoreLost)
            assert error.status in (503, 507)
            refused = store.append("s", [text(0)])
            assert refused.over
            assert isinstance(refused.error, type(error))
            if kind == "full":
                assert len(await store.read("s", 0)) == 2
                server.ask("CONFIG", "SET", "maxmemory", "0")
            elif kind == "gone":
                with pytest.raises(StoreLost):
                    await store.read("s", 0)
                server.start()
            else:
                server.ask("REPLICAOF", "NO", "ONE")
            await until(lambda: store.trouble is None)
            said = [record.message for record in caplog.records]
            assert [sum(words in each for each in said) for words in ("nothing can be", "written again")] == [1, 1]
            if kind != "demoted":  # which takes over what the other one has: nothing
                assert (await store.append("s", [text(0)])).events[0].offset == 3


async def test_a_connection_that_is_silent_is_no_dead_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who listens waits longer for a message than for any answer; and where its connection is cut, makes a new one."""
    monkeypatch.setattr("legato.store.redis_server.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("legato.store.redis_reading.SILENCE_SECONDS", 0.1)
    monkeypatch.setattr("legato.store.redis_reading.POLL_SECONDS", PATIENCE)
    async with stores(PLACES["valkey"]("silent"), 2) as (one, two):
        await one.append("s", begun())
        await settle_bells(two)
        await asyncio.sleep(0.5)
        assert two._reader.hears
        for number in range(2):
            with Subscription(two, "s", 2 + number, heartbeat=PATIENCE) as subscription:
                following = asyncio.create_task(subscription.next())
                await asyncio.sleep(0.1)
                await one.append("s", [text(number)])
                async with asyncio.timeout(PATIENCE):
                    assert [event.offset for event in await following] == [3 + number]
            shared_valkey().ask("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: not two._reader.hears)
            await until(lambda: two._reader.hears)


async def test_what_is_said_in_the_dark_is_found() -> None:
    """While a process hears nothing, it looks; and when it hears again, it has looked."""
    async with Cut(shared_valkey().port) as cut, stores(PLACES["valkey"]("dark"), 1) as (one,):
        url = f"redis://127.0.0.1:{cut.port}/?prefix=dark"
        async with stores(url, 1) as (two,):
            await one.append("s", begun())
            seen: list[int] = []

            async def follow() -> None:
                with Subscription(two, "s", 0, heartbeat=PATIENCE) as subscription:
                    while len(seen) < 42:
                        with contextlib.suppress(StoreError):
                            seen.extend(event.offset for event in await subscription.next())

            following = asyncio.create_task(follow())
            for number in range(40):
                if number % 10 == 5:
                    cut.cut()
                await one.append("s", [text(number)])
            async with asyncio.timeout(PATIENCE):
                await following
            assert seen == list(range(1, 43))


# What is kept ---------------------------------------------------------------------------------------------------------


async def test_answers_that_are_over_are_packed() -> None:
    """Their deltas take a fraction of the memory, and are read as before, from anywhere."""
    server = shared_valkey()
    async with stores(server.url("packed"), 2) as (store, other):
        await store.append("s", begun())
        for number in range(0, 2_000, 2):
            await store.append("s", [text(number), text(number + 1)])
            if number == 1_000:
                await store.append("s", [Draft(CancelRequested(), "r")])
        events = await all_of(other, "s")
        deltas, packs = store._server.keys("s", "deltas", "packs")
        before = size_of(server, deltas)
        await store.append("s", [Draft(RunStarted("a", 1), "r"), Draft(RunCompleted("stop", Said("m", "", [])), "r")])
        await until(lambda: server.ask("XLEN", deltas.decode()) == b":0\r\n")
        for limit in (1, 7, 500):
            for after in (0, 1, 2, 77, 1_000, 1_004, 2_001):
                page = await other.read("s", after, limit=limit)
                assert page
                assert page == events[after : after + len(page)] or after + len(page) > len(events)
        assert (await all_of(other, "s"))[: len(events)] == events
        assert [event.offset for event in await all_of(store, "s")] == list(range(1, 2_006))
        assert size_of(server, packs) < before / 4


async def test_readers_who_are_behind_share_blocks(pair: tuple[RedisStore, RedisStore]) -> None:
    """Wherever they begin and when, a block of a long log is read and decoded once, until the session is deleted."""
    store, other = pair
    await store.append("s", begun())
    await store.append("s", [text(number) for number in range(3 * READ_LIMIT)])
    afters = (0, 0, 1, 7, READ_LIMIT - 1, READ_LIMIT, 2 * READ_LIMIT - 3, 3 * READ_LIMIT)

    async def all_after(after: int) -> list[Event]:
        return [event async for event in Log(other, "s").all(after)]

    logs = await asyncio.gather(*map(all_after, afters)) + [await all_after(after) for after in afters]
    for log, after in zip(logs, afters * 2, strict=True):
        assert [event.offset for event in log] == list(range(after + 1, 3 * READ_LIMIT + 3))
    whole = logs[len(afters)]
    for log, after in zip(logs[len(afters) :], afters, strict=True):
        assert all(whole[after + place] is event for place, event in enumerate(log) if event.offset <= 3 * READ_LIMIT)
    assert all(one is two for one, two in zip(logs[0], logs[1], strict=True) if one.offset <= 3 * READ_LIMIT)

    await store.append("s", [Draft(SessionDeleted())])
    assert [event.type for event in await other.read("s", 0)] == ["session.deleted"]
    assert [event.type for event in await other.read("s", READ_LIMIT + 7)] == ["session.deleted"]


async def test_blocks_end_with_their_incarnation() -> None:
    """Where the server may have lost something, nothing is shown that was read before."""
    with valkey() as server:
        async with stores(server.url(), 2) as (store, other):
            await store.append("s", begun())
            await store.append("s", [text(number) for number in range(READ_LIMIT)])
            first = await other.read("s", 0)
            assert (await other.read("s", 0))[0] is first[0]
            before = other.incarnation
            server.ask("SCRIPT", "FLUSH")  # as if it had been started again
            await store.append("s", [text(READ_LIMIT)])

            again = await other.read("s", 0)
            assert other.incarnation != before
            assert again == first
            assert again[0] is not first[0]


def size_of(server: Valkey, key: bytes) -> int:
    return int(server.ask("MEMORY", "USAGE", key.decode(), "SAMPLES", 0)[1:])


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", StoreFull),
        ("READONLY You can't write against a read only replica.", StoreLost),
        ("LOADING Redis is loading the dataset in memory", StoreLost),
        ("MISCONF Errors writing to the AOF file: No space left on device", StoreLost),
        ("CLUSTERDOWN The cluster is down", StoreLost),
        ("MASTERDOWN Link with MASTER is down", StoreLost),
        ("NOREPLICAS Not enough good replicas to write.", StoreLost),
        ("BUSY Redis is busy running a script.", StoreLost),
        ("TRYAGAIN Multiple keys request during rehashing of slot", StoreLost),
        ("NOAUTH Authentication required.", StoreLost),
        ("WRONGPASS invalid username-password pair or user is disabled.", StoreLost),
        ("NOPERM this user has no permissions to run the 'evalsha' command", StoreError),
        ("ERR value is not an integer or out of range", StoreError),
    ],
)
def test_what_a_server_says(said: str, kind: type[StoreError]) -> None:
    """Each of its refusals is an error that says what to do, and that nothing was done."""
    refused = BaseParser.parse_error(said)
    error = store_error(refused, "redis://host")
    assert type(error) is kind
    assert not is_lost(refused)
    assert "redis://host" in error.message


# Who is let in --------------------------------------------------------------------------------------------------------


def rights() -> list[str]:
    """What docs/deploy.md lets the store's user do."""
    (rule,) = re.findall(r"ACL SETUSER legato (.*)", Path("docs/deploy.md").read_text("utf-8"))
    return [word.strip('"') for word in rule.split()]


@pytest.mark.parametrize("cluster", [False, True], ids=["server", "cluster"])
async def test_a_user_of_its_own(cluster: bool) -> None:
    """With the rights that the page on deploying gives it, and none besides; the password is in no error and no log."""
    servers = shared_valkey_cluster() if cluster else [shared_valkey()]
    for server in servers:
        assert b"+OK" in server.ask(
            "ACL", "SETUSER", "legato", *rights(), "resetkeys", "~mine:*", "resetchannels", "&mine:*"
        )
    scheme, port = "redis+cluster" if cluster else "redis", servers[0].port
    async with stores(f"{scheme}://legato:secret@127.0.0.1:{port}/?prefix=mine", 2) as (one, two):
        await one.append("s", begun(), once="key")
        lease = (await two.claim(owner="me", ttl=30, limit=1))[0]
        bell = Bell()
        two.doorbell.hang("s", bell)
        await settle_bells(two, bell)
        await one.append("s", [Draft(RunStarted("a", 1), "r"), text(0)], lease=lease)
        assert await bell.wait(PATIENCE)
        await one.append("s", [Draft(RunCompleted("stop", Said("m", "", [])), "r")], lease=lease)
        assert len(await all_of(two, "s")) == 5
        assert len((await two.sessions()).infos) == 1
        assert len([record async for record in two.records()]) == 1
        await one.tally("a", {"x": 1}, 5)
        assert await two.tally("b", {}, 5) == {"x": 1}
        await one.append("s", [Draft(SessionDeleted())])
    for url in (
        f"{scheme}://legato:wr0ng@127.0.0.1:{port}/?prefix=mine",
        f"{scheme}://legato:secret@127.0.0.1:{port}/",
    ):
        with pytest.raises(StoreError) as refused:
            await RedisStore(url).open()
        assert not {"wr0ng", "secret"} & set(re.findall(r"\w+", str(refused.value)))


async def test_sessions_are_deleted_when_memory_is_full() -> None:
    """Those that this process knows, and others; or nothing would ever make room."""
    with valkey() as server:
        url = server.url()
        async with stores(url, 2) as (one, two):
            for name in ("s", "t", "u"):
                await one.append(name, begun())
            server.ask("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(StoreFull):
                await one.append("s", [text(0)])
            await one.append("s", [Draft(SessionDeleted())])
            assert isinstance(one.trouble, StoreFull)
            await two.append("t", [Draft(SessionDeleted())])
            assert [event.type for event in await one.read("t", 0)] == ["session.deleted"]
            server.ask("SCRIPT", "FLUSH")  # as in a start, after which it is as full
        async with stores(url, 1) as (one,):
            await one.append("u", [Draft(SessionDeleted())])
            assert not (await one.sessions()).infos


@pytest.mark.parametrize("cluster", [False, True], ids=["server", "cluster"])
async def test_a_user_who_may_do_less(cluster: bool) -> None:
    """Is told so when the store is opened, and of which command: a script would be refused it in its middle."""
    servers = shared_valkey_cluster() if cluster else [shared_valkey()]
    scheme = "redis+cluster" if cluster else "redis"
    speak = ["spublish", "ssubscribe"] if cluster else ["publish", "subscribe"]
    scripts = "".join(each for each in vars(redis_scripts).values() if isinstance(each, str))
    for command in sorted(
        {*re.findall(r"redis\.call\('(\w+)'", scripts), *speak, "EXPIRE", "HDEL", "HGETALL", "HSETNX"}
    ):
        for server in servers:
            assert b"+OK" in server.ask("ACL", "SETUSER", "less", "on", ">pw", "~*", "&*", "+@all", f"-{command}")
        with pytest.raises(StoreError, match=f"(?i){command}"):
            await RedisStore(servers[0].url(scheme=scheme).replace("//", "//less:pw@")).open()
    for server in servers:
        server.ask("ACL", "DELUSER", "less")


async def test_packs_are_made_when_memory_is_full() -> None:
    """For they are what gives some back."""
    with valkey() as server:
        async with stores(server.url(), 1) as (store,):
            await store.append("s", begun())
            lease = (await store.claim(owner="me", ttl=300, limit=1))[0]
            drafts = [Draft(RunStarted("a", 1), "r"), *(text(n) for n in range(500))]
            await store.append("s", drafts, lease=lease)
            before = await all_of(store, "s")
            server.ask("CONFIG", "SET", "maxmemory", "1")
            await store._packer.pack("s", before[-1].offset)
            deltas, packs = store._server.keys("s", "deltas", "packs")
            assert [server.ask("EXISTS", key.decode()) for key in (deltas, packs)] == [b":0\r\n", b":1\r\n"]
            server.ask("CONFIG", "SET", "maxmemory", "0")
            assert await all_of(store, "s") == before


async def test_tls(tmp_path: Path) -> None:
    """With a certificate that is checked, by an authority that the URL names; and with none that is not."""
    trustme = pytest.importorskip("trustme", reason="Needs trustme: pip install trustme")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("There is no redis-server with TLS here (on Debian: apt install redis-server).")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("localhost")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    port = free_port()
    files = {name: str(tmp_path / f"{name.rpartition('_')[2]}.pem") for name in ("tls_key", "tls_cert", "tls_ca")}
    settings = {"tls-port": str(port), "tls-cert-file": files["tls_cert"], "tls-key-file": files["tls_key"],
                "tls-ca-cert-file": files["tls_ca"], "tls-auth-clients": "no"}  # fmt: skip
    with valkey(program, **settings):
        async with stores(f"rediss://localhost:{port}/?ca={files['tls_ca']}", 2) as (one, two):
            await one.append("s", begun())
            assert len(await two.read("s", 0)) == 2
        by_a_link = f"rediss://{{}}:1/?ca={files['tls_ca']}&reach={{}}:1=127.0.0.1:{port}"
        async with stores(by_a_link.format("localhost", "localhost"), 1) as (store,):
            assert len(await store.read("s", 0)) == 2
        wrong = by_a_link.format("elsewhere", "elsewhere")
        for url in (f"rediss://localhost:{port}/", f"rediss://127.0.0.1:{port}/?ca={files['tls_ca']}", wrong):
            with pytest.raises(StoreError):
                await RedisStore(url).open()


async def test_sentinels_say_who_is_the_primary(tmp_path: Path) -> None:
    """At the beginning, and after a failover that they have made."""
    with valkey() as primary, valkey(appendonly="no") as replica:
        replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        port = free_port()
        conf = tmp_path / "sentinel.conf"
        conf.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor main 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000\n"
        )
        with sentinel(conf, port):
            await until(lambda: b"num-slaves\r\n$1\r\n1" in ask(port, "SENTINEL", "MASTER", "main"))
            store = RedisStore(f"redis+sentinel://127.0.0.1:{port}/main")
            await patiently(store.open)
            await store.append("s", begun())
            await until(lambda: caught_up(primary, replica))
            primary.kill()
            stored = await patiently(lambda: store.append("s", [text(0)], once="key"))
            assert [event.offset for event in stored.events] == [3]
            assert b"role:master" in replica.ask("INFO", "replication")
            await store.close()


@pytest.mark.parametrize("on_crash", ["fail", "retry", "resume"])
async def test_readers_of_what_a_failover_lost_are_told(on_crash: Any) -> None:
    """Over HTTP: they are cut off, told when they come back, and see what the log has; the run goes on from that, or
    ends, as its agent says."""
    attempts: list[int] = []
    go = {word: asyncio.Event() for word in ("two ", "end")}

    async def counts(turn: Turn) -> AsyncIterator[str]:
        attempts.append(turn.attempt)
        said = "".join(event.data["text"] for event in turn.events if event.type == "text.delta")
        for word in ("one ", "two ", "three ", "end")[len(said.split()) if on_crash == "resume" else 0 :]:
            if word in go:
                await go[word].wait()
            yield word
            await turn.stored()

    async with failing_over() as (way, link, primary, replica):
        store = RedisStore(f"redis://127.0.0.1:{way.port}/")
        app = Legato(store, agents=[Agent(counts, on_crash=on_crash)])
        async with Driver(app) as driver, asyncio.timeout(PATIENCE):
            await driver.request("POST", "/api/sessions", json={"id": "s"})
            await driver.request("POST", "/api/sessions/s/messages", json={"text": "hi"})
            async with driver.stream("/stream?sessionId=s&client=legato") as stream:
                was = stream.headers["legato-incarnation"]
                async for message in stream.messages():
                    last = message.id
                    if "one" in message.data:
                        await until(lambda: caught_up(primary, replica))
                        link.open = False
                        link.cut()
                        await until(lambda: b"master_link_status:down" in replica.ask("INFO", "replication"))
                        go["two "].set()
                    if "three" in message.data:
                        break
                fail_over(way, primary, replica)
                go["end"].set()
                assert [message async for message in stream.messages() if message.event != "heartbeat"] == []
            named = {"last-event-id": last or "", "legato-incarnation": was}
            told, now = "reset", was
            while now == was:
                assert told == "reset"
                told, now = await patiently_opened(driver, named)
            assert told == "reset"
            over = False
            while not over:  # a node that hears of it late cuts its readers off once more
                seen = []
                async with driver.stream("/stream?sessionId=s&client=legato&from=start") as stream:
                    async for message in stream.messages():
                        seen.append(message)
                        if over := message.event in ("complete", "error"):
                            break
            texts = "".join(json.loads(message.data)["content"] for message in seen if message.event == "content")
            again = {"fail": "", "retry": "one two three end", "resume": "two three end"}[on_crash]
            assert texts == "one " + again
            assert attempts == ([1] if on_crash == "fail" else [1, 2])


@pytest.mark.parametrize("first", ["writer", "listener"])
async def test_a_loss_that_two_find_out_ends_one_era(first: str) -> None:
    """Who writes, and who listens again, at the same moment: what was known before is what both go by."""
    async with (
        failing_over() as (way, link, primary, replica),
        stores(f"redis://127.0.0.1:{way.port}/", 1) as (store,),
        asyncio.timeout(PATIENCE),
    ):
        await store.append("s", begun())
        await until(lambda: caught_up(primary, replica))
        link.open = False
        link.cut()
        await until(lambda: b"master_link_status:down" in replica.ask("INFO", "replication"))
        await store.append("s", [Draft(SessionUpdated({"lost": True}))])
        forgotten, eras = Forgotten(store), store._eras
        known, era = eras.known(0), await eras.of(0)
        assert known is not None
        fail_over(way, primary, replica)
        own = store._server.key(0, "era")
        place = await patiently(lambda: store._server.do(own, "HMGET", own, "n", "count"))
        assert int(place[1]) < known[1]

        async def listen() -> None:
            await eras.meet(0, known, *place)

        async def write() -> None:
            await eras.enter(0)

        await (write() if first == "writer" else listen())
        await (listen() if first == "writer" else write())
        assert await eras.enter(0) == era + 1
        assert forgotten.times == [True]


async def test_an_era_of_others_is_no_loss() -> None:
    """A server that is started again, after an era that began elsewhere, as where another node of a cluster was."""
    with valkey() as server:
        async with stores(server.url(), 1) as (store,), asyncio.timeout(PATIENCE):
            await store.append("s", begun())
            forgotten, era, eras = Forgotten(store), await store._eras.of(0), store._server.key("era", "eras")
            assert await store._server.run(redis_scripts.BEGIN, [eras], str(era), str(era + 1), "elsewhere")
            server.ask("SCRIPT", "FLUSH")
            await store.append("s", [Draft(SessionUpdated({"kept": True}))])
            assert await store._eras.of(0) == era + 2
            assert forgotten.times == [False]


async def patiently_opened(driver: Driver, headers: dict[str, str]) -> tuple[str, str]:
    """What a stream says of its cursor and incarnation, once there is one."""
    while True:
        async with driver.stream("/stream?sessionId=s", headers=headers) as stream:
            if stream.status == 200:
                return stream.headers["legato-cursor"], stream.headers["legato-incarnation"]
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("kind", ["failover", "flushed"])
async def test_who_only_reads_sees_that_something_is_lost(kind: str) -> None:
    """Nobody has to write for it: the server has been written to less often than was known."""
    async with failing_over() as (way, link, primary, replica):
        url = f"redis://127.0.0.1:{way.port}/"
        async with stores(url, 1) as (store,):
            await store.append("s", begun())
            await until(lambda: caught_up(primary, replica))
            forgotten, was = Forgotten(store), store.incarnation
            link.open = False
            link.cut()
            await until(lambda: b"master_link_status:down" in replica.ask("INFO", "replication"))
            await store.append("s", [text(0)])
            if kind == "failover":
                fail_over(way, primary, replica)
            else:
                primary.ask("FLUSHALL")
            events = await patiently(lambda: store.read("s", 0))
            assert len(events) == (2 if kind == "failover" else 0)
            assert forgotten.times == [True]
            assert store.incarnation != was
            assert [await store.holds(was, "s", offset) for offset in (2, 3)] == [kind == "failover", False]


async def test_a_node_of_a_cluster_that_is_killed_comes_back() -> None:
    """With the sessions of the others nothing happens that does not end; those of its own go on."""
    with valkey_cluster(3, cluster_node_timeout="500") as servers:
        async with stores(servers[0].url("node", "redis+cluster"), 2) as (one, two):
            names = [f"s{number}" for number in range(30)]
            await asyncio.gather(*(one.append(name, begun()) for name in names))
            forgotten = Forgotten(two)
            servers[1].kill()
            writing = [patiently(lambda name=name: one.append(name, [text(0)], once="key")) for name in names]
            storing = asyncio.gather(*writing)
            await until(lambda: one.trouble)
            servers[1].start()
            async with asyncio.timeout(PATIENCE):
                await storing
                for name in names:
                    assert len(await patiently(lambda name=name: all_of(two, name))) == 3
            assert set(forgotten.times) <= {False}
