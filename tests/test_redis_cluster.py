"""A cluster of Redis or Valkey whose nodes fail over to their replicas, and whose slots move, while people talk."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.crc import key_slot

from legato.agent import Agent, Turn
from legato.doorbell import Bell
from legato.errors import StoreLost
from legato.server.app import Legato
from legato.sse import Decoder
from legato.store.redis import RedisStore
from legato.testing import PATIENCE, Driver
from legato.torture.cluster import _targets, _through
from legato.torture.relay import Relay
from legato.transcript import fold
from test_redis import all_of, begun, patiently, settle_bells, stores, text, until
from valkeys import Valkey, valkey_cluster

SESSIONS, WORDS = 6, 30


@pytest.fixture(scope="module")
def cluster() -> Iterator[list[Valkey]]:
    """Three masters, and a replica of each: ``[n + 3]`` of ``[n]``."""
    with valkey_cluster(3, replicas=True, cluster_node_timeout="1000") as servers:
        yield servers


def name_of(server: Valkey) -> str:
    return server.ask("CLUSTER", "MYID").split(b"\r\n")[1].decode()


class Move:
    """A slot that moves from the master that has it to another one."""

    def __init__(self, servers: list[Valkey], slot: int) -> None:
        self.slot = slot
        self._servers = servers
        self._from = next(server for server in servers if self._is_at(server))
        self._to = next(server for server in servers if server is not self._from)

    def _is_at(self, server: Valkey) -> bool:
        rows = server.ask("CLUSTER", "NODES").decode().splitlines()
        (mine,) = [row for row in rows if "myself" in row]
        ranges = [part.split("-") for part in mine.split()[8:] if "[" not in part]
        return any(int(each[0]) <= self.slot <= int(each[-1]) for each in ranges)

    def begin(self) -> None:
        """From now on the other one takes what is new."""
        assert b"+OK" in self._to.ask("CLUSTER", "SETSLOT", self.slot, "IMPORTING", name_of(self._from))
        assert b"+OK" in self._from.ask("CLUSTER", "SETSLOT", self.slot, "MIGRATING", name_of(self._to))

    def keys(self, most: int) -> None:
        """Let some keys move, or all."""
        found = self._from.ask("CLUSTER", "GETKEYSINSLOT", self.slot, most).decode().split("\r\n")[2::2]
        if found:
            said = self._from.ask("MIGRATE", "127.0.0.1", self._to.port, "", 0, 5_000, "KEYS", *found)
            assert b"+OK" in said, said

    def end(self) -> None:
        """Tell everybody."""
        for server in [self._to, self._from, *(s for s in self._servers if s not in (self._to, self._from))]:
            assert b"+OK" in server.ask("CLUSTER", "SETSLOT", self.slot, "NODE", name_of(self._to))


async def test_a_cluster_behind_links(cluster: list[Valkey]) -> None:
    """Whose nodes give addresses of their own: with ``reach``, nothing goes to them, as ``legato torture`` needs it."""
    url = cluster[0].url("links", "redis+cluster")
    async with contextlib.AsyncExitStack() as stack:
        links = {each: await stack.enter_async_context(Relay([each])) for each in await _targets(url)}
        assert {port for _, port in links} >= {server.port for server in cluster[:3]}
        (store,) = await stack.enter_async_context(stores(_through(url, links), 1))
        await stack.enter_async_context(asyncio.timeout(PATIENCE))
        await asyncio.gather(*(store.append(f"s{n}", begun()) for n in range(20)))  # at each of them
        for link in links.values():
            link.cut()
        with pytest.raises(StoreLost):
            await store.append("s0", [text(0)])
        for link in links.values():
            link.mend()
        await patiently(lambda: store.append("s0", [text(1)]))


async def test_slots_that_move(cluster: list[Valkey], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of it, who writes waits; after it all goes on, and is heard of at other processes: also where it is
    the slot of their bell."""
    monkeypatch.setattr("legato.store.redis_reading.POLL_SECONDS", 2 * PATIENCE)
    url = cluster[0].url("moves", "redis+cluster")
    async with stores(url, 2) as (one, two), asyncio.timeout(PATIENCE):
        await one.append("s", begun())
        lease = await one.acquire("s", "r", owner="me", ttl=300)
        bell = Bell()
        two.doorbell.hang("s", bell)
        server, era = one._server, one.incarnation
        stored = 2
        for key in (server.keys("s", "state")[0], server.channel):
            move = Move(cluster[:3], key_slot(key))
            await asyncio.to_thread(move.begin)
            await asyncio.to_thread(move.keys, 2)
            storing = [one.append("s", [text(stored)], lease=lease)]
            reading = asyncio.create_task(patiently(lambda after=stored: two.read("s", after)))
            await asyncio.sleep(0.15)
            await asyncio.to_thread(move.keys, 1_000)
            await asyncio.to_thread(move.end)
            await asyncio.gather(*storing)
            await reading
            stored += 1
            await settle_bells(two, bell)
            await patiently(lambda number=stored: one.append("s", [text(number)], lease=lease))
            stored += 1
            assert await bell.wait(PATIENCE)
        assert [event.offset for event in await all_of(two, "s")] == list(range(1, stored + 1))
        assert one.incarnation == two.incarnation == era


async def counting(turn: Turn) -> AsyncIterator[str]:
    """Says the message, and counts; in a further attempt from where it was."""
    words = [turn.message.text, *map(str, range(WORDS))]
    for word in words[fold(turn.events).text().count(" ") :]:
        yield word + " "
        await asyncio.sleep(0.05)


async def watch(driver: Driver, session: str, begun: asyncio.Event) -> str:
    """Read to the end of the answer as clients do: back with the cursor, or anew where that is said."""
    text, cursor, incarnation = "", "", ""
    while True:
        headers = {"last-event-id": cursor} | ({"legato-incarnation": incarnation} if incarnation else {})
        target = f"/stream?sessionId={session}&client=legato&from=start"
        async with driver.stream(target, headers=headers) as stream:
            if stream.status == 200:
                decoder = Decoder(last_event_id=cursor)
                text = "" if stream.headers.get("legato-cursor") == "reset" else text
                incarnation = stream.headers["legato-incarnation"]
                async for chunk in stream:
                    for message in decoder.feed(chunk):
                        assert message.event != "error", message.data
                        if message.event == "content":
                            text += json.loads(message.data)["content"]
                            begun.set()
                        if message.event == "complete":
                            return text
                cursor = decoder.last_event_id
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["clean", "killed"])
async def test_a_master_fails_over_to_its_replica(how: str, cluster: list[Valkey]) -> None:
    """While answers are given: told to, or killed, where it is the one that the URL names. Every answer ends, with all
    its words, and each reader at each node has what the log has."""
    url = cluster[0].url(f"over-{how}", "redis+cluster")
    async with contextlib.AsyncExitStack() as stack, asyncio.timeout(PATIENCE):
        drivers, apps = [], []
        for _ in range(2):
            agents = [Agent(counting, on_crash="resume")]
            app = Legato(RedisStore(url), agents=agents, heartbeat=0.5, lease_ttl=3.0, grace=0.0)
            app.drain_on_signal = False
            apps.append(app)
            drivers.append(await stack.enter_async_context(Driver(app)))
        names = [f"s{number}" for number in range(SESSIONS)]
        for number, name in enumerate(names):
            driver = drivers[number % 2]
            assert (await driver.request("POST", "/api/sessions", json={"id": name})).status == 201
            sent = await driver.request("POST", f"/api/sessions/{name}/messages", json={"text": "hi"})
            assert sent.status < 300
        begun = [asyncio.Event() for _ in names]
        watching = [
            asyncio.create_task(watch(driver, name, event))
            for name, event in zip(names, begun, strict=True)
            for driver in drivers
        ]
        await asyncio.gather(*(event.wait() for event in begun))
        eras = {app.sessions.incarnation for app in apps}
        master, replica = (cluster[1], cluster[4]) if how == "clean" else (cluster[0], cluster[3])
        if how == "clean":
            assert b"+OK" in await asyncio.to_thread(replica.ask, "CLUSTER", "FAILOVER")
        else:
            master.kill()
        heard = await asyncio.gather(*watching)
        await until(lambda: b"role:master" in replica.ask("INFO", "replication"))
        await until(lambda: not any(app.store.trouble for app in apps))  # type: ignore[attr-defined]
        await until(lambda: not eras & {app.sessions.incarnation for app in apps})
        wanted = " ".join(["hi", *map(str, range(WORDS))]) + " "
        for number, name in enumerate(names):
            logs = [await all_of(app.store, name) for app in apps]
            assert logs[0] == logs[1]
            assert sum(event.fact.terminal for event in logs[0]) == 1
            said: Any = [event.fact for event in logs[0] if event.type == "text.delta"]
            assert "".join(fact.text for fact in said) == wanted
            assert heard[2 * number : 2 * number + 2] == [wanted] * 2
        assert await apps[0].store.open_runs() == []
