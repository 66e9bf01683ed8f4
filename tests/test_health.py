"""``/health/live`` and ``/health/ready``: what keeps messages from being taken, and what does not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from legato import Legato, probe
from legato.errors import Draining, StoreBusy, StoreError, StoreFull, StoreLocked, StoreLost, StoreReadOnly
from legato.store.memory import MemoryStore
from legato.testing import Driver


async def agent(turn: Any) -> str:
    return "x"


class Odd(MemoryStore):
    """A store with a trouble, or without an answer."""

    trouble: StoreError | None = None
    held: asyncio.Event | None = None
    error: Exception | None = None
    asked = 0

    async def open_runs(self, *, limit: int = 500) -> Any:
        self.asked += limit == 1
        if self.held is not None and limit == 1:
            await self.held.wait()
        if self.error is not None and limit == 1:
            raise self.error
        return await super().open_runs(limit=limit)


async def ready(driver: Driver) -> tuple[int, str, list[str]]:
    answer = await driver.request("GET", "/health/ready")
    assert ("retry-after" in answer.headers) == (answer.status == 503)
    body = answer.json()
    assert all(reason["message"].endswith(".") for reason in body["reasons"])
    return answer.status, body["status"], [reason["code"] for reason in body["reasons"]]


async def alive(driver: Driver) -> bool:
    return (await driver.request("GET", "/health/live")).json() == {"status": "alive"}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for what was asked a second ago."""
    monkeypatch.setattr(probe, "PROBE_EVERY", 0.0)


@pytest.mark.parametrize("kind", [StoreFull, StoreLost, StoreBusy, StoreReadOnly])
async def test_a_store_that_takes_nothing_is_told_with_its_reason(kind: type[StoreError]) -> None:
    """In words that name no file; the process lives, and is ready again by itself."""
    store = Odd()
    async with Driver(Legato(store, agents=[agent])) as driver:
        assert await ready(driver) == (200, "ready", [])
        store.trouble = kind("/secret/chat.db is away")
        assert await ready(driver) == (503, "unready", [kind.code])
        assert "/secret" not in (await driver.request("GET", "/health/ready")).text
        assert await alive(driver)
        store.trouble = None
        assert await ready(driver) == (200, "ready", [])


async def test_a_store_that_does_not_answer_is_not_ready(monkeypatch: pytest.MonkeyPatch, eager: None) -> None:
    """It says nothing of it, so it is asked: once, however many want to know and for how long it is silent."""
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.01)
    store = Odd()
    async with Driver(Legato(store, agents=[agent])) as driver:
        store.held, before = asyncio.Event(), store.asked
        found = await asyncio.gather(*(ready(driver) for _ in range(20)))
        assert set(map(str, found)) == {str((503, "unready", ["store_silent"]))}
        assert await ready(driver) == (503, "unready", ["store_silent"])
        assert store.asked == before + 1
        assert await alive(driver)
        store.held.set()
        await asyncio.sleep(0)
        store.held = None
        assert await ready(driver) == (200, "ready", [])


async def test_a_store_that_fails_is_not_ready(eager: None) -> None:
    """Also one that knows of no trouble of its own."""
    store = Odd()
    async with Driver(Legato(store, agents=[agent])) as driver:
        store.error = StoreError("the disk at /secret fails")
        assert await ready(driver) == (503, "unready", ["store_failed"])
        store.error = None
        assert await ready(driver) == (200, "ready", [])


async def test_a_second_look_is_spared() -> None:
    """Whoever asks within a second is told what the store has just said."""
    store = Odd()
    async with Driver(Legato(store, agents=[agent])) as driver:
        for _ in range(5):
            assert await ready(driver) == (200, "ready", [])
        assert store.asked == 1


async def test_every_reason_is_told(eager: None) -> None:
    """A server that stops with a full disk says both."""
    store = Odd()
    app = Legato(store, agents=[agent])
    async with Driver(app) as driver:
        app.runner.draining = True
        assert await ready(driver) == (503, "stopping", ["draining"])
        store.trouble = StoreFull("full")
        assert await ready(driver) == (503, "stopping", ["draining", "store_full"])


async def test_before_and_after_its_life(tmp_path: Path) -> None:
    """A server that waits for its store is alive and starts; one that has stopped says so."""
    path = f"sqlite:///{tmp_path}/log.db"
    first, second = Legato(path, agents=[agent]), Legato(path, agents=[agent])
    async with Driver(first) as driver:
        # Of one process a second opening would be refused at once, since it would wait for itself.
        second._app = second._build_without_life(_awaited())
        waiting = Driver(second, lifespan=False)
        assert await ready(waiting) == (503, "starting", ["starting"])
        assert await alive(waiting)
        assert await ready(driver) == (200, "ready", [])
    assert await ready(driver) == (503, "stopping", ["draining"])
    assert await alive(driver)
    assert StoreLocked.code == "store_locked"


async def test_nobody_signs_in_for_it() -> None:
    """A probe has no name. What it is told is no more than whether, and why not."""

    def nobody(request: object) -> None:
        return None

    async with Driver(Legato("memory:", agents=[agent], auth=nobody)) as driver:
        assert (await driver.request("GET", "/api/sessions")).status == 401
        assert await ready(driver) == (200, "ready", [])
        assert await alive(driver)
        assert (await driver.request("GET", "/ready")).json() == {"status": "ready"}


def _awaited() -> type[Draining]:
    from legato.server.adaptor import StoreAwaited

    return StoreAwaited
