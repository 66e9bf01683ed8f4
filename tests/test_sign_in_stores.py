"""Keys and tickets on each kind of store, and on two nodes where the store is for several processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from databases import shared_postgres
from legato import Legato
from legato.auth import APIKeys
from legato.auth.keys import add_key, new_key, read_keys, revoke_key
from legato.server.stream import REVOKED
from legato.store import open_store
from legato.testing import Driver
from valkeys import shared_valkey


async def agent(turn: Any) -> AsyncIterator[str]:
    """Nothing much."""
    yield "x"


def urls(kind: str, folder: Path) -> list[str]:
    """The store of each node, which no other test empties."""
    if kind == "sqlite":
        return [f"sqlite:///{folder / 'chat.db'}"]
    return [
        f"{shared_postgres().url()}?schema=sign_in" if kind == "postgres" else shared_valkey().url("sign-in", "valkey")
    ] * 2


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "valkey"])
async def test_a_key_and_a_ticket_at_every_node(kind: str, tmp_path: Path) -> None:
    """A key is good at all, and its streams end at all within a second or so; of many who use one ticket, at whichever
    node, one is let in; one that is none stores nothing."""
    places = urls(kind, tmp_path)
    own = open_store(places[-1])
    async with AsyncExitStack() as stack:
        nodes, drivers = [], []
        for url in places:
            nodes.append(APIKeys())
            app = Legato(url, agents=[agent], auth=nodes[-1])
            app.drain_on_signal = False
            app.grace = 0.0
            drivers.append(await stack.enter_async_context(Driver(app)))
        store = app.store if kind == "sqlite" else own
        if kind != "sqlite":
            await own.open()
            stack.push_async_callback(own.close)

        token, key = new_key("alice")
        await add_key(store, key)
        assert key.id in [each.id for each in await read_keys(store)]
        async with asyncio.timeout(60):
            while not all(key.id in [each.id for each in node.keys] for node in nodes):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        headers = {"authorization": f"Bearer {token}"}
        begun = await drivers[0].request("POST", "/api/sessions", json={}, headers=headers)
        session = begun.json()["id"]

        ticket = (await drivers[0].request("POST", "/tickets", json={"sessionId": session}, headers=headers)).json()
        target = f"/stream?sessionId={session}&ticket="

        async def used(driver: Driver, text: str) -> int:
            async with driver.stream(target + text) as stream:
                return stream.status

        hour = ticket["ticket"].partition(".")[0]
        log = f".legato-tickets-{hour}"
        head = (await store.info(log)).head
        assert [await used(driver, f"{hour}.{'a' * 43}") for driver in drivers] == [401] * len(drivers)
        assert (await store.info(log)).head == head
        async with asyncio.timeout(60):
            statuses = await asyncio.gather(*(used(driver, ticket["ticket"]) for driver in drivers for _ in range(5)))
        assert sorted(statuses)[:2] == [200, 401]
        assert statuses.count(200) == 1

        async def read(driver: Driver) -> tuple[bytes, float]:
            async with driver.stream(f"/stream?sessionId={session}", headers=headers) as stream:
                while await stream.read():
                    opened.append(1)
                return stream.body, time.monotonic()

        opened: list[int] = []
        readers = [asyncio.create_task(read(driver)) for driver in drivers]
        async with asyncio.timeout(60):
            while len(opened) < len(drivers):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        revoked_at = time.monotonic()
        await revoke_key(store, key.id)
        async with asyncio.timeout(60):
            ends = await asyncio.gather(*readers)
        assert all(body.endswith(REVOKED) for body, _ in ends)
        print(f"{kind}: streams ended after", *(f"{at - revoked_at:.2f} s" for _, at in ends))
        for driver in drivers:
            assert (await driver.request("GET", "/api/sessions", headers=headers)).status == 401
