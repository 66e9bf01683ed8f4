"""Bell, doorbell, subscription and log: how reading follows writing. Races are built, not waited for."""

from __future__ import annotations

import asyncio

import pytest

from facts import draft
from legato.doorbell import Bell, Doorbell
from legato.errors import SessionNotFound
from legato.event import Draft, Event, Offset
from legato.log import READ_LIMIT, Log, Storing, Subscription
from legato.store.memory import MemoryStore

NEVER = 3_600.0
NET = 10.0
"""Seconds after which a wait counts as endless; a heartbeat of NEVER would end it in an hour."""


async def filled(count: int = 3) -> Log:
    log = Log(MemoryStore(), "s")
    await log.append(draft("session.created", {}), draft("message.created", {}, "r"))
    for number in range(count - 2):
        await log.append(text(number))
    return log


def text(number: int) -> Draft:
    return draft("text.delta", {"part": 0, "step": 0, "start": number, "text": "x"}, "r")


def offsets(events: list[Event]) -> list[Offset]:
    return [event.offset for event in events]


# Bell


async def test_bell_remembers() -> None:
    """A ring before the wait ends it at once."""
    bell = Bell()
    bell.ring()

    assert await bell.wait(NEVER)


async def test_bell_wakes() -> None:
    """A ring during the wait ends it."""
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(NEVER))
    await asyncio.sleep(0)
    bell.ring()
    bell.ring()

    assert await asyncio.wait_for(waiting, NET)


async def test_bell_forgets() -> None:
    """After ``clear`` the earlier rings are forgotten, and the wait ends by time."""
    bell = Bell()
    bell.ring()
    bell.clear()

    assert not await bell.wait(0.0)


async def test_bell_can_be_waited_on_again() -> None:
    """A wait that was cancelled, or ended by time, leaves the bell as it was."""
    bell = Bell()
    waiting = asyncio.create_task(bell.wait(NEVER))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    bell.ring()

    assert await bell.wait(0.0)


# Doorbell


def test_doorbell_rings_for_its_session() -> None:
    """All bells of a session ring, and no others."""
    doorbell, bells = Doorbell(), [Bell(), Bell(), Bell()]
    for bell, session in zip(bells, "aab", strict=True):
        doorbell.hang(session, bell)
    doorbell.ring("a")
    doorbell.ring("nobody listens")

    assert [True, True, False] == [bell._rung for bell in bells]


@pytest.mark.parametrize(("outside", "rung"), [(True, True), (False, False)])
def test_doorbell_outside(outside: bool, rung: bool) -> None:
    """A bell hung up for outside rings only for appends from outside."""
    doorbell, bell = Doorbell(), Bell()
    doorbell.hang("a", bell, outside=True)
    doorbell.ring("a", outside=outside)

    assert rung == bell._rung


def test_doorbell_takes_down() -> None:
    """A bell that was taken away does not ring, and nothing of it is kept; taking it again does no harm."""
    doorbell, bell = Doorbell(), Bell()
    doorbell.hang("a", bell)
    assert 1 == doorbell.listening("a")
    doorbell.take("a", bell)
    doorbell.take("a", bell)
    doorbell.ring("a")

    assert not bell._rung
    assert 0 == doorbell.listening("a")
    assert {} == doorbell._bells


# Subscription


async def test_subscription_replays_then_follows() -> None:
    """What is there comes at once, in batches of ``limit``; what is appended later comes when it is."""
    log = await filled(5)
    with Subscription(log.store, "s", 1, heartbeat=NEVER, limit=3) as subscription:
        assert [2, 3, 4] == offsets(await subscription.next())
        assert [5] == offsets(await subscription.next())
        following = asyncio.create_task(subscription.next())
        await asyncio.sleep(0)
        assert not following.done()
        await log.append(text(9))

        assert [6] == offsets(await asyncio.wait_for(following, NET))
        assert 6 == subscription.after


async def test_subscription_beyond_the_head() -> None:
    """A subscription that begins beyond the head waits for what is beyond its offset."""
    log = await filled(3)
    with log.subscribe(4, heartbeat=NEVER) as subscription:
        following = asyncio.create_task(subscription.next())
        await log.append(text(1))
        await log.append(text(2))

        assert [5] == offsets(await asyncio.wait_for(following, NET))


async def test_heartbeat_is_an_empty_batch() -> None:
    """After ``heartbeat`` seconds of silence there is an empty batch, and ``after`` stays."""
    log = await filled(3)
    with log.subscribe(3, heartbeat=0.0) as subscription:
        assert [] == await subscription.next()
        assert 3 == subscription.after


async def test_heartbeat_repairs_a_lost_ring() -> None:
    """An append of which nobody heard is found by the read after the next heartbeat."""
    log = await filled(3)
    with log.subscribe(3, heartbeat=0.0) as subscription:
        assert [] == await subscription.next()
        log.store.doorbell, heard = Doorbell(), log.store.doorbell
        await log.append(text(9))
        log.store.doorbell = heard

        assert [4] == offsets(await subscription.next())


async def test_subscription_stops() -> None:
    """A stopped subscription gives what is there, and then nothing, without waiting."""
    log = await filled(3)
    with log.subscribe(2, heartbeat=NEVER) as subscription:
        subscription.stop()
        assert [3] == offsets(await subscription.next())
        assert [] == await asyncio.wait_for(subscription.next(), NET)


async def test_stop_wakes() -> None:
    """A subscription that waits is woken by ``stop``."""
    log = await filled(3)
    with log.subscribe(3, heartbeat=NEVER) as subscription:
        following = asyncio.create_task(subscription.next())
        await asyncio.sleep(0)
        subscription.stop()

        assert [] == await asyncio.wait_for(following, NET)


async def test_subscription_without_deltas() -> None:
    """With ``deltas=False`` a ring for deltas alone brings nothing."""
    log = await filled(3)
    with log.subscribe(2, heartbeat=NEVER, deltas=False) as subscription:
        following = asyncio.create_task(subscription.next())
        await log.append(text(9))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not following.done()
        await log.append(draft("run.cancel_requested", {}, "r"))

        assert [5] == offsets(await asyncio.wait_for(following, NET))


async def test_subscription_leaves_nothing_behind() -> None:
    """Outside its ``with`` block nobody listens."""
    log = await filled(3)
    with log.subscribe(3):
        assert 1 == log.store.doorbell.listening("s")

    assert 0 == log.store.doorbell.listening("s")


# The race for which the order of three lines was chosen


class AppendsDuringRead(MemoryStore):
    """Once, when a read has found nothing, an event is stored before the reader learns of it."""

    armed = False

    async def read(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        events = await super().read(session, after, limit=limit, deltas=deltas)
        if not events and self.armed:
            self.armed = False
            await self.append(session, [text(9)])
        return events


class ClearsTooLate(Subscription):
    """The wrong order: the bell is cleared after the read."""

    async def next(self) -> list[Event]:
        while True:
            events = await self._store.read(self._session, self.after, limit=self._limit, deltas=self._deltas)
            if events:
                self.after = events[-1].offset
                return events
            self._bell.clear()
            if not await self._bell.wait(self.heartbeat):
                return events


async def next_in_race(kind: type[Subscription], heartbeat: float) -> list[Offset]:
    store = AppendsDuringRead()
    await store.append("s", [draft("session.created", {}), draft("message.created", {}, "r")])
    store.armed = True
    with kind(store, "s", 2, heartbeat=heartbeat) as subscription:
        return offsets(await asyncio.wait_for(subscription.next(), NET))


async def test_an_append_during_the_read_is_not_lost() -> None:
    """An event stored after the read looked, but before the wait, ends the wait."""
    assert [3] == await next_in_race(Subscription, NEVER)


async def test_the_race_catches_the_wrong_order() -> None:
    """The test above is worth something: a subscription that clears too late waits out its heartbeat."""
    assert [] == await next_in_race(ClearsTooLate, 0.0)


# Log


async def test_log_reads_all_pages() -> None:
    """``all`` goes through every page, up to and with ``until``."""
    log = await filled(READ_LIMIT + 10)

    assert list(range(1, READ_LIMIT + 11)) == offsets([event async for event in log.all()])
    assert [3, 4, 5] == offsets([event async for event in log.all(2, until=5)])
    assert [1, 2] == offsets([event async for event in log.all(deltas=False)])


async def test_an_append_to_the_memory_store_is_done_at_once() -> None:
    """It is over when it returns, so nobody needs a task to hear of it; refusals are in it, too."""
    store = MemoryStore()
    stored = store.append("s", [draft("session.created", {})])
    refused = store.append("nobody", [text(0)])
    assert stored.done()
    assert [1] == offsets(stored.result().events)
    assert isinstance(refused.exception(), SessionNotFound)


async def test_an_append_under_way_tells_who_waits_and_who_is_to_be_called(caplog: pytest.LogCaptureFixture) -> None:
    """All of them, once, whatever one of them raises; who comes later, at once; and nobody after it was cancelled."""
    told: list[object] = []
    storing, other = Storing(), Storing()
    storing.add_done_callback(told.append)
    storing.add_done_callback(told.append)
    waiting = [asyncio.ensure_future(wait_for(storing)) for _ in range(2)]
    gone = asyncio.ensure_future(wait_for(storing))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.sleep(0)
    storing.outcome = "stored"
    storing.settle()
    assert told == [storing, storing]
    storing.add_done_callback(told.append)
    assert told == [storing, storing, storing]
    assert await asyncio.gather(*waiting) == ["stored", "stored"]
    assert await storing == "stored"

    failing: Storing = Storing()
    failing.add_done_callback(lambda storing: storing.result().nothing)
    failing.add_done_callback(told.append)
    failing.settle()
    assert told.pop() is failing
    assert "a call back failed" in caplog.text

    other.add_done_callback(told.append)
    other.cancel()
    other.error = SessionNotFound("s")
    other.settle()
    with pytest.raises(SessionNotFound):
        await other
    assert told == [storing, storing, storing]


async def wait_for(storing: Storing) -> object:
    return await storing
