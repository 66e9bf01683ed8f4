"""The rules of reading: pages, what rings for whom, what readers see."""

from __future__ import annotations

import asyncio

from ..doorbell import Bell
from ..event import CallDelta, Delta, Draft, RefusalDelta, TextDelta, ThinkingDelta, ToolBegun
from ..log import READ_LIMIT, Subscription
from .place import Place, cancel, text
from .rules import PATIENCE, StoreCheck, everything, rule, same, texts_of

RULES: list[StoreCheck] = []


@rule(RULES)
async def reads_are_pages(place: Place) -> None:
    """A read gives at most ``limit`` events after an offset, and nothing from beyond the head."""
    log = await place.begin("s", "r")
    for start in range(0, 30, 3):
        await log.append(*[text("r", str(number)) for number in range(start, start + 3)])

    same([1, 2, 3], [event.offset for event in await log.read(0, limit=3)])
    same([31, 32], [event.offset for event in await log.read(30, limit=10)])
    same([8], [event.offset for event in await log.read(7, limit=1)])
    for after in (32, 33, 10**6, 2**70):
        same([], await log.read(after))
    same([], await log.read(0, limit=0))
    same(list(range(1, 33)), [event.offset for event in await everything(log)])


@rule(RULES)
async def reads_without_deltas(place: Place) -> None:
    """With ``deltas=False`` just these types are left out, and a page is filled with others."""
    log = await place.begin("s", "r")
    deltas: list[Delta] = [kind(0, 0, 0, "x") for kind in (ThinkingDelta, TextDelta, RefusalDelta)]
    deltas.append(CallDelta(0, 0, "c", 0, "x"))
    for number in range(20):
        drafts = [Draft(delta, "r") for delta in deltas]
        await log.append(*drafts, Draft(ToolBegun(str(number), "n", ""), "r"))

    kept = list(range(3 + len(deltas), 3 + 20 * (len(deltas) + 1), len(deltas) + 1))
    same([1, 2, *kept], [event.offset for event in await everything(log, deltas=False)])
    same(kept[:3], [event.offset for event in await log.read(2, limit=3, deltas=False)])
    same(kept[:3], [event.offset for event in await log.read(kept[0] - 1, limit=3, deltas=False)])
    same([], await log.read(kept[-1], deltas=False))
    same(kept[-1], len(await everything(log)))


@rule(RULES)
async def what_was_appended_is_visible(place: Place) -> None:
    """When an append returns, every way of reading shows it, also while others append."""
    log = await place.begin("s", "r")

    async def appender(name: str) -> None:
        for _ in range(20):
            offset = (await log.append(text("r", name))).events[-1].offset
            same(offset, (await log.read(offset - 1, limit=1))[0].offset)
            head = (await place.store.info("s")).head
            same(True, head >= offset)
            # What info told of must not be missing from the log.
            same([head], [event.offset for event in await log.read(head - 1, limit=1)])

    await asyncio.gather(*[appender(str(number)) for number in range(10)])


@rule(RULES)
async def the_doorbell_rings_after_the_append(place: Place) -> None:
    """Each append rings for its session, and whoever then reads finds its events; other sessions hear nothing."""
    log = await place.begin("s", "r")
    await place.begin("t", "r")
    bell, other = Bell(), Bell()
    place.store.doorbell.hang("s", bell)
    place.store.doorbell.hang("t", other)
    for number in range(5):
        bell.clear()
        appending = asyncio.create_task(log.append(text("r", str(number))))
        same(True, await bell.wait(PATIENCE))
        same([str(number)], texts_of(await log.read(2 + number)))
        await appending
    same(False, await other.wait(0.0))


@rule(RULES)
async def the_doorbell_knows_outside(place: Place) -> None:
    """A bell for outside rings for appends without a lease only."""
    log = await place.begin("s", "r")
    lease = await place.lease("s", "r")
    every, outside = Bell(), Bell()
    place.store.doorbell.hang("s", every)
    place.store.doorbell.hang("s", outside, outside=True)
    await log.append(text("r"), lease=lease)
    same((True, False), (await every.wait(PATIENCE), await outside.wait(0.0)))
    await log.append(cancel("r"))
    same(True, await outside.wait(PATIENCE))


@rule(RULES)
async def subscriptions_miss_nothing(place: Place) -> None:
    """Readers who follow a log while many append to it get every event once, in order, wherever they begin."""
    log = await place.begin("s", "r")
    count = 300

    async def follow(after: int) -> None:
        seen: list[int] = []
        with Subscription(place.store, "s", after, heartbeat=PATIENCE, limit=7) as subscription:
            while not seen or seen[-1] < count + 2:
                seen += [event.offset for event in await subscription.next()]
        same(list(range(after + 1, count + 3)), seen)

    async def append(share: int) -> None:
        for _ in range(share):
            await log.append(text("r"))

    await asyncio.gather(*[follow(after) for after in (0, 1, 5, 100)], *[append(count // 10) for _ in range(10)])


@rule(RULES)
async def what_is_at_hand_is_what_is_read(place: Place) -> None:
    """``peek``, where a store has it, gives what ``read`` gives, and no fewer, or None."""
    peek = getattr(place.store, "peek", None)
    if peek is None:
        return
    log = await place.begin("s", "r")
    for number in range(20):
        await log.append(*[text("r", f"{number} {piece}") for piece in range(1 + number % 3)])
        for after in (0, 1, 5, number, number + 2, 1_000):
            for limit in (1, 3, READ_LIMIT):
                for deltas in (True, False):
                    seen = peek("s", after, limit=limit, deltas=deltas)
                    if seen is not None:
                        same(await place.store.read("s", after, limit=limit, deltas=deltas), seen)
    same((), tuple(peek("never was", 0, limit=1, deltas=True) or ()))
